"""A connection to an endpoint whose request has gone before it stood: who gets it, and what becomes of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from kit.fixtures import Serve, Serving
from kit.limits import wait_until
from kit.pki import Pki, server_context
from kit.proxy import Fastmesh
from kit.sidecars import address_of, outbound
from kit.upstream import ServerConn
from kit.wire import connect, request, response

STALE = 0.1  # seconds, as UNCLAIMED_MS


@dataclass
class Slow:
    """A service of the mesh whose first connection waits for `go` before it shakes hands."""

    pki: Pki
    alpn: list[str]
    go: threading.Event = field(default_factory=threading.Event)
    begun: list[float] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def __call__(self, conn: ServerConn) -> None:
        first = not self.begun
        self.begun.append(time.monotonic())
        if first and not self.go.wait(30):
            return
        context = server_context(self.pki.identity("svc-b"))
        context.set_alpn_protocols(self.alpn)
        try:
            conn.sock = context.wrap_socket(conn.sock, server_side=True)
            if "h2" in self.alpn:
                while conn.fill():
                    pass
            else:
                for _ in conn:
                    conn.send(response(b"from the far side"))
        except OSError:
            pass  # it was closed before the handshake was over
        self.ended.set()


@pytest.fixture
def slow(pki: Pki) -> Iterator[Slow]:
    made = Slow(pki, ["http/1.1"])
    yield made
    made.go.set()


def begin(slow: Slow, address: tuple[str, int], **options: Any) -> None:
    """Somebody asks, and is gone when the connection to the endpoint is under way."""
    before = len(slow.begun)
    with connect(address) as client:
        client.send(request(host="svc-b", **options))
        wait_until(lambda: len(slow.begun) > before, "a connection to the endpoint")
        client.reset()


def ask(address: tuple[str, int]) -> bytes:
    with connect(address) as client:
        client.send(request(host="svc-b"))
        answer = client.read_response()
    assert answer.status == 200
    return answer.body


def gone(proxy: Fastmesh) -> None:
    metrics = proxy.wait_metric("who asked has gone", lambda m: m.sum("exchanges") == 0)
    assert metrics.sum("upstream_connections_open") == 1


def test_it_is_the_next_ones_also_behind_a_reload(serve: Serve, upstream: Serving, slow: Slow) -> None:
    """The configuration that began it has gone when the endpoint proves who it is."""
    server = upstream(slow)
    config = outbound(slow.pki, server.address[1])
    proxy = serve(config)
    begin(slow, address_of(config))
    gone(proxy)
    proxy.reload(services={**config["services"], "other": {"endpoints": ["127.0.0.1:1"]}})
    slow.go.set()
    proxy.wait_metric("a connection is idle", lambda m: m.sum("upstream_idle_connections") == 1)
    assert ask(address_of(config)) == b"from the far side"
    assert len(slow.begun) == 1


def test_one_that_stands_still_is_nobodys(serve: Serve, upstream: Serving, slow: Slow) -> None:
    """Whoever comes later does not wait for it: another is begun."""
    server = upstream(slow)
    config = outbound(slow.pki, server.address[1])
    proxy = serve(config)
    begin(slow, address_of(config))
    gone(proxy)
    wait_until(lambda: time.monotonic() > slow.begun[0] + 2 * STALE, "its time")
    assert ask(address_of(config)) == b"from the far side"
    assert len(slow.begun) == 2


@pytest.mark.parametrize("kind", ["http/1.1", "h2", "connect"])
def test_it_does_not_stay_where_nothing_may(serve: Serve, upstream: Serving, slow: Slow, kind: str) -> None:
    """`idle_max: 0` keeps no connection, and what was begun for a tunnel is not for requests."""
    slow.alpn = ["h2"] if kind == "h2" else ["http/1.1"]
    server = upstream(slow)
    config = outbound(slow.pki, server.address[1], pool={"idle_max": 64 if kind == "connect" else 0})
    proxy = serve(config)
    tunnel = {"method": "CONNECT", "target": "svc-b:80"} if kind == "connect" else {}
    begin(slow, address_of(config), **tunnel)
    gone(proxy)
    slow.go.set()
    assert slow.ended.wait(30)
    proxy.wait_metric("nothing is open", lambda m: m.sum("upstream_connections_open") == 0)
    assert proxy.metrics().sum("upstream_connect_failures_total") == 0
