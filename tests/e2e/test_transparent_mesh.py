"""Two hosts whose applications know nothing: what leaves A and arrives at B is redirected, and is mutual TLS.

B's endpoints have no port in A's configuration: the one that the application dialled is kept, and taken over
on B's side.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kit.fixtures import Serve, Serving
from kit.limits import DEADLINE, wait_until
from kit.netns import Namespace, namespaces, needs_root
from kit.netns import connect as cable
from kit.pki import Pki, client_context
from kit.proxy import Fastmesh
from kit.upstream import Script, ServerConn, answering
from kit.wire import Conn, connect, connect_tls, request

pytestmark = needs_root

A = {4: "10.77.0.1", 6: "fd00:77::1"}
B = {4: "10.77.0.2", 6: "fd00:77::2"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
OUT_RULES = """
table inet test {
chain output {
    type nat hook output priority -100
    meta mark 0xfa5 return
    ip daddr 10.77.0.2 tcp dport 1-65535 redirect to :15001
    ip6 daddr fd00:77::2 tcp dport 1-65535 redirect to :15001
}
}
"""
IN_RULES = """
table inet test {
chain prerouting {
    type nat hook prerouting priority -100
    tcp dport { 25, 8080 } redirect to :15006
}
}
"""
OWN_RULES = """
table inet own {
chain output {
    type nat hook output priority -100
    tcp dport 8080 redirect to :15006
}
}
"""
TPROXY_RULES = """
table inet test {
chain prerouting {
    type filter hook prerouting priority -150
    meta l4proto tcp socket transparent 1 meta mark set 0x1 accept
    iifname != "lo" tcp dport { 25, 8080 } tproxy to :15006 meta mark set 0x1 accept
}
}
"""
families = pytest.mark.parametrize("family", [4, 6])


class Hosts:
    """A and B with a cable between them; B's is redirected as the test wants."""

    def __init__(self, a: Namespace, b: Namespace, serve: Serve, pki: Pki) -> None:
        self.a, self.b = a, b
        self._serve = serve
        self._pki = pki

    def inbound(
        self,
        application: list[int],
        method: str = "redirect",
        services: dict[str, Any] | None = None,
        **listener: Any,
    ) -> Fastmesh:
        """The sidecar of B, which is svc-b."""
        common = {"role": "inbound", "transparent": True, **listener}
        return self.start(
            self.b,
            {
                "workload": "svc-b",
                "intercept": {"method": method, "inbound": {"ports": application}},
                "listeners": [
                    {"name": "in", "bind": "0.0.0.0:15006", **common},
                    {"name": "in6", "bind": "[::]:15006", **common},
                ],
                "services": services or {},
            },
        )

    def outbound(self, family: int = 4) -> Fastmesh:
        """The sidecar of A, which is svc-a."""
        common = {"role": "outbound", "transparent": True}
        endpoints = [f"[{B[6]}]" if family == 6 else B[4]]
        return self.start(
            self.a,
            {
                "workload": "svc-a",
                "intercept": {"outbound": {}},
                "listeners": [
                    {"name": "out", "bind": "127.0.0.1:15001", **common},
                    {"name": "out6", "bind": "[::1]:15001", **common},
                ],
                "services": {"svc-b": {"endpoints": endpoints, "tls": "mesh"}},
            },
        )

    def start(self, where: Namespace, config: dict[str, Any]) -> Fastmesh:
        config |= {"trust_domain": "mesh.local", "pki": str(self._pki.path), "admin": "127.0.0.1:15000"}
        with where.inside():
            return self._serve(config)


def listening(**listener: Any) -> dict[str, Any]:
    """B's listener for IPv4."""
    return {"name": "in", "bind": "0.0.0.0:15006", "role": "inbound", "transparent": True, **listener}


def listening6() -> dict[str, Any]:
    return listening(name="in6", bind="[::]:15006", tls="none")


@pytest.fixture
def hosts(serve: Serve, pki: Pki) -> Iterator[Hosts]:
    with namespaces(2) as (a, b):
        cable(a, b)
        a.address("eth0", f"{A[4]}/24", f"{A[6]}/64")
        b.address("eth0", f"{B[4]}/24", f"{B[6]}/64")
        a.nft(OUT_RULES)
        yield Hosts(a, b, serve, pki)


def greeting(conn: ServerConn) -> None:
    conn.send(b"220 ready\r\n")
    while conn.fill():
        conn.send(conn.take(len(conn.buffer)))
    conn.shutdown()


def get(conn: Conn, **options: Any) -> bytes:
    conn.send(request(**options))
    return conn.read_response().body


@families
def test_plain_http_with_the_callers_identity(hosts: Hosts, upstream: Serving, family: int) -> None:
    hosts.b.nft(IN_RULES)
    with hosts.b.inside():
        app = upstream(answering(b"app"), address=(LOOPBACK[family], 8080))
    inbound, outbound = hosts.inbound([8080, 25]), hosts.outbound(family)
    with hosts.a.inside():
        for _ in range(3):
            with connect((B[family], 8080)) as client:
                assert get(client, host="anything") == b"app"
        sent = outbound.metrics()
    with hosts.b.inside():
        got = inbound.metrics()
    assert len(app.connections) == 1, "a pool of its own for the application's port"
    for one in app.requests:
        assert one.get("host") == "anything"
        assert "URI=spiffe://mesh.local/svc-a" in (one.get("x-forwarded-client-cert") or "")
    assert sent.sum("requests_total", service="svc-b", code="2xx") == 3
    assert got.sum("requests_total", service="inbound:8080", code="2xx") == 3
    assert got.sum("tls_handshakes_total", side="downstream") == 1


@families
def test_opaque_bytes_go_through_mutual_tls_too(hosts: Hosts, upstream: Serving, family: int) -> None:
    hosts.b.nft(IN_RULES)
    with hosts.b.inside():
        upstream(greeting, address=(LOOPBACK[family], 25))
    inbound, outbound = hosts.inbound([8080, 25]), hosts.outbound(family)
    with hosts.a.inside():
        for number in range(3):
            begun = time.monotonic()
            with connect((B[family], 25)) as client:
                assert client.read_until(b"\n") == b"220 ready\r\n"
                assert number or time.monotonic() - begun >= 0.1
                data = bytes(range(256)) * 4000
                with client.sending(data):
                    assert client.read_exact(len(data)) == data
                client.shutdown()
                client.expect_close(reset_ok=False)
        assert outbound.metrics().sum("detect_skipped_total") == 2
    with hosts.b.inside():
        metrics = inbound.metrics()
    assert metrics.sum("tls_handshakes_total", side="downstream") == 3
    assert metrics.sum("detect_skipped_total") == 2


@families
def test_who_proves_nothing_gets_nothing(hosts: Hosts, upstream: Serving, family: int) -> None:
    hosts.b.nft(IN_RULES)
    with hosts.b.inside():
        app = upstream(answering(b"app"), address=(LOOPBACK[family], 8080))
    inbound = hosts.inbound([8080])
    hosts.a.run("nft", "flush", "ruleset")
    with hosts.a.inside(), connect((B[family], 8080)) as client:
        client.send(request())
        client.expect_close()
    with hosts.b.inside():
        inbound.wait_metric("refused", lambda m: m.by_reason("tls_not_tls") == 1)
    assert not app.connections


@families
def test_permissive_takes_plaintext_without_identity(hosts: Hosts, upstream: Serving, family: int) -> None:
    hosts.b.nft(IN_RULES)
    with hosts.b.inside():
        app = upstream(answering(b"app"), address=(LOOPBACK[family], 8080))
        upstream(greeting, address=(LOOPBACK[family], 25))
    hosts.inbound([8080, 25], tls="permissive", protocol="http", ports={"25": "tcp"})
    hosts.a.run("nft", "flush", "ruleset")
    with hosts.a.inside(), connect((B[family], 8080)) as client:
        assert get(client, headers=[("x-forwarded-client-cert", "URI=spiffe://mesh.local/me")]) == b"app"
    (one,) = app.requests
    assert one.get("x-forwarded-client-cert") is None
    assert one.get("x-forwarded-for") == A[family]


def test_rules_know_the_caller_and_the_port_that_it_wanted(hosts: Hosts, upstream: Serving) -> None:
    hosts.b.nft(IN_RULES)
    with hosts.b.inside():
        upstream(answering(b"app"), address=("127.0.0.1", 8080))
        upstream(answering(b"no"), address=("127.0.0.1", 25))
    hosts.inbound([8080, 25], allow=[{"from": ["svc-a"], "ports": [8080]}])
    hosts.outbound()
    with hosts.a.inside():
        with connect((B[4], 8080)) as client:
            assert get(client) == b"app"
        with connect((B[4], 25)) as client:
            client.send(request())
            assert client.read_response().reason == "denied"


@families
def test_an_application_of_the_other_family(hosts: Hosts, upstream: Serving, family: int) -> None:
    hosts.b.nft(IN_RULES)
    with hosts.b.inside():
        upstream(answering(b"app"), address=(LOOPBACK[10 - family], 8080))
    hosts.inbound([8080])
    hosts.outbound(family)
    with hosts.a.inside(), connect((B[family], 8080)) as client:
        assert get(client) == b"app"
        assert get(client) == b"app"


@pytest.mark.parametrize("ports", [[8080], [8080, 25]])
def test_what_is_made_to_the_listener_itself(
    hosts: Hosts, upstream: Serving, pki: Pki, ports: list[int]
) -> None:
    """With one port there is no doubt which is meant; with two there is."""
    with hosts.b.inside():
        upstream(answering(b"app"), address=("127.0.0.1", 8080))
    inbound = hosts.inbound(ports)
    hosts.a.run("nft", "flush", "ruleset")
    with hosts.a.inside(), connect_tls((B[4], 15006), client_context(pki.identity("svc-a"))) as client:
        if len(ports) == 1:
            assert get(client) == b"app"
        else:
            client.expect_close()
    if len(ports) == 2:
        with hosts.b.inside():
            inbound.wait_metric("refused", lambda m: m.by_reason("no_service") == 1)


@pytest.mark.parametrize(("application", "to"), [([8080], None), ([8080, 25], "app")])
def test_rules_on_ports_hold_for_what_is_made_to_the_listener_itself(
    hosts: Hosts, upstream: Serving, application: list[int], to: str | None
) -> None:
    """They name the application's port, also where nobody wanted to go there."""
    port = 9000 if to else 8080
    with hosts.b.inside():
        app = upstream(answering(b"app"), address=("127.0.0.1", port))
    services = {to: {"endpoints": [f"127.0.0.1:{port}"]}} if to else {}
    rules = {"deny": [{"ports": [port]}], "tls": "none"} | ({"to": to} if to else {})
    inbound = hosts.inbound(application, services=services, **rules)
    hosts.a.run("nft", "flush", "ruleset")
    with hosts.a.inside():
        with connect((B[4], 15006)) as client:
            client.send(request())
            assert client.read_response().reason == "denied"
        with connect((B[4], 15006)) as client:
            client.send(b"\0opaque\r\n\r\n")
            client.expect_close()
    assert not app.connections
    with hosts.b.inside():
        inbound.wait_metric("both", lambda m: m.by_reason("denied") == 2)
        inbound.reload(listeners=[listening(**{**rules, "deny": [{"ports": [15006]}]}), listening6()])
    with hosts.a.inside(), connect((B[4], 15006)) as client:
        assert get(client) == b"app"
        with hosts.b.inside():
            inbound.reload(listeners=[listening(**rules), listening6()])
        client.send(request())
        assert client.read_response().reason == "denied"


def test_connections_that_are_older_than_the_interception(hosts: Hosts, upstream: Serving) -> None:
    """Nobody knows where they wanted to go: they are as made to the listener itself."""
    with hosts.b.inside():
        upstream(answering(b"app"), address=("127.0.0.1", 8080))
        upstream(answering(b"other"), address=("127.0.0.1", 8081))
    services = {"app": {"endpoints": ["127.0.0.1:8080"]}}
    plain = listening(transparent=False, tls="none", to="app")
    inbound = hosts.start(hosts.b, {"workload": "svc-b", "listeners": [plain], "services": services})
    hosts.a.run("nft", "flush", "ruleset")
    with hosts.a.inside(), connect((B[4], 15006)) as client:
        assert get(client) == b"app"
        for port, body in ((8080, b"app"), (8081, b"other")):
            with hosts.b.inside():
                allow = [{"ports": [port]}]
                inbound.reload(
                    intercept={"inbound": {"ports": [port]}}, listeners=[listening(tls="none", allow=allow)]
                )
            assert get(client) == body


def test_what_is_opaque_by_its_port_agrees_on_no_http2(hosts: Hosts, upstream: Serving, pki: Pki) -> None:
    hosts.b.nft(IN_RULES)
    with hosts.b.inside():
        upstream(lambda conn: conn.send(b"220 ready\r\n"), address=("127.0.0.1", 25))
    hosts.inbound([8080, 25], ports={"25": "tcp"})
    hosts.a.run("nft", "flush", "ruleset")
    for port, offered, agreed in (
        (8080, ["h2", "http/1.1"], "h2"),
        (25, ["h2", "http/1.1"], "http/1.1"),
        (25, ["h2"], None),
    ):
        context = client_context(pki.identity("svc-a"))
        context.set_alpn_protocols(offered)
        with hosts.a.inside(), connect_tls((B[4], port), context) as client:
            assert isinstance(client.sock, ssl.SSLSocket)
            assert client.sock.selected_alpn_protocol() == agreed
            if port == 25:
                assert client.read_until(b"\n") == b"220 ready\r\n"


@families
def test_tproxy(hosts: Hosts, upstream: Serving, family: int) -> None:
    """The destination is the socket's own address."""
    tproxy_rules(hosts.b)
    callers: list[str] = []
    with hosts.b.inside():
        app = upstream(seeing(callers), address=(LOOPBACK[family], 8080))
    hosts.inbound([8080, 25], method="tproxy")
    hosts.outbound(family)
    with hosts.a.inside(), connect((B[family], 8080)) as client:
        assert get(client) == b"app"
    (one,) = app.requests
    assert (one.get("x-forwarded-for") or "").rpartition(", ")[2].strip("[]") == A[family]
    assert callers == [A[family]]


def tproxy_rules(host: Namespace) -> None:
    host.nft(TPROXY_RULES)
    for version, everywhere, loopback in (("-4", "0.0.0.0/0", "127.0.0.0/8"), ("-6", "::/0", "::1")):
        for what in (("fwmark", "1"), ("from", loopback, "iif", "lo")):
            host.run("ip", version, "rule", "add", *what, "lookup", "100")
        host.run("ip", version, "route", "add", "local", everywhere, "dev", "lo", "table", "100")


def seeing(callers: list[str]) -> Script:
    """An application that notes where its connections come from."""

    def script(conn: ServerConn) -> None:
        callers.append(conn.sock.getpeername()[0])
        answering(b"app")(conn)

    return script


@pytest.mark.parametrize("count", [2, 300])
def test_tproxy_callers_share_no_connection(hosts: Hosts, upstream: Serving, count: int) -> None:
    """Each has a pool of its own, and those of others that are idle make room: the application would take one
    for the other."""
    tproxy_rules(hosts.b)
    callers: list[str] = []
    with hosts.b.inside():
        upstream(seeing(callers), address=("127.0.0.1", 8080))
    hosts.inbound([8080], method="tproxy", tls="permissive")
    hosts.a.run("nft", "flush", "ruleset")
    hosts.a.run("ip", "route", "add", "local", "10.78.0.0/16", "dev", "lo")
    hosts.b.run("ip", "route", "add", "10.78.0.0/16", "via", A[4])
    sources = [f"10.78.{index // 200}.{index % 200 + 1}" for index in range(count)]
    for source in sources * 2:
        with hosts.a.inside(), socket.create_connection((B[4], 8080), DEADLINE, (source, 0)) as sock:
            assert get(Conn(sock)) == b"app"
    assert callers[:count] == sources
    assert set(callers) == set(sources)
    if count == 2:
        assert len(callers) == count, "used again"


def test_tproxy_and_a_caller_of_the_same_link(hosts: Hosts, upstream: Serving) -> None:
    """Its address is none without the link: the application is called with our own."""
    tproxy_rules(hosts.b)
    callers: list[str] = []
    with hosts.b.inside():
        app = upstream(seeing(callers), address=("::1", 8080))
    hosts.inbound([8080], method="tproxy", tls="permissive")
    hosts.a.run("nft", "flush", "ruleset")
    hosts.a.address("eth0", "fe80::a/64")
    hosts.b.address("eth0", "fe80::b/64")
    with hosts.a.inside(), socket.socket(socket.AF_INET6) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(("fe80::b", 8080, 0, socket.if_nametoindex("eth0")))
        assert get(Conn(sock)) == b"app"
    assert callers == ["::1"]
    assert (app.requests[0].get("x-forwarded-for") or "").startswith("fe80::a")


@families
def test_rules_that_bring_our_own_connections_back(hosts: Hosts, family: int) -> None:
    """What is dialled to the application comes in again: known, and refused."""
    hosts.b.nft(OWN_RULES)
    inbound = hosts.inbound([8080], tls="none")
    hosts.a.run("nft", "flush", "ruleset")
    hosts.b.nft(IN_RULES)
    with hosts.a.inside(), connect((B[family], 8080)) as client:
        client.send(request())
        client.read_response()
    with hosts.b.inside():
        metrics = inbound.wait_metric("counted", lambda m: m.by_reason("loop") >= 1)
    assert metrics.sum("downstream_connections_total") <= 4


def test_a_stranger_gets_no_further_than_the_handshake(
    hosts: Hosts, upstream: Serving, other_pki: Pki
) -> None:
    hosts.b.nft(IN_RULES)
    with hosts.b.inside():
        app = upstream(answering(b"app"), address=("127.0.0.1", 8080))
    inbound = hosts.inbound([8080])
    hosts.a.run("nft", "flush", "ruleset")
    context = client_context(other_pki.identity("svc-a"))
    refused = pytest.raises((ssl.SSLError, ConnectionError, AssertionError))
    with hosts.a.inside(), refused, connect_tls((B[4], 8080), context) as client:
        client.send(request())
        client.read_response()
    with hosts.b.inside():
        wait_until(lambda: inbound.metrics().sum("tls_failed_total", side="downstream") >= 1, "the failure")
    assert not app.connections
