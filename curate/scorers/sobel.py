"""Sobel texture: the mean of (|horizontal| + |vertical| gradient) / 2 on grey."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curate.scorers import MapScorer
from curate.scorers._pixels import grey, sobel_gradients

__all__ = ["Sobel", "texture"]


@dataclass(frozen=True)
class Sobel(MapScorer):
    """The complexity measure of DCSR (Ding et al. 2023): 3x3 Sobel kernels, mirrored edges. No options.

    Grey is in [0, 1]; a step from black to white scores 2 on the two rows or columns beside it.
    """

    columns: ClassVar[tuple[str, ...]] = ("sobel",)
    version: ClassVar[int] = 1
    reach: ClassVar[int | None] = 1

    def build(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        return lambda image_BCHW: texture(grey(image_BCHW))


def texture(grey_B1HW: Tensor) -> Tensor:
    """(|Gx| + |Gy|) / 2 of every pixel, as B1HW."""
    across, down = sobel_gradients(grey_B1HW)
    return across.abs_().lerp_(down.abs_(), 0.5)
