"""The warning `detect_timeout`: a protocol could not be told from a client's first bytes in time.

Said once for each destination, with what to do about it: the connection went on, opaque, but late.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fastmesh.agent.services import Learned, learned

if TYPE_CHECKING:
    from fastmesh._core import Area
    from fastmesh.agent.state import State

# Destinations that are remembered as said; with more, nothing more is said.
MOST: Final = 4096


class DetectionWarnings:
    """`tick` looks at what workers have learned, which costs next to nothing while it is nothing new."""

    def __init__(self, area: Area, state: State, say: Callable[[str], None]) -> None:
        self._area = area
        self._state = state
        self._say = say
        self._said: set[tuple[str | None, int]] = set()

    def tick(self) -> None:
        for row in learned(self._area, self._state.slots):
            key = row.destination, row.service
            if key in self._said or len(self._said) >= MOST:
                continue
            self._said.add(key)
            self._say(self._warning(row))

    def _warning(self, row: Learned) -> str:
        names = {number: name for name, number in self._state.services()}
        service = names.get(row.service)
        of = f" (service {service})" if service is not None else ""
        where = f"to {row.destination}{of}" if row.destination else f"to service {service or 'unknown'}"
        how = "its server speaks first, which is remembered" if row.server_first else "its client was silent"
        what = "agent: warning: detect_timeout: the protocol of a connection"
        return f"{what} {where} could not be told within 100 ms: {how}; `protocol: tcp` spares the wait"
