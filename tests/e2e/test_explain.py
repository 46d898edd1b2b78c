"""`fastmesh explain`: what it prints, how it exits, and that the data plane agrees with it."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from click.testing import CliRunner, Result
from kit.fixtures import Serve, Serving
from kit.pki import Pki, client_context
from kit.ports import free_port
from kit.proxy import Metrics, cli
from kit.public import Shop
from kit.rules import configuration, groups
from kit.upstream import ServerConn
from kit.wire import connect, connect_tls, request, response

from fastmesh.cli import main
from fastmesh.cli.explain import explain
from fastmesh.config import load, make_snapshot

EXAMPLES = Path(__file__).parents[2] / "examples"
MESH_B = EXAMPLES / "mesh-b.yaml"


def here(*args: str | Path) -> Result:
    """`fastmesh explain` in this process; that it is a program, too, is shown by the first tests."""
    done = CliRunner().invoke(main, ["explain", *map(str, args)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def explained(*args: str | Path) -> tuple[int, dict[str, Any]]:
    done = here("--json", *args)
    assert done.exit_code in (0, 1), done.stderr
    return done.exit_code, json.loads(done.stdout)


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
        "upstream   HTTP/1.1\n"
        "result     allowed\n"
    )


def test_refused() -> None:
    done = cli("explain", "-c", MESH_B, "--from", "svc-x", "GET", "http://svc-b/path", check=False)
    assert done.returncode == 1
    assert "rule       deny by the listener's rules: no rule holds\n" in done.stdout
    assert done.stdout.endswith("result     refused: 403 denied (not allowed)\n")


def test_without_a_certificate() -> None:
    for url, reason in {"http://svc-b/": "tls_not_tls", "https://svc-b/": "tls_no_certificate"}.items():
        code, result = explained("-c", MESH_B, "GET", url)
        assert (code, result["reason"], result["service"]) == (1, reason, None)


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


SPOKEN = """
listeners:
  - {name: edge, bind: 127.0.0.1:8080, role: outbound}
  - {name: web, bind: 127.0.0.1:8081, role: outbound, grpc_web: true}
  - {name: raw, bind: 127.0.0.1:8082, protocol: tcp, to: mixed}
workload: svc-a
trust_domain: mesh.local
pki: pki
services:
  plain: {endpoints: [127.0.0.1:9000]}
  one: {endpoints: [127.0.0.1:9000], protocol: http1}
  two: {endpoints: [127.0.0.1:9000], protocol: http2}
  svc-b: {endpoints: [127.0.0.1:9000], tls: mesh}
  api: {endpoints: [127.0.0.1:9000], tls: {server_name: api.example}}
  old: {endpoints: [127.0.0.1:9000], tls: {server_name: api.example, alpn: [http/1.1]}}
  new: {endpoints: [127.0.0.1:9000], protocol: http2, tls: {server_name: api.example}}
  mixed: {endpoints: [127.0.0.1:9000], tls: {server_name: api.example}}
"""


def test_what_endpoints_are_spoken_to_in(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(SPOKEN)
    loaded = load(path)
    snapshot = make_snapshot(loaded, identity=False)
    kinds = {
        "edge": (
            None,
            "text/html",
            "application/grpc",
            "Application/gRPC+proto; x=y",
            "application/grpc-web",
        ),
        "web": ("application/grpc-web-text+proto",),
    }
    h1, h2, either = ["http/1.1"], ["h2"], ["h2", "http/1.1"]
    grpc = {"plain": [h1, h1, h2, h2, h1, h2]}
    always = {"one": h1, "two": h2, "svc-b": either, "api": either, "old": h1, "new": h2, "mixed": h1}
    alpn = {"api": either, "old": h1, "new": h2, "mixed": []}
    for service in (*grpc, *always):
        found = [
            explain(
                snapshot,
                *("POST", f"http://{service}/x"),
                caller=None,
                source="127.0.0.1",
                name=name,
                headers=() if kind is None else (f"Content-Type: {kind}",),
                alpn=alpn,
            )["speaks"]
            for name, given in kinds.items()
            for kind in given
        ]
        assert found == grpc.get(service, [always.get(service)] * 6), service
    for service, spoken in {**always, "plain": h1}.items():
        assert explained("-c", path, "--listener", "edge", "GET", f"http://{service}/")[1]["speaks"] == spoken
    assert explained("-c", path, "TCP", "tcp://mixed")[1]["speaks"] == []
    assert explained("-c", path, "--listener", "edge", "GET", "http://nobody/")[1]["speaks"] == []
    done = here("-c", path, "--listener", "edge", "GET", "http://svc-b/")
    assert "upstream   HTTP/2, or HTTP/1.1 by the endpoint's choice\n" in done.stdout


@pytest.mark.parametrize(
    "args",
    [
        ("--from", "Svc", "GET", "http://h/"),
        ("--listener", "nobody", "GET", "http://h/"),
        ("GET", "h/path"),
        ("GET", "tcp://h"),
        ("TCP", "http://h/"),
        ("TCP", "any"),
        ("-H", "nocolon", "GET", "http://h/"),
        ("--from", "svc-a", "--source", "nowhere", "GET", "http://h/"),
    ],
)
def test_bad_usage(args: tuple[str, ...]) -> None:
    assert here("-c", MESH_B, *args).exit_code == 2


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


# What explain says of listeners and services of every kind is what becomes of such a call.

EXPORT = {"deny": [{"name": "no-exports", "paths": ["/export"]}]}
FAR = {"name": "far", "sources": ["127.0.0.2"]}


def listeners(shop: Shop) -> dict[str, dict[str, Any]]:
    """Of each kind one, by name."""
    ends = {"certificates": [shop.issue("edge", "edge.example")]}
    return {
        "mesh": {"role": "inbound", "to": "app", "allow": [{"name": "a", "from": ["svc-a"]}]},
        "both": {
            "role": "inbound",
            "tls": "permissive",
            "to": "app",
            "allow": [{"name": "open", "from": ["unauthenticated"], "paths": ["/open"]}, {"from": ["svc-a"]}],
        },
        "edge": {"tls": ends, "protocol": "http", "to": "app", **EXPORT},
        "demanding": {"tls": {**ends, "client_ca": str(shop.ca)}, "protocol": "http", "to": "app"},
        "edge-tcp": {"tls": ends, "protocol": "tcp", "to": "app", "deny": [FAR]},
        "edge-auto": {"tls": ends, "to": "app", **EXPORT},
        "pass": {
            "tls": "passthrough",
            "sni": {"one.example": "app", "*.two.example": "near", "*.closed.two.example": "closed"},
        },
        "pass-rest": {"tls": "passthrough", "sni": {"one.example": "closed"}, "to": "app"},
        "plain": {"protocol": "http", "to": "app", **EXPORT},
        "tcp": {"protocol": "tcp", "to": "app", "deny": [FAR]},
        "tcp-guarded": {"protocol": "tcp", "to": "guarded"},
        "auto": {"to": "app", **EXPORT},
        "audit": {"protocol": "http", "to": "app", "mode": "audit", **EXPORT},
        "audit-guarded": {"protocol": "http", "to": "guarded", "mode": "audit", "allow": [{"paths": ["/a"]}]},
        "audit-tcp": {"protocol": "tcp", "to": "app", "mode": "audit", "deny": [FAR]},
        "outbound": {"role": "outbound"},
    }


def services(app: int, tls_app: int, shop: Shop) -> dict[str, dict[str, Any]]:
    endpoints = {"endpoints": [f"127.0.0.1:{app}"]}
    return {
        "app": endpoints,
        "near": {**endpoints, "deny": [FAR]},
        "guarded": {**endpoints, "deny": [FAR, {"name": "put", "methods": ["PUT"]}]},
        "closed": {**endpoints, "allow": [{"name": "get", "methods": ["GET"]}]},
        "watched": {**endpoints, "mode": "audit", "allow": [{"paths": ["/a"]}]},
        "api": {
            "endpoints": [f"127.0.0.1:{tls_app}"],
            "tls": {"server_name": "api.example", "ca": str(shop.ca)},
            **EXPORT,
        },
        "nowhere": {"endpoints": []},
    }


# listener, who calls (or the address it comes from), what; the reason for a refusal, or None
CALLS = """
mesh          svc-a      GET http://h/                  -
mesh          svc-x      GET http://h/                  denied
mesh          -          GET http://h/                  tls_not_tls
mesh          -          GET https://h/                 tls_no_certificate
both          svc-a      GET http://h/x                 -
both          svc-x      GET http://h/open              denied
both          -          GET http://h/open              -
both          -          GET http://h/x                 denied
both          -          GET https://h/open             tls_no_certificate
both          svc-a      CONNECT http://h:80/           connect_not_allowed
both          svc-a      TCP tcp://h                    -
both          -          TCP tcp://h                    denied
edge          -          GET https://edge.example/      -
edge          -          GET https://edge.example/export denied
edge          svc-a      GET https://other.example/     -
edge          -          GET http://edge.example/       tls_not_tls
edge          -          TCP tls://edge.example         bad_request_line
edge          -          CONNECT https://edge.example:443/ denied
demanding     -          GET https://edge.example/      tls_no_certificate
demanding     -          GET http://edge.example/       tls_not_tls
edge-tcp      -          TCP tls://edge.example         -
edge-tcp      127.0.0.2  TCP tls://edge.example         denied
edge-tcp      -          GET https://edge.example/      -
edge-tcp      -          TCP tcp://edge.example         tls_not_tls
edge-auto     -          GET https://edge.example/a     -
edge-auto     -          GET https://edge.example/export denied
edge-auto     -          TCP tls://edge.example         denied
pass          -          GET https://one.example/       -
pass          -          GET https://ONE.example/       -
pass          -          GET https://a.two.example/     -
pass          127.0.0.2  GET https://a.two.example/     denied
pass          -          GET https://b.a.two.example/   -
pass          -          GET https://closed.two.example/ -
pass          -          GET https://a.closed.two.example/ denied
pass          -          GET https://two.example/       no_service
pass          -          GET https://127.0.0.1/         no_service
pass          -          GET http://one.example/        tls_not_tls
pass          -          TCP tcp://one.example          tls_not_tls
pass-rest     -          TCP tls://one.example          denied
pass-rest     -          TCP tls://other.example        -
pass-rest     -          GET https://127.0.0.1/         -
plain         -          GET http://h/                  -
plain         svc-a      GET http://h/export            denied
plain         -          GET https://h/                 bad_request_line
plain         -          TCP tcp://h                    bad_request_line
tcp           -          TCP tcp://h                    -
tcp           127.0.0.2  TCP tcp://h                    denied
tcp           -          GET http://h/                  -
tcp           127.0.0.2  GET http://h/                  denied
tcp           -          GET https://h/                 -
tcp-guarded   -          TCP tcp://h                    denied
auto          -          GET http://h/a                 -
auto          -          GET http://h/export            denied
auto          -          get http://h/a                 denied
auto          -          TCP tcp://h                    denied
auto          -          GET https://h/a                denied
audit         -          GET http://h/export            -
audit-guarded -          GET http://h/b                 -
audit-guarded -          PUT http://h/b                 denied
audit-guarded 127.0.0.2  GET http://h/a                 denied
audit-tcp     127.0.0.2  TCP tcp://h                    -
outbound      -          GET http://app/                -
outbound      svc-b      GET http://app/                -
outbound      -          GET http://guarded:81/         -
outbound      -          PUT http://guarded/            denied
outbound      127.0.0.2  GET http://guarded/            denied
outbound      -          GET http://watched/b           -
outbound      -          GET http://api/                -
outbound      -          GET http://api/export          denied
outbound      -          GET http://nowhere/            no_endpoint
outbound      -          GET http://nobody/             no_service
outbound      -          CONNECT http://app:80/         -
outbound      -          GET https://app/               bad_request_line
"""


@dataclass
class Call:
    """A line of the table."""

    listener: str
    who: str | None
    source: str
    method: str
    url: str
    reason: str | None

    @classmethod
    def parse(cls, line: str) -> Call:
        listener, who, method, url, reason = line.split()
        named = who.startswith("svc-")
        source = who if "." in who else "127.0.0.1"
        return cls(listener, who if named else None, source, method, url, None if reason == "-" else reason)

    def explained(self, snapshot: dict[str, Any]) -> dict[str, Any]:
        return explain(
            snapshot,
            self.method,
            self.url,
            caller=self.who,
            source=self.source,
            name=self.listener,
            headers=(),
            client_ca=["demanding"],
        )


def made(call: Call, address: tuple[str, int], tls: Any, pki: Pki) -> tuple[bool, str | None]:
    """Whether a client that does what `call` says gets an answer, and the reason that it is told."""
    parts = urlsplit(call.url)
    host = parts.hostname or ""
    data = b"\0what HTTP is not\r\n\r\n"
    if call.method != "TCP":
        target = parts.netloc if call.method == "CONNECT" else parts.path
        data = request(call.method, target, host=parts.netloc)
    context = None
    if call.who and tls in ("mesh", "permissive"):
        context = client_context(pki.identity(call.who))
    elif parts.scheme in ("https", "tls"):
        context = client_context(None)
    with contextlib.suppress(OSError, AssertionError), connect(address, source=(call.source, 0)) as client:
        if context and tls in ("none", "passthrough"):
            data = hello(context, host)
        elif context:
            client.sock = context.wrap_socket(client.sock, server_hostname=host)
        client.send(data)
        answer = client.read_response(call.method)
        return answer.status == 200, answer.reason
    return False, None


def hello(context: ssl.SSLContext, host: str) -> bytes:
    sent = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=host).do_handshake()
    return sent.read()


def answering_anything(conn: ServerConn) -> None:
    with contextlib.suppress(OSError):
        while conn.fill():
            conn.send(response(b"ok"))


def test_listeners_and_services_of_every_kind(
    serve: Serve, upstream: Serving, pki: Pki, tmp_path: Path
) -> None:
    shop = Shop(tmp_path / "shop")
    context = shop.server(shop.issue("api", "api.example"))

    def with_tls(conn: ServerConn) -> None:
        conn.sock = context.wrap_socket(conn.sock, server_side=True)
        answering_anything(conn)

    app, api = upstream(answering_anything), upstream(with_tls)
    kinds = listeners(shop)
    ports = {name: free_port() for name in kinds}
    config: dict[str, Any] = {
        "workload": "svc-b",
        "trust_domain": "mesh.local",
        "pki": str(pki.path),
        "listeners": [
            {"name": name, "bind": f"127.0.0.1:{ports[name]}", **kind} for name, kind in kinds.items()
        ],
        "services": services(app.address[1], api.address[1], shop),
    }
    proxy = serve(config)
    snapshot = make_snapshot(load(proxy.path), identity=False)
    wrong = []
    for line in CALLS.strip().splitlines():
        call = Call.parse(line)
        said = call.explained(snapshot)
        # what the call before has left is counted when its connection ends
        before = proxy.wait_metric("nobody there", lambda m: m.sum("downstream_connections_open") == 0)
        passed, reason = made(call, ("127.0.0.1", ports[call.listener]), said["tls"], pki)
        if not passed and reason is None:  # nobody could be told: it is only counted
            proxy.wait_metric("the reason", lambda m: bool(counted(m) - counted(before)))  # noqa: B023
            (reason,) = counted(proxy.metrics()) - counted(before)
        if (said["allowed"], said["reason"]) != (passed, reason) or reason != call.reason:
            wrong.append(f"{line}: explained {said['reason']}, became {passed, reason}")
    assert not wrong, "\n".join(wrong)


def counted(metrics: Metrics) -> Counter[str]:
    return Counter(
        {
            sample.labels["reason"]: int(sample.value)
            for sample in metrics.samples
            if sample.name == "fastmesh_reasons_total"
        }
    )


def test_a_certificate_of_an_authority_of_the_listeners_own(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    path = tmp_path / "c.yaml"
    tls = {"certificates": [shop.issue("edge", "edge.example")], "client_ca": str(shop.ca)}
    listener = {"name": "edge", "bind": "127.0.0.1:1", "tls": tls, "protocol": "http", "to": "app"}
    path.write_text(
        yaml.safe_dump(
            {
                "trust_domain": "mesh.local",
                "listeners": [listener],
                "services": {"app": {"endpoints": ["127.0.0.1:2"]}},
            }
        )
    )
    done = here("-c", path, "--from", "svc-a", "GET", "https://edge.example/")
    assert "identity   none (certificates that are shown here give none)\n" in done.stdout


def test_the_listener_that_fits(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    path = tmp_path / "c.yaml"
    config = {
        "workload": "svc-b",
        "trust_domain": "mesh.local",
        "pki": "pki",
        "listeners": [
            {"name": name, "bind": f"127.0.0.1:{number}", **kind}
            for number, (name, kind) in enumerate(listeners(shop).items(), 1)
        ],
        "services": services(1000, 1001, shop),
    }
    path.write_text(yaml.safe_dump(config))
    for args, wanted in {
        ("--from", "svc-a", "GET", "http://h/"): "mesh",
        ("--from", "svc-b", "GET", "http://app/"): "outbound",
        ("--from", "svc-b", "GET", "https://app/"): "outbound",
        ("GET", "https://edge.example/"): "edge",
        ("GET", "http://edge.example/"): "plain",
        ("TCP", "tls://edge.example"): "edge-tcp",
        ("TCP", "tcp://edge.example"): "tcp",
    }.items():
        assert explained("-c", path, *args)[1]["listener"] == wanted, args


def test_what_is_told_of_opaque_bytes(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    config = configuration({"deny": [{"sources": ["10.0.0.0/8"]}]}, protocol="tcp", tls="none")
    path.write_text(yaml.safe_dump(config))
    done = here("-c", path, "--source", "::ffff:10.1.2.3", "GET", "http://h/a")
    assert done.stdout == (
        "listener   in (inbound, 127.0.0.1:0, tls: none)\n"
        "identity   none\n"
        "request    GET http://h/a\n"
        "protocol   opaque bytes: what rules say of requests does not hold\n"
        "rule       deny by the listener's rules: rule deny-1\n"
        "service    app\n"
        "result     refused: denied (not allowed)\n"
    )


def test_a_host_of_ones_own() -> None:
    code, result = explained("-c", EXAMPLES / "mesh-a.yaml", "-H", "host: SVC-B.", "GET", "http://nobody/x")
    assert (code, result["service"]) == (0, "svc-b")


TRANSPARENT = """
workload: svc-a
trust_domain: mesh.local
pki: pki
intercept: {inbound: {ports: [8080, 5432]}}
listeners:
  - {name: out, role: outbound, bind: 127.0.0.1:15001, transparent: true, unknown: UNKNOWN}
  - {name: in, role: inbound, bind: 0.0.0.0:15006, transparent: true, ports: {5432: tcp}}
services:
  web: {addresses: [10.77.0.2:80], endpoints: [10.77.0.2:15006]}
  one: {addresses: [10.77.0.3:80], endpoints: [10.77.0.4]}
  two: {addresses: [10.77.0.3:80], endpoints: [10.77.0.5:80]}
"""


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (("--from", "svc-a", "GET", "http://10.77.0.2/"), ("out", "http", "web", None)),
        (("--from", "svc-a", "GET", "http://web/"), ("out", "http", "web", None)),
        (("--from", "svc-a", "GET", "http://10.77.0.2:81/"), ("out", "opaque", "outbound:passthrough", None)),
        (("--from", "svc-a", "GET", "http://10.77.0.3/", "-H", "Host: two"), ("out", "http", "two", None)),
        (("--from", "svc-a", "GET", "http://10.77.0.3/"), ("out", "opaque", "outbound:passthrough", None)),
        (("--from", "svc-a", "TCP", "tls://one"), ("out", "opaque", "one", None)),
        (("--from", "svc-a", "GET", "http://10.77.0.4:99/"), ("out", "http", "one", None)),
        (("--from", "svc-b", "GET", "http://svc-a:8080/"), ("in", "http", "inbound:8080", None)),
        (("--from", "svc-b", "TCP", "tcp://svc-a:5432"), ("in", "opaque", "inbound:5432", None)),
        (("--from", "svc-b", "GET", "http://svc-a:8081/"), ("in", "opaque", None, "no_service")),
    ],
)
def test_transparent_listeners(
    tmp_path: Path, args: tuple[str, ...], wanted: tuple[str, str, str | None, str | None]
) -> None:
    """Where the client wanted to go decides; a name stands for the service's address."""
    file = tmp_path / "fastmesh.yaml"
    file.write_text(TRANSPARENT.replace("UNKNOWN", "passthrough"))
    listener = ("--listener", wanted[0])
    _, found = explained("-c", file, *listener, *args)
    assert (found["listener"], found["protocol"], found["service"], found["reason"]) == wanted
    file.write_text(TRANSPARENT.replace("UNKNOWN", "reject"))
    _, found = explained("-c", file, *listener, *args)
    if wanted[2] == "outbound:passthrough":
        wanted = ("out", "opaque", None, "unknown_destination")
    assert (found["listener"], found["protocol"], found["service"], found["reason"]) == wanted


@pytest.mark.parametrize(
    ("to", "url", "reason"),
    [
        (False, "http://svc-a:8080/", "denied"),
        (False, "http://svc-a:15006/", "denied"),
        (True, "http://10.0.0.1:15006/", "denied"),
        (True, "http://svc-a:8080/", None),
    ],
)
def test_ports_in_rules_are_the_applications(tmp_path: Path, to: bool, url: str, reason: str | None) -> None:
    """Also where the transparent listener itself is dialled: at `to`, or the only port."""
    listener = {"name": "in", "role": "inbound", "bind": "0.0.0.0:15006", "transparent": True, "tls": "none"}
    rules = {"deny": [{"ports": [9000 if to else 8080]}], **({"to": "app"} if to else {})}
    config = {
        "intercept": {"inbound": {"ports": [8080]}},
        "listeners": [listener | rules],
        "services": {"app": {"endpoints": ["127.0.0.1:9000"]}} if to else {},
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config))
    assert explained("-c", path, "GET", url)[1]["reason"] == reason
