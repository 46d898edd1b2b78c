"""`fastmesh inject`: manifests in, the same manifests with sidecars out."""

from __future__ import annotations

import sys
from typing import Any

import click

from fastmesh.cli import EXIT_CONFIG
from fastmesh.cli.kubernetes import settings_of, settings_options
from fastmesh.config import ConfigErrors
from fastmesh.config.errors import ConfigError
from fastmesh.kubernetes import explain, manifests
from fastmesh.kubernetes.errors import ManifestError, Refused
from fastmesh.kubernetes.inject import Outcome, inject
from fastmesh.kubernetes.objects import objects
from fastmesh.kubernetes.patch import difference
from fastmesh.kubernetes.settings import Settings


@click.command()
@click.option("--explain", "explained", is_flag=True, help="Print what would change and why, per object.")
@settings_options
@click.argument("files", nargs=-1)
def command(files: tuple[str, ...], explained: bool, **options: Any) -> None:
    """Write Kubernetes manifests with a sidecar in every pod.

    FILES are manifests, - is stdin; without any, stdin is read. Deployments, StatefulSets, DaemonSets,
    ReplicaSets, Jobs, CronJobs and Pods get a sidecar, in a List too; all else is written as it is, and so is
    what has its sidecar already, or the annotation fastmesh.io/inject: disabled.

    Exits with 2 when something is wrong with a manifest; nothing is written then.
    """
    if not files and sys.stdin.isatty():
        raise click.UsageError("no manifests: name files, or pipe them in")
    settings = settings_of(options)
    texts: list[str] = []
    said: list[str] = []
    errors: list[ConfigError] = []
    for name in files or ("-",):
        shown = manifests.shown_name(name)
        try:
            found = manifests.documents(manifests.read(name), shown)
        except ConfigErrors as wrong:
            errors += wrong.errors
            continue
        for document in found:
            data, outcomes = _document(document, settings, errors)
            texts.append(document.text(difference(document.data, data)))
            tell = explain.told if explained else explain.line
            said += [tell(shown, document.number, outcome) for outcome in outcomes]
    if errors:
        click.echo(str(ConfigErrors(errors)), err=True)
        sys.exit(EXIT_CONFIG)
    if explained:
        click.echo("\n".join(said) if said else "no object that makes pods: nothing would change")
        return
    click.echo(manifests.joined(texts), nl=False)
    for text in said:
        click.echo(text, err=True)


def _document(
    document: manifests.Document, settings: Settings, errors: list[ConfigError]
) -> tuple[Any, list[Outcome]]:
    """What becomes of a document, and of its objects."""
    data, outcomes = document.data, []
    where = f"document {document.number}"
    try:
        for one in list(objects(document.data)):
            where = f"document {document.number}: {one}"
            try:
                outcome = inject(data, one, settings)
            except ManifestError as error:
                errors.append(document.error(error.path, f"{where}: {error}"))
            except Refused as reason:
                message = f"{where}: asks for a sidecar and cannot have one: {reason}"
                errors.append(document.error(one.path, message))
            else:
                data = outcome.data
                outcomes.append(outcome)
    except ManifestError as error:
        errors.append(document.error(error.path, f"{where}: {error}"))
    return data, outcomes
