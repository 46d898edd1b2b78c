"""`fastmesh run` as a real process, with the processes below it and what they have said.

At the end nothing of it may run any more, whatever the test has done to it.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from kit import procfs
from kit.limits import DEADLINE, wait_until
from kit.proxy import FATAL

# As an installed program: it imports nothing from the directory that it is started in.
RUN = [sys.executable, "-P", "-c", "from fastmesh.cli import main; main()", "run"]
_counter = itertools.count()


class Launched:
    """One run. `config` is written to a file; `options` come before the command."""

    def __init__(
        self,
        directory: Path,
        config: dict[str, Any],
        *command: str | Path,
        options: Sequence[str] = ("--explicit",),
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        **popen: Any,
    ) -> None:
        name = f"run-{os.getpid()}-{next(_counter)}"
        self.directory = directory
        self.config = directory / f"{name}.yaml"
        self.config.write_text(yaml.safe_dump({"admin": "off", "workers": 1, **config}, sort_keys=False))
        self._out = directory / f"{name}.out"
        self._err = directory / f"{name}.err"
        self._seen: set[int] = set()
        line = [*prefix, *RUN, "-c", str(self.config), *options, "--", *map(str, command)]
        bare = {key: text for key, text in os.environ.items() if not key.lower().endswith("_proxy")}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            settings = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err, "process_group": 0} | popen
            self.process = subprocess.Popen(line, cwd=directory, env=bare | (env or {}), **settings)

    @property
    def pid(self) -> int:
        return self.process.pid

    def out(self) -> str:
        return self._out.read_text(errors="replace")

    def err(self) -> str:
        return self._err.read_text(errors="replace")

    def wait_out(self, text: str) -> None:
        """Until the command has written that to stdout."""
        wait_until(lambda: text in self.out() or self._ended(), f"{text!r}: {self.err()}", 2 * DEADLINE)
        assert text in self.out(), f"ended with {self.process.returncode}:\n{self.err()}"

    def wait_err(self, text: str, count: int = 1) -> None:
        wait_until(lambda: self.err().count(text) >= count, f"{text!r} on stderr: {self.err()}", 2 * DEADLINE)

    def _ended(self) -> bool:
        self.family()
        return self.process.poll() is not None

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code, once nothing of the run is left and nothing bad was said."""
        wait_until(self._ended, f"the end of the run: {self.tree()}\n{self.err()}", 2 * DEADLINE)
        self.wait_gone()
        return self.process.returncode

    def wait_gone(self) -> None:
        """Until no process of the run is left."""
        wait_until(
            lambda: not any(map(procfs.alive, self._seen)),
            f"the end of {[(pid, procfs.title(pid)) for pid in self._seen if procfs.alive(pid)]}",
        )
        bad = [line for line in self.err().splitlines() if FATAL.search(line)]
        assert not bad, self.err()

    # its processes

    def family(self) -> list[int]:
        """All processes below it now; they are remembered."""
        found = list(_descendants(self.pid))
        self._seen.update(found)
        return found

    def tree(self) -> list[str]:
        return [procfs.title(pid) for pid in self.family()]

    def find(self, title: str) -> int:
        """The process below it whose title begins so, once there is one."""

        def named() -> list[int]:
            return [pid for pid in self.family() if procfs.title(pid).startswith(f"fastmesh: {title}")]

        return wait_until(named, f"a process {title!r}: {self.tree()}")[0]

    def child(self, wanted: Callable[[str], bool]) -> int:
        """Its direct child with such a title, once there is one."""

        def fits() -> list[int]:
            self.family()
            return [pid for pid in procfs.children(self.pid) if wanted(procfs.title(pid))]

        return wait_until(fits, f"such a child: {self.tree()}")[0]

    def kill(self) -> None:
        """Whatever is left, at once."""
        for pid in (*self.family(), *self._seen, self.pid):
            if pid != self.pid and not procfs.alive(pid):
                continue
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def _descendants(pid: int) -> list[int]:
    found = []
    for child in procfs.children(pid):
        found += [child, *_descendants(child)]
    return found
