"""HTTP/2 in the configuration: what workers get, and what is agreed on where the file does not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastmesh.config import load, make_snapshot
from fastmesh.config.loader import loads
from fastmesh.config.roles import listener_alpn, service_alpn

BASE = Path("/base/x.yaml")
PAIR = "{certificate: a.pem, key: a.key}"


def snapshot_of(text: str) -> dict[str, Any]:
    return make_snapshot(loads(text.encode(), BASE), identity=False)


def one(listener: str = "", service: str = "") -> dict[str, Any]:
    return snapshot_of(
        f"listeners: [{{name: a, bind: 127.0.0.1:8080, to: web, {listener}}}]\n"
        f"services: {{web: {{endpoints: [127.0.0.1:9000], {service}}}}}\n"
    )


def test_defaults() -> None:
    (listener,), (service,) = one()["listeners"], one()["services"]
    pings = {"ping_interval_ms": 30_000, "ping_timeout_ms": 10_000}
    assert listener["grpc_web"] is False
    assert listener["http2"] == {"enabled": True, "max_concurrent_streams": 1000, **pings}
    assert (service["protocol"], service["mesh_connections"], service["http2"]) == ("auto", 1, pings)
    assert one("http2: {}, grpc_web: false", "protocol: auto, mesh_connections: 1, http2: {}") == one()


@pytest.mark.parametrize(
    ("listener", "enabled"),
    [
        ("protocol: http", True),
        ("protocol: auto", True),
        ("protocol: tcp", False),
        ("protocol: http, http2: {enabled: false}", False),
        ("tls: passthrough", False),
        ("tls: passthrough, protocol: tcp", False),
    ],
)
def test_http2_is_spoken_only_where_http_may_come(listener: str, enabled: bool) -> None:
    assert one(listener)["listeners"][0]["http2"]["enabled"] is enabled


@pytest.mark.parametrize(
    ("listener", "alpn"),
    [
        ("protocol: http", ["h2", "http/1.1"]),
        ("protocol: http, http2: {enabled: true}", ["h2", "http/1.1"]),
        ("protocol: http, http2: {enabled: false}", ["http/1.1"]),
        ("protocol: auto", []),
        ("protocol: tcp", []),
        ("protocol: tcp, alpn: [h2]", ["h2"]),
        ("protocol: http, alpn: [http/1.1, h2]", ["http/1.1", "h2"]),
        ("protocol: http, http2: {enabled: false}, alpn: [http/1.1]", ["http/1.1"]),
    ],
)
def test_what_a_listener_agrees_on(listener: str, alpn: list[str]) -> None:
    settings, _, explicit = listener.partition(", alpn: ")
    tls = f"tls: {{certificates: [{PAIR}]{', alpn: ' + explicit if explicit else ''}}}"
    text = (
        f"listeners: [{{name: a, bind: 127.0.0.1:8080, to: web, {settings}, {tls}}}]\n"
        "services: {web: {endpoints: [127.0.0.1:9000]}}\n"
    )
    (found,) = loads(text.encode(), BASE).config.listeners
    assert listener_alpn(found) == alpn


@pytest.mark.parametrize(
    ("service", "listener", "alpn"),
    [
        ("", "protocol: http, to: web", ["h2", "http/1.1"]),
        ("", "role: outbound", ["h2", "http/1.1"]),
        ("", "protocol: auto, to: web", []),
        ("", "protocol: tcp, to: web", []),
        ("protocol: http1,", "protocol: http, to: web", ["http/1.1"]),
        ("protocol: http2,", "protocol: http, to: web", ["h2"]),
        ("protocol: http2,", "protocol: auto, to: web", ["h2"]),
        ("protocol: http1,", "protocol: auto, to: web", ["http/1.1"]),
        ("protocol: http2, alpn: [h2],", "protocol: http, to: web", ["h2"]),
        ("alpn: [http/1.1],", "protocol: http, to: web", ["http/1.1"]),
        ("alpn: [h2],", "protocol: tcp, to: web", ["h2"]),
    ],
)
def test_what_a_service_is_offered(service: str, listener: str, alpn: list[str]) -> None:
    settings, found, explicit = service.partition("alpn: ")
    tls = f"tls: {{server_name: a.example, {found}{explicit}}}"
    text = (
        f"listeners: [{{name: a, bind: 127.0.0.1:8080, {listener}}}]\n"
        f"services: {{web: {{endpoints: [127.0.0.1:9000], {settings} {tls}}}}}\n"
    )
    config = loads(text.encode(), BASE).config
    assert service_alpn(config.services["web"], config.listeners) == alpn


def test_an_http_service_may_have_an_opaque_listener_too(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "listeners:\n"
        "  - {name: a, bind: 127.0.0.1:8080, to: web, protocol: tcp}\n"
        "  - {name: b, bind: 127.0.0.1:8081, to: web, protocol: http}\n"
        "services:\n"
        "  web: {endpoints: [127.0.0.1:9000], protocol: http2}\n"
        "  unused: {endpoints: [127.0.0.1:9001], protocol: http2}\n"
    )
    assert [one["protocol"] for one in make_snapshot(load(path))["services"]] == ["http2", "http2"]
