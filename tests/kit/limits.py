"""How long to wait and how large to make things, depending on the build under test.

Sanitised and traced builds run several times slower: deadlines grow (`FASTMESH_TEST_PATIENCE`, a factor)
and sizes shrink (`FASTMESH_TEST_SCALE`, a fraction) while every test keeps its meaning. Both have a
default for a process that runs under AddressSanitizer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "") or os.environ.get("FASTMESH_BUILD") in (
    "asan",
    "trace",
)
PATIENCE = float(os.environ.get("FASTMESH_TEST_PATIENCE", "3" if SANITIZED else "1"))
SCALE = float(os.environ.get("FASTMESH_TEST_SCALE", "0.0625" if SANITIZED else "1"))

DEADLINE = 15.0 * PATIENCE  # seconds that anything in a test may take before it counts as hung
POLL = 0.004


def bare() -> dict[str, str]:
    """The environment without a sanitizer's libraries, for programs in which there is nothing to find: they
    would start several times slower, and curl hangs.

    `fastmesh certs` is one, because it uses no compiled module of ours. That stays true: in a sanitized build
    such a module refuses to load without these libraries, and the program would fail.
    """
    return {name: text for name, text in os.environ.items() if name != "LD_PRELOAD"}


def scaled(size: int, floor: int = 1) -> int:
    """`size` cut down for a slow build, never under `floor`."""
    return max(floor, int(size * SCALE))


def thinned(cases: Sequence[T], every: int = 1) -> Sequence[T]:
    """Every n-th case of a long table; on a slow build every eighth, which still goes through the code."""
    return cases[:: 8 if SANITIZED else every]


def wait_until(condition: Callable[[], T], what: str, deadline: float | None = None) -> T:
    """Poll until `condition()` is true and return its value; AssertionError after `deadline` seconds.

    The longer it has waited, the more seldom it asks, but it adds no more than a sixteenth to a wait: asking
    (a scrape of all metrics, say) may cost more than what is waited for, and other tests need the cores.
    """
    limit = DEADLINE if deadline is None else deadline
    start = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - start
        if waited > limit:
            raise AssertionError(f"waited {limit:.1f} s in vain for: {what} (last value: {value!r})")
        time.sleep(min(max(POLL, waited / 16), 0.05))


def wait_steady(
    value: Callable[[], Any], what: str, steady: float = 0.25, deadline: float | None = None
) -> Any:
    """Poll until `value()` has not changed for `steady` seconds and return it.

    For states that announce themselves only by nothing happening any more, such as a stopped writer.
    """
    limit = DEADLINE if deadline is None else deadline
    start = since = time.monotonic()
    last = value()
    while True:
        time.sleep(POLL)
        now, current = time.monotonic(), value()
        if current != last:
            last, since = current, now
        elif now - since >= steady * PATIENCE:
            return last
        if now - start > limit:
            raise AssertionError(f"{what} was still changing after {limit:.1f} s (last value: {last!r})")
