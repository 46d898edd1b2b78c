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
from fastmesh.cli.run_plan import NotPossible, make_plan
from fastmesh.config import ConfigErrors, find_config, load
from fastmesh.config.values import parse_duration

EXIT_NOT_FOUND = 127


class DurationType(click.ParamType[float]):
    """Seconds, written as in a configuration."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            milliseconds = parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if milliseconds == 0:
            self.fail("0s is no time to start in", param, ctx)
        return milliseconds / 1000


class WorkloadType(click.ParamType[str]):
    name = "name"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return spiffe.workload(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path),
    help="Configuration file. [default: fastmesh.yaml, then /etc/fastmesh/fastmesh.yaml]",
)
@click.option(
    "--workload", type=WorkloadType(), help="Whom the sidecar stands for, instead of what the file says."
)
@click.option(
    "--isolate", is_flag=True, help="Give the command a network namespace whose only way out is the sidecar."
)
@click.option(
    "--explicit", is_flag=True, help="Tell the command of its proxy by http_proxy and its like, without root."
)
@click.option(
    "--timeout", type=DurationType(), default="30s", show_default=True, help="For the sidecar to be ready."
)
@click.argument("command", nargs=-1, required=True, metavar="COMMAND...")
def command(
    *,
    path: Path | None,
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
        loaded = load(find_config(path), workload)
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
