"""SRCNN loss: how badly a small pretrained network rebuilds the patch from its LR image (Moser et al. 2024).

Axes in names: B batch, C channels, H height, W width, O output and I input maps, K the side of a kernel.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curate import plugins
from curate.archs import srcnn
from curate.checkpoint import Checkpoint, weights_hash
from curate.errors import UsageError, listed
from curate.metrics import rgb_to_y
from curate.resize import downscale, upscale
from curate.scorers import MapScorer
from curate.tensors import halving, has_bfloat16, to_float

__all__ = ["Refiner", "Srcnn", "squared_error"]

_BUNDLED = Path(__file__).parent.parent / "weights"
_BUNDLED_KERNEL = "9-5-5"
_STRIP_PIXELS = {"cpu": 1 << 18, "cuda": 1 << 24}  # that go through at a time: 64 maps of them are 64 MB and 4 GB
_BLOCK = 4  # px each way that the last layer answers at a time


@dataclass(frozen=True)
class Srcnn(MapScorer):
    """Mean squared error on Y (studio luma / 255) between the HR image and SRCNN's answer to its bicubic LR image.

    The LR image is the one that trainers see: MATLAB's bicubic on RGB, rounded to 8 bits. Whole images are scored, with
    replicated borders; nothing is cut at a window's edge.
    """

    scale: int = 2  # 2, 3 or 4
    kernel: Literal["9-5-5", "9-1-5"] | None = None  # None takes that of the weights; the bundled ones are 9-5-5
    weights: Path | None = None  # a checkpoint or a public file; None takes the bundled one
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # of the first two layers; auto: bf16 where the hardware has it

    columns: ClassVar[tuple[str, ...]] = ("srcnn",)
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        srcnn.Srcnn(self.scale)  # refuses a scale that it does not have

    def on(self, device: torch.device) -> Self:
        """With the precision that `auto` means on a device."""
        return replace(self, precision="bf16" if has_bfloat16(device) else "fp32") if self.precision == "auto" else self

    def identity(self) -> dict[str, Any]:
        """The options, with the weights' own kernel and their hash for their path."""
        found = self._checkpoint()
        return super().identity() | {
            "kernel": plugins.options_of(found.arch)["kernel"],
            "weights": weights_hash(found.state),
        }

    def build(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        net = self._checkpoint().module()
        assert isinstance(net, srcnn.SrcnnNet)
        refiner = Refiner(net, torch.bfloat16 if self.on(device).precision == "bf16" else torch.float32).to(device)
        return lambda image_BCHW: squared_error(refiner, self.scale, image_BCHW)

    def _checkpoint(self) -> Checkpoint:
        """The weights asked for, as a Checkpoint. UsageError if there are none for this scale and kernel."""
        if self.weights is not None:
            kernel = f",kernel={self.kernel}" if self.kernel else ""
            return Checkpoint.load(self.weights, f"srcnn:scale={self.scale}{kernel}")
        kernel = self.kernel or _BUNDLED_KERNEL
        file = _BUNDLED / f"srcnn_{kernel.replace('-', '')}_x{self.scale}.safetensors"
        if not file.is_file():
            asked = f"srcnn:scale={self.scale},kernel={kernel}"
            there = listed(path.stem for path in _BUNDLED.glob("*.safetensors"))
            raise UsageError(f"no bundled weights for {asked}; there are: {there}; or name a file: srcnn:weights=FILE")
        return Checkpoint.load(file)


def squared_error(refine: Callable[[Tensor], Tensor], scale: int, image_BCHW: Tensor) -> Tensor:
    """(Y - refined Y)^2 of every pixel, as B1HW, `refine` on the bicubic image; sides are multiples of 12."""
    lr_BCHW = downscale((image_BCHW * 255).round().to(torch.uint8), scale)
    bicubic_B1HW = upscale(rgb_to_y(to_float(lr_BCHW)), scale)
    return (refine(bicubic_B1HW) - rgb_to_y(image_BCHW)).square_()


class Refiner(nn.Module):
    """`SrcnnNet.refine`, faster and in bounded memory: bicubic_B1HW -> refined_B1HW, H and W multiples of 4.

    In strips of rows, each with the rows that it looks at; channels last; the first two layers in `dtype`. The last
    layer stays float32, for rounding the answer to bfloat16's 8 bits would drown small losses. It has one map, for
    which a convolution uses a sixteenth of a processor's width: here it answers 4 x 4 pixels as 16 maps of a larger
    kernel, 2.6 times the products in 0.4 of the time (80 against 31 ms for 255,000 px on one core).
    """

    def __init__(self, net: srcnn.SrcnnNet, dtype: torch.dtype, strip_pixels: int | None = None) -> None:
        super().__init__()
        self.strip_pixels = strip_pixels
        self.margin = net.radius + -net.radius % _BLOCK  # rows
        layers = copy.deepcopy(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.features = nn.Sequential(layers.conv1, nn.ReLU(inplace=True), layers.conv2, nn.ReLU(inplace=True)).to(
            dtype
        )
        self.dtype = dtype
        weight_1IKK, bias_1 = layers.conv3.weight.detach(), layers.conv3.bias.detach()
        side = weight_1IKK.shape[-1]
        self.pad = side // 2
        weight_OIKK = torch.zeros(_BLOCK**2, weight_1IKK.shape[1], side + _BLOCK - 1, side + _BLOCK - 1)
        for index in range(_BLOCK**2):
            y, x = divmod(index, _BLOCK)
            weight_OIKK[index, :, y : y + side, x : x + side] = weight_1IKK[0]
        self.weight_OIKK = nn.Buffer(weight_OIKK.contiguous(memory_format=torch.channels_last))
        self.bias_O = nn.Buffer(bias_1.repeat(_BLOCK**2))

    def forward(self, bicubic_B1HW: Tensor) -> Tensor:
        """The three layers on an image of any size."""
        pixels = self.strip_pixels or _STRIP_PIXELS.get(bicubic_B1HW.device.type, _STRIP_PIXELS["cpu"])
        rows = max(pixels // (bicubic_B1HW.shape[0] * bicubic_B1HW.shape[3]) // _BLOCK, 1)
        return halving(lambda blocks: self._in_strips(bicubic_B1HW, blocks * _BLOCK), rows)

    def _in_strips(self, bicubic_B1HW: Tensor, rows: int) -> Tensor:
        height = bicubic_B1HW.shape[2]
        strips = []
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            first, last = max(top - self.margin, 0), min(bottom + self.margin, height)
            strip_B1HW = self._refine(bicubic_B1HW[..., first:last, :])
            strips.append(strip_B1HW[..., top - first : bottom - first, :])
        return torch.cat(strips, dim=2)

    def _refine(self, bicubic_B1HW: Tensor) -> Tensor:
        features_BCHW = self.features(bicubic_B1HW.to(self.dtype, memory_format=torch.channels_last)).float()
        padded = F.pad(features_BCHW, (self.pad,) * 4, mode="replicate")
        blocks_BOHW = F.conv2d(padded, self.weight_OIKK, self.bias_O, stride=_BLOCK)
        refined_B1HW: Tensor = F.pixel_shuffle(blocks_BOHW, _BLOCK)
        return refined_B1HW
