"""`pool.ahead` is `map`, only sooner: same results, same order, same errors, in bounded memory."""

import threading
import time
from collections.abc import Iterator

import pytest

from curate import pool


@pytest.mark.parametrize("depth", [None, 1, 2, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_it_is_map(count: int, depth: int | None) -> None:
    def slow_at_first(item: int) -> int:
        time.sleep(0.002 if item < 3 else 0)
        return item * item

    assert list(pool.ahead(slow_at_first, iter(range(count)), depth)) == [item * item for item in range(count)]


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_no_more_than_depth_items_are_taken_ahead(depth: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(40):
            taken += 1
            yield item

    for done, result in enumerate(pool.ahead(abs, items(), depth), 1):
        assert result == done - 1
        assert taken - done <= depth


def test_it_does_work_ahead() -> None:
    started = threading.Event()

    def run(item: int) -> int:
        if item == 1:
            started.set()
        return item

    results = pool.ahead(run, range(10), depth=2)
    assert next(results) == 0
    assert started.wait(10)  # item 1 runs though nobody asked for it yet
    results.close()


def test_an_error_comes_in_its_turn() -> None:
    results = pool.ahead(lambda item: 6 // (3 - item), range(10), depth=8)
    assert [next(results) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_consumer_that_stops_ends_the_threads() -> None:
    before = threading.active_count()
    results = pool.ahead(lambda item: time.sleep(0.001), iter(int, 1), depth=4)  # of endless items
    next(results)
    assert threading.active_count() > before
    results.close()
    assert threading.active_count() == before


def test_a_consumer_that_stops_is_not_kept_waiting_for_what_has_not_begun() -> None:
    begun = []

    def run(item: int) -> None:
        begun.append(item)
        time.sleep(0.005 if item else 0)

    results = pool.ahead(run, range(100), depth=100)
    next(results)
    results.close()
    assert len(begun) < 100


def test_at_least_one_worker() -> None:
    assert pool.workers() >= 1


def test_a_limit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_limit", 0)
    pool.limit(3)
    assert pool.workers() == 3
    barrier = threading.Barrier(3)
    list(pool.ahead(lambda _: barrier.wait(10), range(6)))  # three at a time, and
    with pytest.raises(threading.BrokenBarrierError):
        list(pool.ahead(lambda barrier: barrier.wait(0.1), [threading.Barrier(4)] * 4))  # no more
