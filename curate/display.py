"""What a person sees in the terminal. Answers go to standard output; progress and notes to standard error.

Rich draws for a terminal. Into a pipe or a file go plain lines: importing it would take a tenth of a second of every
answer.
"""

import math
import os
import sys
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from curate import sketch
from curate.errors import one_line
from curate.progress import Progress, silent

__all__ = ["Pace", "answer", "description", "named_output", "note", "progress", "quiet", "record", "table", "tree"]

_PLAIN_SECONDS = 10.0  # between two lines of progress where there is no terminal,
_PLAIN_OFTEN = 300.0  # for so many seconds: a log of a night is to be read
_PLAIN_LATER = 60.0  # and then so many

_BAR, _TEXT = 4, 90  # columns: the shortest bar, and what the words beside it take
_SAMPLE, _WINDOW = 0.25, 30.0  # seconds between what is kept of the past, and of it that count for the speed

_speaks = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started, the first
_quiet = False


def quiet(wanted: bool = True) -> None:
    """Say nothing but answers: no progress, no notes."""
    global _quiet
    _quiet = wanted


def note(text: str) -> None:
    """One line for the person: what happened, or what to do. Names in it must have passed `one_line`."""
    if _speaks and not _quiet:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def answer(text: str) -> None:
    """One line or more of the answer itself."""
    if _speaks:
        with named_output():
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


def record(result: object) -> None:
    """An answer as JSON: of mappings, lists, dataclasses, models. Places become text, NaN and infinity null."""
    from pydantic_core import to_json

    answer(to_json(result, indent=2, inf_nan_mode="null", fallback=str).decode())


@contextmanager
def named_output() -> Iterator[None]:
    """What is written to standard output in it: an error says so (`> file` on a full disk)."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or "standard output"
        raise


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """An answer as an aligned table. Control characters in cells are shown, not obeyed."""
    numeric = [all(isinstance(row[index], int | float) for row in rows) for index in range(len(columns))]
    names, cells = [one_line(name) for name in columns], [[_cell(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        _draw(names, cells, numeric)
    else:  # a row is a line however wide it is
        answer("\n".join(_aligned([names, *cells], numeric)))


def _draw(names: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]) -> None:
    """On a terminal, as wide as that is."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name, right in zip(names, numeric, strict=True):
        drawn.add_column(Text(name), justify="right" if right else "left")
    for row in cells:
        drawn.add_row(*map(Text, row))
    Console(highlight=False, quiet=not _speaks).print(drawn)


def _aligned(rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> list[str]:
    """Rows as lines, columns two spaces apart, numbers to the right."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = []
        for cell, width, right in zip(row, widths, numeric, strict=True):
            space = " " * (width - _width(cell))
            padded.append(space + cell if right else cell + space)
        lines.append("  ".join(padded).rstrip())
    return lines


def _width(text: str) -> int:
    """Places that a text takes: East Asian characters two each."""
    return len(text) if text.isascii() else sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else one_line(value)


@contextmanager
def progress(verb: str, unit: str) -> Iterator[Progress]:
    """A `Progress` for a library function: one live line in a terminal, now and then a line elsewhere."""
    if not _speaks or _quiet:
        yield silent
        return
    pace = Pace(time.monotonic)
    if not sys.stderr.isatty():
        yield _lines(verb, unit, pace)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

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


def _lines(verb: str, unit: str, pace: "Pace") -> Progress:
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
    """`120/800 images`, `14.2/s`, `0:48 left`, and the words of the note."""
    words = [f"{done}/{total} {unit}"]
    if pace.rate:
        rate = f"{pace.rate:.0f}" if pace.rate >= 100 else f"{pace.rate:.3g}"
        words += [f"{rate}/s", f"{_clock((total - done) / pace.rate)} left"]
    return words + (one_line(note).split(", ") if note else [])


def _within(room: int, words: Sequence[str]) -> str:
    """As many of the words, with commas, as there is room for: the first ones matter most."""
    text, *others = words
    for word in others:
        if _width(text) + 2 + _width(word) > room:
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


def description(content: Mapping[str, Any]) -> list[str]:
    """What `curate.info` says as a `tree`, and the picture of its scores."""
    facts = {key: value for key, value in content.items() if key != "histogram"}
    found = content.get("histogram") or {}
    drawn = {"manifest": sketch.of_manifest, "store": sketch.of_store}[content["kind"]](found, _pen()) if found else []
    return [*tree(facts), *([""] if drawn else []), *drawn]


def _pen() -> sketch.Pen:
    """How standard output can be drawn on. In the C locale Python writes UTF-8, but nobody has asked for it."""
    plain = os.environ.get("LC_ALL") in ("C", "POSIX")
    blocks = not plain and sketch.can_write(sys.stdout.encoding)
    return sketch.Pen(blocks, sys.stdout.isatty() and not os.environ.get("NO_COLOR"))


def tree(content: Mapping[str, Any], indent: str = "") -> list[str]:
    """Nested mappings as indented `key: value` lines."""
    lines = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{one_line(key)}:", *tree(value, indent + "  ")]
        else:
            lines.append(f"{indent}{one_line(key)}: {_cell(value)}")
    return lines
