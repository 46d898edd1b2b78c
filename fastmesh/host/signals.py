"""Signals as bytes in a pipe: a handler only enqueues, the supervisor's loop decides.

Python's C-level handler writes the signal's number into a non-blocking pipe (`signal.set_wakeup_fd`), which
the loop polls beside its channels. The handlers in Python do nothing; they exist because a signal without
one would keep its default action.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)


def _enqueued(number: int, frame: FrameType | None) -> None:
    pass


class SignalQueue:
    """The process's one queue of signals. Use it in the main thread only."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # A full pipe drops numbers, but then the loop is about to read many of the same.
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in WATCHED:
            signal.signal(number, _enqueued)

    def fileno(self) -> int:
        return self._read

    def take(self) -> list[int]:
        """The signals that came since the last call, in their order."""
        try:
            return list(os.read(self._read, 4096))
        except BlockingIOError:
            return []


def ignore_in_child() -> None:
    """For a process just forked: the supervisor alone decides when it ends.

    Ctrl-C reaches the whole foreground group, and service managers signal every process of a service: neither
    may cut a child off before the supervisor has asked it to drain. What is ignored stays so across exec.
    """
    signal.set_wakeup_fd(-1)
    for number in WATCHED:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.SIG_IGN)
