"""Bicubic loss: how badly plain bicubic up-sampling rebuilds the patch from its LR image; srcnn without a network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curate.archs._layers import check_scale
from curate.metrics import rgb_to_y
from curate.resize import downscale, upscale
from curate.scorers import MapScorer
from curate.tensors import to_float

__all__ = ["Bicubic"]


@dataclass(frozen=True)
class Bicubic(MapScorer):
    """Mean of (Y - bicubic's Y)^2, Y the studio luma / 255: from 0, and 0.74 where black came back white.

    The training-free twin of `srcnn` (Moser et al. 2024), which sharpens this very image. The LR image is the one that
    trainers see: MATLAB's bicubic on RGB, rounded to 8 bits. Whole images are scored, with mirrored borders; nothing is
    cut at a window's edge. High is detail that the LR image has lost; a flat window has 0, but for 1e-12 of rounding.
    It is 10^(-PSNR / 10) of the window.
    """

    scale: int = 2  # 2, 3 or 4

    columns: ClassVar[tuple[str, ...]] = ("bicubic",)
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def build(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        return self._squared_error

    def _squared_error(self, image_BCHW: Tensor) -> Tensor:
        lr_BCHW = downscale((image_BCHW * 255).round().to(torch.uint8), self.scale)
        return (upscale(rgb_to_y(to_float(lr_BCHW)), self.scale) - rgb_to_y(image_BCHW)).square()
