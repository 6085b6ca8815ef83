"""DRN (Guo et al. 2020): a U-shaped network that answers at every scale up to its own; x4 and x8, RGB, in [0, 255].

The input is enlarged to the answer's size (torch's bicubic), the DIV2K mean subtracted, a conv 3x3 leads to `features`
maps. These are halved in size and doubled in number until the input's size is reached; then, size by size, `blocks`
residual blocks with channel attention (RCAN's, without groups), a conv and a pixel shuffle, a 1x1 conv to half the
maps, joined with those of the way down. A conv makes an image at the input's size and at each larger one.

    size   scale   features   blocks   parameters   multiply-adds for a 96x96 input
    s      4       16         30        4,804,065   109.7 G
    s      8        8         30        5,403,000
    l      4       20         40        9,825,893   224.4 G
    l      8       10         36       10,004,018

The mean's two 1x1 convs are trained and counted as in the authors' code (24 parameters), whose files load as they are.
Trained with `--dual 0.1` it is the paper's dual regression network: `curate.dual`.

Axes in names: B batch, C channels (R G B, or maps), H height, W width.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curate.archs import Arch
from curate.archs._layers import DIV2K_MEAN
from curate.archs._narrow import built
from curate.units import PrunableUnit, Span, rows, settled

__all__ = ["DownBlock", "Drn", "DrnNet"]

_SCALES = (4, 8)
_PEAK = 255.0
_SLOPE = 0.2  # of the leaky ReLU on the way down
_REDUCTION = 16  # maps / the attention's inner maps
_LEAST = 4  # features: of the blocks with the fewest maps, four times as many, the attention has one

_PUBLISHED = {("s", 4): (16, 30), ("s", 8): (8, 30), ("l", 4): (20, 40), ("l", 8): (10, 36)}  # features, blocks

_DOWN = r"down\.\d+\.dual_module\.(0\.0|1)\.weight"
_UP = r"up_blocks\.\d+\.\d+\.(0|body\.(0|2|3\.conv_du\.[02]))\.(weight|bias)|up_blocks\.\d+\.\d+\.(weight|bias)"
_AROUND = r"(sub_mean|head|tail\.\d+|add_mean)\.(weight|bias)"
_NAMES = re.compile(rf"{_DOWN}|{_UP}|{_AROUND}")


@dataclass(frozen=True)
class Drn(Arch):
    """DRN's options."""

    scale: int = 4  # 4 or 8
    size: Literal["s", "l"] = "s"  # the published features and blocks
    features: int | None = None  # maps at the answer's size, doubled with every halving; None: the size's
    blocks: int | None = None  # residual blocks at each size; None: the size's
    config: str | None = None  # what pruning has left: numbers of maps, or a file of them (`curate.units`)

    colour: ClassVar[Literal["y", "rgb"]] = "rgb"
    peak: ClassVar[float] = _PEAK

    def __post_init__(self) -> None:
        if self.scale not in _SCALES:
            raise ValueError(f"scale should be 4 or 8, found {self.scale}")
        features, blocks = self._sizes()
        if features < _LEAST or blocks < 1:
            found = f"found features={features}, blocks={blocks}"
            raise ValueError(f"features should be at least {_LEAST} and blocks at least 1, {found}")
        published = _PUBLISHED[self.size, self.scale]
        object.__setattr__(self, "features", None if features == published[0] else features)
        object.__setattr__(self, "blocks", None if blocks == published[1] else blocks)
        object.__setattr__(self, "config", settled(self))

    @property
    def _phases(self) -> int:
        """How often the size is doubled."""
        return self.scale.bit_length() - 1

    @property
    def outputs(self) -> tuple[int, ...]:
        return tuple(2**phase for phase in range(self._phases + 1))

    @property
    def dual_features(self) -> int:
        return self._sizes()[0]

    @property
    def tail(self) -> str:  # type: ignore[override]
        return f"tail.{self._phases}"

    def build(self) -> "DrnNet":
        """A fresh network, of torch's own initial weights."""
        features, blocks = self._sizes()
        return built(DrnNet(self.scale, features=features, num_blocks=blocks), self)

    def infer(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """All options but config."""
        head = state.get("head.weight")
        if head is None or head.shape[1:] != (3, 3, 3) or not all(_NAMES.fullmatch(name) for name in state):
            return {}
        phases = sum(name.endswith(".dual_module.1.weight") for name in state)
        blocks = sum(name.startswith("up_blocks.0.") and name.endswith(".body.0.weight") for name in state)
        scale, features = 2**phases, head.shape[0]
        if scale not in _SCALES or not blocks:
            return {}
        for size in ("s", "l"):
            if _PUBLISHED[size, scale] == (features, blocks):
                return {"scale": scale, "size": size}
        own = dict(zip(("features", "blocks"), (features, blocks), strict=True))
        usual = dict(zip(("features", "blocks"), _PUBLISHED["s", scale], strict=True))
        return {"scale": scale, "size": "s", **{name: own[name] for name in own if own[name] != usual[name]}}

    def prunable(self) -> tuple[PrunableUnit, ...]:
        """Of the way down, then of each size on the way up: its residual blocks, its pixel shuffle."""
        return tuple(self._units())

    def _units(self) -> Iterator[PrunableUnit]:
        features, blocks = self._sizes()
        for phase in range(self._phases):
            name = f"down.{phase}.dual_module"
            makers = rows(f"{name}.0.0", bias=False)
            yield PrunableUnit(name, features * 2**phase, makers, (Span(f"{name}.1.weight", 1),))
        for phase, width in enumerate(_widths(features, self._phases)):
            for block in range(blocks):
                name = f"up_blocks.{phase}.{block}.body"
                yield PrunableUnit(name, width, rows(f"{name}.0"), (Span(f"{name}.2.weight", 1),))
            name = f"up_blocks.{phase}.{blocks}"
            reader = Span(f"up_blocks.{phase}.{blocks + 1}.weight", 1)
            yield PrunableUnit(name, width, rows(f"{name}.0", inner=4), (reader,))

    def _sizes(self) -> tuple[int, int]:
        """features and blocks."""
        features, blocks = _PUBLISHED[self.size, self.scale]
        return (
            features if self.features is None else self.features,
            blocks if self.blocks is None else self.blocks,
        )


def _widths(features: int, phases: int) -> list[int]:
    """Maps of the blocks at each size, the input's first."""
    return [features * 2**phases] + [features * 2**phase for phase in range(phases, 1, -1)]


class DrnNet(nn.Module):
    """lr_BCHW -> sr_BCHW, float32 sRGB in [0, 255], H and W times `scale`; the output is not clamped."""

    def __init__(self, scale: int, *, features: int, num_blocks: int) -> None:
        super().__init__()
        self.scale = scale
        phases = scale.bit_length() - 1
        widths = _widths(features, phases)
        self.sub_mean = _shift(-1)
        self.head = nn.Conv2d(3, features, 3, padding=1)
        self.down = nn.ModuleList(
            DownBlock(features * 2**phase, features * 2**phase, features * 2 ** (phase + 1)) for phase in range(phases)
        )
        # What comes out is joined with the maps of the way down, which are as many.
        halves = [features * 2**phase for phase in range(phases - 1, -1, -1)]
        self.up_blocks = nn.ModuleList(
            nn.Sequential(*(_Block(width) for _ in range(num_blocks)), _upsampler(width), nn.Conv2d(width, half, 1))
            for width, half in zip(widths, halves, strict=True)
        )
        self.tail = nn.ModuleList(nn.Conv2d(width, 3, 3, padding=1) for width in [widths[0], *(2 * h for h in halves)])
        self.add_mean = _shift(1)

    def scales(self, lr_BCHW: Tensor) -> tuple[Tensor, ...]:
        """The answers at 1, 2, ... `scale` times the input's size."""
        maps_BCHW = F.interpolate(lr_BCHW, scale_factor=self.scale, mode="bicubic", align_corners=False)
        maps_BCHW = self.head(self.sub_mean(maps_BCHW))
        skips = []
        for down in self.down:
            skips.append(maps_BCHW)
            maps_BCHW = down(maps_BCHW)
        answers = [self.add_mean(self.tail[0](maps_BCHW))]
        for up, tail in zip(self.up_blocks, self.tail[1:], strict=True):
            maps_BCHW = torch.cat([up(maps_BCHW), skips.pop()], dim=1)
            answers.append(self.add_mean(tail(maps_BCHW)))
        return tuple(answers)

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        return self.scales(lr_BCHW)[-1]


class DownBlock(nn.Module):
    """maps_BCHW -> maps of a lower height and width: convs 3x3 of these strides, a leaky ReLU each, and a conv."""

    def __init__(self, inputs: int, inner: int, outputs: int, strides: tuple[int, ...] = (2,)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, stride in enumerate(strides):
            shrinking = nn.Conv2d(inner if number else inputs, inner, 3, stride=stride, padding=1, bias=False)
            layers.append(nn.Sequential(shrinking, nn.LeakyReLU(_SLOPE)))
        layers.append(nn.Conv2d(inner, outputs, 3, padding=1, bias=False))
        self.dual_module = nn.Sequential(*layers)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        made_BCHW: Tensor = self.dual_module(maps_BCHW)
        return made_BCHW


class _Block(nn.Module):
    """features_BCHW -> the same shape: RCAN's block, under the authors' names."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(features, features, 3, padding=1),
            _ChannelAttention(features),
        )

    def forward(self, features_BCHW: Tensor) -> Tensor:
        residual_BCHW: Tensor = self.body(features_BCHW)
        return features_BCHW + residual_BCHW


class _ChannelAttention(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(features, features // _REDUCTION, 1),
            nn.ReLU(),
            nn.Conv2d(features // _REDUCTION, features, 1),
            nn.Sigmoid(),
        )

    def forward(self, features_BCHW: Tensor) -> Tensor:
        factors_BC11: Tensor = self.conv_du(features_BCHW.mean((2, 3), keepdim=True))
        return features_BCHW * factors_BC11


def _upsampler(features: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(features, 4 * features, 3, padding=1), nn.PixelShuffle(2))


def _shift(sign: int) -> nn.Conv2d:
    """A 1x1 conv that adds the mean, or takes it away; its weights are trained, as the authors' are."""
    shift = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        shift.weight.copy_(torch.eye(3).reshape(3, 3, 1, 1))
        assert shift.bias is not None
        shift.bias.copy_(sign * _PEAK * torch.tensor(DIV2K_MEAN))
    return shift
