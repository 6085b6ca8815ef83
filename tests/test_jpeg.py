"""JPEG on tensors, against Pillow's writer and reader."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from curate import jpeg


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Something like a photograph, uint8 HWC: a coloured gradient, waves, edges, a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = sum(
        rng.uniform(0, 30, 3) * np.sin(x * a + y * b + rng.uniform(0, 6))[..., None]
        for a, b in rng.uniform(-0.6, 0.6, (6, 2))
    )
    edges = 60 * rng.uniform(-1, 1, 3) * ((x + 2 * y) % 50 < 20)[..., None]
    gradient = rng.uniform(60, 190, 3) + (x / width)[..., None] * rng.uniform(-60, 60, 3)
    return (gradient + waves + edges + rng.normal(0, 3, (height, width, 3))).clip(0, 255).astype(np.uint8)


def by_pillow(pixels_HWC: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file).convert("RGB"))


def to_image(pixels_HWC: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None].float() / 255


def compress(pixels_HWC: np.ndarray, quality: int) -> np.ndarray:
    image_13HW = jpeg.compress(to_image(pixels_HWC), [quality])
    return (image_13HW[0].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)


def difference(pixels_HWC: np.ndarray, quality: int) -> np.ndarray:
    return np.abs(compress(pixels_HWC, quality).astype(int) - by_pillow(pixels_HWC, quality))


@pytest.mark.parametrize("quality", [1, 10, 30, 49, 50, 75, 90, 95, 100])
def test_is_pillows(quality: int) -> None:
    for seed in range(3):
        found = difference(scene(160, 208, seed), quality)
        assert found.mean() < 0.06, f"scene {seed}"
        assert (found > 0).mean() < 0.06, f"scene {seed}"


@settings(deadline=None, max_examples=40, derandomize=True)
@given(height=st.integers(1, 40), width=st.integers(5, 40), quality=st.integers(10, 100))
def test_any_size(height: int, width: int, quality: int) -> None:
    """Borders that fill no block. Below 5 pixels libjpeg doubles the chroma by repeating it.

    A coefficient between two steps may be rounded the other way: of a small picture that is much (37x24 px at quality
    24, 1.05 levels), so the cases are always the same ones.
    """
    pixels_HWC = scene(height, width, seed=height)
    assert compress(pixels_HWC, quality).shape == pixels_HWC.shape
    assert difference(pixels_HWC, quality).mean() < 1


@pytest.mark.parametrize("quality", [1, 10, 37, 50, 75, 95, 100])
def test_grey_levels_and_saturated_colours_are_pillows(quality: int) -> None:
    """Flat blocks sit on ties of the quantiser, and pure colours on the ends of chroma."""
    flat = np.repeat(np.arange(0, 256, 5, dtype=np.uint8), 16)[None, :, None].repeat(16, 0).repeat(3, 2)
    assert not difference(flat, quality).any()
    colours = np.array([[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)], np.uint8)
    assert not difference(colours.repeat(16, 0)[None].repeat(16, 0), quality).any()


def test_tables_are_pillows() -> None:
    for quality in range(1, 101):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
        written = Image.open(file).quantization
        for table, number in [(jpeg.LUMA_TABLE, 0), (jpeg.CHROMA_TABLE, 1)]:
            assert jpeg._steps(table, [quality]).flatten().tolist() == written[number], f"quality {quality}"


def test_each_image_has_its_own_quality() -> None:
    images = torch.cat([to_image(scene(50, 61, seed)) for seed in range(4)])
    qualities = [10, 95, 40, 77]
    together = jpeg.compress(images, qualities)
    alone = [jpeg.compress(images[i : i + 1], [quality]) for i, quality in enumerate(qualities)]
    assert torch.equal(together, torch.cat(alone))
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(jpeg.compress(channels_last, qualities), together)


def test_result_is_what_8_bits_hold_and_the_input_is_left_alone() -> None:
    image = to_image(scene(40, 40)) * 1.4 - 0.2  # beyond [0, 1], as after a bicubic resize
    before = image.clone()
    levels = jpeg.compress(image, [60]) * 255
    assert torch.equal(image, before)
    assert levels.min() >= 0 and levels.max() <= 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)


def test_lower_quality_is_further_away() -> None:
    image = to_image(scene(64, 64))
    errors = [float((jpeg.compress(image, [quality]) - image).square().mean()) for quality in (10, 30, 60, 90, 100)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.gpu
def test_same_on_gpu() -> None:
    images = torch.cat([to_image(scene(50, 61, seed)) for seed in range(4)])
    found = jpeg.compress(images.cuda(), [10, 95, 40, 77]).cpu()
    assert float((found - jpeg.compress(images, [10, 95, 40, 77])).abs().mean()) < 0.02 / 255
