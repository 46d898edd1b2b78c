"""The process in which an agent renews: one line of JSON, or one line that says why not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from kit.certs import environment

from fastmesh.certs import authority, revocation
from fastmesh.certs.store import load_identity


def renew(pki: Path, name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "fastmesh.certs.renewal", pki, name],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_it_renews(ca: Path) -> None:
    before = authority.issue(ca, "svc-a", 60)
    done = renew(ca, "svc-a")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    now = load_identity(ca, "svc-a")
    assert facts == {
        "serial": (ca / "workloads/svc-a/current").readlink().name.removeprefix(".v-"),
        "not_before": now.not_before,
        "not_after": now.not_after,
    }
    assert facts["serial"] != before.serial
    assert now.not_after - now.not_before == before.not_after - before.not_before


def test_it_says_why_not(ca: Path, tmp_path: Path) -> None:
    authority.issue(ca, "svc-a")
    shutil.copytree(ca / "workloads", tmp_path / "away/workloads", symlinks=True)
    revocation.revoke(ca, ["svc-a"])
    for pki, name, said in (
        (tmp_path / "away", "svc-a", "no authority here: "),
        (ca, "svc-b", "has no identity for the workload svc-b"),
        (ca, "svc-a", "the certificate of svc-a was revoked"),
        (ca, "A B", "no workload name"),
    ):
        done = renew(pki, name)
        assert (done.returncode, done.stdout) == (5, "")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
