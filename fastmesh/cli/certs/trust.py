"""`fastmesh certs bundle`, `verify`: who is trusted, and whether a certificate is."""

from __future__ import annotations

from pathlib import Path

import click

from fastmesh.certs import bundle as bundles
from fastmesh.certs import proof, spiffe, verification
from fastmesh.cli import EXIT_PKI
from fastmesh.cli.certs.common import pki_errors, pki_option, remark
from fastmesh.cli.parameters import FILE, Checked

_MARKS = {True: "ok", False: "FAIL", None: "-"}


def _federation(text: str) -> tuple[str, Path]:
    domain, equals, path = text.partition("=")
    if not equals or not path or "\0" in path:
        raise ValueError("expected DOMAIN=FILE")
    return spiffe.trust_domain(domain), Path(path)


@click.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["pem", "jwks"]),
    default="pem",
    show_default=True,
    help="PEM, or the JWK Set of the SPIFFE standard.",
)
@click.option(
    "--federate",
    multiple=True,
    type=Checked("DOMAIN=FILE", _federation),
    help="Trust another trust domain by its bundle, PEM or JWK Set. Repeatable.",
)
@click.option(
    "--unfederate",
    multiple=True,
    type=Checked("DOMAIN", spiffe.trust_domain),
    help="Trust another trust domain no longer. Repeatable.",
)
@click.option("--federated", is_flag=True, help="List the other trust domains that are trusted.")
@pki_option
def bundle(
    form: str,
    federate: tuple[tuple[str, Path], ...],
    unfederate: tuple[str, ...],
    federated: bool,
    pki: Path,
) -> None:
    """Print the trust bundle, or change which others are trusted."""
    if not (federate or unfederate or federated):
        with pki_errors():
            text = bundles.jwks(pki) + "\n" if form == "jwks" else bundles.read(pki)
        click.echo(text, nl=False)
        return
    if len({domain for domain, _ in federate} | set(unfederate)) < len(federate) + len(unfederate):
        raise click.UsageError("each trust domain once")
    with pki_errors():
        if federate or unfederate:
            rows, remarks = bundles.federate(pki, dict(federate), list(unfederate))
        else:
            rows, remarks = bundles.federated(pki), []
    for row in rows:
        count = "one root" if row.roots == 1 else f"{row.roots} roots"
        click.echo(f"{row.trust_domain}  {count}, until {proof.when(row.not_after)}")
    if not rows:
        click.echo("no other trust domain is trusted", err=True)
    for text in remarks:
        remark(text)


@click.command()
@click.argument("file", type=FILE)
@click.option("--bundle", "bundle_file", type=FILE, help="The roots to check it with. Default: as it says.")
@pki_option
def verify(file: Path, bundle_file: Path | None, pki: Path) -> None:
    """Check a certificate by every rule (exit code 5 if one is broken).

    FILE is a certificate with its issuers in PEM form, or the directory of a workload. Roots come from
    --bundle, else from that directory, else from the authority.
    """
    with pki_errors():
        findings = verification.verify(file, pki, bundle_path=bundle_file)
    width = max(len(one.rule) for one in findings)
    for one in findings:
        click.echo(f"{_MARKS[one.good]:<4}  {one.rule.ljust(width)}  {one.text}")
    if any(one.good is False for one in findings):
        raise click.exceptions.Exit(EXIT_PKI)
