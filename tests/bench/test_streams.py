"""The load and the backend of long streams must be right themselves: echoes, endings, counted errors."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import generators, h2
from bench.machine import free_port
from bench.processes import Processes
from bench.programs import program
from bench.proxies.nginx import BODY
from bench.stage import connect_http2, fetch

SECONDS = 20.0
CPUS = frozenset(os.sched_getaffinity(0))


class Backend:
    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid

    def comes_to_rest(self) -> bool:
        """Only the listening socket is left."""
        end = time.monotonic() + SECONDS
        while True:
            count = 0
            for link in Path(f"/proc/{self.pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                    count += str(link.readlink()).startswith("socket:")
            if count == 1:
                return True
            if time.monotonic() > end:
                return False
            time.sleep(0.005)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    port = free_port()
    with Processes("backend", [str(program("stream_serve")), str(port)], CPUS, tmp_path / "log") as process:
        end = time.monotonic() + SECONDS
        while True:
            try:
                assert fetch(port, "/", http2=True) == BODY
                break
            except ConnectionRefusedError:
                assert time.monotonic() < end, "the backend does not listen"
                time.sleep(0.005)
        backend = Backend(port, process.pid)
        yield backend
        assert process.alive(), process.words()
        assert backend.comes_to_rest()


@contextlib.contextmanager
def connection(port: int) -> Iterator[h2.Connection]:
    with contextlib.closing(connect_http2(port, None)) as opened:
        yield opened


def test_messages_on_many_streams_come_back(backend: Backend) -> None:
    with connection(backend.port) as client:
        streams = [client.open("/echo") for _ in range(50)]
        for length in (1, 5, 1024, 16_000):
            for stream in streams:
                client.exchange(stream, os.urandom(length))
        assert client.get("/") == BODY


def test_the_load_counts_messages_and_finishes_every_stream(backend: Backend) -> None:
    totals = generators.streams(backend.port, 3, 7).run(1, CPUS)
    assert totals.errors == {}
    assert totals.requests > 21
    assert totals.bytes == totals.requests * generators.MESSAGE
    assert totals.p50 is not None
    assert totals.p99 is not None
    assert 0 < totals.p50 <= totals.p99


def test_the_reader_that_stops_gets_no_more_than_its_window(backend: Backend) -> None:
    totals = generators.streams(backend.port, 1, 5, slow=True).run(1, CPUS)
    assert totals.errors == {}
    assert totals.raw["slow_bytes"] == 65_535
    assert totals.raw["beside"] > 5


def test_a_connection_that_ends_is_an_error() -> None:
    """A server that takes connections and closes them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken: list[socket.socket] = []

        def accept() -> None:
            for _ in range(2):
                accepted, _ = listener.accept()
                taken.append(accepted)
                accepted.recv(1)
                accepted.close()

        thread = threading.Thread(target=accept)
        thread.start()
        totals = generators.streams(listener.getsockname()[1], 2, 3).run(1, CPUS)
        thread.join()
    assert totals.requests == 0
    assert totals.errors == {"connection": 2, "lost": 6}


def test_streams_without_an_answer_are_told() -> None:
    """A server that reads and says nothing: every stream is still open at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def swallow() -> None:
            accepted, _ = listener.accept()
            with accepted:
                while accepted.recv(65536):
                    pass
            done.set()

        thread = threading.Thread(target=swallow)
        thread.start()
        totals = generators.streams(listener.getsockname()[1], 1, 2).run(1, CPUS)
        thread.join()
    assert done.is_set()
    assert totals.requests == 0
    assert totals.errors == {"timeout": 2}


def test_a_port_where_nobody_listens_is_no_figure() -> None:
    with pytest.raises(generators.Failed, match="connect: Connection refused"):
        generators.streams(free_port(), 1, 1).run(1, CPUS)


@pytest.mark.parametrize(
    ("block", "right"),
    [
        (b"\x88", True),
        (b"\x20\x88\x00", True),
        (b"\x3f\xe1\x1f\x88", True),  # a table size update of several bytes in front
        (b"\x89", False),  # 204
        (b"\x3f\xe1", False),
        (b"", False),
    ],
)
def test_only_200_is_a_right_answer(block: bytes, right: bool) -> None:
    assert h2.status_is_200(block) is right
