"""Guides, run as somebody would who reads them: their shell blocks, pasted in order into one terminal.

What differs from the page is the ports, which are free ones, so that tests can run side by side.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from kit import procfs
from kit.limits import DEADLINE, bare, wait_until
from kit.ports import free_port
from kit.proxy import FATAL

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks(text: str, kind: str = "sh") -> list[str]:
    """What stands in a page's code blocks of that kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


class Guide:
    """A page, or one section of it; `ports` are those in place of the page's."""

    def __init__(self, page: str, section: str | None = None) -> None:
        text = (ROOT / page).read_text()
        if section is not None:
            text = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
        self.ports: dict[str, int] = {}
        self.text = self.other_ports(text)

    def other_ports(self, text: str) -> str:
        """`text` with free ports: the same one for the same port, here and in the page."""
        for port in re.findall(r"(?::|http\.server )(\d{4,5})\b", text):
            if port not in self.ports:
                self.ports[port] = free_port()
        return re.sub(r"\b\d{4,5}\b", lambda match: str(self.ports.get(match[0], match[0])), text)

    def blocks(self, kind: str = "sh") -> list[str]:
        return blocks(self.text, kind)


class Shell:
    """bash with job control, fed as somebody would who pastes blocks into a terminal."""

    def __init__(self, directory: Path, files: Path, environment: dict[str, str]) -> None:
        self._log = files / "log"
        self._files = files
        self._run = 0
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", "-eum"],
                cwd=directory,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def text(self) -> str:
        """What has been said on stderr."""
        return self._log.read_text(errors="replace")

    def run(self, commands: str) -> str:
        """Run `commands` and return what they wrote. AssertionError if one fails, as at `set -e`."""
        self._run += 1
        out, done = self._files / f"{self._run}.out", self._files / f"{self._run}.done"
        assert self.process.stdin is not None
        self.process.stdin.write(f"{{\n{commands}\n}} > {out} < /dev/null\n: > {done}\n".encode())
        self.process.stdin.flush()
        wait_until(
            lambda: done.exists() or self.process.poll() is not None,
            f"the end of: {commands}",
            4 * DEADLINE,
        )
        assert done.exists(), f"{commands} failed:\n{out.read_text()}{self.text()}"
        return out.read_text(errors="replace")


@contextlib.contextmanager
def shell(directory: Path) -> Iterator[Shell]:
    """A shell in `directory` that finds `fastmesh`; whatever it started is gone afterwards."""
    files = directory / ".shell"
    programs = files / "bin"
    programs.mkdir(parents=True)
    fastmesh = programs / "fastmesh"
    # -P: as an installed program, it imports nothing from the directory that it is started in.
    # A sanitizer's libraries are for that alone in which there is something to find.
    fastmesh.write_text(
        f"#!/bin/sh\n[ \"$1\" = certs ] || export LD_PRELOAD='{os.environ.get('LD_PRELOAD', '')}'\n"
        f'exec "{sys.executable}" -P -c "from fastmesh.cli import main; main()" "$@"\n'
    )
    fastmesh.chmod(0o755)
    environment = {name: text for name, text in bare().items() if not name.lower().endswith("_proxy")}
    environment["PATH"] = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    running = Shell(directory, files, environment)
    try:
        yield running
        said = [running.text(), *(path.read_text(errors="replace") for path in directory.glob("*.log"))]
        assert not FATAL.search("\n".join(said)), said
    finally:
        # What it started in the background first: an orphan could not be found any more.
        for pid in procfs.children(running.process.pid):
            _stop(pid)
        running.process.kill()
        running.process.wait(DEADLINE)
        assert running.process.stdin is not None
        running.process.stdin.close()


def _stop(pid: int) -> None:
    """SIGTERM, and SIGKILL to it and its children if it does not heed that."""
    family = [pid, *procfs.children(pid)]
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    try:
        wait_until(lambda: not any(map(procfs.alive, family)), f"the end of {family}")
    except AssertionError:
        for one in filter(procfs.alive, family):
            os.kill(one, signal.SIGKILL)
