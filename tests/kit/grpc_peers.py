"""gRPC clients and services as processes of their own, in Python (grpcio) and JavaScript (@grpc/grpc-js).

Both speak the same small protocol on stdin and stdout, a line of JSON at a time (see `kit.grpc_service` and
`kit.grpc_client`), so that a test pairs them at will. Their stderr is kept and shown when something fails.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kit.grpc_scenarios import SCENARIOS, Scenario
from kit.limits import PATIENCE, bare
from kit.line_process import LineProcess
from kit.ports import free_port

KIT = Path(__file__).parent
JS = KIT / "grpc-js"
LANGUAGES = ("grpcio", "grpc-js")
PAIRS = [(client, service) for client in LANGUAGES for service in LANGUAGES]


def command(language: str, role: str) -> list[str]:
    """The program of a `service` or a `client`. AssertionError if `scripts/setup` did not install it."""
    if language == "grpcio":
        return [sys.executable, "-m", f"kit.grpc_{role}"]
    node = shutil.which("node")
    assert node is not None, "node is missing: scripts/setup installs it"
    assert (JS / "node_modules").is_dir(), "@grpc/grpc-js is missing: scripts/setup installs it"
    return [node, str(JS / f"{role}.js")]


class Peer(LineProcess):
    """A child process that answers a line with a line."""

    def __init__(self, directory: Path, language: str, role: str, *arguments: str) -> None:
        self.language = language
        self.path = directory / f"{language}-{role}-{free_port()}.stderr"
        env = bare() | {"PYTHONPATH": str(KIT.parent), "FASTMESH_TEST_PATIENCE": str(PATIENCE)}
        with self.path.open("wb") as stderr:
            super().__init__([*command(language, role), *arguments], env, stderr)

    def stderr(self) -> str:
        return self.path.read_text(errors="replace")


class Service(Peer):
    """A service on 127.0.0.1, at a port that is free or at this one."""

    def __init__(self, directory: Path, language: str, port: int = 0) -> None:
        super().__init__(directory, language, "service", f"127.0.0.1:{port}")

    @functools.cached_property
    def port(self) -> int:
        """Known once it listens, which this waits for."""
        port: int = self.hear()["port"]
        return port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def drain(self) -> None:
        """A graceful end: GOAWAY, calls that are under way may end. Returns at once."""
        self.say("drain")


class Client(Peer):
    """A client that runs scenarios."""

    def __init__(self, directory: Path, language: str) -> None:
        super().__init__(directory, language, "client")

    def observe(self, scenario: Scenario, target: str, service: Service, authority: str) -> dict[str, Any]:
        """Run a scenario against `target`, behind which is `service`; what both ends saw."""
        job = {
            "scenario": scenario.data(),
            "target": target,
            "control": service.address,
            "authority": authority,
        }
        self.say(json.dumps(job))
        observation: dict[str, Any] = self.hear()
        return observation


class Peers:
    """A client and a service of each language, for all tests of this process."""

    def __init__(self, directory: Path) -> None:
        self._services = {language: Service(directory, language) for language in LANGUAGES}
        self._clients = {language: Client(directory, language) for language in LANGUAGES}
        self._direct: dict[tuple[str, str, str, str], dict[str, Any]] = {}

    def service(self, language: str) -> Service:
        return self._services[language]

    def client(self, language: str) -> Client:
        return self._clients[language]

    def direct(self, client: str, service: str, name: str, authority: str) -> dict[str, Any]:
        """What a scenario is without anything between; run once however often it is compared with."""
        key = (client, service, name, authority)
        if key not in self._direct:
            self._direct[key] = self.through(client, service, name, authority, self.service(service).address)
        return self._direct[key]

    def through(self, client: str, service: str, name: str, authority: str, target: str) -> dict[str, Any]:
        """What a scenario is by way of `target`."""
        return self.client(client).observe(SCENARIOS[name], target, self.service(service), authority)

    def close(self) -> None:
        for peer in [*self._clients.values(), *self._services.values()]:
            peer.close()


def triples(names: Iterable[str], pairs: Iterable[tuple[str, str]] = PAIRS) -> list[tuple[str, str, str]]:
    """Scenarios with the pairs of client and service that can do them, as parameters of a test."""
    return [
        (name, client, service)
        for client, service in pairs
        for name in names
        if service in SCENARIOS[name].only
    ]
