"""What must hold between the interception and the listeners that it leads to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from fastmesh.config.errors import shown
from fastmesh.config.invalid import INVALID, Report
from fastmesh.config.positions import Where
from fastmesh.config.schema import Config, Listener
from fastmesh.config.schema_intercept import Intercept, InterceptInbound, InterceptOutbound
from fastmesh.config.values import Address, alternatives

# Where the kernel delivers what it takes over; a listener anywhere else would never see it.
REACHED: Final = {
    "outbound": ("127.0.0.1", "0.0.0.0", "::1", "::"),
    "inbound": ("0.0.0.0", "::"),
}
_WHERE: Final = {
    "outbound": "an address of loopback or all addresses (127.0.0.1, [::1], 0.0.0.0, [::])",
    "inbound": "all addresses (0.0.0.0, [::])",
}


def taking(
    listeners: Iterable[Listener], role: str, given: InterceptOutbound | InterceptInbound
) -> list[Listener]:
    """The listeners that traffic of this direction goes to: in a right file, one or one for each family."""
    if given.listener is not None:
        return [one for one in listeners if one.name == given.listener]
    return [one for one in listeners if one.transparent is True and one.role == role]


def check_intercept(config: Config, listeners: Iterable[tuple[int, Listener]], report: Report) -> None:
    """Report what is wrong with `intercept`; `listeners` are those of the file, with their index."""
    intercept = config.intercept
    if intercept is None or intercept is INVALID:
        return
    numbered = list(listeners)
    here = ("intercept",)
    if intercept.outbound is None and intercept.inbound is None:
        report(here, "the interception without 'outbound' and 'inbound', expected at least one of them")
    for role, given in (("outbound", intercept.outbound), ("inbound", intercept.inbound)):
        if given is not None and given is not INVALID and given.listener is not INVALID:
            _listeners((*here, role), role, given, numbered, report)
    _ports(here, intercept, dict(_bound(config, [listener for _, listener in numbered])), report)


def _listeners(
    where: Where,
    role: str,
    given: InterceptOutbound | InterceptInbound,
    numbered: list[tuple[int, Listener]],
    report: Report,
) -> None:
    found = taking((listener for _, listener in numbered), role, given)
    if given.listener is not None:
        where = (*where, "listener")
    if not found:
        named = "" if given.listener is None else f"unknown listener {shown(given.listener)}, "
        wanted = f"expected a listener with role: {role} and transparent: true"
        report(where, f"{named}{wanted}" if named else f"intercept.{role} without a listener, {wanted}")
        return
    families: dict[bool, str] = {}
    for listener in found:
        if INVALID in (listener.bind, listener.name, listener.role):
            continue
        name = shown(listener.name)
        if listener.role != role:
            report(where, f"listener {name} has role: {listener.role}, expected one with role: {role}")
        if listener.transparent is False:
            report(where, f"listener {name} is not transparent, expected transparent: true in it")
        bind: Address = listener.bind
        if bind.path is not None:
            continue  # refused with `transparent`
        if bind.host not in REACHED[role]:
            message = f"listener {name} at {bind} is never reached, expected {_WHERE[role]}"
            report(where, f"{message} and a port")
        elif not bind.port:
            report(where, f"listener {name} has port 0, expected a port that the rules can name")
        elif families.setdefault(":" in bind.host, name) != name:
            both = alternatives((families[":" in bind.host], name), "and")
            report(where, f"listeners {both} are both for it, expected 'listener' to say which")


def _ports(where: Where, intercept: Intercept, own: dict[int, str], report: Report) -> None:
    """A port of our own is not the application's: who asks for it would get us, at loopback."""
    if intercept.inbound in (None, INVALID):
        return
    assert intercept.inbound is not None
    ports = intercept.inbound.ports
    for index, port in enumerate([] if ports is INVALID else ports):
        if port is not INVALID and port in own:
            message = f"port {port} is that of {own[port]}, expected one of the application"
            report((*where, "inbound", "ports", index), message)


def _bound(config: Config, listeners: list[Listener]) -> Iterator[tuple[int, str]]:
    """Where we listen ourselves: the port, and what it is in the file."""
    dns = None if config.dns is INVALID else config.dns
    for name, address in (("`admin`", config.admin), ("`dns`", None if dns is None else dns.listen)):
        if address is not None and address is not INVALID and address.path is None:
            yield address.port, name
    for listener in listeners:
        if INVALID not in (listener.bind, listener.name) and listener.bind.path is None:
            yield listener.bind.port, f"listener {shown(listener.name)}"
