"""The grid of windows that the field lays over an image, and the identity of one window.

An image is first cropped (bottom and right) to a multiple of 12, so that its x2, x3 and x4 grids agree. Along each axis
the windows start at 0, step, 2 step, ... and one edge-aligned window more where a remainder is left: the rule by which
sub-images of DIV2K are usually cut (800 images, 480-px windows, step 240: 32,592 windows).
"""

import numpy as np
import numpy.typing as npt

__all__ = ["MULTIPLE", "cropped", "grid", "offsets", "patch_id"]

MULTIPLE = 12  # least common multiple of the scales 2, 3 and 4


def cropped(length: int) -> int:
    """`length` px, rounded down to a multiple of 12."""
    return length - length % MULTIPLE


def offsets(length: int, size: int, step: int) -> list[int]:
    """Where windows of `size` px start along an axis of `length` px; empty if none fits."""
    if length < size:
        return []
    starts = list(range(0, length - size + 1, step))
    if starts[-1] + size < length:
        starts.append(length - size)
    return starts


def grid(height: int, width: int, size: int, step: int) -> npt.NDArray[np.int32]:
    """Top-left corners (y, x) of all windows of an image, row by row, as an (N, 2) array; N = 0 if none fits."""
    ys = offsets(cropped(height), size, step)
    xs = offsets(cropped(width), size, step)
    return np.array([(y, x) for y in ys for x in xs], np.int32).reshape(-1, 2)


def patch_id(image_id: str, y: int, x: int, size: int) -> str:
    """The window's name, the same on every machine: it says which pixels of which photograph."""
    return f"{image_id}_{y}_{x}_{size}"
