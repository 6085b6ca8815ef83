"""The same number of patches from every image (or source, split, bin of the score), so that a few do not take all."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curate.errors import UsageError, one_line
from curate.strategies import Picks, Strategy, ranked, stretch

__all__ = ["Stratified"]

_KNOWN = {"image": "image_id", "score": "score"}  # `per` -> a column that every table of candidates has


@dataclass(frozen=True)
class Stratified(Strategy):
    """The first row of each stratum, then the second of each, ..., until `budget` rows are there.

    This divides the budget into equal shares: a stratum smaller than its share is taken whole, and what it leaves is
    divided among the others. What is left over goes to the first strata in the order of their values. Any prefix is
    balanced as well, and the choice for a smaller budget is a prefix of that for a larger one.

    Strata are the values of `per`: `image`, `score`, or a column of `scores` or `images`; rows without a value are one
    stratum, the last. Floating-point columns are cut into `bins` at their quantiles: a value with B of the M finite
    ones below it is in bin floor(bins * B / M), so that equal values share one. What is not finite has no value here.
    """

    per: str = "image"  # image | score | source | split | ... | a score's column
    order: Literal["des", "asc", "random"] = "des"  # within a stratum: by score, or drawn with the seed
    bins: int = 10  # of numbers that are not whole; other columns have a stratum a value
    seed: int = 0  # from 0 up; of the order `random`

    def __post_init__(self) -> None:
        if not 1 <= self.bins <= 10_000:
            raise ValueError(f"bins should be from 1 to 10000, found {self.bins}")
        if self.seed < 0:
            raise ValueError(f"seed should be 0 or more, found {self.seed}")

    @property
    def needs_score(self) -> bool:  # type: ignore[override] # a class variable elsewhere; here the options decide
        return self.order != "random" or self.per == "score"

    @property
    def columns(self) -> tuple[str, ...]:
        return () if self.per in _KNOWN else (self.per,)

    def select(self, candidates: pa.Table, budget: int) -> Picks:
        if self.order == "random":
            by_id = np.asarray(pc.sort_indices(candidates, sort_keys=[("patch_id", "ascending")])).astype(np.int64)
            order = np.random.default_rng(self.seed).permutation(by_id)
        else:
            order = ranked(candidates, descending=self.order == "des")
        strata = self._strata(candidates)[order]
        by_stratum = np.argsort(strata, kind="stable")
        counts = np.bincount(strata)
        rank_within = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        return Picks.equal(stretch(order[by_stratum[np.argsort(rank_within, kind="stable")]], 0, budget))

    def _strata(self, candidates: pa.Table) -> npt.NDArray[np.int64]:
        """The stratum of each row, numbered in the order of their values."""
        column = candidates[_KNOWN.get(self.per, self.per)]
        if pa.types.is_nested(column.type):
            raise UsageError(f"column '{one_line(self.per)}' holds {column.type}; strata need one value a patch")
        if pa.types.is_floating(column.type):
            return _quantile_bins(np.asarray(column, np.float64), self.bins)
        values = pc.unique(column)
        in_order = values.take(pc.array_sort_indices(values))  # null last
        return np.asarray(pc.index_in(column, value_set=in_order)).astype(np.int64)


def _quantile_bins(values: npt.NDArray[np.float64], bins: int) -> npt.NDArray[np.int64]:
    """floor(bins * B / M) for a value above B of the M finite ones; `bins` for what is not finite."""
    finite = np.isfinite(values)
    in_order = np.sort(values[finite])
    # B is at least ceil(b * M / bins), and the bin b at least, where the value at that place of the order is below.
    places = np.array([-(-b * len(in_order) // bins) - 1 for b in range(1, bins)], np.int64)
    edges = in_order[places] if len(in_order) else in_order
    return np.where(finite, np.searchsorted(edges, values, side="left"), bins)
