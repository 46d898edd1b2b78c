"""What the documentation and the demo tell a person to run is there after `make build` on a fresh machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from kit.guide import PAGES, ROOT, blocks

# What a Debian system without any choice of packages has (bash, coreutils, grep), what one needs to begin
# with (make, pip), and what `make build` leaves.
BASE = {
    *[
        "base64",
        "cat",
        "cd",
        "cp",
        "echo",
        "grep",
        "kill",
        "make",
        "mkdir",
        "mv",
        "pip",
        "python3",
        "rm",
        "sed",
        "touch",
        "until",
        "do",
        "done",
        "wait",
        ".",
        "fastmesh",
    ]
}


def installed() -> set[str]:
    """The programs that `scripts/setup` makes sure of."""
    needs = re.findall(r"(?m)^needs\+?=\((.*)\)$", (ROOT / "scripts" / "setup").read_text())
    return {need.rpartition("=")[2] for line in needs for need in line.split()}


def programs(text: str) -> set[str]:
    """The first word of every command in the shell blocks of a page."""
    script = "".join(blocks(text)).replace("\\\n", " ")
    script = re.sub(r"<<'(\w+)'(.*?)^\1$", "", script, flags=re.MULTILINE | re.DOTALL)
    script = re.sub(r"'[^']*'|\"[^\"]*\"|\$\([^)]*\)", "TEXT", script)
    commands = re.split(r"\n|;|&&|\|\|?|&(?= |$)", script)
    words = [re.sub(r"^(\w+=\S* )+", "", command.strip()).split() for command in commands]
    return {command[0] for command in words if command and not command[0].startswith("#")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_programs_of_the_documentation(page: Path) -> None:
    assert programs(page.read_text()) <= BASE | installed()


def test_programs_of_the_demo() -> None:
    shown = (ROOT / "fastmesh" / "demo" / "show.py").read_text()
    assert "curl" in shown
    assert "curl" in installed()
