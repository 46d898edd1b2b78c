"""From file to snapshot: the examples in full, stability, slots, identity and host names."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastmesh.agent.loader import load as load_request
from fastmesh.certs import authority, store
from fastmesh.certs.errors import PkiError
from fastmesh.config import ConfigErrors, load, make_snapshot
from fastmesh.config.loader import loads

EXAMPLES = Path(__file__).parents[2] / "examples"
LISTENER_DEFAULTS = {
    "header_timeout_ms": 10_000,
    "idle_timeout_ms": 60_000,
    "stream_idle_timeout_ms": 300_000,
    "tcp_idle_timeout_ms": 3_600_000,
    "max_connection_age_ms": 0,
    "max_connections": 0,
    "handshakes": {"max": 512, "per_source": 0},
    "sni": [],
    "forwarded": {"x_forwarded": "append", "forwarded": "auto", "via": True, "client_cert": "remove"},
    "normalize_paths": "auto",
    "encoded_slashes": "refuse",
    "grpc_web": False,
}
HTTP2 = {
    "http2": {
        "enabled": True,
        "max_concurrent_streams": 1000,
        "ping_interval_ms": 30_000,
        "ping_timeout_ms": 10_000,
    }
}
NO_RULES = {"allow": None, "deny": None, "mode": "enforce", "rule_slot": None}
SERVICE_DEFAULTS = {
    "connect_timeout_ms": 1000,
    "response_timeout_ms": 60_000,
    "pool_idle_max": 1024,
    "pool_idle_timeout_ms": 55_000,
    "reuse_retry": "replayable",
    "protocol": "auto",
    "mesh_connections": 1,
    "http2": {"ping_interval_ms": 30_000, "ping_timeout_ms": 10_000},
    "health_check": None,
    "virtual": [],
}


def inet(host: str, port: int) -> dict[str, Any]:
    return {"family": "inet6" if ":" in host else "inet", "host": host, "port": port, "path": None}


def snapshot_of(text: str, base: Path = Path("/base"), **more: Any) -> dict[str, Any]:
    return make_snapshot(loads(text.encode(), base / "x.yaml"), **more)


def service_slots(snapshot: dict[str, Any]) -> dict[str, int]:
    return {service["name"]: service["slot"] for service in snapshot["services"]}


def minimal(services: str, top: str = "") -> str:
    return f"listeners: [{{name: a, bind: 127.0.0.1:8080, to: web}}]\nservices: {{{services}}}\n{top}"


WEB = minimal("web: {endpoints: [127.0.0.1:9000]}")


def test_edge_example() -> None:
    snapshot = make_snapshot(load(EXAMPLES / "edge.yaml"), number=7, workers=3)
    body = {key: value for key, value in snapshot.items() if key not in ("number", "digest")}
    assert snapshot["number"] == 7
    assert snapshot["digest"] == hashlib.sha256(msgspec.json.encode(body)).hexdigest()
    assert body == {
        "format": 1,
        "source": "edge.yaml",
        "workload": None,
        "trust_domain": None,
        "identity": None,
        "workers": 3,
        "drain_ms": 30_000,
        "admin": {"host": "127.0.0.1", "port": 15000, "explicit": False},
        "access_log": None,
        "dns": None,
        "listeners": [
            {
                "name": "edge",
                "role": "edge",
                "bind": inet("127.0.0.1", 8080),
                "protocol": "http",
                "tls": "none",
                "service": 0,
                **NO_RULES,
                **LISTENER_DEFAULTS,
                **HTTP2,
            },
            {
                "name": "db",
                "role": "edge",
                "bind": inet("127.0.0.1", 5432),
                "protocol": "tcp",
                "tls": "none",
                "service": 1,
                **NO_RULES,
                **LISTENER_DEFAULTS,
                "http2": {**HTTP2["http2"], "enabled": False},
            },
        ],
        "services": [
            {
                "name": "web",
                "slot": 0,
                "tls": "none",
                "spiffe_id": None,
                "endpoints": [inet("127.0.0.1", 9000), inet("127.0.0.1", 9001)],
                **NO_RULES,
                **SERVICE_DEFAULTS,
            },
            {
                "name": "postgres",
                "slot": 1,
                "tls": "none",
                "spiffe_id": None,
                "endpoints": [inet("127.0.0.1", 15432)],
                **NO_RULES,
                **SERVICE_DEFAULTS,
            },
        ],
    }


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the two example sidecars and the identities that they need."""
    base = tmp_path_factory.mktemp("mesh")
    for name in ("mesh-a.yaml", "mesh-b.yaml"):
        (base / name).write_text((EXAMPLES / name).read_text())
    authority.create(base / "pki", "mesh.local")
    for name in ("svc-a", "svc-b"):
        authority.issue(base / "pki", name)
    return base


def test_mesh_a_example(mesh: Path) -> None:
    snapshot = make_snapshot(load(mesh / "mesh-a.yaml"))
    assert (snapshot["workload"], snapshot["trust_domain"]) == ("svc-a", "mesh.local")
    identity = snapshot["identity"]
    assert set(identity) == {
        *("certificate", "key", "bundle", "pki", "workload", "spiffe_id", "federated", "revoked"),
        *("not_before", "not_after", "issuer_not_after", "root_not_after"),
        *("issuer_not_before", "root_not_before"),
    }
    assert (identity["pki"], identity["workload"]) == (str(mesh / "pki"), "svc-a")
    assert (identity["spiffe_id"], identity["revoked"]) == ("spiffe://mesh.local/svc-a", [])
    assert identity["not_before"] < identity["not_after"] <= identity["issuer_not_after"]
    assert identity["issuer_not_after"] < identity["root_not_after"]
    assert snapshot["identity"]["certificate"].startswith("-----BEGIN CERTIFICATE-----\n")
    assert "PRIVATE KEY" in snapshot["identity"]["key"]
    (listener,) = snapshot["listeners"]
    assert (listener["role"], listener["protocol"], listener["tls"]) == ("outbound", "http", "none")
    assert listener["service"] == -1
    (service,) = snapshot["services"]
    assert (service["tls"], service["spiffe_id"]) == ("mesh", "spiffe://mesh.local/svc-b")


def test_mesh_b_example(mesh: Path) -> None:
    snapshot = make_snapshot(load(mesh / "mesh-b.yaml"))
    (listener,) = snapshot["listeners"]
    assert (listener["role"], listener["protocol"], listener["tls"]) == ("inbound", "auto", "mesh")
    assert listener["allow"] == [
        {
            "name": "allow-1",
            "slot": 1,
            "from": ["spiffe://mesh.local/svc-a"],
            "methods": ["GET", "POST"],
            "paths": [{"prefix": "/"}],
        }
    ]
    assert (listener["deny"], listener["mode"], listener["rule_slot"]) == (None, "enforce", 0)
    assert listener["forwarded"]["client_cert"] == "set"


def test_identity_is_only_read_when_needed(tmp_path: Path) -> None:
    top = "workload: svc-a\ntrust_domain: mesh.local\npki: nowhere\n"
    assert snapshot_of(minimal("web: {endpoints: []}", top), tmp_path)["identity"] is None


def test_identity_missing(tmp_path: Path) -> None:
    path = tmp_path / "mesh-a.yaml"
    path.write_text((EXAMPLES / "mesh-a.yaml").read_text())
    with pytest.raises(PkiError, match=r"there is no pki directory .*/pki; run: fastmesh certs"):
        make_snapshot(load(path))


def test_identity_with_a_path(mesh: Path) -> None:
    authority.issue(mesh / "pki", "cart", path="/ns/shop/sa/cart")
    text = (EXAMPLES / "mesh-a.yaml").read_text().replace("workload: svc-a", "workload: cart")
    path = mesh / "cart.yaml"
    path.write_text(text)
    with pytest.raises(PkiError, match=r"not of spiffe://mesh\.local/cart"):
        make_snapshot(load(path))
    path.write_text("spiffe_id: spiffe://mesh.local/ns/shop/sa/cart\n" + text)
    assert make_snapshot(load(path))["identity"]["spiffe_id"] == "spiffe://mesh.local/ns/shop/sa/cart"


def test_service_with_a_path(mesh: Path) -> None:
    path = mesh / "path.yaml"
    text = (EXAMPLES / "mesh-a.yaml").read_text()
    path.write_text(text.replace("tls: mesh", "tls: mesh\n    spiffe_id: spiffe://other.org/ns/shop/sa/b"))
    (service,) = make_snapshot(load(path))["services"]
    assert service["spiffe_id"] == "spiffe://other.org/ns/shop/sa/b"


def test_the_identity_alone_is_renewed(mesh: Path) -> None:
    """Equal content has the same digest, by whichever way it came."""
    snapshot = make_snapshot(load(mesh / "mesh-b.yaml"), 3)
    known = json.loads(json.dumps(snapshot))
    known["identity"]["key"] = "[redacted]"
    request = {
        "snapshot": known,
        "number": 4,
        "digest": snapshot["digest"],
        "config": str(mesh / "mesh-b.yaml"),
    }
    request |= {"parts": ["identity", "listener/gone"]}
    assert json.loads(load_request(request)) == {"type": "unchanged", "refused": {}}
    authority.issue(mesh / "pki", "svc-b")
    renewed = json.loads(load_request(request))
    assert (renewed["type"], renewed["number"], renewed["refused"]) == ("parts", 4, {})
    assert renewed["parts"]["identity"]["certificate"] != snapshot["identity"]["certificate"]
    fresh = json.loads(json.dumps(make_snapshot(load(mesh / "mesh-b.yaml"), 4)))
    assert snapshot | {"number": 4, "digest": renewed["digest"]} | renewed["parts"] == fresh


def test_what_workers_refuse_is_refused_before_they_get_it(
    mesh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever Python's TLS lets pass: a snapshot that no worker can start with must not come into use."""
    request = {"config": str(mesh / "mesh-b.yaml"), "number": 1, "digest": None, "workers": 1}
    request |= {"slots": {}, "rule_slots": {}, "health_slots": {}, "virtual": {}}
    assert json.loads(load_request(request))["type"] == "snapshot"
    monkeypatch.setattr(store, "read_revoked", lambda text, where: ("ff" * 21,))
    answer = json.loads(load_request(request))
    assert answer["type"] == "pki_error"
    assert "pki/workloads/svc-b cannot be used: " in answer["message"]


def test_identity_of_another_trust_domain(mesh: Path, tmp_path: Path) -> None:
    path = tmp_path / "mesh.yaml"
    text = (EXAMPLES / "mesh-a.yaml").read_text()
    path.write_text(text.replace("mesh.local\npki: pki", f"other.local\npki: {mesh / 'pki'}"))
    with pytest.raises(PkiError, match=r"not of spiffe://other\.local/svc-a"):
        make_snapshot(load(path))


def test_same_file_same_digest() -> None:
    first, second = snapshot_of(WEB, number=1), snapshot_of(WEB, number=2)
    assert first["digest"] == second["digest"]
    assert msgspec.json.encode(first | {"number": 2}) == msgspec.json.encode(second)


@pytest.mark.parametrize(
    "other",
    [
        WEB + "drain: 31s\n",
        WEB + "workers: 9\n",
        WEB.replace("9000", "9001"),
        WEB.replace("to: web", "to: web, idle_timeout: 61s"),
    ],
)
def test_another_file_another_digest(other: str) -> None:
    assert snapshot_of(WEB)["digest"] != snapshot_of(other)["digest"]


def test_spelling_does_not_change_the_digest() -> None:
    other = WEB.replace("8080", '8080, "idle_timeout": 1m') + "# a comment\ndrain: 30000ms\n"
    assert snapshot_of(WEB)["digest"] == snapshot_of(other)["digest"]


def test_defaults_by_role() -> None:
    text = """
workload: svc-a
trust_domain: mesh.local
pki: pki
listeners:
  - {name: a, bind: 127.0.0.1:1, to: web}
  - {name: b, bind: 127.0.0.1:2, role: outbound, to: web}
  - {name: c, bind: 127.0.0.1:3, role: inbound, to: web, tls: none}
  - {name: d, bind: 127.0.0.1:4, role: outbound, protocol: http}
services: {web: {endpoints: []}}
"""
    listeners = snapshot_of(text)["listeners"]
    assert [(x["protocol"], x["tls"], x["service"]) for x in listeners] == [
        ("auto", "none", 0),
        ("auto", "none", 0),
        ("auto", "none", 0),
        ("http", "none", -1),
    ]


def test_every_setting() -> None:
    text = """
workers: 5
drain: 0s
admin: "[::1]:0"
telemetry: {access_log: {path: logs/access.log, format: json, sample: 12.5%}}
listeners:
  - name: a
    bind: unix:run/a.sock
    to: web
    protocol: http
    header_timeout: 1ms
    idle_timeout: 2ms
    stream_idle_timeout: 3ms
    tcp_idle_timeout: 4ms
    max_connections: 5
    forwarded: {x_forwarded: replace, forwarded: remove, via: false, client_cert: keep}
    normalize_paths: "off"
    encoded_slashes: keep
    http2: {enabled: false, max_concurrent_streams: 9, ping_interval: 10ms, ping_timeout: 11ms}
    grpc_web: true
services:
  web:
    endpoints: [{address: unix:/run/b.sock}, "[::1]:90", 127.0.0.1:90, 127.0.0.1:90]
    tls: none
    connect_timeout: 6ms
    response_timeout: 7ms
    reuse_retry: "off"
    pool: {idle_max: 0, idle_timeout: 8ms}
    protocol: http2
    mesh_connections: 12
    http2: {ping_interval: 0s, ping_timeout: 13ms}
"""
    snapshot = snapshot_of(text)
    assert (snapshot["workers"], snapshot["drain_ms"]) == (5, 0)
    assert snapshot["admin"] == {"host": "::1", "port": 0, "explicit": True}
    assert snapshot["access_log"] == {"path": "/base/logs/access.log", "format": "json", "sample": 0.125}
    (listener,) = snapshot["listeners"]
    assert listener["bind"] == {"family": "unix", "host": None, "port": 0, "path": "/base/run/a.sock"}
    assert [listener[f"{key}_timeout_ms"] for key in ("header", "idle", "stream_idle", "tcp_idle")] == [
        1,
        2,
        3,
        4,
    ]
    assert listener["max_connections"] == 5
    assert listener["forwarded"] == {
        "x_forwarded": "replace",
        "forwarded": "remove",
        "via": False,
        "client_cert": "keep",
    }
    assert (listener["normalize_paths"], listener["encoded_slashes"]) == ("off", "keep")
    assert listener["grpc_web"] is True
    assert listener["http2"] == {
        "enabled": False,
        "max_concurrent_streams": 9,
        "ping_interval_ms": 10,
        "ping_timeout_ms": 11,
    }
    (service,) = snapshot["services"]
    assert service["endpoints"] == [
        {"family": "unix", "host": None, "port": 0, "path": "/run/b.sock"},
        inet("::1", 90),
        inet("127.0.0.1", 90),
    ]
    assert [service[key] for key in SERVICE_DEFAULTS] == [
        *[6, 7, 0, 8, "off", "http2", 12],
        {"ping_interval_ms": 0, "ping_timeout_ms": 13},
        None,
        [],
    ]


def test_admin() -> None:
    assert snapshot_of(WEB + "admin: off\n")["admin"] is None
    explicit = snapshot_of(WEB + "admin: 127.0.0.1:15000\n")["admin"]
    assert explicit == {"host": "127.0.0.1", "port": 15000, "explicit": True}


def test_workers() -> None:
    assert snapshot_of(WEB)["workers"] >= 1
    assert snapshot_of(WEB + "workers: 4\n")["workers"] == 4
    assert snapshot_of(WEB + "workers: 4\n", workers=2)["workers"] == 2


def test_paths_follow_the_name_not_the_link(tmp_path: Path) -> None:
    """Kubernetes mounts a ConfigMap's files as links into another directory."""
    (tmp_path / "data").mkdir()
    real, link = tmp_path / "data" / "real.yaml", tmp_path / "fastmesh.yaml"
    real.write_text(WEB + "telemetry: {access_log: {path: access.log}}")
    link.symlink_to(real)
    assert make_snapshot(load(link))["access_log"]["path"] == str(tmp_path / "access.log")


def test_relative_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.yaml").write_text(WEB + "telemetry: {access_log: {path: access.log}}")
    monkeypatch.chdir(tmp_path)
    snapshot = make_snapshot(load(Path("x.yaml")))
    assert snapshot["access_log"]["path"] == str(tmp_path / "access.log")
    assert snapshot["source"] == "x.yaml"


def test_slots_stay_with_their_service() -> None:
    def slots(names: str, before: dict[str, int] | None = None) -> dict[str, int]:
        services = ", ".join(f"{name}: {{endpoints: []}}" for name in ["web", *names])
        return service_slots(snapshot_of(minimal(services), slots=before))

    first = slots("ab")
    assert first == {"web": 0, "a": 1, "b": 2}
    second = slots("bc", first)
    assert second == {"web": 0, "b": 2, "c": 3}, "a new service does not take over the counters of another"
    assert slots("ba", first) == {"web": 0, "b": 2, "a": 1}


def test_slots_when_all_are_taken() -> None:
    before = {f"s{n}": n for n in range(1024)}
    services = ", ".join(f"{name}: {{endpoints: []}}" for name in ["web", "s5"])
    slots = service_slots(snapshot_of(minimal(services), slots=before))
    assert slots["s5"] == 5
    assert slots["web"] not in (5, None)


def test_too_many_services() -> None:
    services = ", ".join(f"s{n}: {{endpoints: []}}" for n in range(1025))
    with pytest.raises(ConfigErrors, match=r"1:53|services: 1025 entries, expected at most 1024"):
        snapshot_of(f"listeners: [{{name: a, bind: 127.0.0.1:1, role: outbound}}]\nservices: {{{services}}}")


def fake_getaddrinfo(known: dict[str, list[str]]) -> Any:
    def lookup(host: str, port: object, **_: object) -> list[Any]:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(None, None, None, "", (address, 0)) for address in known[host]]

    return lookup


def test_names_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "two.test": ["::2", "10.0.0.9", "10.0.0.10", "10.0.0.9", "fe80::1%eth0"],
        "here.test": ["::1", "127.0.0.1"],
    }
    monkeypatch.setattr(socket, "getaddrinfo", fake_getaddrinfo(known))
    text = WEB.replace("127.0.0.1:8080", "here.test:8080").replace("127.0.0.1:9000", "two.test:1, 10.0.0.9:1")
    snapshot = snapshot_of(text)
    assert snapshot["listeners"][0]["bind"] == inet("127.0.0.1", 8080)
    assert snapshot["services"][0]["endpoints"] == [inet("10.0.0.9", 1), inet("10.0.0.10", 1), inet("::2", 1)]
    known["two.test"].reverse()
    assert snapshot_of(text)["digest"] == snapshot["digest"], "the name server's order does not matter"


def test_names_that_cannot_be_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", fake_getaddrinfo({"local.test": ["fe80::1%eth0"]}))
    with pytest.raises(ConfigErrors) as caught:
        snapshot_of(minimal("web: {endpoints: [no.test:1, local.test:1, {address: no2.test:1}]}"))
    assert [str(error).removeprefix("/base/x.yaml:") for error in caught.value.errors] == [
        "2:30: host name 'no.test' cannot be resolved (Name or service not known), "
        "expected a name that the system can look up",
        "2:41: host name 'local.test' cannot be resolved (it has no address), "
        "expected a name that the system can look up",
        "2:55: host name 'no2.test' cannot be resolved (Name or service not known), "
        "expected a name that the system can look up",
    ]


def test_localhost_is_resolved_for_real() -> None:
    endpoints = snapshot_of(WEB.replace("127.0.0.1:9000", "localhost:9000"))["services"][0]["endpoints"]
    assert inet("127.0.0.1", 9000) in endpoints or inet("::1", 9000) in endpoints


def test_import_is_light() -> None:
    """Every agent imports this package: what only some need is imported by those."""
    code = "import sys, fastmesh.config; print(' '.join(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    modules = set(run.stdout.split())
    assert not modules & {"yaml", "click", "cryptography", "ssl", "difflib", "rich", "fastmesh.certs.store"}
