"""Fixtures: `fastmesh run` with a command of the test's, and a configuration for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from kit.fixtures import Serving
from kit.launched import Launched
from kit.ports import free_port
from kit.upstream import answering


class Launch(Protocol):
    def __call__(self, config: dict[str, Any], *command: str | Path, **options: Any) -> Launched: ...


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start a run; at the end all of it must have gone."""
    running: list[Launched] = []

    def start(config: dict[str, Any], *command: str | Path, **options: Any) -> Launched:
        running.append(Launched(tmp_path, config, *command, **options))
        return running[-1]

    try:
        yield start
        for one in running:
            if one.process.poll() is not None:
                one.wait_gone()
    finally:
        for one in running:
            one.kill()


@pytest.fixture
def config(upstream: Serving) -> dict[str, Any]:
    """An outbound listener, and the service svc-b behind it, which answers `hello`."""
    server = upstream(answering(b"hello"))
    server.tolerate()
    return {
        "listeners": [{"name": "outbound", "role": "outbound", "bind": f"127.0.0.1:{free_port()}"}],
        "services": {"svc-b": {"endpoints": [f"127.0.0.1:{server.address[1]}"]}},
    }


@pytest.fixture
def script(tmp_path: Path) -> Any:
    """Write a Python program and return the command that runs it."""
    import sys

    def write(text: str, name: str = "app.py") -> list[str]:
        (tmp_path / name).write_text(text)
        return [sys.executable, "-u", str(tmp_path / name)]

    return write
