"""Requests to svc-a in closed loops: each is timed, and counts only if the answer came from svc-b."""

from __future__ import annotations

import asyncio
import json
import time
from array import array

from fastmesh.demo.client import Client

CONNECTIONS = 16
_PAUSE_S = 0.05


class Traffic:
    """The driver and its score. Latencies are seconds, in the order in which the answers came."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self.started = time.monotonic()
        self.ended = 0.0
        self.failed = 0
        self.first_failure = ""
        self.latencies = array("d")

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.started

    @property
    def succeeded(self) -> int:
        return len(self.latencies)

    async def warm_up(self) -> None:
        """One request that may wait for the applications to come up; ConnectionError if it fails."""
        async with Client(self._port, "svc-a", timeout=30.0) as client:
            status, body = await client.get("/")
            if not _good(status, body):
                raise ConnectionError(f"the first request was answered with {status}: {body[:200]!r}")

    def start(self) -> None:
        self.started = time.monotonic()
        self._tasks = [asyncio.create_task(self._loop()) for _ in range(CONNECTIONS)]

    async def stop(self) -> None:
        """Let every request under way have its answer."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        self.ended = time.monotonic()

    async def _loop(self) -> None:
        async with Client(self._port, "svc-a") as client:
            while not self._stopping:
                begin = time.perf_counter()
                try:
                    status, body = await client.get("/")
                    good = _good(status, body)
                    what = f"status {status}: {body[:200]!r}"
                except (OSError, ValueError, TimeoutError) as error:
                    good, what = False, f"{type(error).__name__}: {error}"
                if good:
                    self.latencies.append(time.perf_counter() - begin)
                    continue
                self.failed += 1
                self.first_failure = self.first_failure or what
                # Whatever is broken, do not spin on it.
                await asyncio.sleep(_PAUSE_S)


def _good(status: int, body: bytes) -> bool:
    if status != 200:
        return False
    try:
        return bool(json.loads(body)["service"] == "svc-b")
    except (ValueError, KeyError, TypeError):
        return False


async def intrude(port: int) -> bool:
    """Plain HTTP to the mesh's own port, as a stranger without a certificate; True if it is answered."""
    try:
        async with Client(port, "svc-b", timeout=5.0) as client:
            status, _ = await client.get("/")
            return status < 400
    except (OSError, ValueError, TimeoutError, KeyError):
        return False


def quantile(values: array[float], share: float) -> float:
    """The value below which `share` of `values` lies, in seconds; 0 if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
