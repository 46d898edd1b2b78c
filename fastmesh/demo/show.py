"""What the demo shows: a live table on a terminal, one line a second elsewhere, and a summary."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fastmesh.demo.mesh import Mesh
from fastmesh.demo.numbers import Count, latency
from fastmesh.demo.traffic import CONNECTIONS, Traffic, quantile


@dataclass
class Moment:
    """What has happened since the moment before, `seconds` ago."""

    at: float
    seconds: float
    requests: int
    failed: int
    latencies: array[float]
    counts: Mapping[str, Count]
    before: Mapping[str, Count]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _success(good: float, total: float) -> str:
    return f"{100 * good / total:.2f} %" if total else "-"


class Display:
    """`with Display(...) as display: display.update(moment)`."""

    def __init__(self, console: Console, mesh: Mesh) -> None:
        self._console = console
        self._mesh = mesh
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, moment: Moment) -> None:
        if self._live is not None:
            self._live.update(self._table(moment), refresh=True)
            return
        b = moment.counts["svc-b"]
        self._console.print(
            f"{moment.at:4.0f} s  {moment.requests / moment.seconds:7.0f} requests/s"
            f"  success {_success(moment.requests, moment.requests + moment.failed)}"
            f"  p50 {_ms(quantile(moment.latencies, 0.5))}  p99 {_ms(quantile(moment.latencies, 0.99))}"
            f"  TLS handshakes {b.handshakes:.0f} resumed {b.resumed:.0f} refused {b.refused:.0f}",
            highlight=False,
            soft_wrap=True,
        )

    def _table(self, moment: Moment) -> Group:
        table = Table(title=f"fastmesh demo, {moment.at:.0f} s", box=box.SIMPLE_HEAD, title_justify="left")
        table.add_column("", no_wrap=True)
        for name in ("req/s", "success", "p50", "p99", "conns"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_row(
            "client → svc-a → svc-b",
            f"{moment.requests / moment.seconds:.0f}",
            _success(moment.requests, moment.requests + moment.failed),
            _ms(quantile(moment.latencies, 0.5)),
            _ms(quantile(moment.latencies, 0.99)),
            str(CONNECTIONS),
        )
        for name in ("svc-a", "svc-b"):
            now, before = moment.counts[name], moment.before[name]
            table.add_row(
                f"sidecar of {name}",
                f"{max(0.0, now.requests - before.requests) / moment.seconds:.0f}",
                _success(now.good, now.requests),
                _ms(latency(now, before, 0.5)),
                _ms(latency(now, before, 0.99)),
                f"{now.connections:.0f}",
            )
        b = moment.counts["svc-b"]
        tls = Text(
            f"  mutual TLS 1.3: {b.handshakes:.0f} handshakes, {b.resumed:.0f} resumed; "
            f"{b.refused:.0f} strangers refused"
        )
        return Group(table, tls, Text("  Ctrl-C ends the demo", style="dim"))


def introduce(console: Console, mesh: Mesh) -> None:
    """What runs, and how to try it."""
    here = "http://127.0.0.1"
    examples = [
        (f"curl -H 'Host: svc-b' {here}:{mesh.outbound}/", "through both sidecars to svc-b"),
        (f"curl {here}:{mesh.front}/", "svc-a, which calls svc-b"),
        (f"curl {here}:{mesh.inbound}/", "refused: no certificate"),
        (f"curl {here}:{mesh.admin['svc-a']}/metrics", "what svc-a's sidecar counts"),
    ]
    width = max(len(command) for command, _ in examples)
    lines = [
        "Two applications and their two sidecars run; svc-a calls svc-b through them.",
        "Try it while it lasts:",
        *[f"  {command:<{width}}  # {what}" for command, what in examples],
        f"The configuration is in {mesh.directory}.",
        "",
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def summarise(console: Console, traffic: Traffic, counts: Mapping[str, Count], let_in: int) -> None:
    """The whole run in a few lines."""
    total = traffic.succeeded + traffic.failed
    b = counts["svc-b"]
    lines = [
        f"{total} requests in {traffic.seconds:.1f} s ({total / traffic.seconds:.0f} a second), "
        f"{traffic.failed} failed",
        f"latency p50 {_ms(quantile(traffic.latencies, 0.5))}, p99 {_ms(quantile(traffic.latencies, 0.99))}, "
        f"longest {_ms(quantile(traffic.latencies, 1.0))}, both applications included",
        f"mutual TLS 1.3: {b.handshakes:.0f} handshakes, {b.resumed:.0f} of them resumed; "
        f"{b.refused:.0f} strangers refused, {let_in} let in",
    ]
    if traffic.first_failure:
        lines.append(f"the first failure: {traffic.first_failure}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
