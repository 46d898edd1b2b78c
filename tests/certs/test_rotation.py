"""New CAs while everything runs: who believes whom at each moment, and what each step refuses."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from kit.certs import openssl

from fastmesh.certs import authority, keys, proof, record, revocation, rotation, templates
from fastmesh.certs.store import BUNDLE, CERTIFICATE, KEY, Identity, Layout, PkiError, load_identity
from fastmesh.cli import main

DAY = 86400


def run(*args: str | Path) -> Result:
    result = CliRunner().invoke(main, ["certs", *map(str, args)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def believed(who: Identity, by: Identity) -> bool:
    """By OpenSSL twice: a handshake, and its command line's strict verification."""
    try:
        proof.prove(
            who.certificate, who.key, by.bundle, time.time(), proof.Labels("it", "its key", "the bundle")
        )
    except PkiError:
        return False
    return True


def strictly(who: Identity, by: Identity, directory: Path) -> str:
    (directory / "leaf").write_text(who.certificate)
    (directory / "roots").write_text(by.bundle)
    leaf = directory / "leaf"
    return openssl(
        "verify", "-x509_strict", "-CAfile", directory / "roots", "-untrusted", leaf, leaf, check=False
    )


@dataclass
class Moment:
    """An identity as it was made, and as its entry was then."""

    identity: Identity
    roots: int
    chain: int


def take(pki: Path, name: str) -> Moment:
    one = load_identity(pki, name)
    return Moment(one, one.bundle.count("BEGIN"), one.certificate.count("BEGIN"))


def test_everybody_believes_everybody_at_each_step(ca: Path, tmp_path: Path) -> None:
    """Also hosts that still have the entry of the step before: copies travel slowly."""
    authority.issue(ca, "svc-a")
    before = take(ca, "svc-a")
    assert (before.roots, before.chain) == (1, 2)

    rotation.introduce(ca)
    introduced = take(ca, "svc-a")
    assert (introduced.roots, introduced.chain) == (2, 2)
    assert introduced.identity.certificate == before.identity.certificate
    assert introduced.identity.key == before.identity.key

    rotation.switch(ca)
    unchanged = take(ca, "svc-a")
    assert unchanged == introduced, "nothing is issued anew by itself"
    authority.renew(ca, "svc-a")
    switched = take(ca, "svc-a")
    assert (switched.roots, switched.chain) == (2, 3)

    rotation.retire(ca, force=True)
    retired = take(ca, "svc-a")
    assert (retired.roots, retired.chain) == (1, 2)
    assert retired.identity.key == switched.identity.key
    assert retired.identity.bundle != before.identity.bundle

    moments = [before, introduced, switched, retired]
    table = [[believed(one.identity, other.identity) for other in moments] for one in moments]
    assert table == [
        # by: before, introduced, switched, retired
        [True, True, True, False],
        [True, True, True, False],
        [True, True, True, True],
        # Without the cross certificate in its chain, who knows the old root alone does not believe it.
        [False, True, True, True],
    ]
    for row, one in zip(table, moments, strict=True):
        for cell, other in zip(row, moments, strict=True):
            assert strictly(one.identity, other.identity, tmp_path).endswith(": OK\n") is cell


def test_the_cross_certificate(ca: Path) -> None:
    rotation.introduce(ca)
    old = x509.load_pem_x509_certificate((ca / "ca/root" / CERTIFICATE).read_bytes())
    new = x509.load_pem_x509_certificate((ca / "ca/next-root" / CERTIFICATE).read_bytes())
    cross = x509.load_pem_x509_certificate((ca / "ca/cross.pem").read_bytes())
    assert (cross.subject, cross.issuer) == (new.subject, old.subject)
    assert cross.public_key() == new.public_key()
    assert cross.not_valid_after_utc == min(old.not_valid_after_utc, new.not_valid_after_utc)
    assert cross.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 1
    cross.verify_directly_issued_by(old)
    entries, _ = record.read(Layout(ca).record)
    assert [entry.kind for entry in entries] == ["root", "issuer", "root", "cross"]
    assert entries[3].issuer == entries[0].serial


def test_from_first_to_last_on_the_command_line(ca: Path) -> None:
    authority.issue(ca, "svc-a", 60)
    at = ("--pki", ca)
    status = run("rotate-root", *at).stdout
    assert (
        status
        == f"the root is not being replaced\nto begin: fastmesh certs rotate-root introduce --pki {ca}\n"
    )
    for step, after in (("introduce", "switch"), ("switch", "retire")):
        for _ in range(2):
            done = run("rotate-root", step, *at)
            assert (done.exit_code, done.stderr) == (0, ""), done.stderr
            assert done.stdout.endswith(f"fastmesh certs rotate-root {after} --pki {ca}\n")
        assert run("rotate-root", *at).stdout.startswith(f"the step {step} is done\nnext: ")
    refused = run("rotate-root", "retire", *at)
    assert (refused.exit_code, refused.stdout) == (5, "")
    assert "1 certificates under the old root have not expired (of svc-a)" in refused.stderr
    assert run("renew", "--all", *at).exit_code == 0
    assert run("rotate-root", "retire", *at).exit_code == 5, "the old certificate may be in use elsewhere"
    moment = time.time() + 70
    rotation.retire(ca, now=moment)
    again = run("rotate-root", "retire", *at)
    assert again.exit_code == 0
    assert again.stdout.startswith("the root is not being replaced: there is nothing to retire\n")
    assert sorted(path.name for path in (ca / "ca").iterdir()) == [
        "authority.json",
        "bundle.pem",
        "issued.jsonl",
        "issuer",
        "root",
        "sequence.json",
    ]
    # And the whole once more.
    for step in ("introduce", "switch"):
        assert run("rotate-root", step, *at).exit_code == 0
    assert run("rotate-root", "retire", "--force", *at).exit_code == 0
    authority.renew(ca, "svc-a")
    assert load_identity(ca, "svc-a").bundle.count("BEGIN") == 1


def test_switch_can_renew(ca: Path) -> None:
    for name in ("svc-a", "svc-b"):
        authority.issue(ca, name)
    rotation.introduce(ca)
    done = run("rotate-root", "switch", "--renew", "--pki", ca)
    assert done.exit_code == 0
    assert [take(ca, name).chain for name in ("svc-a", "svc-b")] == [3, 3]


def test_steps_out_of_order(ca: Path) -> None:
    with pytest.raises(PkiError, match="not introduced yet; run: fastmesh certs rotate-root introduce"):
        rotation.switch(ca)
    rotation.retire(ca)
    rotation.introduce(ca)
    with pytest.raises(
        PkiError, match=r"nothing is issued under the next root yet; run: .* rotate-root switch"
    ):
        rotation.retire(ca)
    rotation.switch(ca)
    with pytest.raises(PkiError, match=r"introduced already.*go on with: .* rotate-root retire"):
        rotation.introduce(ca)


def test_revoked_and_expired_certificates_do_not_keep_the_old_root(ca: Path) -> None:
    authority.issue(ca, "svc-a", 60)
    authority.issue(ca, "svc-b", 3600)
    rotation.introduce(ca)
    rotation.switch(ca)
    moment = time.time() + 70
    with pytest.raises(PkiError, match="1 certificates under the old root"):
        rotation.retire(ca, now=moment)
    revocation.revoke(ca, ["svc-b"])
    rotation.retire(ca, now=moment)


def test_the_issuer_may_change_at_any_time_but_one(ca: Path) -> None:
    authority.issue(ca, "svc-a")
    first = load_identity(ca, "svc-a")
    for step in (lambda: None, lambda: rotation.introduce(ca), lambda: rotation.switch(ca)):
        step()
        made = run("rotate-issuer", "--issuer-days", "5", "--key", "ec-p384", "--pki", ca)
        assert made.exit_code == 0, made.stderr
        assert made.stdout.startswith("issuing CA  mesh.local issuer ")
        authority.issue(ca, "svc-b")
        second = load_identity(ca, "svc-b")
        assert 4 * DAY < second.issuer_not_after - time.time() <= 5 * DAY
        assert believed(first, second)
        assert believed(second, first)
    assert second.certificate.count("BEGIN") == 3
    state = json.loads(Layout(ca).rotation.read_text())
    Layout(ca).rotation.write_text(json.dumps({**state, "step": "retire", "done": False}))
    with pytest.raises(PkiError, match="the root is being retired; finish that first"):
        rotation.rotate_issuer(ca)
    assert run("rotate-root", "--pki", ca).stdout.startswith("the step retire was begun, and not finished\n")


def test_an_expired_issuer_is_replaced(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    authority.create(pki, "mesh.local", issuer_life=DAY, now=time.time() - 2 * DAY)
    with pytest.raises(
        PkiError, match=r"the issuing CA ended at .*; run: fastmesh certs rotate-issuer --pki"
    ):
        authority.issue(pki, "svc-a")
    rotation.rotate_issuer(pki)
    authority.issue(pki, "svc-a")
    load_identity(pki, "svc-a")


def test_an_issuer_does_not_outlive_its_root(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    made = authority.create(pki, "mesh.local", root_life=10 * DAY, issuer_life=DAY)
    assert rotation.rotate_issuer(pki, life=100 * DAY).not_after == made.root_not_after


def test_a_root_at_its_end_signs_nothing(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    authority.create(pki, "mesh.local", root_life=DAY, issuer_life=DAY, now=time.time() - 2 * DAY)
    for work in (rotation.rotate_issuer, rotation.introduce):
        with pytest.raises(
            PkiError, match=r"the root ended at .*; make a new authority in another directory"
        ):
            work(pki)


def test_the_end_of_the_old_root_harms_nobody_who_has_switched(tmp_path: Path) -> None:
    """The cross certificate in the chain ends with the old root; the new one is another way."""
    pki = tmp_path / "pki"
    now = time.time()
    old = authority.create(pki, "mesh.local", root_life=10 * DAY, issuer_life=5 * DAY, now=now)
    rotation.introduce(pki, life=100 * DAY)
    rotation.switch(pki, life=50 * DAY)
    authority.issue(pki, "svc-a", 20 * DAY)
    made = load_identity(pki, "svc-a")
    assert made.root_not_after == old.root_not_after, "the first root to end, until it is retired"
    assert 49 * DAY < made.issuer_not_after - now < 51 * DAY, "a cross certificate is no issuer"
    later = load_identity(pki, "svc-a", now=now + 11 * DAY)
    assert 99 * DAY < later.root_not_after - now < 101 * DAY
    rotation.retire(pki, now=now + 11 * DAY)
    load_identity(pki, "svc-a", now=now + 11 * DAY)


def test_a_root_without_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "ROOT_PATH", 1)
    authority.create(tmp_path / "pki", "mesh.local")
    monkeypatch.undo()
    with pytest.raises(PkiError, match="its path length leaves no room"):
        rotation.introduce(tmp_path / "pki")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"step": "x", "done": true, "old": "", "new": ""}'])
def test_a_damaged_state(ca: Path, text: str) -> None:
    Layout(ca).rotation.write_text(text)
    for args in (["rotate-root"], ["rotate-root", "introduce"], ["rotate-root", "retire"], ["rotate-issuer"]):
        done = run(*args, "--pki", ca)
        assert done.exit_code == 5
        assert "rotation.json is damaged; restore it from a backup" in done.stderr


def test_a_part_that_is_missing(ca: Path) -> None:
    rotation.introduce(ca)
    Layout(ca).cross.unlink()
    with pytest.raises(PkiError, match=r"cross\.pem is missing; restore it from a backup"):
        rotation.switch(ca)
    authority.issue(ca, "svc-a")
    load_identity(ca, "svc-a")


def test_certificates_for_keys_elsewhere_keep_their_entry(ca: Path) -> None:
    authority.issue(ca, "svc-a", public=keys.new().public_key())
    rotation.introduce(ca)
    home = ca / "workloads/svc-a"
    assert (home / BUNDLE).read_text().count("BEGIN") == 2
    assert not (home / KEY).exists()
