"""Whether sockmap would pay: `python -m bench.sockmap tunnel | hop | breaks`. Root, and a kernel with BPF.

tunnel   wrk -> opaque TCP -> backend: recv and send (the floor), fastmesh (splice), an sk_skb program
hop      wrk -> proxy -> backend, and the mesh: with an sk_msg program on the connections between applications
         and proxies, for what both send or only for what applications send, and without
breaks   what an application sees on a connection that a program moves

The ratios are medians over rounds, each by the first of its round: CPU time of all that take part, programs
and kernel threads (`bench/sockmap_parts.py`), for a request; what the whole machine was busy for it, which is
the same on a machine that does nothing else; requests a second; p50.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from unittest import mock

import click

from bench import generators, machine, pki, stage
from bench.generators import Failed
from bench.load import PATHS, Size
from bench.proxies import Proxy, Topology, Unavailable
from bench.proxies.fastmesh import Fastmesh
from bench.proxies.floor import Floor
from bench.sockmap_breaks import CHECKS, Check
from bench.sockmap_parts import (
    FastmeshTunnel,
    Group,
    SockmapTunnel,
    Who,
    attached,
    connect,
    listening,
    tunnel_to,
)

COLUMNS: Final = {"cpu": "CPU", "machine": "machine", "rate": "requests/s", "p50": "p50"}  # of Figures
ROOM: Final = 128  # connections of the backend beside those of the load


@dataclass(frozen=True)
class Variant:
    name: str
    proxy: Proxy
    topology: Topology
    past_tcp: Who | None = None


@dataclass(frozen=True)
class Figures:
    cpu: float  # microseconds for a request
    machine: float  # the same, of whatever ran
    rate: float  # requests a second
    p50: float  # microseconds

    def by(self, other: Figures) -> Figures:
        return Figures(
            self.cpu / other.cpu, self.machine / other.machine, self.rate / other.rate, self.p50 / other.p50
        )


@dataclass(frozen=True)
class Bench:
    group: Group
    directory: Path
    seconds: int

    def run(self, variant: Variant, size: Size, connections: int) -> Figures:
        """Start everything, as connections must be made after a program is there; warm up; measure."""
        everywhere = machine.choose_cpus().all
        cpus = machine.Cpus(everywhere, everywhere)
        back, *others, front = (machine.free_port() for _ in (0, *stage.HOPS[variant.topology]))
        ports = iter((back, *others, front))
        with contextlib.ExitStack() as stack:
            if variant.past_tcp:
                stack.enter_context(attached(self.group, variant.past_tcp, front, back))
            stack.enter_context(mock.patch.object(stage, "free_port", lambda: next(ports)))
            room = 2 * connections + ROOM
            ground = stack.enter_context(stage.run_backend(self.directory, cpus, room))
            actor = stack.enter_context(
                stage.run_proxy(variant.proxy, variant.topology, ground, room, pinned=False)
            )
            load = generators.wrk(actor.port, PATHS[size], connections)
            load.run(1, cpus.all)
            before, busy = self.group.cost(), machine.ticks(cpus.all).busy
            totals = load.run(self.seconds, cpus.all)
            spent, busy = self.group.cost().since(before), machine.ticks(cpus.all).busy - busy
            if totals.errors or not totals.requests or totals.p50 is None:
                raise Failed(f"{variant.name}: {totals.errors or 'no answer'}; it printed: {actor.words()}")
        each = 1e6 / totals.requests
        return Figures(spent * each, busy * each, totals.requests / totals.microseconds * 1e6, totals.p50)


@contextlib.contextmanager
def _bench(seconds: int) -> Iterator[Bench]:
    machine.raise_file_limit()
    with Group() as group, tempfile.TemporaryDirectory(prefix="fastmesh-bench-") as directory:
        yield Bench(group, Path(directory), seconds)


def compare(bench: Bench, variants: list[Variant], size: Size, connections: int, rounds: int) -> bool:
    """Print a line a variant. False if one gave no figure."""
    runs: dict[str, list[Figures]] = {variant.name: [] for variant in variants}
    for number in range(rounds):
        for variant in variants if number % 2 == 0 else reversed(variants):
            try:
                runs[variant.name].append(bench.run(variant, size, connections))
            except (Failed, Unavailable) as error:
                click.echo(f"{variant.name}: {error}", err=True)
                return False
    first = runs[variants[0].name]
    for name, figures in runs.items():
        ratios = [each.by(unit) for each, unit in zip(figures, first, strict=True)]
        columns = [[getattr(ratio, key) for ratio in ratios] for key in COLUMNS]
        words = [f"{statistics.median(c):5.2f} ({min(c):.2f}-{max(c):.2f})" for c in columns]
        click.echo(
            f"{size:6} {connections:4}  {name:30} {statistics.median(f.cpu for f in figures):8.1f}"
            f"  {'  '.join(f'{word:17}' for word in words)}"
        )
    return True


Options = Callable[[Callable[..., None]], Callable[..., None]]


def _options(sizes: str, connections: str) -> Options:
    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in (
            click.option("--rounds", default=5, show_default=True),
            click.option("--seconds", default=2, show_default=True, help="of a measured run"),
            click.option("--size", "sizes", default=sizes, show_default=True, help="small,large (1 MiB)"),
            click.option("--connections", default=connections, show_default=True),
        ):
            command = option(command)
        return command

    return add


def _table(
    make: Callable[[Path], list[list[Variant]]], rounds: int, seconds: int, sizes: str, connections: str
) -> None:
    click.echo(f"{'':13}{'':30} {'us each':>8}  {'  '.join(f'{title:17}' for title in COLUMNS.values())}")
    done = True
    with _bench(seconds) as bench:
        for variants, size, count in itertools.product(
            make(bench.directory), sizes.split(","), connections.split(",")
        ):
            if size not in PATHS:
                raise click.BadParameter(f"--size: {size!r}; known are {', '.join(PATHS)}")
            done &= compare(bench, variants, size, int(count), rounds)
    if not done:
        sys.exit(1)


@click.group(help=__doc__.splitlines()[0] if __doc__ else "")
def main() -> None:
    """Parts of the experiment."""


@main.command(help="Opaque TCP: splice(2), recv and send, an sk_skb program.")
@_options("small,large", "1,64,512")
def tunnel(rounds: int, seconds: int, sizes: str, connections: str) -> None:
    def make(directory: Path) -> list[list[Variant]]:
        fastmesh = FastmeshTunnel(pki.make(directory / "pki"), "fastmesh")
        proxies: list[Proxy] = [fastmesh, Floor(), SockmapTunnel()]
        return [[Variant(proxy.name, proxy, "plain") for proxy in proxies]]

    _table(make, rounds, seconds, sizes, connections)


@main.command(help="Applications and proxies of one host: with and without an sk_msg program between them.")
@_options("small,large", "1,64")
def hop(rounds: int, seconds: int, sizes: str, connections: str) -> None:
    """fastmesh is in the mesh alone: `plain`, it moves bodies with splice(2), which sees nothing there."""

    def make(directory: Path) -> list[list[Variant]]:
        fastmesh = Fastmesh(pki.make(directory / "pki"), "fastmesh")
        stages: list[tuple[Proxy, Topology]] = [(Floor(), "plain"), (fastmesh, "mesh")]
        kinds: tuple[tuple[str, Who | None], ...] = (
            ("", None),
            (", what apps send", "APPS"),
            (", both ways", "BOTH"),
        )
        return [
            [Variant(f"{topology} {proxy.name}{words}", proxy, topology, who) for words, who in kinds]
            for proxy, topology in stages
        ]

    _table(make, rounds, seconds, sizes, connections)


@main.command(help="What an application sees on a connection that a program moves.")
def breaks() -> None:
    click.echo(f"{'':38} {'by TCP':26} {'sk_msg':34} through a tunnel of sk_skb")
    with _bench(1) as bench:
        for name, check in CHECKS.items():
            words = [by_tcp(check), past_tcp(bench, check), through_tunnel(bench, check)]
            click.echo(f"{name:38} {words[0]:26} {words[1]:34} {words[2]}")


def past_tcp(bench: Bench, check: Check) -> str:
    """A check on a connection with an sk_msg program."""
    with listening() as listener:
        port = listener.getsockname()[1]
        with attached(bench.group, "BOTH", port, port):
            return _on(check, port, listener)


def through_tunnel(bench: Bench, check: Check) -> str:
    """A check between the ends of a tunnel with an sk_skb program."""
    with listening() as listener, tunnel_to(listener, bench.directory) as process:
        return _on(check, process.port, listener)


def by_tcp(check: Check) -> str:
    with listening() as listener:
        return _on(check, listener.getsockname()[1], listener)


def _on(check: Check, port: int, listener: socket.socket) -> str:
    client, server = connect(port, listener)
    with client, server:
        return check(client, server)


if __name__ == "__main__":
    main()
