"""fastmesh takes every configuration that the bench writes for it; a plan knows who takes part where."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import get_args

import pytest
from kit.limits import DEADLINE

from bench import pki
from bench.__main__ import PARTS, TAKE_PART, TOPOLOGIES, _plan
from bench.campaign import Plan
from bench.machine import free_port
from bench.pki import Pki
from bench.proxies import REDIRECTED, Hop, Role, everyone
from bench.proxies.fastmesh import BINARY
from bench.stage import BACKENDS, HOPS


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return pki.make(tmp_path_factory.mktemp("bench") / "pki")


def plan(*topologies: str) -> Plan:
    options = {
        "only": TAKE_PART,
        "topologies": topologies,
        "parts": None,
        "connections": (1, 64),
        "large_connections": (16,),
        "h2_connections": 10,
        "h2_streams": 32,
        "mesh_connections": None,
        "rounds": 2,
        "seconds": 3,
        "warm_up": 1,
        "idle_connections": 500,
    }
    return _plan(options, quick=False)


@pytest.mark.parametrize("role", get_args(Role))
@pytest.mark.parametrize(
    ("name", "connections"),
    [("fastmesh", None), ("fastmesh", 4), ("fastmesh-h1", None), ("fastmesh-keep", None)],
)
def test_every_configuration_is_valid(
    identities: Pki, tmp_path: Path, role: Role, name: str, connections: int | None
) -> None:
    argv = everyone(identities, connections)[name].argv(Hop(role, free_port(), free_port(), 64), tmp_path)
    done = subprocess.run(
        [BINARY, "check", "-c", argv[-1]], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 0, done.stderr
    written = Path(argv[-1]).read_text()
    assert ("mesh_connections: 4" in written) == (connections == 4 and role in ("out", "h2-out"))
    assert ("protocol: http1" in written) == (name == "fastmesh-h1" and role == "out")
    assert ("protocol: http2" in written) == (role == "h2-in")


def test_every_topology_of_the_load_has_its_hops_and_somebody_who_takes_part(identities: Pki) -> None:
    proxies = everyone(identities).values()
    for topology in TOPOLOGIES:
        assert topology in HOPS
        assert any(topology in proxy.topologies for proxy in proxies if proxy.name == "fastmesh")
    assert set(TOPOLOGIES) >= REDIRECTED
    for topology in BACKENDS:
        assert all(role.startswith("h2-") for role in HOPS[topology])


def test_only_the_load_is_measured_of_a_topology_of_its_own() -> None:
    assert plan("grpc", "slow-stream").parts == ("load",)
    assert plan("plain", "grpc").parts == PARTS


def test_the_time_of_a_plan_counts_those_who_take_part(identities: Pki) -> None:
    known = everyone(identities)
    proxies = [known[name] for name in TAKE_PART]
    # Everybody but nghttpx; three scenarios of four seconds, in two rounds.
    assert plan("mesh").load_seconds(proxies) == 5 * 3 * 4 * 2
    assert plan("grpc").load_seconds(proxies) == 4 * 4 * 2
    assert plan("transparent").load_seconds(proxies) == 6 * 3 * 4 * 2
    assert plan("transparent-tcp").load_seconds(proxies) == 5 * 3 * 4 * 2
    assert plan("slow-stream").load_seconds(proxies) == 4 * 7 * 2
