"""Choosing an endpoint: turns, the next one when connecting fails, and honest answers when none is left."""

from __future__ import annotations

import contextlib
import itertools
import selectors
import socket
import threading
from collections import Counter
from collections.abc import Iterator

from kit.fixtures import LaneFactory, Serve
from kit.lanes import ms
from kit.limits import wait_until
from kit.pki import Pki
from kit.ports import free_port
from kit.upstream import ServerConn, answering
from kit.wire import connect, request, response


@contextlib.contextmanager
def black_hole(address: tuple[str, int]) -> Iterator[None]:
    """An address that neither accepts nor refuses: a listener whose accept queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(0)
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(address)
            selector.register(filler, selectors.EVENT_WRITE)
        while selector.select(0.05) and len(selector.get_map()) > 1:
            for key, _ in selector.select(0):
                selector.unregister(key.fileobj)
        yield


def test_requests_take_turns(lane: LaneFactory) -> None:
    here = lane("pair")
    here.upstream(answering(b"one"), endpoint=0)
    here.upstream(answering(b"two"), endpoint=1)
    with here.client() as client:
        bodies = []
        for _ in range(20):
            client.send(request())
            bodies.append(client.read_response().body)
    assert Counter(bodies) == {b"one": 10, b"two": 10}
    assert all(one != next_one for one, next_one in itertools.pairwise(bodies))


def test_next_endpoint_when_one_refuses(lane: LaneFactory) -> None:
    here = lane("pair")
    here.upstream(answering(b"two"), endpoint=1)
    for _ in range(6):
        answer = here.ask(request("POST", body=b"data"))
        assert (answer.status, answer.body) == (200, b"two")


def test_next_endpoint_for_an_upload_in_progress(lane: LaneFactory) -> None:
    """Nothing was sent before the connection failed: any request may go elsewhere."""

    def script(conn: ServerConn) -> None:
        for seen in conn:
            conn.send(response(b"%d" % len(seen.body)))

    here = lane("pair")
    here.upstream(script, endpoint=1)
    for _ in range(4):
        assert here.ask(request("POST", body=b"x" * 500_000)).body == b"500000"


def test_all_endpoints_refuse(lane: LaneFactory) -> None:
    here = lane("pair")
    with here.client() as client:
        for _ in range(2):
            client.send(request())
            answer = client.read_response()
            assert (answer.status, answer.reason) == (502, "connect_refused")
            assert "close" not in answer.tokens("connection"), (
                "the client did nothing wrong: its connection stays"
            )


def test_endpoint_that_comes_back_is_used_again(lane: LaneFactory) -> None:
    here = lane()
    assert here.ask(request()).status == 502
    here.upstream(answering(b"back"))
    assert here.ask(request()).body == b"back"


def test_service_without_endpoints(lane: LaneFactory) -> None:
    answer = lane("no-endpoint").ask(request())
    assert (answer.status, answer.reason) == (503, "no_endpoint")


def test_connect_timeout_goes_to_the_next_endpoint(lane: LaneFactory) -> None:
    here = lane("connect-timeout")
    here.upstream(answering(b"two"), endpoint=1)
    with black_hole(here.endpoints[0]):
        for _ in range(2):
            assert here.ask(request("POST", body=b"x")).body == b"two"


def test_connect_timeout_everywhere_is_504(lane: LaneFactory) -> None:
    here = lane("connect-timeout")
    with black_hole(here.endpoints[0]), black_hole(here.endpoints[1]):
        answer = here.ask(request())
        assert (answer.status, answer.reason) == (504, "connect_timeout")


def test_connect_timeout_towards_the_mesh_is_no_failed_handshake(serve: Serve, pki: Pki) -> None:
    """Nobody accepted: TLS has not begun."""
    here, there = free_port(), free_port()
    proxy = serve(
        {
            "workload": "svc-a",
            "trust_domain": "mesh.local",
            "pki": str(pki.path),
            "listeners": [{"name": "out", "role": "outbound", "bind": f"127.0.0.1:{here}"}],
            "services": {
                "svc-b": {
                    "endpoints": [f"127.0.0.1:{there}"],
                    "tls": "mesh",
                    "connect_timeout": ms(200),
                }
            },
        }
    )
    with black_hole(("127.0.0.1", there)), connect(("127.0.0.1", here)) as client:
        client.send(request(host="svc-b"))
        answer = client.read_response()
        assert (answer.status, answer.reason) == (504, "connect_timeout")
    proxy.wait_metric("counted", lambda m: m.sum("upstream_connect_failures_total") == 1)


def test_client_that_leaves_while_connecting(lane: LaneFactory) -> None:
    """The attempt is given up with its client; the proxy stays sound (the fixture checks)."""
    here = lane("connect-timeout")
    with black_hole(here.endpoints[0]), black_hole(here.endpoints[1]):
        for _ in range(3):
            client = here.client()
            client.send(request())
            client.reset()
        assert here.ask(request()).status == 504


def test_slow_endpoint_does_not_slow_the_other(lane: LaneFactory) -> None:
    release = threading.Event()

    def slow(conn: ServerConn) -> None:
        for _ in conn:
            assert release.wait(10)
            conn.send(response(b"slow"))

    here = lane("pair")
    first = here.upstream(slow, endpoint=0)
    here.upstream(answering(b"fast"), endpoint=1)
    clients = [here.client() for _ in range(10)]
    for client in clients:
        client.send(request())
    first.wait_requests(5)
    release.set()
    bodies = Counter(client.read_response().body for client in clients)
    assert bodies == {b"fast": 5, b"slow": 5}


def test_connection_limit_of_a_listener(lane: LaneFactory) -> None:
    """`max_connections: 2`: the third is refused or answered 503, and the place is free again afterwards."""
    here = lane("limited")
    here.upstream()
    one, two = here.client(), here.client()
    for client in (one, two):
        client.send(request())
        assert client.read_response().status == 200
    three = here.client()
    try:
        three.send(request())
        answer = three.read_response()
        assert (answer.status, answer.reason) == (503, "overloaded")
    except (AssertionError, ConnectionError):
        assert three.closed()
    one.close()

    def served() -> bool:
        with here.client() as client:
            try:
                client.send(request())
                return client.read_response().status == 200
            except (AssertionError, ConnectionError):
                return False

    wait_until(served, "a place for a new connection")
