"""Two hosts for each test, where this machine can have any."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from kit.intercept import Host, two_hosts


def _missing() -> str:
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("nft") is None or shutil.which("ip") is None:
        return "nft and ip are not installed (scripts/setup does that)"
    command = "unshare -n nft add table inet x"
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    return f"{command}: {done.stderr.strip()}" if done.returncode else ""


MISSING = _missing()


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    if MISSING:
        pytest.skip(MISSING)
    with two_hosts() as both:
        yield both


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    """For sockets of a test."""
    with contextlib.ExitStack() as stack:
        yield stack
