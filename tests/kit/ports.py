"""TCP ports that no other test process on this machine takes.

Port 0 hands out a number that anybody may take between the close and the next bind. Here every number
is claimed by locking the byte of that number in a file that all test processes share: atomic, gone with the
process that holds it, not inherited by its children, and one descriptor however many ports a long run
claims. The range lies below the kernel's ephemeral ports, so outgoing connections never take one either.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
import tempfile
from pathlib import Path

_RANGE = range(20000, 32000)
_claims: set[int] = set()
_start = os.getpid() * 397 % len(_RANGE)
_candidates = itertools.cycle([*_RANGE[_start:], *_RANGE[:_start]])


# One file for each user: where /tmp is protected, one may not open another's. It is never closed: closing
# any descriptor of a file gives up the process's locks on it (fcntl(2)).
_locks = os.open(
    Path(tempfile.gettempdir(), f"fastmesh-test-ports-{os.getuid()}"),
    os.O_RDWR | os.O_CREAT | os.O_CLOEXEC,
    0o600,
)


def free_port() -> int:
    """A port on which nothing listens; it stays claimed until `release_port` or the end of the process."""
    for _ in range(len(_RANGE)):
        port = next(_candidates)
        # Our own lock would be granted to us once more.
        if port in _claims:
            continue
        try:
            fcntl.lockf(_locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            continue
        _claims.add(port)
        if _bindable(port):
            return port
        release_port(port)
    raise RuntimeError("no free port in the test range")


def release_port(port: int) -> None:
    """Give a claimed port back."""
    if port in _claims:
        _claims.remove(port)
        fcntl.lockf(_locks, fcntl.LOCK_UN, 1, port)


def _bindable(port: int) -> bool:
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # SO_REUSEADDR: connections of an earlier test in TIME_WAIT do not matter, a listener does.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True
