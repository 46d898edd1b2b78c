"""`fastmesh demo` as a user runs it: it ends by itself, tells the truth, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import procfs
from kit.limits import DEADLINE, bare, wait_until
from kit.proxy import FASTMESH

PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def orphanage() -> Iterator[None]:
    """Orphans become children of this process, so that the test can see whether any is left."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    yield
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0)


class Demo:
    """One run, its temporary directory under the test's."""

    def __init__(self, tmp_path: Path, seconds: int, stdout: int | None = None) -> None:
        self.tmp = tmp_path / "tmp"
        self.tmp.mkdir()
        self.before = set(procfs.children(os.getpid()))
        self.out_path = tmp_path / "out"
        with self.out_path.open("wb") as out:
            self.process = subprocess.Popen(
                [str(FASTMESH), "demo", "--seconds", str(seconds)],
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=subprocess.STDOUT if stdout is None else out,
                env={**os.environ, "TMPDIR": str(self.tmp), "TERM": "xterm", "COLUMNS": "80"},
            )

    def output(self) -> str:
        return self.out_path.read_text(errors="replace")

    def wait_started(self) -> None:
        def started() -> bool:
            assert self.process.poll() is None, self.output()
            return "Try it while it lasts" in self.output() and "configuration is in" in self.output()

        wait_until(started, "the demo to start", 2 * DEADLINE)

    def family(self) -> list[int]:
        """All processes below it."""
        found, new = [], [self.process.pid]
        while new:
            new = [child for pid in new for child in procfs.children(pid)]
            found += new
        return found

    def wait(self) -> int:
        """Its exit code, after checks that nothing is left."""
        code = self.process.wait(4 * DEADLINE)
        left = set(procfs.children(os.getpid())) - self.before
        running = [procfs.title(pid) for pid in left if procfs.alive(pid)]
        for pid in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        assert running == []
        assert list(self.tmp.iterdir()) == []
        return code


def test_demo_runs_and_ends_by_itself(orphanage: None, tmp_path: Path) -> None:
    demo = Demo(tmp_path, 3)
    demo.wait_started()
    commands = re.findall(r"^  (curl .*?)\s+# (.*)$", demo.output(), re.MULTILINE)
    assert len(commands) == 4
    for command, what in commands:
        done = subprocess.run(
            [*shlex.split(command), "-s"],
            capture_output=True,
            timeout=DEADLINE,
            check=False,
            env=bare(),
        )
        if "refused" in what:
            assert done.returncode != 0
        elif "counts" in what:
            assert b"fastmesh_requests_total" in done.stdout
        else:
            assert json.loads(done.stdout)["service"] == "svc-b"
    assert demo.wait() == 0, demo.output()
    text = demo.output()
    lines = re.findall(
        r"^ +\d+ s +(\d+) requests/s  success 100.00 %  p50 .* p99 .* TLS handshakes (\d+)", text, re.M
    )
    assert len(lines) >= 2, text
    assert all(int(rate) > 0 and int(handshakes) > 0 for rate, handshakes in lines)
    summary = re.search(r"^(\d+) requests in (\d+\.\d) s \(\d+ a second\), 0 failed$", text, re.M)
    assert summary, text
    assert 3.0 <= float(summary[2]) < 3 + DEADLINE / 3
    assert "0 let in" in text


def test_demo_ends_cleanly_on_interrupt(orphanage: None, tmp_path: Path) -> None:
    demo = Demo(tmp_path, 600)
    demo.wait_started()
    demo.process.send_signal(signal.SIGINT)
    assert demo.wait() == 0, demo.output()
    assert ", 0 failed" in demo.output()


def test_demo_interrupted_while_it_starts(orphanage: None, tmp_path: Path) -> None:
    demo = Demo(tmp_path, 600)
    wait_until(lambda: list(demo.tmp.glob("*/pki")), "the certificates")
    demo.process.send_signal(signal.SIGTERM)
    assert demo.wait() != 0


def test_demo_tells_of_failures(orphanage: None, tmp_path: Path) -> None:
    """The application svc-b is gone: requests fail, and the exit code says so."""
    demo = Demo(tmp_path, 600)
    demo.wait_started()
    app = [pid for pid in demo.family() if procfs.title(pid).find("fastmesh.demo.apps svc-b") >= 0]
    os.kill(app[0], signal.SIGKILL)
    assert demo.wait() == 1
    assert "ended with exit code -9" in demo.output()


def test_demo_shows_a_live_table_on_a_terminal(orphanage: None, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    demo = Demo(tmp_path, 2, stdout=theirs)
    os.close(theirs)
    shown = b""
    end = time.monotonic() + 4 * DEADLINE
    while time.monotonic() < end:
        try:
            data = os.read(ours, 65536)
        except OSError:
            break  # the other side is closed
        if not data:
            break
        shown += data
    os.close(ours)
    assert demo.wait() == 0, shown.decode(errors="replace")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    for name in ("svc-a", "svc-b"):
        rows = re.findall(rf"sidecar of {name} +(\d+) +100.00 % .* ms +(\d+)", text)
        assert max((int(rate) for rate, _ in rows), default=0) > 0, text
        assert max((int(connections) for _, connections in rows), default=0) > 0, text
    assert "mutual TLS 1.3:" in text
    assert ", 0 failed" in text
