"""Sobel texture: the mean of (|horizontal| + |vertical| gradient) / 2 on grey."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from curate.scorers import MapScorer

__all__ = ["Sobel", "texture"]

_GREY = (0.299, 0.587, 0.114)  # BT.601 full range, what "grey" means to OpenCV and Pillow


@dataclass(frozen=True)
class Sobel(MapScorer):
    """The complexity measure of DCSR (Ding et al. 2023): 3x3 Sobel kernels, mirrored edges. No options.

    Grey is in [0, 1]; a step from black to white scores 2 on the two rows or columns beside it.
    """

    columns: ClassVar[tuple[str, ...]] = ("sobel",)
    version: ClassVar[int] = 1

    def build(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        grey_weights = torch.tensor(_GREY, device=device).view(1, 3, 1, 1)
        return lambda image_BCHW: texture((image_BCHW * grey_weights).sum(1, keepdim=True))


def texture(grey_B1HW: Tensor) -> Tensor:
    """(|Gx| + |Gy|) / 2 of every pixel, as B1HW: the kernels are separable, (1 2 1) across and (-1 0 1) along."""
    padded = F.pad(grey_B1HW, (1, 1, 1, 1), mode="reflect")
    rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    columns = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    across = rows[..., 2:] - rows[..., :-2]
    down = columns[..., 2:, :] - columns[..., :-2, :]
    return (across.abs() + down.abs()) / 2
