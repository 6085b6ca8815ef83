"""The highest scores first, without the very hardest: ranks 5 % to 55 % by default (Moser et al. 2024)."""

from dataclasses import dataclass

from curate.strategies import Ranked, Stretch, share, within

__all__ = ["Refined"]


@dataclass(frozen=True)
class Refined(Ranked):
    """With N candidates the first floor(drop_top * N + 0.5) ranks of the descending order are passed over."""

    drop_top: float = 0.05  # share of the candidates, from 0 to below 1

    def __post_init__(self) -> None:
        if not 0 <= self.drop_top < 1:
            raise ValueError(f"drop_top should be from 0 to below 1, found {self.drop_top}")

    def ranks(self, count: int, budget: int) -> Stretch:
        return Stretch(True, *within(count, share(self.drop_top, count), budget))
