"""The source distribution builds what the source tree builds: whole, or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What a build reads, with an extension that translates at once."""
    top = tmp_path / "tree"
    shutil.copytree(ROOT / "fastmesh", top / "fastmesh", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, top)
    (top / "fastmesh" / "_core.pyx").write_text("# nothing\n")
    return top


def setup(tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("FASTMESH_", "LD_"))}
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *arguments],
        cwd=tree,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_sdist_has_every_source(tree: Path) -> None:
    result = setup(tree, "sdist")
    assert result.returncode == 0, result.stderr
    (archive,) = (tree / "dist").iterdir()
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    sources = {
        path.relative_to(tree).as_posix()
        for path in (tree / "fastmesh").rglob("*")
        if path.suffix in (".py", ".pyx", ".pxd", ".pyi")
    }
    assert "fastmesh/_core.pyx" in sources
    assert sources | {"setup.py", "pyproject.toml", "README.md"} <= packed


def test_no_build_without_the_extension(tree: Path) -> None:
    (tree / "fastmesh" / "_core.pyx").unlink()
    assert setup(tree, "--version").returncode != 0
    assert setup(tree, "--version", FASTMESH_BUILD="none").returncode == 0


def test_missing_libraries_are_named(tree: Path) -> None:
    result = setup(tree, "--version", PKG_CONFIG_LIBDIR="/nonexistent", PKG_CONFIG_PATH="")
    assert result.returncode != 0
    wanted = "On Debian: apt-get install gcc python3-dev libssl-dev libnghttp2-dev libpcre2-dev"
    assert result.stderr.rstrip().endswith(wanted)


def test_missing_pkg_config_is_named_with_the_rest(tree: Path, tmp_path: Path) -> None:
    result = setup(tree, "--version", PATH=str(tmp_path))
    assert result.returncode != 0
    wanted = "On Debian: apt-get install gcc python3-dev pkg-config libssl-dev libnghttp2-dev libpcre2-dev"
    assert result.stderr.rstrip().endswith(wanted)
