"""The ranks from one share to another of the descending order: 25 % to 75 % by default."""

from dataclasses import dataclass

from curate.errors import UsageError
from curate.strategies import Ranked, Stretch, share

__all__ = ["Window"]


@dataclass(frozen=True)
class Window(Ranked):
    """With N candidates the ranks [floor(lo * N + 0.5), floor(hi * N + 0.5)), of which the first `budget` are kept.

    So `keep` only shortens the range, at its easy end: say `--keep 1` for the whole of any. The default of a half is
    as wide as the default range.
    """

    lo: float = 0.25  # share of the candidates, from 0 to below `hi`
    hi: float = 0.75  # share of the candidates, to 1

    def __post_init__(self) -> None:
        if not 0 <= self.lo < self.hi <= 1:
            raise ValueError(f"lo and hi should be 0 <= lo < hi <= 1, found lo={self.lo} and hi={self.hi}")

    def ranks(self, count: int, budget: int) -> Stretch:
        first, end = share(self.lo, count), share(self.hi, count)
        if first == end:
            raise UsageError(f"no rank lies from {self.lo} to {self.hi} of {count} candidates; widen lo to hi")
        return Stretch(True, first, min(end, first + budget))
