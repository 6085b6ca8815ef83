"""Sub-images cut by OpenCV in a pool of processes, as extract_subimages.py of many repositories does.

Without torch: every process imports this.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2

from curate import pool, windows

__all__ = ["cutting", "sub_images"]

_PNG_LEVEL = 3


@contextmanager
def cutting(patch: int, step: int) -> Iterator[Callable[[Path, Path], None]]:
    """A function (corpus, folder) that cuts all images, in processes that are there already."""
    with multiprocessing.get_context("spawn").Pool(pool.workers(), cv2.setNumThreads, (1,)) as processes:

        def cut(corpus: Path, folder: Path) -> None:
            folder.mkdir(parents=True)
            processes.map(partial(_cut, folder, patch, step), sorted(corpus.iterdir()), chunksize=1)

        processes.map(_nothing, range(pool.workers()))  # they have started
        yield cut


def _nothing(_: int) -> None:
    pass


def _cut(folder: Path, patch: int, step: int, path: Path) -> None:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    options = [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL]
    for y, x in windows.grid(*pixels.shape[:2], patch, step).tolist():
        cv2.imwrite(str(folder / f"{path.stem}_{y}_{x}.png"), pixels[y : y + patch, x : x + patch], options)


def sub_images(corpus: Path, folder: Path, patch: int, step: int, scale: int) -> Path:
    """`folder`/HR and `folder`/LR: sub-images of both, LR by OpenCV, with the same names."""
    with cutting(patch, step) as cut:
        cut(corpus, folder / "HR")
    (folder / "LR").mkdir()
    with ThreadPoolExecutor(pool.workers()) as threads:
        list(threads.map(partial(_shrink, folder / "LR", patch // scale), sorted((folder / "HR").iterdir())))
    return folder


def _shrink(folder: Path, side: int, path: Path) -> None:
    lr = cv2.resize(cv2.imread(str(path)), (side, side), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(folder / path.name), lr, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])
