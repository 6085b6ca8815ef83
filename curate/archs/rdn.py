"""RDN (Zhang et al. 2018): residual blocks of densely connected layers at LR size, then pixel shuffle; large and slow.

Two convs to `features` maps; `blocks` times (`layers` convs of `growth` maps and ReLU, each on all maps before it in
the block, a conv 1x1 back to `features`, plus the block's input); a conv 1x1 over the outputs of all blocks and a conv,
plus the maps of the first conv; upsampler, conv to RGB; 3x3 where nothing else is said. The default is the paper's
D=16, C=8, G=64: 22,123,395 parameters at x2, 22,308,035 at x3, 22,271,107 at x4.

Modules are named as in yjn870/RDN-pytorch and torchSR, whose networks take [0, 1] as this one does. The files of
EDSR-PyTorch are read too. Its networks take [0, 255], unless trained with another --rgb_range, which a file does not
tell; but convs, ReLUs and sums let a common factor through, so the same weights with biases divided by 255 are the same
network for [0, 1]. Only those of growth = features fit: in its others `growth` maps are upscaled, in the paper's
authors' code `features`.

Axes in names: B batch, C channels (R G B, or maps), H height, W width.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from curate.archs import Arch
from curate.archs._layers import PixelShuffleUpsampler, check_scale, upsampler_scale, upsampler_units
from curate.archs._narrow import built
from curate.units import PrunableUnit, Span, rows, settled

__all__ = ["Rdn", "RdnNet"]

_NAMES = re.compile(r"(sfe[12]|rdbs\.\d+\.(layers\.\d+\.conv|lff)|gff\.[01]|upscale\.[02]|output)\.(weight|bias)")

_EDSR_PYTORCH_PEAK = 255.0  # the default of its --rgb_range
_EDSR_PYTORCH = {  # modules -> ours; where UPNet ends depends on the scale
    r"SFENet([12])": r"sfe\1",
    r"RDBs\.(\d+)\.convs\.(\d+)\.conv\.0": r"rdbs.\1.layers.\2.conv",
    r"RDBs\.(\d+)\.LFF": r"rdbs.\1.lff",
    r"GFF\.([01])": r"gff.\1",
}


@dataclass(frozen=True)
class Rdn(Arch):
    """RDN's options."""

    scale: int = 2  # 2, 3 or 4
    blocks: int = 16  # residual dense blocks; the paper's D
    layers: int = 8  # dense layers of a block; C
    growth: int = 64  # maps that a dense layer adds; G
    features: int = 64  # maps between the blocks; G0
    config: str | None = None  # what pruning has left: numbers of maps, or a file of them (`curate.units`)

    colour: ClassVar[Literal["y", "rgb"]] = "rgb"
    peak: ClassVar[float] = 1.0
    tail: ClassVar[str | None] = "output"

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if min(self.blocks, self.layers, self.growth, self.features) < 1:
            found = f"blocks={self.blocks}, layers={self.layers}, growth={self.growth}, features={self.features}"
            raise ValueError(f"blocks, layers, growth and features should be at least 1, found {found}")
        object.__setattr__(self, "config", settled(self))

    def build(self) -> "RdnNet":
        """A fresh network, of torch's own initial weights."""
        net = RdnNet(self.scale, blocks=self.blocks, layers=self.layers, growth=self.growth, features=self.features)
        return built(net, self)

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """EDSR-PyTorch's networks as ours; others already have our names."""
        return _from_edsr_pytorch(state) if "SFENet1.weight" in state else state

    def infer(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """All options but config, growth such that pruning leaves these shapes."""
        first = state.get("sfe1.weight")
        dense = [tensor for name, tensor in state.items() if name.endswith(".conv.weight")]
        if first is None or not dense or not all(_NAMES.fullmatch(name) for name in state):
            return {}
        if any(weight.ndim != 4 for weight in (first, *dense)):
            return {}
        features, growth = first.shape[0], max(weight.shape[0] for weight in dense)
        scale = upsampler_scale(state, features, "output", "upscale")
        if scale is None:
            return {}
        blocks = sum(name.endswith(".lff.weight") for name in state)
        layers = sum(name.startswith("rdbs.0.layers.") and name.endswith(".weight") for name in state)
        return {"scale": scale, "blocks": blocks, "layers": layers, "growth": growth, "features": features}

    def prunable(self) -> tuple[PrunableUnit, ...]:
        """What each dense layer adds, of block by block; what joins the blocks; then of the upsampler."""
        return tuple(self._units())

    def _units(self) -> Iterator[PrunableUnit]:
        for block in (f"rdbs.{number}" for number in range(self.blocks)):
            for layer in range(self.layers):
                later = [f"{block}.layers.{number}.conv.weight" for number in range(layer + 1, self.layers)]
                start = self.features + layer * self.growth
                readers = tuple(Span(name, 1, start) for name in (*later, f"{block}.lff.weight"))
                yield PrunableUnit(
                    f"{block}.layers.{layer}", self.growth, rows(f"{block}.layers.{layer}.conv"), readers
                )
        yield PrunableUnit("gff", self.features, rows("gff.0"), (Span("gff.1.weight", 1),))
        yield from upsampler_units(self.scale, self.features, "output", "upscale")


class RdnNet(nn.Module):
    """lr_BCHW -> sr_BCHW, float32 sRGB in [0, 1], H and W times `scale`; the output is not clamped."""

    def __init__(self, scale: int, *, blocks: int, layers: int, growth: int, features: int) -> None:
        super().__init__()
        self.sfe1 = nn.Conv2d(3, features, 3, padding=1)
        self.sfe2 = nn.Conv2d(features, features, 3, padding=1)
        self.rdbs = nn.ModuleList(_DenseBlock(features, growth, layers) for _ in range(blocks))
        self.gff = nn.Sequential(nn.Conv2d(blocks * features, features, 1), nn.Conv2d(features, features, 3, padding=1))
        self.upscale = PixelShuffleUpsampler(scale, features)
        self.output = nn.Conv2d(features, 3, 3, padding=1)

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        first_BCHW = self.sfe1(lr_BCHW)
        features_BCHW = self.sfe2(first_BCHW)
        outputs = []
        for block in self.rdbs:
            features_BCHW = block(features_BCHW)
            outputs.append(features_BCHW)
        fused_BCHW = first_BCHW + self.gff(torch.cat(outputs, dim=1))
        sr_BCHW: Tensor = self.output(self.upscale(fused_BCHW))
        return sr_BCHW


class _DenseBlock(nn.Module):
    """features_BCHW -> the same shape."""

    def __init__(self, features: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(_DenseLayer(features + index * growth, growth) for index in range(layers)))
        self.lff = nn.Conv2d(features + layers * growth, features, 1)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        fused_BCHW: Tensor = self.lff(self.layers(features_BCHW))
        return features_BCHW + fused_BCHW


class _DenseLayer(nn.Module):
    """maps_BCHW -> the same maps and `growth` more behind them."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        return torch.cat([maps_BCHW, torch.relu(self.conv(maps_BCHW))], dim=1)


def _from_edsr_pytorch(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network of EDSR-PyTorch, for [0, 255], as one for [0, 1] under our names. Unknown names are passed on."""
    last = 4 if "UPNet.4.weight" in state else 2
    rules = {**_EDSR_PYTORCH, rf"UPNet\.{last}": "output", r"UPNet\.([02])": r"upscale.\1"}
    adapted = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        for pattern, replacement in rules.items():
            if match := re.fullmatch(pattern, module):
                ours = f"{match.expand(replacement)}.{kind}"
                adapted[ours] = tensor.float() / _EDSR_PYTORCH_PEAK if kind == "bias" else tensor
                break
        else:
            adapted[name] = tensor
    return adapted
