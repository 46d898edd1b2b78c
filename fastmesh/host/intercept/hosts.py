"""Where the probes of `check` go: to a second host within this machine, or without one to ourselves.

The second host is a network namespace that goes with our process, joined to the one in question by a pair of
virtual interfaces with addresses for documentation (RFC 5737, 3849). To make it needs CAP_SYS_ADMIN. Without
that, our own loopback interface has such an address for a moment, which takes CAP_NET_ADMIN alone: rules take
connections to addresses of one's own, too, and one that they do not take is refused at once.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Final, TypeVar

from fastmesh.host.intercept import programs
from fastmesh.host.intercept.errors import InterceptError
from fastmesh.host.intercept.namespace import Place
from fastmesh.host.intercept.plan import Plan
from fastmesh.host.namespaces import CLONE_NEWNET, unshare

# Seconds for a connection, or for the kernel to show it.
PATIENCE: Final = 3.0
# Seconds after which the kernel takes back what a check that was killed has left: longer than any runs.
_LIFE: Final = 120
_INTERFACE: Final = "fm-probe"
_NETWORKS: Final = {
    4: ("192.0.2.0/30", "198.51.100.0/30", "203.0.113.0/30"),
    6: ("2001:db8:fa5::/126", "3fff:fa5::/126"),
}

T = TypeVar("T")


def tcp(family: int) -> socket.socket:
    """A socket for one version of IP."""
    return socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_STREAM)


class Connection:
    """A connection that was asked for: `address` is its own end, `error` why there is none."""

    def __init__(self, address: tuple[str, int] | None, error: int, close: Callable[[], None]) -> None:
        self.address, self.error, self._close = address, error, close

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


class OtherHost:
    """The other end of the virtual cable. `addresses`: ours and its own, by version of IP."""

    def __init__(self, thread: ThreadPoolExecutor, addresses: dict[int, tuple[str, str]]) -> None:
        self._thread = thread
        self.addresses = addresses

    def dial(self, host: str, port: int) -> Connection:
        """A connection from there."""

        def connect() -> Connection:
            sock = tcp(6 if ":" in host else 4)
            sock.settimeout(PATIENCE)
            try:
                sock.connect((host, port))
            except OSError as error:
                sock.close()
                return Connection(None, error.errno or errno.ETIMEDOUT, lambda: None)
            address = sock.getsockname()
            return Connection((address[0], address[1]), 0, sock.close)

        return self._thread.submit(connect).result()


@contextmanager
def other_host(place: Place, plan: Plan) -> Iterator[OtherHost]:
    here = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"
    addresses = _addresses(plan)
    with ThreadPoolExecutor(1) as thread:

        def there(work: Callable[[], T]) -> T:
            return thread.submit(work).result()

        try:
            there(partial(unshare, CLONE_NEWNET))
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise InterceptError(
                f"a second host cannot be made ({why}); run this as root (CAP_SYS_ADMIN)"
            ) from None
        there(lambda: _ip(place, f"link add {_INTERFACE} type veth peer name {_INTERFACE} netns {here}"))
        try:
            for mine, end in ((True, 0), (False, 1)):
                for family, pair in addresses.items():
                    bits, nodad = (30, "") if family == 4 else (126, " nodad")
                    command = f"addr add {pair[end]}/{bits} dev {_INTERFACE}{nodad}"
                    _ip(place, command) if mine else there(partial(_ip, place, command))
            _ip(place, f"link set {_INTERFACE} up")
            there(lambda: _ip(place, f"link set {_INTERFACE} up"))
            yield OtherHost(thread, addresses)
        finally:
            # With the namespace of the thread it would go by itself, but some time later.
            there(lambda: _ip(place, f"link delete {_INTERFACE}"))


@contextmanager
def own_addresses(place: Place, plan: Plan) -> Iterator[dict[int, str]]:
    """Addresses of our own that are not loopback's, by version of IP, for as long as the block runs."""
    found = {family: pair[0] for family, pair in _addresses(plan).items()}
    with ExitStack() as undo:
        for family, address in found.items():
            what = f"{address}/{32 if family == 4 else 128} dev lo"
            life = f"valid_lft {_LIFE} preferred_lft {_LIFE}"
            _ip(place, f"addr add {what} {life}{'' if family == 4 else ' nodad noprefixroute'}")
            undo.callback(_removed, place, what)
        yield found


def _removed(place: Place, what: str) -> None:
    # Its life may be over.
    with suppress(InterceptError):
        _ip(place, f"addr del {what}")


def _addresses(plan: Plan) -> dict[int, tuple[str, str]]:
    """Our address and the other one, of networks in which nothing is excluded."""
    cidrs = [*(plan.outgoing.exclude_cidrs if plan.outgoing is not None else [])]
    cidrs += plan.incoming.exclude_cidrs if plan.incoming is not None else []
    excluded = [ipaddress.ip_network(cidr) for cidr in cidrs]
    out = {}
    for family in (4, 6) if _has_ipv6() else (4,):
        for text in _NETWORKS[family]:
            network = ipaddress.ip_network(text)
            if not any(one.version == network.version and one.overlaps(network) for one in excluded):
                out[family] = (str(network[1]), str(network[2]))
                break
    if not out:
        raise InterceptError("every address is excluded by exclude_cidrs; take less out")
    return out


def _has_ipv6() -> bool:
    try:
        with open("/proc/sys/net/ipv6/conf/lo/disable_ipv6", encoding="ascii") as file:
            return file.read().strip() == "0"
    except OSError:
        return False


def _ip(place: Place, command: str) -> None:
    done = programs.run(place, "ip", *command.split())
    if done.returncode:
        why = done.stderr.strip() or f"exit code {done.returncode}"
        hint = (
            "another check that runs at the same time has it"
            if "File exists" in why
            else ("the kernel needs virtual interfaces (modprobe veth), and this root")
        )
        raise InterceptError(f"`ip {command}` failed: {why}; {hint}")
