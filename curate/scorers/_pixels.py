"""What scorers of plain pixels share: grey, gradients, ratios of means. Not a scorer: see its underscore.

Axes in names: B batch, C channels (R G B), H height, W width, N windows.
"""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["LEVELS", "flat", "grey", "ratio", "sobel_gradients"]

LEVELS = 255  # from black to white, for scores that the literature quotes in levels of 8 bits
_GREY = (0.299, 0.587, 0.114)  # BT.601 full range, what "grey" means to OpenCV and Pillow
_FLAT = 1e-9  # a mean below it is the rounding of sums over the image: 1e-12 was seen, in 24 px of 48 megapixels


def grey(image_BCHW: Tensor) -> Tensor:
    """Grey of an sRGB image in [0, 1], not rounded, as B1HW in [0, 1]."""
    grey_B1HW = image_BCHW[:, :1] * _GREY[0]
    for channel in (1, 2):
        grey_B1HW.add_(image_BCHW[:, channel : channel + 1], alpha=_GREY[channel])
    return grey_B1HW


def sobel_gradients(grey_B1HW: Tensor) -> tuple[Tensor, Tensor]:
    """3x3 Sobel answers across and down, B1HW each, mirrored edges: 8 times the change of grey a pixel.

    The kernels are separable: (1 2 1) across and (-1 0 1) along.
    """
    padded = F.pad(grey_B1HW, (1, 1, 1, 1), mode="reflect")
    rows = (padded[..., :-2, :] + padded[..., 2:, :]).add_(padded[..., 1:-1, :], alpha=2)
    columns = (padded[..., :-2] + padded[..., 2:]).add_(padded[..., 1:-1], alpha=2)
    across = rows[..., 2:] - rows[..., :-2]
    down = columns[..., 2:, :] - columns[..., :-2, :]
    return across, down


def flat(means: Tensor) -> Tensor:
    """Where a mean of differences, or of their squares, is 0 but for rounding."""
    return means < _FLAT


def ratio(part_N: Tensor, whole_N: Tensor) -> Tensor:
    """part / whole, means of differences or of their squares, in [0, 1]; 0 where the whole is flat."""
    flat_N = flat(whole_N)
    return (part_N / whole_N.masked_fill(flat_N, 1)).clamp(0, 1).masked_fill(flat_N, 0)
