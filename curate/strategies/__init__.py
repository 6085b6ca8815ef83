"""Strategies pick patches from a table of candidates. One file each; the file's name is the strategy's name.

A strategy is a frozen dataclass of options that subclasses `Strategy`. It sees a table with the columns patch_id,
image_id, y, x, size, shard and score, and those that it asks for by `columns`, never the store.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curate.errors import UsageError

__all__ = ["Picks", "Ranked", "Strategy", "Stretch", "ranked", "share", "stretch", "within"]


@dataclass(frozen=True, slots=True)
class Picks:
    """The chosen rows of the candidates, best first and without repeats, and how much each counts in training."""

    rows: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]  # mean 1

    @classmethod
    def equal(cls, rows: npt.NDArray[np.int64]) -> "Picks":
        """Picks that all count the same."""
        return cls(rows, np.ones(len(rows), np.float32))


@runtime_checkable
class Strategy(Protocol):
    """`select` gets finite scores only, or nulls if `needs_score` is False; it returns `budget` rows or fewer."""

    needs_score: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[str, ...]:
        """Further columns of `scores` or `images` that it looks at, under their own names (`sobel`, `source`)."""
        return ()

    def select(self, candidates: pa.Table, budget: int) -> Picks: ...


class Stretch(NamedTuple):
    """The ranks [first, end) of the candidates in the order of their score."""

    descending: bool
    first: int
    end: int


@runtime_checkable
class Ranked(Strategy, Protocol):
    """A strategy that is a stretch of ranks and says which before it sees a row: it is never given all of them.

    Only where `select` is the one below: one that has a `select` of its own is asked with a table, like any other.
    """

    def ranks(self, count: int, budget: int) -> Stretch:
        """Which of `count` ranks, `budget` at most. UsageError if there are not as many."""
        ...

    def select(self, candidates: pa.Table, budget: int) -> Picks:
        descending, first, end = self.ranks(candidates.num_rows, budget)
        return Picks.equal(ranked(candidates, descending=descending)[first:end])


def ranked(candidates: pa.Table, *, descending: bool) -> npt.NDArray[np.int64]:
    """Row numbers in the order of the score, equal scores in the order of their patch_id in both directions."""
    order = "descending" if descending else "ascending"
    keys = [("score", order), ("patch_id", "ascending")]
    return np.asarray(pc.sort_indices(candidates, sort_keys=keys)).astype(np.int64)


def share(fraction: float, count: int) -> int:
    """floor(fraction * count + 0.5) with the fraction as it was written: 0.285 of 100 is 28.5, and so 29."""
    return floor(Fraction(str(float(fraction))) * count + Fraction(1, 2))


def within(count: int, first: int, budget: int) -> tuple[int, int]:
    """The ranks [first, first + budget) of `count`, as first and end. UsageError if there are fewer.

    Where two shares that add up to everything are both rounded up, the last rank does not exist, and is left out.
    """
    if first and first + budget == count + 1:
        budget -= 1
    if first + budget > count:
        found = f"dropping {first} and keeping {budget} of {count} candidates"
        raise UsageError(f"{found} is more than there are; keep or drop less")
    return first, first + budget


def stretch(order: npt.NDArray[np.int64], first: int, budget: int) -> npt.NDArray[np.int64]:
    """The rows of the ranks `within` an order."""
    start, end = within(len(order), first, budget)
    return order[start:end]
