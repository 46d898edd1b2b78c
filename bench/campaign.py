"""The order of a whole bench run: who takes part, then load by topology, then rest, then starts."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from bench import generators, handshakes, idle, load, machine, network, pki, slow
from bench.handshakes import Handshakes
from bench.load import Scenario
from bench.proxies import REDIRECTED, Proxy, Topology, Unavailable, everyone
from bench.proxies.nginx import BINARY as NGINX
from bench.redirect import run_redirected
from bench.results import Figure, Results
from bench.slow import Slow
from bench.stage import BACKENDS, Actor, Ground, run_backend, run_proxy

SHM: Final = Path("/dev/shm")


@dataclass(frozen=True)
class Plan:
    only: tuple[str, ...]
    topologies: tuple[Topology, ...]
    parts: tuple[str, ...]
    connections: tuple[int, ...]
    large_connections: tuple[int, ...]
    h2_connections: int
    h2_streams: int
    rounds: int
    seconds: int
    warm_up: int
    idle_connections: int
    mesh_connections: int | None

    def scenarios(self, topology: Topology) -> list[Scenario]:
        if topology == "grpc":
            return [Scenario(topology, "small", self.h2_connections, self.h2_streams)]
        if topology == "grpc-stream":
            return [Scenario(topology, "message", self.h2_connections, self.h2_streams)]
        return [
            *(Scenario(topology, "small", count) for count in self.connections),
            *(Scenario(topology, "large", count) for count in self.large_connections),
        ]

    @property
    def timing(self) -> load.Timing:
        return load.Timing(self.rounds, self.seconds, self.warm_up)

    @property
    def most_connections(self) -> int:
        return max(*self.connections, *self.large_connections, self.h2_connections)

    def load_seconds(self, proxies: list[Proxy]) -> int:
        """How long the load takes, about: starts and first warm-ups come on top."""
        total = 0
        for topology in self.topologies:
            taking_part = sum(topology in proxy.topologies for proxy in proxies)
            if topology == "slow-stream":
                length = 2 * self.seconds + self.warm_up
            elif topology == "handshake":
                length = len(handshakes.KINDS) * (self.seconds + self.warm_up)
            else:
                length = len(self.scenarios(topology)) * (self.seconds + self.warm_up)
            total += taking_part * self.rounds * length
        return total


class Missing(Exception):
    """Something without which nothing can be measured."""


@dataclass(frozen=True)
class Setting:
    """What every measurement of a run shares."""

    plan: Plan
    results: Results
    proxies: list[Proxy]
    ground: Ground
    say: Callable[[str], None]

    def broken(self, where: str, reason: Unavailable) -> None:
        self.results.broken[where] = str(reason)
        self.say(f"{where} did not start: {reason}")


def conduct(plan: Plan, say: Callable[[str], None]) -> Results:
    """Raises Missing, and Forbidden. Whatever happens, no process and no network is left."""
    try:
        tools = {"wrk": generators.wrk_version()}
        if "load" in plan.parts and "grpc" in plan.topologies:
            tools["h2load"] = generators.h2load_version()
    except Unavailable as error:
        raise Missing(str(error)) from error
    if not shutil.which(NGINX):
        raise Missing("nginx is not installed (Debian: nginx-light); it is the backend of every measurement")
    without = without_networks(plan)
    cpus = machine.choose_cpus()
    facts = machine.facts(cpus, machine.raise_file_limit()) | {"tools": tools}
    os.sched_setaffinity(0, cpus.load)  # this program must not disturb the proxies
    results = Results(facts, asdict(plan), {}, absent=without)
    # In memory: the large body must not come from a disk.
    with tempfile.TemporaryDirectory(prefix="fastmesh-bench-", dir=SHM if SHM.is_dir() else None) as name:
        directory = Path(name)
        directory.chmod(0o755)  # nginx' worker may be another user
        proxies = _cast(plan, directory, results)
        if "load" in plan.parts:
            say(f"load: about {plan.load_seconds(proxies) / 60:.0f} minutes")
        held = max(plan.most_connections, plan.idle_connections) + idle.WARM
        with run_backend(directory, cpus, 2 * held + 1024) as ground:
            setting = Setting(plan, results, proxies, ground, say)
            if "load" in plan.parts:
                measures = {"handshake": _handshakes, "slow-stream": _slow}
                for topology in plan.topologies:
                    if topology in results.absent:
                        say(f"{topology}: {results.absent[topology]}")
                        continue
                    with _backend(setting, topology) as at:
                        if at:
                            measures.get(topology, _load)(at, topology)
            if "idle" in plan.parts:
                _idle(setting)
            if "ready" in plan.parts:
                results.ready = idle.ready(proxies, plan.rounds, ground, say, setting.broken)
    results.compare()
    return results


def without_networks(plan: Plan) -> dict[str, str]:
    """The topologies that need networks of their own, if there are none here, and why. Where there is nothing
    else to measure, Forbidden, or Missing what could be installed.
    """
    wanted = [topology for topology in plan.topologies if topology in REDIRECTED]
    if not wanted or "load" not in plan.parts:
        return {}
    try:
        network.require()
    except Unavailable as reason:
        if plan.parts == ("load",) and len(wanted) == len(plan.topologies):
            raise reason if isinstance(reason, network.Forbidden) else Missing(str(reason)) from None
        return dict.fromkeys(wanted, str(reason))
    return {}


def _cast(plan: Plan, directory: Path, results: Results) -> list[Proxy]:
    """Those of the wished proxies that are installed; notes versions and absences."""
    known = everyone(pki.make(directory / "pki"), plan.mesh_connections)
    proxies = []
    for name in plan.only:
        try:
            results.versions[name] = known[name].version()
        except Unavailable as reason:
            results.absent[name] = str(reason)
        else:
            proxies.append(known[name])
    return proxies


@contextlib.contextmanager
def _backend(setting: Setting, topology: Topology) -> Iterator[Setting | None]:
    """The setting with the backend that a topology wants; None if that one does not start."""
    kind = BACKENDS.get(topology)
    if kind is None:
        yield setting
        return
    with contextlib.ExitStack() as stack:
        ground = setting.ground
        try:
            new = stack.enter_context(run_backend(ground.directory, ground.cpus, 0, kind))
        except Unavailable as reason:
            setting.broken(f"{kind} ({topology})", reason)
            yield None
            return
        yield replace(setting, ground=new)


@contextlib.contextmanager
def _actors(setting: Setting, topology: Topology) -> Iterator[list[Actor]]:
    """All proxies of a topology run at once, idle but for the one under load: rounds interleave tightly."""
    with contextlib.ExitStack() as stack:
        actors: list[Actor] = []
        for proxy in setting.proxies:
            if topology not in proxy.topologies:
                continue
            try:
                run = run_redirected if topology in REDIRECTED else run_proxy
                starting = run(proxy, topology, setting.ground, setting.plan.most_connections)
                actors.append(stack.enter_context(starting))
            except Unavailable as reason:
                setting.broken(f"{proxy.name} ({topology})", reason)
        yield actors


def _load(setting: Setting, topology: Topology) -> None:
    plan, results = setting.plan, setting.results
    with _actors(setting, topology) as actors:
        for scenario in plan.scenarios(topology):
            figures = {actor.name: Figure(scenario, actor.name) for actor in actors}
            results.figures.extend(figures.values())
            for name, run in load.rounds(actors, scenario, plan.timing, setting.say):
                if isinstance(run, str):
                    figures[name].failures.append(run)
                else:
                    figures[name].runs.append(run)


def _handshakes(setting: Setting, topology: Topology) -> None:
    plan = setting.plan
    with _actors(setting, topology) as actors:
        found = {
            (actor.name, kind): Handshakes(actor.name, kind) for actor in actors for kind in handshakes.KINDS
        }
        setting.results.handshakes.extend(found.values())
        for name, kind, run in handshakes.rounds(actors, plan.timing, setting.say):
            if isinstance(run, str):
                found[name, kind].failures.append(run)
            else:
                found[name, kind].runs.append(run)


def _slow(setting: Setting, topology: Topology) -> None:
    with _actors(setting, topology) as actors:
        found = {actor.name: Slow(actor.name) for actor in actors}
        setting.results.slow.extend(found.values())
        for name, run in slow.rounds(actors, setting.plan.timing, setting.say):
            if isinstance(run, str):
                found[name].failures.append(run)
            else:
                found[name].runs.append(run)


def _idle(setting: Setting) -> None:
    """One proxy at a time: PSS must not be shared with another instance of the same program."""
    for kind in idle.KINDS:
        with _backend(setting, kind) as at:
            if at is None:
                continue
            for proxy in at.proxies:
                if kind in proxy.topologies:
                    _idle_one(at, proxy, kind)


def _idle_one(setting: Setting, proxy: Proxy, kind: Topology) -> None:
    try:
        measured = idle.measure(proxy, kind, setting.plan.idle_connections, setting.ground)
    except Unavailable as reason:
        setting.broken(f"{proxy.name} (idle, {kind})", reason)
        return
    setting.results.idle.append(measured)
    each = measured.per_connection / 1024
    setting.say(f"idle {kind:10} {proxy.name:9} {each:6.2f} KiB each {measured.errors or ''}")
