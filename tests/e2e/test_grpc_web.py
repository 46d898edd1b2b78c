"""gRPC-Web from browsers to gRPC services: both versions of HTTP, binary and text, plaintext and mesh."""

from __future__ import annotations

import base64
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.fixtures import Serving
from kit.grpc_messages import encode
from kit.grpc_peers import Peer, Peers
from kit.grpc_raw import RawEnd, Stream, answering, frame, serving
from kit.grpc_scenarios import METHODS, NOT_A_TOKEN
from kit.grpc_web import TYPES, VERSIONS, encoded, web
from kit.limits import DEADLINE, scaled
from kit.pki import Pki
from kit.ports import free_port
from kit.proxy import Fastmesh
from kit.sidecars import address_of, inbound, outbound
from kit.upstream import ServerConn
from kit.wire import connect, request, response

CANCEL, REFUSED_STREAM, ENHANCE_YOUR_CALM = 8, 7, 11  # RFC 9113, 7
EACH = pytest.mark.parametrize(("version", "kind"), list(itertools.product(VERSIONS, TYPES)))


class Setting:
    """A sidecar with a listener for browsers, and behind it services by their name:

    grpc, mesh               grpcio; by way of the sidecar of svc-b
    raw, second              a scripted service at `raw`; an endpoint that refuses, then the same
    plain                    a scripted service at `plain` that is spoken to in HTTP/1.1
    nowhere, refusing        no endpoint; one at which nobody listens
    forbidden                no call is allowed
    """

    def __init__(self, directory: Path, pki: Pki, port: int) -> None:
        self.raw = ("127.0.0.1", free_port())
        self.plain = ("127.0.0.1", free_port())
        theirs = inbound(pki, port)
        ours = outbound(pki, address_of(theirs)[1])
        ours["listeners"][0]["grpc_web"] = True
        self.address = address_of(ours)
        self.other = ("127.0.0.1", free_port())
        ours["listeners"].append({"name": "other", "role": "outbound", "bind": f"127.0.0.1:{self.other[1]}"})
        refusing, raw, plain = (
            f"127.0.0.1:{free_port()}",
            f"127.0.0.1:{self.raw[1]}",
            f"127.0.0.1:{self.plain[1]}",
        )
        ours["services"]["mesh"] = ours["services"].pop("svc-b") | {"spiffe_id": "spiffe://mesh.local/svc-b"}
        ours["services"] |= {
            "grpc": {"endpoints": [f"127.0.0.1:{port}"]},
            "raw": {"endpoints": [raw]},
            "second": {"endpoints": [refusing, raw]},
            "plain": {"endpoints": [plain], "protocol": "http1"},
            "nowhere": {"endpoints": []},
            "refusing": {"endpoints": [refusing]},
            "forbidden": {"endpoints": [raw], "deny": [{"methods": ["POST"]}]},
        }
        self.b = Fastmesh(theirs, directory)
        self.a = Fastmesh(ours, directory)

    def web(self, version: str) -> Any:
        return web(self.address, version)


@pytest.fixture(scope="module")
def mesh(grpc_peers: Peers, pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    setting = Setting(tmp_path_factory.mktemp("grpc-web"), pki, grpc_peers.service("grpcio").port)
    try:
        setting.b.start()
        setting.a.start()
        yield setting
        setting.a.stop()
        setting.b.stop()
    finally:
        setting.a.kill()
        setting.b.kill()


def script(*steps: list[Any]) -> list[tuple[str, str]]:
    """What the service of `kit.grpc_service` is to do."""
    return [("x-script", json.dumps(steps))]


# ---- real services


@EACH
@pytest.mark.parametrize("service", ["grpc", "mesh"])
def test_a_call(mesh: Setting, service: str, version: str, kind: str) -> None:
    """One message each way; metadata in the head, the status and what belongs to it in the last frame."""
    steps = script(
        ["initial", [["x-one", "1"]]],
        ["echo"],
        ["trailers", [["x-last", "2"], ["x-bytes-bin", {"b64": "AP8="}]]],
    )
    with mesh.web(version) as conn:
        for message in (b"hello", b"", encode(1000)):
            call = conn.start(service, kind, frame(message), steps)
            assert call.message() == message
            last = call.end()
            assert (call.status, call.fields["x-one"]) == (200, "1")
            assert call.fields["content-type"].startswith(TYPES[kind].partition("+")[0])
            assert "grpc-status" not in call.fields
            assert (last["grpc-status"], last["x-last"], last["x-bytes-bin"]) == ("0", "2", "AP8")


@EACH
def test_the_errors_of_a_service(mesh: Setting, version: str, kind: str) -> None:
    """Before its first message, where gRPC has but a head, and behind one."""
    with mesh.web(version) as conn:
        call = conn.start("grpc", kind, fields=script(["status", 5, NOT_A_TOKEN]))
        last = call.end()
        assert (call.status, last["grpc-status"]) == (200, "5")
        assert last["grpc-message"].startswith("what's")
        call = conn.start(
            "grpc", kind, fields=script(["send", "one"], ["status", 9, "no"]), path=METHODS["server_stream"]
        )
        assert call.message() == b"one"
        last = call.end()
        assert (last["grpc-status"], last["grpc-message"]) == ("9", "no")
        assert conn.start("grpc", kind, path="/no.such/Method").code() == 12


@pytest.mark.heavy
@EACH
def test_large_answers(mesh: Setting, version: str, kind: str) -> None:
    size = scaled(16 << 20, 1 << 20)
    steps = script(["send", size], ["send", "between"], ["send", size // 2 + 1])
    with mesh.web(version) as conn:
        call = conn.start("mesh", kind, fields=steps, path=METHODS["server_stream"])
        assert call.message() == encode(size)
        assert call.message() == b"between"
        assert call.message() == encode(size // 2 + 1)
        assert call.code() == 0


@pytest.mark.heavy
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("service", ["grpc", "mesh"])
def test_large_requests(mesh: Setting, service: str, kind: str) -> None:
    message = encode(scaled(16 << 20, 1 << 20))
    body = encoded(kind, frame(message))
    head = [("content-type", TYPES[kind]), *script(["echo"])]
    with mesh.web("http1") as conn:
        with conn.conn.sending(request("POST", METHODS["unary"], head, host=service, body=body)):
            call = conn.start(service, kind, sent=True)
            assert call.message() == message
        assert call.code() == 0


# ---- a scripted service


class LockStep:
    """A service that sends each of its messages when it is told to."""

    def __init__(self, messages: list[bytes]) -> None:
        self.go = threading.Semaphore(0)
        self.messages = messages

    def __call__(self, end: RawEnd, stream: Stream) -> None:
        end.head(stream)
        for message in self.messages:
            end.send(stream, frame(message))
            assert self.go.acquire(timeout=DEADLINE)
        end.status(stream, 0, [("x-last", "1")])


@EACH
def test_a_stream_in_lock_step(mesh: Setting, upstream: Serving, version: str, kind: str) -> None:
    """Each message has been seen before the next is sent."""
    service = LockStep([b"a", b"bc", b"", b"def", encode(16000), b"ghij"])
    upstream(serving(service), address=mesh.raw)
    with mesh.web(version) as conn:
        call = conn.start("raw", kind)
        for message in service.messages:
            assert call.message() == message
            service.go.release()
        assert call.end() == {"grpc-status": "0", "x-last": "1"}


@EACH
def test_a_request_in_pieces(mesh: Setting, upstream: Serving, version: str, kind: str) -> None:
    """The service has what came so far, wherever text is cut."""
    seen = [threading.Event() for _ in range(12)]
    body = frame(b"a message in pieces") + frame(encode(20))
    text = encoded(kind, body)
    cuts = [len(text) * k // len(seen) for k in range(len(seen) + 1)]
    plain = [cut // 4 * 3 if kind == "text" else cut for cut in cuts]

    def service(conn: ServerConn) -> None:
        end = RawEnd(conn, client=False)
        end.until(lambda: bool(end.streams), "a request")
        (stream,) = end.streams.values()
        for event, size in zip(seen[:-1], plain[1:], strict=False):
            end.until(lambda size=size: len(stream.data) >= size, f"{size} bytes")
            event.set()
        end.until(lambda: stream.ended, "its end")
        assert bytes(stream.data) == body
        assert stream.fields["content-type"] == "application/grpc+proto"
        assert stream.fields["te"] == "trailers"
        end.reply(stream, b"thanks")
        conn.expect_close()

    upstream(service, address=mesh.raw)
    with mesh.web(version) as conn:
        call = conn.start("raw", kind, text[: cuts[1]], raw=True, end=False)
        for event, start, stop in zip(seen[:-1], cuts[1:], cuts[2:], strict=False):
            assert event.wait(DEADLINE)
            conn.more(call, text[start:stop], end=stop == len(text))
        assert call.message() == b"thanks"
        assert call.code() == 0


@EACH
def test_what_is_tried_again_is_the_translated_call(
    mesh: Setting, upstream: Serving, version: str, kind: str
) -> None:
    """At another endpoint, and on another connection, after a stream that was refused."""
    calls: list[Stream] = []

    def answer(end: RawEnd, stream: Stream) -> None:
        calls.append(stream)
        if len(calls) == 4:
            end.reset(stream, REFUSED_STREAM)
        else:
            end.reply(stream, b"at last")

    upstream(serving(answer), address=mesh.raw)
    with mesh.web(version) as conn:
        for service in ("second", "second", "raw", "raw"):
            call = conn.start(service, kind, frame(b"again and again"))
            assert call.message() == b"at last"
            assert call.code() == 0
    assert len(calls) == 5
    for stream in calls:
        assert bytes(stream.data) == frame(b"again and again")
        assert stream.fields["content-type"] == "application/grpc+proto"


@EACH
def test_an_answer_of_trailers_only(mesh: Setting, upstream: Serving, version: str, kind: str) -> None:
    """Its status goes into a frame; what else it says stays in the head."""

    def service(end: RawEnd, stream: Stream) -> None:
        head = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "5"), ("x-t", "1")]
        end.h2.send_headers(stream.number, [*head, ("grpc-message", "gone")], end_stream=True)
        end.flush()

    upstream(serving(service), address=mesh.raw)
    with mesh.web(version) as conn:
        call = conn.start("raw", kind)
        assert call.end() == {"grpc-status": "5", "grpc-message": "gone"}
        assert call.fields["x-t"] == "1"


CLOSING = "the end of its connection"
Ending = Callable[[RawEnd, Stream], None]
ENDINGS: dict[str, tuple[Ending, int]] = {
    "no status": (lambda end, stream: (end.h2.end_stream(stream.number), end.flush())[1], 2),
    "CANCEL": (lambda end, stream: end.reset(stream, CANCEL), 1),
    "ENHANCE_YOUR_CALM": (lambda end, stream: end.reset(stream, ENHANCE_YOUR_CALM), 8),
    CLOSING: (lambda *_: None, 14),
}


@EACH
@pytest.mark.parametrize(
    "case", list(itertools.product(ENDINGS, [b"", frame(b"not whole")[:-1], frame(b"not whole")[:3]]))
)
def test_a_service_that_breaks_off(
    mesh: Setting, upstream: Serving, version: str, kind: str, case: tuple[str, bytes]
) -> None:
    """Between two messages the client is told; within one its answer is cut."""
    ending, more = case
    end_with, status = ENDINGS[ending]
    go = threading.Event()

    def service(conn: ServerConn) -> None:
        end = RawEnd(conn, client=False)
        end.until(lambda: any(stream.ended for stream in end.streams.values()), "a call")
        (stream,) = end.streams.values()
        end.head(stream)
        end.send(stream, frame(b"whole") + more)
        assert go.wait(DEADLINE)
        end_with(end, stream)
        while ending != CLOSING and end.turn():
            pass

    upstream(service, address=mesh.raw)
    with mesh.web(version) as conn:
        call = conn.start("raw", kind)
        assert call.message() == b"whole"
        go.set()
        assert call.code() == (None if more else status)
        assert call.cut == bool(more)


@EACH
def test_a_reset_before_the_answer(mesh: Setting, upstream: Serving, version: str, kind: str) -> None:
    upstream(serving(lambda end, stream: end.reset(stream, ENHANCE_YOUR_CALM)), address=mesh.raw)
    with mesh.web(version) as conn:
        call = conn.start("raw", kind)
        assert call.code() == 8
        assert call.fields["x-fastmesh-reason"] == "upstream_stream_reset"


@EACH
def test_only_the_bridge_ends_an_answer(mesh: Setting, upstream: Serving, version: str, kind: str) -> None:
    """A frame of a service's own that would be taken for the status."""

    def service(end: RawEnd, stream: Stream) -> None:
        end.head(stream)
        end.send(stream, b"\x80\0\0\0\x10grpc-status: 0\r\n")

    upstream(serving(service), address=mesh.raw)
    with mesh.web(version) as conn:
        call = conn.start("raw", kind)
        assert call.end() == {}
        assert call.cut


# ---- errors of fastmesh's own


@EACH
@pytest.mark.parametrize(
    "case",
    [
        ("nobody-here", "no_service", 12),
        ("nowhere", "no_endpoint", 14),
        ("refusing", "connect_refused", 14),
        ("forbidden", "denied", 7),
    ],
)
def test_our_own_errors(mesh: Setting, version: str, kind: str, case: tuple[str, str, int]) -> None:
    service, reason, status = case
    with mesh.web(version) as conn:
        for _ in range(2):  # and the connection goes on
            call = conn.start(service, kind)
            last = call.end()
            assert (call.status, call.fields["x-fastmesh-reason"]) == (200, reason)
            assert call.fields["content-type"] == TYPES[kind].partition("+")[0]
            assert last["grpc-status"] == str(status)
            assert last["grpc-message"].endswith(f"({reason})")


@EACH
def test_a_deadline(mesh: Setting, upstream: Serving, version: str, kind: str) -> None:
    """Before the answer, between two of its messages, and within one."""
    calls: list[Stream] = []

    def service(end: RawEnd, stream: Stream) -> None:
        calls.append(stream)
        if stream.fields[":path"] != "/silent":
            end.head(stream)
            end.send(
                stream, frame(b"one") + (frame(b"two")[:-1] if stream.fields[":path"] == "/within" else b"")
            )

    upstream(serving(service), address=mesh.raw)
    soon = [("grpc-timeout", "300m")]
    with mesh.web(version) as conn:
        call = conn.start("raw", kind, fields=soon, path="/silent")
        assert call.code() == 4
        assert call.fields["x-fastmesh-reason"] == "deadline"
        call = conn.start("raw", kind, fields=soon, path="/between")
        assert call.message() == b"one"
        assert call.code() == 4
        assert not call.cut
        call = conn.start("raw", kind, fields=soon, path="/within")
        assert call.message() == b"one"
        assert call.end() == {}
        assert call.cut
    assert [dict(stream.heads[0])["grpc-timeout"] for stream in calls] == ["300m"] * 3


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "body", [b"AAAA!", b"AAAAA", b"AA==A", b"AAAAAAdo ZWxsbw==", b"\0\0\0\0\0", b"AAAAAAd=oZWx", b"AAB="]
)
def test_text_that_is_none(mesh: Setting, upstream: Serving, version: str, body: bytes) -> None:
    """The caller is told, the service hears of no call that ended well, and the connection goes on."""
    done: list[Stream] = []
    upstream(serving(lambda end, stream: end.reply(stream, b"fine"), done), address=mesh.raw)
    before = mesh.a.metrics().by_reason("bad_grpc_web")
    with mesh.web(version) as conn:
        call = conn.start("raw", "text", body, raw=True)
        last = call.end()
        assert (call.status, call.fields["x-fastmesh-reason"]) == (200, "bad_grpc_web")
        assert last["grpc-status"] == "13"
        call = conn.start("raw", "text")
        assert call.message() == b"fine"
        assert call.code() == 0
    mesh.a.wait_metric("the reason", lambda m: m.by_reason("bad_grpc_web") == before + 1)
    assert [bytes(stream.data) for stream in done] == [frame(b"hello")]


# ---- what is no call


def test_what_is_not_grpc_passes(mesh: Setting, upstream: Serving) -> None:
    """Answers that are none, preflights, other requests; where the listener does not say so, all."""

    def service(conn: ServerConn) -> None:
        for got in conn:
            if got.method == "OPTIONS":
                conn.send(response(None, "204 No Content", [("access-control-allow-headers", "x-grpc-web")]))
            else:
                conn.send(response(b"<p>not here</p>", "404 Not Found", [("content-type", "text/html")]))

    server = upstream(service, address=mesh.plain)
    call = [("content-type", TYPES["text"])]
    body = base64.b64encode(frame(encode(200000)))
    with connect(mesh.address) as conn:
        conn.send(request("OPTIONS", "/a.B/C", [("access-control-request-method", "POST")], host="plain"))
        answer = conn.read_response("OPTIONS")
        assert (answer.status, answer.get("access-control-allow-headers")) == (204, "x-grpc-web")
        for head, sent, arrived in (
            (call, body, base64.b64decode(body)),  # the call is translated, its answer is no gRPC
            ([("content-type", "application/grpc-webs")], body, body),
        ):
            conn.send(request("POST", "/a.B/C", head, host="plain", body=sent))
            answer = conn.read_response("POST")
            assert (answer.status, answer.get("content-type")) == (404, "text/html")
            assert answer.body == b"<p>not here</p>"
            assert server.requests[-1].body == arrived
    assert server.requests[1].get("content-type") == "application/grpc+proto"
    with connect(mesh.other) as conn:
        conn.send(request("POST", "/a.B/C", call, host="plain", body=body))
        conn.read_response("POST")
    assert server.requests[-1].body == body
    assert server.requests[-1].get("content-type") == TYPES["text"]


def test_http10(mesh: Setting, upstream: Serving) -> None:
    upstream(answering(b"an answer"), address=mesh.raw)
    with connect(mesh.address) as conn:
        conn.send(
            request(
                "POST",
                "/a.B/C",
                [("content-type", TYPES["binary"])],
                host="raw",
                body=frame(b""),
                version="HTTP/1.0",
            )
        )
        answer = conn.read_response("POST")
    assert answer.body == frame(b"an answer") + b"\x80\0\0\0\x10grpc-status: 0\r\n"


# ---- the client that browsers have


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    one = Browser(tmp_path_factory.mktemp("browser"))
    yield one
    one.close()


class Browser(Peer):
    """The library grpc-web of the gRPC project, under node."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "grpc-js", "web")

    def begin(
        self, mesh: Setting, service: str, kind: str, fmt: str, message: bytes = b"hello", **fields: str
    ) -> None:
        job = {
            "base": f"http://127.0.0.1:{mesh.address[1]}",
            "path": METHODS[kind],
            "kind": kind,
            "format": fmt,
            "metadata": {"host": service} | {name.replace("_", "-"): value for name, value in fields.items()},
            "message": base64.b64encode(message).decode(),
        }
        self.say(json.dumps(job))

    def rest(self) -> list[tuple[str, Any]]:
        """What happens until the call is over."""
        events: list[tuple[str, Any]] = []
        while True:
            event, value = self.hear()
            if event == "done":
                return events
            events.append((event, base64.b64decode(value) if event == "data" else value))


@pytest.mark.parametrize("service", ["grpc", "mesh"])
@pytest.mark.parametrize("fmt", ["text", "binary"])
def test_the_real_client_calls(mesh: Setting, browser: Browser, fmt: str, service: str) -> None:
    steps = json.dumps([["initial", [["x-one", "1"]]], ["echo"]])
    for message in (b"hello", encode(300000)):
        browser.begin(mesh, service, "unary", fmt, message, x_script=steps)
        events = browser.rest()
        assert [value for event, value in events if event == "data"] == [message], events
        assert not [value for event, value in events if event == "error"]
    browser.begin(mesh, service, "unary", fmt, x_script=json.dumps([["status", 5, "it's 100% gone"]]))
    (error,) = [value for event, value in browser.rest() if event == "error"]
    assert (error["code"], error["message"]) == (5, "it's 100% gone")


@pytest.mark.parametrize("fmt", ["text", "binary"])
def test_the_real_client_hears_our_own_errors(mesh: Setting, browser: Browser, fmt: str) -> None:
    for service, code in (("nobody-here", 12), ("refusing", 14), ("forbidden", 7)):
        for kind in ("unary", "server_stream"):
            browser.begin(mesh, service, kind, fmt)
            (error,) = [value for event, value in browser.rest() if event == "error"]
            assert error["code"] == code, error
            assert service in error["message"] or service == "nobody-here"


def test_the_real_client_streams(mesh: Setting, upstream: Serving, browser: Browser) -> None:
    service = LockStep([b"a", b"bc", b"def", encode(16000)])
    upstream(serving(service), address=mesh.raw)
    browser.begin(mesh, "raw", "server_stream", "text")
    seen = []
    while len(seen) < len(service.messages):
        event, value = browser.hear()
        if event == "data":
            seen.append(base64.b64decode(value))
            service.go.release()
    assert seen == service.messages
    statuses = [value for event, value in browser.rest() if event == "status"]
    assert statuses[-1]["code"] == 0
