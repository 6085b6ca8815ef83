"""The lowest scores first: the easiest patches, the study's control that should lose (Moser et al. 2024)."""

from dataclasses import dataclass

import pyarrow as pa

from curate.strategies import Picks, Strategy, ranked, stretch

__all__ = ["Asc"]


@dataclass(frozen=True)
class Asc(Strategy):
    """No options."""

    def select(self, candidates: pa.Table, budget: int) -> Picks:
        return Picks.equal(stretch(ranked(candidates, descending=False), 0, budget))
