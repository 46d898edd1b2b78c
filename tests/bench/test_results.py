"""What becomes of runs: medians, ratios within a round; a figure with errors never shows as a number."""

from __future__ import annotations

import json
from typing import Any

from bench import handshakes
from bench.handshakes import Handshakes
from bench.load import Run, Scenario
from bench.report import markdown
from bench.results import Figure, Results

SCENARIO = Scenario("plain", "small", 64)
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


def row(made: Results, proxy: str) -> str:
    return next(line for line in markdown(made).splitlines() if line.startswith(f"| {proxy} | 64 "))


def test_ratios_are_taken_within_a_round() -> None:
    # The machine was three times slower in the second round: medians of all rounds would not show 1.5.
    floor = Figure(SCENARIO, "floor", [run(0, 10.0), run(1, 30.0), run(2, 10.0)])
    proxy = Figure(SCENARIO, "proxy", [run(0, 15.0), run(1, 45.0), run(2, 20.0)])
    made = results(floor, proxy)
    assert proxy.ratios == [1.5, 1.5, 2.0]
    assert proxy.ratio == 1.5
    assert "1.50 | 1.50–2.00" in row(made, "proxy")


def test_a_figure_with_errors_is_no_figure() -> None:
    floor = Figure(SCENARIO, "floor", [run(0, 10.0)])
    cheap = Figure(SCENARIO, "cheap", [run(0, 1.0, errors={"status": 7})])
    made = results(floor, cheap)
    assert not made.valid
    assert "0.10" not in markdown(made)
    assert "✗" in row(made, "cheap")
    assert "7 status" in row(made, "cheap")


def test_an_invalid_floor_is_no_unit() -> None:
    floor = Figure(SCENARIO, "floor", [run(0, 10.0, errors={"read": 1})])
    proxy = Figure(SCENARIO, "proxy", [run(0, 15.0)])
    results(floor, proxy)
    assert proxy.ratio is None


def test_a_run_that_failed_makes_the_figure_invalid() -> None:
    figure = Figure(SCENARIO, "proxy", [run(0, 15.0)], failures=["has ended"])
    assert not figure.valid


def test_a_busy_machine_and_a_leaking_pool_are_told() -> None:
    figure = Figure(SCENARIO, "proxy", [run(0, 15.0, others_share=0.5, upstream_connections=900)])
    warnings = "\n".join(results(figure).warnings())
    assert "shared the machine" in warnings
    assert "900 new upstream connections" in warnings


def test_the_results_file_holds_everything() -> None:
    figure = Figure(SCENARIO, "proxy", [run(0, 15.0)], failures=["has ended"])
    made = results(figure)
    again = Results.from_json(json.loads(json.dumps(made.to_json())))
    assert again.figures == made.figures
    assert markdown(again) == markdown(made)


def made_handshakes(proxy: str, *costs: float, **changes: Any) -> Handshakes:
    runs = [handshakes.Run(number, 100, cost, 0.0, 0.0) for number, cost in enumerate(costs)]
    return Handshakes(proxy, "resumed", runs, **changes)


def test_handshakes_are_compared_within_a_round() -> None:
    made = results()
    made.versions = {"haproxy": "1", "fastmesh": "1", "nginx": "1"}
    made.handshakes = [
        made_handshakes("haproxy", 400.0, 1200.0, 400.0),
        made_handshakes("fastmesh", 200.0, 600.0, 400.0),
        made_handshakes("nginx", 400.0, failures=["sessions are not resumed as asked"]),
    ]
    made.compare()
    assert made.handshakes[1].ratios == [0.5, 0.5, 1.0]
    text = markdown(made)
    assert "| **fastmesh** | – | – | – | 400 | 0.50 | 0.50–1.00 |" in text
    assert "✗ sessions are not resumed as asked" in text
    assert not made.valid
    again = Results.from_json(json.loads(json.dumps(made.to_json())))
    assert again.handshakes == made.handshakes
    assert markdown(again) == text


def test_a_file_from_before_handshakes_can_be_read() -> None:
    data = results(Figure(SCENARIO, "proxy", [run(0, 15.0)])).to_json()
    del data["handshakes"]
    assert Results.from_json(data).handshakes == []
