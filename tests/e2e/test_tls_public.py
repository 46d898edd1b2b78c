"""Ordinary TLS: an edge with several certificates, services known by their names, TLS that passes through."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from kit.fixtures import Serve, Serving
from kit.limits import bare, wait_until
from kit.pki import Pki
from kit.ports import free_port
from kit.public import Shop, authorities
from kit.sidecars import address_of
from kit.upstream import ServerConn, answering
from kit.wire import connect, request, response


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "shop")


def edge(endpoint: int, tls: Any, **listener: Any) -> dict[str, Any]:
    return {
        "listeners": [
            {"name": "edge", "bind": f"127.0.0.1:{free_port()}", "to": "app", "tls": tls, **listener}
        ],
        "services": {"app": {"endpoints": [f"127.0.0.1:{endpoint}"]}},
    }


def dial(address: tuple[str, int], context: ssl.SSLContext, name: str, **options: Any) -> ssl.SSLSocket:
    sock = socket.create_connection(address, 20)
    try:
        return context.wrap_socket(sock, server_hostname=name, **options)
    except BaseException:
        sock.close()
        raise


def names_of(sock: ssl.SSLSocket) -> set[str]:
    certificate = sock.getpeercert()
    assert certificate is not None
    return {str(value) for kind, value in certificate["subjectAltName"] if kind == "DNS"}  # type: ignore[misc]


def ask(sock: ssl.SSLSocket, data: bytes | None = None) -> bytes:
    sock.sendall(data or request(headers=[("Connection", "close")]))
    out = b""
    while part := sock.recv(65536):
        out += part
    return out


# the edge


def test_the_certificate_is_chosen_by_name(serve: Serve, upstream: Serving, shop: Shop) -> None:
    pairs = [
        shop.issue("first", "first.example"),
        shop.issue("star", "*.shop.example", "shop.example"),
        shop.issue("cart", "cart.shop.example", "first.example"),
    ]
    app = upstream(answering(b"hello"))
    config = edge(app.address[1], {"certificates": pairs}, protocol="http")
    serve(config)
    context = shop.client()
    context.check_hostname = False
    for name, wanted in {
        "first.example": "first.example",
        "CART.Shop.example": "cart.shop.example",
        "other.shop.example": "*.shop.example",
        "shop.example": "*.shop.example",
        "deep.other.shop.example": "first.example",
        "nobody.example": "first.example",
    }.items():
        with dial(address_of(config), context, name) as sock:
            assert wanted in names_of(sock), name
            assert sock.version() == "TLSv1.3"
            assert ask(sock).startswith(b"HTTP/1.1 200 ")
    assert app.requests[-1].get("x-forwarded-proto") == "https"
    assert app.requests[-1].get("x-forwarded-client-cert") is None


def test_old_and_new_protocols(serve: Serve, upstream: Serving, shop: Shop) -> None:
    pair = shop.issue("one", "one.example")
    off = {"enabled": False}
    config = edge(
        upstream(answering(b"x" * 100_000)).address[1], {"certificates": [pair]}, protocol="http", http2=off
    )
    new = edge(
        upstream(answering(b"hello")).address[1],
        {"certificates": [pair], "min_version": "1.3"},
        protocol="http",
        http2=off,
    )
    serve(config)
    proxy = serve(new)
    old = shop.client()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.set_alpn_protocols(["h2", "http/1.1"])
    session = None
    for number in range(3):
        with dial(address_of(config), old, "one.example", session=session) as sock:
            assert (sock.version(), sock.selected_alpn_protocol()) == ("TLSv1.2", "http/1.1")
            assert sock.session_reused == (number > 0)
            session = sock.session
            assert ask(sock).endswith(b"x" * 100_000)
    with pytest.raises(ssl.SSLError):
        dial(address_of(new), old, "one.example")
    proxy.wait_metric("counted", lambda m: m.by_reason("tls_version") == 1)
    only_h2 = shop.client()
    only_h2.set_alpn_protocols(["h2"])
    with pytest.raises(ssl.SSLError, match=r"(?i)alert no application protocol"):
        dial(address_of(new), only_h2, "one.example")


def test_sessions_are_resumed(serve: Serve, upstream: Serving, shop: Shop) -> None:
    """Each connection brings the ticket for the next one: a browser uses none twice."""
    pairs = [shop.issue("one", "one.example"), shop.issue("two", "two.example")]
    config = edge(upstream(answering(b"hello")).address[1], {"certificates": pairs}, protocol="http")
    serve(config, workers=2)
    context = shop.client()
    for name in ("one.example", "two.example"):
        session = None
        for number in range(4):
            with dial(address_of(config), context, name, session=session) as sock:
                assert ask(sock)
                assert sock.session_reused == (number > 0)
                assert sock.session != session
                session = sock.session


def test_sessions_stay_with_their_listener(serve: Serve, upstream: Serving, shop: Shop) -> None:
    """Who is led astray to another port would take it for the one whose certificate it has seen."""
    app = upstream(answering(b"hello"))
    one = edge(app.address[1], {"certificates": [shop.issue("one", "one.example")]}, protocol="http")
    two = edge(app.address[1], {"certificates": [shop.issue("two", "two.example")]}, protocol="http")
    listeners = [one["listeners"][0], {**two["listeners"][0], "name": "other"}]
    proxy = serve({**one, "listeners": listeners})
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = shop.client()
        context.maximum_version = version
        with dial(address_of(one), context, "one.example") as sock:
            assert ask(sock)
            session = sock.session
        with pytest.raises(ssl.SSLCertVerificationError):
            dial(address_of(two), context, "one.example", session=session)
        proxy.reload(drain="3s" if version == ssl.TLSVersion.TLSv1_2 else "4s")
        with dial(address_of(one), context, "one.example", session=session) as sock:
            assert sock.session_reused, "a reload leaves the listener what it is"


def test_a_ticket_lives_no_longer_than_the_chain(serve: Serve, upstream: Serving, shop: Shop) -> None:
    """The client's leaf is good for a day, what has signed it for ten minutes."""
    sub = shop.authority("sub", datetime.timedelta(minutes=10))
    config = edge(
        upstream(answering(b"hello")).address[1],
        {"certificates": [shop.issue("one", "one.example")], "client_ca": str(shop.ca)},
        protocol="http",
    )
    serve(config)
    lifetimes = []
    for pair in (shop.issue("whole", "somebody"), sub.issue("short", "somebody")):
        with dial(address_of(config), shop.client(pair), "one.example") as sock:
            assert ask(sock).startswith(b"HTTP/1.1 200 ")
            assert sock.session is not None
            lifetimes.append(sock.session.ticket_lifetime_hint)
    assert lifetimes[0] == 7200
    assert 0 < lifetimes[1] <= 600


@pytest.mark.parametrize("names", [200, 500])
def test_a_flight_that_leaves_in_pieces(serve: Serve, upstream: Serving, shop: Shop, names: int) -> None:
    """Larger than what a socket of small segments takes at once, and than the memory TLS writes to."""
    pair = shop.issue("one", "one.example")
    many = authorities(names)
    with Path(pair["certificate"]).open("ab") as file:
        file.write(b"".join(many[:150]))
    with shop.ca.open("ab") as file:
        file.write(b"".join(many))
    config = edge(
        upstream(answering(b"hello")).address[1],
        {"certificates": [pair], "client_ca": str(shop.ca)},
        protocol="http",
    )
    serve(config)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = shop.client(shop.issue("client", "somebody"))
        context.maximum_version = version
        with socket.socket() as sock:
            sock.settimeout(20)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 200)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.connect(address_of(config))
            with context.wrap_socket(sock, server_hostname="one.example") as client:
                assert ask(client).startswith(b"HTTP/1.1 200 ")


def test_client_certificates(serve: Serve, upstream: Serving, shop: Shop, tmp_path: Path) -> None:
    other = Shop(tmp_path / "other")
    pair = shop.issue("one", "one.example")
    tls = {"certificates": [pair], "client_ca": str(shop.ca)}
    config = edge(upstream(answering(b"hello")).address[1], tls, protocol="http")
    proxy = serve(config)
    with dial(address_of(config), shop.client(shop.issue("client", "somebody")), "one.example") as sock:
        assert ask(sock).startswith(b"HTTP/1.1 200 ")
    for count, bad in enumerate(
        [None, other.issue("stranger", "somebody"), shop.issue("old", "somebody", days=-1)]
    ):
        reason = ["tls_no_certificate", "tls_untrusted", "tls_expired"][count]
        with (
            pytest.raises((ssl.SSLError, OSError)),
            dial(address_of(config), shop.client(bad), "one.example") as sock,
        ):
            assert ask(sock).startswith(b"HTTP"), "refused"
            raise OSError
        proxy.wait_metric(reason, lambda m, r=reason: m.by_reason(r) == 1)


def test_opaque_bytes_behind_the_edge(serve: Serve, upstream: Serving, shop: Shop) -> None:
    app = upstream(lambda conn: conn.send(conn.read_exact(4)))
    config = edge(app.address[1], {"certificates": [shop.issue("one", "one.example")]}, protocol="tcp")
    serve(config)
    with dial(address_of(config), shop.client(), "one.example") as sock:
        sock.sendall(b"ping")
        assert sock.recv(4) == b"ping"


@pytest.mark.parametrize("options", [["--tlsv1.3"], ["--tls-max", "1.2"], ["--http1.1"], ["--http2"]])
def test_curl(serve: Serve, upstream: Serving, shop: Shop, options: list[str]) -> None:
    config = edge(
        upstream(answering(b"hello curl")).address[1],
        {"certificates": [shop.issue("a", "a.example"), shop.issue("b", "b.example")]},
        protocol="http",
    )
    serve(config)
    port = address_of(config)[1]
    done = subprocess.run(
        [
            *["curl", "-sS", "--cacert", str(shop.ca), "--resolve", f"b.example:{port}:127.0.0.1"],
            *[*options, f"https://b.example:{port}/"],
        ],
        capture_output=True,
        timeout=20,
        check=False,
        env=bare(),
    )
    assert (done.stdout, done.returncode) == (b"hello curl", 0), done.stderr


def test_openssl_s_client(serve: Serve, upstream: Serving, shop: Shop) -> None:
    client = shop.issue("client", "somebody")
    config = edge(
        upstream(answering(b"hello openssl")).address[1],
        {"certificates": [shop.issue("a", "a.example")], "client_ca": str(shop.ca)},
        protocol="http",
    )
    serve(config)
    done = subprocess.run(
        [
            *[
                "openssl",
                "s_client",
                "-connect",
                f"127.0.0.1:{address_of(config)[1]}",
                "-servername",
                "a.example",
            ],
            *["-CAfile", str(shop.ca), "-verify_hostname", "a.example", "-verify_return_error"],
            *["-cert", client["certificate"], "-key", client["key"], "-alpn", "http/1.1", "-ign_eof"],
        ],
        input=request(headers=[("Connection", "close")]),
        capture_output=True,
        timeout=20,
        check=False,
        env=bare(),
    )
    assert b"hello openssl" in done.stdout
    assert b"Verification: OK" in done.stdout
    assert b"ALPN protocol: http/1.1" in done.stdout


def test_files_are_read_again(serve: Serve, upstream: Serving, shop: Shop) -> None:
    pair = shop.issue("one", "old.example")
    config = edge(upstream(answering(b"hello")).address[1], {"certificates": [pair]}, protocol="http")
    proxy = serve(config)
    context = shop.client()
    context.check_hostname = False
    with dial(address_of(config), context, "one.example") as sock:
        assert names_of(sock) == {"old.example"}
    shop.issue("one", "new.example")
    os.kill(proxy.pid, signal.SIGHUP)
    proxy.wait_metric("taken over", lambda m: m.sum("worker_snapshot_number") == 2)
    with dial(address_of(config), context, "one.example") as sock:
        assert names_of(sock) == {"new.example"}
    secret = Path(pair["key"]).read_text()
    shown = proxy.admin("/config")[1]
    assert secret.splitlines()[1] not in shown
    assert "[redacted]" in shown


def test_new_handshakes_get_a_renewed_certificate(serve: Serve, upstream: Serving, shop: Shop) -> None:
    """Without a signal. What is not right yet is not used, connections go on, the file is not read."""
    pair = shop.issue("one", "old.example")
    app = upstream(*[answering(b"hello")] * 3)
    config = edge(app.address[1], {"certificates": [pair]}, protocol="http")
    proxy = serve(config, workers=2)
    context = shop.client()
    context.check_hostname = False

    def served() -> set[str]:
        with dial(address_of(config), context, "one.example") as sock:
            return names_of(sock)

    def taken_over(number: int) -> None:
        proxy.wait_metric(
            f"snapshot {number} in both workers", lambda m: m.sum("worker_snapshot_number") == 2 * number
        )

    with dial(address_of(config), context, "one.example") as kept:
        proxy.path.write_text("listeners: [in the middle of somebody's work")
        shop.issue("one", "new.example")
        certificate = Path(pair["certificate"])
        whole = certificate.read_text()
        certificate.write_text(whole[: len(whole) // 2])
        proxy.wait_metric("the half is refused", lambda m: m.sum("tls_reloads_total", result="rejected") >= 1)
        assert served() == {"old.example"}
        certificate.write_text(whole)
        taken_over(2)
        assert {*served(), *served()} == {"new.example"}
        assert ask(kept).startswith(b"HTTP/1.1 200 ")
    shop.issue("one", "last.example")
    taken_over(3)
    for worker in proxy.worker_pids():
        os.kill(worker, signal.SIGKILL)
    proxy.wait_metric(
        "their successors", lambda m: m.sum("workers", state="ready") == m.sum("worker_restarts_total") == 2
    )
    assert served() == {"last.example"}
    key = Path(pair["key"]).read_text().splitlines()[1]
    assert key not in proxy.admin("/config")[1] + proxy.stderr()
    assert "reloaded" not in proxy.stderr()


def test_a_new_identity_leaves_the_edge_its_keys(serve: Serve, upstream: Serving, shop: Shop) -> None:
    """One sidecar, both kinds of TLS: a renewal in the mesh must not cost the edge its certificate."""
    mesh = Pki(shop.directory / "mesh")
    mesh.issue("svc-a")
    app = upstream(answering(b"hello"), answering(b"hello"), answering(b"hello"))
    ends = {"server_name": "localhost", **shop.issue("own", "own.example")}
    config = edge(app.address[1], {"certificates": [shop.issue("one", "one.example")]}, protocol="http")
    config |= {"workload": "svc-a", "trust_domain": "mesh.local", "pki": str(mesh.path)}
    config["services"] |= {
        "peer": {"endpoints": ["127.0.0.1:1"], "tls": "mesh"},
        "outside": {"endpoints": ["127.0.0.1:1"], "tls": ends},
    }
    proxy = serve(config)

    def served() -> None:
        with dial(address_of(config), shop.client(), "one.example") as sock:
            assert b"hello" in ask(sock)

    served()
    mesh.issue("svc-a")
    proxy.wait_metric("the new identity", lambda m: m.sum("worker_snapshot_number") == 2)
    served()
    (worker,) = proxy.worker_pids()
    os.kill(worker, signal.SIGKILL)
    proxy.wait_metric(
        "its successor", lambda m: m.sum("workers", state="ready") == 1 and m.sum("worker_restarts_total")
    )
    served()
    os.kill(proxy.pid, signal.SIGHUP)
    wait_until(lambda: "nothing has changed in the configuration" in proxy.stderr(), "the same digest")


# services known by their names


def tls_upstream(shop: Shop, upstream: Serving, pair: dict[str, str], **options: Any) -> Any:
    context = shop.server(pair)
    for key, value in options.items():
        setattr(context, key, value)
    seen: list[tuple[str | None, str | None, bool | None]] = []
    asked: list[str | None] = []
    context.sni_callback = lambda sock, name, ctx: asked.append(name)
    context.set_alpn_protocols(["http/1.1"])

    def script(conn: ServerConn) -> None:
        try:
            conn.sock = context.wrap_socket(conn.sock, server_side=True)
        except (ssl.SSLError, OSError):
            return
        assert isinstance(conn.sock, ssl.SSLSocket)
        seen.append((conn.sock.version(), conn.sock.selected_alpn_protocol(), conn.sock.session_reused))
        for _ in conn:
            conn.send(response(b"hello", headers=[("Connection", "close")]))
            return

    server = upstream(script)
    return server, seen, asked


def outbound(endpoint: int, tls: dict[str, Any]) -> dict[str, Any]:
    return {
        "listeners": [{"name": "out", "role": "outbound", "bind": f"127.0.0.1:{free_port()}"}],
        "services": {"api": {"endpoints": [f"127.0.0.1:{endpoint}"], "tls": tls}},
    }


def answer_of(config: dict[str, Any], service: str = "api") -> tuple[int, str | None]:
    with connect(address_of(config)) as client:
        client.send(request(host=service))
        answer = client.read_response()
        return answer.status, answer.reason


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_service_with_ordinary_tls(
    serve: Serve, upstream: Serving, shop: Shop, version: ssl.TLSVersion
) -> None:
    server, seen, asked = tls_upstream(
        shop, upstream, shop.issue("api", "*.example.com"), maximum_version=version
    )
    config = outbound(server.address[1], {"server_name": "api.example.com", "ca": str(shop.ca)})
    serve(config)
    assert answer_of(config) == (200, None)
    assert asked == ["api.example.com"]
    assert seen[0][1] == "http/1.1"


NAMED: dict[str, tuple[tuple[str, ...], str, str | None]] = {
    "name": (("api.example.com",), "api.example.com", None),
    "address": (("127.0.0.1", "::1"), "127.0.0.1", None),
    "address-6": (("127.0.0.1", "::1"), "::1", None),
    "two-labels": (("*.example.com",), "a.b.example.com", "upstream_tls_identity"),
    "no-label": (("*.example.com",), "example.com", "upstream_tls_identity"),
    "part-of-a-label": (("a*.example.com",), "api.example.com", "upstream_tls_identity"),
    "other-name": (("api.example.org",), "api.example.com", "upstream_tls_identity"),
    "other-address": (("127.0.0.1",), "127.0.0.2", "upstream_tls_identity"),
    "name-for-address": (("api.example.com",), "127.0.0.1", "upstream_tls_identity"),
    "none": ((), "api.example.com", "upstream_tls_identity"),
    "address-for-name": (("127.0.0.1",), "api.example.com", "upstream_tls_identity"),
}


def test_the_server_must_be_the_named_one(serve: Serve, upstream: Serving, shop: Shop) -> None:
    """The common name is always right, and never counts."""
    config = outbound(1, {})
    config["services"] = {}
    for name, (names, server_name, _) in NAMED.items():
        server, _, _ = tls_upstream(shop, upstream, shop.issue(server_name, *names))
        tls = {"server_name": server_name, "ca": str(shop.ca)}
        config["services"][name] = {"endpoints": [f"127.0.0.1:{server.address[1]}"], "tls": tls}
    serve(config)
    answers = {name: answer_of(config, name) for name in NAMED}
    assert answers == {name: (502, why) if why else (200, None) for name, (_, _, why) in NAMED.items()}


def test_servers_that_are_not_believed(serve: Serve, upstream: Serving, shop: Shop, tmp_path: Path) -> None:
    other = Shop(tmp_path / "other")
    cases: list[tuple[dict[str, str], dict[str, Any], str]] = [
        (other.issue("api", "api.example.com"), {"ca": str(shop.ca)}, "upstream_tls_untrusted"),
        (shop.issue("sys", "api.example.com"), {}, "upstream_tls_untrusted"),
        (shop.issue("old", "api.example.com", days=-1), {"ca": str(shop.ca)}, "upstream_tls_expired"),
    ]
    for pair, tls, reason in cases:
        server, _, _ = tls_upstream(shop, upstream, pair)
        config = outbound(server.address[1], {"server_name": "api.example.com", **tls})
        serve(config)
        assert answer_of(config) == (502, reason)


def test_a_server_that_wants_a_certificate(serve: Serve, upstream: Serving, shop: Shop) -> None:
    context = shop.server(shop.issue("api", "api.example.com"))
    context.load_verify_locations(shop.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    subjects = []

    def script(conn: ServerConn) -> None:
        try:
            conn.sock = context.wrap_socket(conn.sock, server_side=True)
        except (ssl.SSLError, OSError):
            return
        subjects.append(conn.sock.getpeercert())
        for _ in conn:
            conn.send(response(b"hello", headers=[("Connection", "close")]))
            return

    server = upstream(script)
    tls = {"server_name": "api.example.com", "ca": str(shop.ca)}
    bare = outbound(server.address[1], tls)
    serve(bare)
    assert answer_of(bare) == (502, "upstream_tls_refused")
    config = outbound(server.address[1], {**tls, **shop.issue("us", "us.example.com")})
    serve(config)
    assert answer_of(config) == (200, None)
    assert subjects


def test_a_service_is_shown_a_renewed_certificate(serve: Serve, upstream: Serving, shop: Shop) -> None:
    context = shop.server(shop.issue("api", "api.example.com"))
    context.load_verify_locations(shop.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    shown: list[set[str]] = []

    def script(conn: ServerConn) -> None:
        conn.sock = context.wrap_socket(conn.sock, server_side=True)
        assert isinstance(conn.sock, ssl.SSLSocket)
        shown.append(names_of(conn.sock))
        for _ in conn:
            conn.send(response(b"hello"))

    server = upstream(script)
    ends = {"server_name": "api.example.com", "ca": str(shop.ca), **shop.issue("us", "old.example")}
    config = outbound(server.address[1], ends)
    proxy = serve(config)
    for _ in range(2):
        assert answer_of(config) == (200, None)
    assert shown == [{"old.example"}], "one connection for both"
    shop.issue("us", "new.example")
    proxy.wait_metric("taken over", lambda m: m.sum("worker_snapshot_number") == 2)
    assert answer_of(config) == (200, None)
    assert shown == [{"old.example"}, {"new.example"}]
    left = proxy.metrics().sum(
        "tls_certificate_expiry_seconds", service="api", certificate=ends["certificate"]
    )
    assert 86_000 < left <= 86_400


def test_sessions_of_a_service_are_resumed(serve: Serve, upstream: Serving, shop: Shop) -> None:
    server, seen, _ = tls_upstream(shop, upstream, shop.issue("api", "api.example.com"))
    config = outbound(server.address[1], {"server_name": "api.example.com", "ca": str(shop.ca)})
    config["services"]["api"]["pool"] = {"idle_max": 0}
    serve(config)
    for _ in range(3):
        assert answer_of(config) == (200, None)
    assert [one[2] for one in seen] == [False, True, True]


# TLS that passes through


def test_pass_through_by_name(serve: Serve, upstream: Serving, shop: Shop) -> None:
    one, _, _ = tls_upstream(shop, upstream, shop.issue("one", "one.example", "rest.example"))
    two, _, _ = tls_upstream(shop, upstream, shop.issue("two", "a.two.example", "b.a.two.example"))
    config = {
        "listeners": [
            {
                "name": "pass",
                "bind": f"127.0.0.1:{free_port()}",
                "tls": "passthrough",
                "sni": {"One.example": "one", "*.two.example": "two"},
            }
        ],
        "services": {
            "one": {"endpoints": [f"127.0.0.1:{one.address[1]}"]},
            "two": {"endpoints": [f"127.0.0.1:{two.address[1]}"]},
        },
    }
    proxy = serve(config)
    for name in ("one.example", "a.two.example", "b.a.two.example"):
        with dial(address_of(config), shop.client(), name) as sock:
            assert ask(sock).startswith(b"HTTP/1.1 200 "), name
    for name in ("two.example", "three.example"):
        with pytest.raises(OSError):
            dial(address_of(config), shop.client(), name)
    proxy.wait_metric("counted", lambda m: m.by_reason("no_service") == 2)
    config["listeners"][0]["to"] = "one"
    serve(config | {"listeners": [{**config["listeners"][0], "bind": f"127.0.0.1:{(port := free_port())}"}]})
    with dial(("127.0.0.1", port), shop.client(), "rest.example") as sock:
        assert ask(sock).startswith(b"HTTP/1.1 200 ")


def test_what_is_no_hello_does_not_pass(serve: Serve, upstream: Serving) -> None:
    app = upstream()
    config = edge(app.address[1], "passthrough")
    proxy = serve(config)
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"):
        with connect(address_of(config)) as client:
            client.send(data)
            client.expect_close()
    with connect(address_of(config)) as client:
        client.send(b"\x16\x03\x01\x02\x00\x01")
        with contextlib.suppress(ConnectionError):
            client.expect_close()
    proxy.wait_metric(
        "counted",
        lambda m: (
            (m.by_reason("tls_not_tls"), m.by_reason("tls_handshake"), m.by_reason("tls_timeout"))
            == (1, 1, 1)
        ),
    )
    assert app.connections == []
