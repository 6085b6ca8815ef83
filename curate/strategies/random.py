"""A seeded draw without replacement, every patch alike: what any choice has to beat."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.strategies import Picks, Strategy, stretch

__all__ = ["Random"]


@dataclass(frozen=True)
class Random(Strategy):
    """The draw depends on the seed and the set of candidates, not on their order in the table."""

    seed: int = 0  # from 0 up

    needs_score: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed should be 0 or more, found {self.seed}")

    def select(self, candidates: pa.Table, budget: int) -> Picks:
        by_id = np.asarray(pc.sort_indices(candidates, sort_keys=[("patch_id", "ascending")])).astype(np.int64)
        return Picks.equal(stretch(np.random.default_rng(self.seed).permutation(by_id), 0, budget))
