"""Making processes: fork, what may be open in them, how they ended; and a line for the operator."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys

from fastmesh.host.signals import WATCHED, ignore_in_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_PR_SET_PDEATHSIG = 1
# What a shell returns for a program that it cannot run.
_EXIT_NOT_RUN = 127
# For how long a line may wait for a reader of stderr that is busy.
_PATIENCE_MS = 100


def say(text: str, prefix: str = "fastmesh: ") -> None:
    """A line for the operator, on stderr. Nobody reading it is no reason to stop, or to wait for long."""
    line = f"{prefix}{text}\n".encode(errors="backslashreplace")
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    with contextlib.suppress(OSError):
        # A pipe that is ready takes so much without blocking.
        for start in range(0, len(line), select.PIPE_BUF):
            if not poll.poll(_PATIENCE_MS):
                return
            os.write(2, line[start : start + select.PIPE_BUF])


def fill_standard_streams() -> None:
    """Put /dev/null where stdin, stdout or stderr is closed.

    What is opened next would get its number: a line for the operator then went into a pipe or a client's
    connection.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def raise_descriptor_limit() -> None:
    """As many descriptors as this process may have: the soft limit is for programs that use select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def fork(child: Callable[[], int], keep: Iterable[int]) -> int:
    """Run `child` in a new process, which keeps open only its standard streams and the descriptors in `keep`.

    Its result is the exit code. Returns the pid. The child never returns into the caller's code, and runs no
    destructor of the caller's objects: their descriptors' numbers may belong to others there.
    """
    # Blocked meanwhile: a signal to both of us must not be enqueued twice, by the child in the parent's pipe.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid
    code = 1
    try:
        ignore_in_child()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _close_all_but({0, 1, 2, *keep})
        code = child()
    except BaseException:
        # sys.excepthook prints the traceback as an uncaught exception would.
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def spawn(argv: list[str], keep: list[int]) -> int:
    """Run a program that inherits the descriptors in `keep`, has no stdin, and dies with us; its pid."""
    parent = os.getpid()

    def execute() -> int:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        for fd in keep:
            os.set_inheritable(fd, True)
        _die_with(parent)
        try:
            os.execv(argv[0], argv)
        except OSError as error:
            say(f"cannot run {argv[0]}: {error.strerror}")
            return _EXIT_NOT_RUN

    return fork(execute, keep)


def _close_all_but(keep: set[int]) -> None:
    fds: Iterable[int]
    try:
        fds = map(int, os.listdir("/proc/self/fd"))
    except OSError:
        # None is left to read the directory with: then the limit is near, and each below it can be tried.
        fds = range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    for fd in fds:
        if fd not in keep:
            # One of them is listdir's own and has gone.
            with contextlib.suppress(OSError):
                os.close(fd)


def _die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when `parent` dies: a hung child would not see that its channel ends."""
    # Imported here: the memory is the child's, and goes with exec.
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def how_it_ended(status: int) -> str:
    """A wait status in words, to follow "it"."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
