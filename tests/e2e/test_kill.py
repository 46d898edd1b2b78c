"""Processes that are killed under load: what fails is what was in flight there, and nothing else."""

from __future__ import annotations

import os
import signal

import pytest
from kit import procfs
from kit.fixtures import Serve
from kit.limits import scaled, wait_until
from kit.load import Load
from kit.nginx import Nginx
from kit.ports import free_port
from kit.proxy import Fastmesh
from kit.wire import request

CONNECTIONS = 256
REQUEST = request(target="/small")


def edge(serve: Serve, nginx: Nginx, workers: int = 2) -> tuple[Fastmesh, tuple[str, int]]:
    port = free_port()
    proxy = serve(
        {
            "listeners": [{"name": "edge", "bind": f"127.0.0.1:{port}", "protocol": "http", "to": "web"}],
            "services": {"web": {"endpoints": [nginx.address]}},
        },
        workers=workers,
    )
    return proxy, ("127.0.0.1", port)


def progress(load: Load, more: int) -> None:
    """Until so many more requests have been answered."""
    goal = load.result.requests + more
    wait_until(lambda: load.result.requests >= goal, f"{goal} requests")


def kill_worker(proxy: Fastmesh, pid: int, port: int) -> set[int]:
    """SIGKILL; the client ports of the connections that die with it.

    It is stopped first: from then on it accepts nothing, and what still waits in its accept queue belongs
    to its successor.
    """
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: procfs.stopped(pid), "the worker to stop")
    owned = procfs.owned_peers(pid, port)
    os.kill(pid, signal.SIGKILL)
    return owned


@pytest.mark.heavy
def test_workers_and_agent_killed_under_load(serve: Serve, nginx: Nginx) -> None:
    proxy, address = edge(serve, nginx)
    doomed: set[int] = set()
    step = scaled(1500, 200)
    with Load(address, CONNECTIONS, REQUEST) as load:
        progress(load, step)
        for round_number in range(5):
            pids = proxy.wait_workers(2)
            victim = pids[round_number % 2]
            doomed |= kill_worker(proxy, victim, address[1])
            wait_until(lambda victim=victim: victim not in proxy.worker_pids(), "the worker's end")
            if round_number in (1, 3):
                agent = wait_until(proxy.agent_pid, "an agent")
                os.kill(agent, signal.SIGKILL)
            progress(load, step)
        proxy.wait_workers(2)
        wait_until(proxy.agent_pid, "a new agent")
        progress(load, step)
        result = load.stop()
    assert doomed, "nobody was connected to the killed workers"
    strangers = [failure for failure in result.failures if failure.port not in doomed]
    assert strangers == [], "failures that no killed worker explains"
    assert {failure.what for failure in result.failures} <= {"reset", "closed"}
    metrics = proxy.metrics()
    assert metrics.sum("worker_restarts_total") == 5
    assert metrics.sum("agent_restarts_total") == 2


@pytest.mark.heavy
def test_new_connections_are_never_refused_while_workers_die(serve: Serve, nginx: Nginx) -> None:
    """A connection for each request: every one of them meets the listening sockets anew."""
    proxy, address = edge(serve, nginx)
    doomed: set[int] = set()
    with Load(address, 32, REQUEST, per_connection=1) as load:
        progress(load, scaled(500, 100))
        for round_number in range(3):
            pids = proxy.wait_workers(2)
            victim = pids[round_number % 2]
            doomed |= kill_worker(proxy, victim, address[1])
            wait_until(lambda victim=victim: victim not in proxy.worker_pids(), "the worker's end")
            progress(load, scaled(500, 100))
        result = load.stop()
    assert [failure for failure in result.failures if failure.port not in doomed] == []
    assert len(result.failures) <= 3 * 32


@pytest.mark.heavy
def test_agent_killed_under_load_fails_nothing(serve: Serve, nginx: Nginx) -> None:
    proxy, address = edge(serve, nginx, workers=1)
    workers = proxy.wait_workers(1)
    with Load(address, 64, REQUEST) as load:
        for _ in range(2):
            agent = wait_until(proxy.agent_pid, "an agent")
            os.kill(agent, signal.SIGKILL)
            wait_until(lambda agent=agent: proxy.agent_pid() not in (None, agent), "a new agent")
            progress(load, scaled(500, 100))
        metrics = proxy.metrics()
        result = load.stop()
    assert result.failures == []
    assert proxy.worker_pids() == workers
    assert metrics.sum("requests_total", service="web") > 0, "the counters outlive the agent"


def test_killed_worker_goes_on_counting(serve: Serve, nginx: Nginx) -> None:
    proxy, address = edge(serve, nginx, workers=1)
    for _ in range(2):
        with Load(address, 4, REQUEST) as load:
            progress(load, 100)
        before = proxy.metrics().sum("requests_total", service="web")
        [worker] = proxy.wait_workers(1)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda worker=worker: worker not in proxy.worker_pids(), "the worker's end")
        proxy.wait_workers(1)
        metrics = proxy.metrics()
        assert metrics.sum("requests_total", service="web") >= before, "counters never fall"
        proxy.wait_metric("gauges start anew", lambda m: m.sum("downstream_connections_open") == 0)


def test_supervisor_killed_workers_finish_and_go(serve: Serve, nginx: Nginx) -> None:
    """Without the supervisor nobody would stop them: they drain by themselves."""
    proxy, address = edge(serve, nginx)
    family = procfs.children(proxy.pid)
    with Load(address, 8, REQUEST) as load:
        progress(load, 100)
        os.kill(proxy.pid, signal.SIGKILL)
        wait_until(lambda: not any(procfs.alive(pid) for pid in family), "the orphans' end")
        load.stopping = True
    assert {failure.what for failure in load.result.failures} <= {"refused", "closed", "reset"}, (
        "none was cut"
    )
    proxy.process = None
