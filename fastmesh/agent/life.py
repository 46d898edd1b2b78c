"""How far a certificate's life has come, and what is due: plain arithmetic with the clock as an argument.

A certificate is renewed at two thirds of its life, give or take a tenth of it: by how much is drawn from the
certificate and from this process, so that of two sidecars with one directory the first renews and the other
takes over. The life begins at the issue, not at `not_before`, which is put back by the clock skew that
is allowed for.
"""

from __future__ import annotations

import enum
import os
import zlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

# By how much `not_before` lies before the issue (certs.signer has the same, and `cryptography` with it).
SKEW_S: Final = 20
RENEW_AT: Final = 2 / 3
JITTER: Final = 0.1
WARN_LEFT: Final = 0.20
URGENT_LEFT: Final = 0.05
_SALT: Final = int.from_bytes(os.urandom(4))


class Stage(enum.IntEnum):
    """What a certificate's age asks for."""

    FINE = 0
    WARNING = 1  # 20 % of its life are left
    URGENT = 2  # 5 % are
    OVER = 3
    EARLY = 4  # it is not valid yet: somebody's clock is wrong


class Life(NamedTuple):
    """The life of the certificate in use, in Unix seconds."""

    not_before: float
    issued: float
    end: float
    renew: float

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> Life:
        """Of the identity in a snapshot."""
        begin, end = float(identity["not_before"]), float(identity["not_after"])
        issued = min(begin + SKEW_S, end)
        draw = zlib.crc32(identity["certificate"].encode(), _SALT) / 0xFFFFFFFF
        share = RENEW_AT + JITTER * (2 * draw - 1)
        return cls(begin, issued, end, issued + share * (end - issued))

    @property
    def length(self) -> float:
        return max(self.end - self.issued, 1.0)

    def due(self, now: float) -> bool:
        """Is it time for the next one? Also when this one is not valid yet: the clock was put back."""
        return now >= self.renew or now < self.not_before

    def stage(self, now: float) -> Stage:
        return Stage.EARLY if now < self.not_before else stage_of(self.issued, self.end, now)

    def backoff(self, failures: int) -> float:
        """The longest wait, in seconds, before the next try after so many failures in a row."""
        first = min(max(self.length / 100, 0.5), 30.0)
        most = min(max(self.length / 20, 1.0), 600.0)
        return min(first * 2.0 ** min(failures - 1, 32), most)


def stage_of(begin: float, end: float, now: float) -> Stage:
    """Of a life from `begin` to `end`."""
    left, length = end - now, max(end - begin, 1.0)
    if left <= 0:  # as OpenSSL has it: the second of notAfter is out of time already
        return Stage.OVER
    if left <= URGENT_LEFT * length:
        return Stage.URGENT
    return Stage.WARNING if left <= WARN_LEFT * length else Stage.FINE


def span(seconds: float) -> str:
    """A time span for a person: `3 d 4 h`, `12 min`, `40 s`."""
    rest = max(int(seconds), 0)
    parts: list[str] = []
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0 s"
