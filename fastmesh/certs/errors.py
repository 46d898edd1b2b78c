"""The one error of this package."""

from __future__ import annotations


class PkiError(Exception):
    """The certificate authority or an identity is missing, unreadable or invalid.

    The text is one sentence for a person: what is wrong, with the file, then what to do about it. It never
    holds key material.
    """

    def __init__(self, problem: str, remedy: str | None = None) -> None:
        super().__init__(problem if remedy is None else f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy


def reason(error: OSError) -> str:
    """What the system said, without the number and the path (the caller names the path)."""
    return error.strerror or str(error) or type(error).__name__
