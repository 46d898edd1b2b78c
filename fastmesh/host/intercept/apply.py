"""`up` and `down`: a plan into force and out of it, whole or not at all.

`up` makes the policy routes first, where the method needs them: without rules they catch nothing. Then one
transaction of nft replaces the table. What follows, the seal, only tells later whether somebody changed it.
`down` goes the other way round. Killed anywhere in between, what is left is what `down` removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from typing import Literal

import msgspec

from fastmesh.config.loader import Loaded
from fastmesh.host.intercept import cgroups, nft, programs, routes, ruleset
from fastmesh.host.intercept.errors import InterceptError
from fastmesh.host.intercept.namespace import Place, inside
from fastmesh.host.intercept.plan import Plan, check_against, make_plan, own_ports
from fastmesh.host.intercept.selection import Selection, is_ours, of_whom, table_of
from fastmesh.host.intercept.sockets import LISTENING, owner, sockets

_SIOCGIFFLAGS = 0x8913
_IFF_UP = 1
# Addresses of listeners that traffic can be led to.
_REACHED = ("127.0.0.1", "0.0.0.0", "::1", "::")


class InForce(msgspec.Struct, frozen=True, kw_only=True):
    """One selection's table as it is. `plan`: None if it cannot be read any more. `state`: as `up` left it,
    changed since by somebody else, or not to be told (`up` was interrupted, or nft is another one now)."""

    table: str
    plan: Plan | None
    state: Literal["same", "changed", "unknown"]
    routed: bool = True
    counted: dict[str, int] = {}


def up(loaded: Loaded, selection: Selection, *, strangers: bool = True) -> list[str]:
    """Bring what the configuration says into force for the selection; nothing happens where it is. Returns
    remarks for the user. Raises InterceptError, and then nothing has changed. `strangers`: it does not matter
    whether somebody else than a sidecar listens where traffic goes."""
    return inside(selection.netns, lambda place: _up(place, loaded, selection, strangers))


def down(loaded: Loaded | None, selection: Selection) -> bool:
    """Remove every rule, route and mark of the selection; whether there was anything. With a configuration:
    InterceptError if what is in force is another one's."""
    owner = None if loaded is None else str(loaded.path)
    return inside(selection.netns, lambda place: _down(place, owner, selection))


def rules_in_force(selection: Selection) -> Plan | None:
    """What is in force for a selection, as `up` planned it."""
    found = inside(selection.netns, lambda place: read(place, table_of(selection)))
    return None if found is None else found.plan


def down_of(path: str | None, selection: Selection) -> bool:
    """`down`, with only the path of the configuration, which need not be there any more."""
    return inside(selection.netns, lambda place: _down(place, path, selection))


def read(place: Place, table: str) -> InForce | None:
    """What is in force in a table; None if there is none of that name."""
    programs.require_privilege()
    if table not in nft.tables(place):
        return None
    listed = nft.table(place, table) or []
    plan, seal = ruleset.plan_in(listed), ruleset.seal_in(listed)
    if plan is not None and plan.table != table:
        plan = None  # not what `up` wrote
    now = ruleset.seal_of(listed)
    state: Literal["same", "changed", "unknown"] = "changed"
    if seal == now and plan is not None:
        state = "same"
    elif plan is not None and (seal is None or seal.split()[:2] != now.split()[:2]):
        state = "unknown"
    routed = plan is None or plan.method == "redirect" or routes.are_there(place, plan)
    return InForce(table=table, plan=plan, state=state, routed=routed, counted=ruleset.counted(listed))


def read_all(place: Place) -> list[InForce]:
    """What is in force in this namespace, of all selections."""
    programs.require_privilege()
    found = (read(place, table) for table in nft.tables(place) if is_ours(table))
    return [one for one in found if one is not None]


def lost_cgroups(plan: Plan) -> list[str]:
    """Cgroups of a plan that are not there any more, or are others by now: rules do not know them."""
    lost = []
    for path, number in plan.cgroup_numbers.items():
        try:
            if cgroups.number(path) != number:
                lost.append(path)
        except InterceptError:
            lost.append(path)
    return lost


def _up(place: Place, loaded: Loaded, selection: Selection, strangers: bool) -> list[str]:
    programs.require_privilege()
    plan = make_plan(loaded, selection)
    for path in plan.cgroup_numbers:
        cgroups.expose(path)
        break
    every = read_all(place)
    before = next((one for one in every if one.table == plan.table), None)
    _check_owner(place, before, plan.owner, plan)
    check_against(plan, [one.plan for one in every if one.plan is not None and one is not before])
    if not _loopback_is_up():
        raise InterceptError(
            f"the loopback interface of {place.words} is down, and traffic is handed over on it; "
            "run `ip link set lo up` there"
        )
    if not strangers:
        _check_listeners(place, plan)
    if before is not None and before.plan == plan and before.state == "same" and before.routed:
        return ["it is in force already, and nothing has been changed"]
    nft.load(place, ruleset.transaction(plan), dry=True)
    _replace(place, plan, before)
    return _remarks(plan, before)


def _replace(place: Place, plan: Plan, before: InForce | None) -> None:
    try:
        if plan.method == "tproxy":
            routes.ensure(place, plan)
        nft.load(place, ruleset.transaction(plan))
        if plan.method != "tproxy":
            routes.remove(place, plan.table)
    except BaseException:
        with contextlib.suppress(InterceptError):
            _take_back(place, plan.table, before)
        raise
    # All is in force by now: without its seal it is, too.
    with contextlib.suppress(InterceptError):
        nft.load(place, ruleset.sealing(plan, nft.table(place, plan.table) or []))


def _take_back(place: Place, table: str, before: InForce | None) -> None:
    """After an error, which may have come when nft had done all: no table without its routes."""
    if before is None:
        nft.load(place, "\n".join([*ruleset.removal(table), ""]))
        routes.remove(place, table)
        return
    now = read(place, table)
    if now is None or (now.plan is not None and now.plan.method != "tproxy"):
        routes.remove(place, table)
    elif now.plan is not None:
        routes.ensure(place, now.plan)


def _remarks(plan: Plan, before: InForce | None) -> list[str]:
    if before is None:
        return []
    if before.state == "changed":
        return ["rules had been changed by hand since `up`: they are restored"]
    if not before.routed:
        return ["policy routes had been changed by hand since `up`: they are restored"]
    if before.plan == plan:
        return ["an earlier `up` had not come to its end, or with another nft: all is in force now"]
    return ["what was in force before for this selection has been replaced"]


def _check_owner(place: Place, before: InForce | None, owner: str, plan: Plan | None) -> None:
    """Two sidecars for one selection would take turns in undoing each other."""
    if before is None or before.plan is None or before.plan.owner == owner:
        return
    whose = of_whom(before.plan.uid, before.plan.cgroup)
    if plan is None:
        raise InterceptError(
            f"traffic {whose} in {place.words} is taken over for {before.plan.for_whom()}, not for {owner}; "
            "give that file with -c, or none to remove it whosever it is"
        )
    raise InterceptError(
        f"traffic {whose} in {place.words} is taken over already for {before.plan.for_whom()}: one "
        "selection has one sidecar; run `fastmesh intercept down` for it first, or select by another user, "
        "cgroup or namespace"
    )


def _check_listeners(place: Place, plan: Plan) -> None:
    """InterceptError if a port that traffic would go to is somebody else's."""
    ports = own_ports(plan)
    for one in sockets():
        if one.state != LISTENING or one.port not in ports or one.host not in _REACHED:
            continue
        found = owner({one.inode})
        if found is not None and not found[0].startswith("fastmesh"):
            raise InterceptError(
                f"port {one.port} in {place.words} is taken by process {found[0]} ({found[1]}), which is no "
                "sidecar and would get the traffic; stop it, or give the listener another port"
            )


def _down(place: Place, owner: str | None, selection: Selection) -> bool:
    programs.require_privilege()
    table = table_of(selection)
    there = table in nft.tables(place)
    if there:
        if owner is not None:
            plan = ruleset.plan_in(nft.chain(place, table, ruleset.ABOUT) or [])
            _check_owner(place, InForce(table=table, plan=plan, state="unknown"), owner, None)
        nft.load(place, "\n".join([*ruleset.removal(table), ""]))
    return routes.remove(place, table) or there


def _loopback_is_up() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            found = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        except OSError:
            return False
    flags: int = struct.unpack("16sH14x", found)[1]
    return bool(flags & _IFF_UP)
