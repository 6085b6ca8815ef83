"""Loss: how badly a network of your own, of any architecture, rebuilds the patch from its LR image."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from curate.scorers import _network
from curate.scorers._network import NetworkScorer

__all__ = ["Loss"]


@dataclass(frozen=True)
class Loss(NetworkScorer):
    """Mean of (HR - answer)^2, or of |HR - answer| for l1, of values in [0, 1]: from 0, and about 1 at worst.

    The ranking of Moser et al. 2024 by any checkpoint, in the network's own colour: Y (studio luma / 255), or RGB, of
    which it is the mean. With the model that is being trained it is their adaptive feedback: score, select, train on.
    The LR image is the one that trainers see: MATLAB's bicubic on RGB, rounded to 8 bits. The answer is not clamped, as
    in training. High is what this network has not learned: texture, noise, another degradation. For mse
    10^(-PSNR / 10) of the window. Whole images are scored; nothing is cut at a window's edge.

    An image goes through the network in tiles, with as much around each as the network looks at: memory is bounded, the
    answer that of the whole image but for rounding. One that looks 144 LR px far or more (RCAN and IMDN average over
    the image, classical SwinIR hands on from window to window) gets whole images, unless `tile` says how much: then
    each tile with 48 px around it is an image of its own. With IMDN x2 and tile=96 the loss of single windows of 192 px
    changed by up to 13 %, their ranks hardly (Spearman 0.999).
    """

    metric: Literal["mse", "l1"] = "mse"

    columns: ClassVar[tuple[str, ...]] = ("loss",)
    version: ClassVar[int] = 1

    def build(self, device: torch.device) -> _network.TensorFunction:
        found = _network.load(self.checkpoint, self.arch)
        arch, net = found.arch, found.module()
        answer = _network.in_tiles(lambda lr_BCHW: net(lr_BCHW * arch.peak) / arch.peak, arch, self.tile)
        net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

        def draw(image_BCHW: Tensor) -> Tensor:
            difference_BCHW = answer(_network.lr_image(image_BCHW, arch)) - _network.seen(image_BCHW, arch)
            loss_BCHW = difference_BCHW.square() if self.metric == "mse" else difference_BCHW.abs()
            return loss_BCHW.mean(1, keepdim=True)

        return draw
