"""The test kit keeps its own promises: ports that are claimed, descriptors that are given back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from kit import descriptors, limits
from kit.ports import free_port, release_port

# Tries to claim just one port, in another process.
_CLAIM = """
import sys
sys.path.insert(0, "tests")
from kit import ports
ports._candidates = iter([int(sys.argv[1])])
ports._RANGE = range(1)
ports.free_port()
"""


def claims(port: int) -> bool:
    command = [sys.executable, "-c", _CLAIM, str(port)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "no free port" in done.stderr, done.stderr
    return done.returncode == 0


def test_claimed_ports_are_nobody_elses_and_cost_no_descriptor() -> None:
    before = descriptors.mine()
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    assert descriptors.mine() == before
    assert not claims(ports[0])
    for port in ports:
        release_port(port)
    assert claims(ports[0])


def test_descriptors_left_open_or_closed_for_others_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DEADLINE", 0.01)
    before = descriptors.mine()
    fd = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(AssertionError, match=f"opened: {{{fd}: '/dev/null'}}"):
        descriptors.check_given_back(before)
    before = descriptors.mine()
    os.close(fd)
    with pytest.raises(AssertionError, match="closed descriptors that were not its own"):
        descriptors.check_given_back(before)
