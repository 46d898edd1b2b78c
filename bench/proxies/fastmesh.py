"""fastmesh as its user starts it: `.venv/bin/fastmesh serve -c FILE`, one worker.

Its supervisor and agent count into its CPU time and memory.
Changed from its defaults: upstream pools that hold every client's connection (128 by default), long idle
timeouts. What it does for every request and the others do not by default (X-Forwarded-For and -Proto, Via,
counters by service, the checks of `allow` and of SPIFFE ids) stays on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from bench.machine import first_line, free_port
from bench.pki import TRUST_DOMAIN, Identity, Pki
from bench.proxies import Hop, Role, Unavailable

BINARY: Final = Path(sys.executable).with_name("fastmesh")

COMMON: Final = """\
workers: 1
admin: 127.0.0.1:{admin}
"""

MESH: Final = """\
workload: {workload}
trust_domain: {trust_domain}
pki: {pki}
"""

ROLES: Final[dict[Role, str]] = {
    "plain": """\
listeners:
  - name: edge
    bind: 127.0.0.1:{listen}
    idle_timeout: 1h
    protocol: http
    to: web
services:
  web:
    endpoints: [127.0.0.1:{upstream}]
    pool: {{idle_max: {pool}, idle_timeout: 1h}}
""",
    "out": """\
listeners:
  - name: outbound
    role: outbound
    bind: 127.0.0.1:{listen}
    idle_timeout: 1h
services:
  svc-b:
    endpoints: [127.0.0.1:{upstream}]
    pool: {{idle_max: {pool}, idle_timeout: 1h}}
    tls: mesh
""",
    "in": """\
listeners:
  - name: inbound
    role: inbound
    bind: 127.0.0.1:{listen}
    idle_timeout: 1h
    tls: mesh
    to: app
    allow:
      - from: [svc-a]
        methods: [GET, POST]
        paths: [/*]
services:
  app:
    endpoints: [127.0.0.1:{upstream}]
    pool: {{idle_max: {pool}, idle_timeout: 1h}}
""",
}


class Fastmesh:
    name = "fastmesh"

    def __init__(self, pki: Pki) -> None:
        self._pki = pki

    def version(self) -> str:
        if not BINARY.exists():
            raise Unavailable(f"{BINARY} does not exist (make build)")
        return first_line([str(BINARY), "--version"]).rpartition(" ")[2]

    def argv(self, hop: Hop, directory: Path) -> list[str]:
        text = COMMON.format(admin=free_port())
        if hop.role != "plain":
            workload = "svc-a" if hop.role == "out" else "svc-b"
            text += MESH.format(workload=workload, trust_domain=TRUST_DOMAIN, pki=self._pki.path)
        text += ROLES[hop.role].format(listen=hop.listen, upstream=hop.upstream, pool=hop.connections)
        file = directory / "fastmesh.yaml"
        file.write_text(text)
        return [str(BINARY), "serve", "-c", str(file)]

    def identity(self, workload: str) -> Identity:
        return self._pki.identities[workload]
