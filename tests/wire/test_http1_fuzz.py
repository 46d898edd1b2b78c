"""The inputs that the fuzz target keeps (tests/fuzz), replayed without a fuzzer.

Their format: a byte of mode (bit 0: responses; bits 1-2: the request's method), one that seeds the cuts,
and the data.
"""

from __future__ import annotations

import random

from kit.http1 import CORPUS, differences, judged_methods, read

# the target ignores inputs without data
INPUTS = [path for path in sorted((CORPUS / "fuzz").iterdir()) if path.stat().st_size > 2]
METHODS = (b"GET", b"HEAD", b"CONNECT", b"GET")


def test_there_are_inputs() -> None:
    assert len(INPUTS) > 100


def test_cuts_change_nothing() -> None:
    for path in INPUTS:
        raw = path.read_bytes()
        kind, method, data = ("request", "response")[raw[0] & 1], METHODS[raw[0] >> 1 & 3], raw[2:]
        whole = read(data, kind, method)
        source = random.Random(raw[1])
        for _ in range(3):
            cuts = sorted(source.sample(range(len(data)), min(len(data), 12)))
            assert read(data, kind, method, [*cuts, len(data)]) == whole, (path.name, cuts)


def test_never_laxer_than_llhttp() -> None:
    """What is accepted is accepted by llhttp, and read the same."""
    compared = 0
    for path in INPUTS:
        raw = path.read_bytes()
        kind, method, data = ("request", "response")[raw[0] & 1], METHODS[raw[0] >> 1 & 3], raw[2:]
        reading = read(data, kind, method)
        if reading.refused or not reading.messages:
            continue
        known = all(m.get("method", "GET").encode("latin-1") in judged_methods() for m in reading.messages)
        # llhttp takes Proxy-Connection for Connection
        if known and b"proxy-connection" not in data.lower():
            assert not differences(data, kind, reading, method), path.name
            compared += 1
    assert compared > 20
