from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.agent import Agent
from kit.dns import NameServer


@pytest.fixture
def name_server() -> Iterator[Callable[..., NameServer]]:
    """Start name servers; what their scripts raise fails the test."""
    running: list[NameServer] = []

    def start(*args: Any, **options: Any) -> NameServer:
        running.append(NameServer(*args, **options))
        return running[-1]

    yield start
    for one in running:
        one.close()


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
