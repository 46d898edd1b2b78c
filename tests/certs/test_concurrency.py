"""Commands at the same time: real processes, twenty at once."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from kit.certs import command, environment
from kit.limits import DEADLINE

from fastmesh.certs import authority, record, rotation
from fastmesh.certs.store import Layout, load_identity

AT_ONCE = 20


def together(commands: list[list[str]]) -> list[tuple[int, str, str]]:
    """Starts them all, then waits: exit code, stdout and stderr of each."""
    running = [
        subprocess.Popen(
            one,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        for one in commands
    ]
    ended = []
    try:
        for process in running:
            out, err = process.communicate(timeout=4 * DEADLINE)
            ended.append((process.returncode, out, err))
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    return ended


@pytest.mark.parametrize("same", [True, False], ids=["same name", "different names"])
def test_twenty_issues_at_once(ca: Path, same: bool) -> None:
    names = ["svc-a" if same else f"svc-{number}" for number in range(AT_ONCE)]
    ended = together([command("certs", "issue", name, "--pki", ca) for name in names])
    assert [(code, err) for code, _, err in ended] == [(0, "")] * AT_ONCE
    entries, damaged = record.read(Layout(ca).record)
    assert not damaged
    issued = [entry for entry in entries if entry.kind == "workload"]
    assert sorted(entry.workload or "" for entry in issued) == sorted(names)
    assert len({entry.serial for entry in entries}) == AT_ONCE + 2
    newest = {entry.workload: entry.serial for entry in issued}
    for name in set(names):
        load_identity(ca, name)
        version = (ca / "workloads" / name / "current").readlink().name
        # The record is written in the order in which certificates come into use.
        assert version == f".v-{newest[name]}"
        assert len(list((ca / "workloads" / name).glob(".v-*"))) == 1


def test_many_names_in_each_of_several_commands(ca: Path) -> None:
    names = [f"svc-{number}" for number in range(5)]
    ended = together([command("certs", "issue", *names, "--pki", ca) for _ in range(4)])
    assert [code for code, _, _ in ended] == [0] * 4
    assert all(len(out.splitlines()) == len(names) for _, out, _ in ended)
    for name in names:
        load_identity(ca, name)


def test_every_command_at_once(ca: Path, tmp_path: Path) -> None:
    """Of all kinds, twenty: each does its work, and everybody ends with the same trust."""
    authority.create(tmp_path / "other", "other.example")
    names = [f"svc-{number}" for number in range(4)]
    for name in (*names, "doomed"):
        authority.issue(ca, name)
    others = f"other.example={tmp_path / 'other/ca/bundle.pem'}"
    work = [
        *(["renew", name] for name in names),
        *(["renew", "--all"] for _ in range(2)),
        *(["issue", name] for name in names),
        *(["issue", f"new-{number}"] for number in range(3)),
        *(["rotate-issuer"] for _ in range(2)),
        ["revoke", "doomed"],
        ["bundle", "--federate", others],
        *(["rotate-root", "introduce"] for _ in range(2)),
        ["list"],
    ]
    assert len(work) == AT_ONCE
    ended = together([command("certs", *one, "--pki", ca) for one in work])
    # `renew --all` leaves the revoked one out with a remark.
    assert [(one, code, err) for one, (code, _, err) in zip(work, ended, strict=True) if code] == []
    entries, damaged = record.read(Layout(ca).record)
    assert not damaged
    assert sorted(entry.kind for entry in entries if entry.kind != "workload") == [
        "cross",
        "issuer",
        "issuer",
        "issuer",
        "root",
        "root",
    ]
    known = {entry.serial for entry in entries}
    assert len(known) == len(entries)
    found = [load_identity(ca, name) for name in (*names, "new-0", "new-1", "new-2")]
    doomed = {entry.serial for entry in entries if entry.workload == "doomed"}
    for one in found:
        assert list(one.federated) == ["other.example"]
        assert one.revoked
        assert set(one.revoked) <= doomed
        assert one.bundle == (ca / "ca/bundle.pem").read_text()
        assert one.bundle.count("BEGIN") == 2
    assert len({one.revoked for one in found}) == 1
    assert not list(ca.glob(".fastmesh-new-*"))


@pytest.mark.parametrize("step", ["introduce", "switch", "retire"])
def test_a_step_of_the_root_five_times_at_once(ca: Path, step: str) -> None:
    """One does it, the others find it done."""
    authority.issue(ca, "svc-a", 10)
    if step != "introduce":
        rotation.introduce(ca)
    if step == "retire":
        rotation.switch(ca)
        authority.renew(ca, "svc-a")
    options = ["--force"] if step == "retire" else []
    ended = together([command("certs", "rotate-root", step, *options, "--pki", ca) for _ in range(5)])
    assert [code for code, _, _ in ended] == [0] * 5, ended
    kinds = [entry.kind for entry in record.read(Layout(ca).record)[0]]
    assert kinds.count("root") == 2
    assert kinds.count("issuer") == (1 if step == "introduce" else 2)
    at = rotation.state(ca)
    assert (at.step if at else "retire") == step
    load_identity(ca, "svc-a")


def test_of_ten_inits_one_wins(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    ended = together([command("certs", "init", "--pki", pki) for _ in range(10)])
    assert sorted(code for code, _, _ in ended) == [0] + [5] * 9
    assert all("exists already; nothing was changed" in err for code, _, err in ended if code)
    entries, damaged = record.read(Layout(pki).record)
    assert ([entry.kind for entry in entries], damaged) == (["root", "issuer"], [])
