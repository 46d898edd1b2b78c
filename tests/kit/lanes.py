"""Lanes: many independent listeners with a service each in one running proxy.

Starting a process for every little exchange would cost more than the exchange. A lane is one listener
and one service with addresses of their own, used by one test and never again; tests that share a process
therefore share nothing they could see. After each test the process must still have the same workers and a
clean stderr, so that a crash is charged to the test that caused it.

With FASTMESH_TEST_OWN_PROXY=1 every lane gets a process of its own, balance counters included.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from kit.limits import PATIENCE
from kit.ports import free_port, release_port
from kit.proxy import Fastmesh
from kit.upstream import Script, Upstream
from kit.wire import Conn, Response, connect


def ms(milliseconds: float) -> str:
    """A duration of the configuration, longer on a slow build."""
    return f"{int(milliseconds * PATIENCE)}ms"


# kind -> (how many in one process, endpoints, settings of the listener, settings of the service)
KINDS: dict[str, tuple[int, int, dict[str, Any], dict[str, Any]]] = {
    "http": (64, 1, {"protocol": "http"}, {}),
    "pair": (12, 2, {"protocol": "http"}, {}),
    "auto": (12, 1, {}, {}),
    "tcp": (16, 1, {"protocol": "tcp"}, {}),
    "outbound": (20, 1, {"role": "outbound"}, {}),
    "header-timeout": (4, 1, {"protocol": "http", "header_timeout": ms(300)}, {}),
    "idle-timeout": (4, 1, {"protocol": "http", "idle_timeout": ms(300)}, {}),
    "stream-timeout": (4, 1, {"protocol": "http", "stream_idle_timeout": ms(400)}, {}),
    "tcp-timeout": (4, 1, {"protocol": "tcp", "tcp_idle_timeout": ms(300)}, {}),
    "response-timeout": (8, 1, {"protocol": "http"}, {"response_timeout": ms(300)}),
    "connect-timeout": (4, 2, {"protocol": "http"}, {"connect_timeout": ms(200)}),
    "pool-one": (4, 1, {"protocol": "http"}, {"pool": {"idle_max": 1}}),
    "pool-none": (4, 1, {"protocol": "http"}, {"pool": {"idle_max": 0}}),
    "retry-idempotent": (8, 1, {"protocol": "http"}, {"reuse_retry": "idempotent"}),
    "retry-off": (20, 1, {"protocol": "http"}, {"reuse_retry": "off"}),
    "pool-timeout": (4, 1, {"protocol": "http"}, {"pool": {"idle_timeout": ms(300)}}),
    "xff-replace": (
        4,
        1,
        {"protocol": "http", "forwarded": {"x_forwarded": "replace", "forwarded": "replace"}},
        {},
    ),
    "xff-keep": (
        4,
        1,
        {"protocol": "http", "forwarded": {"x_forwarded": "keep", "forwarded": "keep", "via": False}},
        {},
    ),
    "xff-remove": (
        4,
        1,
        {"protocol": "http", "forwarded": {"x_forwarded": "remove", "forwarded": "remove"}},
        {},
    ),
    "forwarded-append": (4, 1, {"protocol": "http", "forwarded": {"forwarded": "append"}}, {}),
    "limited": (4, 1, {"protocol": "http", "max_connections": 2}, {}),
    "no-endpoint": (8, 0, {"protocol": "http"}, {}),
}


RESERVE = 2  # most lanes of one kind that one test takes


class Lane:
    """One listener (`address`) and its service (`service`) with claimed endpoint addresses."""

    def __init__(self, name: str, endpoints: int) -> None:
        self.service = name
        self.address = ("127.0.0.1", free_port())
        self.endpoints = [("127.0.0.1", free_port()) for _ in range(endpoints)]
        self.proxy: Fastmesh
        self.upstreams: list[Upstream] = []
        self.clients: list[Conn] = []

    def listener_config(self, settings: dict[str, Any]) -> dict[str, Any]:
        config = {"name": self.service, "bind": f"127.0.0.1:{self.address[1]}", **settings}
        return config if settings.get("role") == "outbound" else {**config, "to": self.service}

    def service_config(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {"endpoints": [f"{host}:{port}" for host, port in self.endpoints], **settings}

    def upstream(self, *scripts: Script, endpoint: int = 0, backlog: int = 1024) -> Upstream:
        """Start the server behind one of the endpoints."""
        server = Upstream(self.endpoints[endpoint], *scripts, backlog=backlog)
        self.upstreams.append(server)
        return server

    def client(self) -> Conn:
        """A new client connection to the listener."""
        conn = connect(self.address)
        self.clients.append(conn)
        return conn

    def ask(self, data: bytes, method: str = "GET") -> Response:
        """One request on a connection of its own."""
        with self.client() as client:
            client.send(data)
            return client.read_response(method)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for server in self.upstreams:
            server.close()
        for address in [self.address, *self.endpoints]:
            release_port(address[1])

    def check(self) -> None:
        for server in self.upstreams:
            server.check()


class LaneProxy:
    """A process with lanes of all `KINDS`; when one kind is used up, another process takes over."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.own = os.environ.get("FASTMESH_TEST_OWN_PROXY") == "1"
        self.proxy: Fastmesh | None = None
        self.free: dict[str, list[Lane]] = {}
        self.pids: list[int] = []
        self._numbers = itertools.count()

    def take(self, kind: str, first: bool = True) -> Lane:
        """A fresh lane; `first`: the test holds none yet, so that the process may be replaced."""
        used_up = self.proxy is None or len(self.free[kind]) < min(RESERVE, KINDS[kind][0])
        if first and (self.own or used_up):
            self.start(list(KINDS))
        return self.free[kind].pop()

    def start(self, kinds: list[str]) -> None:
        self.stop()
        listeners, services = [], {}
        for kind in kinds:
            count, endpoints, listener, service = KINDS[kind]
            self.free[kind] = []
            for _ in range(RESERVE if self.own else count):
                lane = Lane(f"{kind}-{next(self._numbers)}", endpoints)
                listeners.append(lane.listener_config(listener))
                services[lane.service] = lane.service_config(service)
                self.free[kind].append(lane)
        config = {"drain": ms(5000), "listeners": listeners, "services": services}
        self.proxy = Fastmesh(config, self.directory).start()
        self.pids = self.proxy.wait_workers()
        for lanes in self.free.values():
            for lane in lanes:
                lane.proxy = self.proxy

    def check(self) -> None:
        """The process is as it was at its start; otherwise it is replaced and the test fails."""
        assert self.proxy is not None
        faults = self.proxy.new_faults()
        alive = self.proxy.process is not None and self.proxy.process.poll() is None
        pids = self.proxy.worker_pids() if alive else []
        if self.own:
            self.stop()
        elif faults or pids != self.pids:
            stderr = self.proxy.stderr()
            self.proxy.kill()
            self.proxy = None
            self.free.clear()
            raise AssertionError(f"the proxy was damaged: workers {self.pids} -> {pids}, stderr:\n{stderr}")

    def stop(self) -> None:
        proxy, self.proxy = self.proxy, None
        for lanes in self.free.values():
            for lane in lanes:
                lane.close()
        self.free.clear()
        if proxy is not None:
            proxy.stop()
