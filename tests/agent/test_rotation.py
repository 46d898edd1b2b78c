"""The rotation of an identity in the agent: renewals, what keeps them from happening, files others change."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import procfs
from kit.agent import CONFIG, Agent
from kit.certs import Forge, plain
from kit.limits import wait_until

from fastmesh.agent import rotation
from fastmesh.agent.configuration import Outcomes
from fastmesh.agent.rotation import Rotation
from fastmesh.agent.state import State
from fastmesh.agent.watch import FILES
from fastmesh.certs import authority, revocation
from fastmesh.certs.errors import PkiError
from fastmesh.config.snapshot import identity_of

DAY = 86_400


class Fake:
    """A rotation with its clocks in the test's hand, and a loader that is at once done."""

    def __init__(self, pki: Path, ttl: int = DAY) -> None:
        self.pki = pki
        if not pki.exists():
            hour_ago = time.time() - 3600
            authority.create(pki, "mesh.local", now=hour_ago)
            authority.issue(pki, "svc-a", ttl, now=hour_ago)
        self.lines: list[str] = []
        self.offset = 0.0
        self.state = State()
        self.loads = 0
        self.on_parts: Callable[[Outcomes], None] | None = None
        self.number = 0
        self.use(identity_of(pki, "svc-a", "mesh.local"))
        self.rotation = Rotation(self.state, self, self.lines.append, self.now, time.monotonic)  # type: ignore[arg-type]

    def now(self) -> float:
        return time.time() + self.offset

    def use(self, identity: dict[str, Any]) -> None:
        self.number += 1
        self.state.take_snapshot({"number": self.number, "identity": identity, "workload": "svc-a"})

    @property
    def identity(self) -> dict[str, Any]:
        assert self.state.snapshot is not None
        found: dict[str, Any] = self.state.snapshot["identity"]
        return found

    def load_parts(self, names: Iterable[str]) -> None:
        assert [*names] == ["identity"]
        self.loads += 1
        assert self.on_parts is not None
        try:
            found = identity_of(self.pki, "svc-a", "mesh.local")
        except PkiError as error:
            self.on_parts({"identity": ("rejected", str(error))})
            return
        if {**found, "key": None} == {**self.identity, "key": None}:
            self.on_parts({"identity": ("unchanged", "")})
        else:
            self.use(found)
            self.offset = 0.0  # what was made just now is not due
            self.on_parts({"identity": ("accepted", "")})

    def until(self, condition: Callable[[], Any], what: str) -> None:
        def ticked() -> Any:
            self.rotation.tick()
            return condition()

        wait_until(ticked, f"{what}; said: {self.lines}")

    def said(self, text: str) -> bool:
        return any(text in line for line in self.lines)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[], Fake]]:
    """A rotation on `tmp_path / "pki"`, which is made if it is not there."""
    made: list[Fake] = []

    def one() -> Fake:
        made.append(Fake(tmp_path / "pki"))
        return made[-1]

    yield one
    for fake in made:
        fake.rotation.close()


@pytest.fixture
def fake(make: Callable[[], Fake]) -> Fake:
    return make()


# renewal


def test_nothing_happens_while_there_is_nothing_to_do(fake: Fake) -> None:
    for _ in range(20):
        fake.rotation.tick()
    assert (fake.loads, fake.lines) == (0, [])
    assert fake.state.renewals == {"succeeded": 0, "failed": 0}


def test_it_renews_when_two_thirds_are_over(fake: Fake) -> None:
    before = fake.identity
    fake.offset = 0.8 * DAY - 3600
    fake.until(lambda: fake.identity["certificate"] != before["certificate"], "a new certificate")
    assert fake.identity["spiffe_id"] == "spiffe://mesh.local/svc-a"
    assert fake.identity["key"] == "[redacted]"
    fake.until(lambda: fake.state.renewals == {"succeeded": 1, "failed": 0}, "the count")
    fake.until(lambda: sum(fake.state.identity_reloads.values()) >= 1, "the load")
    assert fake.state.identity_reloads["accepted"] == 1
    assert fake.said("new identity of spiffe://mesh.local/svc-a, for ")


@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_that_jumps_a_day_is_noticed(fake: Fake, days: int) -> None:
    before = fake.identity
    fake.rotation.tick()
    fake.offset = days * DAY
    fake.until(lambda: fake.identity["certificate"] != before["certificate"], "a new certificate")
    assert fake.said("IS OVER" if days > 0 else "is the clock of this host right?")


def test_without_an_authority_it_is_said_and_nothing_is_renewed(fake: Fake) -> None:
    shutil.rmtree(fake.pki / "ca")
    for share, said in ((0.7, ""), (0.85, "warning: "), (0.97, "error: "), (1.1, "IS OVER")):
        fake.offset = share * DAY - 3600
        for _ in range(3):
            fake.rotation.tick()
        assert fake.lines == [] if not said else said in fake.lines[-1]
    assert len(fake.lines) == 3, "once for each stage"
    assert all(f"there is no authority in {fake.pki}" in line for line in fake.lines)
    assert fake.state.renewals == {"succeeded": 0, "failed": 0}


def test_a_renewal_that_fails_is_tried_again_and_the_certificate_stays(fake: Fake) -> None:
    before = fake.identity
    key = fake.pki / "ca/issuer/current/key.pem"
    text = key.read_text()
    key.write_text("no key")
    fake.offset = 0.78 * DAY
    fake.until(lambda: fake.state.renewals["failed"] == 1, "a failure")
    assert fake.identity is before
    assert "warning: the certificate could not be renewed: " in fake.lines[-1]
    assert "next try in" in fake.lines[-1]
    assert fake.state.warnings(fake.now())
    for _ in range(5):
        fake.rotation.tick()
    assert fake.state.renewals["failed"] == 1, "it waits before it tries again"
    key.write_text(text)
    fake.rotation._retry_at = 0.0
    fake.until(lambda: fake.state.renewals == {"succeeded": 1, "failed": 1}, "the renewal")
    fake.until(lambda: fake.identity is not before, "the new certificate")
    assert not fake.state.renewal_error


def test_failures_near_the_end_are_errors(fake: Fake) -> None:
    (fake.pki / "ca/issued.jsonl").write_text("")
    fake.offset = 0.97 * DAY - 3600
    fake.until(lambda: fake.state.renewals["failed"], "a failure")
    assert fake.said("error: the certificate could not be renewed: ")
    assert fake.said("is not on record")


def test_a_renewal_that_is_killed(fake: Fake) -> None:
    before = fake.identity
    fake.offset = 0.8 * DAY
    fake.rotation.tick()
    renewal = fake.rotation._renewal
    assert renewal is not None
    renewal._process.send_signal(signal.SIGKILL)
    fake.until(lambda: fake.state.renewals["failed"] == 1, "the failure")
    assert fake.said("killed by SIGKILL")
    assert fake.identity is before
    fake.rotation._retry_at = 0.0
    fake.until(lambda: fake.identity is not before, "the renewal")


def test_a_renewal_that_hangs_is_ended(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "RENEWAL_TIMEOUT_S", 0.0)
    fake.offset = 0.8 * DAY
    fake.until(lambda: fake.state.renewals["failed"] == 1, "the failure")
    assert fake.said("has not ended within")


def test_a_disk_that_is_full(fake: Fake) -> None:
    """No file may grow: what a full disk does to whoever writes."""
    before = fake.identity
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    fake.offset = 0.8 * DAY
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
        fake.rotation.tick()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    fake.until(lambda: fake.state.renewals["failed"] == 1, "the failure")
    assert fake.identity is before
    assert fake.said("File too large") or fake.said("could not be renewed")
    fake.rotation._retry_at = 0.0
    fake.until(lambda: fake.identity is not before, "the renewal once there is room")


def test_an_issuing_ca_at_its_end_is_not_chased(tmp_path: Path, make: Callable[[], Fake]) -> None:
    authority.create(tmp_path / "pki", "mesh.local", issuer_life=60)
    authority.issue(tmp_path / "pki", "svc-a", DAY)
    fake = make()
    assert fake.identity["not_after"] == fake.identity["issuer_not_after"]
    fake.rotation.tick()
    assert fake.rotation._life is not None
    fake.offset = fake.rotation._life.renew - time.time() + 1
    fake.until(lambda: fake.state.renewals["failed"] == 1, "that it is said")
    assert fake.said("run: fastmesh certs rotate-issuer")
    assert fake.state.renewals["succeeded"] == 0


def test_cas_near_their_ends_are_told_of_in_time(tmp_path: Path, make: Callable[[], Fake]) -> None:
    """At 20 % and 5 % of a life of theirs: when no certificate can be renewed any more it is too late."""
    authority.create(tmp_path / "pki", "mesh.local", issuer_life=100 * DAY, root_life=300 * DAY)
    authority.issue(tmp_path / "pki", "svc-a", DAY)
    fake = make()

    def warned() -> list[str]:
        fake.rotation._tell_of_others()
        return [line for line in fake.state.warnings(fake.now()) if "the certificate of" not in line]

    assert (warned(), fake.lines) == ([], [])
    fake.offset = 81 * DAY
    (warning,) = warned()
    assert warning.startswith("the issuer ends in 18 d")
    assert warning.endswith("run: fastmesh certs rotate-issuer")
    warned()
    (line,) = fake.lines
    assert line.startswith(
        "warning: the issuer above the certificate of spiffe://mesh.local/svc-a ends in 18 d"
    )
    fake.offset = 96 * DAY
    warned()
    assert fake.lines[1].startswith("error: the issuer ")
    assert "rotate-issuer" in fake.lines[1]
    soon = {"root_not_before": int(time.time()) - 98 * DAY, "root_not_after": int(time.time()) + 2 * DAY}
    fake.offset = 0.0
    fake.use({**fake.identity, **soon})
    assert warned() == ["the root ends in 1 d 23 h; run: fastmesh certs rotate-root"]
    assert fake.lines[2].startswith("error: the root ")
    assert len(fake.lines) == 3


def test_closing_ends_a_renewal(fake: Fake) -> None:
    fake.offset = 0.8 * DAY
    fake.rotation.tick()
    renewal = fake.rotation._renewal
    assert renewal is not None
    fake.rotation.close()
    assert renewal._process.returncode is not None
    fake.rotation.close()


# files that others change


def test_what_somebody_else_issues_is_taken_over(fake: Fake) -> None:
    before = fake.identity
    fake.rotation.tick()
    authority.issue(fake.pki, "svc-a", DAY)
    fake.until(lambda: fake.identity["certificate"] != before["certificate"], "the new certificate")
    assert fake.state.identity_reloads == {"accepted": 1, "unchanged": 0, "rejected": 0}


def test_the_deny_list_is_taken_over(fake: Fake) -> None:
    authority.issue(fake.pki, "svc-b", DAY)
    fake.rotation.tick()
    revocation.revoke(fake.pki, ["svc-b"])
    fake.until(lambda: len(fake.identity["revoked"]) == 1, "the deny list")


def test_a_change_before_the_first_look_is_not_missed(fake: Fake) -> None:
    before = fake.identity
    authority.issue(fake.pki, "svc-a", DAY)
    fake.until(lambda: fake.identity["certificate"] != before["certificate"], "the new certificate")


def test_a_touched_file_changes_nothing(fake: Fake) -> None:
    fake.rotation.tick()
    os.utime(fake.pki / "workloads/svc-a/certificate.pem", (1, 1))
    fake.until(lambda: fake.state.identity_reloads["unchanged"] == 1, "the look at it")
    assert fake.number == 1


Break = Callable[[Path, Path], str]


def half_written(entry: Path, pki: Path) -> str:
    text = (entry / "certificate.pem").read_text()
    (entry / "certificate.pem").write_text(text[: len(text) // 2])
    return "certificate.pem"


def wrong_key(entry: Path, pki: Path) -> str:
    (entry / "key.pem").write_text((pki / "workloads/other/key.pem").read_text())
    return "is not the key of"


def key_for_everybody(entry: Path, pki: Path) -> str:
    (entry / "key.pem").chmod(0o644)
    return "key.pem"


def unreadable_key(entry: Path, pki: Path) -> str:
    (entry / "key.pem").unlink()
    (entry / "key.pem").mkdir()
    return "key.pem"


def foreign_bundle(entry: Path, pki: Path) -> str:
    authority.create(pki.parent / "other", "mesh.local")
    (entry / "bundle.pem").write_text((pki.parent / "other/ca/bundle.pem").read_text())
    return "does not lead to"


def damaged_deny_list(entry: Path, pki: Path) -> str:
    (entry / "revoked.json").write_text('{"revoked": "everything"}')
    return "revoked.json is damaged"


def another_workload(entry: Path, pki: Path) -> str:
    for name in ("certificate.pem", "key.pem"):
        (entry / name).write_text((pki / "workloads/other" / name).read_text())
    return "not of spiffe://mesh.local/svc-a"


def expired(entry: Path, pki: Path) -> str:
    for name, text in Forge(pki).files(["spiffe://mesh.local/svc-a"], start=-3600, end=-5).items():
        (entry / name).write_text(text)
    return "expired at"


def nothing_left(entry: Path, pki: Path) -> str:
    shutil.rmtree(entry)
    return "no identity for the workload"


@pytest.mark.parametrize(
    "harm",
    [
        half_written,
        wrong_key,
        key_for_everybody,
        unreadable_key,
        foreign_bundle,
        damaged_deny_list,
        another_workload,
        expired,
        nothing_left,
    ],
    ids=lambda harm: harm.__name__,
)
def test_what_is_not_proven_is_refused_by_name_and_the_old_one_stays(fake: Fake, harm: Break) -> None:
    pki = fake.pki
    fake.rotation.tick()
    authority.issue(pki, "other", DAY)
    good = {name: (pki / "workloads/svc-a" / name).read_text() for name in FILES[:3]}
    shutil.rmtree(pki / "workloads/svc-a")
    entry = plain(pki / "workloads/svc-a", good)
    fake.until(lambda: fake.state.identity_reloads["unchanged"], "the plain directory")
    before = fake.identity
    said = harm(entry, pki)
    fake.until(lambda: fake.state.identity_reloads["rejected"], "the refusal")
    assert fake.identity is before
    assert fake.lines[-1].startswith(
        "warning: the identity on disk is not taken over, the one in use stays: "
    )
    assert said in fake.lines[-1]
    assert any(said in line for line in fake.state.warnings())
    fake.rotation._watches["identity"]._again_at = 0.0
    fake.until(lambda: fake.state.identity_reloads["rejected"] == 2, "another look")
    assert sum("not taken over" in line for line in fake.lines) == 1, "it is said once"
    shutil.rmtree(entry, ignore_errors=True)
    plain(pki / "workloads/svc-a", good)
    fake.until(lambda: not fake.state.part_errors, "the end of it")
    assert fake.said("good again")


def test_a_mounted_secret_is_swapped(fake: Fake) -> None:
    """Kubernetes: the files are links through `..data`, which is replaced in one step."""
    pki = fake.pki
    entry = pki / "workloads/svc-a"

    def version(name: str) -> None:
        authority.issue(pki / "elsewhere", "svc-a", DAY)
        texts = {one: (pki / "elsewhere/workloads/svc-a" / one).read_text() for one in FILES[:3]}
        plain(entry / name, texts)
        (entry / "..new").symlink_to(name)
        (entry / "..new").rename(entry / "..data")

    shutil.copytree(pki / "ca", pki / "elsewhere/ca", symlinks=True)
    shutil.rmtree(entry)
    entry.mkdir()
    for name in FILES[:3]:
        (entry / name).symlink_to(f"..data/{name}")
    version("..2026_01")
    fake.until(lambda: fake.state.identity_reloads["accepted"] == 1, "the first version")
    version("..2026_02")
    fake.until(lambda: fake.state.identity_reloads["accepted"] == 2, "the second version")
    assert fake.state.identity_reloads["rejected"] == 0


def test_a_failure_is_over_when_somebody_else_has_renewed(fake: Fake) -> None:
    key = fake.pki / "ca/issuer/current/key.pem"
    text = key.read_text()
    key.write_text("no key")
    fake.offset = 0.78 * DAY
    fake.until(lambda: fake.state.renewals["failed"] == 1, "a failure")
    assert any("could not be renewed" in line for line in fake.state.warnings(fake.now()))
    key.write_text(text)
    authority.issue(fake.pki, "svc-a", DAY)
    fake.until(lambda: fake.state.identity_reloads["accepted"] == 1, "the new certificate")
    fake.rotation.tick()
    assert fake.state.warnings(fake.now()) == []


def nested(entry: Path) -> None:
    (entry / "federated.json").write_text("[" * 100_000)


def no_file(entry: Path) -> None:
    (entry / "bundle.pem").unlink()
    os.mkfifo(entry / "bundle.pem")


def endless(entry: Path) -> None:
    (entry / "certificate.pem").unlink()
    (entry / "certificate.pem").symlink_to("/dev/zero")


@pytest.mark.parametrize("harm", [nested, no_file, endless], ids=lambda harm: harm.__name__)
def test_what_is_found_at_the_first_look_holds_nothing_up(fake: Fake, harm: Callable[[Path], None]) -> None:
    """As when the agent has died: whatever stands there now, the one in use was loaded from before."""
    entry = fake.pki / "workloads/svc-a"
    good = {name: (entry / name).read_text() for name in FILES[:3]}
    shutil.rmtree(entry)
    harm(plain(entry, good))
    fake.until(lambda: fake.state.identity_reloads["rejected"], "the refusal")
    assert fake.said("not taken over")


def test_an_identity_is_not_lost_with_a_configuration_that_is_refused(fake: Fake) -> None:
    """It came with a reload whose listener could not be opened: the snapshot before is in use again."""
    before = fake.state.snapshot
    fake.rotation.tick()
    authority.issue(fake.pki, "svc-a", DAY)
    fake.until(lambda: fake.state.identity_reloads["accepted"] == 1, "the new certificate")
    assert before is not None
    fake.state.take_snapshot(before)
    fake.rotation.look_again()
    fake.until(lambda: fake.state.identity_reloads["accepted"] == 2, "the new certificate once more")


# the whole agent


def mesh_config(pki: Path, **more: Any) -> dict[str, Any]:
    service = {"tls": "mesh", "endpoints": ["127.0.0.1:15443"]}
    identity = {"workload": "svc-a", "trust_domain": "mesh.local", "pki": str(pki)}
    return {**CONFIG, **identity, "services": {"web": service}, **more}


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """An authority, and a certificate for svc-a of 10 s."""
    authority.create(tmp_path / "pki", "mesh.local")
    authority.issue(tmp_path / "pki", "svc-a", 10)
    return tmp_path / "pki"


def wait_metric(agent: Agent, name: str, value: float, **labels: str) -> None:
    inside = ",".join(f'{key}="{text}"' for key, text in sorted(labels.items()))
    line = f"fastmesh_{name}{{{inside}}} {value}" if inside else f"fastmesh_{name} {value}"
    wait_until(lambda: line in agent.get("/metrics").text, line)


def renewed(agent: Agent) -> dict[str, Any]:
    """What is new in the next snapshot: its identity."""
    new: dict[str, Any] = agent.frame("parts").message
    assert new.keys() == {"type", "number", "digest", "parts", "refused"}
    assert new["parts"].keys() == {"identity"}
    return {**new, **new["parts"]}


def test_the_agent_takes_over_what_a_mounted_secret_becomes(agent: Agent, tmp_path: Path) -> None:
    """Swapped in one step: first to something that proves nothing, then to something that does."""
    authority.create(tmp_path / "pki", "mesh.local")
    entry = tmp_path / "mounted/workloads/svc-a"

    def version(name: str, key_of: str | None = None) -> dict[str, str]:
        authority.issue(tmp_path / "pki", "svc-a", DAY)
        files = {one: (tmp_path / "pki/workloads/svc-a" / one).read_text() for one in FILES[:3]}
        if key_of is not None:
            files["key.pem"] = key_of
        plain(entry / name, files)
        (entry / "..new").symlink_to(name)
        (entry / "..new").rename(entry / "..data")
        return files

    entry.mkdir(parents=True)
    for name in FILES[:3]:
        (entry / name).symlink_to(f"..data/{name}")
    first = version("..1")
    snapshot = agent.serving(mesh_config(tmp_path / "mounted"))
    assert snapshot["identity"]["certificate"] == first["certificate.pem"]
    version("..2", key_of=first["key.pem"])
    wait_metric(agent, "identity_reloads_total", 1.0, result="rejected")
    assert "is not the key of" in agent.stderr()
    assert agent.get("/config").json["snapshot"]["identity"]["certificate"] == first["certificate.pem"]
    third = version("..3")
    identity = renewed(agent)["identity"]
    assert (identity["certificate"], identity["key"]) == (third["certificate.pem"], third["key.pem"])
    assert agent.get("/readyz").json == {"status": "ready"}
    agent.stop()


def test_the_agent_renews_and_sends_a_snapshot_with_nothing_else_new(agent: Agent, short: Path) -> None:
    first = agent.serving(mesh_config(short))
    agent.path.write_text("listeners: [in the middle of somebody's work")
    second = renewed(agent)
    assert second["number"] == first["number"] + 1
    assert second["digest"] != first["digest"]
    assert second["identity"]["certificate"] != first["identity"]["certificate"]
    assert second["identity"]["key"] != first["identity"]["key"]
    wait_metric(agent, "certificate_renewals_total", 1.0, result="succeeded")
    wait_metric(agent, "identity_reloads_total", 1.0, result="accepted")
    shown = agent.get("/config").json["snapshot"]["identity"]
    assert shown["not_after"] == second["identity"]["not_after"]
    assert shown["key"] == "[redacted]"
    agent.stop()


def test_an_agent_that_takes_over_goes_on(
    agent: Agent, start_agent: Callable[..., Agent], short: Path
) -> None:
    snapshot = agent.serving(mesh_config(short))
    agent.process.kill()
    resumed = start_agent(admin_first=True)
    resumed.channel.send({"type": "resume", "config": str(agent.path), "workers": 1, "snapshot": snapshot})
    resumed.frame("ready")
    assert renewed(resumed)["number"] == snapshot["number"] + 1
    resumed.stop()


def test_an_identity_made_for_a_refused_configuration_is_made_anew(agent: Agent, tmp_path: Path) -> None:
    """Between the new configuration and the word that a listener of it cannot be opened."""
    pki = tmp_path / "pki"
    authority.create(pki, "mesh.local")
    authority.issue(pki, "svc-a", DAY)
    first = agent.serving(mesh_config(pki))
    agent.write(mesh_config(pki, drain="77s"))
    agent.channel.send({"type": "reload"})
    assert agent.frame("snapshot").message["snapshot"]["number"] == 2
    made = authority.issue(pki, "svc-a", DAY)
    assert renewed(agent)["number"] == 3
    agent.channel.send({"type": "resume", "config": str(agent.path), "workers": 1, "snapshot": first})
    again = renewed(agent)
    assert again["number"] == 2
    assert again["identity"]["not_after"] == made.not_after
    assert agent.get("/config").json["snapshot"]["drain_ms"] == first["drain_ms"]
    agent.stop()


def test_readyz_warns_then_refuses_and_the_log_escalates(agent: Agent, short: Path) -> None:
    shutil.rmtree(short / "ca")
    agent.serving(mesh_config(short))
    agent.status("ready")
    assert agent.get("/readyz").json == {"status": "ready"}
    wait_until(lambda: "warnings" in agent.get("/readyz").json, "a warning")
    answer = agent.get("/readyz")
    assert (answer.status, answer.json["status"]) == (200, "ready")
    assert "the certificate of spiffe://mesh.local/svc-a ends in" in answer.json["warnings"][0]
    wait_until(lambda: agent.get("/readyz").status == 503, "the end")
    assert "is over" in agent.get("/readyz").json["reasons"][0]
    wait_until(lambda: "IS OVER" in agent.stderr(), "that it is said")
    said = agent.stderr()
    assert said.index("warning: the certificate") < said.index("IS OVER")
    agent.stop()


def test_no_renewal_outlives_the_agent(agent: Agent, short: Path) -> None:
    agent.serving(mesh_config(short))
    found: list[int] = []

    def renewing() -> bool:
        found[:] = [
            pid
            for pid in procfs.children(agent.process.pid)
            if b"fastmesh.certs.renewal" in _command_line(pid)
        ]
        return bool(found)

    wait_until(renewing, "a renewal")
    agent.stop()
    assert not any(procfs.alive(pid) for pid in found)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
