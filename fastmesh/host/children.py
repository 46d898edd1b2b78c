"""The supervisor's children: a process that is replaced when it dies, and what outlives each of its lives."""

from __future__ import annotations

import os
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastmesh.host.channel import Channel

_STABLE_S = 10.0
_FIRST_S = 0.1
_LONGEST_S = 10.0


class Backoff:
    """How long to wait before a child that died is started again: not at all, then 0.1 s doubling up to 10 s.

    Half of each wait is random, so that what fails together does not come back together. A child that has
    lived for 10 s starts the count anew.
    """

    def __init__(self) -> None:
        self._deaths = 0
        self._started = 0.0

    def started(self) -> None:
        self._started = time.monotonic()

    def delay(self) -> float:
        """Seconds to wait after a death that happened now."""
        if time.monotonic() - self._started >= _STABLE_S:
            self._deaths = 0
        self._deaths += 1
        if self._deaths == 1:
            return 0.0
        wait = min(_FIRST_S * float(2 ** min(self._deaths - 2, 20)), _LONGEST_S)
        # os.urandom instead of the random module, which is large.
        return wait * (0.5 + os.urandom(1)[0] / 512)


class Child:
    """A process that is replaced when it dies. `pid` is 0 while it does not run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pid = 0
        self.channel: Channel | None = None
        self.backoff = Backoff()
        self.restarts = 0

    def send(
        self,
        message: Mapping[str, object] | bytes,
        *,
        descriptors: Sequence[int] = (),
        key: str | None = None,
    ) -> None:
        """See `Channel.send`; to a child that does not run it does nothing."""
        if self.channel is not None:
            self.channel.send(message, descriptors=descriptors, key=key)

    def flush(self) -> None:
        if self.channel is not None:
            self.channel.flush()

    def started(self, pid: int, channel: Channel) -> None:
        self.pid = pid
        self.channel = channel
        self.backoff.started()

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)

    def gone(self) -> None:
        """It has been reaped."""
        self.pid = 0
        if self.channel is not None:
            self.channel.close()
        self.channel = None

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})" if self.pid else self.name


class Slot(Child):
    """A worker's place. `state`: starting, ready, draining, killed (too slow to drain), dead."""

    def __init__(self, number: int) -> None:
        super().__init__(f"worker {number}")
        self.number = number
        self.state = "dead"
        # Why it could not load what it was given last, in its own words.
        self.reason = ""
        # The last snapshot that it took or refused.
        self.answered = 0
        # Its inbound listeners accept no more.
        self.withdrawn = False

    def started(self, pid: int, channel: Channel) -> None:
        super().started(pid, channel)
        self.state = "starting"
        self.reason = ""
        self.answered = 0
        self.withdrawn = False

    def gone(self) -> None:
        super().gone()
        self.state = "dead"
