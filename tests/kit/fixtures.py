"""The fixtures; `tests/conftest.py` makes them known to every test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from kit.agent import Agent
from kit.cutter import Cutter
from kit.grpc_peers import Peers
from kit.lanes import Lane, LaneProxy
from kit.nginx import Nginx
from kit.pki import Pki
from kit.ports import free_port
from kit.proxy import Fastmesh
from kit.upstream import Script, Upstream
from kit.wire import Address


class Serve(Protocol):
    def __call__(self, config: dict[str, Any] | str, workers: int = 1, **options: Any) -> Fastmesh: ...


class Serving(Protocol):
    def __call__(self, *scripts: Script, address: Address | None = None, backlog: int = 1024) -> Upstream: ...


LaneFactory = Callable[..., Lane]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start `fastmesh serve` with a configuration; at the end it must stop with code 0 and a clean stderr."""
    running: list[Fastmesh] = []

    def start(config: dict[str, Any] | str, workers: int = 1, **options: Any) -> Fastmesh:
        proxy = Fastmesh(config, tmp_path, workers, **options)
        proxy.start()
        running.append(proxy)
        return proxy

    try:
        yield start
        for proxy in reversed(running):
            proxy.stop()
    finally:
        for proxy in running:
            if proxy.process is not None and proxy.process.poll() is None:
                proxy.kill()


@pytest.fixture
def upstream() -> Iterator[Serving]:
    """Start scripted upstreams; what their scripts raise fails the test."""
    running: list[Upstream] = []

    def start(*scripts: Script, address: Address | None = None, backlog: int = 1024) -> Upstream:
        server = Upstream(address or ("127.0.0.1", free_port()), *scripts, backlog=backlog)
        running.append(server)
        return server

    yield start
    for server in running:
        server.close()
    for server in running:
        server.check()


@pytest.fixture(scope="session")
def _lane_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaneProxy]:
    proxy = LaneProxy(tmp_path_factory.mktemp("lanes"))
    yield proxy
    proxy.stop()


@pytest.fixture
def lane(_lane_proxy: LaneProxy) -> Iterator[LaneFactory]:
    """`lane(kind)`: a listener and a service of its own in the shared proxy (see `kit.lanes`)."""
    taken: list[Lane] = []

    def take(kind: str = "http") -> Lane:
        taken.append(_lane_proxy.take(kind, first=not taken))
        return taken[-1]

    yield take
    for one in taken:
        one.close()
    if taken:
        _lane_proxy.check()
    for one in taken:
        one.check()


@pytest.fixture
def cutter() -> Iterator[Callable[[tuple[str, int]], Cutter]]:
    """Relays that cut and stall."""
    with contextlib.ExitStack() as stack:
        yield lambda target: stack.enter_context(Cutter(target))


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """A real backend that all tests of this process may use."""
    server = Nginx(tmp_path_factory.mktemp("backend"), {"mib": bytes(range(256)) * 4096})
    yield server
    server.stop()


@pytest.fixture(scope="session")
def grpc_peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """gRPC clients and services of both languages, and what their calls are without a mesh."""
    peers = Peers(tmp_path_factory.mktemp("grpc"))
    yield peers
    peers.close()


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """A certificate authority with identities for svc-a, svc-b and svc-x."""
    made = Pki(tmp_path_factory.mktemp("pki") / "pki")
    for name in ("svc-a", "svc-b", "svc-x"):
        made.issue(name)
    return made


@pytest.fixture(scope="session")
def _authority(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("authority") / "pki")


@pytest.fixture
def own_pki(_authority: Pki, tmp_path: Path) -> Pki:
    """A certificate authority that the test may change, without identities."""
    return _authority.copy(tmp_path / "pki")


@pytest.fixture(scope="session")
def other_pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Another certificate authority for the same trust domain: its certificates prove nothing here."""
    made = Pki(tmp_path_factory.mktemp("other-pki") / "pki")
    for name in ("svc-a", "svc-b"):
        made.issue(name)
    return made


@pytest.fixture
def start_agent(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """Start agent processes; none survives the test."""
    running: list[Agent] = []

    def start(**options: Any) -> Agent:
        directory = tmp_path / f"agent-{len(running)}"
        directory.mkdir()
        running.append(Agent(directory, **options))
        return running[-1]

    yield start
    for agent in running:
        agent.close()
