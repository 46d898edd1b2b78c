"""The admin API's HTTP server: uvicorn, with bounds on what one client may hold.

uvicorn by itself waits for ever for the end of a request head and for a client to read its answer. Here
every connection has a deadline for each, a bound on the head, and there is a bound on connections; so a
stuck scraper or a port scan costs a few connections for some seconds, not the health checks.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import ssl

HEAD_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 30.0
# A TLS handshake, and its end: a client that falls silent in either holds a connection as any other does.
HANDSHAKE_TIMEOUT_S: Final = 5.0
KEEP_ALIVE_S: Final = 15
MAX_HEAD_BYTES: Final = 32 * 1024
# From this many connections on, requests are answered with 503 ...
MAX_CONNECTIONS: Final = 64
# ... and from this many on, new connections are closed unheard.
MAX_SOCKETS: Final = 256

_HEAD_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)


class _Protocol(HttpToolsProtocol):
    """One connection with deadlines: for each request head, then for its answer to be taken."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True
        if len(self.connections) > MAX_SOCKETS:
            transport.abort()
            return
        self._arm(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.transport.write(_HEAD_TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        if self._answered():
            self._arm(HEAD_TIMEOUT_S)

    def on_headers_complete(self) -> None:
        self._in_head = False
        # A pipelined request does not prolong the time that the one before it has.
        if self._answered():
            self._arm(ANSWER_TIMEOUT_S)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        # Complete means handed to the transport, which takes no next answer before this one is almost out.
        self._arm(HEAD_TIMEOUT_S if self._in_head else ANSWER_TIMEOUT_S)
        super().on_response_complete()

    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _arm(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self._expired)

    def _expired(self) -> None:
        # Between two requests uvicorn's own keep-alive timeout is at work.
        if self._in_head or not self._answered() or self.transport.get_write_buffer_size():
            self.transport.abort()


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, and asleep while nothing happens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.opened = asyncio.Event()
        self.closing = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves the given sockets; uvicorn itself would let a TLS handshake take a minute."""
        assert sockets is not None
        await self.lifespan.startup()
        config, loop = self.config, asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            state = self.lifespan.state
            return _Protocol(config=config, server_state=self.server_state, app_state=state)

        seconds = None if config.ssl is None else HANDSHAKE_TIMEOUT_S
        self.servers = [
            await loop.create_server(
                protocol,
                sock=sock,
                ssl=config.ssl,
                ssl_handshake_timeout=seconds,
                ssl_shutdown_timeout=seconds,
                backlog=config.backlog,
            )
            for sock in sockets
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        self.opened.set()
        while not self.closing.is_set():
            # The tick renews the Date field; uvicorn's own loop wakes up ten times a second for it.
            await self.on_tick(0)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.closing.wait(), 1.0)


class AdminServer:
    """Serves `app` on listening sockets, which it owns from then on. Use one per run.

    `tls`: what connections are encrypted with. From `connections` on (64), requests are answered with 503. A
    connection that is idle is closed after `keep_alive` seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        sockets: list[socket.socket],
        *,
        tls: ssl.SSLContext | None = None,
        connections: int | None = None,
        keep_alive: int = KEEP_ALIVE_S,
    ) -> None:
        self._sockets = sockets
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            loop="none",
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=128,
            limit_concurrency=connections or MAX_CONNECTIONS,
            timeout_keep_alive=keep_alive,
            timeout_graceful_shutdown=1,
        )
        if tls is not None:
            config.load()
            config.ssl = tls
        self._server = _Server(config)
        self._task: asyncio.Task[Any] | None = None

    async def start(self) -> None:
        """Returns when requests are served."""
        self._task = asyncio.create_task(self._server.serve(sockets=self._sockets))
        opened = asyncio.create_task(self._server.opened.wait())
        await asyncio.wait({self._task, opened}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            opened.cancel()
            self._task.result()

    async def stop(self) -> None:
        """Finish what is being answered, for at most a second."""
        self._server.closing.set()
        if self._task is not None:
            await self._task
