"""Making processes, and finding them again: the families of the command and of the sidecar."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# In the environment of everything that belongs to a run: the pid of `fastmesh run` and a random number.
MARK = "FASTMESH_RUN"
_POLL_S = 0.01


def fork(child: Callable[[], int]) -> int:
    """Run `child` in a new process, whose exit code is its result; the pid. It comes with our signal mask."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = child()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def code_of(status: int) -> int:
    """A wait status as shells tell it: the exit code, or 128 and the number of the signal."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def descendants(pid: int) -> Iterator[int]:
    """All below this process, parents first."""
    below = _children(pid)
    while below:
        child = below.pop()
        yield child
        below += _children(child)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with (
                contextlib.suppress(OSError),
                open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file,
            ):
                found += map(int, file.read().split())
    return found


def session_of(pid: int) -> int:
    """Its session; 0 if it has gone."""
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def running(pid: int) -> bool:
    """Whether it runs: one that has ended and waits to be reaped does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="latin-1") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def marked(mark: str) -> list[int]:
    """The processes that run and were started with this mark, or one below it, in their environment."""
    wanted = f"{MARK}={mark}".encode()
    below = wanted + b":"
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                if any(one == wanted or one.startswith(below) for one in file.read().split(b"\0")):
                    found.append(int(name))
    return [pid for pid in found if running(pid)]


def send(pid: int, number: int) -> None:
    """A signal, if there is still somebody to get it, and it is ours to send."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def kill_until_gone(find: Callable[[], list[int]], seconds: float) -> list[int]:
    """SIGKILL to all that `find` returns until it returns none; who is left after that time."""
    end = time.monotonic() + seconds
    while (found := find()) and time.monotonic() < end:
        for pid in found:
            send(pid, signal.SIGKILL)
        time.sleep(_POLL_S)
    return found


def wait_until_gone(find: Callable[[], list[int]], seconds: float) -> list[int]:
    """Wait until `find` returns none; who is left after that time."""
    end = time.monotonic() + seconds
    while (found := find()) and time.monotonic() < end:
        time.sleep(_POLL_S)
    return found
