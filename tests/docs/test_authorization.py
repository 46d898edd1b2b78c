"""What docs/authorization.md says of paths is what the data plane does."""

from __future__ import annotations

import re

from kit.guide import ROOT

from fastmesh._core import normalize_path

GUIDE = (ROOT / "docs" / "authorization.md").read_text()


def test_the_table_of_paths_is_true() -> None:
    section = GUIDE.split("\n## Paths\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`/.*?) \| (.*?) \|$", section, re.MULTILINE)
    assert len(rows) == 5
    for left, right in rows:
        wanted = None if right.startswith("400") else re.findall(r"`([^`]+)`", right)[0]
        for path in re.findall(r"`([^`]+)`", left):
            assert normalize_path(path) == wanted, path
