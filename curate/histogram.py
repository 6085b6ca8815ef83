"""Between which numbers the ranks of a stream lie, without holding the stream: counts in four million buckets.

A bucket is a range of float64: sign, exponent and ten bits of what follows, so about a thousandth of its numbers wide.
What is cut off by it is exact, since the counts say how many numbers lie outside; what is left is a little too much.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["Histogram", "keys"]

_BITS = 22
_SHIFT = np.uint64(64 - _BITS)
_SIGN = np.uint64(1 << 63)


class Histogram:
    """Counts of finite numbers, in buckets that are in the numbers' order."""

    def __init__(self) -> None:
        self.counts = np.zeros(2**_BITS, np.int64)
        self.total = 0

    def add(self, values_N: npt.NDArray[np.float64]) -> None:
        """Count finite numbers."""
        if len(values_N):
            buckets = (keys(values_N) >> _SHIFT).astype(np.int64)
            lowest = int(buckets.min())
            counts = np.bincount(buckets - lowest)
            self.counts[lowest : lowest + len(counts)] += counts
            self.total += len(values_N)

    def band(self, first: int, end: int, *, descending: bool) -> tuple[float, float, int]:
        """(low, high, before): the numbers at the ranks [first, end) are from low to high, and so are others perhaps.

        `before` is how many ranks lie before the first number from low to high. There must be such ranks.
        """
        start, stop = self._ascending(first, end, descending)
        upto = self.counts.cumsum()
        low, high = (int(np.searchsorted(upto, place, "right")) for place in (start, stop - 1))
        before = self.total - upto[high] if descending else upto[low] - self.counts[low]
        shift = int(_SHIFT)
        return _value(low << shift), _value((high + 1 << shift) - 1), int(before)

    def cuts(self, first: int, end: int, rows: int, *, descending: bool) -> npt.NDArray[np.uint64]:
        """Keys that cut the ranks [first, end) into stretches of up to `rows` numbers and those of one bucket more."""
        start, stop = self._ascending(first, end, descending)
        buckets = np.unique(np.searchsorted(self.counts.cumsum(), np.arange(start + rows, stop, rows), "right"))
        lowest = buckets.astype(np.uint64) << _SHIFT
        return np.sort(~lowest + np.uint64(1)) if descending else lowest

    def _ascending(self, first: int, end: int, descending: bool) -> tuple[int, int]:
        return (self.total - end, self.total - first) if descending else (first, end)


def keys(values_N: npt.NDArray[np.float64]) -> npt.NDArray[np.uint64]:
    """Integers in the order of finite numbers; -0.0 is 0.0."""
    bits = (values_N + 0.0).view(np.uint64)
    return np.where(bits < _SIGN, bits | _SIGN, ~bits)


def _value(key: int) -> float:
    """The number of a key."""
    sign = int(_SIGN)
    bits = key ^ sign if key & sign else key ^ (2**64 - 1)
    return float(np.array(bits, np.uint64).view(np.float64))
