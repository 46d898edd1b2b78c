"""The metrics: rows of shared memory, summed over the workers when someone asks.

One collector makes every family anew on each scrape; nothing is kept between two. Names, kinds and help
texts of what the data plane counts come from `fastmesh._core`; what the agent itself knows is added here.
Counters belong to a worker slot, not to a process: a worker that replaces a dead one goes on counting.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from fastmesh import __version__, _core
from fastmesh.observe.processes import usage

if TYPE_CHECKING:
    from fastmesh._core import Area
    from fastmesh.agent.state import State
    from fastmesh.observe.access_log import AccessLog

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PREFIX: Final = "fastmesh_"
# Values of the core that make no sense added up: shown for each worker, under this name.
PER_WORKER: Final = {"snapshot": "worker_snapshot_number"}
WORKER_STATES: Final = ("starting", "ready", "draining", "dead")

Row = tuple[str, str, str, dict[str, str]]
Family = tuple[str, str, str, list[tuple[int, dict[str, str]]]]  # name, kind, help, columns with their labels


class Metrics(Collector):
    """Everything `/metrics` shows. `collect` reads shared memory and /proc only; it never waits."""

    def __init__(self, area: Area, state: State, access_log: AccessLog) -> None:
        self._area = area
        self._state = state
        self._access_log = access_log

    def text(self) -> bytes:
        """One scrape, of type `CONTENT_TYPE`."""
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        yield from self._about()
        yield from self._workers()
        yield from self._counters()
        yield from self._reasons()
        yield from self._detection()
        yield from self._services()
        yield from self._health()
        yield from self._rules()
        yield from self._dns()
        yield from self._identity()
        yield from self._tls()
        yield from self._log()
        yield from self._processes()

    def _about(self) -> Iterator[Metric]:
        state = self._state
        labels = {"version": __version__, "python": platform.python_version()}
        yield _gauge("build_info", "The version that runs; the value is always 1.", [(labels, 1)])
        number = state.snapshot["number"] if state.snapshot is not None else 0
        yield _gauge("snapshot_number", "Number of the newest snapshot.", [({}, number)])
        yield _counter(
            "config_reloads",
            "Configurations loaded after the first, by what became of them.",
            [({"result": result}, count) for result, count in state.reloads.items()],
        )
        yield _gauge("agent_start_time_seconds", "UNIX time of the agent's start.", [({}, state.started)])
        yield _counter(
            "agent_restarts",
            "Times the agent was started again after it had died.",
            [({}, state.agent_restarts)],
        )
        yield _gauge("draining", "1 while the proxy is shutting down.", [({}, int(state.draining))])

    def _workers(self) -> Iterator[Metric]:
        workers = self._state.workers
        counts = dict.fromkeys(WORKER_STATES, 0)
        for worker in workers:
            counts[worker.state] = counts.get(worker.state, 0) + 1
        yield _gauge("workers", "Workers by state.", [({"state": state}, n) for state, n in counts.items()])
        yield _counter(
            "worker_restarts",
            "Times a worker was started again after it had died.",
            [({"worker": str(worker.slot)}, worker.restarts) for worker in workers],
        )

    def _counters(self) -> Iterator[Metric]:
        rows = [self._area.worker_counters(slot) for slot in range(self._state.slots)]
        for name, kind, text, columns in _grouped(_core.COUNTERS):
            if name in PER_WORKER:
                samples = [
                    ({"worker": str(slot), **labels}, row[column])
                    for slot, row in enumerate(rows)
                    for column, labels in columns
                ]
                yield _KINDS[kind](PER_WORKER[name], text, samples)
            else:
                yield _KINDS[kind](
                    name, text, [(labels, sum(row[column] for row in rows)) for column, labels in columns]
                )

    def _reasons(self) -> Iterator[Metric]:
        sums = _sums(len(_core.REASONS), map(self._area.reason_counters, range(self._state.slots)))
        yield _counter(
            "reasons",
            "Requests, connections and handshakes that did not end well, by reason and the side it lies on.",
            [
                ({"reason": name, "side": side}, value)
                for (name, side, *_), value in zip(_core.REASONS[1:], sums[1:], strict=True)
            ],
        )

    def _detection(self) -> Iterator[Metric]:
        rows = [self._area.detect_delays(slot) for slot in range(self._state.slots)]
        bounds = [*map(floatToGoString, _core.DETECT_BOUNDS), "+Inf"]
        counts = accumulate(_sums(len(bounds), (counts for counts, _ in rows)))
        family = HistogramMetricFamily(
            f"{PREFIX}detect_delay_seconds",
            "From a connection to its protocol, where that had to be told from the first bytes.",
        )
        buckets = list(zip(bounds, counts, strict=True))
        family.add_metric([], buckets, sum(seconds for _, seconds in rows))
        yield family

    def _services(self) -> Iterator[Metric]:
        area = self._area
        slots = range(self._state.slots)
        services = [({"service": name}, row) for name, row in self._state.services()]
        sums = [
            (labels, _sums(len(_core.SERVICE_COUNTERS), (area.service_counters(slot, row) for slot in slots)))
            for labels, row in services
        ]
        for name, kind, text, columns in _grouped(_core.SERVICE_COUNTERS):
            samples = [
                ({**service, **labels}, values[column])
                for service, values in sums
                for column, labels in columns
            ]
            yield _KINDS[kind](name, text, samples)
        bounds = [*map(floatToGoString, _core.LATENCY_BOUNDS), "+Inf"]
        family = HistogramMetricFamily(
            f"{PREFIX}request_duration_seconds",
            "From the head of a request to the end of its answer.",
            labels=["service"],
        )
        for labels, row in services:
            rows = [area.service_latency(slot, row) for slot in slots]
            counts = accumulate(_sums(len(bounds), (counts for counts, _ in rows)))
            buckets = list(zip(bounds, counts, strict=True))
            family.add_metric([labels["service"]], buckets, sum(seconds for _, seconds in rows))
        yield family

    def _health(self) -> Iterator[Metric]:
        rows = [({"service": one.service, "endpoint": one.endpoint}, one) for one in self._state.checked]
        yield _gauge(
            "endpoint_healthy",
            "1 while an endpoint with health checks is healthy, 0 while it is passed over.",
            [(labels, int(one.healthy)) for labels, one in rows],
        )
        yield _counter(
            "health_check",
            "Health checks of endpoints, by what they came to; local: the check could not be made.",
            [
                ({**labels, "result": result}, count)
                for labels, one in rows
                for result, count in one.results.items()
            ],
        )

    def _rules(self) -> Iterator[Metric]:
        area = self._area
        slots = range(self._state.slots)
        samples = []
        for kind, name, rule, row in self._state.rules():
            sums = _sums(len(_core.DECISIONS), (area.rule_counters(slot, row) for slot in slots))
            samples += [
                ({"listener": "", "service": "", kind: name, "rule": rule, "decision": decision}, value)
                for decision, value in zip(_core.DECISIONS, sums, strict=True)
            ]
        yield _counter(
            "authorization",
            "Decisions of allow and deny rules; default: no rule decided; audit: would have been refused.",
            samples,
        )

    def _dns(self) -> Iterator[Metric]:
        counts = self._state.dns
        if counts is None:
            return
        yield _gauge("dns_listening", "1 while the resolver answers.", [({}, int(counts.listening))])
        yield _counter(
            "dns_queries",
            "Queries to the resolver, by what became of them.",
            [
                ({"transport": transport, "outcome": outcome}, count)
                for (transport, outcome), count in counts.queries.items()
            ],
        )
        yield _counter(
            "dns_upstream",
            "Questions to name servers, by what they came to; mismatch: answers to something else.",
            [({"result": result}, count) for result, count in counts.asked.items()],
        )
        yield _gauge("dns_in_flight", "Queries that wait for name servers.", [({}, counts.in_flight)])

    def _identity(self) -> Iterator[Metric]:
        state = self._state
        now = time.time()
        ends = [
            ({"workload": state.workload, "certificate": kind}, end) for kind, end in state.certificates()
        ]
        yield _gauge(
            "certificate_expiry_seconds",
            "Time left for the certificates that the identity in use rests on; below 0 when over.",
            [(labels, end - now) for labels, end in ends],
        )
        yield _gauge(
            "certificate_expiry_timestamp_seconds",
            "UNIX time at which these certificates end.",
            ends,
        )
        yield _counter(
            "certificate_renewals",
            "Attempts to renew the certificate from the authority in the same directory.",
            [({"result": result}, count) for result, count in state.renewals.items()],
        )
        yield _counter(
            "identity_reloads",
            "Identities loaded because their files had changed, by what became of them.",
            [({"result": result}, count) for result, count in state.identity_reloads.items()],
        )

    def _tls(self) -> Iterator[Metric]:
        state = self._state
        now = time.time()
        ends = []
        for one in state.tls_certificates():
            kind, _, name = one.part.partition("/")
            ends.append(({"listener": "", "service": "", kind: name, "certificate": one.file}, one.end))
        yield _gauge(
            "tls_certificate_expiry_seconds",
            "Time left for the certificates of ordinary TLS, of listeners and services; below 0 when over.",
            [(labels, end - now) for labels, end in ends],
        )
        yield _gauge(
            "tls_certificate_expiry_timestamp_seconds",
            "UNIX time at which these certificates end.",
            ends,
        )
        yield _counter(
            "tls_reloads",
            "TLS of a listener or service loaded because its files had changed, by what became of it.",
            [({"result": result}, count) for result, count in state.tls_reloads.items()],
        )

    def _log(self) -> Iterator[Metric]:
        log = self._access_log
        yield _counter("access_log_records", "Records written to the access log.", [({}, log.written)])
        full = sum(self._area.log_dropped(slot) for slot in range(self._state.slots))
        yield _counter(
            "access_log_dropped",
            "Access log records lost: a worker's ring was full, or the file could not be written.",
            [({"cause": "ring_full"}, full), ({"cause": "file"}, log.failed)],
        )

    def _processes(self) -> Iterator[Metric]:
        rows = [
            ({"process": process, "worker": worker}, found)
            for process, worker, pid in self._state.processes()
            if (found := usage(pid)) is not None
        ]
        yield _counter(
            "process_cpu_seconds",
            "User and system CPU time of each process.",
            [(labels, found.cpu_seconds) for labels, found in rows],
        )
        yield _gauge(
            "process_resident_memory_bytes",
            "Resident memory of each process, what it shares with the others included.",
            [(labels, found.resident_bytes) for labels, found in rows],
        )
        yield _gauge(
            "process_open_fds",
            "Open file descriptors of each process.",
            [(labels, found.open_fds) for labels, found in rows],
        )


Samples = Sequence[tuple[dict[str, str], float]]


def _fill(family: Metric, name: str, samples: Samples) -> Metric:
    for labels, value in samples:
        family.add_sample(name, labels, value)
    return family


def _counter(name: str, text: str, samples: Samples) -> Metric:
    name = PREFIX + name.removesuffix("_total")
    return _fill(CounterMetricFamily(name, text), f"{name}_total", samples)


def _gauge(name: str, text: str, samples: Samples) -> Metric:
    return _fill(GaugeMetricFamily(PREFIX + name, text), PREFIX + name, samples)


_KINDS: Final[Mapping[str, Callable[[str, str, Samples], Metric]]] = {"counter": _counter, "gauge": _gauge}


def _grouped(table: Sequence[Row]) -> list[Family]:
    """The rows of a table of the core by name: a family is shown in one piece."""
    families: dict[str, Family] = {}
    for column, (name, kind, text, labels) in enumerate(table):
        families.setdefault(name, (name, kind, text, []))[3].append((column, labels))
    return list(families.values())


def _sums(width: int, rows: Iterable[Sequence[int]]) -> list[int]:
    """The sums of columns: `width` zeros when there is no row."""
    return [sum(column) for column in zip([0] * width, *rows, strict=True)]
