"""The configuration's way through the agent: asked for, loaded beside it, handed to the supervisor.

The parts of it that are made of files (`host.parts`) go the same way, alone when only those have changed; one
load at a time, so that numbers and rows of one snapshot follow from those of the one before.

Standard library only and without asyncio: it is at work before the rest of the agent has been imported.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from fastmesh.host.channel import Frame, encode
from fastmesh.host.endpoints import health_slots
from fastmesh.host.parts import with_parts
from fastmesh.host.process import fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from fastmesh.agent.state import State
    from fastmesh.host.channel import Channel

# Below the 30 s that the supervisor waits, so that it learns the reason.
TIMEOUT_S: Final = 25.0

# Of each part that was loaded alone: accepted, unchanged or rejected, and why.
Outcomes = dict[str, tuple[str, str]]


class _Copy:
    """A copy of this process that loads, in place of a program: a start of Python is spared.

    Only for a process that is still young: small, with one thread, and without a key in its memory.
    """

    def __init__(self, request: Mapping[str, object], result: int) -> None:
        def load() -> int:
            from fastmesh.agent.loader import answer

            answer(dict(request), result)

        self._pid = fork(load, [result])

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    def wait(self) -> int:
        return os.waitpid(self._pid, 0)[1]


def _program(request: Mapping[str, object], result: int) -> subprocess.Popen[bytes]:
    stdin = os.memfd_create("fastmesh-request", os.MFD_CLOEXEC)
    try:
        os.write(stdin, encode(request))
        os.lseek(stdin, 0, os.SEEK_SET)
        # -P: a file that happens to be called json.py in the working directory is not ours.
        command = [sys.executable, "-P", "-m", "fastmesh.agent.loader", str(result)]
        return subprocess.Popen(command, stdin=stdin, pass_fds=[result])
    finally:
        os.close(stdin)


class Loading:
    """A loader process at work; `young` is whether this one may still be copied for it. `deadline` is on the
    monotonic clock."""

    def __init__(self, request: Mapping[str, object], young: bool) -> None:
        self._result, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.set_blocking(theirs, True)
            self._process = _Copy(request, theirs) if young else _program(request, theirs)
        except OSError:
            os.close(self._result)
            raise
        finally:
            os.close(theirs)
        self._data = bytearray()
        self.deadline = time.monotonic() + TIMEOUT_S

    def fileno(self) -> int:
        return self._result

    def read(self) -> bytes | None:
        """The whole result, or None while there is more to come. Empty: the process ended without one."""
        while True:
            try:
                data = os.read(self._result, 256 * 1024)
            except BlockingIOError:
                return None
            if not data:
                return bytes(self._data)
            self._data += data

    def close(self) -> None:
        """End the process, if it has not ended by itself."""
        os.close(self._result)
        # It has nothing to give back: what it made is in the pipe, or not wanted any more.
        self._process.kill()
        self._process.wait()


class Configuration:
    """Loads the file when asked to, one load at a time; tells the supervisor and `state` what came of it."""

    def __init__(self, channel: Channel, state: State) -> None:
        self.loading: Loading | None = None
        self._channel = channel
        self._state = state
        self._workers: int | None = None
        self._workload: str | None = None
        self._again = False
        self._wanted: set[str] = set()
        # What is being loaded: these parts, or the file.
        self._parts: set[str] = set()
        self.on_parts: Callable[[Outcomes], None] | None = None

    def adopt(self, message: Mapping[str, Any]) -> None:
        """Note which file is meant, from any message that says it."""
        if "config" in message:
            self._state.config = message["config"]
            self._workers = message.get("workers")
            self._workload = message.get("workload")

    def load(self, *, young: bool = False) -> None:
        """Begin to load the file; or once more after the load under way: it may have read an older file.

        `young`: this process has only just begun (see `_Copy`).
        """
        if self.loading is not None:
            self._again = True
            return
        self._again = False
        self._start(set(), young)

    def load_parts(self, names: Iterable[str]) -> None:
        """Begin to load these parts alone; or after the load under way."""
        self._wanted.update(names)
        if self.loading is None:
            wanted, self._wanted = self._wanted, set()
            self._start(wanted)

    def _start(self, parts: set[str], young: bool = False) -> None:
        self._parts = parts
        current = self._state.snapshot
        request = {
            "config": self._state.config,
            "workers": self._workers,
            "workload": self._workload,
            "number": current["number"] + 1 if current else 1,
            "digest": current["digest"] if current else None,
            "slots": dict(self._state.services()),
            "rule_slots": {"/".join(key): row for *key, row in self._state.rules()},
            "health_slots": health_slots(current) if current else {},
            "virtual": self._state.virtual(),
            "snapshot": current if parts else None,
            "parts": sorted(parts),
        }
        try:
            self.loading = Loading(request, young)
        except OSError as error:
            self._refuse(f"{self._state.config}: the loader cannot be started: {error.strerror}")

    def advance(self) -> bool:
        """Take what the loader has written. True if it has ended, and its result is on its way."""
        assert self.loading is not None
        expired = time.monotonic() >= self.loading.deadline
        result = self.loading.read()
        if result is None and not expired:
            return False
        self.loading.close()
        self.loading = None
        if result:
            self._deliver(Frame(result, []))
        elif expired:
            what = f"could not be loaded within {TIMEOUT_S:.0f} s; does the name server answer?"
            self._refuse(f"{self._state.config}: {what}")
        else:
            self._refuse(f"{self._state.config}: the loader ended without a result")
        if self._again:
            self.load()
        elif self._wanted:
            self.load_parts(())
        return True

    def _refuse(self, message: str) -> None:
        initial = self._state.snapshot is None
        self._deliver(Frame(encode({"type": "config_error", "errors": [message], "initial": initial}), []))

    def _deliver(self, result: Frame) -> None:
        if self._parts:
            self._deliver_parts(result)
            return
        state = self._state
        first = state.snapshot is None
        # Sent before it is looked at: workers wait for it, nobody for our knowledge of it.
        self._channel.send(result.body)
        if result.type == "snapshot":
            state.take_snapshot(result.message["snapshot"])
            state.errors = []
            outcome = "accepted"
        elif result.type == "unchanged":
            state.errors = []
            outcome = "unchanged"
        else:
            message = result.message
            state.errors = message["errors"] if result.type == "config_error" else [message["message"]]
            outcome = "rejected"
        if not first:
            state.reloads[outcome] += 1

    def _deliver_parts(self, result: Frame) -> None:
        """What the supervisor hears of are new parts; the rest is the rotation's to tell."""
        message = result.message
        outcomes: Outcomes = dict.fromkeys(self._parts, ("unchanged", ""))
        if result.type == "parts":
            current = self._state.snapshot
            if current is None or message["number"] != current["number"] + 1:
                # The snapshot that they were made for could not be put to use.
                self.load_parts(self._parts)
                return
            self._channel.send(result.body)
            new = {key: message[key] for key in ("number", "digest")}
            self._state.take_snapshot(with_parts(current, message["parts"]) | new)
            outcomes |= dict.fromkeys(message["parts"], ("accepted", ""))
        elif result.type != "unchanged":
            why = message.get("message") or "; ".join(message.get("errors", ()))
            outcomes = dict.fromkeys(self._parts, ("rejected", why))
        outcomes |= {name: ("rejected", why) for name, why in message.get("refused", {}).items()}
        if self.on_parts is not None:
            self.on_parts(outcomes)

    def close(self) -> None:
        if self.loading is not None:
            with contextlib.suppress(OSError):
                self.loading.close()
            self.loading = None
