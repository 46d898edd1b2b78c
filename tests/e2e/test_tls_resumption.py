"""Resumption for clients that nobody here wrote, and what a ticket of one listener is worth at another."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from kit.fixtures import Serve, Serving
from kit.limits import wait_until
from kit.pki import Pki, client_context
from kit.ports import free_port
from kit.proxy import Fastmesh
from kit.upstream import answering
from kit.wire import Closed, connect_tls, request

ENV = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}  # not the sanitizers'
RESUMED = "fastmesh_tls_resumed_total"


def sidecar(pki: Pki, endpoint: int, *listeners: dict[str, Any]) -> dict[str, Any]:
    """The sidecar of svc-b; each listener on a free port, all to the same application."""
    return {
        "workload": "svc-b",
        "trust_domain": "mesh.local",
        "pki": str(pki.path),
        "listeners": [
            {"bind": f"127.0.0.1:{free_port()}", "role": "inbound", "to": "app", "protocol": "http", **one}
            for one in listeners
        ],
        "services": {"app": {"endpoints": [f"127.0.0.1:{endpoint}"]}},
    }


def ports_of(config: dict[str, Any]) -> dict[str, int]:
    return {one["name"]: int(one["bind"].rpartition(":")[2]) for one in config["listeners"]}


def resumed(proxy: Fastmesh, count: int) -> None:
    proxy.wait_metric(RESUMED, lambda m: m.sum(RESUMED, side="downstream") == count)


MESH = {"name": "mesh", "tls": "mesh"}


@pytest.mark.parametrize("suite", ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"])
def test_openssl_resumes(serve: Serve, upstream: Serving, pki: Pki, tmp_path: Path, suite: str) -> None:
    """In a process of its own each time: all it has is the session, in a file."""
    config = sidecar(pki, upstream(answering(b"hello openssl")).address[1], MESH)
    proxy = serve(config)
    identity = pki.identity("svc-a")
    session = tmp_path / "session"

    def ask(*options: str) -> bytes:
        return subprocess.run(
            [
                *["openssl", "s_client", "-connect", f"127.0.0.1:{ports_of(config)['mesh']}"],
                *["-CAfile", str(identity.bundle), "-verify_return_error", "-ciphersuites", suite],
                *["-cert", str(identity.certificate), "-key", str(identity.key), "-ign_eof", *options],
                *["-cert_chain", str(identity.certificate)],
            ],
            input=request(headers=[("Connection", "close")]),
            capture_output=True,
            timeout=20,
            check=False,
            env=ENV,
        ).stdout

    first = ask("-sess_out", str(session))
    assert b"New, TLSv1.3" in first
    assert b"hello openssl" in first
    for count in (1, 2):
        again = ask("-sess_in", str(session))
        assert f"Reused, TLSv1.3, Cipher is {suite}".encode() in again
        assert b"hello openssl" in again
        resumed(proxy, count)


def test_curl_resumes(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """Several connections of one command: it keeps its sessions as long as it runs."""
    config = sidecar(pki, upstream(answering(b"hello curl\n")).address[1], MESH)
    proxy = serve(config)
    identity = pki.identity("svc-a")
    url = f"https://svc-b:{ports_of(config)['mesh']}/"
    done = subprocess.run(
        [
            *["curl", "-sS", "--cacert", str(identity.bundle), "--cert", str(identity.certificate)],
            *["--key", str(identity.key), "--connect-to", f"::127.0.0.1:{ports_of(config)['mesh']}"],
            *["--http1.1", "-H", "Connection: close", url, url],
        ],
        capture_output=True,
        timeout=20,
        check=False,
        env=ENV,
    )
    assert (done.stdout, done.returncode) == (b"hello curl\n" * 2, 0), done.stderr
    resumed(proxy, 1)


def test_the_application_is_told_the_same_caller(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """Also by a worker that never saw the certificate."""
    app = upstream()
    config = sidecar(pki, app.address[1], MESH)
    proxy = serve(config)
    context = client_context(pki.identity("svc-a"))
    address = ("127.0.0.1", ports_of(config)["mesh"])
    session = None
    for turn in range(3):
        with connect_tls(address, context, session) as client:
            assert isinstance(client.sock, ssl.SSLSocket)
            client.send(request())
            assert client.read_response().status == 200
            assert client.sock.session_reused == (turn > 0)
            session = client.sock.session
        if turn == 1:
            before = proxy.wait_workers(1)
            os.kill(before[0], signal.SIGKILL)
            wait_until(lambda old=before: old != proxy.wait_workers(1), "a new worker")
    told = [seen.get("x-forwarded-client-cert") for seen in app.requests]
    assert len(told) == 3
    assert len(set(told)) == 1
    assert told[0] is not None
    assert told[0].endswith(";URI=spiffe://mesh.local/svc-a")


def listeners(pki: Pki) -> list[dict[str, Any]]:
    own = pki.identity("svc-b")
    pair = {"certificate": str(own.certificate), "key": str(own.key)}
    return [
        MESH,
        {"name": "permissive", "tls": "permissive"},
        {"name": "asks", "tls": {"certificates": [pair], "client_ca": str(own.bundle)}},
        {"name": "open", "tls": {"certificates": [pair]}},
    ]


# The mesh's listeners have one context, as they have one identity and one trust.
SAME = {("mesh", "permissive"), ("permissive", "mesh")}


def test_a_ticket_counts_only_under_its_own_trust(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """Every listener has the same ticket keys, and here even the same certificate and the same roots."""
    config = sidecar(pki, upstream(answering(b"hello")).address[1], *listeners(pki))
    serve(config)
    ports = ports_of(config)
    context = client_context(pki.identity("svc-a"))
    for made in ports:
        for tried in ports:
            with connect_tls(("127.0.0.1", ports[made]), context) as client:
                client.send(request())
                assert client.read_response().status == 200
                assert isinstance(client.sock, ssl.SSLSocket)
                session = client.sock.session
                assert session is not None
                assert session.has_ticket
            with connect_tls(("127.0.0.1", ports[tried]), context, session) as client:
                client.send(request())
                assert client.read_response().status == 200
                assert isinstance(client.sock, ssl.SSLSocket)
                same = made == tried or (made, tried) in SAME
                assert client.sock.session_reused == same, f"{made} at {tried}"


@pytest.mark.parametrize("tried", ["mesh", "permissive", "asks"])
def test_a_ticket_of_nobody_opens_no_door(serve: Serve, upstream: Serving, pki: Pki, tried: str) -> None:
    """A client without a certificate, with a good session from where none is asked for."""
    app = upstream(answering(b"hello"))
    config = sidecar(pki, app.address[1], *listeners(pki))
    proxy = serve(config)
    ports = ports_of(config)
    context = client_context(None, trust=pki.bundle)
    session = None
    for turn in range(2):
        with connect_tls(("127.0.0.1", ports["open"]), context, session) as client:
            client.send(request())
            assert client.read_response().status == 200
            assert isinstance(client.sock, ssl.SSLSocket)
            assert client.sock.session_reused == (turn > 0)
            session = client.sock.session
    try:
        with connect_tls(("127.0.0.1", ports[tried]), context, session) as client:
            client.send(request())
            assert client.read_to_end() == b""
    except (ssl.SSLError, ConnectionError, Closed):
        pass
    proxy.wait_metric("refused", lambda m: m.by_reason("tls_no_certificate") == 1)
    assert len(app.requests) == 2
