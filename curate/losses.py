"""What training minimises: how far a network's answer is from HR, sample by sample.

Pixel losses, and beside them HFEN, the high-frequency error norm (Ravishankar & Bresler 2011) in the form that DLSR's
authors trained by (Huang et al. 2021): both images are blurred, their Laplacians are scaled and compared. A loss per
sample, not one for the batch, so that a manifest's weights apply.

Axes in names: B batch, C channels, H height, W width, all HR px.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from curate.errors import UsageError, listed

__all__ = ["HFEN_LEAST", "PixelLoss", "distance", "hfen", "pixels"]

PixelLoss = Literal["l1", "mse", "charbonnier"]

HFEN_LEAST = 5  # px, the side of the Gaussian, which has to fit into the image
_SIGMA = 1.5  # px
_CHARBONNIER = 1e-3  # epsilon, of values in [0, 1] (LapSRN, Lai et al. 2017)
_EIGHT_BITS = 255.0  # white of the images for which weights of HFEN are published


def distance(sr_BCHW: Tensor, hr_BCHW: Tensor, loss: PixelLoss, *, peak: float, high: float = 0.0) -> Tensor:
    """The loss of each sample, as B: the pixel loss, and `high` times HFEN.

    Values run up to `peak`, 1 or 255. HFEN has no unit and published weights of it go with an L1 of values up to 255:
    `high` is that weight, and is scaled to the range. Raises as `hfen` does.
    """
    found_B = pixels(sr_BCHW, hr_BCHW, loss, peak=peak)
    return found_B + high * (peak / _EIGHT_BITS) * hfen(sr_BCHW, hr_BCHW) if high else found_B


def pixels(sr_BCHW: Tensor, hr_BCHW: Tensor, loss: PixelLoss, *, peak: float) -> Tensor:
    """The mean over a sample's values of |d| (l1), d^2 (mse) or sqrt(d^2 + (peak / 1000)^2) (charbonnier), as B."""
    difference_BCHW = sr_BCHW - hr_BCHW
    if loss == "l1":
        pixels_BCHW = difference_BCHW.abs()
    elif loss == "mse":
        pixels_BCHW = difference_BCHW.square()
    else:
        pixels_BCHW = (difference_BCHW.square() + (_CHARBONNIER * peak) ** 2).sqrt()
    return pixels_BCHW.flatten(1).mean(1)


def hfen(sr_BCHW: Tensor, hr_BCHW: Tensor) -> Tensor:
    """Each sample's high-frequency error, as B; differentiable, and the same for values in any range.

    A Gaussian of 5 x 5 px and sigma 1.5 where it fits whole, then the Laplacian of four neighbours, zeros around its
    border; each image's response is divided by its own maximum, and the mean of the absolute difference is the error.
    The mean over B is the value of the authors' code, whose habits these are:

    - the Laplacian sums over the channels, which are those of luma or RGB;
    - the maximum is that of all samples that are given at once: of a batch in parts, or shared among processes, it is
      the part's. It is the largest value, not the largest absolute one, and where it is 0 nothing is divided;
    - of flat images only the border's zeros respond, and with a maximum near 0 the error is large.

    Computed in float32 (or float64 where both are), whatever autocast says. UsageError for images of different shapes,
    or with a side of less than 5 px.
    """
    if sr_BCHW.shape != hr_BCHW.shape:
        raise UsageError(f"HFEN is of images of one shape, found {listed(map(str, _shapes(sr_BCHW, hr_BCHW)))}")
    if min(hr_BCHW.shape[-2:]) < HFEN_LEAST:
        found = f"found {hr_BCHW.shape[-2]}x{hr_BCHW.shape[-1]} px"
        raise UsageError(f"HFEN takes images of {HFEN_LEAST}x{HFEN_LEAST} px or more, {found}")
    return (_response(sr_BCHW) - _response(hr_BCHW)).abs().flatten(1).mean(1)


def _shapes(*images: Tensor) -> list[tuple[int, ...]]:
    return [tuple(image.shape) for image in images]


def _response(image_BCHW: Tensor) -> Tensor:
    """The scaled high frequencies, as BHW, 4 px smaller a side.

    Both filters are the same for each channel, so the channels are summed first. Sums of shifted images are rounded to
    float32 wherever they run, which convolutions are not: autocast and TF32 would take them.
    """
    image_BHW = (image_BCHW if image_BCHW.dtype == torch.float64 else image_BCHW.float()).sum(1)
    weights = [math.exp(-(offset**2) / (2 * _SIGMA**2)) for offset in (-2, -1, 0, 1, 2)]
    for axis in (1, 2):
        length = image_BHW.shape[axis] - HFEN_LEAST + 1
        shifted = [image_BHW.narrow(axis, tap, length) * (w / sum(weights)) for tap, w in enumerate(weights)]
        image_BHW = shifted[0] + shifted[1] + shifted[2] + shifted[3] + shifted[4]
    wide_BHW = F.pad(image_BHW, (1, 1, 1, 1))
    rows_BHW, columns_BHW = wide_BHW[:, :, 1:-1], wide_BHW[:, 1:-1]
    vertical_BHW, horizontal_BHW = rows_BHW[:, :-2] + rows_BHW[:, 2:], columns_BHW[..., :-2] + columns_BHW[..., 2:]
    laplacian_BHW = (vertical_BHW + horizontal_BHW) - 4 * image_BHW  # of a flat image exactly 0 inside
    most = laplacian_BHW.max()
    return laplacian_BHW / torch.where(most == 0, 1, most)
