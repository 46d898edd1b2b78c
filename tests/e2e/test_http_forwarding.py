"""HTTP/1.1 through the proxy, both ends under the test's control (RFC 9110, RFC 9112)."""

from __future__ import annotations

import contextlib
import threading

import pytest
from kit.fixtures import LaneFactory
from kit.upstream import ServerConn, answering, echo, once
from kit.wire import Closed, chunked, request, response


def test_keep_alive_serves_many_requests_on_one_connection(lane: LaneFactory) -> None:
    here = lane()
    server = here.upstream(echo)
    with here.client() as client:
        for number in range(50):
            client.send(request("POST", f"/{number}", body=b"%d" % number))
            answer = client.read_response()
            assert (answer.status, answer.body) == (200, b"%d" % number)
            assert answer.get("x-target") == f"/{number}"
    assert len(server.connections) == 1


def test_target_method_host_and_fields_arrive_as_sent(lane: LaneFactory) -> None:
    here = lane()
    server = here.upstream()
    here.ask(
        request(
            "PROPFIND",
            "/a%2Fb/../c;p=1?x=%20y&z",
            [("X-Odd-Case", "kept  inside"), ("Cookie", "a=1"), ("Cookie", "b=2"), ("x-empty", "")],
            host="Example.test:8080",
        )
    )
    seen = server.requests[0]
    assert seen.line == "PROPFIND /a%2Fb/../c;p=1?x=%20y&z HTTP/1.1"
    assert seen.all("host") == ["Example.test:8080"]
    assert ("X-Odd-Case", "kept  inside") in seen.fields
    assert seen.all("cookie") == ["a=1", "b=2"], (
        "the order of lines of one name carries meaning (RFC 9110 5.3)"
    )
    assert seen.get("x-empty") == ""


def test_response_fields_and_status_arrive_as_sent(lane: LaneFactory) -> None:
    here = lane()
    here.upstream(
        answering(
            b"short and stout",
            "418 I'm a teapot, really",
            [("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2"), ("ETag", '"x"'), ("Server", "scripted")],
        )
    )
    answer = here.ask(request())
    assert answer.line == "HTTP/1.1 418 I'm a teapot, really"
    assert answer.all("set-cookie") == ["a=1; Path=/", "b=2"]
    assert answer.get("etag") == '"x"'
    assert answer.get("server") == "scripted", "a proxy does not replace Server (RFC 9110 10.2.4)"
    assert answer.body == b"short and stout"
    assert answer.reason is None


def test_obs_text_in_values_passes(lane: LaneFactory) -> None:
    here = lane()
    server = here.upstream(answering(headers=[("x-back", "caf\xe9")]))
    answer = here.ask(request(headers=[("X-There", "na\xefve \xff")]))
    assert server.requests[0].get("x-there") == "na\xefve \xff"
    assert answer.get("x-back") == "caf\xe9"


def test_request_that_arrives_byte_by_byte(lane: LaneFactory) -> None:
    here = lane()
    here.upstream(echo)
    with here.client() as client:
        for byte in request("POST", "/slow", [("X-A", "b")], body=b"body!"):
            client.send(bytes([byte]))
        assert client.read_response().body == b"body!"


def test_response_that_arrives_byte_by_byte(lane: LaneFactory) -> None:
    def drip(conn: ServerConn) -> None:
        for _ in conn:
            data = response(None, headers=[("Transfer-Encoding", "chunked")]) + chunked(b"abc", b"d" * 300)
            for byte in data:
                conn.send(bytes([byte]))

    here = lane()
    here.upstream(drip)
    with here.client() as client:
        for _ in range(2):
            client.send(request())
            assert client.read_response().body == b"abc" + b"d" * 300


# pipelining (RFC 9112 9.3.2)


def test_pipelined_requests_are_answered_in_order(lane: LaneFactory) -> None:
    here = lane()
    here.upstream(echo)
    with here.client() as client:
        count = 40
        client.send(*[request("POST", f"/{n}", body=b"x" * n) for n in range(count)])
        for number in range(count):
            answer = client.read_response()
            assert (answer.get("x-target"), len(answer.body)) == (f"/{number}", number)


def test_pipelined_mix_of_methods_bodies_and_errors_stays_in_order(lane: LaneFactory) -> None:
    def script(conn: ServerConn) -> None:
        for seen in conn:
            if seen.method == "HEAD":
                conn.send(response(None, headers=[("Content-Length", "1000")]))
            elif seen.target == "/none":
                conn.send(response(None, "204 No Content"))
            elif seen.target == "/chunked":
                conn.send(
                    response(None, headers=[("Transfer-Encoding", "chunked")]) + chunked(seen.body, b"+")
                )
            else:
                conn.send(response(seen.target.encode()))

    here = lane()
    server = here.upstream(script)
    with here.client() as client:
        client.send(
            request("HEAD", "/a"),
            request("GET", "/none"),
            request("POST", "/chunked", [("Transfer-Encoding", "chunked")]) + chunked(b"one", b"two"),
            request("GET", "/b"),
            "BROKEN\r\n\r\n",
            request("GET", "/never"),
        )
        assert client.read_response("HEAD").get("content-length") == "1000"
        assert client.read_response().status == 204
        assert client.read_response().body == b"onetwo+"
        assert client.read_response().body == b"/b"
        assert client.read_response().status == 400
        client.expect_close()
    assert [seen.target for seen in server.requests] == ["/a", "/none", "/chunked", "/b"]


def test_pipelined_request_behind_a_slow_one_waits_its_turn(lane: LaneFactory) -> None:
    release = threading.Event()

    def slow_first(conn: ServerConn) -> None:
        for seen in conn:
            if seen.target == "/slow":
                assert release.wait(10)
            conn.send(response(seen.target.encode()))

    here = lane()
    server = here.upstream(slow_first)
    with here.client() as client:
        client.send(request(target="/slow"), request(target="/fast"))
        server.wait_requests(1)
        client.expect_quiet()
        release.set()
        assert client.read_response().body == b"/slow"
        assert client.read_response().body == b"/fast"


def test_empty_lines_before_a_request_line_are_ignored(lane: LaneFactory) -> None:
    here = lane()
    here.upstream(echo)
    with here.client() as client:
        client.send(b"\r\n", request("POST", "/a", body=b"1"), b"\r\n", request("POST", "/b", body=b"2"))
        assert [client.read_response().body, client.read_response().body] == [b"1", b"2"], "RFC 9112 2.2"


# bodies


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 65536, 1_000_003])
def test_content_length_bodies_in_both_directions(lane: LaneFactory, size: int) -> None:
    here = lane()
    server = here.upstream(echo)
    body = bytes(range(256)) * (size // 256 + 1)
    answer = here.ask(request("PUT", body=body[:size]))
    assert answer.body == body[:size]
    assert answer.get("content-length") == str(size)
    assert server.requests[0].get("content-length") == str(size)
    assert not server.requests[0].chunked


@pytest.mark.parametrize("size", [1, 4096, 65537, 1_000_003])
def test_chunked_bodies_in_both_directions(lane: LaneFactory, size: int) -> None:
    def script(conn: ServerConn) -> None:
        for seen in conn:
            assert seen.chunked
            assert seen.get("content-length") is None
            parts = [seen.body[at : at + 7001] for at in range(0, len(seen.body), 7001)]
            conn.send(response(None, headers=[("Transfer-Encoding", "chunked")]) + chunked(*parts))

    here = lane()
    here.upstream(script)
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    parts = [body[at : at + 5003] for at in range(0, size, 5003)]
    with here.client() as client:
        for _ in range(2):
            client.send(request("POST", headers=[("Transfer-Encoding", "chunked")]) + chunked(*parts))
            answer = client.read_response()
            assert answer.chunked
            assert answer.body == body


def test_chunk_extensions_are_accepted_and_trailers_forwarded(lane: LaneFactory) -> None:
    def script(conn: ServerConn) -> None:
        seen = conn.read_request()
        assert seen.body == b"hello world"
        assert ("X-Sum", "abc") in seen.trailers
        conn.send(
            response(None, headers=[("Transfer-Encoding", "chunked"), ("Trailer", "X-Check")]),
            b'5;a;b=c;d="q\\"uoted; text"\r\nhello\r\n',
            b"1;x=y\r\n!\r\n",
            b"0;last\r\nX-Check: ok\r\nX-More: 1\r\n\r\n",
        )

    here = lane()
    here.upstream(script)
    answer = here.ask(
        request("POST", headers=[("Transfer-Encoding", "chunked"), ("Trailer", "X-Sum"), ("TE", "trailers")])
        + b"6;name=value\r\nhello \r\n005\r\nworld\r\n0\r\nX-Sum: abc\r\n\r\n"
    )
    assert answer.body == b"hello!"
    assert ("X-Check", "ok") in answer.trailers
    assert ("X-More", "1") in answer.trailers


def test_upper_case_hex_and_leading_zeros_in_chunk_sizes(lane: LaneFactory) -> None:
    here = lane()
    server = here.upstream(echo)
    data = b"000A\r\n" + b"x" * 10 + b"\r\n1a\r\n" + b"y" * 26 + b"\r\n0000\r\n\r\n"
    assert here.ask(request("POST", headers=[("Transfer-Encoding", "Chunked")]) + data).status == 200
    assert server.requests[0].body == b"x" * 10 + b"y" * 26


@pytest.mark.parametrize(
    "field", [("Host", "evil"), ("Content-Length", "5"), ("Transfer-Encoding", "gzip"), ("Connection", "x")]
)
def test_trailers_that_could_change_framing_or_routing_do_not_pass(
    lane: LaneFactory, field: tuple[str, str]
) -> None:
    """RFC 9110 6.5.1: such a field is dropped, or the request refused."""
    here = lane()
    server = here.upstream(tolerant)
    trailers = [field, ("X-Fine", "1")]
    answer = here.ask(
        request("POST", headers=[("Transfer-Encoding", "chunked")]) + chunked(b"x", trailers=trailers)
    )
    if answer.status == 400:
        assert answer.reason == "bad_trailer"
    else:
        assert server.requests[0].trailers == [("X-Fine", "1")]


def tolerant(conn: ServerConn) -> None:
    with contextlib.suppress(Closed, ConnectionError):
        answering()(conn)


# answers without a body


def test_head_has_fields_but_no_body(lane: LaneFactory) -> None:
    here = lane()
    here.upstream(answering(b"0123456789", headers=[("X-A", "1")]))
    with here.client() as client:
        for _ in range(3):
            client.send(request("HEAD"))
            answer = client.read_response("HEAD")
            assert (answer.status, answer.get("content-length"), answer.get("x-a")) == (200, "10", "1")
        client.send(request("GET"))
        assert client.read_response().body == b"0123456789"


def test_head_answered_with_chunked_framing(lane: LaneFactory) -> None:
    def script(conn: ServerConn) -> None:
        for seen in conn:
            conn.send(response(None, headers=[("Transfer-Encoding", "chunked")]))
            if seen.method != "HEAD":
                conn.send(chunked(b"body"))

    here = lane()
    here.upstream(script)
    with here.client() as client:
        client.send(request("HEAD"))
        assert client.read_response("HEAD").status == 200
        client.send(request("GET"))
        assert client.read_response().body == b"body"


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        ("204 No Content", []),
        ("304 Not Modified", [("ETag", '"x"')]),
        ("304 Not Modified", [("Content-Length", "1234")]),
    ],
)
def test_statuses_without_a_body(lane: LaneFactory, status: str, fields: list[tuple[str, str]]) -> None:
    here = lane()
    here.upstream(answering(None, status, fields))
    with here.client() as client:
        for _ in range(3):
            client.send(request())
            answer = client.read_response()
            assert answer.line == f"HTTP/1.1 {status}"
            for name, value in fields:
                assert answer.get(name) == value
            if answer.status == 204:
                assert answer.get("content-length") is None, "RFC 9110 8.6: no Content-Length in a 204"
                assert answer.get("transfer-encoding") is None


def test_reset_content_and_empty_bodies(lane: LaneFactory) -> None:
    here = lane()
    here.upstream(answering(b"", "205 Reset Content"))
    with here.client() as client:
        for _ in range(2):
            client.send(request())
            assert client.read_response().body == b""


# interim responses (RFC 9110 15.2)


def test_expect_continue_is_forwarded_and_the_body_waits_for_it(lane: LaneFactory) -> None:
    def script(conn: ServerConn) -> None:
        for _ in range(2):
            seen = conn.read_request_head()
            assert seen.tokens("expect") == ["100-continue"]
            conn.expect_quiet()
            conn.send("HTTP/1.1 100 Continue\r\nX-Hint: go\r\n\r\n")
            conn.read_request_body(seen)
            conn.send(response(seen.body))

    here = lane()
    here.upstream(script)
    with here.client() as client:
        for body in (b"first", b"second!"):
            head = request("POST", headers=[("Expect", "100-continue"), ("Content-Length", str(len(body)))])
            client.send(head)
            interim = client.read_response_head()
            assert interim.status == 100
            client.send(body)
            answer = client.read_response()
            assert (answer.status, answer.body) == (200, body)


def test_expect_continue_refused_without_reading_the_body(lane: LaneFactory) -> None:
    def script(conn: ServerConn) -> None:
        conn.read_request_head()
        conn.send(response(b"no", "417 Expectation Failed", [("Connection", "close")]))

    here = lane()
    here.upstream(script, answering())
    with here.client() as client:
        client.send(request("POST", headers=[("Expect", "100-continue"), ("Content-Length", "100000")]))
        assert client.read_response().status == 417
        # Whether the body still comes is now ambiguous to a server: it either waits for it or closes.
    assert here.ask(request()).status == 200


def test_body_sent_without_waiting_for_the_continue(lane: LaneFactory) -> None:
    def script(conn: ServerConn) -> None:
        seen = conn.read_request()
        conn.send(response(seen.body))

    here = lane()
    here.upstream(script)
    answer = here.ask(request("POST", headers=[("Expect", "100-continue")], body=b"impatient"))
    assert answer.body == b"impatient"


def test_early_hints_and_other_interim_responses_are_forwarded(lane: LaneFactory) -> None:
    def script(conn: ServerConn) -> None:
        for _ in conn:
            conn.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nLink: </b.js>\r\n\r\n")
            conn.send("HTTP/1.1 102 Processing\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </c>\r\n\r\n")
            conn.send(response(b"done"))

    here = lane()
    here.upstream(script)
    with here.client() as client:
        for _ in range(2):
            client.send(request())
            answer = client.read_response()
            assert [int(head.line.split()[1]) for head in answer.interim] == [103, 102, 103]
            assert answer.interim[0].all("link") == ["</a.css>; rel=preload", "</b.js>"]
            assert answer.body == b"done"


def test_interim_responses_do_not_reach_an_http_1_0_client(lane: LaneFactory) -> None:
    here = lane()
    here.upstream(once(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + response(b"done")))
    with here.client() as client:
        client.send(request(version="HTTP/1.0"))
        answer = client.read_response_head()
        assert answer.status == 200, "RFC 9110 15.2: no 1xx to an HTTP/1.0 client"


# HTTP/1.0 and bodies that end with the connection


def test_http_1_0_client_gets_the_body_and_the_close(lane: LaneFactory) -> None:
    here = lane()
    server = here.upstream(answering(b"for an old client"))
    with here.client() as client:
        client.send(request(version="HTTP/1.0"))
        answer = client.read_response()
        assert answer.body == b"for an old client"
        client.expect_close()
    assert server.requests[0].version == "HTTP/1.1", "the proxy speaks its own version (RFC 9112 2.3)"


def test_http_1_0_client_without_host(lane: LaneFactory) -> None:
    here = lane()
    server = here.upstream()
    assert here.ask(request(host=None, version="HTTP/1.0")).status == 200
    assert len(server.requests[0].all("host")) == 1, "an HTTP/1.1 request needs a Host (RFC 9112 3.2)"


def test_http_1_0_client_never_sees_chunks(lane: LaneFactory) -> None:
    data = response(None, headers=[("Transfer-Encoding", "chunked")]) + chunked(
        b"one ", b"two", trailers=[("X", "1")]
    )
    here = lane()
    here.upstream(once(data))
    with here.client() as client:
        client.send(request(version="HTTP/1.0"))
        head = client.read_response_head()
        assert head.get("transfer-encoding") is None, "RFC 9112 6.1"
        assert client.read_to_end() == b"one two"


def test_http_1_0_keep_alive_is_honoured_or_declined_but_clear(lane: LaneFactory) -> None:
    here = lane()
    here.upstream(answering(b"again"))
    with here.client() as client:
        client.send(request(headers=[("Connection", "keep-alive")], version="HTTP/1.0"))
        answer = client.read_response()
        assert answer.body == b"again"
        if "keep-alive" in answer.tokens("connection"):
            client.send(request(version="HTTP/1.0"))
            assert client.read_response().body == b"again"
        client.expect_close()


def test_http_1_0_upstream(lane: LaneFactory) -> None:
    here = lane()
    here.upstream(once(b"HTTP/1.0 200 OK\r\nX-Old: 1\r\n\r\nuntil the end"))
    with here.client() as client:
        for _ in range(2):
            client.send(request())
            answer = client.read_response()
            assert answer.version == "HTTP/1.1"
            assert (answer.body, answer.get("x-old")) == (b"until the end", "1")
            if not answer.chunked:
                return


def test_close_delimited_answer_of_an_http_1_1_upstream(lane: LaneFactory) -> None:
    body = b"0123456789abcdef" * 20_000
    here = lane()
    here.upstream(once(response(None) + body))
    with here.client() as client:
        for _ in range(2):
            client.send(request())
            answer = client.read_response()
            assert answer.body == body
            if not answer.chunked:
                return


def test_http_1_0_upstream_with_length_and_keep_alive_is_reusable_or_not_but_works(lane: LaneFactory) -> None:
    def script(conn: ServerConn) -> None:
        for _ in conn:
            conn.send(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nold")

    here = lane()
    here.upstream(script)
    with here.client() as client:
        for _ in range(3):
            client.send(request())
            assert client.read_response().body == b"old"


# connection management (RFC 9112 9)


def test_connection_close_of_the_client(lane: LaneFactory) -> None:
    here = lane()
    server = here.upstream()
    with here.client() as client:
        client.send(request(headers=[("Connection", "close")]), request(target="/ignored"))
        answer = client.read_response()
        assert answer.status == 200
        assert "close" in answer.tokens("connection"), "RFC 9112 9.6: a server that closes says so"
        client.expect_close()
    assert [seen.target for seen in server.requests] == ["/"]
    assert here.ask(request()).status == 200
    assert len(server.connections) == 1, "the client's close is no reason to drop the upstream's connection"


def test_connection_close_of_the_upstream_stays_on_its_side(lane: LaneFactory) -> None:
    here = lane()
    server = here.upstream(once(response(b"x", headers=[("Connection", "close")])))
    with here.client() as client:
        for _ in range(3):
            client.send(request())
            answer = client.read_response()
            assert answer.body == b"x"
            assert "close" not in answer.tokens("connection")
    assert len(server.connections) == 3


def test_half_closed_client_still_gets_its_answer(lane: LaneFactory) -> None:
    release = threading.Event()

    def script(conn: ServerConn) -> None:
        seen = conn.read_request()
        assert release.wait(10)
        conn.send(response(seen.body * 2))

    here = lane()
    server = here.upstream(script)
    with here.client() as client:
        client.send(request("POST", body=b"last words"))
        client.shutdown()
        server.wait_requests(1)
        client.expect_quiet()
        release.set()
        assert client.read_response().body == b"last wordslast words"
        client.expect_close()


def test_half_closed_client_gets_all_pipelined_answers(lane: LaneFactory) -> None:
    here = lane()
    here.upstream(echo)
    with here.client() as client:
        client.send(*[request("POST", body=b"%d" % n) for n in range(5)])
        client.shutdown()
        assert [client.read_response().body for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
        client.expect_close()


def test_client_that_half_closes_inside_a_body_is_not_forwarded_as_complete(lane: LaneFactory) -> None:
    seen_end = threading.Event()

    def script(conn: ServerConn) -> None:
        with pytest.raises((Closed, ConnectionError)):
            conn.read_request()
        seen_end.set()

    here = lane()
    server = here.upstream(script)
    with here.client() as client:
        client.send(request("POST", headers=[("Content-Length", "100000")]), b"x" * 70000)
        server.wait_requests(1)
        client.shutdown()
        assert seen_end.wait(10), "the upstream must learn that the request was cut short"


@pytest.mark.parametrize("reset", [False, True])
def test_client_that_leaves_ends_the_upstream_exchange(lane: LaneFactory, reset: bool) -> None:
    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(response(None, headers=[("Content-Length", "1000000000")]))
        with pytest.raises(ConnectionError):
            while True:
                conn.send(b"x" * 65536)

    here = lane()
    server = here.upstream(script)
    client = here.client()
    client.send(request())
    client.read_response_head()
    if reset:
        client.reset()
    else:
        client.close()
    server.wait_open(0)


def test_client_that_leaves_while_waiting_for_the_answer(lane: LaneFactory) -> None:
    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.expect_close()

    here = lane()
    server = here.upstream(script)
    client = here.client()
    client.send(request())
    server.wait_requests(1)
    client.reset()
    server.wait_open(0)


# absolute-form, asterisk-form, CONNECT


def test_absolute_form_becomes_origin_form_with_its_authority_as_host(lane: LaneFactory) -> None:
    here = lane()
    server = here.upstream()
    assert here.ask(request(target="http://name.test:81/p?q=1", host="name.test:81")).status == 200
    assert here.ask(request(target="http://name.test", host="name.test")).status == 200
    assert here.ask(request(target="HTTP://name.test/", host="name.test")).status == 200
    first, second, third = server.requests
    assert (first.target, first.all("host")) == ("/p?q=1", ["name.test:81"]), "RFC 9112 3.2.2"
    assert second.target == "/"
    assert (third.target, third.all("host")) == ("/", ["name.test"]), "a scheme has no case (RFC 9110 4.2.3)"


def test_absolute_form_with_a_query_but_no_path(lane: LaneFactory) -> None:
    """Valid by RFC 3986; origin-form needs the "/" (RFC 9112 3.2.1)."""
    here = lane()
    server = here.upstream()
    assert here.ask(request(target="http://name.test?q", host="name.test")).status == 200
    assert [seen.target for seen in server.requests] == ["/?q"]


def test_asterisk_form_of_options(lane: LaneFactory) -> None:
    here = lane()
    server = here.upstream(answering(None, "204 No Content", [("Allow", "GET")]))
    assert here.ask(request("OPTIONS", "*")).status == 204
    assert server.requests[0].target == "*"


def test_connect_is_refused(lane: LaneFactory) -> None:
    here = lane()
    server = here.upstream()
    with here.client() as client:
        client.send(request("CONNECT", "name.test:443", host="name.test:443"))
        answer = client.read_response("CONNECT")
        assert (answer.status, answer.reason) == (405, "connect_not_allowed")
    assert server.requests == []


@pytest.mark.parametrize("kind", ["http", "outbound", "no-endpoint"])
def test_what_follows_a_refused_connect_is_no_request(lane: LaneFactory, kind: str) -> None:
    """It was meant for the tunnel: whoever wrote it may speak for somebody else than the client."""
    here = lane(kind)
    servers = [here.upstream(tolerant)] if here.endpoints else []
    with here.client() as client:
        client.send(
            request("CONNECT", "name.test:443", host="name.test:443"), request(host=here.service), b"\x16\x03"
        )
        answer = client.read_response("CONNECT")
        assert answer.status == {"http": 405, "outbound": 404, "no-endpoint": 405}[kind]
        assert "close" in answer.tokens("connection")
        client.expect_close(reset_ok=False)
    for server in servers:
        assert server.requests == []


# answers that come before the request is whole


def test_early_answer_while_the_body_still_uploads(lane: LaneFactory) -> None:
    """The answer reaches the client at once; the upload goes on and the connection stays usable."""

    def script(conn: ServerConn) -> None:
        head = conn.read_request_head()
        conn.send(response(b"early"))
        conn.read_request_body(head)
        assert len(head.body) == 300_000
        seen = conn.read_request()
        conn.send(response(seen.target.encode()))

    here = lane()
    here.upstream(script)
    with here.client() as client:
        client.send(request("POST", headers=[("Content-Length", "300000")]), b"x" * 100_000)
        answer = client.read_response()
        assert (answer.status, answer.body) == (200, b"early")
        if "close" in answer.tokens("connection"):
            pytest.fail("the upstream goes on reading: there is no reason to close")
        client.send(b"y" * 200_000, request(target="/next"))
        assert client.read_response().body == b"/next"


def test_early_refusal_by_an_upstream_that_closes(lane: LaneFactory) -> None:
    """413 and close without reading on: the client still gets the whole 413."""

    def script(conn: ServerConn) -> None:
        conn.read_request_head()
        conn.send(response(b"too much", "413 Content Too Large", [("Connection", "close")]))
        conn.shutdown()
        conn.read_to_end()  # until the proxy closes: a close with unread bytes would be a reset

    here = lane()
    here.upstream(script)
    with here.client() as client:
        client.send(request("POST", headers=[("Content-Length", "50000000")]), b"x" * 200_000)
        answer = client.read_response()
        assert (answer.status, answer.body) == (413, b"too much")


def test_early_refusal_by_an_upstream_that_resets(lane: LaneFactory) -> None:
    """An upstream that closes with unread data in its buffer resets; what it said before must survive."""

    def script(conn: ServerConn) -> None:
        conn.read_request_head()
        conn.send(response(b"too much", "413 Content Too Large", [("Connection", "close")]))

    here = lane()
    here.upstream(script)
    with here.client() as client:
        client.send(request("POST", headers=[("Content-Length", "50000")]), b"x" * 1000)
        answer = client.read_response()
        assert (answer.status, answer.body) == (413, b"too much")


def test_answers_of_any_size_while_uploading(lane: LaneFactory) -> None:
    """Both directions move at once: neither waits for the other to end."""
    block = b"z" * 50_000

    def script(conn: ServerConn) -> None:
        conn.read_request_head()
        conn.send(response(None, headers=[("Transfer-Encoding", "chunked")]))
        while (size := int(conn.read_until(b"\r\n"), 16)) > 0:
            data = conn.read_exact(size)
            conn.read_exact(2)
            conn.send(b"%x\r\n%s\r\n" % (len(data), data))
        conn.read_exact(2)
        conn.send(b"0\r\n\r\n")

    here = lane()
    here.upstream(script)
    with here.client() as client:
        client.send(request("POST", headers=[("Transfer-Encoding", "chunked")]))
        head = client.read_response_head()
        assert head.status == 200
        for _ in range(20):
            client.send(b"%x\r\n%s\r\n" % (len(block), block))
            got = bytearray()
            while len(got) < len(block):
                size = int(client.read_until(b"\r\n"), 16)
                got += client.read_exact(size)
                client.read_exact(2)
            assert got == block
        client.send(b"0\r\n\r\n")
        assert client.read_until(b"0\r\n\r\n") == b"0\r\n\r\n"
