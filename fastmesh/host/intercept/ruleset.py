"""A plan as nft commands: one transaction that replaces the table of its selection.

    outgoing   output hook: what an application sends. With redirect it decides once for a connection, at its
               first packet, and NAT does the rest. With tproxy a packet is marked, and a policy route brings
               it back in over lo; the connection keeps the mark, so that connections from before `up` are
               left alone.
    incoming   prerouting hook: what arrives from elsewhere, and with tproxy what comes back over lo.
    names      output hook, where the sidecar has a resolver: NAT leads questions for names there.
    about      on no hook: the plan itself, in comments.
    seal       on no hook: what the table looked like when it was made; added by a transaction of its own.

What is never taken comes first: our own sockets, exempt users and cgroups, then loopback, link-local
addresses of IPv6 and groups, then exclusions.
The one rule that takes names the selection, so that a packet of unknown origin is not taken. When the proxy
is not there, connections are refused; they never go around it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from fastmesh.config.intercept_values import ROUTE_MARKS
from fastmesh.host.intercept.cgroups import level
from fastmesh.host.intercept.plan import Incoming, Outgoing, Plan
from fastmesh.host.intercept.selection import FAMILY, route_mark

ABOUT: Final = "about"
SEAL: Final = "seal"
# Comments of the rules that count: show and check know them by these.
COUNTS: Final = {"outgoing": "taken outgoing", "incoming": "taken incoming"}
_MAX_PLAN: Final = 1 << 20
_COMMENT: Final = 120  # a comment of a rule has at most 128 bytes
# The first packet of a connection: SYN without ACK, RST and FIN.
_FIRST: Final = "tcp flags & (fin|syn|rst|ack) == syn"
# Addresses of one link: passed on they would go nowhere, for which link is meant, SO_ORIGINAL_DST and
# getsockname(2) do not say; and what comes from one is not answered over lo. Then groups.
_UNFIT: Final = (
    "ip6 daddr fe80::/10 return",
    "ip daddr { 224.0.0.0/4, 255.255.255.255 } return",
    "ip6 daddr ff00::/8 return",
)
_ROUTED: Final = f"meta mark & 0xff000000 == {ROUTE_MARKS[0]:#x} return"
# Where the chains stand among others of their hook. A user's or a cgroup's come before everybody's, whatever
# the method: the first one that takes a connection has it, and what NAT has led to loopback is not taken any
# more.
_NAT: Final = {"one": -103, "all": -102}
_MARKS: Final = {"one": -153, "all": -98}
_ARRIVAL: Final = -152
_NAMES_EARLIER: Final = 10


def transaction(plan: Plan) -> str:
    """The commands that bring a plan into force, in place of what the table held before."""
    lines = [*removal(plan.table), f"table {FAMILY} {plan.table} {{"]
    lines += _chain(ABOUT, "", (f'return comment "{part}"' for part in _parts(plan)))
    if plan.names4 or plan.names6:
        priority = _NAT[_whose(plan)] - _NAMES_EARLIER
        hook = f"type nat hook output priority {priority}; policy accept;"
        lines += _chain("names", hook, _names(plan))
    if plan.outgoing is not None:
        kind = "nat" if plan.method == "redirect" else "route"
        priority = (_NAT if plan.method == "redirect" else _MARKS)[_whose(plan)]
        hook = f"type {kind} hook output priority {priority}; policy accept;"
        lines += _chain("outgoing", hook, _outgoing(plan, plan.outgoing))
    if plan.incoming is not None or plan.method == "tproxy":
        kind = "nat" if plan.method == "redirect" else "filter"
        priority = _NAT[_whose(plan)] if plan.method == "redirect" else _ARRIVAL
        hook = f"type {kind} hook prerouting priority {priority}; policy accept;"
        lines += _chain("incoming", hook, _incoming(plan))
    return "\n".join([*lines, "}", ""])


def removal(table: str) -> list[str]:
    """The commands that remove a table, whether it is there or not."""
    return [f"add table {FAMILY} {table}", f"delete table {FAMILY} {table}"]


def sealing(plan: Plan, listed: list[dict[str, Any]]) -> str:
    """The commands that put the seal on a table that was just made, and is listed as given."""
    where = f"{FAMILY} {plan.table} {SEAL}"
    return f'add chain {where}\nflush chain {where}\nadd rule {where} return comment "{seal_of(listed)}"\n'


def seal_of(listed: list[dict[str, Any]]) -> str:
    """What changes when anybody changes a rule, a set or a chain, and with the version of nft."""
    version = next((str(one["metainfo"]["version"]) for one in listed if "metainfo" in one), "")
    kept = [_steady(one) for one in listed if "metainfo" not in one and not _is_seal(one)]
    text = json.dumps(kept, sort_keys=True)
    return f"nft {version} {hashlib.sha256(text.encode()).hexdigest()[:40]}"


def plan_in(listed: list[dict[str, Any]]) -> Plan | None:
    """The plan that a listed table holds; None if it is not there or not whole."""
    text = "".join(_comments(listed, ABOUT))
    try:
        data = base64.b64decode(text, validate=True)
        # Whoever is root in a container writes there what they like.
        return msgspec.json.decode(zlib.decompressobj().decompress(data, _MAX_PLAN), type=Plan)
    except (ValueError, zlib.error, msgspec.MsgspecError, RecursionError):
        return None


def seal_in(listed: list[dict[str, Any]]) -> str | None:
    """The seal that a listed table has, None without one."""
    return next(iter(_comments(listed, SEAL)), None)


def counted(listed: list[dict[str, Any]]) -> dict[str, int]:
    """How many connections were taken since the table was made, outgoing and incoming."""
    out: dict[str, int] = {}
    for one in listed:
        rule = one.get("rule", {})
        for direction, comment in COUNTS.items():
            if rule.get("comment") == comment:
                packets = [part["counter"]["packets"] for part in rule["expr"] if "counter" in part]
                out[direction] = out.get(direction, 0) + sum(packets)
    return out


# -- rules --------------------------------------------------------------------------------------------


def _names(plan: Plan) -> Iterator[str]:
    """Questions go to the resolver wherever they were going, to loopback too; its own go on."""
    yield f"meta mark {plan.mark:#x} return"
    yield from _exempt(plan)
    if plan.outgoing is not None and plan.outgoing.exclude_uids:
        yield f"meta skuid {_set(plan.outgoing.exclude_uids)} return"
    yield from _UNFIT
    selected = " ".join(["meta l4proto { tcp, udp } th dport 53", *_selected(plan)])
    for family, protocol, to in ((4, "ip", plan.names4), (6, "ip6", plan.names6)):
        if to is not None:
            yield f"meta nfproto ipv{family} {selected} dnat {protocol} to {to}"


def _exempt(plan: Plan) -> Iterator[str]:
    if plan.exempt_uids:
        yield f"meta skuid {_set(plan.exempt_uids)} return"
    for path in plan.exempt_cgroups:
        yield f"{_in_cgroup(path)} return"


def _selected(plan: Plan) -> list[str]:
    out = [] if plan.uid is None else [f"meta skuid {plan.uid}"]
    return out if plan.cgroup is None else [*out, _in_cgroup(plan.cgroup)]


def _outgoing(plan: Plan, outgoing: Outgoing) -> Iterator[str]:
    yield "meta l4proto != tcp return"
    yield f"meta mark {plan.mark:#x} return"
    if plan.method == "tproxy":
        mark = route_mark(plan.table)
        yield f"ct mark {mark:#x} ct direction original meta mark set {mark:#x} return"
        yield f"{_FIRST.replace('==', '!=')} return"
    yield _ROUTED
    yield from _exempt(plan)
    for version, resolver in ((4, plan.names4), (6, plan.names6)):
        if resolver is not None:
            yield f"meta nfproto ipv{version} tcp dport 53 return"
    yield "ip daddr 127.0.0.0/8 return"
    yield "ip6 daddr ::1 return"
    yield from _UNFIT
    for name in outgoing.exclude_interfaces:
        yield f'oifname "{name}" return'
    if outgoing.exclude_uids:
        yield f"meta skuid {_set(outgoing.exclude_uids)} return"
    if outgoing.exclude_ports:
        yield f"tcp dport {_set(outgoing.exclude_ports)} return"
    yield from _networks("daddr", outgoing.exclude_cidrs)
    taken = [_FIRST, "ct direction original"]
    if outgoing.ports:
        taken.append(f"tcp dport {_set(outgoing.ports)}")
    taken += _selected(plan)
    if plan.method == "tproxy":
        mark = route_mark(plan.table)
        taken.append(f"counter ct mark set {mark:#x} meta mark set {mark:#x}")
        yield f'{" ".join(taken)} comment "{COUNTS["outgoing"]}"'
        return
    for family, port in _by_family(outgoing.port4, outgoing.port6):
        yield f'{family}{" ".join(taken)} counter redirect to :{port} comment "{COUNTS["outgoing"]}"'


def _incoming(plan: Plan) -> Iterator[str]:
    if plan.method == "tproxy" and plan.outgoing is not None:
        mark = f"meta mark {route_mark(plan.table):#x} meta l4proto tcp"
        yield f"{mark} tproxy ip to 127.0.0.1:{plan.outgoing.port4} accept"
        yield f"{mark} tproxy ip6 to [::1]:{plan.outgoing.port6} accept"
        # The proxy is not there.
        yield f"{mark} reject with tcp reset"
    incoming = plan.incoming
    if incoming is None:
        return
    yield 'iifname "lo" return'
    for name in incoming.exclude_interfaces:
        yield f'iifname "{name}" return'
    yield from _networks("saddr", incoming.exclude_cidrs)
    # Not what only passes through this host.
    taken = f"tcp dport {_set(incoming.ports)} fib daddr type local"
    if plan.method == "redirect":
        yield from _redirected(incoming, taken)
        return
    yield f'{taken} {_FIRST} counter comment "{COUNTS["incoming"]}"'
    # Connections that the application has accepted itself, before `up`, are not the proxy's, and go on.
    yield f"{taken} tproxy ip to 127.0.0.1:{incoming.port4} accept"
    yield f"{taken} tproxy ip6 to [::1]:{incoming.port6} accept"
    yield f"{taken} {_FIRST} reject with tcp reset"


def _redirected(incoming: Incoming, taken: str) -> Iterator[str]:
    for family, port in _by_family(incoming.port4, incoming.port6):
        yield f'{family}{taken} {_FIRST} counter redirect to :{port} comment "{COUNTS["incoming"]}"'


def _by_family(port4: int, port6: int) -> list[tuple[str, int]]:
    return [("meta nfproto ipv4 ", port4), ("meta nfproto ipv6 ", port6)]


def _networks(side: str, cidrs: list[str]) -> Iterator[str]:
    for protocol, colon in (("ip", False), ("ip6", True)):
        some = [cidr for cidr in cidrs if (":" in cidr) is colon]
        if some:
            yield f"{protocol} {side} {_set(some)} return"


def _in_cgroup(path: str) -> str:
    return f'socket cgroupv2 level {level(path)} "{path}"'


def _set(items: Iterable[int | str]) -> str:
    return f"{{ {', '.join(map(str, items))} }}"


def _whose(plan: Plan) -> str:
    return "all" if plan.uid is None and plan.cgroup is None else "one"


def _chain(name: str, hook: str, rules: Iterable[str]) -> list[str]:
    return [f"  chain {name} {{", *(f"    {line}" for line in (hook, *rules) if line), "  }"]


# -- the plan and the seal in the table ------------------------------------------------------------------


def _parts(plan: Plan) -> Iterator[str]:
    text = base64.b64encode(zlib.compress(msgspec.json.encode(plan), 9)).decode()
    yield from (text[start : start + _COMMENT] for start in range(0, len(text), _COMMENT))


def _comments(listed: list[dict[str, Any]], chain: str) -> list[str]:
    rules = [one["rule"] for one in listed if "rule" in one]
    return [str(rule.get("comment", "")) for rule in rules if rule["chain"] == chain]


def _is_seal(one: dict[str, Any]) -> bool:
    return SEAL in (one.get("chain", {}).get("name"), one.get("rule", {}).get("chain"))


def _steady(value: Any) -> Any:
    """What is listed, without what changes by itself: handles, counters, names of cgroups that are gone."""
    if isinstance(value, list):
        return [_steady(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("left", {}) == {"socket": {"key": "cgroupv2"}}:
        return {**value, "right": None}
    return {
        key: None if key == "counter" else _steady(one)
        for key, one in value.items()
        if key not in ("handle",)
    }
