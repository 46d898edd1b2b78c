"""Behind a redirect: traffic does pass through the proxy, and nothing is left of the networks it was in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from kit.intercept import MISSING
from kit.limits import DEADLINE, wait_until

from bench import campaign, network, redirect
from bench.campaign import Missing, Plan
from bench.machine import BENCH, choose_cpus
from bench.network import Forbidden, own_network
from bench.proxies import DIRECT, SERVICE, Proxy, Unavailable
from bench.proxies.fastmesh import Fastmesh
from bench.proxies.floor import Floor
from bench.proxies.nginx import BODY
from bench.redirect import run_redirected
from bench.stage import ANY, Ground, fetch, run_backend

needs_networks = pytest.mark.skipif(bool(MISSING), reason=MISSING)
CONNECTIONS = 8
OWN = Path("/proc/thread-self/ns/net")


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with run_backend(tmp_path, choose_cpus(), 64) as ground:
        yield ground


def fastmesh(name: str = "fastmesh") -> Proxy:
    # Without TLS it needs no identities.
    return Fastmesh(cast("Any", None), name, keep_port=name == "fastmesh-keep")


@needs_networks
@pytest.mark.parametrize(
    ("proxy", "topology", "pooled"),
    [
        (Floor("floor"), "transparent", False),
        (fastmesh(), "transparent", True),
        (fastmesh("fastmesh-keep"), "transparent", True),
        (fastmesh(), "transparent-tcp", False),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_what_clients_dial_passes_through_the_proxy(
    ground: Ground, proxy: Proxy, topology: Any, pooled: bool
) -> None:
    here = OWN.readlink()
    with run_redirected(proxy, topology, ground, CONNECTIONS) as actor:
        assert actor.address == SERVICE
        assert OWN.readlink() == here
        with actor.ground.inside():
            before = actor.ground.accepted()
            for _ in range(3):
                assert fetch(actor.port, "/", address=SERVICE) == BODY
            # The proxy's connections: one for each client's, or one of its pool; and the one that asks.
            assert actor.ground.accepted() - before == (1 if pooled else 4)
    assert not actor.alive()


@needs_networks
def test_the_floor_without_redirect_is_dialled_where_it_listens(ground: Ground) -> None:
    with run_redirected(Floor(DIRECT), "transparent", ground, CONNECTIONS) as actor:
        assert actor.address == "127.0.0.1"
        with actor.ground.inside():
            assert fetch(actor.port, "/") == BODY
            rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
    assert rules.stdout == ""


@needs_networks
def test_rules_that_let_connections_around_the_proxy_measure_nothing(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaking = redirect.RULES.replace("{outbound: {}}", "{outbound: {exclude_cidrs: [10.0.0.0/8]}}")
    monkeypatch.setattr(redirect, "RULES", leaking)
    with (
        own_network() as own,
        own.inside(),
        run_backend(ground.directory, ground.cpus, 64, address=ANY) as backend,
        pytest.raises(Unavailable, match="go around the proxy"),
    ):
        redirect.take_over(own, backend)


STAGED = """
import signal, sys, tempfile
from pathlib import Path
from bench.machine import choose_cpus
from bench.proxies.floor import Floor
from bench.redirect import run_redirected
from bench.stage import run_backend

signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as bench/__main__.py
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
with run_backend(Path(sys.argv[1]), choose_cpus(), 64) as ground:
    with run_redirected(Floor("floor"), "transparent", ground, 8) as actor:
        print(actor.processes[0].pid, flush=True)
        signal.pause()
"""


def residents(namespace: str) -> list[str]:
    """The processes in a network namespace."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str((entry / "ns" / "net").readlink()) == namespace:
                    found.append(entry.name)
            except OSError:  # ended since it was listed
                continue
    return found


@needs_networks
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_nothing_is_left_of_a_bench_that_was_ended(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", STAGED, str(tmp_path)]
    path = (os.environ.get("PYTHONPATH"), str(BENCH.parent))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as bench:
        assert bench.stdout
        floor = bench.stdout.readline().strip()
        assert floor, "it did not start"
        namespace = str(Path(f"/proc/{floor}/ns/net").readlink())
        assert namespace != str(OWN.readlink())
        assert len(residents(namespace)) >= 2  # the floor and the backend
        bench.send_signal(number)
        bench.wait(DEADLINE)
    # Nobody is in it and nobody else has a descriptor of it: the kernel removes it, with all its rules.
    wait_until(lambda: not residents(namespace), "an empty network namespace")


def forbidden(_: int) -> None:
    raise PermissionError(1, "Operation not permitted", "unshare")


def transparent(*more: str, parts: tuple[str, ...] = ("load",)) -> Plan:
    return cast("Plan", SimpleNamespace(topologies=("transparent", "transparent-tcp", *more), parts=parts))


def test_without_root_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "unshare", forbidden)
    absent = campaign.without_networks(transparent("plain"))
    assert set(absent) == {"transparent", "transparent-tcp"}
    assert "operation not permitted" in absent["transparent"]
    assert "run the bench as root" in absent["transparent"]
    assert campaign.without_networks(transparent(parts=("idle",))) == {}
    with pytest.raises(Forbidden, match="run the bench as root"):
        campaign.without_networks(transparent())


@pytest.mark.parametrize(("program", "package"), [("nft", "nftables"), ("ip", "iproute2")])
def test_a_program_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, program: str, package: str
) -> None:
    found: Callable[[str], str | None] = lambda name: None if name == program else name  # noqa: E731
    monkeypatch.setattr(network, "shutil", SimpleNamespace(which=found))
    with pytest.raises(Missing, match=rf"{program} is not installed \(Debian: {package}\)"):
        campaign.without_networks(transparent())
