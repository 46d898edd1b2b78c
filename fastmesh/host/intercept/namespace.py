"""Being in a network namespace for a while, as the only one of our kind who changes it.

A namespace belongs to a thread: what is done in another one runs in a thread of its own, and the programs
that it starts are there too. The lock (flock(2)) goes with the process that holds it, and programs that we
start inherit it: one that outlives us, because we were killed, still finishes alone. It is on a file that
only root can open, named after the namespace: the namespace's own file is anybody's to lock. That one serves
where there is no other to be had: in a user namespace of one's own, and where /run cannot be written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from fastmesh.host.intercept.errors import InterceptError
from fastmesh.host.namespaces import CLONE_NEWNET, enter

NAMED: Final = "/run/netns"
OWN: Final = "/proc/thread-self/ns/net"
LOCKS: Final = "/run/fastmesh"
# Seconds to wait for somebody else's `up` or `down`: each takes a fraction of one.
PATIENCE: Final = 15.0
_POLL: Final = 0.02

T = TypeVar("T")


class Place(msgspec.Struct, frozen=True):
    """Where we are: the namespace in words, and the descriptor that holds its lock."""

    words: str
    lock: int


def inside(netns: str | int | None, work: Callable[[Place], T]) -> T:
    """`work(place)`, done in that network namespace with its lock held. Raises what it raises, and
    InterceptError when there is no such namespace or it cannot be entered."""
    words, fd = _open(netns)
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            if netns is not None:
                _enter(fd, words)
            lock = _locked(words)
            try:
                outcome["result"] = work(Place(words, lock))
                _take_away(lock)
            finally:
                os.close(lock)
        except BaseException as error:
            outcome["error"] = error

    try:
        thread = threading.Thread(target=run, name="intercept")
        thread.start()
        thread.join()
    finally:
        os.close(fd)
    if "error" in outcome:
        raise outcome["error"]
    result: T = outcome["result"]
    return result


def _open(netns: str | int | None) -> tuple[str, int]:
    """The namespace in words, and a descriptor of it."""
    if netns is None:
        return "this network namespace", os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
    text = str(netns)
    if text.isdecimal():
        words, path = f"the network namespace of process {text}", f"/proc/{text}/ns/net"
        gone = f"there is no process {text}; give the namespace's name, or a process that is in it"
    elif "/" in text:
        words, path = f"network namespace {text}", text
        gone = f"there is no network namespace {text}"
    else:
        words, path = f"network namespace {text}", f"{NAMED}/{text}"
        gone = f"there is no network namespace {text}"
    try:
        return words, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InterceptError(
            f"{gone} (`ip netns list` shows those with a name); if it has vanished, its rules went with it "
            "and nothing is left to remove"
        ) from None
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise InterceptError(f"{words} cannot be entered: {why}; run this as root") from None


def _enter(fd: int, words: str) -> None:
    try:
        enter(fd, CLONE_NEWNET)
    except OSError as error:
        if error.errno == errno.EINVAL:
            # What a name in /run/netns is after its namespace was unmounted: an ordinary file.
            raise InterceptError(
                f"{words} has vanished: its file is there, but no namespace behind it; its rules went with "
                "it, `ip netns delete` removes the name"
            ) from None
        why = (error.strerror or str(error)).lower()
        raise InterceptError(f"{words} cannot be entered: {why}; that needs root (CAP_SYS_ADMIN)") from None


def _lock_file() -> int:
    """The file to lock for the network namespace that this thread is in."""
    if not _is_root():
        return os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
    here = os.stat(OWN)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(LOCKS, 0o700)
        directory = os.open(LOCKS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _require_ours(directory, LOCKS)
            name = f"netns-{here.st_dev}-{here.st_ino}.lock"
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=directory)
        finally:
            os.close(directory)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.ENOENT):
            return os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
        why = (error.strerror or str(error)).lower()
        raise InterceptError(
            f"{LOCKS}, where locks are kept, cannot be used: {why}; make it a directory of root's"
        ) from None
    try:
        _require_ours(fd, f"{LOCKS}/{name}")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_root() -> bool:
    """Root of the host, not of a user namespace."""
    if os.geteuid() != 0:
        return False
    with open("/proc/thread-self/uid_map", encoding="ascii") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def _require_ours(fd: int, path: str) -> None:
    """InterceptError if others could have put it there, or something into it."""
    found = os.fstat(fd)
    if found.st_uid != 0 or stat.S_IMODE(found.st_mode) & 0o022:
        raise InterceptError(
            f"{path}, where locks are kept, is not root's alone to write; look at who made it, then remove it"
        )


def _locked(words: str) -> int:
    fd = _lock_file()
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink > 0:
                return fd
            os.close(fd)  # who had it took the file away: others lock another one
            fd = _lock_file()
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(fd)
                raise InterceptError(
                    f"another `fastmesh intercept` has been at work in {words} for {PATIENCE:.0f} s; wait "
                    "for it to end, or end it, then run this again"
                ) from None
            time.sleep(_POLL)


def _take_away(fd: int) -> None:
    """The file of a lock that nobody holds but us: namespaces come and go, and nothing is to be left of them.
    Where the work has failed, a program of ours may outlive us, and holds it on."""
    with contextlib.suppress(OSError):
        path = os.readlink(f"/proc/self/fd/{fd}")
        if path.startswith(f"{LOCKS}/"):
            os.unlink(path)
