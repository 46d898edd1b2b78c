"""The load: a closed loop, and what a proxy spends meanwhile. Rounds interleave: drift hits all alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from bench import generators
from bench.generators import Failed, Generator
from bench.machine import ticks
from bench.processes import cpu, pss
from bench.proxies import Topology
from bench.stage import Actor

Size = Literal["small", "large", "message"]
PATHS: Final[dict[Size, str]] = {"small": "/", "large": "/large"}
MIB: Final = 1 << 20
FIRST: Final = 3  # the first warm-up is that much longer: a pool of 512 TLS connections takes a while to fill


@dataclass(frozen=True)
class Scenario:
    topology: Topology
    size: Size
    connections: int
    streams: int = 1  # at once on each connection

    def __str__(self) -> str:
        return f"{self.topology} {self.size} c={self.load}"

    @property
    def load(self) -> str:
        """Connections, and streams on each where there are several."""
        return str(self.connections) if self.streams == 1 else f"{self.connections}×{self.streams}"

    def generator(self, actor: Actor) -> Generator:
        if self.topology == "grpc":
            return generators.h2load(actor.port, self.connections, self.streams, actor.ground.directory)
        if self.topology == "grpc-stream":
            return generators.streams(actor.port, self.connections, self.streams)
        return generators.wrk(actor.address, actor.port, PATHS[self.size], self.connections)


@dataclass(frozen=True)
class Timing:
    rounds: int
    seconds: int
    warm_up: int


@dataclass(frozen=True)
class Run:
    """One measured run against one proxy. Times in microseconds, memory in bytes.

    A request of `grpc-stream` is a message with its echo.
    """

    round: int
    requests: int
    requests_per_second: float
    cpu_per_request: float
    cpu_per_mib: float
    p50: float | None  # h2load has none
    p99: float | None
    pss: int
    proxy_cpu_share: float  # of one CPU: 1.0 = the proxy had no time left
    clock_check: float  # utime+stime of /proc/PID/stat by the CPU clock: 1.0 but for rounding
    others_share: float  # CPU time of programs that are no part of the bench, by wall time
    stolen_share: float  # CPU time that the hypervisor withheld, by wall time
    upstream_connections: (
        int  # that reached the backend during the run: many mean that the pool does not hold
    )
    errors: dict[str, int] = field(default_factory=dict)


def total_errors(all_: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The errors of several runs, by kind."""
    total: dict[str, int] = {}
    for errors in all_:
        for kind, count in errors.items():
            total[kind] = total.get(kind, 0) + count
    return total


def measure(actor: Actor, scenario: Scenario, number: int, timing: Timing) -> Run:
    """Warm up, discard, measure. Raises Failed if there is nothing to report."""
    ground = actor.ground
    if not actor.alive():
        raise Failed(f"has ended: {actor.words()}")
    generator = scenario.generator(actor)
    generator.run(timing.warm_up * (FIRST if number == 0 else 1), ground.cpus.load)
    everybody = [*actor.processes, ground.backend]
    wall, machine = time.monotonic(), ticks(ground.cpus.all)
    bench_before, children_before = cpu(everybody).seconds, children()
    connected = ground.accepted()
    before = cpu(actor.processes)
    popen = generator.start(timing.seconds, ground.cpus.load)
    try:
        time.sleep(timing.seconds * 0.7)
        memory = pss(actor.processes)
    finally:
        totals = generator.finish(popen, timing.seconds)
    after = cpu(actor.processes)
    bench_spent = cpu(everybody).seconds - bench_before + children() - children_before
    wall, machine_after = time.monotonic() - wall, ticks(ground.cpus.all)
    if not totals.requests:
        raise Failed(f"no request answered: {totals.errors}; it printed: {actor.words()}")
    errors = dict(totals.errors)
    if gone := len(before.members - after.members):
        errors["processes_ended"] = gone
    if scenario.size == "large" and totals.bytes < totals.requests * MIB:
        errors["short_bodies"] = 1
    spent = after.seconds - before.seconds
    duration = totals.microseconds / 1e6
    return Run(
        round=number,
        requests=totals.requests,
        requests_per_second=totals.requests / duration,
        cpu_per_request=spent * 1e6 / totals.requests,
        cpu_per_mib=spent * 1e6 / (totals.bytes / MIB) if totals.bytes else 0.0,
        p50=totals.p50,
        p99=totals.p99,
        pss=memory,
        proxy_cpu_share=spent / duration,
        clock_check=(after.by_ticks - before.by_ticks) / spent if spent else 0.0,
        others_share=max(0.0, machine_after.busy - machine.busy - bench_spent) / wall,
        stolen_share=(machine_after.stolen - machine.stolen) / wall,
        upstream_connections=max(0, ground.accepted() - connected - 1),  # the one that asks is counted
        errors=errors,
    )


def children() -> float:
    """CPU seconds of this program and of the loads that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def rounds(
    actors: list[Actor], scenario: Scenario, timing: Timing, say: Callable[[str], None]
) -> Iterator[tuple[str, Run | str]]:
    """A B C, A B C, ...: yields (proxy, run), or (proxy, why there is none)."""
    for number in range(timing.rounds):
        for actor in actors:
            try:
                with actor.ground.inside():
                    run = measure(actor, scenario, number, timing)
            except Failed as failure:
                say(f"{scenario} round {number + 1}: {actor.name}: {failure}")
                yield actor.name, str(failure)
                continue
            say(
                f"{scenario} round {number + 1}: {actor.name:9} {run.requests_per_second:9.0f}/s "
                f"{run.cpu_per_request:8.2f} µs/request {'ERRORS ' + str(run.errors) if run.errors else ''}"
            )
            yield actor.name, run
