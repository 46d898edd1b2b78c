"""`fastmesh certs init`, `rotate-issuer`, `rotate-root`: the CAs themselves."""

from __future__ import annotations

from pathlib import Path

import click

from fastmesh.certs import authority, keys, proof, rotation, signer, spiffe, trust
from fastmesh.certs.errors import PkiError
from fastmesh.certs.rotation import Opening, Rotated
from fastmesh.certs.store import Layout
from fastmesh.certs.store import command as shown
from fastmesh.cli.certs.common import (
    DAYS,
    key_option,
    new_passphrase,
    old_passphrase,
    passphrase_option,
    pki_errors,
    pki_option,
    remark,
    root_key_option,
)
from fastmesh.cli.certs.workloads import renew_all
from fastmesh.cli.parameters import DIRECTORY, Option, checked_option

_DAY = 86400


def _days(option: str, what: str, default: int | None) -> Option:
    return click.option(
        option,
        type=DAYS,
        default=default,
        show_default=default is not None,
        help=f"How long the {what} is valid." + ("" if default else " Default: as init was told."),
    )


def _issuer_days(default: int | None) -> Option:
    return _days("--issuer-days", "issuing CA", default)


def _root_days(default: int | None) -> Option:
    return _days("--root-days", "root", default)


@click.command()
@checked_option(
    "--trust-domain",
    kind="name",
    check=spiffe.trust_domain,
    default="mesh.local",
    help="The name that all identities share: spiffe://NAME/…",
)
@key_option(keys.DEFAULT)
@_root_days(signer.ROOT_LIFE // _DAY)
@_issuer_days(signer.ISSUER_LIFE // _DAY)
@click.option("--root-passphrase", is_flag=True, help="Ask for a passphrase to encrypt the root's key with.")
@passphrase_option
@pki_option
def init(
    *,
    trust_domain: str,
    key: str,
    root_days: int,
    issuer_days: int,
    root_passphrase: bool,
    root_passphrase_file: Path | None,
    pki: Path,
) -> None:
    """Make a root and an issuing CA. An authority that exists is never overwritten."""
    if issuer_days > root_days:
        raise click.UsageError(
            "the issuing CA cannot outlive the root: --issuer-days is more than --root-days"
        )
    layout = Layout(pki)
    passphrase = new_passphrase(root_passphrase_file, ask=root_passphrase)
    with pki_errors():
        made = authority.create(
            pki,
            trust_domain,
            key=key,
            root_life=root_days * _DAY,
            issuer_life=issuer_days * _DAY,
            passphrase=passphrase,
        )
    click.echo(f"trust domain  {made.trust_domain}")
    click.echo(f"root          {layout.root}, until {proof.when(made.root_not_after)}")
    click.echo(f"issuing CA    {layout.issuer}, until {proof.when(made.issuer_not_after)}")
    click.echo(f"trust bundle  {layout.bundle}")
    if passphrase is not None:
        click.echo("root key      encrypted with the passphrase")


@click.command("rotate-issuer")
@key_option(None)
@_issuer_days(None)
@root_key_option
@passphrase_option
@pki_option
def rotate_issuer(
    key: str | None,
    issuer_days: int | None,
    root_key: Path | None,
    root_passphrase_file: Path | None,
    pki: Path,
) -> None:
    """Make a new issuing CA under the root.

    What the old one signed stays valid to its end: nothing has to be renewed.
    """
    with pki_errors():
        opening = _opening(pki, "rotate-issuer", root_key, root_passphrase_file)
        made = rotation.rotate_issuer(pki, opening, key=key, life=_seconds(issuer_days))
    click.echo(f"issuing CA  {made.name}, until {proof.when(made.not_after)}")


@click.group("rotate-root", invoke_without_command=True)
@pki_option
@click.pass_context
def rotate_root(ctx: click.Context, pki: Path) -> None:
    """Replace the root in three steps, while everything runs.

    Without a step: tell how far it is. Each step says what comes next, and may be repeated.
    """
    ctx.obj = pki
    if ctx.invoked_subcommand is not None:
        return
    with pki_errors():
        at = rotation.state(pki)
    if at is None:
        click.echo("the root is not being replaced")
        _next("to begin", "introduce", pki)
    elif not at.done:
        click.echo(f"the step {at.step} was begun, and not finished")
        _next("go on with", at.step, pki)
    else:
        click.echo(f"the step {at.step} is done")
        _next("next", "switch" if at.step == "introduce" else "retire", pki)


_step_pki = click.option(
    "--pki",
    type=DIRECTORY,
    help="Directory of keys and certificates.  [default: pki]",
)


@rotate_root.command()
@key_option(None)
@_root_days(None)
@root_key_option
@passphrase_option
@_step_pki
@click.pass_obj
def introduce(
    group_pki: Path,
    *,
    key: str | None,
    root_days: int | None,
    root_key: Path | None,
    root_passphrase_file: Path | None,
    pki: Path | None,
) -> None:
    """1. Make the next root, and tell everybody to trust both.

    Nothing is issued under it yet. Its key gets the passphrase of the old one.
    """
    at = pki or group_pki
    with pki_errors():
        begun = rotation.state(at) is not None
        opening = Opening() if begun else _opening(at, "introduce", root_key, root_passphrase_file)
        done = rotation.introduce(at, opening, key=key, life=_seconds(root_days))
    _tell(done, "next root")
    click.echo(
        "now every workload has to know it: those of this directory do; copy pki/workloads/NAME to other"
    )
    click.echo("hosts, and the new bundle to whoever has it from elsewhere")
    _next("then", "switch", at)


@rotate_root.command()
@key_option(None)
@_issuer_days(None)
@click.option("--renew", is_flag=True, help="Renew all workloads' certificates at once.")
@root_key_option
@passphrase_option
@_step_pki
@click.pass_obj
def switch(
    group_pki: Path,
    *,
    key: str | None,
    issuer_days: int | None,
    renew: bool,
    root_key: Path | None,
    root_passphrase_file: Path | None,
    pki: Path | None,
) -> None:
    """2. Issue under the next root from now on.

    What was issued before stays valid, and is renewed when it would be anyway; --renew does it now.
    """
    at = pki or group_pki
    with pki_errors():
        begun = rotation.state(at)
        first = begun is not None and begun.step == "introduce"
        opening = _opening(at, "switch", root_key, root_passphrase_file) if first else Opening()
        done = rotation.switch(at, opening, key=key, life=_seconds(issuer_days))
    _tell(done, "issuing CA")
    if renew:
        renew_all(at)
    else:
        click.echo(f"certificates are renewed as they end, or now with: {shown('renew', '', at, '--all')}")
    _next("when no certificate under the old root is left", "retire", at)


@rotate_root.command()
@click.option("--force", is_flag=True, help="Although certificates that need the old root have not expired.")
@_step_pki
@click.pass_obj
def retire(group_pki: Path, force: bool, pki: Path | None) -> None:
    """3. Trust the old root no longer, and forget its key."""
    at = pki or group_pki
    with pki_errors():
        if rotation.state(at) is None:
            click.echo("the root is not being replaced: there is nothing to retire")
        done = rotation.retire(at, force=force)
        broken = force and bool(trust.workloads(Layout(at)))
    _tell(done, "root")
    if broken:
        remark(f"what was under the old root proves nothing now; run: {shown('renew', '', at, '--all')}")
    click.echo("it is the only root of the trust domain")


def _opening(pki: Path, step: str, root_key: Path | None, file: Path | None) -> Opening:
    if root_key is not None and not root_key.exists():
        raise PkiError(f"{root_key} does not exist")
    wanted = signer.wants_passphrase(rotation.signing_root(pki, step), root_key)
    return Opening(old_passphrase(file, wanted=wanted), root_key)


def _seconds(days: int | None) -> int | None:
    return None if days is None else days * _DAY


def _tell(done: Rotated, what: str) -> None:
    for text in done.remarks:
        remark(text)
    click.echo(f"{what}  {done.ca.name}, until {proof.when(done.ca.not_after)}")


def _next(when: str, step: str, pki: Path) -> None:
    click.echo(f"{when}: {shown('rotate-root', step, pki)}")
