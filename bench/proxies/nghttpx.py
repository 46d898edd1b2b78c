"""nghttpx, one worker: where HTTP/2 is spoken on all sides. Its worker, master and key process count.

Changed from its defaults: TLS 1.3 only, OCSP off (it asks nobody here), long idle timeouts, 1000
streams a connection instead of 100. It checks the chain, and of the upstream the DNS name.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from bench.machine import first_line
from bench.pki import Identity
from bench.proxies import H2_ONLY, Hop, Topology, Unavailable

BINARY: Final = "nghttpx"

COMMON: Final = """\
workers=1
no-ocsp=yes
tls-min-proto-version=TLSv1.3
tls-max-proto-version=TLSv1.3
frontend-http2-read-timeout=1h
frontend-read-timeout=1h
frontend-keep-alive-timeout=1h
backend-read-timeout=1h
backend-keep-alive-timeout=1h
stream-read-timeout=1h
stream-write-timeout=1h
backlog=4096
frontend-http2-max-concurrent-streams=1000
backend-http2-max-concurrent-streams=1000
worker-frontend-connections={connections}
"""

OUT: Final = """\
frontend=127.0.0.1,{listen};no-tls
backend=127.0.0.1,{upstream};;proto=h2;tls;sni=svc-b
cacert={bundle}
client-cert-file={certificate}
client-private-key-file={key}
"""

IN: Final = """\
frontend=127.0.0.1,{listen}
backend=127.0.0.1,{upstream};;proto={protocol}
certificate-file={certificate}
private-key-file={key}
verify-client=yes
verify-client-cacert={bundle}
"""


class Nghttpx:
    name = "nghttpx"
    topologies: Final[frozenset[Topology]] = H2_ONLY

    def __init__(self, identities: dict[str, Identity]) -> None:
        self._identities = identities

    def version(self) -> str:
        if not shutil.which(BINARY):
            raise Unavailable("not installed (Debian: nghttp2-proxy)")
        return first_line([BINARY, "--version"]).rpartition("/")[2]

    def argv(self, hop: Hop, directory: Path) -> list[str]:
        outbound = hop.role == "h2-out"
        own = self._identities["svc-a" if outbound else "svc-b"]
        text = COMMON + (OUT if outbound else IN)
        file = directory / "nghttpx.conf"
        file.write_text(
            text.format(
                connections=hop.connections + 64,
                listen=hop.listen,
                upstream=hop.upstream,
                protocol="h2" if hop.role == "h2-in" else "http/1.1",
                bundle=own.bundle,
                certificate=own.certificate,
                key=own.key,
            )
        )
        return [BINARY, f"--conf={file}"]

    def identity(self, workload: str) -> Identity:
        return self._identities[workload]
