"""What fastmesh must not cost, in ratios of one run. The report shows each with what was measured."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Final, Literal

from bench.load import Scenario
from bench.proxies import Topology
from bench.results import Figure, Results

OURS: Final = "fastmesh"
WHILE_STOPPED: Final = 0.9
Unit = Literal["floor", "HAProxy"]


@dataclass(frozen=True)
class Limit:
    """CPU per request, or per MiB, in units of the floor's or HAProxy's."""

    topology: Topology
    size: str
    connections: int | None  # None: any
    unit: Unit
    most: float

    def covers(self, scenario: Scenario) -> bool:
        here = (scenario.topology, scenario.size) == (self.topology, self.size)
        return here and self.connections in (None, scenario.connections)


# A single connection has nothing to gather into one system call: there a proxy of the same kind is the unit.
LIMITS: Final = (
    Limit("mesh", "small", 1, "HAProxy", 1.25),
    Limit("mesh", "small", 64, "floor", 1.3),
    Limit("mesh", "small", 512, "floor", 1.1),
    Limit("mesh", "large", None, "HAProxy", 1.0),
    Limit("transparent", "small", 64, "floor", 1.15),
    Limit("transparent-tcp", "small", 64, "floor", 1.15),
)


@dataclass(frozen=True)
class Verdict:
    """One limit beside what was measured; `ratios` is empty where there was nothing valid to compare."""

    what: str
    limit: str
    ratios: list[float]
    met: bool | None

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None


def verdicts(results: Results) -> list[Verdict]:
    """For all that fastmesh took part in and that has a limit."""
    found = [
        _cost(limit, figure)
        for figure in results.figures
        if figure.proxy == OURS
        for limit in LIMITS
        if limit.covers(figure.scenario)
    ]
    for one in results.slow:
        if one.proxy == OURS:
            ratios = one.ratios if one.valid else []
            met = statistics.median(ratios) >= WHILE_STOPPED if ratios else None
            what = "slow-stream: throughput beside a stopped reader, by that without"
            found.append(Verdict(what, f"at least {WHILE_STOPPED}", ratios, met))
    return found


def _cost(limit: Limit, figure: Figure) -> Verdict:
    ratios = (figure.ratios if limit.unit == "floor" else figure.to_haproxy) if figure.valid else []
    body = ", 1 MiB bodies" if limit.size == "large" else ""
    what = f"{limit.topology}, c={figure.scenario.load}{body}: CPU × {limit.unit}"
    met = statistics.median(ratios) <= limit.most if ratios else None
    return Verdict(what, f"at most {limit.most}", ratios, met)
