"""The metrics: against loops over pixels, and against the figures that every SR paper prints for bicubic."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from curate.errors import UsageError
from curate.metrics import psnr, quantise, rgb_to_y, ssim
from curate.resize import downscale, upscale

SET5 = Path(__file__).parents[2] / "shared" / "data" / "benchmark" / "Set5"


def random_pair(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(shape, generator=generator)
    return image, (image + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize(
    ("scale", "decibels", "similarity"), [(2, "33.66", "0.9299"), (3, "30.39", "0.8682"), (4, "28.42", "0.8104")]
)
def test_published_bicubic_figures(scale: int, decibels: str, similarity: str) -> None:
    """8-bit luma of the HR, shrunk and enlarged without rounding, then 8 bits again: the protocol since SRCNN."""
    if not SET5.is_dir():
        pytest.skip("needs ../shared/data/benchmark/Set5 (the public HR files), absent here")
    figures = []
    for path in sorted((SET5 / "HR").iterdir()):
        rgb_1CHW = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        height, width = (side - side % scale for side in rgb_1CHW.shape[2:])
        hr_11HW = quantise(rgb_to_y(rgb_1CHW.double()))[..., :height, :width]
        sr_11HW = quantise(upscale(downscale(hr_11HW, scale), scale))
        figures.append([float(metric(sr_11HW, hr_11HW, border=scale)) for metric in (psnr, ssim)])
    mean_psnr, mean_ssim = np.mean(figures, axis=0)
    assert (f"{mean_psnr:.2f}", f"{mean_ssim:.4f}") == (decibels, similarity)


@pytest.mark.parametrize("border", [0, 2])
def test_psnr_by_hand(border: int) -> None:
    a_BCHW, b_BCHW = random_pair(2, 3, 7, 9)
    found = psnr(a_BCHW, b_BCHW, border=border)
    assert (found.shape, found.dtype) == ((2,), torch.float64)
    for a_CHW, b_CHW, value in zip(a_BCHW.tolist(), b_BCHW.tolist(), found.tolist(), strict=True):
        errors = [
            (a_CHW[c][y][x] - b_CHW[c][y][x]) ** 2
            for c in range(3)
            for y in range(border, 7 - border)
            for x in range(border, 9 - border)
        ]
        assert value == pytest.approx(-10 * math.log10(sum(errors) / len(errors)))


@pytest.mark.parametrize("border", [0, 1])
def test_ssim_by_hand(border: int) -> None:
    a_BCHW, b_BCHW = random_pair(2, 2, 14, 15)
    offsets = np.arange(-5, 6)
    gaussian = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    gaussian /= gaussian.sum()
    found = ssim(a_BCHW, b_BCHW, border=border)
    assert (found.shape, found.dtype) == ((2,), torch.float64)
    for a_CHW, b_CHW, value in zip(a_BCHW.double().numpy(), b_BCHW.double().numpy(), found.tolist(), strict=True):
        values = []
        for a, b in zip(a_CHW, b_CHW, strict=True):
            for y in range(border, 14 - border - 10):
                for x in range(border, 15 - border - 10):
                    window_a, window_b = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
                    mean_a, mean_b = (gaussian * window_a).sum(), (gaussian * window_b).sum()
                    var_a, var_b = (
                        (gaussian * (window_a - mean_a) ** 2).sum(),
                        (gaussian * (window_b - mean_b) ** 2).sum(),
                    )
                    covariance = (gaussian * (window_a - mean_a) * (window_b - mean_b)).sum()
                    values.append(
                        (2 * mean_a * mean_b + 1e-4)
                        * (2 * covariance + 9e-4)
                        / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
                    )
        assert value == pytest.approx(np.mean(values))


def test_equal_images() -> None:
    image, _ = random_pair(2, 1, 20, 20)
    assert psnr(image, image, border=2).tolist() == [math.inf, math.inf]
    torch.testing.assert_close(ssim(image, image, border=2), torch.ones(2, dtype=torch.float64))


def test_border_is_left_out_and_order_does_not_matter() -> None:
    a, b = random_pair(1, 3, 24, 30)
    damaged = a.clone()
    damaged[..., :3, :], damaged[..., -3:, :], damaged[..., :3], damaged[..., -3:] = 0, 1, 0, 1
    for metric in (psnr, ssim):
        assert torch.equal(metric(damaged, b, border=3), metric(a, b, border=3))
        assert torch.equal(metric(b, a, border=3), metric(a, b, border=3))


def test_luma() -> None:
    corners = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).reshape(5, 3, 1, 1)
    luma_B1HW = rgb_to_y(corners)
    assert luma_B1HW.shape == (5, 1, 1, 1)
    expected = torch.tensor([16, 235, 81.481, 144.553, 40.966]) / 255
    torch.testing.assert_close(luma_B1HW.flatten(), expected)
    image = corners.double().requires_grad_()
    assert torch.autograd.gradcheck(rgb_to_y, image)


def test_quantise() -> None:
    levels = torch.arange(256) / 255
    assert torch.equal(quantise(levels), levels)
    assert (quantise(torch.tensor([-0.1, 1.2, 0.5, 0.4999 / 255])) * 255).tolist() == [0, 255, 128, 0]
    assert quantise(torch.rand(3, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(("metric", "least"), [(psnr, 1), (ssim, 11)])
def test_refusals(metric, least: int) -> None:
    image = torch.rand(1, 1, least + 4, least + 4)
    metric(image, image, border=2)
    with pytest.raises(UsageError, match=f"image of {least + 3}x{least + 4} pixels is too small"):
        metric(image[:, :, 1:], image[:, :, 1:], border=2)
    with pytest.raises(UsageError, match=r"shapes \(1, 1, 15, 15\) and \(1, 3, 15, 15\)"):
        metric(torch.rand(1, 1, 15, 15), torch.rand(1, 3, 15, 15), border=2)
