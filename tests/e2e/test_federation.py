"""Two trust domains, by their directories and the command line alone: trust, rules, revocation, its end."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kit.fixtures import Serve, Serving
from kit.limits import wait_until
from kit.ports import free_port
from kit.proxy import Fastmesh, Metrics, cli
from kit.upstream import answering
from kit.wire import Address, Conn, connect, request

HOME, AWAY = "home.example", "away.example"
CART = f"spiffe://{AWAY}/ns/shop/sa/cart"
NAMES = ("web", "cart", "stock")


def certs(pki: Path, *args: str | Path) -> str:
    return cli("certs", *args, "--pki", pki).stdout


def federate(one: Path, other: Path, domain: str) -> None:
    """`one` trusts the workloads of `other`, whose bundle travels as a file."""
    bundle = one.parent / f"{domain}.json"
    bundle.write_text(certs(other, "bundle", "--format", "jwks"))
    certs(one, "bundle", "--federate", f"{domain}={bundle}")


@dataclass
class Domains:
    """`api` of HOME lets in `web` of HOME and `cart` of AWAY, not `stock` of AWAY; each is a sidecar.
    Everybody has a way to it for HTTP and one for opaque TCP."""

    home: Path
    away: Path
    api: Fastmesh
    callers: dict[str, Fastmesh]
    http: dict[str, Address]
    tcp: dict[str, Address]

    def ask(self, who: str) -> Any:
        with connect(self.http[who]) as client:
            client.send(request(host="api"))
            return client.read_response()

    def open(self, who: str) -> Conn:
        """A connection through both sidecars, over which a request has gone."""
        client = connect(self.tcp[who])
        going_on(client)
        return client

    def in_force(self, proxy: Fastmesh, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Until the worker of that sidecar has an identity with such trust."""
        wait_until(lambda: wanted(proxy.config()["snapshot"]["identity"]), "the identity")
        number = proxy.config()["snapshot"]["number"]
        proxy.wait_metric("its use", lambda m: m.sum("worker_snapshot_number") >= number)


def going_on(conn: Conn) -> None:
    conn.send(request())
    assert conn.read_response().body == b"x"


def ended(conn: Conn) -> None:
    with conn, contextlib.suppress(ConnectionError):
        assert conn.read_to_end() == b""


def retired(proxy: Fastmesh, side: str, count: int) -> Metrics:
    """Once so many connections have ended because nobody vouches for their peers any more."""
    labels = {"side": side, "cause": "untrusted"}
    return proxy.wait_metric("the ends", lambda m: m.sum("connections_retired_total", **labels) == count)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`home` and `away`, which trust each other."""
    both = tmp_path_factory.mktemp("domains")
    home, away = both / "home", both / "away"
    certs(home, "init", "--trust-domain", HOME)
    certs(away, "init", "--trust-domain", AWAY)
    certs(home, "issue", "api", "web")
    certs(away, "issue", "stock")
    certs(away, "issue", "cart", "--spiffe", "/ns/shop/sa/cart")
    federate(home, away, AWAY)
    federate(away, home, HOME)
    return both


@pytest.fixture
def domains(serve: Serve, upstream: Serving, directories: Path, tmp_path: Path) -> Domains:
    home, away = (
        shutil.copytree(directories / name, tmp_path / name, symlinks=True) for name in ("home", "away")
    )
    app = upstream(answering(b"x"))
    ports = free_port(), free_port()
    inbound = {"role": "inbound", "to": "app", "allow": [{"name": "partners", "from": ["web", CART]}]}
    api = serve(
        {
            "workload": "api",
            "trust_domain": HOME,
            "pki": str(home),
            "listeners": [
                {"name": "in", "bind": f"127.0.0.1:{ports[0]}", "protocol": "http", **inbound},
                {"name": "raw", "bind": f"127.0.0.1:{ports[1]}", "protocol": "tcp", **inbound},
            ],
            "services": {"app": {"endpoints": [f"127.0.0.1:{app.address[1]}"]}},
        }
    )
    found = Domains(home, away, api, {}, {}, {})
    for who in NAMES:
        domain, pki = (HOME, home) if who == "web" else (AWAY, away)
        http, tcp = free_port(), free_port()
        peer = {"tls": "mesh", "spiffe_id": f"spiffe://{HOME}/api"}
        found.http[who], found.tcp[who] = ("127.0.0.1", http), ("127.0.0.1", tcp)
        found.callers[who] = serve(
            {
                "workload": who,
                "trust_domain": domain,
                "pki": str(pki),
                **({"spiffe_id": CART} if who == "cart" else {}),
                "listeners": [
                    {"name": "out", "role": "outbound", "bind": f"127.0.0.1:{http}"},
                    {"name": "raw", "bind": f"127.0.0.1:{tcp}", "to": "api-raw", "protocol": "tcp"},
                ],
                "services": {
                    "api": {"endpoints": [f"127.0.0.1:{ports[0]}"], **peer},
                    "api-raw": {"endpoints": [f"127.0.0.1:{ports[1]}"], **peer},
                },
            }
        )
    return found


def test_one_is_revoked_and_the_other_goes_on(domains: Domains) -> None:
    assert [domains.ask(who).status for who in NAMES] == [200, 200, 403]
    assert domains.ask("stock").reason == "denied"
    bad, good = domains.open("web"), domains.open("cart")
    with good:
        certs(domains.home, "revoke", "web")
        ended(bad)
        refused = domains.api.metrics().by_reason("tls_revoked")
        assert refused >= 1
        answer = domains.ask("web")
        assert answer.status == 502
        assert answer.reason.startswith("upstream_")
        domains.api.wait_metric("the refusal", lambda m: m.by_reason("tls_revoked") > refused)
        going_on(good)
        assert domains.ask("cart").status == 200
    metrics = domains.api.metrics()
    assert metrics.sum("connections_retired_total", side="downstream", cause="revoked") >= 1
    assert metrics.sum("connections_retired_total", cause="untrusted") == 0
    # Renewal does not bring it back; a new certificate does.
    assert cli("certs", "renew", "web", "--pki", domains.home, check=False).returncode == 5
    certs(domains.home, "issue", "web")
    wait_until(lambda: domains.ask("web").status == 200, "that its new certificate is in use")


def test_a_trust_domain_is_trusted_no_more(domains: Domains) -> None:
    """By the one that is called: connections of its workloads end, those of others go on."""
    foreign, own = domains.open("cart"), domains.open("web")
    assert domains.ask("cart").status == 200  # a kept connection too
    with own:
        certs(domains.home, "bundle", "--unfederate", AWAY)
        ended(foreign)
        metrics = retired(domains.api, "downstream", 2)
        refused = metrics.by_reason("tls_untrusted")
        assert refused == 2
        assert domains.ask("cart").status == 502
        domains.api.wait_metric("the refusal", lambda m: m.by_reason("tls_untrusted") > refused)
        going_on(own)
        assert domains.ask("web").status == 200
    federate(domains.home, domains.away, AWAY)
    domains.in_force(domains.api, lambda identity: AWAY in identity["federated"])
    assert domains.ask("cart").status == 200


def test_a_trust_domain_is_called_no_more(domains: Domains) -> None:
    """By the one that calls."""
    cart = domains.callers["cart"]
    assert domains.ask("cart").status == 200
    going = domains.open("cart")
    certs(domains.away, "bundle", "--unfederate", HOME)
    ended(going)
    retired(cart, "upstream", 2)
    answer = domains.ask("cart")
    assert (answer.status, answer.reason) == (502, "upstream_tls_untrusted")
    assert domains.ask("web").status == 200
