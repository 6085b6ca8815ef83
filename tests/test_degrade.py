"""Degradations: what each sample's result depends on and what it does not, their statistics, and their specs."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curate import degrade, jpeg
from curate.degrade import Bicubic, Blur, Chain, Jpeg, Noise, Resize, SecondOrder, parse
from curate.errors import UsageError
from curate.resize import downscale

SPECS = [
    "bicubic",
    "blur:kinds=1:1:1:1:1:1,sinc_prob=0.2,prob=0.8",
    "noise:poisson_prob=0.5,grey_prob=0.5",
    "jpeg",
    "blur:sigma=0.2:4+noise+jpeg",
    "noise:sigma=5+bicubic+blur",
    "second_order",
]


def photos(batch: int, height: int, width: int) -> Tensor:
    """Waves of different frequency and colour: float32 sRGB, B3HW, whole 1/255."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    phase_B311 = torch.arange(batch * 3).reshape(batch, 3, 1, 1)
    wave = torch.sin(x / (3.0 + phase_B311) + y / 7.0) + torch.cos(y / (2.0 + phase_B311))
    return (127.5 + 60 * wave).round() / 255


# One sample, one result


@pytest.mark.parametrize("spec", SPECS)
def test_a_sample_depends_on_its_seed_and_image_alone(spec: str) -> None:
    made, images, seeds = parse(spec, 2), photos(4, 48, 60), [7, 2**40, 7 + 2**32, 0]
    together = made(images, seeds)
    assert torch.equal(made(images, seeds), together)
    alone = [made(images[i : i + 1], seeds[i : i + 1]) for i in range(4)]
    assert torch.equal(torch.cat(alone), together)
    order = [2, 0, 3, 1]
    assert torch.equal(made(images[order], [seeds[i] for i in order]), together[order])
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(made(channels_last, seeds), together)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(images, seeds), together)


@pytest.mark.parametrize("spec", SPECS[1:])
def test_other_seeds_give_other_results(spec: str) -> None:
    image = photos(1, 48, 48).expand(4, -1, -1, -1)
    results = parse(spec, 2)(image, [1, 1 + 2**32, (1, 2), (2, 1)])
    if spec == "jpeg":  # of 66 qualities, two may be the same
        results = results[:2]
    assert all(not torch.equal(results[i], results[j]) for i in range(len(results)) for j in range(i))


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("spec", SPECS)
def test_sizes_and_range(spec: str, scale: int) -> None:
    made = parse(spec, scale)
    assert made.scale == scale
    for height, width in [(5, 7), (13, 9)]:  # LR px
        lr = made(photos(2, height * scale, width * scale), [5, 6])
        assert lr.shape == (2, 3, height, width) and lr.dtype == torch.float32
        assert lr.min() >= 0 and lr.max() <= 1
        torch.testing.assert_close(lr * 255, (lr * 255).round(), atol=1e-4, rtol=0)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**64),
    scale=st.integers(1, 4),
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    level=st.integers(0, 255),
)
def test_second_order_takes_any_image(seed: int, scale: int, height: int, width: int, level: int) -> None:
    image = torch.full((1, 3, height * scale, width * scale), level / 255)
    lr = SecondOrder(scale)(image, [seed])
    assert lr.shape == (1, 3, height, width)
    assert lr.isfinite().all() and lr.min() >= 0 and lr.max() <= 1


def test_size_that_the_scale_does_not_divide() -> None:
    with pytest.raises(UsageError, match=r"image of 48x50 pixels is not a multiple of the scale, 3"):
        SecondOrder(3)(photos(1, 48, 50), [0])


# The steps


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_is_the_public_lr(scale: int) -> None:
    pixels = torch.randint(0, 256, (2, 3, 60, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    lr = Bicubic(scale)(pixels.float() / 255, [0, 1])
    assert torch.equal((lr * 255).round().to(torch.uint8), downscale(pixels, scale))
    assert torch.equal(lr, downscale(pixels, scale).float() / 255)


def test_blur_keeps_the_mean_and_widens_with_sigma() -> None:
    point = torch.zeros(1, 3, 41, 41)
    point[..., 20, 20] = 1
    offset = torch.arange(41, dtype=torch.float64) - 20
    for sigma in (1.0, 2.0, 3.0):
        blurred = Blur(sigma=(sigma, sigma), size=(21, 21)).apply(point, [np.random.default_rng(0)]).double()[0, 0]
        assert float(blurred.sum()) == pytest.approx(1, abs=1e-5)
        assert float((blurred.sum(0) * offset**2).sum()) == pytest.approx(sigma**2, rel=0.02)


def test_kinds_of_kernels_come_as_often_as_asked() -> None:
    """Of a point of light only an anisotropic kernel makes what its transpose is not, and only a sinc dims below 0."""
    point = torch.zeros(600, 3, 25, 25)
    point[..., 12, 12] = 1
    blur = Blur(sigma=(1.0, 3.0), size=(21, 21), kinds=(1, 3), sinc_prob=0.2, prob=0.5)
    spots = blur.apply(point, [np.random.default_rng(seed) for seed in range(600)])[:, 0]
    untouched = (spots[:, 12, 12] == 1).float().mean()
    rings = (spots.amin(dim=(1, 2)) < -1e-6).float().mean()
    skewed = ((spots - spots.transpose(1, 2)).abs().amax(dim=(1, 2)) > 1e-6).float().mean()
    for found, expected in [(untouched, 0.5), (rings, 0.5 * 0.2), (skewed, 0.5 * 0.8 * 0.75)]:
        assert float(found) == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 600))


@pytest.mark.parametrize("grey", [0.0, 1.0])
def test_gaussian_noise_has_its_sigma(grey: float) -> None:
    image = torch.full((1, 3, 256, 256), 0.5)
    noise = Noise(sigma=(20.0, 20.0), grey_prob=grey).apply(image, [np.random.default_rng(0)]) - image
    assert float(noise.std() * 255) == pytest.approx(20, rel=0.02)
    assert float(noise.mean() * 255) == pytest.approx(0, abs=0.3)
    correlation = torch.corrcoef(noise[0].flatten(1))[0, 1]
    assert float(correlation) == pytest.approx(grey, abs=0.02)


def test_sigma_is_drawn_from_its_range_for_each_sample() -> None:
    image = torch.full((200, 3, 32, 32), 0.5)
    noise = Noise(sigma=(2.0, 10.0)).apply(image, [np.random.default_rng(seed) for seed in range(200)]) - image
    sigmas = noise.flatten(1).std(dim=1) * 255
    assert 1.8 < sigmas.min() < 3 and 9 < sigmas.max() < 11
    assert float(sigmas.mean()) == pytest.approx(6, abs=0.7)


@pytest.mark.parametrize("grey", [0.0, 1.0])
def test_shot_noise_grows_with_the_light(grey: float) -> None:
    made = Noise(poisson_scale=(0.5, 0.5), poisson_prob=1.0, grey_prob=grey)
    for level in (51, 102, 153):
        image = torch.full((1, 3, 200, 200), level / 255)
        noise = made.apply(image, [np.random.default_rng(level)]) - image
        assert float(noise.var()) == pytest.approx(0.5**2 * level / 255 / 256, rel=0.04)
        assert float(torch.corrcoef(noise[0].flatten(1))[0, 1]) == pytest.approx(grey, abs=0.02)


def test_jpeg_is_curates_jpeg() -> None:
    images = photos(2, 40, 48)
    assert torch.equal(Jpeg((60, 60))(images, [3, 4]), jpeg.compress(images, [60, 60]))
    drawn = Jpeg((10, 95))(images, [3, 4])
    candidates = [jpeg.compress(images, [quality] * 2) for quality in range(10, 96)]
    assert all(any(torch.equal(drawn[i], candidate[i]) for candidate in candidates) for i in range(2))


def test_sizes_of_the_second_order() -> None:
    resize = Resize((0.5, 1.5), (0.2, 0.7, 0.1))
    image, rng = photos(1, 100, 60), np.random.default_rng(0)
    sizes = [resize.apply(image, (100, 60), rng).shape[2:] for _ in range(400)]
    assert all(50 <= height < 150 and width in (height * 60 // 100, height * 60 // 100 + 1) for height, width in sizes)
    heights = np.array([height for height, _ in sizes])
    for share, expected in [((heights > 100).mean(), 0.2), ((heights < 100).mean(), 0.7)]:
        assert share == pytest.approx(expected, abs=0.08)


def test_chain_is_its_steps_in_order() -> None:
    images, rngs = photos(2, 32, 32), [np.random.default_rng(seed) for seed in (1, 2)]
    steps = (Blur(), Bicubic(2), Noise(), Jpeg())
    expected = images
    for step in steps:
        expected = step.apply(expected, rngs)
    torch.testing.assert_close(Chain(steps)(images, [1, 2]), expected, atol=1e-6, rtol=0)


def test_second_order_has_the_published_settings() -> None:
    """Real-ESRGAN's options/train_realesrgan_x4plus.yml, written down again."""
    mix = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    betas = {"beta_generalised": (0.5, 4), "beta_plateau": (1, 2), "sinc_prob": 0.1, "size": (7, 21)}
    assert SecondOrder() == SecondOrder(
        4,
        blur=Blur(sigma=(0.2, 3), kinds=mix, prob=1, **betas),
        resize=Resize((0.15, 1.5), (0.2, 0.7, 0.1)),
        noise=Noise(sigma=(1, 30), poisson_scale=(0.05, 3), poisson_prob=0.5, grey_prob=0.4),
        jpeg=Jpeg((30, 95)),
        blur2=Blur(sigma=(0.2, 1.5), kinds=mix, prob=0.8, **betas),
        resize2=Resize((0.3, 1.2), (0.3, 0.4, 0.3)),
        noise2=Noise(sigma=(1, 25), poisson_scale=(0.05, 2.5), poisson_prob=0.5, grey_prob=0.4),
        jpeg2=Jpeg((30, 95)),
        sinc_prob=0.8,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("spec", SPECS)
def test_same_on_gpu(spec: str) -> None:
    made, images, seeds = parse(spec, 2), photos(4, 96, 96), [7, 8, 9, 10]
    found = made(images.cuda(), seeds)
    assert found.is_cuda
    assert float((found.cpu() - made(images, seeds)).abs().mean()) < 0.2 / 255  # a tie in JPEG falls the other way


# Specs


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("bicubic", Bicubic(3)),
        ("second_order", SecondOrder(3)),
        ("blur:sigma=0.2:4", Chain((Blur(sigma=(0.2, 4.0)), Bicubic(3)))),
        ("blur:sigma=2,kinds=0:1", Chain((Blur(sigma=(2.0, 2.0), kinds=(0.0, 1.0)), Bicubic(3)))),
        ("noise:sigma=1e+1", Chain((Bicubic(3), Noise(sigma=(10.0, 10.0))))),
        ("blur+blur+noise+jpeg:quality=30", Chain((Blur(), Blur(), Bicubic(3), Noise(), Jpeg((30, 30))))),
        ("noise+bicubic+blur", Chain((Noise(), Bicubic(3), Blur()))),
        ("second_order+jpeg", Chain((SecondOrder(3), Jpeg()))),
        (
            "second_order:sinc_prob=0,blur2.prob=0.5,blur2.sigma=1:2,resize.updown=1:2:3",
            dataclasses.replace(
                SecondOrder(3),
                sinc_prob=0.0,
                blur2=dataclasses.replace(SecondOrder().blur2, prob=0.5, sigma=(1.0, 2.0)),
                resize=Resize(updown=(1.0, 2.0, 3.0)),
            ),
        ),
    ],
)
def test_parse(spec: str, expected: degrade.Degradation) -> None:
    assert parse(spec, 3) == expected
    assert parse(spec, 3).scale == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "no degradation ''; there are: bicubic, blur, jpeg, noise, second_order"),
        ("blurr", r"no degradation 'blurr'; there are.*; did you mean 'blur'\?"),
        ("jpeg:qualty=3", r"; did you mean 'quality'\?"),
        ("blur+\x1b[0m", r"no degradation 'blur\+\\x1b\[0m'"),
        ("jpeg:q=3", "degradation 'jpeg' has no option 'q'; it has: quality"),
        ("bicubic:scale=3", "degradation 'bicubic' has no option 'scale'; it has: nothing"),
        ("jpeg:quality", "'quality' should be option=value"),
        ("jpeg:quality=0:20", "'jpeg': quality should be low:high, from 1 to 100, found 0:20"),
        ("jpeg:quality=30.5", "'jpeg': option 'quality' .*valid integer.*, not '30.5'"),
        ("blur:sigma=3:1", "'blur': sigma should be low:high, from 0.1, found 3:1"),
        ("blur:sigma=1:2:3", "'blur': option 'sigma' .* not '1:2:3'"),
        ("blur:sigma=nan", "sigma should be low:high, from 0.1, found nan:nan"),
        ("blur:size=8:12", "'blur': size should be of odd sides, found 8:12"),
        ("blur:kinds=0:0", "kinds should be up to 6 weights from 0, not all 0, found 0:0"),
        ("blur:kinds=1:1:1:1:1:1:1", "kinds should be up to 6 weights"),
        ("blur:beta_plateau=2:3", "beta_plateau should be low:high with 1 between them, found 2:3"),
        ("blur:prob=1.5", "prob should be from 0 to 1, found 1.5"),
        ("noise:sigma=1:inf", "sigma should be low:high, from 0, found 1:inf"),
        ("noise:grey_prob=x", "'noise': option 'grey_prob' .*, not 'x'"),
        ("second_order:noise2.sigm=3", "degradation 'second_order' has no option 'noise2.sigm'"),
        ("second_order:noise2=3", "degradation 'second_order' has no option 'noise2'"),
        ("second_order:noise2.sigma=3:2", "degradation 'second_order.noise2': sigma should be"),
        ("second_order:resize.factor=2:3", "'second_order.resize': factor should be low:high with 1 between"),
        ("bicubic+blur+second_order", "shrinks 2 times; one of bicubic, second_order can be named, once"),
    ],
)
def test_refusals(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse(spec, 2)
    assert "\n" not in str(caught.value)


def test_scale_below_1() -> None:
    for made in (Bicubic, SecondOrder):
        with pytest.raises(ValueError, match="scale should be a whole number from 1, found 0"):
            made(0)
