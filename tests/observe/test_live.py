"""The access log and the metrics of a running proxy while things go wrong around them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.fixtures import Serve, Serving
from kit.limits import wait_until
from kit.ports import free_port
from kit.proxy import Fastmesh
from kit.wire import connect, request


class Front:
    """A proxy with an access log, in front of one upstream."""

    def __init__(self, serve: Serve, endpoint: int, log: Path) -> None:
        self.log = log
        self.address = ("127.0.0.1", free_port())
        bind = f"127.0.0.1:{self.address[1]}"
        self.proxy: Fastmesh = serve(
            {
                "listeners": [{"name": "front", "bind": bind, "protocol": "http", "to": "web"}],
                "services": {"web": {"endpoints": [f"127.0.0.1:{endpoint}"]}},
                "telemetry": {"access_log": {"path": str(log)}},
            }
        )

    def ask(self, *targets: str) -> None:
        """One request after another, each answered with 200."""
        with connect(self.address) as client:
            for target in targets:
                client.send(request(target=target))
                assert client.read_response().status == 200

    def lines(self, path: Path | None = None) -> list[str]:
        """The paths in the log."""
        file = path or self.log
        return [json.loads(line)["path"] for line in file.read_text().splitlines()] if file.exists() else []

    def wait_agent(self, other_than: int | None = None) -> int:
        def running() -> int:
            pid = self.proxy.agent_pid()
            return pid if pid is not None and pid != other_than else 0

        return wait_until(running, "an agent with its title")


@pytest.fixture
def front(serve: Serve, upstream: Serving, tmp_path: Path) -> Front:
    return Front(serve, int(upstream().address[1]), tmp_path / "access.log")


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing for a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_full_ring_drops_and_counts_but_never_blocks(front: Front) -> None:
    targets = [f"/{number:04d}" + "x" * 2000 for number in range(300)]
    with stopped(front.wait_agent()):
        front.ask(*targets)
    names = ("access_log_records_total", "access_log_dropped_total")
    metrics = front.proxy.wait_metric(
        "every record written or dropped", lambda m: sum(map(m.sum, names)) == len(targets)
    )
    assert metrics.sum("access_log_dropped_total", cause="ring_full") > 0
    written = int(metrics.sum("access_log_records_total"))
    # The ring holds so much of a path and no more; what tells them apart stands in front.
    assert [path[:5] for path in front.lines()] == [target[:5] for target in targets[:written]]
    front.ask("/after")
    wait_until(lambda: front.lines()[-1:] == ["/after"], "the log to go on")


def test_the_death_of_the_agent_loses_no_counter_and_the_log_goes_on(front: Front) -> None:
    front.ask("/before")
    wait_until(lambda: front.lines() == ["/before"], "the first line")
    agent = front.wait_agent()
    os.kill(agent, signal.SIGKILL)
    front.ask("/meanwhile")
    front.wait_agent(other_than=agent)
    metrics = front.proxy.wait_metric("a new agent", lambda m: m.sum("agent_restarts_total") == 1)
    assert metrics.sum("requests_total", service="web", code="2xx") == 2
    wait_until(lambda: front.lines() == ["/before", "/meanwhile"], "the second line")
    assert front.proxy.admin("/readyz")[0] == 200


def test_the_death_of_a_worker_loses_no_counter(front: Front) -> None:
    front.ask("/one", "/two")
    (worker,) = front.proxy.wait_workers()
    os.kill(worker, signal.SIGKILL)
    front.proxy.wait_metric("a new worker", lambda m: m.sum("worker_restarts_total", worker="0") == 1)
    wait_until(lambda: front.proxy.admin("/readyz")[0] == 200, "readiness")
    front.ask("/three")
    front.proxy.wait_metric(
        "three requests", lambda m: m.sum("requests_total", service="web", code="2xx") == 3
    )
    front.proxy.wait_metric("no connection", lambda m: m.sum("downstream_connections_open") == 0)
    wait_until(lambda: front.lines() == ["/one", "/two", "/three"], "three lines")


def test_requests_are_counted_by_their_version(front: Front) -> None:
    front.ask("/one", "/two")
    with connect(front.address) as client:
        client.send(request(version="HTTP/1.0"))
        assert client.read_response().status == 200
    names = [("downstream", "HTTP/1.0"), ("downstream", "HTTP/1.1"), ("downstream", "HTTP/2")]
    names += [("upstream", "HTTP/1.1"), ("upstream", "HTTP/2")]
    metrics = front.proxy.wait_metric("three requests", lambda m: m.sum("requests_total", code="2xx") == 3)
    assert [metrics.sum("http_requests_total", side=side, protocol=protocol) for side, protocol in names] == [
        *[1, 2, 0],
        *[3, 0],
    ]


def test_rotation_by_renaming(front: Front) -> None:
    front.ask("/one")
    wait_until(lambda: front.lines() == ["/one"], "the first line")
    old = front.log.rename(front.log.with_suffix(".1"))
    os.kill(front.wait_agent(), signal.SIGUSR1)
    asked = ["/one"]

    def turned() -> bool:
        """What is asked before the signal is seen still goes to the old file."""
        asked.append(f"/{len(asked)}")
        front.ask(asked[-1])
        return front.log.exists()

    wait_until(turned, "the new file")
    wait_until(lambda: front.lines(old) + front.lines() == asked, "each line once, in order")
    assert front.lines()


def test_the_last_lines_are_written_before_the_end(front: Front) -> None:
    front.ask("/one", "/two")
    front.proxy.stop()
    assert front.lines() == ["/one", "/two"]
