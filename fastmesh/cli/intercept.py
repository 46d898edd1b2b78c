"""`fastmesh intercept`: lead an application's traffic through the proxy, and leave it alone again.

Results go to stdout, warnings and errors to stderr. What cannot be done is one sentence with its remedy and
exit code 1, a bad configuration exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from fastmesh.cli import EXIT_CONFIG, EXIT_FAILURE, EXIT_UNPROVEN
from fastmesh.cli.parameters import FILE, config_option
from fastmesh.config import ConfigErrors, Loaded, find_config, load
from fastmesh.host.intercept import InterceptError, Selection, apply, probe, routes, words
from fastmesh.host.intercept.namespace import Place, inside
from fastmesh.host.intercept.plan import Plan, make_plan, unheard
from fastmesh.host.intercept.selection import PREFIX, of_whom, table_of, uid_of


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which they are needed


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Lead an application's traffic through the proxy without its help.

    What is taken over is the traffic of a network namespace, of one user (--uid) or of one cgroup (--cgroup)
    in it, as `intercept` in the configuration says. Needs root, or CAP_NET_ADMIN in the namespace, and the
    program nft.
    """


_VERDICTS: Final = {True: "ok  ", False: "FAIL", None: "????"}


def _selecting(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--cgroup",
            metavar="PATH",
            help="Only the traffic of this cgroup (version 2) and of those below it.",
        ),
        click.option(
            "--uid", "user", metavar="USER", help="Only the traffic of this user, by name or number."
        ),
        click.option(
            "--netns",
            metavar="NAME|PID",
            help="In this network namespace: its name, its path, or a process in it. Without: in this one.",
        ),
    ):
        function = option(function)
    return function


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong in here is said in a sentence, and ends the command."""
    try:
        yield
    except ConfigErrors as errors:
        click.echo(str(errors), err=True)
        sys.exit(EXIT_CONFIG)
    except InterceptError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_FAILURE)


def _selection(netns: str | None, user: str | None, cgroup: str | None) -> Selection:
    selection = Selection(netns=netns, uid=None if user is None else uid_of(user), cgroup=cgroup)
    table_of(selection)  # it says so if this is no selection
    return selection


@command.command()
@config_option
@_selecting
def up(file: Path | None, netns: str | None, user: str | None, cgroup: str | None) -> None:
    """Take traffic over, as the configuration says.

    All of it is in force afterwards, or nothing has changed. Where it is in force already, nothing happens;
    rules that were changed by hand are restored. Applications keep the connections that they have.
    """
    with _told():
        loaded = load(find_config(file))
        selection = _selection(netns, user, cgroup)
        remarks = apply.up(loaded, selection, strangers=False)
    click.echo(f"traffic {of_whom(selection.uid, selection.cgroup)} is taken over as {loaded.name} says")
    for remark in [*remarks, *unheard(loaded)]:
        click.echo(f"note: {remark}", err=True)


@command.command()
@click.option("-c", "--config", "file", type=FILE, help="Only if it is in force for this file.")
@_selecting
def down(file: Path | None, netns: str | None, user: str | None, cgroup: str | None) -> None:
    """Leave traffic alone again: no rule, route or mark is left behind.

    Needs no configuration: what is to be removed follows from the selection. Connections that go through the
    proxy end.
    """
    with _told():
        selection = _selection(netns, user, cgroup)
        found = apply.down_of(None if file is None else str(file.absolute()), selection)
    whose = of_whom(selection.uid, selection.cgroup)
    click.echo(f"traffic {whose} is left alone" + ("" if found else ": nothing was in force"))


@command.command()
@click.option("-c", "--config", "file", type=FILE, help="Say also whether it is what this file says.")
@_selecting
def show(file: Path | None, netns: str | None, user: str | None, cgroup: str | None) -> None:
    """Say in words what is in force: for one selection, or without one for all of the namespace.

    Warns, and exits with 1, when it is not as `up` left it, or when nothing is in force.
    """
    with _told():
        selection = _selection(netns, user, cgroup)
        loaded = None if file is None else load(find_config(file))
        everybody = selection.uid is None and selection.cgroup is None
        table = None if everybody else table_of(selection)
        lines, warnings = inside(netns, lambda place: _shown(place, loaded, table))
    for line in lines:
        click.echo(line)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    if warnings or not lines:
        if not lines and not warnings:
            click.echo("nothing is in force; `fastmesh intercept up` takes traffic over", err=True)
        sys.exit(EXIT_FAILURE)


@command.command()
@config_option
@_selecting
def check(file: Path | None, netns: str | None, user: str | None, cgroup: str | None) -> None:
    """Prove that traffic passes through the proxy, by connections that must arrive there.

    For that there is a second host for a moment, within this machine: the selected user or cgroup calls it,
    and it calls the application's ports. Exits with 1 when anything is missing, and says what. Without root
    (CAP_SYS_ADMIN) there is no second host: what comes in cannot be proven then, and it exits with 6.
    """
    with _told():
        loaded = load(find_config(file))
        findings = probe.check(loaded, _selection(netns, user, cgroup))
    for one in findings:
        click.echo(f"{_VERDICTS[one.fine]} {one.text}")
    if any(one.fine is False for one in findings):
        sys.exit(EXIT_FAILURE)
    if any(one.fine is None for one in findings):
        sys.exit(EXIT_UNPROVEN)


def _shown(place: Place, loaded: Loaded | None, table: str | None) -> tuple[list[str], list[str]]:
    lines: list[str] = []
    warnings: list[str] = []
    every = apply.read_all(place)
    wanted = table or PREFIX
    if all(found.table != wanted for found in every) and routes.are_left(place, wanted):
        warnings.append(
            "policy routes of an `up` are left, whose rules somebody has removed; run `fastmesh intercept "
            "down` with the same options to remove them, or `up` again to restore all"
        )
    for found in every:
        if table is not None and found.table != table:
            continue
        lines += words.told(found, place.words)
        warnings += words.warnings(found)
        if loaded is not None and found.plan is not None:
            warnings += _compared(found.plan, loaded)
    return lines, warnings


def _compared(plan: Plan, loaded: Loaded) -> list[str]:
    """What is in force, against what a file says now."""
    if plan.owner != str(loaded.path):
        return [f"it is in force for {plan.owner}, not for {loaded.name}"]
    if make_plan(loaded, Selection(uid=plan.uid, cgroup=plan.cgroup)) != plan:
        return [f"{loaded.name} says something else by now; run `fastmesh intercept up` again"]
    return []
