"""Latent: what a latent diffusion model's autoencoder sees in the patch, pooled, as a vector to compare patches by.

Axes in names: B batch, C channels, H height, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from curate.ldm import LatentModel
from curate.scorers._latents import LatentScorer

__all__ = ["Latent"]


@dataclass(frozen=True)
class Latent(LatentScorer):
    """For each channel of the latents: its mean, its standard deviation, its means over a grid; one list.

    Patches that look alike have like vectors; high and low mean nothing. Latents are those that the denoiser sees
    (about unit variance), but channels differ: standardise each number over the patches before distances, as `kcenter`
    and `cluster` do. Works with an autoencoder alone. K is C (2 + cells^2): 24 for four channels and 2 x 2 cells, which
    tell how a patch is laid out; with cells=1 the list is mean and deviation, the same for a patch turned or mirrored
    in so far as its latents are. The patch's sides should be multiples of the model's, as for `ldm`.
    """

    cells: int = 2  # a side of the grid

    columns: ClassVar[tuple[str, ...]] = ("latent",)
    vector: ClassVar[bool] = True
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 1 <= self.cells <= 8:
            raise ValueError(f"cells should be 1 to 8, found {self.cells}")

    def measure(self, model: LatentModel) -> Callable[[Tensor], Tensor]:
        def pooled(patches_BCHW: Tensor) -> Tensor:
            latents_BCHW = model.encode(patches_BCHW)
            flat_BCN = latents_BCHW.flatten(2)
            parts = [flat_BCN.mean(2), flat_BCN.std(2, correction=0)]
            if self.cells > 1:
                parts.append(F.adaptive_avg_pool2d(latents_BCHW, self.cells).flatten(1))
            return torch.cat(parts, dim=1)

        return pooled
