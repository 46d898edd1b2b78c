"""`fastmesh pod-config`: the first step in a pod with a sidecar, see `fastmesh inject`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import NoReturn

import click

from fastmesh.cli import EXIT_CONFIG, EXIT_FAILURE
from fastmesh.cli.parameters import FILE
from fastmesh.config import ConfigErrors
from fastmesh.config.document import read
from fastmesh.kubernetes.pod import parse
from fastmesh.kubernetes.render import render


@click.command()
@click.option("--from", "source", type=FILE, required=True, help="The mesh's configuration.")
@click.option("--to", "target", type=FILE, help="The file to write. Left out: stdout.")
@click.option("--address", default="127.0.0.1", show_default=True, help="The pod's IP address.")
@click.argument("pod")
def command(source: Path, target: Path | None, address: str, pod: str) -> None:
    """Write the configuration of one pod: the mesh's, with what this pod is laid over it.

    POD is what `fastmesh inject` has put into the pod's first init container, in JSON.
    """
    try:
        text = render(read(source, str(source)), str(source), parse(pod), address)
    except ConfigErrors as errors:
        _fail(str(errors), EXIT_CONFIG)
    except ValueError as error:
        _fail(f"error: {error}; expected what `fastmesh inject` writes", EXIT_CONFIG)
    if target is None:
        click.echo(text, nl=False)
        return
    stage = target.with_name(f".{target.name}.new")
    try:
        stage.write_text(text)
        # The next step is root without the right to read what others keep for themselves.
        stage.chmod(0o644)
        stage.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            stage.unlink()
        _fail(f"error: {target} cannot be written: {error.strerror}", EXIT_FAILURE)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)
