"""The root is replaced, every step killed again and again, while renewals go on in the same directory."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from kit.certs import command, environment
from kit.limits import scaled

from fastmesh.certs import authority, proof, record
from fastmesh.certs.store import Identity, Layout, load_identity
from fastmesh.certs.trust import workloads

NAMES = ("svc-a", "svc-b")
STEPS = (("introduce",), ("switch",), ("retire", "--force"))
TRIES = 10


class Renewing(threading.Thread):
    """What the agent of a sidecar does, over and over: the renewal in a process of its own."""

    def __init__(self, pki: Path, name: str) -> None:
        super().__init__(daemon=True)
        self.pki = pki
        self.workload = name
        self.stop = threading.Event()
        self.count = 0
        self.failures: list[str] = []

    def run(self) -> None:
        argv = [sys.executable, "-P", "-m", "fastmesh.certs.renewal", str(self.pki), self.workload]
        while not self.stop.is_set():
            done = subprocess.run(argv, capture_output=True, text=True, env=environment(), check=False)
            self.count += 1
            if done.returncode:
                self.failures.append(done.stderr)


def believed(who: Identity, by: Identity) -> None:
    """Raises PkiError when not."""
    proof.prove(
        who.certificate, who.key, by.bundle, time.time(), proof.Labels(who.spiffe_id, "", by.spiffe_id)
    )


class Watching(threading.Thread):
    """Looks at both entries all the time, as sidecars do: each must be proven, and believed by the other."""

    def __init__(self, pki: Path) -> None:
        super().__init__(daemon=True)
        self.pki = pki
        self.stop = threading.Event()
        self.looks = 0
        self.failures: list[str] = []

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                one, other = (load_identity(self.pki, name) for name in NAMES)
                believed(one, other)
                believed(other, one)
            except Exception as error:
                self.failures.append(repr(error))
            self.looks += 1


def killed(pki: Path, *step: str, after: float) -> bool:
    """Runs a step of `rotate-root` and kills it `after` seconds; false if it was done before."""
    argv = command("certs", "rotate-root", *step, "--pki", pki)
    with subprocess.Popen(
        argv, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            _, said = process.communicate(timeout=after)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            return True
        assert process.returncode == 0, said.decode()
        return False


@pytest.mark.heavy
def test_killed_steps_among_renewals(ca: Path) -> None:
    for name in NAMES:
        authority.issue(ca, name)
    draw = random.Random(3)
    kills = 0
    renewing = [Renewing(ca, name) for name in NAMES]
    watching = Watching(ca)
    for thread in (*renewing, watching):
        thread.start()
    try:
        for _ in range(scaled(2, 1)):
            for step in STEPS:
                if step[0] == "retire":
                    # Everybody has moved to the next root by now.
                    before = [one.count for one in renewing]
                    while any(one.count < old + 2 for one, old in zip(renewing, before, strict=True)):
                        time.sleep(0.02)
                kills += sum(killed(ca, *step, after=draw.uniform(0.2, 1.2)) for _ in range(TRIES))
                assert not killed(ca, *step, after=60), "it hangs"
    finally:
        for thread in (*renewing, watching):
            thread.stop.set()
        for thread in (*renewing, watching):
            thread.join(60)
    assert watching.failures == []
    assert [one.failures for one in renewing] == [[], []]
    assert watching.looks > 10
    assert kills
    layout = Layout(ca)
    assert workloads(layout) == sorted(NAMES)
    assert record.read(layout.record)[1] == []
    # No key of a root that is gone, and of nobody more than the one in use.
    keys = sorted(str(path.relative_to(ca)) for path in ca.rglob("key.pem") if not path.is_symlink())
    assert len(keys) == 2 + len(NAMES), keys
