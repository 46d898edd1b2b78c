"""Rules at work: over mutual TLS, on services, on opaque TCP, audited; what is logged, counted, passed on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from kit.fixtures import Serve, Serving
from kit.limits import wait_until
from kit.nginx import Nginx
from kit.pki import Pki, client_context
from kit.ports import free_port
from kit.rules import Case, Group, configuration, groups
from kit.upstream import answering
from kit.wire import Address, connect, connect_tls, request

SAMPLED = [group for group in groups() if not re.search("ports|tunnel|hide from", group.about)]
NAMES = ("svc-a", "svc-b", "svc-x")


def config_of(
    pki: Pki, endpoint: int, rules: dict[str, Any], **listener: Any
) -> tuple[dict[str, Any], Address]:
    """A sidecar with these rules on its inbound listener, and where that is."""
    port = free_port()
    config = configuration(rules, bind=f"127.0.0.1:{port}", **listener)
    config["pki"] = str(pki.path)
    config["services"]["app"]["endpoints"] = [f"127.0.0.1:{endpoint}"]
    return config, ("127.0.0.1", port)


def ask(address: Address, pki: Pki, who: str | None, data: bytes) -> Any:
    with contextlib.ExitStack() as stack:
        if who is None:
            client = stack.enter_context(connect(address))
        else:
            client = stack.enter_context(connect_tls(address, client_context(pki.identity(who))))
        client.send(data)
        return client.read_response()


def test_a_sample_of_the_table_over_mutual_tls(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """The same table that the engine is asked directly, through two processes and TLS."""
    app = upstream()
    listeners, asked = [], []
    for number, group in enumerate(SAMPLED):
        cases = [case for case in group.cases if fits(case)][: 8 if len(group.cases) < 40 else 40]
        if not cases:
            continue
        config, address = config_of(pki, app.address[1], group.config, name=f"l{number}", protocol="http")
        listeners.append(config["listeners"][0])
        asked.append((group, address, cases))
    serve({**config, "listeners": listeners})
    assert sum(len(cases) for _, _, cases in asked) > 100
    wrong = [line for group, address, cases in asked for line in differences(group, address, pki, cases, app)]
    assert not wrong, "\n".join(wrong)


def fits(case: Case) -> bool:
    """Can it be asked from here, with the identities that there are?"""
    here = (case.source, case.port) == ("192.0.2.1", 8080)
    # what is no target at all is refused before any rule, and ends the connection
    return here and case.target.startswith(("/", "http", "*")) and (case.who is None or case.who in NAMES)


def received(case: Case) -> str:
    """What the application gets: a query alone has the path "/" (RFC 9110 4.2.3)."""
    return f"/{case.forwarded}" if case.forwarded.startswith("?") else case.forwarded


def differences(group: Group, address: Address, pki: Pki, cases: list[Case], app: Any) -> list[str]:
    wrong = []
    for who in {case.who for case in cases}:
        with contextlib.ExitStack() as stack:
            context: ssl.SSLContext | None = client_context(pki.identity(who)) if who else None
            client = stack.enter_context(connect_tls(address, context) if context else connect(address))
            for case in (one for one in cases if one.who == who):
                before = len(app.requests)
                client.send(case.head)
                answer = client.read_response(case.method)
                outcome = "ok" if answer.status == 200 else answer.reason
                if outcome != case.outcome:
                    wrong.append(f"{group.about}: {case.line}: {answer.status} {outcome}")
                elif outcome == "ok" and app.requests[-1].target != received(case):
                    wrong.append(f"{group.about}: {case.line}: as {app.requests[-1].target}")
                if len(app.requests) - before != (outcome == "ok"):
                    wrong.append(f"{group.about}: {case.line}: {len(app.requests) - before} forwarded")
    return wrong


def test_a_refusal_tells_the_caller_nothing_and_the_operator_everything(
    serve: Serve, upstream: Serving, pki: Pki, tmp_path: Path
) -> None:
    app = upstream()
    rules = {
        "allow": [{"name": "readers", "from": ["svc-a"], "methods": ["GET"]}],
        "deny": [{"name": "no-admin", "paths": ["/admin/*"]}],
    }
    config, address = config_of(pki, app.address[1], rules)
    log = tmp_path / "access.log"
    proxy = serve({**config, "telemetry": {"access_log": {"path": str(log)}}})
    assert ask(address, pki, "svc-a", request(target="/x")).status == 200
    for who, target in (("svc-a", "/./admin/x"), ("svc-x", "/x"), (None, "/x")):
        answer = ask(address, pki, who, request(target=target))
        assert (answer.status, answer.reason) == (403, "denied")
        assert answer.body == b"app: not allowed (denied)\n"
        assert not re.search(rb"admin|reader|svc|rule", answer.raw.lower())
    metrics = proxy.wait_metric("counted", lambda m: m.sum("authorization_total") == 4)
    counted = {("readers", "allow"): 1, ("no-admin", "deny"): 1, ("default", "deny"): 2}
    for (rule, decision), count in counted.items():
        assert metrics.sum("authorization_total", listener="in", rule=rule, decision=decision) == count
    lines = wait_until(
        lambda: log.exists() and log.read_text().count("\n") == 4 and log.read_text(), "four records"
    )
    records = [json.loads(line) for line in lines.splitlines()]
    keys = ("identity", "path", "status", "decision", "rule", "rules_of", "audit")
    domain = "spiffe://mesh.local"
    assert [tuple(record[key] for key in keys) for record in records] == [
        (f"{domain}/svc-a", "/x", 200, "allow", "readers", "listener", False),
        (f"{domain}/svc-a", "/./admin/x", 403, "deny", "no-admin", "listener", False),
        (f"{domain}/svc-x", "/x", 403, "deny", "default", "listener", False),
        (None, "/x", 403, "deny", "default", "listener", False),
    ]


def test_audit_lets_pass_and_counts(serve: Serve, upstream: Serving, pki: Pki, tmp_path: Path) -> None:
    app = upstream()
    config, address = config_of(pki, app.address[1], {"mode": "audit", "allow": [{"from": ["svc-a"]}]})
    log = tmp_path / "access.log"
    proxy = serve({**config, "telemetry": {"access_log": {"path": str(log)}}})
    assert ask(address, pki, "svc-x", request()).status == 200
    metrics = proxy.wait_metric("counted", lambda m: m.sum("authorization_total") == 1)
    assert metrics.sum("authorization_total", rule="default", decision="audit") == 1
    assert metrics.by_reason("denied") == 0
    record = json.loads(str(wait_until(lambda: log.exists() and log.read_text(), "a record")))
    assert (record["status"], record["decision"], record["audit"]) == (200, "deny", True)


def test_rules_of_services_hold_behind_those_of_listeners(serve: Serve, upstream: Serving) -> None:
    app = upstream()
    port = free_port()
    config = {
        "listeners": [
            {
                "name": "out",
                "role": "outbound",
                "bind": f"127.0.0.1:{port}",
                "deny": [{"methods": ["DELETE"]}],
            }
        ],
        "services": {
            "web": {
                "endpoints": [f"127.0.0.1:{app.address[1]}"],
                "allow": [{"name": "public", "paths": ["/public/*"], "sources": ["127.0.0.0/8"]}],
            },
            "free": {"endpoints": [f"127.0.0.1:{app.address[1]}"]},
        },
    }
    proxy = serve(config)
    with connect(("127.0.0.1", port)) as client:
        for method, host, target, status in (
            ("GET", "web", "/public/x", 200),
            ("GET", "web", "/x/../public/x", 200),
            ("GET", "web", "/private", 403),
            ("GET", "free", "/a/../private", 200),
            ("DELETE", "web", "/public/x", 403),
            ("GET", "web", "/public/%2e%2e/private", 403),
        ):
            client.send(request(method, target, host=host))
            assert client.read_response().status == status, (method, host, target)
    assert [seen.target for seen in app.requests] == ["/public/x", "/public/x", "/a/../private"]
    metrics = proxy.metrics()
    assert metrics.sum("authorization_total", service="web", rule="public", decision="allow") == 2
    assert metrics.sum("authorization_total", service="web", rule="default", decision="deny") == 2
    assert metrics.sum("authorization_total", listener="out", rule="deny-1", decision="deny") == 1


def test_opaque_tcp_knows_sources_and_ports(serve: Serve, upstream: Serving) -> None:
    app = upstream(lambda conn: conn.send(conn.read_exact(4)))
    ports = free_port(), free_port()
    rules = [{"sources": ["127.0.0.0/8"]}], [{"sources": ["10.0.0.0/8"]}]
    serve(
        {
            "listeners": [
                {
                    "name": f"l{port}",
                    "bind": f"127.0.0.1:{port}",
                    "protocol": "tcp",
                    "to": "db",
                    "allow": allow,
                }
                for port, allow in zip(ports, rules, strict=True)
            ],
            "services": {
                "db": {"endpoints": [f"127.0.0.1:{app.address[1]}"], "deny": [{"not_ports": list(ports)}]}
            },
        }
    )
    with connect(("127.0.0.1", ports[0])) as client:
        client.send(b"ping")
        assert client.read_exact(4) == b"ping"
    # It may be reset before connect(2) has returned.
    with contextlib.suppress(ConnectionResetError), connect(("127.0.0.1", ports[1])) as client:
        client.expect_close()
    assert len(app.connections) == 1


def test_counters_of_rules_survive_a_reload_by_name(serve: Serve, upstream: Serving, pki: Pki) -> None:
    app = upstream()
    config, address = config_of(pki, app.address[1], {"allow": [{"name": "a", "from": ["svc-a"]}]})
    proxy = serve(config)
    assert ask(address, pki, "svc-a", request()).status == 200
    listener = config["listeners"][0]
    rules = [{"name": "x", "from": ["svc-x"]}, {"name": "a", "from": ["svc-a"], "paths": ["/"]}]
    proxy.reload(listeners=[{**listener, "allow": rules}])
    for who in ("svc-a", "svc-x", "svc-x"):
        assert ask(address, pki, who, request()).status == 200
    metrics = proxy.metrics()
    assert metrics.sum("authorization_total", rule="a", decision="allow") == 2
    assert metrics.sum("authorization_total", rule="x", decision="allow") == 2


# x-forwarded-client-cert


def leaf_hash(path: Path) -> str:
    leaf = x509.load_pem_x509_certificate(path.read_bytes())
    return hashlib.sha256(leaf.public_bytes(Encoding.DER)).hexdigest()


@pytest.mark.parametrize(
    ("mode_and_caller", "wanted"),
    [
        (("auto", "svc-a"), "{ours}"),
        (("auto", None), None),
        (("set", "svc-a"), "{ours}"),
        (("append", "svc-a"), "URI=forged, Hash=1, {ours}"),
        (("append", None), "URI=forged;Hash=1"),
        (("keep", "svc-a"), "URI=forged;Hash=1"),
        (("remove", "svc-a"), None),
    ],
)
def test_the_application_is_told_who_calls(
    serve: Serve, upstream: Serving, pki: Pki, mode_and_caller: tuple[str, str | None], wanted: str | None
) -> None:
    mode, who = mode_and_caller
    app = upstream()
    config, address = config_of(pki, app.address[1], {}, forwarded={"client_cert": mode})
    serve(config)
    forged = [("X-Forwarded-Client-Cert", "URI=forged"), ("x-forwarded-client-CERT", "Hash=1")]
    assert ask(address, pki, who, request(headers=forged)).status == 200
    assert ask(address, pki, who, request()).status == 200
    domain = "spiffe://mesh.local"
    digest = leaf_hash(pki.identity("svc-a").certificate)
    ours = f"By={domain}/svc-b;Hash={digest};URI={domain}/svc-a"
    seen = app.requests[0].all("x-forwarded-client-cert")
    if mode in ("keep",) or (mode == "append" and who is None):
        assert seen == ["URI=forged", "Hash=1"]
    else:
        assert seen == ([] if wanted is None else [wanted.format(ours=ours)])
    plain = app.requests[1].all("x-forwarded-client-cert")
    assert plain == ([ours] if who is not None and mode in ("auto", "set", "append") else [])


def test_no_caller_can_have_the_proof_dropped(serve: Serve, upstream: Serving, pki: Pki) -> None:
    app = upstream(answering())
    config, address = config_of(pki, app.address[1], {})
    serve(config)
    answer = ask(address, pki, "svc-a", request(headers=[("Connection", "close, X-Forwarded-Client-Cert")]))
    assert (answer.status, answer.reason) == (400, "bad_field")
    assert app.requests == []


@pytest.mark.parametrize("who", ["svc-a", None])
def test_no_caller_can_forge_the_proof_with_underscores(
    serve: Serve, upstream: Serving, pki: Pki, who: str | None
) -> None:
    """To CGI and WSGI (RFC 3875 4.1.18) x_forwarded_client_cert is the same variable."""
    app = upstream()
    config, address = config_of(pki, app.address[1], {})
    serve(config)
    forged = [(name, "URI=forged") for name in ("x_forwarded_client_cert", "X-Forwarded_Client-Cert")]
    assert ask(address, pki, who, request(headers=forged)).status == 200
    (seen,) = app.requests
    assert b"forged" not in seen.raw
    assert len(seen.all("x-forwarded-client-cert")) == (who is not None)


# What was open, or old, before the rules


def test_without_host_the_rules_see_the_one_that_the_endpoint_gets(
    serve: Serve, upstream: Serving, pki: Pki
) -> None:
    """HTTP/1.0 has no Host: the service's name stands in for it, for rules as for the endpoint."""
    app = upstream(answering())
    config, address = config_of(pki, app.address[1], {"deny": [{"hosts": ["app"], "paths": ["/x"]}]})
    serve(config)
    assert ask(address, pki, None, b"GET /x HTTP/1.0\r\n\r\n").reason == "denied"
    assert ask(address, pki, None, b"GET /x HTTP/1.0\r\nHost:\r\n\r\n").reason == "denied"
    assert ask(address, pki, None, b"GET /y HTTP/1.0\r\n\r\n").status == 200
    (seen,) = app.requests
    assert (seen.target, seen.all("host")) == ("/y", ["app"])


def test_plaintext_connections_end_where_a_reload_asks_for_an_identity(
    serve: Serve, upstream: Serving, pki: Pki
) -> None:
    app = upstream(answering())
    config, address = config_of(pki, app.address[1], {}, protocol="http")
    proxy = serve(config)
    with connect(address) as old, connect_tls(address, client_context(pki.identity("svc-a"))) as proven:
        for client in (old, proven):
            client.send(request())
            assert client.read_response().status == 200
        proxy.reload(listeners=[{**config["listeners"][0], "tls": "mesh"}])
        for client in (old, proven):
            client.send(request())
        answer = old.read_response()
        assert (answer.status, answer.reason) == (403, "denied")
        old.expect_close()
        assert proven.read_response().status == 200
    assert len(app.requests) == 3


def test_requests_behind_a_path_that_becomes_shorter(serve: Serve, nginx: Nginx, pki: Pki) -> None:
    """Pipelined, in pieces of all sizes: each gets its own answer, whatever became of the ones before."""
    config, address = config_of(pki, nginx.port, {"deny": [{"paths": ["/moved"]}]}, protocol="http")
    serve(config)
    padding = "/./%2e" * 500
    kinds = [
        (f"GET {padding}/%73mall?q={'x' * 900} HTTP/1.1\r\nHost: h\r\n\r\n", 200),
        ("GET http://h/a/../%32%30%34 HTTP/1.1\r\nHost: h\r\n\r\n", 204),
        ("GET //x/..//mo%76ed HTTP/1.1\r\nHost: h\r\n\r\n", 403),
        (f"GET {padding}/..%00/small HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET /%2e/moved HTTP/1.1\r\nHost: h\r\nX: y\r\n\r\n", 403),
    ]
    for size in (1 << 20, 4096, 1021, 97):
        data = "".join(text for text, _ in kinds * 4).encode()
        with connect(address) as client:
            for at in range(0, len(data), size):
                client.send(data[at : at + size])
            assert [client.read_response().status for _ in kinds * 4] == [status for _, status in kinds * 4]


def test_nginx_serves_nothing_denied_however_it_is_spelled(serve: Serve, nginx: Nginx, pki: Pki) -> None:
    """The same connections ask for the denied resource in every spelling that nginx itself resolves to it."""
    config, address = config_of(pki, nginx.port, {"deny": [{"paths": ["/small"]}]}, protocol="http")
    serve(config)
    plain = "/small"
    spelled = [
        plain[:at] + f"%{ord(plain[at]):{form}}" + plain[at + 1 :]
        for at in range(1, 6)
        for form in ("02x", "02X")
    ]
    spelled += [
        "//small",
        "/./small",
        "/x/../small",
        "/x/%2e%2E/small",
        "/..//small",
        "/x%2f..%2fsmall",
        "/%2fsmall",
    ]
    spelled += [
        "/x/%252e%252e/small",
        "http://h/small",
        "HTTP://H:80//small",
        "/small?",
        "/small?/../x",
        "/small%00",
    ]
    spelled += [
        "/small%3f",
        "/small#x",
        "/small/",
        "/small/.",
        "/small/x/..",
        "/small;x",
        "\\small",
        "/x\\..\\small",
    ]
    with contextlib.ExitStack() as stack:
        for target in spelled:
            client = stack.enter_context(connect(address))
            client.send(f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")
            assert b"from nginx" not in client.read_response().body, target
