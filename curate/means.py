"""Means of maps over windows: each pixel is added up once, however the windows overlap, and a map may come in strips.

The windows' edges cut the image into a small grid of cells; a window is a rectangle of whole cells. Rows are added up
to the cells' rows as they come, in float64, the columns at the end; a summed-area table over
the cells then gives each window by four look-ups.

Axes   K maps, H height, W width, N windows, S rows of cells, T columns of cells
"""

import math
from itertools import pairwise

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
        self._rows_SH = torch.empty(0, 0, dtype=torch.float64)  # the share of each row of the maps in each row of cells
        self._sums: Tensor | None = None  # K, S, W
        self._bad: Tensor | None = None  # K, S, W; how many pixels are not finite, where there are any

    def add(self, maps_KHW: Tensor, top: int = 0, cell: int = 1) -> None:
        """The rows of the maps from `top` on (counted in rows of the maps)."""
        if self._sums is None:
            self.cell = cell
            self._rows_SH = _shares(self._edges[0], cell)
            self._sums = maps_KHW.new_zeros((len(maps_KHW), len(self._rows_SH), maps_KHW.shape[2]), dtype=torch.float64)
        first, last = self._cells(top, maps_KHW.shape[1])
        sums_KSW = self._over_rows(maps_KHW, top, first, last)
        # On a GPU the question would wait for all that was asked of it before.
        if maps_KHW.device.type != "cpu" or not math.isfinite(sums_KSW.sum().item()):
            finite_KHW = maps_KHW.isfinite()
            sums_KSW = self._over_rows(maps_KHW.where(finite_KHW, 0), top, first, last)
            if self._bad is None:
                self._bad = torch.zeros_like(self._sums)
            self._bad[:, first:last] += self._over_rows((~finite_KHW).float(), top, first, last)
        self._sums[:, first:last] += sums_KSW

    def _over_rows(self, maps_KHW: Tensor, top: int, first: int, last: int) -> Tensor:
        """Sums over the rows of each row of cells, sums_KSW float64; below the last window nothing is asked."""
        if maps_KHW.device.type == "cpu" and self.cell == 1:  # whole pixels: half the time of the product
            cuts = (self._edges[0][first : last + 1] - top).clip(0, maps_KHW.shape[1]).tolist()
            sums_KSW = np.empty((len(maps_KHW), last - first, maps_KHW.shape[2]))
            for row, (begin, end) in enumerate(pairwise(cuts)):
                maps_KHW.numpy()[:, begin:end].sum(1, np.float64, sums_KSW[:, row])
            return torch.from_numpy(sums_KSW)
        rows_SH = self._rows_SH[first:last, top : top + maps_KHW.shape[1]].to(maps_KHW.device)
        return rows_SH @ maps_KHW[:, : rows_SH.shape[1]].double()

    def _cells(self, top: int, height: int) -> tuple[int, int]:
        """Which rows of cells these rows of the maps touch: first and end."""
        edges, begin, end = self._edges[0], top * self.cell, (top + height) * self.cell
        first = max(int(np.searchsorted(edges, begin, side="right")) - 1, 0)
        return first, max(min(int(np.searchsorted(edges, end, side="left")), len(edges) - 1), first)

    def means(self) -> Tensor:
        """means_NK float64, on the maps' device."""
        assert self._sums is not None
        means_NK = self._over_windows(self._sums) / (self.size / self.cell) ** 2
        if self._bad is not None:
            means_NK = means_NK.masked_fill(self._over_windows(self._bad) > 0.5 / self.cell**2, torch.nan)
        return means_NK

    def _over_windows(self, sums_KSW: Tensor) -> Tensor:
        """Sums over the windows, sums_NK."""
        columns_TW = _shares(self._edges[1], self.cell).to(sums_KSW.device)
        cells_KST = sums_KSW[..., : columns_TW.shape[1]] @ columns_TW.T
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


def _shares(edges: npt.NDArray[np.int64], cell: int) -> Tensor:
    """How much of each pixel of a map, up to the last edge, lies in each cell: float64 (cells, pixels).

    `edges` are the cells', in px of the image, of which a pixel of the map stands for `cell`.
    """
    count = -(-int(edges[-1]) // cell) if len(edges) else 0
    first_H = np.arange(count) * cell
    shared = np.minimum(edges[1:, None], first_H + cell) - np.maximum(edges[:-1, None], first_H)
    return torch.from_numpy(np.maximum(shared, 0) / cell)
