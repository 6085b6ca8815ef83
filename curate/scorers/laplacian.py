"""Sharpness: the variance of the Laplacian over the window, on grey."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from curate.scorers import MapScorer
from curate.scorers._pixels import LEVELS, grey

__all__ = ["Laplacian"]


@dataclass(frozen=True)
class Laplacian(MapScorer):
    """Mean of L^2 less the squared mean of L, where L = (0 1 0; 1 -4 1; 0 1 0) * grey, mirrored edges. No options.

    The focus measure of Pech-Pacheco et al. 2000, by which LSDIR (Li et al. 2023) leaves out blurred photographs. In
    squared levels of 8 bits, as OpenCV's users quote it (often with 100 as the least of a sharp photograph), from 0 up
    to 1020^2. High is sharp, and so is noise; a flat window and an even slope have 0. Grey is not rounded.
    """

    columns: ClassVar[tuple[str, ...]] = ("laplacian",)
    version: ClassVar[int] = 1
    reach: ClassVar[int | None] = 1

    def build(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        def draw(image_BCHW: Tensor) -> Tensor:
            laplacian_B1HW = _laplacian(grey(image_BCHW))
            return torch.cat([laplacian_B1HW, laplacian_B1HW.square()], dim=1)

        return draw

    def finish(self, means_NK: Tensor) -> Tensor:
        """The variance, in squared levels: (N, 1)."""
        mean_N1, square_N1 = means_NK.chunk(2, dim=1)
        return (square_N1 - mean_N1.square()).clamp(min=0) * LEVELS**2


def _laplacian(grey_B1HW: Tensor) -> Tensor:
    """The Laplacian of every pixel, as B1HW; 0 to the last bit where grey is flat."""
    padded = F.pad(grey_B1HW, (1, 1, 1, 1), mode="reflect")
    down = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] - 2 * grey_B1HW
    across = padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:] - 2 * grey_B1HW
    return down + across
