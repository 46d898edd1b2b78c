"""Namespaces and mounts of one thread, which Python 3.11 has no functions for. All raise OSError."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SLAVE = 0x80000

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """Be in new namespaces of these kinds, which end with whoever is in them (unshare(2))."""
    _checked(_libc.unshare(flags), "unshare")


def enter(namespace: int, kind: int) -> None:
    """Join the namespace that a descriptor stands for (setns(2))."""
    _checked(_libc.setns(namespace, kind), "setns")


def private_mounts() -> None:
    """Have mounts of one's own: what is mounted from now on, nobody else sees."""
    unshare(CLONE_NEWNS)
    _checked(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None), "/")


def bind_mount(source: str, target: str) -> None:
    """Show what is at `source` at `target`, too (mount(2))."""
    flags = ctypes.c_ulong(_MS_BIND)
    _checked(_libc.mount(os.fsencode(source), os.fsencode(target), None, flags, None), target)
