"""What can be wrong with a configuration, as data: one error, and all the errors of a file together."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class ConfigError(msgspec.Struct, frozen=True, order=True):
    """One error of a configuration file. Line and column count from 1; 0 means the file as a whole."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        if not self.line:
            return f"{self.file}: {self.message}"
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class ConfigErrors(Exception):
    """Every error of one configuration file, in the order of the file, each said once."""

    def __init__(self, errors: Iterable[ConfigError]) -> None:
        # An error inside an anchored value is met once per alias; it is still one error.
        self.errors = sorted(set(errors))
        super().__init__("\n".join(str(error) for error in self.errors))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be."""
    import difflib  # only a wrong file pays for it

    # Lengths are bounded because difflib is quadratic and the word comes from a file nobody has checked.
    matches = difflib.get_close_matches(word[:64].lower(), list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def shown(text: str, limit: int = 60) -> str:
    """`text` as an error message quotes it."""
    return f"'{plain(text, limit)}'"


def plain(text: str, limit: int = 60) -> str:
    """`text` as it may stand in an error message: on one line, control characters escaped, cut when long."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)
