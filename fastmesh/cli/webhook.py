"""`fastmesh webhook`: the admission webhook that puts sidecars into pods as they are created."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec

from fastmesh.certs.errors import PkiError, reason
from fastmesh.cli import EXIT_FAILURE, EXIT_LISTEN, EXIT_PKI
from fastmesh.cli.kubernetes import given_options, settings_of, settings_options
from fastmesh.cli.parameters import FILE, checked_option
from fastmesh.kubernetes.settings import GUARDED, Settings, parse_name

MAX_CONNECTIONS = 200  # from here on requests are answered with 503 ...
MAX_SOCKETS = 256  # ... and from here on connections are closed, before their handshake
# Longer than the API server keeps idle connections (90 s): no review meets one that is being closed.
KEEP_ALIVE_S = 120


def _listen(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"'{text}', expected host:port, [::1]:port, or :port for all addresses")
    return host, int(port)


@click.command()
@checked_option(
    "--listen",
    kind="address",
    check=_listen,
    default=":8443",
    help="Where to listen: host:port, or :port for all addresses. Port 0 lets the system choose.",
)
@click.option(
    "--cert", type=FILE, default="tls.crt", show_default=True, help="Certificate with its issuers, PEM."
)
@click.option("--key", type=FILE, default="tls.key", show_default=True, help="Its private key, PEM.")
@click.option("--print-manifest", is_flag=True, help="Print the objects that run it in a cluster, and end.")
@checked_option(
    "--namespace",
    kind="name",
    check=parse_name,
    default="fastmesh-system",
    help="With --print-manifest: the namespace it runs in.",
)
@click.option("--ca", type=FILE, help="With --print-manifest: the roots that its certificate leads to, PEM.")
@click.option(
    "--allow-annotation",
    "allowed",
    type=click.Choice(GUARDED),
    multiple=True,
    help="Let pods choose this by their annotation; without it such a pod is denied. Repeatable.",
)
@settings_options
def command(
    *,
    listen: tuple[str, int],
    cert: Path,
    key: Path,
    print_manifest: bool,
    namespace: str,
    ca: Path | None,
    allowed: tuple[str, ...],
    **options: Any,
) -> None:
    """Run the Kubernetes admission webhook that adds sidecars to pods.

    It answers POST /inject with AdmissionReview v1, and GET /healthz, by TLS only. New certificate files are
    taken over as they appear. SIGTERM and SIGINT end it.
    """
    settings = msgspec.structs.replace(settings_of(options), withheld=frozenset(GUARDED) - {*allowed})
    if print_manifest:
        permissions = [f"--allow-annotation={name}" for name in dict.fromkeys(allowed)]
        _print(namespace, ca, settings, [*permissions, *given_options(options)])
        return
    from fastmesh.kubernetes.tls import Files

    try:
        files = Files(cert, key, _say)
    except PkiError as error:
        _fail(str(error), EXIT_PKI)
    try:
        sockets = _bind(*listen)
    except OSError as error:
        where = f"{listen[0] or 'all addresses'}, port {listen[1]}"
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else reason(error)
        _fail(f"{where}: {why}; choose another with --listen", EXIT_LISTEN)
    asyncio.run(_serve(settings, files, sockets))


def _print(namespace: str, ca: Path | None, settings: Settings, arguments: list[str]) -> None:
    from fastmesh.kubernetes.deployment import manifest

    roots = None
    if ca is None:
        click.echo("warning: no --ca: the cluster will not trust the webhook until caBundle is set", err=True)
    else:
        try:
            roots = ca.read_bytes()
        except OSError as error:
            _fail(f"{ca} cannot be read: {reason(error)}", EXIT_PKI)
        if b"-----BEGIN CERTIFICATE-----" not in roots:
            _fail(
                f"{ca} has no certificate in PEM, expected the roots of the webhook's certificate", EXIT_PKI
            )
    click.echo(manifest(namespace, settings.image, roots, arguments), nl=False)


def _bind(host: str, port: int) -> list[socket.socket]:
    """Listening sockets; all addresses are those of both families, where there are both."""
    if host:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return [socket.create_server((host, port), family=family, backlog=128)]
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return [socket.create_server(("", port), family=family, backlog=128, dualstack_ipv6=both)]


async def _serve(settings: Settings, files: Any, sockets: list[socket.socket]) -> None:
    from fastmesh.agent.server import AdminServer
    from fastmesh.kubernetes.listening import Bounded
    from fastmesh.kubernetes.webhook import webhook_app

    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    names = [one.getsockname() for one in sockets]
    app = webhook_app(settings, _say)
    server = AdminServer(
        app,
        [Bounded(one, MAX_SOCKETS) for one in sockets],
        tls=files.context,
        connections=MAX_CONNECTIONS,
        keep_alive=KEEP_ALIVE_S,
    )
    await server.start()
    for host, port, *_ in names:
        _say(f"webhook ready: https://{f'[{host}]' if ':' in host else host}:{port}/inject")
    await ended.wait()
    await server.stop()


def _say(line: str) -> None:
    click.echo(f"fastmesh {line}", err=True)


def _fail(message: str, code: int = EXIT_FAILURE) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)
