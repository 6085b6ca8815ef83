"""Sobel texture: the mean of (|horizontal| + |vertical| gradient) / 2 on grey."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from curate.scorers import MapScorer
from curate.scorers._pixels import grey

__all__ = ["Sobel", "texture"]


@dataclass(frozen=True)
class Sobel(MapScorer):
    """The complexity measure of DCSR (Ding et al. 2023): 3x3 Sobel kernels, mirrored edges. No options.

    Grey is in [0, 1]; a step from black to white scores 2 on the two rows or columns beside it.
    """

    columns: ClassVar[tuple[str, ...]] = ("sobel",)
    version: ClassVar[int] = 2
    reach: ClassVar[int | None] = 1

    def build(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        return lambda image_BCHW: texture(grey(image_BCHW))


def texture(grey_B1HW: Tensor) -> Tensor:
    """(|Gx| + |Gy|) / 2 of every pixel, as B1HW.

    With b the sums of 2x2 px, one has Gx = d + e and Gy = d - e, where d and e are the differences of b along the two
    diagonals; and |d + e| + |d - e| is twice the larger of |d| and |e|.
    """
    padded = F.pad(grey_B1HW, (1, 1, 1, 1), mode="reflect")
    pairs = padded[..., :-1, :] + padded[..., 1:, :]
    sums = pairs[..., :-1] + pairs[..., 1:]
    down_right = sums[..., 1:, 1:] - sums[..., :-1, :-1]
    up_right = sums[..., :-1, 1:] - sums[..., 1:, :-1]
    return torch.maximum(down_right.abs_(), up_right.abs_())
