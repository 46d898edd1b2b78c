"""The proxies that the bench compares, each set up as somebody who cares for speed would, with one worker.

The same for all: one worker (thread), access log off, keep-alive on both sides with a pool of upstream
connections that holds every client's, no limit that the load can meet, TLS 1.3 only between the two hops of a
mesh with certificates demanded from both sides, session reuse as each does it by default. Everything else is
the proxy's default; where a default would hurt it in this load, its module says what was changed and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol, get_args

from bench.pki import Identity, Pki

Role = Literal["plain", "out", "in", "h2-out", "h2-in", "transparent", "opaque"]
"""plain: HTTP to HTTP; out: HTTP to mutual TLS, as svc-a; in: mutual TLS to HTTP, as svc-b (HTTP/2 too, if
the client asks for it). h2-out: HTTP/2 in plaintext to HTTP/2 over mutual TLS; h2-in: from there to HTTP/2
in plaintext. transparent: plain, for connections made to somebody else; opaque: their bytes, unread."""

Topology = Literal[
    "plain",
    "mesh",
    "in",
    "handshake",
    "h2",
    "h2-streams",
    "grpc",
    "grpc-stream",
    "slow-stream",
    "transparent",
    "transparent-tcp",
]
"""Who stands behind whom: see bench.stage."""

ALL: Final[frozenset[Topology]] = frozenset(get_args(Topology))
REDIRECTED: Final[frozenset[Topology]] = frozenset(("transparent", "transparent-tcp"))
H2_ONLY: Final[frozenset[Topology]] = frozenset(("h2", "h2-streams", "grpc", "grpc-stream", "slow-stream"))
H1_ONLY: Final[frozenset[Topology]] = frozenset(("plain", "mesh", "in", "handshake"))

# Behind a redirect: the address that clients dial (with the backend's port), the proxy's port, and the mark
# of what a proxy sends to where the connection was going (fastmesh's own default).
SERVICE: Final = "10.77.0.2"
LISTEN: Final = 15001
MARK: Final = 0x0FA5
DIRECT: Final = "floor-direct"


@dataclass(frozen=True)
class Hop:
    """One proxy process (with its children) in the path of a request. All on 127.0.0.1; behind a redirect
    the backend is at SERVICE, too."""

    role: Role
    listen: int
    upstream: int
    connections: int  # how many clients it must hold at once


class Unavailable(Exception):
    """This proxy cannot run here, and why."""


class Proxy(Protocol):
    name: str
    topologies: Final[frozenset[Topology]]  # where it takes part

    def version(self) -> str:
        """What it says of itself. Raises Unavailable if it is not there."""

    def argv(self, hop: Hop, directory: Path) -> list[str]:
        """Write its configuration into `directory` (its own); the command that runs it in the foreground."""

    def identity(self, workload: str) -> Identity:
        """The files of a workload that this proxy's PKI knows. Raises Unavailable if it has no TLS."""


def everyone(pki: Pki, mesh_connections: int | None = None) -> dict[str, Proxy]:
    """All that the bench knows, by name, the floor first. `mesh_connections`: of fastmesh; None: its own."""
    from bench.proxies.envoy import Envoy
    from bench.proxies.fastmesh import Fastmesh
    from bench.proxies.floor import Floor
    from bench.proxies.haproxy import HAProxy
    from bench.proxies.nghttpx import Nghttpx
    from bench.proxies.nginx import Nginx

    proxies: list[Proxy] = [
        Floor("floor"),
        Floor(DIRECT),
        Nginx(pki.identities),
        HAProxy(pki.identities),
        Nghttpx(pki.identities),
        Envoy(pki.identities, "envoy", http2=True),
        Envoy(pki.identities, "envoy-h1", http2=False),
        Fastmesh(pki, "fastmesh", mesh_connections=mesh_connections),
        Fastmesh(pki, "fastmesh-h1", http1=True),
        Fastmesh(pki, "fastmesh-keep", keep_port=True),
    ]
    return {proxy.name: proxy for proxy in proxies}
