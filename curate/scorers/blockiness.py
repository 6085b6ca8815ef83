"""Blockiness: how far the 8x8 grid of JPEG shows, from the DCT of the window's blocks on the grid and off it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curate.scorers import MapScorer
from curate.scorers.entropy import grey_levels

__all__ = ["Blockiness"]

_BLOCK = 8  # px, JPEG's
_OFF = 4  # px down and to the right: blocks that lie across four of JPEG's
_CELL = 4  # px: the largest squares of which blocks on the grid and off it are both made
_FREQUENCIES = _BLOCK**2
_LEAST = 0.01  # grey levels; smaller mean steps count as this. Rounding a photograph to 8 bits alone makes 0.9


@dataclass(frozen=True)
class Blockiness(MapScorer):
    """sum over the 64 frequencies of |Vc - V| / V (Bhardwaj & Pankajakshan 2018). No options.

    V is the mean over the window of sqrt((left + right - 2c)^2 + (up + down - 2c)^2), where c is a block's coefficient
    in the orthonormal DCT of 8-bit grey and the others are its neighbours'; Vc is the same for blocks that lie 4 px
    further down and to the right. From 0 up, no unit. High is a grid that shows. Windows of 480 px of Kodak's have 1 to
    2; as JPEG of quality 95, 3 to 18; of 85, 31 to 67; of 75, 61 to 128; of 50, 138 to 330. Smaller windows have more:
    96 px without JPEG 4 to 8. DiverSeg (Ohtani et al. 2024) has it of whole images; BHI keeps tiles of 512 px below 30.

    The grid is the image's own, from its top left pixel as in any JPEG file, wherever the window lies: hence a map of
    the whole image. It is not found in a photograph that was cut off the grid, or resized, after it was a JPEG. A block
    that the window cuts counts by its share; the image's outermost blocks, which lack a neighbour, do not count. A flat
    window has 0, one without any such block NaN: up to 12 px in a corner, or in an image below 36 px.
    """

    columns: ClassVar[tuple[str, ...]] = ("blockiness",)
    version: ClassVar[int] = 1

    def build(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        def draw(image_BCHW: Tensor) -> Tensor:
            grey_BHW = torch.stack([grey_levels(image_CHW) for image_CHW in image_BCHW])
            return torch.cat([_steps(grey_BHW, 0), _steps(grey_BHW, _OFF)], dim=1)

        return draw

    def finish(self, means_NK: Tensor) -> Tensor:
        """The measure, (N, 1), from the means of both grids' steps and the shares of the window that have any."""
        v_NF, vc_NF = (grid_NK[:, :-1] / grid_NK[:, -1:] for grid_NK in means_NK.chunk(2, dim=1))
        return ((vc_NF - v_NF).abs() / v_NF.clamp(min=_LEAST)).sum(1, keepdim=True)


def _steps(grey_BHW: Tensor, start: int) -> Tensor:
    """Steps between the blocks of a grid from (start, start), in cells of 4 px: B, 64 frequencies and a 1, H/4, W/4.

    All are 0 where no block has its four neighbours.
    """
    batch, height, width = grey_BHW.shape
    grid_BHW = grey_BHW[:, start:, start:]
    rows, columns = (side // _BLOCK for side in grid_BHW.shape[1:])
    # B 8R 8C -> B R 8 C 8 -> B R C 8 8. In float64: a GPU's float32 products may have 10-bit mantissas (TF32).
    blocks = grid_BHW[:, : rows * _BLOCK, : columns * _BLOCK].double()
    blocks = blocks.reshape(batch, rows, _BLOCK, columns, _BLOCK).transpose(2, 3)
    basis = _dct_basis().to(blocks.device)
    centres = basis @ blocks @ basis.T
    inner = centres[:, 1:-1, 1:-1]
    across = centres[:, 1:-1, :-2] + centres[:, 1:-1, 2:] - 2 * inner
    down = centres[:, :-2, 1:-1] + centres[:, 2:, 1:-1] - 2 * inner
    steps_BFRC = torch.hypot(across, down).flatten(3).movedim(3, 1).float()
    steps_BFRC = torch.cat([steps_BFRC, torch.ones_like(steps_BFRC[:, :1])], dim=1)

    first, times = (start + _BLOCK) // _CELL, _BLOCK // _CELL
    last_row, last_column = (first + times * inner.shape[axis] for axis in (1, 2))
    steps_BFHW = steps_BFRC.repeat_interleave(times, 2).repeat_interleave(times, 3)
    cells_BFHW = grey_BHW.new_zeros(batch, _FREQUENCIES + 1, height // _CELL, width // _CELL)
    cells_BFHW[:, :, first:last_row, first:last_column] = steps_BFHW
    return cells_BFHW


def _dct_basis() -> Tensor:
    """Rows are the orthonormal DCT-II's eight cosines, float64."""
    frequency_81, place_8 = torch.arange(_BLOCK).double()[:, None], torch.arange(_BLOCK).double()
    basis_88 = math.sqrt(2 / _BLOCK) * torch.cos(math.pi * frequency_81 * (2 * place_8 + 1) / (2 * _BLOCK))
    basis_88[0] /= math.sqrt(2)
    return basis_88
