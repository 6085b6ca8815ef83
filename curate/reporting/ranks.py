"""Where a choice lies in the order of a score: its window, ranks of patches, and how far two orders agree.

Ranks count from 0, the highest score first, equal scores by patch_id, as `curate select` counts. All arrays have an
entry a patch, in the order of patch_id.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Window", "correlation", "descending", "share_by_rank", "window"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Window:
    """What one choice takes of the candidates, in the descending order of one score."""

    candidates: int  # with a finite score
    chosen: int  # of these
    first: int  # rank of the highest score that was chosen
    last: int  # rank of the lowest
    gaps: int  # candidates that were not chosen though others above and below were; equal scores at an end are none
    low: float  # the lowest score that was chosen
    high: float

    @property
    def unbroken(self) -> bool:
        """Whether the choice is one stretch of the order."""
        return self.gaps == 0


def descending(score: Floats, candidates: Mask) -> Ints:
    """Rows of the candidates with a finite score, the highest first, equal ones in the order of the rows."""
    rows = np.flatnonzero(candidates & np.isfinite(score))
    return rows[np.argsort(-score[rows], kind="stable")]


def window(score: Floats, order: Ints, chosen: Mask) -> Window | None:
    """The window of `chosen` in an order as `descending` gives it; None if none of it is there."""
    places = np.flatnonzero(chosen[order])
    if not len(places):
        return None
    ordered = score[order]
    high, low = ordered[places[0]], ordered[places[-1]]
    inside = (ordered < high) & (ordered > low) & ~chosen[order]
    first = int(places[0])
    return Window(
        candidates=len(order),
        chosen=len(places),
        first=first,
        last=int(places[-1]),
        gaps=int(inside.sum()),
        low=float(low),
        high=float(high),
    )


def share_by_rank(chosen: Mask, order: Ints, bins: int) -> tuple[Ints, Floats]:
    """The share of the patches that was chosen, stretch by stretch of the order: (edges, shares).

    Stretch i holds ranks edges[i] to edges[i + 1] - 1. There are about `bins` of about equal length, fewer of few
    patches; one begins at the first that was chosen and one ends at the last, so that a picture shows both exactly.
    """
    there = chosen[order]
    places = np.flatnonzero(there)
    ends = [places[0], places[-1] + 1] if len(places) else []
    edges = np.unique(np.r_[np.linspace(0, len(order), bins + 1).round(), ends]).astype(np.int64)
    taken = np.r_[0, np.cumsum(there)]
    return edges, np.diff(taken[edges]) / np.diff(edges)


def correlation(one: Floats, other: Floats) -> float | None:
    """Spearman's rank correlation over the patches with both scores, ties at their mean rank.

    None for fewer than three patches, or where a score is the same everywhere.
    """
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < 3:
        return None
    a, b = _mean_ranks(one[both]), _mean_ranks(other[both])
    if a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _mean_ranks(values: Floats) -> Floats:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    return (ends - (count + 1) / 2)[place]
