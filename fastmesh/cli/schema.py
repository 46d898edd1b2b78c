"""`fastmesh schema`: the JSON Schema of the configuration, for editors that complete and check YAML."""

from __future__ import annotations

import click

from fastmesh.config.reference import schema_text


@click.command()
def command() -> None:
    """Print the JSON Schema of the configuration.

    Editors with the YAML language server use it when the configuration begins with the line
    `# yaml-language-server: $schema=fastmesh.schema.json` and this output is saved under that name.
    """
    click.echo(schema_text(), nl=False)
