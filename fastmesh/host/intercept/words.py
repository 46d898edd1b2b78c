"""What is in force, in words."""

from __future__ import annotations

from collections.abc import Iterator

from fastmesh.config.errors import plain
from fastmesh.config.intercept_values import format_mark
from fastmesh.config.values import alternatives
from fastmesh.host.intercept.apply import InForce, lost_cgroups
from fastmesh.host.intercept.plan import Incoming, Outgoing, Plan
from fastmesh.host.intercept.selection import FAMILY, of_whom, user_text

METHODS = {
    "redirect": "redirect: the destination is rewritten (NAT), the proxy asks the kernel what it was",
    "tproxy": "tproxy: nothing is rewritten; the application can be shown the addresses of its callers",
}


def told(found: InForce, where: str) -> list[str]:
    """One selection as lines for people; `where` is the network namespace in words."""
    plan = found.plan
    if plan is None:
        return [f"table {FAMILY} {found.table} in {where}: what `up` wrote into it cannot be read any more"]
    lines = [f"traffic {of_whom(plan.uid, plan.cgroup)} in {where} is taken over for {plan.for_whom()}"]
    lines += _row("method", [METHODS[plan.method]])
    lines += _row("outgoing", _outgoing(plan.outgoing))
    lines += _row("incoming", _incoming(plan.incoming))
    names = [
        f"DNS (port 53, UDP and TCP) goes to {to}" for to in (plan.names4, plan.names6) if to is not None
    ]
    lines += _row("names", names)
    lines += _row("never", [f"what leaves from {one}" for one in _exempt(plan)])
    if found.counted:
        some = [f"{number} {direction}" for direction, number in found.counted.items()]
        lines += _row("taken", [f"connections since `up`: {', '.join(some)}"])
    return lines


def warnings(found: InForce) -> list[str]:
    """What is not as `up` left it, each with its remedy."""
    again = "run `fastmesh intercept up` again"
    out = []
    if found.state == "changed":
        look = f"`nft list table {FAMILY} {found.table}` shows them"
        out.append(f"rules were changed by hand since `up` ({look}); {again} to restore them")
    if found.state == "unknown":
        out.append(
            f"`up` was interrupted, or nft is another one since: whether all is in force is unknown; {again}"
        )
    if not found.routed:
        out.append(f"policy routes that tproxy needs are missing or changed; {again} to restore them")
    for path in [] if found.plan is None else lost_cgroups(found.plan):
        out.append(
            f"cgroup {plain(path, 1024)} was removed since `up`, and rules do not know one that is made anew"
            f"; {again}"
        )
    return out


def _row(name: str, texts: list[str]) -> Iterator[str]:
    for index, text in enumerate(texts):
        yield f"  {name if not index else '':<9} {plain(text, 4096)}"


def _outgoing(outgoing: Outgoing | None) -> list[str]:
    if outgoing is None:
        return ["stays as it is"]
    to = f"to {_ports(outgoing.ports)}" if outgoing.ports else "to any port"
    out = [f"TCP {to} goes to {_listener('127.0.0.1', outgoing.port4, '[::1]', outgoing.port6)}"]
    but = ["to this host's loopback (127.0.0.0/8, ::1), or to one link (fe80::/10)"]
    if outgoing.exclude_ports:
        but.append(f"to {_ports(outgoing.exclude_ports)}")
    if outgoing.exclude_cidrs:
        but.append(f"to {_list(outgoing.exclude_cidrs)}")
    if outgoing.exclude_uids:
        but.append(f"of {_users(outgoing.exclude_uids)}")
    if outgoing.exclude_interfaces:
        but.append(f"through {_list(outgoing.exclude_interfaces)}")
    return [*out, *(f"not {one}" for one in but)]


def _incoming(incoming: Incoming | None) -> list[str]:
    if incoming is None:
        return ["stays as it is"]
    to = _listener("", incoming.port4, "", incoming.port6)
    out = [f"TCP from other hosts for {_ports(incoming.ports)} goes to {to}"]
    if incoming.exclude_cidrs:
        out.append(f"not from {_list(incoming.exclude_cidrs)}")
    if incoming.exclude_interfaces:
        out.append(f"not through {_list(incoming.exclude_interfaces)}")
    return out


def _exempt(plan: Plan) -> list[str]:
    out = [f"sockets with mark {format_mark(plan.mark)}"]
    if plan.exempt_uids:
        out.append(_users(plan.exempt_uids))
    return out + [f"cgroup {path}" for path in plan.exempt_cgroups]


def _listener(host4: str, port4: int, host6: str, port6: int) -> str:
    if not host4:
        return f"port {port4}" if port4 == port6 else f"port {port4} (IPv4) and {port6} (IPv6)"
    return f"{host4}:{port4} and {host6}:{port6}"


def _ports(ports: list[int]) -> str:
    return f"{'port' if len(ports) == 1 else 'ports'} {_list([str(port) for port in ports])}"


def _users(uids: list[int]) -> str:
    return f"{'user' if len(uids) == 1 else 'users'} {_list([user_text(uid) for uid in uids])}"


def _list(items: list[str]) -> str:
    return alternatives(tuple(items), "and")
