"""Whose traffic is taken over, and the names that follow from it.

Each selection has a table of its own, and for `tproxy` a mark and a routing table of its own: several can be
in force in one network namespace, and each can be removed without knowing anything else.
"""

from __future__ import annotations

import hashlib
import pwd
from typing import Final

import msgspec

from fastmesh.config.errors import plain
from fastmesh.config.intercept_values import MAX_UID, ROUTE_MARKS
from fastmesh.host.intercept import cgroups
from fastmesh.host.intercept.errors import InterceptError

FAMILY: Final = "inet"
PREFIX: Final = "fastmesh"


class Selection(msgspec.Struct, frozen=True):
    """In which network namespace (name, process id or path; None: the one we are in), and of whom: of one
    user, of one cgroup and those below it, or of all."""

    netns: str | int | None = None
    uid: int | None = None
    cgroup: str | None = None


def table_of(selection: Selection) -> str:
    """The name of the table of a selection."""
    if selection.uid is not None and selection.cgroup is not None:
        raise InterceptError("a user and a cgroup are two selections; give one of them, and run it for each")
    if selection.uid is not None:
        return f"{PREFIX}_uid_{selection.uid}"
    if selection.cgroup is not None:
        return f"{PREFIX}_cgroup_{_digest(cgroups.relative(selection.cgroup))[:12]}"
    return PREFIX


def is_ours(table: str) -> bool:
    """Whether a table of the family has a name that `table_of` gives."""
    return table == PREFIX or table.startswith((f"{PREFIX}_uid_", f"{PREFIX}_cgroup_"))


def route_mark(table: str) -> int:
    """The mark of packets of this selection on their way to the proxy; also the number of its routing
    table.
    """
    return ROUTE_MARKS[int(_digest(table)[:6], 16)]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def of_whom(uid: int | None, cgroup: str | None) -> str:
    """The selection in words, behind "traffic"."""
    if uid is not None:
        return f"of user {user_text(uid)}"
    return f"of cgroup {plain(cgroup, 1024)}" if cgroup is not None else "of everybody"


def uid_of(user: str) -> int:
    """The number of a user. InterceptError if there is none of that name."""
    if user.isdecimal():
        # Python refuses to make a number of thousands of digits.
        if len(user) > 4000 or int(user) > MAX_UID:
            raise InterceptError(f"{plain(user, 64)} is no user; give a name, or a number up to {MAX_UID}")
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise InterceptError(
            f"there is no user {user} on this host; give one of `getent passwd`, or a number"
        ) from None


def user_text(uid: int) -> str:
    """A user by name and number, as far as it has a name."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)
