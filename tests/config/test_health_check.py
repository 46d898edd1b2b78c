"""Health checks in the configuration: what agent and workers get, and which byte each endpoint has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fastmesh import _core
from fastmesh.config import ConfigErrors, make_snapshot
from fastmesh.config.loader import loads
from fastmesh.config.schema_health import MAX_CHECKED
from fastmesh.host.endpoints import health_slots, text_of

BASE = Path("/base/x.yaml")


def snapshot_of(services: str, before: Mapping[str, int] | None = None) -> dict[str, Any]:
    listener = "listeners: [{name: a, bind: 127.0.0.1:8080, role: outbound}]\n"
    loaded = loads(f"{listener}services: {services}\n".encode(), BASE)
    return make_snapshot(loaded, identity=False, health_slots=before)


def service(ports: str, check: str = "health_check: {path: /healthz}") -> str:
    return f"{{endpoints: [{', '.join(f'127.0.0.1:{port}' for port in ports.split())}], {check}}}"


def test_defaults() -> None:
    every = "health_check: {grpc: x.Y, interval: 1s, timeout: 2s, healthy: 1, unhealthy: 1}"
    plain, by_path, by_grpc = snapshot_of(
        f"{{a: {service('1', '')}, b: {service('2')}, c: {service('3', every)}}}"
    )["services"]
    assert plain["health_check"] is None
    assert "health" not in plain["endpoints"][0]
    assert by_path["health_check"] == {
        "path": "/healthz",
        "grpc": None,
        "interval_ms": 5000,
        "timeout_ms": 1000,
        "healthy": 2,
        "unhealthy": 3,
    }
    assert by_grpc["health_check"] == {
        "path": None,
        "grpc": "x.Y",
        "interval_ms": 1000,
        "timeout_ms": 2000,
        "healthy": 1,
        "unhealthy": 1,
    }


def test_the_whole_server_is_no_missing_service() -> None:
    (one,) = snapshot_of(f"{{a: {service('1', 'health_check: {grpc: ' + chr(34) * 2 + '}')}}}")["services"]
    assert (one["health_check"]["path"], one["health_check"]["grpc"]) == (None, "")


def test_bytes_follow_from_the_file() -> None:
    text = f"{{a: {service('1 2')}, b: {service('3', '')}, c: {service('1')}}}"
    slots = health_slots(snapshot_of(text))
    assert slots == {"a/127.0.0.1:1": 0, "a/127.0.0.1:2": 1, "c/127.0.0.1:1": 2}
    assert snapshot_of(text)["digest"] == snapshot_of(text, slots)["digest"]


def test_an_endpoint_keeps_its_byte() -> None:
    before = health_slots(snapshot_of(f"{{a: {service('1 2')}, b: {service('3')}}}"))
    after = health_slots(
        snapshot_of(f"{{new: {service('4')}, b: {service('3')}, a: {service('5 2')}}}", before)
    )
    # Those that are gone left bytes that newcomers do not get as long as there are others.
    assert after == {
        "new/127.0.0.1:4": 3,
        "b/127.0.0.1:3": 2,
        "a/127.0.0.1:5": 4,
        "a/127.0.0.1:2": 1,
    }


def test_names_of_endpoints() -> None:
    (one,) = snapshot_of('{a: {endpoints: ["[::1]:80", unix:/run/x, 127.0.0.1:9], health_check: {path: /}}}')[
        "services"
    ]
    assert [text_of(endpoint) for endpoint in one["endpoints"]] == ["[::1]:80", "unix:/run/x", "127.0.0.1:9"]


def test_there_is_a_byte_for_each_that_the_schema_allows() -> None:
    assert _core.Area.create(1).checkable == MAX_CHECKED


def test_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmesh.config.snapshot.MAX_CHECKED", 2)
    snapshot_of(f"{{a: {service('1')}, b: {service('1')}}}")
    with pytest.raises(ConfigErrors) as caught:
        snapshot_of(f"{{a: {service('1')}, b: {service('1 2')}}}")
    (error,) = caught.value.errors
    assert error.message == "3 endpoints with health checks, expected at most 2"
    assert error.line == 2
