"""What a snapshot says of interception: what its listeners do, and the services that nobody wrote down.

Two kinds of services are made here. `inbound:PORT` is the application on one of its ports, at loopback.
`outbound:passthrough` stands for all destinations that no service has: opaque bytes to the destination
itself. No service of a file has such a name.
"""

from __future__ import annotations

from typing import Any, Final

from fastmesh.config.roles import protocol_of
from fastmesh.config.schema import Config, Listener, Pool, Service
from fastmesh.config.transparent_checks import inbound_ports

PASSTHROUGH: Final = "outbound:passthrough"
_LOOPBACK: Final = (("inet", "127.0.0.1"), ("inet6", "::1"))


def made_services(config: Config) -> list[str]:
    """The names of the services that interception adds to those of the file."""
    roles = {one.role for one in config.listeners if one.transparent}
    names = [_inbound_name(port) for port in inbound_ports(config)] if "inbound" in roles else []
    return [*names, PASSTHROUGH] if "outbound" in roles else names


def made_service(config: Config, name: str, slot: int) -> dict[str, Any]:
    """One of them, as the snapshot has services. With `tproxy` the application sees who calls."""
    defaults, pool = Service(endpoints=[]), Pool()
    kind: dict[str, Any] = {"original": True}
    endpoints: list[dict[str, Any]] = []
    if name != PASSTHROUGH:
        port = int(name.partition(":")[2])
        kept = {"keep_caller": True} if _is_tproxy(config) else {}
        endpoints = [
            {"family": family, "host": host, "port": port, "path": None, **kept} for family, host in _LOOPBACK
        ]
        kind = {"local": True}
    return {
        "name": name,
        "slot": slot,
        "tls": "none",
        "spiffe_id": None,
        "endpoints": endpoints,
        "protocol": "auto",
        "mesh_connections": 1,
        "http2": {"ping_interval_ms": 0, "ping_timeout_ms": 10_000},
        "health_check": None,
        "connect_timeout_ms": defaults.connect_timeout,
        "response_timeout_ms": defaults.response_timeout,
        "pool_idle_max": pool.idle_max,
        "pool_idle_timeout_ms": pool.idle_timeout,
        "reuse_retry": defaults.reuse_retry,
        "allow": None,
        "deny": None,
        "mode": "enforce",
        "rule_slot": None,
        **kind,
    }


def transparent(config: Config, listener: Listener, names: list[str]) -> dict[str, Any]:
    """What a snapshot says of a transparent listener and of no other; `names` are those of all services."""
    if not listener.transparent:
        return {}
    ports = {int(port): protocol for port, protocol in (listener.ports or {}).items()}
    services: dict[int, int] = {}
    direct = -1
    if listener.role == "inbound":
        services = {port: names.index(_inbound_name(port)) for port in inbound_ports(config)}
        if listener.to is not None:
            direct = names.index(listener.to)
        elif len(services) == 1:
            (direct,) = services.values()
    return {
        "transparent": True,
        "unknown": listener.unknown,
        "service": -1,
        "direct": direct,
        "ports": [
            {
                "port": port,
                "protocol": ports.get(port, listener.protocol),
                "service": services.get(port, -1),
            }
            for port in sorted(ports.keys() | services.keys())
        ],
    }


def settled_protocol(config: Config, listener: Listener) -> str:
    """What arrives at a listener: where one opaque service is all that it leads to, nothing is to be told."""
    protocol = protocol_of(listener)
    if protocol == "auto" and listener.to is not None and not listener.transparent:
        return "tcp" if config.services[listener.to].protocol == "tcp" else "auto"
    return protocol


def by_tproxy(config: Config, listener: Listener) -> dict[str, bool]:
    """What the listening socket must be: with `tproxy` connections come with addresses that are not ours."""
    if listener.transparent and _is_tproxy(config):
        return {"transparent": True}
    return {}


def mark(config: Config) -> dict[str, int]:
    """By what our own connections are told from the application's."""
    return {} if config.intercept is None else {"mark": config.intercept.mark}


def _is_tproxy(config: Config) -> bool:
    return config.intercept is not None and config.intercept.method == "tproxy"


def _inbound_name(port: int) -> str:
    return f"inbound:{port}"
