"""Signals as things to read: who sent them decides what becomes of them, which a handler would not know."""

from __future__ import annotations

import os
import signal
import struct

from fastmesh.host.launch.kernel import signal_descriptor

# What the command is told, too. SIGKILL and SIGSTOP cannot be; others are about the process that gets them.
PASSED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGWINCH,
    signal.SIGTSTP,
    signal.SIGCONT,
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)
# A terminal stops its foreground group with these, and its shell takes notice.
STOPS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

_READ = (*PASSED, signal.SIGCHLD)
# signalfd(2): ssi_signo, ssi_errno, ssi_code, ssi_pid
_INFO = struct.Struct("=IiiI112x")


class Signal:
    """`sent`: by a process, with kill(2) and its like; else by the kernel: by the terminal, to all."""

    def __init__(self, number: int, code: int, pid: int) -> None:
        self.number = number
        self.sent = code <= 0
        self.pid = pid


class Inbox:
    """This process's signals, blocked and read. `before` was blocked already: so it is for the command."""

    def __init__(self) -> None:
        self.before: set[int] = set(signal.pthread_sigmask(signal.SIG_BLOCK, _READ))
        self._fd = signal_descriptor(_READ)

    def fileno(self) -> int:
        return self._fd

    def take(self) -> list[Signal]:
        """Those that have come."""
        try:
            data = os.read(self._fd, 64 * _INFO.size)
        except BlockingIOError:
            return []
        return [Signal(number, code, pid) for number, _, code, pid in _INFO.iter_unpack(data)]


def plain(before: set[int]) -> None:
    """In a child, right before exec: signals as they were when we were started."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        # Python ignores these for itself.
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop_ourselves() -> None:
    """As the terminal has stopped the command: the shell that started us looks at us.

    A group that no shell looks after is not stopped (POSIX: orphaned process group); then this does nothing.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTSTP])
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTSTP])
