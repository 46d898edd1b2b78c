"""How many CPUs this process may use: its affinity, and the quota of its cgroup (version 1 or 2)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cpus(proc: Path = Path("/proc/self")) -> int:
    """CPUs this process may use, at least 1. A fraction counts as one more, so that a quota is used whole."""
    count = len(os.sched_getaffinity(0))
    for quota in _quotas(proc):
        count = min(count, math.ceil(quota))
    return max(1, count)


def _quotas(proc: Path) -> Iterator[float]:
    """CPU quotas of this process's cgroups and of all their ancestors that are visible from here."""
    try:
        mounts = (proc / "mountinfo").read_text(errors="replace").splitlines()
        groups = (proc / "cgroup").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in mounts:
        # proc(5): id parent major:minor root mountpoint options [tags…] - type source superoptions
        left, separator, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if not separator or len(fields) < 5 or len(kind) < 3:
            continue
        root, mount = _unescape(fields[3]), Path(_unescape(fields[4]))
        if kind[0] == "cgroup2":
            path, read = _group(groups, ""), _quota_v2
        elif kind[0] == "cgroup" and "cpu" in kind[2].split(","):
            path, read = _group(groups, "cpu"), _quota_v1
        else:
            continue
        # Inside a container the mount shows a subtree, and the path may be the host's: then its top is ours.
        inside = path.removeprefix(root.rstrip("/")) if path is not None and path.startswith(root) else ""
        parts = [part for part in inside.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            quota = read(mount.joinpath(*parts[:depth]))
            if quota is not None:
                yield quota


def _group(groups: list[str], controller: str) -> str | None:
    """This process's cgroup for a controller of version 1, or for "" of version 2."""
    for line in groups:
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers == controller or (controller and controller in controllers.split(",")):
            return path
    return None


def _quota_v2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max 100000": no quota
        return None


def _quota_v1(group: Path) -> float | None:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        return quota / int((group / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _unescape(text: str) -> str:
    """mountinfo writes space, tab, newline and backslash as octal escapes."""
    for code, char in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        text = text.replace(code, char)
    return text
