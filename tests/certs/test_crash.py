"""Killed, or refused by the system, at every single step of every command that writes.

Each test runs the same work again and again; in run N the N-th system call that changes the directory is the
last one (SIGKILL before it, or in the middle of a write) or fails. So every moment between two writes is met,
and after each one the directory must be usable: the old identity or the new one, whole, and the next command
works.

Nothing of it is compiled, so a sanitized build, which is several times slower, has nothing to find in one
moment that it has not in its neighbours: there only some are met.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kit.certs import fastmesh
from kit.limits import SANITIZED, scaled, wait_until

from fastmesh.certs import authority, bundle, keys, proof, record, revocation, rotation
from fastmesh.certs.store import Layout, PkiError, load_identity

CHANGES = (
    "write",
    "fsync",
    "open",
    "mkdir",
    "rename",
    "replace",
    "symlink",
    "unlink",
    "rmdir",
    "chmod",
    "fchmod",
)
# What a full disk refuses; removing always works.
GROWS = ("write", "fsync", "open", "mkdir", "rename", "replace", "symlink")
MOST = 200
STRIDE = 5 if SANITIZED else 1

REAL = {name: getattr(os, name) for name in CHANGES}


class Steps:
    """Counts the system calls that change something, and interferes with one of them."""

    def __init__(
        self,
        at: int,
        interfere: Callable[[str], None],
        names: tuple[str, ...] = CHANGES,
        *,
        lasting: bool = False,
    ) -> None:
        self.count = 0
        self._at = at
        self._interfere = interfere
        self._names = names
        self._lasting = lasting

    def install(self, patch: Callable[[Any, str, Any], None]) -> None:
        for name in self._names:
            patch(os, name, self._wrapped(name))

    def _wrapped(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return REAL["open"](*args, **kwargs)
            self._step(name)
            if name == "write" and len(args[1]) > 200:
                # A write may be cut short: half of it is there when the next step comes.
                half = REAL["write"](args[0], args[1][: len(args[1]) // 2])
                self._step(name)
                return half
            return REAL[name](*args, **kwargs)

        return call

    def _step(self, name: str) -> None:
        self.count += 1
        if self.count == self._at or (self._lasting and self.count > self._at):
            self._interfere(name)


def killed_at(at: int, work: Callable[[], object]) -> bool:
    """Runs `work` in a process that is killed at step `at`; false when it ended before."""
    pid = os.fork()
    if pid == 0:
        try:
            Steps(at, lambda _: os.kill(os.getpid(), signal.SIGKILL)).install(setattr)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, f"failed without being killed, step {at}"
    return False


def steps(stride: int = STRIDE) -> Iterator[int]:
    yield from range(1, MOST, stride)
    raise AssertionError("the work never ended")


def check(pki: Path, name: str, *, existed: str | None) -> None:
    """The identity is that before or a new one on record; after another issue nothing is left over."""
    layout = Layout(pki)
    entries, damaged = record.read(layout.record)
    known = {entry.serial for entry in entries}
    try:
        load_identity(pki, name)
    except PkiError as error:
        assert existed is None
        assert "missing" in str(error) or "no identity" in str(error)
    else:
        assert serial_in_use(pki, name) in known
    made = authority.issue(pki, name)
    assert load_identity(pki, name).certificate != existed
    entry = layout.workload(name)
    assert sorted(path.name for path in entry.iterdir()) == [
        f".v-{made.serial}",
        "bundle.pem",
        "certificate.pem",
        "current",
        "key.pem",
    ]
    assert sorted(path.name for path in pki.iterdir()) == [".fastmesh-lock", "ca", "workloads"]
    again, still = record.read(layout.record)
    assert still == damaged
    assert again[: len(entries)] == entries
    assert again[-1].serial == made.serial


def serial_in_use(pki: Path, name: str) -> str:
    return os.readlink(pki / "workloads" / name / "current").removeprefix(".v-")  # noqa: PTH115


def test_issue_killed_at_every_step(ca: Path) -> None:
    authority.issue(ca, "svc-a")
    for at in steps():
        before = load_identity(ca, "svc-a").certificate
        if not killed_at(at, lambda: authority.issue(ca, "svc-a")):
            break
        check(ca, "svc-a", existed=before)
    assert at > 20, "the steps are counted at all"


def test_the_first_issue_killed_at_every_step(ca: Path) -> None:
    for at in steps():
        name = f"svc-{at}"
        if not killed_at(at, lambda name=name: authority.issue(ca, name)):  # type: ignore[misc]
            break
        check(ca, name, existed=None)
    assert at > 20


def test_init_killed_at_every_step(scratch: Path) -> None:
    for at in steps():
        pki = scratch / f"pki{at}"
        if not killed_at(at, lambda pki=pki: authority.create(pki, "mesh.local")):  # type: ignore[misc]
            break
        if (pki / "ca").exists():
            with pytest.raises(PkiError, match="exists already"):
                authority.create(pki, "mesh.local")
        else:
            authority.create(pki, "mesh.local")
            assert sorted(path.name for path in pki.iterdir()) == [".fastmesh-lock", "ca"]
        check(pki, "svc-a", existed=None)
    assert at > 40


@dataclass(frozen=True)
class Refusal:
    """What the system says, to which calls, and whether it stays so."""

    number: int
    names: tuple[str, ...]
    lasting: bool

    def during(self, at: int, patch: pytest.MonkeyPatch, work: Callable[[], object]) -> str | None:
        """The error of `work` when step `at` is refused; None if that did no harm."""
        run = Steps(at, self._refuse, self.names, lasting=self.lasting)
        with patch.context() as inside:
            run.install(inside.setattr)
            try:
                work()
            except PkiError as error:
                return str(error)
        return None

    def _refuse(self, name: str) -> None:
        raise OSError(self.number, os.strerror(self.number))


REFUSALS = {
    "disk full": Refusal(errno.ENOSPC, GROWS, lasting=True),
    "one error": Refusal(errno.EIO, CHANGES, lasting=False),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("first", [False, True], ids=["again", "first"])
def test_issue_refused_at_every_step(
    ca: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal, first: bool
) -> None:
    refused = 0
    for at in steps():
        name = f"svc-{at}" if first else "svc-a"
        before = None if first else authority.issue(ca, name)
        existed = load_identity(ca, name).certificate if before else None
        failed = refusal.during(at, monkeypatch, lambda name=name: authority.issue(ca, name))
        if failed is not None:
            refused += 1
            assert os.strerror(refusal.number) in failed
            assert "\n" not in failed
        check(ca, name, existed=existed)
        if failed is None and refused > 15 // STRIDE:
            break
    assert refused > 15 // STRIDE


@dataclass(frozen=True)
class Change:
    """A command, what has to be done before it, and how to see that it is done."""

    prepare: Callable[[Path], object]
    work: Callable[[Path], object]
    done: Callable[[Path], bool]


WORKLOADS = ("svc-a", "svc-b")
OTHER = "other.example"


def federate(pki: Path) -> object:
    return bundle.federate(pki, {OTHER: pki.parent / "other.pem"}, [])


def to_switch(pki: Path) -> None:
    rotation.introduce(pki)


def to_retire(pki: Path) -> None:
    rotation.introduce(pki)
    rotation.switch(pki)
    # Issued with the cross certificate; those from before are expired or revoked when retiring is allowed.
    for name in WORKLOADS:
        authority.renew(pki, name)


def step_is(pki: Path, step: str) -> bool:
    at = rotation.state(pki)
    return at is not None and (at.step, at.done) == (step, True)


def identities(pki: Path) -> list[Any]:
    return [load_identity(pki, name) for name in WORKLOADS]


CHANGES_OF_TRUST = {
    "revoke": Change(
        lambda pki: authority.issue(pki, "svc-x"),
        lambda pki: revocation.revoke(pki, ["svc-x"]),
        lambda pki: all(len(one.revoked) == 1 for one in identities(pki)),
    ),
    "federate": Change(
        lambda pki: None,
        federate,
        lambda pki: all(list(one.federated) == [OTHER] for one in identities(pki)),
    ),
    "unfederate": Change(
        federate,
        lambda pki: bundle.federate(pki, {}, [OTHER]) if trusts_others(pki) else None,
        lambda pki: all(not one.federated for one in identities(pki)),
    ),
    "rotate-issuer": Change(
        lambda pki: None,
        rotation.rotate_issuer,
        lambda pki: sum(one.kind == "issuer" for one in record.read(Layout(pki).record)[0]) >= 2,
    ),
    "introduce": Change(
        lambda pki: None,
        rotation.introduce,
        lambda pki: (
            step_is(pki, "introduce")
            and all(one.bundle.count("BEGIN") == 2 for one in identities(pki))
            and json.loads(bundle.jwks(pki))["spiffe_sequence"] > 1
        ),
    ),
    "switch": Change(
        to_switch,
        rotation.switch,
        lambda pki: step_is(pki, "switch") and len(list((pki / "ca/issuer").glob(".v-*"))) == 1,
    ),
    "retire": Change(
        to_retire,
        lambda pki: rotation.retire(pki, force=True),
        lambda pki: (
            rotation.state(pki) is None
            and sorted(path.name for path in (pki / "ca").iterdir())
            == ["authority.json", "bundle.pem", "issued.jsonl", "issuer", "root", "sequence.json"]
            and all(one.certificate.count("BEGIN") == 2 for one in identities(pki))
            and all(one.bundle.count("BEGIN") == 1 for one in identities(pki))
            # No key of the old root is left.
            and len(list((pki / "ca/root").glob(".v-*"))) == 1
        ),
    ),
    "renew": Change(lambda pki: None, lambda pki: authority.renew(pki, "svc-a"), lambda pki: True),
    "issue --csr": Change(
        lambda pki: None,
        lambda pki: authority.issue(pki, "svc-c", public=keys.new().public_key()),
        lambda pki: (pki / "workloads/svc-c/certificate.pem").exists(),
    ),
}


def trusts_others(pki: Path) -> bool:
    return bool(bundle.federated(pki)) or any(one.federated for one in identities(pki))


@pytest.fixture
def prepared(ca: Path, request: pytest.FixtureRequest) -> tuple[Path, Change]:
    change = CHANGES_OF_TRUST[request.param]
    authority.create(ca.parent / "other", OTHER)
    (ca.parent / "other.pem").write_text(bundle.read(ca.parent / "other"))
    for name in WORKLOADS:
        authority.issue(ca, name)
    change.prepare(ca)
    return ca, change


def sound(pki: Path) -> None:
    """Every workload is who it says, is on record, and is believed by the other with what that trusts now."""
    known = {entry.serial for entry in record.read(Layout(pki).record)[0]}
    first, second = identities(pki)
    for name in WORKLOADS:
        assert serial_in_use(pki, name)[:32] in known
    for one, other in ((first, second), (second, first)):
        if one.bundle != other.bundle or one.certificate.count("BEGIN") > 2:
            labels = proof.Labels("certificate", "key", "bundle")
            proof.prove(one.certificate, one.key, other.bundle, time.time(), labels)


def settled(pki: Path, change: Change) -> None:
    sound(pki)
    assert change.done(pki)
    assert sorted(path.name for path in pki.iterdir()) == [".fastmesh-lock", "ca", "workloads"]
    for path in (pki / "workloads").iterdir():
        # What a killed writer left goes with the next version, of which there may have been none.
        assert len(list(path.glob(".v-*"))) <= 2


@pytest.mark.parametrize("prepared", CHANGES_OF_TRUST, indirect=True)
def test_a_change_killed_at_every_step(prepared: tuple[Path, Change]) -> None:
    """After each kill everybody is still believed by everybody, and the same command finishes the work."""
    start, change = prepared
    for at in steps():
        pki = start.parent / f"killed{at}"
        shutil.copytree(start, pki, symlinks=True)
        if not killed_at(at, lambda pki=pki: change.work(pki)):  # type: ignore[misc]
            settled(pki, change)
            break
        sound(pki)
        change.work(pki)
        settled(pki, change)
        shutil.rmtree(pki)
    assert at > 15, "the steps are counted at all"


@pytest.mark.parametrize("prepared", CHANGES_OF_TRUST, indirect=True)
def test_a_change_on_a_full_disk(prepared: tuple[Path, Change], monkeypatch: pytest.MonkeyPatch) -> None:
    start, change = prepared
    refused = 0
    for at in steps(4 * STRIDE):
        pki = start.parent / f"refused{at}"
        shutil.copytree(start, pki, symlinks=True)
        failed = REFUSALS["disk full"].during(at, monkeypatch, lambda pki=pki: change.work(pki))  # type: ignore[misc]
        sound(pki)
        if failed is None:
            settled(pki, change)
            break
        refused += 1
        assert os.strerror(errno.ENOSPC) in failed
        assert "\n" not in failed
        change.work(pki)
        settled(pki, change)
        shutil.rmtree(pki)
    assert refused > 3 // STRIDE


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_init_refused_at_every_step(scratch: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal) -> None:
    for at in steps():
        pki = scratch / f"pki{at}"
        failed = refusal.during(at, monkeypatch, lambda pki=pki: authority.create(pki, "mesh.local"))
        if failed is not None:
            assert os.strerror(refusal.number) in failed
            assert [path.name for path in pki.glob("*") if path.name not in (".fastmesh-lock", "ca")] == []
        if not (pki / "ca").exists():
            authority.create(pki, "mesh.local")
        check(pki, "svc-a", existed=None)
        if failed is None:
            break
    assert at > 30


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The kernel itself refuses: every command ends with a sentence and exit code 5, and nothing is left."""
    import resource

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    pki = tmp_path / "pki"
    done = fastmesh("certs", "init", "--pki", pki, preexec=small)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == f"error: the authority in {pki} cannot be made: File too large\n"
    assert [path.name for path in pki.iterdir()] == [".fastmesh-lock"]
    authority.create(pki, "mesh.local")
    done = fastmesh("certs", "issue", "svc-a", "--pki", pki, preexec=small)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == f"error: no certificate for svc-a can be issued in {pki}: File too large\n"
    assert record.read(Layout(pki).record)[1] == []


@pytest.mark.parametrize("seed", range(4))
def test_issue_killed_at_random_moments(ca: Path, seed: int) -> None:
    """Between system calls too. The moment is random; its seed is in the name of the test."""
    dice = random.Random(seed)
    authority.issue(ca, "svc-a")
    path = Layout(ca).record
    for _ in range(scaled(15, 3)):
        size = path.stat().st_size
        pid = os.fork()
        if pid == 0:
            try:
                while True:
                    authority.issue(ca, "svc-a")
            finally:
                os._exit(1)
        wait_until(lambda size=size: path.stat().st_size > size, "the child to be at work")
        time.sleep(dice.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        load_identity(ca, "svc-a")
        assert serial_in_use(ca, "svc-a") in path.read_text()
    check(ca, "svc-a", existed=None)
