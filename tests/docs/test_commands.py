"""The documentation's commands work as printed, and its links lead somewhere.

The commands of the README run in their order; only ports are others, so that tests can run side by side.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import procfs
from kit.limits import DEADLINE, wait_until
from kit.ports import free_port

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks(text: str) -> list[str]:
    """The shell commands of a page."""
    return re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def section(page: Path, title: str) -> str:
    return page.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


class Shell:
    """bash, fed as somebody would who pastes blocks into a terminal."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.log = directory / "shell.log"
        self._run = 0
        self._directory = directory
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", "-eu"],
                cwd=directory,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, commands: str) -> None:
        """Begin to run `commands`."""
        assert self.process.stdin is not None
        self.process.stdin.write(commands.encode() + b"\n")
        self.process.stdin.flush()

    def run(self, commands: str) -> str:
        """Run `commands` and return what they wrote."""
        self._run += 1
        out, done = self._directory / f"{self._run}.out", self._directory / f"{self._run}.done"
        self.send(f"{{\n{commands}}} > {out}\n: > {done}")
        wait_until(lambda: done.exists() or self.process.poll() is not None, f"the end of: {commands}")
        assert done.exists(), f"{commands} failed:\n{self.text()}"
        return out.read_text()


@contextlib.contextmanager
def shell(directory: Path) -> Iterator[Shell]:
    """A shell that finds `fastmesh`; whatever it started is gone afterwards."""
    programs = directory / "bin"
    programs.mkdir()
    fastmesh = programs / "fastmesh"
    # -P: as an installed program, it imports nothing from the directory that it is started in.
    # A sanitiser's runtime is for it alone: curl and bash need not bear it, and curl hangs with it.
    preload = os.environ.get("LD_PRELOAD", "")
    fastmesh.write_text(
        f"#!/bin/sh\nLD_PRELOAD='{preload}' exec \"{sys.executable}\" -P "
        '-c "from fastmesh.cli import main; main()" "$@"\n'
    )
    fastmesh.chmod(0o755)
    environment = {name: text for name, text in os.environ.items() if not name.lower().endswith("_proxy")}
    environment.pop("LD_PRELOAD", None)
    environment["PATH"] = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    running = Shell(directory, environment)
    try:
        yield running
    finally:
        # The session is ours alone: the shell and what it has in the background.
        # What it started in the background first: an orphan could not be found any more.
        for pid in procfs.children(running.process.pid):
            stop(pid)
        running.process.kill()
        running.process.wait(DEADLINE)
        assert running.process.stdin is not None
        running.process.stdin.close()


def stop(pid: int) -> None:
    """SIGTERM, and SIGKILL to it and its children if it does not heed that."""
    family = [pid, *procfs.children(pid)]
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    try:
        wait_until(lambda: not any(map(procfs.alive, family)), f"the end of {family}")
    except AssertionError:
        for one in filter(procfs.alive, family):
            os.kill(one, signal.SIGKILL)


def test_smallest_mesh(tmp_path: Path) -> None:
    text = section(README, "The smallest mesh")
    ports = {number: str(free_port()) for number in ("8080", "15000", "15001", "15443")}

    def other_ports(commands: str) -> str:
        return re.sub(r"\b(8080|15000|15001|15443)\b", lambda match: ports[match[0]], commands)

    (tmp_path / "examples").mkdir()
    for name in ("mesh-a.yaml", "mesh-b.yaml"):
        config = other_ports((ROOT / "examples" / name).read_text())
        # Which of the two is ready first decides who gets the default address: here it is always the first.
        admin = f"127.0.0.1:{ports['15000']}" if name == "mesh-a.yaml" else "off"
        (tmp_path / "examples" / name).write_text(f"admin: {admin}\n{config}")

    start, call, by_proxy, refused, watch, end = map(other_ports, blocks(text))
    with shell(tmp_path) as bash:
        bash.send(start)
        wait_until(lambda: bash.text().count("fastmesh ready: ") == 2, "two sidecars")
        wait_until(lambda: "Serving HTTP" in bash.text() or port_open(ports["8080"]), "the server")
        assert bash.run(call) == "hello from svc-b\n"
        assert bash.run(by_proxy) == "hello from svc-b\n"
        answer = bash.run(refused).replace("\r", "")
        for line in re.findall(r"```text\n(HTTP.*?)```", text, re.DOTALL)[0].split("\n"):
            assert line in answer.split("\n"), answer
        seen = bash.run(watch)
        assert '"status": "ready"' in seen
        assert 'fastmesh_requests_total{code="2xx",service="svc-b"} 2.0' in seen
        bash.run(end)
    ended = bash.text()
    assert ended.count("draining, for at most 30 s") == 2, ended


def port_open(port: str) -> bool:
    """Whether something listens on a port of this host (proc(5): /proc/net/tcp)."""
    wanted = f":{int(port):04X} 00000000:0000 0A"
    return wanted in Path("/proc/net/tcp").read_text()


def test_reload_by_pid_file(tmp_path: Path) -> None:
    port = free_port()
    config = (
        f"listeners: [{{name: a, bind: '127.0.0.1:{port}', to: web}}]\nservices: {{web: {{endpoints: []}}}}\n"
    )
    (tmp_path / "fastmesh.yaml").write_text(f"admin: off\n{config}")
    text = (ROOT / "docs" / "internals" / "processes-and-reload.md").read_text()
    (start,) = re.findall(r"`(fastmesh serve --pid-file \S+)`", text)
    (reload,) = blocks(text)
    with shell(tmp_path) as bash:
        bash.send(f"{start} &")
        wait_until((tmp_path / "fastmesh.pid").exists, "the pid file")
        bash.run(reload)
        wait_until(lambda: "nothing has changed in the configuration" in bash.text(), "the reload")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if urllib.parse.urlsplit(target).scheme:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT), target
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """The fragments that Markdown renderers make of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"]({name})" in index, name


def test_the_benchs_markers_are_there_once() -> None:
    text = README.read_text()
    assert text.count("<!-- bench:begin -->") == text.count("<!-- bench:end -->") == 1
    assert text.index("<!-- bench:begin -->") < text.index("<!-- bench:end -->")
