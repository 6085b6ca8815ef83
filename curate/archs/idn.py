"""IDN (Hui et al. 2018): blocks that put a part of their maps aside and deepen the rest, on luma or RGB; small, fast.

Two convs 3x3 to `features` maps, `blocks` distillation blocks, a 17x17 transposed conv of stride `scale`, plus the
bicubic image; LeakyReLU of slope 0.05 after the 3x3 convs. A block's first three convs end in `features` maps. The last
`d` of these are put aside; three more convs widen the others to features + d maps, to which the block's input and the
maps put aside are added; a conv 1x1 leads back to `features`. 552,769 parameters on luma, 590,915 on RGB.

Modules are named as in yjn870/IDN-pytorch, which is for RGB. As there, and unlike in the authors' Caffe network, the
last maps are put aside, not the first, and no LeakyReLU follows the 1x1 conv.

Axes in names: B batch, C channels (1 of luma, 3 of RGB, or maps), H height, W width.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curate.archs import Arch
from curate.archs._layers import check_scale
from curate.archs._narrow import built
from curate.units import PrunableUnit, Span, rows, settled

__all__ = ["Idn", "IdnNet"]

_SLOPE = 0.05
_GROUPS = 4  # of the second and the fifth conv of a block
# Of the last layer's initial weights: 24.6 dB fresh where the paper's He initialisation in all layers has 5.0, and 32.2
# against 12.7 after 100 steps of Adam at 1e-4 (T91, two crops of Set5 x2, one seed).
_DECONV_STD = 1e-4

_NAMES = re.compile(
    r"(fblock\.module\.[02]|dblocks\.\d+\.(enhancement_(top|bottom)\.[024]|compression)|deconv)\.(weight|bias)"
)


@dataclass(frozen=True)
class Idn(Arch):
    """IDN's options."""

    scale: int = 2  # 2, 3 or 4
    features: int = 64  # maps between the blocks
    d: int = 16  # maps that a block puts aside
    blocks: int = 4  # distillation blocks
    colour: Literal["y", "rgb"] = "y"
    config: str | None = None  # what pruning has left: numbers of maps, or a file of them (`curate.units`)

    peak: ClassVar[float] = 1.0
    tail: ClassVar[str | None] = "deconv"

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if not _is_width(self.features, self.d):
            what = f"features and d should be multiples of {_GROUPS}, d at least {_GROUPS} and features above 2 d"
            raise ValueError(f"{what}, found features={self.features}, d={self.d}")
        if self.blocks < 1:
            raise ValueError(f"blocks should be at least 1, found {self.blocks}")
        object.__setattr__(self, "config", settled(self))

    def build(self) -> "IdnNet":
        """A fresh network whose output is the bicubic image and a little noise."""
        channels = 1 if self.colour == "y" else 3
        net = IdnNet(self.scale, channels=channels, features=self.features, d=self.d, blocks=self.blocks)
        return built(net, self)

    def infer(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """All options but config, and the scale, which is a stride."""
        names = ("fblock.module.0.weight", "dblocks.0.enhancement_top.0.weight", "dblocks.0.compression.weight")
        first, top, last = map(state.get, names)
        if first is None or top is None or last is None or not all(_NAMES.fullmatch(name) for name in state):
            return {}
        if first.shape[1:] not in ((1, 3, 3), (3, 3, 3)) or top.ndim != 4 or last.ndim != 4:
            return {}
        colour = "y" if first.shape[1] == 1 else "rgb"
        features, d = last.shape[0], last.shape[1] - last.shape[0]
        if not _is_width(features, d) or top.shape[0] > features - d:
            return {}
        blocks = sum(name.endswith(".compression.weight") for name in state)
        return {"features": features, "d": d, "blocks": blocks, "colour": colour}

    def prunable(self) -> tuple[PrunableUnit, ...]:
        """Of the first two convs, then of each block, conv by conv.

        Not the maps put aside, the bottom's last ones and the blocks' outputs: they are summed with others. Each group
        of a grouped conv keeps the same ones of its maps, in and out, so that a config counts them four by four.
        """
        return tuple(self._units())

    def _units(self) -> Iterator[PrunableUnit]:
        yield PrunableUnit("fblock", self.features, rows("fblock.module.0"), (Span("fblock.module.2.weight", 1),))
        rest = self.features - self.d
        for block in range(self.blocks):
            top, bottom = (f"dblocks.{block}.enhancement_{part}" for part in ("top", "bottom"))
            yield from _around_groups(top, rest, rest - self.d)
            yield PrunableUnit(f"{top}.4", rest, rows(f"{top}.4"), (Span(f"{bottom}.0.weight", 1),))
            yield from _around_groups(bottom, self.features, rest)


class IdnNet(nn.Module):
    """lr_BCHW -> sr_BCHW, float32, H and W times `scale`; the output is not clamped.

    With one channel luma in [16, 235] / 255, with three sRGB in [0, 1].
    """

    def __init__(self, scale: int, *, channels: int, features: int, d: int, blocks: int) -> None:
        super().__init__()
        self.scale = scale
        self.fblock = _FeatureExtraction(channels, features)
        self.dblocks = nn.Sequential(*(_Distillation(features, d) for _ in range(blocks)))
        # output_padding: what makes the output `scale` times the input. The public code has 1, which is right for x2.
        self.deconv = nn.ConvTranspose2d(features, channels, 17, stride=scale, padding=8, output_padding=scale - 1)
        nn.init.normal_(self.deconv.weight, std=_DECONV_STD)
        assert self.deconv.bias is not None
        nn.init.zeros_(self.deconv.bias)

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        # Torch's bicubic has a = -0.75; MATLAB's, which the authors' Caffe network is trained on, has -0.5. The public
        # code trains with torch's, and a residual fits the one image that it was learned for.
        bicubic_BCHW = F.interpolate(lr_BCHW, scale_factor=self.scale, mode="bicubic", align_corners=False)
        residual_BCHW: Tensor = self.deconv(self.dblocks(self.fblock(lr_BCHW)))
        return bicubic_BCHW + residual_BCHW


class _FeatureExtraction(nn.Module):
    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.module = _convs(channels, features, features)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        features_BCHW: Tensor = self.module(image_BCHW)
        return features_BCHW


class _Distillation(nn.Module):
    """features_BCHW -> the same shape."""

    def __init__(self, features: int, d: int) -> None:
        super().__init__()
        self.d = d
        self.enhancement_top = _convs(features, features - d, features - 2 * d, features)
        self.enhancement_bottom = _convs(features - d, features, features - d, features + d)
        self.compression = _conv(features + d, features, 1)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        rest_BCHW, aside_BCHW = self.enhancement_top(features_BCHW).tensor_split([-self.d], dim=1)
        widened_BCHW = self.enhancement_bottom(rest_BCHW) + torch.cat([features_BCHW, aside_BCHW], dim=1)
        squeezed_BCHW: Tensor = self.compression(widened_BCHW)
        return squeezed_BCHW


def _around_groups(convs: str, before: int, after: int) -> Iterator[PrunableUnit]:
    """Of the maps that the second of three convs, which has groups, takes, and of those that it makes."""
    first, second, third = (f"{convs}.{layer}" for layer in (0, 2, 4))
    taken, made = rows(first, outer=_GROUPS), rows(second, outer=_GROUPS)
    yield PrunableUnit(first, before // _GROUPS, taken, (Span(f"{second}.weight", 1),), count=_GROUPS)
    yield PrunableUnit(second, after // _GROUPS, made, (Span(f"{third}.weight", 1, outer=_GROUPS),), count=_GROUPS)


def _convs(*widths: int) -> nn.Sequential:
    """3x3 convolutions from each width to the next, a LeakyReLU after each; the second of three is grouped."""
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        groups = _GROUPS if index == 1 and len(widths) == 4 else 1
        layers += [_conv(inputs, outputs, 3, groups), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers)


def _conv(inputs: int, outputs: int, size: int, groups: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups)
    nn.init.kaiming_normal_(conv.weight, a=_SLOPE)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _is_width(features: int, d: int) -> bool:
    """Whether every convolution of a block has maps, and those of the grouped ones can be shared out."""
    return d >= _GROUPS and features > 2 * d and features % _GROUPS == 0 and d % _GROUPS == 0
