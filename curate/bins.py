"""Bins of a histogram: even ones, or on a log axis where the numbers span decades."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Spread", "tally"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_WIDE = 30  # times from the 1st to the 99th percentile: from here on a log axis shows more
_POSITIVE = 0.95  # of the numbers, at least, that a log axis must be able to show


@dataclass(frozen=True, slots=True)
class Spread:
    """Where one or more finite numbers lie."""

    count: int
    positive: int  # of these, above zero
    low: float
    high: float
    least: float  # of the positive ones; like the next two 0 if there are none
    p1: float  # 1st percentile of the positive ones
    p99: float

    @classmethod
    def of(cls, values_N: Floats) -> "Spread":
        """Of numbers in memory, at least one."""
        positive = values_N[values_N > 0]
        p1, p99 = np.percentile(positive, [1, 99]).tolist() if len(positive) else (0.0, 0.0)
        least = float(positive.min()) if len(positive) else 0.0
        low, high = float(values_N.min()), float(values_N.max())
        return cls(len(values_N), len(positive), low, high, least, p1, p99)

    @property
    def wide(self) -> bool:
        """Whether a log axis shows more of them."""
        return 0 < self.positive >= _POSITIVE * self.count and self.p99 > _WIDE * self.p1

    @property
    def floor(self) -> float:
        """Where a log axis begins: a few numbers of nearly nothing should not take half of it."""
        return max(self.least, self.p1 / 100)

    def edges(self, bins: int) -> Floats:
        """The bins + 1 edges of as many bins, in order; numbers below the first are there on a log axis alone."""
        if self.wide:
            with np.errstate(all="ignore"):  # near the ends of float64
                return np.geomspace(self.floor, self.high, bins + 1).clip(self.floor, self.high)
        end = self.high if self.high > self.low else min(self.low + max(1.0, abs(self.low)), np.finfo(np.float64).max)
        edges = 2 * np.linspace(self.low / 2, end / 2, bins + 1)  # halved: their distance may be no float64
        edges[0], edges[-1] = self.low, end
        return edges


def tally(values_N: Floats, edges: Floats) -> tuple[Ints, int]:
    """How many finite numbers lie in each bin, the last one with its upper edge, and how many below the first.

    Numbers above the last edge are counted in the last bin.
    """
    bins = len(edges) - 1
    places = np.searchsorted(edges, values_N, "right").clip(max=bins)
    counts = np.bincount(places, minlength=bins + 1)
    return counts[1:], int(counts[0])
