"""Devices, and images as tensors: the few conversions between pixels and what networks see.

Axes   C channel (R G B), H height, W width
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from curate.errors import UsageError, listed, one_line

__all__ = ["crop_to_multiple", "pick_device", "to_float", "to_pixels", "to_tensor"]


def pick_device(name: str) -> torch.device:
    """`auto` is cuda where there is one, else cpu; other names are torch's own. UsageError if there is no such one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    available += ["mps"] if torch.backends.mps.is_available() else []
    kinds = {entry.partition(":")[0] for entry in available}
    if name not in available and name not in kinds:
        raise UsageError(f"no device '{one_line(name)}' here; there are: auto, {listed(available)}")
    return torch.device(name)


def to_tensor(pixels_HWC: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 pixels, HWC, strided in any way -> image_CHW uint8, contiguous, a copy."""
    return torch.tensor(np.ascontiguousarray(pixels_HWC)).permute(2, 0, 1).contiguous()


def to_pixels(image_CHW: Tensor) -> npt.NDArray[np.uint8]:
    """image_CHW uint8 -> uint8 pixels, HWC, contiguous."""
    pixels: npt.NDArray[np.uint8] = image_CHW.permute(1, 2, 0).contiguous().cpu().numpy()
    return pixels


def to_float(image: Tensor) -> Tensor:
    """uint8 of any shape -> float32 in [0, 1]."""
    return image.float() / 255


def crop_to_multiple(image_CHW: Tensor, multiple: int = 12) -> Tensor:
    """The top-left part whose height and width are multiples of `multiple`, as a view; any leading axes."""
    height, width = (side - side % multiple for side in image_CHW.shape[-2:])
    return image_CHW[..., :height, :width]
