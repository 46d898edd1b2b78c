"""The documentation's links lead somewhere, its index is complete, its markers stand."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path

import pytest
from kit.guide import PAGES, ROOT


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


# A file of ours as prose names it: with the folders that say which (`io/pool`, `core/io/pool.pxd`), or alone.
CODE = ("agent", "bench", "certs", "config", "core", "fastmesh", "host", "observe", "scripts", "tests")
FLOORS = ("sys", "base", "wire", "traffic", "io", "face")
IN_FOLDERS = re.compile(rf"`((?:{'|'.join(CODE + FLOORS)})/[\w/*-]+(?:\.\w+)?)`")
ALONE = re.compile(r"`([\w*]+\.(?:pxd|pyx|py))`")


def is_there(named: str) -> bool:
    tops = (ROOT, ROOT / "fastmesh", ROOT / "fastmesh" / "core")
    return any(list(top.glob(named + end)) for top in tops for end in ("", ".pxd", ".py"))


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs" / "internals").glob("*.md")), ids=lambda page: page.name
)
def test_files_that_are_named_are_there(page: Path) -> None:
    text = page.read_text()
    assert not [named for named in IN_FOLDERS.findall(text) if not is_there(named)]
    code = [path for folder in ("bench", "fastmesh", "tests") for path in (ROOT / folder).rglob("*.p*")]
    assert not [named for named in ALONE.findall(text) if not any(path.match(named) for path in code)]


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"]({name})" in index, name


def test_the_benchs_markers_are_there_once() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("<!-- bench:begin -->") == text.count("<!-- bench:end -->") == 1
    assert text.index("<!-- bench:begin -->") < text.index("<!-- bench:end -->")
