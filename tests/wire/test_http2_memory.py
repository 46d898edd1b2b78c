"""What HTTP/2 connections hold: idle ones little, and in the end nothing, whatever was done to them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kit import http2_chaos
from kit.http2_codec import POST, frames, pair, pump, server

from fastmesh import _http2 as http2

TESTS = Path(__file__).parent.parent
REQUEST = (
    b"GET /path HTTP/1.1\r\nHost: a.example\r\nUser-Agent: someone\r\n"
    b"Accept: */*\r\nX-Request-Id: 1234567890\r\n\r\n"
)


def test_an_idle_connection() -> None:
    """nghttp2's session, most of it its buffer for one frame; none of the worker's buffers."""
    worker = http2.Worker()
    conns = []
    for _ in range(10):
        conns += pair(worker)
    assert worker.bytes / 20 <= 26 * 1024 and worker.buffers == 0
    assert http2.sizes()["connection"] <= 320
    before = worker.bytes
    for a, b in zip(conns[::2], conns[1::2], strict=True):
        for _ in range(5):
            stream = a.request(REQUEST)
            pump(a, b)
            b.respond(stream, b"HTTP/1.1 200 OK\r\n\r\n")
            pump(a, b)
    # what HPACK remembers of heads that came again and again
    assert worker.bytes - before <= 20 * 2048 and worker.buffers == 0
    for conn in conns:
        conn.close()
    assert (worker.blocks, worker.bytes, worker.buffers) == (0, 0, 0)


def test_an_idle_stream() -> None:
    """One that waits for its answer."""
    worker = http2.Worker()
    a, b = pair(worker)
    a.request(REQUEST)
    pump(a, b)
    before = worker.bytes
    for _ in range(200):
        a.request(REQUEST)
    pump(a, b)
    assert (worker.bytes - before) / 400 + http2.sizes()["stream"] <= 1024 and worker.buffers == 0
    a.close()
    b.close()
    assert (worker.blocks, worker.bytes, worker.buffers) == (0, 0, 0)


def test_ending_with_everything_under_way() -> None:
    """Streams with output, trailers and half a head: closing gives all of it back, and calls nobody."""
    worker = http2.Worker()
    b, peer = server(worker)
    for stream in range(1, 41, 2):
        b.receive(peer.headers(stream, POST))
        b.respond(stream, b"HTTP/1.1 200 OK\r\n\r\n", False)
        b.data(stream, bytes(50_000), False)
        b.data(stream, bytes(10_000), True)
        b.finish(stream, b"x: y\r\n\r\n")
    frames(b.pack(100_000))
    b.receive(peer.headers(41, ((b"x", b"y"), (b"z", b"w")), pieces=2)[:-1])
    b.take()
    assert worker.buffers and b.building
    b.close()
    assert b.take() == [] and (worker.blocks, worker.bytes, worker.buffers) == (0, 0, 0)


def test_nothing_fits_any_more() -> None:
    """A worker without buffers: heads that come are refused, what is to be sent fails, nothing breaks."""
    worker = http2.Worker(buffers=1024)
    b = http2.Conn(worker, http2.SERVER)
    with pytest.raises(http2.Refused, match="no_memory"):
        b.pack()
    b.close()
    with pytest.raises(http2.Refused, match="no_memory"):
        http2.Conn(http2.Worker(heap=1024), http2.SERVER)
    assert (worker.blocks, worker.bytes, worker.buffers) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(8))
def test_anything_by_chance(seed: int) -> None:
    assert http2_chaos.run(seed, 25)


@pytest.mark.parametrize("one_in", [3, 20, 150, 1000])
def test_when_memory_is_short(one_in: int) -> None:
    """The same, while allocations fail (in builds with assertions; the release build cannot be made to)."""
    result = subprocess.run(
        [sys.executable, "-m", "kit.http2_chaos", str(one_in), "40"],
        check=False,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "FASTMESH_FAULT": str(one_in),
            "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(TESTS)])),
        },
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert not http2.faults_happen() or "no_memory" in result.stdout
