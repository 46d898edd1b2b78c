"""Protocols of all kinds between applications that know nothing of the mesh, nor the mesh of them.

Nothing in the configuration says what is spoken on which port. Programs are the real ones wherever there are.
"""

from __future__ import annotations

import hashlib
import smtplib
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.fixtures import Serving
from kit.intercept import MISSING
from kit.limits import DEADLINE, scaled
from kit.pki import Pki
from kit.servers import MARIADB, PSQL, grpc, mariadb, postgresql, postgresql_programs, redis
from kit.three_hosts import LOOPBACK, SVC_B, A, B, Hosts, Mesh, delays, execute, mesh, shown, three_hosts
from kit.upstream import ServerConn
from kit.wire import connect
from websockets.sync.client import connect as open_websocket
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websocket

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
SMTP, REDIS, MYSQL, POSTGRESQL, GRPC, WEBSOCKET, TALK, STREAM = 25, 6379, 3306, 5432, 50051, 8000, 7, 9
PORTS = [SMTP, REDIS, MYSQL, POSTGRESQL, GRPC, WEBSOCKET, TALK, STREAM]
# An endpoint without a port is what applications dial, too: any port there.
SERVICES = {
    f"svc-b{family}": {"endpoints": [f"[{B[6]}]" if family == 6 else B[4]], "tls": "mesh", "spiffe_id": SVC_B}
    for family in (4, 6)
}
families = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with three_hosts() as all_three:
        yield all_three


@pytest.fixture(scope="module", params=["redirect", "tproxy"])
def meshed(
    request: pytest.FixtureRequest, hosts: Hosts, pki: Pki, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mesh]:
    """The same mesh for all of them: what it learns of one protocol is nothing to another."""
    directory = tmp_path_factory.mktemp("mesh")
    with mesh(hosts, pki, directory, request.param, services=SERVICES, ports=PORTS) as made:
        yield made


@pytest.fixture(scope="module")
def servers(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The real ones, in B."""
    directory = tmp_path_factory.mktemp("servers")
    with redis(hosts.b, directory), mariadb(hosts.b, directory), grpc(hosts.b):
        yield


class Counted:
    """How connections were told apart, by the sidecar of A, in the block."""

    NAMES = ("detect_timeouts_total", "detect_skipped_total")

    def __init__(self, made: Mesh) -> None:
        self.mesh = made
        self.before = self.now()

    def now(self) -> dict[str, float]:
        return {name: self.mesh.sum("a", name) for name in self.NAMES}

    def since(self) -> dict[str, float]:
        return {name: value - self.before[name] for name, value in self.now().items()}


def learned(made: Mesh, of: str) -> list[str]:
    """Destinations whose servers speak first, as the admin API shows them."""
    rows = [row for service in made.services(of)["services"] for row in service["learned"]]
    return [row["destination"] for row in rows if row["server_speaks_first"]]


def test_grpc(meshed: Mesh, servers: None) -> None:
    line = [sys.executable, "-m", "kit.grpc_dial", f"{B[4]}:{GRPC}", "4"]
    path = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    took = [float(text) for text in execute(meshed.hosts.a, *line, env=path).stdout.split()]
    assert len(took) == 4
    shown(meshed.method, "gRPC", took)
    # As calls, not as bytes: the application's protocol was seen on both sides.
    assert meshed.sum("a", "requests_total", service="svc-b4", code="2xx") >= 8
    assert meshed.sum("b", "requests_total", service=f"inbound:{GRPC}", code="2xx") == 8


@families
def test_websocket(meshed: Mesh, family: int) -> None:
    seen: list[str] = []

    def converse(connection: ServerConnection) -> None:
        assert connection.request is not None
        seen.append(connection.request.headers.get("x-forwarded-client-cert", ""))
        for message in connection:
            connection.send(message)

    with meshed.hosts.b.inside():
        version = socket.AF_INET6 if family == 6 else socket.AF_INET
        listener = socket.create_server((LOOPBACK[family], WEBSOCKET), family=version)
    server = serve_websocket(converse, sock=listener)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        host = f"[{B[6]}]" if family == 6 else B[4]

        def call() -> None:
            with (
                meshed.hosts.a.inside(),
                open_websocket(f"ws://{host}:{WEBSOCKET}/chat", proxy=None, open_timeout=DEADLINE) as client,
            ):
                for message in ("hello", b"\0\1\2" * 50_000, "", "good-bye"):
                    client.send(message)
                    assert client.recv(DEADLINE) == message

        shown(meshed.method, f"WebSocket IPv{family}", delays(call))
    finally:
        server.shutdown()
        thread.join()
    assert len(seen) == 4
    assert all("URI=spiffe://mesh.local/svc-a" in identity for identity in seen)


def test_redis(meshed: Mesh, servers: None) -> None:
    hosts, counted = meshed.hosts, Counted(meshed)

    def call(host: str = B[4]) -> None:
        where = hosts.a if host == B[4] else hosts.b
        commands = "set key value\nincr number\nget key\n"
        done = execute(where, "redis-cli", "-e", "-h", host, "-p", str(REDIS), input=commands)
        words = done.stdout.split()
        assert (words[0], words[2]) == ("OK", "value") and int(words[1]) > 0

    took = delays(call)
    shown(meshed.method, "redis-cli", took, min(delays(lambda: call("127.0.0.1"))))
    print(counted.since())
    assert counted.since()["detect_skipped_total"] == 0


def test_mariadb(meshed: Mesh, servers: None) -> None:
    """The server speaks first: waited for once, known from then on, on both sides."""
    hosts, counted = meshed.hosts, Counted(meshed)
    sql = "create database if not exists shop; use shop; create or replace table x (a int); " + (
        "insert into x values (41); select a + 1, repeat('z', 100000) from x"
    )

    def call(host: str = B[4]) -> None:
        where = hosts.a if host == B[4] else hosts.b
        done = execute(where, *MARIADB, f"-h{host}", f"-P{MYSQL}", "-e", sql)
        assert done.stdout == f"42\t{'z' * 100_000}\n"

    took = delays(call)
    shown(meshed.method, "mariadb", took, min(delays(lambda: call("127.0.0.1"))))
    speaks_first(meshed, counted, MYSQL, connections=4)


def speaks_first(made: Mesh, counted: Counted, port: int, connections: int) -> None:
    since = counted.since()
    print(since)
    assert since["detect_timeouts_total"] == 1
    assert since["detect_skipped_total"] == connections - 1
    assert f"{B[4]}:{port}" in learned(made, "a")
    assert any(address.endswith(f":{port}") for address in learned(made, "b"))


@pytest.mark.skipif(postgresql_programs() is None, reason="PostgreSQL's server and psql are not installed")
def test_postgresql(meshed: Mesh, tmp_path: Path) -> None:
    hosts, counted = meshed.hosts, Counted(meshed)
    with postgresql(hosts.b, tmp_path):

        def call(host: str = B[4]) -> None:
            where = hosts.a if host == B[4] else hosts.b
            sql = "select sum(a), repeat('z', 100000) from generate_series(1, 1000) a"
            done = execute(where, *PSQL, "-h", host, "-p", str(POSTGRESQL), "-c", sql)
            assert done.stdout == f"500500|{'z' * 100_000}\n"

        took = delays(call)
        shown(meshed.method, "psql", took, min(delays(lambda: call("127.0.0.1"))))
    print(counted.since())
    assert counted.since()["detect_skipped_total"] == 0


def test_smtp(meshed: Mesh, upstream: Serving) -> None:
    got: list[bytes] = []
    counted = Counted(meshed)

    def server(conn: ServerConn) -> None:
        conn.send(b"220 mail.example ready\r\n")
        for begin, reply in (
            (b"ehlo", b"250-mail.example\r\n250 8BITMIME\r\n"),
            (b"mail FROM:", b"250 ok\r\n"),
            (b"rcpt TO:", b"250 ok\r\n"),
            (b"data", b"354 go on\r\n"),
        ):
            assert conn.read_until(b"\r\n").startswith(begin)
            conn.send(reply)
        got.append(conn.read_until(b"\r\n.\r\n"))
        conn.send(b"250 kept\r\n")
        assert conn.read_until(b"\r\n").lower() == b"quit\r\n"
        conn.send(b"221 bye\r\n")

    with meshed.hosts.b.inside():
        upstream(server, address=("127.0.0.1", SMTP))
    letter = "Subject: forty-two\r\n\r\n" + "line after line\r\n" * 2000

    def call() -> None:
        with meshed.hosts.a.inside(), smtplib.SMTP(B[4], SMTP, "a.example", DEADLINE) as client:
            assert client.sendmail("a@a.example", ["b@b.example"], letter) == {}

    shown(meshed.method, "SMTP", delays(call))
    assert got == [letter.encode() + b".\r\n"] * 4
    speaks_first(meshed, counted, SMTP, connections=4)


@families
def test_both_ways_with_half_closes(meshed: Mesh, upstream: Serving, family: int) -> None:
    """Each side may go on when the other one has ended."""

    def client_ends_first(conn: ServerConn) -> None:
        callers.append(conn.sock.getpeername()[0])
        assert conn.read_to_end() == b"\0all that I have\n"
        conn.send(b"and this is mine")
        conn.shutdown()

    def server_ends_first(conn: ServerConn) -> None:
        assert conn.read_exact(1) == b"\1"
        conn.send(b"bye")
        conn.shutdown()
        heard.append(conn.read_to_end())

    heard: list[bytes] = []
    callers: list[str] = []
    with meshed.hosts.b.inside():
        server = upstream(
            client_ends_first,
            client_ends_first,
            client_ends_first,
            server_ends_first,
            address=(LOOPBACK[family], TALK),
        )

    def call() -> None:
        with meshed.hosts.a.inside(), connect((B[family], TALK)) as client:
            client.send(b"\0all that I have\n")
            client.shutdown()
            assert client.read_to_end() == b"and this is mine"

    shown(meshed.method, f"bytes both ways IPv{family}", delays(call, 3))
    with meshed.hosts.a.inside(), connect((B[family], TALK)) as client:
        client.send(b"\1")
        assert client.read_to_end() == b"bye"
        client.send(b"I am still talking")
        client.shutdown()
        server.wait_open(0)
    assert heard == [b"I am still talking"]
    assert set(callers) == {(A if meshed.method == "tproxy" else LOOPBACK)[family]}


@pytest.mark.heavy
def test_a_large_stream(meshed: Mesh, upstream: Serving) -> None:
    """Byte for byte, as a copy of a file is sent; the hash comes back when it has ended."""
    block = bytes(range(256)) * 4096
    blocks = scaled(1024, floor=16)

    def server(conn: ServerConn) -> None:
        received = hashlib.blake2b()
        while data := conn.sock.recv(1 << 20):
            received.update(data)
        conn.send(received.hexdigest())
        conn.shutdown()

    with meshed.hosts.b.inside():
        upstream(server, address=("127.0.0.1", STREAM))
    sent = hashlib.blake2b()

    def call() -> None:
        with meshed.hosts.a.inside(), connect((B[4], STREAM)) as client:
            for number in range(blocks):
                # No two alike: one that is lost or comes twice shows.
                data = number.to_bytes(8) + block[8:]
                sent.update(data)
                client.send(data)
            client.shutdown()
            client.sock.settimeout(4 * DEADLINE)
            assert client.read_to_end().decode() == sent.hexdigest()

    (took,) = delays(call, 1)
    size = blocks * len(block)
    print(f"{meshed.method} {size >> 20} MiB, byte for byte: {size / took / 1000:.0f} MB/s")
