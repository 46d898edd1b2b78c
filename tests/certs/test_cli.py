"""`fastmesh certs`: what it prints, its exit codes, and that no input ends in a traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from kit.certs import Forge, command, environment, in_child, plain

from fastmesh.certs import authority, signer
from fastmesh.certs.store import CERTIFICATE, KEY, load_identity
from fastmesh.cli import main

WHEN = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"


# Of every command, one that is complete.
COMMANDS = {
    "init": ["init"],
    "issue": ["issue", "svc-a"],
    "list": ["list"],
    "show": ["show", "svc-a"],
    "renew": ["renew", "svc-a"],
    "renew all": ["renew", "--all"],
    "revoke": ["revoke", "svc-a"],
    "bundle": ["bundle"],
    "jwks": ["bundle", "--format", "jwks"],
    "federated": ["bundle", "--federated"],
    "unfederate": ["bundle", "--unfederate", "other.example"],
    "rotate-issuer": ["rotate-issuer"],
    "rotate-root": ["rotate-root"],
    "introduce": ["rotate-root", "introduce"],
    "switch": ["rotate-root", "switch"],
    "retire": ["rotate-root", "retire"],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args: str | Path) -> Result:
    result = CliRunner().invoke(main, ["certs", *map(str, args)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_from_nothing_to_two_identities(here: Path) -> None:
    made = run("init")
    assert made.exit_code == 0
    assert re.fullmatch(
        rf"trust domain  mesh\.local\n"
        rf"root          pki/ca/root, until {WHEN}\n"
        rf"issuing CA    pki/ca/issuer, until {WHEN}\n"
        rf"trust bundle  pki/ca/bundle\.pem\n",
        made.stdout,
    )
    issued = run("issue", "svc-a", "svc-b", "svc-a")
    assert (issued.exit_code, issued.stderr) == (0, "")
    assert re.fullmatch(
        rf"spiffe://mesh\.local/svc-a  until {WHEN}  pki/workloads/svc-a\n"
        rf"spiffe://mesh\.local/svc-b  until {WHEN}  pki/workloads/svc-b\n",
        issued.stdout,
    )
    assert load_identity(Path("pki"), "svc-b").spiffe_id == "spiffe://mesh.local/svc-b"


def test_another_trust_domain_and_directory(here: Path) -> None:
    assert run("init", "--trust-domain", "prod.example", "--pki", "deep/er").exit_code == 0
    assert run("issue", "svc-a", "--pki", "deep/er").stdout.startswith("spiffe://prod.example/svc-a  ")
    assert load_identity(Path("deep/er"), "svc-a", trust_domain="prod.example")


@pytest.mark.parametrize(("ttl", "seconds"), [("10s", 10), ("90m", 5400), ("7d", 604800), ("1h30m", 5400)])
def test_ttl(ca: Path, ttl: str, seconds: int) -> None:
    assert run("issue", "svc-a", "--ttl", ttl, "--pki", ca).exit_code == 0
    made = load_identity(ca, "svc-a")
    assert made.not_after - made.not_before - seconds in range(16, 21)


def test_a_certificate_that_ends_with_its_issuer_says_so(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    authority.create(pki, "mesh.local", now=time.time() - signer.ISSUER_LIFE + 3600)
    issued = run("issue", "svc-a", "--pki", pki)
    assert issued.exit_code == 0
    assert re.fullmatch(
        rf"note: svc-a is valid for less than 1d: the issuing CA ends at {WHEN}\n", issued.stderr
    )


def test_an_expired_issuer(tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    authority.create(pki, "mesh.local", now=time.time() - signer.ISSUER_LIFE - 3600)
    issued = run("issue", "svc-a", "--pki", pki)
    assert issued.exit_code == 5
    assert issued.stderr.startswith("error: the issuing CA ended at ")


def test_init_never_overwrites(ca: Path) -> None:
    before = (ca / "ca/root" / KEY).read_text()
    again = run("init", "--pki", ca)
    assert (again.exit_code, again.stdout) == (5, "")
    assert again.stderr == (
        f"error: {ca}/ca exists already; nothing was changed; "
        "give another directory with --pki, or move that one away\n"
    )
    assert (ca / "ca/root" / KEY).read_text() == before


def test_without_an_authority(here: Path) -> None:
    for args in (("issue", "svc-a"), ("list",)):
        result = run(*args)
        assert (result.exit_code, result.stdout) == (5, "")
        assert result.stderr == (
            "error: there is no certificate authority in pki; run: fastmesh certs init --pki pki\n"
        )
    result = run("show", "svc-a")
    assert result.exit_code == 5
    assert "run: fastmesh certs init --pki pki && fastmesh certs issue svc-a --pki pki" in result.stderr
    assert list(here.iterdir()) == []


def test_the_remedy_can_be_copied_into_a_shell(here: Path) -> None:
    result = run("issue", "svc-a", "--pki", "my pki; rm x")
    assert "run: fastmesh certs init --pki 'my pki; rm x'\n" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["issue"],
        ["issue", ""],
        ["issue", "Svc"],
        ["issue", "../x"],
        ["issue", "svc-a", "svc_b"],
        ["issue", "svc-a", "--ttl", "5"],
        ["issue", "svc-a", "--ttl", "9s"],
        ["issue", "svc-a", "--ttl", "0s"],
        ["issue", "svc-a", "--ttl", "-1h"],
        ["issue", "svc-a", "--ttl", ""],
        ["issue", "svc-a", "--ttl", "1y"],
        ["issue", "svc-a", "--ttl", "999999999999d"],
        ["issue", "svc-a", "--pki", ""],
        ["issue", "svc-a", "--unknown"],
        ["init", "--trust-domain", ""],
        ["init", "--trust-domain", "A"],
        ["init", "--trust-domain", "spiffe://a"],
        ["init", "--trust-domain", "x" * 256],
        ["init", "extra"],
        ["list", "extra"],
        ["show"],
        ["show", "A B"],
        ["nothing"],
    ],
)
def test_bad_usage_is_exit_code_2_and_touches_nothing(here: Path, args: list[str]) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage: " in result.stderr
    assert list(here.iterdir()) == []


def test_bad_names_are_refused_before_the_first_is_issued(ca: Path) -> None:
    assert run("issue", "svc-a", "Bad", "--pki", ca).exit_code == 2
    assert not (ca / "workloads").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["init", "--help"],
        *([name, "-h"] for name in ("issue", "list", "show", "verify", "renew", "revoke", "bundle")),
        ["rotate-issuer", "-h"],
        *(["rotate-root", *step, "-h"] for step in ([], ["introduce"], ["switch"], ["retire"])),
    ],
)
def test_help(args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


def test_list(ca: Path) -> None:
    assert run("list", "--pki", ca).stderr == "no certificate has been issued yet\n"
    assert run("list", "--json", "--pki", ca).stdout == "[]\n"
    first = authority.issue(ca, "svc-a")
    second = authority.issue(ca, "svc-a", 3600)
    other = authority.issue(ca, "svc-b")
    rows = json.loads(run("list", "--json", "--pki", ca).stdout)
    assert [(row["workload"], row["serial"], row["state"]) for row in rows] == [
        ("svc-a", second.serial, "valid"),
        ("svc-b", other.serial, "valid"),
    ]
    assert rows[0]["spiffe_id"] == "spiffe://mesh.local/svc-a"
    assert rows[0]["not_after"] == second.not_after
    rows = json.loads(run("list", "--all", "--json", "--pki", ca).stdout)
    assert [(row["serial"], row["state"]) for row in rows] == [
        (first.serial, "replaced"),
        (second.serial, "valid"),
        (other.serial, "valid"),
    ]
    table = run("list", "--pki", ca).stdout.splitlines()
    assert len(table) == 3
    assert table[1].split()[:3] == ["svc-a", "spiffe://mesh.local/svc-a", second.serial[:12]]
    assert table[1].split()[-2:] == ["59m59s", "valid"] or table[1].split()[-1] == "valid"


def test_list_tells_what_is_not_usable(tmp_path: Path) -> None:
    ca = tmp_path / "pki"
    authority.create(ca, "mesh.local", now=time.time() - 3600)
    authority.issue(ca, "svc-a", 10, now=time.time() - 60)
    authority.issue(ca, "svc-b")
    (ca / "workloads/svc-b/current").unlink()
    authority.issue(ca, "svc-c")
    (ca / "workloads/svc-c" / CERTIFICATE).write_text("broken")
    rows = json.loads(run("list", "--json", "--pki", ca).stdout)
    assert [row["state"] for row in rows] == ["expired", "missing", "missing"]
    assert run("list", "--pki", ca).stdout.splitlines()[1].split()[-2:] == ["-", "expired"]


def test_list_names_damaged_lines_and_shows_the_rest(ca: Path) -> None:
    authority.issue(ca, "svc-a")
    with (ca / "ca/issued.jsonl").open("a") as file:
        file.write('{"workload":"[bold]","torn')
    result = run("list", "--pki", ca)
    assert result.exit_code == 0
    assert result.stderr == f"note: line 4 of {ca}/ca/issued.jsonl is no record and was left out\n"
    assert "svc-a" in result.stdout


def test_show(ca: Path) -> None:
    made = authority.issue(ca, "svc-a")
    result = run("show", "svc-a", "--pki", ca)
    assert result.exit_code == 0
    shown = dict(re.split(r"  +", line, maxsplit=1) for line in result.stdout.splitlines())
    assert shown["SPIFFE id"] == "spiffe://mesh.local/svc-a"
    assert shown["DNS name"] == "svc-a"
    assert shown["serial"] == made.serial
    assert shown["key"] == "ECDSA secp256r1"
    assert shown["issuer"].startswith("CN=mesh.local issuer ")
    assert shown["usable"].startswith("yes, for another 23h59m")


def test_show_explains_what_cannot_be_used(ca: Path) -> None:
    plain(ca / "workloads/svc-a", Forge(ca).files(["spiffe://mesh.local/svc-a"], start=-100, end=-50))
    result = run("show", "svc-a", "--pki", ca)
    assert result.exit_code == 5
    assert "valid until" in result.stdout
    assert "expired at" in result.stderr
    (ca / "workloads/svc-a" / CERTIFICATE).write_text("broken")
    result = run("show", "svc-a", "--pki", ca)
    assert (result.exit_code, result.stdout) == (5, "")
    assert "holds no certificate" in result.stderr


@pytest.mark.parametrize(
    "path",
    ["/dev/null", "/dev/null/pki", "/proc/pki", "x" * 300, "file", "pki\nline", "-pki", "loop/pki"],
)
@pytest.mark.parametrize("name", COMMANDS)
def test_directories_that_cannot_be(here: Path, name: str, path: str) -> None:
    """Every one is a sentence; odd names that can be a directory are one."""
    (here / "file").write_text("")
    (here / "loop").symlink_to("loop")
    result = run(*COMMANDS[name], f"--pki={path}")
    if name == "init" and path in ("pki\nline", "-pki"):
        assert result.exit_code == 0
    else:
        assert (result.exit_code, result.stdout) == (5, "")
        assert result.stderr.startswith("error: ")


def test_a_directory_whose_name_is_no_text(tmp_path: Path) -> None:
    for args in (["init"], ["issue", "svc-a"], ["list"], ["show", "svc-a"], ["show", "svc-b"]):
        done = subprocess.run(
            [*command("certs", *args), os.fsdecode(b"--pki=\xff\xfe")],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert b"Traceback" not in done.stderr
        assert done.returncode == (5 if "svc-b" in args else 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.parametrize("args", COMMANDS.values(), ids=COMMANDS)
def test_a_directory_of_somebody_else(ca: Path, args: list[str]) -> None:
    authority.issue(ca, "svc-a")

    def become_nobody() -> str:
        os.chdir(ca.parent)  # while it is still allowed
        os.setuid(65534)
        result = run(*args)
        assert result.exit_code == 5
        return result.stderr

    said = in_child(become_nobody)
    assert said.startswith("error: ")
    assert "Permission denied" in said


@pytest.mark.parametrize(
    "args",
    [
        ["list"],
        ["list", "--json"],
        ["show", "svc-a"],
        ["issue", "svc-b"],
        ["verify", "pki/workloads/svc-a"],
        ["bundle"],
        ["bundle", "--format", "jwks"],
        ["rotate-root", "introduce"],
    ],
)
def test_output_that_cannot_be_written(ca: Path, args: list[str]) -> None:
    authority.issue(ca, "svc-a")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command("certs", *args, "--pki", ca),
            cwd=ca.parent,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written: No space left on device\n"


def test_out_of_descriptors(ca: Path) -> None:
    """Whichever call is the first to be refused, it is a sentence."""
    import resource

    run("issue", "svc-a", "--pki", ca)
    run("show", "svc-a", "--pki", ca)  # what is imported on first use is imported now

    def limited(room: int) -> str:
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + room, free + room))
        ends = []
        for args in (["show", "svc-a"], ["issue", "svc-a"], ["list"]):
            result = run(*args, "--pki", ca)
            assert result.exit_code == 0 or "Too many open files" in result.stderr, result.stderr
            ends.append(result.exit_code)
        return str(sum(ends))

    refused = [int(in_child(lambda room=room: limited(room))) for room in range(8)]
    assert refused[0] == 15
    assert refused[-1] == 0
    assert load_identity(ca, "svc-a")
