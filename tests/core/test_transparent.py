"""A worker with transparent listeners, without its processes: nothing is left when it ends."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from kit.netns import Namespace, namespaces, needs_root
from kit.upstream import ServerConn, Upstream, answering
from kit.wire import Conn, connect, request
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
                first.send(request())
                assert first.read_response().reason == "no_service"
                mail.send(b"x")
                assert mail.read_exact(1) == b"x"
            left = worker.close()
            assert "originals" in left
            assert not {name: count for name, count in left.items() if count}


def test_more_ports_than_pools(host: Namespace) -> None:
    """Each port has a pool; beyond the bound a request is refused, and nothing grows."""
    worker = Worker(Area.create(1, 8), 0)
    with (
        Upstream(("10.77.0.3", 80), answering(b"80")),
        socket.create_server(("127.0.0.1", 15001)) as out,
    ):
        out.setblocking(False)
        worker.load(document(1))
        worker.listen("out", out.fileno())
        with running(worker):
            reasons = []
            for port in range(1000, 1260):
                with connect(("10.77.0.3", port)) as client:
                    client.send(request())
                    reasons.append(client.read_response().reason)
        assert reasons == ["connect_refused"] * 256 + ["overloaded"] * 4
    assert not any(worker.close().values())
