"""The grid covers every pixel of the cropped image, and is the one by which the field cuts sub-images."""

from itertools import pairwise

import numpy as np
import pytest

from curate import windows

GRIDS = [(480, 240), (48, 24), (24, 24), (36, 5), (13, 7), (12, 1), (1, 1)]  # size, step
LENGTHS = range(0, 150)


def sub_images(length: int, size: int, step: int) -> list[int]:
    """Where the field's script for cutting sub-images starts (BasicSR, extract_subimages, with a threshold of 0)."""
    starts = np.arange(0, length - size + 1, step)
    if length - (starts[-1] + size) > 0:
        starts = np.append(starts, length - size)
    return starts.tolist()


def test_cropped_is_the_greatest_length_that_x2_x3_and_x4_divide() -> None:
    for length in LENGTHS:
        fitting = [n for n in range(length + 1) if n % 2 == n % 3 == n % 4 == 0]
        assert windows.cropped(length) == max(fitting), length


@pytest.mark.parametrize(("size", "step"), GRIDS)
def test_offsets_are_those_of_the_fields_script(size: int, step: int) -> None:
    for length in [*LENGTHS, 1356, 2040]:
        expected = sub_images(length, size, step) if length >= size else []
        assert windows.offsets(length, size, step) == expected, length


@pytest.mark.parametrize(("size", "step"), GRIDS)
def test_windows_of_an_axis_cover_it_once_over_and_stay_inside(size: int, step: int) -> None:
    for length in range(size, size + 100):
        starts = windows.offsets(length, size, step)
        assert starts[0] == 0 and starts[-1] + size == length, length
        assert all(0 < right - left <= step for left, right in pairwise(starts)), length


@pytest.mark.parametrize(
    ("length", "size", "step", "expected"),
    [
        (47, 48, 24, []),
        (48, 48, 24, [0]),
        (49, 48, 24, [0, 1]),
        (72, 48, 24, [0, 24]),
        (73, 48, 24, [0, 24, 25]),
        (96, 48, 48, [0, 48]),
        (100, 48, 48, [0, 48, 52]),
        (2040, 480, 240, [0, 240, 480, 720, 960, 1200, 1440, 1560]),
    ],
)
def test_offsets_of(length: int, size: int, step: int, expected: list[int]) -> None:
    assert windows.offsets(length, size, step) == expected


@pytest.mark.parametrize("shape", [(48, 48), (59, 60), (60, 59), (97, 131), (131, 97), (144, 48), (240, 241)])
@pytest.mark.parametrize(("size", "step"), [(48, 24), (48, 48), (24, 17)])
def test_the_grid_covers_the_cropped_image_and_no_pixel_more(shape: tuple[int, int], size: int, step: int) -> None:
    height, width = shape
    corners = windows.grid(height, width, size, step)
    covered = np.zeros(shape, bool)
    for y, x in corners:
        covered[y : y + size, x : x + size] = True
        assert covered[y : y + size, x : x + size].shape == (size, size)
    inside = np.zeros(shape, bool)
    inside[: windows.cropped(height), : windows.cropped(width)] = True
    np.testing.assert_array_equal(covered, inside)


@pytest.mark.parametrize("shape", [(48, 48), (97, 131), (131, 97)])
def test_the_grid_goes_row_by_row_without_repeats(shape: tuple[int, int]) -> None:
    corners = windows.grid(*shape, 48, 24)
    assert corners.dtype == np.int32
    places = [(y, x) for y, x in corners.tolist()]
    assert places == sorted(set(places))


def test_the_grid_of_a_turned_image_is_the_turned_grid() -> None:
    upright, turned = windows.grid(97, 131, 48, 24), windows.grid(131, 97, 48, 24)
    assert sorted(map(tuple, upright.tolist())) == sorted((y, x) for x, y in turned.tolist())


@pytest.mark.parametrize("shape", [(0, 0), (47, 100), (100, 47), (59, 59), (11, 11)])
def test_an_image_smaller_than_a_window_after_cropping_has_none(shape: tuple[int, int]) -> None:
    assert windows.grid(*shape, 49, 24).shape == (0, 2)


def test_a_typical_image_of_div2k_has_forty_windows() -> None:
    assert len(windows.grid(1356, 2040, 480, 240)) == 40


def test_patch_ids_differ_where_anything_differs() -> None:
    places = [("0" * 16, 1, 23, 48), ("0" * 16, 12, 3, 48), ("0" * 16, 1, 2, 348), ("0" * 15 + "1", 1, 23, 48)]
    ids = [windows.patch_id(*place) for place in places]
    assert ids[0] == "0000000000000000_1_23_48"
    assert len(set(ids)) == len(places)
