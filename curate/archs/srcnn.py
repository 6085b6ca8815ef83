"""SRCNN (Dong et al. 2016): three convolutions that sharpen the bicubic upscale, on luma.

Conv 9x9 to 64 maps, conv 5x5 (or 1x1) to 32 maps, conv 5x5 to one, ReLU between: 57,281 parameters as 9-5-5, 8,129 as
9-1-5. The network upscales its input itself, with MATLAB's bicubic. Edges are replicated before every layer, as the
authors' code does at test time; zeros there would make every border an artefact.

Axes in names: B batch, H height, W width, O output maps, I input maps, K kernel values; the one channel is luma.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from curate.archs import Arch
from curate.archs._layers import Bicubic, check_scale
from curate.archs._narrow import built
from curate.errors import DataError
from curate.units import PrunableUnit, Span, rows, settled

__all__ = ["Srcnn", "SrcnnNet"]

_WIDTHS = (64, 32)  # maps after the first and the second layer
_MATLAB_AXES = {"1": "KO", "2": "IKO", "3": "IK"}  # of weights_conv{1,2,3} in the authors' .mat files; K is K*K values
_INITIAL_STD = (0.02, 0.02, 0.001)  # of each layer's random weights; the paper's 0.001 in all learns far slower


@dataclass(frozen=True)
class Srcnn(Arch):
    """SRCNN's options."""

    scale: int = 2  # 2, 3 or 4
    kernel: Literal["9-5-5", "9-1-5"] = "9-5-5"  # kernel sizes of the three layers, px
    config: str | None = None  # what pruning has left: numbers of maps, or a file of them (`curate.units`)

    colour: ClassVar[Literal["y", "rgb"]] = "y"
    peak: ClassVar[float] = 1.0
    tail: ClassVar[str | None] = "conv3"

    def __post_init__(self) -> None:
        check_scale(self.scale)
        object.__setattr__(self, "config", settled(self))

    def build(self) -> "SrcnnNet":
        """A fresh network whose output is close to its bicubic input: see `SrcnnNet`."""
        first, second, third = (int(size) for size in self.kernel.split("-"))
        return built(SrcnnNet(self.scale, (first, second, third)), self)

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The authors' MATLAB arrays as convolution weights; other states already have our names."""
        return _from_matlab(state) if "weights_conv1" in state else state

    def infer(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """The kernel sizes. The scale is not in the weights."""
        weights = [state.get(f"conv{layer}.weight") for layer in (1, 2, 3)]
        kernel = "-".join(str(w.shape[-1]) for w in weights if w is not None and w.ndim == 4)
        return {"kernel": kernel} if kernel in ("9-5-5", "9-1-5") else {}

    def prunable(self) -> tuple[PrunableUnit, ...]:
        """Of each layer but the last."""
        return tuple(
            PrunableUnit(f"conv{layer}", width, rows(f"conv{layer}"), (Span(f"conv{layer + 1}.weight", 1),))
            for layer, width in enumerate(_WIDTHS, start=1)
        )


class SrcnnNet(nn.Module):
    """lr_B1HW -> sr_B1HW, float32 luma in [16, 235] / 255, H and W times `scale`; the output is not clamped.

    A pixel of the output depends on the bicubic image's pixels up to `radius` px away, in rows and columns: 8 for
    9-5-5, 6 for 9-1-5.
    """

    def __init__(self, scale: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.scale = scale
        self.bicubic = Bicubic(scale)
        self.radius = sum(size // 2 for size in kernel)
        self.conv1 = _conv(1, _WIDTHS[0], kernel[0])
        self.conv2 = _conv(_WIDTHS[0], _WIDTHS[1], kernel[1])
        self.conv3 = _conv(_WIDTHS[1], 1, kernel[2])
        self._start_at_bicubic()

    def forward(self, lr_B1HW: Tensor) -> Tensor:
        """Upscale by MATLAB's bicubic, unrounded, and refine."""
        return self.refine(self.bicubic(lr_B1HW))

    def refine(self, bicubic_B1HW: Tensor) -> Tensor:
        """The three layers alone, on an image that is upscaled already -> refined_B1HW of the same size.

        For an image cut into strips, give each `radius` rows more on its inner sides and cut them off the result.
        """
        features_BCHW = torch.relu(self.conv2(torch.relu(self.conv1(bicubic_B1HW))))
        refined_B1HW: Tensor = self.conv3(features_BCHW)
        return refined_B1HW

    @torch.no_grad()
    def _start_at_bicubic(self) -> None:
        # Map 0 of each layer hands its input on: luma is never negative, so ReLU lets it through. The network starts at
        # the bicubic's PSNR, where one of random filters spends its first steps on learning to copy: 33.7 dB against
        # 20.6 fresh, 35 against 33.6 after 300 steps of Adam at 1e-3 (9-1-5, T91, Set5 x2). It is the same network with
        # the same parameters. The other maps are random features, of little weight in the last layer.
        for conv, std in zip((self.conv1, self.conv2, self.conv3), _INITIAL_STD, strict=True):
            nn.init.normal_(conv.weight, std=std)
            centre = conv.kernel_size[0] // 2
            (conv.weight[:, 0] if conv is self.conv3 else conv.weight[0]).zero_()
            conv.weight[0, 0, centre, centre] = 1.0
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)


def _conv(inputs: int, outputs: int, size: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, padding_mode="replicate")


def _from_matlab(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights_conv{1,2,3}`, `biases_conv{1,2,3}` of the authors' .mat files -> our names and shapes, float32."""
    adapted = {}
    for name, tensor in state.items():
        kind, _, layer = name.partition("_conv")
        if kind == "weights" and layer in _MATLAB_AXES:
            adapted[f"conv{layer}.weight"] = _from_columns(tensor.float(), name, _MATLAB_AXES[layer])
        elif kind == "biases" and layer in _MATLAB_AXES:
            adapted[f"conv{layer}.bias"] = tensor.float().flatten()
        else:
            adapted[name] = tensor
    return adapted


def _from_columns(weight: Tensor, name: str, axes: str) -> Tensor:
    """Kernels as column-major lists of K*K values, axes in the order of `axes` -> weight_OIKK, rows before columns."""
    num_values = weight.shape[axes.index("K")] if weight.ndim == len(axes) else 0
    size = math.isqrt(num_values)
    if not size or size * size != num_values:
        raise DataError(f"{name} should have axes {axes}, K a square number, found shape {tuple(weight.shape)}")
    missing = "OIK".translate({ord(axis): None for axis in axes})
    weight_OIK = weight[(None,) * len(missing)].permute([(missing + axes).index(axis) for axis in "OIK"])
    # MATLAB's order runs down a kernel's columns first. imfilter correlates, as Conv2d does: nothing is flipped.
    return weight_OIK.reshape(*weight_OIK.shape[:2], size, size).transpose(2, 3).contiguous()
