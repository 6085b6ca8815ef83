"""Noise: the standard deviation of white noise that would explain the window's finest differences of grey."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from curate.scorers import MapScorer
from curate.scorers._pixels import LEVELS, grey

__all__ = ["Noise"]


@dataclass(frozen=True)
class Noise(MapScorer):
    """sigma = sqrt(pi / 2) / 6 * mean of |(1 -2 1; -2 4 -2; 1 -2 1) * grey| (Immerkaer 1996). No options.

    In levels of 8 bits, 0 to 426 (a chequerboard). High is noise, or texture as fine as noise: read it beside another
    score. The mask answers nothing to flat windows, slopes, and straight edges along rows or columns. Independent noise
    of one sigma in each of R, G and B is 0.67 sigma in grey; the rounding to 8 bits is 0.2. As in the paper, the
    outermost pixels of the image have no answer of their own: they take their neighbours'.
    """

    columns: ClassVar[tuple[str, ...]] = ("noise",)
    version: ClassVar[int] = 1
    reach: ClassVar[int | None] = 2

    def build(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        return _draw

    def finish(self, means_NK: Tensor) -> Tensor:
        """sigma in levels: (N, 1)."""
        return means_NK.clamp(min=0) * (LEVELS * math.sqrt(math.pi / 2) / 6)


def _draw(image_BCHW: Tensor) -> Tensor:
    """|mask * grey| as B1HW: the mask is (1 -2 1) down times (1 -2 1) across."""
    grey_B1HW = grey(image_BCHW)
    down = grey_B1HW[..., :-2, :] + grey_B1HW[..., 2:, :] - 2 * grey_B1HW[..., 1:-1, :]
    answer = down[..., :-2] + down[..., 2:] - 2 * down[..., 1:-1]
    return F.pad(answer.abs(), (1, 1, 1, 1), mode="replicate")
