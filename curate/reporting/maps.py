"""Maps: a score drawn over a whole photograph from the scores of its windows, and the outline of those chosen.

No model runs: a place has the mean score of the windows that cover it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt

from curate.reporting.facts import Facts
from curate.reporting.figures import is_wide

__all__ = ["Scale", "Windows", "borders", "means", "ordered", "outline", "painted", "remainder", "scale", "windows_of"]

Line = tuple[int, int, int, int]  # x, y, and x, y of its other end, px
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_COLOURS = "viridis"  # even in brightness, and told apart by people with any colour vision


class Windows(NamedTuple):
    """Places in one photograph, px."""

    y: Ints
    x: Ints
    size: Ints

    def take(self, mask: npt.NDArray[np.bool_]) -> "Windows":
        """Some of them."""
        return Windows(self.y[mask], self.x[mask], self.size[mask])


@dataclass(frozen=True)
class Scale:
    """From a score to a colour."""

    low: float
    high: float
    log: bool

    def colours(self, values: Floats) -> npt.NDArray[np.uint8]:
        """uint8 RGBA of each value; clear for NaN."""
        low, high, shown = self.low, self.high, values
        if self.log:
            low, high, shown = np.log(low), np.log(high), np.log(np.maximum(values, low))
        place = np.clip((shown - low) / (high - low or 1.0), 0, 1)
        ramp = matplotlib.colormaps[_COLOURS](np.nan_to_num(place), bytes=True)
        ramp[np.isnan(values)] = 0
        return np.asarray(ramp, np.uint8)

    def ramp(self) -> npt.NDArray[np.uint8]:
        """The colours from low to high, for a legend: nine, uint8 RGBA."""
        return np.asarray(matplotlib.colormaps[_COLOURS](np.linspace(0, 1, 9), bytes=True), np.uint8)

    def stops(self) -> list[str]:
        """The same as CSS has them."""
        return [f"rgb({r},{g},{b})" for r, g, b, _ in self.ramp().tolist()]


def scale(score: Floats) -> Scale:
    """A scale for a whole store: from the 1st to the 99th percentile, in logarithms where that shows more."""
    values = score[np.isfinite(score)]
    low, high = np.percentile(values, [1, 99]) if len(values) else (0.0, 1.0)
    log = is_wide(values)
    if log:
        low = max(low, values[values > 0].min())
    return Scale(float(low), float(high), log)


def ordered(facts: Facts, score: Floats) -> Ints:
    """Rows of the images with a score, from the one of the highest mean to that of the lowest."""
    there = np.isfinite(score)
    windows = np.bincount(facts.image[there], minlength=facts.images.num_rows)
    sums = np.bincount(facts.image[there], score[there], minlength=facts.images.num_rows)
    rows = np.flatnonzero(windows)
    return rows[np.argsort(-sums[rows] / windows[rows], kind="stable")]


def means(windows: Windows, score: Floats, photograph: tuple[int, int], shown: tuple[int, int]) -> Floats:
    """The mean score of the windows over each place of a photograph of (height, width) px, NaN under none.

    The answer has `shown` (rows, columns), whatever the photograph's size.
    """
    finite = np.isfinite(score)
    there = windows.take(finite)
    rows, columns = _edges(there, photograph)
    weights = (score[finite], np.ones(len(there.y)))
    total, count = (_depth(rows, columns, there, weight) for weight in weights)
    mean = np.where(count > 0.5, total / np.maximum(count, 1), np.nan)
    at_y, at_x = ((np.arange(n) + 0.5) * length / n for n, length in zip(shown, photograph, strict=True))
    return mean[np.ix_(np.searchsorted(rows, at_y, "right") - 1, np.searchsorted(columns, at_x, "right") - 1)]


def borders(windows: Windows, photograph: tuple[int, int]) -> list[Line]:
    """The border of the area under the windows, as lines in px of the photograph, which is (height, width) px."""
    rows, columns, covered = _covered(windows, photograph)
    padded = np.pad(covered, 1)
    level = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]).tolist()
    upright = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]).tolist()
    lines = [(columns[column], rows[row], columns[column + 1], rows[row]) for row, column in level]
    return lines + [(columns[column], rows[row], columns[column], rows[row + 1]) for row, column in upright]


def outline(windows: Windows, photograph: tuple[int, int]) -> str:
    """The same as an SVG path."""
    lines = borders(windows, photograph)
    return "".join(f"M{x} {y}{f'H{right}' if y == bottom else f'V{bottom}'}" for x, y, right, bottom in lines)


def remainder(windows: Windows, photograph: tuple[int, int]) -> str:
    """The area that no window covers, as an SVG path to be filled: rectangles that do not overlap."""
    rows, columns, covered = _covered(windows, photograph)
    path = []
    for row, under in enumerate(covered):
        ends = np.flatnonzero(np.diff(np.r_[True, under, True])).reshape(-1, 2).tolist()
        path += [f"M{columns[a]} {rows[row]}H{columns[b]}V{rows[row + 1]}H{columns[a]}Z" for a, b in ends]
    return "".join(path)


def _covered(windows: Windows, photograph: tuple[int, int]) -> tuple[list[int], list[int], npt.NDArray[np.bool_]]:
    """Where windows begin and end along y and x, and which of the rectangles between these lie under a window."""
    rows, columns = _edges(windows, photograph)
    covered = _depth(rows, columns, windows, np.ones(len(windows.y))) > 0.5
    return rows.tolist(), columns.tolist(), covered


def painted(
    photo_HW3: npt.NDArray[np.uint8], colours_HW4: npt.NDArray[np.uint8], strength: float
) -> npt.NDArray[np.uint8]:
    """A photograph with a map over it, as one picture, uint8 RGB."""
    alpha_HW1 = strength * (colours_HW4[..., 3:] / 255)
    mixed: npt.NDArray[np.float64] = photo_HW3 * (1 - alpha_HW1) + colours_HW4[..., :3] * alpha_HW1
    return mixed.round().astype(np.uint8)


def _edges(windows: Windows, photograph: tuple[int, int]) -> tuple[Ints, Ints]:
    """Where windows begin and end along y, and along x, with both ends of the photograph."""
    y, x, size = windows
    height, width = photograph
    return np.unique(np.r_[0, y, y + size, height]), np.unique(np.r_[0, x, x + size, width])


def _depth(rows: Ints, columns: Ints, windows: Windows, weight: Floats) -> Floats:
    """The sum of the weights of the windows over each rectangle between the edges."""
    y, x, size = windows
    corners = np.zeros((len(rows), len(columns)))
    top, left = np.searchsorted(rows, y), np.searchsorted(columns, x)
    bottom, right = np.searchsorted(rows, y + size), np.searchsorted(columns, x + size)
    for sign, row, column in ((1, top, left), (-1, bottom, left), (-1, top, right), (1, bottom, right)):
        np.add.at(corners, (row, column), sign * weight)
    return corners.cumsum(0).cumsum(1)[:-1, :-1]


def windows_of(facts: Facts, rows: Ints) -> Windows:
    """The windows of some patches."""
    return Windows(*(facts.patches[name].to_numpy()[rows].astype(np.int64) for name in ("y", "x", "size")))
