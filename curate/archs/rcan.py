"""RCAN (Zhang et al. 2018): EDSR with groups of blocks that weigh their maps by channel attention; large and slow.

`groups` times (`blocks` times (conv, ReLU, conv, attention, plus the input), a conv, plus the group's input) between
EDSR's first and last layers. Attention multiplies each map by a factor in (0, 1): its mean over the image, 1x1 conv to
features / `reduction`, ReLU, 1x1 conv back, sigmoid. 15,444,643 parameters at x2; the literature counts the constants
of the two mean shifts, 24, too. Modules are named as in BasicSR.

Axes in names: B batch, C channels (maps), H height, W width.
"""

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from curate.archs import Arch
from curate.archs._layers import check_scale, upsampler_scale, upsampler_units
from curate.archs._narrow import built
from curate.archs.edsr import EdsrNet, from_edsr_pytorch
from curate.units import PrunableUnit, Span, rows, settled

__all__ = ["Rcan"]

_BLOCK_NAMES = r"residual_group\.\d+\.rcab\.([02]|3\.attention\.[13])"
_NAMES = re.compile(
    rf"(conv_first|body\.\d+\.({_BLOCK_NAMES}|conv)|conv_after_body|upsample\.[02]|conv_last)\.(weight|bias)"
)

# Modules of the authors' body -> ours; the first pattern that fits the whole name counts.
_GROUP = {
    r"body\.(\d+)\.body\.(\d+)\.body\.([02])": r"body.\1.residual_group.\2.rcab.\3",
    r"body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.0": r"body.\1.residual_group.\2.rcab.3.attention.1",
    r"body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.2": r"body.\1.residual_group.\2.rcab.3.attention.3",
    r"body\.(\d+)\.body\.\d+": r"body.\1.conv",
}


@dataclass(frozen=True)
class Rcan(Arch):
    """RCAN's options."""

    scale: int = 2  # 2, 3 or 4
    groups: int = 10  # residual groups
    blocks: int = 20  # in each group
    features: int = 64  # maps throughout
    reduction: int = 16  # features / the attention's inner maps
    config: str | None = None  # what pruning has left: numbers of maps, or a file of them (`curate.units`)

    colour: ClassVar[Literal["y", "rgb"]] = "rgb"
    peak: ClassVar[float] = 255.0
    tail: ClassVar[str | None] = "conv_last"

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if self.groups < 1 or self.blocks < 1:
            found = f"found groups={self.groups}, blocks={self.blocks}"
            raise ValueError(f"groups and blocks should be at least 1, {found}")
        if self.reduction < 1 or self.features < 1 or self.features % self.reduction:
            found = f"found features={self.features}, reduction={self.reduction}"
            raise ValueError(f"features should be a multiple of reduction, both at least 1, {found}")
        object.__setattr__(self, "config", settled(self))

    def build(self) -> EdsrNet:
        """A fresh network, of torch's own initial weights."""
        groups = (_Group(self.blocks, self.features, self.reduction) for _ in range(self.groups))
        return built(EdsrNet(self.scale, self.features, groups), self)

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The names of the authors' code, which grew out of EDSR-PyTorch, as ours, which are BasicSR's."""
        return from_edsr_pytorch(state, _GROUP) if "body.0.body.0.body.0.weight" in state else state

    def infer(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """All options but config."""
        squeeze = state.get("body.0.residual_group.0.rcab.3.attention.1.weight")
        if squeeze is None or squeeze.ndim != 4 or not all(_NAMES.fullmatch(name) for name in state):
            return {}
        inner, features = squeeze.shape[:2]
        scale = upsampler_scale(state, features, "conv_last")
        if scale is None or not inner or features % inner:
            return {}
        groups = sum(name.endswith(".residual_group.0.rcab.0.weight") for name in state)
        blocks = sum(name.startswith("body.0.") and name.endswith(".rcab.0.weight") for name in state)
        return {
            "scale": scale,
            "groups": groups,
            "blocks": blocks,
            "features": features,
            "reduction": features // inner,
        }

    def prunable(self) -> tuple[PrunableUnit, ...]:
        """Of the blocks, then of the upsampler.

        Not the inner maps of the attention: they are numbers, one a map and image, and cost next to nothing.
        """
        names = [f"body.{g}.residual_group.{b}.rcab" for g in range(self.groups) for b in range(self.blocks)]
        inner = (PrunableUnit(name, self.features, rows(f"{name}.0"), (Span(f"{name}.2.weight", 1),)) for name in names)
        return (*inner, *upsampler_units(self.scale, self.features, "conv_last"))


class _Group(nn.Module):
    def __init__(self, blocks: int, features: int, reduction: int) -> None:
        super().__init__()
        self.residual_group = nn.Sequential(*(_Block(features, reduction) for _ in range(blocks)))
        self.conv = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        residual_BCHW: Tensor = self.conv(self.residual_group(features_BCHW))
        return features_BCHW + residual_BCHW


class _Block(nn.Module):
    def __init__(self, features: int, reduction: int) -> None:
        super().__init__()
        self.rcab = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(features, features, 3, padding=1),
            _ChannelAttention(features, reduction),
        )

    def forward(self, features_BCHW: Tensor) -> Tensor:
        residual_BCHW: Tensor = self.rcab(features_BCHW)
        return features_BCHW + residual_BCHW


class _ChannelAttention(nn.Module):
    def __init__(self, features: int, reduction: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(features, features // reduction, 1),
            nn.ReLU(),
            nn.Conv2d(features // reduction, features, 1),
            nn.Sigmoid(),
        )

    def forward(self, features_BCHW: Tensor) -> Tensor:
        factors_BC11: Tensor = self.attention(features_BCHW)
        return features_BCHW * factors_BC11
