"""The metrics: sums over the workers, the text format, and names as Prometheus wants them."""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import Any

import pytest
from kit.area import FakeArea
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from fastmesh import __version__, _core
from fastmesh.agent.state import State
from fastmesh.observe.access_log import AccessLog
from fastmesh.observe.metrics import Metrics


def snapshot(*services: str) -> dict[str, Any]:
    rows = [{"name": name, "slot": slot} for slot, name in enumerate(services)]
    return {"number": 7, "identity": None, "workers": 2, "services": rows}


class Scrape:
    """Metrics over a fake area of two workers."""

    def __init__(self, *services: str) -> None:
        self.area: Any = FakeArea(2)
        self.state = State()
        if services:
            self.state.take_snapshot(snapshot(*services))
        self.log = AccessLog(self.area, print)
        self.metrics = Metrics(self.area, self.state, self.log)

    def status(self, *states: str, restarts: int = 0, draining: bool = False) -> None:
        workers = [
            {"slot": slot, "pid": os.getpid(), "state": state, "restarts": restarts}
            for slot, state in enumerate(states)
        ]
        self.state.take_status({"workers": workers, "draining": draining, "agent_restarts": 3})

    def families(self) -> list[Metric]:
        return list(text_string_to_metric_families(self.metrics.text().decode()))

    def value(self, name: str, **labels: str) -> float:
        (found,) = [
            sample.value
            for family in self.families()
            for sample in family.samples
            if sample.name == f"fastmesh_{name}" and sample.labels == labels
        ]
        return found


def test_counters_are_summed_over_the_workers() -> None:
    scrape = Scrape("web")
    scrape.area.set(0, "downstream_connections_total", 5)
    scrape.area.set(1, "downstream_connections_total", 7)
    assert scrape.value("downstream_connections_total") == 12
    scrape.area.set(0, "tls_handshakes_total", 2, side="upstream")
    scrape.area.set(1, "tls_handshakes_total", 1, side="upstream")
    assert scrape.value("tls_handshakes_total", side="upstream") == 3
    assert scrape.value("tls_handshakes_total", side="downstream") == 0


def test_an_identity_shows_how_long_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    scrape = Scrape("web")
    assert not [f for f in scrape.families() if f.name == "fastmesh_certificate_expiry_seconds" and f.samples]
    ends = {"not_after": 1_000, "issuer_not_after": 2_000, "root_not_after": 3_000}
    scrape.state.take_snapshot({**snapshot("web"), "workload": "svc-a", "identity": {"key": "", **ends}})
    monkeypatch.setattr("time.time", lambda: 1_100.0)
    for kind, left in (("workload", -100), ("issuer", 900), ("root", 1_900)):
        labels = {"workload": "svc-a", "certificate": kind}
        assert scrape.value("certificate_expiry_seconds", **labels) == left
        assert scrape.value("certificate_expiry_timestamp_seconds", **labels) == 1_100 + left
    scrape.state.renewals["failed"] = 3
    assert scrape.value("certificate_renewals_total", result="failed") == 3
    assert scrape.value("certificate_renewals_total", result="succeeded") == 0


def test_large_counts_stay_exact() -> None:
    scrape = Scrape("web")
    scrape.area.set(0, "bytes_total", 2**53 - 1, side="upstream", direction="sent")
    assert scrape.value("bytes_total", side="upstream", direction="sent") == 2**53 - 1


def test_the_snapshot_number_is_shown_for_each_worker() -> None:
    scrape = Scrape("web")
    scrape.area.set(0, "snapshot", 7)
    scrape.area.set(1, "snapshot", 6)
    assert scrape.value("worker_snapshot_number", worker="0") == 7
    assert scrape.value("worker_snapshot_number", worker="1") == 6
    assert scrape.value("snapshot_number") == 7


def test_reasons_carry_their_name_and_side() -> None:
    scrape = Scrape("web")
    number = [name for name, *_ in _core.REASONS].index("connect_refused")
    scrape.area.reasons[0][number] = 2
    scrape.area.reasons[1][number] = 3
    assert scrape.value("reasons_total", reason="connect_refused", side="upstream") == 5
    names = {
        sample.labels["reason"]
        for family in scrape.families()
        for sample in family.samples
        if sample.name == "fastmesh_reasons_total"
    }
    assert names == {name for name, *_ in _core.REASONS[1:]}


def test_services_are_those_of_the_snapshot() -> None:
    scrape = Scrape("web", "api")
    scrape.area.set(0, "requests_total", 10, row=0, code="2xx")
    scrape.area.set(1, "requests_total", 5, row=0, code="2xx")
    scrape.area.set(1, "requests_total", 4, row=1, code="5xx")
    assert scrape.value("requests_total", service="web", code="2xx") == 15
    assert scrape.value("requests_total", service="api", code="5xx") == 4
    scrape.state.take_snapshot(snapshot("web"))
    services = {s.labels["service"] for f in scrape.families() for s in f.samples if "service" in s.labels}
    assert services == {"web"}


def test_latency_is_a_cumulative_histogram() -> None:
    scrape = Scrape("web")
    scrape.area.latency[0, 0][0] = 3
    scrape.area.latency[1, 0][0] = 1
    scrape.area.latency[1, 0][2] = 2
    scrape.area.latency[0, 0][-1] = 4
    scrape.area.latency_sum[0, 0] = 300.5
    scrape.area.latency_sum[1, 0] = 0.25
    (family,) = [f for f in scrape.families() if f.name == "fastmesh_request_duration_seconds"]
    assert family.type == "histogram"
    buckets = [(s.labels["le"], s.value) for s in family.samples if s.name.endswith("_bucket")]
    assert buckets[:3] == [("0.0001", 4), ("0.00025", 4), ("0.0005", 6)]
    assert buckets[-2:] == [(str(_core.LATENCY_BOUNDS[-1]), 6), ("+Inf", 10)]
    assert [le for le, _ in buckets] == [str(bound) for bound in _core.LATENCY_BOUNDS] + ["+Inf"]
    assert scrape.value("request_duration_seconds_count", service="web") == 10
    assert scrape.value("request_duration_seconds_sum", service="web") == 300.75


def test_what_the_agent_knows() -> None:
    scrape = Scrape("web")
    scrape.status("ready", "dead", restarts=2, draining=True)
    assert scrape.value("workers", state="ready") == 1
    assert scrape.value("workers", state="dead") == 1
    assert scrape.value("workers", state="starting") == 0
    assert scrape.value("worker_restarts_total", worker="1") == 2
    assert scrape.value("agent_restarts_total") == 3
    assert scrape.value("draining") == 1
    (build,) = [f for f in scrape.families() if f.name == "fastmesh_build_info"]
    assert build.samples[0].labels["version"] == __version__
    assert scrape.value("process_cpu_seconds_total", process="agent", worker="") > 0
    assert scrape.value("process_resident_memory_bytes", process="worker", worker="1") > 1 << 20


def test_records_lost_in_a_full_ring_are_counted_apart_from_those_the_file_refused() -> None:
    scrape = Scrape("web")
    scrape.area.dropped = [4, 5]
    scrape.log.failed = 2
    scrape.log.written = 100
    assert scrape.value("access_log_dropped_total", cause="ring_full") == 9
    assert scrape.value("access_log_dropped_total", cause="file") == 2
    assert scrape.value("access_log_records_total") == 100


def test_a_process_that_has_gone_is_left_out() -> None:
    scrape = Scrape("web")
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    scrape.state.take_status(
        {"workers": [{"slot": 0, "pid": child, "state": "ready", "restarts": 0}], "draining": False}
    )
    assert not [s for f in scrape.families() for s in f.samples if s.labels.get("process") == "worker"]


@pytest.mark.parametrize("services", [(), ("web",), ("web", "api")])
def test_the_text_follows_the_rules(services: tuple[str, ...]) -> None:
    """What promtool checks, and Prometheus' naming conventions."""
    scrape = Scrape(*services)
    scrape.status("ready", "starting")
    text = scrape.metrics.text().decode()
    assert text.endswith("\n")
    kinds: dict[str, str] = {}
    helps: Counter[str] = Counter()
    series: Counter[str] = Counter()
    current = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            _, _, name, help_text = line.split(" ", 3)
            helps[name] += 1
            assert help_text.endswith("."), line
        elif line.startswith("# TYPE "):
            _, _, current, kind = line.split(" ")
            assert current not in kinds, f"{current} comes in two pieces"
            kinds[current] = kind
        else:
            key = line.rpartition(" ")[0]
            series[key] += 1
            name = key.partition("{")[0]
            base = re.sub(r"_(bucket|sum|count)$", "", name) if kinds[current] == "histogram" else name
            assert base == current, f"{name} stands under {current}"
    assert set(helps) == set(kinds)
    assert set(helps.values()) == set(series.values()) == {1}
    for name, kind in kinds.items():
        assert re.fullmatch(r"fastmesh_[a-z][a-z0-9]*(_[a-z0-9]+)*", name)
        assert (kind == "counter") == name.endswith("_total"), f"{name} is a {kind}"
        words = name.split("_")
        assert not {"ms", "us", "ns", "millis", "milliseconds", "kb", "kib", "mb", "percent"} & set(words), (
            name
        )
        if {"duration", "cpu", "latency"} & set(words):
            assert "seconds" in words, f"{name} has no unit"
        if "memory" in words:
            assert "bytes" in words, f"{name} has no unit"
    for series_key in series:
        for label in re.findall(r'[{,]([^=,{}"]+)="', series_key):
            assert re.fullmatch(r"[a-z][a-z0-9_]*", label), series_key


def test_label_values_are_escaped() -> None:
    scrape = Scrape('we"b\\\n')
    assert scrape.value("requests_total", service='we"b\\\n', code="2xx") == 0
