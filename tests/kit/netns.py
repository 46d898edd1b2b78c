"""Network namespaces: hosts of a test's own, with links between them and packet filter rules inside.

A namespace is entered by the thread that wants to be there (`inside`): the sockets that it makes, the threads
and processes that it starts, belong to it. Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


class Namespace:
    """A host: its own loopback, links, routes and rules."""

    def __init__(self, prefix: str = "fm-core") -> None:
        self.name = f"{prefix}-{os.getpid()}-{next(_numbers)}"
        _run("ip", "netns", "add", self.name)
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *args: str, input: str | None = None) -> str:
        """A command in there, to its end; what it printed."""
        return _run("ip", "netns", "exec", self.name, *args, input=input)

    def nft(self, rules: str) -> None:
        """Add rules."""
        self.run("nft", "-f", "-", input=rules)

    def address(self, device: str, *addresses: str) -> None:
        """Give a device these addresses (`10.77.0.2/24`), usable at once."""
        for one in addresses:
            more = ("nodad",) if ":" in one else ()
            self.run("ip", "address", "add", one, "dev", device, *more)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread, and all that it starts, is in there."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with Path(f"/run/netns/{self.name}").open() as there:
                _enter(there.fileno())
            yield
        finally:
            _enter(before)
            os.close(before)

    def remove(self) -> None:
        _run("ip", "netns", "delete", self.name)


def connect(one: Namespace, other: Namespace, device: str = "eth0") -> None:
    """A cable between two namespaces: a device of that name in each, up and without addresses."""
    _run(
        "ip",
        "-n",
        one.name,
        "link",
        "add",
        device,
        "type",
        "veth",
        "peer",
        "name",
        device,
        "netns",
        other.name,
    )
    for end in (one, other):
        end.run("ip", "link", "set", device, "up")


def plug_in(switch: Namespace, *hosts: Namespace) -> None:
    """Join hosts, each by its `eth0`, through a bridge: what passes between them passes through `switch`."""
    switch.run("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
    switch.run("ip", "link", "set", "br0", "addrgenmode", "none", "up")
    for index, host in enumerate(hosts):
        port = f"port{index}"
        switch.run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        switch.run("ip", "link", "set", port, "master", "br0", "addrgenmode", "none", "up")
        # No addresses that come by themselves, some time later.
        host.run("ip", "link", "set", "eth0", "addrgenmode", "none", "up")


@contextlib.contextmanager
def namespaces(count: int, prefix: str = "fm-core") -> Iterator[list[Namespace]]:
    """So many of them, removed at the end."""
    with contextlib.ExitStack() as stack:
        made: list[Namespace] = []
        for _ in range(count):
            made.append(Namespace(prefix))
            stack.callback(made[-1].remove)
        yield made


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _run(*args: str, input: str | None = None) -> str:
    done = subprocess.run(args, capture_output=True, text=True, input=input, timeout=30, check=False)
    assert done.returncode == 0, f"{' '.join(args)}: exit {done.returncode}\n{done.stderr}"
    return done.stdout
