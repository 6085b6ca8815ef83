"""What a person sees in the terminal. Answers go to standard output; progress and notes to standard error.

Rich draws for a terminal. Into a pipe or a file go plain lines: importing it would take a tenth of a second of every
answer.
"""

import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from curate.errors import one_line
from curate.progress import Progress

__all__ = ["answer", "named_output", "note", "progress", "table", "tree"]

_PLAIN_SECONDS = 10.0  # between two lines of progress where there is no terminal

_QUIET = os.environ.get("RANK", "0") != "0"  # of the processes that torchrun started, the first speaks


def note(text: str) -> None:
    """One line for the person: what happened, or what to do. Names in it must have passed `one_line`."""
    if not _QUIET:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def answer(text: str) -> None:
    """One line or more of the answer itself."""
    if not _QUIET:
        with named_output():
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


@contextmanager
def named_output() -> Iterator[None]:
    """What is written to standard output in it: an error says so (`> file` on a full disk)."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or "standard output"
        raise


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, whole: bool = False) -> None:
    """An answer as an aligned table. Control characters in cells are shown, not obeyed.

    Where it is wider than the terminal its cells are cut; if they should be `whole`, a cell becomes a line.
    """
    numeric = [all(isinstance(row[index], int | float) for row in rows) for index in range(len(columns))]
    names, cells = [one_line(name) for name in columns], [[_cell(value) for value in row] for row in rows]
    if not sys.stdout.isatty():  # a row is a line however wide it is
        answer("\n".join(_aligned([names, *cells], numeric)))
    elif whole and max(map(_width, _aligned([names, *cells], numeric))) > shutil.get_terminal_size().columns:
        blocks = ["\n".join(_aligned(list(zip(names, row, strict=True)), [False, False])) for row in cells]
        answer("\n\n".join(blocks or ["\n".join(names)]))
    else:
        _draw(names, cells, numeric)


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
    Console(highlight=False, quiet=_QUIET).print(drawn)


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
    """A `Progress` for a library function: a live bar in a terminal, now and then a line elsewhere."""
    if not sys.stderr.isatty() or _QUIET:
        yield _lines(verb, unit)
        return
    from rich.console import Console
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
        console=Console(stderr=True, highlight=False),
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
