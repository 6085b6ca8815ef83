"""As many patches from each cluster of vectors, the low scores left out: HDC, also DCSR (Ding et al. 2023)."""

from dataclasses import dataclass
from math import fsum

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curate.strategies import Picks, ranked, share, stretch
from curate.strategies._vectors import Points, VectorStrategy, by_patch_id, points_of

__all__ = ["Cluster", "kmeans"]

_STARTS, _STEPS = 10, 300  # of k-means, at most so many steps from each start


@dataclass(frozen=True)
class Cluster(VectorStrategy):
    """The candidates with the lowest scores go; k-means parts the rest; picks are drawn from the clusters in turn.

    A cluster that has no more is passed over, so that every prefix is as even as the clusters allow. With N candidates
    floor((1 - drop_low) * N + 0.5) are left. The k-means is our own: scikit-learn's depends on threads and machine.
    """

    drop_low: float = 0.5  # share of the candidates, from 0 to below 1
    clusters: int = 15  # fewer where fewer vectors differ

    def __post_init__(self) -> None:
        if not 0 <= self.drop_low < 1:
            raise ValueError(f"drop_low should be from 0 to below 1, found {self.drop_low}")
        if self.clusters < 1:
            raise ValueError(f"clusters should be 1 or more, found {self.clusters}")
        super().__post_init__()

    def select(self, candidates: pa.Table, budget: int) -> Picks:
        order = ranked(candidates, descending=True)
        dropped = -share(-self.drop_low, len(order))  # halves stay
        stretch(order[::-1], dropped, budget)
        kept = order[: len(order) - dropped]
        rows = kept[by_patch_id(candidates.take(kept))]
        rng = np.random.default_rng(self.seed)
        points = points_of(candidates.take(rows), self.by, self.scale)
        labels = kmeans(points, self.clusters, rng)
        return Picks.equal(rows[_in_turn(labels, rng)[:budget]])


def _in_turn(labels_N: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """All rows, drawn at random from cluster after cluster, each one's first, then each one's second, ..."""
    shuffled_N = rng.permutation(len(labels_N))
    together_N = shuffled_N[labels_N[shuffled_N].argsort(kind="stable")]
    sizes = np.bincount(labels_N)
    turns_N = np.arange(len(labels_N)) - np.repeat(sizes.cumsum() - sizes, sizes)
    return together_N[turns_N.argsort(kind="stable")]


def kmeans(points: Points, clusters: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """The labels_N with the smallest sum of squared distances to the centres, of ten starts."""
    inertia, best_N = np.inf, None
    for _ in range(_STARTS):
        labels_N, found = _lloyd(points, _spread_centres(points, clusters, rng))
        if found < inertia:
            inertia, best_N = found, labels_N
    assert best_N is not None
    return best_N


def _spread_centres(points: Points, clusters: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Vectors drawn with chances as their squared distance from those drawn (k-means++, Arthur, Vassilvitskii 2007)."""
    picks = [int(rng.integers(len(points.grid_ND)))]
    nearest_N = points.squared_distances(points.grid_ND[picks])[0]
    while len(picks) < clusters and nearest_N.any():
        chances_N = nearest_N.cumsum()  # one after the other, unlike `sum`, whose order is the machine's
        picks.append(int(np.searchsorted(chances_N / chances_N[-1], rng.random(), side="right")))
        np.minimum(nearest_N, points.squared_distances(points.grid_ND[picks[-1:]])[0], out=nearest_N)
    return points.grid_ND[picks].astype(np.float64)


def _lloyd(points: Points, centres_KD: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], float]:
    """The labels_N when they stay as they are, and the sum of squared distances. A centre that loses all, stays."""
    labels_N = np.full(len(points.grid_ND), -1)
    for _ in range(_STEPS):
        squared_KN = points.squared_distances(centres_KD)
        nearest_N = squared_KN.argmin(axis=0)
        if (nearest_N == labels_N).all():
            break
        labels_N = nearest_N
        for k in np.unique(labels_N):
            centres_KD[k] = np.rint(points.grid_ND[labels_N == k].mean(axis=0, dtype=np.float64))
    return labels_N, fsum(squared_KN.min(axis=0))
