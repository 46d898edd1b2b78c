"""The inputs that the fuzz target keeps (tests/fuzz/detect.pyx), replayed without a fuzzer.

Their format: a byte of mode (bits 0-1: 0 first bytes, 1 a ClientHello, else choices that the target alone
knows how to take; bit 2: the listener has HTTP/2), one that seeds the cuts, and the bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fastmesh._destination import ENOUGH, host_of, told

from fastmesh import _tls as tls

T = TypeVar("T")
CORPUS = Path(__file__).parent.parent / "corpus" / "detect" / "fuzz"
INPUTS = [path for path in sorted(CORPUS.iterdir()) if path.stat().st_size > 2]


def of_mode(mode: int) -> list[tuple[str, bool, random.Random, bytes]]:
    raws = [(path.name, path.read_bytes()) for path in INPUTS]
    return [
        (name, bool(raw[0] & 4), random.Random(raw[1]), raw[2:]) for name, raw in raws if raw[0] & 3 == mode
    ]


def answers(read: Callable[[bytes], T], data: bytes, source: random.Random) -> list[T]:
    """For the beginnings of the data, all short ones and some of the others, and for all of it."""
    ends = {*range(min(len(data), 2 * ENOUGH)), *(source.randrange(len(data)) for _ in range(20)), len(data)}
    return [read(data[:end]) for end in sorted(ends)]


def settled(verdicts: list[T], more: T) -> bool:
    """More is needed, and then the same for good."""
    known = [one for one in verdicts if one != more]
    return verdicts == [more] * (len(verdicts) - len(known)) + known[:1] * len(known)


def test_there_are_inputs() -> None:
    assert len(of_mode(0)) > 10
    assert len(of_mode(1)) > 10


def test_what_is_told_stays_so() -> None:
    for name, http2, source, data in of_mode(0):
        verdicts = answers(lambda part, http2=http2: told(part, http2), data, source)
        assert settled(verdicts, 0), name
        assert verdicts[-1] in (0, told(data, http2, more=False)), name
        assert verdicts[-1] or len(data) < ENOUGH, name
        assert settled(answers(host_of, data, source), None), name


def test_hellos_in_pieces() -> None:
    for name, _, source, data in of_mode(1):
        verdicts = answers(tls.sniff, data, source)
        assert settled([result for result, _ in verdicts], 0), name
        assert len({text for result, text in verdicts if result == 1}) <= 1, name
