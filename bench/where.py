"""Where a request's cost goes: system calls by name, CPU time by function group. `python -m bench.where`.

The mesh of `python -m bench`, both sidecars with one worker, with one of two tools on each worker:

calls    `strace -c` counts system calls. It makes a sidecar many times slower than load and backend, so it is
         saturated: whatever came meanwhile is taken in one turn, as on a busy proxy with so many connections.
shares   `perf record` samples the worker's CPU clock. A function that the compiler has put into another
         counts for that.

Debian: strace, linux-perf, nghttp2-client (h2load, which speaks HTTP/1.1 here), nginx-light.
"""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import click

from bench import machine, pki
from bench.processes import tree
from bench.proxies import Hop, Role
from bench.proxies.fastmesh import Fastmesh
from bench.stage import HOST, fetch, run_backend

SIDES: Final[dict[Role, str]] = {"out": "sidecar A (out)", "in": "sidecar B (in)"}
DEADLINE: Final = 300.0
# A function of the core belongs to the first of these that its module's name begins with.
GROUPS: Final = {
    "io.h2": "streams and connections of HTTP/2 (io/h2_*)",
    "io.h1": "HTTP/1.1 towards applications (io/h1_*)",
    "io.exchange": "exchange, route, rules, balance, account",
    "traffic": "exchange, route, rules, balance, account",
    "io.account": "exchange, route, rules, balance, account",
    "io.pool": "exchange, route, rules, balance, account",
    "io.dialling": "exchange, route, rules, balance, account",
    "io.kept": "exchange, route, rules, balance, account",
    "io.forwarded": "exchange, route, rules, balance, account",
    "io": "event loop, sockets, buffers, timers",
    "base": "event loop, sockets, buffers, timers",
    "sys": "event loop, sockets, buffers, timers",
    "wire.http2": "HTTP/2's codec around libnghttp2 (wire/http2*)",
    "wire.http1": "HTTP/1's codec (wire/http1*)",
    "wire.tls": "TLS records, without the cipher (wire/tls*)",
    "wire": "HTTP/1's codec (wire/http1*)",
}
LIBRARIES: Final = {
    "kernel": "kernel: sockets, loopback, epoll",
    "libnghttp2": "libnghttp2: frames, HPACK, stream states",
    "libcrypto": "AES-GCM (libcrypto)",
    "libc.": "memcpy, memset, system call stubs (libc)",
}
Tool = Literal["shares", "calls"]
Counts = dict[Role, dict[str, float]]  # by sidecar and name
WARM_UP: Final = 20  # requests of each connection before what is measured


class Missing(Exception):
    """What it takes to measure is not there."""


def wait_for(found: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not found():
        if time.monotonic() > end:
            raise Missing(f"not in {DEADLINE:.0f} s: {what}")
        time.sleep(0.05)


# ---- the mesh


class Sidecar:
    """A `fastmesh serve` with one worker."""

    def __init__(self, role: Role, argv: list[str], place: Path) -> None:
        self.role: Final = role
        self.place: Final = place
        self._log = place / "log"
        with self._log.open("wb") as log:
            self.process: Final = subprocess.Popen(argv, cwd=place, stdout=log, stderr=log)

    def worker(self) -> int:
        """Its process, by its title."""
        for stat in tree(self.process.pid)[1:]:
            if b": worker" in Path(f"/proc/{stat.pid}/cmdline").read_bytes():
                return stat.pid
        raise Missing(f"no worker: {self._log.read_text()}")

    def stop(self) -> None:
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def h2load(port: int, connections: int, requests: int) -> None:
    command = ["h2load", "--h1", "-n", str(requests), "-c", str(connections)]
    command += [f"--connect-to=127.0.0.1:{port}", f"http://{HOST}/"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if f"{requests} succeeded" not in done.stdout:
        raise Missing(f"not all requests went well: {done.stdout}{done.stderr}")


def measure(tool: Tool, between: str, connections: int, requests: int, place: Path) -> Counts:
    """What `tool` counted during so many requests."""
    proxy = Fastmesh(pki.make(place / "pki"), "fastmesh", http1=between == "http1")
    cpus = machine.choose_cpus()
    sidecars: list[Sidecar] = []
    with run_backend(place, cpus, 2 * connections + 64) as ground:
        port = ground.port
        try:
            for role in ("in", "out"):
                own = place / role
                own.mkdir()
                listen = machine.free_port()
                argv = proxy.argv(Hop(role, listen, port, connections), own)
                sidecars.append(Sidecar(role, argv, own))
                port = listen
            wait_for(lambda: answers(port), "an answer")
            h2load(port, connections, WARM_UP * connections)
            count = perf if tool == "shares" else strace
            return count(sidecars, lambda: h2load(port, connections, requests))
        finally:
            for sidecar in sidecars:
                sidecar.stop()


def answers(port: int) -> bool:
    try:
        fetch(port, "/")
    except (OSError, http.client.HTTPException):
        return False
    return True


# ---- the tools


def strace(sidecars: list[Sidecar], load: Callable[[], None]) -> Counts:
    tracers = [
        subprocess.Popen(
            ["strace", "-c", "-f", "-o", str(sidecar.place / "calls"), "-p", str(sidecar.worker())],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for sidecar in sidecars
    ]
    for sidecar in sidecars:
        status = Path(f"/proc/{sidecar.worker()}/status")
        wait_for(lambda status=status: "TracerPid:\t0\n" not in status.read_text(), "strace")  # type: ignore[misc]
    load()
    result: Counts = {}
    for sidecar, tracer in zip(sidecars, tracers, strict=True):
        tracer.send_signal(signal.SIGINT)
        tracer.wait(DEADLINE)
        lines = (sidecar.place / "calls").read_text().splitlines()
        rows = [line.split() for line in lines if re.match(r"\s*\d+[.,]\d+ ", line)]
        result[sidecar.role] = {row[-1]: float(row[3]) for row in rows if row[-1] != "total"}
    return result


def perf(sidecars: list[Sidecar], load: Callable[[], None]) -> Counts:
    """Samples of each worker by group, in per cent of its own."""
    recorders = []
    for sidecar in sidecars:
        options = [
            "-e",
            "cpu-clock",
            "-F",
            "4000",
            "-o",
            str(sidecar.place / "perf"),
            "-p",
            str(sidecar.worker()),
        ]
        recorders.append(subprocess.Popen(["perf", "record", *options], stderr=subprocess.DEVNULL))
    for sidecar in sidecars:
        wait_for((sidecar.place / "perf").exists, "perf")
    load()
    result: Counts = {}
    for sidecar, recorder in zip(sidecars, recorders, strict=True):
        recorder.send_signal(signal.SIGINT)
        recorder.wait(DEADLINE)
        options = ["-F", "sample,dso,sym", "-t", ";", "-i", str(sidecar.place / "perf")]
        report = subprocess.run(
            ["perf", "report", "--stdio", *options], capture_output=True, text=True, check=True
        )
        count: Counter[str] = Counter()
        for line in report.stdout.splitlines():
            samples, _, rest = line.partition(";")
            if samples.strip().isdigit():
                obj, _, symbol = rest.partition(";")
                count[group(obj, symbol)] += int(samples)
        total = sum(count.values())
        result[sidecar.role] = {name: 100 * number / total for name, number in count.items()}
    return result


def group(obj: str, symbol: str) -> str:
    if "_core." in obj:
        found = re.search(r"__pyx_f_8fastmesh_4core_\d+([a-z]+)_(\d+)(\w+)", symbol)
        module = f"{found[1]}.{found[3][: int(found[2])]}" if found else "sys"
        return next((name for start, name in GROUPS.items() if module.startswith(start)), "else")
    return next((name for start, name in LIBRARIES.items() if start in obj), "else")


# ---- the report


def table(result: Counts, decimals: int) -> str:
    names = sorted({name for side in result.values() for name in side}, key=lambda name: -most(result, name))
    rows = [f"| | {' | '.join(SIDES[role] for role in ('out', 'in'))} |", "|---|---|---|"]
    for name in names:
        cells = [f"{result[role].get(name, 0):,.{decimals}f}" for role in ("out", "in")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    sums = [f"{sum(result[role].values()):,.{decimals}f}" for role in ("out", "in")]
    rows.append(f"| together | {' | '.join(sums)} |")
    return "\n".join(rows)


def most(result: Counts, name: str) -> float:
    return max(side.get(name, 0) for side in result.values())


@click.command()
@click.argument("tool", type=click.Choice(["shares", "calls"]))
@click.option("--between", type=click.Choice(["http2", "http1"]), default="http2", help="Spoken by sidecars.")
@click.option("--connections", type=click.IntRange(1), default=64, show_default=True)
@click.option("--requests", type=click.IntRange(1), default=20_000, show_default=True)
def main(tool: Tool, between: str, connections: int, requests: int) -> None:
    """Count what one request through the mesh costs each sidecar."""
    machine.raise_file_limit()
    try:
        total = run(tool, between, connections, requests)
    except (Missing, OSError) as error:
        sys.exit(str(error))
    if tool == "calls":
        for side in total.values():
            for name in side:
                side[name] /= requests
    click.echo(table(total, 1 if tool == "shares" else 3))


def run(tool: Tool, between: str, connections: int, requests: int) -> Counts:
    with tempfile.TemporaryDirectory(prefix="fastmesh-where-") as place:
        return measure(tool, between, connections, requests, Path(place))


if __name__ == "__main__":
    main()
