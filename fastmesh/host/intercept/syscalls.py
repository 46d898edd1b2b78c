"""What Python's standard library has no function for: namespaces and mounts of one thread."""

from __future__ import annotations

import ctypes
import os
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWNET: Final = 0x40000000
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_SLAVE: Final = 0x80000

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def enter_network(fd: int) -> None:
    """Move this thread into the network namespace that `fd` refers to (setns(2))."""
    _checked(_libc.setns(fd, CLONE_NEWNET), "setns")


def new_network() -> None:
    """Move this thread into a network namespace of its own, which ends with it (unshare(2))."""
    _checked(_libc.unshare(CLONE_NEWNET), "unshare")


def private_mounts() -> None:
    """Give this thread mounts of its own: what it mounts, nobody else sees."""
    _checked(_libc.unshare(CLONE_NEWNS), "unshare")
    _checked(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None), "/")


def bind_mount(source: str, target: str) -> None:
    """Show what is at `source` at `target`, too (mount(2))."""
    flags = ctypes.c_ulong(_MS_BIND)
    _checked(_libc.mount(os.fsencode(source), os.fsencode(target), None, flags, None), target)
