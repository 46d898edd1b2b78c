"""Scenarios of `kit.matrix` run through an edge, and through two sidecars with mutual TLS between them.

Each run has a listener and a service of its own in processes that all share, so that runs see nothing of each
other. After its steps the connections must be as the scenario says: one more exchange shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kit.limits import PATIENCE
from kit.matrix import Arrivals, By, Scenario, Step, far, near
from kit.matrix_http1 import FarHttp1, NearHttp1
from kit.matrix_http2 import FarHttp2, NearHttp2
from kit.pki import Pki
from kit.ports import free_port
from kit.proxy import Fastmesh
from kit.sidecars import address_of, inbound, outbound

Host = tuple[str, int]
PAIRS = {"h1-h1": "near1 far1", "h1-h2": "near1 far2", "h2-h1": "near2 far1", "h2-h2": "near2 far2"}


class Run:
    """A scenario for one pair on one way."""

    def __init__(self, scenario: Scenario, pair: str, way: str) -> None:
        self.scenario = scenario
        self.pair = pair
        self.way = way
        self.words = {way, *PAIRS[pair].split()}
        self.service = f"{scenario.name}-{pair}"
        self.endpoint: Host = ("127.0.0.1", free_port())
        self.address: Host = ("127.0.0.1", 0)  # where the client begins

    def __str__(self) -> str:
        return f"{self.way}-{self.pair}-{self.scenario.name}"

    @property
    def protocol(self) -> str:
        """Of the service."""
        return "http1" if "far1" in self.words else "http2"

    def perform(self) -> None:
        arrivals = Arrivals(self.endpoint, self.service)
        client = self._client()
        server = FarHttp1(arrivals) if "far1" in self.words else FarHttp2(arrivals)
        try:
            if self.scenario.warm:
                self._small(client, server, "new")
            for step in self.scenario.steps:
                self._take(step, client if step.end == "near" else server)
            if not client.check_after(self._pick(self.scenario.near_keeps)):
                client.close()
                client = self._client()
            self._small(client, server, server.check_after(self._pick(self.scenario.far_keeps)))
            assert not arrivals.unexpected(), "a connection that nobody needed"
        finally:
            arrivals.close()
            client.close()

    def _client(self) -> NearHttp1 | NearHttp2:
        return (NearHttp1 if "near1" in self.words else NearHttp2)(self.address, self.service)

    def _small(self, client: NearHttp1 | NearHttp2, server: FarHttp1 | FarHttp2, on: str) -> None:
        """An exchange that must go well."""
        for step in (
            near.ask("GET", "/small"),
            far.sees("GET", "/small", on=on),
            far.over(),
            far.answers(200, [("x-small", "yes")], 5),
            far.sends(b"small"),
            far.ends(),
            near.sees(200, [("x-small", "yes")], "length 5"),
            near.gets(b"small"),
            near.over(),
        ):
            self._take(step, client if step.end == "near" else server)

    def _take(self, step: Step, end: object) -> None:
        if not set(step.when.split()) <= self.words:
            return
        args, more = self._pick(list(step.args)), self._pick(step.more)
        if step.verb in ("sees", "over") and self.words & {"mesh", "near2", "far2"}:
            # Names have no capitals wherever they went through HTTP/2 (RFC 9113 8.2.1).
            args = [_lowered(value) for value in args]
        try:
            getattr(end, step.verb)(*args, **more)
        except Exception as error:
            error.add_note(f"step: {step}")
            raise

    def _pick(self, value: Any) -> Any:
        if isinstance(value, By):
            return self._pick(value.pick(self.words))
        if isinstance(value, tuple):
            return tuple(self._pick(one) for one in value)
        if isinstance(value, list):
            return [self._pick(one) for one in value]
        if isinstance(value, dict):
            return {key: self._pick(one) for key, one in value.items()}
        return value


def _lowered(value: Any) -> Any:
    return [(name.lower(), text) for name, text in value] if isinstance(value, list) else value


def runs(scenarios: Sequence[Scenario]) -> list[Run]:
    """All that there is to run."""
    return [
        Run(scenario, pair, way)
        for way in ("edge", "mesh")
        for scenario in scenarios
        if way in scenario.ways
        for pair, words in PAIRS.items()
        if set(scenario.pairs.split()) <= set(words.split())
    ]


class Matrix:
    """The running proxies: an edge, and the sidecars of svc-a and svc-b."""

    def __init__(self, directory: Path, pki: Pki, todo: Sequence[Run]) -> None:
        edge = [run for run in todo if run.way == "edge"]
        for run in edge:
            run.address = ("127.0.0.1", free_port())
        self.edge = Fastmesh(
            {
                "drain": f"{int(5 * PATIENCE)}s",
                "listeners": [
                    {"name": run.service, "bind": f"127.0.0.1:{run.address[1]}", "to": run.service}
                    for run in edge
                ],
                "services": {run.service: _service(run) for run in edge},
            },
            directory,
        )
        mesh = [run for run in todo if run.way == "mesh"]
        theirs, ours = inbound(pki, 1), outbound(pki, 1)
        first = theirs["listeners"][0]
        for config in (theirs, ours):
            config["drain"] = f"{int(5 * PATIENCE)}s"
        theirs["listeners"] = [
            {**first, "name": run.service, "bind": f"127.0.0.1:{free_port()}", "to": run.service}
            for run in mesh
        ]
        theirs["services"] = {run.service: _service(run) for run in mesh}
        ours["services"] = {
            listener["name"]: {
                "endpoints": [listener["bind"]],
                "tls": "mesh",
                "spiffe_id": "spiffe://mesh.local/svc-b",
            }
            for listener in theirs["listeners"]
        }
        for run in mesh:
            run.address = address_of(ours)
        self.sidecars = Fastmesh(theirs, directory), Fastmesh(ours, directory)
        self.proxies = [self.edge, *self.sidecars]

    def start(self) -> None:
        for proxy in self.proxies:
            proxy.start()

    def stop(self) -> None:
        for proxy in reversed(self.proxies):
            proxy.stop()

    def kill(self) -> None:
        for proxy in self.proxies:
            proxy.kill()

    def check(self) -> None:
        """No process has left on stderr what none may leave."""
        faults = [line for proxy in self.proxies for line in proxy.new_faults()]
        assert not faults, faults


def _service(run: Run) -> dict[str, Any]:
    host, port = run.endpoint
    return {"endpoints": [f"{host}:{port}"], "protocol": run.protocol}
