"""HAProxy, one thread, under its master process (as its Debian service and its container image run it).

Between the hops HTTP/1.1 (what it speaks to servers unless told otherwise), HTTP/2 where clients speak it.

Changed from its defaults: `http-reuse always` (any idle upstream connection serves anybody), idle upstream
connections kept (by default they go once a quarter of its descriptors is in use, and half of them every 5 s),
splice(2) for bodies, long timeouts. With HTTP/2 upstreams as well: four idle connections instead of all, or
every stream would keep the connection that it began with and nothing would be multiplexed; 1000 streams a
connection instead of 100, so that the load meets no limit.
Opaque connections: `mode tcp`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from bench.machine import first_line
from bench.pki import Identity
from bench.proxies import ALL, Hop, Role, Topology, Unavailable

BINARY: Final = "haproxy"
FEW_IDLE: Final = "pool-max-conn 4"
REUSE: Final = "\n  http-reuse always"
MORE_STREAMS: Final = "\n  tune.h2.max-concurrent-streams 1000"
TLS13: Final = "ssl-min-ver TLSv1.3 ssl-max-ver TLSv1.3"

CONFIG: Final = """\
global
  nbthread 1{more}
  maxconn {connections}
  tune.pool-high-fd-ratio 100
  tune.pool-low-fd-ratio 100
  hard-stop-after 1s

defaults
  mode {mode}
  no log{reuse}
  option splice-auto
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout http-keep-alive 1h

frontend front
  bind 127.0.0.1:{listen} backlog 4096{bind}
  default_backend back

backend back
  server app 127.0.0.1:{upstream}{server}
"""


class HAProxy:
    name = "haproxy"
    topologies: Final[frozenset[Topology]] = ALL

    def __init__(self, identities: dict[str, Identity]) -> None:
        self._identities = identities

    def version(self) -> str:
        if not shutil.which(BINARY):
            raise Unavailable("not installed (Debian: haproxy)")
        return first_line([BINARY, "-v"]).split()[2]

    def argv(self, hop: Hop, directory: Path) -> list[str]:
        file = directory / "haproxy.cfg"
        file.write_text(
            CONFIG.format(
                connections=hop.connections + 64,
                listen=hop.listen,
                upstream=hop.upstream,
                mode="tcp" if hop.role == "opaque" else "http",
                reuse="" if hop.role == "opaque" else REUSE,
                more=MORE_STREAMS if hop.role in ("h2-out", "h2-in") else "",
                bind=self._bind(hop.role),
                server=self._server(hop.role),
            )
        )
        return [BINARY, "-W", "-db", "-f", str(file)]

    def identity(self, workload: str) -> Identity:
        return self._identities[workload]

    def _bind(self, role: Role) -> str:
        """What follows the address of the clients' side."""
        if role == "h2-out":
            return " proto h2"
        if role not in ("in", "h2-in"):
            return ""
        b = self._identities["svc-b"]
        return f" ssl crt {b.both} ca-file {b.bundle} verify required {TLS13} alpn h2,http/1.1"

    def _server(self, role: Role) -> str:
        """What follows the address of the upstream's side."""
        if role == "h2-in":
            return f" proto h2 {FEW_IDLE}"
        pool = FEW_IDLE if role == "h2-out" else "pool-purge-delay 1h"
        if role not in ("out", "h2-out"):
            return f" {pool}"
        a = self._identities["svc-a"]
        verify = f"ca-file {a.bundle} verify required verifyhost svc-b sni str(svc-b)"
        return f" {pool} ssl crt {a.both} {verify} {TLS13}{' alpn h2' if role == 'h2-out' else ''}"
