"""Windows cut out of their photographs, each of which is decoded once: the PNG files of HR and LR.

The LR is the crop of the whole photograph's, as in `curate train`: the store's own where it was ingested with one, and
MATLAB's bicubic otherwise.
"""

import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from curate import pool
from curate.errors import DataError
from curate.progress import Progress
from curate.resize import downscale
from curate.store import Store
from curate.targets import PNG_LEVEL, Plan, Window
from curate.tensors import crop_to_multiple, to_pixels, to_tensor

__all__ = ["Cut", "Job", "by_photograph"]

_Pixels = npt.NDArray[np.uint8]  # HWC, sRGB


class Cut(NamedTuple):
    """A window's files."""

    window: Window
    hr: bytes  # PNG
    lr: bytes | None


def by_photograph(windows: list[Window]) -> list[list[Window]]:
    """The windows of each photograph, in the order in which photographs come first."""
    found: dict[str, list[Window]] = {}
    for window in windows:
        found.setdefault(window.image_id, []).append(window)
    return list(found.values())


def _png(pixels: _Pixels, window: Window, shrink: int) -> bytes:
    """The window's pixels of an image `shrink` times smaller than the HR image, as a file."""
    y, x, height, width = (length // shrink for length in (window.y, window.x, window.height, window.width))
    cut = pixels[y : y + height, x : x + width]
    if min(y, x) < 0 or cut.shape[:2] != (height, width):
        size = f"{pixels.shape[0]}x{pixels.shape[1]}"
        raise DataError(f"the manifest's patch '{window.patch_id}' is not inside its image, x{shrink} {size}")
    file = io.BytesIO()
    Image.fromarray(cut).save(file, "PNG", compress_level=PNG_LEVEL)
    return file.getvalue()


class Job:
    """One export under way: what to cut, out of which store, and how far it is."""

    def __init__(self, plan: Plan, store: Store, progress: Progress) -> None:
        self.plan = plan
        self.done = 0
        self.kept = 0
        self._store = store
        self._progress = progress

    def advance(self, number: int, kept: int = 0) -> None:
        """`number` more windows are finished, `kept` of them were there already."""
        self.done += number
        self.kept += kept
        self._progress(self.done, len(self.plan.windows), f"{self.kept} there already" if self.kept else "")

    def cut(self, windows: list[Window]) -> Iterator[Cut]:
        """The files of windows of one photograph, which is decoded once. Called by several threads."""
        if not windows:
            return
        image_id, scale = windows[0].image_id, self.plan.scale
        hr = self._store.pixels(image_id)
        lr = self._lr(image_id, hr, scale) if scale else None
        for window in windows:
            yield Cut(window, _png(hr, window, 1), None if lr is None else _png(lr, window, scale or 1))

    def _lr(self, image_id: str, hr: _Pixels, scale: int) -> _Pixels:
        """As `curate.loader` has it."""
        role = f"lr{scale}"
        if self._store.cell(image_id, role):
            return self._store.pixels(image_id, role)
        return to_pixels(downscale(crop_to_multiple(to_tensor(hr))[None], scale)[0])

    def cut_chunk(self, windows: list[Window]) -> list[Cut]:
        """The files of all windows of a chunk, in its order; advances."""
        found = {}
        for cuts in pool.ahead(lambda mine: list(self.cut(mine)), by_photograph(windows)):
            found.update({cut.window.rank: cut for cut in cuts})
            self.advance(len(cuts))
        return [found[window.rank] for window in windows]
