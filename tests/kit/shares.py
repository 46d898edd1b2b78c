"""Which worker of a running proxy has which connections of a listener."""

from __future__ import annotations

import os
from pathlib import Path

from fastmesh._core import Area
from kit import procfs
from kit.wire import Address


def area_of(pid: int) -> Area:
    """The shared memory of the proxy whose supervisor (or worker) this is."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if str(entry.readlink()).startswith("/memfd:fastmesh-area"):
            fd = os.open(entry, os.O_RDWR | os.O_CLOEXEC)
            try:
                return Area.attach(fd)
            finally:
                os.close(fd)
    raise AssertionError(f"process {pid} has no area")


def owners(pids: list[int], address: Address) -> list[int]:
    """How many connections that came in at `address` each process has accepted, or been handed."""
    inodes = _unix(address) if isinstance(address, str) else {*procfs.connections(address[1]).values()}
    return [
        sum(target.startswith("socket:[") and int(target[8:-1]) in inodes for target in procfs.fds(pid))
        for pid in pids
    ]


def _unix(path: str) -> set[int]:
    found = set()
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        # Num RefCount Protocol Flags Type St Inode Path; St 03 is connected.
        if len(fields) == 8 and fields[7] == path and fields[5] == "03":
            found.add(int(fields[6]))
    return found
