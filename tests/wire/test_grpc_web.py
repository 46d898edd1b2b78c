"""The gRPC-Web bridge: what a browser's call becomes, and what its answer becomes."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmesh import _grpc, _http1

LINE = b"POST /pkg.Service/Method HTTP/1.1\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
GRPC = b"content-type: application/grpc+proto\r\n"
UNKNOWN = b"grpc-status: 2\r\ngrpc-message: the endpoint sent no grpc-status\r\n"


def head(kind: bytes = b"application/grpc-web+proto", *, more: bytes = b"", line: bytes = LINE) -> bytes:
    return line + b"Host: a.example\r\nContent-Type: " + kind + b"\r\n" + more + b"\r\n"


def call(*, text: bool = False) -> Any:
    web = _grpc.Web(head(b"application/grpc-web-text" if text else b"application/grpc-web"))
    assert (web.is_call, web.text_in, web.text_out) == (True, text, text)
    return web


def answered(*, text: bool = False) -> Any:
    web = call(text=text)
    assert web.response_head(OK + GRPC + b"transfer-encoding: chunked\r\n\r\n")[0] is not None
    return web


def frame(lines: bytes, *, text: bool = False) -> bytes:
    raw = b"\x80" + struct.pack(">I", len(lines)) + lines
    return base64.b64encode(raw) if text else raw


def message(data: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + struct.pack(">I", len(data)) + data


def quanta(body: bytes) -> bytes:
    """What a reader makes of a body of padded base64 texts: each quantum on its own."""
    assert len(body) % 4 == 0
    return b"".join(base64.b64decode(body[at : at + 4], validate=True) for at in range(0, len(body), 4))


def pieces(data: bytes, at: list[int]) -> Iterator[bytes]:
    start = 0
    for stop in [*sorted(position % (len(data) + 1) for position in at), len(data)]:
        yield data[start:stop]
        start = stop


def test_the_state_is_small() -> None:
    assert _grpc.STATE_SIZE <= 32


# ---------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("kind", "wanted", "text"),
    [
        (b"application/grpc-web", b"application/grpc", False),
        (b"application/grpc-web+proto", b"application/grpc+proto", False),
        (b"application/grpc-web+json", b"application/grpc+json", False),
        (b"application/grpc-web-text", b"application/grpc", True),
        (b"application/grpc-web-text+proto", b"application/grpc+proto", True),
        (b"application/grpc-web-text-base64", b"application/grpc", True),
        (b"Application/gRPC-Web-Text+Proto ; charset=utf-8", b"application/grpc+Proto", True),
    ],
)
def test_request_heads(kind: bytes, wanted: bytes, text: bool) -> None:
    web = _grpc.Web(head(kind, more=b"X-Grpc-Web: 1\r\nContent-Length: 8\r\nX-User-Agent: b\r\n"))
    assert (web.is_call, web.text_in, web.text_out) == (True, text, text)
    got = web.request_head()
    fields = [(b"Host", b"a.example"), (b"content-type", wanted), (b"X-Grpc-Web", b"1")]
    length = [(b"Content-Length", b"8")]
    assert got["fields"] == fields + ([] if text else length) + [(b"X-User-Agent", b"b")]
    assert got["gone"] == (length if text else [])
    assert (got["framing"], got["length"]) == (("chunked", None) if text else ("length", 8))
    assert got["te"]
    assert (got["method"], got["path"]) == (b"POST", b"/pkg.Service/Method")
    assert got["authority"] == b"a.example"


@pytest.mark.parametrize(
    "kind",
    [b"application/grpc-web", b"application/grpc-web-text+proto", b"application/grpc-web;a=" + b"b" * 500],
)
@pytest.mark.parametrize("place", range(4))
def test_a_rewritten_head_is_a_head(kind: bytes, place: int) -> None:
    """Where the line stands does not matter, and a parser sees in the block what the Message says."""
    lines = [b"Host:other.example\r\n", b"Accept: x\r\n", b"Te: x\r\n"]
    lines.insert(place, b"CONTENT-TYPE:" + kind + b"  \r\n")
    web = _grpc.Web(b"POST http://other.example/p?q HTTP/1.1\r\n" + b"".join(lines) + b"\r\n")
    got = web.request_head()
    again = _http1.parse_request(got["block"])
    assert again["head_len"] == len(got["block"])
    assert [(name, value) for name, value, hop in again["fields"] if not hop] == got["fields"]
    assert [name for name, _ in got["fields"]].count(b"content-type") == 1
    for key in ("method", "path", "authority", "scheme"):
        assert got[key] == again[key]
    assert (got["path"], got["authority"], got["scheme"]) == (b"/p?q", b"other.example", b"http")


@pytest.mark.parametrize(
    "data",
    [
        head(b"application/grpc"),
        head(b"application/grpc+proto"),
        head(b"application/json"),
        head(b"application/grpc-webs"),
        head(line=b"GET / HTTP/1.1\r\n"),
        head(line=b"PUT / HTTP/1.1\r\n"),
        head(line=b"OPTIONS / HTTP/1.1\r\n"),
        head(more=b"Content-Type: application/grpc-web\r\n"),
        LINE + b"Host: a\r\nX-Grpc-Web: 1\r\n\r\n",
        # a CORS preflight
        b"OPTIONS /a HTTP/1.1\r\nHost: a\r\nOrigin: https://b\r\nAccess-Control-Request-Method: POST\r\n"
        b"Access-Control-Request-Headers: content-type,x-grpc-web\r\n\r\n",
    ],
)
def test_other_requests_are_no_calls(data: bytes) -> None:
    web = _grpc.Web(data)
    assert not web.is_call
    assert not web.text_in and not web.text_out


@pytest.mark.parametrize(
    ("accept", "binary", "text"),
    [
        ([], False, True),
        ([b"*/*"], False, True),
        ([b""], False, True),
        ([b"application/grpc"], False, True),
        ([b"application/grpc-web-text"], True, True),
        ([b"application/grpc-web-text+proto"], True, True),
        ([b"APPLICATION/grpc-web-text;q=0.9, text/html"], True, True),
        ([b"text/html , application/grpc-web-text-base64"], True, True),
        ([b"application/grpc-web"], False, False),
        ([b"application/grpc-web+proto, */*"], False, False),
        ([b"application/grpc-web, application/grpc-web-text"], True, True),
        ([b"application/grpc-web-text, application/grpc-web"], True, True),
        ([b"application/grpc-web", b"application/grpc-web-text"], True, True),
        ([b",,application/grpc-web,"], False, False),
    ],
)
def test_accept_says_what_the_answer_is(accept: list[bytes], binary: bool, text: bool) -> None:
    more = b"".join(b"Accept: " + value + b"\r\n" for value in accept)
    assert _grpc.Web(head(b"application/grpc-web", more=more)).text_out == binary
    web = _grpc.Web(head(b"application/grpc-web-text", more=more))
    assert (web.text_in, web.text_out) == (True, text)


@given(st.binary(max_size=100), st.lists(st.integers(0, 1000), max_size=8))
def test_text_bodies_of_requests(body: bytes, at: list[int]) -> None:
    web = call(text=True)
    got = b"".join(web.request_data(piece) for piece in pieces(base64.b64encode(message(body)), at))
    web.request_end()
    assert got == message(body)


def test_text_bodies_that_are_wrong() -> None:
    web = call(text=True)
    assert web.request_data(b"AAAAA") == b"\0\0\0"
    with pytest.raises(_grpc.Refused, match="bad_grpc_web"):
        web.request_end()
    for body in (b"AAAA*", b"A===", b"AAAA\r\n", b"AA=A"):
        for cut in range(len(body)):
            web = call(text=True)
            with pytest.raises(_grpc.Refused, match="bad_grpc_web"):
                for piece in (body[:cut], body[cut:]):
                    web.request_data(piece)
    call(text=True).request_end()
    call().request_end()


# ---------------------------------------------------------------- heads of answers


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("subtype", [b"", b"+proto", b"+json"])
def test_response_heads(text: bool, subtype: bytes) -> None:
    web = call(text=text)
    got, none = web.response_head(
        OK
        + b"Trailer: grpc-status\r\nContent-Type: application/grpc"
        + subtype
        + b"\r\ngrpc-encoding: gzip\r\n"
        b"Content-Length: 7\r\nX-Meta: a\r\n\r\n"
    )
    kind = b"application/grpc-web" + (b"-text" if text else b"") + subtype
    assert got["fields"] == [(b"content-type", kind), (b"grpc-encoding", b"gzip"), (b"X-Meta", b"a")]
    assert got["written"] == b"content-type: " + kind + b"\r\ngrpc-encoding: gzip\r\nX-Meta: a\r\n"
    assert (got["status"], got["reason"], got["framing"], got["length"]) == (200, b"OK", "chunked", None)
    assert none == b""
    assert web.answers and not web.passes and not web.trailers_only and not web.done


@pytest.mark.parametrize(
    "data",
    [
        OK + b"content-type: text/html\r\ncontent-length: 3\r\n\r\n",
        OK + b"content-length: 0\r\n\r\n",
        OK + GRPC + GRPC + b"\r\n",
        OK + b"content-type: application/grpc-web+proto\r\n\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: /login\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n" + GRPC + b"\r\n",
        b"HTTP/1.1 304 Not Modified\r\n" + GRPC + b"\r\n",
    ],
)
def test_answers_that_are_not_grpc_pass(data: bytes) -> None:
    web = call(text=True)
    assert web.response_head(data) == (None, b"")
    assert web.passes and not web.answers
    assert web.trailers(None) == b""
    assert web.trailers(b"a: b\r\n\r\n") == b""
    with pytest.raises(_grpc.Refused, match="upstream_truncated"):
        web.error(14, b"it was cut")


def test_interim_heads_pass_and_decide_nothing() -> None:
    web = call()
    assert web.response_head(b"HTTP/1.1 103 Early Hints\r\n" + GRPC + b"\r\n") == (None, b"")
    assert not web.passes and not web.answers
    assert web.response_head(OK + GRPC + b"\r\n")[0] is not None


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("ends", [False, True])
def test_trailers_only(text: bool, ends: bool) -> None:
    """The status becomes the body; what else the head has stays in it."""
    web = call(text=text)
    got, last = web.response_head(
        OK
        + GRPC
        + b"Grpc-Status: 5\r\nX-Meta: a\r\nGRPC-Message: no%20such\r\ngrpc-status-details-bin: CAU\r\n"
        b"Content-Length: 0\r\n\r\n",
        ends=ends,
    )
    lines = b"grpc-status: 5\r\ngrpc-message: no%20such\r\ngrpc-status-details-bin: CAU\r\n"
    assert last == frame(lines, text=text)
    assert [name for name, _ in got["fields"]] == [b"content-type", b"X-Meta"]
    assert b"tatus" not in got["written"] and got["written"].endswith(b"X-Meta: a\r\n")
    assert got["framing"] == "chunked"
    assert web.trailers_only and web.done
    assert web.trailers(None) == b""
    with pytest.raises(_grpc.Refused, match="upstream_truncated"):
        web.error(14, b"too late")


def test_a_status_in_front_of_a_body_stays_where_it_is() -> None:
    web = call()
    got, none = web.response_head(OK + GRPC + b"grpc-status: 0\r\ntransfer-encoding: chunked\r\n\r\n")
    assert (b"grpc-status", b"0") in got["fields"] and none == b""
    assert web.told and not web.trailers_only
    assert web.response_data(message(b"abc")) == message(b"abc")
    with pytest.raises(_grpc.Refused, match="upstream_truncated"):
        web.error(14, b"another status")
    assert web.trailers(None) == b""
    assert web.done


def test_a_status_that_ends_at_the_hop_is_none() -> None:
    web = call()
    web.response_head(OK + GRPC + b"connection: grpc-status\r\ngrpc-status: 0\r\ncontent-length: 0\r\n\r\n")
    assert not web.trailers_only
    assert web.trailers(None) == frame(UNKNOWN)


# ---------------------------------------------------------------- bodies of answers


@given(st.lists(st.binary(max_size=40), max_size=5), st.lists(st.integers(0, 1000), max_size=10))
def test_text_bodies_of_answers(messages: list[bytes], at: list[int]) -> None:
    """Whatever came is encoded at once; a reader of quanta gets the same bytes."""
    web = answered(text=True)
    body = b"".join(message(data, flag=len(data) & 1) for data in messages)
    got = b""
    sent = b""
    for piece in pieces(body, at):
        sent += piece
        got += web.response_data(piece)
        assert quanta(got) == sent
    got += web.trailers(b"grpc-status: 0\r\n\r\n")
    assert quanta(got) == body + frame(b"grpc-status: 0\r\n")
    # And the strict decoder of the bridge reads what the bridge writes.
    assert _grpc.decode([got]) == (quanta(got), True)


def test_binary_bodies_of_answers() -> None:
    body = message(b"") + message(b"a" * 300) + message(b"b", flag=1)
    for at in range(len(body) + 1):
        web = answered()
        assert web.response_data(body[:at]) + web.response_data(body[at:]) == body
        assert web.trailers(b"grpc-status: 0\r\n\r\n") == frame(b"grpc-status: 0\r\n")


@pytest.mark.parametrize("flag", [2, 3, 0x7F, 0x80, 0x81, 0xFF])
def test_what_only_the_bridge_may_say(flag: int) -> None:
    """A frame of the endpoint's own with the mark of the last one would be taken for the status."""
    body = message(b"ab") + message(b"grpc-status: 0\r\n", flag=flag)
    for at in range(len(body)):
        web = answered()
        with pytest.raises(_grpc.Refused, match="upstream_bad_response"):
            for piece in (body[:at], body[at:]):
                web.response_data(piece)


@pytest.mark.parametrize("text", [False, True])
def test_a_body_that_ends_in_a_message(text: bool) -> None:
    body = message(b"abc") + message(b"defg")
    whole = {0, 8, len(body)}
    for at in range(len(body) + 1):
        web = answered(text=text)
        web.response_data(body[:at])
        if at in whole:
            assert web.error(14, b"lost") == frame(b"grpc-status: 14\r\ngrpc-message: lost\r\n", text=text)
        else:
            for end in (lambda: web.trailers(b"grpc-status: 0\r\n\r\n"), lambda: web.error(14, b"lost")):  # noqa: B023
                with pytest.raises(_grpc.Refused, match="upstream_truncated"):
                    end()
            assert not web.done


def test_the_longest_message() -> None:
    web = answered()
    web.response_data(b"\0\xff\xff\xff\xff")
    for _ in range(3):
        web.response_data(bytes(1 << 20))
    with pytest.raises(_grpc.Refused, match="upstream_truncated"):
        web.trailers(None)


# ---------------------------------------------------------------- the last frame


@pytest.mark.parametrize("text", [False, True])
def test_trailers(text: bool) -> None:
    web = answered(text=text)
    section = (
        b"Grpc-Status: 0\r\nX-UPPER-Case:a\r\nempty:\r\nx-bin:  AAEC \r\ngrpc-message: %C3 \xc3\xa9\r\n\r\n"
    )
    lines = b"grpc-status: 0\r\nx-upper-case: a\r\nempty: \r\nx-bin: AAEC\r\ngrpc-message: %C3 \xc3\xa9\r\n"
    assert web.trailers(section) == frame(lines, text=text)
    assert web.done
    assert web.trailers(section) == b""


def test_trailers_that_belong_in_a_head_do_not_go_on() -> None:
    web = answered()
    assert web.trailers(b"grpc-status: 0\r\nset-cookie: a\r\nvia: b\r\nauthorization: c\r\n\r\n") == frame(
        b"grpc-status: 0\r\n"
    )


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("section", [None, b"\r\n", b"x-meta: a\r\n\r\n", b"grpc-statuses: 0\r\n\r\n"])
def test_an_answer_without_a_status_did_not_go_well(section: bytes | None, text: bool) -> None:
    web = answered(text=text)
    web.response_data(message(b"abc"))
    rest = (section or b"\r\n").removesuffix(b"\r\n")
    assert web.trailers(section) == frame(UNKNOWN + rest, text=text)


@pytest.mark.parametrize(("status", "wanted"), [(503, 14), (404, 12), (429, 14), (500, 2), (299, 2)])
def test_an_http_status_says_more_than_none(status: int, wanted: int) -> None:
    web = call()
    got, _ = web.response_head(b"HTTP/1.1 %d x\r\n" % status + GRPC + b"\r\n")
    assert got["status"] == status
    assert b"grpc-status: %d\r\n" % wanted in web.trailers(None)


@given(
    st.lists(
        st.tuples(
            st.text("abcXYZ09-_.", min_size=1, max_size=12).map(str.encode),
            st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20).map(str.encode),
        ),
        max_size=20,
    ),
    st.booleans(),
)
def test_any_trailers(fields: list[tuple[bytes, bytes]], text: bool) -> None:
    fields = [(b"z-" + name, value) for name, value in fields] + [(b"grpc-status", b"0")]
    section = b"".join(name + b":" + value + b"\r\n" for name, value in fields) + b"\r\n"
    lines = b"".join(name.lower() + b": " + value + b"\r\n" for name, value in fields)
    assert answered(text=text).trailers(section) == frame(lines, text=text)


@pytest.mark.parametrize("text", [False, True])
def test_trailers_have_a_limit(text: bool) -> None:
    fixed = len(b"grpc-status: 0\r\nx: \r\n")
    for size in (_grpc.TRAILERS_MAX - fixed - 1, _grpc.TRAILERS_MAX - fixed):
        section = b"grpc-status: 0\r\nx: " + b"v" * size + b"\r\n\r\n"
        assert answered(text=text).many_trailers(section) == frame(section[:-2], text=text)
    for size in (_grpc.TRAILERS_MAX - fixed + 1, 60_000):
        web = answered(text=text)
        with pytest.raises(_grpc.Refused, match="upstream_head_too_large"):
            web.many_trailers(b"grpc-status: 0\r\nx: " + b"v" * size + b"\r\n\r\n")
        # It can still be told.
        assert web.error(13, b"too large") == frame(
            b"grpc-status: 13\r\ngrpc-message: too large\r\n", text=text
        )
    # What is made up counts too.
    room = _grpc.TRAILERS_MAX - len(UNKNOWN) - len(b"x: \r\n")
    assert (
        len(quanta(answered(text=True).many_trailers(b"x: " + b"v" * room + b"\r\n\r\n")))
        == _grpc.TRAILERS_MAX + 5
    )
    with pytest.raises(_grpc.Refused, match="upstream_head_too_large"):
        answered(text=text).many_trailers(b"x: " + b"v" * (room + 1) + b"\r\n\r\n")


def test_a_status_of_a_head_has_the_same_limit() -> None:
    web = call(text=True)
    more = b"grpc-status: 5\r\ngrpc-message: " + b"m" * 40_000 + b"\r\ncontent-length: 0\r\n\r\n"
    with pytest.raises(_grpc.Refused, match="upstream_head_too_large"):
        web.response_head(OK + GRPC + more)
    assert web.error(13, b"x") == frame(b"grpc-status: 13\r\ngrpc-message: x\r\n", text=True)
    # A large head is no matter as long as its status is not.
    web = call(text=True)
    more = b"grpc-status: 5\r\nx: " + b"m" * 60_000 + b"\r\ncontent-length: 0\r\n\r\n"
    assert web.response_head(OK + GRPC + more)[1] == frame(b"grpc-status: 5\r\n", text=True)


# ---------------------------------------------------------------- errors of our own


@pytest.mark.parametrize("text", [False, True])
def test_an_error_before_any_head(text: bool) -> None:
    web = call(text=text)
    kind = b"application/grpc-web-text" if text else b"application/grpc-web"
    assert web.content_type() == b"content-type: " + kind + b"\r\n"
    lines = b"grpc-status: 14\r\ngrpc-message: svc: 100%25 gone (no_endpoint)\r\n"
    assert web.error(14, b"svc: 100% gone (no_endpoint)") == frame(lines, text=text)
    assert web.done
    with pytest.raises(_grpc.Refused, match="upstream_truncated"):
        web.error(14, b"again")


@pytest.mark.parametrize("text", [False, True])
def test_the_longest_error(text: bool) -> None:
    longest = call(text=text).error(16, b"x" * 5000)
    lines = b"grpc-status: 16\r\ngrpc-message: " + b"x" * _grpc.MESSAGE_MAX + b"\r\n"
    assert longest == frame(lines, text=text)
    assert len(frame(lines, text=True)) <= _grpc.ERROR_MAX


@pytest.mark.parametrize("text", [False, True])
def test_an_error_behind_a_head(text: bool) -> None:
    """A deadline that passes in the middle of a stream is told, not cut."""
    web = answered(text=text)
    got = web.response_data(message(b"one")) + web.error(4, b"the caller's deadline is over (deadline)")
    lines = b"grpc-status: 4\r\ngrpc-message: the caller's deadline is over (deadline)\r\n"
    assert (quanta(got) if text else got) == message(b"one") + frame(lines)
    assert web.trailers(b"grpc-status: 0\r\n\r\n") == b""
