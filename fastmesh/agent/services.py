"""What the admin API says of services: where they are, how they are, and what is known of how they speak."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fastmesh.host.endpoints import text_of

if TYPE_CHECKING:
    from fastmesh._core import Area
    from fastmesh.agent.state import State


class Learned(NamedTuple):
    """Where protocols could not be told in time: of all workers together."""

    destination: str | None  # None: the service was the listener's
    service: int  # its counter row
    server_first: bool
    timeouts: int
    skipped: int


def learned(area: Area, slots: int) -> list[Learned]:
    """What the workers have learned; each learns for itself, and one that knows is enough to say so."""
    found: dict[tuple[str | None, int], Learned] = {}
    for slot in range(slots):
        for row in map(Learned._make, area.learned(slot)):
            key = row.destination, row.service
            before = found.get(key, Learned(*key, False, 0, 0))
            found[key] = Learned(
                *key,
                row.server_first or before.server_first,
                row.timeouts + before.timeouts,
                row.skipped + before.skipped,
            )
    return sorted(found.values(), key=lambda row: (row.service, row.destination or ""))


def services(area: Area, state: State) -> list[dict[str, Any]]:
    """Every service of the snapshot in use."""
    known = learned(area, state.slots)
    healthy = {(one.service, one.endpoint): one.healthy for one in state.checked}
    return [
        _service(service, healthy, [row for row in known if row.service == service["slot"]])
        for service in (state.snapshot or {}).get("services", ())
    ]


def _service(
    service: Mapping[str, Any], healthy: Mapping[tuple[str, str], bool], known: list[Learned]
) -> dict[str, Any]:
    return {
        "name": service["name"],
        "protocol": service.get("protocol", "auto"),
        "tls": service["tls"],
        "addresses": [text_of(address) for address in service.get("addresses", ())],
        "endpoints": [
            {"address": text_of(one), "healthy": healthy.get((service["name"], text_of(one)))}
            for one in service["endpoints"]
        ],
        "learned": [
            {
                "destination": row.destination,
                "server_speaks_first": row.server_first,
                "timeouts": row.timeouts,
                "skipped": row.skipped,
            }
            for row in known
        ],
    }
