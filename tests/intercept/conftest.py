"""Two hosts for each test, where this machine can have any."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from kit.intercept import MISSING, Host, two_hosts


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    if MISSING:
        pytest.skip(MISSING)
    with two_hosts() as both:
        yield both


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    """For sockets of a test."""
    with contextlib.ExitStack() as stack:
        yield stack
