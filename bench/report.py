"""Results as Markdown: a summary, then every figure with its spread. An invalid one is shown as ✗."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from bench.handshakes import KINDS as HANDSHAKES
from bench.handshakes import UNIT, Handshakes
from bench.idle import Idle
from bench.load import Scenario
from bench.results import Figure, Results

MIB: Final = 1 << 20
NONE: Final = "–"
TOPOLOGIES: Final = {
    "plain": "plain: wrk → proxy → backend",
    "mesh": "mesh: wrk → A → mutual TLS 1.3 → B → backend",
}
SIZES: Final = {"small": "small bodies", "large": "1 MiB bodies"}
KINDS: Final = {"plain": "plaintext", "in": "mutual TLS 1.3"}


def markdown(results: Results) -> str:
    parts = [_setting(results), _warnings(results), _summary(results)]
    scenarios = results.scenarios()
    groups = dict.fromkeys((scenario.topology, scenario.size) for scenario in scenarios)
    for topology, size in groups:
        members = [s for s in scenarios if (s.topology, s.size) == (topology, size)]
        parts.append(_load(results, f"{TOPOLOGIES[topology]}, {SIZES[size]}", members))
    parts += [_handshakes(results), _idle(results), _ready(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _setting(results: Results) -> str:
    machine, options = results.machine, results.options
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return (
        f"{machine['cpu']}, {machine['cpus']} CPUs{' (virtual)' if machine['virtual_machine'] else ''}, "
        f"Linux {machine['kernel']}, {machine['system']}. "
        f"Medians of {options['rounds']} interleaved rounds of {options['seconds']} s. {versions}. "
        f"Commit {str(machine['commit'])[:12] or '?'}"
        f"{' with uncommitted changes' if machine['uncommitted'] else ''}."
    )


def _warnings(results: Results) -> str:
    return "\n".join(f"> **{line}**  " for line in results.warnings())


def _summary(results: Results) -> str:
    """One row a proxy: CPU per request in floors, CPU per MiB, memory."""
    scenarios = results.scenarios()
    if not scenarios:
        return ""
    head = ["CPU per request"]
    for s in scenarios:
        unit = "× floor" if s.size == "small" else "µs/MiB"
        head.append(f"{s.topology}{' 1 MiB' if s.size == 'large' else ''}, c={s.connections}<br>{unit}")
    rows = []
    for proxy in results.proxies():
        row = [_bold(proxy)]
        for scenario in scenarios:
            figure = results.figure(scenario, proxy)
            value = _ratio if scenario.size == "small" else _per_mib
            row.append(_cell(figure, value))
        rows.append(row)
    return table(head, rows)


def _load(results: Results, title: str, scenarios: list[Scenario]) -> str:
    large = scenarios[0].size == "large"
    head = ["proxy", "connections", "requests/s", "µs/MiB" if large else "µs/request"]
    head += ["× floor", "(lowest–highest)", "p50 ms", "p99 ms", "MiB", "CPU used", "errors"]
    rows = []
    for scenario in scenarios:
        for proxy in results.proxies():
            figure = results.figure(scenario, proxy)
            if figure is None:
                continue
            rows.append([_bold(proxy), str(scenario.connections), *_load_cells(figure, large=large)])
    return f"**{title}**\n\n" + table(head, rows)


def _load_cells(figure: Figure, *, large: bool) -> list[str]:
    errors = ", ".join(f"{count} {kind}" for kind, count in figure.errors.items())
    if not figure.valid:
        return ["✗"] * 8 + [f"**invalid: {errors or 'no run'}**"]
    low_high = f"{min(figure.ratios):.2f}–{max(figure.ratios):.2f}" if figure.ratios else NONE
    return [
        f"{figure.median(lambda run: run.requests_per_second):,.0f}",
        _per_mib(figure) if large else f"{figure.median(lambda run: run.cpu_per_request):.1f}",
        _ratio(figure),
        low_high,
        f"{figure.median(lambda run: run.p50) / 1000:.2f}",
        f"{figure.median(lambda run: run.p99) / 1000:.2f}",
        f"{figure.median(lambda run: run.pss) / MIB:.1f}",
        f"{figure.median(lambda run: run.proxy_cpu_share):.0%}",
        "0",
    ]


def _handshakes(results: Results) -> str:
    if not results.handshakes:
        return ""
    head = ["proxy"]
    for kind in HANDSHAKES:
        head += [f"{kind}: µs/connection", f"× {UNIT}", "(lowest–highest)"]
    rows = []
    for proxy in results.proxies():
        by_kind = {one.kind: one for one in results.handshakes if one.proxy == proxy}
        if by_kind:
            cells = [cell for kind in HANDSHAKES for cell in _handshake_cells(by_kind.get(kind))]
            rows.append([_bold(proxy), *cells])
    title = "handshake: client → mutual TLS 1.3 → proxy → backend, a new connection for each request"
    return f"**{title}**\n\n" + table(head, rows)


def _handshake_cells(one: Handshakes | None) -> list[str]:
    if one is None:
        return [NONE] * 3
    if not one.valid:
        return [f"✗ {one.failures[0] if one.failures else 'no run'}", "✗", "✗"]
    if one.ratio is None:
        return [f"{one.cost:.0f}", NONE, NONE]
    return [f"{one.cost:.0f}", f"{one.ratio:.2f}", f"{min(one.ratios):.2f}–{max(one.ratios):.2f}"]


def _idle(results: Results) -> str:
    if not results.idle:
        return ""
    count = results.idle[0].connections
    head = ["proxy"]
    for kind in KINDS.values():
        head += [f"{kind}: KiB a connection", "µs to open one and ask once", "CPU while held"]
    rows = []
    for proxy in results.proxies():
        by_kind = {idle.kind: idle for idle in results.idle if idle.proxy == proxy}
        if by_kind:
            rows.append([_bold(proxy), *(cell for kind in KINDS for cell in _idle_cells(by_kind.get(kind)))])
    return f"**{count:,} idle keep-alive connections** (memory: PSS)\n\n" + table(head, rows)


def _idle_cells(idle: Idle | None) -> list[str]:
    if idle is None:
        return [NONE] * 3
    if idle.errors:
        return [f"✗ {idle.errors}", "✗", "✗"]
    return [f"{idle.per_connection / 1024:.2f}", f"{idle.cpu_per_open:.0f}", f"{idle.cpu_at_rest:.1%}"]


def _ready(results: Results) -> str:
    if not results.ready:
        return ""
    head = ["proxy", "ready after ms", "(lowest–highest)", "PSS at rest, MiB", "MiB alone"]
    rows = [
        [
            _bold(ready.proxy),
            f"{statistics.median(ready.seconds) * 1000:.0f}",
            f"{min(ready.seconds) * 1000:.0f}–{max(ready.seconds) * 1000:.0f}",
            f"{ready.pss / MIB:.1f}",
            NONE if ready.alone is None else f"{ready.alone / MIB:.1f}",
        ]
        for ready in results.ready
        if ready.seconds
    ]
    return "**from the start of the command to the first answer, and at rest** (one plain hop)\n\n" + table(
        head, rows
    )


def _cell(figure: Figure | None, value: Callable[[Figure], str]) -> str:
    if figure is None:
        return NONE
    return value(figure) if figure.valid else "✗"


def _ratio(figure: Figure) -> str:
    return NONE if figure.ratio is None else f"{figure.ratio:.2f}"


def _per_mib(figure: Figure) -> str:
    return f"{figure.median(lambda run: run.cpu_per_mib):.0f}"


def _bold(proxy: str) -> str:
    return f"**{proxy}**" if proxy == "fastmesh" else proxy
