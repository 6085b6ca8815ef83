"""DLSR (Huang et al. 2021): a light network whose operations and connections a search found; RGB, in [0, 255].

Conv 3x3 to `features` maps, six cells, a 1x1 conv of all their outputs, a conv, plus the first maps, one conv to
3 * scale**2 maps and a pixel shuffle. A cell is RFDN's with three of its convs replaced by the genotype's operations,
the same three in every cell; cells 3 to 6 take the outputs of the earlier cells that the genotype names, joined by a
1x1 conv where these are several. 322,620 parameters at x2; `genotype=dlsr-div` 327,804, `genotype=dlsr-s` 56,268.

`genotype` may be a file that `curate nas dlsr` wrote: `dlsr:genotype=genotype.json,scale=3`. Modules are named as in
the authors' checkpoints, which load as they are.

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
from curate.archs._depthwise import Depthwise
from curate.archs._layers import SCALES, check_scale
from curate.archs._narrow import built
from curate.errors import UsageError
from curate.genotype import CELLS, CHOOSING, LAYERS, OPERATIONS, PUBLISHED, Genotype
from curate.units import PrunableUnit, Span, rows, settled

__all__ = ["LEAST", "SLOPE", "Attention", "Cell", "DiscreteCell", "Dlsr", "DlsrNet", "joint", "operation"]

LEAST = 15  # px: of a shorter side nothing is left after the attention's stride 2 and its pooling of 7
SLOPE = 0.05  # of the leaky ReLU

_FEATURES = 48
_SMALL = 18  # of dlsr-s
_ATTENTION = 4  # features / the attention's inner maps

_CELL = r"c[123]_[dr]|c[45]|esa\.conv(1|_f|_max|2|3|3_|4)"
_NAMES = re.compile(
    rf"(fea_conv|B[1-6]\.({_CELL})|B[1-6]\.c[123]_r\.op\.[01245]|c[3-6]\.0|cout\.0|LR_conv|upsampler\.0)\.(weight|bias)"
)
_KINDS = {("0",): "conv", ("1", "2", "4", "5"): "sep", ("1", "2"): "dil"}  # by the layers of an operation with weights


@dataclass(frozen=True)
class Dlsr(Arch):
    """DLSR's options."""

    scale: int = 2  # 2, 3 or 4
    genotype: str = "dlsr"  # dlsr, dlsr-div, dlsr-s, a file, or as text: conv_1x1+sep_7x7+sep_5x5@12.23.24.45
    features: int | None = None  # maps throughout; None: 48, of dlsr-s 18
    config: str | None = None  # what pruning has left: numbers of maps, or a file of them (`curate.units`)

    colour: ClassVar[Literal["y", "rgb"]] = "rgb"
    peak: ClassVar[float] = 255.0
    tail: ClassVar[str | None] = "upsampler.0"
    least: ClassVar[int] = LEAST
    hfen: ClassVar[float] = 0.2

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if self.features is not None and not _is_width(self.features):
            raise ValueError(f"features should be an even number of {_ATTENTION} or more, found {self.features}")
        # One network has one name: it may be given as a text, a file, or as dlsr-s, which is dlsr of fewer maps.
        features = self.features or (_SMALL if self.genotype == "dlsr-s" else _FEATURES)
        object.__setattr__(self, "features", None if features == _FEATURES else features)
        object.__setattr__(self, "genotype", Genotype.parse(self.genotype.strip('"')).name)
        object.__setattr__(self, "config", settled(self))

    @property
    def width(self) -> int:
        """Maps throughout."""
        return self.features or _FEATURES

    def build(self) -> "DlsrNet":
        """A fresh network, of torch's own initial weights."""
        return built(DlsrNet(self.scale, Genotype.parse(self.genotype), self.width), self)

    def infer(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """Scale, features, and the genotype: a published one with these operations and as many inputs, or None.

        Weights do not show which cells are connected.
        """
        first, last = state.get("fea_conv.weight"), state.get("upsampler.0.weight")
        if first is None or last is None or first.ndim != 4 or last.ndim != 4:
            return {}
        scale = {3 * scale**2: scale for scale in SCALES}.get(last.shape[0])
        features = first.shape[0]
        operations = tuple(_operation_in(state, f"B1.c{layer}_r.op.") for layer in range(1, LAYERS + 1))
        ours = set(operations) <= set(OPERATIONS) and all(_NAMES.fullmatch(name) for name in state)
        if scale is None or not ours or not _is_width(features):
            return {}
        joined = (state.get(f"c{cell}.0.weight") for cell in CHOOSING)
        inputs = [1 if weight is None or weight.ndim != 4 else weight.shape[1] / features for weight in joined]
        fitting = (
            name
            for name, known in PUBLISHED.items()
            if known.operations == operations and [len(chosen) for chosen in known.inputs] == inputs
        )
        more = {} if features == _FEATURES else {"features": features}
        return {"scale": scale, "genotype": next(fitting, None), **more}

    def prunable(self) -> tuple[PrunableUnit, ...]:
        """Of each cell, layer by layer: what is set aside, what is within its operation; then what joins all cells.

        Within `sep` operations, that is: between their two halves. Other maps are summed with others, or are those of
        the attention, which are few, and most of them of an image a few px large.
        """
        return tuple(self._units())

    def _units(self) -> Iterator[PrunableUnit]:
        operations, half = Genotype.parse(self.genotype).operations, self.width // 2
        for cell in range(1, CELLS + 1):
            for layer, aside in enumerate(("c1_d", "c2_d", "c3_d", "c4")):
                name = f"B{cell}.{aside}"
                yield PrunableUnit(name, half, rows(name), (Span(f"B{cell}.c5.weight", 1, layer * half),))
                if layer < LAYERS and operations[layer].startswith("sep_"):
                    # ReLU, depthwise, 1x1, ReLU, depthwise, 1x1: from one 1x1 conv to the other.
                    name = f"B{cell}.c{layer + 1}_r.op"
                    makers = (Span(f"{name}.2.weight", 0), Span(f"{name}.4.weight", 0))
                    yield PrunableUnit(name, self.width, makers, (Span(f"{name}.5.weight", 1),))
        yield PrunableUnit("cout", self.width, rows("cout.0"), (Span("LR_conv.weight", 1),))


def _is_width(features: int) -> bool:
    """Whether a cell can have so many maps: half of them are set aside, a quarter are the attention's."""
    return features >= _ATTENTION and features % 2 == 0


def _operation_in(state: dict[str, Tensor], prefix: str) -> str | None:
    """The operation whose weights have names that begin so; None if these are none."""
    layers = {
        name[len(prefix) :].partition(".")[0]: tensor for name, tensor in state.items() if name.startswith(prefix)
    }
    kind = _KINDS.get(tuple(sorted(layers)))
    sides = {tensor.shape[-1] for tensor in layers.values() if tensor.ndim == 4} - ({1} if kind != "conv" else set())
    return f"{kind}_{(side := sides.pop())}x{side}" if kind and len(sides) == 1 else None


class DlsrNet(nn.Module):
    """lr_BCHW -> sr_BCHW, float32 sRGB in [0, 255], H and W times `scale`; the output is not clamped.

    UsageError for an input with a side of less than 15 px.
    """

    def __init__(self, scale: int, genotype: Genotype, features: int) -> None:
        super().__init__()
        self.inputs = dict(zip(CHOOSING, genotype.inputs, strict=True))
        self.fea_conv = nn.Conv2d(3, features, 3, padding=1)
        for cell in range(1, CELLS + 1):
            self.add_module(f"B{cell}", DiscreteCell(features, genotype.operations))
        for cell, chosen in self.inputs.items():
            if len(chosen) > 1:
                self.add_module(f"c{cell}", joint(len(chosen), features))
        self.cout = joint(CELLS, features)
        self.LR_conv = nn.Conv2d(features, features, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(features, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        first_BCHW = maps_BCHW = self.fea_conv(lr_BCHW)
        outputs: list[Tensor] = []
        for cell in range(1, CELLS + 1):
            if cell in self.inputs:
                chosen = [outputs[number - 1] for number in self.inputs[cell]]
                maps_BCHW = self.get_submodule(f"c{cell}")(torch.cat(chosen, dim=1)) if len(chosen) > 1 else chosen[0]
            maps_BCHW = self.get_submodule(f"B{cell}")(maps_BCHW)
            outputs.append(maps_BCHW)
        fused_BCHW = first_BCHW + self.LR_conv(self.cout(torch.cat(outputs, dim=1)))
        sr_BCHW: Tensor = self.upsampler(fused_BCHW)
        return sr_BCHW


def joint(number: int, features: int) -> nn.Sequential:
    """The outputs of so many cells -> `features` maps."""
    return nn.Sequential(nn.Conv2d(number * features, features, 1), nn.LeakyReLU(SLOPE))


class Cell(nn.Module):
    """features_BCHW -> the same shape. What replaces RFDN's three convs is `mixed`, which is left to others.

    Half as many maps are set aside before each of the three layers and after the last one; a 1x1 conv joins them, and
    attention weighs them. There is no way around the cell.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        half = features // 2
        self.c1_d = nn.Conv2d(features, half, 1)
        self.c2_d = nn.Conv2d(features, half, 1)
        self.c3_d = nn.Conv2d(features, half, 1)
        self.c4 = nn.Conv2d(features, half, 3, padding=1)
        self.c5 = nn.Conv2d(4 * half, features, 1)
        self.esa = Attention(features)

    def mixed(self, layer: int, maps_BCHW: Tensor) -> Tensor:
        """Layer 1, 2 or 3."""
        raise NotImplementedError

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        aside = []
        for layer, set_aside in enumerate((self.c1_d, self.c2_d, self.c3_d), start=1):
            aside.append(F.leaky_relu(set_aside(maps_BCHW), SLOPE))
            maps_BCHW = F.leaky_relu(self.mixed(layer, maps_BCHW) + maps_BCHW, SLOPE)
        aside.append(F.leaky_relu(self.c4(maps_BCHW), SLOPE))
        weighed_BCHW: Tensor = self.esa(self.c5(torch.cat(aside, dim=1)))
        return weighed_BCHW


class DiscreteCell(Cell):
    """With one operation a layer."""

    def __init__(self, features: int, operations: tuple[str, ...]) -> None:
        super().__init__(features)
        for layer, name in enumerate(operations, start=1):
            self.add_module(f"c{layer}_r", nn.ModuleDict({"op": operation(name, features)}))

    def mixed(self, layer: int, maps_BCHW: Tensor) -> Tensor:
        made_BCHW: Tensor = self.get_submodule(f"c{layer}_r.op")(maps_BCHW)
        return made_BCHW


class Attention(nn.Module):
    """features_BCHW -> each value times a factor in (0, 1) that its wide surroundings decide (RFANet's ESA)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        inner = features // _ATTENTION
        self.conv1 = nn.Conv2d(features, inner, 1)
        self.conv_f = nn.Conv2d(inner, inner, 1)
        self.conv_max = nn.Conv2d(inner, inner, 3, padding=1)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=2)
        self.conv3 = nn.Conv2d(inner, inner, 3, padding=1)
        self.conv3_ = nn.Conv2d(inner, inner, 3, padding=1)
        self.conv4 = nn.Conv2d(inner, features, 1)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        size = maps_BCHW.shape[-2:]
        if min(size) < LEAST:
            found = f"found {size[1]}x{size[0]} px"
            raise UsageError(
                f"dlsr's input should be {LEAST}x{LEAST} px or more (its attention pools that much), {found}"
            )
        inner_BCHW = self.conv1(maps_BCHW)
        pooled_BCHW = F.max_pool2d(self.conv2(inner_BCHW), 7, stride=3)
        wide_BCHW = F.relu(self.conv3(F.relu(self.conv_max(pooled_BCHW))))
        wide_BCHW = F.interpolate(self.conv3_(wide_BCHW), size, mode="bilinear", align_corners=False)
        return maps_BCHW * torch.sigmoid(self.conv4(wide_BCHW + self.conv_f(inner_BCHW)))


def operation(name: str, features: int) -> nn.Sequential:
    """One of `genotype.OPERATIONS`: features_BCHW -> the same shape; no biases, zeros around the border.

    conv: a convolution. sep: twice ReLU, depthwise convolution, 1x1 convolution. dil: once, its taps 2 px apart.
    """
    kind, side = name[:4], int(name[-1])
    if kind == "conv":
        return nn.Sequential(nn.Conv2d(features, features, side, padding=side // 2, bias=False))
    layers: list[nn.Module] = []
    for _ in range(2 if kind == "sep_" else 1):
        wide = Depthwise(features, side, dilation=2 if kind == "dil_" else 1)
        layers += [nn.ReLU(), wide, nn.Conv2d(features, features, 1, bias=False)]
    return nn.Sequential(*layers)
