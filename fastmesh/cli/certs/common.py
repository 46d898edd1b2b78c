"""What the commands of `fastmesh certs` share: checked parameters, errors as sentences, passphrases."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

import click

from fastmesh.certs import keys
from fastmesh.certs.errors import PkiError, reason
from fastmesh.cli import EXIT_PKI
from fastmesh.cli.parameters import DIRECTORY, FILE, Option

PASSPHRASE: Final = "FASTMESH_ROOT_PASSPHRASE"
_MAX_PASSPHRASE: Final = 1023  # `cryptography` takes no more


DAYS: Final = click.IntRange(1, 36525)
pki_option = click.option(
    "--pki",
    type=DIRECTORY,
    default="pki",
    show_default=True,
    help="Directory of keys and certificates.",
)
passphrase_option = click.option(
    "--root-passphrase-file",
    type=FILE,
    help=f"Read the passphrase of the root's key from here (first line). Or from ${PASSPHRASE}.",
)
root_key_option = click.option(
    "--root-key", type=FILE, help="Read the root's key from here, if it is kept elsewhere."
)


def key_option(default: str | None) -> Option:
    """`--key`; without a default it is what `init` was told."""
    return click.option(
        "--key",
        type=click.Choice(list(keys.KINDS)),
        default=default,
        show_default=default is not None,
        help="Kind of the new keys." + ("" if default else " Default: as init was told."),
    )


def given_passphrase(file: Path | None) -> str | None:
    """The passphrase from a file or the environment. Ends the command when the file cannot be read."""
    if file is None:
        # Set but empty is a mistake that must not end in a key without a passphrase.
        found = os.environ.get(PASSPHRASE)
        return None if found is None else _checked(found, f"${PASSPHRASE}")
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.readline(_MAX_PASSPHRASE + 2).rstrip("\r\n")
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else "it is no text"
        fail(f"the passphrase in {file} cannot be read: {why}")
    return _checked(text, str(file))


def new_passphrase(file: Path | None, *, ask: bool) -> str | None:
    """The passphrase for a new key: from a file, the environment, or asked for twice."""
    text = given_passphrase(file)
    if text is None and ask:
        text = click.prompt(
            "Passphrase of the root's key", hide_input=True, confirmation_prompt=True, err=True
        )
    return None if text is None else _checked(text, "the passphrase")


def old_passphrase(file: Path | None, *, wanted: bool) -> str | None:
    """The passphrase of a key that is there, if it wants one. Asked for where there is a terminal."""
    if not wanted:
        return None
    text = given_passphrase(file)
    if text is None and sys.stdin.isatty():
        text = click.prompt("Passphrase of the root's key", hide_input=True, err=True)
    return None if text is None else _checked(text, "the passphrase")


def remark(text: str) -> None:
    click.echo(f"note: {text}", err=True)


@contextlib.contextmanager
def pki_errors() -> Iterator[None]:
    try:
        yield
    except PkiError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or 'the pki directory'}: {reason(error)}")


def fail(text: str, code: int = EXIT_PKI) -> NoReturn:
    click.echo(f"error: {text}", err=True)
    raise click.exceptions.Exit(code)


def _checked(text: str, where: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        fail(f"{where} is no text")
    if not 0 < size <= _MAX_PASSPHRASE:
        fail(f"{where} must be of 1 to {_MAX_PASSPHRASE} bytes")
    return text
