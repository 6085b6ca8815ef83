"""A map has the mean of the windows over each place; the outline is the border of their union."""

import re

import numpy as np
import pytest

from curate.reporting.maps import Scale, Windows, means, outline, painted, remainder, scale


def windows(*places: tuple[int, int, int]) -> Windows:
    return Windows(*(np.array(column, np.int64) for column in zip(*places, strict=True)))


def test_a_place_has_the_mean_of_the_windows_over_it() -> None:
    found = means(windows((0, 0, 4), (0, 2, 4)), np.array([1.0, 3.0]), (4, 8), (4, 8))
    assert found[:, :2].tolist() == [[1.0, 1.0]] * 4
    assert found[:, 2:4].tolist() == [[2.0, 2.0]] * 4
    assert found[:, 4:6].tolist() == [[3.0, 3.0]] * 4
    assert np.isnan(found[:, 6:]).all()


def test_the_mean_is_that_of_a_count_pixel_by_pixel() -> None:
    rng = np.random.default_rng(0)
    places = [
        (int(y), int(x), int(s)) for y, x, s in zip(*rng.integers(0, 20, (2, 30)), rng.integers(1, 12, 30), strict=True)
    ]
    score = rng.uniform(0, 1, 30)
    score[3] = np.nan
    total, count = np.zeros((32, 32)), np.zeros((32, 32))
    for (y, x, size), value in zip(places, score, strict=True):
        if np.isfinite(value):
            total[y : y + size, x : x + size] += value
            count[y : y + size, x : x + size] += 1
    with np.errstate(invalid="ignore"):
        expected = total / count
    np.testing.assert_allclose(means(windows(*places), score, (32, 32), (32, 32)), expected, rtol=1e-9)
    half = means(windows(*places), score, (32, 32), (16, 16))
    np.testing.assert_allclose(half, expected[1::2, 1::2], rtol=1e-9)


def test_the_outline_goes_round_the_union() -> None:
    path = outline(windows((0, 0, 4), (0, 2, 4)), (8, 8))
    drawn = re.findall(r"M(\d+) (\d+)([HV])(\d+)", path)
    length = {"H": 0, "V": 0}
    for x, y, way, end in drawn:
        length[way] += int(end) - int(x if way == "H" else y)
    assert length == {"H": 12, "V": 8}
    assert outline(Windows(*(np.zeros(0, np.int64) for _ in range(3))), (8, 8)) == ""


def test_colours_go_from_low_to_high_and_nothing_is_clear() -> None:
    colours = Scale(1e-4, 1.0, log=True).colours(np.array([[0.0, 1e-4, 1e-2, 1.0, 5.0, np.nan]]))
    assert colours.shape == (1, 6, 4) and colours.dtype == np.uint8
    assert colours[0, :, 3].tolist() == [255] * 5 + [0]
    assert (colours[0, 0] == colours[0, 1]).all() and (colours[0, 3] == colours[0, 4]).all()
    brightness = colours[0, 1:4, :3].astype(int).sum(1)
    assert brightness[0] < brightness[1] < brightness[2]


def test_a_scale_is_logarithmic_where_scores_are_far_apart() -> None:
    assert scale(np.geomspace(1e-6, 1e-1, 1000)).log
    even = scale(np.linspace(3, 4, 101))
    assert not even.log and (even.low, even.high) == (3.01, 3.99)
    assert scale(np.full(5, np.nan)).stops()
    assert (Scale(2.0, 2.0, log=False).colours(np.array([[2.0]]))[..., 3] == 255).all()


def test_a_map_over_a_photograph_leaves_it_where_it_is_clear() -> None:
    photo = np.full((1, 2, 3), 100, np.uint8)
    colours = np.array([[[200, 0, 0, 255], [0, 0, 0, 0]]], np.uint8)
    assert painted(photo, colours, 0.5).tolist() == [[[150, 50, 50], [100, 100, 100]]]


@pytest.mark.parametrize("seed", range(5))
def test_the_remainder_is_what_no_window_covers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = 40, 60
    y, x = rng.integers(0, height - 9, seed * 2), rng.integers(0, width - 9, seed * 2)
    covered = np.zeros((height, width), int)
    for top, left in zip(y, x, strict=True):
        covered[top : top + 10, left : left + 10] = 1
    path = remainder(Windows(y, x, np.full(len(y), 10)), (height, width))
    drawn = np.zeros((height, width), int)
    for left, top, right, bottom in re.findall(r"M(\d+) (\d+)H(\d+)V(\d+)H\1Z", path):
        drawn[int(top) : int(bottom), int(left) : int(right)] += 1
    assert (drawn == 1 - covered).all()
