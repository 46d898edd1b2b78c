"""An agent as a real process, with the test in the supervisor's place: frames, the admin socket, signals."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from fastmesh.host.channel import Channel, Frame
from kit import procfs
from kit.area import FakeArea
from kit.limits import DEADLINE

ROOT = Path(__file__).parents[2]
CONFIG = {
    "listeners": [{"name": "edge", "bind": "127.0.0.1:8080", "protocol": "http", "to": "web"}],
    "services": {"web": {"endpoints": ["127.0.0.1:9000"]}},
}

# The agent itself, with a fake area and other constants where a test wants to see a timeout.
_BOOT = """
import importlib, json, sys
sys.path.insert(0, "tests")
from fastmesh import _core
from kit.area import FakeArea
_core.Area = FakeArea
for name, value in json.loads(sys.argv.pop(1)).items():
    module, _, attribute = name.rpartition(".")
    setattr(importlib.import_module(module), attribute, value)
from fastmesh.agent.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.text = response.read().decode()

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Agent:
    """`patches`: constants of modules by full name. `admin_first`: the socket is there at the start."""

    def __init__(
        self,
        directory: Path,
        area: FakeArea | None = None,
        patches: dict[str, object] | None = None,
        admin_host: str = "127.0.0.1",
        admin_first: bool = False,
    ) -> None:
        self.directory = directory
        self.path = directory / "mesh.yaml"
        self.area_fd = (area or FakeArea()).publish()
        self.channel, theirs = Channel.pair()
        self.listening = socket.create_server((admin_host, 0), family=_family(admin_host))
        self.host, self.port = self.listening.getsockname()[:2]
        self.stderr_path = directory / "agent.stderr"
        fds = [theirs.fileno(), self.area_fd, *([self.listening.fileno()] if admin_first else [])]
        with self.stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, json.dumps(patches or {}), *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                cwd=ROOT,
            )
        theirs.close()
        self._frames: list[Frame] = []

    # what the supervisor does

    def write(self, config: dict[str, Any] | str) -> None:
        self.path.write_text(config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False))

    def start(self, config: dict[str, Any] | str | None = None, workers: int | None = 1) -> None:
        self.write(CONFIG if config is None else config)
        self.channel.send({"type": "start", "config": str(self.path), "workers": workers})

    def serving(self, config: dict[str, Any] | str | None = None) -> dict[str, Any]:
        """Start, hand over the admin socket, report one ready worker; the snapshot."""
        self.start(config)
        snapshot = self.frame("snapshot").message["snapshot"]
        self.channel.send({"type": "admin"}, descriptors=[self.listening.fileno()])
        self.status("ready")
        self.frame("ready")
        return snapshot

    def status(self, *states: str, draining: bool = False, **more: object) -> None:
        workers = [
            {"slot": slot, "pid": os.getpid(), "state": state, "restarts": 0}
            for slot, state in enumerate(states)
        ]
        self.channel.send({"type": "status", "workers": workers, "draining": draining, **more})

    def frame(self, kind: str) -> Frame:
        """The next frame, which must be of this type."""
        end = time.monotonic() + DEADLINE
        while not self._frames:
            assert not self.channel.closed, f"the agent has gone:\n{self.stderr()}"
            left = end - time.monotonic()
            assert left > 0, f"no frame from the agent:\n{self.stderr()}"
            select.select([self.channel], [], [], left)
            self._frames = self.channel.receive()
        frame = self._frames.pop(0)
        assert frame.type == kind, frame.body
        return frame

    def stop(self) -> None:
        """ "stop", exit code 0, no traceback."""
        self.channel.send({"type": "stop"})
        self.ended()
        text = self.stderr()
        assert not re.search(r"Traceback|Exception ignored|Sanitizer|runtime error:", text), text

    def ended(self) -> None:
        assert self.process.wait(DEADLINE) == 0, self.stderr()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def stderr(self) -> str:
        return self.stderr_path.read_text()

    def close(self) -> None:
        if self.process.poll() is None:
            for pid in procfs.children(self.process.pid):
                os.kill(pid, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
        self.channel.close()
        self.listening.close()
        os.close(self.area_fd)

    # the admin API

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=DEADLINE)
        try:
            connection.request(
                method, path, headers={key.replace("_", "-"): value for key, value in headers.items()}
            )
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), DEADLINE)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
