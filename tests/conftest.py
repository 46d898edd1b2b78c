"""Makes the test kit importable as `kit` and its fixtures known to every test."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
# A tenth of all that the suite costs: each of its thousands of sidecars would compile all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
pytest.register_assert_rewrite("kit")

from kit import descriptors  # noqa: E402
from kit.fixtures import (  # noqa: E402, F401
    _authority,
    _lane_proxy,
    cutter,
    grpc_peers,
    lane,
    nginx,
    other_pki,
    own_pki,
    pki,
    serve,
    start_agent,
    upstream,
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "heavy: moves much data or many connections; sizes follow FASTMESH_TEST_SCALE (see kit.limits)",
    )
    # Run in the background or by nohup some of these are ignored here, and would be in every program of ours.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    # Tests with thousands of connections need the descriptors that the hard limit allows.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def pytest_collection_finish() -> None:
    """Thousands of tests and their parameters stay: the collector need not look at them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _descriptors_given_back() -> Iterator[None]:
    """Set up before all that a test asks for itself, hence torn down last: nothing of it may be left."""
    before = descriptors.mine()
    yield
    descriptors.check_given_back(before)
