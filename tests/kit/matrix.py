"""Exchanges as data: steps of the two ends of a proxy, each in HTTP/1.1 or HTTP/2.

A scenario is a list of steps in the order in which they happen: `near` is the client, `far` the server.

    Scenario("hello",
        near.ask("POST", "/p", [("X-Case", "a")], 5),       # content-length 5; "stream": of unknown length
        near.sends(b"hello"), near.ends(),
        far.sees("POST", "/p", [("X-Case", "a")], "length 5"), far.gets(b"hello"), far.over(),
        far.answers(200, length="stream"),
        near.sees(200, framing="stream"),                    # before a byte of the body was sent
        ...

`sees` are all fields in their order, without those that a proxy adds or that frame the message; `gets` is
so much of the body and no more than was sent by then; `over` is the end, with nothing left, and the trailers.
Nothing waits for the end of another step, except that what is long is sent while the next steps run.

`kit.matrix_http1` and `kit.matrix_http2` are the ends, `kit.matrix_run` brings them together.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kit.limits import DEADLINE, wait_steady
from kit.upstream import ServerConn, Upstream
from kit.wire import Address

Fields = Sequence[tuple[str, str]]
Framing = int | str | None  # a length, "stream", or "close": until the connection ends; None: no body

# Fields that a proxy adds, and those that say how a message is framed.
ADDED = frozenset(
    {
        "connection",
        "content-length",
        "host",
        "transfer-encoding",
        "via",
        "x-forwarded-client-cert",
        "x-forwarded-for",
        "x-forwarded-proto",
    }
)
HOPS = frozenset({"forwarded", "via", "x-forwarded-for", "x-forwarded-proto"})
LONG = 32768  # what is longer is sent while other steps run


@dataclass
class Said:
    """A head: its fields, and "none", "stream", "close" or "length N"."""

    fields: list[tuple[str, str]]
    framing: str


class By:
    """A value that depends on who speaks what. The first case of which all words hold is taken: `edge`,
    `mesh`; `near1`, `near2`, `far1`, `far2` for the HTTP of either end."""

    def __init__(self, otherwise: Any, **cases: Any) -> None:
        self.otherwise = otherwise
        self.cases = cases

    def pick(self, words: set[str]) -> Any:
        for name, value in self.cases.items():
            if set(name.split("_")) <= words:
                return value
        return self.otherwise


@dataclass(frozen=True)
class Step:
    """One end does or observes something."""

    end: str
    verb: str
    args: tuple[Any, ...]
    more: dict[str, Any]
    when: str = ""  # words, as in By: left out where they do not hold

    def __str__(self) -> str:
        values = [*map(_short, self.args), *(f"{key}={_short(value)}" for key, value in self.more.items())]
        return f"{self.end}.{self.verb}({', '.join(values)})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else text[:90] + "..."


class _Steps:
    def __init__(self, end: str, when: str = "") -> None:
        self._end = end
        self._when = when

    def __getattr__(self, verb: str) -> Callable[..., Step]:
        return lambda *args, **more: Step(self._end, verb, args, more, self._when)

    def on(self, when: str) -> _Steps:
        """Steps that are taken only where these words hold."""
        return _Steps(self._end, when)


near, far = _Steps("near"), _Steps("far")


@dataclass(frozen=True)
class Scenario:
    """Steps, and what is left of the connections: whether either end's serves another exchange."""

    name: str
    steps: tuple[Step, ...]
    near_keeps: Any = True
    far_keeps: Any = True
    warm: bool = False  # the connections have served before
    pairs: str = ""  # words, as in By: for these pairs only
    ways: tuple[str, ...] = ("edge", "mesh")


def scenario(name: str, *steps: Step, **settings: Any) -> Scenario:
    return Scenario(name, steps, **settings)


class Arrivals:
    """The upstream of one run: it hands its connections over, and keeps them until its end."""

    def __init__(self, address: Address, service: str) -> None:
        self.service = service
        self._fresh: queue.SimpleQueue[ServerConn] = queue.SimpleQueue()
        self._over = threading.Event()
        self._server = Upstream(address, self._script)

    def _script(self, conn: ServerConn) -> None:
        self._fresh.put(conn)
        self._over.wait()

    def next(self) -> ServerConn:
        """The next new connection."""
        try:
            return self._fresh.get(timeout=DEADLINE)
        except queue.Empty:
            raise AssertionError("no connection came") from None

    def unexpected(self) -> bool:
        """Has a connection come that nobody has asked for?"""
        return not self._fresh.empty()

    def close(self) -> None:
        self._over.set()
        self._server.close()


@dataclass
class End:
    """One end of an exchange, whatever it speaks."""

    moved: int = 0  # bytes of bodies that the kernel, or the peer's windows, have taken
    _sender: threading.Thread | None = None
    _failed: list[BaseException] = field(default_factory=list)

    def in_pieces(self, send: Callable[[bytes], None], parts: Iterable[bytes]) -> None:
        """Send the parts, each by itself; what is long while other steps run."""
        self.settle()
        pieces = [part[at : at + LONG] for part in parts for at in range(0, len(part), LONG)]

        def run() -> None:
            try:
                for piece in pieces:
                    send(piece)
                    self.moved += len(piece)
            except BaseException as error:
                self._failed.append(error)

        if sum(map(len, pieces)) > LONG:
            self._sender = threading.Thread(target=run, daemon=True)
            self._sender.start()
        else:
            run()
            self._raise()

    def settle(self) -> None:
        """Until what was to be sent has been taken."""
        if self._sender is not None:
            self._sender.join(2 * DEADLINE)
            assert not self._sender.is_alive(), f"the peer took only {self.moved} bytes"
            self._sender = None
        self._raise()

    def _raise(self) -> None:
        while self._failed:
            raise self._failed.pop()

    def stalls(self, most: int) -> None:
        """Nobody reads at the other end: what was to be sent stops, before `most` bytes."""
        moved = wait_steady(lambda: self.moved, "what was sent to nobody")
        assert self._sender is not None and self._sender.is_alive(), "all of it was taken"
        assert moved < most, f"{moved} bytes were taken for a peer that does not read"
