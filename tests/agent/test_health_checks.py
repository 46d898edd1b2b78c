"""When the agent asks and what follows: thresholds, bytes, reloads, restarts. Endpoints are scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pytest
from kit.limits import DEADLINE

from fastmesh._core import Area
from fastmesh.agent.health.checks import AT_ONCE, HealthChecks
from fastmesh.agent.health.words import ERROR, HEALTHY, LOCAL, TIMEOUT, UNHEALTHY, Outcome
from fastmesh.agent.state import State

GOOD, BAD = Outcome(HEALTHY), Outcome(UNHEALTHY, "answered 503")


def service(ports: Mapping[int, int], name: str = "web", **check: Any) -> dict[str, Any]:
    """`ports` with the bytes that they have."""
    defaults = {"path": "/", "grpc": None, "interval_ms": 1, "timeout_ms": 1000, "healthy": 2, "unhealthy": 3}
    return {
        "name": name,
        "tls": "none",
        "protocol": "auto",
        "health_check": defaults | check,
        "endpoints": [
            {"family": "inet", "host": "127.0.0.1", "port": port, "path": None, "health": slot}
            for port, slot in ports.items()
        ],
    }


class Bench:
    """Checks at work. `says` has, by port, what the endpoint says."""

    def __init__(self, area: Area | None = None) -> None:
        self.area = area or Area.create(1, 8, health=8)
        self.state = State()
        self.says: dict[int, Outcome | Exception] = {}
        self.asked: dict[int, int] = {}
        self.under_way = self.most = 0
        self.lines: list[str] = []
        self.checks = HealthChecks(self.area, self.state, self.lines.append, self.ask)

    async def ask(self, service: Mapping[str, Any], endpoint: Mapping[str, Any], tls: object) -> Outcome:
        port = endpoint["port"]
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        self.asked[port] = self.asked.get(port, 0) + 1
        said = self.says.get(port, GOOD)
        if isinstance(said, Exception):
            raise said
        return said

    def load(self, *services: dict[str, Any]) -> None:
        self.state.take_snapshot({"services": list(services)})
        self.checks.follow()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await asyncio.sleep(0.001)

    async def rounds(self, port: int, count: int = 5) -> None:
        """Until it has been asked so many times more."""
        wanted = self.asked.get(port, 0) + count
        await self.until(lambda: self.asked.get(port, 0) >= wanted)

    def bytes(self) -> list[bool]:
        return [self.area.healthy(slot) for slot in range(self.area.checkable)]


def run(scenario: Callable[[Bench], Coroutine[Any, Any, None]], area: Area | None = None) -> Bench:
    async def main() -> Bench:
        here = Bench(area)
        try:
            await scenario(here)
        finally:
            await here.checks.stop()
        assert len(asyncio.all_tasks()) == 1
        return here

    return asyncio.run(main())


def test_unhealthy_and_healthy_again() -> None:
    async def scenario(here: Bench) -> None:
        here.load(service({1: 3, 2: 4}))
        await here.rounds(1)
        assert all(here.bytes())
        assert not here.lines
        here.says[1] = BAD
        await here.until(lambda: not here.area.healthy(3))
        assert here.area.healthy(4)
        await here.rounds(1)
        here.says[1] = GOOD
        await here.until(lambda: here.area.healthy(3))

    here = run(scenario)
    assert here.lines == [
        "warning: endpoint 127.0.0.1:1 of service web is unhealthy: answered 503, 3 checks in a row",
        "endpoint 127.0.0.1:1 of service web is healthy again",
    ]
    row = here.state.checked[0]
    assert (row.service, row.endpoint, row.healthy) == ("web", "127.0.0.1:1", True)
    assert row.results[HEALTHY] >= 7
    assert row.results[UNHEALTHY] >= 3


def test_only_checks_in_a_row_count() -> None:
    async def scenario(here: Bench) -> None:
        said = [BAD, BAD, GOOD] * 6 + [BAD, BAD, BAD] + [GOOD, BAD] * 6 + [GOOD, GOOD]
        changes: list[int] = []

        async def ask(*_: object) -> Outcome:
            if here.area.healthy(0) == bool(len(changes) % 2):
                changes.append(len(said))
            return said.pop(0) if said else GOOD

        here.checks._ask = ask
        here.load(service({1: 0}))
        await here.until(lambda: not said and here.area.healthy(0))
        # Unhealthy behind the three in a row, healthy only behind the two.
        assert changes[0] == 14

    run(scenario)


@pytest.mark.parametrize("result", [UNHEALTHY, TIMEOUT, ERROR])
def test_whatever_is_not_healthy_counts(result: str) -> None:
    async def scenario(here: Bench) -> None:
        here.says[1] = Outcome(result, "why")
        here.load(service({1: 0}, unhealthy=1))
        await here.until(lambda: not here.area.healthy(0))

    here = run(scenario)
    assert here.lines[0] == "warning: endpoint 127.0.0.1:1 of service web is unhealthy: why"
    assert here.state.checked[0].results[result] >= 1


def test_what_is_our_own_fault_counts_for_nothing() -> None:
    async def scenario(here: Bench) -> None:
        here.says = {1: Outcome(LOCAL, "too many open files"), 2: RuntimeError("a defect")}
        here.load(service({1: 0, 2: 1}, unhealthy=1))
        await here.rounds(1)
        await here.rounds(2)
        assert all(here.bytes())
        here.says = {1: BAD, 2: BAD}
        await here.until(lambda: not here.area.healthy(0) and not here.area.healthy(1))
        here.says = {1: Outcome(LOCAL, "too many open files"), 2: Outcome(LOCAL, "too many open files")}
        await here.rounds(1)
        assert not here.area.healthy(0)

    here = run(scenario)
    assert (
        "warning: health check of endpoint 127.0.0.1:1 of service web could not be made: too many open files"
        in here.lines
    )
    assert any("an error inside fastmesh: RuntimeError('a defect')" in line for line in here.lines)
    assert len(here.lines) < 12, "the same is not said again and again"


def test_none_is_healthy() -> None:
    async def scenario(here: Bench) -> None:
        here.says = {1: BAD, 2: BAD}
        here.load(service({1: 0, 2: 1}), service({3: 2}, "other"))
        await here.until(lambda: not here.area.healthy(0) and not here.area.healthy(1))
        assert here.state.all_unhealthy() == ["web"]
        assert "no endpoint of service web is healthy: all are used" in here.state.warnings()
        here.says[2] = GOOD
        await here.until(lambda: here.area.healthy(1))
        assert here.state.all_unhealthy() == []

    lines = run(scenario).lines
    assert lines.count("warning: no endpoint of service web is healthy: all of them are used") == 1


def test_a_reload_keeps_what_is_known() -> None:
    async def scenario(here: Bench) -> None:
        here.says = {1: BAD, 2: BAD}
        here.load(service({1: 0, 2: 1}))
        await here.until(lambda: not here.area.healthy(0) and not here.area.healthy(1))
        task = here.checks._endpoints["web/127.0.0.1:1"].task
        counted = here.state.checked[0].results[UNHEALTHY]
        # 2 is gone, 3 is new; 1 is what it was.
        here.load(service({1: 0, 3: 2}))
        assert here.bytes() == [False] + [True] * 7
        assert here.checks._endpoints["web/127.0.0.1:1"].task is task
        assert here.state.checked[0].results[UNHEALTHY] >= counted
        await here.rounds(3)
        before = here.asked[2]
        await here.rounds(3)
        assert here.asked[2] == before, "nobody asks what is not in the snapshot"
        # Another question: the verdict stays until the answers to that contradict it.
        here.says[1] = GOOD
        here.load(service({1: 0, 3: 2}, path="/other"))
        assert here.bytes()[0] is False
        await here.until(lambda: here.area.healthy(0))

    run(scenario)


def test_a_byte_that_another_endpoint_had() -> None:
    async def scenario(here: Bench) -> None:
        here.says = {1: BAD}
        here.load(service({1: 0}))
        await here.until(lambda: not here.area.healthy(0))
        here.load(service({2: 0}))
        assert here.area.healthy(0)
        here.load({**service({2: 0}), "health_check": None})
        assert here.state.checked == []

    run(scenario)


def test_the_next_agent_begins_with_what_the_one_before_has_left() -> None:
    area = Area.create(1, 8, health=8)

    async def first(here: Bench) -> None:
        here.says = {1: BAD}
        here.load(service({1: 0, 2: 1}))
        await here.until(lambda: not here.area.healthy(0))

    async def second(here: Bench) -> None:
        area.set_healthy(7, False)  # nobody's: the agent before was killed between two steps
        here.says = {1: BAD}
        here.load(service({1: 0, 2: 1}))
        assert here.bytes() == [False] + [True] * 7
        assert [one.healthy for one in here.state.checked] == [False, True]
        await here.rounds(1)
        assert here.lines == []
        here.says = {}
        await here.until(lambda: area.healthy(0))

    run(first, area)
    assert not area.healthy(0), "it stays when nobody checks"
    assert run(second, area).lines == ["endpoint 127.0.0.1:1 of service web is healthy again"]


def test_so_many_at_once() -> None:
    async def scenario(here: Bench) -> None:
        ports = {port: port - 1 for port in range(1, 3 * AT_ONCE)}
        here.load(service(ports))
        await here.until(lambda: len(here.asked) == len(ports))

    assert run(scenario, Area.create(1, 8, health=256)).most <= AT_ONCE


def test_nothing_to_check() -> None:
    async def scenario(here: Bench) -> None:
        here.checks.follow()
        here.load()
        here.load({**service({1: 0}), "health_check": None})
        assert here.state.checked == []

    run(scenario)
