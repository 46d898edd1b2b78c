"""`fastmesh check`: every error of a configuration file, and nothing else happens."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NoReturn

import click

from fastmesh.certs.errors import PkiError
from fastmesh.cli import EXIT_CONFIG
from fastmesh.cli.parameters import config_option
from fastmesh.config import ConfigErrors, Loaded, find_config, load, make_snapshot


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(file: Path | None, as_json: bool) -> None:
    """Check a configuration file and report every error in it, as FILE:LINE:COLUMN: what is wrong.

    Exits with 0 when the file is right, with 2 when it is not. What this machine is not ready for, although
    the file is right, is a warning: an identity that is not there yet, a host name that does not resolve.
    """
    try:
        loaded = load(find_config(file))
    except ConfigErrors as errors:
        _fail(errors, as_json)
    warnings = _warnings(loaded)
    config = loaded.config
    if as_json:
        result = {"file": loaded.name, "ok": True, "errors": [], "warnings": warnings}
        click.echo(json.dumps(result, indent=2))
        return
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    listeners, services = len(config.listeners), len(config.services)
    click.echo(f"{loaded.name}: ok ({_count(listeners, 'listener')}, {_count(services, 'service')})")


def _fail(errors: ConfigErrors, as_json: bool) -> NoReturn:
    if as_json:
        listed = [
            {"file": e.file, "line": e.line or None, "column": e.column or None, "message": e.message}
            for e in errors.errors
        ]
        result = {"file": errors.errors[0].file, "ok": False, "errors": listed, "warnings": []}
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo(str(errors), err=True)
    sys.exit(EXIT_CONFIG)


def _warnings(loaded: Loaded) -> list[str]:
    """What would keep `serve` from starting here and now, although the file is right."""
    try:
        make_snapshot(loaded)
    except ConfigErrors as errors:
        return [str(error) for error in errors.errors]
    except PkiError as error:
        return [str(error)]
    return []


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
