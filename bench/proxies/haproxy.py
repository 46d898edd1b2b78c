"""HAProxy, one thread, under its master process (as its Debian service and its container image run it).

Changed from its defaults: `http-reuse always` (any idle upstream connection serves anybody), idle upstream
connections kept (by default they go once a quarter of its descriptors is in use, and half of them every 5 s),
splice(2) for bodies, long timeouts.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from bench.machine import first_line
from bench.pki import Identity
from bench.proxies import Hop, Unavailable

BINARY: Final = "haproxy"

CONFIG: Final = """\
global
  nbthread 1
  maxconn {connections}
  tune.pool-high-fd-ratio 100
  tune.pool-low-fd-ratio 100
  hard-stop-after 1s

defaults
  mode http
  no log
  http-reuse always
  option splice-auto
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout http-keep-alive 1h

frontend front
  bind 127.0.0.1:{listen} backlog 4096{bind_tls}
  default_backend back

backend back
  server app 127.0.0.1:{upstream} pool-purge-delay 1h{server_tls}
"""


class HAProxy:
    name = "haproxy"

    def __init__(self, identities: dict[str, Identity]) -> None:
        self._identities = identities

    def version(self) -> str:
        if not shutil.which(BINARY):
            raise Unavailable("not installed (Debian: haproxy)")
        return first_line([BINARY, "-v"]).split()[2]

    def argv(self, hop: Hop, directory: Path) -> list[str]:
        a, b = self._identities["svc-a"], self._identities["svc-b"]
        tls13 = "ssl-min-ver TLSv1.3 ssl-max-ver TLSv1.3"
        bind_tls = f" ssl crt {b.both} ca-file {b.bundle} verify required {tls13}"
        server_tls = (
            f" ssl crt {a.both} ca-file {a.bundle} verify required verifyhost svc-b sni str(svc-b) {tls13}"
        )
        file = directory / "haproxy.cfg"
        file.write_text(
            CONFIG.format(
                connections=hop.connections + 64,
                listen=hop.listen,
                upstream=hop.upstream,
                bind_tls=bind_tls if hop.role == "in" else "",
                server_tls=server_tls if hop.role == "out" else "",
            )
        )
        return [BINARY, "-W", "-db", "-f", str(file)]

    def identity(self, workload: str) -> Identity:
        return self._identities[workload]
