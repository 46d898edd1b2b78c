"""The deny list: what is refused, for how long, and how it reaches entries."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from kit.certs import Forge, plain

from fastmesh.certs import authority, files, record, revocation, templates, trust
from fastmesh.certs.store import BUNDLE, CERTIFICATE, KEY, REVOKED, Layout, PkiError, load_identity
from fastmesh.cli import main


def run(*args: str | Path) -> Result:
    result = CliRunner().invoke(main, ["certs", *map(str, args)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_a_workload(ca: Path) -> None:
    first, second = authority.issue(ca, "svc-a"), authority.issue(ca, "svc-a")
    authority.issue(ca, "svc-b")
    before = load_identity(ca, "svc-b")
    done = run("revoke", "svc-a", "--pki", ca)
    assert done.exit_code == 0
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        [first.serial, "svc-a"],
        [second.serial, "svc-a"],
    ]
    after = load_identity(ca, "svc-b")
    assert after.revoked == tuple(sorted([first.serial, second.serial]))
    assert (after.certificate, after.key, after.bundle) == (before.certificate, before.key, before.bundle)
    with pytest.raises(PkiError, match="was revoked; run: fastmesh certs issue svc-a"):
        load_identity(ca, "svc-a")
    rows = json.loads(run("list", "--json", "--pki", ca).stdout)
    assert [row["state"] for row in rows] == ["revoked", "valid"]
    # A new certificate is another one.
    authority.issue(ca, "svc-a")
    assert load_identity(ca, "svc-a").revoked == after.revoked
    assert revocation.revoke(ca, [first.serial]).denied[0].serial == first.serial, "again is fine"
    load_identity(ca, "svc-a")


def test_a_serial(ca: Path) -> None:
    kept, denied = authority.issue(ca, "svc-a"), authority.issue(ca, "svc-a")
    pairs = ":".join(denied.serial[at : at + 2] for at in range(0, 32, 2))
    for what in (denied.serial, denied.serial[:12], denied.serial.upper(), pairs):
        assert [one.serial for one in revocation.revoke(ca, [what]).denied] == [denied.serial]
    assert kept.serial not in {one.serial for one in trust.read_denied(Layout(ca))}


def test_what_cannot_be_revoked(ca: Path) -> None:
    issuer = next(entry for entry in record.read(Layout(ca).record)[0] if entry.kind == "issuer")
    for what, said in (
        ("svc-x", "no workload and no serial number 'svc-x' is on record"),
        ("abc", "no workload and no serial number"),
        ("", "no workload and no serial number"),
        ("0" * 32, "no workload and no serial number"),
        (issuer.serial, "is a CA's certificate"),
    ):
        done = run("revoke", what, "--pki", ca)
        assert (done.exit_code, done.stdout) == (5, "")
        assert said in done.stderr
    assert not Layout(ca).revoked.exists()


def test_all_are_looked_up_before_the_first_is_denied(ca: Path) -> None:
    authority.issue(ca, "svc-a")
    assert run("revoke", "svc-a", "svc-x", "--pki", ca).exit_code == 5
    load_identity(ca, "svc-a")


def test_an_entry_of_the_list_goes_when_its_certificate_would_have_expired(ca: Path) -> None:
    now = time.time()
    short = authority.issue(ca, "svc-a", 60)
    long = authority.issue(ca, "svc-b", 3600)
    revocation.revoke(ca, [short.serial])
    with pytest.raises(PkiError, match="nothing to revoke"):
        revocation.revoke(ca, [short.serial], now=now + 70)
    with pytest.raises(PkiError, match="nothing to revoke"):
        revocation.revoke(ca, ["svc-a"], now=now + 70)
    assert trust.read(Layout(ca), now + 70).revoked == (short.serial,), "a clock behind still believes it"
    assert trust.read(Layout(ca), now + 90).revoked == ()
    authority.issue(ca, "svc-a", 3600)
    revocation.revoke(ca, [long.serial], now=now + 90)
    assert [one.serial for one in trust.read_denied(Layout(ca))] == [long.serial]


def test_what_was_revoked_is_not_renewed_after_its_end(ca: Path) -> None:
    """However often the list was written since: the agent tries again and again."""
    now = time.time()
    authority.issue(ca, "svc-a", 60)
    authority.issue(ca, "svc-b", 3600)
    revocation.revoke(ca, ["svc-a"])
    revocation.revoke(ca, ["svc-b"], now=now + 200)
    with pytest.raises(authority.NotRenewable, match="was revoked"):
        authority.renew(ca, "svc-a", now=now + 201)
    assert len(trust.read(Layout(ca), now + 201).revoked) == 1, "sidecars need it no more"


def test_a_serial_as_openssl_prints_it(ca: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_serial", lambda: 0x00C0FFEE << 64)
    made = authority.issue(ca, "svc-a")
    shown = f"{0x00C0FFEE << 64:X}"
    assert [one.serial for one in revocation.revoke(ca, [shown]).denied] == [made.serial]


def test_an_entry_that_cannot_be_written_keeps_nothing_from_the_others(
    ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.write_entry
    for name in ("svc-a", "svc-b"):
        authority.issue(ca, name)

    def write(number: int) -> None:
        def refused(entry: Path, *rest: Any) -> None:
            if entry.name == "svc-a":
                raise OSError(number, os.strerror(number))
            real(entry, *rest)

        monkeypatch.setattr(files, "write_entry", refused)

    write(errno.EACCES)
    assert "svc-a was left as it is: Permission denied" in run("revoke", "svc-a", "--pki", ca).stderr
    assert len(load_identity(ca, "svc-b").revoked) == 1
    monkeypatch.setattr(files, "write_entry", real)
    other = authority.issue(ca, "svc-x")
    write(errno.EIO)
    assert run("revoke", "svc-x", "--pki", ca).exit_code == 5
    assert other.serial in load_identity(ca, "svc-b").revoked


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"revoked": ["XX"]}', '{"revoked": [1]}', '{"revoked": "ab"}']
)
def test_a_damaged_list_is_no_empty_one(ca: Path, text: str) -> None:
    home = plain(ca / "workloads/svc-a", Forge(ca).files(["spiffe://mesh.local/svc-a"]))
    (home / REVOKED).write_text(text)
    with pytest.raises(PkiError, match=r"revoked\.json is damaged; run: "):
        load_identity(ca, "svc-a")
    Layout(ca).revoked.write_text(text)
    with pytest.raises(PkiError, match=r"ca/revoked\.json is damaged; restore it from a backup"):
        authority.issue(ca, "svc-a")
    assert run("list", "--pki", ca).exit_code == 5


def test_entries_that_are_left_alone(ca: Path, tmp_path: Path) -> None:
    """Unreadable ones, others' ones and mounted ones cost a remark, not the command."""
    authority.issue(ca, "svc-a")
    forge = Forge(ca)
    plain(ca / "workloads/broken", {CERTIFICATE: "hello", KEY: "", BUNDLE: ""})
    plain(ca / "workloads/foreign", forge.files(["spiffe://other.example/foreign"]))
    mounted = plain(ca / "workloads/mounted", forge.files(["spiffe://mesh.local/mounted"]))
    (mounted / "..data").symlink_to(".")
    plain(ca / "workloads/copied", forge.files(["spiffe://mesh.local/copied"]))
    (ca / "workloads/empty").mkdir()
    done = run("revoke", "svc-a", "--pki", ca)
    assert done.exit_code == 0
    notes = [line.split("workloads/")[1].split(" was left as it is: ") for line in done.stderr.splitlines()]
    assert [name for name, _ in notes] == ["broken", "empty", "foreign", "mounted"]
    assert "not of the trust domain mesh.local" in notes[2][1]
    assert len(load_identity(ca, "copied").revoked) == 1
    assert not (mounted / REVOKED).exists()
