"""`fastmesh demo`: a small mesh on this machine, with traffic and a live table."""

from __future__ import annotations

import sys

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--seconds",
    type=click.IntRange(1, 86400),
    default=20,
    show_default=True,
    help="How long the traffic runs.",
)
def command(seconds: int) -> None:
    """Run a small mesh on this machine and show what happens.

    In a temporary directory: a certificate authority, two applications of which svc-a calls svc-b, and a
    sidecar for each. Nothing is left behind. Exit code 0, or 1 if a request failed or the demo could not run.
    """
    from fastmesh.demo.run import run

    sys.exit(run(seconds))
