"""Upgrade: after 101 both sides are one pipe; anything else is an ordinary answer (RFC 9110 7.8)."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from kit.fixtures import LaneFactory
from kit.limits import scaled
from kit.upstream import ServerConn, answering
from kit.wire import request, response
from websockets.asyncio.client import connect as websocket_connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as websocket_serve

UPGRADE = [("Connection", "Upgrade, X-Hop"), ("Upgrade", "chat/2, chat/1"), ("X-Hop", "1")]
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat/2\r\nX-Extra: 1\r\n\r\n"


def echo_after_switch(conn: ServerConn) -> None:
    seen = conn.read_request()
    assert seen.tokens("upgrade") == ["chat/2", "chat/1"]
    assert "upgrade" in seen.tokens("connection")
    assert seen.get("x-hop") is None
    conn.send(SWITCH)
    while conn.buffer or conn.fill():
        conn.send(conn.take(len(conn.buffer)))
    conn.shutdown()


def test_switched_connection_is_a_pipe(lane: LaneFactory) -> None:
    here = lane()
    here.upstream(echo_after_switch)
    with here.client() as client:
        client.send(request(headers=UPGRADE))
        answer = client.read_response()
        assert (answer.status, answer.tokens("upgrade")) == (101, ["chat/2"])
        assert "upgrade" in answer.tokens("connection")
        assert answer.get("x-extra") == "1"
        for data in (b"\x00\xff\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"0\r\n\r\n"):
            client.send(data)
            assert client.read_exact(len(data)) == data
        client.shutdown()
        client.expect_close(reset_ok=False)


def test_bytes_around_the_switch_are_not_lost(lane: LaneFactory) -> None:
    """The server speaks in the same segment as its 101, the client before it has read the 101."""

    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(SWITCH, b"server first")
        assert conn.read_exact(12) == b"client eager"
        conn.send(b"!")

    here = lane()
    here.upstream(script)
    with here.client() as client:
        client.send(request(headers=UPGRADE), b"client eager")
        assert client.read_response().status == 101
        assert client.read_exact(12) == b"server first"
        assert client.read_exact(1) == b"!"
        client.expect_close(reset_ok=False)


def test_half_close_after_the_switch(lane: LaneFactory) -> None:
    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(SWITCH, b"bye")
        conn.shutdown()
        assert conn.read_to_end() == b"still talking"

    here = lane()
    server = here.upstream(script)
    with here.client() as client:
        client.send(request(headers=UPGRADE))
        client.read_response()
        assert client.read_to_end() == b"bye"
        client.send(b"still talking")
        client.shutdown()
        server.wait_open(0)


def test_upgrade_that_the_server_declines_is_an_ordinary_exchange(lane: LaneFactory) -> None:
    here = lane()
    server = here.upstream(answering(b"plain"))
    with here.client() as client:
        for _ in range(3):
            client.send(request(headers=UPGRADE))
            answer = client.read_response()
            assert (answer.status, answer.body) == (200, b"plain")
            assert "upgrade" not in answer.tokens("connection")
    assert len(server.connections) == 1


def test_426_keeps_its_upgrade_field(lane: LaneFactory) -> None:
    """RFC 9110 15.5.22: a 426 must say which protocol is wanted."""
    here = lane()
    here.upstream(
        answering(b"", "426 Upgrade Required", [("Upgrade", "chat/2"), ("Connection", "upgrade")]),
    )
    answer = here.ask(request())
    assert answer.status == 426
    assert answer.tokens("upgrade") == ["chat/2"]
    assert "upgrade" in answer.tokens("connection"), "RFC 9110 7.8: whoever sends Upgrade names it there"


def test_426_without_a_legible_offer_is_a_426_all_the_same(lane: LaneFactory) -> None:
    here = lane()
    here.upstream(answering(b"", "426 Upgrade Required", [("Upgrade", "chat/2;q=1"), ("Upgrade", "")]))
    answer = here.ask(request())
    assert (answer.status, answer.get("upgrade")) == (426, None)


@pytest.mark.parametrize("size", [30_000, 60_000])
def test_long_offer_within_the_limit_of_a_head(lane: LaneFactory, size: int) -> None:
    here = lane()
    server = here.upstream()
    offer = ", ".join(["chat/1"] * (size // 8))
    assert here.ask(request(headers=[("Connection", "upgrade"), ("Upgrade", offer)])).status == 200
    assert server.requests[0].get("upgrade") == offer


def test_upgrade_request_with_a_body(lane: LaneFactory) -> None:
    def script(conn: ServerConn) -> None:
        seen = conn.read_request()
        assert seen.body == b"hello"
        conn.send(SWITCH)
        conn.send(conn.read_exact(4))

    here = lane()
    here.upstream(script)
    with here.client() as client:
        client.send(request("POST", headers=UPGRADE, body=b"hello"), b"data")
        answer = client.read_response()
        if answer.status == 101:
            assert client.read_exact(4) == b"data"
        else:
            pytest.fail(f"an upgrade with a body is legitimate (RFC 9110 7.8): {answer.raw!r}")


def test_switched_connection_does_not_go_back_to_the_pool(lane: LaneFactory) -> None:
    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(SWITCH)
        conn.read_to_end()

    here = lane()
    server = here.upstream(script, answering(b"fresh"))
    with here.client() as client:
        client.send(request(headers=UPGRADE))
        assert client.read_response().status == 101
    server.wait_open(0)
    assert here.ask(request()).body == b"fresh"
    assert len(server.connections) == 2


def test_large_transfer_after_the_switch_is_intact(lane: LaneFactory) -> None:
    total = scaled(64 << 20, 1 << 20)
    block = bytes(range(256)) * 256

    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(SWITCH)
        for _ in range(total // len(block)):
            conn.send(block)

    here = lane()
    here.upstream(script)
    with here.client() as client:
        client.send(request(headers=UPGRADE))
        client.read_response()
        got, digest = 0, hashlib.sha256()
        while client.buffer or client.fill(1 << 20):
            data = client.take(len(client.buffer))
            got += len(data)
            digest.update(data)
        wanted = hashlib.sha256()
        for _ in range(total // len(block)):
            wanted.update(block)
        assert (got, digest.digest()) == (total // len(block) * len(block), wanted.digest())


def test_websocket_conversation(lane: LaneFactory) -> None:
    """The websockets library at both ends: text, binary, large messages, ping, orderly close, 50 at once."""
    here = lane()

    async def handler(socket: ServerConnection) -> None:
        async for message in socket:
            await socket.send(message)

    async def talk(number: int) -> int:
        host, port = here.address
        async with websocket_connect(f"ws://{host}:{port}/chat?n={number}", max_size=None) as socket:
            await socket.send(f"text {number}")
            assert await socket.recv() == f"text {number}"
            data = bytes([number]) * 200_000
            await socket.send(data)
            assert await socket.recv() == data
            await (await socket.ping())
            await socket.close(1000)
            return socket.close_code or 0

    async def main() -> list[int]:
        host, port = here.endpoints[0]
        async with websocket_serve(handler, host, port, max_size=None):
            return await asyncio.wait_for(asyncio.gather(*[talk(number) for number in range(50)]), 60)

    assert asyncio.run(main()) == [1000] * 50


def test_other_methods_and_requests_after_a_failed_switch(lane: LaneFactory) -> None:
    here = lane()
    here.upstream(answering(b"no", "400 Bad Request"))
    with here.client() as client:
        client.send(request(headers=UPGRADE), request(target="/next"))
        assert client.read_response().status == 400
        assert client.read_response().status == 400, "the pipelined request is answered, not spliced"


def test_http2_cleartext_upgrade_is_not_forwarded_into_a_mess(lane: LaneFactory) -> None:
    """`Upgrade: h2c` through a proxy that does not speak it: answered as HTTP/1.1 or refused."""
    here = lane()
    here.upstream(answering(b"one"))
    headers = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABk")]
    answer = here.ask(request(headers=headers))
    assert answer.status in (200, 400)
    assert response(b"one").endswith(answer.body) or answer.status == 400
