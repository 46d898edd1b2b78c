from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.agent import Agent


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


@pytest.fixture
def agent(start_agent: Callable[..., Agent]) -> Agent:
    """One agent, not yet told to start."""
    return start_agent()
