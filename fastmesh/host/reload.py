"""A reload that somebody waits for: from SIGHUP until there is a word on how it went."""

from __future__ import annotations

from fastmesh.host.process import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastmesh.host.notify import Notifier
    from fastmesh.host.timers import Timers

_RELOAD_S = 30.0


class Reload:
    """`running`: somebody waits. It ends within 30 s, whatever the agent does."""

    def __init__(self, timers: Timers, notifier: Notifier) -> None:
        self.running = False
        self._timers = timers
        self._notifier = notifier

    def begin(self) -> None:
        self.running = True
        self._notifier.reloading()
        self._timers.after("reload", _RELOAD_S, self._too_slow)

    def end(self, text: str) -> None:
        """How it went, or what else there is to say of a change that nobody has asked for."""
        say(text)
        if self.running:
            self.running = False
            self._timers.cancel("reload")
            self._notifier.ready(text)

    def _too_slow(self) -> None:
        self.end(f"the reload has not ended within {_RELOAD_S:.0f} s")
