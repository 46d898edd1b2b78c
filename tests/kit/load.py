"""A closed-loop HTTP load generator that can say of every failure what happened on which connection.

wrk counts errors; the tests must know whether a failed request was in flight on a connection of the
worker that was killed. Each connection is one asyncio protocol; a failure is kept with its client port.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field

from kit.limits import DEADLINE


@dataclass
class Failure:
    port: int  # our local port, 0 if there was no connection yet
    what: str  # "refused", "connect: …", "reset", "closed", "truncated", "status 502: …"
    at: float


@dataclass
class Result:
    requests: int = 0
    connects: int = 0
    failures: list[Failure] = field(default_factory=list)
    closed_idle: int = 0  # closed between two requests: no request failed


class _Connection(asyncio.Protocol):
    def __init__(self, load: Load) -> None:
        self.load = load
        self.transport: asyncio.Transport | None = None
        self.port = 0
        self.got = bytearray()
        self.need = -1
        self.in_flight = False
        self.served = 0
        self.done = False  # this connection has served, another takes over

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.port = transport.get_extra_info("sockname")[1]
        self.load.result.connects += 1
        self.load.live.add(self)
        self.fire()

    def fire(self) -> None:
        assert self.transport is not None
        if self.load.stopping:
            self.transport.close()
            return
        self.got.clear()
        self.need = -1
        self.in_flight = True
        self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        self.got += data
        if self.need < 0:
            end = self.got.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.got[:end]).lower()
            at = head.find(b"content-length:")
            self.need = end + 4 + (int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0)
        if len(self.got) < self.need:
            return
        self.in_flight = False
        status = self.got[9:12]
        self.load.result.requests += 1
        self.served += 1
        if status != b"200":
            self.load.fail(self.port, f"status {status.decode()}: {bytes(self.got[:600])!r}")
        head = self.got[: self.got.find(b"\r\n\r\n")].lower()
        spent = bool(self.load.per_connection) and self.served >= self.load.per_connection
        self.done = spent or b"connection: close" in head
        if self.done:
            assert self.transport is not None
            self.transport.close()
        else:
            self.fire()

    def connection_lost(self, error: Exception | None) -> None:
        self.load.live.discard(self)
        if self.in_flight and not self.load.aborting:
            how = "truncated" if self.got else "reset" if error else "closed"
            self.load.fail(self.port, how)
        elif not self.load.stopping and not self.done:
            self.load.result.closed_idle += 1
        self.load.lost()


class Load:
    """`connections` closed loops against (host, port) in a thread of its own, from `with` to `with`."""

    def __init__(
        self,
        address: tuple[str, int],
        connections: int,
        request: bytes = b"GET / HTTP/1.1\r\nHost: load\r\n\r\n",
        per_connection: int = 0,
    ) -> None:
        self.address = address
        self.connections = connections
        self.request = request
        self.per_connection = per_connection  # close and connect anew after so many requests; 0: never
        self.result = Result()
        self.live: set[_Connection] = set()
        self.stopping = False
        self.aborting = False
        self._running = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        for _ in range(self.connections):
            self._loop.call_soon_threadsafe(self._open)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _open(self) -> None:
        self._running += 1
        self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await self._loop.create_connection(lambda: _Connection(self), *self.address)
        except ConnectionRefusedError:
            self.fail(0, "refused")
            self.lost()
        except OSError as error:
            self.fail(0, f"connect: {error}")
            self.lost()

    def fail(self, port: int, what: str) -> None:
        self.result.failures.append(Failure(port, what, time.monotonic()))

    def lost(self) -> None:
        self._running -= 1
        if not self.stopping:
            self._open()

    def ports(self) -> set[int]:
        """Client ports of the connections that are open now."""
        return {connection.port for connection in list(self.live)}

    def stop(self) -> Result:
        """Let every request in flight finish, close, and return the result."""
        if not self._thread.is_alive():
            return self.result
        self._loop.call_soon_threadsafe(setattr, self, "stopping", True)
        end = time.monotonic() + DEADLINE
        while (self._running or not self.stopping) and time.monotonic() < end:
            time.sleep(0.005)
        stuck = len(self.live)
        self.aborting = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        for connection in list(self.live):
            if connection.transport is not None:
                connection.transport.abort()
        self._loop.close()
        assert not stuck, f"{stuck} requests never got an answer"
        return self.result
