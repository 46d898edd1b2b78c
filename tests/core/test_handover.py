"""Connections from one worker to another: what arrives, what cannot be sent, what makes no sense."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
from array import array
from collections.abc import Iterator

import pytest
from kit import descriptors
from kit.limits import wait_until
from kit.upstream import Upstream, answering
from kit.wire import Conn, connect, request
from kit.worker import running, snapshot

from fastmesh._core import COUNTERS, RUN_DRAINED, Area, Worker

EDGE = 0
REQUEST = request()


class Pair:
    """Two workers of one listener, an inbox each. Only the socket of the first one is connected to."""

    def __init__(self, endpoint: int) -> None:
        self.area = Area.create(2, 8)
        self.inboxes, self.outboxes = zip(
            *(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)), strict=True
        )
        self.edges = [socket.create_server(("127.0.0.1", 0), backlog=256) for _ in range(2)]
        self.workers = [Worker(self.area, slot) for slot in range(2)]
        for sock in (*self.inboxes, *self.outboxes, *self.edges):
            sock.setblocking(False)
        for slot, worker in enumerate(self.workers):
            worker.siblings(self.inboxes[slot].fileno(), [out.fileno() for out in self.outboxes])
            worker.load(snapshot(1, {"edge": "web"}, endpoint, role="inbound"))
            worker.listen("edge", self.edges[slot].fileno(), EDGE)
        self.first, self.second = self.workers
        self.clients: list[Conn] = []

    def shares(self) -> list[int | None]:
        return self.area.shares(EDGE)

    def counter(self, slot: int, name: str, **labels: str) -> int:
        values = self.area.worker_counters(slot)
        return sum(
            value
            for value, (own, _, _, given) in zip(values, COUNTERS, strict=True)
            if own == name and given.items() >= labels.items()
        )

    def clients_of_first(self, count: int, data: bytes = REQUEST) -> list[Conn]:
        """New connections that have said `data`, accepted by the first worker."""
        seen = self.counter(0, "downstream_connections_total") + self.sent()
        clients = [connect(self.edges[0].getsockname()) for _ in range(count)]
        for client in clients:
            client.send(data)
        self.clients += clients
        wait_until(
            lambda: self.counter(0, "downstream_connections_total") + self.sent() == seen + count,
            "the first worker to accept",
        )
        return clients

    def sent(self) -> int:
        return self.counter(0, "connections_handed_over_total", direction="sent")

    def received(self) -> int:
        return self.counter(1, "connections_handed_over_total", direction="received")

    def room(self) -> bool:
        """Whether there was room in the second one's inbox for a message of no use."""
        try:
            return self.outboxes[1].send(b"more than is understood") > 0
        except BlockingIOError:
            return False

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for worker in self.workers:
            assert not {name: count for name, count in worker.close().items() if count}
        for sock in (*self.inboxes, *self.outboxes, *self.edges):
            sock.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Upstream(("127.0.0.1", 0), answering(b"web")) as server:
        made = Pair(server._listener.getsockname()[1])
        yield made
        made.close()
        # Somebody may hold the fixture's value for longer, and with it a descriptor.
        del made.area, made.workers, made.first, made.second


def answered(clients: list[Conn]) -> None:
    for client in clients:
        assert client.read_response().body == b"web"


def test_every_second_one_goes_to_the_other(pair: Pair) -> None:
    with running(pair.first), running(pair.second):
        for number in range(1, 5):
            answered(pair.clients_of_first(2))
            assert pair.shares() == [number, number]
        assert pair.sent() == pair.received() == 4
        for slot in (0, 1):
            assert pair.counter(slot, "downstream_connections_total") == 4, "counted where it ended up"
        for client in pair.clients:
            client.close()
        wait_until(lambda: pair.shares() == [0, 0], "the end to be counted")


def test_a_listener_without_a_number_is_not_shared_out(pair: Pair) -> None:
    edge = socket.create_server(("127.0.0.1", 0))
    edge.setblocking(False)
    pair.first.listen("edge", edge.fileno())
    pair.first.listen("edge", edge.fileno(), 1024)
    with running(pair.first), edge:
        for _ in range(4):
            pair.clients.append(connect(edge.getsockname()))
            pair.clients[-1].send(request())
        answered(pair.clients)
    assert (pair.sent(), pair.shares()) == (0, [0, 0])


def test_what_finds_no_room_stays(pair: Pair) -> None:
    while pair.room():
        pass
    with running(pair.first):
        answered(pair.clients_of_first(4))
        assert (pair.sent(), pair.shares()) == (0, [4, 0])
        with running(pair.second):
            wait_until(pair.room, "the second worker to look into its inbox")
            answered(pair.clients_of_first(3))
            wait_until(lambda: pair.shares() == [4, 3], "those to go to the other")


def test_what_nobody_would_take_stays(pair: Pair) -> None:
    """The word still says yes, but the inbox is shut: its worker is about to say no."""
    pair.inboxes[1].shutdown(socket.SHUT_RD)
    assert pair.shares() == [0, 0]
    with running(pair.first):
        answered(pair.clients_of_first(4))
    assert (pair.sent(), pair.shares()) == (0, [4, 0])


def test_who_takes_none_is_sent_none(pair: Pair) -> None:
    pair.area.forget(1, 1)
    assert pair.shares() == [0, None]
    with running(pair.first):
        answered(pair.clients_of_first(4))
    assert (pair.sent(), pair.shares()) == (0, [4, None])


def test_messages_that_mean_nothing(pair: Pair) -> None:
    """What they carry is closed; what comes behind them is served."""

    def send(body: bytes, *fds: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        pair.outboxes[1].sendmsg([body], rights)

    carried = []
    for body in (struct.pack("=I", 7), b"x", b"more than is understood"):
        here, there = socket.socketpair()
        with there:
            send(body, there.fileno())
        carried.append(here)
    send(struct.pack("=I", EDGE))
    with running(pair.first), running(pair.second):
        for here in carried:
            here.settimeout(15)
            assert here.recv(1) == b"", "it is closed"
            here.close()
        answered(pair.clients_of_first(4))
        assert pair.shares() == [2, 2]
    assert pair.received() == 2


def test_one_descriptor_is_all_that_is_taken(pair: Pair) -> None:
    ours = [socket.socketpair() for _ in range(3)]
    pair.outboxes[1].sendmsg(
        [struct.pack("=I", EDGE)],
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [there.fileno() for _, there in ours]))],
    )
    for _, there in ours:
        there.close()
    with running(pair.second):
        for here, _ in ours[1:]:
            here.settimeout(15)
            assert here.recv(1) == b"", "it is closed"
        ours[0][0].sendall(request())
        ours[0][0].settimeout(15)
        assert ours[0][0].recv(12) == b"HTTP/1.1 200"
    for here, _ in ours:
        here.close()


def test_a_sender_that_closes_late(pair: Pair) -> None:
    """The receiver has closed its descriptor, not the socket: what happens to that does not concern it."""
    with socket.create_server(("127.0.0.1", 0)) as edge, running(pair.second):
        for _ in range(8):
            client = connect(edge.getsockname())
            held, _ = edge.accept()
            held.setblocking(False)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [held.fileno()]))
            pair.outboxes[1].sendmsg([struct.pack("=I", EDGE)], [rights])
            client.send(request(headers=[("Connection", "close")]))
            assert client.read_response().body == b"web"
            client.close()
            wait_until(lambda: pair.counter(1, "downstream_connections_open") == 0, "it to be closed there")
            # Its memory is used again, and the socket has something to say.
            with contextlib.suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)
            held.close()
    assert pair.received() == 8


def test_what_a_dead_sibling_has_counted_and_not_sent(pair: Pair) -> None:
    """The connection is lost with it; the count must not stay."""
    with running(pair.first):
        clients = pair.clients_of_first(4)
        wait_until(lambda: pair.shares() == [2, 2], "two to be sent")
        _, rights, _, _ = pair.inboxes[1].recvmsg(64, socket.CMSG_SPACE(4))
        (fd,) = array("i", rights[0][2])
        os.close(fd)
    pair.area.forget(0, 1)
    pair.second.settle()
    assert pair.shares() == [None, 1], "the other one was in the inbox"
    assert pair.received() == 1
    with running(pair.second):
        clients[1].expect_close()
        assert clients[3].read_response().body == b"web"


def test_a_drain_takes_what_has_been_sent(pair: Pair) -> None:
    with running(pair.first):
        clients = pair.clients_of_first(8)
        wait_until(lambda: pair.shares() == [4, 4], "four to be sent")
        pair.second.drain(10_000)
        assert pair.shares() == [4, None]
        assert pair.received() == 4
        clients += pair.clients_of_first(4)
        assert (pair.sent(), pair.shares()) == (4, [8, None]), "nothing more is sent to it"
        control = os.eventfd(0, os.EFD_CLOEXEC)
        assert pair.second.run(control) == RUN_DRAINED
        os.close(control)
        answered(clients)


def test_a_withdrawal_resets_nobody_in_the_queue(pair: Pair) -> None:
    """Not even when more of them in a row go to the sibling than are accepted in a turn."""
    while pair.room():
        pass
    with running(pair.first):
        answered(pair.clients_of_first(80))
        assert pair.shares() == [80, 0]
        with running(pair.second):
            wait_until(pair.room, "the second worker to look into its inbox")
    waiting = [connect(pair.edges[0].getsockname()) for _ in range(120)]
    pair.clients += waiting
    for client in waiting:
        client.send(REQUEST)
    pair.edges[0].close()  # as the supervisor does first
    pair.first.withdraw()
    assert pair.sent() > 64, "more than a turn accepts"
    with running(pair.first), running(pair.second):
        answered(waiting)


def test_without_descriptors_it_waits(pair: Pair) -> None:
    """A message that is taken without room for its descriptor would be lost."""
    with running(pair.first):
        clients = pair.clients_of_first(4, data=b"")
        wait_until(lambda: pair.shares() == [2, 2], "two to be sent")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    filler: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(descriptors.mine()) + 8, before[1]))
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                filler.append(os.dup(0))
        # Room for the descriptor that stops the worker, and for nothing else.
        os.close(filler.pop())
        with running(pair.second):
            # It takes one, in the place of the descriptor that it holds for that.
            wait_until(lambda: pair.shares()[1] is None, "the worker to take no more")
            assert pair.received() == 1
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            wait_until(lambda: pair.shares() == [2, 2], "the worker to take more again")
            with running(pair.first):
                for client in clients:
                    client.send(request())
                answered(clients)
        assert pair.received() == 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in filler:
            os.close(fd)


def test_siblings_that_cannot_be(pair: Pair) -> None:
    out = [sock.fileno() for sock in pair.outboxes]
    with pytest.raises(ValueError, match="not these siblings"):
        pair.first.siblings(pair.inboxes[0].fileno(), out)
    for slot, outboxes in ((1, out[:1]), (0, [*out, out[0]]), (0, [])):
        with pytest.raises(ValueError, match="not these siblings"):
            Worker(pair.area, slot).siblings(pair.inboxes[slot].fileno(), outboxes)
    for inbox, outboxes in ((pair.inboxes[0].fileno(), [-1, -1]), (-1, out)):
        with pytest.raises(OSError):
            Worker(Area.create(2), 0).siblings(inbox, outboxes)
