"""A network of the bench's own, in which rules of the packet filter disturb nobody.

It is a network namespace without a name: processes and a descriptor of the bench hold it. When they have
ended, however they did, it is gone, and every rule, address and tracked connection with it.

Loopback is all it has, with an address of its own (SERVICE) beside 127.0.0.1: connections to 127.0.0.0/8 are
never taken over.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Final

from bench.proxies import SERVICE, Unavailable
from fastmesh.host.namespaces import CLONE_NEWNET, enter, unshare

_OWN: Final = "/proc/thread-self/ns/net"
_NEEDED: Final = {"ip": "iproute2", "nft": "nftables"}


class Forbidden(Unavailable):
    """This user or this kernel does not allow it: nothing that could be installed helps."""


class Network:
    """A network namespace. Threads, processes and sockets are in the one where they were made."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @property
    def path(self) -> str:
        """Where other programs find it, as long as the bench lives."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is in there, and what it starts stays there."""
        before = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter(self._descriptor, CLONE_NEWNET)
            yield
        finally:
            enter(before, CLONE_NEWNET)
            os.close(before)


@contextlib.contextmanager
def own_network() -> Iterator[Network]:
    """A new one, ready for use. Raises Unavailable."""
    for program, package in _NEEDED.items():
        if not shutil.which(program):
            raise Unavailable(f"{program} is not installed (Debian: {package})")
    network = Network(_made())
    try:
        with network.inside():
            _ip("link", "set", "lo", "up")
            _ip("address", "add", f"{SERVICE}/32", "dev", "lo")
        yield network
    finally:
        os.close(network._descriptor)


def require() -> None:
    """Raises Unavailable if this machine has no such networks for us."""
    with own_network():
        pass


def _made() -> int:
    """The descriptor of a new namespace."""
    before = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(CLONE_NEWNET)
        try:
            return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            enter(before, CLONE_NEWNET)
    except OSError as error:
        raise Forbidden(
            f"a network namespace cannot be made ({(error.strerror or str(error)).lower()}); it takes root "
            "(CAP_SYS_ADMIN): run the bench as root, or leave out the topologies transparent and "
            "transparent-tcp"
        ) from None
    finally:
        os.close(before)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Forbidden(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
