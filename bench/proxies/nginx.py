"""nginx, one worker: as a proxy, and as the backend of every measurement.

Changed from its defaults: upstream keep-alive (off by default: HTTP/1.0 and a connection a request), no limit
of requests a connection, answers never spooled to a file, 64 KiB buffers for bodies (fewer system calls for
large ones), verification depth 2 (there is an issuing CA between root and leaf).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from bench.machine import first_line
from bench.pki import Identity
from bench.proxies import H1_ONLY, Hop, Topology, Unavailable

BINARY: Final = "nginx"
BODY: Final = b"hello, mesh\n"
LARGE: Final = 1 << 20

HEAD: Final = """\
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr error;
{user}
worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
  access_log off;
  keepalive_timeout 3600s;
  keepalive_requests 1000000000;
  client_body_temp_path tmp; proxy_temp_path tmp;
  fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;
"""

PROXY: Final = """\
  upstream app {{
    server 127.0.0.1:{upstream};
    keepalive {pool};
    keepalive_requests 1000000000;
    keepalive_timeout 3600s;
  }}
  server {{
    listen 127.0.0.1:{listen}{ssl} backlog=4096;
{listen_tls}
    location / {{
      proxy_pass {scheme}://app;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_max_temp_file_size 0;
      proxy_buffers 8 64k;
{proxy_tls}
    }}
  }}
}}
"""

LISTEN_TLS: Final = """\
    ssl_protocols TLSv1.3;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_client_certificate {bundle};
    ssl_verify_client on;
    ssl_verify_depth 2;
"""

PROXY_TLS: Final = """\
      proxy_ssl_protocols TLSv1.3;
      proxy_ssl_certificate {certificate};
      proxy_ssl_certificate_key {key};
      proxy_ssl_trusted_certificate {bundle};
      proxy_ssl_verify on;
      proxy_ssl_verify_depth 2;
      proxy_ssl_name svc-b;
      proxy_ssl_server_name on;
"""

BACKEND: Final = """\
  open_file_cache max=16;
  sendfile on;
  server {{
    listen {address}:{listen} backlog=4096;
    root {root};
    default_type text/plain;
    location = / {{ return 200 "{body}"; }}
    location = /accepted {{ stub_status; }}
  }}
}}
"""


def _head(connections: int) -> str:
    return HEAD.format(
        user="user root;" if os.geteuid() == 0 else "",
        files=connections + 256,
        connections=connections,
    )


def _command(binary: str, directory: Path, text: str) -> list[str]:
    (directory / "tmp").mkdir()
    file = directory / "nginx.conf"
    file.write_text(text)
    return [binary, "-p", f"{directory}/", "-c", str(file), "-e", "stderr"]


class Nginx:
    name = "nginx"
    # To upstreams it has HTTP/2 for gRPC only, with one request on a connection at a time. Opaque connections
    # are a module of their own, which nginx-light is without.
    topologies: Final[frozenset[Topology]] = H1_ONLY | {"h2", "transparent"}

    def __init__(self, identities: dict[str, Identity]) -> None:
        self._identities = identities

    def version(self) -> str:
        if not shutil.which(BINARY):
            raise Unavailable("not installed (Debian: nginx-light)")
        return first_line([BINARY, "-v"]).rpartition("/")[2]

    def argv(self, hop: Hop, directory: Path) -> list[str]:
        # nginx allocates its connections at the start, one a client and one an upstream: not more than the
        # load needs, or the figure for memory at rest would be that of a large array. When fewer than a
        # sixteenth are free it closes idle ones, also those of clients: hence the quarter more.
        connections = 5 * hop.connections // 2 + 64
        return _command(
            BINARY,
            directory,
            _head(connections)
            + PROXY.format(
                upstream=hop.upstream,
                listen=hop.listen,
                pool=hop.connections,
                ssl=" ssl http2" if hop.role == "in" else "",
                listen_tls=self._tls(LISTEN_TLS, "svc-b") if hop.role == "in" else "",
                proxy_tls=self._tls(PROXY_TLS, "svc-a") if hop.role == "out" else "",
                scheme="https" if hop.role == "out" else "http",
            ),
        )

    def identity(self, workload: str) -> Identity:
        return self._identities[workload]

    def _tls(self, template: str, workload: str) -> str:
        identity = self._identities[workload]
        return template.format(certificate=identity.certificate, key=identity.key, bundle=identity.bundle)


def backend(directory: Path, address: str, listen: int, connections: int) -> list[str]:
    """The command of the backend: `/` answers BODY, `/large` a file of 1 MiB.

    It runs a copy of the binary: PSS divides pages among all who map the same file, so a backend that shared
    nginx's text would make nginx the proxy look smaller than it is.
    """
    binary = directory / "backend"
    shutil.copy(shutil.which(BINARY) or "", binary)
    binary.chmod(0o755)
    root = directory / "root"
    root.mkdir()
    (root / "large").write_bytes(large_body())
    text = _head(connections) + BACKEND.format(
        address=address, listen=listen, root=root, body=BODY.decode().replace("\n", "\\n")
    )
    return _command(str(binary), directory, text)


def accepted(status: str) -> int:
    """How many connections the backend has accepted, from the text of its `/accepted`."""
    # "Active connections: 1 \nserver accepts handled requests\n 16 16 31 \n..."
    return int(status.splitlines()[2].split()[0])


def large_body() -> bytes:
    """1 MiB in which no two blocks are alike, so that a byte in the wrong place is noticed."""
    return b"".join(b"%015x\n" % number for number in range(LARGE // 16))
