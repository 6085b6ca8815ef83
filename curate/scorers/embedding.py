"""Embedding: the features that a super-resolution network finds in the patch, as a vector to compare patches by."""

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curate.archs import Arch
from curate.scorers import _network
from curate.scorers._network import NetworkScorer
from curate.windows import MULTIPLE

__all__ = ["Embedding"]

_DRY_RUN = 48  # LR px a side


@dataclass(frozen=True)
class Embedding(NetworkScorer):
    """The mean and then the standard deviation over the window of each of the network's last features: one list.

    Patches of like texture have like vectors; high and low mean nothing. Means and deviations of a network's maps are
    what style transfer knows textures by (AdaIN, Huang & Belongie 2017). Units are the network's own and differ from
    map to map: standardise each number over the patches before distances.

    The features are what the last convolution takes that works at the resolution of the first one: the input of the
    upsampler where a network upscales at its end (FSRCNN 56 maps, EDSR, RCAN, RDN, IMDN, IDN and SwinIR 64, its light
    variant 60), of the last layer where it starts from the bicubic image (SRCNN 32, U-Net 32, DRRN 128). Convolutions
    that a network calls several times do not count. K is twice the maps.

    Whole images are scored, in tiles as for `loss`, from the LR image that trainers see. Sums are kept by cells of 12 x
    12 px, the grid to which images are cropped: a cell that a window cuts counts by its share, so windows whose size
    and step are multiples of 12 are exact.
    """

    columns: ClassVar[tuple[str, ...]] = ("embedding",)
    vector: ClassVar[bool] = True
    version: ClassVar[int] = 1

    def build(self, device: torch.device) -> _network.TensorFunction:
        found = _network.load(self.checkpoint, self.arch)
        arch, net = found.arch, found.module()
        pool = _network.in_tiles(_pooled(net, arch), arch, self.tile)
        net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return lambda image_BCHW: pool(_network.lr_image(image_BCHW, arch))

    def finish(self, means_NK: Tensor) -> Tensor:
        """Means and standard deviations from means and means of squares."""
        mean_NC, square_NC = means_NK.chunk(2, dim=1)
        return torch.cat([mean_NC, (square_NC - mean_NC.square()).clamp(min=0).sqrt()], dim=1)


class _Reached(Exception):  # noqa: N818 - nothing is wrong
    """Ends a forward pass where the features are."""

    def __init__(self, features_BCHW: Tensor) -> None:
        self.features_BCHW = features_BCHW


def _pooled(net: nn.Module, arch: Arch) -> _network.TensorFunction:
    """lr_BCHW -> the means over cells of 12 HR px of the features and of their squares, as maps_BKHW."""
    conv, times = _last_at_first_resolution(net, arch)

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> NoReturn:
        raise _Reached(inputs[0])

    conv.register_forward_pre_hook(stop)

    def pool(lr_BCHW: Tensor) -> Tensor:
        try:
            net(lr_BCHW * arch.peak)
        except _Reached as reached:
            features_BCHW = reached.features_BCHW
        height, width = (side * times for side in lr_BCHW.shape[2:])  # some networks pad what they get
        features_BCHW = features_BCHW[..., :height, :width]
        cell = MULTIPLE // arch.scale * times
        moments = (features_BCHW, features_BCHW.square())
        return torch.cat([F.avg_pool2d(maps_BCHW, cell) for maps_BCHW in moments], dim=1)

    return pool


def _last_at_first_resolution(net: nn.Module, arch: Arch) -> tuple[nn.Module, int]:
    """The convolution whose input the features are, and how many times larger than the LR image that is."""
    calls: list[tuple[nn.Module, torch.Size]] = []
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    hooks = [
        conv.register_forward_pre_hook(lambda conv, inputs: calls.append((conv, inputs[0].shape[2:]))) for conv in convs
    ]
    with torch.inference_mode():
        net(torch.zeros(1, 1 if arch.colour == "y" else 3, _DRY_RUN, _DRY_RUN))
    for hook in hooks:
        hook.remove()
    count = Counter(conv for conv, _ in calls)
    size = calls[0][1]
    last = [conv for conv, its_size in calls if its_size == size and count[conv] == 1][-1]
    return last, size[0] // _DRY_RUN
