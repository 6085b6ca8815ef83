"""Progress as one live line or as plain lines, and its speed."""

import io
import re
import sys

import pytest

from curate import progressbar
from curate.progressbar import Pace


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as the only number of a list."""
    now = [100.0]
    monkeypatch.setattr(progressbar.time, "monotonic", lambda: now[0])
    return now


# Pace


def paced(told: list[tuple[float, int, int]]) -> float:
    now = [0.0]
    pace = Pace(lambda: now[0])
    for at, done, total in told:
        now[0] = at
        pace.tell(done, total)
    return pace.rate


def test_pace_is_units_a_second() -> None:
    assert paced([(0, 0, 100), (1, 5, 100), (2, 10, 100)]) == 5


def test_what_was_done_before_does_not_count() -> None:
    """A training run that goes on at step 5000 has not done these in a second."""
    assert paced([(0, 5000, 9000), (2, 5010, 9000)]) == 5
    assert paced([(0, 5000, 9000)]) == 0


def test_only_the_last_half_minute_counts() -> None:
    slow = [(float(t), t, 10_000) for t in range(100)]
    fast = [(100.0 + t, 100 + 10 * t, 10_000) for t in range(40)]
    assert paced([*slow, *fast]) == pytest.approx(10, rel=0.02)


def test_another_stretch_of_work_begins_anew() -> None:
    assert paced([(0, 0, 10), (1, 10, 10), (2, 0, 20), (4, 8, 20)]) == 4  # another total
    assert paced([(0, 0, 10), (1, 10, 10), (2, 0, 10), (4, 8, 10)]) == 4  # done falls


def test_a_pace_told_often_stays_small() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    for step in range(100_000):
        now[0] += 0.001
        pace.tell(step, 100_000)
    assert pace.rate == pytest.approx(1000, rel=0.01) and len(pace._told) < 200


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00"),
        (0.2, "0:01"),
        (59, "0:59"),
        (60, "1:00"),
        (3599.5, "1:00:00"),
        (3725, "1:02:05"),
        (400_000, "111:06:40"),
    ],
)
def test_time_left(seconds: float, shown: str) -> None:
    assert progressbar._clock(seconds) == shown


# Plain lines


def plain(monkeypatch: pytest.MonkeyPatch, clock: list[float], seconds: int, note: str = "") -> list[str]:
    """The lines of a run that is told something once a second."""
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progressbar.shown("ingest", "files") as tell:
        for second in range(seconds):
            clock[0] += 1
            tell(second, seconds, note)
    return log.getvalue().splitlines()


def test_without_a_terminal_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    lines = plain(monkeypatch, clock, 35, "3 refused, 40 Mpx/s")
    assert lines == [
        "ingest: 9/35 files, 1/s, 0:26 left, 3 refused, 40 Mpx/s",
        "ingest: 19/35 files, 1/s, 0:16 left, 3 refused, 40 Mpx/s",
        "ingest: 29/35 files, 1/s, 0:06 left, 3 refused, 40 Mpx/s",
    ]


def test_a_night_s_log_is_short(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    lines = plain(monkeypatch, clock, 8 * 3600)
    assert 8 * 60 < len(lines) < 8 * 60 + 31


def test_what_is_short_says_nothing(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    assert plain(monkeypatch, clock, 9) == []


def test_a_note_is_one_line(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    (line,) = plain(monkeypatch, clock, 11, "a\x1b[31m\nb")
    assert line.endswith(r"a\x1b[31m\nb")


# The live line


def live(monkeypatch: pytest.MonkeyPatch, columns: int, note: str) -> list[str]:
    """What a terminal of a width was sent, line by line, escapes left out."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    with progressbar.shown("score", "patches") as tell:
        tell(0, 32592)
        tell(14200, 32592, note)
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()))


@pytest.mark.parametrize("columns", [60, 80, 100, 160])
def test_the_live_line_fits_and_drops_the_last_words_whole(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    words = ["3 refused", "38.2 Mpx/s", "bound by decoding", "a very long remark at the end that few terminals have"]
    lines = live(monkeypatch, columns, ", ".join(words))
    assert max(map(len, lines)) < columns
    (last,) = {line for line in lines if "14200/32592 patches" in line}
    shown = last.partition("patches, ")[2].strip().split(", ")
    assert shown == words[: len(shown)] and "…" not in last
    assert ("bound by decoding" in last) == (columns >= 80)


def test_a_live_line_says_at_once_that_it_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    with progressbar.shown("score", "patches"):
        pass
    assert "score" in terminal.getvalue() and "starting" in terminal.getvalue()


def test_markup_in_a_note_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert any("[red]x.png[/red]" in line for line in live(monkeypatch, 100, "[red]x.png[/red]"))


def test_what_is_over_soon_shows_nothing(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    with progressbar.shown("sql", "%", after=1.0) as tell:
        for _ in range(3):
            clock[0] += 0.3
            tell(40, 100)
    assert terminal.getvalue() == ""
    with progressbar.shown("sql", "%", after=1.0) as tell:
        for _ in range(6):
            clock[0] += 0.3
            tell(40, 100)
    assert "40 %" in terminal.getvalue() and "/s" not in terminal.getvalue()
