"""Opaque TCP: bytes both ways with half-close and backpressure, whoever speaks first."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from pathlib import Path

import pytest
from kit.fixtures import LaneFactory
from kit.limits import DEADLINE, PATIENCE, scaled, wait_steady, wait_until
from kit.upstream import ServerConn
from kit.wire import Conn, request


def echo(conn: ServerConn) -> None:
    while conn.fill():
        conn.send(conn.take(len(conn.buffer)))
    conn.shutdown()


def test_bytes_pass_both_ways_unchanged(lane: LaneFactory) -> None:
    here = lane("tcp")
    here.upstream(echo)
    with here.client() as client:
        for data in (b"\x00", b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 400, b"\x16\x03\x01"):
            client.send(data)
            assert client.read_exact(len(data)) == data
        client.shutdown()
        client.expect_close(reset_ok=False)


def test_server_that_speaks_first(lane: LaneFactory) -> None:
    def greeting(conn: ServerConn) -> None:
        conn.send(b"220 ready\r\n")
        assert conn.read_until(b"\n") == b"HELO\r\n"
        conn.send(b"250 ok\r\n")

    here = lane("tcp")
    here.upstream(greeting)
    with here.client() as client:
        assert client.read_until(b"\n") == b"220 ready\r\n"
        client.send(b"HELO\r\n")
        assert client.read_to_end() == b"250 ok\r\n"


def test_half_close_towards_the_server(lane: LaneFactory) -> None:
    def script(conn: ServerConn) -> None:
        got = conn.read_to_end()
        conn.send(b"%d" % len(got))
        conn.send(b" bytes")

    here = lane("tcp")
    here.upstream(script)
    with here.client() as client:
        client.send(b"x" * 100_000)
        client.shutdown()
        assert client.read_to_end() == b"100000 bytes"


def test_half_close_towards_the_client(lane: LaneFactory) -> None:
    here = lane("tcp")
    got: list[bytes] = []

    def script(conn: ServerConn) -> None:
        conn.send(b"done")
        conn.shutdown()
        got.append(conn.read_to_end())

    server = here.upstream(script)
    with here.client() as client:
        assert client.read_to_end() == b"done"
        client.send(b"but I am not")
        client.shutdown()
        server.wait_open(0)
    assert got == [b"but I am not"]


def test_reset_of_one_side_ends_the_other(lane: LaneFactory) -> None:
    here = lane("tcp")

    def resets(conn: ServerConn) -> None:
        conn.read_exact(1)
        conn.reset()

    arrived = threading.Event()

    def waits(conn: ServerConn) -> None:
        conn.read_exact(1)
        arrived.set()
        conn.expect_close()

    server = here.upstream(resets, waits)
    with here.client() as client:
        client.send(b"x")
        client.expect_close()
    client = here.client()
    client.send(b"x")
    assert arrived.wait(DEADLINE)  # a reset may overtake and discard what was sent before it
    client.reset()
    server.wait_open(0)


def test_no_server_closes_the_client(lane: LaneFactory) -> None:
    here = lane("tcp")
    with contextlib.suppress(ConnectionResetError), here.client() as client:
        client.expect_close()


def test_silence_both_ways_ends_by_time(lane: LaneFactory) -> None:
    here = lane("tcp-timeout")
    server = here.upstream(lambda conn: conn.expect_close())
    with here.client() as client:
        client.expect_close()
    server.wait_open(0)


def test_one_busy_direction_keeps_the_connection(lane: LaneFactory) -> None:
    def script(conn: ServerConn) -> None:
        for _ in range(12):
            conn.send(b"tick")
            conn.expect_quiet(0.06 * PATIENCE)
        conn.send(b"done")

    here = lane("tcp-timeout")
    here.upstream(script)
    with here.client() as client:
        assert client.read_to_end() == b"tick" * 12 + b"done"


def test_many_connections_at_once(lane: LaneFactory) -> None:
    here = lane("tcp")
    here.upstream(echo)
    clients = [here.client() for _ in range(200)]
    for number, client in enumerate(clients):
        client.send(b"%05d" % number * 100)
    for number, client in enumerate(clients):
        assert client.read_exact(500) == b"%05d" % number * 100
    for client in clients:
        client.shutdown()
    for client in clients:
        client.expect_close()


# detection: `protocol` left out


def test_http_is_detected(lane: LaneFactory) -> None:
    here = lane("auto")
    server = here.upstream()
    with here.client() as client:
        for _ in range(2):
            client.send(request())
            assert client.read_response().status == 200
    assert server.requests[0].get("x-forwarded-for") == "127.0.0.1", "handled as HTTP"


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\x03",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"\x16\x03\x01\x00\x05hello",
        b"EHLO x\r\n",
        b"get key\r\n",
        b"GET /key\r\n",
        b"OPTIONS of some other protocol\r\n",
        b"*1\r\n$4\r\nPING\r\n",
    ],
    ids=["binary", "ssh", "tls", "smtp", "memcached", "inline", "words", "redis"],
)
def test_anything_else_is_passed_through(lane: LaneFactory, data: bytes) -> None:
    here = lane("auto")
    here.upstream(echo)
    with here.client() as client:
        client.send(data)
        assert client.read_exact(len(data)) == data
        client.send(b"more")
        assert client.read_exact(4) == b"more"


@pytest.mark.parametrize("data", [b"PING", b"QUIT\n", b"GET "])
def test_few_words_and_the_clients_end_are_passed_through(lane: LaneFactory, data: bytes) -> None:
    """Too little to tell the protocol by, and no more will come: opaque, and not lost."""
    here = lane("auto")
    here.upstream(echo)
    for _ in range(10):
        with here.client() as client:
            client.send(data)
            client.shutdown()
            assert client.read_to_end() == data


def test_a_request_whose_line_comes_slowly_is_http(lane: LaneFactory) -> None:
    """Its beginning has to do when the time is over."""
    here = lane("auto")
    here.upstream()

    def told() -> float:
        return here.proxy.metrics().sum("detect_delay_seconds_count")

    before = told()
    with here.client() as client:
        client.send(request()[:5])
        wait_until(lambda: told() > before, "the time is over")
        client.send(request()[5:])
        assert client.read_response().status == 200


def test_server_first_protocols_work_behind_detection(lane: LaneFactory) -> None:
    """A client that waits for a greeting is not left waiting: detection has a time limit."""

    def greeting(conn: ServerConn) -> None:
        conn.send(b"+OK ready\r\n")
        conn.read_to_end()

    here = lane("auto")
    here.upstream(greeting)
    with here.client() as client:
        assert client.read_until(b"\n") == b"+OK ready\r\n"


# size and backpressure


def pump(conn: Conn, total: int, block: bytes) -> None:
    for _ in range(total // len(block)):
        conn.sock.sendall(block)


def digest_of(conn: Conn, total: int) -> tuple[int, str]:
    """Receive `total` bytes without keeping them; count and SHA-256."""
    digest, got = hashlib.sha256(), 0
    space = bytearray(1 << 20)
    view = memoryview(space)
    while got < total:
        count = conn.sock.recv_into(space)
        if not count:
            break
        digest.update(view[:count])
        got += count
    return got, digest.hexdigest()


@pytest.mark.heavy
@pytest.mark.parametrize("direction", ["up", "down"])
def test_one_gib_arrives_intact(lane: LaneFactory, direction: str) -> None:
    block = hashlib.shake_256(b"fastmesh").digest(1 << 20)
    total = scaled(1 << 30, 16 << 20) // len(block) * len(block)
    wanted = hashlib.sha256()
    for _ in range(total // len(block)):
        wanted.update(block)
    got: list[tuple[int, str]] = []

    def script(conn: ServerConn) -> None:
        if direction == "up":
            got.append(digest_of(conn, total))
            conn.send(b"thanks")
        else:
            conn.read_exact(1)
            pump(conn, total, block)

    here = lane("tcp")
    here.upstream(script)
    with here.client() as client:
        if direction == "up":
            pump(client, total, block)
            client.shutdown()
            assert client.read_to_end() == b"thanks"
        else:
            client.send(b"!")
            got.append(digest_of(client, total))
            client.expect_close()
    assert got == [(total, wanted.hexdigest())]


def test_messages_of_every_size_in_turn(lane: LaneFactory) -> None:
    """What little is and what much is change hands again and again on one connection."""
    here = lane("tcp")
    here.upstream(echo)
    marks = [8 << 10, 32 << 10, 64 << 10]
    sizes = [
        1,
        *marks,
        *(mark + 1 for mark in marks),
        *(mark - 1 for mark in marks),
        1,
        700_000,
        3,
        1 << 18,
        20_000,
    ]
    with here.client() as client:
        for number, size in enumerate(sizes * 4):
            data = hashlib.shake_256(b"%d" % number).digest(size)
            sender = threading.Thread(target=client.send, args=(data,))
            sender.start()
            assert client.read_exact(size) == data
            sender.join()
        client.shutdown()
        client.expect_close(reset_ok=False)


def test_idle_tunnels_have_no_pipes(lane: LaneFactory) -> None:
    """Neither those that moved little, nor those that moved much before."""

    def pipes() -> int:
        kept = 0
        for pid in here.proxy.worker_pids():
            directory = Path(f"/proc/{pid}/fd")
            kept += sum(str(fd.readlink()).startswith("pipe:") for fd in directory.iterdir())
        return kept

    here = lane("tcp")
    here.upstream(echo)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(here.client()) for _ in range(100)]
        for client in clients:
            client.send(b"little")
        for client in clients:
            assert client.read_exact(6) == b"little"
        # The process's own, and what is kept for all flows together: two descriptors each.
        few = 2 * 32 + 8
        assert pipes() <= few
        much = b"m" * 300_000
        for client in clients[:4]:
            sender = threading.Thread(target=client.send, args=(much,))
            sender.start()
            assert client.read_exact(len(much)) == much
            sender.join()
        assert pipes() <= few


def test_both_directions_at_once(lane: LaneFactory) -> None:
    block = hashlib.shake_256(b"both").digest(1 << 16)
    total = scaled(64 << 20, 4 << 20) // len(block) * len(block)
    results: dict[str, tuple[int, str]] = {}

    def both(conn: Conn, name: str) -> None:
        sender = threading.Thread(target=pump, args=(conn, total, block))
        sender.start()
        results[name] = digest_of(conn, total)
        sender.join()

    here = lane("tcp")
    server = here.upstream(lambda conn: both(conn, "server"))
    with here.client() as client:
        both(client, "client")
        server.wait_open(0)
    assert results["server"] == results["client"]
    assert results["client"][0] == total


@pytest.mark.parametrize("size", [65536, 3000])
def test_reader_that_stops_stops_the_writer(lane: LaneFactory, size: int) -> None:
    """Bytes in between are bounded by socket buffers and pipes, and nothing is lost afterwards."""
    sent = [0]
    block = hashlib.shake_256(b"block").digest(size)
    total = (64 << 20) // size * size

    def script(conn: ServerConn) -> None:
        for _ in range(total // len(block)):
            conn.send(block)
            sent[0] += len(block)

    here = lane("tcp")
    here.upstream(script)
    with here.client() as client:
        stopped = wait_steady(lambda: sent[0], "the writer")
        assert stopped < total, "the writer was never stopped"
        wanted = hashlib.sha256(block * (total // size)).hexdigest()
        assert digest_of(client, total) == (total, wanted)
