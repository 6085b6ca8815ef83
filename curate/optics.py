"""What a lens and a sensor do to light: blur kernels, a batch filtered with one for each image, and shot noise.

The kernels are those of Real-ESRGAN (Wang et al. 2021, sections 3.1 and 3.3). With q the squared distance from the
centre in standard deviations, c^T C^-1 c where C = R diag(sigma_x^2, sigma_y^2) R^T:

    gaussian   exp(-q^beta / 2)           beta 1: the Gaussian; less: a sharper peak and longer tails; more: a flat top
    plateau    1 / (1 + q^beta)           one half of the peak at one standard deviation
    sinc       w J1(w r) / (2 pi r)       the ideal low-pass filter of cutoff w: rings, as oversharpened images do

Axes   B batch, C channel, H height, W width, K rows or columns of a kernel (odd)
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from curate.metrics import quantise

__all__ = ["PHOTONS", "filtered", "gaussian", "plateau", "shot_noise", "sinc"]

# That white stands for. Real-ESRGAN's code takes the crop's number of levels, up to a power of two: that is 256 too for
# all but 1 photographic crop of 256 px in 400; a flat crop gets far fewer, and so more noise.
PHOTONS = 256
KEY_BITS = 23  # of a uniform number: with the 8 bits of a level it fits int32
STRIPS = 16  # of an image, each a group of its own: 3 groups alone take oneDNN's slow way, 4.5 x the time for 21 x 21


def gaussian(size: int, sigma_x: float, sigma_y: float, theta: float = 0.0, *, beta: float = 1.0) -> Tensor:
    """The (generalised) Gaussian kernel, float32 of shape (size, size), sum 1.

    sigma_x, sigma_y: px, along the axes of the ellipse, of which the first is turned by `theta` radians from the
    rightward x axis towards the downward y axis. beta: the exponent of q; the sigmas are the standard deviations for 1.
    """
    return _normalised(torch.exp(-0.5 * _squared_distance(size, sigma_x, sigma_y, theta) ** beta))


def plateau(size: int, sigma_x: float, sigma_y: float, theta: float = 0.0, *, beta: float = 1.0) -> Tensor:
    """The plateau kernel, float32 of shape (size, size), sum 1, the rest as for `gaussian`."""
    return _normalised(1 / (1 + _squared_distance(size, sigma_x, sigma_y, theta) ** beta))


def sinc(size: int, cutoff: float) -> Tensor:
    """The circular low-pass filter, float32 of shape (size, size), sum 1. cutoff: radians a pixel, up to pi."""
    x_KK, y_KK = _grid(size)
    distance_KK = torch.hypot(x_KK, y_KK)
    weights_KK = cutoff * torch.special.bessel_j1(cutoff * distance_KK) / (2 * math.pi * distance_KK)
    weights_KK[size // 2, size // 2] = cutoff**2 / (4 * math.pi)  # the limit at the centre
    return _normalised(weights_KK)


def filtered(image_BCHW: Tensor, kernels: Sequence[Tensor]) -> Tensor:
    """Each image filtered with its own kernel, same shape, dtype and device; the border is mirrored.

    image_BCHW: float32 of any range. kernels: B of them, (K, K) on the CPU, each of its own odd K. The kernels are
    point-symmetric, so that correlation is convolution. An image no larger than a kernel's reach has its border
    repeated instead. On the CPU an image comes out the same, bit by bit, in a batch of any size.
    """
    batch, channels, height, width = image_BCHW.shape
    reach = max(len(kernel_KK) for kernel_KK in kernels) // 2
    strip = math.ceil(height / STRIPS)
    mode = "reflect" if reach < min(height, width) else "replicate"
    padded_BCHW = F.pad(image_BCHW, (reach, reach, reach, reach), mode=mode)
    padded_BCHW = F.pad(padded_BCHW, (0, 0, 0, strip * STRIPS - height))
    strips_BCSWH = padded_BCHW.unfold(2, strip + 2 * reach, strip)
    groups = batch * channels * STRIPS
    strips_1GHW = strips_BCSWH.transpose(3, 4).reshape(1, groups, strip + 2 * reach, width + 2 * reach)
    kernels_BKK = torch.stack([F.pad(kernel_KK, (reach - len(kernel_KK) // 2,) * 4) for kernel_KK in kernels])
    weights_G1KK = kernels_BKK.to(image_BCHW.device).repeat_interleave(channels * STRIPS, 0)[:, None]
    filtered_1GHW = F.conv2d(strips_1GHW, weights_G1KK, groups=groups)
    return filtered_1GHW.reshape(batch, channels, strip * STRIPS, width)[:, :, :height]


def _squared_distance(size: int, sigma_x: float, sigma_y: float, theta: float) -> Tensor:
    """q of every pixel of the kernel, float64 of shape (size, size)."""
    x_KK, y_KK = _grid(size)
    along_KK = x_KK * math.cos(theta) + y_KK * math.sin(theta)
    across_KK = y_KK * math.cos(theta) - x_KK * math.sin(theta)
    return (along_KK / sigma_x) ** 2 + (across_KK / sigma_y) ** 2


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """x (rightward) and y (downward) of every pixel of a kernel, from its centre."""
    offsets_K = torch.arange(size, dtype=torch.float64) - size // 2
    y_KK, x_KK = torch.meshgrid(offsets_K, offsets_K, indexing="ij")
    return x_KK, y_KK


def _normalised(weights_KK: Tensor) -> Tensor:
    return (weights_KK / weights_KK.sum()).float()


def shot_noise(image: Tensor, rng: np.random.Generator) -> Tensor:
    """What photon counting adds to an image of any shape, rounded to 8 bits: Poisson(PHOTONS x) / PHOTONS - x.

    By inversion: a uniform number for each sample, drawn on the CPU, and the count whose cumulative probability is the
    first above it, found by a binary search among whole numbers. So devices agree, which torch's own samplers do not,
    and a sample that was rounded to another level changes its own noise a little, and no other's.
    """
    keys, start = (torch.from_numpy(array).to(image.device) for array in _poisson_table())
    levels = (quantise(image) * 255).round().int()
    uniform = torch.from_numpy(rng.integers(2**KEY_BITS, size=image.shape, dtype=np.int32)).to(image.device)
    sought = ((levels << KEY_BITS) | uniform).contiguous()
    found = torch.searchsorted(keys, sought, right=True, out_int32=True)
    return (found - start[levels]) / PHOTONS - levels / 255


@lru_cache
def _poisson_table() -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Sorted keys (level + P(count <= k)) 2^KEY_BITS for level after level and k = 0, 1, ...; the key of each k = 0.

    Probabilities that round to 0 or 1 need no key; the second array allows for those of 0.
    """
    counts = torch.arange(2 * PHOTONS, dtype=torch.float64)
    means = torch.arange(256, dtype=torch.float64)[:, None] * (PHOTONS / 255)
    below = (torch.special.gammaincc(counts + 1, means) * 2**KEY_BITS).round().long().numpy()
    kept = (below > 0) & (below < 2**KEY_BITS)
    keys = ((np.arange(256)[:, None] << KEY_BITS) + below)[kept]
    start = np.cumsum(kept.sum(1)) - kept.sum(1) - (below == 0).sum(1)
    return keys.astype(np.int32), start.astype(np.int32)
