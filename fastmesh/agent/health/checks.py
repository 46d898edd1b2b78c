"""When endpoints are asked, and what follows from what they say.

An endpoint is healthy until `unhealthy` checks in a row were bad, then unhealthy until `healthy` in a row
were good. A check that could not be made, for reasons of our own, counts for nothing. The verdict is one byte
in the memory of the workers, whose number comes with the snapshot: it outlives this process, and the next one
begins with it. Bytes that no endpoint has are 0.

Each endpoint has a task of its own. First checks are spread over a second, later ones are an interval apart,
give or take a tenth; `AT_ONCE` at most are made at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from fastmesh.agent.health.ask import ask
from fastmesh.agent.health.words import HEALTHY, LOCAL, Outcome
from fastmesh.agent.state import Checked
from fastmesh.host.endpoints import checked, health_slots, key_of, text_of

if TYPE_CHECKING:
    from fastmesh._core import Area
    from fastmesh.agent.health.tls import CheckTls
    from fastmesh.agent.state import State

AT_ONCE: Final = 64
FIRST_S: Final = 1.0
JITTER: Final = 0.1

Ask = Callable[[Mapping[str, Any], Mapping[str, Any], "CheckTls | None"], Awaitable[Outcome]]


class HealthChecks:
    """Checks the endpoints of the snapshot in `state`, and keeps `state.checked`. `say` takes lines for the
    operator.
    """

    def __init__(self, area: Area, state: State, say: Callable[[str], None], how: Ask = ask) -> None:
        self._area = area
        self._state = state
        self._say = say
        self._ask = how
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._followed: Mapping[str, Any] | None = None
        self._slots: dict[str, int] | None = None
        self._endpoints: dict[str, _Endpoint] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: dict[str, str] = {}

    def follow(self) -> None:
        """Check what the snapshot in use says; nothing happens as long as that is the same."""
        snapshot = self._state.snapshot
        if snapshot is None or snapshot is self._followed:
            return
        self._followed = snapshot
        self._clear(health_slots(snapshot))
        known, self._endpoints = self._endpoints, {}
        for service, endpoint in checked(snapshot):
            key, tls = key_of(service, endpoint), self._state.check_tls.get(service["name"])
            one = known.pop(key, None) or _Endpoint(service["name"], text_of(endpoint))
            self._endpoints[key] = one
            plan = _plan(service, endpoint)
            if one.task is None or (one.plan, one.tls) != (plan, tls):
                one.begin(plan, tls, self._area.healthy(endpoint["health"]))
                one.task = asyncio.get_running_loop().create_task(self._watch(one, service, endpoint))
                self._tasks.add(one.task)
                one.task.add_done_callback(self._tasks.discard)
        for one in known.values():
            one.end()
        self._state.checked = [one.row for one in self._endpoints.values()]
        for name, tls in self._state.check_tls.items():
            if tls.error and tls.error != self._told.get(name):
                self._say(f"error: health checks of service {name} cannot be made: {tls.error}")
        self._told = {name: tls.error for name, tls in self._state.check_tls.items()}

    async def stop(self) -> None:
        """End all checks. What they said stays."""
        for one in self._endpoints.values():
            one.end()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _clear(self, slots: dict[str, int]) -> None:
        """Set back what no endpoint has any more, and what another one had."""
        if self._slots is None:  # what the agent before us left: its endpoints have the same bytes
            stale = set(range(self._area.checkable)) - set(slots.values())
        else:
            stale = {slot for key, slot in self._slots.items() if slots.get(key) != slot}
            stale |= {slot for key, slot in slots.items() if self._slots.get(key) != slot}
        for slot in stale:
            self._area.set_healthy(slot, True)
        self._slots = slots

    async def _watch(self, one: _Endpoint, service: Mapping[str, Any], endpoint: Mapping[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        interval = service["health_check"]["interval_ms"] / 1000
        await asyncio.sleep(random.uniform(0, min(interval, FIRST_S)))
        while True:
            began = loop.time()
            async with self._gate:
                try:
                    outcome = await self._ask(service, endpoint, one.tls)
                except Exception as error:
                    # A defect of ours must neither end the checks nor blame the endpoint.
                    outcome = Outcome(LOCAL, f"an error inside fastmesh: {error!r}")
            self._take(one, service["health_check"], endpoint["health"], outcome)
            apart = interval * random.uniform(1 - JITTER, 1 + JITTER)
            await asyncio.sleep(max(began + apart - loop.time(), 0))

    def _take(self, one: _Endpoint, check: Mapping[str, Any], slot: int, outcome: Outcome) -> None:
        row = one.row
        row.results[outcome.result] += 1
        if outcome.result == LOCAL:
            if one.reason != outcome.reason:
                self._say(f"warning: health check of {row.what} could not be made: {outcome.reason}")
            one.reason = outcome.reason
            return
        one.reason = outcome.reason
        good = outcome.result == HEALTHY
        one.opposed = one.opposed + 1 if good != row.healthy else 0
        if not one.opposed or one.opposed < check["healthy" if good else "unhealthy"]:
            return
        one.opposed = 0
        row.healthy = good
        self._area.set_healthy(slot, good)
        if good:
            self._say(f"{row.what} is healthy again")
            return
        again = f", {check['unhealthy']} checks in a row" if check["unhealthy"] > 1 else ""
        self._say(f"warning: {row.what} is unhealthy: {outcome.reason}{again}")
        if row.service in self._state.all_unhealthy():
            self._say(f"warning: no endpoint of service {row.service} is healthy: all of them are used")


class _Endpoint:
    """`plan` and `tls` are what its task works by, `opposed` how many checks in a row have contradicted what
    workers think of it.
    """

    def __init__(self, service: str, endpoint: str) -> None:
        self.row = Checked(service, endpoint)
        self.plan: object = None
        self.tls: CheckTls | None = None
        self.task: asyncio.Task[None] | None = None
        self.opposed = 0
        self.reason = ""

    def begin(self, plan: object, tls: CheckTls | None, healthy: bool) -> None:
        self.end()
        self.plan, self.tls = plan, tls
        self.row.healthy = healthy
        self.opposed = 0

    def end(self) -> None:
        if self.task is not None:
            self.task.cancel()
            self.task = None


def _plan(service: Mapping[str, Any], endpoint: Mapping[str, Any]) -> object:
    """What the checks of an endpoint depend on, its TLS aside."""
    return service["protocol"], service["tls"], dict(service["health_check"]), dict(endpoint)
