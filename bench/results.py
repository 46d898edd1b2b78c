"""From runs to figures: medians over rounds, ratios to a unit within a round, and which may be used."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from bench import handshakes, slow
from bench.handshakes import UNIT as HAPROXY
from bench.handshakes import Handshakes
from bench.idle import Idle, Ready
from bench.load import Run, Scenario, total_errors
from bench.proxies import DIRECT
from bench.slow import Slow

FLOOR = "floor"
# Above these shares of one CPU a round says more about the machine's other work than about a proxy.
BUSY_SHARE = 0.10
STOLEN_SHARE = 0.05


@dataclass
class Figure:
    """All the runs of one proxy in one scenario."""

    scenario: Scenario
    proxy: str
    runs: list[Run] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)  # CPU per request by the floor's of the same round
    to_haproxy: list[float] = field(default_factory=list)  # the same by HAProxy's
    to_direct: list[float] = field(default_factory=list)  # by that of the floor without redirect

    @property
    def errors(self) -> dict[str, int]:
        total = total_errors(run.errors for run in self.runs)
        if self.failures:
            total["failed_runs"] = len(self.failures)
        return total

    @property
    def valid(self) -> bool:
        """A proxy that drops or refuses work is cheap: with any error the figure does not count."""
        return bool(self.runs) and not self.errors

    def median(self, value: Callable[[Run], float]) -> float:
        return statistics.median(value(run) for run in self.runs)

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    def by(self, unit: Figure | None) -> list[float]:
        """CPU per request in a unit, round by round; nothing where the unit does not count."""
        costs = {run.round: run.cpu_per_request for run in unit.runs} if unit and unit.valid else {}
        return [run.cpu_per_request / costs[run.round] for run in self.runs if run.round in costs]


@dataclass
class Results:
    """Everything of one `python -m bench`."""

    machine: dict[str, object]
    options: dict[str, object]
    versions: dict[str, str]
    absent: dict[str, str] = field(
        default_factory=dict
    )  # proxy or topology that cannot be -> what is missing
    broken: dict[str, str] = field(default_factory=dict)  # proxy and where it did not start -> what it said
    figures: list[Figure] = field(default_factory=list)
    handshakes: list[Handshakes] = field(default_factory=list)
    slow: list[Slow] = field(default_factory=list)
    idle: list[Idle] = field(default_factory=list)
    ready: list[Ready] = field(default_factory=list)

    def figure(self, scenario: Scenario, proxy: str) -> Figure | None:
        return next((f for f in self.figures if f.scenario == scenario and f.proxy == proxy), None)

    def scenarios(self) -> list[Scenario]:
        return list(dict.fromkeys(figure.scenario for figure in self.figures))

    def proxies(self) -> list[str]:
        return list(self.versions)

    @property
    def valid(self) -> bool:
        wrong = any(idle.errors for idle in self.idle) or self.broken
        return not wrong and all(one.valid for one in (*self.figures, *self.handshakes, *self.slow))

    def compare(self) -> None:
        """Fill in the ratios. In one round, so that what the machine did meanwhile hit both."""
        handshakes.compare(self.handshakes)
        for figure in self.figures:
            figure.ratios = figure.by(self.figure(figure.scenario, FLOOR))
            figure.to_haproxy = figure.by(self.figure(figure.scenario, HAPROXY))
            figure.to_direct = figure.by(self.figure(figure.scenario, DIRECT))

    def warnings(self) -> list[str]:
        """What a reader must know before believing the table."""
        runs = [run for figure in self.figures for run in figure.runs]
        lines = [f"{name} did not take part: {why}" for name, why in self.absent.items()]
        lines += [f"{name} did not start: {why.splitlines()[-1]}" for name, why in self.broken.items()]
        every = [*runs, *(run for one in (*self.handshakes, *self.slow) for run in one.runs)]
        busy = sum(run.others_share > BUSY_SHARE for run in every)
        stolen = sum(run.stolen_share > STOLEN_SHARE for run in every)
        if busy:
            lines.append(
                f"{busy} of {len(every)} runs shared the machine with other programs (more than "
                f"{BUSY_SHARE:.0%} of a CPU): these figures are not for publication"
            )
        if stolen:
            lines.append(
                f"in {stolen} of {len(every)} runs the hypervisor withheld over {STOLEN_SHARE:.0%} of a CPU"
            )
        for figure in self.figures:
            opened = [run.upstream_connections for run in figure.runs]
            pooled = figure.proxy not in (FLOOR, DIRECT) and figure.scenario.topology != "transparent-tcp"
            if pooled and opened and min(opened) > figure.scenario.connections:
                lines.append(
                    f"{figure.proxy}, {figure.scenario}: at least {min(opened)} new upstream connections in "
                    "every run, its pool does not hold"
                )
        if off := [run for run in runs if run.requests and abs(run.clock_check - 1) > 0.05]:
            lines.append(f"in {len(off)} runs utime+stime and the CPU clock differ by more than 5 %")
        if self.machine["proxy_cpus"] == self.machine["load_cpus"]:
            lines.append("one CPU only: proxies and load share it, nothing here can be compared")
        return lines

    def to_json(self) -> dict[str, Any]:
        figures = []
        for figure in self.figures:
            entry: dict[str, Any] = {
                **asdict(figure.scenario),
                "proxy": figure.proxy,
                "valid": figure.valid,
                "errors": figure.errors,
                "failures": figure.failures,
                "ratios": figure.ratios,
                "to_haproxy": figure.to_haproxy,
                "to_direct": figure.to_direct,
                "runs": [asdict(run) for run in figure.runs],
            }
            figures.append(entry)
        return {
            "format": 1,
            "machine": self.machine,
            "options": self.options,
            "versions": self.versions,
            "absent": self.absent,
            "broken": self.broken,
            "warnings": self.warnings(),
            "valid": self.valid,
            "load": figures,
            "handshakes": [asdict(one) for one in self.handshakes],
            "slow": [asdict(one) for one in self.slow],
            "idle": [asdict(idle) for idle in self.idle],
            "ready": [asdict(ready) for ready in self.ready],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Results:
        """Raises ValueError for a file of another format."""
        if data.get("format") != 1:
            raise ValueError("not a results file of format 1")
        # Files from before HTTP/2 have no streams, and no ratios to HAProxy: those follow from their runs.
        figures = [
            Figure(
                Scenario(entry["topology"], entry["size"], entry["connections"], entry.get("streams", 1)),
                entry["proxy"],
                [Run(**run) for run in entry["runs"]],
                entry["failures"],
            )
            for entry in data["load"]
        ]
        results = cls(
            data["machine"],
            data["options"],
            data["versions"],
            data["absent"],
            data["broken"],
            figures,
            [_handshakes(entry) for entry in data.get("handshakes", ())],  # older files have none
            [_slow(entry) for entry in data.get("slow", ())],
            [Idle(**idle) for idle in data["idle"]],
            [Ready(**ready) for ready in data["ready"]],
        )
        results.compare()
        return results


def _handshakes(entry: dict[str, Any]) -> Handshakes:
    return Handshakes(**{**entry, "runs": [handshakes.Run(**run) for run in entry["runs"]]})


def _slow(entry: dict[str, Any]) -> Slow:
    return Slow(**{**entry, "runs": [slow.Run(**run) for run in entry["runs"]]})
