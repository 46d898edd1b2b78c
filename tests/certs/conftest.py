"""An authority for each test."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmesh.certs import authority


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: hundreds of fsyncs on a disk take their time."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="fastmesh-test-", dir=memory) as directory:
        yield Path(directory)


@pytest.fixture
def ca(scratch: Path) -> Path:
    """A directory with an authority for `mesh.local`."""
    pki = scratch / "pki"
    authority.create(pki, "mesh.local")
    return pki
