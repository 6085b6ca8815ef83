"""A seeded draw with chances proportional to the score, and weights that undo it (Katharopoulos & Fleuret 2018)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curate.errors import UsageError
from curate.strategies import Picks, Strategy, stretch

__all__ = ["Importance", "chances_of", "drawn"]

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Importance(Strategy):
    """Systematic sampling without replacement (Madow 1949) of the rows in a seeded order.

    With N candidates a row is among the `budget` drawn with a chance proportional to (1 - smooth) * score / sum of the
    scores + smooth / N; rows whose chance would be 1 or more are certain, and the others share what is left. A row's
    weight is the inverse of its chance (Horvitz & Thompson 1952): so weighted, the sum of any loss over the picks is an
    unbiased estimate of its sum over all candidates that have a chance. Last, weights are scaled to mean 1, which makes
    a ratio of two such estimates of it; the more picks, and the smoother, the less that matters.

    A score of 0 has none without `smooth`, unless fewer than `budget` are above 0: these are certain then, and the rest
    is drawn evenly, as for a `smooth` that goes to 0. The picks stay in the seeded order, high and low scores mixed.
    """

    seed: int = 0  # from 0 up
    smooth: float = 0.0  # share of an even draw, from 0 to 1; weights are at most 1 / smooth times those of such a draw

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed should be 0 or more, found {self.seed}")
        if not 0 <= self.smooth <= 1:
            raise ValueError(f"smooth should be from 0 to 1, found {self.smooth}")

    def select(self, candidates: pa.Table, budget: int) -> Picks:
        by_id = np.asarray(pc.sort_indices(candidates, sort_keys=[("patch_id", "ascending")])).astype(np.int64)
        stretch(by_id, 0, budget)  # refuses more than there are
        generator = np.random.default_rng(self.seed)
        order = generator.permutation(by_id)
        scores = np.asarray(candidates["score"], np.float64)[order]
        if scores.min() < 0:
            raise UsageError(f"importance draws by scores of 0 or more, found {scores.min()}")
        sizes = scores / (scores.max() or 1)  # a sum of the scores themselves might overflow
        sizes = (1 - self.smooth) * sizes / (sizes.sum() or 1) + self.smooth / len(sizes)
        chances = chances_of(sizes, budget)
        places = drawn(chances, generator.random())
        inverse = 1 / chances[places]
        return Picks(order[places], (inverse / inverse.mean()).astype(np.float32))


def chances_of(sizes: _Floats, budget: int) -> _Floats:
    """Chances proportional to the sizes but at most 1, whose sum is `budget`."""
    largest = np.sort(sizes)[::-1]
    rest = np.cumsum(largest[::-1])[::-1]  # rest[k] is the sum without the k largest
    below_one = (budget - np.arange(len(sizes))) * largest < rest  # that of the largest left, once k are certain
    if not below_one.any():
        positive = sizes > 0
        others = len(sizes) - int(positive.sum())
        return np.where(positive, 1.0, (budget - int(positive.sum())) / max(others, 1))
    limit = largest[np.argmax(below_one)]
    certain = int((sizes > limit).sum())
    shares = np.minimum(sizes, limit) / rest[certain]
    return np.where(sizes > limit, 1.0, np.minimum(shares * (budget - certain), 1.0))


def drawn(chances: _Floats, start: float) -> npt.NDArray[np.int64]:
    """Rows where the running sum of the chances passes start, start + 1, ... (0 <= start < 1), and the certain ones.

    With `start` drawn evenly each row is among them with its chance. There are always as many as the chances add up to.
    """
    certain, others = np.flatnonzero(chances == 1), np.flatnonzero((chances > 0) & (chances < 1))
    if not len(others):
        return certain
    sums = np.cumsum(chances[others])
    count = round(float(sums[-1]))
    steps = np.arange(count)
    found = np.searchsorted(sums, (start + steps) * (sums[-1] / max(count, 1)), side="right")
    # Rounding can put two points into one row whose chance is all but 1, or one beyond the last row.
    found = np.minimum(np.maximum.accumulate(found - steps) + steps, len(others) - count + steps)
    return np.sort(np.concatenate([certain, others[found]]))
