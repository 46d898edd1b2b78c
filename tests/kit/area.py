"""A stand-in for `fastmesh._core.Area` whose numbers a test sets; the tables are those of the real core.

A test in the same process uses the object; an agent attaches to the descriptor that `publish` returns,
and takes access log records that are appended to it afterwards.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from typing import Any

from fastmesh import _core

LogRecord = dict[str, object]


class FakeArea:
    """Zero everywhere at first. `service` and `latency` are keyed by (worker slot, service row)."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.services = 8
        self.rules = 8
        self.counters = [[0] * len(_core.COUNTERS) for _ in range(workers)]
        self.reasons = [[0] * len(_core.REASONS) for _ in range(workers)]
        self.service = defaultdict[tuple[int, int], list[int]](lambda: [0] * len(_core.SERVICE_COUNTERS))
        self.rule = defaultdict[tuple[int, int], list[int]](lambda: [0] * len(_core.DECISIONS))
        self.latency = defaultdict[tuple[int, int], list[int]](lambda: [0] * (len(_core.LATENCY_BOUNDS) + 1))
        self.latency_sum = defaultdict[tuple[int, int], float](float)
        self.delays = [[0] * (len(_core.DETECT_BOUNDS) + 1) for _ in range(workers)]
        self.delay_sums = [0.0] * workers
        self.learnt: list[list[tuple[str | None, int, bool, int, int]]] = [[] for _ in range(workers)]
        self.log: list[list[LogRecord]] = [[] for _ in range(workers)]
        self.dropped = [0] * workers
        self.bad = [False] * 16
        self.fd = -1
        self._position = 0

    def set(self, slot: int, name: str, value: int, row: int | None = None, **labels: str) -> None:
        """Set the counter of that name and labels; with `row`, that of a service."""
        table = _core.COUNTERS if row is None else _core.SERVICE_COUNTERS
        values = self.counters[slot] if row is None else self.service[slot, row]
        (column,) = [
            index
            for index, (own, _, _, given) in enumerate(table)
            if own == name and given.items() >= labels.items()
        ]
        values[column] = value

    def worker_counters(self, slot: int) -> list[int]:
        return self.counters[slot]

    def reason_counters(self, slot: int) -> list[int]:
        return self.reasons[slot]

    def detect_delays(self, slot: int) -> tuple[list[int], float]:
        return self.delays[slot], self.delay_sums[slot]

    def learned(self, slot: int) -> list[tuple[str | None, int, bool, int, int]]:
        return self.learnt[slot] if slot < len(self.learnt) else []

    def service_counters(self, slot: int, service: int) -> list[int]:
        return self.service[slot, service]

    def service_latency(self, slot: int, service: int) -> tuple[list[int], float]:
        return self.latency[slot, service], self.latency_sum[slot, service]

    def rule_counters(self, slot: int, rule: int) -> list[int]:
        return self.rule[slot, rule]

    @property
    def checkable(self) -> int:
        return len(self.bad)

    def healthy(self, slot: int) -> bool:
        return not self.bad[slot]

    def set_healthy(self, slot: int, healthy: bool) -> None:
        self.bad[slot] = not healthy

    def log_dropped(self, slot: int) -> int:
        return self.dropped[slot]

    def log_read(self, slot: int, limit: int = 1000) -> list[LogRecord]:
        if self.fd >= 0 and slot == 0:
            data = os.pread(self.fd, 1 << 24, self._position)
            whole = data[: data.rfind(b"\n") + 1]
            self._position += len(whole)
            self.log[0] += map(json.loads, whole.splitlines())
        taken, self.log[slot][:limit] = self.log[slot][:limit], []
        return taken

    # in two processes

    def publish(self) -> int:
        """A descriptor from which another process makes an area with these numbers (not the log's)."""
        numbers: dict[str, Any] = {
            "workers": self.workers,
            "counters": self.counters,
            "reasons": self.reasons,
            "service": [[*key, values] for key, values in self.service.items()],
            "latency": [[*key, values] for key, values in self.latency.items()],
            "latency_sum": [[*key, value] for key, value in self.latency_sum.items()],
            "dropped": self.dropped,
        }
        fd = os.memfd_create("fake-area")
        os.write(fd, json.dumps(numbers).encode() + b"\n")
        return fd

    @staticmethod
    def attach(fd: int) -> FakeArea:
        head = os.pread(fd, 1 << 24, 0).partition(b"\n")[0]
        numbers = json.loads(head)
        area = FakeArea(numbers["workers"])
        area.counters, area.reasons, area.dropped = (
            numbers["counters"],
            numbers["reasons"],
            numbers["dropped"],
        )
        for name in ("service", "latency", "latency_sum"):
            getattr(area, name).update({(slot, row): value for slot, row, value in numbers[name]})
        area.fd, area._position = fd, len(head) + 1
        return area


def append_log(fd: int, *records: LogRecord) -> None:
    """Let the process that is attached to a published area find these records in the ring of slot 0."""
    os.lseek(fd, 0, os.SEEK_END)
    os.write(fd, b"".join(json.dumps(record).encode() + b"\n" for record in records))


def log_record(**changes: object) -> LogRecord:
    """An access log record as the core gives it."""
    return {
        "time": 1_700_000_000.25,
        "worker": 0,
        "listener": "edge",
        "service": "web",
        "method": "GET",
        "authority": "web",
        "path": "/",
        "status": 200,
        "reason": None,
        "duration": 0.000125,
        "bytes_in": 0,
        "bytes_out": 12,
        "source": "127.0.0.1:50000",
        "upstream": "127.0.0.1:9000",
        "identity": None,
        "decision": None,
        "rule": None,
        "rules_of": None,
        "audit": False,
        "protocol": "HTTP/1.1",
        "retries": 0,
        "snapshot": 1,
        **changes,
    }
