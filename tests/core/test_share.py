"""Which worker gets a connection: by the numbers, with threads that change them at the same time."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import partial

import pytest
from fastmesh._share import Words
from kit.limits import DEADLINE, scaled


def ready(workers: int) -> Words:
    words = Words(workers)
    for worker in range(workers):
        words.takes(worker, True)
    return words


def counts(words: Words) -> list[int]:
    return [words.count(worker) for worker in range(words.workers)]


def together(*jobs: Callable[[], object]) -> None:
    """Run each in a thread; all begin at once."""
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], object]) -> None:
        start.wait(DEADLINE)
        job()

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7, 16])
def test_who_accepts_them_all_deals_them_out(workers: int) -> None:
    words = ready(workers)
    for number in range(1, 15 * workers + 1):
        words.deal(number % 2 and workers - 1)
        assert max(counts(words)) - min(counts(words)) <= 1
        assert sum(counts(words)) == number


def test_thousands_stay_where_they_are_unless_it_gets_out_of_hand() -> None:
    words = ready(2)
    words.move(0, 1000)
    words.move(1, 940)
    assert words.deal(0, 1) == [1, 0]
    words.move(1, -10)
    assert words.deal(0, 1) == [0, 1]
    assert words.deal(1, 100) == [0, 100], "who has fewer keeps what it gets"


def test_who_takes_none_gets_none() -> None:
    words = ready(3)
    words.takes(1, False)
    assert words.deal(0, 20) == [10, 0, 10]
    words.takes(2, False)
    assert words.deal(0, 20) == [20, 0, 0]
    words.takes(0, False)
    assert words.deal(0, 5) == [5, 0, 0], "its own: there is nobody else"
    words.takes(1, True)
    assert words.deal(0, 30) == [0, 30, 0]
    words.reset(1)
    assert (words.takes(1), words.count(1)) == (False, 0)
    assert words.deal(0, 5) == [5, 0, 0]


def test_what_a_worker_has_is_never_counted_lower() -> None:
    words = ready(2)
    words.move(0, -1)
    assert counts(words) == [0, 0]
    words.move(0, 1, 3)
    assert counts(words) == [3, 0]
    words.move(0, -1, 5)
    assert counts(words) == [5, 0]
    words.move(0, 0, 4)
    assert counts(words) == [5, 0]
    words.settle(0, 2)
    assert (counts(words), words.takes(0)) == ([2, 0], True)


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_in_a_burst_on_all_workers(workers: int) -> None:
    for _ in range(scaled(400, 50)):
        words = ready(workers)
        together(*(partial(words.deal, own, 15) for own in range(workers)))
        assert counts(words) == [15] * workers


def test_no_count_is_lost() -> None:
    words = ready(4)
    together(*(partial(words.churn, own, 20_000) for own in range(4)))
    assert counts(words) == [0] * 4
    together(
        *(partial(words.churn, own, 20_000) for own in range(3)),
        lambda: [words.takes(3, bool(number % 2)) for number in range(5000)],
    )
    assert counts(words) == [0] * 4


def test_after_any_history_the_next_go_to_the_emptiest() -> None:
    for seed in range(scaled(200, 40)):
        chance = random.Random(seed)
        words = ready(chance.randint(2, 5))
        for worker in range(words.workers):
            words.move(worker, chance.randint(0, 12))
        for _ in range(60):
            own = chance.randrange(words.workers)
            before = counts(words)
            (to,) = [worker for worker, got in enumerate(words.deal(own)) if got]
            assert before[to] == min(before)
            assert to == own or before[own] > before[to]
            leaving = chance.randrange(words.workers)
            words.move(leaving, -1)
