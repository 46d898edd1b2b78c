"""Results as Markdown: a summary, then every figure with its spread. An invalid one is shown as ✗."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from bench.handshakes import KINDS as HANDSHAKES
from bench.handshakes import UNIT, Handshakes
from bench.idle import Idle
from bench.limits import verdicts
from bench.load import Scenario
from bench.proxies import DIRECT, REDIRECTED
from bench.results import Figure, Results
from bench.slow import Slow

MIB: Final = 1 << 20
NONE: Final = "–"
H2_MESH: Final = "HTTP/2 → A → HTTP/2 over mutual TLS 1.3 → B → HTTP/2"
TOPOLOGIES: Final = {
    "plain": "plain: wrk → proxy → backend",
    "mesh": "mesh: wrk → A → mutual TLS 1.3 → B → backend",
    "transparent": "transparent: wrk → (redirect) → proxy → backend",
    "transparent-tcp": "transparent-tcp: wrk → (redirect) → proxy, opaque → backend",
    "grpc": f"grpc: h2load → {H2_MESH} → nghttpd",
    "grpc-stream": f"grpc-stream: {H2_MESH}; lock step on long streams",
}
SIZES: Final = {"small": "small bodies", "large": "1 MiB bodies", "message": "1 KiB messages there and back"}
KINDS: Final = {
    "plain": ("plaintext", "a connection"),
    "in": ("mutual TLS 1.3", "a connection"),
    "h2": ("HTTP/2, mutual TLS 1.3", "a connection"),
    "h2-streams": ("HTTP/2, mutual TLS 1.3", "an open stream"),
}
# In these the unit is HAProxy: the floor takes no part.
WITHOUT_FLOOR: Final = ("grpc", "grpc-stream")


def markdown(results: Results) -> str:
    parts = [_setting(results), _warnings(results), _limits(results), _summary(results)]
    scenarios = results.scenarios()
    groups = dict.fromkeys((scenario.topology, scenario.size) for scenario in scenarios)
    for topology, size in groups:
        members = [s for s in scenarios if (s.topology, s.size) == (topology, size)]
        parts.append(_load(results, f"{TOPOLOGIES[topology]}, {SIZES[size]}", members))
    parts += [_handshakes(results), _slow(results), _idle(results), _ready(results)]
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


def _limits(results: Results) -> str:
    found = verdicts(results)
    if not found:
        return ""
    words = {True: "yes", False: "**no**", None: "✗ nothing valid to compare"}
    rows = [
        [
            one.what,
            NONE if one.ratio is None else f"{one.ratio:.2f}",
            _span(one.ratios),
            one.limit,
            words[one.met],
        ]
        for one in found
    ]
    return "**limits of fastmesh**\n\n" + table(
        ["limit", "measured", "(lowest–highest)", "wanted", "met"], rows
    )


def _summary(results: Results) -> str:
    """One row a proxy: CPU per request in floors or HAProxies, CPU per MiB."""
    scenarios = results.scenarios()
    if not scenarios:
        return ""
    head = ["CPU per request"]
    for s in scenarios:
        unit = "µs/MiB" if s.size == "large" else f"× {_unit(s)}"
        head.append(f"{s.topology}{' 1 MiB' if s.size == 'large' else ''}, c={s.load}<br>{unit}")
    rows = []
    for proxy in results.proxies():
        row = [_bold(proxy)]
        for scenario in scenarios:
            figure = results.figure(scenario, proxy)
            row.append(_cell(figure, _per_mib if scenario.size == "large" else _in_unit))
        if set(row[1:]) != {NONE}:
            rows.append(row)
    return table(head, rows)


def _unit(scenario: Scenario) -> str:
    return UNIT if scenario.topology in WITHOUT_FLOOR else "floor"


def _in_unit(figure: Figure) -> str:
    return _median(figure.to_haproxy if _unit(figure.scenario) == UNIT else figure.ratios)


def _load(results: Results, title: str, scenarios: list[Scenario]) -> str:
    large, message = scenarios[0].size == "large", scenarios[0].size == "message"
    floor = _unit(scenarios[0]) != UNIT
    head = ["proxy", "connections", "messages/s" if message else "requests/s"]
    head += ["µs/MiB" if large else "µs/message" if message else "µs/request"]
    units = 2 if floor else 1
    head += ["× floor", "(lowest–highest)"] if floor else []
    if scenarios[0].topology in REDIRECTED:
        units += 1
        head += [f"× {DIRECT}", "(lowest–highest)"]
    head += [f"× {UNIT}", "(lowest–highest)", "p50 ms", "p99 ms", "MiB", "CPU used", "errors"]
    rows = []
    for scenario in scenarios:
        for proxy in results.proxies():
            figure = results.figure(scenario, proxy)
            if figure is None:
                continue
            rows.append([_bold(proxy), scenario.load, *_load_cells(figure, large=large, units=units)])
    return f"**{title}**\n\n" + table(head, rows)


def _load_cells(figure: Figure, *, large: bool, units: int) -> list[str]:
    """`units`: what ratios there are: to HAProxy, to the floor too, to that without redirect too."""
    errors = ", ".join(f"{count} {kind}" for kind, count in figure.errors.items())
    if not figure.valid:
        return ["✗"] * (2 * units + 6) + [f"**invalid: {errors or 'no run'}**"]
    return [
        f"{figure.median(lambda run: run.requests_per_second):,.0f}",
        _per_mib(figure) if large else f"{figure.median(lambda run: run.cpu_per_request):.1f}",
        *([_median(figure.ratios), _span(figure.ratios)] if units > 1 else []),
        *([_median(figure.to_direct), _span(figure.to_direct)] if units > 2 else []),
        _median(figure.to_haproxy),
        _span(figure.to_haproxy),
        _milliseconds([run.p50 for run in figure.runs]),
        _milliseconds([run.p99 for run in figure.runs]),
        f"{figure.median(lambda run: run.pss) / MIB:.1f}",
        f"{figure.median(lambda run: run.proxy_cpu_share):.0%}",
        "0",
    ]


def _milliseconds(times: list[float | None]) -> str:
    known = [time for time in times if time is not None]
    return f"{statistics.median(known) / 1000:.2f}" if known else NONE


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
    return [f"{one.cost:.0f}", _median(one.ratios), _span(one.ratios)]


def _slow(results: Results) -> str:
    if not results.slow:
        return ""
    head = ["proxy", "messages/s alone", "messages/s beside", "ratio", "(lowest–highest)", "slow stream got"]
    rows = [[_bold(one.proxy), *_slow_cells(one)] for one in results.slow]
    title = (
        f"slow-stream: {H2_MESH}; 100 streams of one connection, alone and beside one whose reader stopped"
    )
    return f"**{title}**\n\n" + table(head, rows)


def _slow_cells(one: Slow) -> list[str]:
    if not one.valid:
        why = one.failures[0] if one.failures else ", ".join(f"{n} {kind}" for kind, n in one.errors.items())
        return [f"✗ {why or 'no run'}", *["✗"] * 4]
    return [
        f"{statistics.median(run.alone for run in one.runs):,.0f}",
        f"{statistics.median(run.beside for run in one.runs):,.0f}",
        _median(one.ratios),
        _span(one.ratios),
        f"{statistics.median(run.slow_bytes for run in one.runs) / 1024:.0f} KiB",
    ]


def _idle(results: Results) -> str:
    if not results.idle:
        return ""
    count = results.idle[0].connections
    measured = {idle.kind for idle in results.idle}
    kinds = {kind: words for kind, words in KINDS.items() if kind in measured}
    head = ["proxy"]
    for what, unit in kinds.values():
        head += [f"{what}: KiB {unit}", "µs to open one and ask once", "CPU while held"]
    rows = []
    for proxy in results.proxies():
        by_kind = {idle.kind: idle for idle in results.idle if idle.proxy == proxy}
        if by_kind:
            rows.append([_bold(proxy), *(cell for kind in kinds for cell in _idle_cells(by_kind.get(kind)))])
    title = f"**{count:,} idle keep-alive connections, or open streams** (memory: PSS)"
    return f"{title}\n\n" + table(head, rows)


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


def _median(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f}" if ratios else NONE


def _span(ratios: list[float]) -> str:
    return f"{min(ratios):.2f}–{max(ratios):.2f}" if ratios else NONE


def _per_mib(figure: Figure) -> str:
    return f"{figure.median(lambda run: run.cpu_per_mib):.0f}"


def _bold(proxy: str) -> str:
    return f"**{proxy}**" if proxy == "fastmesh" else proxy
