"""Three hosts on one switch: A and B have sidecars and rules that take their traffic over, C has nothing.

The applications on them are whatever a test starts there; they are told nothing of the mesh.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from kit.intercept import intercept
from kit.limits import DEADLINE
from kit.netns import Namespace, namespaces, plug_in
from kit.pki import Pki
from kit.proxy import Fastmesh

T = TypeVar("T")
A = {4: "10.77.0.1", 6: "fd00:77::1"}
B = {4: "10.77.0.2", 6: "fd00:77::2"}
C = {4: "10.77.0.3", 6: "fd00:77::3"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
OUT, IN, ADMIN = 15001, 15006, 15000
SVC_B = "spiffe://mesh.local/svc-b"


def at(address: str, port: int) -> str:
    """An address as configurations and URLs have it."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def unaware() -> dict[str, str]:
    """The environment without the names of any proxy."""
    return {name: text for name, text in os.environ.items() if not name.lower().endswith("_proxy")}


class Hosts:
    """The three of them, and the switch between them."""

    def __init__(self, a: Namespace, b: Namespace, c: Namespace, switch: Namespace) -> None:
        self.a, self.b, self.c, self.switch = a, b, c, switch
        plug_in(switch, a, b, c)
        for host, addresses in ((a, A), (b, B), (c, C)):
            host.address("eth0", f"{addresses[4]}/24", f"{addresses[6]}/64")
        for host in (a, b):
            host.run("ip", "route", "add", "default", "via", C[4])
            host.run("ip", "-6", "route", "add", "default", "via", C[6])


@contextlib.contextmanager
def three_hosts() -> Iterator[Hosts]:
    with namespaces(4, "fm-hosts") as (a, b, c, switch):
        yield Hosts(a, b, c, switch)


def execute(
    host: Namespace, *command: str | Path, check: bool = True, input: str | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """A program on a host, to its end."""
    with host.inside():
        done = subprocess.run(
            [*map(str, command)],
            capture_output=True,
            text=True,
            input=input,
            timeout=4 * DEADLINE,
            check=False,
            env=unaware() | options.pop("env", {}),
            **options,
        )
    assert not check or done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done


class Mesh:
    """The sidecars of A and B, and the rules on both hosts; all is taken back by `close`."""

    def __init__(
        self,
        hosts: Hosts,
        pki: Pki,
        directory: Path,
        method: str,
        *,
        services: dict[str, Any],
        ports: list[int],
        **sections: Any,
    ) -> None:
        self.hosts, self.method, self._pki, self._directory = hosts, method, pki, directory
        self._sidecars: list[tuple[Namespace, Fastmesh]] = []
        self.a = self._start(hosts.a, "svc-a", services, [8080], **sections)
        self.b = self._start(hosts.b, "svc-b", {}, ports)

    def _start(
        self, host: Namespace, workload: str, services: dict[str, Any], ports: list[int], **sections: Any
    ) -> Fastmesh:
        config = {
            "admin": f"127.0.0.1:{ADMIN}",
            "workload": workload,
            "trust_domain": "mesh.local",
            "pki": str(self._pki.path),
            "intercept": {
                "method": self.method,
                "outbound": {"exclude_ports": [22], "exclude_cidrs": ["169.254.0.0/16"]},
                "inbound": {"ports": ports},
            },
            "listeners": [
                {"name": f"{role}{family}", "role": role, "bind": bind, "transparent": True, **more}
                for role, family, bind, more in (
                    ("outbound", "", f"127.0.0.1:{OUT}", {"unknown": "passthrough"}),
                    ("outbound", "6", f"[::1]:{OUT}", {"unknown": "passthrough"}),
                    ("inbound", "", f"0.0.0.0:{IN}", {"tls": "mesh"}),
                    ("inbound", "6", f"[::]:{IN}", {"tls": "mesh"}),
                )
            ],
            "services": services,
            **sections,
        }
        sidecar = Fastmesh(config, self._directory, name=f"{workload}-{self.method}")
        intercept("up", "-c", sidecar.path, "--netns", host.name)
        self._sidecars.append((host, sidecar))
        with host.inside():
            sidecar.start()
        return sidecar

    def close(self) -> None:
        """Both sidecars end well, and no rule is left."""
        for host, sidecar in self._sidecars:
            sidecar.stop()
            intercept("down", "-c", sidecar.path, "--netns", host.name)
            assert host.run("nft", "list", "ruleset") == ""

    def kill(self) -> None:
        for _, sidecar in self._sidecars:
            sidecar.kill()

    def sum(self, of: str, name: str, **labels: str) -> float:
        """A metric of the sidecar of "a" or "b"."""
        return float(self._asked(of, Fastmesh.metrics).sum(name, **labels))

    def services(self, of: str) -> Any:
        return yaml.safe_load(self._asked(of, lambda sidecar: sidecar.admin("/services"))[1])

    def _asked(self, of: str, ask: Callable[[Fastmesh], T]) -> T:
        host, sidecar = self._sidecars["ab".index(of)]
        with host.inside():
            return ask(sidecar)


@contextlib.contextmanager
def mesh(hosts: Hosts, pki: Pki, directory: Path, method: str, **how: Any) -> Iterator[Mesh]:
    """`Mesh`, which must end well where the test did."""
    made = Mesh(hosts, pki, directory, method, **how)
    try:
        yield made
        made.close()
    finally:
        made.kill()


def delays(call: Callable[[], object], times: int = 4) -> list[float]:
    """How many milliseconds each of so many calls takes, one after another."""
    took = []
    for _ in range(times):
        begun = time.monotonic()
        call()
        took.append((time.monotonic() - begun) * 1000)
    return took


def shown(method: str, what: str, took: list[float], direct: float | None = None) -> None:
    """Print delays: of the first connection, and the best of the later ones."""
    rest = "" if direct is None else f", without the mesh {direct:.1f} ms"
    print(f"{method} {what}: first connection {took[0]:.1f} ms, later {min(took[1:]):.1f} ms{rest}")
