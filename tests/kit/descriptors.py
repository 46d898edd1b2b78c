"""Descriptors of the test process itself: which it has, and that a test gives back what it opened.

One that stays open does little harm by itself; but a suite in one process would have hundreds in the end,
and a number that is closed by whom it does not belong to any more fails another test, much later.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

from kit.limits import wait_until


def mine() -> dict[int, str]:
    """Descriptors of this process and what each leads to."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            found[int(entry)] = str(Path("/proc/self/fd", entry).readlink())
        except OSError:
            continue  # listdir's own
    return found


def check_given_back(before: dict[int, str]) -> None:
    """Until everything opened since `before` is closed: threads of servers may be about to do that."""

    def left() -> dict[int, str]:
        return {fd: target for fd, target in mine().items() if before.get(fd) != target}

    if left():
        # An exception that was caught, as `pytest.raises` does, holds what its frames held.
        gc.collect()
        wait_until(lambda: not left(), f"the end of descriptors that the test opened: {left()}")
    lost = before.keys() - mine().keys()
    assert not lost, f"the test closed descriptors that were not its own: {[before[fd] for fd in lost]}"
