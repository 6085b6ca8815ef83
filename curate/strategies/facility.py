"""Patches that every patch has a similar one among: facility location over vectors (Mirzasoleiman et al. 2015)."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, log
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curate.strategies import Picks, stretch
from curate.strategies._vectors import Points, VectorStrategy, by_patch_id, points_of

__all__ = ["Facility"]

_UNIT = np.float32(2**22)  # similarities are whole numbers of 1 / _UNIT: float32 holds them, float64 sums them exactly
_AT_ONCE = 2**20  # similarities computed at a time: 12 MiB with what they are made from


@dataclass(frozen=True)
class Facility(VectorStrategy):
    """Each pick adds the most to the sum, over all candidates, of the similarity to the pick most similar to it.

    Similarity is 1 / (1 + d), d in units of the root mean squared distance from the mean. Up to `limit` candidates the
    greedy choice is exact, 1 - 1/e of the best possible sum or more, and keeps all N x N similarities: 4 N^2 bytes,
    1.6 GB for 20,000. Beyond it each pick is the best of a seeded draw of N/k ln(1/epsilon) candidates that are left,
    1 - 1/e - epsilon in expectation; similarities are made when needed, ln(1/epsilon) N^2 D multiply-adds in all.
    """

    limit: int = 20_000  # candidates that the choice is exact for
    epsilon: float = 0.01  # above 0 and below 1; smaller is closer to exact, and slower

    needs_score: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"limit should be 0 or more, found {self.limit}")
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon should be above 0 and below 1, found {self.epsilon}")
        super().__post_init__()

    def select(self, candidates: pa.Table, budget: int) -> Picks:
        order = by_patch_id(candidates)
        stretch(order, 0, budget)
        points = points_of(candidates.take(order), self.by, self.scale)
        if len(order) <= self.limit:
            return Picks.equal(order[_lazy_greedy(points, budget)])
        draw = ceil(len(order) / budget * log(1 / self.epsilon))
        return Picks.equal(order[_stochastic_greedy(points, budget, draw, np.random.default_rng(self.seed))])


def _lazy_greedy(points: Points, count: int) -> list[int]:
    """A gain only ever shrinks: one that is still the largest when computed anew is the largest (Minoux 1978)."""
    size = len(points.grid_ND)
    similar_NN = np.empty((size, size), np.float32)
    variance = points.variance()
    for rows in _portions(np.arange(size), size):
        similar_NN[rows] = _similarities(points, rows, variance)
    covered_N, total = np.zeros(size, np.float32), 0.0
    heap = [(-gain, row) for row, gain in enumerate(similar_NN.sum(axis=1, dtype=np.float64).tolist())]
    heapq.heapify(heap)
    picks: list[int] = []
    while len(picks) < count:
        row = heapq.heappop(heap)[1]
        with_row_N = np.maximum(covered_N, similar_NN[row])
        with_row = float(with_row_N.sum(dtype=np.float64))
        fresh = (total - with_row, row)
        if heap and heap[0] < fresh:
            heapq.heappush(heap, fresh)
        else:
            covered_N, total = with_row_N, with_row
            picks.append(row)
    return picks


def _stochastic_greedy(points: Points, count: int, draw: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    size = len(points.grid_ND)
    variance = points.variance()
    covered_N = np.zeros(size, np.float32)
    order = np.arange(size)  # the picks, then the rest
    for rank in range(count):
        places = rank + rng.choice(size - rank, min(draw, size - rank), replace=False, shuffle=False)
        places = places[order[places].argsort()]
        most = -1.0
        for some in _portions(places, size):
            with_MN = np.maximum(covered_N, _similarities(points, order[some], variance))
            totals_M = with_MN.sum(axis=1, dtype=np.float64)
            if totals_M.max() > most:
                top = totals_M.argmax()
                most, place, best_N = totals_M[top], some[top], with_MN[top]
        covered_N = best_N
        order[[rank, place]] = order[[place, rank]]
    return order[:count]


def _similarities(points: Points, rows: npt.NDArray[np.int64], variance: float) -> npt.NDArray[np.float32]:
    """Of some rows to all, as similar_MN: every step rounds as IEEE 754 says, so alike on every machine."""
    squared_MN = points.squared_distances(points.grid_ND[rows])
    squared_MN /= variance
    similar_MN = squared_MN.astype(np.float32)
    np.sqrt(similar_MN, out=similar_MN)
    similar_MN += 1
    np.divide(_UNIT, similar_MN, out=similar_MN)
    return np.rint(similar_MN, out=similar_MN)


def _portions(rows: npt.NDArray[np.int64], size: int) -> Iterator[npt.NDArray[np.int64]]:
    """The rows, as many at a time as have `_AT_ONCE` similarities to `size` candidates."""
    step = max(1, _AT_ONCE // size)
    return (rows[start : start + step] for start in range(0, len(rows), step))
