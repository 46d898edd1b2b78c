"""What must hold where connections come by interception: transparent listeners, and what they lead to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from fastmesh.config.errors import shown
from fastmesh.config.invalid import INVALID, Report
from fastmesh.config.roles import leading_to, listener_tls
from fastmesh.config.schema import MAX_SERVICES, Config, Listener, Service
from fastmesh.config.values import alternatives

_TLS: Final = {"outbound": ("none",), "inbound": ("mesh", "permissive", "none")}
_WILDCARDS: Final = ("0.0.0.0", "::")


def check_transparent(
    config: Config,
    listeners: Sequence[tuple[int, Listener]],
    services: Mapping[str, Service],
    report: Report,
) -> None:
    """Report what is wrong; entries that were refused are not among `listeners` and `services`."""
    for index, listener in listeners:
        if listener.transparent is True:
            _listener(config, ("listeners", index), listener, report)
        elif listener.transparent is False:
            _not_transparent(("listeners", index), listener, report)
    for name, service in services.items():
        _addresses(("services", name, "addresses"), service, report)
        _keeping(("services", name), name, service, [one for _, one in listeners], report)
        _beside(("services", name), name, service, [one for _, one in listeners], report)
    ports = inbound_ports(config)
    if any(one.transparent is True for _, one in listeners) and len(services) + len(ports) >= MAX_SERVICES:
        most = MAX_SERVICES - 1 - len(ports)
        message = f"{len(services)} services, expected at most {most}: of {MAX_SERVICES} interception uses "
        report(("services",), f"{message}one for each port of intercept.inbound and one for the unknown")


def inbound_ports(config: Config) -> list[int]:
    """The application's ports, each once; none where nothing is taken over on its way in."""
    intercept = config.intercept
    if intercept is None or intercept is INVALID or intercept.inbound in (None, INVALID):
        return []
    assert intercept.inbound is not None
    ports = intercept.inbound.ports
    return [] if ports is INVALID else list(dict.fromkeys(port for port in ports if port is not INVALID))


def _listener(config: Config, where: tuple[str | int, ...], listener: Listener, report: Report) -> None:
    role, tls = listener.role, listener_tls(listener)
    if role is INVALID:
        return
    if role not in _TLS:
        report((*where, "transparent"), f"transparent with role: {role}, expected role: outbound or inbound")
        return
    if tls is not INVALID and tls not in _TLS[role]:
        wanted = alternatives(_TLS[role])
        report((*where, "tls"), f"tls: {tls} with transparent: true, expected {wanted} with role: {role}")
    if listener.bind is not INVALID and listener.bind.path is not None:
        what = f"{shown(str(listener.bind))} with transparent: true"
        report((*where, "bind"), f"{what}, expected host:port (interception is about TCP)")
    if role == "outbound" and listener.to is not None:
        message = "to with transparent: true, expected none (where the client wanted to go decides)"
        report((*where, "to"), message)
    if role == "inbound":
        _inbound(config, where, listener, report)


def _inbound(config: Config, where: tuple[str | int, ...], listener: Listener, report: Report) -> None:
    ports = inbound_ports(config)
    if config.intercept is INVALID:
        return
    if config.intercept is None or config.intercept.inbound is None:
        message = "transparent with role: inbound without intercept.inbound, expected the application's ports"
        report((*where, "transparent"), f"{message} there")
        return
    for port in _ports(listener):
        if port not in ports:
            wanted = alternatives(tuple(map(str, ports[:10])))
            message = f"port {port} is none of intercept.inbound, expected {wanted}"
            report((*where, "ports", str(port)), message)


def _not_transparent(where: tuple[str | int, ...], listener: Listener, report: Report) -> None:
    if listener.unknown == "reject":
        report((*where, "unknown"), "unknown without transparent: true, expected both or neither")
    if listener.ports is not None:
        report((*where, "ports"), "ports without transparent: true, expected both or neither")


def _ports(listener: Listener) -> list[int]:
    if listener.ports is None or listener.ports is INVALID:
        return []
    return [int(port) for port in listener.ports if port.isdigit() and not port.startswith("0")]


def _addresses(where: tuple[str | int, ...], service: Service, report: Report) -> None:
    if service.addresses is None or service.addresses is INVALID:
        return
    for index, address in enumerate(service.addresses):
        if address is INVALID:
            continue
        if address.path is not None or not address.port or address.host in _WILDCARDS:
            message = f"{shown(str(address))} is nothing that applications dial, expected host:port"
            report((*where, index), message)


def _keeping(
    where: tuple[str | int, ...], name: str, service: Service, listeners: list[Listener], report: Report
) -> None:
    """Endpoints without a port: somebody must know which one the client wanted."""
    if service.endpoints is INVALID:
        return
    keeping = [
        (index, one.address)
        for index, one in enumerate(service.endpoints)
        if one is not INVALID and one.address is not INVALID and one.address.keeps_port
    ]
    if not keeping:
        return
    leading = leading_to(listeners, name)
    others = [one for one in leading if one.transparent is False]
    if others or not leading:
        for index, address in keeping:
            by = f", and listener {shown(others[0].name)} leads here" if others else ""
            what = f"{shown(str(address))} has no port{by}, expected host:port"
            why = "(the port is kept where transparent listeners alone lead)"
            report((*where, "endpoints", index), f"{what} {why}")
    if service.health_check is not None:
        message = "a health check of endpoints without a port, expected host:port in `endpoints`"
        report((*where, "health_check"), message)


def _beside(
    where: tuple[str | int, ...], name: str, service: Service, listeners: list[Listener], report: Report
) -> None:
    """A service that gets what is made to an inbound listener itself, and not what is taken over for it."""
    leading = [
        one for one in listeners if one.to == name and one.transparent is True and one.role == "inbound"
    ]
    if not leading:
        return
    listener = shown(leading[0].name)
    for kind in ("allow", "deny"):
        if getattr(service, kind) is not None:
            message = f"{kind} on the `to` of transparent listener {listener}, expected it on the listener"
            report((*where, kind), f"{message} (connections that are taken over go past the service)")
    if service.endpoints is INVALID:
        return
    ports: set[int] = set()
    for index, one in enumerate(service.endpoints):
        if one is INVALID or one.address is INVALID:
            continue
        ports.add(one.address.port)
        if len(ports) > 1:
            message = f"{shown(str(one.address))} has another port than the endpoints before it"
            why = f"expected one port (rules of listener {listener} name it)"
            report((*where, "endpoints", index), f"{message}, {why}")
            return
