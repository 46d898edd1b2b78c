"""`fastmesh completion`: the script that makes a shell complete fastmesh's commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash: eval "$(fastmesh completion bash)"          in ~/.bashrc
    zsh:  eval "$(fastmesh completion zsh)"           in ~/.zshrc
    fish: fastmesh completion fish > ~/.config/fish/completions/fastmesh.fish
    """
    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(ctx.find_root().command, {}, "fastmesh", "_FASTMESH_COMPLETE").source())
