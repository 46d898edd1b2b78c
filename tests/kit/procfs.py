"""What /proc tells of a process: children, titles, memory, descriptors, who owns which connection."""

from __future__ import annotations

import os
import re
from pathlib import Path


def children(pid: int) -> list[int]:
    """Pids of the direct children of `pid`."""
    found: list[int] = []
    try:
        tasks = [*Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []  # it has gone while we looked
    for task in tasks:
        try:
            found += [int(text) for text in task.read_text().split()]
        except OSError:
            continue
    return sorted(found)


def title(pid: int) -> str:
    """The command line as ps shows it, or "" if the process has gone."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def alive(pid: int) -> bool:
    """True while the process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def stopped(pid: int) -> bool:
    """True while SIGSTOP holds the process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"


def pss(pid: int) -> int:
    """Proportional set size in bytes."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    assert match, text
    return int(match[1]) * 1024


def anonymous(pid: int) -> int:
    """Memory in bytes that belongs to no file: unlike `pss`, only the process itself changes it."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    match = re.search(r"^Anonymous:\s+(\d+) kB", text, re.MULTILINE)
    assert match, text
    return int(match[1]) * 1024


def cpu_seconds(pid: int) -> float:
    """User and system time that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fds(pid: int) -> list[str]:
    """Targets of all descriptors, e.g. `socket:[123]`."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(entry.readlink()))
        except OSError:
            continue
    return sorted(found)


def connections(port: int) -> dict[int, int]:
    """Established server-side TCP connections on local `port`: peer port -> socket inode (IPv4 and IPv6)."""
    found: dict[int, int] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            parts = line.split()
            if int(parts[1].rpartition(":")[2], 16) == port and parts[3] == "01":
                found[int(parts[2].rpartition(":")[2], 16)] = int(parts[9])
    return found


def owned_peers(pid: int, port: int) -> set[int]:
    """Client ports of those connections on local `port` that process `pid` has accepted."""
    inodes = {int(target[8:-1]) for target in fds(pid) if target.startswith("socket:[")}
    return {peer for peer, inode in connections(port).items() if inode in inodes}
