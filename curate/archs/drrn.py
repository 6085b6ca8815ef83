"""DRRN (Tai et al. 2017): one pair of convolutions, applied 25 times to the bicubic image, on luma; small and slow.

Conv 3x3 to `features` maps, `units` times (ReLU, conv 3x3, ReLU, conv 3x3, plus the first maps) by the same two convs,
ReLU, conv 3x3 to luma, plus the bicubic image: B1U25 of the paper, 297,216 parameters. Convs have no bias and there is
no batch normalisation, as in the public PyTorch code and unlike in the authors' Caffe network. One network serves all
scales. Modules are named as in jt827859032/DRRN-pytorch, whose files hold a whole module: save its state_dict. Files of
yjn870/DRRN-pytorch are read too; the one that it offers has units=9.

Axes in names: B batch, C channels (maps), H height, W width; the image's one channel is luma.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from curate.archs import Arch
from curate.archs._layers import Bicubic, check_scale
from curate.archs._narrow import built
from curate.units import PrunableUnit, Span, rows, settled

__all__ = ["Drrn", "DrrnNet"]

# Of the last layer's initial weights: 31.6 dB fresh, the bicubic's, where the paper's He initialisation in all layers,
# without its batch normalisation, has 6.7; 32.1 against 25.3 after 50 steps of Adam at 1e-4 (T91, two crops of Set5 x2,
# one seed).
_OUTPUT_STD = 1e-4

_YJN870 = {  # names of its B1 networks -> ours
    "rbs.0.h0.module.1.weight": "input.weight",
    "rbs.0.ru.module.0.module.1.weight": "conv1.weight",
    "rbs.0.ru.module.1.module.1.weight": "conv2.weight",
    "rec.module.1.weight": "output.weight",
}


@dataclass(frozen=True)
class Drrn(Arch):
    """DRRN's options."""

    scale: int = 2  # 2, 3 or 4
    units: int = 25  # times that the pair of convolutions is applied
    features: int = 128  # maps throughout
    config: str | None = None  # what pruning has left: numbers of maps, or a file of them (`curate.units`)

    colour: ClassVar[Literal["y", "rgb"]] = "y"
    peak: ClassVar[float] = 1.0
    tail: ClassVar[str | None] = "output"

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if self.units < 1 or self.features < 1:
            found = f"found units={self.units}, features={self.features}"
            raise ValueError(f"units and features should be at least 1, {found}")
        object.__setattr__(self, "config", settled(self))

    def build(self) -> "DrrnNet":
        """A fresh network whose output is the bicubic image and a little noise."""
        return built(DrrnNet(self.scale, units=self.units, features=self.features), self)

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The names of yjn870/DRRN-pytorch as ours."""
        return {_YJN870.get(name, name): tensor for name, tensor in state.items()}

    def infer(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """features. Neither units nor scale are in the weights."""
        if state.keys() != set(_YJN870.values()) or any(tensor.ndim != 4 for tensor in state.values()):
            return {}
        features, inner = state["input.weight"].shape[0], state["conv1.weight"].shape[0]
        shapes = ((inner, features, 3, 3), (features, inner, 3, 3))
        if (state["conv1.weight"].shape, state["conv2.weight"].shape) != shapes or inner > features:
            return {}
        return {"features": features}

    def prunable(self) -> tuple[PrunableUnit, ...]:
        """The maps between the two convs, the same each time that these are applied. All others are summed."""
        return (PrunableUnit("conv1", self.features, rows("conv1", bias=False), (Span("conv2.weight", 1),)),)


class DrrnNet(nn.Module):
    """lr_B1HW -> sr_B1HW, float32 luma in [16, 235] / 255, H and W times `scale`; the output is not clamped."""

    def __init__(self, scale: int, *, units: int, features: int) -> None:
        super().__init__()
        self.units = units
        self.bicubic = Bicubic(scale)
        self.input = _conv(1, features)
        self.conv1 = _conv(features, features)
        self.conv2 = _conv(features, features)
        self.output = _conv(features, 1)
        nn.init.normal_(self.output.weight, std=_OUTPUT_STD)

    def forward(self, lr_B1HW: Tensor) -> Tensor:
        # The paper adds up what its ReLUs have not touched. Those of the public code work in place, so that it adds the
        # rectified image and the rectified first maps, and its weights were trained so. Only the maps matter: of luma
        # a ReLU cuts no more than the bicubic's overshoot below 0.
        bicubic_B1HW = torch.relu(self.bicubic(lr_B1HW))
        first_BCHW = features_BCHW = torch.relu(self.input(bicubic_B1HW))
        for _ in range(self.units):
            inner_BCHW = self.conv1(torch.relu(features_BCHW))
            features_BCHW = first_BCHW + self.conv2(torch.relu(inner_BCHW))
        residual_B1HW: Tensor = self.output(torch.relu(features_BCHW))
        return bicubic_B1HW + residual_B1HW


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    return conv
