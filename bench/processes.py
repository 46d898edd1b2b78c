"""Processes that the bench starts: pinned to CPUs, measured with all their children, and always ended.

CPU time is the kernel's CPU clock of a process (clock_gettime on another process's clock): the run time of
all its threads, also of those that have ended, in nanoseconds. It is the total that /proc/PID/stat shows as
utime+stime, without its rounding to 10 ms; children that have ended and were reaped are added from there.

Memory is PSS from /proc/PID/smaps_rollup, summed over the processes. PSS divides a page by all who map it:
every other Python, or other user of libcrypto, makes a proxy look smaller. `alone` counts the distinct pages
of the processes instead, which is their PSS on a machine where nobody else shares with them.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from bench.machine import USER_HZ

PR_SET_PDEATHSIG: Final = 1
CPUCLOCK_SCHED: Final = 2
STOP_SECONDS: Final = 5.0
# /proc/PID/pagemap: 64 bits a page, the page's number in bits 0-54 (Documentation/admin-guide/mm/pagemap.rst)
PAGE: Final = os.sysconf("SC_PAGE_SIZE")
PAGEMAP_ENTRY: Final = 8
PAGEMAP_NUMBER: Final = (1 << 55) - 1
PAGEMAP_PRESENT: Final = 1 << 63

_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Stat:
    """The fields of /proc/PID/stat that the bench uses."""

    pid: int
    parent: int
    started: int  # ticks since boot: with the pid, the identity of a process
    reaped: float  # CPU seconds of children that have ended and were waited for
    own: float  # CPU seconds of the process itself, rounded to ticks


def read_stat(pid: int) -> Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before may hold spaces and parentheses
    if fields[0] in "ZX":
        return None
    own, reaped = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
    return Stat(pid, int(fields[1]), int(fields[19]), reaped / USER_HZ, own / USER_HZ)


def tree(root: int) -> list[Stat]:
    """A process and all its descendants, parents before children."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    everyone = [stat for pid in pids if (stat := read_stat(pid))]
    members = [stat for stat in everyone if stat.pid == root]
    for member in members:  # grows while it is walked
        members.extend(stat for stat in everyone if stat.parent == member.pid)
    return members


def child_setup(cpus: frozenset[int]) -> Callable[[], None]:
    """For preexec_fn: pin the child, and end it if the bench is killed: no load may outlive the bench."""

    def setup() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        os.sched_setaffinity(0, cpus)

    return setup


@dataclass(frozen=True)
class CpuSample:
    seconds: float
    by_ticks: float  # the same from utime+stime, to check the clock
    members: frozenset[tuple[int, int]]


class Processes:
    """One program with its children. Start it with `with`; leaving ends every process of it."""

    def __init__(self, name: str, argv: list[str], cpus: frozenset[int], log: Path) -> None:
        self.name = name
        self.argv = argv
        self.cpus = cpus
        self.log = log
        self._popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
                start_new_session=True,  # Ctrl-C goes to the bench, which then ends the others in order
                preexec_fn=child_setup(self.cpus),  # noqa: PLW1509  there are no threads
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def stop(self) -> None:
        """SIGTERM to the parent, SIGKILL after some seconds to whatever of its tree is left."""
        if self._popen is None:
            return
        members = tree(self._popen.pid)
        self._popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(STOP_SECONDS)
        for member in members:
            now = read_stat(member.pid)
            if now and now.started == member.started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)
        self._popen.wait()
        self._popen = None

    def words(self, limit: int = 600) -> str:
        """The end of what it printed, for a message."""
        return self.log.read_text(errors="replace").strip()[-limit:]


def cpu(groups: Iterable[Processes]) -> CpuSample:
    seconds = by_ticks = 0.0
    members = set()
    for group in groups:
        for stat in tree(group.pid):
            try:
                own = time.clock_gettime((~stat.pid << 3) | CPUCLOCK_SCHED)
            except OSError:  # ended since the listing; its parent has or will have its time
                continue
            seconds += own + stat.reaped
            by_ticks += stat.own + stat.reaped
            members.add((stat.pid, stat.started))
    return CpuSample(seconds, by_ticks, frozenset(members))


def pss(groups: Iterable[Processes]) -> int:
    """Bytes of memory, shared pages divided by the number of processes that share them."""
    total = 0
    for group in groups:
        for stat in tree(group.pid):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{stat.pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * 1024
    return total


def alone(groups: Iterable[Processes]) -> int | None:
    """Bytes of memory in distinct pages. None without the right to see page numbers (CAP_SYS_ADMIN)."""
    pages: set[int] = set()
    for group in groups:
        for stat in tree(group.pid):
            with contextlib.suppress(OSError), Path(f"/proc/{stat.pid}/pagemap").open("rb", 0) as pagemap:
                for start, end in _resident(stat.pid):
                    pagemap.seek(start // PAGE * PAGEMAP_ENTRY)
                    entries = array.array("Q", pagemap.read((end - start) // PAGE * PAGEMAP_ENTRY))
                    pages.update(entry & PAGEMAP_NUMBER for entry in entries if entry & PAGEMAP_PRESENT)
    pages.discard(0)  # what those without the right see instead of a page's number
    return len(pages) * PAGE or None


def _resident(pid: int) -> Iterator[tuple[int, int]]:
    """The address ranges of a process that hold pages at all."""
    start = end = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            start, end = (int(word, 16) for word in first.split("-"))
        elif first == "Rss:" and int(rest.split()[0]):
            yield start, end


def settled_pss(groups: list[Processes], deadline: float = 5.0) -> int:
    """PSS once it no longer moves (two readings 0.3 s apart within 0.2 %), or after `deadline` seconds."""
    end = time.monotonic() + deadline
    last = pss(groups)
    while time.monotonic() < end:
        time.sleep(0.3)
        now = pss(groups)
        if abs(now - last) <= now * 0.002:
            return now
        last = now
    return last
