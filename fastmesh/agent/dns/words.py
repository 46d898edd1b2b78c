"""What becomes of queries, in the words of the metrics."""

from __future__ import annotations

from typing import Final

ANSWERED: Final = "answered"  # with what was asked for
NO_DATA: Final = "no_data"  # a name of the mesh, which has nothing of the type
UNKNOWN: Final = "unknown"  # no such name in the mesh's domain
FORWARDED: Final = "forwarded"  # with what a name server said
FAILED: Final = "failed"  # no name server said anything
REFUSED: Final = "refused"  # not for a resolver, or not for this one
MALFORMED: Final = "malformed"
BUSY: Final = "busy"  # too many wait for name servers already
LOOP: Final = "loop"  # a query of our own, led back here
OUTCOMES: Final = (ANSWERED, NO_DATA, UNKNOWN, FORWARDED, FAILED, REFUSED, MALFORMED, BUSY, LOOP)

UDP: Final = "udp"
TCP: Final = "tcp"
TRANSPORTS: Final = (UDP, TCP)

# What asking a name server came to; one query may ask several times.
TIMEOUT: Final = "timeout"
ERROR: Final = "error"  # not reachable, or it says that it cannot
MISMATCH: Final = "mismatch"  # a datagram that answers something else; it is passed over
TRUNCATED: Final = "truncated"  # asked again by TCP
RESULTS: Final = (ANSWERED, TRUNCATED, TIMEOUT, ERROR, MISMATCH)


class Counts:
    """How many of each; for as long as the agent lives."""

    def __init__(self) -> None:
        self.queries = {(transport, outcome): 0 for transport in TRANSPORTS for outcome in OUTCOMES}
        self.asked = dict.fromkeys(RESULTS, 0)
        self.in_flight = 0
        self.listening = False

    def count(self, transport: str, outcome: str) -> None:
        self.queries[transport, outcome] += 1
