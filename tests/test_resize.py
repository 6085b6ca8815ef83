"""The resize: against exact fractions, against the public LR files, and by the properties that its users rely on."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from curate.errors import UsageError
from curate.resize import downscale, margin, upscale

SET5 = Path(__file__).parents[2] / "shared" / "data" / "benchmark" / "Set5"


def random_image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# MATLAB's imresize as its documentation tells it: sample by sample, in fractions


def cubic(x: Fraction) -> Fraction:
    x = abs(x)
    if x <= 1:
        return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
    return -Fraction(1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2 if x <= 2 else Fraction(0)


def resize_line(line: list, factor: Fraction, edge: str) -> list:
    squeeze = min(factor, Fraction(1))
    width = 4 / squeeze
    length = len(line)
    resized = []
    for position in range(1, math.ceil(length * factor) + 1):
        centre = position / factor + (1 - 1 / factor) / 2
        first = math.floor(centre - width / 2)
        taps = range(first, first + math.ceil(width) + 2)
        weights = [squeeze * cubic(squeeze * (centre - tap)) for tap in taps]
        if edge == "clamp":
            samples = [line[min(max(tap, 1), length) - 1] for tap in taps]
        else:
            samples = [(line + line[::-1])[(tap - 1) % (2 * length)] for tap in taps]
        resized.append(sum(w * v for w, v in zip(weights, samples, strict=True)) / sum(weights))
    return resized


def to_uint8(value: Fraction) -> int:
    return min(max(math.floor(value + Fraction(1, 2)), 0), 255)


def imresize(pixels_HW: list[list[int]], factor: Fraction, edge: str, rounding: str) -> list[list]:
    def passed(lines: list[list], rounded: bool) -> list[list]:
        lines = [resize_line(line, factor, edge) for line in lines]
        return [[to_uint8(value) for value in line] for line in lines] if rounded else lines

    def transposed(lines: list[list]) -> list[list]:
        return [list(line) for line in zip(*lines, strict=True)]

    rows = transposed(passed(transposed(pixels_HW), rounding == "per-pass"))
    return passed(rows, rounding != "none")


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (7, 5), (13, 18)])
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("edge", ["symmetric", "clamp"])
def test_is_imresize(size: tuple[int, int], scale: int, edge: str) -> None:
    """Odd sizes, sizes that the scale does not divide, sizes smaller than the kernel."""
    image_HW = random_image(*size, seed=scale)
    image_HW[:, ::3] = 255  # steps, so that the cubic overshoots and both ends clamp
    image_HW[::4] = 0
    for resize, factor in [(downscale, Fraction(1, scale)), (upscale, Fraction(scale))]:
        if resize is upscale and size == (13, 18):
            continue  # fractions take their time
        pixels = image_HW.tolist()
        for rounding in ("per-pass", "final"):
            expected = torch.tensor(imresize(pixels, factor, edge, rounding), dtype=torch.uint8)
            assert torch.equal(resize(image_HW, scale, edge=edge, rounding=rounding), expected)
        exact = [[float(value) for value in line] for line in imresize(pixels, factor, edge, "none")]
        resized = resize(image_HW.double(), scale, edge=edge, rounding="none")
        torch.testing.assert_close(resized, torch.tensor(exact, dtype=torch.float64), atol=1e-10, rtol=0)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_public_lr_files(scale: int) -> None:
    """Set5, HR cropped to a multiple of the scale: not one sample differs."""
    if not SET5.is_dir():
        pytest.skip("needs ../shared/data/benchmark/Set5 (the public HR and LR_bicubic files), absent here")
    for path in sorted((SET5 / "HR").iterdir()):
        hr_HWC = np.array(Image.open(path).convert("RGB"))
        lr_HWC = np.array(Image.open(SET5 / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png").convert("RGB"))
        hr_CHW = torch.from_numpy(hr_HWC[: lr_HWC.shape[0] * scale, : lr_HWC.shape[1] * scale]).permute(2, 0, 1)
        assert torch.equal(downscale(hr_CHW[None], scale)[0], torch.from_numpy(lr_HWC).permute(2, 0, 1)), path.name


def test_ties_round_up() -> None:
    """Columns long enough that some x2 sums end on exactly one half."""
    column = random_image(8001, 1)
    weights = np.array([-3, -9, 29, 111, 111, 29, -9, -3])  # of 256
    padded = np.pad(column[:, 0].numpy().astype(int), (3, 4), "symmetric")  # 4: one more for the odd length
    sums = np.convolve(padded, weights, "valid")[::2]
    assert (sums % 256 == 128).sum() > 5
    expected = ((sums + 128) // 256).clip(0, 255)
    once = downscale(column.expand(-1, 2), 2)[:, 0]  # two equal columns make one like them
    assert once.tolist() == expected.tolist()


@pytest.mark.parametrize("scale", [2, 3, 4, 5, 8])
def test_constants_and_sizes(scale: int) -> None:
    image_BCHW = torch.full((2, 3, 37, 53), 201, dtype=torch.uint8)
    small, large = downscale(image_BCHW, scale), upscale(image_BCHW, scale)
    assert small.shape == (2, 3, math.ceil(37 / scale), math.ceil(53 / scale))
    assert large.shape == (2, 3, 37 * scale, 53 * scale)
    assert upscale(downscale(large, scale), scale).shape == large.shape
    for resized in (small, large):
        assert resized.dtype == torch.uint8
        assert resized.unique().tolist() == [201]
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        resized = downscale(torch.full((1, 1, 37, 53), -40.0, dtype=dtype), scale)
        assert resized.dtype == dtype
        torch.testing.assert_close(resized, torch.full_like(resized, -40))


@pytest.mark.parametrize("resize", [downscale, upscale])
@pytest.mark.parametrize("scale", [2, 3])
def test_gradient(resize, scale: int) -> None:
    image_BCHW = random_image(1, 1, 4, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda image: resize(image, scale), image_BCHW)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_batches_and_axes(scale: int) -> None:
    """A batch is its images one by one, and without rounding the order of the passes does not matter."""
    images_BCHW = random_image(3, 2, 41, 70)
    for resize in (downscale, upscale):
        one_by_one = torch.stack([torch.stack([resize(plane, scale) for plane in image]) for image in images_BCHW])
        assert torch.equal(resize(images_BCHW, scale), one_by_one)
        values = images_BCHW.double()
        transposed = resize(values.transpose(2, 3), scale).transpose(2, 3)
        torch.testing.assert_close(resize(values, scale), transposed)
        assert torch.equal(resize(images_BCHW.transpose(2, 3).contiguous().transpose(2, 3), scale), one_by_one)


def test_image_larger_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    image_BCHW = random_image(2, 3, 40, 50)
    whole = downscale(image_BCHW, 2)
    monkeypatch.setattr("curate.resize.CHUNK_SAMPLES", 1000)
    assert torch.equal(downscale(image_BCHW, 2), whole)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_float_agrees_with_uint8(scale: int) -> None:
    image_BCHW = random_image(1, 3, 60, 84)
    for resize in (downscale, upscale):
        values = resize(image_BCHW.float(), scale).clamp(0, 255)
        assert (resize(image_BCHW, scale, rounding="final") - values).abs().max() <= 0.501
        per_pass = (resize(image_BCHW, scale) - values).abs()
        assert per_pass.mean() < 0.6  # mostly the two roundings; where the first pass clamps there is more


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_window_with_margin_is_the_crop(scale: int) -> None:
    """LR of a window and its margin, cropped, is the crop of the whole image's LR, inside and at the image's border."""
    image_CHW = random_image(3, 120, 144)
    lr_CHW = downscale(image_CHW, scale)
    reach, size = margin(scale), 48
    assert reach % scale == 0
    for y, x in [(36, 48), (0, 24), (72, 96), (120 - size, 0)]:
        top, left = max(y - reach, 0), max(x - reach, 0)
        window_CHW = downscale(image_CHW[:, top : y + size + reach, left : x + size + reach], scale)
        cropped = window_CHW[:, (y - top) // scale :, (x - left) // scale :][:, : size // scale, : size // scale]
        assert torch.equal(cropped, lr_CHW[:, y // scale : (y + size) // scale, x // scale : (x + size) // scale]), (
            f"window at {y}, {x}"
        )


def test_settings_around_it_do_not_matter() -> None:
    image_BCHW = random_image(1, 3, 60, 84)
    expected = downscale(image_BCHW, 4), downscale(image_BCHW.float(), 4)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = downscale(image_BCHW, 4), downscale(image_BCHW.float(), 4)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    leaf = image_BCHW.float().requires_grad_()
    downscale(leaf, 4).sum().backward()  # nothing made in inference mode was kept
    assert leaf.grad is not None


@pytest.mark.gpu
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_same_on_gpu(scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    image_BCHW = random_image(2, 3, 121, 250)
    for resize in (downscale, upscale):
        for rounding in ("per-pass", "final"):
            expected = resize(image_BCHW, scale, rounding=rounding)
            assert torch.equal(resize(image_BCHW.cuda(), scale, rounding=rounding).cpu(), expected)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (torch.zeros(4, 4), {"rounding": "final"}, r"rounding 'final' .*\.float32, which takes: none$"),
        (random_image(4, 4), {"rounding": "none"}, r"rounding 'none' .*\.uint8, which takes: final, per-pass$"),
        (torch.zeros(4, 4, dtype=torch.int64), {}, "image of torch.int64; uint8 and floating"),
        (random_image(4, 4), {"edge": "wrap"}, "no edge 'wrap'; there are: clamp, symmetric"),
        (random_image(4, 4), {"scale": 0}, "scale 0 asked for"),
        (torch.zeros(3, 0, 4), {}, "image of 0x4 pixels"),
    ],
)
def test_refusals(image: Tensor, options: dict, message: str) -> None:
    for resize in (downscale, upscale):
        with pytest.raises(UsageError, match=message):
            resize(image, **{"scale": 2, **options})
