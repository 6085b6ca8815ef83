"""SRCNN loss: how badly a small pretrained network rebuilds the patch from its LR image (Moser et al. 2024)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from curate import plugins
from curate.archs import srcnn
from curate.checkpoint import Checkpoint, weights_hash
from curate.errors import UsageError, listed
from curate.metrics import rgb_to_y
from curate.resize import downscale, upscale
from curate.scorers import MapScorer
from curate.tensors import to_float

__all__ = ["Srcnn", "refine_in_strips", "squared_error"]

_BUNDLED = Path(__file__).parent.parent / "weights"
_BUNDLED_KERNEL = "9-5-5"
_STRIP_PIXELS = 1 << 18  # pixels that go through the network at a time: 64 maps of them are 64 MB


@dataclass(frozen=True)
class Srcnn(MapScorer):
    """Mean squared error on Y (studio luma / 255) between the HR image and SRCNN's answer to its bicubic LR image.

    The LR image is the one that trainers see: MATLAB's bicubic on RGB, rounded to 8 bits. Whole images are scored, with
    replicated borders; nothing is cut at a window's edge.
    """

    scale: int = 2  # 2, 3 or 4
    kernel: Literal["9-5-5", "9-1-5"] | None = None  # None takes that of the weights; the bundled ones are 9-5-5
    weights: Path | None = None  # a checkpoint or a public file; None takes the bundled one

    columns: ClassVar[tuple[str, ...]] = ("srcnn",)
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        srcnn.Srcnn(self.scale)  # refuses a scale that it does not have

    def identity(self) -> dict[str, Any]:
        """The options, with the weights' own kernel and their hash for their path."""
        found = self._checkpoint()
        return super().identity() | {
            "kernel": plugins.options_of(found.arch)["kernel"],
            "weights": weights_hash(found.state),
        }

    def build(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        net = self._checkpoint().module().to(device)
        assert isinstance(net, srcnn.SrcnnNet)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter faster on a CPU
        return lambda image_BCHW: squared_error(net, image_BCHW)

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


def squared_error(net: srcnn.SrcnnNet, image_BCHW: Tensor) -> Tensor:
    """(Y - network's Y)^2 of every pixel, as B1HW; the image's sides are multiples of the network's scale."""
    lr_BCHW = downscale((image_BCHW * 255).round().to(torch.uint8), net.scale)
    bicubic_B1HW = upscale(rgb_to_y(to_float(lr_BCHW)), net.scale)
    return (refine_in_strips(net, bicubic_B1HW) - rgb_to_y(image_BCHW)).square()


def refine_in_strips(net: srcnn.SrcnnNet, bicubic_B1HW: Tensor, strip_pixels: int = _STRIP_PIXELS) -> Tensor:
    """`net.refine` of an image of any size in bounded memory: strips of rows, each with the rows that it looks at."""
    batch, _, height, width = bicubic_B1HW.shape
    rows = max(strip_pixels // (batch * width), 1)
    strips = []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(top - net.radius, 0), min(bottom + net.radius, height)
        strip_B1HW = net.refine(bicubic_B1HW[..., first:last, :].contiguous(memory_format=torch.channels_last))
        strips.append(strip_B1HW[..., top - first : bottom - first, :])
    return torch.cat(strips, dim=2)
