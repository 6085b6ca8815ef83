"""Contact sheets: which patches are worth a look. The hardest, the easiest, both edges of a window, some at random."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curate.reporting import ranks
from curate.reporting.facts import Facts
from curate.reporting.words import number, plural

__all__ = ["Sheet", "changes", "edges", "every", "extremes", "sample", "wanted"]

Ints = npt.NDArray[np.int64]

_PART = 5  # a patch beyond the hardest, or easiest, fifth is none of them
_OF_A_PHOTOGRAPH = 2  # among the hardest and the easiest: more of one place teach little


@dataclass(frozen=True)
class Sheet:
    """Some patches to look at, under a title."""

    name: str  # of its file
    title: str
    words: str  # what it shows, or why it is empty
    rows: tuple[int, ...]  # of `Facts.patches`
    index: int  # of the manifest by whose score and candidates its patches are told
    of_all: bool = False  # of all candidates, and not of that manifest's own
    more: "Sheet | None" = None  # shown where it is asked for


def extremes(facts: Facts, index: int, label: str, count: int) -> list[Sheet]:
    """The hardest and the easiest of the candidates by one score, from many photographs; and strictly in order."""
    order = ranks.descending(facts.scores[label], facts.choices[index].candidates)
    images = len(np.unique(facts.image[order]))
    most = max(_OF_A_PHOTOGRAPH, -(-count // max(1, images)))
    sheets = []
    for name, which, way, ordered in (
        ("hardest", "highest", "from the top down", order),
        ("easiest", "lowest", "from the bottom up", order[::-1]),
    ):
        words = f"The {which} {label} of all candidates, {way}"
        strict = ordered[:count]
        more = Sheet(f"{name}-strict", "Strictly in order", f"{words}.", _rows(strict), index, of_all=True)
        spread = _spread(facts, ordered[: max(count, len(ordered) // _PART)], count, most)
        apart = f"{words}; at most {plural(most, 'patch', 'patches')} of a photograph, none that overlap."
        same = np.array_equal(spread, strict)
        title = name.capitalize()
        rows, said = (more.rows, more.words) if same else (_rows(spread), apart)
        sheets.append(Sheet(name, title, said, rows, index, of_all=True, more=None if same else more))
    return sheets


def _spread(facts: Facts, ordered: Ints, count: int, most: int) -> Ints:
    """The first `count` of an order, of each photograph `most` at most, and none that overlap."""
    y, x, size = (facts.patches[name].to_numpy().astype(np.int64) for name in ("y", "x", "size"))
    taken: dict[int, list[int]] = {}
    found: list[int] = []
    for row in ordered.tolist():
        others = taken.setdefault(int(facts.image[row]), [])
        if len(others) < most and not any(
            -size[row] < y[row] - y[other] < size[other] and -size[row] < x[row] - x[other] < size[other]
            for other in others
        ):
            others.append(row)
            found.append(row)
            if len(found) == count:
                break
    return np.array(found, np.int64)


def edges(facts: Facts, index: int, count: int) -> list[Sheet]:
    """Both ends of a choice in the order of the score that it was ranked by; none for a choice without one.

    Highest scores come first. Of a window, half of each sheet lies just outside and half just inside; of a choice that
    leaves some out in between, all are its own.
    """
    choice = facts.choices[index]
    if choice.by is None:
        return []
    score = facts.scores[choice.by]
    order = ranks.descending(score, choice.candidates)
    window = ranks.window(score, order, choice.chosen)
    if window is None:
        return []
    upper = order[max(0, window.first - count // 2) : window.first]
    lower = order[window.last + 1 :][: count // 2]
    chosen = order[choice.chosen[order]]
    if not window.unbroken:
        rest = f"{choice.by} among the chosen; others between these and the rest were left out."
        highest, lowest = _rows(chosen[:count]), _rows(chosen[::-1][:count])
        return [
            Sheet(f"upper-end-{choice.name}", "Highest chosen", f"The highest {rest}", highest, index),
            Sheet(f"lower-end-{choice.name}", "Lowest chosen", f"The lowest {rest}", lowest, index),
        ]
    first, last = chosen[: count - len(upper)], chosen[-(count - len(lower)) :]
    above = f"the last {number(len(upper))} left out and" if len(upper) else "nothing lies above;"
    below = f" and the first {number(len(lower))} left out" if len(lower) else "; nothing lies below"
    before = f"By {choice.by}: {above} the first {number(len(first))} chosen."
    after = f"By {choice.by}: the last {number(len(last))} chosen{below}."
    return [
        Sheet(f"upper-edge-{choice.name}", "Upper edge", before, _rows(upper) + _rows(first), index),
        Sheet(f"lower-edge-{choice.name}", "Lower edge", after, _rows(last) + _rows(lower), index),
    ]


def sample(facts: Facts, index: int, count: int) -> Sheet:
    """Some of a choice at random, the same ones each time, in its order."""
    choice = facts.choices[index]
    chosen = np.flatnonzero(choice.chosen)
    drawn = np.random.default_rng(0).choice(chosen, min(count, len(chosen)), replace=False)
    words = f"{number(len(drawn))} of the {number(len(chosen))} chosen, in the manifest's order."
    return Sheet(f"random-{choice.name}", "At random", words, _rows(drawn[np.argsort(choice.rank[drawn])]), index)


def changes(facts: Facts, one: int, other: int, count: int) -> list[Sheet]:
    """What is in the one manifest alone, and what is in the other alone, evenly along their ranks."""
    sheets = []
    for side, mine, theirs in (("left", one, other), ("entered", other, one)):
        choice = facts.choices[mine]
        rows = np.flatnonzero(choice.chosen & ~facts.choices[theirs].chosen)
        rows = rows[np.argsort(choice.rank[rows])]
        spread = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.int64)
        along = f"; {number(len(spread))} of them, evenly along its order" if len(spread) < len(rows) else ""
        by = f", told by {choice.by}" if choice.by is not None and len(rows) else ""
        words = f"{plural(len(rows), 'patch is', 'patches are')} in {choice.name} alone{along}{by}."
        name = f"{side}-{facts.choices[other].name}"
        sheets.append(Sheet(name, f"In {choice.name} alone", words, _rows(rows[spread]), mine))
    return sheets


def every(sheets: Sequence[Sheet]) -> Iterator[Sheet]:
    """The sheets, and after each what it shows where it is asked for."""
    for sheet in sheets:
        yield sheet
        if sheet.more is not None:
            yield sheet.more


def wanted(sheets: Sequence[Sheet]) -> Mapping[int, None]:
    """The patches of all sheets, each once, in their order."""
    return dict.fromkeys(row for sheet in every(sheets) for row in sheet.rows)


def _rows(rows: Ints) -> tuple[int, ...]:
    return tuple(int(row) for row in rows)
