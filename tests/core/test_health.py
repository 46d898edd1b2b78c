"""What a worker makes of the bytes that say which endpoints are healthy."""

from __future__ import annotations

import contextlib
import json
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from kit.upstream import Upstream, answering
from kit.wire import connect, request
from kit.worker import running, snapshot

from fastmesh import _core
from fastmesh._core import Area, Worker

NAMES = [name for name, *_ in _core.SERVICE_COUNTERS]


class Bench:
    """A worker with one listener and one service, whose endpoints are these ports."""

    def __init__(self, area: Area, ports: list[int], slots: list[int]) -> None:
        self.area = area
        self.worker = Worker(area, 0)
        self.edge = socket.create_server(("127.0.0.1", 0))
        self.edge.setblocking(False)
        self.load(1, ports, slots)
        self.worker.listen("edge", self.edge.fileno())

    def load(self, number: int, ports: list[int], slots: list[int]) -> None:
        document: dict[str, Any] = json.loads(snapshot(number, {"edge": "web"}, None))
        document["services"][0]["endpoints"] = [
            {"family": "inet", "host": "127.0.0.1", "port": port, "path": None}
            | ({"health": slot} if slot >= 0 else {})
            for port, slot in zip(ports, slots, strict=True)
        ]
        self.worker.load(json.dumps(document).encode())

    def ask(self, times: int) -> list[bytes | int]:
        """The bodies of so many answers, of others the status."""
        found: list[bytes | int] = []
        with running(self.worker), connect(self.edge.getsockname()) as client:
            for _ in range(times):
                client.send(request())
                answer = client.read_response()
                found.append(answer.body if answer.status == 200 else answer.status)
        return found

    def counted(self, name: str) -> int:
        return self.area.service_counters(0, 0)[NAMES.index(name)]


@contextlib.contextmanager
def bench(slots: list[int], refusing: tuple[int, ...] = ()) -> Iterator[Bench]:
    """Endpoints 0, 1, … answer with their number; those in `refusing` have nobody behind them."""
    with contextlib.ExitStack() as stack:
        ports = []
        for number in range(len(slots)):
            if number in refusing:
                # Bound and not listening: refuses, and nobody else gets the port.
                sock = stack.enter_context(socket.socket())
                sock.bind(("127.0.0.1", 0))
                ports.append(sock.getsockname()[1])
            else:
                server = stack.enter_context(Upstream(("127.0.0.1", 0), answering(b"%d" % number)))
                ports.append(server._listener.getsockname()[1])
        here = Bench(Area.create(1, 8), ports, slots)
        stack.enter_context(here.edge)
        yield here
        assert not {name: count for name, count in here.worker.close().items() if count}


def test_all_are_healthy_at_first() -> None:
    with bench([0, 1, 2]) as here:
        assert [here.area.healthy(slot) for slot in range(3)] == [True] * 3
        assert here.ask(6) == [b"0", b"1", b"2"] * 2


def test_unhealthy_ones_are_passed_over_and_come_back() -> None:
    with bench([5, 3, 4, -1]) as here:
        here.area.set_healthy(3, False)
        assert not here.area.healthy(3)
        # The others have the same share each: none gets that of the one beside it.
        assert Counter(here.ask(30)) == {b"0": 10, b"2": 10, b"3": 10}
        here.area.set_healthy(4, False)
        assert Counter(here.ask(20)) == {b"0": 10, b"3": 10}
        here.area.set_healthy(3, True)
        here.area.set_healthy(4, True)
        assert Counter(here.ask(40)) == {b"0": 10, b"1": 10, b"2": 10, b"3": 10}
        assert here.counted("health_panics_total") == 0


def test_none_is_healthy() -> None:
    with bench([0, 1]) as here:
        for slot in range(2):
            here.area.set_healthy(slot, False)
        assert Counter(here.ask(20)) == {b"0": 10, b"1": 10}
        assert here.counted("health_panics_total") == 20


@pytest.mark.parametrize("last", range(4))
def test_healthy_ones_are_tried_first_and_the_others_before_failing(last: int) -> None:
    """All but one refuse; that one is unhealthy, and so is another: every request gets there all the same."""
    with bench([0, 1, 2, 3], tuple(number for number in range(4) if number != last)) as here:
        here.area.set_healthy(last, False)
        here.area.set_healthy((last + 2) % 4, False)
        assert here.ask(8) == [b"%d" % last] * 8
        # Through both healthy ones, then perhaps through the other unhealthy one.
        assert 2 * 8 <= here.counted("retries_total") <= 3 * 8


def test_a_healthy_one_that_refuses_does_not_send_requests_to_the_unhealthy() -> None:
    with bench([0, 1, 2], refusing=(0,)) as here:
        here.area.set_healthy(1, False)
        assert here.ask(12) == [b"2"] * 12


def test_every_endpoint_refuses() -> None:
    with bench([0, 1, 2], refusing=(0, 1, 2)) as here:
        here.area.set_healthy(1, False)
        assert here.ask(3) == [502] * 3
        assert here.counted("connect_failures_total") == 9


def test_bytes_hold_over_snapshots_and_workers() -> None:
    with bench([0, 1]) as here:
        here.area.set_healthy(0, False)
        ports = [int(port) for port in here.ask(1)]
        assert ports == [1]
        other = Area.attach(here.area.fd)
        assert [other.healthy(slot) for slot in range(2)] == [False, True]
        other.set_healthy(0, True)
        assert sorted(here.ask(2)) == [b"0", b"1"]


def test_a_byte_that_there_is_not() -> None:
    area = Area.create(1, 8, health=4)
    assert area.checkable == 4
    for slot in (-1, 4):
        with pytest.raises(IndexError):
            area.healthy(slot)
        with pytest.raises(IndexError):
            area.set_healthy(slot, False)
    area.set_healthy(3, False)
    assert [area.healthy(slot) for slot in range(4)] == [True, True, True, False]
    with pytest.raises(ValueError, match="room for 4 checked endpoints"):
        Bench(area, [1, 2], [3, 4])
