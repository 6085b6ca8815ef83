"""Scorers without a network are what they say: against plain numpy, in the limits, and as pictures get worse.

Maps see beyond a window's edge, by design. So every reference draws its maps over the whole image, in float64, and only
then cuts out the window.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy.ndimage import correlate, gaussian_filter, uniform_filter1d

from curate import plugins, windows
from curate.errors import UsageError
from curate.ingestion import ingest
from curate.means import window_means
from curate.metrics import psnr, rgb_to_y
from curate.resize import downscale, upscale
from curate.scorers import MapScorer
from curate.scorers.bicubic import Bicubic
from curate.scorers.entropy import grey_levels
from curate.scorers.srcnn import squared_error
from curate.scoring import score
from curate.store import Store
from curate.tensors import to_float, to_tensor

CPU = torch.device("cpu")
SIZE = 24
MAP_SCORERS = ("laplacian", "gradient", "bicubic", "noise", "blur")
ALL = (*MAP_SCORERS, "entropy")

Photo = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
MakePhoto = Callable[[int, int, int], Photo]


@pytest.fixture(params=range(2))
def photo(request: pytest.FixtureRequest, make_photo: MakePhoto) -> Photo:
    """A synthetic photograph with sides that are multiples of 12, uint8 HWC."""
    return make_photo(60, 84, request.param)


def scores(spec: str, photo_HWC: npt.NDArray[np.generic], size: int = SIZE, step: int = 12) -> Floats:
    """scores_NK of the grid's windows, as a store would get them; photographs may be floats, 0 to 255."""
    scorer = plugins.parse("scorers", spec)
    image_BCHW = torch.tensor(photo_HWC.copy()).permute(2, 0, 1)[None].float() / 255
    corners_N2 = windows.grid(*photo_HWC.shape[:2], size, step)
    with torch.inference_mode():
        function = scorer.build(CPU)
        if isinstance(scorer, MapScorer):
            scores_NK = scorer.finish(window_means(function(image_BCHW), corners_N2, size))
        else:
            cut = [image_BCHW[..., y : y + size, x : x + size] for y, x in corners_N2.tolist()]
            scores_NK = function(torch.cat(cut))
    return scores_NK.double().numpy()


def whole(spec: str, photo_HWC: npt.NDArray[np.generic]) -> Floats:
    """The K scores of a square photograph as one window."""
    return scores(spec, photo_HWC, size=len(photo_HWC))[0]


def grey_of(photo_HWC: npt.NDArray[np.generic]) -> Floats:
    """Grey in [0, 1]."""
    return np.asarray(photo_HWC @ np.array([0.299, 0.587, 0.114]) / 255)


def cut(map_HW: Floats) -> list[Floats]:
    """The map under each of the windows that `scores` looks at."""
    corners = windows.grid(*map_HW.shape, SIZE, 12).tolist()
    return [map_HW[y : y + SIZE, x : x + SIZE] for y, x in corners]


def repeat_grey(grey_HW: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return np.repeat(grey_HW[..., None], 3, axis=2)


def noise_photo(size: int, seed: int = 0) -> Photo:
    """Grey levels drawn evenly, no two neighbours related."""
    return repeat_grey(np.random.default_rng(seed).integers(0, 256, (size, size), np.uint8)).astype(np.uint8)


# Against plain numpy


def test_laplacian_is_the_variance_of_the_laplacian(photo: Photo) -> None:
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    expected = [part.var() for part in cut(correlate(grey_of(photo) * 255, kernel, mode="mirror"))]
    np.testing.assert_allclose(scores("laplacian", photo)[:, 0], expected, rtol=1e-4)


def test_gradient_is_brute_force_statistics(photo: Photo) -> None:
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    across, down = (correlate(grey_of(photo), k, mode="mirror") for k in (kernel, kernel.T))
    magnitudes = cut(np.hypot(across, down))

    y, x = np.mgrid[-4:5, -4:5]
    gauss = np.exp(-(y**2 + x**2) / (2 * 2.0**2))
    products = [across * across, across * down, across * down, down * down]
    tensor_4HW = np.array([correlate(product, gauss / gauss.sum(), mode="mirror") for product in products])
    tensor_HW22 = tensor_4HW.transpose(1, 2, 0).reshape(*across.shape, 2, 2)
    small_HW, large_HW = np.linalg.eigvalsh(tensor_HW22).transpose(2, 0, 1)
    coherence = [
        (large - small).sum() / (large + small).sum() for large, small in zip(cut(large_HW), cut(small_HW), strict=True)
    ]
    expected = np.array([[part.mean() for part in magnitudes], [part.std() for part in magnitudes], coherence]).T
    np.testing.assert_allclose(scores("gradient", photo), expected, rtol=1e-4)


def test_entropy_is_pillows(photo: Photo) -> None:
    """Pillow counts its own 8-bit grey."""
    corners = windows.grid(*photo.shape[:2], SIZE, 12).tolist()
    parts = [Image.fromarray(photo).crop((x, y, x + SIZE, y + SIZE)) for y, x in corners]
    expected = [part.convert("L").entropy() for part in parts]
    np.testing.assert_allclose(scores("entropy", photo)[:, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("bins", [2, 3, 10, 64, 255])
def test_entropy_of_fewer_bins(bins: int, photo: Photo) -> None:
    levels_HW = np.asarray(Image.fromarray(photo).convert("L")).astype(int)
    expected = []
    for part in cut(levels_HW):
        share = np.bincount(part.ravel() * bins // 256) / part.size
        expected.append(-(share[share > 0] * np.log2(share[share > 0])).sum())
    np.testing.assert_allclose(scores(f"entropy:bins={bins}", photo)[:, 0], expected, rtol=1e-6, atol=1e-7)


def test_grey_levels_are_pillows_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (500, 500, 3), np.uint8)
    corners = np.array(np.meshgrid(*[[0, 1, 127, 128, 254, 255]] * 3)).reshape(3, -1).T.astype(np.uint8)
    for pixels in (colours, corners[None]):
        levels = grey_levels(to_float(to_tensor(pixels))).numpy()
        assert np.array_equal(levels, np.asarray(Image.fromarray(pixels).convert("L")))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_is_the_loss_of_the_enlarged_lr(scale: int, photo: Photo) -> None:
    hr_BCHW = to_tensor(photo)[None]
    enlarged_B1HW = upscale(rgb_to_y(to_float(downscale(hr_BCHW, scale)).double()), scale)
    error = (enlarged_B1HW - rgb_to_y(to_float(hr_BCHW).double()))[0, 0].numpy() ** 2
    expected = [part.mean() for part in cut(error)]
    np.testing.assert_allclose(scores(f"bicubic:scale={scale}", photo)[:, 0], expected, rtol=1e-4)


def test_bicubic_of_a_window_as_large_as_the_image_is_its_psnr(make_photo: MakePhoto) -> None:
    hr_BCHW = to_tensor(make_photo(60, 60, 5))[None]
    enlarged_B1HW = upscale(rgb_to_y(to_float(downscale(hr_BCHW, 2))), 2)
    decibel = psnr(enlarged_B1HW, rgb_to_y(to_float(hr_BCHW)), border=0).item()
    assert whole("bicubic", make_photo(60, 60, 5))[0] == pytest.approx(10 ** (-decibel / 10), rel=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_is_srcnn_of_a_network_that_changes_nothing(scale: int, photo: Photo) -> None:
    image_BCHW = to_float(to_tensor(photo))[None]
    unchanged = squared_error(lambda bicubic_B1HW: bicubic_B1HW, scale, image_BCHW)
    assert torch.equal(Bicubic(scale).build(CPU)(image_BCHW), unchanged)


def test_noise_is_immerkaers(photo: Photo) -> None:
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    inner = correlate(grey_of(photo) * 255, mask)[1:-1, 1:-1]
    answer_HW = np.pad(np.abs(inner), 1, mode="edge")
    expected = [math.sqrt(math.pi / 2) / (6 * part.size) * part.sum() for part in cut(answer_HW)]
    np.testing.assert_allclose(scores("noise", photo)[:, 0], expected, rtol=1e-4)


def test_blur_is_cretes(photo: Photo) -> None:
    """The paper's own steps: blur each axis by 9 px, differences of both, how much the blur took away."""
    along_axes = []
    padded = np.pad(grey_of(photo), 12, mode="reflect")
    for axis in (0, 1):
        before = np.abs(np.diff(padded, axis=axis, prepend=0))[12:-12, 12:-12]
        after = np.abs(np.diff(uniform_filter1d(padded, 9, axis), axis=axis, prepend=0))[12:-12, 12:-12]
        pairs = zip(cut(before), cut(np.maximum(0, before - after)), strict=True)
        along_axes.append([(difference.sum() - taken.sum()) / difference.sum() for difference, taken in pairs])
    np.testing.assert_allclose(scores("blur", photo)[:, 0], np.max(along_axes, axis=0), rtol=1e-4)


# What does not matter to them


@pytest.mark.parametrize("spec", ALL)
def test_mirror_images_and_the_transpose_score_alike(spec: str, make_photo: MakePhoto) -> None:
    """But for two things at the last digits: `blur` compares a pixel with the one before it, so at the border with its
    mirror image; and the LR image is rounded after its rows, then again after its columns."""
    rtol = {"blur": 2e-2, "bicubic": 1e-2}.get(spec, 1e-5)
    photo_HWC = make_photo(60, 60, 1)
    for other in (photo_HWC[::-1], photo_HWC[:, ::-1], photo_HWC.transpose(1, 0, 2)):
        np.testing.assert_allclose(whole(spec, other), whole(spec, photo_HWC), rtol=rtol)


@pytest.mark.parametrize(
    ("spec", "factors"),
    [("laplacian", [0.25]), ("gradient", [0.5, 0.5, 1]), ("noise", [0.5]), ("blur", [1])],
)
def test_brightness_is_nothing_and_contrast_a_factor(spec: str, factors: list[float], photo: Photo) -> None:
    expected = scores(spec, photo) * factors
    np.testing.assert_allclose(scores(spec, photo * 0.5 + 64), expected, rtol=2e-3, atol=1e-7)


def test_entropy_looks_at_no_neighbours(photo: Photo) -> None:
    square = photo[:60, :60]
    shuffled = np.random.default_rng(0).permutation(square.reshape(-1, 3)).reshape(square.shape)
    assert np.array_equal(whole("entropy", square), whole("entropy", shuffled))
    assert whole("laplacian", shuffled) > 2 * whole("laplacian", square)


@pytest.mark.parametrize("spec", MAP_SCORERS)
def test_what_is_far_from_a_window_does_not_matter(spec: str, make_photo: MakePhoto) -> None:
    """Twelve pixels away; of bicubic, three LR pixels for each of its two kernels."""
    photo_HWC = make_photo(96, 96, 2)
    margin = 12
    changed = noise_photo(96)
    inside = slice(36 - margin, 60 + margin)
    changed[inside, inside] = photo_HWC[inside, inside]
    middle = windows.grid(96, 96, SIZE, 12).tolist().index([36, 36])
    np.testing.assert_allclose(scores(spec, changed)[middle], scores(spec, photo_HWC)[middle], rtol=1e-6, atol=1e-12)


# As pictures get worse


BLURS = (0.0, 0.5, 1.0, 2.0, 4.0)  # px


@pytest.mark.parametrize(
    ("spec", "sign"), [("laplacian", -1), ("blur", 1), ("noise", -1), ("bicubic", -1), ("gradient", -1)]
)
def test_more_blur_is_seen(spec: str, sign: int, make_photo: MakePhoto) -> None:
    for seed in range(3):
        photo_HWC = make_photo(96, 96, seed).astype(np.float64)
        values = [whole(spec, gaussian_filter(photo_HWC, (sigma, sigma, 0)))[0] for sigma in BLURS]
        assert (sign * np.diff(values) > 0).all(), values


def test_blur_runs_from_sharp_to_blurred() -> None:
    """1 / 9 is white noise's, whose neighbouring differences are as large as those nine pixels apart."""
    photo_HWC = noise_photo(480)
    assert whole("blur", photo_HWC)[0] == pytest.approx(0.11, abs=0.01)
    assert whole("blur", gaussian_filter(photo_HWC.astype(np.float64), (12, 12, 0)))[0] > 0.8


@pytest.mark.parametrize("sigma", [2, 5, 10, 20])
def test_noise_is_close_to_sigma_on_smooth_pictures(sigma: float) -> None:
    rng = np.random.default_rng(sigma)
    y, x = np.mgrid[0:1:240j, 0:1:240j]
    smooth = 128 + 40 * np.sin(3 * x + y) + 15 * x * y
    grey_noise = repeat_grey(smooth + rng.normal(0, sigma, smooth.shape)).clip(0, 255).round().astype(np.uint8)
    assert scores("noise", grey_noise, size=120, step=120)[:, 0] == pytest.approx(sigma, rel=0.1)
    colour_noise = (repeat_grey(smooth) + rng.normal(0, sigma, (240, 240, 3))).clip(0, 255).round().astype(np.uint8)
    assert scores("noise", colour_noise, size=120, step=120)[:, 0] == pytest.approx(0.669 * sigma, rel=0.1)


def test_noise_of_rounding_a_noisy_photograph_is_a_fifth_of_a_level() -> None:
    photo_HWC = np.random.default_rng(0).normal(128, 3, (240, 240, 3))
    assert whole("noise", photo_HWC.round() - photo_HWC + 128) == pytest.approx(0.193, rel=0.05)


def test_noise_sees_no_slopes_and_no_straight_edges() -> None:
    y, x = np.mgrid[0:48, 0:48]
    for grey_HW in (2.0 * x + y, 200.0 * (x > 20), 200.0 * (y > 20), 100.0 * (x > 20) + 100 * (y > 30) + y):
        assert whole("noise", repeat_grey(grey_HW)) == pytest.approx(0, abs=1e-4)


def test_entropy_runs_from_flat_to_even() -> None:
    assert whole("entropy", noise_photo(480))[0] == pytest.approx(8, abs=2e-3)
    assert whole("entropy:bins=16", noise_photo(480))[0] == pytest.approx(4, abs=1e-3)
    halves = np.zeros((24, 24, 3), np.uint8)
    halves[:12] = 255
    for bins in (2, 7, 256):
        assert whole(f"entropy:bins={bins}", halves).tolist() == [1]


def test_coherence_runs_from_noise_to_straight_stripes() -> None:
    y, x = np.mgrid[0:120, 0:120]
    for angle in (0, 0.4, math.pi / 4, 2):
        stripes = 128 + 100 * np.sin(0.4 * (x * math.cos(angle) + y * math.sin(angle)))
        inside = scores("gradient", repeat_grey(stripes), size=48, step=36)[4]  # mirrored edges bend the stripes
        assert inside[2] == pytest.approx(1, abs=2e-3), angle
    assert whole("gradient", noise_photo(120))[2] < 0.4


def test_gradient_of_a_step_and_a_slope() -> None:
    step = np.zeros((24, 24, 3), np.uint8)
    step[:, 12:] = 255
    mean, std, coherence = whole("gradient", step)
    assert mean == pytest.approx(0.5 * 2 / 24)
    assert std == pytest.approx(0.5 * math.sqrt(2 / 24 * 22 / 24))
    assert coherence == pytest.approx(1)
    y, x = np.mgrid[0:72, 0:72]
    inside = scores("gradient", repeat_grey(2.0 * x + y), size=24, step=24)[4]
    assert inside == pytest.approx([math.sqrt(5) / 255, 0, 1], abs=1e-5)


# In the limits


FLAT = {"laplacian": [0], "gradient": [0, 0, 0], "entropy": [0], "bicubic": [0], "noise": [0], "blur": [1]}


@pytest.mark.parametrize(("spec", "expected"), FLAT.items())
@pytest.mark.parametrize("level", [0, 1, 77, 128, 255])
def test_flat_photographs(spec: str, expected: list[float], level: int) -> None:
    assert whole(spec, np.full((24, 24, 3), level, np.uint8)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("spec", "expected"), FLAT.items())
def test_flat_windows_beside_the_roughest_of_noise(spec: str, expected: list[float]) -> None:
    """Sums over the image leave a rounding error in a flat window's means: no ratio may be made of that."""
    photo_HWC = np.where(noise_photo(480) > 127, 255, 0).astype(np.uint8)
    photo_HWC[200:300, 180:300] = (200, 13, 77)
    corners = windows.grid(480, 480, SIZE, 12).tolist()
    inside = [i for i, (y, x) in enumerate(corners) if 212 <= y <= 264 and 192 <= x <= 264]
    assert len(inside) > 20
    found = scores(spec, photo_HWC)[inside]
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-6)


def test_blur_leaves_out_the_axis_that_stripes_run_along() -> None:
    stripes = np.zeros((48, 48))
    stripes[:, ::2] = 255
    for grey_HW in (stripes, stripes.T):
        assert whole("blur", repeat_grey(grey_HW)) == pytest.approx(1 / 9)


def test_blur_of_stripes_that_nine_pixels_hide_is_none() -> None:
    stripes = np.tile([0.0, 255, 0], 24)[None].repeat(72, axis=0)
    assert scores("blur", repeat_grey(stripes), size=24, step=24)[4] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("spec", ALL)
def test_scores_are_never_negative_nor_beyond_their_range(spec: str) -> None:
    chequers = np.indices((96, 96)).sum(0) % 2 * 255.0
    highest = {"laplacian": [1020**2], "gradient": [0.56, 0.28, 1], "entropy": [8], "noise": [426.13], "blur": [1]}
    most = highest.get(spec, [1]) + np.array(1e-6)
    for grey_HW in (chequers, noise_photo(96)[..., 0], np.where(noise_photo(96)[..., 0] > 127, 255, 0)):
        found = scores(spec, repeat_grey(grey_HW))
        assert (found >= 0).all() and (found <= most).all(), (found.min(0), found.max(0))
    if spec in ("laplacian", "noise"):
        assert whole(spec, repeat_grey(chequers)) == pytest.approx(highest[spec], rel=1e-3)


# Options, memory, and the way into a store


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("entropy:bins=1", "bins should be 2 to 256, found 1"),
        ("entropy:bins=257", "bins should be 2 to 256, found 257"),
        ("bicubic:scale=5", "scale should be 2, 3 or 4, found 5"),
        ("laplacian:bins=4", "has no option 'bins'"),
    ],
)
def test_options_that_do_not_fit_are_one_line(spec: str, reason: str) -> None:
    with pytest.raises(UsageError) as error:
        plugins.parse("scorers", spec)
    assert reason in str(error.value)
    assert str(error.value).isprintable()


def test_entropy_counts_one_window_at_a_time(photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def watched(image_CHW: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(image_CHW.shape))
        return grey_levels(image_CHW)

    monkeypatch.setattr("curate.scorers.entropy.grey_levels", watched)
    assert shapes == [(3, SIZE, SIZE)] * len(scores("entropy", photo))


def test_a_store_gets_all_of_them(photos: Callable[..., Path], tmp_path: Path) -> None:
    ingest([photos([(60, 77), (49, 48)])], tmp_path / "store", patch=SIZE, step=12)
    report = score(tmp_path / "store", ALL)
    gradient = {"gradient.mean", "gradient.std", "gradient.coherence"}
    assert set(report.columns) == {*ALL, *gradient} - {"gradient"}
    assert report.not_finite == 0
    table = Store.open(tmp_path / "store").query("select * from scores").select(report.columns)
    for name, values in table.to_pydict().items():
        assert min(values) >= 0 and len(set(values)) > 1, name
