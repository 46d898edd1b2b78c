"""Policy routes, which tproxy needs: what our rules mark comes back in over lo, and so do answers to callers
whose address the proxy has taken on.

    outgoing   packets with the mark of the selection are delivered here, wherever they are going
    incoming   what an application on 127.0.0.1 or ::1 answers is delivered here, whomever it is for: with the
               caller's address the proxy calls it, and nothing else sends from there to anywhere else

Both by a routing table of the selection's own, whose number is its mark (`selection.route_mark`).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any, Final

from fastmesh.host.intercept import programs
from fastmesh.host.intercept.errors import InterceptError
from fastmesh.host.intercept.namespace import Place
from fastmesh.host.intercept.plan import Plan
from fastmesh.host.intercept.selection import route_mark

# Behind the kernel's own table (0), before main (32766).
PRIORITY: Final = 4005
_LOOPBACK: Final = {4: "127.0.0.0/8", 6: "::1/128"}


def ensure(place: Place, plan: Plan) -> bool:
    """Bring the routes of a plan about, in place of others of its selection; whether anything was missing.
    InterceptError if that fails, and then they may be there in part: `remove` them."""
    number = route_mark(plan.table)
    changed = False
    for family in _families():
        wanted = _rules(plan, family)
        # What is there as it should be stays, and what is missing comes first: packets are on their way.
        there = [_seen(rule) for rule in _listed(place, family, number)]
        if sorted(there) != sorted(wanted):
            changed = True
            _add(place, family, there, wanted)
            if superfluous := list((Counter(there) - Counter(wanted)).elements()):
                for rule in superfluous:
                    _ip(place, family, "rule", "del", *rule.split())
                # Of two that look the same here it may have been the right one.
                there = [_seen(rule) for rule in _listed(place, family, number)]
                _add(place, family, there, wanted)
        if not _local(place, family, number):
            changed = True
            _ip(place, family, "route", "replace", "local", "default", "dev", "lo", "table", str(number))
    return changed


def are_there(place: Place, plan: Plan) -> bool:
    """Whether all routes of a plan are in force."""
    number = route_mark(plan.table)
    return all(
        sorted(map(_seen, _listed(place, family, number))) == sorted(_rules(plan, family))
        and _local(place, family, number)
        for family in _families()
    )


def remove(place: Place, table: str) -> bool:
    """Remove all routes of a selection, whatever there is of them; whether there was anything."""
    if not _can_have_been_made(place):
        return False
    number, found = route_mark(table), False
    for family in _families(all_of_them=True):
        found |= _clear_rules(place, family, number)
        if _routes(place, family, number):
            found = True
            _ip(place, family, "route", "flush", "table", str(number))
    return found


def are_left(place: Place, table: str) -> bool:
    """Whether there is anything of a selection, `remove` would find something."""
    if not _can_have_been_made(place):
        return False
    number = route_mark(table)
    return any(
        _listed(place, family, number) or _routes(place, family, number)
        for family in _families(all_of_them=True)
    )


def _can_have_been_made(place: Place) -> bool:
    """Whether there is the `ip` that they are made with, of iproute2: BusyBox's has no JSON."""
    return programs.find("ip") is not None and "iproute2" in programs.run(place, "ip", "-V").stdout


def _rules(plan: Plan, family: int) -> list[str]:
    """The rules of a plan, as arguments of `ip rule add`."""
    number = route_mark(plan.table)
    out = []
    if plan.outgoing is not None:
        out.append(f"priority {PRIORITY} fwmark {number:#x} lookup {number}")
    if plan.incoming is not None:
        out.append(f"priority {PRIORITY} from {_LOOPBACK[family]} iif lo lookup {number}")
    return out


def _add(place: Place, family: int, there: list[str], wanted: list[str]) -> None:
    for rule in wanted:
        if rule not in there:
            _ip(place, family, "rule", "add", *rule.split())


def _seen(rule: dict[str, Any]) -> str:
    """A listed rule in the form of `_rules`."""
    source = rule.get("src", "all")
    if source != "all":
        length = rule.get("srclen", 128 if ":" in source else 32)
        source = source if "/" in source else f"{source}/{length}"
    parts = [f"priority {rule.get('priority')}"]
    parts += [f"from {source}"] if source != "all" else []
    parts += [f"fwmark {rule['fwmark']}"] if "fwmark" in rule else []
    parts += [f"iif {rule['iif']}"] if "iif" in rule else []
    return " ".join([*parts, f"lookup {rule.get('table')}"])


def _listed(place: Place, family: int, number: int) -> list[dict[str, Any]]:
    """The rules that lead to a routing table."""
    every = _json(_ip(place, family, "-j", "rule", "show"))
    return [rule for rule in every if str(rule.get("table")) == str(number)]


def _clear_rules(place: Place, family: int, number: int) -> bool:
    rules = _listed(place, family, number)
    for _ in rules:
        _ip(place, family, "rule", "del", "lookup", str(number))
    return bool(rules)


def _routes(place: Place, family: int, number: int) -> list[dict[str, Any]]:
    """What is in a routing table."""
    # A table that never had anything in it is an error of `ip`, and empty.
    return _json(_ip(place, family, "-j", "route", "show", "table", str(number), may_fail=True))


def _local(place: Place, family: int, number: int) -> bool:
    found = _routes(place, family, number)
    return any(
        (one.get("type"), one.get("dst"), one.get("dev")) == ("local", "default", "lo") for one in found
    )


def _families(*, all_of_them: bool = False) -> list[int]:
    """The versions of IP that there are in this namespace."""
    if not os.path.exists("/proc/thread-self/net/if_inet6"):
        return [4]
    try:
        with open("/proc/sys/net/ipv6/conf/lo/disable_ipv6", encoding="ascii") as file:
            off = file.read().strip() == "1"
    except OSError:
        off = False
    return [4] if off and not all_of_them else [4, 6]


def _json(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(text or "[]")
    return found


def _ip(place: Place, family: int, *arguments: str, may_fail: bool = False) -> str:
    done = programs.run(place, "ip", f"-{family}", *arguments)
    if done.returncode and not may_fail:
        said = done.stderr.strip().splitlines()
        why = said[-1] if said else f"exit code {done.returncode}"
        hint = "look at `ip rule` and `ip route show table all`"
        if "not permitted" in why:
            hint = "it needs CAP_NET_ADMIN: run this as root"
        elif "BusyBox" in done.stderr:
            hint = "this is BusyBox's, which cannot tell what there is: install iproute2"
        elif "Unknown device" in why or "not supported" in why:
            hint = "the kernel needs policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES)"
        raise InterceptError(f"`ip -{family} {' '.join(arguments)}` failed in {place.words}: {why}; {hint}")
    return done.stdout if not done.returncode else ""
