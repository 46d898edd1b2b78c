"""`fastmesh run`: a command with a sidecar of its own.

This process becomes the launcher by exec: what the command line has imported must not stay in its memory for
as long as the command runs.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import click

from fastmesh.certs import spiffe
from fastmesh.cli import EXIT_CONFIG
from fastmesh.cli.parameters import checked_option, config_option
from fastmesh.cli.run_plan import NotPossible, make_plan
from fastmesh.config import ConfigErrors, find_config, load
from fastmesh.config.values import parse_duration

EXIT_NOT_FOUND = 127


def _seconds(text: str) -> float:
    """Written as in a configuration."""
    milliseconds = parse_duration(text)
    if milliseconds == 0:
        raise ValueError("0s is no time to start in")
    return milliseconds / 1000


@click.command(context_settings={"allow_interspersed_args": False})
@config_option
@checked_option(
    "--workload",
    kind="name",
    check=spiffe.workload,
    help="Whom the sidecar stands for, instead of what the file says.",
)
@click.option(
    "--isolate", is_flag=True, help="Give the command a network namespace whose only way out is the sidecar."
)
@click.option(
    "--explicit", is_flag=True, help="Tell the command of its proxy by http_proxy and its like, without root."
)
@checked_option(
    "--timeout", kind="duration", check=_seconds, default="30s", help="For the sidecar to be ready."
)
@click.argument("command", nargs=-1, required=True, metavar="COMMAND...")
def command(
    *,
    file: Path | None,
    workload: str | None,
    isolate: bool,
    explicit: bool,
    timeout: float,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND with a sidecar of its own.

    It starts when the sidecar is ready, with its traffic taken over.

    Signals are passed on, and the exit code is the command's (128 + N when signal N has killed it). What goes
    wrong before the command has started has the exit codes of `fastmesh serve`; 127 and 126 are for a command
    that is not there or cannot be run.
    """
    try:
        loaded = load(find_config(file), workload)
    except ConfigErrors as errors:
        _refuse(str(errors), EXIT_CONFIG)
    if shutil.which(command[0]) is None and not os.path.lexists(command[0]):
        _refuse(f"fastmesh: run: {command[0]}: there is no such program", EXIT_NOT_FOUND)
    try:
        plan = make_plan(
            loaded, list(command), workload, isolate=isolate, explicit=explicit, timeout_s=timeout
        )
    except NotPossible as error:
        _refuse(f"{loaded.name}: {error}", EXIT_CONFIG)
    # -P: the directory that we are started in is no place to import modules from. It is not for the command.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "fastmesh.host.launch", plan.encode()])


def _refuse(message: str, code: int) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)
