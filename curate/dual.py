"""Dual regression (Guo et al. 2020): small networks that learn the way back, from a network's answers to its input.

A network is trained so that its answer, shrunk by a dual network, is the LR image again. The dual networks learn with
it, and so learn how LR was made, whatever that was. A network with answers at several scales (DRN) has one for each
step from a scale to the one below, every other network a single one from its scale to 1.

A dual network is `archs.drn.DownBlock`: convs 3x3 whose strides multiply to the step (x4: 2 and 2; x3: 3), each to
`Arch.dual_features` maps with a leaky ReLU, and a conv 3x3 back to the image; no biases. 864 parameters for a step of 2
and 3,168 for one of 4, with 16 maps and RGB.

Axes in names: B batch, C channels, H height, W width.
"""

from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

from curate.archs import Arch
from curate.archs.drn import DownBlock

__all__ = ["Answer", "Regression", "dual_networks"]

_STRIDES = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}  # of a step between two scales


class Answer(NamedTuple):
    """What a network and its dual networks make of a batch; values up to the arch's `peak`."""

    srs: tuple[Tensor, ...]  # sr_BCHW at each of the arch's outputs
    lrs: tuple[Tensor, ...]  # what the dual networks make of the last of these; empty without

    def float(self) -> "Answer":
        """In float32."""
        return Answer(*(tuple(image_BCHW.float() for image_BCHW in images) for images in self))


def dual_networks(arch: Arch) -> nn.ModuleList:
    """Fresh dual networks of an arch, the one that leads to the input's size first."""
    outputs = arch.outputs if len(arch.outputs) > 1 else (1, arch.scale)
    channels = 1 if arch.colour == "y" else 3
    strides = [_STRIDES[above // below] for below, above in pairwise(outputs)]
    return nn.ModuleList(DownBlock(channels, arch.dual_features, channels, stride) for stride in strides)


class Regression(nn.Module):
    """A network with its dual networks, or without, as one module for a training's loop."""

    def __init__(self, arch: Arch, net: nn.Module, duals: nn.ModuleList | None = None) -> None:
        super().__init__()
        self.several = len(arch.outputs) > 1
        self.net = net
        self.duals = nn.ModuleList() if duals is None else duals

    def forward(self, lr_BCHW: Tensor) -> Answer:
        srs = self.net.scales(lr_BCHW) if self.several else (self.net(lr_BCHW),)  # type: ignore[operator]
        lrs = tuple(
            dual(sr_BCHW) for dual, sr_BCHW in zip(self.duals, srs[-len(self.duals) or len(srs) :], strict=False)
        )
        return Answer(srs, lrs)
