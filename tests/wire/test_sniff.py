"""The name in a ClientHello: what real clients send, in any pieces, and everything that is not quite one."""

from __future__ import annotations

import random
import ssl

import pytest

from fastmesh import _tls as tls

MORE, HELLO, NOT_TLS, MALFORMED, TOO_LARGE = 0, 1, -1, -2, -3
NAME = b"Shop.Example"


def vector(width: int, data: bytes) -> bytes:
    return len(data).to_bytes(width) + data


def server_name(name: bytes = NAME, kind: int = 0) -> bytes:
    return vector(2, bytes([kind]) + vector(2, name))


def message(
    *extensions: tuple[int, bytes],
    session: bytes = b"",
    suites: bytes = b"\x13\x01",
    compression: bytes = b"\0",
) -> bytes:
    body = b"\x03\x03" + bytes(32) + vector(1, session) + vector(2, suites) + vector(1, compression)
    body += vector(2, b"".join(kind.to_bytes(2) + vector(2, data) for kind, data in extensions))
    return b"\x01" + vector(3, body)


def records(data: bytes, size: int = 16384, version: bytes = b"\x03\x01") -> bytes:
    return b"".join(b"\x16" + version + vector(2, data[at : at + size]) for at in range(0, len(data), size))


def real(name: str, **options: ssl.TLSVersion) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for key, value in options.items():
        setattr(context, key, value)
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(into, out, server_hostname=name).do_handshake()
    return out.read()


GREASE = (0x0A0A, b"")
GOOD = {
    "python": (real("shop.example"), b"shop.example"),
    "1.2": (real("shop.example", maximum_version=ssl.TLSVersion.TLSv1_2), b"shop.example"),
    "an address, so no name": (real("192.0.2.1"), b""),
    "capitals": (records(message((0, server_name()))), b"shop.example"),
    "a dot at the end": (records(message((0, server_name(b"a.b.")))), b"a.b."),
    "GREASE": (
        records(message(GREASE, (0, server_name()), (0xFAFA, b"\0"), suites=b"\x0a\x0a\x13\x01")),
        b"shop.example",
    ),
    "ECH: the outer name": (
        records(message((0xFE0D, bytes(200)), (0, server_name(b"front.example")))),
        b"front.example",
    ),
    "no extensions": (
        records(b"\x01" + vector(3, b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01\x01\0")),
        b"",
    ),
    "no name": (records(message((43, b"\x02\x03\x04"))), b""),
    "one byte a record": (records(message((0, server_name())), 1), b"shop.example"),
    "large": (records(message((21, bytes(15000)), (0, server_name())), 4000), b"shop.example"),
    "the longest name": (records(message((0, server_name(b"a" * 255)))), b"a" * 255),
}
BAD = {
    "plaintext": (b"GET / HTTP/1.1\r\n", NOT_TLS),
    "SSL 2": (b"\x80\x2e\x01\x00\x02", NOT_TLS),
    "an alert first": (b"\x15\x03\x01\x00\x02\x02\x28", NOT_TLS),
    "another version": (b"\x16\x02\x01\x00\x01\x01", NOT_TLS),
    "no hello": (records(b"\x02" + bytes(40)), MALFORMED),
    "an empty record": (b"\x16\x03\x01\x00\x00", MALFORMED),
    "a record too long": (b"\x16\x03\x01\x40\x01", MALFORMED),
    "another record between": (records(message((0, server_name())))[:20] + b"", MORE),
    "data in the middle": (
        records(message((0, server_name()))[:10], 5) + b"\x17\x03\x03\x00\x01x",
        MALFORMED,
    ),
    "two names": (records(message((0, vector(2, 2 * (b"\0" + vector(2, b"a")))))), MALFORMED),
    "a name of another kind": (records(message((0, server_name(kind=1)))), MALFORMED),
    "an empty name": (records(message((0, server_name(b"")))), MALFORMED),
    "a name too long": (records(message((0, server_name(b"a" * 256)))), MALFORMED),
    "a name with NUL": (records(message((0, server_name(b"a\0b")))), MALFORMED),
    "a name with a slash": (records(message((0, server_name(b"a/b")))), MALFORMED),
    "a name from a dot": (records(message((0, server_name(b".a")))), MALFORMED),
    "the name twice": (records(message((0, server_name()), (0, server_name()))), MALFORMED),
    "GREASE twice": (records(message(GREASE, GREASE)), MALFORMED),
    "many extensions": (records(message(*((n, b"") for n in range(100, 165)))), MALFORMED),
    "bytes behind the list": (records(message((0, server_name() + b"x"))), MALFORMED),
    "a list that is too long": (records(message((0, b"\0\xff\0\0\x01a"))), MALFORMED),
    "half a suite": (records(message(suites=b"\x13\x01\x13")), MALFORMED),
    "no suites": (records(message(suites=b"")), MALFORMED),
    "no compression": (records(message(compression=b"")), MALFORMED),
    "a long session": (records(message(session=bytes(33))), MALFORMED),
    "bytes behind the extensions": (records(b"\x01" + vector(3, message()[4:] + b"x")), MALFORMED),
    "too large by its word": (records(b"\x01\x00\x40\x01"), TOO_LARGE),
    "too large by its records": (records(message((21, bytes(16000))), 10), TOO_LARGE),
}


@pytest.mark.parametrize("case", GOOD)
def test_hellos(case: str) -> None:
    data, name = GOOD[case]
    assert tls.sniff(data) == (HELLO, name)
    assert tls.sniff(data + b"\x17anything") == (HELLO, name)
    for end in range(len(data) if len(data) < 3000 else 400):
        assert tls.sniff(data[:end])[0] == MORE, end


@pytest.mark.parametrize("case", BAD)
def test_what_is_none(case: str) -> None:
    data, wanted = BAD[case]
    assert tls.sniff(data)[0] == wanted
    verdicts = [tls.sniff(data[:end])[0] for end in range(len(data))]
    assert all(one in (MORE, wanted) for one in verdicts)


def test_pieces_change_nothing() -> None:
    """However the message is cut into records."""
    whole = message(GREASE, (0, server_name()), (21, bytes(300)))
    for size in range(1, 80):
        assert tls.sniff(records(whole, size)) == (HELLO, b"shop.example")


def test_mutations() -> None:
    """Nothing is read beyond the bytes (the sanitizers watch), and a result is one of those there are."""
    rng = random.Random(7)
    seeds = [data for data, _ in GOOD.values() if len(data) < 2000]
    for _ in range(20_000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        result, name = tls.sniff(bytes(data[: rng.randrange(len(data) + 1)]))
        assert TOO_LARGE <= result <= HELLO
        assert len(name) <= 255
