"""One-shot timers of a poll loop."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Timers:
    """Named one-shot timers; setting one anew moves it."""

    def __init__(self) -> None:
        self._timers: dict[str, tuple[float, Callable[[], None]]] = {}

    def after(self, name: str, delay: float, action: Callable[[], None]) -> None:
        self._timers[name] = (time.monotonic() + delay, action)

    def cancel(self, name: str) -> None:
        self._timers.pop(name, None)

    def wait_ms(self) -> int | None:
        """How long poll may wait."""
        if not self._timers:
            return None
        first = min(when for when, _ in self._timers.values())
        # Rounded up: waking early would only mean to poll again.
        return max(0, int((first - time.monotonic()) * 1000) + 1)

    def run(self) -> None:
        now = time.monotonic()
        for name, (when, action) in list(self._timers.items()):
            # An action before it may have cancelled this one.
            if when <= now and name in self._timers:
                del self._timers[name]
                action()
