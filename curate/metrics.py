"""How close an SR image is to its HR: PSNR and SSIM as the field prints them, and the luma they are printed for.

The protocol, for one pair: `quantise` the network's output, `rgb_to_y` of both, then `psnr` and `ssim` with
`border=scale`. Averages over a test set are averages of the images' figures.

Axes   B batch, C channel, 3 R G B, 1 luma, H height, W width
"""

import math

import torch
from torch import Tensor

from curate.errors import UsageError

__all__ = ["psnr", "quantise", "rgb_to_y", "ssim"]

LUMA_WEIGHTS = (65.481, 128.553, 24.966)  # of R, G, B; ITU-R BT.601 studio range, MATLAB's rgb2ycbcr
LUMA_OFFSET = 16.0
SSIM_WINDOW = 11  # pixels
SSIM_SIGMA = 1.5  # pixels
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2


def rgb_to_y(image_B3HW: Tensor) -> Tensor:
    """Luma of a floating sRGB image in [0, 1]: Y_B1HW in [16/255, 235/255], same dtype, not rounded, differentiable.

    BT.601 studio range, (65.481 R + 128.553 G + 24.966 B + 16) / 255. Full-range luma would print 1.32 dB less.
    """
    red, green, blue = image_B3HW.chunk(3, dim=-3)
    weight_red, weight_green, weight_blue = LUMA_WEIGHTS
    return (weight_red * red + weight_green * green + weight_blue * blue + LUMA_OFFSET) / 255


def quantise(image: Tensor) -> Tensor:
    """A floating image clamped to [0, 1] and rounded to the nearest 1/255, halves up: what its 8-bit file will hold."""
    return (image.clamp(0, 1) * 255 + 0.5).floor() / 255


def psnr(a_BCHW: Tensor, b_BCHW: Tensor, *, border: int) -> Tensor:
    """Peak signal to noise ratio in dB of each image, float64 of shape (B,); inf where the two are equal.

    a_BCHW, b_BCHW: floating in [0, 1]. border: pixels left out at each side, the field's `scale`.
    Raises UsageError when the shapes differ or the border leaves no pixel.
    """
    a_BCHW, b_BCHW = _inner(a_BCHW, b_BCHW, border=border, least=1)
    mse_B = (a_BCHW - b_BCHW).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(1 / mse_B)


def ssim(a_BCHW: Tensor, b_BCHW: Tensor, *, border: int) -> Tensor:
    """Structural similarity of each image (Wang et al. 2004), float64 of shape (B,), 1 where the two are equal.

    a_BCHW, b_BCHW: floating in [0, 1]. border: pixels left out at each side, the field's `scale`.
    Gaussian window of 11 x 11, sigma 1.5, only where it fits whole; the mean over pixels and channels.
    Raises UsageError when the shapes differ or the border leaves less than 11 x 11 pixels.
    """
    a_BCHW, b_BCHW = _inner(a_BCHW, b_BCHW, border=border, least=SSIM_WINDOW)
    mean_a, mean_b = _blur(a_BCHW), _blur(b_BCHW)
    variance_a = _blur(a_BCHW.square()) - mean_a.square()
    variance_b = _blur(b_BCHW.square()) - mean_b.square()
    covariance = _blur(a_BCHW * b_BCHW) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + SSIM_C1) / (mean_a.square() + mean_b.square() + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_a + variance_b + SSIM_C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _inner(a_BCHW: Tensor, b_BCHW: Tensor, *, border: int, least: int) -> tuple[Tensor, Tensor]:
    """Both images without their border, in float64, once it is clear that they can be compared."""
    if a_BCHW.shape != b_BCHW.shape:
        raise UsageError(f"cannot compare images of shapes {tuple(a_BCHW.shape)} and {tuple(b_BCHW.shape)}")
    height, width = a_BCHW.shape[-2:]
    if min(height, width) - 2 * border < least:
        raise UsageError(
            f"image of {height}x{width} pixels is too small: without its border of {border} it needs {least}x{least}"
        )
    inner = (..., slice(border, height - border), slice(border, width - border))
    return a_BCHW[inner].double(), b_BCHW[inner].double()


def _blur(image_BCHW: Tensor) -> Tensor:
    """Means under the Gaussian window, (B, C, H - 10, W - 10): separable, so one pass along each axis."""
    weights = [math.exp(-((tap - SSIM_WINDOW // 2) ** 2) / (2 * SSIM_SIGMA**2)) for tap in range(SSIM_WINDOW)]
    for axis in (2, 3):
        # Shifted sums: a 2040 x 1356 plane takes 0.12 s on two cores, float64 conv2d 0.55 s.
        length = image_BCHW.shape[axis] - SSIM_WINDOW + 1
        blurred = torch.zeros_like(image_BCHW.narrow(axis, 0, length))
        for tap, weight in enumerate(weights):
            blurred.add_(image_BCHW.narrow(axis, tap, length), alpha=weight / sum(weights))
        image_BCHW = blurred
    return image_BCHW
