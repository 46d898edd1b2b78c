"""How the resolver is asked: UDP and TCP at one address of this host.

Bounds: `MAX_IN_FLIGHT` queries wait for name servers, and one more gets SERVFAIL at once; `MAX_CONNECTIONS`
are open by TCP, with `MAX_PIPELINED` queries each, `IDLE_S` for the next one and `WRITE_S` to take an answer.
Of a flood of datagrams the loop takes `BATCH` a turn, and what else the agent does comes in between; the
kernel drops the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import socket
import struct
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from fastmesh.agent.dns.answer import MAX_TCP, MAX_UDP, Forward, Reply, decide, failure, passed_on
from fastmesh.agent.dns.forward import Forwarder, Server, receive
from fastmesh.agent.dns.names import Names
from fastmesh.agent.dns.words import BUSY, FAILED, FORWARDED, LOOP, MALFORMED, TCP, UDP, Counts

MAX_IN_FLIGHT: Final = 256
MAX_CONNECTIONS: Final = 64
MAX_PIPELINED: Final = 16
IDLE_S: Final = 10.0
WRITE_S: Final = 5.0
PAUSE_S: Final = 1.0
BATCH: Final = 8
# Nobody's query is longer: by UDP it is cut, and then it is none, by TCP it ends the connection.
_MAX_QUERY: Final = 4096
_BACKLOG: Final = 128

Send = Callable[[bytes], Coroutine[Any, Any, None]]


class DnsServer:
    """Answers at `listen`. `names` and `forwarder` may be replaced while it runs: the next query meets the
    new ones. `say` takes lines for the operator. Sockets in `passed` are copied, and only kinds that are not
    among them bound."""

    def __init__(
        self,
        listen: Server,
        names: Names,
        forwarder: Forwarder,
        counts: Counts,
        say: Callable[[str], None],
        *,
        passed: Sequence[socket.socket] = (),
    ) -> None:
        self.listen = listen
        self.names = names
        self.forwarder = forwarder
        self._counts = counts
        self._say = say
        self._passed = passed
        self._looped = False
        self._udp: socket.socket | None = None
        self._tcp: socket.socket | None = None
        self._connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Bind and answer. Raises OSError, whose text is for the operator, with nothing left open."""
        with contextlib.ExitStack() as undo:
            self._udp = undo.enter_context(self._socket(socket.SOCK_DGRAM))
            self._tcp = undo.enter_context(self._socket(socket.SOCK_STREAM))
            undo.pop_all()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._udp, self._on_datagrams, self._udp)
        loop.add_reader(self._tcp, self._on_connections, self._tcp)

    def _socket(self, kind: socket.SocketKind) -> socket.socket:
        for one in self._passed:
            if one.type == kind:
                one.setblocking(False)
                return one.dup()
        return _bind(self.listen, kind)

    async def stop(self) -> None:
        """Close everything. Clients whose queries are under way ask again."""
        for sock in (self._udp, self._tcp):
            if sock is not None:
                asyncio.get_running_loop().remove_reader(sock)
                sock.close()
        self._udp = self._tcp = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # UDP

    def _on_datagrams(self, sock: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                wire, source = sock.recvfrom(_MAX_QUERY)
            except OSError:
                return
            if self.forwarder.is_own(source[:2]):
                self._loop()
                continue
            found = decide(wire, self.names, MAX_UDP)
            if isinstance(found, Forward) and self._busy():
                found = Reply(failure(found), BUSY)
            if isinstance(found, Forward):
                self._waits(self._spawn(self._forward(found, UDP, functools.partial(_send_to, sock, source))))
                continue
            self._counts.count(UDP, found.outcome)
            if found.wire is not None:
                _answer_to(sock, source, found.wire)

    def _loop(self) -> None:
        self._counts.count(UDP, LOOP)
        if not self._looped:
            self._looped = True
            what = "what DNS asks name servers comes back to it, and is dropped"
            self._say(f"warning: {what}: leave the sidecar's own traffic out where port 53 is redirected")

    # TCP (RFC 7766)

    def _on_connections(self, sock: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                connection, source = sock.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    # It would be told again at once: until others have closed something.
                    loop = asyncio.get_running_loop()
                    loop.remove_reader(sock)
                    loop.call_later(PAUSE_S, self._listen_again, sock)
                return
            connection.setblocking(False)
            if self._connections >= MAX_CONNECTIONS or self.forwarder.is_own(source[:2]):
                connection.close()
                continue
            # Answers that nobody reads are no memory of the kernel's: its own bound is megabytes.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_TCP)
            self._connections += 1
            self._spawn(self._converse(connection))

    def _listen_again(self, sock: socket.socket) -> None:
        if self._tcp is sock:
            asyncio.get_running_loop().add_reader(sock, self._on_connections, sock)

    async def _converse(self, connection: socket.socket) -> None:
        """One client's queries, each answered when its answer is there."""
        places = asyncio.Semaphore(MAX_PIPELINED)
        turn = asyncio.Lock()
        loop = asyncio.get_running_loop()

        async def send(answer: bytes) -> None:
            async with turn, asyncio.timeout(WRITE_S):
                await loop.sock_sendall(connection, struct.pack("!H", len(answer)) + answer)

        try:
            with connection:
                async with asyncio.TaskGroup() as group:
                    while True:
                        try:
                            async with asyncio.timeout(IDLE_S):
                                (length,) = struct.unpack("!H", await receive(connection, 2))
                                if length > _MAX_QUERY:
                                    self._counts.count(TCP, MALFORMED)
                                    break
                                wire = await receive(connection, length)
                        except EOFError:
                            break  # what is under way may still be read
                        found = decide(wire, self.names, MAX_TCP)
                        if isinstance(found, Forward) and self._busy():
                            found = Reply(failure(found), BUSY)
                        if isinstance(found, Forward):
                            await places.acquire()
                            task = group.create_task(self._forward(found, TCP, send))
                            task.add_done_callback(lambda _: places.release())
                            self._waits(task)
                            continue
                        self._counts.count(TCP, found.outcome)
                        if found.wire is None:
                            break
                        await send(found.wire)
        except* (OSError, TimeoutError):
            pass  # the client has gone, or does nothing
        finally:
            self._connections -= 1

    # both

    def _busy(self) -> bool:
        return self._counts.in_flight >= MAX_IN_FLIGHT

    def _waits(self, task: asyncio.Task[None]) -> None:
        """Count a query from now on, not from when its task first runs: others may come before that."""
        self._counts.in_flight += 1
        task.add_done_callback(self._has_waited)

    def _has_waited(self, task: asyncio.Task[None]) -> None:
        self._counts.in_flight -= 1

    async def _forward(self, forward: Forward, transport: str, send: Send) -> None:
        response = await self.forwarder.ask(forward)
        self._counts.count(transport, FAILED if response is None else FORWARDED)
        await send(failure(forward) if response is None else passed_on(forward, response))


def _answer_to(sock: socket.socket, source: Any, answer: bytes) -> None:
    # To a client that has gone, or whose buffer is full: it asks again, or does not care.
    with contextlib.suppress(OSError):
        sock.sendto(answer, source)


async def _send_to(sock: socket.socket, source: Any, answer: bytes) -> None:
    _answer_to(sock, source, answer)


def _bind(listen: Server, kind: socket.SocketKind) -> socket.socket:
    """Raises OSError with a text for the operator."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        sock = socket.socket(family, kind)
    except OSError as error:
        raise OSError(_explain(listen, kind, error)) from error
    try:
        if kind == socket.SOCK_STREAM:
            # Not for UDP: there it would let two sockets have one address.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((listen.host, listen.port))
        if kind == socket.SOCK_STREAM:
            sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise OSError(_explain(listen, kind, error)) from error
    return sock


def _explain(listen: Server, kind: socket.SocketKind, error: OSError) -> str:
    host = f"[{listen.host}]" if ":" in listen.host else listen.host
    option, name = ("-lunp", "UDP") if kind == socket.SOCK_DGRAM else ("-ltnp", "TCP")
    reasons = {
        errno.EADDRINUSE: f"another socket has this address (ss {option} 'sport = :{listen.port}' names it); "
        "stop it or change `dns.listen`",
        errno.EADDRNOTAVAIL: "this host has no such address (ip addr lists them)",
        errno.EAFNOSUPPORT: "this host does not have this address family",
        errno.EACCES: "not permitted: ports below 1024 need root, CAP_NET_BIND_SERVICE, or a lower "
        "net.ipv4.ip_unprivileged_port_start",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return f"cannot listen on {host}:{listen.port} by {name}: {reason}"
