"""The access log and the counters: every exchange leaves its line and its numbers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from kit.fixtures import LaneFactory, Serve, Serving
from kit.limits import wait_until
from kit.pki import Pki, client_context
from kit.ports import free_port
from kit.proxy import Fastmesh
from kit.upstream import ServerConn, answering
from kit.wire import chunked, connect, connect_tls, request, response


def logged(path: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` records, as soon as they are there."""

    def read() -> list[dict[str, Any]] | None:
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines] if len(lines) >= count else None

    records = wait_until(read, f"{count} lines in the access log")
    assert len(records) == count, records
    return records


def edge(serve: Serve, log: Path, endpoint: int, **listener: Any) -> tuple[Fastmesh, tuple[str, int]]:
    port = free_port()
    config = {
        "listeners": [
            {"name": "front", "bind": f"127.0.0.1:{port}", "protocol": "http", "to": "web", **listener},
        ],
        "services": {"web": {"endpoints": [f"127.0.0.1:{endpoint}"]}},
        "telemetry": {"access_log": {"path": str(log)}},
    }
    return serve(config), ("127.0.0.1", port)


def test_every_request_leaves_a_line(serve: Serve, upstream: Serving, tmp_path: Path) -> None:
    server = upstream(answering(b"12345", "201 Created"))
    log = tmp_path / "access.log"
    _, address = edge(serve, log, server.address[1])
    start = time.time()
    with connect(address) as client:
        source = f"127.0.0.1:{client.local_port}"
        client.send(request("POST", "/path?query=1", body=b"0123456789", host="name.test:81"))
        assert client.read_response().status == 201
        client.send(request("GET", "/second"))
        client.read_response()
    first, second = logged(log, 2)
    wanted = {
        "listener": "front",
        "service": "web",
        "method": "POST",
        "authority": "name.test:81",
        "path": "/path?query=1",
        "status": 201,
        "reason": None,
        "source": source,
        "upstream": f"127.0.0.1:{server.address[1]}",
        "identity": None,
        "protocol": "HTTP/1.1",
        "retries": 0,
    }
    assert {key: first.get(key) for key in wanted} == wanted
    assert first["bytes_in"] >= 10
    assert first["bytes_out"] >= 5
    assert 0 <= first["duration"] < 60
    assert (second["method"], second["path"]) == ("GET", "/second")
    moment = first["time"]
    if isinstance(moment, str):
        import datetime

        moment = datetime.datetime.fromisoformat(moment).timestamp()
    assert start - 1 <= moment <= time.time() + 1


def test_failures_are_logged_with_their_reason(serve: Serve, upstream: Serving, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    endpoint = free_port()
    _, address = edge(serve, log, endpoint)
    for data in (request(target="/refused"), b"GET /x HTTP/1.1\r\nHost : a\r\n\r\n"):
        with connect(address) as client:
            client.send(data)
            client.read_response()
    refused, bad = logged(log, 2)
    assert (refused["status"], refused["reason"]) == (502, "connect_refused")
    assert (bad["status"], bad["reason"]) == (400, "bad_field")


def test_log_is_off_by_default(serve: Serve, upstream: Serving, tmp_path: Path) -> None:
    server = upstream()
    port = free_port()
    config = {
        "listeners": [{"name": "edge", "bind": f"127.0.0.1:{port}", "protocol": "http", "to": "web"}],
        "services": {"web": {"endpoints": [f"127.0.0.1:{server.address[1]}"]}},
    }
    proxy = serve(config)
    with connect(("127.0.0.1", port)) as client:
        client.send(request())
        client.read_response()
    proxy.stop()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".log"] == []


def test_all_lines_of_a_burst_arrive_and_are_whole(serve: Serve, upstream: Serving, tmp_path: Path) -> None:
    server = upstream()
    log = tmp_path / "access.log"
    proxy, address = edge(serve, log, server.address[1])
    count = 3000
    with connect(address) as client:
        for start in range(0, count, 100):
            client.send(*[request(target=f"/{number}") for number in range(start, start + 100)])
            for _ in range(100):
                client.read_response()
    proxy.stop()
    paths = [json.loads(line)["path"] for line in log.read_text().splitlines()]
    dropped = count - len(paths)
    assert dropped == 0 or dropped < count / 2, "a full ring may drop, and counts"
    assert paths == [f"/{number}" for number in range(count)] or dropped


def test_path_with_quotes_and_bytes_beyond_ascii_stays_json(
    serve: Serve, upstream: Serving, tmp_path: Path
) -> None:
    server = upstream()
    log = tmp_path / "access.log"
    _, address = edge(serve, log, server.address[1])
    with connect(address) as client:
        client.send(request(target='/a"b\\c?"', headers=[("X", "\xff")]))
        if client.read_response().status == 200:
            [record] = logged(log, 1)
            assert record["path"] == '/a"b\\c?"'


def test_opaque_connections_and_identities_are_logged(
    serve: Serve, upstream: Serving, pki: Pki, tmp_path: Path
) -> None:
    app = upstream(lambda conn: conn.send(conn.read_exact(4)), answering())
    log = tmp_path / "access.log"
    opaque, http = free_port(), free_port()
    serve(
        {
            "workload": "svc-b",
            "trust_domain": "mesh.local",
            "pki": str(pki.path),
            "listeners": [
                {
                    "name": "db",
                    "role": "inbound",
                    "bind": f"127.0.0.1:{opaque}",
                    "protocol": "tcp",
                    "to": "app",
                },
                {"name": "web", "role": "inbound", "bind": f"127.0.0.1:{http}", "to": "app"},
            ],
            "services": {"app": {"endpoints": [f"127.0.0.1:{app.address[1]}"]}},
            "telemetry": {"access_log": {"path": str(log)}},
        }
    )
    context = client_context(pki.identity("svc-a"))
    with connect_tls(("127.0.0.1", opaque), context) as client:
        client.send(b"ping")
        assert client.read_to_end() == b"ping"
    with connect_tls(("127.0.0.1", http), context) as client:
        client.send(request())
        assert client.read_response().status == 200
    first, second = logged(log, 2)
    assert (first["listener"], first["bytes_in"], first["bytes_out"]) == ("db", 4, 4)
    assert (second["listener"], second["status"]) == ("web", 200)
    for record in (first, second):
        assert record["identity"] == "spiffe://mesh.local/svc-a"


# counters


def test_requests_are_counted_by_service_and_status_class(lane: LaneFactory) -> None:
    statuses = ["200 OK", "201 Created", "302 Found", "404 Not Found", "500 Broken"]

    def script(conn: ServerConn) -> None:
        for seen in conn:
            conn.send(response(b"x", statuses[int(seen.target[1:])]))

    here = lane()
    here.upstream(script)
    with here.client() as client:
        for number in range(5):
            client.send(request(target=f"/{number}"))
            client.read_response()

    def counted(metrics: Any) -> dict[str, float]:
        return {
            next(value for key, value in s.labels.items() if key != "service"): s.value
            for s in metrics.samples
            if s.name == "fastmesh_requests_total" and s.labels.get("service") == here.service and s.value
        }

    here.proxy.wait_metric(
        "2xx 2, 3xx 1, 4xx 1, 5xx 1", lambda m: counted(m) == {"2xx": 2, "3xx": 1, "4xx": 1, "5xx": 1}
    )
    metrics = here.proxy.metrics()
    assert metrics.sum("request_duration_seconds_count", service=here.service) == 5
    assert 0 < metrics.sum("request_duration_seconds_sum", service=here.service) < 60


def test_reasons_are_counted(lane: LaneFactory) -> None:
    here = lane()
    before = here.proxy.metrics().by_reason("connect_refused")
    for _ in range(3):
        assert here.ask(request()).status == 502
    here.proxy.wait_metric("connect_refused 3 more", lambda m: m.by_reason("connect_refused") == before + 3)


def test_gauges_return_to_zero(serve: Serve, upstream: Serving, tmp_path: Path) -> None:
    server = upstream()
    proxy, address = edge(serve, tmp_path / "access.log", server.address[1])
    clients = [connect(address) for _ in range(5)]
    for client in clients:
        client.send(request("POST", headers=[("Transfer-Encoding", "chunked")]) + chunked(b"x"))
        client.read_response()
    proxy.wait_metric("5 connections", lambda m: m.sum("downstream_connections_open") == 5)
    for client in clients:
        client.close()
    proxy.wait_metric("none", lambda m: m.sum("downstream_connections_open") == 0)


def test_metrics_have_help_type_and_units(lane: LaneFactory) -> None:
    here = lane()
    here.upstream()
    here.ask(request())
    text = here.proxy.metrics().text
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    helped = {
        line.split()[2] for line in text.splitlines() if line.startswith("# HELP") and len(line.split()) > 3
    }
    assert names == helped
    assert all(name.startswith("fastmesh_") for name in names)
    for line in text.splitlines():
        if line.startswith("# TYPE") and line.endswith(" counter"):
            assert line.split()[2].endswith("_total"), line
