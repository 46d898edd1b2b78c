"""When a certificate is renewed and warned about: bounds, and clocks that are wrong."""

from __future__ import annotations

import pytest

from fastmesh.agent.life import JITTER, RENEW_AT, SKEW_S, Life, Stage, span
from fastmesh.certs.signer import CLOCK_SKEW

DAY = 86_400


def life(length: int, text: str = "pem", start: int = 1_000_000) -> Life:
    return Life.of({"certificate": text, "not_before": start - SKEW_S, "not_after": start + length})


def test_the_skew_is_the_authoritys() -> None:
    assert SKEW_S == CLOCK_SKEW


@pytest.mark.parametrize("length", [10, 60, DAY, 365 * DAY])
def test_renewal_is_at_two_thirds_give_or_take_a_tenth(length: int) -> None:
    at = [(life(length, str(number)).renew - 1_000_000) / length for number in range(300)]
    assert RENEW_AT - JITTER <= min(at) < RENEW_AT - 0.8 * JITTER
    assert RENEW_AT + 0.8 * JITTER < max(at) <= RENEW_AT + JITTER
    assert life(length) == life(length), "drawn once, not with every look"


def test_stages() -> None:
    one = life(100)
    stages = {0: Stage.FINE, 79: Stage.FINE, 80: Stage.WARNING, 94: Stage.WARNING, 95: Stage.URGENT}
    for after, stage in {**stages, 99: Stage.URGENT, 100: Stage.OVER, 10_000: Stage.OVER}.items():
        assert one.stage(1_000_000 + after) == stage
    assert one.stage(1_000_000 - SKEW_S) == Stage.FINE
    assert one.stage(1_000_000 - SKEW_S - 1) == Stage.EARLY


def test_a_clock_that_is_a_day_off() -> None:
    one = life(DAY)
    now = 1_000_000 + 60
    assert not one.due(now)
    assert (one.stage(now + DAY), one.due(now + DAY)) == (Stage.OVER, True)
    assert (one.stage(now - DAY), one.due(now - DAY)) == (Stage.EARLY, True)


@pytest.mark.parametrize("length", [1, 10, 60, DAY, 365 * DAY])
def test_backoff_grows_and_is_bounded(length: int) -> None:
    waits = [life(length).backoff(failures) for failures in range(1, 60)]
    assert waits == sorted(waits)
    assert 0.5 <= waits[0] <= 30
    assert waits[-1] <= max(length / 20, 1)
    assert waits[-1] <= 600


def test_a_certificate_without_a_life() -> None:
    one = Life.of({"certificate": "x", "not_before": 100, "not_after": 100})
    assert one.stage(100) == Stage.OVER
    assert one.due(100)


def test_spans() -> None:
    assert [span(s) for s in (-5, 0, 59, 60, 3601, 90_061)] == [
        "0 s",
        "0 s",
        "59 s",
        "1 min",
        "1 h",
        "1 d 1 h",
    ]
