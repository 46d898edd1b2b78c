"""`check`: the proof that traffic passes through the proxy, by connections that must arrive there.

For the time of the check there is a second host (`hosts`). A process of the selected user or cgroup calls it,
and it calls the application's ports. Nothing leaves the machine, and a connection that is not taken over is
refused there at once. Where no second host can be made, that process calls an address of our own, and what
comes in is told from the rules and the listener alone: not proven, and said so.

Where the proxy listens, the connection must stand, or be reset behind its handshake by a proxy that finds
nobody at its destination, and the counter of our rule must have risen: what that rule has taken arrives at
the proxy's port or nowhere. Where nobody listens, a listener of our own takes its place, and sees where the
connection was going.
"""

from __future__ import annotations

import errno
import fnmatch
import ipaddress
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Final, TypeVar

import msgspec

from fastmesh.config.loader import Loaded
from fastmesh.host.intercept import apply, cgroups, nft, programs, ruleset, words
from fastmesh.host.intercept.errors import InterceptError
from fastmesh.host.intercept.hosts import PATIENCE, Connection, other_host, own_addresses, tcp
from fastmesh.host.intercept.namespace import Place, inside
from fastmesh.host.intercept.plan import Outgoing, Plan, make_plan, own_ports
from fastmesh.host.intercept.selection import Selection
from fastmesh.host.intercept.sockets import LISTENING, owner, sockets

_LOOPBACK: Final = {4: "127.0.0.1", 6: "::1"}
_EVERYWHERE: Final = {4: "0.0.0.0", 6: "::"}
_PORTS: Final = (80, 443, 8080, 9, 7, 4005, 50051)
_USERS: Final = (0, 65534, 65533, 4005, 50051)
_POLL: Final = 0.01
_IP_TRANSPARENT: Final = 19
_IPV6_TRANSPARENT: Final = 75
_SO_ORIGINAL_DST: Final = 80

T = TypeVar("T")


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. What is not fine says what to do about it; None: it cannot be told."""

    fine: bool | None
    text: str


def check(loaded: Loaded, selection: Selection) -> list[Finding]:
    """Everything that `fastmesh intercept check` looks at, in its order; it ends where going on makes no
    sense. Raises InterceptError when it cannot even begin."""
    return inside(selection.netns, lambda place: list(_findings(place, loaded, selection)))


def _findings(place: Place, loaded: Loaded, selection: Selection) -> Iterator[Finding]:
    programs.require_privilege()
    plan = make_plan(loaded, selection)
    tools = ["nft", *(["ip"] if plan.method == "tproxy" else [])]
    for tool in tools:
        if programs.find(tool) is None:
            package = programs.PACKAGES[tool]
            yield Finding(
                False, f"there is no program {tool}; install it (on Debian: apt-get install {package})"
            )
            return
    for path in plan.cgroup_numbers:
        cgroups.expose(path)
        break
    try:
        nft.load(place, ruleset.transaction(plan), dry=True)
    except InterceptError as error:
        yield Finding(False, str(error))
        return
    yield Finding(True, f"{', '.join(tools)} and the kernel have what {plan.method} needs")
    found = apply.read(place, plan.table)
    if found is None:
        yield Finding(False, f"no rules are in force in {place.words}; run `fastmesh intercept up`")
        return
    if found.plan is not None and found.plan.owner != plan.owner:
        yield Finding(False, f"the rules in force are for {found.plan.for_whom()}, not for {loaded.name}")
        return
    wrong = words.warnings(found)
    if found.plan is not None and found.plan != plan:
        wrong.append(
            f"{loaded.name} says something else than what is in force; run `fastmesh intercept up` again"
        )
    yield from (Finding(False, text) for text in wrong)
    if not wrong:
        yield Finding(True, "rules are in force, as `up` made them")
    # Not by what is said there: whoever is root in a container can have written it.
    yield from _proof(place, plan)


# -- connections ---------------------------------------------------------------------------------------


def _proof(place: Place, plan: Plan) -> Iterator[Finding]:
    served = _is_served(plan)
    with ExitStack() as stack:
        try:
            other = stack.enter_context(other_host(place, plan))
        except InterceptError as error:
            yield from _proof_alone(place, plan, served, str(error))
        else:
            for family, (ours, theirs) in other.addresses.items():
                if plan.outgoing is not None:
                    yield _outgoing(place, plan, family, theirs, served)
                if plan.incoming is not None:
                    target = (ours, plan.incoming.ports[0])
                    yield _probed(
                        place, _incoming(plan, family, target), partial(other.dial, *target), served
                    )
    if not served:
        yield Finding(
            False,
            "the sidecar does not run: a listener of this check took its place, and until `fastmesh serve` "
            "runs connections are refused",
        )


def _proof_alone(place: Place, plan: Plan, served: bool, why: str) -> Iterator[Finding]:
    """Without a second host."""
    with ExitStack() as stack:
        try:
            addresses = stack.enter_context(own_addresses(place, plan))
        except InterceptError as error:
            yield Finding(None, f"nothing is proven: {why}; and {error}")
            return
        for family, address in addresses.items():
            if plan.outgoing is not None and not _excludes_loopback(plan.outgoing):
                yield _outgoing(place, plan, family, address, served)
            elif plan.outgoing is not None:
                yield Finding(None, f"outgoing IPv{family} is not proven: {why}")
            if plan.incoming is not None:
                yield _not_called(place, _incoming(plan, family, (address, plan.incoming.ports[0])), why)


def _excludes_loopback(outgoing: Outgoing) -> bool:
    return any(fnmatch.fnmatchcase("lo", pattern) for pattern in outgoing.exclude_interfaces)


def _not_called(place: Place, asked: _Asked, why: str) -> Finding:
    """What can be told of incoming connections when nobody can make one."""
    what, wanted = f"incoming IPv{asked.family}", (LISTENING, asked.host, asked.port)
    if not any((one.state, one.host, one.port) == wanted for one in sockets()):
        return Finding(False, f"{what}: nobody listens at {asked.listener}, so connections are refused")
    return Finding(
        None,
        f"{what} is not proven: {why}. Connections would arrive at {asked.listener}{_whose(asked.port)}; "
        f"{_counted(place, asked)} were taken since `up`: call port {asked.target[1]} from elsewhere, and "
        "see whether `fastmesh intercept show` counts one more",
    )


def _outgoing(place: Place, plan: Plan, family: int, address: str, served: bool) -> Finding:
    assert plan.outgoing is not None
    port = plan.outgoing.port4 if family == 4 else plan.outgoing.port6
    target = (address, _free_port(plan))
    asked = _Asked(plan, family, "outgoing", target, _LOOPBACK[family], port)
    return _probed(place, asked, partial(_application, plan, *target), served)


def _incoming(plan: Plan, family: int, target: tuple[str, int]) -> _Asked:
    assert plan.incoming is not None
    port = plan.incoming.port4 if family == 4 else plan.incoming.port6
    return _Asked(plan, family, "incoming", target, _EVERYWHERE[family], port)


def _is_served(plan: Plan) -> bool:
    """Whether somebody listens where the sidecar should."""
    ports = own_ports(plan)
    return any(one.state == LISTENING and one.port in ports for one in sockets())


class _Asked(msgspec.Struct, frozen=True):
    """One probe: where the connection goes, and where it must arrive."""

    plan: Plan
    family: int
    direction: str
    target: tuple[str, int]
    host: str
    port: int

    @property
    def words(self) -> str:
        host = f"[{self.target[0]}]" if self.family == 6 else self.target[0]
        return f"{self.direction} IPv{self.family}: a connection to {host}:{self.target[1]}"

    @property
    def listener(self) -> str:
        return f"[{self.host}]:{self.port}" if self.family == 6 else f"{self.host}:{self.port}"


def _probed(place: Place, asked: _Asked, dial: Callable[[], Connection], served: bool) -> Finding:
    before = _counted(place, asked)
    own = _own_listener(asked)
    try:
        with dial() as connection:
            # Reset behind the handshake: a listener had it, and does not go where it was going.
            if connection.error not in (0, errno.ECONNRESET):
                return _not_there(place, asked, before, own is None, os.strerror(connection.error).lower())
            if own is not None:
                return _seen_by_ourselves(asked, own, connection, served)
            if _counted(place, asked) > before:
                return Finding(True, f"{asked.words} arrived at {asked.listener}{_whose(asked.port)}")
            return _not_there(place, asked, before, True, "it arrived somewhere else")
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        return Finding(None, f"{asked.words} cannot be made ({why}), so that is not proven; run this as root")
    finally:
        if own is not None:
            own.close()


def _seen_by_ourselves(asked: _Asked, own: socket.socket, connection: Connection, served: bool) -> Finding:
    """The sidecar is not there, at least not at this address."""
    own.settimeout(PATIENCE)
    try:
        arrived, peer = own.accept()
    except TimeoutError:
        return Finding(False, f"{asked.words} arrived somewhere else than at {asked.listener}; {_LOOK}")
    with arrived:
        going = _destination(arrived, asked.plan.method)
    if going != asked.target or tuple(peer[:2]) != connection.address:
        return Finding(False, f"{asked.words} arrived at {asked.listener} as one to {going}; {_LOOK}")
    if served:
        return Finding(
            False,
            f"{asked.words} arrives at {asked.listener}, where the sidecar does not listen, and would be "
            "refused; "
            f'give it a transparent listener there (bind: "{asked.listener}")',
        )
    return Finding(True, f"{asked.words} arrived at {asked.listener}, with its destination")


_LOOK: Final = "look for rules of others that come first (`nft list ruleset`, `iptables-save`)"


def _not_there(place: Place, asked: _Asked, before: int, listening: bool, why: str) -> Finding:
    if _counted(place, asked) == before:
        return Finding(False, f"{asked.words} was not taken over ({why}); {_LOOK}")
    if asked.plan.method == "tproxy" and listening:
        hint = "its listener must be transparent (IP_TRANSPARENT, which needs CAP_NET_ADMIN or CAP_NET_RAW)"
    else:
        hint = f"look for a firewall that keeps it from port {asked.port} (`nft list ruleset`)"
    return Finding(
        False, f"{asked.words} was taken over and did not arrive at {asked.listener} ({why}); {hint}"
    )


def _own_listener(asked: _Asked) -> socket.socket | None:
    """A listener where the proxy's belongs; None where somebody listens."""
    sock = tcp(asked.family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if asked.family == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if asked.plan.method == "tproxy":
            level, option = (
                (socket.SOL_IP, _IP_TRANSPARENT)
                if asked.family == 4
                else (socket.IPPROTO_IPV6, _IPV6_TRANSPARENT)
            )
            sock.setsockopt(level, option, 1)
        sock.bind((asked.host, asked.port))
        sock.listen()
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise InterceptError(
            f"cannot listen on {asked.listener}: {(error.strerror or '').lower()}; run this as root"
        ) from None
    return sock


def _whose(port: int) -> str:
    """Who listens there, for the end of a sentence."""
    inodes = {one.inode for one in sockets() if one.state == LISTENING and one.port == port}
    found = owner(inodes)
    return "" if found is None else f", the listener of process {found[0]} ({found[1]})"


def _destination(sock: socket.socket, method: str) -> tuple[str, int]:
    """Where an accepted connection was going."""
    if method == "tproxy":
        host, port = sock.getsockname()[:2]
        return host, port
    if sock.family == socket.AF_INET:
        data = sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
        return str(ipaddress.ip_address(data[4:8])), int(struct.unpack("!H", data[2:4])[0])
    data = sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28)
    return str(ipaddress.ip_address(data[8:24])), int(struct.unpack("!H", data[2:4])[0])


def _counted(place: Place, asked: _Asked) -> int:
    return ruleset.counted(nft.chain(place, asked.plan.table, asked.direction) or []).get(asked.direction, 0)


def _application(plan: Plan, host: str, port: int) -> Connection:
    """A connection as the selected application makes them."""
    if plan.cgroup is None:
        return _dialled(plan, host, port, "", lambda: None)
    directory = f"{cgroups.mount_of(plan.cgroup)}/{plan.cgroup}"
    try:
        return _dialled(plan, host, port, directory, lambda: None)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
    # One that hands controllers down to others takes no processes itself (cgroups(7)).
    below = f"{directory}/fastmesh-probe-{os.getpid()}"
    os.mkdir(below)
    try:
        return _dialled(plan, host, port, below, partial(os.rmdir, below))
    except BaseException:
        os.rmdir(below)
        raise


def _dialled(plan: Plan, host: str, port: int, cgroup: str, clean: Callable[[], None]) -> Connection:
    """The connection of a process in the directory of a cgroup. OSError if it cannot get there."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-I", "-S", os.path.join(os.path.dirname(__file__), "dial.py")),
            *(host, str(port), str(_user(plan)), cgroup and f"{cgroup}/cgroup.procs"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="ascii",
    )
    assert process.stdout is not None
    first, _, second = process.stdout.readline().strip().partition(" ")

    def close() -> None:
        process.communicate()
        clean()

    if first in ("", "unable"):
        process.communicate()
        number = int(second or errno.EIO)
        raise OSError(number, os.strerror(number))
    if first == "error":
        return Connection(None, int(second), close)
    return Connection((first, int(second)), 0, close)


def _user(plan: Plan) -> int:
    """Somebody whose connections are taken."""
    if plan.uid is not None:
        return plan.uid
    never = {*plan.exempt_uids, *(plan.outgoing.exclude_uids if plan.outgoing is not None else [])}
    return next((uid for uid in _USERS if uid not in never), _USERS[0])


def _free_port(plan: Plan) -> int:
    """A port to which connections are taken."""
    assert plan.outgoing is not None
    never = set(plan.outgoing.exclude_ports)
    return next((port for port in (*plan.outgoing.ports, *_PORTS) if port not in never), _PORTS[0])
