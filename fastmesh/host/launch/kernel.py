"""System calls that Python 3.11 has no function for. They raise OSError."""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SFD_CLOEXEC = os.O_CLOEXEC
_SFD_NONBLOCK = os.O_NONBLOCK
_SIGSET_BYTES = 128

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def die_with_parent(number: int, parent: int) -> None:
    """Have the kernel send us this signal when `parent`, our parent, dies; at once if it has died already."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0))
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def adopt_orphans() -> None:
    """Descendants whose parent ends become our children (prctl(2): PR_SET_CHILD_SUBREAPER)."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def signal_descriptor(numbers: Iterable[int]) -> int:
    """A descriptor to read these signals from while they are blocked (signalfd(2))."""
    mask = bytearray(_SIGSET_BYTES)
    for number in numbers:
        mask[(number - 1) // 8] |= 1 << (number - 1) % 8
    return _checked(_libc.signalfd(-1, bytes(mask), _SFD_CLOEXEC | _SFD_NONBLOCK))
