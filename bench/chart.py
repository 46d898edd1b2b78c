"""The picture for the README: CPU per request in floors (plain, mesh) or HAProxies (grpc), memory at rest."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.results import FLOOR, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIB: Final = 1 << 20
OURS: Final = "#d9480f"
THEIRS: Final = "#868e96"
LIGHT: Final = 0.55  # opacity of the second bar of a pair
HTTP2: Final = "HTTP/2"  # a panel of two topologies
TITLES: Final = {
    "plain": "One plain hop",
    "mesh": "Two hops, mutual TLS 1.3 between",
    HTTP2: "Two hops, HTTP/2 on all sides",
}
UNITS: Final = {
    "plain": "CPU per request, × the floor",
    "mesh": "CPU per request, × two floors, plaintext",
    HTTP2: "CPU per request or message, × HAProxy",
}
GRPC: Final = {"grpc": "gRPC requests", "grpc-stream": "on long streams"}


def draw(results: Results, file: Path) -> None:
    """Write the PNG, without invalid figures. ImportError: no matplotlib; ValueError: nothing to draw."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    panels = [panel for panel in TITLES if _bars(results, panel)]
    resting = {ready.proxy: (ready.alone or ready.pss) / MIB for ready in results.ready}
    resting.pop(FLOOR, None)
    count = len(panels) + bool(resting)
    if not count:
        raise ValueError("no valid figure to draw")
    figure, all_axes = pyplot.subplots(
        1, count, figsize=(4.6 * count, 3.4), squeeze=False, layout="constrained"
    )
    for axes, panel in zip(all_axes[0], panels, strict=False):
        _cost(axes, results, panel)
    if resting:
        _memory(all_axes[0][-1], resting)
    figure.savefig(file, dpi=160)
    pyplot.close(figure)


def _bars(results: Results, panel: str) -> dict[str, dict[str, float]]:
    """proxy -> load -> × unit. Of plain and mesh: the scenarios of small bodies with many connections."""
    bars: dict[str, dict[str, float]] = {}
    for figure in results.figures:
        scenario = figure.scenario
        if panel == HTTP2:
            label, ratios = GRPC.get(scenario.topology), figure.to_haproxy
        else:
            shown = (scenario.topology, scenario.size) == (panel, "small") and scenario.connections > 1
            label, ratios = f"{scenario.connections} connections" if shown else None, figure.ratios
        if label and figure.valid and ratios and figure.proxy != FLOOR:
            bars.setdefault(figure.proxy, {})[label] = statistics.median(ratios)
    return bars


def _cost(axes: Axes, results: Results, panel: str) -> None:
    bars = _bars(results, panel)
    labels = list(dict.fromkeys(label for values in bars.values() for label in values))
    height = 0.8 / len(labels)
    for row, (proxy, values) in enumerate(bars.items()):
        for place, label in enumerate(labels):
            if label not in values:
                continue
            y = row + (place - (len(labels) - 1) / 2) * height
            opacity = 1.0 if place == 0 else LIGHT
            axes.barh(y, values[label], height * 0.92, color=_colour(proxy), alpha=opacity)
            axes.annotate(
                f"{values[label]:.2f}  ({label})",
                (values[label], y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color="#495057",
            )
    axes.axvline(1.0, color="#212529", linewidth=1, linestyle="--")
    axes.set_xlabel(UNITS[panel], fontsize=8.5)
    _finish(axes, TITLES[panel], list(bars), max(max(values.values()) for values in bars.values()) * 1.42)


def _memory(axes: Axes, resting: dict[str, float]) -> None:
    for row, (proxy, mebibytes) in enumerate(resting.items()):
        axes.barh(row, mebibytes, 0.6, color=_colour(proxy))
        axes.annotate(
            f"{mebibytes:.0f}",
            (mebibytes, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="#495057",
        )
    axes.set_xlabel("MiB, one proxy with one worker, all its processes", fontsize=8.5)
    _finish(axes, "Memory at rest", list(resting), max(resting.values()) * 1.2)


def _finish(axes: Axes, title: str, names: list[str], right: float) -> None:
    axes.set_title(title, fontsize=10.5, loc="left", fontweight="bold")
    axes.set_yticks(range(len(names)), names, fontsize=9)
    for label in axes.get_yticklabels():
        if label.get_text() == "fastmesh":
            label.set_fontweight("bold")
    axes.invert_yaxis()
    axes.set_xlim(0, right)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _colour(proxy: str) -> str:
    return OURS if proxy == "fastmesh" else THEIRS
