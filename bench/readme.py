"""The figures in README.md, between `<!-- bench:begin -->` and `<!-- bench:end -->`: a run in short."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench.handshakes import KINDS as HANDSHAKES
from bench.idle import Idle, Ready
from bench.load import Scenario
from bench.proxies import DIRECT
from bench.report import NONE, WITHOUT_FLOOR, table
from bench.results import BUSY_SHARE, FLOOR, Figure, Results

BEGIN: Final = "<!-- bench:begin -->\n"
END: Final = "<!-- bench:end -->\n"
NAMES: Final = {"haproxy": "HAProxy", "envoy": "Envoy", "fastmesh": "**fastmesh**"}
SIZES: Final = {"small": "", "large": ", 1 MiB", "message": ", 1 KiB messages"}
MIB: Final = 1 << 20
LEGEND: Final = (
    "Floor: a C program that receives and sends and parses nothing; for the mesh two of them in plaintext. "
    "transparent: a plain hop that the client knows nothing of, behind the redirect of `fastmesh intercept`, "
    "and so is its floor; transparent-tcp: the same as opaque bytes. "
    "grpc: requests over HTTP/2 on all sides, two hops with mutual TLS between; grpc-stream: messages "
    "there and back on long streams. slow-stream: what is left of the throughput of 100 streams of a "
    "connection beside one whose reader has stopped. Handshakes: a mutual-TLS connection with one request."
)


def renew(results: Results, file: Path) -> None:
    """Replace what stands between the marks. Raises ValueError if they are not there."""
    text = file.read_text()
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (begun and ended):
        raise ValueError(f"{file}: no marks {BEGIN.strip()} and {END.strip()}")
    file.write_text(before + BEGIN + block(results) + END + after)


def block(results: Results) -> str:
    """Markdown: what was measured, the costs, the memory, the picture."""
    parts = [_setting(results), _costs(results), LEGEND, _rest(results)]
    return "\n\n".join([*filter(None, parts), "![CPU per request](docs/bench.png)"]) + "\n"


def _setting(results: Results) -> str:
    runs = [run for one in (*results.figures, *results.handshakes, *results.slow) for run in one.runs]
    busy = sum(run.others_share > BUSY_SHARE for run in runs)
    machine, options = results.machine, results.options
    return (
        "CPU µs per request (1 MiB bodies: per MiB) and × floor; in handshakes and over HTTP/2, × HAProxy. "
        f"One worker; medians of {options['rounds']} interleaved rounds of {options['seconds']} s on a "
        f"{'virtual ' if machine['virtual_machine'] else ''}machine of {machine['cpus']} CPUs"
        + (f"; {busy} of the {len(runs)} runs shared it with other programs." if busy else ".")
    )


def _columns(results: Results) -> list[str]:
    """All but the floor without redirect, which is a unit of the full report only."""
    return [proxy for proxy in results.proxies() if proxy != DIRECT]


def _costs(results: Results) -> str:
    proxies = _columns(results)
    rows = [_row(results, scenario) for scenario in results.scenarios()]
    for kind in HANDSHAKES:
        shakes = {one.proxy: one for one in results.handshakes if one.kind == kind}
        if shakes:
            cells = [
                _valued(f"{one.cost:.0f}" if one.valid else None, one.ratio)
                if (one := shakes.get(proxy))
                else NONE
                for proxy in proxies
            ]
            rows.append([f"handshake, {kind}", "1", *cells])
    slow = {one.proxy: one for one in results.slow}
    if slow:
        ratios = [one.ratio if (one := slow.get(proxy)) else None for proxy in proxies]
        cells = [
            NONE if proxy not in slow else "✗" if ratio is None else f"{ratio:.2f}"
            for proxy, ratio in zip(proxies, ratios, strict=True)
        ]
        rows.append(["slow-stream", "1×100", *cells])
    return table(["topology", "connections", *(NAMES.get(proxy, proxy) for proxy in proxies)], rows)


def _row(results: Results, scenario: Scenario) -> list[str]:
    cells = []
    for proxy in _columns(results):
        figure = results.figure(scenario, proxy)
        cells.append(NONE if figure is None else _valued(_cost(figure), _ratio(figure)))
    return [scenario.topology + SIZES[scenario.size], scenario.load, *cells]


def _cost(figure: Figure) -> str | None:
    if not figure.valid:
        return None
    if figure.scenario.size == "large":
        return f"{figure.median(lambda run: run.cpu_per_mib):.0f}"
    return f"{figure.median(lambda run: run.cpu_per_request):.1f}"


def _ratio(figure: Figure) -> float | None:
    ratios = figure.to_haproxy if figure.scenario.topology in WITHOUT_FLOOR else figure.ratios
    return statistics.median(ratios) if ratios else None


def _valued(cost: str | None, ratio: float | None) -> str:
    if cost is None:
        return "✗"
    return cost if ratio is None else f"{cost} ({ratio:.2f})"


IDLE: Final = {
    "plain": "idle connection, plaintext, KiB",
    "in": "idle connection, mutual TLS, KiB",
    "h2": "idle connection, HTTP/2 over mutual TLS, KiB",
    "h2-streams": "idle open stream, KiB",
}
READY: Final[dict[str, Callable[[Ready], str]]] = {
    "at rest, all its processes, MiB PSS": lambda ready: f"{ready.pss / MIB:.1f}",
    "ready after, s": lambda ready: f"{statistics.median(ready.seconds):.2f}",
}


def _rest(results: Results) -> str:
    """A table of memory and starts, in which the floor has no column."""
    proxies = [proxy for proxy in _columns(results) if proxy != FLOOR]
    rows = []
    for kind, words in IDLE.items():
        held = {idle.proxy: idle for idle in results.idle if idle.kind == kind}
        if held:
            rows.append([words, *(_held(held.get(proxy)) for proxy in proxies)])
    ready = {one.proxy: one for one in results.ready if one.seconds}
    if ready:
        for words, value in READY.items():
            rows.append([words, *(value(ready[proxy]) if proxy in ready else NONE for proxy in proxies)])
    return table(["", *(NAMES.get(proxy, proxy) for proxy in proxies)], rows) if rows else ""


def _held(idle: Idle | None) -> str:
    if idle is None:
        return NONE
    return "✗" if idle.errors else f"{idle.per_connection / 1024:.1f}"
