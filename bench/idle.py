"""What a proxy costs when nothing happens: memory at rest and of idle connections; and how soon it is ready.

The clients are blocking sockets of this process, opened one after the other. Each makes one request and then
holds still: an idle keep-alive connection, not one that has never spoken. Every one is a full handshake (no
session is offered again), so opening them also gives the CPU cost of a connection with its first request.

Idle streams are open requests on HTTP/2 connections that were there before: each has had the head of its
answer and one message with its echo, and then holds still.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from bench import h2
from bench.processes import alone, cpu, settled_pss
from bench.proxies import Proxy, Topology, Unavailable
from bench.proxies.nginx import BODY
from bench.stage import HOPS, HOST, Ground, client_context, connect_http2, run_proxy, speaks_http2

REQUEST: Final = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
LOAD: Final = 512  # the connections that a proxy is set up for when only its rest and start are looked at
WARM: Final = 100  # connections opened and closed before the baseline: what is set up once is not theirs
TOO_MANY: Final = 20  # failures after which no more connections are tried: each may cost a timeout
REST_SECONDS: Final = 1.0
# Below 100, what HAProxy and nghttpx let a connection have.
STREAMS: Final = 50
MESSAGE: Final = b"\0\0\0\0\x0chello, mesh\n"
KINDS: Final[tuple[Topology, ...]] = ("plain", "in", "h2", "h2-streams")


@dataclass(frozen=True)
class Idle:
    """Memory in bytes, times in microseconds."""

    proxy: str
    kind: str  # of KINDS
    connections: int  # or streams
    pss_before: int  # after WARM connections came and went; of streams: with their connections open
    pss_held: int
    pss_after: int  # all closed again
    per_connection: float  # or stream
    cpu_per_open: float  # connect, handshake if any, one request; of a stream: its head and one message
    cpu_at_rest: float  # share of one CPU while nothing happens, connections held
    errors: dict[str, int]


class Clients(Protocol):
    """What is held open. A failure is counted, and after TOO_MANY of them nothing more is tried."""

    failed: int

    def open(self, count: int) -> None:
        """That many more, each used once."""

    def use_again(self) -> None:
        """Each of them once."""

    def close(self) -> None: ...


class _Counting:
    def __init__(self, port: int, context: ssl.SSLContext | None) -> None:
        self._port = port
        self._context = context
        self.failed = 0

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.failed += 1


class Http1Clients(_Counting):
    """N keep-alive connections to one port, each with one request behind it."""

    def __init__(self, port: int, context: ssl.SSLContext | None) -> None:
        super().__init__(port, context)
        self._sockets: list[socket.socket] = []

    def open(self, count: int) -> None:
        for _ in range(count):
            if self.failed >= TOO_MANY:
                return
            with self._counting():
                connection = socket.create_connection(("127.0.0.1", self._port), timeout=10)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._context:
                    connection = self._context.wrap_socket(connection)
                self._sockets.append(connection)
                _exchange(connection)

    def use_again(self) -> None:
        for connection in self._sockets:
            with self._counting():
                _exchange(connection)

    def close(self) -> None:
        for connection in self._sockets:
            connection.close()
        self._sockets.clear()


class Http2Clients(_Counting):
    """N HTTP/2 connections to one port, each with one request behind it."""

    def __init__(self, port: int, context: ssl.SSLContext | None) -> None:
        super().__init__(port, context)
        self._connections: list[h2.Connection] = []

    def open(self, count: int) -> None:
        for _ in range(count):
            if self.failed >= TOO_MANY:
                return
            with self._counting():
                connection = connect_http2(self._port, self._context)
                self._connections.append(connection)
                _get(connection)

    def use_again(self) -> None:
        for connection in self._connections:
            with self._counting():
                _get(connection)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections.clear()


class Streams(Http2Clients):
    """N open streams, STREAMS to each connection. The connections are made first, and are not counted."""

    def __init__(self, port: int, context: ssl.SSLContext | None, count: int) -> None:
        super().__init__(port, context)
        self._streams: list[tuple[h2.Connection, int]] = []
        super().open(-(-count // STREAMS))

    def open(self, count: int) -> None:
        for number in range(count):
            if self.failed >= TOO_MANY:
                return
            with self._counting():
                connection = self._connections[number // STREAMS]
                stream = connection.open("/echo")
                self._streams.append((connection, stream))
                connection.exchange(stream, MESSAGE)

    def use_again(self) -> None:
        for connection, stream in self._streams:
            with self._counting():
                connection.exchange(stream, MESSAGE)


def _get(connection: h2.Connection) -> None:
    body = connection.get("/")
    if body != BODY:
        raise OSError(f"answered {body[:40]!r}")


def _exchange(connection: socket.socket) -> None:
    """One request, its answer to the last byte (framing: Content-Length or chunked, by the known body)."""
    connection.sendall(REQUEST)
    answer = b""
    while True:
        got = connection.recv(4096)
        if not got:
            raise OSError("closed within an answer")
        answer += got
        head, found, body = answer.partition(b"\r\n\r\n")
        if found and (body.endswith(BODY) or body.endswith(b"0\r\n\r\n")):
            if not head.startswith(b"HTTP/1.1 200"):
                raise OSError(f"answered {head[:40]!r}")
            return


def _clients(kind: Topology, port: int, context: ssl.SSLContext | None, count: int) -> Clients:
    if kind == "h2-streams":
        return Streams(port, context, count)
    return (Http2Clients if speaks_http2(kind) else Http1Clients)(port, context)


def measure(proxy: Proxy, kind: Topology, count: int, ground: Ground) -> Idle:
    """Raises Unavailable if the proxy cannot run like this."""
    with run_proxy(proxy, kind, ground, count + WARM) as actor:
        context = None
        if HOPS[kind][0] in ("in", "h2-in"):
            protocols = ("h2",) if speaks_http2(kind) else ()
            context = client_context(proxy.identity("svc-a"), *protocols)
        errors = {}
        warm = _clients(kind, actor.port, context, WARM)
        clients = None
        try:
            warm.open(WARM)
            warm.close()
            clients = _clients(kind, actor.port, context, count)
            before = settled_pss(actor.processes)
            spent = cpu(actor.processes).seconds
            clients.open(count)
            spent = cpu(actor.processes).seconds - spent
            held = settled_pss(actor.processes)
            rest = cpu(actor.processes).seconds
            time.sleep(REST_SECONDS)
            rest = cpu(actor.processes).seconds - rest
            clients.use_again()
        finally:
            warm.close()
            if clients:
                clients.close()
        if clients.failed or warm.failed:
            errors["failed"] = clients.failed + warm.failed
        if not actor.alive():
            errors["ended"] = 1
        return Idle(
            proxy=proxy.name,
            kind=kind,
            connections=count,
            pss_before=before,
            pss_held=held,
            pss_after=settled_pss(actor.processes),
            per_connection=(held - before) / count,
            cpu_per_open=spent * 1e6 / count,
            cpu_at_rest=rest / REST_SECONDS,
            errors=errors,
        )


@dataclass(frozen=True)
class Ready:
    proxy: str
    seconds: list[float]  # from the start of the command to the first answer through the proxy
    pss: int  # bytes, at rest, set up for LOAD connections
    alone: int | None  # the same without what others share (see processes.py)


def ready(
    proxies: list[Proxy],
    count: int,
    ground: Ground,
    say: Callable[[str], None],
    broken: Callable[[str, Unavailable], None],
) -> list[Ready]:
    """Interleaved starts, on all CPUs, of those that do start: what a user waits for."""
    taking_part = [proxy for proxy in proxies if "plain" in proxy.topologies]
    seconds: dict[str, list[float]] = {proxy.name: [] for proxy in taking_part}
    memory: dict[str, tuple[int, int | None]] = {}
    for number in range(count):
        for proxy in taking_part:
            try:
                with run_proxy(proxy, "plain", ground, LOAD, pinned=False) as actor:
                    seconds[proxy.name].append(actor.ready_seconds)
                    if number == 0:
                        memory[proxy.name] = (settled_pss(actor.processes), alone(actor.processes))
            except Unavailable as reason:
                broken(proxy.name, reason)
                continue
            say(f"start {number + 1}: {proxy.name:9} ready in {seconds[proxy.name][-1] * 1000:.0f} ms")
    return [Ready(name, times, *memory[name]) for name, times in seconds.items() if name in memory]
