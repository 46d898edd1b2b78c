"""Hostile peers of HTTP/2: they are cut off, what they cost is bounded and counted, nobody else notices.

Each test looks at three things: how the hostile connection ends (the code of its GOAWAY, a reason in the
metrics), what the worker's memory has grown by, and whether its neighbours, of HTTP/1.1 and HTTP/2, are
answered. The last part is about those who ask for much and are honest: nobody cuts them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from kit import blocks, procfs
from kit.fixtures import Serve, Serving
from kit.http2 import (
    PREFACE,
    Code,
    Flag,
    Frame,
    Setting,
    Type,
    data,
    headers,
    headers_raw,
    ping,
    request,
    reset,
    settings,
    window_update,
)
from kit.http2_client import Client, dial
from kit.http2_hostile import FLOODS, GET, LARGE, POST, Attacker, Flood, bomb, rapid_reset
from kit.http2_server import H2Conn, h2
from kit.limits import SANITIZED, scaled, wait_steady
from kit.nginx import Nginx
from kit.pki import Pki
from kit.ports import free_port, release_port
from kit.proxy import Fastmesh
from kit.upstream import ServerConn
from kit.wire import Closed, Conn, connect, response
from kit.wire import request as http1_request

KIB, MIB = 1 << 10, 1 << 20
BOUND = 2 * MIB  # what a flood may leave in a worker
SMALL = b"a small answer from nginx\n"
BIG = blocks.block(request(path="/mib", authority="svc-b"))


@dataclass
class Ground:
    """A listener, and neighbours that were there before whoever is hostile."""

    proxy: Fastmesh
    address: tuple[str, int]
    host: str = "test"
    worker: int = 0
    before: int = 0
    stream: int = 1
    one: Conn = field(init=False)
    two: Client = field(init=False)

    def __post_init__(self) -> None:
        [self.worker] = self.proxy.wait_workers()
        self.one = connect(self.address)
        self.two = dial(self.address)
        self.two.open()
        for _ in range(20):
            self.neighbours()
        self.before = procfs.pss(self.worker)

    def neighbours(self) -> None:
        """Those who are there, and new ones, are answered."""
        asked = request(path="/small", authority=self.host)
        with connect(self.address) as fresh, dial(self.address) as client:
            for conn in (self.one, fresh):
                conn.send(http1_request(target="/small", host=self.host))
                assert conn.read_response().body == SMALL
            client.open()
            assert client.ask(1, asked).body == SMALL
        assert self.two.ask(self.stream, asked).body == SMALL
        self.two.send(window_update(0, len(SMALL)))
        self.stream += 2

    def bounded(self, bound: int = BOUND) -> None:
        growth = procfs.pss(self.worker) - self.before
        if not SANITIZED:
            assert growth <= bound, f"grown by {growth >> 10} KiB"

    def check(self, bound: int = BOUND) -> None:
        """Nobody was harmed, nothing is left."""
        self.neighbours()
        self.proxy.wait_metric(
            "only the neighbours are left",
            lambda m: m.sum("downstream_http2_connections") == 1 and m.sum("exchanges") == 0,
        )
        assert self.proxy.worker_pids() == [self.worker], "the worker has died"
        assert not self.proxy.new_faults()
        self.bounded(bound)

    def close(self) -> None:
        self.one.close()
        self.two.conn.close()


def config(
    port: int, endpoint: str, listener: dict[str, Any] | None = None, service: dict[str, Any] | None = None
) -> dict[str, Any]:
    edge = {"name": "edge", "bind": f"127.0.0.1:{port}", "protocol": "http", "to": "web"}
    return {
        "listeners": [{**edge, "idle_timeout": "1h", **(listener or {})}],
        "services": {"web": {"endpoints": [endpoint], **(service or {})}},
    }


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, nginx: Nginx) -> Iterator[Ground]:
    proxy = Fastmesh(config(port := free_port(), nginx.address), tmp_path_factory.mktemp("hostile"))
    try:
        made = Ground(proxy.start(), ("127.0.0.1", port))
        yield made
        made.close()
        proxy.stop()
    finally:
        proxy.kill()
        release_port(port)


@pytest.fixture
def ground(shared: Ground) -> Ground:
    """The same for every test that leaves it as it was."""
    shared.before = procfs.pss(shared.worker)
    return shared


class Grounds:
    """`grounds(endpoint, listener, service)`: one of the test's own."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self.made: list[Ground] = []

    def __call__(
        self, endpoint: str, listener: dict[str, Any] | None = None, service: dict[str, Any] | None = None
    ) -> Ground:
        port = free_port()
        proxy = self.serve(config(port, endpoint, listener, service))
        return self.keep(Ground(proxy, ("127.0.0.1", port)))

    def keep(self, ground: Ground) -> Ground:
        self.made.append(ground)
        return ground


@pytest.fixture
def grounds(serve: Serve) -> Iterator[Grounds]:
    made = Grounds(serve)
    yield made
    for one in made.made:
        one.close()


def ask(client: Client, streams: Iterable[int], path: str = "/small", method: str = "GET") -> None:
    """Open streams without waiting for their answers; uploads stay open."""
    streams = list(streams)
    for stream in streams:
        client.answer(stream)
    client.send(*(headers(one, request(method, path), end=method == "GET") for one in streams))


# floods


@pytest.mark.parametrize("flood", FLOODS, ids=[flood.name for flood in FLOODS])
def test_a_flood_is_cut(ground: Ground, flood: Flood) -> None:
    before = ground.proxy.metrics()
    with Attacker(ground.address) as attacker:
        attacker.flood(flood.step, flood.most)
        attacker.read_all()
    assert attacker.code == flood.code
    after = ground.proxy.metrics()
    assert sum(after.by_reason(one) - before.by_reason(one) for one in flood.reasons) == 1
    floods = [metrics.sum("http2_floods_total", side="downstream") for metrics in (before, after)]
    assert floods[1] - floods[0] == (flood.code == Code.ENHANCE_YOUR_CALM)
    ground.check()


def test_a_flood_does_not_hold_up_anybody(ground: Ground) -> None:
    """Neighbours are answered while one connection after the other is used up."""
    stop = threading.Event()

    def attack() -> None:
        while not stop.is_set():
            with Attacker(ground.address) as attacker:
                attacker.flood(FLOODS[0].step, FLOODS[0].most)

    attacking = threading.Thread(target=attack)
    attacking.start()
    try:
        for _ in range(scaled(100, 10)):
            ground.neighbours()
    finally:
        stop.set()
        attacking.join()
    ground.check(2 * BOUND)


def test_requests_that_are_reset_at_once_share_a_connection_under_way(grounds: Grounds, nginx: Nginx) -> None:
    """They do not fill the endpoint's accept queue: who leaves leaves his connection to the next."""
    ground = grounds(nginx.address)
    metrics = ground.proxy.metrics()
    before, streams = metrics.sum("upstream_connections_total"), metrics.sum("http2_streams_total")
    count = 400
    with Attacker(ground.address) as attacker:
        attacker.send(b"".join(rapid_reset(number) for number in range(count)))
        ground.proxy.wait_metric("all have come", lambda m: m.sum("http2_streams_total") >= streams + count)
    ground.check()
    assert ground.proxy.metrics().sum("upstream_connections_total") - before < count // 10


def test_header_bombs_are_answered_and_nothing_is_stored(ground: Ground) -> None:
    """16 KB that stand for 64 MB of fields, again and again: 431, and the connection goes on."""
    with dial(ground.address) as client:
        client.open()
        for number in range(50):
            answer = client.answer(stream := 2 * number + 1)
            client.send(bomb(stream))
            client.until_over(stream)
            assert answer.status == 431
        assert client.ask(101, request(path="/small")).status == 200
    ground.check()


def test_head_over_the_limit_is_answered(ground: Ground) -> None:
    with dial(ground.address) as client:
        client.open()
        block = GET + blocks.block([(f"x-{number}", "a" * 8000) for number in range(10)])
        client.answer(1)
        parts = [block[at : at + 16384] for at in range(0, len(block), 16384)]
        client.send(Frame(Type.HEADERS, Flag.END_STREAM, 1, parts[0]))
        client.send(*(Frame(Type.CONTINUATION, 0, 1, part) for part in parts[1:-1]))
        client.send(Frame(Type.CONTINUATION, Flag.END_HEADERS, 1, parts[-1]))
        assert client.until_over(1).status == 431
        assert client.ask(3, request(path="/small")).status == 200
    ground.check()


# who does not do his part


def test_settings_that_are_never_acknowledged(grounds: Grounds, nginx: Nginx) -> None:
    """RFC 9113 section 6.5.3: who has not done so after a while is told, and cut, whatever else he does."""
    ground = grounds(nginx.address)
    with Attacker(ground.address, agree=False) as attacker:
        attacker.send(headers_raw(1, GET, end=True))
        attacker.send(headers_raw(3, POST))
        attacker.read_all()
    assert attacker.code == Code.SETTINGS_TIMEOUT
    assert ground.proxy.metrics().by_reason("h2_settings_timeout") == 1
    ground.check()


def test_client_that_gives_no_sign_of_life(grounds: Grounds, upstream: Serving) -> None:
    """A PING that is not answered while a request is under way ends the connection, and is counted."""

    def script(conn: ServerConn) -> None:
        with contextlib.suppress(Closed, ConnectionError):
            while conn.buffer or conn.fill():
                if conn.read_request().target == "/small":
                    conn.send(response(SMALL))

    server = upstream(script)
    pings = {"ping_interval": "200ms", "ping_timeout": "200ms"}
    ground = grounds(f"127.0.0.1:{server.address[1]}", {"http2": pings})
    with Attacker(ground.address, lively=False) as attacker:
        attacker.send(headers_raw(1, BIG, end=True))
        attacker.read_all()
    assert attacker.frames[Type.PING] == 1
    assert ground.proxy.metrics().by_reason("h2_ping_timeout") == 1
    ground.check()


@pytest.mark.parametrize(
    "said",
    [PREFACE[:10], PREFACE + settings().encode() + Frame(Type.HEADERS, 0, 1, GET).encode()],
    ids=["preface", "head"],
)
def test_heads_that_never_end_are_not_waited_for(grounds: Grounds, nginx: Nginx, said: bytes) -> None:
    ground = grounds(nginx.address, {"header_timeout": "500ms"})
    conns = [connect(ground.address) for _ in range(50)]
    for conn in conns:
        conn.send(said)
    for conn in conns:
        while conn.fill():
            pass
        conn.close()
    assert ground.proxy.metrics().by_reason("header_timeout") == 50
    ground.check()


def test_streams_that_are_left_open(grounds: Grounds, upstream: Serving) -> None:
    """As many uploads as are allowed, of which nothing comes."""

    def script(conn: ServerConn) -> None:
        with contextlib.suppress(Closed, ConnectionError):
            while conn.buffer or conn.fill():
                conn.read_request()
                conn.send(response(SMALL))

    most = 100
    endpoint = f"127.0.0.1:{upstream(script).address[1]}"
    ground = grounds(endpoint, {"stream_idle_timeout": "1s", "http2": {"max_concurrent_streams": most}})
    with Attacker(ground.address) as attacker:
        attacker.send(*(headers_raw(2 * number + 1, POST) for number in range(most)))
        ground.proxy.wait_metric("all are open", lambda m: m.sum("http2_streams_total") == most + 40)
        ground.neighbours()
        attacker.read()
        ground.proxy.wait_metric("all have been cut", lambda m: m.by_reason("body_timeout") == most)
    ground.check(2 * BOUND)


# who does not read


@pytest.mark.parametrize("window", [0, 1], ids=["none", "one"])
def test_answers_without_a_window_are_bounded(grounds: Grounds, nginx: Nginx, window: int) -> None:
    """Many streams, each with an answer of 1 MiB, whose client lets the server send nothing, or a byte."""
    count = 200
    ground = grounds(nginx.address, {"stream_idle_timeout": "2s"})
    with Attacker(ground.address, [(Setting.INITIAL_WINDOW_SIZE, window)]) as attacker:
        attacker.send(*(headers_raw(2 * number + 1, BIG, end=True) for number in range(count)))
        ground.proxy.wait_metric("all are open", lambda m: m.sum("http2_streams_total") >= count + 40)
        wait_steady(lambda: procfs.anonymous(ground.worker), "the worker's memory")
        # Together, and what one read of each endpoint brings.
        ground.bounded(MIB + count * 80 * KIB)
        ground.neighbours()
        ground.proxy.wait_metric("all have been cut", lambda m: m.by_reason("stream_timeout") == count)
        attacker.read()
    ground.check(MIB + count * 80 * KIB)


def test_answers_that_are_never_read(grounds: Grounds, nginx: Nginx) -> None:
    """All windows are open, and nobody reads the connection."""
    count = 200
    ground = grounds(nginx.address, {"stream_idle_timeout": "2s"})
    with Attacker(ground.address, [(Setting.INITIAL_WINDOW_SIZE, LARGE)]) as attacker:
        attacker.send(window_update(0, LARGE - 65535))
        attacker.send(*(headers_raw(2 * number + 1, BIG, end=True) for number in range(count)))
        wait_steady(lambda: procfs.anonymous(ground.worker), "the worker's memory")
        ground.bounded(MIB + count * 80 * KIB)
        ground.neighbours()
        ground.proxy.wait_metric("all have been cut", lambda m: m.sum("exchanges") == 0)
    ground.check(MIB + count * 80 * KIB)


def test_who_takes_nothing_stalls_nobody_on_the_same_connection(ground: Ground) -> None:
    """Beside many answers that stand still, one whose window is open comes whole."""
    with dial(ground.address) as client:
        client.open([(Setting.INITIAL_WINDOW_SIZE, 0)])
        ask(client, range(1, 129, 2), "/mib")
        client.until(lambda: sum(one.final for one in client.answers.values()) == 64, "all heads")
        ask(client, [129], "/mib")
        client.send(window_update(0, MIB), window_update(129, MIB))
        assert bytes(client.until_over(129).body) == bytes(range(256)) * 4096
    ground.check(MIB + 64 * 80 * KIB)


def test_who_takes_nothing_stalls_nobody_in_the_mesh(
    grounds: Grounds, serve: Serve, pki: Pki, nginx: Nginx
) -> None:
    """Clients share the connections between sidecars: one that takes nothing of many answers does not keep
    the others from theirs."""
    mesh = {"trust_domain": "mesh.local", "pki": str(pki.path)}
    middle, out = free_port(), free_port()
    inside = {"name": "in", "role": "inbound", "bind": f"127.0.0.1:{middle}", "to": "app"}
    serve(
        {
            **mesh,
            "workload": "svc-b",
            "listeners": [inside],
            "services": {"app": {"endpoints": [nginx.address]}},
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
    ground = grounds.keep(Ground(a, ("127.0.0.1", out), "svc-b"))
    count = 100
    with Attacker(ground.address, [(Setting.INITIAL_WINDOW_SIZE, 0)]) as attacker:
        attacker.send(*(headers_raw(2 * number + 1, BIG, end=True) for number in range(count)))
        wait_steady(lambda: procfs.anonymous(ground.worker), "the worker's memory")
        ground.neighbours()
        # The window of the connection they share, and the output of each stream with one read of its source.
        ground.bounded(2 * MIB + 16 * MIB + count * 128 * KIB)
    ground.check(2 * MIB + 16 * MIB + count * 128 * KIB)


def test_uploads_that_nobody_takes(grounds: Grounds, serve: Serve, upstream: Serving) -> None:
    """As much of many uploads as the windows allow, for an application that reads none of it."""
    released = threading.Event()

    def script(conn: ServerConn) -> None:
        with contextlib.suppress(Closed, ConnectionError):
            while conn.buffer or conn.fill():
                if conn.read_request_head().target != "/small":
                    released.wait()
                    return
                conn.send(response(SMALL))

    count = 64
    server = upstream(script)
    ground = grounds(f"127.0.0.1:{server.address[1]}")
    try:
        with dial(ground.address) as client:
            client.open()
            streams = [2 * number + 1 for number in range(count)]
            ask(client, streams, "/stall", "POST")
            room = dict.fromkeys([0, *streams], 65535)
            given: dict[int, int] = {}
            moved = True
            while moved and sum(given.values()) < 1 << 30:
                moved = False
                for stream in streams:
                    most = min(16384, *(room[at] + client.credit.get(at, 0) for at in (0, stream)))
                    if most > 0:
                        client.send(data(stream, bytes(most)))
                        room[0] -= most
                        room[stream] -= most
                        given[stream] = given.get(stream, 0) + most
                        moved = True
                assert client.fence()
                if not moved:
                    before = dict(client.credit)
                    wait_steady(lambda: procfs.cpu_seconds(ground.worker), "the worker")
                    assert client.fence()
                    moved = client.credit != before
            ground.neighbours()
            # What is queued towards each endpoint, and the connection's window.
            ground.bounded(2 * MIB + count * 160 * KIB)
    finally:
        released.set()
    ground.check(2 * MIB + count * 160 * KIB)


def test_interim_answers_without_end(grounds: Grounds, upstream: Serving) -> None:
    """An endpoint of HTTP/1.1 that sends nothing but interim heads, to a client that does not read."""
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n" * 1000
    sent = [0]

    def script(conn: ServerConn) -> None:
        with contextlib.suppress(Closed, ConnectionError):
            while conn.buffer or conn.fill():
                if conn.read_request().target == "/small":
                    conn.send(response(SMALL))
                    continue
                while True:
                    conn.send(hint)
                    sent[0] += len(hint)

    server = upstream(script)
    ground = grounds(f"127.0.0.1:{server.address[1]}")
    with Attacker(ground.address) as attacker:
        attacker.send(headers_raw(1, GET.replace(b"small", b"smell"), end=True))
        wait_steady(lambda: sent[0], "the endpoint's sending")
        ground.neighbours()
        ground.bounded()
    ground.check()


# endpoints


def _interim(conn: H2Conn, stream: int) -> bytes:
    return headers(stream, [(":status", "103"), ("link", "</style.css>")]).encode()


def _promise(conn: H2Conn, stream: int) -> bytes:
    block = (2).to_bytes(4) + blocks.block(request(path="/style.css"))
    return Frame(Type.PUSH_PROMISE, Flag.END_HEADERS, stream, block).encode()


ENDPOINTS = {
    "ping": (lambda conn, stream: ping().encode(), "upstream_h2_flood"),
    "settings": (lambda conn, stream: settings().encode(), "upstream_h2_flood"),
    "empty-data": (lambda conn, stream: data(stream).encode(), "upstream_h2_flood"),
    "continuation": (lambda conn, stream: Frame(Type.CONTINUATION, 0, stream).encode(), "upstream_h2_flood"),
    "interim": (_interim, "upstream_bad_response"),
    "push": (_promise, "upstream_h2_protocol_error"),
}


@pytest.mark.parametrize("kind", ENDPOINTS)
def test_an_endpoint_that_floods(
    serve: Serve, grounds: Grounds, upstream: Serving, nginx: Nginx, kind: str
) -> None:
    """Whoever asked it gets a 502; whoever asks others notices nothing."""
    step, reason = ENDPOINTS[kind]

    def script(conn: H2Conn) -> None:
        asked = conn.next_request()
        if asked is None:
            return
        if kind == "continuation":
            conn.raw(Frame(Type.HEADERS, 0, asked.stream, blocks.block([(":status", "200")])))
        elif kind == "empty-data":
            conn.raw(headers(asked.stream, [(":status", "200")]))
        part = step(conn, asked.stream) * 100
        with contextlib.suppress(Closed, ConnectionError):
            for _ in range(1000):
                conn.conn.send(part)

    server = upstream(h2(script))
    port, bad = free_port(), free_port()
    edge = {"bind": f"127.0.0.1:{port}", "protocol": "http", "to": "web", "name": "edge"}
    proxy = serve(
        {
            "listeners": [edge, {**edge, "name": "bad", "bind": f"127.0.0.1:{bad}", "to": "bad"}],
            "services": {
                "web": {"endpoints": [nginx.address]},
                "bad": {"endpoints": [f"127.0.0.1:{server.address[1]}"], "protocol": "http2"},
            },
        }
    )
    ground = grounds.keep(Ground(proxy, ("127.0.0.1", port)))
    with dial(("127.0.0.1", bad)) as client:
        client.open()
        answer = client.ask(1)
        # One that has begun to answer is cut; whether it had when the flood was noticed is a matter of time.
        cut = [(200, False)] if kind == "empty-data" else []
        assert (answer.status, answer.ended) in [(502, True), *cut]
    assert proxy.metrics().by_reason(reason) >= 1
    ground.check()


# honest, and heavy


def test_a_client_that_cancels_a_lot_is_served(ground: Ground) -> None:
    """200 cancelled calls a second, for longer than the burst that is allowed lasts."""
    with dial(ground.address) as client:
        client.open()
        start = time.monotonic()
        for number in range(scaled(1400, 100)):
            stream = 2 * number + 1
            ask(client, [stream], method="POST")
            client.send(reset(stream))
            while time.monotonic() - start < number / 200:
                time.sleep(0.001)  # its own pace
        assert client.fence()
        assert client.ask(2 * 1400 + 1, request(path="/small")).body == SMALL
        assert not client.goaways
    ground.check()


def test_a_thousand_streams_at_once_are_served(ground: Ground) -> None:
    count = scaled(1000, 100)
    with dial(ground.address) as client:
        client.generous = True
        client.open()
        assert client.fence()
        for turn in range(3):
            first = 2 * count * turn + 1
            streams = range(first, first + 2 * count, 2)
            ask(client, streams)
            for stream in streams:
                assert client.until_over(stream).body == SMALL
        assert not client.goaways
    ground.check(8 * MIB)


def test_large_heads_that_are_allowed_are_served(ground: Ground) -> None:
    fields = request(path="/small", fields=[(f"x-{number}", "a" * 1000) for number in range(6)])
    block = blocks.block(fields)
    with dial(ground.address) as client:
        client.generous = True
        client.open()
        for number in range(scaled(500, 50)):
            stream = 2 * number + 1
            parts = [block[at : at + 1000] for at in range(0, len(block), 1000)]
            client.answer(stream)
            client.send(
                Frame(Type.HEADERS, Flag.END_STREAM, stream, parts[0]),
                *(Frame(Type.CONTINUATION, 0, stream, part) for part in parts[1:-1]),
                Frame(Type.CONTINUATION, Flag.END_HEADERS, stream, parts[-1]),
            )
            assert client.until_over(stream).body == SMALL
        assert not client.goaways
    ground.check()
