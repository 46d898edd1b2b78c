"""What a connection with one request costs: client -> mutual TLS 1.3 -> proxy -> backend, full and resumed.

One client of this process that connects again and again, one connection after the other, each with one
request and `Connection: close`. Resumed: it offers the newest session that the proxy has given it. Counted is
the CPU time of the proxy's processes: accept, handshake, request, end. The unit is HAProxy in the same
round; the floor has no TLS.
"""

from __future__ import annotations

import socket
import ssl
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from bench.generators import Failed
from bench.load import Timing, children
from bench.machine import ticks
from bench.processes import cpu
from bench.proxies.nginx import BODY
from bench.stage import HOST, Actor, client_context

Kind = Literal["full", "resumed"]
KINDS: Final[tuple[Kind, ...]] = ("full", "resumed")
UNIT: Final = "haproxy"
REQUEST: Final = f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()


@dataclass(frozen=True)
class Run:
    """One measured run. The shares are those of bench.load.Run."""

    round: int
    connections: int
    cpu_per_connection: float  # microseconds
    others_share: float
    stolen_share: float


@dataclass
class Handshakes:
    """All the runs of one proxy, with full or with resumed handshakes."""

    proxy: str
    kind: Kind
    runs: list[Run] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)  # CPU by the unit's of the same round

    @property
    def valid(self) -> bool:
        return bool(self.runs) and not self.failures

    @property
    def cost(self) -> float:
        """Microseconds a connection, the median."""
        return statistics.median(run.cpu_per_connection for run in self.runs)

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None


def compare(all_: list[Handshakes]) -> None:
    """Fill in the ratios, each within its round."""
    for one in all_:
        unit = next((u for u in all_ if (u.proxy, u.kind) == (UNIT, one.kind) and u.valid), None)
        costs = {run.round: run.cpu_per_connection for run in unit.runs} if unit else {}
        one.ratios = [run.cpu_per_connection / costs[run.round] for run in one.runs if run.round in costs]


def rounds(
    actors: list[Actor], timing: Timing, say: Callable[[str], None]
) -> Iterator[tuple[str, Kind, Run | str]]:
    """A full, A resumed, B full, ..., again in each round: yields (proxy, kind, run or why there is none)."""
    for number in range(timing.rounds):
        for actor in actors:
            for kind in KINDS:
                try:
                    run = _measure(actor, kind, number, timing)
                except (Failed, OSError) as failure:
                    say(f"handshake {kind} round {number + 1}: {actor.name}: {failure}")
                    yield actor.name, kind, str(failure)
                    continue
                say(
                    f"handshake {kind:7} round {number + 1}: {actor.name:9} "
                    f"{run.cpu_per_connection:8.1f} µs/connection"
                )
                yield actor.name, kind, run


class _Client:
    def __init__(self, actor: Actor, kind: Kind) -> None:
        identity = actor.proxy.identity("svc-a")
        self._context = client_context(identity)
        self._port = actor.port
        self._resumes = kind == "resumed"
        self._session = self._connect(None) if self._resumes else None

    def _connect(self, session: ssl.SSLSession | None) -> ssl.SSLSession | None:
        """One connection with one request; the session that came with it. Raises Failed, OSError."""
        plain = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        # Else the request waits for the acknowledgement of Finished: 40 ms, if no ticket brings it along.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with plain, self._context.wrap_socket(plain, session=session) as sock:
            if sock.session_reused != (session is not None):
                raise Failed("sessions are not resumed as asked")
            sock.sendall(REQUEST)
            answer = b""
            while part := sock.recv(65536):
                answer += part
            if not answer.startswith(b"HTTP/1.1 200") or BODY not in answer:
                raise Failed(f"answered {answer[:40]!r}")
            return sock.session

    def run(self, seconds: float) -> int:
        """Connections made in that time."""
        end = time.monotonic() + seconds
        count = 0
        while time.monotonic() < end:
            made = self._connect(self._session)
            if self._resumes:
                self._session = made
            count += 1
        return count


def _measure(actor: Actor, kind: Kind, number: int, timing: Timing) -> Run:
    """Warm up, discard, measure."""
    ground = actor.ground
    if not actor.alive():
        raise Failed(f"has ended: {actor.words()}")
    client = _Client(actor, kind)
    client.run(timing.warm_up)
    everybody = [*actor.processes, ground.backend]
    wall, machine = time.monotonic(), ticks(ground.cpus.all)
    bench = cpu(everybody).seconds + children()
    before = cpu(actor.processes)
    count = client.run(timing.seconds)
    after = cpu(actor.processes)
    bench = cpu(everybody).seconds + children() - bench
    wall, machine_after = time.monotonic() - wall, ticks(ground.cpus.all)
    if gone := len(before.members - after.members):
        raise Failed(f"{gone} of its processes ended")
    return Run(
        round=number,
        connections=count,
        cpu_per_connection=(after.seconds - before.seconds) * 1e6 / count,
        others_share=max(0.0, machine_after.busy - machine.busy - bench) / wall,
        stolen_share=(machine_after.stolen - machine.stolen) / wall,
    )
