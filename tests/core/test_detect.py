"""What the first bytes of a connection tell: HTTP or not, at once, in pieces, and when no more come."""

from __future__ import annotations

import pytest
from fastmesh._destination import ENOUGH, told

HTTP, OTHER, MORE = 1, -1, 0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LONG = b"a" * ENOUGH

REQUESTS = {
    "get": b"GET / HTTP/1.1\r\n",
    "1.0": b"GET /a?b HTTP/1.0\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\n",
    "absolute": b"GET http://a/ HTTP/1.1\r\n",
    "absolute, capitals": b"GET HTTPS://a HTTP/1.1\r\n",
    "connect": b"CONNECT a:1 HTTP/1.1\r\n",
    "connect to an address": b"CONNECT [::1]:1 HTTP/1.1\r\n",
    "method with a hyphen": b"VERSION-CONTROL / HTTP/1.1\r\n",
    "the longest method": b"A" * 32 + b" / HTTP/1.1\r\n",
    "long target": b"GET /" + LONG + b" HTTP/1.1\r\n",
    "long absolute target": b"GET http://" + LONG + b" HTTP/1.1\r\n",
    "long host": b"CONNECT " + LONG + b":1 HTTP/1.1\r\n",
}
OTHERS = {
    "binary": b"\x00\x01\x02\x03",
    "tls": b"\x16\x03\x01\x00\x05hello",
    "ssh": b"SSH-2.0-OpenSSH_9\r\n",
    "smtp": b"EHLO x\r\n",
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "redis, inline": b"GET /key\r\n",
    "memcached": b"get key\r\n",
    "nats": b'CONNECT {"verbose":false,"pedantic":false,"lang":"python3","version":"2.6.0"}\r\n',
    "stomp": b"CONNECT\naccept-version:1.2\n",
    "rtsp": b"OPTIONS rtsp://a/b RTSP/1.0\r\n",
    "sip": b"INVITE sip:a@b SIP/2.0\r\n",
    "words": b"OPTIONS of some other protocol\r\n",
    "small letters": b"get / HTTP/1.1\r\n",
    "a line feed alone": b"GET / HTTP/1.1\n",
    "no target": b"GET  HTTP/1.1\r\n",
    "connect to nothing": b"CONNECT  HTTP/1.1\r\n",
    "HTTP/0.9": b"GET /\r\n",
    "a long method": b"A" * 33 + b" / HTTP/1.1\r\n",
    "an empty line first": b"\r\nGET / HTTP/1.1\r\n",
    "a hyphen first": b"-GET / HTTP/1.1\r\n",
}


def in_pieces(data: bytes, http2: bool = False) -> list[int]:
    return [told(data[:n], http2) for n in range(len(data) + 1)]


@pytest.mark.parametrize("case", REQUESTS)
def test_requests(case: str) -> None:
    """Told by the end of the line, or by as much as has to be enough."""
    for http2 in (False, True):
        answers = in_pieces(REQUESTS[case], http2)
        first = answers.index(HTTP)
        assert answers == [MORE] * first + [HTTP] * (len(answers) - first)
        assert first == min(len(REQUESTS[case]), ENOUGH)


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_none(case: str) -> None:
    """Told with all bytes at once or in pieces, and the same; what comes behind makes no difference."""
    for http2 in (False, True):
        answers = in_pieces(OTHERS[case], http2)
        first = answers.index(OTHER)
        assert answers == [MORE] * first + [OTHER] * (len(answers) - first)
        assert told(OTHERS[case] + b"GET / HTTP/1.1\r\n\r\n", http2) == OTHER


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"GET /", HTTP),
        (b"GET / HTTP/1.1\r", HTTP),
        (b"GET /key", HTTP),
        (b"CONNECT a", HTTP),
        (b"GET http://a", HTTP),
        (b"", OTHER),
        (b"PING", OTHER),
        (b"GET ", OTHER),
        (b"GET htt", OTHER),
    ],
)
def test_when_no_more_comes_its_beginning_has_to_do(data: bytes, what: int) -> None:
    assert set(in_pieces(data)) == {MORE}
    assert told(data, more=False) == what


def test_the_preface() -> None:
    assert in_pieces(PREFACE, http2=True) == [MORE] * len(PREFACE) + [HTTP]
    assert told(PREFACE + b"\0" * 100, http2=True) == HTTP
    assert told(PREFACE[:-1], http2=True, more=False) == OTHER
    assert told(PREFACE) == OTHER, "where it is not spoken"
    assert told(b"PRI * HTTP/1.1\r\n", http2=True) == OTHER
    assert told(b"PRI /a HTTP/1.1\r\n") == OTHER


def test_the_bound_is_kept() -> None:
    """With enough bytes it is told, whatever they are; and they alone tell."""
    for line in (*REQUESTS.values(), *OTHERS.values(), PREFACE, b"A" * 100, b"GET h" + LONG):
        padded = (line + b"x" * ENOUGH)[:ENOUGH]
        for http2 in (False, True):
            assert told(padded, http2) != MORE
            assert told(padded + b"\nmore", http2) == told(padded, http2) == told(padded, http2, more=False)
