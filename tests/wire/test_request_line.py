"""What some server could take for HTTP, however it is cut; and how a server of HTTP/2 begins."""

from __future__ import annotations

import pytest
from fastmesh._destination import begins_as_http2_server, could_be_http
from hypothesis import given
from hypothesis import strategies as st

HTTP = [
    b"GET / HTTP/1.1\r\n",
    b"get / http/1.0\n",
    b"\r\n\n  GET\t/\x0bHTTP/1.1 \r\n",
    b"GET / HTTP/1.1\rhost: a\r\n",
    b"M-SEARCH * HTTP/1.1\r\n",
    b"GET /a b c HTTP/1.1\r\n",
    b"G(T /\x01\xff Http/9\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET HTTP/1.1\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\n",
    b"GET /\x1cHTTP/1.1\r\n",  # white space to str.split
    b"\xa0GET\x85/\x1f\x1eHTTP/1.1\r\n",
    "GET\u2003/\u00a0HTTP/1.1\r\n".encode(),
    b"GET / HTTP/1.1\x1chost: a\r\n",  # the end of a line to str.splitlines
    b"GET /\r\nhost:",  # fields behind a line of HTTP/0.9
    b"get key \n x",
    b"GET a\nFrom a",
]
OTHERS = [
    b"\0GET / HTTP/1.1\r\n",
    b"\x16\x03\x01\x00\x05",
    b"G\0ET / HTTP/1.1\r\n",
    b"HTTP/1.1\r\n",
    b"GET /\r\nhost a: HTTP/1.1\r\n",
    b"GET /\r\n\r\nhost: a\r\n",
    b"get key\r\nset key 0 0 3\r\na:b\r\n",
    b"PUT /\r\nhost: a\r\n",
    b"GETS /\r\nhost: a\r\n",
    b"GET / x\r\nhost: a\r\n",
    b"\x80\1\0\1\0\0\0\4ping",
    b'1.2.3.4 "GET / HTTP/1.1" 200 5\r\n',
    b"GET / HTTP/1.1 more\r\n",
    b"GET / XHTTP/1.1\r\n",
    b"DESCRIBE rtsp://a RTSP/1.0\r\n",
    b"SSH-2.0-OpenSSH_9\r\n",
    b"x" * 1_048_577,
]


@pytest.mark.parametrize("data", HTTP, ids=range(len(HTTP)))
def test_it_could_be(data: bytes) -> None:
    assert could_be_http([data]) is True
    assert could_be_http([bytes([byte]) for byte in data]) is True


@pytest.mark.parametrize("data", OTHERS, ids=range(len(OTHERS)))
def test_nobody_could_take_it_for_that(data: bytes) -> None:
    assert could_be_http([data]) is False
    assert could_be_http([bytes([byte]) for byte in data]) is False


@pytest.mark.parametrize(
    "data", [b"", b"\r\n", b"GET", b"GET / HTTP/1.1", b"GET / HTTP/1.1 ", b"GET /\r\n", b"GET /\r\nFrom"]
)
def test_it_cannot_be_told_yet(data: bytes) -> None:
    assert could_be_http([data]) is None


@given(st.lists(st.text("GET /HhtpP1.:\r\n\t\0\x1c", max_size=8).map(str.encode)))
def test_it_does_not_matter_how_it_is_cut(parts: list[bytes]) -> None:
    assert could_be_http(parts) == could_be_http([b"".join(parts)])


@pytest.mark.parametrize(
    ("data", "begins"),
    [
        (b"\0\0\0\4\0\0\0\0\0", True),
        (b"\0\0\6\4\0\0\0\0\0\0\3\0\0\0d", True),
        (b"\0\0\0\4\0\0\0\0", False),
        (b"\0\0\0\4\1\0\0\0\0", False),  # an acknowledgement
        (b"\0\0\5\4\0\0\0\0\0", False),  # of no whole settings
        (b"\0\x60\0\4\0\0\0\0\0", False),  # larger than a first frame may be
        (b"\0\0\0\4\0\0\0\0\1", False),  # of a stream
        (b"220 ready\r\n", False),
        (b"J\0\0\0\n8.0.33\0", False),
    ],
)
def test_a_server_of_http2(data: bytes, begins: bool) -> None:
    assert begins_as_http2_server(data) is begins
