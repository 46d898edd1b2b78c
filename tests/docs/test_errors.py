"""The page of reasons: up to date, and complete."""

from __future__ import annotations

import re
from pathlib import Path

from fastmesh._core import REASONS
from fastmesh.observe.reasons_page import page

ROOT = Path(__file__).parents[2]


def test_page_is_up_to_date() -> None:
    written = (ROOT / "docs" / "errors.md").read_text()
    assert written == page(), "run: python -m fastmesh.observe.reasons_page > docs/errors.md"


def test_every_reason_is_there_once() -> None:
    listed = re.findall(r"(?m)^\| `(\w+)` \|", page())
    assert sorted(listed) == sorted(name for name, *_ in REASONS[1:])
