"""`python -m bench`: measure, print a Markdown table, keep the runs as JSON in bench/results/.

Exit codes: 0 all figures valid; 1 at least one is not (a proxy made errors or did not start); 2 bad usage, or
something without which nothing can be measured is missing. A proxy that is not installed is
left out, and named.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from bench import chart, machine, needs, readme, report
from bench.campaign import Missing, Plan, conduct
from bench.network import Forbidden
from bench.results import Results

CHART: Final = machine.ROOT / "docs" / "bench.png"
README: Final = machine.ROOT / "README.md"
TAKE_PART: Final = ("floor", "floor-direct", "nginx", "haproxy", "nghttpx", "envoy", "fastmesh")
KNOWN: Final = (*TAKE_PART, "envoy-h1", "fastmesh-h1", "fastmesh-keep")
TOPOLOGIES: Final = (
    *("plain", "mesh", "transparent", "transparent-tcp"),
    *("handshake", "grpc", "grpc-stream", "slow-stream"),
)
PARTS: Final = ("load", "idle", "ready")


class Words(click.ParamType[tuple[str, ...]]):
    """A comma-separated list of known words."""

    name = "a,b"

    def __init__(self, *known: str) -> None:
        self.known = known

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        words = tuple(dict.fromkeys(filter(None, value.split(","))))
        if not words or (unknown := [word for word in words if word not in self.known]):
            self.fail(
                f"unknown: {', '.join(unknown) if words else '(nothing)'}; known: {', '.join(self.known)}"
            )
        return words


class Counts(click.ParamType[tuple[int, ...]]):
    """A comma-separated list of positive numbers."""

    name = "n,n"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        try:
            numbers = tuple(dict.fromkeys(int(word) for word in value.split(",")))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers", param, ctx)
        if min(numbers) < 1:
            self.fail(f"{min(numbers)} is less than 1", param, ctx)
        return numbers


def say(text: str) -> None:
    click.echo(text, err=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--only",
    type=Words(*KNOWN),
    default=",".join(TAKE_PART),
    help="Proxies, measured in this order; ratios are to the floor and HAProxy. Also: envoy-h1, fastmesh-h1, "
    "fastmesh-keep.",
)
@click.option(
    *("--topology", "--topologies", "topologies"),
    type=Words(*TOPOLOGIES),
    default=",".join(TOPOLOGIES),
    help="Of the load. handshake: mutual TLS, full and resumed, a new connection for each request. "
    "transparent: a plain hop that the client knows nothing of, behind the redirect of `fastmesh intercept`; "
    "transparent-tcp: the same as opaque bytes (both need root and nft). "
    "HTTP/2 on all sides: grpc (requests), grpc-stream (messages on long streams), slow-stream (the same "
    "beside a stopped reader).",
)
@click.option(
    "--parts",
    type=Words(*PARTS),
    help="load: CPU, speed, latency. idle: memory at rest and of idle connections. ready: time to answer.  "
    "[default: all; without the topologies plain and mesh: load]",
)
@click.option("--connections", type=Counts(), default="1,64,512", help="wrk's connections, small bodies.")
@click.option("--large-connections", type=Counts(), default="64", help="wrk's connections, 1 MiB bodies.")
@click.option("--h2-connections", type=click.IntRange(1), default=10, help="Of grpc and grpc-stream.")
@click.option("--h2-streams", type=click.IntRange(1), default=32, help="On each of those connections.")
@click.option(
    "--mesh-connections",
    type=click.IntRange(1, 64),
    help="fastmesh's service option: HTTP/2 connections per worker and endpoint.  [default: its own]",
)
@click.option("--rounds", type=click.IntRange(1), default=4, help="Interleaved; medians are reported.")
@click.option("--seconds", type=click.IntRange(1), default=3, help="Length of one measured run.")
@click.option("--warm-up", type=click.IntRange(1), default=1, help="Seconds before each run, discarded.")
@click.option("--idle-connections", type=click.IntRange(100, 25_000), default=5000)
@click.option("--quick", is_flag=True, help="Smoke test: one short round, 64 connections, 500 idle ones.")
@click.option("--install", is_flag=True, help="First install what is missing (apt-get, pip).")
@click.option(
    "--output", type=click.Path(path_type=Path), help="JSON file.  [default: bench/results/TIME.json]"
)
@click.option("--chart", "picture", is_flag=True, help="Also draw docs/bench.png.")
@click.option("--readme", "in_readme", is_flag=True, help="Also renew the figures in README.md.")
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure nothing; tables and chart from this JSON file.",
)
def main(
    *,
    quick: bool,
    install: bool,
    output: Path | None,
    picture: bool,
    in_readme: bool,
    source: Path | None,
    **plan: Any,
) -> None:
    """What fastmesh costs, beside other proxies; how it is measured: docs/internals/performance.md."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # where Debian keeps nginx and haproxy
    # A terminated bench must leave its `with` blocks: they end the processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if install:
            needs.install(say)
        results = _read(source) if source else _measure(_plan(plan, quick=quick), output)
        click.echo(report.markdown(results), nl=False)
        if picture:
            chart.draw(results, CHART)
            say(f"chart: {CHART}")
        if in_readme:
            readme.renew(results, README)
            say(f"figures: {README}")
    except (Missing, Forbidden, ImportError, ValueError, OSError, subprocess.CalledProcessError) as error:
        say(f"bench: {error}{' (--install brings it)' if isinstance(error, Missing | ImportError) else ''}")
        sys.exit(2)
    sys.exit(0 if results.valid else 1)


def _plan(options: dict[str, Any], *, quick: bool) -> Plan:
    parts = options.pop("parts") or (PARTS if {"plain", "mesh"} & set(options["topologies"]) else ("load",))
    plan = Plan(**options, parts=parts)
    if quick:
        short: dict[str, Any] = {"connections": (64,), "large_connections": (16,), "idle_connections": 500}
        plan = replace(plan, rounds=1, seconds=2, **short)
    return plan


def _measure(plan: Plan, output: Path | None) -> Results:
    results = conduct(plan, say)
    file = output or machine.RESULTS / time.strftime("%Y%m%d-%H%M%S.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results.to_json(), indent=1) + "\n")
    say(f"runs: {file}")
    return results


def _read(source: Path) -> Results:
    try:
        return Results.from_json(json.loads(source.read_text()))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source}: not a results file of this bench ({error!r})") from error


if __name__ == "__main__":
    main()
