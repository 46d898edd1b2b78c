"""A supervisor under test: real processes, real sockets, real workers, and an agent that follows a script."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from kit import procfs
from kit.limits import DEADLINE, wait_until

HERE = Path(__file__).parent.parent / "host"

# Moves the descriptors to 3, 4, … as sd_listen_fds(3) wants them, by way of numbers that none of them has.
ACTIVATE = """
import os, sys
fds = sys.argv[1].split(",")
for index, fd in enumerate(fds):
    os.dup2(int(fd), 100 + index)
for index in range(len(fds)):
    os.dup2(100 + index, 3 + index)
    os.close(100 + index)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Echo:
    """A TCP server that sends back what it gets."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn: socket.socket) -> None:
        with conn, contextlib.suppress(OSError):
            while data := conn.recv(65536):
                conn.sendall(data)

    def close(self) -> None:
        # Without the shutdown a blocked accept would keep the listener alive.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Host:
    """One run of the supervisor."""

    def __init__(self, directory: Path, upstream: int) -> None:
        self.directory = directory
        self.upstream = upstream
        self.script_path = directory / "script.json"
        self.stderr_path = directory / "stderr"
        self.process: subprocess.Popen[bytes] | None = None
        self.script: dict[str, list[dict[str, Any]]] = {}

    # the agent's part

    def bind(self, port: int = 0, host: str = "127.0.0.1", path: str | None = None) -> dict[str, Any]:
        if path:
            return {"family": "unix", "host": None, "port": None, "path": path}
        return {"family": "inet6" if ":" in host else "inet", "host": host, "port": port, "path": None}

    def listener(self, name: str, bind: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": name,
            "role": "edge",
            "bind": bind,
            "protocol": "tcp",
            "tls": "none",
            "service": 0,
            "allow": None,
            "header_timeout_ms": 10000,
            "idle_timeout_ms": 60000,
            "stream_idle_timeout_ms": 300000,
            "tcp_idle_timeout_ms": 3600000,
            "max_connections": 0,
            "forwarded": {"x_forwarded": "append", "forwarded": "auto", "via": True},
        }

    def snapshot(self, number: int = 1, **changes: Any) -> dict[str, Any]:
        """A snapshot that forwards TCP to the echo server; `binds` names the listeners."""
        binds = changes.pop("binds", None) or {"edge": self.bind()}
        return {
            "format": 1,
            "number": number,
            "digest": f"{number:064x}",
            "source": "edge.yaml",
            "workload": None,
            "trust_domain": None,
            "identity": None,
            "workers": 2,
            "drain_ms": 10000,
            "admin": None,
            "access_log": None,
            "listeners": [self.listener(name, bind) for name, bind in binds.items()],
            "services": [
                {
                    "name": "echo",
                    "slot": 0,
                    "tls": "none",
                    "spiffe_id": None,
                    "endpoints": [
                        {"family": "inet", "host": "127.0.0.1", "port": self.upstream, "path": None}
                    ],
                    "connect_timeout_ms": 1000,
                    "response_timeout_ms": 60000,
                    "pool_idle_max": 1024,
                    "pool_idle_timeout_ms": 55000,
                    "reuse_retry": "replayable",
                }
            ],
        } | changes

    def on(self, frame: str, *answers: dict[str, Any]) -> None:
        """What the agent sends when such a frame comes."""
        self.script[frame] = list(answers)
        draft = self.script_path.with_suffix(".draft")
        draft.write_text(json.dumps(self.script))
        draft.rename(self.script_path)

    def heard(self, kind: str) -> list[dict[str, Any]]:
        """The frames of a type that agents have received so far ("birth": one for each agent)."""
        log = Path(f"{self.script_path}.log")
        lines = log.read_text().splitlines() if log.exists() else []
        return [entry for entry in map(json.loads, lines) if entry["type"] == kind]

    # life

    def launch(
        self,
        *args: str,
        env: dict[str, str] | None = None,
        sockets: dict[str, socket.socket] | None = None,
    ) -> None:
        """Start without waiting; `sockets`, by name, are passed as a service manager passes them."""
        command = [
            sys.executable,
            str(HERE / "supervise.py"),
            "/etc/somewhere/edge.yaml",
            str(self.script_path),
        ]
        env = dict(env or {})
        fds = [sock.fileno() for sock in (sockets or {}).values()]
        if sockets:
            env |= {"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(sockets)}
            command = [sys.executable, "-c", ACTIVATE, ",".join(map(str, fds)), *command]
        with self.stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*command, *args],
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, **env},
                start_new_session=True,
                pass_fds=fds,
            )

    def start(self, *args: str, snapshot: dict[str, Any] | None = None, **options: Any) -> Host:
        """Start with a snapshot and wait until it is ready."""
        if "start" not in self.script:
            self.on("start", {"type": "snapshot", "snapshot": snapshot or self.snapshot()})
        self.launch(*args, **options)
        self.wait_line("fastmesh ready: ")
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def stderr(self) -> str:
        return self.stderr_path.read_text()

    def wait_line(self, text: str, count: int = 1) -> str:
        """The `count`th line on stderr that contains `text`."""

        def find() -> str | None:
            found = [line for line in self.stderr().splitlines() if text in line]
            if len(found) >= count:
                return found[count - 1]
            assert self.process is not None
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.stderr()}"
            return None

        return wait_until(find, f"{text!r} on stderr") or ""

    def port(self, name: str = "edge") -> int:
        """The port that a listener (or "admin") got."""
        match = re.search(rf"[ ,;]{name} \S*:(\d+)[,;]", self.wait_line("fastmesh ready: "))
        assert match, self.stderr()
        return int(match[1])

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(DEADLINE)

    def stop(self) -> None:
        self.signal(signal.SIGTERM)
        assert self.wait() == 0, self.stderr()

    def children(self, word: str) -> list[int]:
        return [pid for pid in procfs.children(self.pid) if f"fastmesh: {word}" in procfs.title(pid)]

    def workers(self) -> list[int]:
        """Pids of the workers that the agent was last told to be ready, by slot."""
        status = self.heard("status")
        rows = status[-1]["workers"] if status else []
        return [row["pid"] for row in sorted(rows, key=lambda row: row["slot"]) if row["state"] == "ready"]

    def wait_workers(self, count: int = 2, other_than: list[int] | None = None) -> list[int]:
        """Until `count` workers are ready, all of them new where `other_than` is given; their pids."""

        def ready() -> list[int] | None:
            pids = self.workers()
            return pids if len(pids) == count and not set(pids) & set(other_than or []) else None

        return wait_until(ready, f"{count} ready workers") or []

    def agent(self) -> int:
        """The pid of the newest agent."""
        return int(self.heard("birth")[-1]["pid"])

    def echo(self, port: int | None = None, family: int = socket.AF_INET, host: str = "127.0.0.1") -> None:
        """One connection through the proxy and back."""
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(DEADLINE)
            sock.connect((host, self.port() if port is None else port))
            exchange(sock)

    def kill(self) -> None:
        if self.process is None:
            return
        for pid in [*procfs.children(self.pid), self.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)


def exchange(sock: socket.socket, data: bytes = b"ping") -> None:
    sock.sendall(data)
    got = b""
    while len(got) < len(data):
        more = sock.recv(65536)
        assert more, f"closed after {got!r}"
        got += more
    assert got == data
