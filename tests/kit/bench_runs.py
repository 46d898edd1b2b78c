"""Runs that nobody measured."""

from __future__ import annotations

from typing import Any

from bench import handshakes, slow
from bench.handshakes import Handshakes
from bench.load import Run
from bench.results import Figure, Results

MACHINE: dict[str, object] = {
    "cpu": "test",
    "cpus": 2,
    "virtual_machine": False,
    "kernel": "6",
    "system": "Debian",
    "commit": "0" * 40,
    "uncommitted": False,
    "proxy_cpus": [1],
    "load_cpus": [0],
}


def run(number: int, cpu: float, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "round": number,
        "requests": 1000,
        "requests_per_second": 10_000.0,
        "cpu_per_request": cpu,
        "cpu_per_mib": 0.0,
        "p50": 1.0,
        "p99": 2.0,
        "pss": 1 << 20,
        "proxy_cpu_share": 0.5,
        "clock_check": 1.0,
        "others_share": 0.0,
        "stolen_share": 0.0,
        "upstream_connections": 0,
    }
    return Run(**{**values, **changes})


def results(*figures: Figure) -> Results:
    versions = {figure.proxy: "1" for figure in figures}
    made = Results(MACHINE, {"rounds": 3, "seconds": 1}, versions, figures=list(figures))
    made.compare()
    return made


def made_handshakes(proxy: str, *costs: float, **changes: Any) -> Handshakes:
    runs = [handshakes.Run(number, 100, cost, 0.0, 0.0) for number, cost in enumerate(costs)]
    return Handshakes(proxy, "resumed", runs, **changes)


def slow_run(number: int, alone: float, beside: float, **changes: Any) -> slow.Run:
    return slow.Run(number, alone, beside, 65_535, 0.0, 0.0, **changes)
