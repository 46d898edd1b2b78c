"""The wall clock of a host jumps: what rests on certificates follows, in the agent and in the workers."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
from pathlib import Path
from typing import Any

import pytest
from kit.clock import Clock
from kit.fixtures import Serve, Serving
from kit.limits import DEADLINE, wait_until
from kit.pki import Pki, client_context
from kit.ports import free_port
from kit.proxy import Fastmesh, cli
from kit.upstream import answering
from kit.wire import Closed, Conn, connect, connect_tls, request

DAY = 86_400


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def own_pki(tmp_path: Path) -> Pki:
    made = Pki(tmp_path / "pki")
    for name in ("svc-a", "svc-b", "svc-x"):
        made.issue(name)
    return made


def inbound(serve: Serve, upstream: Serving, pki: Pki, clock: Clock, **listener: Any) -> tuple[Fastmesh, Any]:
    """svc-b on the host whose clock moves, and where it listens."""
    app, port = upstream(answering(b"x")), free_port()
    proxy = serve(
        {
            "workload": "svc-b",
            "trust_domain": "mesh.local",
            "pki": str(pki.path),
            "listeners": [
                {"name": "in", "role": "inbound", "bind": f"127.0.0.1:{port}", "to": "app", **listener}
            ],
            "services": {"app": {"endpoints": [f"127.0.0.1:{app.address[1]}"]}},
        },
        env=clock.env,
    )
    return proxy, ("127.0.0.1", port)


def answer(conn: Conn) -> Any:
    conn.send(request())
    return conn.read_response()


def unjudging(pki: Pki) -> ssl.SSLContext:
    """svc-x, to whom by its own clock everything over there is of tomorrow."""
    context = client_context(pki.identity("svc-x"))
    context.verify_mode = ssl.CERT_NONE
    return context


def ended(conn: Conn) -> None:
    with contextlib.suppress(ConnectionError):
        assert conn.read_to_end() == b""


def test_a_day_ahead_ends_what_was_made_before(
    serve: Serve, upstream: Serving, own_pki: Pki, clock: Clock
) -> None:
    """The certificates of an open connection are over at once, not by a clock that has not jumped."""
    proxy, address = inbound(serve, upstream, own_pki, clock)
    with connect_tls(address, client_context(own_pki.identity("svc-x"))) as conn:
        assert answer(conn).get("connection") is None
        clock.set(DAY + 60)
        proxy.wait_metric("a renewal", lambda m: m.sum("certificate_renewals_total", result="succeeded") == 1)
        proxy.wait_metric("its use", lambda m: m.sum("worker_snapshot_number") == 2)
        with contextlib.suppress(ConnectionError, AssertionError):
            assert answer(conn).get("connection") == "close"
        ended(conn)
    proxy.wait_metric(
        "why", lambda m: m.sum("connections_retired_total", side="downstream", cause="certificate") == 1
    )
    with pytest.raises((Closed, OSError)):
        answer(connect_tls(address, unjudging(own_pki)))
    proxy.wait_metric("the refusal", lambda m: m.by_reason("tls_expired") == 1)
    cli("certs", "issue", "svc-x", "--pki", own_pki.path, env={**os.environ, **clock.env})
    with connect_tls(address, unjudging(own_pki)) as conn:
        assert answer(conn).status == 200


def test_a_day_back_and_ahead_again(serve: Serve, upstream: Serving, own_pki: Pki, clock: Clock) -> None:
    proxy, address = inbound(serve, upstream, own_pki, clock)
    with connect_tls(address, client_context(own_pki.identity("svc-x"))) as conn:
        assert answer(conn).status == 200
        clock.set(-DAY)
        # It cannot be renewed either: the issuing CA is of tomorrow, too.
        proxy.wait_metric("the attempt", lambda m: m.sum("certificate_renewals_total", result="failed") >= 1)
        assert "is the clock of this host right?" in proxy.stderr()
        assert "set the clock" in proxy.stderr()
        assert answer(conn).get("connection") is None
        clock.set(0)
        assert answer(conn).get("connection") is None
    with connect_tls(address, client_context(own_pki.identity("svc-x"))) as conn:
        assert answer(conn).status == 200


def test_a_tunnel_that_is_to_end_with_its_certificates(
    serve: Serve, upstream: Serving, own_pki: Pki, clock: Clock
) -> None:
    proxy, address = inbound(serve, upstream, own_pki, clock, protocol="tcp", max_connection_age="1h")
    with connect_tls(address, client_context(own_pki.identity("svc-x"))) as conn:
        assert answer(conn).status == 200
        clock.set(DAY + 60)
        conn.sock.settimeout(2 * DEADLINE)
        ended(conn)
    proxy.wait_metric("why", lambda m: m.by_reason("certificates_over") == 1)


def test_the_access_log_has_the_time_that_is_told(
    serve: Serve, upstream: Serving, tmp_path: Path, clock: Clock
) -> None:
    app, port, log = upstream(answering(b"x")), free_port(), tmp_path / "access.log"
    serve(
        {
            "telemetry": {"access_log": {"path": str(log)}},
            "listeners": [{"name": "edge", "bind": f"127.0.0.1:{port}", "to": "app"}],
            "services": {"app": {"endpoints": [f"127.0.0.1:{app.address[1]}"]}},
        },
        env=clock.env,
    )
    with connect(("127.0.0.1", port)) as conn:
        answer(conn)
        clock.set(40 * DAY)

        def told() -> bool:
            answer(conn)
            lines = log.read_text().splitlines() if log.exists() else []
            return len({json.loads(line)["time"][:7] for line in lines}) == 2

        wait_until(told, "the new month")
