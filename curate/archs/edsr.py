"""EDSR (Lim et al. 2017): residual blocks without batch normalisation at LR size, then pixel shuffle; the RGB baseline.

Conv 3x3 to `features` maps, `blocks` times (conv, ReLU, conv, times `res_scale`, plus the input), a conv, plus the
first maps, upsampler, conv to RGB; all 3x3. The DIV2K mean is subtracted first and added last. The default is
EDSR-baseline, 1,369,859 parameters at x2; `features=256,blocks=32,res_scale=0.1` is the paper's EDSR, 40.7 million.

Modules are named as in BasicSR. Its networks take [0, 1] and multiply by 255 inside, those of EDSR-PyTorch take
[0, 255], as this one does: the weights are the same.

Axes in names: B batch, C channels (R G B, or maps), H height, W width.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from curate.archs import Arch
from curate.archs._layers import (
    DIV2K_MEAN,
    PixelShuffleUpsampler,
    check_scale,
    upsampler_scale,
    upsampler_units,
)
from curate.archs._narrow import built
from curate.errors import DataError
from curate.units import PrunableUnit, Span, rows, settled

__all__ = ["Edsr", "EdsrNet", "from_edsr_pytorch"]

_PEAK = 255.0
_PAPER_FEATURES = 256  # where the paper needs residual scaling; its weights do not show it
_PAPER_RES_SCALE = 0.1

_NAMES = re.compile(r"(conv_first|body\.\d+\.conv[12]|conv_after_body|upsample\.[02]|conv_last)\.(weight|bias)")

# Modules of EDSR-PyTorch -> ours; the first pattern that fits the whole name counts.
_BLOCK = {r"body\.(\d+)\.body\.0": r"body.\1.conv1", r"body\.(\d+)\.body\.2": r"body.\1.conv2"}
_ROUND_THE_BODY = {
    r"head\.0": "conv_first",
    r"body\.\d+": "conv_after_body",
    r"tail\.0\.([02])": r"upsample.\1",
    r"tail\.1": "conv_last",
}

_WEIGHT_TOLERANCE = 1e-3  # of the identity in sub_mean and add_mean
_MEAN_TOLERANCE = 0.1  # of [0, 255]: float16 rounds 114.444 to 114.4375


@dataclass(frozen=True)
class Edsr(Arch):
    """EDSR's options."""

    scale: int = 2  # 2, 3 or 4
    features: int = 64  # maps throughout
    blocks: int = 16  # residual blocks
    res_scale: float = 1.0  # what a block's residual is multiplied by, up to 1
    config: str | None = None  # what pruning has left: numbers of maps, or a file of them (`curate.units`)

    colour: ClassVar[Literal["y", "rgb"]] = "rgb"
    peak: ClassVar[float] = _PEAK
    tail: ClassVar[str | None] = "conv_last"

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if self.features < 1 or self.blocks < 1:
            found = f"found features={self.features}, blocks={self.blocks}"
            raise ValueError(f"features and blocks should be at least 1, {found}")
        if not 0 < self.res_scale <= 1:
            raise ValueError(f"res_scale should be above 0 and up to 1, found {self.res_scale}")
        object.__setattr__(self, "config", settled(self))

    def build(self) -> "EdsrNet":
        """A fresh network, of torch's own initial weights."""
        blocks = (_ResidualBlock(self.features, self.res_scale) for _ in range(self.blocks))
        return built(EdsrNet(self.scale, self.features, blocks), self)

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """EDSR-PyTorch's names as ours, which are BasicSR's."""
        return from_edsr_pytorch(state, _BLOCK) if "body.0.body.0.weight" in state else state

    def infer(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """All options but config. The weights do not show res_scale: it is the paper's for so many features."""
        first = state.get("conv_first.weight")
        if first is None or first.ndim != 4 or not all(_NAMES.fullmatch(name) for name in state):
            return {}
        features = first.shape[0]
        blocks = sum(name.endswith(".conv1.weight") for name in state)
        scale = upsampler_scale(state, features, "conv_last")
        if scale is None or not blocks:
            return {}
        res_scale = _PAPER_RES_SCALE if features == _PAPER_FEATURES else 1.0
        return {"scale": scale, "features": features, "blocks": blocks, "res_scale": res_scale}

    def prunable(self) -> tuple[PrunableUnit, ...]:
        """Of the blocks, then of the upsampler. All other maps are summed with others."""
        names = [f"body.{block}" for block in range(self.blocks)]
        inner = (
            PrunableUnit(name, self.features, rows(f"{name}.conv1"), (Span(f"{name}.conv2.weight", 1),))
            for name in names
        )
        return (*inner, *upsampler_units(self.scale, self.features, "conv_last"))


class EdsrNet(nn.Module):
    """lr_BCHW -> sr_BCHW, float32 sRGB in [0, 255], H and W times `scale`; the output is not clamped.

    What surrounds the body is the same in EDSR and RCAN. `body`: modules that keep features_BCHW's shape.
    """

    mean_C11: Tensor

    def __init__(self, scale: int, features: int, body: Iterable[nn.Module]) -> None:
        super().__init__()
        self.register_buffer("mean_C11", _PEAK * torch.tensor(DIV2K_MEAN).reshape(3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, features, 3, padding=1)
        self.body = nn.Sequential(*body)
        self.conv_after_body = nn.Conv2d(features, features, 3, padding=1)
        self.upsample = PixelShuffleUpsampler(scale, features)
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        first_BCHW = self.conv_first(lr_BCHW - self.mean_C11)
        features_BCHW = first_BCHW + self.conv_after_body(self.body(first_BCHW))
        sr_BCHW: Tensor = self.conv_last(self.upsample(features_BCHW)) + self.mean_C11
        return sr_BCHW


class _ResidualBlock(nn.Module):
    def __init__(self, features: int, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        residual_BCHW: Tensor = self.conv2(torch.relu(self.conv1(features_BCHW)))
        return torch.add(features_BCHW, residual_BCHW, alpha=self.res_scale)


def from_edsr_pytorch(state: Mapping[str, Tensor], body: Mapping[str, str]) -> dict[str, Tensor]:
    """A state of EDSR-PyTorch, or of code that grew out of it as RCAN's did, under the names of `EdsrNet`.

    body: regular expression -> replacement, for the modules of the body. Names that nothing fits are passed on.
    Raises DataError unless sub_mean and add_mean are there and are what `EdsrNet` does: weights for another range of
    values have the same names and shapes.
    """
    for name, sign in (("sub_mean", -1), ("add_mean", 1)):
        _check_shift(state, name, sign * _PEAK * torch.tensor(DIV2K_MEAN))
    rules = {**body, **_ROUND_THE_BODY}
    kept = (name for name in state if not name.startswith(("sub_mean.", "add_mean.")))
    return {_renamed(name, rules): state[name] for name in kept}


def _renamed(name: str, rules: Mapping[str, str]) -> str:
    module, _, kind = name.rpartition(".")
    for pattern, replacement in rules.items():
        if match := re.fullmatch(pattern, module):
            return f"{match.expand(replacement)}.{kind}"
    return name


def _check_shift(state: Mapping[str, Tensor], name: str, shift_C: Tensor) -> None:
    """DataError unless the 1x1 convolution `name` adds `shift_C` and does no more."""
    weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
    wanted = f"{name} should shift by {_decimals(shift_C)} (the DIV2K mean in 0..255) and no more"
    if weight is None or bias is None:
        raise DataError(f"{wanted}, but there is none")
    identity = torch.eye(3).reshape(3, 3, 1, 1)
    if not _is_close(weight, identity, _WEIGHT_TOLERANCE) or not _is_close(bias, shift_C, _MEAN_TOLERANCE):
        raise DataError(f"{wanted}, found weight {_decimals(weight)}, bias {_decimals(bias)}")


def _is_close(tensor: Tensor, expected: Tensor, tolerance: float) -> bool:
    return tensor.shape == expected.shape and torch.allclose(tensor.float(), expected, rtol=0, atol=tolerance)


def _decimals(tensor: Tensor) -> str:
    return ", ".join(f"{value:.3f}" for value in tensor.flatten()[:9].tolist())
