"""Cgroups of the unified hierarchy (version 2), as rules name them.

A rule holds the number of a cgroup and how deep it lies, so it must exist when the rule is made, and one that
is made anew is another one. nft translates paths to numbers by itself, and looks for them below
/sys/fs/cgroup only: where the hierarchy is mounted elsewhere (hybrid hosts, containers), `expose` shows it
there to our own thread.
"""

from __future__ import annotations

import os
import re
from typing import Final

from fastmesh.config.intercept_values import parse_cgroup
from fastmesh.host.intercept.errors import InterceptError
from fastmesh.host.namespaces import bind_mount, private_mounts

USUAL: Final = "/sys/fs/cgroup"
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


def mounts() -> list[str]:
    """Where the hierarchy is mounted: where nft looks first, then the whole of it, then parts (proc(5))."""
    found: list[tuple[bool, bool, str]] = []
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            if after.split(" ", 1)[0] == "cgroup2":
                root, point = before.split(" ")[3:5]
                point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), point)
                found.append((point != USUAL, root != "/", point))
    return [point for *_, point in sorted(found, key=lambda one: one[:2])]


def relative(path: str) -> str:
    """A cgroup as rules name it: below the root of the hierarchy. `path` may be its directory, too.
    InterceptError for what is none: the kernel would never find it so, or nft read more into it.
    """
    for point in sorted(mounts(), key=len, reverse=True):
        if path.startswith(f"{point.rstrip('/')}/"):
            path = path[len(point.rstrip("/")) :]
            break
    path = "/".join(part for part in path.split("/") if part)
    try:
        return parse_cgroup(path) if path else ""
    except ValueError as error:
        raise InterceptError(str(error)) from None


def number(path: str) -> int:
    """What identifies a cgroup (given as by `relative`). InterceptError if there is none of that path."""
    try:
        return os.stat(f"{mount_of(path)}/{path}").st_ino
    except OSError as error:
        raise InterceptError(
            f"there is no cgroup {path} below {mount_of(path)} ({(error.strerror or '').lower()}); "
            "make it first (mkdir, or start its service)"
        ) from None


def mount_of(path: str) -> str:
    """The mount in which a cgroup is; the first one for a cgroup that is in none. InterceptError without
    any.
    """
    points = mounts()
    if not points:
        raise InterceptError(
            "no cgroup hierarchy of version 2 is mounted here; mount it (mount -t cgroup2 none "
            "/sys/fs/cgroup), or select by user or by network namespace"
        )
    if not path:
        raise InterceptError("the root of the cgroup hierarchy is everybody; leave --cgroup out for that")
    return next((point for point in points if os.path.isdir(f"{point}/{path}")), points[0])


def level(path: str) -> int:
    """How deep a cgroup lies below the root."""
    return path.count("/") + 1


def expose(path: str) -> None:
    """Make nft, started by this thread, find the hierarchy; nobody else sees a difference."""
    point = mount_of(path)
    if point == USUAL:
        return
    try:
        private_mounts()
        bind_mount(point, USUAL)
    except OSError as error:
        raise InterceptError(
            f"the cgroup hierarchy is at {point}, where nft does not look, and cannot be shown to it at "
            f"{USUAL} ({(error.strerror or '').lower()}); run this as root with CAP_SYS_ADMIN, or mount it "
            "there"
        ) from None
