"""What scorers with a latent diffusion model share. Not a scorer: its name starts with an underscore.

On a CPU patches go through one by one, so that a patch's score is the same, bit for bit, whatever comes with it. On a
GPU they go in batches of bounded size: scores differ in their last digits with what comes with them.

Axes in names: B batch, C channels, H height, W width, K scores.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from curate import ldm
from curate.ldm import LatentModel
from curate.scorers import PatchScorer
from curate.tensors import halving, has_bfloat16

__all__ = ["LatentScorer", "in_batches"]

_PIXELS = 1 << 21  # that go through a GPU at a time, fewer where memory does not suffice


@dataclass(frozen=True)
class LatentScorer(PatchScorer):
    """The options of all of them."""

    model: Path | None = None  # a folder as diffusers writes it, or a name on the hub; None: the bundled one
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the hardware has it

    def on(self, device: torch.device) -> Self:
        """With the precision that `auto` means on a device."""
        return replace(self, precision="bf16" if has_bfloat16(device) else "fp32") if self.precision == "auto" else self

    def identity(self) -> dict[str, Any]:
        """The options, with the hash of the model's weights and configs for its path."""
        return super().identity() | {"model": ldm.load(self.model).digest}

    def build(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        measure = self.measure(ldm.load(self.model, device=device))
        mixed = self.on(device).precision == "bf16"

        def run(patches_BCHW: Tensor) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                return measure(patches_BCHW)

        def score(patches_BCHW: Tensor) -> Tensor:
            on_gpu = max(_PIXELS // patches_BCHW[0, 0].numel(), 1)
            return in_batches(run, patches_BCHW, 1 if patches_BCHW.device.type == "cpu" else on_gpu)

        return score

    @abstractmethod
    def measure(self, model: LatentModel) -> Callable[[Tensor], Tensor]:
        """Returns patches_BCHW -> scores_BK, of as many patches as go through at a time."""


def in_batches(function: Callable[[Tensor], Tensor], patches_BCHW: Tensor, most: int) -> Tensor:
    """`function` on up to `most` patches at a time, on half as many and so on where a GPU's memory does not suffice."""

    def by(number: int) -> Tensor:
        starts = range(0, len(patches_BCHW), number)
        return torch.cat([function(patches_BCHW[start : start + number]) for start in starts])

    return halving(by, most)
