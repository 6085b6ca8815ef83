"""What scorers with a network of any architecture share. Not a scorer: its name starts with an underscore.

A network sees whole LR images in tiles, each with a margin as wide as the network looks around a pixel, so that memory
is bounded and the answer is that of the whole image but for rounding: `in_tiles`.

Axes in names: B batch, C channels (1 where the network's colour is y, 3 where it is rgb), K maps, H height, W width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from curate.archs import Arch
from curate.checkpoint import Checkpoint, full_spec, weights_hash
from curate.errors import UsageError, one_line
from curate.metrics import rgb_to_y
from curate.resize import downscale
from curate.scorers import MapScorer
from curate.tensors import to_float
from curate.windows import MULTIPLE

__all__ = ["NetworkScorer", "TensorFunction", "in_tiles", "load", "lr_image", "reach", "seen"]

TensorFunction = Callable[[Tensor], Tensor]

_BUNDLED = Path(__file__).parent.parent / "weights" / "srcnn_955_x2.safetensors"
_GRID = 48  # LR px: tiles and what they see end on it, and so on any grid of 8 or 16 px in a network, and of 12 HR px
_TILE = 32 * _GRID  # HR px a side: 2040 x 1356 px are two tiles; a network of 64 maps takes up to 2 GB
_FAR = 3 * _GRID  # LR px: a network that looks as far as this around a pixel counts as one that sees everything
_NARROW = 24  # LR px: the other side of the image that shows how far a network looks


@dataclass(frozen=True)
class NetworkScorer(MapScorer):
    """The options of all of them."""

    checkpoint: Path | None = None  # a run's folder, or a file of curate's or anyone's; None: the bundled SRCNN x2
    arch: str | None = None  # the network of a file that does not tell it, as fsrcnn:scale=2
    tile: int = 0  # LR px a side that go through the network at a time, 48 or more; 0: 1536 / scale, or all (`Loss`)

    large: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.tile and self.tile < _GRID:
            raise ValueError(f"tile should be 0 or at least {_GRID} LR px, found {self.tile}")

    def identity(self) -> dict[str, Any]:
        """The options, with the weights' hash for their path and the arch with all of its own options."""
        found = load(self.checkpoint, self.arch)
        return super().identity() | {"checkpoint": weights_hash(found.state), "arch": full_spec(found.arch)}


def load(checkpoint: Path | None, arch: str | None) -> Checkpoint:
    """The checkpoint asked for; None is the bundled SRCNN x2. UsageError for a scale that does not divide 12."""
    if checkpoint is None and arch is not None:
        raise UsageError(f"arch={one_line(arch)} is for a file: name it with checkpoint=FILE")
    found = Checkpoint.load(checkpoint or _BUNDLED, arch)
    if MULTIPLE % found.arch.scale:
        spec = one_line(full_spec(found.arch))
        raise UsageError(f"images are cropped to multiples of {MULTIPLE} px, which the scale of {spec} does not divide")
    return found


def seen(image_BCHW: Tensor, arch: Arch) -> Tensor:
    """An sRGB image in the network's colour, values in [0, 1]."""
    return rgb_to_y(image_BCHW) if arch.colour == "y" else image_BCHW


def lr_image(image_BCHW: Tensor, arch: Arch) -> Tensor:
    """The LR image that trainers see, MATLAB's bicubic on RGB rounded to 8 bits, in the network's colour, in [0, 1]."""
    return seen(to_float(downscale((image_BCHW * 255).round().to(torch.uint8), arch.scale)), arch)


def in_tiles(function: TensorFunction, arch: Arch, tile: int = 0) -> TensorFunction:
    """`function`, on an LR image of any size: a network or part of one, lr_BCHW -> maps_BKHW of any resolution.

    It gets tiles of up to `tile` LR px a side (in steps of 48) and as much around them as it looks at, which is cut off
    its answer. A function that sees everything gets 48 px around, and its answer is not that of the whole image. 0 is
    1536 / scale px, and for such a function the whole image. An image that is smaller than the network can take is
    continued to the right and below by its last px. The weights are on the CPU as of now; they may move later.
    """
    looks = reach(function, arch)
    margin = _up(looks) if looks is not None else _GRID
    most = tile or (_TILE // arch.scale if looks is not None else None)

    def tiled(lr_BCHW: Tensor) -> Tensor:
        strips = []
        for rows in _spans(lr_BCHW.shape[2], most, margin):
            tiles = [
                rows.inner(columns.inner(function(columns.cut(rows.cut(lr_BCHW, 2), 3)), 3), 2)
                for columns in _spans(lr_BCHW.shape[3], most, margin)
            ]
            strips.append(torch.cat(tiles, dim=3))
        return torch.cat(strips, dim=2)

    def draw(lr_BCHW: Tensor) -> Tensor:
        height, width = lr_BCHW.shape[2:]
        if min(height, width) >= arch.least:
            return tiled(lr_BCHW)
        wider = [_up(max(side, arch.least)) for side in (height, width)]
        maps_BKHW = tiled(F.pad(lr_BCHW, (0, wider[1] - width, 0, wider[0] - height), mode="replicate"))
        rows, columns = (
            maps * side // all for maps, side, all in zip(maps_BKHW.shape[2:], (height, width), wider, strict=True)
        )
        return maps_BKHW[..., :rows, :columns]

    return draw


def reach(function: TensorFunction, arch: Arch) -> int | None:
    """How many LR px around a pixel, in rows or columns, `function` looks at; None for 144 and more.

    Whatever it is made of: it is how far NaN spreads from a block of an image. Never less than the truth; up to 16 px
    more where pixels are multiplied by 0 (in the bicubic that SRCNN starts with).
    """
    probe_1CHW = torch.zeros(1, 1 if arch.colour == "y" else 3, max(_NARROW, arch.least), _FAR + _GRID + _FAR)
    probe_1CHW[..., _FAR : _FAR + _GRID] = torch.nan
    with torch.inference_mode():
        maps_1KHW = function(probe_1CHW)
    touched = maps_1KHW.isnan().any(2).any(1)[0].nonzero()
    per_px = maps_1KHW.shape[3] / probe_1CHW.shape[3]
    first, last = int(touched[0]) / per_px, (int(touched[-1]) + 1) / per_px
    found = math.ceil(max(_FAR - first, last - _FAR - _GRID))
    return found if found < _FAR else None


@dataclass(frozen=True)
class _Span:
    """A tile along one axis, LR px: it is `start` to `stop`, and the function sees `first` to `last`."""

    first: int
    start: int
    stop: int
    last: int

    def cut(self, lr: Tensor, axis: int) -> Tensor:
        """What the function sees."""
        return lr.narrow(axis, self.first, self.last - self.first)

    def inner(self, maps: Tensor, axis: int) -> Tensor:
        """Its answer without the margins."""
        start, stop = (
            place * maps.shape[axis] // (self.last - self.first)
            for place in (self.start - self.first, self.stop - self.first)
        )
        return maps.narrow(axis, start, stop - start)


def _spans(side: int, most: int | None, margin: int) -> list[_Span]:
    """Tiles of equal size, but for the last, of up to `most` px."""
    step = side if most is None else _up(math.ceil(side / math.ceil(side / most)))
    stops = [min(start + step, side) for start in range(0, side, step)]
    return [
        _Span(max(start - margin, 0), start, stop, min(stop + margin, side))
        for start, stop in zip(range(0, side, step), stops, strict=True)
    ]


def _up(length: int) -> int:
    """`length`, rounded up to a multiple of 48."""
    return length + -length % _GRID
