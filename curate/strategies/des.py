"""The highest scores first: the hardest patches (Moser et al. 2024)."""

from dataclasses import dataclass

from curate.strategies import Ranked, Stretch, within

__all__ = ["Des"]


@dataclass(frozen=True)
class Des(Ranked):
    """No options."""

    def ranks(self, count: int, budget: int) -> Stretch:
        return Stretch(True, *within(count, 0, budget))
