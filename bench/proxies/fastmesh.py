"""fastmesh as its user starts it: `.venv/bin/fastmesh serve -c FILE`, one worker.

Its supervisor and agent count into its CPU time and memory.
Changed from its defaults: upstream pools that hold every client's connection (128 by default), long idle
timeouts; idle clients of HTTP/2 are not asked for a sign of life, since those of the bench sleep and the
others do not ask either. What it does for every request and the others do not by default (X-Forwarded-For
and -Proto, Via, counters by service, the checks of `allow` and of SPIFFE ids) stays on.

Behind a redirect the service is known by the address that clients dial, and the protocol is found out
(`protocol: auto`); as `fastmesh-keep` its endpoint has no port of its own and is called on the client's.
Opaque connections are those that no service has (`unknown: passthrough`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from bench.machine import first_line, free_port
from bench.pki import TRUST_DOMAIN, Identity, Pki
from bench.proxies import ALL, H1_ONLY, SERVICE, Hop, Role, Topology, Unavailable

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
{more}""",
    "in": """\
listeners:
  - name: inbound
    role: inbound
    bind: 127.0.0.1:{listen}
    idle_timeout: 1h
    http2: {{ping_interval: 0s}}
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
{more}""",
    "transparent": """\
workload: svc-a
listeners:
  - name: outbound
    role: outbound
    bind: 127.0.0.1:{listen}
    transparent: true
    idle_timeout: 1h
intercept: {{outbound: {{}}}}
services:
  svc-b:
    addresses: ["{service}:{upstream}"]
    endpoints: ["127.0.0.1{port}"]
    pool: {{idle_max: {pool}, idle_timeout: 1h}}
""",
    "opaque": """\
workload: svc-a
listeners:
  - name: outbound
    role: outbound
    bind: 127.0.0.1:{listen}
    transparent: true
    unknown: passthrough
    idle_timeout: 1h
intercept: {{outbound: {{}}}}
""",
}
# The configurations of these are the same but for the protocol of a service.
SAME: Final[dict[Role, Role]] = {"h2-out": "out", "h2-in": "in"}


class Fastmesh:
    def __init__(
        self,
        pki: Pki,
        name: str,
        *,
        http1: bool = False,
        keep_port: bool = False,
        mesh_connections: int | None = None,
    ) -> None:
        """`http1`: HTTP/1.1 between the hops. `keep_port`: an endpoint without a port. `mesh_connections`:
        the option; None for its default."""
        self.name = name
        where = frozenset[Topology](("transparent",)) if keep_port else H1_ONLY if http1 else ALL
        self.topologies: Final[frozenset[Topology]] = where
        self._keep_port = keep_port
        self._pki = pki
        self._http1 = http1
        self._mesh_connections = mesh_connections

    def version(self) -> str:
        if not BINARY.exists():
            raise Unavailable(f"{BINARY} does not exist (make build)")
        return first_line([str(BINARY), "--version"]).rpartition(" ")[2]

    def argv(self, hop: Hop, directory: Path) -> list[str]:
        text = COMMON.format(admin=free_port())
        if hop.role not in ("plain", "transparent", "opaque"):
            workload = "svc-a" if hop.role in ("out", "h2-out") else "svc-b"
            text += MESH.format(workload=workload, trust_domain=TRUST_DOMAIN, pki=self._pki.path)
        text += ROLES[SAME.get(hop.role, hop.role)].format(
            listen=hop.listen,
            upstream=hop.upstream,
            service=SERVICE,
            port="" if self._keep_port else f":{hop.upstream}",
            pool=hop.connections,
            more=self._service(hop.role),
        )
        file = directory / "fastmesh.yaml"
        file.write_text(text)
        return [str(BINARY), "serve", "-c", str(file)]

    def identity(self, workload: str) -> Identity:
        return self._pki.identities[workload]

    def _service(self, role: Role) -> str:
        """Further lines of the service of a role. Between the hops HTTP/2 is what it agrees on by itself."""
        if role == "h2-in":
            return "    protocol: http2\n"
        if role == "out" and self._http1:
            return "    protocol: http1\n"
        if role in ("out", "h2-out") and self._mesh_connections:
            return f"    mesh_connections: {self._mesh_connections}\n"
        return ""
