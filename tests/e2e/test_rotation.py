"""Two sidecars with certificates of seconds: renewal and rotation under load, the end of a certificate."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from kit import http2, procfs
from kit.fixtures import Serve, Serving
from kit.http2 import Fields
from kit.http2_load import H2Load
from kit.limits import DEADLINE, PATIENCE, thinned, wait_until
from kit.load import Load
from kit.nginx import Nginx
from kit.pki import Pki, client_context
from kit.ports import free_port
from kit.proxy import Fastmesh, cli
from kit.upstream import ServerConn, answering
from kit.wire import Closed, connect, connect_tls, request

REQUEST = b"GET /small HTTP/1.1\r\nHost: svc-b\r\n\r\n"


def small(number: int) -> Fields:
    return http2.request("GET", "/small", authority="svc-b")


HOUR = 3600


def issue(pki: Pki, name: str, seconds: int) -> None:
    """A certificate for so long; on a slow build, where a sidecar takes longer to start, for longer."""
    lasting = seconds if seconds >= HOUR else round(seconds * (PATIENCE + 1) / 2)
    cli("certs", "issue", name, "--ttl", f"{lasting}s", "--pki", pki.path)


class Sidecars:
    """svc-a calls svc-b, each with an agent of its own on one directory."""

    def __init__(self, serve: Serve, pki: Path, endpoint: int, **listener: Any) -> None:
        top = {"trust_domain": "mesh.local", "pki": str(pki)}
        inbound, outbound = free_port(), free_port()
        self.inbound, self.outbound = ("127.0.0.1", inbound), ("127.0.0.1", outbound)
        self.b = serve(
            {
                "workload": "svc-b",
                **top,
                "listeners": [
                    {"name": "in", "role": "inbound", "bind": f"127.0.0.1:{inbound}", "to": "app", **listener}
                ],
                "services": {"app": {"endpoints": [f"127.0.0.1:{endpoint}"]}},
            }
        )
        self.a = serve(
            {
                "workload": "svc-a",
                **top,
                "listeners": [{"name": "out", "role": "outbound", "bind": f"127.0.0.1:{outbound}"}],
                "services": {"svc-b": {"endpoints": [f"127.0.0.1:{inbound}"], "tls": "mesh"}},
            }
        )

    @property
    def both(self) -> tuple[Fastmesh, Fastmesh]:
        return self.a, self.b

    def identities(self) -> list[dict[str, Any]]:
        return [one.config()["snapshot"]["identity"] for one in self.both]

    def until(self, what: str, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Until the workers of both have a snapshot with such an identity."""
        wait_until(lambda: all(map(wanted, self.identities())), what, 2 * DEADLINE)
        for one in self.both:
            number = one.config()["snapshot"]["number"]
            one.wait_metric(what, lambda m, n=number: m.sum("worker_snapshot_number") >= n)

    def ask(self, **options: Any) -> Any:
        with connect(self.outbound) as client:
            client.send(request(host="svc-b", **options))
            return client.read_response()


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def roots(identity: dict[str, Any]) -> set[bytes]:
    return {cert.serial_number.to_bytes(32) for cert in _certificates(identity["bundle"])}


def _certificates(pem: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem.encode())


def test_renewals_under_load_fail_no_request(serve: Serve, nginx: Nginx, own_pki: Pki) -> None:
    for name in ("svc-a", "svc-b"):
        issue(own_pki, name, 12)
    mesh = Sidecars(serve, own_pki.path, nginx.port)
    first = [identity["not_after"] for identity in mesh.identities()]
    with (
        Load(mesh.outbound, 4, REQUEST) as kept,
        Load(mesh.outbound, 2, REQUEST, per_connection=3) as fresh,
        H2Load(mesh.outbound, 2, 3, small) as shared,
    ):
        # Past the end of the certificates that everything began with.
        wait_until(lambda: time.time() > max(first) + 1, "the end of the first certificates", 2 * DEADLINE)
        mesh.until("certificates in force", lambda identity: identity["not_after"] > max(first))
    assert kept.result.failures == []
    assert fresh.result.failures == []
    assert shared.result.failures == []
    assert min(kept.result.requests, shared.result.requests) > 100
    for one in mesh.both:
        metrics = one.metrics()
        assert metrics.sum("certificate_renewals_total", result="succeeded") >= 1
        assert metrics.sum("certificate_renewals_total", result="failed") == 0
        assert metrics.sum("identity_reloads_total", result="rejected") == 0
        assert metrics.sum("certificate_expiry_seconds", certificate="workload") > 0
        assert metrics.sum("certificate_expiry_timestamp_seconds", certificate="root") > time.time() + 1e6
        assert metrics.sum("tls_failed_total") == 0
    assert mesh.a.metrics().sum("connections_retired_total", side="upstream", cause="replaced") > 0


def test_both_cas_are_replaced_under_load(serve: Serve, nginx: Nginx, own_pki: Pki) -> None:
    for name in ("svc-a", "svc-b"):
        issue(own_pki, name, HOUR)
    mesh = Sidecars(serve, own_pki.path, nginx.port)
    old = roots(mesh.identities()[0])
    with (
        Load(mesh.outbound, 4, REQUEST) as kept,
        Load(mesh.outbound, 2, REQUEST, per_connection=3) as fresh,
        H2Load(mesh.outbound, 2, 3, small) as shared,
    ):
        cli("certs", "rotate-issuer", "--pki", own_pki.path)
        cli("certs", "rotate-root", "introduce", "--pki", own_pki.path)
        mesh.until("two roots", lambda identity: len(roots(identity)) == 2)
        before = [identity["certificate"] for identity in mesh.identities()]
        cli("certs", "rotate-root", "switch", "--renew", "--pki", own_pki.path)
        mesh.until("new certificates", lambda identity: identity["certificate"] not in before)
        cli("certs", "rotate-root", "retire", "--force", "--pki", own_pki.path)
        mesh.until("one new root", lambda identity: len(roots(identity)) == 1)
        for load in (kept, shared):
            served = load.result.requests
            wait_until(
                lambda load=load, served=served: load.result.requests > served + 20,
                "requests under the new root",
            )
    assert kept.result.failures == []
    assert fresh.result.failures == []
    assert shared.result.failures == []
    assert all(not roots(identity) & old for identity in mesh.identities())
    assert all(one.metrics().sum("tls_failed_total") == 0 for one in mesh.both)


# The moment matters to the agent alone, which has no compiled code in what it does then.
@pytest.mark.parametrize("delay", thinned([0.0, 0.15, 0.3, 0.45]))
def test_the_agent_is_killed_in_the_middle_of_a_renewal(
    serve: Serve, upstream: Serving, own_pki: Pki, delay: float
) -> None:
    """Whatever the renewal has done by then, the next agent takes it over or does it again."""
    for name in ("svc-a", "svc-b"):
        issue(own_pki, name, 10)
    mesh = Sidecars(serve, own_pki.path, upstream(answering(b"x")).address[1])
    first = max(identity["not_after"] for identity in mesh.identities())

    def renewing() -> int | None:
        agent = mesh.b.agent_pid()
        found = [pid for pid in procfs.children(agent or 0) if b"fastmesh.certs.renewal" in command_line(pid)]
        return agent if found else None

    agent = wait_until(renewing, "a renewal") or 0
    end = time.monotonic() + delay
    wait_until(lambda: time.monotonic() >= end, "its middle")
    os.kill(agent, signal.SIGKILL)
    mesh.b.wait_metric("its successor", lambda m: m.sum("agent_restarts_total") == 1)
    mesh.until("new certificates", lambda identity: identity["not_after"] > first)
    assert mesh.ask().status == 200
    assert mesh.b.metrics().sum("identity_reloads_total", result="rejected") == 0


def test_two_sidecars_of_one_workload_share_a_directory(
    serve: Serve, upstream: Serving, own_pki: Pki
) -> None:
    """One renews, the other takes over; if both do, the last one counts, and both come to it."""
    issue(own_pki, "svc-a", HOUR)
    issue(own_pki, "svc-b", 12)
    app = upstream(answering(b"x"))
    one = Sidecars(serve, own_pki.path, app.address[1])
    other = Sidecars(serve, own_pki.path, app.address[1])
    pair = (one.b, other.b)
    first = one.identities()[1]["not_after"]

    def ends() -> list[int]:
        return [proxy.config()["snapshot"]["identity"]["not_after"] for proxy in pair]

    def both() -> bool:
        return min(ends()) > first and len(set(ends())) == 1

    wait_until(both, "the same new certificate", 2 * DEADLINE)
    assert one.ask().status == other.ask().status == 200
    for proxy in pair:
        assert proxy.metrics().sum("certificate_renewals_total", result="failed") == 0
        assert proxy.metrics().sum("identity_reloads_total", result="rejected") == 0


def test_after_its_end_a_certificate_proves_nothing(serve: Serve, upstream: Serving, own_pki: Pki) -> None:
    """No authority beside it: they serve to the end, then refuse by name, and recover by themselves."""
    away = own_pki.path.parent / "away"
    issue(own_pki, "svc-x", HOUR)
    for name in ("svc-a", "svc-b"):
        issue(own_pki, name, 10)
    shutil.copytree(own_pki.path / "workloads", away / "workloads", symlinks=True)
    app = upstream(answering(b"x"))
    mesh = Sidecars(serve, away, app.address[1])
    assert mesh.ask().status == 200
    wait_until(lambda: time.time() >= max(i["not_after"] for i in mesh.identities()), "the end", 2 * DEADLINE)
    seen = len(app.requests)
    answer = mesh.ask()
    assert (answer.status, answer.reason) == (503, "identity_expired")
    with pytest.raises((Closed, OSError)):
        connect_tls(mesh.inbound, client_context(own_pki.identity("svc-x")))
    mesh.b.wait_metric("the refusal", lambda m: m.by_reason("identity_expired") == 1)
    assert len(app.requests) == seen
    for name in ("svc-a", "svc-b"):
        issue(own_pki, name, HOUR)
        shutil.rmtree(away / "workloads" / name)
        shutil.copytree(own_pki.path / "workloads" / name, away / "workloads" / name, symlinks=True)
    mesh.until("new certificates", lambda identity: identity["not_after"] > time.time() + 60)
    assert mesh.ask().status == 200


def test_a_connection_ends_with_its_certificates(serve: Serve, upstream: Serving, own_pki: Pki) -> None:
    """Idle: closed. In use: the answer says so. A stream goes on."""
    issue(own_pki, "svc-b", HOUR)
    issue(own_pki, "svc-a", HOUR)
    issue(own_pki, "svc-x", 10)
    going: list[ServerConn] = []

    def script(conn: ServerConn) -> None:
        while conn.read_request().target == "/":
            conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
        going.append(conn)
        conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1")
        wait_until(lambda: time.time() > end + 1, "a second after the end", 2 * DEADLINE)
        conn.send(b"2")

    app = upstream(script, script)
    mesh = Sidecars(serve, own_pki.path, app.address[1])
    context = client_context(own_pki.identity("svc-x"))
    end = max(cert.not_valid_after_utc.timestamp() for cert in _leaf(own_pki, "svc-x"))
    with connect_tls(mesh.inbound, context) as idle, connect_tls(mesh.inbound, context) as stream:
        idle.send(request())
        assert idle.read_response().status == 200
        stream.send(request(target="/stream"))
        _closed(idle)
        assert time.time() >= end
        answer = stream.read_response()
        assert (answer.body, answer.get("connection")) == (b"12", None)
    mesh.b.wait_metric(
        "the count", lambda m: m.sum("connections_retired_total", side="downstream", cause="certificate") >= 1
    )


def _leaf(pki: Pki, name: str) -> list[x509.Certificate]:
    return _certificates(pki.identity(name).certificate.read_text())[:1]


def _closed(conn: Any) -> None:
    conn.sock.settimeout(2 * DEADLINE)
    assert conn.read_to_end() == b""


def test_max_connection_age(serve: Serve, upstream: Serving) -> None:
    """A plain listener too: the answer after that age says so, and an idle connection is closed."""
    port = free_port()
    app = upstream(answering(b"x"))
    listener = {"name": "edge", "bind": f"127.0.0.1:{port}", "to": "app", "max_connection_age": "500ms"}
    proxy = serve(
        {"listeners": [listener], "services": {"app": {"endpoints": [f"127.0.0.1:{app.address[1]}"]}}}
    )
    with connect(("127.0.0.1", port)) as idle, connect(("127.0.0.1", port)) as busy:
        idle.send(request())
        assert idle.read_response().get("connection") is None
        answers = []

        def told() -> bool:
            busy.send(request())
            answers.append(busy.read_response())
            return answers[-1].get("connection") == "close"

        wait_until(told, "an answer that closes")
        assert all(answer.status == 200 for answer in answers)
        assert busy.read_to_end() == b""
        assert idle.read_to_end() == b""
    proxy.wait_metric("both", lambda m: m.sum("connections_retired_total", cause="age") == 2)


@pytest.mark.parametrize("bounded", [True, False])
def test_a_tunnel_ends_with_its_certificates_only_where_that_is_wanted(
    serve: Serve, upstream: Serving, own_pki: Pki, bounded: bool
) -> None:
    issue(own_pki, "svc-b", HOUR)
    issue(own_pki, "svc-a", HOUR)
    issue(own_pki, "svc-x", 10)

    def echo(conn: ServerConn) -> None:
        with contextlib.suppress(ConnectionError, Closed):
            while True:
                conn.send(conn.read_exact(4))

    app = upstream(echo)
    age = {"max_connection_age": "1h"} if bounded else {}
    mesh = Sidecars(serve, own_pki.path, app.address[1], protocol="tcp", **age)
    end = max(cert.not_valid_after_utc.timestamp() for cert in _leaf(own_pki, "svc-x"))
    with connect_tls(mesh.inbound, client_context(own_pki.identity("svc-x"))) as client:
        client.send(b"ping")
        assert client.read_exact(4) == b"ping"
        if bounded:
            client.sock.settimeout(2 * DEADLINE)
            with contextlib.suppress(ConnectionError):
                client.read_to_end()
            # A clock that is being put right little by little is followed to within a second.
            assert time.time() > end - 1
            mesh.b.wait_metric("why", lambda m: m.by_reason("certificates_over") == 1)
        else:
            wait_until(lambda: time.time() > end + 0.5, "the end", 2 * DEADLINE)
            client.send(b"pong")
            assert client.read_exact(4) == b"pong"


def test_a_revoked_peer_is_cut_and_kept_out(serve: Serve, upstream: Serving, own_pki: Pki) -> None:
    """Idle, with a request under way, and on the way out; who is not revoked notices nothing."""
    for name in ("svc-a", "svc-b", "svc-x"):
        issue(own_pki, name, HOUR)
    waiting: list[ServerConn] = []

    def script(conn: ServerConn) -> None:
        with contextlib.suppress(ConnectionError, Closed):
            while conn.read_request().target != "/slow":
                conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
            waiting.append(conn)
            conn.fill()

    app = upstream(*[script] * 6)
    mesh = Sidecars(serve, own_pki.path, app.address[1])
    bad, good = client_context(own_pki.identity("svc-x")), client_context(own_pki.identity("svc-a"))
    with (
        connect_tls(mesh.inbound, bad) as idle,
        connect_tls(mesh.inbound, bad) as busy,
        connect_tls(mesh.inbound, good) as bystander,
    ):
        for client in (idle, bystander):
            client.send(request())
            assert client.read_response().status == 200
        busy.send(request(target="/slow"))
        wait_until(lambda: waiting, "the request under way")
        cli("certs", "revoke", "svc-x", "--pki", own_pki.path)
        for client in (idle, busy):
            with contextlib.suppress(ConnectionError):
                assert client.read_to_end() == b""
        bystander.send(request())
        assert bystander.read_response().status == 200
    metrics = mesh.b.wait_metric("the cuts", lambda m: m.by_reason("tls_revoked") == 2)
    assert metrics.sum("connections_retired_total", side="downstream", cause="revoked") == 2
    with pytest.raises((Closed, OSError)):
        again = connect_tls(mesh.inbound, bad)
        again.send(request())
        again.read_response()
    mesh.b.wait_metric("the refusal", lambda m: m.by_reason("tls_revoked") == 3)
    assert mesh.ask().status == 200
    cli("certs", "revoke", "svc-b", "--pki", own_pki.path)
    wait_until(lambda: len(mesh.identities()[0]["revoked"]) == 2, "the whole list")
    number = mesh.a.config()["snapshot"]["number"]
    mesh.a.wait_metric("its use", lambda m: m.sum("worker_snapshot_number") >= number)
    answer = mesh.ask()
    assert (answer.status, answer.reason) == (502, "upstream_tls_revoked")


def test_the_deny_list_reaches_a_sidecar_that_drains(serve: Serve, upstream: Serving, own_pki: Pki) -> None:
    """What is open then may stay so for as long as the drain takes, but not if it is revoked meanwhile."""
    for name in ("svc-b", "svc-x", "svc-y"):
        issue(own_pki, name, HOUR)
    port = free_port()
    proxy = serve(
        {
            "workload": "svc-b",
            "trust_domain": "mesh.local",
            "pki": str(own_pki.path),
            "drain": "5m",
            "listeners": [
                {"name": "in", "role": "inbound", "bind": f"127.0.0.1:{port}", "to": "app", "protocol": "tcp"}
            ],
            "services": {"app": {"endpoints": [f"127.0.0.1:{upstream(answering(b'x')).address[1]}"]}},
        }
    )
    bad, good = (
        connect_tls(("127.0.0.1", port), client_context(own_pki.identity(name)))
        for name in ("svc-x", "svc-y")
    )
    with bad, good:
        for client in (bad, good):
            client.send(request())
            assert client.read_response().body == b"x"
        proxy.terminate()
        proxy.wait_metric("the drain", lambda m: m.sum("draining") == 1)
        cli("certs", "revoke", "svc-x", "--pki", own_pki.path)
        with contextlib.suppress(ConnectionError):
            assert bad.read_to_end() == b""
        good.send(request())
        assert good.read_response().body == b"x"
    assert proxy.wait() == 0, proxy.stderr()
