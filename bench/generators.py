"""The programs that make load, each with its own way of saying what came of it, here as the same `Totals`.

wrk           HTTP/1.1 (plain, mesh, transparent)
h2load        HTTP/2, requests like those of a unary gRPC call (grpc)
stream_load   HTTP/2, messages on long streams (grpc-stream, slow-stream), bench/stream_load.c
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.machine import BENCH, first_line
from bench.processes import child_setup
from bench.programs import program
from bench.proxies import Unavailable
from bench.proxies.nginx import BODY
from bench.stage import HOST

WRK: Final = "wrk"
H2LOAD: Final = "h2load"
MESSAGE: Final = 1024  # bytes of a message on a long stream, without the five in front
SECONDS_MORE: Final = 30.0  # what a generator may take longer than it was told


class Failed(Exception):
    """A run that gave no figure at all."""


@dataclass(frozen=True)
class Totals:
    """What a generator counted: requests, or messages with their echo. Times in microseconds."""

    requests: int
    microseconds: float
    bytes: int  # of bodies, about: what wrk and h2load read
    p50: float | None
    p99: float | None
    errors: dict[str, int]
    raw: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Generator:
    """A load that can be run for some seconds: its command, and how to read what it prints."""

    command: Callable[[int], list[str]]
    totals: Callable[[str], Totals]
    lengths: int = 1  # how many times those seconds it takes

    def start(self, seconds: int, cpus: frozenset[int]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(seconds),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=child_setup(cpus),  # noqa: PLW1509  there are no threads
        )

    def finish(self, popen: subprocess.Popen[str], seconds: int) -> Totals:
        """Wait for its end. Raises Failed."""
        try:
            output, _ = popen.communicate(timeout=seconds * self.lengths + SECONDS_MORE)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.communicate()
            raise Failed(f"{Path(str(popen.args[0])).name} did not end") from None  # type: ignore[index]
        except BaseException:
            popen.kill()
            popen.wait()
            raise
        return self.totals(output)

    def run(self, seconds: int, cpus: frozenset[int]) -> Totals:
        return self.finish(self.start(seconds, cpus), seconds)


def wrk(address: str, port: int, path: str, connections: int) -> Generator:
    def command(seconds: int) -> list[str]:
        argv = [WRK, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
        return [*argv, "-s", str(BENCH / "wrk.lua"), "-H", f"Host: {HOST}", f"http://{address}:{port}{path}"]

    return Generator(command, lambda output: _json_totals(output, WRK, _WRK_ERRORS))


def h2load(port: int, connections: int, streams: int, directory: Path) -> Generator:
    """A POST with a small message, as gRPC's would be; so are the answer and its trailers."""
    message = directory / "message"
    if not message.exists():
        message.write_bytes(b"\0" + len(BODY).to_bytes(4, "big") + BODY)

    def command(seconds: int) -> list[str]:
        argv = [H2LOAD, "-t1", f"-c{connections}", f"-m{streams}", f"-D{seconds}", "-d", str(message)]
        argv += ["-H", "content-type: application/grpc", "-H", "te: trailers", "-p", "h2c"]
        return [*argv, f"--connect-to=127.0.0.1:{port}", f"http://{HOST}/"]

    return Generator(command, h2load_totals)


def streams(port: int, connections: int, each: int, *, slow: bool = False) -> Generator:
    binary = str(program("stream_load"))

    def command(seconds: int) -> list[str]:
        argv = [binary, str(port), HOST, str(connections), str(each), str(seconds), str(MESSAGE)]
        return [*argv, *(["slow"] if slow else [])]

    return Generator(
        command, lambda output: _json_totals(output, "stream_load", _STREAM_ERRORS), 2 if slow else 1
    )


_WRK_ERRORS: Final = ("connect", "read", "write", "timeout", "status")
_STREAM_ERRORS: Final = ("connection", "stream", "status", "body", "lost", "timeout")


def _json_totals(output: str, name: str, errors: tuple[str, ...]) -> Totals:
    for line in output.splitlines():
        if line.startswith("JSON "):
            raw: dict[str, Any] = json.loads(line[5:])
            counted = {kind: raw[kind] for kind in errors if raw[kind]}
            return Totals(
                raw["requests"], raw["microseconds"], raw["bytes"], raw["p50"], raw["p99"], counted, raw
            )
    raise Failed(f"{name}: {output.strip()[-300:]}")


_FINISHED: Final = re.compile(r"^finished in ([\d.]+)(us|ms|s), ", re.MULTILINE)
_REQUESTS: Final = re.compile(
    r"^requests: \d+ total, \d+ started, (\d+) done, "
    r"\d+ succeeded, (\d+) failed, (\d+) errored, (\d+) timeout$",
    re.MULTILINE,
)
_STATUS: Final = re.compile(r"^status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx$", re.MULTILINE)
_TRAFFIC: Final = re.compile(r"^traffic: .*\((\d+)\) data$", re.MULTILINE)
_UNITS: Final = {"us": 1.0, "ms": 1e3, "s": 1e6}


def h2load_totals(output: str) -> Totals:
    """From what h2load prints at its end. It knows no percentiles. Raises Failed.

    `failed` holds `errored` (streams and connections that broke) and answers with an error status.
    """
    finished, requests = _FINISHED.search(output), _REQUESTS.search(output)
    status, traffic = _STATUS.search(output), _TRAFFIC.search(output)
    if not (finished and requests and status and traffic):
        raise Failed(f"{H2LOAD}: {output.strip()[-300:]}")
    done, failed, errored, timeout = (int(number) for number in requests.groups())
    good = int(status[1])
    found = {"stream": errored, "timeout": timeout, "status": max(0, done - good - errored - timeout)}
    if failed and not any(found.values()):
        found["failed"] = failed
    return Totals(
        requests=good,
        microseconds=float(finished[1]) * _UNITS[finished[2]],
        bytes=int(traffic[1]),
        p50=None,
        p99=None,
        errors={kind: count for kind, count in found.items() if count},
    )


def wrk_version() -> str:
    """Raises Unavailable if wrk is not installed."""
    if not shutil.which(WRK):
        raise Unavailable("wrk is not installed (Debian: wrk)")
    return first_line([WRK, "-v"]).split()[1]


def h2load_version() -> str:
    """Raises Unavailable if h2load is not installed."""
    if not shutil.which(H2LOAD):
        raise Unavailable("h2load is not installed (Debian: nghttp2-client)")
    return first_line([H2LOAD, "--version"]).rpartition("/")[2]
