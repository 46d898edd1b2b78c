from __future__ import annotations

from collections.abc import Callable

import pytest
from kit.agent import Agent


@pytest.fixture
def agent(start_agent: Callable[..., Agent]) -> Agent:
    """One agent, not yet told to start."""
    return start_agent()
