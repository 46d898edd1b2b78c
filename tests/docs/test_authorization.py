"""The commands of docs/authorization.md work as printed, in their order, and print what the page shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from kit.certs import ROOT, environment

GUIDE = (ROOT / "docs" / "authorization.md").read_text()


def test_every_command_of_the_guide(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    fastmesh = f'fastmesh() {{ "{sys.executable}" -c "from fastmesh.cli import main; main()" "$@"; }}'
    script = "\n".join(["set -eu", fastmesh, *blocks])
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (shown,) = re.findall(r"^```text\n(listener.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    assert shown in done.stdout
    for line in (
        "rule       deny by the listener's rules: rule no-exports",
        "as it should be",
        "rule       allow by the listener's rules: rule shop-writes",
        "rule       deny by the listener's rules: no rule holds (only audited: it passes)",
    ):
        assert line in done.stdout, done.stdout


def test_the_table_of_paths_is_true() -> None:
    from fastmesh._core import normalize_path

    section = GUIDE.split("\n## Paths\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`/.*?) \| (.*?) \|$", section, re.MULTILINE)
    assert len(rows) == 5
    for left, right in rows:
        wanted = None if right.startswith("400") else re.findall(r"`([^`]+)`", right)[0]
        for path in re.findall(r"`([^`]+)`", left):
            assert normalize_path(path) == wanted, path
