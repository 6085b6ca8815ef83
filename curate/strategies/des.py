"""The highest scores first: the hardest patches (Moser et al. 2024)."""

from dataclasses import dataclass

import pyarrow as pa

from curate.strategies import Picks, Strategy, ranked, stretch

__all__ = ["Des"]


@dataclass(frozen=True)
class Des(Strategy):
    """No options."""

    def select(self, candidates: pa.Table, budget: int) -> Picks:
        return Picks.equal(stretch(ranked(candidates, descending=True), 0, budget))
