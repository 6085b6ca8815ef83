"""Patches as far from one another as can be: k-center greedy over vectors (Sener and Savarese 2018)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curate.strategies import Picks, stretch
from curate.strategies._vectors import Points, VectorStrategy, by_patch_id, points_of

__all__ = ["Kcenter"]

_WORTH_A_GPU = 3e10  # multiply-adds: ten seconds on a core; merely to import torch takes three


@dataclass(frozen=True)
class Kcenter(VectorStrategy):
    """Each pick is the candidate whose nearest pick so far is farthest away, equally far ones by their patch_id.

    The picks' largest distance to a candidate is at most twice the smallest possible (Gonzalez 1985), for every prefix.
    Takes N k D multiply-adds for k of N vectors of length D, and memory for the vectors and a few numbers a candidate.
    """

    start: Literal["mean", "seeded"] = "mean"  # the first pick: the nearest to the mean, or any

    needs_score: ClassVar[bool] = False

    def select(self, candidates: pa.Table, budget: int) -> Picks:
        order = by_patch_id(candidates)
        stretch(order, 0, budget)
        points = points_of(candidates.take(order), self.by, self.scale)
        if self.start == "seeded":
            first = int(np.random.default_rng(self.seed).integers(len(order)))
        else:
            first = int(points.squared_distances(points.mean()[None]).argmin())
        if points.grid_ND.size * budget > _WORTH_A_GPU and _has_gpu():
            return Picks.equal(order[_farthest_first_by_torch(points, first, budget, "cuda")])
        return Picks.equal(order[_farthest_first(points, first, budget)])


def _farthest_first(points: Points, first: int, count: int) -> npt.NDArray[np.int64]:
    picks = np.full(count, first)
    nearest_N = np.full(len(points.grid_ND), np.inf)  # squared distance to the nearest pick, -1 for the picks
    for rank in range(1, count):
        last = picks[rank - 1]
        np.minimum(nearest_N, points.squared_distances(points.grid_ND[last : last + 1])[0], out=nearest_N)
        nearest_N[last] = -1
        picks[rank] = nearest_N.argmax()
    return picks


def _farthest_first_by_torch(points: Points, first: int, count: int, device: str) -> npt.NDArray[np.int64]:
    """The same picks, the distances being exact, without ever waiting for the device."""
    import torch

    grid_ND = torch.from_numpy(points.grid_ND).to(device).double()
    norms_N = torch.from_numpy(points.norms_N).to(device)
    picks = torch.full((count,), first, device=device)
    nearest_N = torch.full_like(norms_N, torch.inf)
    for rank in range(1, count):
        last = picks[rank - 1 : rank]
        squared_N = norms_N + norms_N[last] - 2 * (grid_ND @ grid_ND[last][0])
        nearest_N = torch.minimum(nearest_N, squared_N).index_fill_(0, last, -1)
        picks[rank] = nearest_N.argmax()
    return picks.numpy(force=True)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
