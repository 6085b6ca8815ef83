"""U-Net (Ronneberger et al. 2015): encoder and decoder with skip connections over the bicubic image, on RGB.

Two convs 3x3 and ReLU to `features` maps; `levels` times (2x2 max pooling, two convs 3x3 and ReLU to twice the maps);
`levels` times (2x2 transposed conv of stride 2 to half the maps, joined with the encoder's maps of that size, two convs
3x3 and ReLU to half the maps); a conv 1x1 to RGB, plus the bicubic image. 7,760,163 parameters at every scale.

It is the paper's network with half its maps, for an image instead of classes. Ours are: the bicubic image as input and
added to the output; convs that keep the size, where the paper's lose their border; edges replicated to the right and
below up to a multiple of 2 ** `levels` and cut off again, so that any size goes; no dropout; three channels. There are
no public weights.

Axes in names: B batch, C channels (R G B, or maps), H height, W width.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curate.archs import Arch
from curate.archs._layers import Bicubic, check_scale
from curate.archs._narrow import built
from curate.units import PrunableUnit, Span, rows, settled

__all__ = ["Unet", "UnetNet"]

# Of the last layer's initial weights: 30.7 dB fresh, the bicubic's, where the paper's in all layers have 9.7, and 30.9
# against 27.9 after 100 steps of Adam at 1e-4 (T91, two crops of Set5 x2, one seed).
_LAST_STD = 1e-3

_NAMES = re.compile(r"(encoder\.\d+\.[02]|enlarge\.\d+|decoder\.\d+\.[02]|last)\.(weight|bias)")


@dataclass(frozen=True)
class Unet(Arch):
    """U-Net's options."""

    scale: int = 2  # 2, 3 or 4
    features: int = 32  # maps at the full size, doubled with every level
    levels: int = 4  # times that the image is halved
    config: str | None = None  # what pruning has left: numbers of maps, or a file of them (`curate.units`)

    colour: ClassVar[Literal["y", "rgb"]] = "rgb"
    peak: ClassVar[float] = 1.0
    tail: ClassVar[str | None] = "last"

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if self.features < 1 or self.levels < 1:
            found = f"found features={self.features}, levels={self.levels}"
            raise ValueError(f"features and levels should be at least 1, {found}")
        object.__setattr__(self, "config", settled(self))

    def build(self) -> "UnetNet":
        """A fresh network whose output is close to the bicubic image."""
        return built(UnetNet(self.scale, features=self.features, levels=self.levels), self)

    def infer(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """features and levels. The scale is not in the weights."""
        first, last = state.get("encoder.0.0.weight"), state.get("last.weight")
        skip = state.get("encoder.0.2.weight")
        if first is None or last is None or skip is None or not all(_NAMES.fullmatch(name) for name in state):
            return {}
        levels = sum(name.startswith("enlarge.") and name.endswith(".weight") for name in state)
        if first.shape[1:] != (3, 3, 3) or last.shape != (3, last.shape[1], 1, 1) or not levels:
            return {}
        return {"features": skip.shape[0], "levels": levels}

    def prunable(self) -> tuple[PrunableUnit, ...]:
        """Between the two convs of each pair, and what a pair or a transposed conv makes for one reader alone.

        Not what the encoder makes at each size but the lowest: two read it, and it says how many `features` there are.
        """
        return tuple(self._units())

    def _units(self) -> Iterator[PrunableUnit]:
        widths = [self.features * 2**level for level in range(self.levels + 1)]
        for level, width in enumerate(widths):
            yield _pair(f"encoder.{level}", width)
        yield _read_by_transposed(f"encoder.{self.levels}.2", widths[-1], "enlarge.0")
        for step, width in enumerate(widths[-2::-1]):
            # Of a transposed conv maps out are the second axis; they are joined behind those of the encoder.
            enlarged = (Span(f"enlarge.{step}.weight", 1), Span(f"enlarge.{step}.bias", 0))
            yield PrunableUnit(f"enlarge.{step}", width, enlarged, (Span(f"decoder.{step}.0.weight", 1, width),))
            yield _pair(f"decoder.{step}", width)
            if step + 1 < self.levels:
                yield _read_by_transposed(f"decoder.{step}.2", width, f"enlarge.{step + 1}")
        yield PrunableUnit(
            f"decoder.{self.levels - 1}.2",
            self.features,
            rows(f"decoder.{self.levels - 1}.2"),
            (Span("last.weight", 1),),
        )


def _pair(name: str, width: int) -> PrunableUnit:
    return PrunableUnit(name, width, rows(f"{name}.0"), (Span(f"{name}.2.weight", 1),))


def _read_by_transposed(name: str, width: int, reader: str) -> PrunableUnit:
    return PrunableUnit(name, width, rows(name), (Span(f"{reader}.weight", 0),))


class UnetNet(nn.Module):
    """lr_BCHW -> sr_BCHW, float32 sRGB in [0, 1], H and W times `scale`; the output is not clamped."""

    def __init__(self, scale: int, *, features: int, levels: int) -> None:
        super().__init__()
        widths = [features * 2**level for level in range(levels + 1)]
        self.multiple = 2**levels
        self.bicubic = Bicubic(scale)
        self.encoder = nn.ModuleList(_convs(inputs, outputs) for inputs, outputs in pairwise([3, *widths]))
        deepest_first = widths[levels - 1 :: -1]
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in deepest_first)
        self.decoder = nn.ModuleList(_convs(2 * width, width) for width in deepest_first)
        self.last = nn.Conv2d(features, 3, 1)
        self._initialise()

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        bicubic_BCHW: Tensor = self.bicubic(lr_BCHW)
        height, width = bicubic_BCHW.shape[-2:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)  # left, right, top, bottom
        # Not mirrored: that takes an image larger than its padding, which a small one with more levels is not.
        features_BCHW = self.encoder[0](F.pad(bicubic_BCHW, padding, mode="replicate"))
        skips = []
        for convs in self.encoder[1:]:
            skips.append(features_BCHW)
            features_BCHW = convs(F.max_pool2d(features_BCHW, 2))
        for enlarge, convs in zip(self.enlarge, self.decoder, strict=True):
            features_BCHW = convs(torch.cat([skips.pop(), enlarge(features_BCHW)], dim=1))
        residual_BCHW = self.last(features_BCHW)[..., :height, :width]
        sr_BCHW: Tensor = bicubic_BCHW + residual_BCHW
        return sr_BCHW

    def _initialise(self) -> None:
        """The paper's weights: normal, std sqrt(2 / N) with N inputs of a sum; but a last layer of little weight."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                # A stride of the kernel's size makes each output of the transposed convolution a sum over maps alone.
                taps = math.prod(module.kernel_size) if isinstance(module, nn.Conv2d) else 1
                nn.init.normal_(module.weight, std=math.sqrt(2 / (module.in_channels * taps)))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.last.weight, std=_LAST_STD)


def _convs(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(),
    )
