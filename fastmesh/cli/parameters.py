"""Parameters that several commands have: texts that a function checks, names of files, the configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

# An option of click's, which wraps a function.
Option = Callable[[Callable[..., Any]], Callable[..., Any]]


class Checked(click.ParamType[Any]):
    """A parameter that a function checks: its ValueError becomes a usage error."""

    def __init__(self, name: str, check: Callable[[str], Any]) -> None:
        self.name = name
        self._check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._check(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Name(click.Path):
    """The name of a file or directory: shells complete it, and no system call meets one that cannot be."""

    def __init__(self, name: str) -> None:
        super().__init__(path_type=Path)
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and (not value or "\0" in value):
            self.fail(f"expected the name of a {self.name}", param, ctx)
        return super().convert(value, param, ctx)


FILE: Final = _Name("file")
DIRECTORY: Final = _Name("directory")


def checked_option(
    *declared: str, kind: str, check: Callable[[str], Any], help: str, default: str | None = None
) -> Option:
    """An option that a function checks; a default is shown."""
    return click.option(
        *declared, type=Checked(kind, check), default=default, show_default=default is not None, help=help
    )


config_option: Final = click.option(
    "-c",
    "--config",
    "file",
    type=FILE,
    help="The configuration; without it fastmesh.yaml here, then /etc/fastmesh/fastmesh.yaml.",
)
