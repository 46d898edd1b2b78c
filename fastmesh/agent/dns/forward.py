"""Asks name servers what is not of the mesh.

Every question goes out under a new random id from a socket of its own, connected to the server: the kernel
chooses its port at random and takes only what comes from that server's address and port. A datagram is the
answer if id and question are the same; others are passed over, up to `MAX_MISMATCHES`, and then the server
counts as one that does not answer: somebody is guessing. A truncated answer is asked for again by TCP.

Servers are asked in their order, twice each at most, within `TOTAL_S`: less than the five seconds after which
resolvers ask again. One that answered when those before it did not comes first for `PREFER_S`.

Nothing is kept: the name servers have caches, and so have most clients. A third one would be memory, one more
place to poison, and answers that are older than they say.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from fastmesh.agent.dns.answer import HEADER, MAX_TCP, Forward, answers, asked_as, is_truncated, rcode_of
from fastmesh.agent.dns.words import ANSWERED, ERROR, MISMATCH, TIMEOUT, TRUNCATED, Counts

TRY_S: Final = (1.0, 2.0)  # for each round through the servers
TCP_S: Final = 2.0
TOTAL_S: Final = 4.5
PREFER_S: Final = 30.0
MAX_MISMATCHES: Final = 32
MAX_SERVERS: Final = 3  # as resolv.conf(5)
RESOLV_CONF: Final = Path("/etc/resolv.conf")
LOOK_S: Final = 1.0
_MAX_FILE: Final = 64 * 1024
_PORT: Final = 53
_SO_MARK: Final = 36
_FAILURES: Final = {1, 2, 4, 5}  # FORMERR, SERVFAIL, NOTIMP, REFUSED: another server may do better


class Server(NamedTuple):
    """A name server by its IP address, which may have a zone (`fe80::1%eth0`)."""

    host: str
    port: int


class SystemServers:
    """The servers of /etc/resolv.conf, read again when it changes; `own` is never one of them."""

    def __init__(self, own: Server | None, path: Path = RESOLV_CONF) -> None:
        self._own = own
        self._path = path
        self._servers: list[Server] = []
        self._seen: object = None
        self._look_at = 0.0

    def __call__(self) -> list[Server]:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            try:
                found = self._path.stat()
                seen: object = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            except OSError as error:
                seen = error.errno
            if seen != self._seen:
                self._seen = seen
                self._servers = [one for one in read_servers(self._path) if one != self._own][:MAX_SERVERS]
        return self._servers


def read_servers(path: Path) -> list[Server]:
    """The `nameserver` lines of a resolv.conf(5)."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = file.read(_MAX_FILE).splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                found.append(Server(str(ipaddress.ip_address(words[1])), _PORT))
    return list(dict.fromkeys(found))


class Forwarder:
    """Asks `servers()`. `mark` is put on its sockets where that is allowed, so that nothing takes their
    traffic back here."""

    def __init__(
        self,
        servers: Callable[[], list[Server]],
        counts: Counts,
        mark: int = 0,
        tries: tuple[float, ...] = TRY_S,
        total: float = TOTAL_S,
    ) -> None:
        self._servers = servers
        self._counts = counts
        self._mark = mark
        self._tries = tries
        self._total = total
        self._preferred: tuple[Server, float] | None = None
        self._local: set[tuple[str, int]] = set()

    def is_own(self, source: tuple[str, int]) -> bool:
        """Whether a query from there is one of ours, that has come back."""
        return source in self._local

    async def ask(self, forward: Forward) -> bytes | None:
        """The response of the first server that answers, under an id that is not the client's; None: none
        does."""
        last: bytes | None = None
        try:
            async with asyncio.timeout(self._total):
                for patience in self._tries:
                    for server in self._order():
                        response = await self._try(forward, server, patience)
                        if response is None:
                            continue
                        if rcode_of(response) not in _FAILURES:
                            self._prefer(server)
                            return response
                        last = response
                    if last is not None:
                        break  # all have had their say
        except TimeoutError:
            pass
        # A server's own word about the error; a header alone is not worth more than ours.
        return last if last is not None and len(last) > HEADER.size else None

    def _order(self) -> list[Server]:
        servers = self._servers()
        if self._preferred is not None:
            server, until = self._preferred
            if server in servers and time.monotonic() < until:
                return [server, *(one for one in servers if one != server)]
            self._preferred = None
        return servers

    def _prefer(self, server: Server) -> None:
        if self._preferred is None and server != next(iter(self._servers()), None):
            self._preferred = server, time.monotonic() + PREFER_S

    def _failed(self, server: Server, result: str) -> None:
        self._counts.asked[result] += 1
        if self._preferred is not None and self._preferred[0] == server:
            self._preferred = None

    async def _try(self, forward: Forward, server: Server, patience: float) -> bytes | None:
        """One server once; by TCP too if its answer was cut."""
        try:
            async with asyncio.timeout(patience):
                response = await self._by_udp(forward, server)
        except TimeoutError:
            self._failed(server, TIMEOUT)
            return None
        except OSError:
            self._failed(server, ERROR)
            return None
        if is_truncated(response):
            self._counts.asked[TRUNCATED] += 1
            try:
                async with asyncio.timeout(TCP_S):
                    response = await self._by_tcp(forward, server)
            except TimeoutError:
                self._failed(server, TIMEOUT)
                return response if forward.size != MAX_TCP else None  # the client can still ask by TCP
            except (OSError, EOFError):
                self._failed(server, ERROR)
                return response if forward.size != MAX_TCP else None
        if rcode_of(response) in _FAILURES:
            self._failed(server, ERROR)
        else:
            self._counts.asked[ANSWERED] += 1
        return response

    async def _by_udp(self, forward: Forward, server: Server) -> bytes:
        loop = asyncio.get_running_loop()
        with self._socket(server, socket.SOCK_DGRAM) as sock:
            sock.connect(_address(server))
            number = secrets.randbits(16)
            with self._known(sock):
                sock.send(asked_as(forward, number))
                for _ in range(MAX_MISMATCHES):
                    response = await loop.sock_recv(sock, MAX_TCP)
                    if answers(forward, number, response):
                        return response
                    self._counts.asked[MISMATCH] += 1
        raise OSError("too many answers to something else")

    async def _by_tcp(self, forward: Forward, server: Server) -> bytes:
        loop = asyncio.get_running_loop()
        with self._socket(server, socket.SOCK_STREAM) as sock:
            await loop.sock_connect(sock, _address(server))
            number = secrets.randbits(16)
            query = asked_as(forward, number)
            with self._known(sock):
                await loop.sock_sendall(sock, struct.pack("!H", len(query)) + query)
                (length,) = struct.unpack("!H", await receive(sock, 2))
                response = await receive(sock, length)
        if not answers(forward, number, response):
            self._counts.asked[MISMATCH] += 1
            raise OSError("an answer to something else")
        return response

    @contextlib.contextmanager
    def _known(self, sock: socket.socket) -> Iterator[None]:
        """For as long as the block runs, queries from this socket's address are ours."""
        host, port = sock.getsockname()[:2]
        self._local.add((host, port))
        try:
            yield
        finally:
            self._local.discard((host, port))

    def _socket(self, server: Server, kind: socket.SocketKind) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in server.host else socket.AF_INET, kind)
        sock.setblocking(False)
        if self._mark:
            with contextlib.suppress(OSError):  # without CAP_NET_ADMIN
                sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, self._mark)
        return sock


def _address(server: Server) -> tuple[str, int] | tuple[str, int, int, int]:
    """What connect(2) takes: a zone by its number. Raises OSError when there is no such zone."""
    host, percent, zone = server.host.partition("%")
    if not percent:
        return host, server.port
    return host, server.port, 0, int(zone) if zone.isdigit() else socket.if_nametoindex(zone)


async def receive(sock: socket.socket, length: int) -> bytes:
    """So many bytes. Raises EOFError if there is none, ConnectionError if there are fewer."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < length:
        more = await loop.sock_recv(sock, length - len(data))
        if not more:
            raise ConnectionError("closed") if data else EOFError
        data += more
    return data
