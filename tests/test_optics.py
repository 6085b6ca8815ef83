"""Blur kernels by their moments and spectra, filtering against plain sums, shot noise against Poisson's law."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from curate import optics

SIGMAS = st.floats(1.0, 4.0)  # px; below 1 a sampled Gaussian is a little narrower than its sigma says
ANGLES = st.floats(-math.pi, math.pi)


def offsets(size: int) -> tuple[Tensor, Tensor]:
    """x (rightward) and y (downward) from the centre."""
    line = torch.arange(size, dtype=torch.float64) - size // 2
    return line.expand(size, size), line[:, None].expand(size, size)


def covariance(kernel: Tensor) -> Tensor:
    x, y = offsets(len(kernel))
    weights = kernel.double()
    return torch.stack([(weights * a * b).sum() for a in (x, y) for b in (x, y)]).reshape(2, 2)


@settings(deadline=None)
@given(size=st.integers(0, 10), x=SIGMAS, y=SIGMAS, theta=ANGLES, beta=st.floats(0.5, 4), cutoff=st.floats(0.3, 3.14))
def test_kernels_sum_to_1_and_are_point_symmetric(
    size: int, x: float, y: float, theta: float, beta: float, cutoff: float
) -> None:
    odd = 2 * size + 1
    for kernel in (
        optics.gaussian(odd, x, y, theta, beta=beta),
        optics.plateau(odd, x, y, theta, beta=beta),
        optics.sinc(odd, cutoff),
    ):
        assert kernel.shape == (odd, odd) and kernel.dtype == torch.float32
        assert float(kernel.double().sum()) == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(kernel, kernel.flip(0, 1), atol=1e-7, rtol=0)


@settings(deadline=None)
@given(x=SIGMAS, y=SIGMAS, theta=ANGLES)
def test_gaussian_has_the_covariance_asked_for(x: float, y: float, theta: float) -> None:
    turn = torch.tensor([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]], dtype=torch.float64)
    expected = turn @ torch.diag(torch.tensor([x**2, y**2], dtype=torch.float64)) @ turn.T
    torch.testing.assert_close(covariance(optics.gaussian(61, x, y, theta)), expected, atol=1e-3, rtol=1e-3)
    isotropic = covariance(optics.gaussian(61, x, x, theta))
    torch.testing.assert_close(isotropic, x**2 * torch.eye(2, dtype=torch.float64), atol=1e-3, rtol=1e-3)


def test_first_axis_turns_from_right_to_down() -> None:
    for theta, brightest in [(0.0, (4, 8)), (math.pi / 4, (7, 7)), (math.pi / 2, (8, 4))]:
        kernel = optics.gaussian(9, 8, 0.5, theta)
        ring = {(4, 8), (7, 7), (8, 4), (7, 1)}
        assert max(ring, key=lambda at: float(kernel[at])) == brightest


def test_generalised_gaussian_is_its_formula() -> None:
    x, y = offsets(21)
    squared = (x / 3) ** 2 + (y / 2) ** 2
    for beta in (0.5, 1.0, 4.0):
        expected = torch.exp(-0.5 * squared**beta)
        kernel = optics.gaussian(21, 3, 2, beta=beta).double()
        torch.testing.assert_close(kernel / kernel[10, 10], expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(optics.gaussian(21, 3, 2, beta=1), optics.gaussian(21, 3, 2))


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_plateau_is_its_formula(beta: float) -> None:
    kernel = optics.plateau(21, 3, 2, beta=beta)
    assert float(kernel[10, 13] / kernel[10, 10]) == pytest.approx(0.5)  # q = 1
    assert float(kernel[12, 10] / kernel[10, 10]) == pytest.approx(0.5)
    assert float(kernel[10, 16] / kernel[10, 10]) == pytest.approx(1 / (1 + 4**beta))


@pytest.mark.parametrize("cutoff", [math.pi / 3, 2.0, 3.0])
def test_sinc_passes_what_is_below_its_cutoff(cutoff: float) -> None:
    kernel = optics.sinc(301, cutoff).double()
    spectrum = torch.fft.fft2(kernel).abs()
    frequency = 2 * math.pi * torch.fft.fftfreq(301, dtype=torch.float64)
    radius = torch.hypot(frequency[:, None], frequency)
    assert float((spectrum[radius < cutoff - 0.3] - 1).abs().max()) < 0.06
    assert float(spectrum[radius > cutoff + 0.3].max()) < 0.06
    assert float(kernel.min()) < 0  # it rings


def plain_filter(image_CHW: np.ndarray, kernel: np.ndarray, mode: str) -> np.ndarray:
    reach = len(kernel) // 2
    padded = np.pad(image_CHW, ((0, 0), (reach, reach), (reach, reach)), mode)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape, (1, 2))
    return np.einsum("chwij,ij->chw", windows, kernel)


@pytest.mark.parametrize("size", [(33, 40), (16, 11), (50, 23)])
def test_filtered_is_the_plain_sum(size: tuple[int, int]) -> None:
    images = torch.rand(3, 3, *size)
    kernels = [optics.gaussian(7, 2, 1, 0.3), torch.ones(1, 1), optics.sinc(21, 1.5)]
    filtered = optics.filtered(images, kernels)
    for image, kernel, found in zip(images, kernels, filtered, strict=True):
        expected = plain_filter(image.double().numpy(), kernel.double().numpy(), "reflect")
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)
    assert torch.equal(filtered[1], images[1])


def test_images_smaller_than_a_kernel() -> None:
    image = torch.rand(1, 3, 3, 8)
    expected = plain_filter(image[0].double().numpy(), optics.gaussian(21, 3, 2).double().numpy(), "edge")
    np.testing.assert_allclose(optics.filtered(image, [optics.gaussian(21, 3, 2)])[0].numpy(), expected, atol=1e-6)


def test_each_image_is_filtered_by_itself() -> None:
    images = torch.rand(5, 3, 37, 41)
    kernels = [optics.gaussian(size, 2, 1) for size in (7, 21, 9, 13, 1)]
    one_by_one = [optics.filtered(image[None], [kernel])[0] for image, kernel in zip(images, kernels, strict=True)]
    assert torch.equal(optics.filtered(images, kernels), torch.stack(one_by_one))
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(optics.filtered(channels_last, kernels), torch.stack(one_by_one))


# Shot noise


@pytest.mark.parametrize("level", [1, 5, 40, 128, 255])
def test_shot_noise_follows_poissons_law(level: int) -> None:
    image = torch.full((200_000,), level / 255)
    noise = optics.shot_noise(image, np.random.default_rng(0))
    counts = ((noise + image) * optics.PHOTONS).round().int().numpy()
    law = stats.poisson(level / 255 * optics.PHOTONS)
    found = np.bincount(counts, minlength=500) / len(counts)
    assert np.abs(np.cumsum(found) - law.cdf(np.arange(len(found)))).max() < 1.95 / math.sqrt(len(counts))  # p 0.001
    assert float(noise.mean()) == pytest.approx(0, abs=4 * math.sqrt(level / 255 / optics.PHOTONS / len(counts)))
    assert float(noise.var()) == pytest.approx(level / 255 / optics.PHOTONS, rel=0.02)


def test_black_has_no_shot_noise() -> None:
    assert not optics.shot_noise(torch.zeros(1, 3, 8, 8), np.random.default_rng(0)).any()


def test_another_level_changes_its_own_count_only_and_little() -> None:
    image = torch.full((1, 3, 64, 64), 100 / 255)
    changed = image.clone()
    changed[0, 1, 10] = 101 / 255
    before, after = (image + optics.shot_noise(image, np.random.default_rng(3)) for image in (image, changed))
    different = (before != after).nonzero()
    assert set(different[:, 1].tolist()) == {1} and set(different[:, 2].tolist()) == {10}
    steps = ((after - before)[0, 1, 10] * optics.PHOTONS).round()
    assert set(steps.tolist()) <= {0, 1, 2}
