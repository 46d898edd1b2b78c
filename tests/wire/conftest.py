"""The engine that every test of TLS is run with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastmesh import _tls as tls


@pytest.fixture(params=[True, False], ids=["own", "openssl"])
def engine(request: pytest.FixtureRequest) -> Iterator[tls.Engine]:
    """With our own records, and with OpenSSL's all the way."""
    yield tls.Engine(own_records=request.param)
    assert not tls.errors_queued()
