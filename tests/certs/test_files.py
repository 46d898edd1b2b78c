"""The directory: modes, versions, the record, the lock; readers while it changes."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from pathlib import Path

import pytest
from kit.certs import in_child
from kit.limits import scaled

from fastmesh.certs import authority, files, record
from fastmesh.certs.store import BUNDLE, CERTIFICATE, KEY, Layout, PkiError, load_identity


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    pki = tmp_path / "pki"
    before = os.umask(umask)
    try:
        authority.create(pki, "mesh.local")
        authority.issue(pki, "svc-a")
        authority.issue(pki, "svc-a")
    finally:
        os.umask(before)
    seen = set()
    for path in (pki, *pki.rglob("*")):
        status = path.lstat()
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISLNK(status.st_mode):
            continue
        if stat.S_ISDIR(status.st_mode):
            assert mode == 0o700, path
        elif path.name in (CERTIFICATE, BUNDLE, "authority.json"):
            assert mode == 0o644, path
        else:
            assert mode == 0o600, path
        seen.add(path.name)
    assert {KEY, CERTIFICATE, BUNDLE, "issued.jsonl", "authority.json"} <= seen


def test_a_directory_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "pki").mkdir(mode=0o750)
    authority.create(tmp_path / "pki", "mesh.local")
    assert stat.S_IMODE((tmp_path / "pki").stat().st_mode) == 0o750


def test_parents_are_made(tmp_path: Path) -> None:
    authority.create(tmp_path / "a/b/pki", "mesh.local")
    assert (tmp_path / "a/b/pki/ca/root/key.pem").is_file()


def test_only_the_version_in_use_is_kept(ca: Path) -> None:
    for _ in range(3):
        made = authority.issue(ca, "svc-a")
    names = sorted(path.name for path in (ca / "workloads/svc-a").iterdir())
    assert names == [f".v-{made.serial}", BUNDLE, CERTIFICATE, "current", KEY]


def test_a_reader_never_sees_two_versions_mixed(ca: Path) -> None:
    """A process issues as fast as it can; every load here must find a key and certificate that fit."""
    authority.issue(ca, "svc-a")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            while True:
                made = authority.issue(ca, "svc-a")
                os.write(writer, made.serial.encode() + b"\n")
        except BrokenPipeError:
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    seen = {load_identity(ca, "svc-a").certificate for _ in range(scaled(200, 20))}
    # Raw reads are faster than a proof, and meet more of the moments in between.
    for _ in range(scaled(2000, 200)):
        found = files.read_entry(ca / "workloads/svc-a", (CERTIFICATE, KEY, BUNDLE))
        seen.add(found[CERTIFICATE])
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    assert status == 0
    assert len(seen) > 5, "the writer was at work meanwhile"


def test_the_record(ca: Path) -> None:
    made = [authority.issue(ca, name) for name in ("svc-a", "svc-b", "svc-a")]
    entries, damaged = record.read(Layout(ca).record)
    assert not damaged
    assert [entry.kind for entry in entries] == ["root", "issuer", "workload", "workload", "workload"]
    assert [entry.serial for entry in entries[2:]] == [one.serial for one in made]
    assert [entry.workload for entry in entries] == [None, None, "svc-a", "svc-b", "svc-a"]
    for one, entry in zip(made, entries[2:], strict=True):
        assert (entry.not_before, entry.not_after, entry.spiffe_id) == (
            one.not_before,
            one.not_after,
            one.spiffe_id,
        )
        assert len(entry.sha256) == 64


def test_a_line_that_a_crash_left_unfinished_costs_that_line_alone(ca: Path) -> None:
    path = Layout(ca).record
    whole = path.read_text()
    for torn in ('{"kind":"work', '{"kind":"workload"}'):
        with path.open("a") as file:
            file.write(torn)
        authority.issue(ca, "svc-a")
    entries, damaged = record.read(path)
    assert path.read_text().startswith(whole), "nothing that was written is ever changed"
    assert len(entries) == 4
    assert damaged == [3, 5]


@pytest.mark.parametrize(
    "line",
    [
        "null",
        "[]",
        "3",
        "[" * 100_000,
        "{}",
        '"text"',
        "\x00\x01",
        '{"kind": "workload"}',
    ],
)
def test_lines_that_are_no_record(ca: Path, line: str) -> None:
    path = Layout(ca).record
    with path.open("a") as file:
        file.write(line + "\n")
    assert record.read(path)[1] == [3]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("workload", "../../etc"),
        ("workload", None),
        ("workload", "[red]"),
        ("workload", 7),
        ("spiffe_id", "nothing"),
        ("serial", "zz"),
        ("serial", 5),
        ("sha256", ""),
        ("kind", "other"),
        ("kind", "root"),
        ("not_after", 10**20),
        ("not_after", -1),
        ("not_after", True),
        ("not_after", 1.5),
        ("time", "now"),
    ],
)
def test_records_with_impossible_values(ca: Path, key: str, value: object) -> None:
    authority.issue(ca, "svc-a")
    path = Layout(ca).record
    lines = path.read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), key: value})
    path.write_text("\n".join(lines) + "\n")
    assert record.read(path)[1] == [3]


def test_the_lock_is_waited_for_and_then_given_up_on(ca: Path) -> None:
    fd = os.open(ca / ".fastmesh-lock", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        with (
            pytest.raises(
                PkiError, match=r"another command has been working in .*; see which one with: fuser"
            ),
            files.lock(ca, 0.05),
        ):
            pass
    finally:
        os.close(fd)
    with files.lock(ca, 0.05):
        pass


def test_a_killed_holder_gives_the_lock_back(ca: Path) -> None:
    def die() -> None:
        with files.lock(ca):
            os._exit(0)

    in_child(die)
    with files.lock(ca, 0.0):
        pass


def test_a_link_in_place_of_the_lock_is_not_followed(ca: Path, tmp_path: Path) -> None:
    (ca / ".fastmesh-lock").unlink()
    (ca / ".fastmesh-lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PkiError, match="no certificate for svc-a can be issued"):
        authority.issue(ca, "svc-a")
    assert not (tmp_path / "elsewhere").exists()


def test_leftovers_of_a_killed_command_go_with_the_next(ca: Path, tmp_path: Path) -> None:
    authority.issue(ca, "svc-a")
    entry = ca / "workloads/svc-a"
    (entry / ".v-dead").mkdir()
    (entry / ".v-dead" / KEY).write_text("secret")
    (entry / ".fastmesh-new-current").symlink_to(".v-dead")
    authority.issue(ca, "svc-a")
    assert not (entry / ".v-dead").exists()
    assert not os.path.lexists(entry / ".fastmesh-new-current")

    fresh = tmp_path / "fresh"
    (fresh / ".fastmesh-new-1/ca/root").mkdir(parents=True)
    (fresh / ".fastmesh-new-1/ca/root" / KEY).write_text("secret")
    authority.create(fresh, "mesh.local")
    assert sorted(path.name for path in fresh.iterdir()) == [".fastmesh-lock", "ca"]
    (fresh / ".fastmesh-new-2").mkdir()
    authority.issue(fresh, "svc-a")
    assert sorted(path.name for path in fresh.iterdir()) == [".fastmesh-lock", "ca", "workloads"]


def test_an_authority_is_never_overwritten(ca: Path) -> None:
    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(ca.rglob("*")) if path.is_file()}

    before = content()
    with pytest.raises(PkiError, match="exists already; nothing was changed"):
        authority.create(ca, "mesh.local")
    with pytest.raises(PkiError, match="exists already"):
        authority.create(ca, "other.local")
    assert content() == before


@pytest.mark.parametrize("kind", ["broken", "file", "link"])
def test_what_is_no_authority_is_not_overwritten_either(tmp_path: Path, kind: str) -> None:
    at = tmp_path / "pki/ca"
    at.parent.mkdir()
    if kind == "broken":
        at.mkdir()
        (at / "root.key").write_text("precious")
    elif kind == "file":
        at.write_text("precious")
    else:
        at.symlink_to("nowhere")
    with pytest.raises(PkiError, match="exists already"):
        authority.create(tmp_path / "pki", "mesh.local")
    assert os.path.lexists(at)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("authority.json", "", "authority.json is damaged"),
        ("authority.json", "{", "authority.json is damaged"),
        ("authority.json", "[]", "authority.json is damaged"),
        ("authority.json", "[" * 100_000, "authority.json is damaged"),
        ("authority.json", '{"format":1}', "authority.json is damaged"),
        ("authority.json", '{"format":1,"trust_domain":"A B"}', "authority.json is damaged"),
        ("authority.json", '{"format":1,"trust_domain":7}', "authority.json is damaged"),
        ("authority.json", '{"format":2,"trust_domain":"a"}', "has format 2; this fastmesh reads format 1"),
        ("bundle.pem", "", "bundle.pem holds no certificate"),
        ("issuer/certificate.pem", "", "issuer/certificate.pem holds no certificate"),
        ("issuer/certificate.pem", "ROOT", "issuer/key.pem is not the key of"),
        (
            "issuer/certificate.pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "cannot be read",
        ),
        ("issuer/key.pem", "", "issuer/key.pem holds no private key"),
        ("issuer/key.pem", "hello", "issuer/key.pem holds no private key"),
        ("issuer/key.pem", "ROOTKEY", "issuer/key.pem is not the key of"),
        ("bundle.pem", "OTHER", "the authority in"),
    ],
)
def test_a_damaged_authority(ca: Path, tmp_path: Path, name: str, text: str, said: str) -> None:
    authority.issue(ca, "svc-a")
    before = load_identity(ca, "svc-a", trust_domain="mesh.local")
    special = {"ROOT": "root/certificate.pem", "ROOTKEY": "root/key.pem"}
    if text in special:
        text = (ca / "ca" / special[text]).read_text()
    elif text == "OTHER":
        authority.create(tmp_path / "other", "mesh.local")
        text = (tmp_path / "other/ca/bundle.pem").read_text()
    (ca / "ca" / name).write_text(text)
    with pytest.raises(PkiError) as caught:
        authority.issue(ca, "svc-a")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert load_identity(ca, "svc-a", trust_domain="mesh.local") == before


@pytest.mark.parametrize("name", ["authority.json", "bundle.pem", "issuer/certificate.pem", "issuer/current"])
def test_an_authority_with_a_part_missing(ca: Path, name: str) -> None:
    (ca / "ca" / name).unlink()
    if name == "issuer/certificate.pem":  # a link for other programs; nothing here needs it
        authority.issue(ca, "svc-a")
        return
    with pytest.raises(PkiError, match=r"is missing; restore it from a backup"):
        authority.issue(ca, "svc-a")


def test_the_root_key_may_be_kept_elsewhere(ca: Path) -> None:
    for path in (ca / "ca/root").rglob(KEY):
        path.unlink()
    authority.issue(ca, "svc-a")
    load_identity(ca, "svc-a")


def test_an_issuing_key_that_others_can_read_signs_nothing(ca: Path) -> None:
    (ca / "ca/issuer" / KEY).chmod(0o644)
    with pytest.raises(PkiError, match="others can read it"):
        authority.issue(ca, "svc-a")
