"""A keep-alive HTTP/1.1 client on asyncio streams: GET only, answers with Content-Length only.

Small on purpose: it is also the example of what an application does to call through the mesh, which is
to connect to its sidecar instead of the service and to put the service's name into Host.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Client:
    """One connection at a time to `port` on loopback, opened when needed, kept while it lasts."""

    def __init__(self, port: int, host: str, timeout: float = 10.0) -> None:
        self._port = port
        self._host = host
        self._timeout = timeout
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body. Raises OSError, TimeoutError, or ValueError for an answer that is no HTTP."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._exchange(path)
        except asyncio.IncompleteReadError as error:
            self.close()
            raise ConnectionError("the connection was closed before the answer") from error
        except BaseException:
            self.close()
            raise

    async def _exchange(self, path: str) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        lines = head.split("\r\n")
        if not lines[0].startswith("http/1.1 "):
            raise ValueError(f"not an HTTP answer: {lines[0]!r}")
        fields = dict(line.split(":", 1) for line in lines[1:-2])
        body = await reader.readexactly(int(fields["content-length"]))
        if fields.get("connection", "").strip() == "close":
            self.close()
        return int(lines[0].split()[1]), body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
