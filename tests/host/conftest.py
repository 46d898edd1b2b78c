"""Fixtures: a supervisor with real workers and an agent that follows a script (`kit.supervised`)."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import procfs
from kit.limits import wait_until
from kit.proxy import FATAL
from kit.supervised import Echo, Host


@pytest.fixture
def echo_server() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def host(tmp_path: Path, echo_server: Echo) -> Iterator[Host]:
    run = Host(tmp_path, echo_server.port)
    yield run
    try:
        if run.process is not None:
            family = [*procfs.children(run.pid)]
            if run.process.poll() is None:
                run.signal(signal.SIGTERM)
                run.signal(signal.SIGTERM)
                run.wait()
            wait_until(lambda: not any(procfs.alive(pid) for pid in family), f"the end of {family}")
            bad = [line for line in run.stderr().splitlines() if FATAL.search(line)]
            assert not bad, run.stderr()
    finally:
        run.kill()
