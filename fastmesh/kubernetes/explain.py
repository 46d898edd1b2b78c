"""What became of objects, for people."""

from __future__ import annotations

from fastmesh.kubernetes.inject import Outcome


def line(name: str, number: int, outcome: Outcome) -> str:
    """One line for an object of a file."""
    return f"{name}: document {number}: {outcome.object}: {outcome.action} ({outcome.why})"


def told(name: str, number: int, outcome: Outcome) -> str:
    """All that was done to an object, and why."""
    lines = [line(name, number, outcome)]
    lines += [f"  {note.sign} {note.what}: {note.why}" for note in outcome.notes]
    return "\n".join(lines)
