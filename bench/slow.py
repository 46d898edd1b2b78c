"""Whether one stream whose reader has stopped holds up the others: client -> A -> mutual TLS -> B -> backend.

One HTTP/2 connection of the client with many streams that send messages in lock step: first alone, then
beside one more stream, an endless answer whose window the client never gives back. Both halves follow each
other in one run; the result is the throughput of the second half by that of the first. 1.0: the slow stream
costs the others nothing; 0: they stand still too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from bench import generators
from bench.generators import Failed
from bench.load import Timing, children, total_errors
from bench.machine import ticks
from bench.processes import cpu
from bench.stage import Actor

STREAMS: Final = 100


@dataclass(frozen=True)
class Run:
    """One measured run. The shares are those of bench.load.Run."""

    round: int
    alone: float  # messages a second
    beside: float
    slow_bytes: int  # that the slow stream got before it stood still
    others_share: float
    stolen_share: float
    errors: dict[str, int] = field(default_factory=dict)


@dataclass
class Slow:
    """All the runs of one proxy."""

    proxy: str
    runs: list[Run] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def errors(self) -> dict[str, int]:
        return total_errors(run.errors for run in self.runs)

    @property
    def valid(self) -> bool:
        """Streams that stand still are a result; streams that break, or a slow one without a byte, not."""
        return bool(self.runs) and not self.failures and not self.errors

    @property
    def ratios(self) -> list[float]:
        return [run.beside / run.alone for run in self.runs]

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.valid else None


def rounds(
    actors: list[Actor], timing: Timing, say: Callable[[str], None]
) -> Iterator[tuple[str, Run | str]]:
    """A B C, A B C, ...: yields (proxy, run), or (proxy, why there is none)."""
    for number in range(timing.rounds):
        for actor in actors:
            try:
                run = _measure(actor, number, timing)
            except Failed as failure:
                say(f"slow-stream round {number + 1}: {actor.name}: {failure}")
                yield actor.name, str(failure)
                continue
            say(
                f"slow-stream round {number + 1}: {actor.name:9} {run.alone:9.0f}/s alone "
                f"{run.beside:9.0f}/s beside {'ERRORS ' + str(run.errors) if run.errors else ''}"
            )
            yield actor.name, run


def _measure(actor: Actor, number: int, timing: Timing) -> Run:
    ground = actor.ground
    if not actor.alive():
        raise Failed(f"has ended: {actor.words()}")
    generators.streams(actor.port, 1, STREAMS).run(timing.warm_up, ground.cpus.load)
    everybody = [*actor.processes, ground.backend]
    wall, machine = time.monotonic(), ticks(ground.cpus.all)
    bench = cpu(everybody).seconds + children()
    totals = generators.streams(actor.port, 1, STREAMS, slow=True).run(timing.seconds, ground.cpus.load)
    bench = cpu(everybody).seconds + children() - bench
    wall, after = time.monotonic() - wall, ticks(ground.cpus.all)
    raw = totals.raw
    if not totals.requests or not raw["beside_microseconds"]:
        raise Failed(f"no message came back: {totals.errors}; it printed: {actor.words()}")
    errors = dict(totals.errors)
    if not raw["beside"]:
        errors.pop("timeout", None)  # they stood still to the end
    if not raw["slow_bytes"]:
        errors["slow_stream_unanswered"] = 1
    return Run(
        round=number,
        alone=totals.requests / (totals.microseconds / 1e6),
        beside=raw["beside"] / (raw["beside_microseconds"] / 1e6),
        slow_bytes=raw["slow_bytes"],
        others_share=max(0.0, after.busy - machine.busy - bench) / wall,
        stolen_share=(after.stolen - machine.stolen) / wall,
        errors=errors,
    )
