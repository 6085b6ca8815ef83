"""What strategies that compare vectors share: their options, and vectors read from Arrow and put where sums are exact.

    N    candidates, in the order of their patch_id
    D    coordinates
    M    other points

A sum of floats depends on its order, and so on the machine, its threads and the block size; and a tie is none any more.
Coordinates here are whole numbers, few enough bits for every squared distance to be an exact float64. That is why the
same vectors give the same picks everywhere, in whatever order they came.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import fsum
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curate.errors import UsageError, listed, one_line
from curate.strategies import Strategy

__all__ = ["Points", "VectorStrategy", "by_patch_id", "points_of", "scaled", "vectors"]

Scale = Literal["columns", "length", "none"]

_BLOCK = 2**17  # numbers taken to float64 at a time: 1 MiB, which stays in a core's cache


@dataclass(frozen=True)
class VectorStrategy(Strategy):
    """The options of all of them."""

    by: str = "embedding"  # the column of vectors; the score is another
    scale: Scale = "columns"  # before distances: each coordinate by its deviation, to `length` 1 (cosine), or `none`
    seed: int = 0  # from 0 up; of all that is drawn

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed should be 0 or more, found {self.seed}")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.by,)


def by_patch_id(candidates: pa.Table) -> npt.NDArray[np.int64]:
    """Row numbers in the order of the patch_id."""
    return np.asarray(pc.sort_indices(candidates, sort_keys=[("patch_id", "ascending")])).astype(np.int64)


def points_of(candidates: pa.Table, column: str, scale: Scale) -> "Points":
    """The vectors of a column as points: see `scaled`."""
    return scaled(vectors(candidates, column), scale)


def scaled(vectors_ND: npt.NDArray[np.float32], scale: Scale) -> "Points":
    """Vectors as points. Distances between them are those of the scaled vectors.

    columns  each coordinate by its standard deviation, or by a thousandth of the largest one where that is more: what
             a dead feature has is noise. Of a network's features one, the brightness, would else outweigh all others
    length   each vector to length 1: a distance is then sqrt(2 - 2 cosine)
    none     as they are
    """
    if scale == "columns":
        return Points.of(_by_deviation(vectors_ND))
    return Points.of(_by_length(vectors_ND) if scale == "length" else vectors_ND)


def vectors(candidates: pa.Table, column: str) -> npt.NDArray[np.float32]:
    """A column of lists or fixed-size lists as vectors_ND. UsageError for what is no vector, missing or not finite."""
    name = one_line(column)
    if column not in candidates.column_names:
        raise UsageError(f"no column '{name}' of vectors; the candidates have: {listed(candidates.column_names)}")
    kind = candidates.schema.field(column).type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not (lists and pa.types.is_floating(kind.value_type)):
        raise UsageError(f"'{name}' should hold vectors, as the scorer 'embedding' makes them, found {kind}")
    values = candidates[column].combine_chunks()
    present = values.drop_null()
    lengths = np.unique(np.asarray(pc.list_value_length(present)))
    if len(lengths) > 1 or 0 in lengths:
        raise UsageError(f"the vectors of '{name}' should be of one length, found {lengths[0]} to {lengths[-1]}")
    flat = present.flatten().to_numpy(zero_copy_only=False)
    vectors_ND: npt.NDArray[np.float32] = flat.astype(np.float32, copy=False).reshape(
        len(present), lengths.max(initial=1)
    )
    if unfit := len(values) - int(np.isfinite(vectors_ND).all(axis=1).sum()):
        found = f"'{name}' is missing or not finite in {unfit} of {len(values)} candidates"
        raise UsageError(f"{found}; run 'curate score' for them, or leave them out by a condition (--where)")
    return vectors_ND


@dataclass(frozen=True, slots=True)
class Points:
    """Vectors moved and scaled onto a grid of whole numbers; distances are in its steps."""

    grid_ND: npt.NDArray[np.float32]
    norms_N: npt.NDArray[np.float64]  # squared

    @classmethod
    def of(cls, vectors_ND: npt.NDArray[np.float32]) -> "Points":
        """The widest coordinate reaches from -2^bits to 2^bits, 22 bits for 64 coordinates: about float32's own 24."""
        count, length = vectors_ND.shape
        bits = min(24, (51 - (length - 1).bit_length()) // 2)  # 4 D 2^(2 bits) <= 2^53, and float32 holds 2^24
        low_D, high_D = vectors_ND.min(axis=0).astype(np.float64), vectors_ND.max(axis=0).astype(np.float64)
        step = float((high_D - low_D).max()) / 2 ** (bits + 1) or 1.0
        grid_ND, norms_N = np.empty_like(vectors_ND), np.empty(count)
        for block in _blocks(count, length):
            rounded = np.rint((vectors_ND[block] - (low_D + high_D) / 2) / step)
            grid_ND[block] = rounded
            norms_N[block] = np.square(rounded).sum(axis=1)
        return cls(grid_ND, norms_N)

    def squared_distances(self, others_MD: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Exact, from other points on the grid, as squared_MN."""
        others_MD = others_MD.astype(np.float64)
        squared_MN = np.empty((len(others_MD), len(self.grid_ND)))
        for block in _blocks(*self.grid_ND.shape):
            np.matmul(others_MD, self.grid_ND[block].astype(np.float64).T, out=squared_MN[:, block])
        squared_MN *= -2
        squared_MN += self.norms_N
        squared_MN += np.square(others_MD).sum(axis=1)[:, None]
        return squared_MN

    def mean(self) -> npt.NDArray[np.float64]:
        """The mean_D, rounded to the grid."""
        mean_D: npt.NDArray[np.float64] = np.rint(self.grid_ND.mean(axis=0, dtype=np.float64))
        return mean_D

    def variance(self) -> float:
        """The mean squared distance from the mean; 1 where all points are the same."""
        return fsum(self.squared_distances(self.mean()[None])[0]) / len(self.grid_ND) or 1.0


def _by_deviation(vectors_ND: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    low_D, high_D = vectors_ND.min(axis=0).astype(np.float64), vectors_ND.max(axis=0).astype(np.float64)
    span_D = np.where(high_D > low_D, high_D - low_D, 1)
    sum_D = square_D = np.zeros(len(span_D))
    for block in _blocks(*vectors_ND.shape):
        rounded = np.rint((vectors_ND[block] - low_D) / span_D * 2**15)  # sums exact up to 8 million vectors
        sum_D = sum_D + rounded.sum(axis=0)
        square_D = square_D + np.square(rounded).sum(axis=0)
    deviation_D = np.sqrt(square_D / len(vectors_ND) - np.square(sum_D / len(vectors_ND))) * span_D
    divisor_D = np.maximum(deviation_D, deviation_D.max() / 1000)
    scaled_ND = np.empty_like(vectors_ND)
    for block in _blocks(*vectors_ND.shape):
        scaled_ND[block] = (vectors_ND[block] - low_D) / (divisor_D if divisor_D.any() else 1)
    return scaled_ND


def _by_length(vectors_ND: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    scaled_ND = np.empty_like(vectors_ND)
    for block in _blocks(*vectors_ND.shape):
        reach_B1 = np.abs(vectors_ND[block]).max(axis=1, keepdims=True).astype(np.float64)
        rounded = np.rint(vectors_ND[block] / np.where(reach_B1 > 0, reach_B1, 1) * 2**20)
        length_B1 = np.sqrt(np.square(rounded).sum(axis=1, keepdims=True))
        scaled_ND[block] = rounded / np.maximum(length_B1, 1)
    return scaled_ND


def _blocks(count: int, length: int) -> Iterator[slice]:
    rows = max(1, _BLOCK // length)
    return (slice(start, start + rows) for start in range(0, count, rows))
