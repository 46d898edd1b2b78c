"""What can be wrong with an object: where in it, what, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

Path = tuple[str | int, ...]


class ManifestError(Exception):
    """An object, or an annotation of ours in it, is wrong: nothing is made of it."""

    def __init__(self, path: Sequence[str | int], message: str) -> None:
        super().__init__(f"{spelt(path)}: {message}" if path else message)
        self.path: Path = tuple(path)
        self.message = message


class Refused(Exception):
    """The object is right, but a sidecar would break it, or not work. The text says why, and what helps."""


def spelt(path: Sequence[str | int]) -> str:
    """A path as people write it: `spec.containers[0].ports`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif all(c.isalnum() or c in "_-" for c in part):
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return text
