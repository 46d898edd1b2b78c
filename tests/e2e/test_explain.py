"""`fastmesh explain`: what it prints, how it exits, and that the data plane agrees with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from kit.fixtures import Serve, Serving
from kit.pki import Pki, client_context
from kit.ports import free_port
from kit.proxy import cli
from kit.rules import configuration, groups
from kit.wire import connect, connect_tls, request

EXAMPLES = Path(__file__).parents[2] / "examples"
MESH_B = EXAMPLES / "mesh-b.yaml"


def explained(*args: str | Path) -> tuple[int, dict[str, Any]]:
    done = cli("explain", "--json", *args, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def test_allowed() -> None:
    done = cli("explain", "--config", MESH_B, "--from", "svc-a", "GET", "http://svc-b/path")
    assert done.stdout == (
        "listener   inbound (inbound, 127.0.0.1:15443, tls: mesh)\n"
        "identity   spiffe://mesh.local/svc-a\n"
        "request    GET http://svc-b/path\n"
        "path       /path\n"
        "rule       allow by the listener's rules: rule allow-1\n"
        "service    app\n"
        "endpoints  127.0.0.1:8080\n"
        "result     allowed\n"
    )


def test_refused() -> None:
    done = cli("explain", "-c", MESH_B, "--from", "svc-x", "GET", "http://svc-b/path", check=False)
    assert done.returncode == 1
    assert "rule       deny by the listener's rules: no rule holds\n" in done.stdout
    assert done.stdout.endswith("result     refused: 403 denied (not allowed)\n")


def test_without_a_certificate() -> None:
    code, result = explained("-c", MESH_B, "GET", "http://svc-b/")
    assert (code, result["reason"]) == (1, "tls_no_certificate")


def test_the_application_beside_the_sidecar_calls_outwards() -> None:
    code, result = explained("-c", EXAMPLES / "mesh-a.yaml", "--from", "svc-a", "GET", "http://svc-b:80/x")
    assert (code, result["listener"], result["service"]) == (0, "outbound", "svc-b")
    assert (result["identity"], result["endpoints"]) == (None, ["127.0.0.1:15443"])
    code, result = explained("-c", EXAMPLES / "mesh-a.yaml", "--from", "svc-a", "GET", "http://nobody/x")
    assert (code, result["reason"]) == (1, "no_service")


def test_paths_headers_sources_and_tcp(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    rules = {"deny": [{"name": "d", "paths": ["/admin/*"]}, {"name": "s", "sources": ["10.0.0.0/8"]}]}
    rules["deny"].append({"name": "h", "headers": {"x-a": "b"}})  # type: ignore[dict-item]
    path.write_text(yaml.safe_dump(configuration(rules)))
    common = ("-c", path, "--from", "svc-a")
    code, result = explained(*common, "GET", "http://h/x/..//y?q")
    assert (code, result["path"], result["rule"]) == (0, "/y?q", "default")
    code, result = explained(*common, "GET", "http://h/%61dmin;x/y")
    assert (code, result["rule"]) == (1, "d")
    code, result = explained(*common, "GET", "http://h/a%2fb")
    assert (code, result["reason"]) == (1, "bad_target")
    assert explained(*common, "--source", "10.1.2.3", "GET", "http://h/")[1]["rule"] == "s"
    assert explained(*common, "-H", "X-A: b", "GET", "http://h/")[1]["rule"] == "h"
    assert explained(*common, "TCP", "tcp://any")[1]["rule"] == "d"


@pytest.mark.parametrize(
    "args",
    [
        ("--from", "Svc", "GET", "http://h/"),
        ("--listener", "nobody", "GET", "http://h/"),
        ("GET", "h/path"),
        ("-H", "nocolon", "GET", "http://h/"),
        ("--from", "svc-a", "--source", "nowhere", "GET", "http://h/"),
    ],
)
def test_bad_usage(args: tuple[str, ...]) -> None:
    done = cli("explain", "-c", MESH_B, *args, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_it_says_what_the_data_plane_does(serve: Serve, upstream: Serving, pki: Pki, tmp_path: Path) -> None:
    app = upstream()
    (group,) = [one for one in groups() if one.about == "deny over allow"]
    port = free_port()
    config = configuration(group.config, bind=f"127.0.0.1:{port}")
    config["pki"] = str(pki.path)
    config["services"]["app"]["endpoints"] = [f"127.0.0.1:{app.address[1]}"]
    proxy = serve(config)
    for case in group.cases:
        who = () if case.who is None else ("--from", case.who)
        code, result = explained("-c", proxy.path, *who, case.method, f"http://h{case.target}")
        address = ("127.0.0.1", port)
        context = client_context(pki.identity(case.who)) if case.who else None
        with connect_tls(address, context) if context else connect(address) as client:
            client.send(request(case.method, case.target, host="h"))
            answer = client.read_response(case.method)
        assert (code == 0) == (answer.status == 200), case.line
        assert result["reason"] == (None if answer.status == 200 else answer.reason), case.line
