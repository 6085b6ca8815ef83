"""Contact sheets: which patches are worth a look. The hardest, the easiest, both edges of a window, some at random."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curate.reporting import ranks
from curate.reporting.facts import Choice, Facts
from curate.reporting.words import number, plural

__all__ = ["Sheet", "changes", "edges", "extremes", "sample", "wanted"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sheet:
    """Some patches to look at, under a title."""

    name: str  # of its file
    title: str
    words: str  # what it shows, or why it is empty
    rows: tuple[int, ...]  # of `Facts.patches`


def extremes(facts: Facts, choice: Choice, label: str, count: int) -> list[Sheet]:
    """The hardest and the easiest of the candidates by one score."""
    order = ranks.descending(facts.scores[label], choice.candidates)
    hardest, easiest = order[:count], order[::-1][:count]
    return [
        Sheet("hardest", "Hardest", f"The highest {label} of all candidates, from the top down.", _rows(hardest)),
        Sheet("easiest", "Easiest", f"The lowest {label} of all candidates, from the bottom up.", _rows(easiest)),
    ]


def edges(facts: Facts, choice: Choice, count: int) -> list[Sheet]:
    """Both ends of a choice in the order of the score that it was ranked by; none for a choice without one.

    Of a window, half of each sheet lies just outside and half just inside; of a choice that leaves some out in between,
    all are its own.
    """
    if choice.by is None:
        return []
    score = facts.scores[choice.by]
    order = ranks.descending(score, choice.candidates)
    window = ranks.window(score, order, choice.chosen)
    if window is None:
        return []
    ends = (("upper", order, window.first), ("lower", order[::-1], len(order) - 1 - window.last))
    make = _edge if window.unbroken else _end
    return [make(name, ordered, end, choice, count) for name, ordered, end in ends]


def _edge(name: str, ordered: Ints, end: int, choice: Choice, count: int) -> Sheet:
    """One edge of a window: what lies on either side of place `end` of an order."""
    outside = ordered[max(0, end - count // 2) : end]
    inside = ordered[end:][choice.chosen[ordered[end:]]][: count - len(outside)]
    beyond = f"The last {number(len(outside))} left out and" if len(outside) else "Nothing lies beyond;"
    words = f"{beyond} the first {number(len(inside))} chosen, by {choice.by}."
    return Sheet(f"{name}-edge-{choice.name}", f"{name.capitalize()} edge", words, _rows(outside) + _rows(inside))


def _end(name: str, ordered: Ints, end: int, choice: Choice, count: int) -> Sheet:
    """The chosen at one end of an order."""
    chosen = ordered[end:][choice.chosen[ordered[end:]]][:count]
    which = "highest" if name == "upper" else "lowest"
    words = f"The {which} {choice.by} among the chosen; others between these and the rest were left out."
    return Sheet(f"{name}-end-{choice.name}", f"{which.capitalize()} chosen", words, _rows(chosen))


def sample(choice: Choice, count: int) -> Sheet:
    """Some of a choice at random, the same ones each time, in its order."""
    chosen = np.flatnonzero(choice.chosen)
    drawn = np.random.default_rng(0).choice(chosen, min(count, len(chosen)), replace=False)
    words = f"{number(len(drawn))} of the {number(len(chosen))} chosen, best rank first."
    return Sheet(f"random-{choice.name}", "At random", words, _rows(drawn[np.argsort(choice.rank[drawn])]))


def changes(one: Choice, other: Choice, count: int) -> list[Sheet]:
    """What is in the one manifest alone, and what is in the other alone, evenly along their ranks."""
    sheets = []
    for side, mine, theirs in (("left", one, other), ("entered", other, one)):
        rows = np.flatnonzero(mine.chosen & ~theirs.chosen)
        rows = rows[np.argsort(mine.rank[rows])]
        spread = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.int64)
        along = f"; {number(len(spread))} of them, evenly along its ranks" if len(spread) < len(rows) else ""
        words = f"{plural(len(rows), 'patch is', 'patches are')} in {mine.name} alone{along}."
        sheets.append(Sheet(f"{side}-{other.name}", f"In {mine.name} alone", words, _rows(rows[spread])))
    return sheets


def wanted(sheets: Sequence[Sheet]) -> Mapping[int, None]:
    """The patches of all sheets, each once, in their order."""
    return dict.fromkeys(row for sheet in sheets for row in sheet.rows)


def _rows(rows: Ints) -> tuple[int, ...]:
    return tuple(int(row) for row in rows)
