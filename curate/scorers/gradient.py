"""Gradient statistics of grey: mean and spread of the magnitude, and how far neighbours agree on one direction."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from curate.scorers import MapScorer
from curate.scorers._pixels import grey, ratio, sobel_gradients

__all__ = ["Gradient"]

_SIGMA = 2.0  # px, of the Gaussian under which neighbours are compared
_REACH = 4  # px that it looks to each side


@dataclass(frozen=True)
class Gradient(MapScorer):
    """Three numbers from the gradient g = (gx, gy): 3x3 Sobel / 8, mirrored edges, grey in [0, 1] a pixel. No options.

    gradient.mean       mean of |g|, 0 to 0.56: how much there is to see; 0.5 is a step from black to white
    gradient.std        standard deviation of |g|: high where edges stand on flat ground, low in flat or even texture
    gradient.coherence  0 to 1: 1 where all edges are straight lines, low where directions mix (noise, fine texture).
                        Mean of l1 - l2 over mean of l1 + l2, l the eigenvalues of each pixel's structure tensor
                        (Bigun & Granlund 1987), g g' under RAISR's Gaussian (Romano et al. 2017: sigma 2 px, 9 x 9
                        px): the coherence (l1 - l2) / (l1 + l2) of all pixels, each weighted by its energy l1 + l2.
    A flat window has 0 in all three.
    """

    columns: ClassVar[tuple[str, ...]] = ("mean", "std", "coherence")
    version: ClassVar[int] = 1
    reach: ClassVar[int | None] = 5

    def build(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        return _draw

    def finish(self, means_NK: Tensor) -> Tensor:
        """(N, 3), in the order of the columns."""
        mean_N, square_N, directed_N, energy_N = means_NK.unbind(1)
        std_N = (square_N - mean_N.square()).clamp(min=0).sqrt()
        return torch.stack([mean_N.clamp(min=0), std_N, ratio(directed_N, energy_N)], dim=1)


def _draw(image_BCHW: Tensor) -> Tensor:
    """Magnitude, its square, and of the smoothed structure tensor l1 - l2 and l1 + l2, as B4HW."""
    across, down = (answer_B1HW / 8 for answer_B1HW in sobel_gradients(grey(image_BCHW)))
    square = across.square() + down.square()
    # The tensor as its trace and, for l1 - l2 is the length of this vector, its part with a direction.
    tensor = torch.cat([square, across.square() - down.square(), 2 * across * down], dim=1)
    trace, cosine, sine = _smooth(tensor).chunk(3, dim=1)
    return torch.cat([square.sqrt(), square, torch.hypot(cosine, sine), trace], dim=1)


def _smooth(maps_BKHW: Tensor) -> Tensor:
    """Means under the Gaussian, of the same size; mirrored edges."""
    weights = [math.exp(-(tap**2) / (2 * _SIGMA**2)) for tap in range(-_REACH, _REACH + 1)]
    for axis, pad in ((2, (0, 0, _REACH, _REACH)), (3, (_REACH, _REACH, 0, 0))):
        padded = F.pad(maps_BKHW, pad, mode="reflect")
        smoothed = torch.zeros_like(maps_BKHW)
        for tap, weight in enumerate(weights):
            smoothed.add_(padded.narrow(axis, tap, maps_BKHW.shape[axis]), alpha=weight / sum(weights))
        maps_BKHW = smoothed
    return maps_BKHW
