"""`python -m bench.hostile_http2 [--seconds N] [CASE..]`: what hostile HTTP/2 costs, the worker and others.

One worker in front of nginx. Two honest neighbours, HTTP/1.1 and HTTP/2, ask one request after the other,
first alone, then beside the attack: connections that are opened again and again as soon as they are cut, or
ones that are held open. Printed for each case: how the connections ended (the code of GOAWAY, the reason in
the metrics, after how much), the neighbours' latency without and with it, the worker's growth and its CPU
time.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click

from bench.machine import ROOT

sys.path.insert(0, str(ROOT / "tests"))
from kit import blocks, procfs
from kit.http2 import PREFACE, Code, Frame, Setting, Type, data, headers_raw, request, window_update
from kit.http2_client import dial
from kit.http2_hostile import FLOODS, GET, LARGE, POST, Attacker, Flood, bomb
from kit.nginx import Nginx
from kit.ports import free_port
from kit.proxy import Fastmesh, Metrics
from kit.wire import connect
from kit.wire import request as http1_request

Address = tuple[str, int]
BIG: Final = blocks.block(request(path="/mib"))
STREAMS: Final = 1000
SETTLE: Final = 0.5  # seconds


@dataclass
class Ends:
    """How the hostile connections went."""

    connections: int = 0
    steps: list[int] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)

    def closed(self, attacker: Attacker, steps: int, began: float) -> None:
        self.connections += 1
        self.steps.append(steps)
        self.milliseconds.append((time.monotonic() - began) * 1e3)
        code = attacker.code
        self.codes["none" if code is None else Code(code).name] += 1


Attack = Callable[[Address, threading.Event, Ends], None]


def flood(one: Flood) -> Attack:
    """One connection after the other."""

    def run(address: Address, stop: threading.Event, ends: Ends) -> None:
        while not stop.is_set():
            began = time.monotonic()
            with Attacker(address) as attacker:
                steps = attacker.flood(one.step, one.most)
                attacker.read_all()
            ends.closed(attacker, steps, began)

    return run


def bombs(address: Address, stop: threading.Event, ends: Ends) -> None:
    """They are answered; the connection goes on."""
    began, number = time.monotonic(), 0
    with Attacker(address) as attacker:
        while not stop.is_set() and not attacker.closed:
            attacker.send(bomb(2 * number + 1))
            attacker.read()
            number += 1
    ends.closed(attacker, number, began)


def held(begin: Callable[[Attacker], None], window: int = 65535, *, reads: bool = True) -> Attack:
    """One connection that is brought into a state and left there."""

    def run(address: Address, stop: threading.Event, ends: Ends) -> None:
        began = time.monotonic()
        with Attacker(address, [(Setting.INITIAL_WINDOW_SIZE, window)]) as attacker:
            begin(attacker)
            while not stop.wait(0.02) and not attacker.closed:
                if reads:
                    attacker.read()
        ends.closed(attacker, STREAMS, began)

    return run


def _streams(block: bytes, *, end: bool = True) -> Callable[[Attacker], None]:
    def begin(attacker: Attacker) -> None:
        attacker.send(window_update(0, LARGE - 65535))
        attacker.send(*(headers_raw(2 * number + 1, block, end=end) for number in range(STREAMS)))

    return begin


def _uploads(attacker: Attacker) -> None:
    for number in range(15):  # as much as the connection's window takes
        attacker.send(headers_raw(2 * number + 1, POST))
        attacker.send(*(data(2 * number + 1, bytes(16000)) for _ in range(4)))


def _slow(said: bytes) -> Attack:
    """Many connections that never finish a head."""

    def run(address: Address, stop: threading.Event, ends: Ends) -> None:
        conns = [connect(address) for _ in range(200)]
        for conn in conns:
            conn.send(said)
        stop.wait()
        ends.connections += len(conns)
        for conn in conns:
            conn.close()

    return run


def _drip(attacker: Attacker) -> None:
    """Every stream gets a window of one byte, again and again."""
    _streams(BIG)(attacker)
    for _ in range(15):
        attacker.send(*(window_update(2 * number + 1, 1) for number in range(STREAMS)))
        attacker.read()


CASES: Final[dict[str, Attack]] = {
    **{one.name: flood(one) for one in FLOODS},
    "hpack-bomb": bombs,
    "window-none": held(_streams(BIG), 0),
    "window-one": held(_drip, 1),
    "never-read": held(_streams(BIG), LARGE, reads=False),
    "streams-idle": held(_streams(POST, end=False)),
    "uploads": held(_uploads),
    "preface-slow": _slow(PREFACE[:10]),
    "head-slow": _slow(PREFACE + Frame(Type.SETTINGS).encode() + Frame(Type.HEADERS, 0, 1, GET).encode()),
}


class Neighbours:
    """Latencies of both, in milliseconds."""

    def __init__(self, address: Address) -> None:
        self.one = connect(address)
        self.two = dial(address)
        self.two.open()
        self.stream = 1

    def measure(self, seconds: float) -> list[float]:
        taken = []
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            self.one.send(http1_request(target="/small"))
            if self.one.read_response().status != 200:
                raise click.ClickException("a neighbour was not served")
            middle = time.monotonic()
            answer = self.two.ask(self.stream, request(path="/small"))
            if answer.status != 200:
                raise click.ClickException("a neighbour was not served")
            self.two.send(window_update(0, len(answer.body)))
            self.stream += 2
            taken += [(middle - began) * 1e3, (time.monotonic() - middle) * 1e3]
            time.sleep(0.002)
        return taken


def _reasons(before: Metrics, after: Metrics) -> str:
    was = {s.labels["reason"]: s.value for s in before.samples if s.name == "fastmesh_reasons_total"}
    now = {s.labels["reason"]: s.value for s in after.samples if s.name == "fastmesh_reasons_total"}
    grown = {name: int(value - was.get(name, 0)) for name, value in now.items() if value > was.get(name, 0)}
    return " ".join(f"{name}={count}" for name, count in sorted(grown.items())) or "-"


def _tail(taken: list[float]) -> str:
    cuts = statistics.quantiles(taken, n=100)
    return f"{cuts[49]:.2f}/{cuts[98]:.2f}"


def conduct(name: str, proxy: Fastmesh, address: Address, seconds: float) -> str:
    """Run one case; the row that tells of it."""
    [worker] = proxy.wait_workers(1)
    neighbours = Neighbours(address)
    alone = neighbours.measure(seconds)
    before, memory = proxy.metrics(), procfs.pss(worker)
    stop, ends = threading.Event(), Ends()
    attack = threading.Thread(target=CASES[name], args=(address, stop, ends), daemon=True)
    attack.start()
    time.sleep(SETTLE)
    cpu, wall = procfs.cpu_seconds(worker), time.monotonic()
    beside = neighbours.measure(seconds)
    cpu = (procfs.cpu_seconds(worker) - cpu) / (time.monotonic() - wall)
    peak = procfs.pss(worker) - memory
    stop.set()
    attack.join(30)
    after = proxy.metrics()
    if proxy.worker_pids() != [worker]:
        raise click.ClickException(f"{name}: the worker has died")
    codes = " ".join(f"{code}x{count}" for code, count in ends.codes.items()) or "-"
    steps = f"{statistics.median(ends.steps):.0f}" if ends.steps else "-"
    took = f"{statistics.median(ends.milliseconds):.0f}" if ends.milliseconds else "-"
    return (
        f"| {name} | {ends.connections} | {codes} | {steps} | {took} | {_reasons(before, after)} "
        f"| {_tail(alone)} | {_tail(beside)} | {peak / 1024:.0f} | {cpu:.0%} |"
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--seconds", type=click.FloatRange(0.5), default=3.0, help="Of each half of a case.")
@click.argument("cases", nargs=-1, type=click.Choice(list(CASES)))
def main(seconds: float, cases: tuple[str, ...]) -> None:
    """Attack a listener; print a Markdown row for each CASE (default: all)."""
    click.echo(
        "| attack | connections | GOAWAY | steps | ms | reasons | p50/p99 ms | under attack | KiB | CPU |"
    )
    click.echo("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        nginx = Nginx(Path(directory), {"mib": bytes(1 << 20)})
        try:
            for name in cases or CASES:
                port = free_port()
                edge = {"name": "edge", "bind": f"127.0.0.1:{port}", "protocol": "http", "to": "web"}
                services = {"web": {"endpoints": [nginx.address]}}
                proxy = Fastmesh({"listeners": [edge], "services": services}, Path(directory)).start()
                try:
                    click.echo(conduct(name, proxy, ("127.0.0.1", port), seconds))
                    proxy.stop()
                finally:
                    proxy.kill()
        finally:
            nginx.stop()


if __name__ == "__main__":
    main()
