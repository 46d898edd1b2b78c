from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
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
