"""Memory stays bounded whoever is slow: a reader of one byte a second, a server that does not read.

The worker's proportional set size is compared with what it was before; what waits in socket buffers
belongs to the kernel and is bounded there.
"""

from __future__ import annotations

import contextlib
import hashlib
import select
import socket
import threading

import pytest
from kit import procfs
from kit.fixtures import Serve, Serving
from kit.lanes import ms
from kit.limits import DEADLINE, SANITIZED, scaled, wait_steady
from kit.pki import Pki
from kit.ports import free_port
from kit.proxy import Fastmesh
from kit.upstream import ServerConn, answering
from kit.wire import Conn, chunked, connect, request, response

KIB = 1024
BOUND = 512 * KIB
BLOCK = hashlib.shake_256(b"backpressure").digest(1 << 20)
# ASan keeps freed memory in quarantine, so its process grows by what passed through it; the bound on what
# is held is asserted by the counted bytes there.
MEASURED = not SANITIZED


def edge(serve: Serve, endpoint: int, protocol: str = "http") -> tuple[Fastmesh, tuple[str, int]]:
    port = free_port()
    proxy = serve(
        {
            "listeners": [{"name": "edge", "bind": f"127.0.0.1:{port}", "protocol": protocol, "to": "web"}],
            "services": {"web": {"endpoints": [f"127.0.0.1:{endpoint}"]}},
        }
    )
    return proxy, ("127.0.0.1", port)


def two_sidecars(serve: Serve, pki: Pki, endpoint: int) -> tuple[list[int], tuple[str, int]]:
    """svc-a's way out, mutual TLS, svc-b's way in: the workers of both, and where svc-a connects."""
    mesh = {"trust_domain": "mesh.local", "pki": str(pki.path)}
    middle, out = free_port(), free_port()
    b = serve(
        {
            **mesh,
            "workload": "svc-b",
            "listeners": [{"name": "in", "role": "inbound", "bind": f"127.0.0.1:{middle}", "to": "app"}],
            "services": {"app": {"endpoints": [f"127.0.0.1:{endpoint}"]}},
        }
    )
    a = serve(
        {
            **mesh,
            "workload": "svc-a",
            "listeners": [{"name": "out", "role": "outbound", "bind": f"127.0.0.1:{out}"}],
            "services": {"svc-b": {"endpoints": [f"127.0.0.1:{middle}"], "tls": "mesh"}},
        }
    )
    return [a.wait_workers()[0], b.wait_workers()[0]], ("127.0.0.1", out)


def warm(address: tuple[str, int], count: int = 30) -> None:
    """Let the process touch what it needs once, so that growth is growth."""
    for _ in range(count):
        with connect(address) as client:
            client.send(request("POST", "/warm", host="svc-b", body=b"w" * 100_000))
            assert client.read_response().status == 200


def grown(worker: int, before: int) -> int:
    return procfs.pss(worker) - before


def assert_bounded(worker: int, before: int, what: str) -> None:
    growth = grown(worker, before)
    if MEASURED:
        assert growth <= BOUND, f"{what}: grew by {growth // KIB} KiB"


def drain(conn: Conn, total: int) -> tuple[int, str]:
    """Read `total` bytes of body at full speed."""
    digest = hashlib.sha256(conn.buffer)
    got = len(conn.take(len(conn.buffer)))
    space = bytearray(1 << 20)
    view = memoryview(space)
    while got < total and (count := conn.sock.recv_into(space)):
        digest.update(view[:count])
        got += count
    return got, digest.hexdigest()


def digest_of_blocks(count: int) -> str:
    digest = hashlib.sha256()
    for _ in range(count):
        digest.update(BLOCK)
    return digest.hexdigest()


@pytest.mark.heavy
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_slow_reader_of_a_large_answer(serve: Serve, upstream: Serving, framing: str) -> None:
    blocks = scaled(1024 if framing == "length" else 128, 48)
    total = blocks * len(BLOCK)
    sent = [0]

    def script(conn: ServerConn) -> None:
        for seen in conn:
            if seen.target == "/warm":
                conn.send(response())
                continue
            if framing == "length":
                conn.send(response(None, headers=[("Content-Length", str(total))]))
            elif framing == "chunked":
                conn.send(response(None, headers=[("Transfer-Encoding", "chunked")]))
            else:
                conn.send(response(None, headers=[("Connection", "close")]))
            for _ in range(blocks):
                if framing == "chunked":
                    conn.send(b"%x\r\n" % len(BLOCK))
                conn.send(BLOCK)
                if framing == "chunked":
                    conn.send(b"\r\n")
                sent[0] += len(BLOCK)
            if framing == "chunked":
                conn.send(b"0\r\n\r\n")
            if framing == "close":
                return

    server = upstream(script)
    proxy, address = edge(serve, server.address[1])
    [worker] = proxy.wait_workers()
    warm(address)
    before = procfs.pss(worker)
    with connect(address) as client:
        client.send(request())
        answer = client.read_response_head()
        assert answer.status == 200
        stopped = wait_steady(lambda: sent[0], "the upstream's sending")
        assert stopped < total, "the upstream was never stopped"
        assert_bounded(worker, before, "with a reader that does not read")
        for _ in range(50):  # one byte at a time, as a slow reader does
            client.fill(1)
        wait_steady(lambda: sent[0], "the upstream's sending")
        assert_bounded(worker, before, "with a reader of single bytes")
        if answer.chunked or "chunked" in answer.tokens("transfer-encoding"):
            body, _ = client._read_chunked()
            assert (len(body), hashlib.sha256(body).hexdigest()) == (total, digest_of_blocks(blocks))
        else:
            assert drain(client, total) == (total, digest_of_blocks(blocks))
    assert_bounded(worker, before, "afterwards")


@pytest.mark.heavy
@pytest.mark.parametrize("way", ["edge", "two sidecars"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_slow_server_with_a_large_upload(
    serve: Serve, upstream: Serving, pki: Pki, framing: str, way: str
) -> None:
    blocks = scaled(1024 if framing == "length" else 128, 48)
    total = blocks * len(BLOCK)
    release = threading.Event()
    got: list[tuple[int, str]] = []

    def script(conn: ServerConn) -> None:
        while True:
            head = conn.read_request_head()
            if head.target != "/warm":
                break
            conn.read_request_body(head)
            conn.send(response())
        for _ in range(50):
            conn.fill(1)
        assert release.wait(60)
        if framing == "chunked":
            body, _ = conn._read_chunked()
            got.append((len(body), hashlib.sha256(body).hexdigest()))
        else:
            got.append(drain(conn, total))
        conn.send(response(b"done"))

    server = upstream(script)
    if way == "edge":
        proxy, address = edge(serve, server.address[1])
        workers = proxy.wait_workers()
    else:
        workers, address = two_sidecars(serve, pki, server.address[1])
    warm(address)
    before = [procfs.pss(worker) for worker in workers]
    sent = [0]
    with connect(address) as client:
        fields = (
            [("Content-Length", str(total))] if framing == "length" else [("Transfer-Encoding", "chunked")]
        )
        client.send(request("POST", host="svc-b", headers=fields))

        def upload() -> None:
            with contextlib.suppress(OSError):
                for _ in range(blocks):
                    client.send(BLOCK if framing == "length" else chunked(BLOCK)[:-5])
                    sent[0] += len(BLOCK)
                if framing == "chunked":
                    client.send(b"0\r\n\r\n")

        sender = threading.Thread(target=upload, daemon=True)
        sender.start()
        stopped = wait_steady(lambda: sent[0], "the client's sending")
        assert stopped < total, "the client was never stopped"
        for worker, was in zip(workers, before, strict=True):
            assert_bounded(worker, was, "with a server that does not read")
        release.set()
        # First all of it: on a busy machine that takes longer than an answer may.
        sender.join(8 * DEADLINE)
        assert client.read_response().body == b"done"
    assert got == [(total, digest_of_blocks(blocks))]
    for worker, was in zip(workers, before, strict=True):
        assert_bounded(worker, was, "afterwards")


def test_small_pieces_that_wait_for_a_server_are_its_delay(serve: Serve, upstream: Serving) -> None:
    """What comes in small pieces waits in a queue and in no pipe: the client is not blamed either way."""
    done = threading.Event()

    def never_reads(conn: ServerConn) -> None:
        conn.read_request_head()
        done.wait(120)

    server = upstream(never_reads)
    port = free_port()
    serve(
        {
            "listeners": [
                {
                    "name": "edge",
                    "bind": f"127.0.0.1:{port}",
                    "protocol": "http",
                    "to": "web",
                    "stream_idle_timeout": ms(300),
                }
            ],
            "services": {
                "web": {"endpoints": [f"127.0.0.1:{server.address[1]}"], "response_timeout": ms(1500)}
            },
        }
    )
    with connect(("127.0.0.1", port)) as client:
        client.send(request("POST", host="web", headers=[("Content-Length", str(1 << 30))]))
        while select.select([client.sock], [client.sock], [], 0.2)[:2] == ([], [client.sock]):
            client.sock.send(bytes(8000))
            select.select([client.sock], [], [], 0.001)  # or it would be much at a time
        answer = client.read_response()
    done.set()
    assert (answer.status, answer.reason) == (504, "upstream_timeout")


@pytest.mark.heavy
def test_many_slow_readers_cost_little_each(serve: Serve, upstream: Serving) -> None:
    """100 stopped answers at once: each stays within the bound of one."""
    count = 100
    body = b"z" * (8 << 20)
    sent = [0]

    def script(conn: ServerConn) -> None:
        conn.read_request()
        conn.send(response(None, headers=[("Content-Length", str(len(body)))]))
        view = memoryview(body)
        with contextlib.suppress(ConnectionError):
            for at in range(0, len(body), 65536):
                conn.sock.sendall(view[at : at + 65536])
                sent[0] += 65536

    server = upstream(script)
    proxy, address = edge(serve, server.address[1])
    [worker] = proxy.wait_workers()
    before = procfs.pss(worker)
    clients = []
    for _ in range(count):
        client = connect(address)
        client.send(request())
        clients.append(client)
    server.wait_requests(count)
    wait_steady(lambda: sent[0], "the upstream's sending")
    assert sent[0] < count * len(body)
    growth = grown(worker, before)
    if MEASURED:
        assert growth <= count * BOUND, f"{growth // KIB} KiB for {count} readers"
    for client in clients:
        client.close()
    server.wait_open(0)


@pytest.mark.heavy
def test_slow_reader_behind_two_sidecars(serve: Serve, upstream: Serving, pki: Pki) -> None:
    """The same bound holds in both sidecars with TLS between them."""
    total = scaled(256, 48) * len(BLOCK)
    sent = [0]

    def script(conn: ServerConn) -> None:
        for seen in conn:
            if seen.target == "/warm":
                conn.send(response())
                continue
            conn.send(response(None, headers=[("Content-Length", str(total))]))
            for _ in range(total // len(BLOCK)):
                conn.send(BLOCK)
                sent[0] += len(BLOCK)

    app = upstream(script)
    workers, address = two_sidecars(serve, pki, app.address[1])
    warm(address)
    before = [procfs.pss(worker) for worker in workers]
    with connect(address) as client:
        client.send(request(host="svc-b"))
        assert client.read_response_head().status == 200
        wait_steady(lambda: sent[0], "the application's sending")
        assert sent[0] < total
        for worker, was in zip(workers, before, strict=True):
            assert_bounded(worker, was, "with a reader that does not read")
        got, digest = drain(client, total)
        assert (got, digest) == (total, digest_of_blocks(total // len(BLOCK)))
    for worker, was in zip(workers, before, strict=True):
        assert_bounded(worker, was, "afterwards")


def test_slow_answer_does_not_hold_up_other_connections(serve: Serve, upstream: Serving) -> None:
    blocks = 64

    def script(conn: ServerConn) -> None:
        for seen in conn:
            if seen.target == "/large":
                conn.send(response(None, headers=[("Content-Length", str(blocks * len(BLOCK)))]))
                with contextlib.suppress(ConnectionError):
                    for _ in range(blocks):
                        conn.send(BLOCK)
                return
            conn.send(response(b"small"))

    server = upstream(script)
    _, address = edge(serve, server.address[1])
    with connect(address) as slow:
        slow.send(request(target="/large"))
        slow.read_response_head()
        for _ in range(50):
            with connect(address) as quick:
                quick.send(request())
                assert quick.read_response().body == b"small"


def test_pipelining_client_that_never_reads_is_stopped(serve: Serve, upstream: Serving) -> None:
    """Requests without end whose answers nobody takes: the proxy stops reading, it does not queue."""
    server = upstream(answering(b"a" * 10_000))
    proxy, address = edge(serve, server.address[1])
    [worker] = proxy.wait_workers()
    warm(address)
    before = procfs.pss(worker)
    sent = [0]
    with connect(address) as client:

        def flood() -> None:
            data = request() * 100
            with contextlib.suppress(OSError):
                while True:
                    client.send(data)
                    sent[0] += len(data)

        sender = threading.Thread(target=flood, daemon=True)
        sender.start()
        wait_steady(lambda: (sent[0], len(server.requests)), "the flood")
        assert_bounded(worker, before, "under a flood of requests")
        # a sender that waits inside the kernel would keep the socket open
        client.sock.shutdown(socket.SHUT_RDWR)
    sender.join(10)
    assert not sender.is_alive()
