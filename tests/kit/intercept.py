"""Hosts for tests of interception: two network namespaces and a cable between them.

A socket stays in the namespace of the thread that made it, so the sockets of every host live in the test
process itself: no program has to be started and found ready. The proxy is a plain listening socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fastmesh.config import load
from fastmesh.host.intercept import Selection, down, up
from kit.limits import DEADLINE
from kit.proxy import cli

T = TypeVar("T")
libc = ctypes.CDLL(None, use_errno=True)
_counter = itertools.count()
_CLONE_NEWNET = 0x40000000
SO_ORIGINAL_DST = 80
IP_TRANSPARENT, IPV6_TRANSPARENT, IPV6_V6ONLY = 19, 75, 26
OUT, IN = 15001, 15006
APP, PEER = ("10.77.0.1", "fd77::1"), ("10.77.0.2", "fd77::2")
LOOPBACK = ("127.0.0.1", "::1")
both_methods = pytest.mark.parametrize("method", ["redirect", "tproxy"])
both_families = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])


def sh(command: str, *more: str) -> str:
    """Run a command of `ip` or `nft`; `more` are arguments with spaces in them."""
    done = subprocess.run(
        [*command.split(), *more], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def _missing() -> str:
    """Why this machine has no hosts for tests; empty: it has."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("nft") is None or shutil.which("ip") is None:
        return "nft and ip are not installed (scripts/setup does that)"
    command = "unshare -n nft add table inet x"
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    return f"{command}: {done.stderr.strip()}" if done.returncode else ""


MISSING = _missing()


class Host:
    """One namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        sh(f"ip netns add {name}")
        self.sh("ip link set lo up")

    def sh(self, command: str) -> str:
        return sh(f"ip netns exec {self.name} {command}")

    def delete(self) -> None:
        sh(f"ip netns delete {self.name}")

    def inside(self, work: Callable[[], T], uid: int | None = None) -> T:
        """`work()` in this namespace, as if a user of that number did it."""
        outcome: list[Any] = []

        def run() -> None:
            try:
                with open(f"/run/netns/{self.name}") as file:  # noqa: PTH123
                    assert libc.setns(file.fileno(), _CLONE_NEWNET) == 0
                if uid is not None:
                    libc.setfsuid(uid)
                outcome.append((work(), None))
            except BaseException as error:
                outcome.append((None, error))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        result, error = outcome[0]
        if error is not None:
            raise error
        return result

    def listen(self, address: str, port: int, *, transparent: bool = False) -> socket.socket:
        def make() -> socket.socket:
            sock = _socket(address)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if transparent:
                be_transparent(sock)
            sock.bind((address, port))
            sock.listen(64)
            return sock

        return self.inside(make)

    def dial(
        self,
        address: str,
        port: int,
        *,
        uid: int | None = None,
        mark: int = 0,
        source: str | None = None,
    ) -> socket.socket:
        """A connection of an application. `source`: with somebody else's address."""

        def make() -> socket.socket:
            sock = _socket(address)
            try:
                if mark:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                if source is not None:
                    be_transparent(sock)
                    sock.bind((source, 0))
                host, _, link = address.partition("%")
                sock.connect((host, port, 0, socket.if_nametoindex(link)) if link else (host, port))
            except BaseException:
                sock.close()
                raise
            return sock

        return self.inside(make, uid)

    def state(self) -> str:
        """All rules, policy rules and routes; not what rules have counted."""
        commands = (
            "nft -j list ruleset",
            *(f"ip {family} {what}" for family in ("-4", "-6") for what in ("rule", "route show table all")),
        )
        text = sh(f"ip netns exec {self.name} sh -c", "; ".join(commands))
        return re.sub(r'("packets"|"bytes"): \d+', r"\1: 0", text)


Hosts = tuple[Host, Host]  # the application's and the other one


def be_transparent(sock: socket.socket) -> None:
    """IP_TRANSPARENT (ip(7)): for connections and addresses that are not this host's."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)


def _socket(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(DEADLINE)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_V6ONLY, 1)
    return sock


def destination(sock: socket.socket, method: str) -> tuple[str, int]:
    """Where an accepted connection was going."""
    if method == "tproxy":
        host, port = sock.getsockname()[:2]
        return host, port
    if sock.family == socket.AF_INET:
        data = sock.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
        return socket.inet_ntop(socket.AF_INET, data[4:8]), struct.unpack("!H", data[2:4])[0]
    data = sock.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
    return socket.inet_ntop(socket.AF_INET6, data[8:24]), struct.unpack("!H", data[2:4])[0]


def accepted(listener: socket.socket) -> tuple[socket.socket, tuple[str, int]]:
    """The next connection, and whose it is."""
    listener.settimeout(DEADLINE)
    sock, peer = listener.accept()
    sock.settimeout(DEADLINE)
    return sock, (peer[0], peer[1])


def talk(one: socket.socket, other: socket.socket) -> None:
    """Bytes pass both ways, and the end of one way."""
    for sender, receiver in ((one, other), (other, one)):
        sender.sendall(b"hello")
        assert receiver.recv(5) == b"hello"
    one.shutdown(socket.SHUT_WR)
    assert other.recv(1) == b""
    other.sendall(b"still here")
    assert one.recv(10) == b"still here"


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """The application's host and another one, each with an IPv4 and an IPv6 address."""
    stem = f"fm-intercept-{os.getpid()}-{next(_counter)}"
    app = Host(f"{stem}-a")
    try:
        peer = Host(f"{stem}-p")
        try:
            sh(f"ip link add eth0 netns {app.name} type veth peer name eth0 netns {peer.name}")
            for host, (address4, address6) in ((app, APP), (peer, PEER)):
                host.sh(f"ip addr add {address4}/24 dev eth0")
                host.sh(f"ip addr add {address6}/64 dev eth0 nodad")
                # No addresses that come by themselves, some time later.
                host.sh("ip link set eth0 addrgenmode none up")
            # What is elsewhere is behind the peer.
            app.sh(f"ip route add default via {PEER[0]}")
            app.sh(f"ip -6 route add default via {PEER[1]}")
            yield app, peer
        finally:
            peer.delete()
    finally:
        app.delete()


def configuration(
    directory: Path, intercept: str, *, name: str = "a", out: int = OUT, inside: int = IN
) -> Path:
    """A file with listeners for what `intercept`, its section as YAML in one line, speaks of."""
    path = directory / f"{name}.yaml"
    rest = "role: inbound, tls: none, to: app, transparent: true"
    inbound = f'  - {{name: in, bind: "0.0.0.0:{inside}", {rest}}}\n' if "inbound:" in intercept else ""
    path.write_text(
        f"""admin: off
workload: svc-{name}
listeners:
  - {{name: out, role: outbound, bind: "127.0.0.1:{out}", transparent: true}}
{inbound}services:
  app: {{endpoints: ["127.0.0.1:8080"]}}
intercept: {intercept}
"""
    )
    return path


def take_over(config: Path, host: Host, *, uid: int | None = None, cgroup: str | None = None) -> list[str]:
    """`fastmesh intercept up` in a host."""
    return up(load(config), Selection(netns=host.name, uid=uid, cgroup=cgroup))


def beside(
    directory: Path,
    host: Host,
    name: str,
    port: int,
    *,
    method: str = "redirect",
    uid: int | None = None,
    cgroup: str | None = None,
) -> socket.socket:
    """One of several sidecars of a host: its rules in force for a selection, and its listener."""
    config = configuration(
        directory, f"{{method: {method}, outbound: {{}}}}", name=name, out=port, inside=port + 1
    )
    listener = host.listen(LOOPBACK[0], port, transparent=method == "tproxy")
    take_over(config, host, uid=uid, cgroup=cgroup)
    return listener


def leave_alone(host: Host, *, uid: int | None = None, cgroup: str | None = None) -> bool:
    """`fastmesh intercept down` in a host."""
    return down(None, Selection(netns=host.name, uid=uid, cgroup=cgroup))


def intercept(*arguments: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `fastmesh intercept`."""
    done = cli("intercept", *map(str, arguments), check=check, **options)
    assert "Traceback" not in done.stderr
    return done
