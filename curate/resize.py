"""MATLAB's bicubic `imresize` by a whole factor: how curate, and the field, makes LR images.

Cubic kernel with a = -0.5 (Keys 1981), widened by the scale when shrinking, rows first and then columns, output size
ceil(size * factor). With symmetric edges and uint8 rounding after each one-dimensional pass the public LR_bicubic files
(Set5, x2, x3, x4) come out without one differing sample.

For a whole factor the weights are fractions over one denominator and repeat along the axis. So uint8 images are
resized in whole numbers, where a tie is a tie on every device, and a pass is one small banded matrix applied to
overlapping windows of the axis: 11 ms for a 2040 x 1356 RGB image on two cores, where a strided convolution took 130.

Axes   B batch, C channel, H height, W width; N planes (B and C together); K windows of an axis, I samples in a window,
       O samples made from one
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from curate.errors import UsageError, listed

__all__ = ["Edge", "Rounding", "downscale", "margin", "upscale"]

Edge = Literal["symmetric", "clamp"]  # beyond the border: the mirror image, or the last sample for ever (older MATLAB)
Rounding = Literal["per-pass", "final", "none"]

PERIODS = 16  # of the kernel in one banded matrix; 8 to 32 run alike on two cores, 64 at half the speed
CHUNK_SAMPLES = 2**21  # or one plane, at a time: glibc maps buffers beyond 32 MiB afresh each time, 10 ms an image
FLOAT32_LIMIT = 2**14  # denominators below keep sums below 2^23 and quotients on their side of a tie in float32


def downscale(image_BCHW: Tensor, scale: int, *, edge: Edge = "symmetric", rounding: Rounding | None = None) -> Tensor:
    """The LR of an image: `scale` times smaller, antialiased.

    image_BCHW: uint8, or floating of any range (leading axes may also be missing); any device.
    Returns the same dtype and device; H and W become ceil(H / scale) and ceil(W / scale).
    rounding: of uint8 "per-pass" (the default, as the public LR files) or "final" (once, at the end); of floating
    "none" (the default): differentiable, values not clamped.
    Raises UsageError for any other pairing of dtype and rounding, an unknown edge, a scale below 1, an empty image.
    """
    return _resize(image_BCHW, _shrinking, scale, edge, rounding)


def upscale(image_BCHW: Tensor, scale: int, *, edge: Edge = "symmetric", rounding: Rounding | None = None) -> Tensor:
    """An image `scale` times larger; H and W become H * scale and W * scale, the rest is as for `downscale`.

    The field's bicubic figures (33.66/.9299, 30.39/.8682, 28.42/.8104 on Set5) are of luma rounded to 8 bits,
    shrunk and enlarged in floating point, then rounded again; from the LR_bicubic files come up to 0.02 dB more.
    """
    return _resize(image_BCHW, _enlarging, scale, edge, rounding)


def margin(scale: int) -> int:
    """HR pixels to read beyond a window, each side, so that its LR is the crop of the whole image's LR.

    The kernel reaches 1.5 * scale pixels further; this is the next multiple of `scale`, to stay on the LR grid. For
    windows that start on that grid: crop margin(scale) / scale = 2 LR pixels off each side where the margin was read,
    and where the image itself ends read, and crop, no further than there is.
    """
    return _reach(scale) + -_reach(scale) % scale


# The kernel, in whole numbers


@dataclass(frozen=True, eq=False)
class _Kernel:
    """`PERIODS` periods of a periodic kernel as one matrix: each period turns `step` samples into `phases`."""

    weights_OI: npt.NDArray[np.float64]  # whole numbers; O = PERIODS * phases, I = PERIODS * step + 2 * reach
    denominator: int  # what each row sums to
    phases: int
    step: int
    reach: int  # samples needed before the period's first and after its last


@lru_cache
def _shrinking(scale: int) -> _Kernel:
    """One output for every `scale` samples, from a kernel `scale` times as wide as the cubic."""
    reach = _reach(scale)
    # Output 0 is centred at (scale - 1) / 2; distances from it in half samples, of which the kernel has 2 scale a unit.
    distances = [[2 * tap - (scale - 1) for tap in range(-reach, scale + reach)]]
    return _kernel(distances, unit=2 * scale, step=scale, reach=reach)


@lru_cache
def _enlarging(scale: int) -> _Kernel:
    """`scale` outputs for every sample, from the cubic as it is."""
    # Output r is centred at (2 r + 1 - scale) / (2 scale), and distances are in parts of 2 scale.
    distances = [[2 * scale * tap - (2 * phase + 1 - scale) for tap in range(-2, 3)] for phase in range(scale)]
    return _kernel(distances, unit=2 * scale, step=1, reach=2)


def _reach(scale: int) -> int:
    """Whole HR samples that the shrinking kernel needs beyond the `scale` samples under an LR pixel: 1.5 scale."""
    return 3 * scale // 2


def _kernel(distances: list[list[int]], *, unit: int, step: int, reach: int) -> _Kernel:
    """The banded matrix for the cubic at `distances` (phases x taps), counted in 1/`unit`."""
    taps = np.array([[_cubic_numerator(abs(distance), unit) for distance in row] for row in distances])
    taps //= np.gcd.reduce(taps, axis=None)
    phases, width = taps.shape
    weights_OI = np.zeros((PERIODS * phases, PERIODS * step + 2 * reach))
    for period in range(PERIODS):
        weights_OI[period * phases : (period + 1) * phases, period * step : period * step + width] = taps
    return _Kernel(weights_OI, int(taps[0].sum()), phases, step, reach)


def _cubic_numerator(distance: int, unit: int) -> int:
    """2 unit^3 times the cubic convolution kernel with a = -0.5 (Keys 1981) at distance / unit, exactly."""
    if distance <= unit:
        return 3 * distance**3 - 5 * distance**2 * unit + 2 * unit**3
    if distance <= 2 * unit:
        return -(distance**3) + 5 * distance**2 * unit - 8 * distance * unit**2 + 4 * unit**3
    return 0


# The two passes


def _resize(
    image_BCHW: Tensor, make_kernel: Callable[[int], _Kernel], scale: int, edge: Edge, rounding: Rounding | None
) -> Tensor:
    """Checks what was asked and resizes a bounded number of planes at a time."""
    if scale < 1:
        raise UsageError(f"scale {scale} asked for; scales are whole numbers from 1")
    if edge not in get_args(Edge):
        raise UsageError(f"no edge {edge!r}; there are: {listed(get_args(Edge))}")
    rounding = _rounding_for(image_BCHW.dtype, rounding)
    kernel = make_kernel(scale)
    height, width = image_BCHW.shape[-2:]
    if not height * width:
        raise UsageError(f"cannot resize an image of {height}x{width} pixels")
    planes_NHW = image_BCHW.reshape(-1, height, width)
    # Autocast would cut the products to 8 or 11 bits; TF32, where allowed, holds these whole numbers exactly.
    # (Meta tensors, which only have a shape, know no autocast.)
    device = image_BCHW.device.type
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
        chunks = planes_NHW.chunk(max(1, planes_NHW.numel() // CHUNK_SAMPLES))
        resized_NHW = torch.cat([_resize_planes(chunk_NHW, kernel, edge, rounding) for chunk_NHW in chunks])
    return resized_NHW.reshape(*image_BCHW.shape[:-2], *resized_NHW.shape[-2:])


def _rounding_for(dtype: torch.dtype, rounding: Rounding | None) -> Rounding:
    """The rounding asked for, or the dtype's own; UsageError when the two do not go together."""
    allowed: tuple[Rounding, ...] = ()
    if dtype == torch.uint8:
        allowed = ("per-pass", "final")
    elif dtype.is_floating_point:
        allowed = ("none",)
    if not allowed:
        raise UsageError(f"cannot resize an image of {dtype}; uint8 and floating images can be")
    if rounding is not None and rounding not in allowed:
        raise UsageError(f"rounding {rounding!r} asked for an image of {dtype}, which takes: {listed(allowed)}")
    return rounding or allowed[0]


def _resize_planes(planes_NHW: Tensor, kernel: _Kernel, edge: Edge, rounding: Rounding) -> Tensor:
    if rounding == "none":  # weights below 1, for float16 ends at 65504
        weights_OI = torch.tensor(kernel.weights_OI / kernel.denominator, dtype=planes_NHW.dtype)
    elif rounding == "per-pass" and kernel.denominator < FLOAT32_LIMIT:
        weights_OI = torch.tensor(kernel.weights_OI, dtype=torch.float32)
    else:
        weights_OI = torch.tensor(kernel.weights_OI, dtype=torch.float64)
    weights_OI = weights_OI.to(planes_NHW.device)
    rows_NHW = _filter_rows(planes_NHW, weights_OI, kernel, edge)
    if rounding == "per-pass":
        rows_NHW = _to_uint8(rows_NHW, kernel.denominator)
    resized_NHW = _filter_columns(rows_NHW, weights_OI, kernel, edge)
    if rounding == "none":
        return resized_NHW
    return _to_uint8(resized_NHW, kernel.denominator if rounding == "per-pass" else kernel.denominator**2)


def _filter_rows(planes_NHW: Tensor, weights_OI: Tensor, kernel: _Kernel, edge: Edge) -> Tensor:
    """The vertical pass: (N, H, W) of any dtype -> (N, new H, W) in the dtype of the weights."""
    windows_NKWI = _windows(planes_NHW, 1, kernel, edge)
    filtered_NKOW = weights_OI @ windows_NKWI.transpose(2, 3).to(weights_OI.dtype)
    return filtered_NKOW.flatten(1, 2)[:, : _new_length(planes_NHW.shape[1], kernel)]


def _filter_columns(planes_NHW: Tensor, weights_OI: Tensor, kernel: _Kernel, edge: Edge) -> Tensor:
    """The horizontal pass: (N, H, W) of any dtype -> (N, H, new W) in the dtype of the weights."""
    windows_NHKI = _windows(planes_NHW, 2, kernel, edge)
    filtered_NHKO = windows_NHKI.to(weights_OI.dtype) @ weights_OI.T
    return filtered_NHKO.flatten(2, 3)[:, :, : _new_length(planes_NHW.shape[2], kernel)]


def _to_uint8(numerators: Tensor, denominator: int) -> Tensor:
    """Divided and rounded, halves away from zero, as MATLAB's uint8(). Overwrites `numerators`."""
    return numerators.div_(denominator).add_(0.5).clamp_(0, 255).to(torch.uint8)


def _new_length(length: int, kernel: _Kernel) -> int:
    return math.ceil(length / kernel.step) * kernel.phases


def _windows(planes_NHW: Tensor, axis: int, kernel: _Kernel, edge: Edge) -> Tensor:
    """Overlapping windows of I samples along `axis`: a view, that axis now K, and I appended."""
    length = planes_NHW.shape[axis]
    before, after = (
        torch.tensor(beyond, device=planes_NHW.device) for beyond in _border(length, kernel.step, kernel.reach, edge)
    )
    padded = torch.cat(
        [planes_NHW.index_select(axis, before), planes_NHW, planes_NHW.index_select(axis, after)], dim=axis
    )
    return padded.unfold(axis, PERIODS * kernel.step + 2 * kernel.reach, PERIODS * kernel.step)


@lru_cache
def _border(length: int, step: int, reach: int, edge: Edge) -> tuple[list[int], list[int]]:
    """Which samples stand in for those before 0 and from `length` on, up to the end of the last whole window."""
    end = math.ceil(length / (PERIODS * step)) * PERIODS * step + reach
    before, after = np.arange(-reach, 0), np.arange(length, end)
    if edge == "clamp":
        return [0] * reach, [length - 1] * len(after)
    mirrored = np.concatenate(
        [np.arange(length), np.arange(length)[::-1]]
    )  # repeats, for images thinner than the kernel
    return mirrored[before % len(mirrored)].tolist(), mirrored[after % len(mirrored)].tolist()
