"""The load: wrk, closed loop, and what a proxy spends meanwhile. Rounds interleave: drift hits all alike."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from bench.machine import BENCH, first_line, ticks
from bench.processes import child_setup, cpu, pss
from bench.proxies.nginx import accepted
from bench.stage import HOST, Actor, Ground, Topology, fetch

Size = Literal["small", "large"]
PATHS: Final[dict[Size, str]] = {"small": "/", "large": "/large"}
MIB: Final = 1 << 20
WRK: Final = "wrk"
FIRST: Final = 3  # the first warm-up is that much longer: a pool of 512 TLS connections takes a while to fill


@dataclass(frozen=True)
class Scenario:
    topology: Topology
    size: Size
    connections: int

    def __str__(self) -> str:
        return f"{self.topology} {self.size} c={self.connections}"


@dataclass(frozen=True)
class Timing:
    rounds: int
    seconds: int
    warm_up: int


@dataclass(frozen=True)
class Run:
    """One measured run of wrk against one proxy. Times in microseconds, memory in bytes."""

    round: int
    requests: int
    requests_per_second: float
    cpu_per_request: float
    cpu_per_mib: float
    p50: float
    p99: float
    pss: int
    proxy_cpu_share: float  # of one CPU: 1.0 = the proxy had no time left
    clock_check: float  # utime+stime of /proc/PID/stat by the CPU clock: 1.0 but for rounding
    others_share: float  # CPU time of programs that are no part of the bench, by wall time
    stolen_share: float  # CPU time that the hypervisor withheld, by wall time
    upstream_connections: (
        int  # that reached the backend during the run: many mean that the pool does not hold
    )
    errors: dict[str, int] = field(default_factory=dict)


class Failed(Exception):
    """A run that gave no figure at all."""


def run_wrk(
    port: int, size: Size, connections: int, seconds: int, cpus: frozenset[int]
) -> subprocess.Popen[str]:
    argv = [WRK, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
    argv += ["-s", str(BENCH / "wrk.lua"), "-H", f"Host: {HOST}", f"http://127.0.0.1:{port}{PATHS[size]}"]

    return subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=child_setup(cpus),  # noqa: PLW1509  there are no threads
    )


def finish_wrk(popen: subprocess.Popen[str], deadline: float) -> dict[str, int]:
    try:
        output, _ = popen.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.communicate()
        raise Failed("wrk did not end") from None
    except BaseException:
        popen.kill()
        popen.wait()
        raise
    for line in output.splitlines():
        if line.startswith("JSON "):
            totals: dict[str, int] = json.loads(line[5:])
            return totals
    raise Failed(f"wrk: {output.strip()[-300:]}")


def measure(actor: Actor, scenario: Scenario, number: int, timing: Timing, ground: Ground) -> Run:
    """Warm up, discard, measure. Raises Failed if there is nothing to report."""
    if not actor.alive():
        raise Failed(f"has ended: {actor.words()}")
    load = (actor.port, scenario.size, scenario.connections)
    warm_up = timing.warm_up * (FIRST if number == 0 else 1)
    finish_wrk(run_wrk(*load, warm_up, ground.cpus.load), warm_up + 30)
    everybody = [*actor.processes, ground.backend]
    wall, machine = time.monotonic(), ticks(ground.cpus.all)
    bench_before, children_before = cpu(everybody).seconds, children()
    connected = _accepted(ground)
    before = cpu(actor.processes)
    popen = run_wrk(*load, timing.seconds, ground.cpus.load)
    try:
        time.sleep(timing.seconds * 0.7)
        memory = pss(actor.processes)
    finally:
        totals = finish_wrk(popen, timing.seconds + 30)
    after = cpu(actor.processes)
    bench_spent = cpu(everybody).seconds - bench_before + children() - children_before
    wall, machine_after = time.monotonic() - wall, ticks(ground.cpus.all)
    if not totals["requests"]:
        raise Failed(f"no request answered: {totals}; it printed: {actor.words()}")
    errors = {
        kind: totals[kind] for kind in ("connect", "read", "write", "timeout", "status") if totals[kind]
    }
    if gone := len(before.members - after.members):
        errors["processes_ended"] = gone
    if scenario.size == "large" and totals["bytes"] < totals["requests"] * MIB:
        errors["short_bodies"] = 1
    spent = after.seconds - before.seconds
    duration = totals["microseconds"] / 1e6
    return Run(
        round=number,
        requests=totals["requests"],
        requests_per_second=totals["requests"] / duration,
        cpu_per_request=spent * 1e6 / totals["requests"],
        cpu_per_mib=spent * 1e6 / (totals["bytes"] / MIB),
        p50=totals["p50"],
        p99=totals["p99"],
        pss=memory,
        proxy_cpu_share=spent / duration,
        clock_check=(after.by_ticks - before.by_ticks) / spent if spent else 0.0,
        others_share=max(0.0, machine_after.busy - machine.busy - bench_spent) / wall,
        stolen_share=(machine_after.stolen - machine.stolen) / wall,
        upstream_connections=_accepted(ground) - connected - 1,  # the one that asks is counted
        errors=errors,
    )


def _accepted(ground: Ground) -> int:
    return accepted(fetch(ground.port, "/accepted").decode())


def children() -> float:
    """CPU seconds of this program and of the wrk runs that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def rounds(
    actors: list[Actor],
    scenario: Scenario,
    timing: Timing,
    ground: Ground,
    say: Callable[[str], None],
) -> Iterator[tuple[str, Run | str]]:
    """A B C, A B C, ...: yields (proxy, run), or (proxy, why there is none)."""
    for number in range(timing.rounds):
        for actor in actors:
            try:
                run = measure(actor, scenario, number, timing, ground)
            except Failed as failure:
                say(f"{scenario} round {number + 1}: {actor.name}: {failure}")
                yield actor.name, str(failure)
                continue
            say(
                f"{scenario} round {number + 1}: {actor.name:9} {run.requests_per_second:9.0f}/s "
                f"{run.cpu_per_request:8.2f} µs/request {'ERRORS ' + str(run.errors) if run.errors else ''}"
            )
            yield actor.name, run


def wrk_version() -> str:
    """Raises Failed if wrk is not installed."""
    if not shutil.which(WRK):
        raise Failed("wrk is not installed (Debian: wrk)")
    return first_line([WRK, "-v"]).split()[1]
