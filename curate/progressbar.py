"""How far a long verb is, on standard error: how much is done, how fast, the time left, and the verb's own words.

score ━━━━━━━━ 14200/32592 patches, 1240/s, 0:15 left, 38.2 Mpx/s, bound by decoding
"""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from curate.errors import one_line
from curate.progress import Progress

__all__ = ["Pace", "shown"]

_PLAIN_SECONDS = 10.0  # between two lines of progress where there is no terminal,
_PLAIN_OFTEN = 300.0  # for so many seconds: a log of a night is to be read
_PLAIN_LATER = 60.0  # and then so many

_BAR, _TEXT = 4, 90  # columns: the shortest bar, and what the words beside it take
_SAMPLE, _WINDOW = 0.25, 30.0  # seconds between what is kept of the past, and of it that count for the speed


@contextmanager
def shown(verb: str, unit: str, after: float = 0.0) -> Iterator[Progress]:
    """A `Progress` that is shown on standard error: one live line in a terminal, now and then a line elsewhere.

    What is over within `after` seconds shows nothing, and imports nothing for it.
    """
    if not sys.stderr.isatty():
        yield _lines(verb, unit)
        return
    began = time.monotonic()
    with ExitStack() as stack:
        lines = [] if after else [stack.enter_context(_live(verb, unit))]

        def tell(done: int, total: int, note: str = "") -> None:
            if not lines and time.monotonic() - began >= after:
                lines.append(stack.enter_context(_live(verb, unit)))
            for line in lines:
                line(done, total, note)

        yield tell


@contextmanager
def _live(verb: str, unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    pace = Pace(time.monotonic)
    console = Console(stderr=True, highlight=False)
    width = max(_BAR, min(console.width - _TEXT, 40))
    room = console.width - len(verb) - width - 3  # two spaces, and the last column, which some terminals wrap at
    bar = RichProgress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=len(verb))),
        BarColumn(bar_width=width),
        TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=console,
        transient=True,
        refresh_per_second=4,
    )
    with bar:
        task = bar.add_task(verb, total=None, text="starting")

        def live(done: int, total: int, note: str = "") -> None:
            pace.tell(done, total)
            bar.update(task, completed=done, total=total, text=_within(room, _how_far(done, total, unit, pace, note)))

        yield live


def _lines(verb: str, unit: str) -> Progress:
    pace = Pace(time.monotonic)
    started = latest = time.monotonic()

    def line(done: int, total: int, note: str = "") -> None:
        nonlocal latest
        pace.tell(done, total)
        now = time.monotonic()
        if now - latest >= (_PLAIN_SECONDS if now - started < _PLAIN_OFTEN else _PLAIN_LATER):
            latest = now
            sys.stderr.write(f"{verb}: {', '.join(_how_far(done, total, unit, pace, note))}\n")
            sys.stderr.flush()

    return line


def _how_far(done: int, total: int, unit: str, pace: "Pace", note: str) -> list[str]:
    """`120/800 images`, `14.2/s`, `0:48 left`, and the words of the note. Percents have no speed."""
    words = [f"{done} %" if unit == "%" else f"{done}/{total} {unit}"]
    if pace.rate and unit != "%":
        words.append(f"{pace.rate:.0f}/s" if pace.rate >= 100 else f"{pace.rate:.3g}/s")
    if pace.rate:
        words.append(f"{_clock((total - done) / pace.rate)} left")
    return words + (one_line(note).split(", ") if note else [])


def _within(room: int, words: Sequence[str]) -> str:
    """As many of the words, with commas, as there is room for: the first ones matter most."""
    from rich.cells import cell_len

    text, *others = words
    for word in others:
        if cell_len(text) + 2 + cell_len(word) > room:
            break
        text += f", {word}"
    return text


def _clock(seconds: float) -> str:
    """`0:07`, `12:30`, `1:02:30`."""
    minutes, left = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


class Pace:
    """Units a second over the last half minute.

    What was done when it was first told, or when another stretch of work began, was not done in the time that it
    measures: a training run that goes on begins at its step, and not at 0. The time before, in which a store is opened
    or torch imported, is not counted either.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told: deque[tuple[float, int]] = deque()
        self._total = 0
        self.rate = 0.0  # 0: not known yet

    def tell(self, done: int, total: int) -> None:
        now = self._clock()
        if total != self._total or (self._told and done < self._told[-1][1]):
            self._told.clear()
            self._total, self.rate = total, 0.0
        if self._told and now - self._told[-1][0] < _SAMPLE:  # a hundred times a second is too often to be kept
            return
        self._told.append((now, done))
        while len(self._told) > 2 and now - self._told[0][0] > _WINDOW:
            self._told.popleft()
        (first, before), (last, after) = self._told[0], self._told[-1]
        if last > first:
            self.rate = (after - before) / (last - first)
