"""Window means are means, against brute force: every window, strips, coarse maps, pixels that are not finite."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import windows
from curate.means import WindowMeans, window_means


def brute_force_means(
    maps_KHW: npt.NDArray[np.float32], corners_N2: npt.NDArray[np.int32], size: int
) -> npt.NDArray[np.float64]:
    cut = [maps_KHW[:, y : y + size, x : x + size].astype(np.float64) for y, x in corners_N2.tolist()]
    assert all(part.shape[1:] == (size, size) for part in cut)
    return np.array([part.mean((1, 2)) for part in cut])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.integers(1, 40),
    num_maps=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_window_means_are_brute_force_means(height: int, width: int, size: int, num_maps: int, seed: int) -> None:
    size = min(size, height, width)
    rng = np.random.default_rng(seed)
    maps_KHW = rng.exponential(rng.uniform(1e-4, 1e4), (num_maps, height, width)).astype(np.float32)
    corners = list(itertools.product((0, rng.integers(height - size + 1), height - size), range(width - size + 1)))
    corners_N2 = rng.permutation(np.array(corners, np.int32))
    means_NK = window_means(torch.from_numpy(maps_KHW)[None], corners_N2, size)
    assert means_NK.dtype == torch.float64
    np.testing.assert_allclose(means_NK.numpy(), brute_force_means(maps_KHW, corners_N2, size), rtol=1e-6)


def test_window_means_at_every_place_and_of_every_size() -> None:
    maps_KHW = np.random.default_rng(0).normal(size=(2, 7, 9)).astype(np.float32)
    for size in range(1, 8):
        corners_N2 = np.array(list(itertools.product(range(8 - size), range(10 - size))), np.int32)
        means_NK = window_means(torch.from_numpy(maps_KHW)[None], corners_N2, size)
        expected_NK = brute_force_means(maps_KHW, corners_N2, size)
        np.testing.assert_allclose(means_NK.numpy(), expected_NK, rtol=1e-5, atol=1e-6)


def test_window_means_of_no_window() -> None:
    assert window_means(torch.rand(1, 2, 12, 12), np.empty((0, 2), np.int32), 4).shape == (0, 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_pixel_that_is_not_finite_is_seen_by_its_windows_alone(value: float) -> None:
    maps_KHW = np.random.default_rng(0).random((2, 12, 12), np.float32)
    maps_KHW[1, 3, 5] = value
    corners_N2 = windows.grid(12, 12, 4, 2)
    means_NK = window_means(torch.from_numpy(maps_KHW)[None], corners_N2, 4).numpy()
    expected_NK = brute_force_means(maps_KHW, corners_N2, 4)
    finite_NK = np.isfinite(expected_NK)
    assert 0 < (~finite_NK).sum() < len(corners_N2)
    assert np.array_equal(np.isfinite(means_NK), finite_NK)
    np.testing.assert_allclose(means_NK[finite_NK], expected_NK[finite_NK], rtol=1e-6)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    cuts=st.sets(st.integers(1, 39), max_size=6),
    cell=st.sampled_from([1, 2, 3, 4]),
    seed=st.integers(0, 2**32 - 1),
)
def test_strips_of_coarse_maps_give_what_the_whole_map_gives(
    height: int, width: int, cuts: set[int], cell: int, seed: int
) -> None:
    """Brute force on the map enlarged: each of its pixels stands for cell x cell px."""
    rng = np.random.default_rng(seed)
    maps_KHW = rng.normal(size=(2, height, width)).astype(np.float32)
    enlarged_KHW = maps_KHW.repeat(cell, 1).repeat(cell, 2)
    size = int(rng.integers(1, min(height, width) * cell + 1))
    corners_N2 = rng.integers(0, (height * cell - size + 1, width * cell - size + 1), (9, 2)).astype(np.int32)
    means = WindowMeans(corners_N2, size)
    edges = [0, *sorted(cut for cut in cuts if cut < height), height]
    for top, bottom in itertools.pairwise(edges):
        means.add(torch.from_numpy(maps_KHW[:, top:bottom]), top, cell)
    expected_NK = brute_force_means(enlarged_KHW, corners_N2, size)
    np.testing.assert_allclose(means.means().numpy(), expected_NK, rtol=1e-5, atol=1e-6)


def test_a_pixel_that_is_not_finite_in_a_strip() -> None:
    maps_KHW = np.random.default_rng(0).random((1, 12, 12), np.float32)
    maps_KHW[0, 7, 2] = np.nan
    corners_N2 = windows.grid(12, 12, 4, 1)
    means = WindowMeans(corners_N2, 4)
    for top in range(0, 12, 3):
        means.add(torch.from_numpy(maps_KHW[:, top : top + 3]), top)
    expected_NK = brute_force_means(maps_KHW, corners_N2, 4)
    np.testing.assert_allclose(means.means().numpy(), expected_NK, rtol=1e-6)
