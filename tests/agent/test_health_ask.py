"""One check against servers that answer well, badly, slowly, or something else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from kit.limits import DEADLINE
from kit.pki import Identity, Pki, server_context
from kit.public import Shop

from fastmesh.agent.health.ask import ask
from fastmesh.agent.health.tls import CheckTls, check_tls
from fastmesh.agent.health.words import AGENT, ERROR, HEALTHY, LOCAL, TIMEOUT, UNHEALTHY, Outcome

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def service(
    grpc: str | None = None, path: str | None = "/healthz?x=1", timeout_ms: int = 10_000, **more: Any
) -> dict[str, Any]:
    check = {"path": None if grpc is not None else path, "grpc": grpc, "timeout_ms": timeout_ms}
    base = {"name": "web", "tls": "none", "protocol": "auto", "spiffe_id": None, "health_check": check}
    return base | more


def checking(
    handler: Handler,
    asked: dict[str, Any],
    context: ssl.SSLContext | None = None,
    tls: CheckTls | None = None,
) -> Outcome:
    """The outcome of a check of a server that does this."""
    serving: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.append(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, h2.exceptions.ProtocolError):
            await handler(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def main() -> Outcome:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        host, port = server.sockets[0].getsockname()
        try:
            return await ask(asked, {"family": "inet", "host": host, "port": port, "path": None}, tls)
        finally:
            server.close()
            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(*serving)

    return asyncio.run(main())


def saying(data: bytes, seen: list[bytes] | None = None, stay: bool = False) -> Handler:
    """Reads a head, sends `data`, and closes if it does not stay."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if seen is not None:
            seen.append(head)
        writer.write(data)
        await writer.drain()
        if stay:
            await reader.read()

    return handler


def answer(status: str, body: bytes = b"", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode() + body


# -- HTTP/1.1


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "299 Odd", "200"])
def test_healthy(status: str) -> None:
    seen: list[bytes] = []
    assert checking(saying(answer(status), seen), service()) == (HEALTHY, "")
    head = b"GET /healthz?x=1 HTTP/1.1\r\nhost: web\r\nuser-agent: %s\r\n" % AGENT.encode()
    assert seen[0] == head + b"accept: */*\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize("status", [301, 404, 500, 503])
def test_not_healthy(status: int) -> None:
    assert checking(saying(answer(f"{status} X")), service()) == (UNHEALTHY, f"answered {status}")


def test_interim_answers_are_none() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 3
    assert checking(saying(interim + answer("200 OK")), service()).result == HEALTHY
    assert checking(saying(b"HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"), service()) == (
        UNHEALTHY,
        "answered 101",
    )


def test_the_status_is_enough() -> None:
    """Neither the rest of the body nor the end of the connection is waited for."""
    endless = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n" + bytes(200_000)
    assert checking(saying(endless, stay=True), service()).result == HEALTHY
    assert checking(saying(answer("200 OK") + b"\0garbage"), service()).result == HEALTHY


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "closed before the answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", "closed before the answer"),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP/1.1"),
        (b"\0" * 64, "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: %s\r\n" % (b"b" * 1000) * 200, "longer than|not HTTP/1.1"),
    ],
)
def test_no_answer(data: bytes, why: str) -> None:
    outcome = checking(saying(data), service())
    assert outcome.result == ERROR
    assert any(part in outcome.reason for part in why.split("|")), outcome.reason


def test_silence() -> None:
    outcome = checking(saying(b"HTTP/1.1 100 Continue\r\n\r\n", stay=True), service(timeout_ms=50))
    assert outcome == (TIMEOUT, "no answer within 0.05 s")


@pytest.fixture
def refusing() -> Iterator[int]:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def test_nobody_there(refusing: int, tmp_path: Path) -> None:
    there = {"family": "inet", "host": "127.0.0.1", "port": refusing, "path": None}
    assert asyncio.run(ask(service(), there, None)) == (ERROR, "connection refused")
    nowhere = {"family": "unix", "host": None, "port": 0, "path": str(tmp_path / "none")}
    assert asyncio.run(ask(service(), nowhere, None)) == (ERROR, "no such file or directory")


@pytest.mark.parametrize("abstract", [False, True])
def test_unix_sockets(tmp_path: Path, abstract: bool) -> None:
    path = f"@{tmp_path}/abstract" if abstract else str(tmp_path / "sock")

    async def main() -> Outcome:
        own = "\0" + path[1:] if abstract else path
        server = await asyncio.start_unix_server(saying(answer("200 OK")), own)
        try:
            return await ask(service(), {"family": "unix", "host": None, "port": 0, "path": path}, None)
        finally:
            server.close()

    assert asyncio.run(main()).result == HEALTHY


# -- HTTP/2 and gRPC

GRPC = {":status": "200", "content-type": "application/grpc"}
SERVING = b"\0\0\0\0\x02\x08\x01"


def h2_server(
    head: dict[str, str],
    body: bytes = b"",
    trailers: dict[str, str] | None = None,
    seen: list[Any] | None = None,
    **end: int,
) -> Handler:
    """Answers every request so; or ends it, or the connection, with a code (`reset`, `goaway`)."""

    def respond(conn: h2.connection.H2Connection, stream: int) -> None:
        if "goaway" in end:
            conn.close_connection(end["goaway"])
        elif "reset" in end:
            conn.reset_stream(stream, end["reset"])
        else:
            conn.send_headers(stream, list(head.items()), end_stream=not body and trailers is None)
            if body:
                conn.send_data(stream, body, end_stream=trailers is None)
            if trailers is not None:
                conn.send_headers(stream, list(trailers.items()), end_stream=True)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        conn = h2.connection.H2Connection(config)
        conn.initiate_connection()
        writer.write(conn.data_to_send())
        while data := await reader.read(65536):
            for event in conn.receive_data(data):
                if seen is not None:
                    seen.append(event)
                if isinstance(event, h2.events.StreamEnded) and event.stream_id:
                    respond(conn, event.stream_id)
            writer.write(conn.data_to_send())

    return handler


def test_http2() -> None:
    seen: list[Any] = []
    asked = service(protocol="http2")
    assert checking(h2_server({":status": "204"}, seen=seen), asked).result == HEALTHY
    (head,) = [event.headers for event in seen if isinstance(event, h2.events.RequestReceived)]
    assert dict(head) == {
        ":method": "GET",
        ":scheme": "http",
        ":authority": "web",
        ":path": "/healthz?x=1",
        "user-agent": AGENT,
        "accept": "*/*",
    }
    assert checking(h2_server({":status": "503"}, b"no"), asked) == (UNHEALTHY, "answered 503")
    other = checking(saying(answer("200 OK"), stay=True), asked)
    assert other == (ERROR, "the answer is not HTTP/2")


def test_grpc() -> None:
    seen: list[Any] = []
    asked = service(grpc="a.B", timeout_ms=9_000)
    assert checking(h2_server(GRPC, SERVING, {"grpc-status": "0"}, seen), asked).result == HEALTHY
    (head,) = [dict(event.headers) for event in seen if isinstance(event, h2.events.RequestReceived)]
    assert head[":path"] == "/grpc.health.v1.Health/Check"
    assert (head["te"], head["grpc-timeout"], head[":method"]) == ("trailers", "9000m", "POST")
    (data,) = [event.data for event in seen if isinstance(event, h2.events.DataReceived)]
    assert data == b"\0\0\0\0\x05\x0a\x03a.B"


@pytest.mark.parametrize(
    ("server", "outcome"),
    [
        (h2_server(GRPC, b"\0\0\0\0\x02\x08\x02", {"grpc-status": "0"}), (UNHEALTHY, "is NOT_SERVING")),
        (h2_server(GRPC | {"grpc-status": "14"}), (UNHEALTHY, "answered UNAVAILABLE")),
        (h2_server({}, reset=7), (ERROR, "the request was reset: REFUSED_STREAM")),
        (h2_server({}, goaway=11), (ERROR, "the connection was ended: ENHANCE_YOUR_CALM")),
        (h2_server(GRPC, bytes(16_000)), (ERROR, "the answer has no grpc-status")),
    ],
)
def test_grpc_otherwise(server: Handler, outcome: tuple[str, str]) -> None:
    assert checking(server, service(grpc="")) == outcome


def test_grpc_answers_have_bounds() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        settings = b"\0\0\0\4" + bytes(5)
        ping = b"\0\0\x08\6" + bytes(5) + b"12345678"
        writer.write(settings + ping * 20_000)
        await reader.read()

    assert checking(handler, service(grpc="")).reason == "the answer is longer than 65536 bytes"


# -- TLS


def mesh(identity: Identity, spiffe_id: str, bundle: str | None = None, **more: Any) -> dict[str, CheckTls]:
    own = {
        "spiffe_id": "spiffe://mesh.local/svc-a",
        "certificate": identity.certificate.read_text(),
        "key": identity.key.read_text(),
        "bundle": bundle or identity.bundle.read_text(),
        "federated": {},
        "revoked": [],
    }
    one = service(tls="mesh", spiffe_id=spiffe_id, endpoints=[{"family": "inet"}])
    return check_tls({"identity": own | more, "services": [one]}, {})


def serial(identity: Identity) -> str:
    from cryptography import x509

    return f"{x509.load_pem_x509_certificate(identity.certificate.read_bytes()).serial_number:x}"


def test_mesh(pki: Pki, other_pki: Pki) -> None:
    caller, server = pki.identity("svc-a"), pki.identity("svc-b")
    context = server_context(server)
    asked = service(tls="mesh")

    def outcome(tls: dict[str, CheckTls]) -> Outcome:
        return checking(saying(answer("200 OK")), asked, context, tls["web"])

    own = "spiffe://mesh.local/svc-b"
    assert outcome(mesh(caller, own)) == (HEALTHY, "")
    other = outcome(mesh(caller, "spiffe://mesh.local/svc-c"))
    assert other == (ERROR, f"it proved the identity {own}, expected spiffe://mesh.local/svc-c")
    revoked = outcome(mesh(caller, own, revoked=[serial(server)]))
    assert revoked == (ERROR, "its certificate is revoked")
    foreign = outcome(mesh(caller, own, bundle=other_pki.identity("svc-a").bundle.read_text()))
    assert foreign.result == ERROR
    assert foreign.reason.startswith("its certificate is not trusted: ")
    unknown = outcome(mesh(caller, "spiffe://elsewhere.example/svc-b"))
    assert (unknown.result, "elsewhere.example is not federated" in unknown.reason) == (LOCAL, True)


def test_mesh_to_plaintext(pki: Pki) -> None:
    tls = mesh(pki.identity("svc-a"), "spiffe://mesh.local/svc-b")["web"]
    outcome = checking(saying(answer("200 OK")), service(tls="mesh", timeout_ms=2_000), None, tls)
    assert outcome.result in (ERROR, TIMEOUT)  # whether such a server says anything is its business


def test_contexts_outlive_their_keys(pki: Pki) -> None:
    """A snapshot without its keys is what an agent keeps: what they were used for stays."""
    caller = pki.identity("svc-a")
    snapshot = {
        "identity": {
            "spiffe_id": "spiffe://mesh.local/svc-a",
            "certificate": caller.certificate.read_text(),
            "key": caller.key.read_text(),
            "bundle": caller.bundle.read_text(),
            "federated": {},
            "revoked": [],
        },
        "services": [service(tls="mesh", spiffe_id="spiffe://mesh.local/svc-b", endpoints=[{}])],
    }
    first = check_tls(snapshot, {})
    snapshot["identity"]["key"] = "[redacted]"  # type: ignore[call-overload]
    assert check_tls(snapshot, first)["web"] is first["web"]
    assert check_tls(snapshot, {})["web"].error.startswith("its TLS cannot be set up: ")


def public(shop: Shop, name: str, **more: Any) -> CheckTls:
    settings = {"server_name": name, "ca": shop.ca.read_text(), "min_version": "1.2", "alpn": []} | more
    one = service(tls="tls", tls_context=settings, endpoints=[{}], **({"protocol": "auto"}))
    return check_tls({"services": [one]}, {})["web"]


def test_public(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    context = shop.server(shop.issue("api", "api.example", "127.0.0.1"))
    seen: list[bytes] = []

    def outcome(tls: CheckTls) -> Outcome:
        return checking(saying(answer("200 OK"), seen), service(tls="tls"), context, tls)

    assert outcome(public(shop, "api.example")) == (HEALTHY, "")
    assert b"\r\nhost: api.example\r\n" in seen[-1]
    assert outcome(public(shop, "127.0.0.1")) == (HEALTHY, "")
    wrong = outcome(public(shop, "other.example"))
    assert wrong.result == ERROR
    assert (
        wrong.reason.startswith("its certificate is not trusted: hostname mismatch")
        or "mismatch" in wrong.reason
    )
    stranger = outcome(public(Shop(tmp_path / "stranger"), "api.example"))
    assert stranger.reason.startswith("its certificate is not trusted: ")
