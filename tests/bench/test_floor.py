"""The unit of the bench must itself be right: all bytes arrive, halves close alone, nothing stays open."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.machine import free_port
from bench.processes import Processes
from bench.proxies import Hop
from bench.proxies.floor import Floor

SECONDS = 20.0
DATA = os.urandom(1 << 20) * 16


class Stage:
    """A floor in front of a listening socket of ours."""

    def __init__(self, listener: socket.socket, port: int, pid: int) -> None:
        self.listener = listener
        self.port = port
        self.pid = pid

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """A client and the upstream's end of its connection."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)
        upstream, _ = self.listener.accept()
        upstream.settimeout(SECONDS)
        return client, upstream

    def sockets(self) -> int:
        count = 0
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                count += str(link.readlink()).startswith("socket:")
        return count

    def comes_to_rest(self) -> bool:
        """Only the listening socket is left."""
        end = time.monotonic() + SECONDS
        while self.sockets() != 1:
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    floor = Floor()
    floor.version()  # builds it
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        listener.settimeout(SECONDS)
        port = free_port()
        argv = floor.argv(Hop("plain", port, listener.getsockname()[1], 64), tmp_path)
        with Processes("floor", argv, frozenset(os.sched_getaffinity(0)), tmp_path / "log") as floor_process:
            _wait_for(port)
            listener.accept()[0].close()  # the upstream's end of the probe
            stage = Stage(listener, port, floor_process.pid)
            assert stage.comes_to_rest()
            yield stage
            assert floor_process.alive(), floor_process.words()


def _wait_for(port: int) -> None:
    end = time.monotonic() + SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < end, "the floor does not listen"
            time.sleep(0.005)


def read_all(connection: socket.socket, piece: int = 1 << 16, pause: float = 0.0) -> bytes:
    received = bytearray()
    while data := connection.recv(piece):
        received += data
        if pause and len(received) % (1 << 20) < piece:
            time.sleep(pause)  # a slow reader: the floor's sends fall short
    return bytes(received)


def test_both_directions_arrive_whole_and_close_each_on_its_own(stage: Stage) -> None:
    client, upstream = stage.connect()
    uploaded: list[bytes] = []

    def serve() -> None:
        with upstream:
            uploaded.append(read_all(upstream, pause=0.002))
            upstream.sendall(DATA)  # only after the client's end has arrived here

    thread = threading.Thread(target=serve)
    thread.start()
    with client:
        client.sendall(DATA)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client, pause=0.002) == DATA
    thread.join()
    assert uploaded == [DATA]
    assert stage.comes_to_rest()


def test_a_reset_of_either_side_closes_both(stage: Stage) -> None:
    for number in range(20):
        aborted, other = stage.connect()[:: 1 if number % 2 else -1]
        aborted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        aborted.close()
        with contextlib.suppress(ConnectionResetError):
            assert other.recv(1) == b""
        other.close()
    assert stage.comes_to_rest()


def test_a_refused_upstream_closes_the_client(stage: Stage) -> None:
    stage.listener.close()
    with socket.create_connection(("127.0.0.1", stage.port), timeout=SECONDS) as client:
        assert client.recv(1) == b""
    assert stage.comes_to_rest()
