"""What is agreed on by ALPN with ends that nobody here wrote, and what the configuration says of it."""

from __future__ import annotations

import contextlib
import re
import ssl
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from kit.fixtures import Serve, Serving
from kit.limits import bare
from kit.pki import Pki, client_context, server_context
from kit.ports import free_port
from kit.public import Shop
from kit.sidecars import address_of, inbound, outbound
from kit.upstream import ServerConn, once
from kit.wire import connect, request, response

REFUSED = "refused"
ANSWER = response(b"hello there", headers=[("Connection", "close")])
hello = once(ANSWER)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "shop")


def s_client(port: int, offered: str | None, *options: str, data: bytes = b"") -> tuple[str | None, bytes]:
    """What `openssl s_client` agrees on ("refused": by an alert that says so), and all that it has shown."""
    done = subprocess.run(
        [
            *["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-ign_eof", *options],
            *(() if offered is None else ("-alpn", offered)),
        ],
        input=data,
        capture_output=True,
        timeout=20,
        check=False,
        env=bare(),
    )
    shown = done.stdout + done.stderr
    if b"alert no application protocol" in shown.lower().replace(b"_", b" "):
        return REFUSED, shown
    assert b"Verification: OK" in shown, shown
    found = re.search(rb"ALPN protocol: (\S+)", shown)
    assert found or b"No ALPN negotiated" in shown
    return (found[1].decode() if found else None), shown


def agrees(config: dict[str, Any], expected: Mapping[str | None, str | None], *options: str) -> None:
    """The listener agrees on that for each offer, and only who is not refused gets an answer."""
    for offered, agreed in expected.items():
        data = request(headers=[("Connection", "close")])
        found, shown = s_client(address_of(config)[1], offered, *options, data=data)
        assert found == agreed, (offered, options)
        assert (b"hello there" in shown) == (agreed != REFUSED)


def edge(shop: Shop, endpoint: int, tls: dict[str, Any] | None = None, **listener: Any) -> dict[str, Any]:
    own = {"name": "edge", "bind": f"127.0.0.1:{free_port()}", "to": "app"}
    certificates = [shop.issue("a", "a.example"), shop.issue("b", "b.example")]
    return {
        "listeners": [own | listener | {"tls": {"certificates": certificates, **(tls or {})}}],
        "services": {"app": {"endpoints": [f"127.0.0.1:{endpoint}"]}},
    }


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_an_edge_that_speaks_http_1_alone(serve: Serve, upstream: Serving, shop: Shop, version: str) -> None:
    """Whichever certificate is chosen."""
    endpoint = upstream(hello).address[1]
    config = edge(shop, endpoint, protocol="http", http2={"enabled": False})
    serve(config)
    expected = {
        "h2,http/1.1": "http/1.1",
        "http/1.1": "http/1.1",
        None: None,
        "h2": REFUSED,
        "postgresql": REFUSED,
    }
    for name in ("a.example", "b.example"):
        agrees(config, expected, "-CAfile", str(shop.ca), "-servername", name, version)


@pytest.mark.parametrize(
    ("tls", "expected"),
    [
        ({}, {"h2": None, "h2,http/1.1": None, "postgresql": None}),
        ({"alpn": ["h2"]}, {"h2": "h2", "http/1.1,h2": "h2", "http/1.1": REFUSED}),
        ({"alpn": ["http/1.1", "h2"]}, {"h2,http/1.1": "http/1.1", "h2": "h2"}),
    ],
)
def test_an_edge_for_opaque_bytes(
    serve: Serve, upstream: Serving, shop: Shop, tls: dict[str, Any], expected: dict[str | None, str | None]
) -> None:
    """It agrees on what the file names, and on nothing by itself."""
    config = edge(shop, upstream(hello).address[1], tls, protocol="tcp")
    serve(config)
    agrees(config, expected, "-CAfile", str(shop.ca))


@pytest.mark.parametrize(
    ("listener", "expected"),
    [
        (
            {"protocol": "http", "http2": {"enabled": False}},
            {"h2,http/1.1": "http/1.1", "h2": REFUSED, None: None},
        ),
        ({"protocol": "tcp"}, {"h2,http/1.1": "http/1.1", "h2": None, "postgresql": None, None: None}),
    ],
)
def test_listeners_of_the_mesh(
    serve: Serve,
    upstream: Serving,
    pki: Pki,
    listener: dict[str, Any],
    expected: dict[str | None, str | None],
) -> None:
    """They share a context, not the choice. Opaque bytes are nobody's business, whoever offers what."""
    config = inbound(pki, upstream(hello).address[1], **listener)
    other = {"name": "other", "bind": f"127.0.0.1:{free_port()}", "role": "inbound", "to": "app"}
    config["listeners"].append(other | {"protocol": "http", "http2": {"enabled": False}})
    serve(config)
    caller = pki.identity("svc-a")
    agrees(
        config,
        expected,
        *("-CAfile", str(caller.bundle), "-cert", str(caller.certificate), "-key", str(caller.key)),
        *("-cert_chain", str(caller.certificate)),
    )


def test_a_session_of_one_listener_agrees_anew_at_another(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """Mesh listeners take each other's tickets; what was agreed on is not in them."""
    config = inbound(pki, upstream(hello).address[1], protocol="tcp")
    other = {"name": "other", "bind": f"127.0.0.1:{free_port()}", "role": "inbound", "to": "app"}
    config["listeners"].append(other | {"protocol": "http", "http2": {"enabled": False}})
    serve(config)
    addresses = [address_of(config), address_of({"listeners": config["listeners"][1:]})]
    context = client_context(pki.identity("svc-a"))
    session = None
    offers: list[tuple[int, Sequence[str], str | None]] = [
        (0, ["http/1.1"], "http/1.1"),
        (0, ["h2"], None),
        (1, ["h2", "http/1.1"], "http/1.1"),
        (1, ["http/1.1"], "http/1.1"),
        (0, ["h2"], None),
    ]
    for number, (which, offered, agreed) in enumerate(offers):
        context.set_alpn_protocols(offered)
        with connect(addresses[which]) as raw:
            sock = context.wrap_socket(raw.sock, session=session)
            assert sock.selected_alpn_protocol() == agreed
            assert sock.session_reused == (number > 0)
            sock.sendall(request(headers=[("Connection", "close")]))
            while sock.recv(65536):
                pass
            session = session or sock.session
            sock.close()
    context.set_alpn_protocols(["h2"])
    with connect(addresses[1]) as raw, pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
        context.wrap_socket(raw.sock, session=session)


def listening(upstream: Serving, context: ssl.SSLContext, known: Sequence[str] | None) -> Any:
    """A TLS server and what it has agreed on."""
    agreed: list[str | None] = []
    if known is not None:
        context.set_alpn_protocols(known)

    def script(conn: ServerConn) -> None:
        try:
            sock = context.wrap_socket(conn.sock, server_side=True)
        except (ssl.SSLError, OSError):
            agreed.append(REFUSED)
            return
        conn.sock = sock
        agreed.append(sock.selected_alpn_protocol())
        for _ in conn:
            conn.send(ANSWER)
            with contextlib.suppress(
                OSError
            ):  # close_notify, so that the end is no cut; who is there may go first
                sock.unwrap()
            return

    return upstream(script), agreed


@pytest.mark.parametrize(
    ("tls", "known", "agreed"),
    [
        ({}, ["h2", "http/1.1"], "http/1.1"),
        ({"alpn": ["http/1.1"]}, ["h2", "http/1.1"], "http/1.1"),
        ({}, None, None),
        ({}, ["h2"], None),
    ],
)
def test_what_a_service_by_name_is_offered(
    serve: Serve,
    upstream: Serving,
    shop: Shop,
    *,
    tls: dict[str, Any],
    known: list[str] | None,
    agreed: str | None,
) -> None:
    """With `protocol: http1`. A server that takes no notice of the offer is spoken to all the same."""
    context = shop.server(shop.issue("api", "api.example.com"))
    server, seen = listening(upstream, context, known)
    config: dict[str, Any] = {
        "listeners": [{"name": "out", "role": "outbound", "bind": f"127.0.0.1:{free_port()}"}],
        "services": {
            "api": {
                "endpoints": [f"127.0.0.1:{server.address[1]}"],
                "protocol": "http1",
                "tls": {"server_name": "api.example.com", "ca": str(shop.ca), **tls},
            }
        },
    }
    serve(config)
    for _ in range(2):
        with connect(address_of(config)) as client:
            client.send(request(host="api"))
            assert client.read_response().body == b"hello there"
    assert seen == [agreed] * 2


@pytest.mark.parametrize(
    ("tls", "known", "agreed"),
    [
        ({}, ["h2", "http/1.1"], None),
        ({"alpn": ["h2"]}, ["http/1.1", "h2"], "h2"),
        ({"alpn": ["h2", "http/1.1"]}, ["http/1.1"], "http/1.1"),
    ],
)
def test_what_is_offered_for_opaque_bytes(
    serve: Serve, upstream: Serving, shop: Shop, *, tls: dict[str, Any], known: list[str], agreed: str | None
) -> None:
    context = shop.server(shop.issue("api", "api.example.com"))
    server, seen = listening(upstream, context, known)
    config: dict[str, Any] = {
        "listeners": [{"name": "in", "bind": f"127.0.0.1:{free_port()}", "protocol": "tcp", "to": "api"}],
        "services": {
            "api": {
                "endpoints": [f"127.0.0.1:{server.address[1]}"],
                "tls": {"server_name": "api.example.com", "ca": str(shop.ca), **tls},
            }
        },
    }
    serve(config)
    with connect(address_of(config)) as client:
        client.send(request())
        assert client.read_response().body == b"hello there"
    assert seen == [agreed]


@pytest.mark.parametrize(("known", "agreed"), [(["h2", "http/1.1"], "http/1.1"), (None, None)])
def test_what_a_service_of_the_mesh_is_offered(
    serve: Serve, upstream: Serving, pki: Pki, known: list[str] | None, agreed: str | None
) -> None:
    server, seen = listening(upstream, server_context(pki.identity("svc-b")), known)
    config = outbound(pki, server.address[1], protocol="http1")
    serve(config)
    with connect(address_of(config)) as client:
        client.send(request(host="svc-b"))
        assert client.read_response().body == b"hello there"
    assert seen == [agreed]
