"""What a person sees in the terminal. Answers go to standard output; progress and notes to standard error."""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

from curate.errors import one_line
from curate.progress import Progress

__all__ = ["answer", "note", "progress", "table", "tree"]

_PIPE_WIDTH = 1_000_000  # characters
_PLAIN_SECONDS = 10.0  # between two lines of progress where there is no terminal

_QUIET = os.environ.get("RANK", "0") != "0"  # of the processes that torchrun started, the first speaks

_errors = Console(stderr=True, highlight=False, quiet=_QUIET)
_answers = Console(highlight=False, quiet=_QUIET)


def note(text: str) -> None:
    """One line for the person: what happened, or what to do. Names in it must have passed `one_line`."""
    _errors.print(Text(text), soft_wrap=True)


def answer(text: str) -> None:
    """One line or more of the answer itself."""
    _answers.print(Text(text), soft_wrap=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """An answer as an aligned table. Control characters in cells are shown, not obeyed."""
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        drawn.add_column(Text(one_line(name)), justify="right" if numeric else "left")
    for row in rows:
        drawn.add_row(*(Text(_cell(value)) for value in row))
    # Piped into a file or another program, a row is a line however wide it is.
    console = _answers if _answers.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)
    console.print(drawn)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else one_line(value)


@contextmanager
def progress(verb: str, unit: str) -> Iterator[Progress]:
    """A `Progress` for a library function: a live bar in a terminal, now and then a line elsewhere."""
    if not _errors.is_terminal:
        yield _lines(verb, unit)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),  # so that a training run's line fits into 80 columns
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=_errors,
        transient=True,
    )
    started = time.monotonic()
    with bar:
        task = bar.add_task(verb, total=None, unit=unit, rate="", note="")

        def live(done: int, total: int, note: str = "") -> None:
            speed = f"{done / max(time.monotonic() - started, 1e-9):.3g}/s"
            rate = "" if "/s" in note else speed  # the note may say it better
            bar.update(task, completed=done, total=total, rate=rate, note=one_line(note))

        yield live


def _lines(verb: str, unit: str) -> Progress:
    started = latest = time.monotonic()

    def line(done: int, total: int, note: str = "") -> None:
        nonlocal latest
        now = time.monotonic()
        if now - latest >= _PLAIN_SECONDS and not _QUIET:
            latest = now
            rate = done / (now - started)
            left = (total - done) / rate if rate else 0.0
            text = f"{verb}: {done}/{total} {unit}, {rate:.3g}/s, {left:.0f} s left  {one_line(note)}"
            sys.stderr.write(text.rstrip() + "\n")
            sys.stderr.flush()

    return line


def tree(content: Mapping[str, Any], indent: str = "") -> list[str]:
    """Nested mappings as indented `key: value` lines."""
    lines = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{one_line(key)}:", *tree(value, indent + "  ")]
        else:
            lines.append(f"{indent}{one_line(key)}: {_cell(value)}")
    return lines
