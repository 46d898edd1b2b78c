"""Where each part of a configuration was written, by its path: `("listeners", 0, "bind")`."""

from __future__ import annotations

from typing import NamedTuple

Where = tuple[str | int, ...]


class Place(NamedTuple):
    """A line and a column, both counted from 1."""

    line: int
    column: int


class Positions:
    """Places of values and of the keys that name them. What the file leaves out has its parent's place."""

    def __init__(self) -> None:
        self._places: dict[Where, tuple[Place, Place | None]] = {}

    def put(self, where: Where, value: Place, key: Place | None) -> None:
        self._places[where] = (value, key)

    def key(self, where: Where) -> Place | None:
        """The key that names `where`; None for an entry of a list and for the whole file."""
        return self._places.get(where, (None, None))[1]

    def of(self, where: Where) -> Place:
        """The value at `where`, or else of the nearest thing around it that was written."""
        if where in self._places:
            return self._places[where][0]
        while where:
            where = where[:-1]
            if where in self._places:
                value, key = self._places[where]
                return key or value
        return Place(1, 1)
