"""The demo's processes: made in a temporary directory, ended without a trace.

Every process is started in a session of its own, so that Ctrl-C reaches only the demo, which then ends
them in order: sidecars first, so that what is in flight finishes, then the applications.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from fastmesh.cli import EXIT_LISTEN

Settings = Callable[[int], dict[str, int]]

FASTMESH = [sys.executable, "-c", "from fastmesh.cli import main; main()"]
# The ports of the examples and the documentation, used where they are free.
OUTBOUND, INBOUND, ADMIN_A, ADMIN_B, FRONT = 15001, 15443, 15000, 15100, 8081

SIDECAR_A = """\
# The sidecar of svc-a: from the application into the mesh.
workload: svc-a
trust_domain: mesh.local
pki: pki
admin: 127.0.0.1:{admin}
workers: 1
drain: 5s

listeners:
  - name: outbound
    role: outbound
    bind: 127.0.0.1:{outbound}

services:
  svc-b:
    endpoints: [127.0.0.1:{inbound}]
    tls: mesh
"""

SIDECAR_B = """\
# The sidecar of svc-b: from the mesh to the application.
workload: svc-b
trust_domain: mesh.local
pki: pki
admin: 127.0.0.1:{admin}
workers: 1
drain: 5s

listeners:
  - name: inbound
    role: inbound
    bind: 127.0.0.1:{inbound}
    tls: mesh
    to: app
    allow:
      - from: [svc-a]
        methods: [GET]

services:
  app:
    endpoints: [127.0.0.1:{app}]
"""

_START_S = 30.0
_STOP_S = 10.0
_TRIES = 5


class DemoError(Exception):
    """The demo cannot run; the text says why."""


def port(preferred: int = 0) -> int:
    """`preferred` if it is free on loopback, else any port that is."""
    for number in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", number))
                return int(probe.getsockname()[1])
    raise DemoError("there is no free port on 127.0.0.1")


def listening_socket(preferred: int = 0) -> socket.socket:
    """A socket that listens already: whoever connects waits in its queue until the application runs."""
    try:
        return socket.create_server(("127.0.0.1", preferred), backlog=512)
    except OSError:
        return socket.create_server(("127.0.0.1", 0), backlog=512)


class Mesh:
    """Two applications and their sidecars under `directory`. `start` once, `stop` always."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.front = self.outbound = self.inbound = 0
        self.admin = {"svc-a": 0, "svc-b": 0}
        self._sidecars: list[asyncio.subprocess.Process] = []
        self._apps: list[asyncio.subprocess.Process] = []

    async def start(self) -> None:
        """Everything up and ready. Raises DemoError with what the failing process said."""
        await self._certificates()
        app = listening_socket()
        front = listening_socket(FRONT)
        self.front = front.getsockname()[1]
        self.inbound = await self._sidecar(
            "svc-b",
            SIDECAR_B,
            INBOUND,
            ADMIN_B,
            lambda number: {"inbound": number, "app": app.getsockname()[1]},
        )
        self.outbound = await self._sidecar(
            "svc-a",
            SIDECAR_A,
            OUTBOUND,
            ADMIN_A,
            lambda number: {"inbound": self.inbound, "outbound": number},
        )
        with app, front:
            await self._application("svc-b", app)
            await self._application("svc-a", front, str(self.outbound))

    def check(self) -> None:
        """Raise DemoError if a process has ended that should run."""
        for process in [*self._sidecars, *self._apps]:
            if process.returncode is not None:
                raise DemoError(
                    f"a process of the demo ended with exit code {process.returncode}\n{self._said()}"
                )

    async def stop(self) -> list[str]:
        """End everything, politely, then by force; what did not end as it should have."""
        wrong: list[str] = []
        for processes, name in ((self._sidecars, "sidecar"), (self._apps, "application")):
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            for process in processes:
                code = await self._end(process)
                if name == "sidecar" and code:
                    wrong.append(f"a {name} ended with exit code {code}")
            processes.clear()
        return wrong

    async def _end(self, process: asyncio.subprocess.Process) -> int:
        try:
            async with asyncio.timeout(_STOP_S):
                return await process.wait()
        except TimeoutError:
            # A second SIGTERM makes a supervisor end at once, children included; SIGKILL would orphan them.
            for end in (process.terminate, process.kill):
                with contextlib.suppress(ProcessLookupError, TimeoutError):
                    end()
                    async with asyncio.timeout(_STOP_S / 2):
                        return await process.wait()
            return -1

    # making each of them

    async def _certificates(self) -> None:
        pki = str(self.directory / "pki")
        for command in (["init"], ["issue", "svc-a"], ["issue", "svc-b"]):
            process = await asyncio.create_subprocess_exec(
                *FASTMESH,
                "certs",
                *command,
                "--pki",
                pki,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
            try:
                _, said = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            if process.returncode:
                raise DemoError(f"fastmesh certs {' '.join(command)}: {said.decode(errors='replace')}")

    async def _sidecar(self, name: str, template: str, preferred: int, admin: int, settings: Settings) -> int:
        """Start one; the port of its listener. Somebody may take a free port first: then it takes another."""
        for attempt in range(_TRIES):
            number = port(0 if attempt else preferred)
            self.admin[name] = port(0 if attempt else admin)
            path = self.directory / f"{name}.yaml"
            path.write_text(template.format(admin=self.admin[name], **settings(number)))
            code = await self._serve(path)
            if code is None:
                return number
            if code != EXIT_LISTEN:
                break
        raise DemoError(f"the sidecar of {name} does not start\n{self._said()}")

    async def _serve(self, path: Path) -> int | None:
        """Start `fastmesh serve` and wait until it is ready; its exit code if it ends instead."""
        loop = asyncio.get_running_loop()
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
            path.with_suffix(".log").open("ab") as log,
        ):
            address = f"fastmesh-demo-{os.getpid()}-{path.stem}"
            notify.bind(f"\0{address}")
            notify.setblocking(False)
            process = await asyncio.create_subprocess_exec(
                *FASTMESH,
                "serve",
                "-c",
                str(path),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": f"@{address}"},
                start_new_session=True,
            )
            self._sidecars.append(process)
            ended = asyncio.ensure_future(process.wait())
            try:
                async with asyncio.timeout(_START_S):
                    while True:
                        told = asyncio.ensure_future(loop.sock_recv(notify, 4096))
                        await asyncio.wait({told, ended}, return_when=asyncio.FIRST_COMPLETED)
                        if not told.done():
                            told.cancel()
                            self._sidecars.remove(process)
                            return ended.result()
                        if b"READY=1" in told.result().split(b"\n"):
                            return None
            except TimeoutError:
                raise DemoError(f"{path.name}: not ready within {_START_S:.0f} s\n{self._said()}") from None
            finally:
                ended.cancel()

    async def _application(self, name: str, listening: socket.socket, *args: str) -> None:
        with (self.directory / f"{name}-app.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "fastmesh.demo.apps",
                name,
                str(listening.fileno()),
                *args,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[listening.fileno()],
                start_new_session=True,
            )
        self._apps.append(process)

    def _said(self) -> str:
        """The end of every log, for a failure's explanation."""
        parts = []
        for log in sorted(self.directory.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-15:]
            parts += [f"{log.stem}: {line}" for line in lines]
        return "\n".join(parts)
