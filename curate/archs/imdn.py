"""IMDN (Hui et al. 2019): modules that set a quarter of their maps aside at each of four convs; RGB, small and fast.

Conv 3x3 to `features` maps, `modules` modules in a row, a 1x1 conv of all their outputs, a conv, plus the first maps,
one conv to 3 * scale**2 maps and a pixel shuffle. A module weighs the quarters that it set aside by contrast-aware
channel attention, fuses them by a 1x1 conv and adds its input. 694,404 parameters at x2, 703,059 at x3, 715,176 at x4.
Modules are named as in the authors' checkpoints, so that they load as they are.

Axes in names: B batch, C channels (R G B, or maps), H height, W width.
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
from curate.archs._layers import SCALES, check_scale
from curate.archs._narrow import built
from curate.units import PrunableUnit, Span, rows, settled

__all__ = ["Imdn", "ImdnNet"]

_QUARTERS = 4  # steps of a module; each sets features / 4 maps aside
_REDUCTION = 16  # features / the attention's inner maps
_SLOPE = 0.05  # of the leaky ReLU

_NAMES = re.compile(r"(fea_conv|IMDB\d+\.(c[1-5]|cca\.conv_du\.[02])|c\.0|LR_conv|upsampler\.0)\.(weight|bias)")


@dataclass(frozen=True)
class Imdn(Arch):
    """IMDN's options."""

    scale: int = 2  # 2, 3 or 4
    features: int = 64  # maps throughout
    modules: int = 6  # information multi-distillation modules
    config: str | None = None  # what pruning has left: numbers of maps, or a file of them (`curate.units`)

    colour: ClassVar[Literal["y", "rgb"]] = "rgb"
    peak: ClassVar[float] = 1.0
    tail: ClassVar[str | None] = "upsampler.0"

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if self.features < 1 or self.features % _REDUCTION:
            raise ValueError(f"features should be a multiple of {_REDUCTION}, found {self.features}")
        if self.modules < 1:
            raise ValueError(f"modules should be at least 1, found {self.modules}")
        object.__setattr__(self, "config", settled(self))

    def build(self) -> "ImdnNet":
        """A fresh network, of torch's own initial weights."""
        net = ImdnNet(self.scale, features=self.features, num_modules=self.modules)
        return built(net, self)

    def infer(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """All options but config."""
        first, last = state.get("fea_conv.weight"), state.get("upsampler.0.weight")
        if first is None or last is None or first.ndim != 4 or last.ndim != 4:
            return {}
        scale = {3 * scale**2: scale for scale in SCALES}.get(last.shape[0])
        modules = sum(name.endswith(".c1.weight") for name in state)
        if scale is None or not modules or not all(_NAMES.fullmatch(name) for name in state):
            return {}
        return {"scale": scale, "features": first.shape[0], "modules": modules}

    def prunable(self) -> tuple[PrunableUnit, ...]:
        """Of each module, conv by conv: the quarter that is set aside, the rest; then what joins all modules."""
        return tuple(self._units())

    def _units(self) -> Iterator[PrunableUnit]:
        quarter = self.features // _QUARTERS
        for module in (f"IMDB{number}" for number in range(1, self.modules + 1)):
            # The attention looks at the quarters, and weighs them, before c5 reads them. Its own inner maps are
            # numbers, one a map and image, and cost next to nothing.
            weigh = f"{module}.cca.conv_du"
            for step, (conv, reader) in enumerate(pairwise(f"{module}.c{number}" for number in range(1, 6))):
                start = step * quarter
                makers = (*rows(conv), *rows(f"{weigh}.2", start=start))
                readers = (Span(f"{module}.c5.weight", 1, start), Span(f"{weigh}.0.weight", 1, start))
                yield PrunableUnit(f"{conv}.aside", quarter, makers, readers)
                if step < _QUARTERS - 1:
                    rest = rows(conv, start=quarter)
                    yield PrunableUnit(conv, self.features - quarter, rest, (Span(f"{reader}.weight", 1),))
        yield PrunableUnit("c.0", self.features, rows("c.0"), (Span("LR_conv.weight", 1),))


class ImdnNet(nn.Module):
    """lr_BCHW -> sr_BCHW, float32 sRGB in [0, 1], H and W times `scale`; the output is not clamped."""

    def __init__(self, scale: int, *, features: int, num_modules: int) -> None:
        super().__init__()
        self.fea_conv = nn.Conv2d(3, features, 3, padding=1)
        self.module_names = [f"IMDB{number}" for number in range(1, num_modules + 1)]
        for name in self.module_names:
            self.add_module(name, _Distillation(features))
        self.c = nn.Sequential(nn.Conv2d(num_modules * features, features, 1), nn.LeakyReLU(_SLOPE))
        self.LR_conv = nn.Conv2d(features, features, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(features, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        first_BCHW = features_BCHW = self.fea_conv(lr_BCHW)
        outputs = []
        for name in self.module_names:
            features_BCHW = self.get_submodule(name)(features_BCHW)
            outputs.append(features_BCHW)
        fused_BCHW = first_BCHW + self.LR_conv(self.c(torch.cat(outputs, dim=1)))
        sr_BCHW: Tensor = self.upsampler(fused_BCHW)
        return sr_BCHW


class _Distillation(nn.Module):
    """features_BCHW -> the same shape: three convs whose first quarter of maps is done, a fourth that ends the rest."""

    def __init__(self, features: int) -> None:
        super().__init__()
        quarter = features // _QUARTERS
        self.c1 = nn.Conv2d(features, features, 3, padding=1)
        self.c2 = nn.Conv2d(features - quarter, features, 3, padding=1)
        self.c3 = nn.Conv2d(features - quarter, features, 3, padding=1)
        self.c4 = nn.Conv2d(features - quarter, quarter, 3, padding=1)
        self.c5 = nn.Conv2d(features, features, 1)
        self.cca = _ContrastAttention(features)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        quarters = []
        rest_BCHW = features_BCHW
        for conv, next_conv in pairwise((self.c1, self.c2, self.c3, self.c4)):
            maps_BCHW = F.leaky_relu(conv(rest_BCHW), _SLOPE)
            quarter_BCHW, rest_BCHW = maps_BCHW.tensor_split([conv.out_channels - next_conv.in_channels], dim=1)
            quarters.append(quarter_BCHW)
        distilled_BCHW = torch.cat([*quarters, self.c4(rest_BCHW)], dim=1)
        residual_BCHW: Tensor = self.c5(self.cca(distilled_BCHW))
        return features_BCHW + residual_BCHW


class _ContrastAttention(nn.Module):
    """features_BCHW -> each map times a factor in (0, 1) that depends on all maps' mean + standard deviation."""

    def __init__(self, features: int) -> None:
        super().__init__()
        inner = features // _REDUCTION
        self.conv_du = nn.Sequential(
            nn.Conv2d(features, inner, 1), nn.ReLU(), nn.Conv2d(inner, features, 1), nn.Sigmoid()
        )

    def forward(self, features_BCHW: Tensor) -> Tensor:
        contrast_BC11, mean_BC11 = torch.std_mean(features_BCHW, dim=(2, 3), correction=0, keepdim=True)
        factors_BC11: Tensor = self.conv_du(contrast_BC11 + mean_BC11)
        return features_BCHW * factors_BC11
