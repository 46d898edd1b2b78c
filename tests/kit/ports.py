"""TCP ports that no other test process on this machine takes.

Port 0 hands out a number that anybody may take between the close and the next bind. Here every number
is claimed by binding an abstract Unix socket of that name: atomic, visible to all test processes, and
gone with the process that holds it. The range lies below the kernel's ephemeral ports, so outgoing
connections never take one either.
"""

from __future__ import annotations

import itertools
import os
import socket

_RANGE = range(20000, 32000)
_claims: dict[int, socket.socket] = {}
_start = os.getpid() * 397 % len(_RANGE)
_candidates = itertools.cycle([*_RANGE[_start:], *_RANGE[:_start]])


def free_port() -> int:
    """A port on which nothing listens; it stays claimed until `release_port` or the end of the process."""
    for _ in range(len(_RANGE)):
        port = next(_candidates)
        if port in _claims:
            continue
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0fastmesh-test-port-{port}")
        except OSError:
            claim.close()
            continue
        if _bindable(port):
            _claims[port] = claim
            return port
        claim.close()
    raise RuntimeError("no free port in the test range")


def release_port(port: int) -> None:
    """Give a claimed port back."""
    claim = _claims.pop(port, None)
    if claim is not None:
        claim.close()


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
