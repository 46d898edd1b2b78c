"""The figures in README.md: what stands around them stays, and an invalid one is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.bench_runs import made_handshakes, results, run, slow_run

from bench import readme
from bench.idle import Idle, Ready
from bench.load import Scenario
from bench.results import Figure, Results
from bench.slow import Slow


def made() -> Results:
    mesh, body = Scenario("mesh", "small", 64), Scenario("mesh", "large", 64)
    transparent = Scenario("transparent", "small", 64)
    grpc, stream = Scenario("grpc", "small", 10, 32), Scenario("grpc-stream", "message", 10, 32)
    everything = results(
        Figure(mesh, "floor", [run(0, 20.0)]),
        Figure(mesh, "haproxy", [run(0, 30.0, others_share=0.5)]),
        Figure(mesh, "fastmesh", [run(0, 24.0)]),
        Figure(body, "haproxy", [run(0, 30.0, cpu_per_mib=1900.0)]),
        Figure(transparent, "floor", [run(0, 22.0)]),
        Figure(transparent, "floor-direct", [run(0, 20.0)]),
        Figure(transparent, "fastmesh", [run(0, 27.5)]),
        Figure(grpc, "haproxy", [run(0, 50.0, p50=None, p99=None)]),
        Figure(grpc, "fastmesh", [run(0, 20.0, p50=None, p99=None)]),
        Figure(stream, "haproxy", [run(0, 50.0)]),
        Figure(stream, "fastmesh", [run(0, 5.0, errors={"stream": 1})]),
    )
    everything.handshakes = [made_handshakes("haproxy", 400.0), made_handshakes("fastmesh", 200.0)]
    everything.slow = [
        Slow("haproxy", [slow_run(0, 1000.0, 0.0)]),
        Slow("fastmesh", [slow_run(0, 1e3, 970.0)]),
    ]
    everything.idle = [Idle("fastmesh", "h2-streams", 500, 0, 0, 0, 1126.4, 10.0, 0.0, {})]
    everything.ready = [Ready("fastmesh", [0.32], 36 << 20, None)]
    everything.machine = {**everything.machine, "cpus": 2}
    everything.compare()
    return everything


def test_rows() -> None:
    lines = readme.block(made()).splitlines()
    assert "| topology | connections | floor | HAProxy | **fastmesh** |" in lines
    assert "| mesh | 64 | 20.0 (1.00) | 30.0 (1.50) | 24.0 (1.20) |" in lines
    assert "| mesh, 1 MiB | 64 | – | 1900 | – |" in lines
    assert "| transparent | 64 | 22.0 (1.00) | – | 27.5 (1.25) |" in lines
    assert "| grpc | 10×32 | – | 50.0 (1.00) | 20.0 (0.40) |" in lines
    assert "| grpc-stream, 1 KiB messages | 10×32 | – | 50.0 (1.00) | ✗ |" in lines
    assert "| handshake, resumed | 1 | – | 400 (1.00) | 200 (0.50) |" in lines
    assert "| slow-stream | 1×100 | – | 0.00 | 0.97 |" in lines
    assert "| idle open stream, KiB | – | 1.1 |" in lines
    assert "| ready after, s | – | 0.32 |" in lines
    assert "1 of the 15 runs shared it with other programs." in lines[0]


def test_only_the_block_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text(f"before\n\n{readme.BEGIN}old\n{readme.END}\nafter\n")
    for _ in range(2):
        readme.renew(made(), file)
        assert file.read_text() == f"before\n\n{readme.BEGIN}{readme.block(made())}{readme.END}\nafter\n"


def test_a_file_without_marks_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text(f"{readme.BEGIN}old\n")
    with pytest.raises(ValueError, match="no marks"):
        readme.renew(made(), file)
    assert file.read_text() == f"{readme.BEGIN}old\n"
