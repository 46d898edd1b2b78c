"""What becomes of runs: medians, ratios within a round; a figure with errors never shows as a number."""

from __future__ import annotations

import json

from kit.bench_runs import made_handshakes, results, run, slow_run

from bench.idle import KINDS, Idle
from bench.limits import verdicts
from bench.load import Scenario
from bench.report import markdown
from bench.results import Figure, Results
from bench.slow import Slow

SCENARIO = Scenario("plain", "small", 64)


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


def test_a_file_from_before_http2_can_be_read() -> None:
    data = results(
        Figure(SCENARIO, "haproxy", [run(0, 10.0)]), Figure(SCENARIO, "proxy", [run(0, 15.0)])
    ).to_json()
    del data["slow"]
    for entry in data["load"]:
        del entry["streams"], entry["to_haproxy"]
    again = Results.from_json(data)
    assert again.slow == []
    assert again.figures[1].scenario == SCENARIO
    assert again.figures[1].to_haproxy == [1.5]


def limit_words(made: Results) -> list[tuple[str, float | None, bool | None]]:
    return [(one.what, one.ratio, one.met) for one in verdicts(made)]


def test_limits_are_judged_by_their_own_unit() -> None:
    one, many = Scenario("mesh", "small", 1), Scenario("mesh", "small", 64)
    large = Scenario("mesh", "large", 16)
    made = results(
        Figure(one, "floor", [run(0, 50.0)]),
        Figure(one, "haproxy", [run(0, 80.0)]),
        Figure(one, "fastmesh", [run(0, 100.0)]),  # 2.0 floors and 1.25 HAProxies
        Figure(many, "floor", [run(0, 10.0)]),
        Figure(many, "haproxy", [run(0, 20.0)]),
        Figure(many, "fastmesh", [run(0, 14.0)]),
        Figure(large, "haproxy", [run(0, 1000.0)]),
        Figure(large, "fastmesh", [run(0, 900.0, errors={"read": 1})]),
    )
    assert limit_words(made) == [
        ("mesh, c=1: CPU × HAProxy", 1.25, True),
        ("mesh, c=64: CPU × floor", 1.4, False),
        ("mesh, c=16, 1 MiB bodies: CPU × HAProxy", None, None),
    ]
    text = markdown(made)
    assert "| mesh, c=1: CPU × HAProxy | 1.25 | 1.25–1.25 | at most 1.25 | yes |" in text
    assert "| mesh, c=64: CPU × floor | 1.40 | 1.40–1.40 | at most 1.3 | **no** |" in text
    assert "0.90" not in text


def test_http2_is_shown_in_haproxies() -> None:
    scenario = Scenario("grpc", "small", 10, 32)
    made = results(
        Figure(scenario, "haproxy", [run(0, 40.0, p50=None, p99=None)]),
        Figure(scenario, "fastmesh", [run(0, 10.0, p50=None, p99=None)]),
    )
    text = markdown(made)
    assert "grpc, c=10×32<br>× haproxy" in text
    assert "| **fastmesh** | 10×32 | 10,000 | 10.0 | 0.25 | 0.25–0.25 | – | – |" in text
    again = Results.from_json(json.loads(json.dumps(made.to_json())))
    assert again.figures == made.figures


def test_behind_a_redirect_the_floor_without_it_is_a_unit_too() -> None:
    http, opaque = (Scenario(topology, "small", 64) for topology in ("transparent", "transparent-tcp"))
    made = results(
        Figure(http, "floor", [run(0, 12.0)]),
        Figure(http, "floor-direct", [run(0, 10.0)]),
        Figure(http, "fastmesh", [run(0, 18.0)]),
        Figure(opaque, "floor", [run(0, 12.0)]),
        Figure(opaque, "fastmesh", [run(0, 12.0, upstream_connections=65)]),
        Figure(opaque, "envoy", [run(0, 24.0, errors={"read": 1})]),
    )
    text = markdown(made)
    assert "| **fastmesh** | 64 | 10,000 | 18.0 | 1.50 | 1.50–1.50 | 1.80 | 1.80–1.80 | – | – |" in text
    assert "| **fastmesh** | 64 | 10,000 | 12.0 | 1.00 | 1.00–1.00 | – | – | – | – |" in text
    cells = {line.count(" | ") for line in text.splitlines() if "| 64 |" in line}
    assert cells == {14}  # one that is invalid has as many as the others
    assert not any("pool" in line for line in made.warnings())  # opaque connections have none
    again = Results.from_json(json.loads(json.dumps(made.to_json())))
    assert again.figures == made.figures


def test_streams_that_stand_still_are_a_result_and_broken_ones_are_none() -> None:
    made = results()
    made.versions = dict.fromkeys(("haproxy", "envoy", "fastmesh"), "1")
    made.slow = [
        Slow("haproxy", [slow_run(0, 1000.0, 0.0)]),
        Slow("envoy", [slow_run(0, 1000.0, 999.0, errors={"stream": 3})]),
        Slow("fastmesh", [slow_run(0, 1000.0, 800.0), slow_run(1, 500.0, 475.0), slow_run(2, 100.0, 95.0)]),
    ]
    text = markdown(made)
    assert "| haproxy | 1,000 | 0 | 0.00 | 0.00–0.00 | 64 KiB |" in text
    assert "| envoy | ✗ 3 stream |" in text
    assert "999" not in text
    assert "| **fastmesh** | 500 | 475 | 0.95 | 0.80–0.95 | 64 KiB |" in text
    assert [(ratio, met) for _, ratio, met in limit_words(made)] == [(0.95, True)]
    assert not made.valid
    again = Results.from_json(json.loads(json.dumps(made.to_json())))
    assert again.slow == made.slow
    assert markdown(again) == text


def test_idle_streams_stand_beside_idle_connections() -> None:
    made = results()
    made.versions = {"envoy": "1", "nginx": "1"}
    made.idle = [
        Idle("envoy", kind, 500, 0, 0, 0, (number + 1) * 1024.0, 10.0, 0.0, {})
        for number, kind in enumerate(KINDS)
    ]
    made.idle.append(Idle("nginx", "plain", 500, 0, 0, 0, 512.0, 10.0, 0.0, {}))
    text = markdown(made)
    assert "HTTP/2, mutual TLS 1.3: KiB an open stream" in text
    assert "| envoy | 1.00 | 10 | 0.0% | 2.00 | 10 | 0.0% | 3.00 | 10 | 0.0% | 4.00 | 10 | 0.0% |" in text
    assert "| nginx | 0.50 | 10 | 0.0% | – | – | – | – | – | – | – | – | – |" in text
