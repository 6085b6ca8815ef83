"""Devices, and images as tensors: the few conversions between pixels and what networks see.

Axes   C channel (R G B), H height, W width
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from curate.errors import UsageError, listed, one_line

__all__ = [
    "content_hash",
    "crop_to_multiple",
    "halving",
    "has_bfloat16",
    "pick_device",
    "step_seed",
    "to_float",
    "to_pixels",
    "to_tensor",
]

_Result = TypeVar("_Result")

_CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # of x86 and Arm, as torch calls them


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of names, dtypes, shapes and values, whatever their order, device and memory layout."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware; elsewhere it is far slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    tell: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # an old torch does not tell
    capabilities = tell()
    return device.type == "cpu" and any(capabilities.get(name, False) for name in _CPU_BFLOAT16)


def halving(work: Callable[[int], _Result], size: int) -> _Result:
    """`work(size)`, or that of half the size, a quarter, ... down to 1, where a GPU's memory does not suffice."""
    while True:
        try:
            return work(size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        # Not in the handler: until it ends, the traceback holds the tensors that did not fit.
        size = (size + 1) // 2


def step_seed(*numbers: int) -> int:
    """A seed of 64 bits for what is drawn in a step, of the run's seed, the step's number, ...: no random state has to
    outlive a step."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def to_tensor(pixels_HWC: npt.NDArray[np.uint8]) -> Tensor:
    """uint8 pixels, HWC, strided in any way -> image_CHW uint8, contiguous, a copy."""
    height, width, channels = pixels_HWC.shape
    planes_CHW = np.empty((channels, height, width), np.uint8)
    # Into those planes, in a fifth of the time of torch's own transposition.
    cv2.split(np.ascontiguousarray(pixels_HWC), list(planes_CHW))
    return torch.from_numpy(planes_CHW)


def to_pixels(image_CHW: Tensor) -> npt.NDArray[np.uint8]:
    """image_CHW uint8 -> uint8 pixels, HWC, contiguous."""
    pixels: npt.NDArray[np.uint8] = image_CHW.permute(1, 2, 0).contiguous().cpu().numpy()
    return pixels


def to_float(image: Tensor) -> Tensor:
    """uint8 of any shape -> float32 in [0, 1]."""
    return image.to(torch.float32, copy=True).div_(255)


def crop_to_multiple(image_CHW: Tensor, multiple: int = 12) -> Tensor:
    """The top-left part whose height and width are multiples of `multiple`, as a view; any leading axes."""
    height, width = (side - side % multiple for side in image_CHW.shape[-2:])
    return image_CHW[..., :height, :width]
