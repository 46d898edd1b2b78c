"""What the two sidecars count, from their /metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from prometheus_client.parser import text_string_to_metric_families

from fastmesh.demo.client import Client


@dataclass(frozen=True)
class Count:
    """One sidecar at one moment; all but `connections` only grow.

    `buckets` are upper bounds in seconds with the number of requests that took no longer.
    """

    requests: float = 0
    good: float = 0
    handshakes: float = 0
    resumed: float = 0
    refused: float = 0
    retries: float = 0
    connections: float = 0
    buckets: tuple[tuple[float, float], ...] = ()


async def count(port: int, side: str) -> Count:
    """Read one sidecar's counters; `side` is where its TLS is: "upstream" of svc-a, "downstream" of svc-b."""
    async with Client(port, "localhost", timeout=5.0) as client:
        status, body = await client.get("/metrics")
    if status != 200:
        raise ConnectionError(f"/metrics was answered with {status}")
    samples = [s for family in text_string_to_metric_families(body.decode()) for s in family.samples]

    def total(name: str, **labels: str) -> float:
        wanted = labels.items()
        return sum(s.value for s in samples if s.name == f"fastmesh_{name}" and wanted <= s.labels.items())

    return Count(
        requests=total("requests_total"),
        good=total("requests_total", code="2xx"),
        handshakes=total("tls_handshakes_total", side=side),
        resumed=total("tls_resumed_total", side=side),
        refused=total("tls_failed_total", side=side),
        retries=total("retries_total") + total("reused_dead_total"),
        connections=total(f"{side}_connections_open"),
        buckets=tuple(
            sorted(
                (float(s.labels["le"]), s.value)
                for s in samples
                if s.name == "fastmesh_request_duration_seconds_bucket"
            )
        ),
    )


def latency(now: Count, before: Count, share: float) -> float:
    """The quantile of what happened between two moments, in seconds, interpolated within its bucket."""
    earlier = dict(before.buckets)
    grown = [(bound, value - earlier.get(bound, 0.0)) for bound, value in now.buckets]
    rank = share * grown[-1][1] if grown else 0.0
    low, below = 0.0, 0.0
    for bound, value in grown:
        if value >= rank and value > below:
            return low + (bound - low) * (rank - below) / (value - below) if bound != inf else low
        low, below = bound, value
    return 0.0


async def counts(admin: Mapping[str, int]) -> dict[str, Count]:
    """Both sidecars; one that does not answer just now counts nothing."""
    found = {}
    for name, side in (("svc-a", "upstream"), ("svc-b", "downstream")):
        try:
            found[name] = await count(admin[name], side)
        except (OSError, ValueError, TimeoutError, KeyError):
            found[name] = Count()
    return found
