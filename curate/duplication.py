"""Duplicates: images of a store that show the same picture, encoded, resized or toned otherwise.

Exact copies never get into a store. Here a perceptual hash (64 signs of a small picture's DCT; Zauner 2010) proposes
the pairs and the correlation of their pixels decides. Of each group one image is kept (`curate.flags`), and the others'
status says which; a selection leaves them out.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.fft import dctn

from curate import alignment, checks, layout
from curate.progress import Progress, silent
from curate.schema import CheckRecord
from curate.store import Store

__all__ = ["DuplicateReport", "distances", "duplicates", "perceptual_hash"]

_VERSION = 1  # raise it when the same images begin to give other findings
_SIDE = 32  # px of the picture that is hashed
_FLAT = 1.0  # standard deviation in grey values, below which the signs of a DCT are those of noise
_BITS = 10  # hashes that differ in no more may be of one picture; the nearest two others of 400 photographs: 14
_LOOK = 8  # of those the nearest, whose pixels are compared: bounds what a film of one scene costs
_GRID = 128  # px, longest side on which pixels are compared: a shift of 1 % of a crop is 1 px
_ASPECT = 1.05  # ratio of two pictures' aspect ratios, above which one is a crop of the other, or another picture
_AGREE = 0.9  # correlation of pixels; copies as JPEG 20, at a half or a third of the size, brighter or grey: 0.92 up
_THUMBNAILS = 4096  # of images that were seen, kept in memory: 64 KB each at most


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """What one check found."""

    images: int  # that this run looked at
    flagged: int  # images of the store that yield to another one
    pairs: pa.Table  # image_id, name, twin, twin_name, kept (of its group), distance, correlation
    why: list[str]  # why findings that were there were not taken


def duplicates(store: Store | str | Path, *, progress: Progress = silent) -> DuplicateReport:
    """Look for near-duplicates within a store; what was looked at before is not looked at again.

    Raises UsageError for a packed store.
    """
    store = store if isinstance(store, Store) else Store.open(store)
    checked = checks.run(store, _Duplicates(store), progress)
    pairs = store.findings().duplicates
    yielding = {row["image_id"] for row in pairs.to_pylist() if row["image_id"] != row["kept"]}
    yielding |= {row["twin"] for row in pairs.to_pylist() if row["twin"] != row["kept"]}
    return DuplicateReport(checked.images, len(yielding), pairs, checked.why)


def perceptual_hash(grey_HW: npt.NDArray[np.uint8]) -> int | None:
    """64 bits that change little where a picture is resized or encoded again; None if it is flat.

    Which of the 8x8 lowest frequencies of a 32x32 DCT, its first row and column left out, lie above their median.
    """
    small_HW = alignment.shrink(grey_HW, _SIDE, _SIDE)
    if small_HW.std() < _FLAT:
        return None
    low_N = dctn(small_HW.astype(np.float64), norm="ortho")[1:9, 1:9].ravel()
    return int.from_bytes(np.packbits(low_N > np.median(low_N)).tobytes(), "big")


def distances(phash: int, others_N: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """In how many bits each of other hashes differs."""
    return np.asarray(np.bitwise_count(others_N ^ np.uint64(phash)), np.uint8)


@dataclass(frozen=True, slots=True)
class _Picture:
    """An image as it is compared."""

    phash: int | None
    thumbnail_HW: npt.NDArray[np.float32]

    @classmethod
    def of(cls, pixels_HW3: npt.NDArray[np.uint8]) -> "_Picture":
        grey_HW = alignment.grey(pixels_HW3)
        factor = min(1.0, _GRID / max(grey_HW.shape))
        height, width = (max(1, round(side * factor)) for side in grey_HW.shape)
        return cls(perceptual_hash(grey_HW), alignment.shrink(grey_HW, height, width))


@dataclass
class _Duplicates:
    """The check of one store."""

    columns: ClassVar[pa.Schema] = layout.DUPLICATES

    store: Store
    ids: list[str] = field(default_factory=list)  # of images seen that have a hash
    hashes: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    thumbnails: OrderedDict[str, npt.NDArray[np.float32]] = field(default_factory=OrderedDict)

    @property
    def record(self) -> CheckRecord:
        fingerprint = checks.digest(["duplicates", _VERSION])
        return CheckRecord(
            check="duplicates", label="duplicates", version=_VERSION, identity={}, fingerprint=fingerprint
        )

    def describe(self, pixels_HW3: npt.NDArray[np.uint8]) -> _Picture:
        return _Picture.of(pixels_HW3)

    def judge(self, image_id: str, description: _Picture) -> list[dict[str, Any]]:
        alone = {"image_id": image_id, "phash": description.phash, "twin": None, "distance": None, "correlation": None}
        if description.phash is None:
            return [alone]
        rows = []
        for number, distance in self._nearest(description.phash):
            agreement = _agreement(description.thumbnail_HW, self._thumbnail(self.ids[number]))
            if agreement >= _AGREE:
                twin = {"twin": self.ids[number], "distance": distance, "correlation": agreement}
                rows.append(alone | twin)
        self.ids.append(image_id)
        self.hashes = np.append(self.hashes, np.uint64(description.phash))
        self._keep(image_id, description.thumbnail_HW)
        return rows or [alone]

    def recall(self, findings: pa.Table) -> None:
        hashes = {row["image_id"]: row["phash"] for row in findings.to_pylist() if row["phash"] is not None}
        self.ids += hashes
        self.hashes = np.append(self.hashes, np.array(list(hashes.values()), np.uint64))

    def _nearest(self, phash: int) -> list[tuple[int, int]]:
        """(number, distance) of the images whose hash may be of the same picture, the nearest first."""
        apart_N = distances(phash, self.hashes)
        near = np.flatnonzero(apart_N <= _BITS)
        order = near[np.argsort(apart_N[near], kind="stable")][:_LOOK]
        return [(int(number), int(apart_N[number])) for number in order]

    def _thumbnail(self, image_id: str) -> npt.NDArray[np.float32]:
        if image_id not in self.thumbnails:
            self._keep(image_id, _Picture.of(self.store.pixels(image_id)).thumbnail_HW)
        self.thumbnails.move_to_end(image_id)
        return self.thumbnails[image_id]

    def _keep(self, image_id: str, thumbnail_HW: npt.NDArray[np.float32]) -> None:
        self.thumbnails[image_id] = thumbnail_HW
        if len(self.thumbnails) > _THUMBNAILS:
            self.thumbnails.popitem(last=False)


def _agreement(a_HW: npt.NDArray[np.float32], b_HW: npt.NDArray[np.float32]) -> float:
    """Correlation of two pictures of the same frame, on the grid of the smaller one; 0 if their shapes differ."""
    aspects = [picture.shape[1] / picture.shape[0] for picture in (a_HW, b_HW)]
    if max(aspects) / min(aspects) > _ASPECT:
        return 0.0
    height, width = min(a_HW.shape, b_HW.shape)
    smaller = [alignment.shrink(picture, height, width) for picture in (a_HW, b_HW)]
    return alignment.correlation(*smaller)
