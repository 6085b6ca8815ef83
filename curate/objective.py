"""What a training minimises for a batch: how far a network's answers are from HR, and their way back from LR.

For each of the network's outputs the distance (`losses`) to HR of that size, added up; with `dual`, that weight times
the distances between what the dual networks make of the answers (`dual`) and the images one step below: LR itself for
the last step, which is the step that learns how LR was made. Smaller HR is MATLAB's bicubic of the whole photograph,
whatever LR is: the images in between are clean ones.

Axes in names: B batch, C channels (luma or RGB), H height, W width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from curate import degrade, losses
from curate.archs import Arch
from curate.degrade import Degradation
from curate.dual import Answer
from curate.loader import Batch
from curate.losses import PixelLoss
from curate.metrics import rgb_to_y

__all__ = ["Images", "Objective", "Parts"]


class Images(NamedTuple):
    """A batch as a network sees it: luma or RGB, values up to its `peak`."""

    lr_BCHW: Tensor
    targets: tuple[Tensor, ...]  # HR at each of the arch's outputs; the last one is HR itself
    weight_B: Tensor

    @property
    def lower(self) -> tuple[Tensor, ...]:
        """What each dual network should make."""
        return (self.lr_BCHW, *self.targets[1:-1])


class Parts(NamedTuple):
    """The loss of each sample, weighted by nothing yet."""

    primal_B: Tensor
    dual_B: Tensor  # 0 without dual networks


@dataclass(frozen=True)
class Objective:
    """How a network's answers to a batch are judged."""

    arch: Arch
    loss: PixelLoss = "l1"
    hfen: float = 0.0
    dual: float = 0.0  # weight of the way back
    degradation: Degradation | None = None  # None, or bicubic: LR as the loader has it

    @property
    def between(self) -> tuple[int, ...]:
        """By what the loader is to shrink HR for the targets below the last one (`loader.batches`)."""
        return tuple(self.arch.scale // output for output in self.arch.outputs[:-1])

    def images(self, batch: Batch) -> Images:
        """What the network is given and what it should answer, on the batch's device."""
        lr_BCHW = batch.lr_BCHW
        if self.degradation is not None and not isinstance(self.degradation, degrade.Bicubic):
            lr_BCHW = self.degradation(batch.hr_BCHW, batch.seed_B.tolist())
        targets = tuple(self.seen(image_BCHW) for image_BCHW in (*batch.between, batch.hr_BCHW))
        return Images(self.seen(lr_BCHW), targets, batch.weight_B)

    def seen(self, image_BCHW: Tensor) -> Tensor:
        """An sRGB image in [0, 1] as the network sees it."""
        return (rgb_to_y(image_BCHW) if self.arch.colour == "y" else image_BCHW) * self.arch.peak

    def parts(self, answer: Answer, images: Images) -> Parts:
        """Both kinds of loss, sample by sample, of float32 answers."""
        primal_B = torch.zeros_like(images.weight_B)
        for sr_BCHW, target_BCHW in zip(answer.srs, images.targets, strict=True):
            primal_B = primal_B + losses.distance(sr_BCHW, target_BCHW, self.loss, peak=self.arch.peak, high=self.hfen)
        dual_B = torch.zeros_like(images.weight_B)
        for made_BCHW, lower_BCHW in zip(answer.lrs, images.lower, strict=bool(answer.lrs)):
            dual_B = dual_B + losses.pixels(made_BCHW, lower_BCHW, self.loss, peak=self.arch.peak)
        return Parts(primal_B, dual_B)

    def total(self, parts: Parts) -> Tensor:
        """Both together, sample by sample."""
        return parts.primal_B + self.dual * parts.dual_B

    def __call__(self, answer: Answer, images: Images) -> Tensor:
        """The loss of a batch, each sample by its weight: what is minimised."""
        return (self.total(self.parts(answer, images)) * images.weight_B).mean()

    def error(self, answer: Answer, images: Images) -> Tensor:
        """The mean squared error of the last answer, of values in [0, 1]: a figure, not a function to minimise."""
        return (answer.srs[-1].detach() - images.targets[-1]).square().mean() / self.arch.peak**2
