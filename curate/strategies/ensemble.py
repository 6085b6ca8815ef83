"""The highest mean rank over several scores, without the very highest if asked: `by=srcnn+sobel,weights=2+1`."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curate.errors import UsageError, listed, one_line
from curate.strategies import Picks, Strategy, ranked, share, stretch

__all__ = ["Ensemble"]

_NAME = r'\s*("(?:[^"]|"")+"|[^\s"+,](?:[^"+,]*[^\s"+,])?)\s*'
_EXAMPLE = 'sobel+"srcnn:scale=3,kernel=9-1-5"'
_WEIGHT = re.compile(r"\d{1,6}(?:\.\d{1,6})?")


@dataclass(frozen=True)
class Ensemble(Strategy):
    """The descending order of the weighted mean of a row's ranks by each score; equal ones in that of patch_id.

    A rank counts from the lowest score, and equal scores share the mean of their ranks. Names are joined by `+`; one
    that holds a `+` or a comma stands in double quotes.

    Rows that have no finite number in one of the columns take no part in the ranks, come last, and are never kept.
    They are candidates still: with N of them, these included, the first floor(drop_top * N + 0.5) ranks are passed over
    as `refined` does, and the next `budget` kept, fewer where those without a number are reached. `--where` takes them
    from the candidates.
    """

    by: str = "srcnn+sobel"  # columns of `scores` or `images`, joined by +
    weights: str = ""  # of each, above 0, joined by +; all alike if left out
    drop_top: float = 0.0  # share of the candidates, from 0 to below 1

    needs_score: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.drop_top < 1:
            raise ValueError(f"drop_top should be from 0 to below 1, found {self.drop_top}")
        if not re.fullmatch(rf"{_NAME}(\+{_NAME})*", self.by):
            raise ValueError(f"by should be names joined by +, such as {_EXAMPLE}; found '{self.by}'")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"by should name every score once, found '{self.by}'")
        self._whole_weights()

    @property
    def columns(self) -> tuple[str, ...]:
        names = re.findall(_NAME, self.by)
        return tuple(name[1:-1].replace('""', '"') if name[0] == '"' else name for name in names)

    def select(self, candidates: pa.Table, budget: int) -> Picks:
        values = [_numbers(candidates[name], name) for name in self.columns]
        complete = np.logical_and.reduce([np.isfinite(column) for column in values])
        total = np.full(candidates.num_rows, -np.inf)
        total[complete] = sum(
            weight * _doubled_ranks(column[complete])
            for weight, column in zip(self._whole_weights(), values, strict=True)
        )
        order = ranked(pa.table({"score": total, "patch_id": candidates["patch_id"]}), descending=True)
        rows = stretch(order, share(self.drop_top, len(order)), budget)
        return Picks.equal(rows[complete[rows]])

    def _whole_weights(self) -> list[float]:
        """The weights times a number that makes them whole: their sums with ranks are exact then, and so are ties."""
        given = [weight.strip() for weight in self.weights.split("+")] if self.weights else ["1"] * len(self.columns)
        fitting = all(_WEIGHT.fullmatch(weight) and float(weight) > 0 for weight in given)
        if len(given) != len(self.columns) or not fitting:
            wanted = f"one number such as 2 or 0.25 above 0 for each of {listed(self.columns)}, joined by +"
            raise ValueError(f"weights should be {wanted}; found '{self.weights}'")
        fractions = [Fraction(weight) for weight in given]
        scale = math.lcm(*(weight.denominator for weight in fractions))
        return [float(weight * scale) for weight in fractions]


def _numbers(column: pa.ChunkedArray, name: str) -> npt.NDArray[np.float64]:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise UsageError(f"column '{one_line(name)}' holds {column.type}, and ranks need numbers")
    return np.asarray(column.cast(pa.float64()), np.float64)


def _doubled_ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Twice the rank of each, counted from 1 at the lowest, equal values at the mean of their ranks."""
    order = np.argsort(values)
    in_order = values[order]
    last = np.flatnonzero(np.append(in_order[1:] != in_order[:-1], True)[: len(values)]) + 1  # ranks that end a tie
    ties = np.diff(last, prepend=0)
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.repeat(2 * last - ties + 1, ties)
    return ranks
