"""`fastmesh certs issue`, `renew`, `revoke`, `list`, `show`: workloads' certificates."""

from __future__ import annotations

import ipaddress
import json
import time
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import click

from fastmesh.certs import authority, inspection, proof, requests, revocation, signer, spiffe, trust
from fastmesh.certs.authority import Issued
from fastmesh.certs.errors import PkiError
from fastmesh.certs.store import Layout, load_identity
from fastmesh.cli import EXIT_PKI
from fastmesh.cli.certs.common import pki_errors, pki_option, remark
from fastmesh.cli.parameters import FILE, Checked, checked_option
from fastmesh.config.values import format_duration, parse_duration


def _ttl(text: str) -> int:
    milliseconds = parse_duration(text)
    if milliseconds < signer.MIN_LEAF_LIFE * 1000:
        raise ValueError(f"a certificate's life is at least {signer.MIN_LEAF_LIFE}s")
    return milliseconds // 1000


_workload = Checked("name", spiffe.workload)


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=_workload)
@checked_option(
    "--ttl",
    kind="duration",
    check=_ttl,
    default="24h",
    help="How long the certificates are valid: 24h, 90m, 7d …",
)
@click.option(
    "--dns", multiple=True, type=Checked("name", spiffe.dns_name), help="Another DNS name. Repeatable."
)
@click.option(
    "--ip", multiple=True, type=Checked("address", ipaddress.ip_address), help="An IP address. Repeatable."
)
@checked_option(
    "--spiffe",
    "path",
    kind="path",
    check=spiffe.path,
    help="The path of the SPIFFE id, as /ns/shop/sa/cart, instead of /NAME.",
)
@click.option("--csr", type=FILE, help="Certify the key of this signing request; none is made here.")
@pki_option
def issue(
    *,
    names: tuple[str, ...],
    ttl: int,
    dns: tuple[str, ...],
    ip: tuple[IPv4Address | IPv6Address, ...],
    path: str | None,
    csr: Path | None,
    pki: Path,
) -> None:
    """Give workloads a new key and certificate.

    Each NAME becomes spiffe://TRUST_DOMAIN/NAME. What a workload had before is replaced in one step; if
    issuing fails it stays.
    """
    chosen = list(dict.fromkeys(names))
    for option, value in (("--spiffe", path), ("--csr", csr)):
        if value is not None and len(chosen) > 1:
            raise click.UsageError(f"{option} is for one NAME")
    with pki_errors():
        public = None if csr is None else requests.public_key(csr)
    for name in chosen:
        with pki_errors():
            made = authority.issue(pki, name, ttl, dns=dns, addresses=ip, path=path, public=public)
        _tell(made, pki)
        if made.keyless:
            remark(f"{name} has its key elsewhere: put it beside the other files as key.pem there")


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, type=_workload)
@click.option("--all", "everything", is_flag=True, help="All workloads whose keys are here.")
@pki_option
def renew(names: tuple[str, ...], everything: bool, pki: Path) -> None:
    """Give workloads a new key and a certificate as they had: same names, same life."""
    if everything == bool(names):
        raise click.UsageError("give the names of workloads, or --all")
    if everything:
        renew_all(pki)
        return
    for name in dict.fromkeys(names):
        with pki_errors():
            made = authority.renew(pki, name)
        _tell(made, pki)


def renew_all(pki: Path) -> None:
    """Renews what can be, tells the rest, and ends the command with an error if something failed."""
    with pki_errors(), signer.failures(f"nothing can be renewed in {pki}"), signer.locked(Layout(pki)):
        names = trust.workloads(Layout(pki))
    if not names:
        click.echo("no certificate has been issued yet", err=True)
    failed = False
    for name in names:
        try:
            made = authority.renew(pki, name)
        except authority.NotRenewable as error:
            remark(str(error))
        except PkiError as error:
            click.echo(f"error: {error}", err=True)
            failed = True
        else:
            _tell(made, pki)
    if failed:
        raise click.exceptions.Exit(EXIT_PKI)


def _tell(made: Issued, pki: Path) -> None:
    end = proof.when(made.not_after)
    click.echo(f"{made.spiffe_id}  until {end}  {Layout(pki).workload(made.workload)}")
    if made.capped:
        asked = format_duration(made.ttl * 1000)
        remark(f"{made.workload} is valid for less than {asked}: the issuing CA ends at {end}")


@click.command()
@click.argument("what", metavar="NAME|SERIAL...", nargs=-1, required=True)
@pki_option
def revoke(what: tuple[str, ...], pki: Path) -> None:
    """Have certificates refused before they end: all of a workload, or one by its serial number.

    Sidecars that read this directory learn it at once.
    """
    with pki_errors():
        done = revocation.revoke(pki, list(dict.fromkeys(what)))
    for one in done.denied:
        click.echo(f"{one.serial}  {one.workload}  refused until it ends at {proof.when(one.not_after)}")
    for text in done.remarks:
        remark(text)


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--all", "everything", is_flag=True, help="Also what has been replaced since.")
@pki_option
def list_(as_json: bool, everything: bool, pki: Path) -> None:
    """List the workloads' certificates by the authority's record."""
    with pki_errors():
        rows, damaged = inspection.listing(pki, time.time(), everything=everything)
    for number in damaged:
        remark(f"line {number} of {Layout(pki).record} is no record and was left out")
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("no certificate has been issued yet", err=True)
        return
    _print_table(rows)


@click.command()
@click.argument("name", type=_workload)
@pki_option
def show(name: str, pki: Path) -> None:
    """Show a workload's identity and whether it can be used now (exit code 5 if not)."""
    with pki_errors():
        facts = inspection.describe(pki, name)
        found = inspection.spiffe_id(pki, name)
    width = max(len(label) for label, _ in facts)
    for label, text in facts:
        click.echo(f"{label.ljust(width)}  {text}")
    with pki_errors():
        identity = load_identity(pki, name, spiffe_id=found)
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
