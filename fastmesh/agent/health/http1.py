"""A health check by HTTP/1.1: one GET on a connection of its own, judged by the status alone."""

from __future__ import annotations

from typing import Final

import httptools

from fastmesh.agent.health.words import AGENT, HEALTHY, UNHEALTHY, AnswerError, Outcome, Peer

# Of an answer, head and body. What follows is not waited for.
MOST: Final = 64 * 1024


async def ask_http1(peer: Peer, path: str) -> Outcome:
    """Ask for `path`. Raises AnswerError."""
    lines = (
        f"GET {path} HTTP/1.1",
        f"host: {peer.host}",
        f"user-agent: {AGENT}",
        "accept: */*",
        "connection: close",
        "\r\n",
    )
    peer.writer.write("\r\n".join(lines).encode())
    answer = _Answer()
    parser = httptools.HttpResponseParser(answer)
    answer.parser = parser
    size = 0
    while not answer.status:
        data = await peer.reader.read(MOST)
        if not data:
            raise AnswerError("the connection was closed before the answer")
        size += len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return of_status(101)
        except httptools.HttpParserError:
            if answer.status:  # what is wrong comes behind the head
                break
            raise AnswerError("the answer is not HTTP/1.1") from None
        if not answer.status and size > MOST:
            raise AnswerError(f"the head of the answer is longer than {MOST} bytes")
    return of_status(answer.status)


def of_status(status: int) -> Outcome:
    """The verdict on a final status code: 2xx is healthy (RFC 9110, 15.3)."""
    return Outcome(HEALTHY) if 200 <= status < 300 else Outcome(UNHEALTHY, f"answered {status}")


class _Answer:
    """Takes what the parser finds: the status of the first answer that is no interim one (RFC 9110, 15.2)."""

    parser: httptools.HttpResponseParser

    def __init__(self) -> None:
        self.status = 0

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if not self.status and status >= 200:
            self.status = status
