"""What stands for a value that was refused, and how checks report what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fastmesh.config.positions import Where


class _Invalid:
    """Stands for a value that was refused: equal to nothing, so that no comparison takes it for a value."""

    def __repr__(self) -> str:
        return "INVALID"


INVALID: Final[Any] = _Invalid()

Report = Callable[[Where, str], None]
