"""What a note says about speed: what binds it, and that a second has to pass first."""

import threading
import time

import pytest

from curate import progress
from curate.progress import Meter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as the only number of a list."""
    now = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def test_most_seconds_bind(clock: list[float]) -> None:
    meter = Meter()
    meter.add("decoding", 3)
    meter.add("device", 2)
    assert meter.bound() == meter.note() == ""  # a second has not passed
    clock[0] += 4
    assert meter.bound() == "bound by decoding"
    meter.add("device", 2)
    assert meter.bound() == "bound by device"


def test_what_nobody_adds_is_the_rest(clock: list[float]) -> None:
    meter = Meter(rest="writing")
    clock[0] += 2
    assert meter.bound() == ""  # nothing is known of it
    for _ in meter.waiting("decoding", iter_slowly(clock, 3, 1.0)):
        clock[0] += 2
    assert meter.bound() == "bound by writing"
    for _ in meter.waiting("decoding", iter_slowly(clock, 3, 5.0)):
        pass
    assert meter.bound() == "bound by decoding"


def iter_slowly(clock: list[float], items: int, seconds: float):
    for item in range(items):
        clock[0] += seconds
        yield item


def test_waiting_gives_every_item_and_none_more() -> None:
    meter = Meter()
    assert list(meter.waiting("decoding", [1, None, 3])) == [1, None, 3]
    assert list(meter.waiting("decoding", [])) == []


def test_processors_weigh(clock: list[float]) -> None:
    meter = Meter()
    with meter.timed("device", weight=4):
        clock[0] += 1
    meter.add("decoding", 3)
    clock[0] += 1
    assert meter.bound() == "bound by device"


def test_speed_is_of_pixels_over_all_the_time(clock: list[float]) -> None:
    meter = Meter()
    meter.add(pixels=3_000_000)
    clock[0] += 2
    assert meter.speed() == "1.5 Mpx/s"
    meter.add("decoding", 1)
    assert meter.note("3 refused", "") == "3 refused, 1.5 Mpx/s, bound by decoding"


def test_threads_lose_nothing() -> None:
    meter = Meter()

    def add() -> None:
        for _ in range(2000):
            meter.add("decoding", 1.0, pixels=1)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter._seconds["decoding"] == meter._pixels == 16_000


def test_a_block_s_time_is_added() -> None:
    meter = Meter()
    with meter.timed("decoding"):
        time.sleep(0.02)
    assert 0.02 <= meter._seconds["decoding"] < 2


def test_parts_make_a_whole() -> None:
    seen: list[tuple[int, int, str]] = []
    for number in range(2):
        own = progress.part(lambda done, total, note="": seen.append((done, total, note)), number, 2, f"part {number}")
        own(0, 3)
        own(3, 3, "done")
    assert seen == [(0, 6, "part 0 "), (3, 6, "part 0 done"), (3, 6, "part 1 "), (6, 6, "part 1 done")]
