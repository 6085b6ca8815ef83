"""Small pictures of counts for a terminal, as lines of text: block characters, or ASCII where these cannot be written.

They can be read without colour: what was chosen is drawn with another character than the rest.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["WIDTH", "Pen", "Window", "bars", "can_write", "of_manifest", "of_store", "spark"]

WIDTH = 76  # columns of a line, at most
_ROWS = 7  # of bars
_SPARK = 20  # columns of a sparkline

_CHOSEN, _REST, _RESET = "\x1b[36m", "\x1b[2m", "\x1b[0m"  # cyan, faint


@dataclass(frozen=True, slots=True)
class Pen:
    """What can be written: block characters or ASCII alone, in colour or not."""

    blocks: bool = True
    colour: bool = False

    @property
    def levels(self) -> str:
        """From nothing to all, in nine steps."""
        return " ▁▂▃▄▅▆▇█" if self.blocks else " .:-=+*#@"

    @property
    def chosen(self) -> str:
        """A row of a bar, and what stands for less than half of one."""
        return "█▁" if self.blocks else "#_"

    @property
    def rest(self) -> str:
        """The same of what was not chosen."""
        return "░·" if self.blocks else ":."

    @property
    def both(self) -> str:
        """A row of which about half was chosen."""
        return "▒" if self.blocks else "+"

    @property
    def frame(self) -> tuple[str, ...]:
        """Upright, corner and line of the axes; the marks that end and that begin at a place."""
        return tuple("│└─┘└" if self.blocks else "|+-^^")


class Window(NamedTuple):
    """A stretch of the order of the scores, highest first."""

    low: float  # scores
    high: float
    first: float  # share of the candidates that comes before it
    end: float  # share up to its end


def can_write(encoding: str | None) -> bool:
    """Whether text in this encoding can hold what `Pen` draws with."""
    pen = Pen()
    try:
        "".join((pen.levels, pen.chosen, pen.rest, pen.both, *pen.frame)).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def of_manifest(found: Mapping[str, Any], pen: Pen) -> list[str]:
    """The picture of what `distribution.of_manifest` says, and below it, in a line however long, what is missing."""
    note = [] if found["note"] is None else [found["note"]]
    if "edges" not in found:
        return note
    chosen, edges, window = found["chosen"], found["edges"], None
    legend = f": {pen.chosen[0]} {chosen:,} chosen"
    if (candidates := found["candidates"]) is not None:
        legend += f", {pen.rest[0]} {candidates - chosen:,} not chosen"
        if (place := found["window"]) is not None and not place["gaps"]:
            shares = place["first"] / candidates, (place["last"] + 1) / candidates
            window = Window(place["low"], place["high"], *shares)
    counts = found["chosen_counts"] if found["counts"] is None else found["counts"]
    left = {f"below {edges[0]:.3g}": found["below"], "without a finite score": found["without_finite_score"]}
    left_out = ", ".join(f"{count:,} {what}" for what, count in left.items() if count)
    drawn = bars(edges, counts, found["chosen_counts"], window=window, pen=pen)
    legend += f", {pen.both} both" if any(pen.both in line for line in drawn[:_ROWS]) else ""
    legend += "; log axis" if found["log"] else ""
    return [
        _short(found["score"], WIDTH - len(legend), pen) + legend,
        *drawn,
        *([f"not drawn: {left_out}"] if left_out else []),
        *note,
    ]


def of_store(found: Mapping[str, Mapping[str, Any]], pen: Pen) -> list[str]:
    """A line for each score of what `distribution.of_store` says; none for a store without scores."""
    rows: list[tuple[str, ...]] = [("score", "patches", "lowest", "median", "highest", "")]
    for name, score in found.items():
        if "edges" in score:
            ends = tuple(f"{score[which]:.3g}" for which in ("lowest", "median", "highest"))
            rows.append((name, spark(score["counts"], pen), *ends, "log axis" if score["log"] else ""))
        else:
            rows.append((name, "", "-", "-", "-", "no finite score" if score["without_finite_score"] else "no score"))
    if len(rows) == 1:
        return []
    numbers = [max(len(row[column]) for row in rows) for column in (2, 3, 4)]
    width = min(max(len(row[0]) for row in rows), WIDTH - _SPARK - sum(numbers) - 10 - max(len(row[5]) for row in rows))
    lines = []
    for name, drawn, *cells, more in rows:
        columns = [f"{_short(name, width, pen):<{width}}", f"{drawn:<{_SPARK}}"]
        columns += [f"{cell:>{size}}" for cell, size in zip(cells, numbers, strict=True)]
        lines.append("  ".join([*columns, more]).rstrip())
    return lines


def spark(counts: Sequence[int], pen: Pen) -> str:
    """Counts as one line, each next few of them together; nothing but no count at all is blank."""
    each = -(-len(counts) // _SPARK) or 1
    sums = [sum(counts[start : start + each]) for start in range(0, len(counts), each)]
    most = max(sums, default=0)
    return "".join(pen.levels[max(1, _rounded(8 * count, most))] if count else " " for count in sums)


def bars(
    edges: Sequence[float], counts: Sequence[int], chosen: Sequence[int], *, window: Window | None, pen: Pen
) -> list[str]:
    """A histogram: a column a bin, the chosen part at its foot; below, the window and the ends of the axis.

    A bin that is not empty shows, however few it holds. There may be 60 bins, or fewer.
    """
    most = max(counts)
    upright, corner, line = pen.frame[:3]
    label = f"{most:,}"
    heights = [_rounded(_ROWS * count, most) for count in counts]
    columns = [_bar(*bin_, pen) for bin_ in zip(heights, counts, chosen, strict=True)]
    lines = []
    for row in reversed(range(_ROWS)):
        drawn = _painted("".join(column[row] for column in columns).rstrip(), pen)
        lines.append(f"{label if row == _ROWS - 1 else '':>{len(label)}} {upright}{drawn}")
    lines.append(f"{'0':>{len(label)}} {corner}{line * len(counts)}")
    indent = " " * (len(label) + 2)
    if window is not None:
        lines += [indent + text for text in _marked(window, edges, WIDTH - len(indent), pen)]
    low, high = f"{edges[0]:.3g}", f"{edges[-1]:.3g}"
    return [*lines, f"{indent}{low} {high:>{max(len(high), len(counts) - len(low) - 1)}}"]


def _bar(height: int, count: int, part: int, pen: Pen) -> str:
    """A column from its foot up; in the row where the chosen part ends, what there is more of, or both."""
    if count and not height:
        bar = pen.chosen[1] if 2 * part >= count else pen.rest[1]
    else:
        foot, both = divmod(_rounded(2 * height * part, count), 2)
        bar = pen.chosen[0] * foot + pen.both * both + pen.rest[0] * (height - foot - both)
    return f"{bar:<{_ROWS}}"


def _painted(cells: str, pen: Pen) -> str:
    if not pen.colour:
        return cells
    colours = dict.fromkeys(pen.chosen + pen.both, _CHOSEN) | dict.fromkeys(pen.rest, _REST)
    runs = ((colours.get(key), "".join(run)) for key, run in itertools.groupby(cells))
    return "".join(text if colour is None else f"{colour}{text}{_RESET}" for colour, text in runs)


def _marked(window: Window, edges: Sequence[float], width: int, pen: Pen) -> list[str]:
    """The window's ends under their bins, on one line if there is room between them."""
    ending, beginning = pen.frame[3:]
    low_at, high_at = (min(bisect_right(edges, score), len(edges) - 1) - 1 for score in (window.low, window.high))
    low, high = f"{window.low:.3g} (rank {_percent(window.end)})", f"{window.high:.3g} (rank {_percent(window.first)})"
    low_text, low_start = f"{low} {ending}", low_at - len(low) - 1
    if low_start < 0:
        low_text, low_start = f"{beginning} {low}", low_at
    high_text, high_start = f"{beginning} {high}", high_at
    if high_start + len(high_text) > width:
        high_text, high_start = f"{high} {ending}", high_at - len(high) - 1
    one, other = " " * low_start + low_text, " " * high_start + high_text
    return [one + other[len(one) :]] if len(one) < high_start else [one, other]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _rounded(part: int, whole: int) -> int:
    """To the nearest; 0 of nothing."""
    return math.floor(part / whole + 0.5) if whole else 0


def _short(text: str, limit: int, pen: Pen) -> str:
    """At most so many printable characters."""
    line = "".join(c if c.isprintable() and (pen.blocks or c.isascii()) else "?" for c in text)
    return line if len(line) <= limit else line[: max(0, limit - 2)] + ".."
