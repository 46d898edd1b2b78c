"""A worker with transparent listeners, without its processes: nothing is left when it ends."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from kit.limits import DEADLINE, wait_until
from kit.netns import Namespace, namespaces, needs_root
from kit.upstream import ServerConn, Upstream, answering
from kit.wire import Conn, connect, request, response
from kit.worker import running, snapshot

from fastmesh._core import Area, Worker

pytestmark = needs_root

RULES = """
table inet test {
    chain output {
        type nat hook output priority -100
        meta mark 0xfa5 return
        ip daddr 10.77.0.0/24 tcp dport 1-65535 redirect to :15001
    }
}
"""


@pytest.fixture
def host() -> Iterator[Namespace]:
    with namespaces(1) as (one,):
        one.address("lo", "10.77.0.2/32", "10.77.0.3/32")
        one.nft(RULES)
        with one.inside():
            yield one


def greeting(conn: ServerConn) -> None:
    conn.send(b"hello\n")
    while conn.fill():
        conn.send(conn.take(len(conn.buffer)))


def document(number: int, *, keep: bool = True) -> bytes:
    """`web` keeps the port of its endpoint 10.77.0.3, or has none any more; all else passes through."""
    made: dict[str, Any] = json.loads(snapshot(number, {"out": "web"}, 0))
    (listener,), (web,) = made["listeners"], made["services"]
    listener |= {"role": "outbound", "protocol": "auto", "transparent": True, "service": -1, "direct": -1}
    web["endpoints"] = (
        [{"family": "inet", "host": "10.77.0.3", "port": 0, "path": None, "keep_port": True}] if keep else []
    )
    made["services"].append({**web, "name": "rest", "slot": 1, "endpoints": [], "original": True})
    return json.dumps(made | {"mark": 0x0FA5}).encode()


def get(client: Conn) -> bytes:
    client.send(request())
    return client.read_response().body


def test_nothing_is_left(host: Namespace) -> None:
    worker = Worker(Area.create(1, 8), 0)
    with (
        Upstream(("10.77.0.3", 80), answering(b"80")) as one,
        Upstream(("10.77.0.3", 81), answering(b"81")) as other,
        Upstream(("10.77.0.3", 25), greeting),
        Upstream(("10.77.0.2", 7), greeting),
        socket.create_server(("127.0.0.1", 15001)) as out,
    ):
        out.setblocking(False)
        worker.load(document(1))
        worker.listen("out", out.fileno())
        with (
            connect(("10.77.0.3", 80)) as first,
            connect(("10.77.0.3", 25)) as mail,
            connect(("10.77.0.2", 7)) as through,
            connect(("10.77.0.3", 81)),  # says nothing
        ):
            with running(worker):
                assert get(first) == b"80"
                assert mail.read_until(b"\n") == through.read_until(b"\n") == b"hello\n"
                for _ in range(2):
                    with connect(("10.77.0.3", 81)) as client:
                        assert get(client) == b"81"
                other.wait_connections(2)  # the pool's, and that of the one that says nothing
            for number in (2, 3):
                worker.load(document(number))
            with running(worker):
                with connect(("10.77.0.3", 81)) as client:
                    assert get(client) == b"81"
                assert get(first) == b"80"
                through.send(b"still here")
                assert through.read_exact(10) == b"still here"
            assert len(one.connections) == 1
            assert len(other.connections) == 2, "pools outlive equal snapshots"
            worker.load(document(4, keep=False))
            with running(worker):
                assert get(first) == b"80", "the destination itself"
                mail.send(b"x")
                assert mail.read_exact(1) == b"x"
            left = worker.close()
            assert "originals" in left
            assert not {name: count for name, count in left.items() if count}


def test_more_ports_than_pools(host: Namespace) -> None:
    """Each port has a pool. Beyond the bound those make room that are not in use."""
    worker = Worker(Area.create(1, 8), 0)
    with (
        Upstream(("10.77.0.3", 80), answering(b"80")),
        socket.create_server(("127.0.0.1", 15001)) as out,
    ):
        out.setblocking(False)
        worker.load(document(1))
        worker.listen("out", out.fileno())
        with running(worker):
            for port in range(1000, 1300):
                with connect(("10.77.0.3", port)) as client:
                    client.send(request())
                    assert client.read_response().reason == "connect_refused"
            with connect(("10.77.0.3", 80)) as client:
                assert get(client) == b"80"
    assert not any(worker.close().values())


def test_more_ports_than_pools_may_be_idle(host: Namespace) -> None:
    """The one that was not used for longest loses its connections; those in use are nobody else's."""
    worker = Worker(Area.create(1, 8), 0)
    release = threading.Event()

    def waits(conn: ServerConn) -> None:
        for _ in conn:
            release.wait(DEADLINE)
            conn.send(response(b"late"))

    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(Upstream(("10.77.0.3", 1000 + at), waits if at < 250 else answering(b"now")))
            for at in range(262)
        ]
        out = stack.enter_context(socket.create_server(("127.0.0.1", 15001)))
        out.setblocking(False)
        worker.load(document(1))
        worker.listen("out", out.fileno())
        with running(worker):
            clients = [stack.enter_context(connect(server.address)) for server in servers[:250]]
            for client in clients:
                client.send(request())
            for server in servers[:250]:
                server.wait_requests(1)
            for _ in range(2):
                for server in servers[250:]:  # twelve, for whom there are six pools
                    with connect(server.address) as client:
                        assert get(client) == b"now"
            assert {len(server.connections) for server in servers[250:]} == {2}
            with connect(servers[-1].address) as client:
                assert get(client) == b"now"
            assert len(servers[-1].connections) == 2, "used last: still there"
            release.set()
            for client in clients:
                assert client.read_response().body == b"late"
    assert not any(worker.close().values())


def test_more_ports_than_pools_in_use(host: Namespace) -> None:
    """Refused, and nothing grows; when one is done with there is room again."""
    worker = Worker(Area.create(1, 8), 0)
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(Upstream(("10.77.0.3", 1000 + at), lambda conn: conn.expect_close()))
            for at in range(256)
        ]
        stack.enter_context(Upstream(("10.77.0.3", 80), answering(b"80")))
        out = stack.enter_context(socket.create_server(("127.0.0.1", 15001)))
        out.setblocking(False)
        worker.load(document(1))
        worker.listen("out", out.fileno())
        with running(worker):
            clients = [stack.enter_context(connect(server.address)) for server in servers]
            for client in clients:
                client.send(request())
            for server in servers:
                server.wait_connections(1)
            with connect(("10.77.0.3", 80)) as client:
                client.send(request())
                assert client.read_response().reason == "overloaded"
            clients[7].reset()
            servers[7].wait_open(0)
            wait_until(lambda: _eighty() == b"80", "room")
            for server in servers:
                server.tolerate(AssertionError)
    assert not any(worker.close().values())


def _eighty() -> bytes:
    with connect(("10.77.0.3", 80)) as client:
        return get(client)
