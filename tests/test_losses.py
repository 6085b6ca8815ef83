"""Losses are their formulas, sample by sample; HFEN against loops over every px, and what it does not depend on."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from curate.errors import UsageError
from curate.losses import HFEN_LEAST, PixelLoss, distance, hfen, pixels

Image = npt.NDArray[np.float64]


def drawn(*shape: int, seed: int = 0, peak: float = 255.0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * peak


def slow_response(image_BCHW: Image) -> Image:
    """Gaussian of each channel where it fits, then one Laplacian over all channels, then the batch's maximum; loops."""
    weights = {(y, x): np.exp(-(y * y + x * x) / (2 * 1.5**2)) for y in range(-2, 3) for x in range(-2, 3)}
    batch, channels, height, width = image_BCHW.shape
    blurred = np.zeros((batch, channels, height - 4, width - 4))
    for (b, c, y, x), _ in np.ndenumerate(blurred):
        window = [weight * image_BCHW[b, c, y + 2 + dy, x + 2 + dx] for (dy, dx), weight in weights.items()]
        blurred[b, c, y, x] = sum(window) / sum(weights.values())
    response = np.zeros((batch, height - 4, width - 4))
    for b, y, x in np.ndindex(response.shape):
        for c in range(channels):
            response[b, y, x] -= 4 * blurred[b, c, y, x]
            for to_y, to_x in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= to_y < height - 4 and 0 <= to_x < width - 4:
                    response[b, y, x] += blurred[b, c, to_y, to_x]
    return response / response.max() if response.max() else response


def slow_hfen(sr_BCHW: Tensor, hr_BCHW: Tensor) -> Tensor:
    difference_BHW = np.abs(slow_response(sr_BCHW.numpy()) - slow_response(hr_BCHW.numpy()))
    return torch.from_numpy(difference_BHW.mean(axis=(1, 2)))


# HFEN


@pytest.mark.parametrize("shape", [(2, 3, 9, 12), (3, 1, 8, 7), (1, 3, 5, 5), (1, 1, 6, 20)], ids=str)
def test_hfen_is_what_loops_give(shape: tuple[int, ...]) -> None:
    sr_BCHW, hr_BCHW = drawn(*shape), drawn(*shape, seed=1)
    found_B = hfen(sr_BCHW, hr_BCHW)
    assert found_B.shape == shape[:1] and found_B.dtype == torch.float64
    torch.testing.assert_close(found_B, slow_hfen(sr_BCHW, hr_BCHW), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(hfen(sr_BCHW.float(), hr_BCHW.float()), found_B.float(), rtol=1e-4, atol=1e-6)


def test_a_sample_of_a_batch_is_measured_by_the_batch_s_maximum() -> None:
    """What a batch in parts gives is another number: it is the reference's, and the docstring says so."""
    sr_BCHW, hr_BCHW = drawn(2, 3, 9, 9), drawn(2, 3, 9, 9, seed=1)
    sr_BCHW[1] *= 0.2
    together_B, alone = hfen(sr_BCHW, hr_BCHW), hfen(sr_BCHW[1:], hr_BCHW[1:])
    assert abs(float(together_B[1] - alone[0])) > 0.01
    assert hfen(sr_BCHW.flip(0), hr_BCHW.flip(0)).tolist() == together_B.flip(0).tolist()


def test_hfen_knows_no_range_of_values() -> None:
    sr_BCHW, hr_BCHW = drawn(2, 3, 10, 11), drawn(2, 3, 10, 11, seed=1)
    found_B = hfen(sr_BCHW, hr_BCHW)
    torch.testing.assert_close(hfen(sr_BCHW / 255, hr_BCHW / 255), found_B)
    torch.testing.assert_close(hfen(3 * sr_BCHW, 0.5 * hr_BCHW), found_B)  # each has a maximum of its own
    assert hfen(sr_BCHW, sr_BCHW).tolist() == [0, 0]
    assert float(hfen(sr_BCHW, 2 * sr_BCHW).max()) < 1e-12


@pytest.mark.parametrize("value", [0.0, 100.0, 0.1, 255.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flat_images_are_finite(value: float, dtype: torch.dtype) -> None:
    """A maximum of 0, which is left as it is; inside, rounding must not make another of it."""
    flat_BCHW = torch.full((1, 3, 20, 23), value, dtype=dtype, requires_grad=True)
    rough_BCHW = drawn(1, 3, 20, 23).to(dtype)
    for sr_BCHW, hr_BCHW in ((flat_BCHW, flat_BCHW.detach()), (flat_BCHW, rough_BCHW)):
        found_B = hfen(sr_BCHW, hr_BCHW)
        (gradient_BCHW,) = torch.autograd.grad(found_B.sum(), flat_BCHW)
        assert found_B.isfinite().all() and gradient_BCHW.isfinite().all()
        assert found_B.max() <= 3 * 4 * 255
    assert hfen(flat_BCHW, flat_BCHW.detach()).tolist() == [0]


@pytest.mark.parametrize("channels", [1, 3])
def test_hfen_s_gradient_is_that_of_finite_differences(channels: int) -> None:
    """Through the maximum too."""
    sr_BCHW, hr_BCHW = drawn(2, channels, 7, 6, peak=1).requires_grad_(), drawn(2, channels, 7, 6, seed=1, peak=1)
    assert torch.autograd.gradcheck(lambda sr_BCHW: hfen(sr_BCHW, hr_BCHW), sr_BCHW)


def test_hfen_is_of_float32_whatever_autocast_says() -> None:
    sr_BCHW, hr_BCHW = drawn(2, 3, 16, 16).float(), drawn(2, 3, 16, 16, seed=1).float()
    plain_B = hfen(sr_BCHW, hr_BCHW)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(hfen(sr_BCHW, hr_BCHW), plain_B)
        rounded_B = hfen(sr_BCHW.bfloat16(), hr_BCHW)
    assert rounded_B.dtype == torch.float32
    assert torch.equal(rounded_B, hfen(sr_BCHW.bfloat16().float(), hr_BCHW))


@pytest.mark.gpu
def test_hfen_on_a_gpu_is_hfen_on_the_cpu() -> None:
    sr_BCHW, hr_BCHW = drawn(2, 3, 16, 16).float(), drawn(2, 3, 16, 16, seed=1).float()
    torch.testing.assert_close(hfen(sr_BCHW.cuda(), hr_BCHW.cuda()).cpu(), hfen(sr_BCHW, hr_BCHW))


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        (((1, 3, 4, 9), (1, 3, 4, 9)), "HFEN takes images of 5x5 px or more, found 4x9 px"),
        (((1, 3, 9, 9), (1, 1, 9, 9)), "HFEN is of images of one shape, found (1, 1, 9, 9), (1, 3, 9, 9)"),
    ],
)
def test_images_that_hfen_does_not_take_are_one_line(shapes: tuple[tuple[int, ...], ...], reason: str) -> None:
    with pytest.raises(UsageError) as error:
        hfen(*(torch.zeros(shape) for shape in shapes))
    assert str(error.value) == reason
    assert hfen(*torch.zeros(2, 1, 3, HFEN_LEAST, HFEN_LEAST)).tolist() == [0]


# Pixels, and both


@pytest.mark.parametrize(
    ("loss", "expected"),
    [("l1", [2.0, 0.5]), ("mse", [5.0, 0.25]), ("charbonnier", [(1.01**0.5 + 9.01**0.5) / 2, 0.26**0.5])],
)
def test_pixel_losses_are_their_formulas(loss: PixelLoss, expected: list[float]) -> None:
    """Two samples of two values; charbonnier's epsilon is a thousandth of white, here 0.1."""
    sr_BCHW = torch.tensor([[1.0, -3.0], [0.5, 0.5]], dtype=torch.float64).reshape(2, 1, 1, 2)
    found_B = pixels(sr_BCHW + 7, torch.full_like(sr_BCHW, 7), loss, peak=100)
    assert found_B.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("peak", [1.0, 255.0])
@pytest.mark.parametrize("loss", ["l1", "mse", "charbonnier"])
def test_the_loss_is_pixels_and_hfen_in_the_network_s_range(loss: PixelLoss, peak: float) -> None:
    sr_BCHW, hr_BCHW = drawn(3, 3, 9, 9, peak=peak), drawn(3, 3, 9, 9, seed=1, peak=peak)
    plain_B = pixels(sr_BCHW, hr_BCHW, loss, peak=peak)
    assert torch.equal(distance(sr_BCHW, hr_BCHW, loss, peak=peak), plain_B)
    both_B = distance(sr_BCHW, hr_BCHW, loss, peak=peak, high=0.2)
    torch.testing.assert_close(both_B, plain_B + 0.2 * peak / 255 * slow_hfen(sr_BCHW, hr_BCHW))


def test_the_same_weight_is_the_same_loss_in_either_range() -> None:
    sr_BCHW, hr_BCHW = drawn(3, 3, 9, 9), drawn(3, 3, 9, 9, seed=1)
    wide_B = distance(sr_BCHW, hr_BCHW, "l1", peak=255, high=0.2)
    torch.testing.assert_close(255 * distance(sr_BCHW / 255, hr_BCHW / 255, "l1", peak=1, high=0.2), wide_B)


def test_without_weight_images_may_be_of_any_size() -> None:
    assert distance(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), "l1", peak=1).tolist() == [1]
