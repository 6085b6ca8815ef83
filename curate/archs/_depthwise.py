"""Depthwise convolution whose gradients are right, and fast, on a CPU. Not an arch: its name starts with an underscore.

Forward it is torch's. Backward, torch 2.13 on a CPU gives wrong gradients of the weights where taps are apart in
bfloat16 (32 channels and more: an error larger than the gradient), and takes ten times as long for those of 5x5 and 7x7
kernels in bfloat16 as for those of 3x3. Here the gradient of

    the input     is a convolution with the kernel turned by half a turn
    the weights   comes, in bfloat16, from those of 3x3 kernels, one a third of the rows and of the columns; where taps
                  are `dilation` px apart, from the images that every `dilation`-th row and column make. Of few values
                  that lie together, and in other types, it is torch's: in float32 the parts cost what they save

Axes in names: B batch, C channels, H height, W width, K taps of a row or column.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Depthwise", "depthwise"]

_TILE = 3  # taps of the kernel whose gradient is fast
_TILED = (torch.bfloat16,)  # types whose kernels are taken apart
_FEW = 2**17  # values of maps below which torch's own way is the faster one


class Depthwise(nn.Conv2d):
    """A kernel of its own for each channel, no bias, zeros around the border: BCHW of the same size."""

    def __init__(self, features: int, side: int, dilation: int = 1) -> None:
        padding = dilation * (side // 2)
        super().__init__(features, features, side, padding=padding, dilation=dilation, groups=features, bias=False)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        return depthwise(maps_BCHW, self.weight, int(self.dilation[0]))


def depthwise(maps_BCHW: Tensor, weight_C1KK: Tensor, dilation: int = 1) -> Tensor:
    """The same as a function, for kernels of odd sides; differentiable, more than once too."""
    if maps_BCHW.device.type != "cpu":
        return _convolved(maps_BCHW, weight_C1KK, dilation)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        maps_BCHW, weight_C1KK = maps_BCHW.to(dtype), weight_C1KK.to(dtype)
    made_BCHW: Tensor = _Depthwise.apply(maps_BCHW, weight_C1KK, dilation)  # type: ignore[no-untyped-call]
    return made_BCHW


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps_BCHW: Tensor, weight_C1KK: Tensor, dilation: int) -> Tensor:
        ctx.save_for_backward(maps_BCHW, weight_C1KK)
        ctx.dilation = dilation
        return _convolved(maps_BCHW, weight_C1KK, dilation)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        maps_BCHW, weight_C1KK = ctx.saved_tensors
        (gradient_BCHW,) = gradients
        of_maps = of_weight = None
        if ctx.needs_input_grad[0]:
            of_maps = depthwise(gradient_BCHW, weight_C1KK.flip(2, 3), ctx.dilation)
        if ctx.needs_input_grad[1]:
            of_weight = _of_weight(maps_BCHW, gradient_BCHW, weight_C1KK.shape[-1], ctx.dilation)
        return of_maps, of_weight, None


def _convolved(maps_BCHW: Tensor, weight_C1KK: Tensor, dilation: int) -> Tensor:
    padding = dilation * (weight_C1KK.shape[-1] // 2)
    return F.conv2d(maps_BCHW, weight_C1KK, padding=padding, dilation=dilation, groups=maps_BCHW.shape[1])


def _of_weight(maps_BCHW: Tensor, gradient_BCHW: Tensor, side: int, dilation: int) -> Tensor:
    """The sum over images and px of the gradient times what each tap saw: C1KK."""
    if maps_BCHW.dtype not in _TILED or (maps_BCHW.numel() < _FEW and dilation == 1):
        return _of_kernel(maps_BCHW, gradient_BCHW, side, dilation * (side // 2), dilation)
    if dilation > 1:
        maps_BCHW, gradient_BCHW = _apart(maps_BCHW, dilation), _apart(gradient_BCHW, dilation)
    gradient_BCHW = _channels_last(gradient_BCHW)  # once for all tiles; of maps that were joined it is not
    (height, width), tiles = maps_BCHW.shape[2:], -(-side // _TILE)
    before, beyond = side // 2, _TILE * tiles - side  # px of zeros; taps of the tiles that the kernel has not
    padded_BCHW = F.pad(maps_BCHW, (before, before + beyond) * 2)
    rows = []
    for y in range(0, side, _TILE):
        seen = [
            _channels_last(padded_BCHW[:, :, y : y + height + _TILE - 1, x : x + width + _TILE - 1])
            for x in range(0, side, _TILE)
        ]
        rows.append(torch.cat([_of_kernel(tile_BCHW, gradient_BCHW, _TILE) for tile_BCHW in seen], dim=3))
    return torch.cat(rows, dim=2)[:, :, :side, :side]


def _of_kernel(maps_BCHW: Tensor, gradient_BCHW: Tensor, side: int, padding: int = 0, dilation: int = 1) -> Tensor:
    """Torch's own: C1KK."""
    channels = maps_BCHW.shape[1]
    shape_C1KK = maps_BCHW.new_empty(channels, 1, side, side)  # its values do not count
    around, apart = [padding, padding], [dilation, dilation]
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient_BCHW,
        maps_BCHW,
        shape_C1KK,
        None,
        [1, 1],
        around,
        apart,
        False,
        [0, 0],
        channels,
        [False, True, False],
    )[1]
    return found


def _apart(maps_BCHW: Tensor, dilation: int) -> Tensor:
    """The images that every `dilation`-th row and column make, one after the other; zeros fill the last ones up."""
    batch, channels, height, width = maps_BCHW.shape
    rows, columns = -(-height // dilation), -(-width // dilation)
    padded_BCHW = F.pad(maps_BCHW, (0, columns * dilation - width, 0, rows * dilation - height))
    split = padded_BCHW.reshape(batch, channels, rows, dilation, columns, dilation).permute(0, 3, 5, 1, 2, 4)
    return _channels_last(split.reshape(batch * dilation**2, channels, rows, columns))


def _channels_last(maps_BCHW: Tensor) -> Tensor:
    """In this layout of memory. Of a part of such maps this takes a fifth of what asking for the format does."""
    return maps_BCHW.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
