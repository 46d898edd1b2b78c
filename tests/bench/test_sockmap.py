"""The programs of the experiment must be right as far as they can: all bytes arrive, halves close alone."""

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

from bench import sockmap_breaks
from bench.proxies import Unavailable
from bench.sockmap_breaks import CHECKS
from bench.sockmap_parts import SECONDS, Group, Tunnel, Who, attached, connect, listening, tunnel_to

DATA = os.urandom(1 << 20) * 16


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listening() as listener:
        yield listener


@pytest.fixture
def tunnel(listener: socket.socket, tmp_path: Path) -> Iterator[Tunnel]:
    with contextlib.ExitStack() as stack:
        try:
            tunnel = stack.enter_context(tunnel_to(listener, tmp_path))
        except Unavailable as reason:
            pytest.skip(str(reason))
        yield tunnel
        assert tunnel.processes.alive(), tunnel.processes.words()
        assert _comes_to_rest(tunnel.processes.pid)


@pytest.fixture
def group() -> Iterator[Group]:
    with contextlib.ExitStack() as stack:
        try:
            group = stack.enter_context(Group())
            stack.enter_context(attached(group, "BOTH", 1, 1))
        except Unavailable as reason:
            pytest.skip(str(reason))
        yield group


def _comes_to_rest(pid: int) -> bool:
    """Only the listening socket is left."""
    end = time.monotonic() + SECONDS
    while True:
        count = 0
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                count += str(link.readlink()).startswith("socket:")
        if count == 1:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.005)


def _read_all(connection: socket.socket) -> bytes:
    received = bytearray()
    while data := connection.recv(1 << 16):
        received += data
    return bytes(received)


def _exactly(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count and (data := connection.recv(count - len(received))):
        received += data
    return received


def _mapped(tunnel: Tunnel, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection that the program moves: who shuts down before that is refused."""
    client, server = connect(tunnel.port, listener)
    client.sendall(b"?")
    assert server.recv(1) == b"?"
    server.sendall(b"!")
    assert client.recv(1) == b"!"
    return client, server


def test_both_directions_arrive_whole_and_close_each_on_its_own(
    tunnel: Tunnel, listener: socket.socket
) -> None:
    client, server = _mapped(tunnel, listener)
    uploaded: list[bytes] = []

    def serve() -> None:
        with server:
            uploaded.append(_read_all(server))
            server.sendall(DATA)  # only after the client's end has arrived here

    thread = threading.Thread(target=serve)
    thread.start()
    with client:
        client.sendall(DATA)
        client.shutdown(socket.SHUT_WR)
        assert _read_all(client) == DATA
    thread.join()
    assert uploaded == [DATA]


def test_what_was_sent_before_the_program_was_there_arrives_first(
    tunnel: Tunnel, listener: socket.socket
) -> None:
    for number in range(50):
        message = os.urandom(3000)
        client = socket.create_connection(("127.0.0.1", tunnel.port), SECONDS)
        client.sendall(message[:2000])
        server, _ = listener.accept()
        server.settimeout(SECONDS)
        client.sendall(message[2000:])
        with client, server:
            assert _exactly(server, len(message)) == message, number


def test_a_reset_of_either_side_closes_both(tunnel: Tunnel, listener: socket.socket) -> None:
    for number in range(20):
        aborted, other = _mapped(tunnel, listener)[:: 1 if number % 2 else -1]
        aborted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        aborted.close()
        with contextlib.suppress(ConnectionResetError):
            assert other.recv(1) == b""
        other.close()


@pytest.mark.parametrize("who", ["BOTH", "APPS"])
def test_a_hop_goes_past_tcp_in_the_directions_asked_for(
    group: Group, listener: socket.socket, who: Who
) -> None:
    """The application is the one that calls: the port is FRONT."""
    port = listener.getsockname()[1]
    with attached(group, who, port, 1):
        client, server = connect(port, listener)
        with client, server:
            for sender, reader, past in ((client, server, True), (server, client, who == "BOTH")):
                assert sockmap_breaks.counted(sender, reader) == ("nothing" if past else "right")
            client.sendall(DATA[:100_000])
            client.shutdown(socket.SHUT_WR)
            assert _read_all(server) == DATA[:100_000]


def test_a_port_that_was_not_asked_for_stays_with_tcp(group: Group, listener: socket.socket) -> None:
    with attached(group, "BOTH", 1, 2):
        client, server = connect(listener.getsockname()[1], listener)
        with client, server:
            assert sockmap_breaks.counted(client, server) == "right"


def test_the_checks_find_nothing_on_a_connection_of_tcp(listener: socket.socket) -> None:
    found = {}
    for name, check in CHECKS.items():
        client, server = connect(listener.getsockname()[1], listener)
        with client, server:
            found[name] = check(client, server)
    sent = found.pop("sent to a reader that does not read")
    assert sent.endswith(" MiB")
    assert not sent.startswith("all")
    assert found == {
        "splice(2) from the socket": "60000 of 60000 bytes",
        "SO_RCVLOWAT": "kept",
        "MSG_OOB after b'ab'": "stream b'ab'",
        "bytes in TCP_INFO": "right",
    }


def test_a_cost_grows_with_what_the_group_does(group: Group) -> None:
    before = group.cost()
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    assert group.cost().since(before) >= 0.04
