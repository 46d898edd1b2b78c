"""`fastmesh certs`: the mesh's certificate authority on this machine.

Results go to stdout, remarks and errors to stderr. Whatever is wrong with the directory is one sentence and
exit code 5, whatever is wrong with the command line exit code 2.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from fastmesh.certs import authority, inspection, proof, spiffe
from fastmesh.certs.errors import PkiError, reason
from fastmesh.certs.store import Layout, load_identity
from fastmesh.cli import EXIT_PKI
from fastmesh.config.values import format_duration, parse_duration


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


def _ttl(text: str) -> int:
    milliseconds = parse_duration(text)
    if milliseconds < authority.MIN_LEAF_LIFE * 1000:
        raise ValueError(f"a certificate's life is at least {authority.MIN_LEAF_LIFE}s")
    return milliseconds // 1000


def _directory(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError("expected the name of a directory")
    return Path(text)


_pki = click.option(
    "--pki",
    type=Checked("directory", _directory),
    default="pki",
    show_default=True,
    help="Directory of keys and certificates.",
)
_workload = Checked("name", spiffe.workload)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Run the mesh's certificate authority.

    `init` makes it once; `issue` gives each workload a key and a short-lived certificate. Exit code 5: the
    authority or an identity is missing, unreadable or invalid.
    """


@command.command()
@click.option(
    "--trust-domain",
    type=Checked("name", spiffe.trust_domain),
    default="mesh.local",
    show_default=True,
    help="The name that all identities share: spiffe://NAME/…",
)
@_pki
def init(trust_domain: str, pki: Path) -> None:
    """Make a root and an issuing CA. An authority that exists is never overwritten."""
    with _pki_errors():
        made = authority.create(pki, trust_domain)
    layout = Layout(pki)
    click.echo(f"trust domain  {made.trust_domain}")
    click.echo(f"root          {layout.root}, until {proof.when(made.root_not_after)}")
    click.echo(f"issuing CA    {layout.issuer}, until {proof.when(made.issuer_not_after)}")
    click.echo(f"trust bundle  {layout.bundle}")


@command.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=_workload)
@click.option(
    "--ttl",
    type=Checked("duration", _ttl),
    default="24h",
    show_default=True,
    help="How long the certificates are valid: 24h, 90m, 7d …",
)
@_pki
def issue(names: tuple[str, ...], ttl: int, pki: Path) -> None:
    """Give workloads a new key and certificate.

    Each NAME becomes spiffe://TRUST_DOMAIN/NAME. What a workload had before is replaced in one step; if
    issuing fails it stays.
    """
    for name in dict.fromkeys(names):
        with _pki_errors():
            made = authority.issue(pki, name, ttl)
        click.echo(f"{made.spiffe_id}  until {proof.when(made.not_after)}  {Layout(pki).workload(name)}")
        if made.capped:
            click.echo(
                f"note: {name} is valid for less than {format_duration(ttl * 1000)}: the issuing CA "
                f"ends at {proof.when(made.not_after)}",
                err=True,
            )


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--all", "everything", is_flag=True, help="Also what has been replaced since.")
@_pki
def list_(as_json: bool, everything: bool, pki: Path) -> None:
    """List the workloads' certificates by the authority's record."""
    with _pki_errors():
        rows, damaged = inspection.listing(pki, time.time(), everything=everything)
    for number in damaged:
        click.echo(f"note: line {number} of {Layout(pki).record} is no record and was left out", err=True)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("no certificate has been issued yet", err=True)
        return
    _print_table(rows)


@command.command()
@click.argument("name", type=_workload)
@_pki
def show(name: str, pki: Path) -> None:
    """Show a workload's identity and whether it can be used now (exit code 5 if not)."""
    with _pki_errors():
        facts = inspection.describe(pki, name)
    width = max(len(label) for label, _ in facts)
    for label, text in facts:
        click.echo(f"{label.ljust(width)}  {text}")
    with _pki_errors():
        identity = load_identity(pki, name)
    left = max(int(identity.not_after - time.time()), 0)
    click.echo(f"{'usable'.ljust(width)}  yes, for another {_rounded(left)}")


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("workload", "SPIFFE id", "serial", "issued", "expires in", "state"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "SPIFFE id")
    now = int(time.time())
    for row in rows:
        left = row["not_after"] - now
        table.add_row(
            row["workload"],
            row["spiffe_id"],
            row["serial"][:12],
            time.strftime("%Y-%m-%d %H:%M", time.gmtime(row["time"])),
            _rounded(left) if left > 0 else "-",
            row["state"],
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)  # into a pipe or a file, a row stays one line
    console.print(table)


def _rounded(seconds: int) -> str:
    """The two largest units: `23h59m`."""
    for unit in (86400, 3600, 60):
        if seconds >= unit:
            smaller = {86400: 3600, 3600: 60, 60: 1}[unit]
            return format_duration(seconds // smaller * smaller * 1000)
    return format_duration(seconds * 1000)


@contextlib.contextmanager
def _pki_errors() -> Iterator[None]:
    try:
        yield
    except PkiError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'the pki directory'}: {reason(error)}")


def _fail(text: str, code: int = EXIT_PKI) -> NoReturn:
    click.echo(f"error: {text}", err=True)
    raise click.exceptions.Exit(code)
