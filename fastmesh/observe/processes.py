"""What a process of this host uses, read from /proc."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

_TICK: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Usage(NamedTuple):
    cpu_seconds: float
    resident_bytes: int
    open_fds: int


def usage(pid: int) -> Usage | None:
    """CPU time (user and system), resident memory and descriptors of a process; None if it has gone."""
    process = Path("/proc", str(pid))
    try:
        # The name in parentheses may hold anything, spaces and parentheses too; numbers follow the last one.
        fields = (process / "stat").read_bytes().rpartition(b")")[2].split()
        fds = sum(1 for _ in (process / "fd").iterdir())
    except OSError:
        return None
    # proc(5): utime, stime and rss are fields 14, 15 and 24; the first after the name is field 3.
    return Usage((int(fields[11]) + int(fields[12])) / _TICK, int(fields[21]) * _PAGE, fds)
