"""Blur: how little of grey's neighbouring differences a further blur takes away; 1 is blurred, 0 is sharp."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from curate.scorers import MapScorer
from curate.scorers._pixels import flat, grey, ratio

__all__ = ["Blur"]

_SIZE = 9  # px of the further blur, the paper's


@dataclass(frozen=True)
class Blur(MapScorer):
    """The no-reference measure of Crete et al. 2007, 0 to 1; high is blurred. No options.

    Along one axis, d is the difference of neighbours in grey, and b that after a box blur of 9 px. The axis has the
    blur mean of min(|d|, |b|) / mean of |d|, which is the paper's 1 - sum of max(0, |d| - |b|) / sum of |d|; the window
    has that of its more blurred axis. An axis without any difference (stripes along it) says nothing and is left out; a
    flat window, without any at all, has 1, as ever more blur leads to. Noise counts as sharp. Mirrored edges.
    """

    columns: ClassVar[tuple[str, ...]] = ("blur",)
    version: ClassVar[int] = 1
    reach: ClassVar[int | None] = 5

    def build(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        def draw(image_BCHW: Tensor) -> Tensor:
            grey_B1HW = grey(image_BCHW)
            across = _differences(grey_B1HW)
            down = [map_B1HW.transpose(2, 3) for map_B1HW in _differences(grey_B1HW.transpose(2, 3))]
            return torch.cat([*across, *down], dim=1)

        return draw

    def finish(self, means_NK: Tensor) -> Tensor:
        """(N, 1)."""
        across_N, across_left_N, down_N, down_left_N = means_NK.unbind(1)
        blur_N = torch.maximum(ratio(across_left_N, across_N), ratio(down_left_N, down_N))
        return blur_N.masked_fill(flat(across_N) & flat(down_N), 1)[:, None]


def _differences(grey_B1HW: Tensor) -> tuple[Tensor, Tensor]:
    """Along rows, B1HW each: |d|, and what the further blur leaves of it, min(|d|, |b|)."""
    before, after = _SIZE // 2 + 1, _SIZE // 2
    width = grey_B1HW.shape[-1]
    padded = F.pad(grey_B1HW, (before, after, 0, 0), mode="reflect")
    # Neighbouring means over 9 px share 8 of them: their difference is that of the two ends.
    difference = (grey_B1HW - padded[..., before - 1 : before - 1 + width]).abs()
    blurred = (padded[..., -width:] - padded[..., :width]).abs() / _SIZE
    return difference, torch.minimum(difference, blurred)
