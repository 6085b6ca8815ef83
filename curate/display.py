"""What a person sees in the terminal. Answers go to standard output; progress and notes to standard error.

Rich draws for a terminal. Into a pipe or a file go plain lines: importing it would take a tenth of a second of every
answer.
"""

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from curate import progressbar, sketch
from curate.errors import one_line
from curate.progress import Progress, silent

__all__ = ["answer", "description", "named_output", "note", "progress", "quiet", "record", "table", "tree"]

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
    if value is None or value == {}:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else one_line(value)


def progress(verb: str, unit: str, after: float = 0.0) -> AbstractContextManager[Progress]:
    """A `Progress` for a library function, shown on standard error while the context lasts, from `after` seconds on."""
    return progressbar.shown(verb, unit, after) if _speaks and not _quiet else nullcontext(silent)


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
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{one_line(key)}:", *tree(value, indent + "  ")]
        else:
            lines.append(f"{indent}{one_line(key)}: {_cell(value)}")
    return lines
