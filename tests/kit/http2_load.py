"""A closed loop of HTTP/2 requests on many connections that can say of every failure where it happened.

As `kit.load`, with a thread for each connection and some streams at a time on it. A request that the server
says it has not looked at (RFC 9113 section 8.7) is none that failed: it is asked again. So a failure is an
answer that is not 200, a reset, or a connection that ends before an answer that was promised.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from kit.http2 import Code, Fields, headers, request
from kit.http2_client import Client, dial
from kit.limits import DEADLINE
from kit.load import Failure
from kit.wire import Address


@dataclass
class Result:
    requests: int = 0
    refused: int = 0  # asked again
    connects: int = 0
    goaways: int = 0
    failures: list[Failure] = field(default_factory=list)


class H2Load:
    """`connections` times `streams` loops against `address` from `with` to `with`.

    `make(n)` is the header list of the n-th request.
    """

    def __init__(
        self,
        address: Address,
        connections: int,
        streams: int,
        make: Callable[[int], Fields] = lambda number: request(),
    ) -> None:
        self.address = address
        self.streams = streams
        self.make = make
        self.result = Result()
        self.stopping = False
        self._asked = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(connections)]

    def __enter__(self) -> H2Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> Result:
        """Let every request in flight finish, close, and return the result."""
        self.stopping = True
        for thread in self._threads:
            thread.join(2 * DEADLINE)
        assert not any(thread.is_alive() for thread in self._threads), "requests never got an answer"
        return self.result

    def fail(self, port: int, what: str) -> None:
        with self._lock:
            self.result.failures.append(Failure(port, what, 0))

    def _run(self) -> None:
        while not self.stopping:
            try:
                client = dial(self.address)
            except OSError as error:
                self.fail(0, f"connect: {error}")
                threading.Event().wait(0.05)
                continue
            with client:
                self._count(connects=1)
                self._serve(client)

    def _serve(self, client: Client) -> None:
        """The life of one connection."""
        port = client.conn.sock.getsockname()[1]
        waiting: set[int] = set()
        following = 1
        client.generous = True
        client.open()
        try:
            while True:
                while len(waiting) < self.streams and not self.stopping and not client.goaways:
                    with self._lock:
                        self._asked += 1
                        number = self._asked
                    client.send(headers(following, self.make(number), end=True))
                    client.answer(following)
                    waiting.add(following)
                    following += 2
                if client.goaways:
                    last = min(goaway[0] for goaway in client.goaways)
                    refused = {stream for stream in waiting if stream > last}
                    waiting -= refused
                    self._count(refused=len(refused))
                if not waiting:
                    break
                if client.next() is None:
                    for stream in waiting:
                        self.fail(port, f"closed before the answer to {stream}: {client.goaways}")
                    break
                client.frames.clear()
                for stream in [one for one in waiting if client.answers[one].over]:
                    waiting.discard(stream)
                    self._over(client, port, stream)
        except (OSError, AssertionError) as error:
            self.fail(port, f"{type(error).__name__}: {error}")
        self._count(goaways=len(client.goaways))

    def _count(self, requests: int = 0, refused: int = 0, goaways: int = 0, connects: int = 0) -> None:
        with self._lock:
            self.result.requests += requests
            self.result.refused += refused
            self.result.goaways += goaways
            self.result.connects += connects

    def _over(self, client: Client, port: int, stream: int) -> None:
        answer = client.answers.pop(stream)
        if answer.reset == Code.REFUSED_STREAM:
            self._count(refused=1)
        elif answer.reset is not None or answer.status != 200:
            said = answer.get("x-fastmesh-reason") if answer.heads else None
            self.fail(port, f"stream {stream}: status {answer.status} ({said}), reset {answer.reset}")
        else:
            self._count(requests=1)
