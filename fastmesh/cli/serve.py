"""`fastmesh serve`: run the proxy.

This process becomes the supervisor by exec: what the command line has imported must not stay in its memory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from fastmesh.cli import EXIT_CONFIG
from fastmesh.cli.parameters import config_option
from fastmesh.config import ConfigErrors, find_config

MAX_WORKERS = 256


@click.command()
@config_option
@click.option(
    "--workers",
    type=click.IntRange(1, MAX_WORKERS),
    help="Worker processes. [default: as the configuration says, else one for each CPU it may use]",
)
@click.option(
    "--pid-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the supervisor's process id there once the proxy is ready, and remove it at the end.",
)
def command(file: Path | None, workers: int | None, pid_file: Path | None) -> None:
    """Run the proxy with a configuration file.

    SIGTERM and SIGINT stop accepting and let exchanges finish until the drain deadline; a second one ends at
    once. SIGHUP reads the configuration again; one with errors changes nothing. SIGUSR2 makes inbound
    listeners accept no more, ahead of the end; outbound ones serve on.
    """
    try:
        config = find_config(file)
    except ConfigErrors as errors:
        click.echo(str(errors), err=True)
        sys.exit(EXIT_CONFIG)
    arguments = [str(config.absolute())]
    if workers is not None:
        arguments += ["--workers", str(workers)]
    if pid_file is not None:
        arguments += ["--pid-file", str(pid_file.absolute())]
    # The directory that we are started in is no place to import modules from, here and in every child.
    os.environ["PYTHONSAFEPATH"] = "1"
    os.execv(sys.executable, [sys.executable, "-m", "fastmesh.host", *arguments])
