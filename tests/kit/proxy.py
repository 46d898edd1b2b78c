"""`fastmesh serve` as a real process: start, readiness, its children, its metrics, and a clean end.

Readiness is the supervisor's own word (sd_notify), so nothing polls. A process that leaves a balance
message, a traceback or a sanitiser report on stderr, or ends with another code than 0, fails the test.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from kit import procfs
from kit.limits import DEADLINE, bare, wait_until
from kit.ports import free_port

FASTMESH = Path(sys.executable).with_name("fastmesh")
# What `fastmesh serve` becomes by exec once it has looked at its options: a third of a start's time is saved.
HOST = [sys.executable, "-m", "fastmesh.host"]

# What no run may leave on stderr, whatever the test provokes.
FATAL = re.compile(
    r"balance:|AddressSanitizer|LeakSanitizer|UndefinedBehavior|runtime error:|Traceback \(most recent|"
    r"Segmentation fault|SIGSEGV|SIGABRT|SIGBUS|SIGFPE|SIGILL|impossible|assertion|Assertion|"
    r"Fatal Python error|Exception ignored",
)
_counter = itertools.count()


def cli(*args: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a fastmesh command to its end."""
    if args[0] == "certs":
        options = {"env": bare(), **options}
    done = subprocess.run(
        [str(FASTMESH), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=4 * DEADLINE,
        check=False,
        **options,
    )
    if check:
        assert done.returncode == 0, (
            f"fastmesh {' '.join(map(str, args))}: exit {done.returncode}\n{done.stderr}"
        )
    return done


_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Metrics:
    """One scrape of /metrics. Waits read hundreds of them for one number each: only that is looked for."""

    def __init__(self, text: str) -> None:
        self.text = text

    @functools.cached_property
    def samples(self) -> list[Sample]:
        """Everything, as Prometheus' own parser reads it."""
        families = text_string_to_metric_families(self.text)
        return [sample for family in families for sample in family.samples]

    def sum(self, name: str, **labels: str) -> float:
        """Sum over the samples of `fastmesh_NAME` whose labels include `labels`."""
        full = name if name.startswith("fastmesh_") else f"fastmesh_{name}"
        return sum(
            float(value)
            for label_text, value in re.findall(rf"^{full}(?:\{{(.*)\}})? (\S+)$", self.text, re.MULTILINE)
            if labels.items() <= dict(_LABEL.findall(label_text)).items()
        )

    def by_reason(self, reason: str) -> float:
        """How often a request, connection or handshake ended with `reason`."""
        return self.sum("reasons_total", reason=reason)


class Fastmesh:
    """A running sidecar. `config` is a dict or YAML text; an admin address is added if it has none."""

    def __init__(
        self,
        config: dict[str, Any] | str,
        directory: Path,
        workers: int = 1,
        *,
        args: Iterable[str] = (),
        env: dict[str, str] | None = None,
        name: str | None = None,
    ) -> None:
        self.directory = directory
        self.name = name or f"mesh-{os.getpid()}-{next(_counter)}"
        self.workers = workers
        self.args = list(args)
        self.env = env or {}
        self.path = directory / f"{self.name}.yaml"
        self.admin_port = 0
        if isinstance(config, str):
            text = config
            match = re.search(r"^admin:\s*\S*:(\d+)", text, re.MULTILINE)
            if match:
                self.admin_port = int(match[1])
            else:
                self.admin_port = free_port()
                text = f"admin: 127.0.0.1:{self.admin_port}\n{text}"
        else:
            if "admin" not in config:
                config = {"admin": f"127.0.0.1:{free_port()}", **config}
            self.admin_port = int(str(config["admin"]).rpartition(":")[2])
            text = yaml.safe_dump(config, sort_keys=False)
        self.path.write_text(text)
        self.stderr_path = directory / f"{self.name}.stderr"
        self.process: subprocess.Popen[bytes] | None = None
        self._checked = 0

    # life

    def start(self) -> Fastmesh:
        """Start and wait until the supervisor says READY=1."""
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(f"\0fastmesh-test-notify-{os.getpid()}-{next(_counter)}")
        notify.settimeout(0.02)
        address = "@" + notify.getsockname()[1:].decode()
        with self.stderr_path.open("wb") as stderr, notify:
            self.process = subprocess.Popen(
                [*HOST, str(self.path), "--workers", str(self.workers), *self.args],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, "PYTHONSAFEPATH": "1", **self.env, "NOTIFY_SOCKET": address},
                cwd=self.directory,
                start_new_session=True,
            )
            end = time.monotonic() + 2 * DEADLINE
            while True:
                with contextlib.suppress(TimeoutError):
                    if b"READY=1" in notify.recv(4096).split(b"\n"):
                        return self
                if self.process.poll() is not None:
                    raise AssertionError(
                        f"serve ended with {self.process.returncode} at start:\n{self.stderr()}"
                    )
                if time.monotonic() > end:
                    text = self.stderr()
                    self.kill()
                    raise AssertionError(f"serve was not ready in {2 * DEADLINE:.0f} s:\n{text}")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace") if self.stderr_path.exists() else ""

    def new_faults(self) -> list[str]:
        """Lines on stderr since the last call that no run may leave."""
        text = self.stderr()
        fresh, self._checked = text[self._checked :], len(text)
        return [line for line in fresh.splitlines() if FATAL.search(line)]

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def wait(self, deadline: float | None = None) -> int:
        """Wait for the end; the exit code."""
        assert self.process is not None
        try:
            return self.process.wait(deadline or DEADLINE)
        except subprocess.TimeoutExpired:
            state = [(pid, procfs.title(pid)) for pid in [self.pid, *procfs.children(self.pid)]]
            text = self.stderr()
            self.kill()
            raise AssertionError(f"serve did not end in time; running: {state}\n{text}") from None

    def kill(self) -> None:
        """End the whole tree at once, no questions asked."""
        if self.process is None:
            return
        pids = [self.pid, *procfs.children(self.pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, exit code 0, no child left, nothing bad on stderr."""
        if self.process is None:
            return
        family = procfs.children(self.pid)
        if self.process.poll() is None:
            self.terminate()
        code = self.wait()
        text = self.stderr()
        bad = [line for line in text.splitlines() if FATAL.search(line)]
        assert not bad, f"serve left on stderr: {bad}\n{text}"
        assert code == 0, f"serve ended with {code}:\n{text}"
        wait_until(lambda: not any(procfs.alive(pid) for pid in family), f"the end of the children {family}")

    def reload(self, **sections: Any) -> None:
        """Put sections into the file, send SIGHUP, wait until every worker goes by what it says."""
        written = yaml.safe_load(self.path.read_text())
        self.path.write_text(yaml.safe_dump({**written, **sections}, sort_keys=False))
        before = self.metrics().sum("worker_snapshot_number")
        os.kill(self.pid, signal.SIGHUP)
        self.wait_metric(
            "reloaded", lambda m: m.sum("worker_snapshot_number") == before + len(self.worker_pids())
        )

    # its processes

    def worker_pids(self) -> list[int]:
        """The workers that run now."""
        return [pid for pid in procfs.children(self.pid) if "worker" in procfs.title(pid)]

    def agent_pid(self) -> int | None:
        found = [pid for pid in procfs.children(self.pid) if "agent" in procfs.title(pid)]
        return found[0] if found else None

    def wait_workers(self, count: int | None = None) -> list[int]:
        """Until that many workers run."""
        wanted = self.workers if count is None else count
        pids: list[int] = []

        def running() -> bool:
            pids[:] = self.worker_pids()
            return len(pids) == wanted

        wait_until(running, f"{wanted} workers")
        return pids

    # its admin API

    def admin(self, path: str) -> tuple[int, str]:
        """GET on the admin address; AssertionError if it does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=DEADLINE)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metrics(self) -> Metrics:
        def scrape() -> Metrics | None:
            try:
                status, text = self.admin("/metrics")
            except (OSError, http.client.HTTPException):
                return None
            return Metrics(text) if status == 200 else None

        return wait_until(scrape, "an answer from /metrics")

    def wait_metric(self, what: str, wanted: Any, deadline: float | None = None) -> Metrics:
        """Until `wanted(metrics)` holds."""
        latest: list[Metrics] = []

        def holds() -> bool:
            latest[:] = [self.metrics()]
            return bool(wanted(latest[0]))

        try:
            wait_until(holds, f"metrics: {what}", deadline)
        except AssertionError as error:
            lines = [
                line
                for line in latest[0].text.splitlines()
                if not line.startswith("#") and not line.endswith(" 0.0")
            ]
            raise AssertionError(f"{error}\n" + "\n".join(lines)) from None
        return latest[0]

    def config(self) -> Any:
        status, text = self.admin("/config")
        assert status == 200, text
        return json.loads(text)
