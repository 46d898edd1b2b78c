"""Endpoints as a snapshot has them, by name: in logs, metrics and keys."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any


def text_of(endpoint: Mapping[str, Any]) -> str:
    """`127.0.0.1:9000`, `[::1]:80`, `unix:/run/x`, or `10.0.0.2` where the port is kept: as the data plane
    writes it."""
    if endpoint["family"] == "unix":
        return f"unix:{endpoint['path']}"
    host = f"[{endpoint['host']}]" if endpoint["family"] == "inet6" else endpoint["host"]
    return str(host) if endpoint.get("keep_port") else f"{host}:{endpoint['port']}"


def checked(snapshot: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every endpoint that has health checks, behind its service."""
    for service in snapshot.get("services", ()):
        for endpoint in service["endpoints"] if service.get("health_check") else ():
            yield service, endpoint


def key_of(service: Mapping[str, Any], endpoint: Mapping[str, Any]) -> str:
    """What an endpoint keeps its state of health by."""
    return f"{service['name']}/{text_of(endpoint)}"


def health_slots(snapshot: Mapping[str, Any]) -> dict[str, int]:
    """The bytes of checked endpoints in the memory that workers share, by their keys."""
    return {key_of(service, endpoint): endpoint["health"] for service, endpoint in checked(snapshot)}
