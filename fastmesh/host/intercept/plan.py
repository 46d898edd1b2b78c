"""What is to be in force, from a configuration and a selection; nothing is done yet.

A plan is plain data. It is written into the table that it becomes, so that what is in force can be told,
compared and removed without the file that it came from.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Literal

import msgspec

from fastmesh.config.errors import plain
from fastmesh.config.intercept_checks import taking
from fastmesh.config.loader import Loaded
from fastmesh.config.schema import Listener
from fastmesh.config.schema_dns import Dns
from fastmesh.config.schema_intercept import InterceptInbound, InterceptOutbound
from fastmesh.host.intercept import cgroups
from fastmesh.host.intercept.errors import InterceptError
from fastmesh.host.intercept.selection import Selection, of_whom, table_of, uid_of, user_text


class Outgoing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is taken of outgoing connections, and the listener's port for IPv4 and IPv6."""

    port4: int
    port6: int
    ports: list[int] = []
    exclude_ports: list[int] = []
    exclude_cidrs: list[str] = []
    exclude_uids: list[int] = []
    exclude_interfaces: list[str] = []


class Incoming(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is taken of incoming connections, and the listener's port for IPv4 and IPv6."""

    port4: int
    port6: int
    ports: list[int]
    exclude_cidrs: list[str] = []
    exclude_interfaces: list[str] = []


class Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that is to be in force for one selection. `owner` is the configuration file that it is for."""

    table: str
    owner: str
    workload: str | None = None
    uid: int | None = None
    cgroup: str | None = None
    # Numbers of cgroups by their path: one that was removed and made anew has another.
    cgroup_numbers: dict[str, int] = {}
    method: Literal["redirect", "tproxy"]
    mark: int
    exempt_uids: list[int] = []
    exempt_cgroups: list[str] = []
    outgoing: Outgoing | None = None
    incoming: Incoming | None = None
    # Where questions for names go (`127.0.0.1:15053`), by version of IP; None: where they were going.
    names4: str | None = None
    names6: str | None = None

    def for_whom(self) -> str:
        """The sidecar in words."""
        owner = plain(self.owner, 1024)
        return f"{plain(self.workload, 1024)} ({owner})" if self.workload is not None else owner


def make_plan(loaded: Loaded, selection: Selection) -> Plan:
    """The plan of a configuration for a selection. Raises InterceptError for users and cgroups that are not
    there, and for what would take nothing."""
    intercept = loaded.config.intercept
    if intercept is None:
        raise InterceptError(
            f"{loaded.name} has no `intercept`, so it does not say what to take over; add it "
            "(docs/transparent.md)"
        )
    cgroup = None if selection.cgroup is None else cgroups.relative(selection.cgroup)
    exempt_uids = _uids(loaded, "exempt_uids", intercept.exempt_uids)
    exempt_cgroups = sorted({cgroups.relative(path) for path in intercept.exempt_cgroups})
    if selection.uid in exempt_uids:
        raise InterceptError(
            f"user {user_text(selection.uid or 0)} is one of exempt_uids in {loaded.name}: nothing would be "
            "taken; select another user, or take it out there"
        )
    if cgroup is not None and any(f"{cgroup}/".startswith(f"{one}/") for one in exempt_cgroups):
        raise InterceptError(
            f"cgroup {cgroup} is one of exempt_cgroups in {loaded.name}: nothing would be taken; select "
            "another one, or take it out there"
        )
    return Plan(
        table=table_of(selection),
        owner=str(loaded.path),
        workload=loaded.config.workload,
        uid=selection.uid,
        cgroup=cgroup,
        cgroup_numbers={
            path: cgroups.number(path) for path in ([] if cgroup is None else [cgroup]) + exempt_cgroups
        },
        method=intercept.method,
        mark=intercept.mark,
        exempt_uids=exempt_uids,
        exempt_cgroups=exempt_cgroups,
        outgoing=_outgoing(loaded, intercept.outbound),
        incoming=_incoming(intercept.inbound, loaded.config.listeners),
        **({} if intercept.outbound is None else _names(loaded.config.dns)),
    )


def _outgoing(loaded: Loaded, given: InterceptOutbound | None) -> Outgoing | None:
    if given is None:
        return None
    port4, port6 = _listener_ports(taking(loaded.config.listeners, "outbound", given))
    return Outgoing(
        port4=port4,
        port6=port6,
        ports=sorted(set(given.ports or [])),
        exclude_ports=sorted(set(given.exclude_ports)),
        exclude_cidrs=_networks(given.exclude_cidrs),
        exclude_uids=_uids(loaded, "outbound.exclude_uids", given.exclude_uids),
        exclude_interfaces=sorted(set(given.exclude_interfaces)),
    )


def _incoming(given: InterceptInbound | None, listeners: list[Listener]) -> Incoming | None:
    if given is None:
        return None
    port4, port6 = _listener_ports(taking(listeners, "inbound", given))
    return Incoming(
        port4=port4,
        port6=port6,
        ports=sorted(set(given.ports)),
        exclude_cidrs=_networks(given.exclude_cidrs),
        exclude_interfaces=sorted(set(given.exclude_interfaces)),
    )


def _names(dns: Dns | None) -> dict[str, str]:
    """Where the sidecar's own resolver answers, if it has one."""
    if dns is None:
        return {}
    host, port = dns.listen.host, dns.listen.port
    if ":" in host:
        return {"names6": f"[{'::1' if host == '::' else host}]:{port}"}
    return {"names4": f"{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"}


def unheard(loaded: Loaded) -> list[str]:
    """What will be refused because no listener of the configuration is for that version of IP, and what goes
    past the resolver because it has the other one, in words."""
    intercept, out = loaded.config.intercept, []
    if intercept is None:
        return []
    for role, given, hosts in (
        ("outgoing", intercept.outbound, ("127.0.0.1", "[::1]")),
        ("incoming", intercept.inbound, ("0.0.0.0", "[::]")),
    ):
        if given is None:
            continue
        found = taking(loaded.config.listeners, "outbound" if role == "outgoing" else "inbound", given)
        six = {":" in one.bind.host for one in found}
        if len(six) == 1:
            version, host = ("IPv4", hosts[0]) if six == {True} else ("IPv6", hosts[1])
            bind = f'bind: "{host}:{found[0].bind.port}"'
            out.append(f"{role} {version} is refused, for there is no listener for it; add one ({bind})")
    names = {} if intercept.outbound is None else _names(loaded.config.dns)
    if len(names) == 1:
        own, other = ("IPv4", "IPv6") if "names4" in names else ("IPv6", "IPv4")
        out.append(
            f"DNS by {other} is not taken over, for dns.listen is an {own} address; let the applications' "
            f"name servers have {own} addresses"
        )
    return out


def _listener_ports(listeners: list[Listener]) -> tuple[int, int]:
    """The ports for IPv4 and IPv6. A listener of one family alone has its port in the other, too."""
    by_family = {":" in one.bind.host: one.bind.port for one in listeners}
    port4, port6 = by_family.get(False), by_family.get(True)
    return port4 or port6 or 0, port6 or port4 or 0


def _uids(loaded: Loaded, key: str, users: Iterable[str]) -> list[int]:
    try:
        return sorted({uid_of(user) for user in users})
    except InterceptError as error:
        raise InterceptError(f"{error} (intercept.{key} in {loaded.name})") from None


def _networks(cidrs: Iterable[str]) -> list[str]:
    """The networks, IPv4 first, without those that lie in another: sets of rules hold no two that overlap."""
    every = [ipaddress.ip_network(cidr) for cidr in cidrs]
    four = ipaddress.collapse_addresses(one for one in every if isinstance(one, ipaddress.IPv4Network))
    six = ipaddress.collapse_addresses(one for one in every if isinstance(one, ipaddress.IPv6Network))
    return [*map(str, four), *map(str, six)]


def check_against(plan: Plan, others: Iterable[Plan]) -> None:
    """InterceptError if the plan cannot be in force beside `others`, which are in the same namespace."""
    for other in others:
        whose = f"for {other.for_whom()}, traffic {of_whom(other.uid, other.cgroup)}"
        if other.owner == plan.owner:
            continue
        if plan.incoming is not None and other.incoming is not None:
            both = sorted({*plan.incoming.ports} & {*other.incoming.ports})
            if both:
                raise InterceptError(
                    f"what comes in for port {both[0]} is taken over already, {whose}; give each sidecar "
                    "ports of its own in `intercept.inbound.ports`, or run `fastmesh intercept down` for "
                    "the other one"
                )
        shared = sorted(own_ports(plan) & own_ports(other))
        if shared:
            raise InterceptError(
                f"port {shared[0]} is that of another sidecar's listener already, {whose}; give this one's "
                "listeners ports of their own"
            )


def own_ports(plan: Plan) -> set[int]:
    """The ports of the sidecar's listeners."""
    return {
        port for one in (plan.outgoing, plan.incoming) if one is not None for port in (one.port4, one.port6)
    }
