"""The command line: one module a command, imported only when that command runs.

Exit codes, the same for every command:

====  ==========================================================================
0     fine
1     the command ran and its answer is no, or an unexpected failure
2     bad usage or a bad configuration
3     a listener cannot be bound (address in use, no permission)
4     a worker or the agent cannot boot
5     the certificate authority or an identity is missing, unreadable or invalid
====  ==========================================================================
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Any, Final

import click

from fastmesh import __version__

EXIT_OK: Final = 0
EXIT_FAILURE: Final = 1
EXIT_CONFIG: Final = 2
EXIT_LISTEN: Final = 3
EXIT_BOOT: Final = 4
EXIT_PKI: Final = 5
EXIT_UNPROVEN: Final = 6

# command -> (module that defines `command`, one line of help). The help stands here so that `--help`
# and completion need not import the modules.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "serve": ("fastmesh.cli.serve", "Run the proxy with a configuration file."),
    "run": ("fastmesh.cli.run", "Run a command with a sidecar of its own."),
    "check": ("fastmesh.cli.check", "Check a configuration file and report every error in it."),
    "explain": ("fastmesh.cli.explain", "Say what would become of a request, and why."),
    "intercept": (
        "fastmesh.cli.intercept",
        "Lead an application's traffic through the proxy without its help.",
    ),
    "init": ("fastmesh.cli.init", "Write a commented starter configuration."),
    "schema": ("fastmesh.cli.schema", "Print the JSON Schema of the configuration, for editors."),
    "certs": ("fastmesh.cli.certs", "Run the mesh's certificate authority."),
    "demo": ("fastmesh.cli.demo", "Run a small mesh on this machine and show what happens."),
    "inject": ("fastmesh.cli.inject", "Write Kubernetes manifests with a sidecar in every pod."),
    "webhook": ("fastmesh.cli.webhook", "Run the Kubernetes admission webhook that adds sidecars."),
    "pod-config": ("fastmesh.cli.pod_config", "Write a pod's configuration (the first step of its sidecar)."),
    "completion": ("fastmesh.cli.completion", "Print the shell completion script."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported on use: `fastmesh serve` must not pay for the others."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Also says what goes wrong with the output (a full disk behind `>`), of help as of any command."""
        try:
            return super().main(*args, **extra)
        except OSError as error:
            # What is still buffered cannot be written either: without this the interpreter would try once
            # more at its end, and exit with 120.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.close(null)
            what = f"{error.filename}:" if error.filename else "the output cannot be written:"
            click.echo(f"error: {what} {error.strerror or error}", err=True)
            sys.exit(EXIT_FAILURE)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastmesh")
def main() -> None:
    """fastmesh: a service mesh without a cluster.

    Exit codes: 0 fine, 1 the answer is no or an unexpected failure, 2 bad usage or configuration,
    3 a listener cannot be bound, 4 a worker or the agent cannot boot, 5 a certificate or key is
    missing or invalid.
    """
    # The name of a file may hold bytes that are no text: shown escaped then, as stderr does by itself.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
