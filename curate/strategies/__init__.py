"""Strategies pick patches from a table of candidates. One file each; the file's name is the strategy's name.

A strategy is a frozen dataclass of options that subclasses `Strategy`. It sees a table with the columns patch_id,
image_id, y, x, size, shard and score, and those that it asks for by `columns`, never the store.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curate.errors import UsageError

__all__ = ["Picks", "Strategy", "ranked", "share", "stretch"]


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


def ranked(candidates: pa.Table, *, descending: bool) -> npt.NDArray[np.int64]:
    """Row numbers in the order of the score, equal scores in the order of their patch_id in both directions."""
    order = "descending" if descending else "ascending"
    keys = [("score", order), ("patch_id", "ascending")]
    return np.asarray(pc.sort_indices(candidates, sort_keys=keys)).astype(np.int64)


def share(fraction: float, count: int) -> int:
    """floor(fraction * count + 0.5) with the fraction as it was written: 0.285 of 100 is 28.5, and so 29."""
    return floor(Fraction(str(float(fraction))) * count + Fraction(1, 2))


def stretch(order: npt.NDArray[np.int64], first: int, budget: int) -> npt.NDArray[np.int64]:
    """Ranks [first, first + budget) of an order. UsageError if it is shorter.

    Where two shares that add up to everything are both rounded up, the last rank does not exist, and is left out.
    """
    if first and first + budget == len(order) + 1:
        budget -= 1
    if first + budget > len(order):
        found = f"dropping {first} and keeping {budget} of {len(order)} candidates"
        raise UsageError(f"{found} is more than there are; keep or drop less")
    return order[first : first + budget]
