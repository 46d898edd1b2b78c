"""Base64 in a stream, against Python's."""

from __future__ import annotations

import base64
import string
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastmesh import _grpc

DIGITS = string.ascii_letters + string.digits + "+/"


def cut(data: bytes, at: list[int]) -> Iterator[bytes]:
    """The pieces of data that end at the positions."""
    start = 0
    for stop in [*sorted(position % (len(data) + 1) for position in at), len(data)]:
        yield data[start:stop]
        start = stop


@given(st.binary(max_size=200))
def test_encodes_as_python_does(data: bytes) -> None:
    wanted = base64.b64encode(data)
    assert _grpc.encode(data) == wanted
    assert _grpc.encode_in_place(data) == wanted


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 6, 255, 16384, 65537])
def test_sizes(size: int) -> None:
    data = bytes(i * 7 & 255 for i in range(size))
    text = base64.b64encode(data)
    assert _grpc.encode(data) == _grpc.encode_in_place(data) == text
    assert _grpc.decode([text]) == (data, True)


@given(st.lists(st.binary(max_size=20), max_size=8), st.lists(st.integers(0, 10_000), max_size=12))
def test_padded_texts_in_a_row(parts: list[bytes], at: list[int]) -> None:
    """Each may end with "=", and the stream may be cut anywhere."""
    text = b"".join(base64.b64encode(part) for part in parts)
    assert _grpc.decode(cut(text, at)) == (b"".join(parts), True)


def test_split_at_every_byte() -> None:
    text = (
        base64.b64encode(b"a")
        + base64.b64encode(b"bc")
        + base64.b64encode(b"defghi")
        + base64.b64encode(b"j")
    )
    for at in range(len(text) + 1):
        for behind in range(at, len(text) + 1):
            assert _grpc.decode([text[:at], text[at:behind], text[behind:]]) == (b"abcdefghij", True)
    assert _grpc.decode(bytes([byte]) for byte in text) == (b"abcdefghij", True)


def test_where_a_stream_may_end() -> None:
    text = b"QUJDREU="
    for stop in range(len(text) + 1):
        wanted = b"ABCDE"[: {8: 5}.get(stop, stop // 4 * 3)]
        assert _grpc.decode([text[:stop]]) == (wanted, stop % 4 == 0)
        assert _grpc.decode([text[:stop][i : i + 1] for i in range(stop)]) == (wanted, stop % 4 == 0)


def strictly(text: bytes) -> bytes | None:
    """The bytes of a whole stream, quantum by quantum, as Python reads and would write them."""
    result = b""
    for at in range(0, len(text), 4):
        quantum = text[at : at + 4]
        try:
            part = base64.b64decode(quantum, validate=True)
        except ValueError:
            return None
        if base64.b64encode(part) != quantum:
            return None
        result += part
    return result


@given(
    st.text(DIGITS + "=", max_size=24).map(str.encode)
    | st.text(DIGITS[-3:] + "=A-_ \n", max_size=12).map(str.encode)
    | st.binary(max_size=8),
    st.lists(st.integers(0, 100), max_size=6),
)
@example(b"QQ==QQ==", [])
@example(b"QR==", [])
@example(b"QUJ=", [])
@example(b"Q===", [])
@example(b"====", [])
@example(b"QQ=Q", [])
@example(b"QUI=Q", [])
def test_takes_what_is_strictly_base64(text: bytes, at: list[int]) -> None:
    decoded = _grpc.decode(cut(text, at))
    if decoded is None:
        assert strictly(text) is None
        # What is wrong with it is there already, whatever may follow.
        assert all(strictly(text + b"A" * k) is None and strictly(text + b"=" * k) is None for k in range(4))
    elif decoded[1]:
        assert decoded[0] == strictly(text)
    else:
        assert strictly(text) is None
        assert decoded[0] == strictly(text[: len(text) // 4 * 4])


@pytest.mark.parametrize("position", range(8))
def test_every_byte_in_every_place(position: int) -> None:
    for byte in range(256):
        text = bytearray(b"QUJDREVG")
        text[position] = byte
        for pieces in ([bytes(text)], [bytes([b]) for b in text]):
            decoded = _grpc.decode(pieces)
            assert (decoded and decoded[1] and decoded[0]) == (strictly(bytes(text)) or None), text


@pytest.mark.parametrize(
    "text",
    [
        b"=", b"A=", b"A===", b"====", b"QQ=A", b"QQ=QQ==", b"QUJ=A", b"QQ== ", b"QQ\r\n==", b"QUJD\nREVG",
        b" QUJD", b"QU-_", b"QQ==\n", b"QUJD\0", b"\xffUJD",
    ],
)  # fmt: skip
def test_malformed(text: bytes) -> None:
    assert _grpc.decode([text]) is None
    assert _grpc.decode([bytes([byte]) for byte in text]) is None


@pytest.mark.parametrize("text", [b"QR==", b"QV==", b"QUJ=", b"QUL=", b"//==", b"///="])
def test_bits_behind_the_last_byte_are_zero(text: bytes) -> None:
    assert base64.b64decode(text) is not None
    assert _grpc.decode([text]) is None
