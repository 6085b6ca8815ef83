"""Means of maps over windows: each pixel is added up once, however the windows overlap, and a map may come in strips.

The windows' edges cut the image into a small grid of cells; a window is a rectangle of whole cells. Rows are added up
to the cells' rows as they come (one small matrix product, float64), the columns at the end; a summed-area table over
the cells then gives each window by four look-ups.

Axes   K maps, H height, W width, N windows, S rows of cells, T columns of cells
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["WindowMeans", "window_means"]


class WindowMeans:
    """Takes maps of an image from top to bottom, gives their means over N square windows of `size` px.

    Where a pixel of the maps stands for `cell` px of the image each way, one that a window cuts counts by its share.
    A pixel that is not finite makes the means of its own windows NaN, and leaves the others alone.
    """

    def __init__(self, corners_N2: npt.NDArray[np.int32], size: int) -> None:
        self.corners_N2 = corners_N2.astype(np.int64)
        self.size = size
        self.cell = 1
        self._edges = [np.unique([starts, starts + size]) for starts in self.corners_N2.T]
        self._sums: Tensor | None = None  # K, S, W
        self._bad: Tensor | None = None  # K, S, W; how many pixels are not finite, where there are any

    def add(self, maps_KHW: Tensor, top: int = 0, cell: int = 1) -> None:
        """The rows of the maps from `top` on (counted in rows of the maps)."""
        self.cell = cell
        rows_SH, first = _shares(self._edges[0], top, maps_KHW.shape[1], cell)
        if self._sums is None:
            self._sums = maps_KHW.new_zeros(
                (len(maps_KHW), max(len(self._edges[0]) - 1, 0), maps_KHW.shape[2]), dtype=torch.float64
            )
        rows_SH = rows_SH.to(maps_KHW.device)
        sums_KSW = rows_SH @ maps_KHW.double()
        # On a GPU the question would wait for all that was asked of it before.
        if maps_KHW.device.type != "cpu" or not sums_KSW.isfinite().all():
            finite_KHW = maps_KHW.isfinite()
            sums_KSW = rows_SH @ maps_KHW.where(finite_KHW, 0).double()
            if self._bad is None:
                self._bad = torch.zeros_like(self._sums)
            self._bad[:, first : first + len(rows_SH)] += rows_SH @ (~finite_KHW).double()
        self._sums[:, first : first + len(rows_SH)] += sums_KSW

    def means(self) -> Tensor:
        """means_NK float64, on the maps' device."""
        assert self._sums is not None
        means_NK = self._over_windows(self._sums) / (self.size / self.cell) ** 2
        if self._bad is not None:
            means_NK = means_NK.masked_fill(self._over_windows(self._bad) > 0.5 / self.cell**2, torch.nan)
        return means_NK

    def _over_windows(self, sums_KSW: Tensor) -> Tensor:
        """Sums over the windows, sums_NK."""
        columns_TW, _ = _shares(self._edges[1], 0, sums_KSW.shape[2], self.cell)
        cells_KST = sums_KSW @ columns_TW.T.to(sums_KSW.device)
        table_KST = torch.nn.functional.pad(cells_KST, (1, 0, 1, 0)).cumsum(1).cumsum(2)
        (top, left), (bottom, right) = (
            [torch.from_numpy(np.searchsorted(edges, at)) for edges, at in zip(self._edges, places.T, strict=True)]
            for places in (self.corners_N2, self.corners_N2 + self.size)
        )
        upper_KN = table_KST[:, top, right] - table_KST[:, top, left]
        return (table_KST[:, bottom, right] - table_KST[:, bottom, left] - upper_KN).T


def window_means(maps_BKHW: Tensor, corners_N2: npt.NDArray[np.int32], size: int, cell: int = 1) -> Tensor:
    """`WindowMeans` of K maps (of one image, B = 1) that are there as a whole: means_NK float64."""
    means = WindowMeans(corners_N2, size)
    means.add(maps_BKHW[0], 0, cell)
    return means.means()


def _shares(edges: npt.NDArray[np.int64], start: int, count: int, cell: int) -> tuple[Tensor, int]:
    """How much of each of `count` pixels of a map from `start` on lies in each cell that they touch: (S, count).

    And which cell is the first of them. Shares are float64; `edges` are the cells', in px of the image.
    """
    first_H = np.arange(start, start + count) * cell
    begin, end = start * cell, (start + count) * cell
    first = max(int(np.searchsorted(edges, begin, side="right")) - 1, 0)
    last = max(min(int(np.searchsorted(edges, end, side="left")), len(edges) - 1), first)
    lower_S1, upper_S1 = edges[first:last, None], edges[first + 1 : last + 1, None]
    shared = np.minimum(upper_S1, first_H + cell) - np.maximum(lower_S1, first_H)
    return torch.from_numpy(np.maximum(shared, 0) / cell), first
