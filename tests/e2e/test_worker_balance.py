"""Connections are spread over the workers, however few there are, and none is lost on its way to another."""

from __future__ import annotations

import os
import signal
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import procfs
from kit.fixtures import Serve, Serving
from kit.limits import DEADLINE, scaled, wait_until
from kit.load import Load
from kit.nginx import Nginx
from kit.pki import Pki, client_context
from kit.ports import free_port
from kit.proxy import Fastmesh
from kit.public import Shop
from kit.shares import area_of, owners
from kit.supervised import Echo, exchange
from kit.wire import Address, Conn, connect, request

KINDS = ("http", "auto", "tcp", "mesh", "permissive", "public", "passthrough", "unix")


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


def hello() -> bytes:
    """The first bytes of a TLS client."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="one.example")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


class Entrance:
    """One proxy with a listener of every kind, and how a client of each proves that it is served."""

    def __init__(self, serve: Serve, workers: int, directory: Path, pki: Pki, ports: dict[str, int]) -> None:
        shop = Shop(directory / "shop")
        pair = shop.issue("one", "one.example")
        self.mesh = client_context(pki.identity("svc-a"))
        self.public = shop.client()
        self.hello = hello()
        self.addresses: dict[str, Address] = {kind: ("127.0.0.1", free_port()) for kind in KINDS}
        path = directory / "edge"
        if len(str(path)) > 100:
            path = Path("/tmp") / f"fm-{os.getpid()}-{free_port()}"
        self.addresses["unix"] = str(path)
        more: dict[str, dict[str, Any]] = {
            "http": {"protocol": "http", "to": "web"},
            "auto": {"to": "web"},
            "tcp": {"protocol": "tcp", "to": "echo"},
            "mesh": {"role": "inbound", "protocol": "http", "tls": "mesh", "to": "web"},
            "permissive": {"role": "inbound", "protocol": "http", "tls": "permissive", "to": "web"},
            "public": {"protocol": "http", "tls": {"certificates": [pair]}, "to": "web"},
            "passthrough": {"tls": "passthrough", "to": "echo"},
            "unix": {"protocol": "http", "to": "web"},
        }
        binds = {
            kind: f"unix:{address}" if isinstance(address, str) else f"{address[0]}:{address[1]}"
            for kind, address in self.addresses.items()
        }
        config = {
            "workload": "svc-b",
            "trust_domain": "mesh.local",
            "pki": str(pki.path),
            "listeners": [{"name": kind, "bind": binds[kind], **more[kind]} for kind in KINDS],
            "services": {name: {"endpoints": [f"127.0.0.1:{port}"]} for name, port in ports.items()},
        }
        self.proxy = serve(config, workers)
        self.workers = self.proxy.wait_workers(workers)
        self.area = area_of(self.proxy.pid)

    def prove(self, kind: str, client: Conn, number: int) -> None:
        """An exchange on a connection that is open: it is served, by whichever worker."""
        if kind == "mesh" or (kind == "permissive" and number % 2):
            client.sock = self.mesh.wrap_socket(client.sock)
        elif kind == "public":
            client.sock = self.public.wrap_socket(client.sock, server_hostname="one.example")
        if kind == "tcp":
            exchange(client.sock)
        elif kind == "passthrough":
            exchange(client.sock, self.hello)
        else:
            client.send(request())
            assert client.read_response().status == 200

    def shares(self, kind: str) -> list[int]:
        """What the workers count themselves."""
        found = self.area.shares(KINDS.index(kind))
        assert None not in found
        return [share or 0 for share in found]

    def fair(self, kind: str, count: int) -> None:
        """No worker has more than its share and one."""
        held = self.shares(kind)
        assert sum(held) == count
        assert max(held) <= count / len(held) + 1, (kind, count, held)

    def counted(self, kind: str, count: int) -> None:
        """Until so many are left, and counted for those who have them."""
        wait_until(lambda: sum(self.shares(kind)) == count, f"{count} connections of {kind}")
        # One that is handed over has two owners for a moment.
        wait_until(
            lambda: owners(self.workers, self.addresses[kind]) == self.shares(kind), "the right counts"
        )


@pytest.fixture
def ports(upstream: Serving, echo: Echo) -> dict[str, int]:
    return {"web": upstream().address[1], "echo": echo.port}


@pytest.fixture(params=[2, 3, 4])
def entrance(
    request: pytest.FixtureRequest, serve: Serve, tmp_path: Path, pki: Pki, ports: dict[str, int]
) -> Iterator[Entrance]:
    made = Entrance(serve, request.param, tmp_path, pki, ports)
    yield made
    # Somebody may hold the fixture's value for longer, and with it a descriptor.
    del made.area


def close(clients: list[Conn]) -> None:
    for client in clients:
        client.close()


def test_one_after_another(entrance: Entrance) -> None:
    """After each of them the workers have as many as is fair; also when half of them have gone again."""
    for kind in KINDS:
        clients: list[Conn] = []
        for number in range(scaled(40, 12)):
            clients.append(connect(entrance.addresses[kind]))
            entrance.prove(kind, clients[-1], number)
            entrance.fair(kind, len(clients))
        entrance.counted(kind, len(clients))
        close(clients[::2])
        clients = clients[1::2]
        entrance.counted(kind, len(clients))
        left = entrance.shares(kind)
        for number in range(8):
            clients.append(connect(entrance.addresses[kind]))
            entrance.prove(kind, clients[-1], number)
        held = entrance.shares(kind)
        assert sum(held) == len(clients)
        fewest = min(held) + max(held) // 16
        assert all(now <= fewest + 1 for now, before in zip(held, left, strict=True) if now > before)
        close(clients)
        entrance.counted(kind, 0)
    metrics = entrance.proxy.metrics()
    handed = [metrics.sum("connections_handed_over_total", direction=which) for which in ("sent", "received")]
    assert handed[0] == handed[1] > 0
    assert metrics.sum("downstream_connections_total") == len(KINDS) * (scaled(40, 12) + 8), "each once"
    assert metrics.sum("downstream_connections_open") == 0


def test_in_a_burst(entrance: Entrance) -> None:
    """All workers accept at once, by numbers that the others are changing."""
    for kind in KINDS:
        for count in (2, 3, 5, 8, 13, scaled(40, 21)):
            clients = [connect(entrance.addresses[kind]) for _ in range(count)]
            for number, client in enumerate(clients):
                entrance.prove(kind, client, number)
            entrance.fair(kind, count)
            entrance.counted(kind, count)
            close(clients)
            entrance.counted(kind, 0)


def edge(serve: Serve, to: str, workers: int = 2, **more: Any) -> tuple[Fastmesh, tuple[str, int]]:
    port = free_port()
    listener = {"name": "edge", "bind": f"127.0.0.1:{port}", "protocol": "http", "to": "web", **more}
    proxy = serve({"listeners": [listener], "services": {"web": {"endpoints": [to]}}}, workers=workers)
    proxy.wait_workers(workers)
    return proxy, ("127.0.0.1", port)


def asked(address: Address) -> Conn:
    """A connection that has been served."""
    client = connect(address)
    client.send(request())
    assert client.read_response().status == 200
    return client


def test_new_ones_go_where_others_have_closed(serve: Serve, upstream: Serving) -> None:
    proxy, address = edge(serve, f"127.0.0.1:{upstream().address[1]}")
    workers = proxy.wait_workers(2)
    clients = [asked(address) for _ in range(16)]
    assert owners(workers, address) == [8, 8]
    for _ in range(3):
        for worker in workers:
            ports = procfs.owned_peers(worker, address[1])
            theirs = [client for client in clients if client.local_port in ports]
            clients = [client for client in clients if client not in theirs]
            close(theirs)
            wait_until(lambda worker=worker: owners([worker], address) == [0], "the end of its connections")
            area = area_of(proxy.pid)
            wait_until(lambda area=area: sorted(area.shares(0)) == [0, 8], "their end to be counted")
            clients += [asked(address) for _ in range(8)]
            assert owners(workers, address) == [8, 8]
    close(clients)


def test_one_worker_hands_nothing_over(serve: Serve, upstream: Serving) -> None:
    proxy, address = edge(serve, f"127.0.0.1:{upstream().address[1]}", workers=1)
    clients = [asked(address) for _ in range(10)]
    assert proxy.metrics().sum("connections_handed_over_total") == 0
    assert area_of(proxy.pid).shares(0) == [None]
    close(clients)


def test_a_listener_that_comes_later_is_shared_out_too(serve: Serve, upstream: Serving) -> None:
    to = f"127.0.0.1:{upstream().address[1]}"
    proxy, first = edge(serve, to)
    second = ("127.0.0.1", free_port())
    proxy.reload(
        listeners=[
            {"name": name, "bind": f"127.0.0.1:{port}", "protocol": "http", "to": "web"}
            for name, port in (("late", second[1]), ("edge", first[1]))
        ]
    )
    workers = proxy.wait_workers(2)
    for address in (first, second):
        clients = [asked(address) for _ in range(12)]
        assert owners(workers, address) == [6, 6]
        close(clients)
    os.kill(workers[0], signal.SIGKILL)
    wait_until(lambda: workers[0] not in proxy.worker_pids(), "the worker's end")
    workers = proxy.wait_workers(2)
    area = area_of(proxy.pid)
    for number, address in enumerate((first, second)):
        wait_until(lambda number=number: area.shares(number) == [0, 0], "the successor")
        clients = [asked(address) for _ in range(12)]
        assert owners(workers, address) == [6, 6]
        close(clients)


def test_a_limit_holds_for_those_handed_over(serve: Serve, upstream: Serving) -> None:
    """Two workers with three each: six fit, wherever the kernel puts them."""
    proxy, address = edge(serve, f"127.0.0.1:{upstream().address[1]}", max_connections=3)
    clients = [asked(address) for _ in range(6)]
    for _ in range(6):
        with connect(address) as refused:
            refused.expect_close()
    wait_until(lambda: area_of(proxy.pid).shares(0) == [3, 3], "the refused ones not to be counted")
    clients.pop().close()
    wait_until(lambda: sorted(area_of(proxy.pid).shares(0)) == [2, 3], "one less")
    clients.append(asked(address))
    assert proxy.metrics().sum("downstream_refused_total") == 6
    close(clients)


# deaths


class Halted:
    """Connections of which some wait in the inbox of a worker that stands still."""

    def __init__(self, proxy: Fastmesh, address: tuple[str, int]) -> None:
        self.victim, self.sibling = proxy.wait_workers(2)
        os.kill(self.victim, signal.SIGSTOP)
        wait_until(lambda: procfs.stopped(self.victim), "the worker to stop")
        self.clients: list[Conn] = []
        area = area_of(proxy.pid)

        def handed() -> int:
            """What the other one has sent and this one has not taken."""
            here = sum(share or 0 for share in area.shares(0))
            return here - sum(owners([self.victim, self.sibling], address))

        while handed() < 4:
            self.clients.append(connect(address))
            self.clients[-1].send(request())
            assert len(self.clients) < 64, "nothing is handed over"
            waiting = self.clients[-1].local_port
            # Accepted by the one that runs, or waiting in the accept queue of the one that does not.
            wait_until(lambda waiting=waiting: waiting in procfs.connections(address[1]), "the connection")
            self.settled(area, address)

    def settled(self, area: Any, address: tuple[str, int]) -> None:
        """Until the sibling has nothing left to accept: it has answered all that it kept."""
        kept = procfs.owned_peers(self.sibling, address[1])
        for client in self.clients:
            if client.local_port in kept and not client.buffer:
                assert client.fill()

    def all_served(self) -> None:
        for client in self.clients:
            assert client.read_response().status == 200
        close(self.clients)


def test_what_waits_for_a_killed_worker_is_its_successors(serve: Serve, upstream: Serving) -> None:
    proxy, address = edge(serve, f"127.0.0.1:{upstream().address[1]}")
    halted = Halted(proxy, address)
    os.kill(halted.victim, signal.SIGKILL)
    halted.all_served()
    wait_until(lambda: area_of(proxy.pid).shares(0) == [0, 0], "the counts to be right")


def test_what_was_handed_over_before_a_drain_is_served(serve: Serve, upstream: Serving) -> None:
    proxy, address = edge(serve, f"127.0.0.1:{upstream().address[1]}")
    halted = Halted(proxy, address)
    proxy.terminate()
    wait_until(lambda: "draining" in proxy.stderr(), "the drain")
    os.kill(halted.victim, signal.SIGCONT)
    halted.all_served()
    assert proxy.wait() == 0


def test_what_waits_for_a_worker_killed_in_a_drain_is_closed(serve: Serve, upstream: Serving) -> None:
    """Nobody comes after it: its clients are told at once, not at the end of the drain."""
    proxy, address = edge(serve, f"127.0.0.1:{upstream().address[1]}")
    halted = Halted(proxy, address)
    kept = procfs.owned_peers(halted.sibling, address[1])
    proxy.terminate()
    wait_until(lambda: "draining" in proxy.stderr(), "the drain")
    os.kill(halted.victim, signal.SIGKILL)
    for client in halted.clients:
        if client.local_port in kept:
            assert client.read_response().status == 200
            client.expect_close()
        else:
            client.expect_close()
    assert proxy.wait() == 1, "a worker did not end as it should"
    proxy.process = None


@pytest.mark.heavy
def test_workers_killed_in_the_middle_of_bursts(serve: Serve, upstream: Serving) -> None:
    """What fails was in the hands of the one that was killed; the others are even again afterwards."""
    server = upstream()
    proxy, address = edge(serve, f"127.0.0.1:{server.address[1]}", workers=3)
    area = area_of(proxy.pid)
    for round_number in range(scaled(12, 4)):
        workers = proxy.wait_workers(3)
        wait_until(lambda: area.shares(0) == [0, 0, 0], "a fresh start")
        victim = workers[round_number % 3]
        clients: list[Conn] = []
        begun = threading.Event()

        def burst(clients: list[Conn] = clients, begun: threading.Event = begun) -> None:
            for number in range(60):
                clients.append(connect(address))
                clients[-1].send(request())
                if number == 5 * (1 + round_number % 8):  # noqa: B023
                    begun.set()

        thread = threading.Thread(target=burst)
        thread.start()
        assert begun.wait(DEADLINE)
        os.kill(victim, signal.SIGSTOP)
        wait_until(lambda victim=victim: procfs.stopped(victim), "the worker to stop")
        doomed = procfs.owned_peers(victim, address[1])
        os.kill(victim, signal.SIGKILL)
        thread.join(DEADLINE)
        for client in clients:
            try:
                served = client.read_response().status == 200
            except (AssertionError, ConnectionError):
                served = False
            assert served or client.local_port in doomed
        close(clients)
        wait_until(lambda victim=victim: victim not in proxy.worker_pids(), "the worker's end")
        workers = proxy.wait_workers(3)
        wait_until(lambda: area.shares(0) == [0, 0, 0], "the counts to be right")
        clients = [asked(address) for _ in range(9)]
        assert owners(workers, address) == [3, 3, 3]
        close(clients)
    server.tolerate()


@pytest.mark.heavy
def test_short_connections_while_workers_die(serve: Serve, nginx: Nginx) -> None:
    """Floods are not shared out one by one; what is counted stays right."""
    proxy, address = edge(serve, nginx.address, workers=3)
    doomed: set[int] = set()
    with Load(address, 24, request(target="/small"), per_connection=1) as load:
        for round_number in range(3):
            goal = load.result.requests + scaled(1000, 100)
            wait_until(lambda goal=goal: load.result.requests >= goal, "progress")
            victim = proxy.wait_workers(3)[round_number]
            os.kill(victim, signal.SIGSTOP)
            wait_until(lambda victim=victim: procfs.stopped(victim), "the worker to stop")
            doomed |= procfs.owned_peers(victim, address[1])
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda victim=victim: victim not in proxy.worker_pids(), "the worker's end")
        result = load.stop()
    assert [failure for failure in result.failures if failure.port not in doomed] == []
    proxy.wait_workers(3)
    wait_until(lambda: area_of(proxy.pid).shares(0) == [0, 0, 0], "the counts to be right")


def test_no_descriptor_is_left_behind(serve: Serve, upstream: Serving) -> None:
    """Kept, handed over, refused there or here, gone before anybody looked: all are closed once."""
    proxy, address = edge(serve, f"127.0.0.1:{upstream().address[1]}", max_connections=10)
    workers = proxy.wait_workers(2)
    area = area_of(proxy.pid)

    def held() -> list[int]:
        return [len(procfs.fds(pid)) for pid in workers]

    close([asked(address) for _ in range(4)])
    wait_until(lambda: area.shares(0) == [0, 0], "all closed")
    before = held()
    for _ in range(4):
        clients = [connect(address) for _ in range(30)]
        close(clients)
        wait_until(
            lambda: not procfs.connections(address[1]) and area.shares(0) == [0, 0], "all to be closed"
        )
    wait_until(lambda: held() == before, "the descriptors to be given back")
    metrics = proxy.metrics()
    assert metrics.sum("connections_handed_over_total", direction="sent") > 0
    assert metrics.sum("downstream_refused_total") > 0
