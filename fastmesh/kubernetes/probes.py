"""The kubelet's requests to the application: probes and hooks by HTTP and gRPC.

The kubelet is no member of the mesh. What it sends to a port that is intercepted would be refused there as
plaintext without an identity. So such a probe is turned to a port of the sidecar's, one for each port of the
application, on which exactly those paths pass to the application, and nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from fastmesh.config.errors import shown
from fastmesh.config.values import parse_path_pattern
from fastmesh.kubernetes.errors import ManifestError, Path, Refused
from fastmesh.kubernetes.pod import ProbePort
from fastmesh.kubernetes.shapes import mapping, mappings, port, text

FIRST_PORT: Final = 15020
PROBES: Final = ("startupProbe", "readinessProbe", "livenessProbe")
HOOKS: Final = ("postStart", "preStop")
GRPC_PATH: Final = "/grpc.health.v1.Health/Check"


class Turned(NamedTuple):
    """A probe that was turned, or (`to` None) one that the sidecar itself answers."""

    where: str
    port: int
    to: int | None


class Probes:
    """Turns the probes of one pod's containers, in place."""

    def __init__(self, inbound: Collection[int], taken: Collection[int]) -> None:
        self.turned: list[Turned] = []
        self._inbound = inbound
        self._ports: dict[int, int] = {}
        self._paths: dict[int, list[str]] = {}
        self._grpc: set[int] = set()
        self._free: Iterator[int] = (one for one in itertools.count(FIRST_PORT) if one not in taken)

    def turn(self, container: dict[str, Any], path: Path) -> None:
        """Raises ManifestError, and Refused for what would fail."""
        for key in PROBES:
            probe = mapping(container, key, path)
            self._handler(container, path, probe, (*path, key))
        hooks = mapping(container, "lifecycle", path)
        at = (*path, "lifecycle")
        for key in HOOKS:
            self._handler(container, path, mapping(hooks, key, at), (*at, key))

    def ports(self) -> list[ProbePort]:
        """What the sidecar has to serve for them."""
        return [
            ProbePort(port, to, self._paths.get(to, []), to in self._grpc) for to, port in self._ports.items()
        ]

    def _handler(self, container: dict[str, Any], home: Path, probe: dict[str, Any], path: Path) -> None:
        key = path[-1]
        where = f"{container.get('name')}.{key}"
        http = mapping(probe, "httpGet", path)
        if http and not http.get("host"):
            at = (*path, "httpGet")
            target = _port(container, home, http.get("port"), (*at, "port"))
            if target in self._inbound:
                self._http(http, target, at, where)
        grpc = mapping(probe, "grpc", path)
        if grpc:
            target = port(grpc.get("port"), (*path, "grpc", "port"))
            if target in self._inbound:
                self._grpc.add(target)
                grpc["port"] = self._to(target, where)
        tcp = mapping(probe, "tcpSocket", path)
        if tcp and not tcp.get("host") and key in PROBES:
            target = _port(container, home, tcp.get("port"), (*path, "tcpSocket", "port"))
            if target in self._inbound:
                self.turned.append(Turned(where, target, None))

    def _http(self, http: dict[str, Any], target: int, path: Path, where: str) -> None:
        remedy = f'exclude the port (fastmesh.io/exclude-inbound-ports: "{target}"), or probe another one'
        if str(http.get("scheme") or "HTTP").upper() == "HTTPS":
            raise Refused(
                f"{where} asks port {target} by HTTPS, which is intercepted: the kubelet has no identity "
                f"and would fail; {remedy}"
            )
        asked = http.get("path") or "/"
        if not isinstance(asked, str):
            raise ManifestError((*path, "path"), "expected a path")
        only = urlsplit(asked if asked.startswith("/") else f"/{asked}").path
        try:
            if only.endswith("*"):
                raise ValueError(f"{shown(only)} ends in '*'")
            parse_path_pattern(only)
        except ValueError as error:
            raise Refused(f"{where}: {error}; {remedy}") from None
        paths = self._paths.setdefault(target, [])
        if only not in paths:
            paths.append(only)
        http["port"] = self._to(target, where)

    def _to(self, target: int, where: str) -> int:
        if target not in self._ports:
            self._ports[target] = next(self._free)
        self.turned.append(Turned(where, target, self._ports[target]))
        return self._ports[target]


def _port(container: dict[str, Any], home: Path, value: Any, path: Path) -> int:
    """A probe's port: a number, or the name of one of the container's, which is at `home`."""
    if not isinstance(value, str):
        return port(value, path)
    names = {}
    for index, one in enumerate(mappings(container, "ports", home)):
        names[text(one, "name", (*home, "ports", index))] = one.get("containerPort")
    if value in names:
        return port(names[value], path)
    if value.isdigit():
        return port(int(value), path)
    known = ", ".join(sorted(str(name) for name in names if name)) or "none has a name"
    raise ManifestError(
        path, f"{shown(value)} is no port of the container, expected one of its ports ({known})"
    )
