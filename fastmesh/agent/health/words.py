"""What the modules of a check have in common: whom is asked, and what it can come to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from fastmesh import __version__

if TYPE_CHECKING:
    import asyncio

AGENT: Final = f"fastmesh-health/{__version__}"

HEALTHY: Final = "healthy"
UNHEALTHY: Final = "unhealthy"  # it answered, and not well
TIMEOUT: Final = "timeout"
ERROR: Final = "error"  # no connection, no TLS, or not the protocol
LOCAL: Final = "local"  # the check could not be made, which says nothing about the endpoint
RESULTS: Final = (HEALTHY, UNHEALTHY, TIMEOUT, ERROR, LOCAL)


class Peer(NamedTuple):
    """A connection to an endpoint, `secure` with TLS. `host` is what it is called in requests."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    host: str
    secure: bool


class Outcome(NamedTuple):
    """`reason` says, for a person, why it is not healthy."""

    result: str
    reason: str = ""


class AnswerError(Exception):
    """What came is not an answer. Its text says why."""
