"""The highest scores first, without the very hardest: ranks 5 % to 55 % by default (Moser et al. 2024)."""

from dataclasses import dataclass

import pyarrow as pa

from curate.strategies import Picks, Strategy, ranked, share, stretch

__all__ = ["Refined"]


@dataclass(frozen=True)
class Refined(Strategy):
    """With N candidates the first floor(drop_top * N + 0.5) ranks of the descending order are passed over."""

    drop_top: float = 0.05  # share of the candidates, from 0 to below 1

    def __post_init__(self) -> None:
        if not 0 <= self.drop_top < 1:
            raise ValueError(f"drop_top should be from 0 to below 1, found {self.drop_top}")

    def select(self, candidates: pa.Table, budget: int) -> Picks:
        order = ranked(candidates, descending=True)
        return Picks.equal(stretch(order, share(self.drop_top, len(order)), budget))
