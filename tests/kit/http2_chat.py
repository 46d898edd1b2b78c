"""Long HTTP/2 streams in lock step: each step is a message there and the same bytes back.

`chat` is the script of an upstream (`kit.http2_server.h2`), `Chat` a client with one such stream.
"""

from __future__ import annotations

import contextlib

from kit.http2 import data, headers, request
from kit.http2_client import Client, dial
from kit.http2_server import H2Conn
from kit.wire import Address, Closed

GRPC = [("content-type", "application/grpc"), ("te", "trailers")]


def chat(conn: H2Conn) -> None:
    """Answers every request at once with a head, then each part of its body with the same bytes."""
    begun: set[int] = set()
    ended: set[int] = set()
    with contextlib.suppress(OSError, Closed):
        while True:
            for seen in list(conn.requests.values()):
                if seen.reset is not None or seen.stream in ended:
                    continue
                if seen.stream not in begun:
                    begun.add(seen.stream)
                    conn.head(seen, 200, [("content-type", seen.get("content-type") or "text/plain")])
                if seen.body:
                    part = bytes(seen.body)
                    seen.body.clear()
                    conn.data(seen, part)
                if seen.ended and not seen.body and seen.reset is None:
                    ended.add(seen.stream)
                    conn.trailers(seen, [("grpc-status", "0")])
            if not conn.pump():
                return


class Chat:
    """A connection with one stream on it that goes on until `finish`."""

    def __init__(self, address: Address, authority: str = "svc-b", *, grpc: bool = True) -> None:
        self.client: Client = dial(address)
        self.client.generous = True
        self.port: int = self.client.conn.sock.getsockname()[1]
        self.client.open()
        fields = request("POST", "/chat", GRPC if grpc else [], authority=authority)
        self.answer = self.client.answer(1)
        self.client.send(headers(1, fields))
        self.said = 0

    def step(self) -> None:
        """A message and its echo."""
        message = b"%08d" % self.said + b"." * 92
        self.said += 1
        self.client.send(data(1, message))
        wanted = 100 * self.said
        self.client.until(lambda: len(self.answer.body) >= wanted or self.answer.over, "an echo")
        assert self.alive, f"cut: {self.answer}, {self.client.goaways}"
        assert bytes(self.answer.body[-100:]) == message

    @property
    def alive(self) -> bool:
        return not self.answer.over and not self.client.closed

    def finish(self) -> None:
        """End it as it should end."""
        self.client.send(data(1, end=True))
        self.client.until_over(1)
        assert (self.answer.reset, self.answer.status) == (None, 200)
        assert dict(self.answer.trailers or ())["grpc-status"] == "0"
        assert len(self.answer.body) == 100 * self.said

    def close(self) -> None:
        self.client.conn.close()
