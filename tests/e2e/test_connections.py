"""Thousands of connections: held idle at a small price, all of them usable, none left behind."""

from __future__ import annotations

import select
import socket

import pytest
from kit import procfs
from kit.fixtures import Serve
from kit.limits import DEADLINE, SANITIZED, scaled, wait_until
from kit.nginx import Nginx
from kit.ports import free_port
from kit.wire import request

COUNT = scaled(10_000, 1000)
REQUEST = request(target="/small")


class Crowd:
    """Many connections driven by one epoll loop."""

    def __init__(self, address: tuple[str, int], count: int) -> None:
        self.poll = select.epoll()
        self.socks: dict[int, socket.socket] = {}
        for number in range(count):
            sock = socket.socket()
            # Several source addresses: one has too few ports for everybody's tests at once.
            sock.bind((f"127.0.0.{2 + number % 8}", 0))
            sock.settimeout(DEADLINE)
            sock.connect(address)
            self.socks[sock.fileno()] = sock
            self.poll.register(sock, select.EPOLLIN)

    def ask_all(self, window: int = 500) -> list[bytes]:
        """One request on each, at most `window` at a time; the answers that are not a 200."""
        waiting = list(self.socks)
        pending: dict[int, bytes] = {}
        wrong: list[bytes] = []
        while waiting or pending:
            while waiting and len(pending) < window:
                fd = waiting.pop()
                self.socks[fd].sendall(REQUEST)
                pending[fd] = b""
            events = self.poll.poll(DEADLINE)
            assert events, f"{len(pending)} requests without an answer"
            for fd, _ in events:
                data = self.socks[fd].recv(65536)
                assert data, "a connection was closed"
                pending[fd] = pending.get(fd, b"") + data
                if b"\r\n\r\n" in pending[fd] and pending[fd].endswith(b"from nginx\n"):
                    answer = pending.pop(fd)
                    if not answer.startswith(b"HTTP/1.1 200 "):
                        wrong.append(answer)
        return wrong

    def close(self) -> None:
        self.poll.close()
        for sock in self.socks.values():
            sock.close()


@pytest.mark.heavy
def test_ten_thousand_idle_connections_held_then_used(serve: Serve, nginx: Nginx) -> None:
    port = free_port()
    proxy = serve(
        {
            "listeners": [{"name": "edge", "bind": f"127.0.0.1:{port}", "protocol": "http", "to": "web"}],
            "services": {"web": {"endpoints": [nginx.address]}},
        }
    )
    [worker] = proxy.wait_workers()
    warm = Crowd(("127.0.0.1", port), 200)
    warm.ask_all()
    warm.close()
    proxy.wait_metric("closed", lambda m: m.sum("downstream_connections_open") == 0)
    before = procfs.pss(worker)

    def descriptors() -> int:
        """Open ones, the pool's idle connections not counted."""
        idle = proxy.metrics().sum("upstream_idle_connections")
        return len(procfs.fds(worker)) - int(idle)

    base = descriptors()
    crowd = Crowd(("127.0.0.1", port), COUNT)
    try:
        assert crowd.ask_all() == []
        proxy.wait_metric("all are open", lambda m: m.sum("downstream_connections_open") == COUNT)
        each = (procfs.pss(worker) - before) / COUNT
        if not SANITIZED:
            assert each <= 1024, f"{each:.0f} bytes for an idle connection"
        assert crowd.ask_all() == []
        assert crowd.ask_all() == []
    finally:
        crowd.close()
    proxy.wait_metric("all are closed", lambda m: m.sum("downstream_connections_open") == 0)
    wait_until(lambda: descriptors() == base, "the descriptors to be given back")


def test_connections_that_never_say_anything(serve: Serve, nginx: Nginx) -> None:
    """Connected and silent: they hold no buffer, and do not keep others out."""
    port = free_port()
    proxy = serve(
        {
            "listeners": [{"name": "edge", "bind": f"127.0.0.1:{port}", "protocol": "http", "to": "web"}],
            "services": {"web": {"endpoints": [nginx.address]}},
        }
    )
    silent = Crowd(("127.0.0.1", port), 1000)
    try:
        proxy.wait_metric("all are accepted", lambda m: m.sum("downstream_connections_open") == 1000)
        busy = Crowd(("127.0.0.1", port), 10)
        assert busy.ask_all() == []
        busy.close()
        assert silent.ask_all() == []
    finally:
        silent.close()


def test_out_of_descriptors_is_survived(serve: Serve, nginx: Nginx) -> None:
    """At the limit new connections wait or are refused; the ones there are served, and it recovers."""
    import resource

    port = free_port()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    proxy = serve(
        {
            "listeners": [{"name": "edge", "bind": f"127.0.0.1:{port}", "protocol": "http", "to": "web"}],
            "services": {"web": {"endpoints": [nginx.address]}},
        }
    )
    [worker] = proxy.wait_workers()
    used = len(procfs.fds(worker))
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (used + 40, hard))
    crowd = Crowd(("127.0.0.1", port), 80)
    crowd.close()
    again = Crowd(("127.0.0.1", port), 4)
    assert again.ask_all() == []
    again.close()
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (soft, hard))
    assert proxy.worker_pids() == [worker]
    before = procfs.cpu_seconds(worker)
    wait_until(lambda: len(procfs.fds(worker)) <= used + 20, "the descriptors")
    assert procfs.cpu_seconds(worker) - before < 2, "no busy loop on accept"
