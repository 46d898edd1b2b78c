"""What h2load prints is read right, and refused where it is not what is expected."""

from __future__ import annotations

import pytest

from bench.generators import Failed, h2load_totals

PRINTED = """\
starting benchmark...
Application protocol: h2c
Stopped all clients for thread #0

finished in {time}, 90432.00 req/s, 4.49MB/s
requests: {all} total, 99 started, {all} done, {good} succeeded, {failed} failed, {errored} errored, 0 timeout
status codes: {good} 2xx, 0 3xx, 0 4xx, {bad} 5xx
traffic: 8.97MB (9407868) total, 2.07MB (2171788) headers (space savings 93.78%), 2.07MB (2170368) data
                     min         max         mean         sd        +/- sd
time for request:      195us     15.08ms      3.33ms      2.02ms    69.06%
"""


def printed(time: str = "2.01s", good: int = 1000, bad: int = 0, errored: int = 0) -> str:
    done = good + bad + errored
    return PRINTED.format(time=time, all=done, good=good, failed=bad + errored, errored=errored, bad=bad)


@pytest.mark.parametrize(
    ("time", "microseconds"), [("2.01s", 2_010_000), ("512.50ms", 512_500), ("30us", 30)]
)
def test_a_good_run(time: str, microseconds: float) -> None:
    totals = h2load_totals(printed(time))
    assert totals.errors == {}
    assert (totals.requests, totals.bytes) == (1000, 2_170_368)
    assert totals.microseconds == pytest.approx(microseconds)


def test_error_statuses_and_broken_streams_are_errors() -> None:
    assert h2load_totals(printed(bad=7, errored=3)).errors == {"status": 7, "stream": 3}


@pytest.mark.parametrize("line", ["finished", "requests", "status codes", "traffic"])
def test_output_without_one_of_the_lines_is_no_figure(line: str) -> None:
    text = "\n".join(kept for kept in printed().splitlines() if not kept.startswith(line))
    with pytest.raises(Failed, match="h2load"):
        h2load_totals(text)
