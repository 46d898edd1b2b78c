"""The kinds of scalar that only interception has: users, interfaces, cgroups, packet marks."""

from __future__ import annotations

import re
from typing import Final

from fastmesh.config.errors import shown
from fastmesh.config.values import Kind
from fastmesh.host import cgroup_names

MAX_UID: Final = 0xFFFFFFFE  # the last one, (uid_t)-1, means nobody at all
# Marks that begin with this byte are given to packets on their way to the proxy (`host/intercept/routes.py`).
ROUTE_MARKS: Final = range(0xFA000000, 0xFB000000)

_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}\$?")
_UID: Final = re.compile(r"0|[1-9][0-9]{0,9}")
_USER_EXPECTED: Final = "the name of a user or a number such as 1000"


def parse_user(text: str) -> str:
    """A user, by name or by number. Whether there is one of that name is asked when traffic is taken over."""
    if _UID.fullmatch(text):
        if int(text) > MAX_UID:
            raise ValueError(f"{shown(text)} is no user, expected a number up to {MAX_UID}")
        return text
    if not _USER.fullmatch(text):
        raise ValueError(f"{shown(text)} is no user, expected {_USER_EXPECTED}")
    return text


_INTERFACE: Final = re.compile(r"[A-Za-z0-9_.@+=-]{1,15}|[A-Za-z0-9_.@+=-]{1,14}\*")
_INTERFACE_EXPECTED: Final = "the name of a network interface such as eth0, or a prefix such as veth*"


def parse_interface(text: str) -> str:
    """A network interface, or all whose names begin with what stands before `*`. It need not exist yet."""
    if not _INTERFACE.fullmatch(text) or text in (".", ".."):
        raise ValueError(f"{shown(text)} is no network interface, expected {_INTERFACE_EXPECTED}")
    return text


_CGROUP_EXPECTED: Final = "a cgroup (version 2) such as system.slice/backup.service"


def parse_cgroup(text: str) -> str:
    """A cgroup below the root of the hierarchy, or its directory. It must exist by then."""
    if not cgroup_names.is_cgroup(text):
        raise ValueError(f"{shown(text)} is no cgroup, expected {_CGROUP_EXPECTED}")
    return text


_MARK: Final = re.compile(r"0[xX][0-9A-Fa-f]{1,8}|[1-9][0-9]{0,9}")
_MARK_EXPECTED: Final = "a number from 1 to 0xffffffff such as 0x0fa5"


def parse_mark(text: str) -> int:
    """The mark of a packet (SO_MARK), in decimal or as 0x…; 0 is what packets without one have."""
    mark = int(text, 0) if _MARK.fullmatch(text) else 0
    if not 0 < mark <= 0xFFFFFFFF:
        raise ValueError(f"{shown(text)} is no mark, expected {_MARK_EXPECTED}")
    if mark in ROUTE_MARKS:
        raise ValueError(
            f"{shown(text)} is kept for packets on their way here, expected one below 0xfa000000"
        )
    return mark


def format_mark(mark: int) -> str:
    """The text that `parse_mark` reads as this mark."""
    return f"0x{mark:04x}"


USER: Final = Kind(
    "user", _USER_EXPECTED, parse_user, f"^({_UID.pattern}|{_USER.pattern})$", numbers=(0, MAX_UID)
)
INTERFACE: Final = Kind(
    "interface", _INTERFACE_EXPECTED, parse_interface, rf"^(?!\.{{1,2}}$)({_INTERFACE.pattern})$"
)
CGROUP: Final = Kind("cgroup", _CGROUP_EXPECTED, parse_cgroup, f"^{cgroup_names.PATH.pattern}$")
MARK: Final = Kind(
    "mark", _MARK_EXPECTED, parse_mark, f"^({_MARK.pattern})$", format_mark, numbers=(1, 0xFFFFFFFF)
)
