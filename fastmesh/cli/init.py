"""`fastmesh init`: a configuration to start from, with the settings one is most likely to want."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final, NoReturn

import click

from fastmesh.cli import EXIT_FAILURE
from fastmesh.cli.parameters import FILE
from fastmesh.config.find import DEFAULT_FILES

# Every commented-out setting loads too when its `# ` is taken away.
STARTER: Final = """\
# A fastmesh configuration. `fastmesh check` reports every error in it, `fastmesh serve` runs it.
# All settings stand in docs/configuration.md; editors take the output of `fastmesh schema`.

listeners:
  - name: edge
    bind: 127.0.0.1:8080          # host:port, [::1]:port, or unix:/path
    protocol: http                # http | tcp | auto (default: detected from the first bytes)
    to: web                       # every request goes to this service
    # header_timeout: 10s         # for the head of a request to arrive
    # idle_timeout: 60s           # for the next request on a connection
    # stream_idle_timeout: 5m     # for a request or answer that stands still
    # max_connections: 10000      # default: no limit

  # From the application into the mesh, which calls http://127.0.0.1:15001/ with `Host: svc-b`:
  # - name: outbound
  #   role: outbound
  #   bind: 127.0.0.1:15001

  # From the mesh to the application; mutual TLS ends here:
  # - name: inbound
  #   role: inbound
  #   bind: 0.0.0.0:15443
  #   tls: mesh                   # mesh | permissive (plaintext allowed too) | none
  #   to: web
  #   allow:                      # once there is `allow`, what no rule allows gets 403
  #     - from: [svc-b]           # workload names, or whole SPIFFE IDs; `*` ends a prefix
  #       methods: [GET, POST]    # default: all
  #       paths: ["/*"]           # default: all

services:
  web:
    endpoints: [127.0.0.1:9000]
    # connect_timeout: 1s
    # response_timeout: 60s       # for the head of the answer; then 504
    # pool: {idle_max: 1024, idle_timeout: 55s}

  # svc-b:
  #   endpoints: [127.0.0.1:15444]
  #   tls: mesh                   # mutual TLS: the peer must prove spiffe://TRUST_DOMAIN/svc-b

# Identity, for `tls: mesh`; `fastmesh certs init` and `fastmesh certs issue svc-a` make it:
# workload: svc-a
# trust_domain: mesh.local
# pki: pki                        # relative to this file

# workers: 2                      # default: the CPUs this process may use
# drain: 30s                      # for exchanges to finish when the proxy stops
# admin: 127.0.0.1:15000          # /metrics /healthz /readyz /config; off for none
# telemetry:
#   access_log: {path: access.log, format: json, sample: 100%}
"""


@click.command()
@click.argument("file", type=FILE, default=DEFAULT_FILES[0])
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def command(file: Path, force: bool) -> None:
    """Write a commented starter configuration to FILE (fastmesh.yaml)."""
    made = False
    try:
        with file.open("w" if force else "x", encoding="utf-8") as out:
            made = not force
            out.write(STARTER)
    except FileExistsError:
        _refuse(f"{file}: exists already; --force replaces it")
    except OSError as error:
        if made:  # a part of it would only be in the way of the next try
            file.unlink(missing_ok=True)
        _refuse(f"{file}: cannot be written: {error.strerror or error}")
    click.echo(f"{file}: written; next: fastmesh check -c {file}, then fastmesh serve -c {file}")


def _refuse(message: str) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(EXIT_FAILURE)
