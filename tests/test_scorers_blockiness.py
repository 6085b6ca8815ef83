"""Blockiness is its formula, in plain loops; it rises as JPEG's quality falls, wherever on the grid a window lies."""

import io
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy.fft import dctn
from torch import Tensor

from curate import windows
from curate.ingestion import ingest
from curate.means import window_means
from curate.scorers.blockiness import Blockiness
from curate.scoring import score
from curate.store import Store
from curate.tensors import to_float, to_tensor

Pixels = npt.NDArray[np.uint8]
MakePhoto = Callable[[int, int, int], Pixels]


def blockiness(pixels_HWC: Pixels, corners: list[tuple[int, int]], size: int) -> npt.NDArray[np.float64]:
    """Of each window."""
    maps_BKHW = Blockiness().build(torch.device("cpu"))(to_float(to_tensor(pixels_HWC))[None])
    cell = pixels_HWC.shape[1] // maps_BKHW.shape[3]
    means_NK = window_means(maps_BKHW, np.array(corners, np.int32), size, cell)
    return Blockiness().finish(means_NK)[:, 0].numpy()


def as_jpeg(pixels_HWC: Pixels, quality: int, subsampling: Literal[0, 2] = 0) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "jpeg", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(file))


def plain_loops(pixels_HWC: Pixels, y: int, x: int, size: int) -> float:
    """The formula: a block counts by as much of it as the window covers, and only if it has its four neighbours."""
    grey_HW = np.asarray(Image.fromarray(pixels_HWC).convert("L"), np.float64)
    averages = []
    for start in (0, 4):
        rows, columns = ((side - start) // 8 for side in grey_HW.shape)
        blocks = {}
        for row, column in itertools.product(range(rows), range(columns)):
            top, left = start + 8 * row, start + 8 * column
            blocks[row, column] = dctn(grey_HW[top : top + 8, left : left + 8], norm="ortho")
        average = np.zeros((8, 8))
        for u, v in itertools.product(range(8), range(8)):
            total = area = 0.0
            for row, column in itertools.product(range(1, rows - 1), range(1, columns - 1)):
                high = max(min(start + 8 * row + 8, y + size) - max(start + 8 * row, y), 0)
                wide = max(min(start + 8 * column + 8, x + size) - max(start + 8 * column, x), 0)
                c = blocks[row, column][u, v]
                across = blocks[row, column - 1][u, v] + blocks[row, column + 1][u, v] - 2 * c
                down = blocks[row - 1, column][u, v] + blocks[row + 1, column][u, v] - 2 * c
                total += high * wide * math.sqrt(across**2 + down**2)
                area += high * wide
            average[u, v] = total / area
        averages.append(average)
    return float((abs(averages[1] - averages[0]) / averages[0]).sum())


@pytest.mark.parametrize(("height", "width"), [(48, 60), (60, 72)])  # sides of 0 and 4 px more than whole blocks
@pytest.mark.parametrize("quality", [None, 60])
def test_blockiness_is_its_formula_in_plain_loops(
    height: int, width: int, quality: int | None, make_photo: MakePhoto
) -> None:
    pixels = make_photo(height, width, 3)
    pixels = as_jpeg(pixels, quality) if quality else pixels
    corners = [(0, 0), (8, 16), (4, 12), (5, 7), (height - 40, width - 40)]
    expected = [plain_loops(pixels, y, x, 40) for y, x in corners]
    np.testing.assert_allclose(blockiness(pixels, corners, 40), expected, rtol=1e-5)


def test_of_a_whole_image_all_inner_blocks_count_alike(make_photo: MakePhoto) -> None:
    pixels = as_jpeg(make_photo(64, 64, 1), 75)
    np.testing.assert_allclose(
        blockiness(pixels[:60, :60], [(0, 0)], 60), plain_loops(pixels[:60, :60], 0, 0, 60), 1e-5
    )


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("seed", range(3))
def test_it_rises_as_the_quality_falls(seed: int, subsampling: Literal[0, 2], make_photo: MakePhoto) -> None:
    photo = make_photo(240, 240, seed)
    rising = [photo, *(as_jpeg(photo, quality, subsampling) for quality in (90, 80, 65, 50, 30, 10))]
    scores = [float(blockiness(pixels, [(0, 0)], 240)[0]) for pixels in rising]
    assert scores == sorted(scores)
    assert scores[0] < 10 < 50 < scores[4]


def test_noise_has_no_grid() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (480, 480, 3), np.uint8)
    assert blockiness(noise, [(0, 0)], 480)[0] < 3


def test_the_grid_is_the_images_wherever_the_window_lies(make_photo: MakePhoto) -> None:
    """Windows of an image differ by their content alone; cut out, they lose the grid."""
    pixels = as_jpeg(make_photo(300, 300, 0), 50)
    places = [(16 + y, 16 + x) for y, x in ((0, 0), (4, 4), (4, 0), (3, 5), (1, 7))]
    whole = blockiness(pixels, places, 240)
    assert whole.max() < 1.1 * whole.min()
    for (y, x), score_of_it in zip(places[1:], whole[1:], strict=True):
        assert blockiness(pixels[y : y + 240, x : x + 240].copy(), [(0, 0)], 240)[0] < 0.5 * score_of_it


@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_flat_window_has_none(level: int, make_photo: MakePhoto) -> None:
    """Also beside a photograph, whose sums do not spill over."""
    pixels = make_photo(96, 144, 0)
    pixels[:, 48:] = level
    scores = blockiness(pixels, [(0, 64), (48, 80), (0, 0)], 48)
    assert scores[0] == pytest.approx(0, abs=1e-4) and scores[1] == pytest.approx(0, abs=1e-4)
    assert scores[2] > 1


def test_blocks_of_one_level_each_are_finite() -> None:
    """V is 0 at 63 frequencies, which a division would make infinite."""
    levels = np.random.default_rng(0).integers(0, 256, (12, 12), np.uint8)
    pixels = np.kron(levels, np.ones((8, 8), np.uint8))[..., None].repeat(3, axis=2)
    (found,) = blockiness(pixels, [(0, 0)], 96)
    assert np.isfinite(found) and found > 1e4


def test_scores_of_a_store_are_those_of_its_images(write_photos: Callable[..., Path], tmp_path: Path) -> None:
    """Of a JPEG; and of images below 36 px, which have no score."""
    photos = write_photos(tmp_path / "photos", [(24, 36), (74, 101)])
    ingest([photos], tmp_path / "store", patch=24, step=20)
    report = score(tmp_path / "store", ["blockiness"])
    assert (report.columns, report.images, report.not_finite) == (["blockiness"], 2, 2)
    table = Store.open(tmp_path / "store").query(
        "select blockiness from scores where not isnan(blockiness) order by y, x"
    )
    pixels = np.asarray(Image.open(photos / "001.jpg"))[:72, :96]
    corners = [(int(y), int(x)) for y, x in windows.grid(74, 101, 24, 20)]
    expected = [plain_loops(pixels, y, x, 24) for y, x in corners]
    np.testing.assert_allclose(table["blockiness"].to_pylist(), expected, rtol=1e-5)


# Maps whose pixels stand for several of the image


@pytest.mark.parametrize("cell", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("size", [1, 5, 12, 24])
def test_a_cell_that_a_window_cuts_counts_by_its_share(cell: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    maps_1KHW = torch.rand(1, 2, 36 // cell, 48 // cell, generator=generator)
    maps_1KHW[0, 1, 0, -1] = torch.nan
    corners = list(itertools.product(range(0, 36 - size + 1), range(0, 48 - size + 1, 2)))
    means_NK = window_means(maps_1KHW, np.array(corners, np.int32), size, cell)
    repeated_KHW: Tensor = maps_1KHW[0].double().repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    expected_NK = torch.stack([repeated_KHW[:, y : y + size, x : x + size].mean((1, 2)) for y, x in corners])
    torch.testing.assert_close(means_NK, expected_NK, equal_nan=True, rtol=1e-9, atol=1e-12)
