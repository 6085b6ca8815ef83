"""The lowest scores first: the easiest patches, the study's control that should lose (Moser et al. 2024)."""

from dataclasses import dataclass

from curate.strategies import Ranked, Stretch, within

__all__ = ["Asc"]


@dataclass(frozen=True)
class Asc(Ranked):
    """No options."""

    def ranks(self, count: int, budget: int) -> Stretch:
        return Stretch(False, *within(count, 0, budget))
