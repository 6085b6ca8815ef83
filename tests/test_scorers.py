"""Every scorer keeps the contract; Sobel and SRCNN are what they say, against plain numpy."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.io
import torch
from scipy.ndimage import correlate
from torch import Tensor

import curate
from curate import images, plugins, windows
from curate.archs.fsrcnn import Fsrcnn
from curate.archs.srcnn import Srcnn as SrcnnArch
from curate.archs.srcnn import SrcnnNet
from curate.checkpoint import Checkpoint
from curate.errors import CurateError, DataError, UsageError
from curate.ingestion import ingest
from curate.means import window_means
from curate.metrics import psnr, rgb_to_y
from curate.resize import downscale, upscale
from curate.scorers import MapScorer, PatchScorer, Scorer
from curate.scorers._latents import LatentScorer
from curate.scorers.sobel import Sobel
from curate.scorers.srcnn import Refiner, Srcnn
from curate.scoring import score
from curate.store import Store
from curate.tensors import has_bfloat16, to_float, to_tensor

CPU = torch.device("cpu")
KERNELS = ("9-5-5", "9-1-5")
PACKAGE = Path(curate.__file__).parent
MakePhoto = Callable[[int, int, int], npt.NDArray[np.uint8]]


@pytest.fixture
def image_BCHW(make_photo: MakePhoto) -> Tensor:
    """Five photographs of one size, as scorers see them."""
    return to_float(torch.stack([to_tensor(make_photo(48, 60, seed)) for seed in range(5)]))


@pytest.fixture
def random_net() -> Callable[..., SrcnnNet]:
    """A function (kernel, scale, seed, std) -> SRCNN of random weights, far from a bicubic upscale."""

    def build(kernel: str = "9-5-5", scale: int = 2, seed: int = 0, std: float = 0.02) -> SrcnnNet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            arch: SrcnnArch = plugins.parse("archs", f"srcnn:scale={scale},kernel={kernel}")
            network = arch.build()
            for parameter in network.parameters():
                parameter.data += std * torch.randn_like(parameter)
        return network.eval()

    return build


def saved(network: SrcnnNet, folder: Path, kernel: str = "9-5-5") -> Path:
    """`network` as a run of curate's own."""
    arch = plugins.parse("archs", f"srcnn:scale={network.scale},kernel={kernel}")
    Checkpoint(arch, network.state_dict(), {}).save(folder)
    return folder


# The contract


@pytest.fixture(params=plugins.names("scorers"))
def scorer(request: pytest.FixtureRequest, untrained: Path, tiny_ldm: Path, monkeypatch: pytest.MonkeyPatch) -> Scorer:
    monkeypatch.setattr("curate.scorers._network._BUNDLED", untrained / "srcnn_955_x2.safetensors")
    built: Scorer = plugins.parse("scorers", request.param)
    return built


def run(scorer: Scorer, image_BCHW: Tensor, device: torch.device = CPU) -> Tensor:
    with torch.inference_mode():
        return scorer.build(device)(image_BCHW.to(device)).cpu()


def scores_of(scorer: Scorer, answer: Tensor) -> Tensor:
    """scores_BK from what the scorer answers; of maps, those of a window as large as the image."""
    return scorer.finish(answer.double().mean((2, 3))).float() if isinstance(scorer, MapScorer) else answer


def test_there_are_the_scorers_of_the_main_job() -> None:
    assert {"sobel", "srcnn"} <= set(plugins.names("scorers"))


def test_answers_k_finite_float32_columns(scorer: Scorer, image_BCHW: Tensor) -> None:
    answer = run(scorer, image_BCHW)
    scores = scores_of(scorer, answer)
    assert isinstance(scorer, MapScorer | PatchScorer)
    cell = 60 // answer.shape[3] if isinstance(scorer, MapScorer) else None  # px of the image to one of its maps
    assert answer.shape[2:] == ((48 // cell, 60 // cell) if cell else ())
    assert answer.dtype == torch.float32
    assert answer.isfinite().all()
    # The maps may be more or fewer than the columns: `finish` has the last word.
    assert scores.shape == (5, scores.shape[1] if scorer.vector else len(scorer.columns))
    assert not scorer.vector or len(scorer.columns) == 1
    assert scores.isfinite().all()
    assert scores.std(0).max() > 0  # the five photographs differ


def test_names_of_columns_differ_and_identity_is_json(scorer: Scorer) -> None:
    assert len(set(scorer.columns)) == len(scorer.columns) > 0
    assert isinstance(scorer.version, int)
    identity = scorer.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity.keys() == plugins.options_of(scorer).keys()


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_flat_patch_scores(scorer: Scorer, value: float) -> None:
    assert scores_of(scorer, run(scorer, torch.full((1, 3, 48, 48), value))).isfinite().all()


def test_a_batch_of_five_is_five_batches_of_one(scorer: Scorer, image_BCHW: Tensor) -> None:
    one_by_one = torch.cat([run(scorer, image_BCHW[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(run(scorer, image_BCHW), one_by_one, rtol=1e-5, atol=1e-6)


def test_the_image_stays_as_it_was(scorer: Scorer, image_BCHW: Tensor) -> None:
    before = image_BCHW.clone()
    run(scorer, image_BCHW)
    assert torch.equal(image_BCHW, before)


@pytest.mark.gpu
def test_cpu_and_gpu_agree(scorer: Scorer, image_BCHW: Tensor) -> None:
    """Scores to 1e-3 of themselves: a GPU may multiply with 10-bit mantissas (TF32)."""
    if isinstance(scorer, Srcnn | LatentScorer):
        scorer = replace(scorer, precision="fp32")
    scores = [scores_of(scorer, run(scorer, image_BCHW, torch.device(device))) for device in ("cpu", "cuda")]
    size = float(scores[0].abs().max()) if scorer.vector else 1e-3  # of a vector the whole counts, not each number
    torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-3 * size)


# Sobel


def brute_force_sobel(grey_HW: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    kernel_x = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    padded = np.pad(grey_HW, 1, mode="reflect")
    texture = np.empty_like(grey_HW)
    for y, x in product(*map(range, grey_HW.shape)):
        around = padded[y : y + 3, x : x + 3]
        texture[y, x] = (abs((around * kernel_x).sum()) + abs((around * kernel_x.T).sum())) / 2
    return texture


def test_sobel_is_brute_force_sobel(image_BCHW: Tensor) -> None:
    maps_BHW = run(Sobel(), image_BCHW)[:, 0].numpy()
    for image_CHW, map_HW in zip(image_BCHW.double().numpy(), maps_BHW, strict=True):
        grey_HW = 0.299 * image_CHW[0] + 0.587 * image_CHW[1] + 0.114 * image_CHW[2]
        np.testing.assert_allclose(map_HW, brute_force_sobel(grey_HW), atol=1e-6)


def test_sobel_of_a_step_is_two_on_both_sides_of_it() -> None:
    step_BCHW = torch.zeros(1, 3, 12, 12)
    step_BCHW[..., 6:] = 1
    expected = torch.zeros(12, 12)
    expected[:, 5:7] = 2
    torch.testing.assert_close(run(Sobel(), step_BCHW)[0, 0], expected)
    torch.testing.assert_close(run(Sobel(), step_BCHW.transpose(2, 3))[0, 0], expected.T)


# SRCNN


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rows", [1, 4, 8, 20, 32, 36])
def test_srcnn_in_strips_is_srcnn_of_the_whole(kernel: str, rows: int, random_net: Callable[..., SrcnnNet]) -> None:
    network = random_net(kernel)
    bicubic_B1HW = torch.rand(2, 1, 36, 24, generator=torch.Generator().manual_seed(1))
    refiner = Refiner(network, torch.float32, strip_pixels=rows * 24 * 2)
    sizes: list[int] = []
    refiner.features.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2]))
    with torch.inference_mode():
        strips = refiner(bicubic_B1HW)
        whole = network.refine(bicubic_B1HW)
    assert len(sizes) == -(-36 // max(rows // 4 * 4, 4))
    assert max(sizes) <= max(rows, 4) + 2 * 8
    torch.testing.assert_close(strips, whole, rtol=1e-5, atol=1e-6)


def test_srcnn_goes_on_in_smaller_strips_where_memory_does_not_suffice(random_net: Callable[..., SrcnnNet]) -> None:
    refiner = Refiner(random_net("9-5-5"), torch.float32, strip_pixels=36 * 24)
    bicubic_B1HW = torch.rand(1, 1, 36, 24, generator=torch.Generator().manual_seed(1))
    heights: list[int] = []

    def small(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        heights.append(inputs[0].shape[2])
        if heights[-1] > 28:
            raise torch.OutOfMemoryError

    with torch.inference_mode():
        whole = refiner(bicubic_B1HW)
        refiner.features.register_forward_pre_hook(small)
        torch.testing.assert_close(refiner(bicubic_B1HW), whole, rtol=1e-5, atol=1e-6)
    assert heights[:2] == [36, 28]  # all, half and its margin: 20 + 8 rows


def test_srcnn_in_bfloat16_ranks_as_in_float32() -> None:
    """Spearman's correlation is above 0.999 on photographs; 0.9996 to 0.99998 on 1,646 and 7,176 windows of others."""
    photos = [images.decode(path.read_bytes()) for path in sorted((PACKAGE / "samples" / "photos").iterdir())]
    corners_N2 = windows.grid(240, 360, 48, 24)
    ranks = []
    for precision in ("bf16", "fp32"):
        draw = plugins.parse("scorers", f"srcnn:precision={precision}").build(CPU)
        with torch.inference_mode():
            maps = [draw(to_float(to_tensor(pixels[:240, :360]))[None]) for pixels in photos]
        scores_N = torch.cat([window_means(map_B1HW, corners_N2, 48)[:, 0] for map_B1HW in maps])
        ranks.append(scores_N.argsort().argsort().double())
    assert len(ranks[0]) > 400
    assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.999


def test_srcnn_tells_the_precision_that_it_took() -> None:
    settled = Srcnn().on(CPU)
    assert settled.precision == ("bf16" if has_bfloat16(CPU) else "fp32")
    assert settled.identity()["precision"] == settled.precision
    assert Srcnn(precision="fp32").on(CPU).precision == "fp32"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_srcnn_mean_over_an_image_is_its_psnr(
    kernel: str, scale: int, random_net: Callable[..., SrcnnNet], make_photo: MakePhoto, tmp_path: Path
) -> None:
    """10^(-PSNR / 10) of what evaluation measures, but for the border that it cuts off."""
    network = random_net(kernel, scale, std=0.005)
    hr_BCHW = to_tensor(make_photo(36, 60, 7))[None]
    with torch.inference_mode():
        answer_B1HW = network(rgb_to_y(to_float(downscale(hr_BCHW, scale))))
    assert torch.equal(answer_B1HW, answer_B1HW.clamp(0, 1))  # evaluation clamps, which is nothing to a sane network
    decibel = psnr(answer_B1HW, rgb_to_y(to_float(hr_BCHW)), border=0).item()
    run_folder = saved(network, tmp_path / "run", kernel)
    scorer: Srcnn = plugins.parse("scorers", f"srcnn:scale={scale},kernel={kernel},weights={run_folder},precision=fp32")
    mean = run(scorer, to_float(hr_BCHW)).double().mean().item()
    assert mean == pytest.approx(10 ** (-decibel / 10), rel=1e-5)


def to_matlab(network: SrcnnNet) -> dict[str, npt.NDArray[np.float64]]:
    """The arrays that the authors' SRCNN.m reads: kernels column by column, maps in its order of axes."""
    arrays = {}
    for layer, conv in enumerate((network.conv1, network.conv2, network.conv3), start=1):
        weight_OIYX = conv.weight.detach().double().numpy()
        kernels_IKO = weight_OIYX.transpose(1, 3, 2, 0).reshape(weight_OIYX.shape[1], -1, weight_OIYX.shape[0])
        arrays[f"weights_conv{layer}"] = [kernels_IKO[0], kernels_IKO, kernels_IKO[..., 0]][layer - 1]
        assert conv.bias is not None
        arrays[f"biases_conv{layer}"] = conv.bias.detach().double().numpy()[:, None]
    return arrays


def srcnn_of_the_authors(
    arrays: dict[str, npt.NDArray[np.float64]], image_HW: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """SRCNN.m line by line: `imfilter(..., reshape(kernel, n, n), 'same', 'replicate')`, biases, max(., 0)."""

    def imfilter(data_HW: npt.NDArray[np.float64], kernel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        size = int(len(kernel) ** 0.5)
        return np.asarray(correlate(data_HW, kernel.reshape(size, size, order="F"), mode="nearest"))

    w1, w2, w3 = (arrays[f"weights_conv{layer}"] for layer in (1, 2, 3))
    b1, b2, b3 = (arrays[f"biases_conv{layer}"][:, 0] for layer in (1, 2, 3))
    conv1 = [np.maximum(imfilter(image_HW, w1[:, i]) + b1[i], 0) for i in range(64)]
    conv2 = [np.maximum(sum(imfilter(conv1[j], w2[j, :, i]) for j in range(64)) + b2[i], 0) for i in range(32)]
    return np.asarray(sum(imfilter(conv2[i], w3[i]) for i in range(32)) + b3[0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_srcnn_with_a_matlab_file_is_the_authors_program(
    kernel: str, random_net: Callable[..., SrcnnNet], make_photo: MakePhoto, tmp_path: Path
) -> None:
    arrays = to_matlab(random_net(kernel))
    scipy.io.savemat(tmp_path / "net.mat", arrays)
    scorer: Srcnn = plugins.parse("scorers", f"srcnn:kernel={kernel},weights={tmp_path / 'net.mat'},precision=fp32")
    hr_BCHW = to_tensor(make_photo(24, 24, 3))[None]
    bicubic_B1HW = upscale(rgb_to_y(to_float(downscale(hr_BCHW, 2)).double()), 2)
    y_HW = rgb_to_y(to_float(hr_BCHW).double())[0, 0].numpy()
    expected_HW = (srcnn_of_the_authors(arrays, bicubic_B1HW[0, 0].numpy()) - y_HW) ** 2
    np.testing.assert_allclose(run(scorer, to_float(hr_BCHW))[0, 0].numpy(), expected_HW, atol=2e-6)


def test_the_kernel_may_be_left_to_the_weights(random_net: Callable[..., SrcnnNet], tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "net.mat", to_matlab(random_net("9-1-5")))
    left_open = plugins.parse("scorers", f"srcnn:weights={tmp_path / 'net.mat'}")
    said = plugins.parse("scorers", f"srcnn:weights={tmp_path / 'net.mat'},kernel=9-1-5")
    assert left_open.identity() == said.identity() and left_open.identity()["kernel"] == "9-1-5"


def test_weights_of_any_origin_count_by_their_values(
    random_net: Callable[..., SrcnnNet], photos: Callable[..., Path], tmp_path: Path
) -> None:
    """The same weights in three formats are one scorer, other weights another: nothing is reused that differs."""
    network = random_net()
    saved(network, tmp_path / "run")
    scipy.io.savemat(tmp_path / "net.mat", to_matlab(network))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    saved(random_net(seed=1), tmp_path / "other")
    store = tmp_path / "store"
    ingest([photos([(48, 60)])], store, patch=24)

    first = score(store, [f"srcnn:weights={tmp_path / 'run'}"])
    assert (first.patches, first.skipped) == (12, 0)
    for name in ("net.mat", "net.pth", "run/model.safetensors"):
        again = score(store, [f"srcnn:weights={tmp_path / name}"])
        assert (again.patches, again.skipped) == (0, 1), name
    other = score(store, [f"srcnn:weights={tmp_path / 'other'}"])
    assert (other.patches, other.skipped) == (12, 0)

    sets = Store.open(store).score_sets()
    assert len({found.record.fingerprint for found in sets}) == len({found.folder for found in sets}) == 2
    assert {found.record.label for found in sets} == {"srcnn:weights=run", "srcnn:weights=other"}
    columns = Store.open(store).query("select * from scores").select([*first.columns, *other.columns]).to_pydict()
    assert np.min(np.abs(np.subtract(*columns.values()))) > 0


def test_every_option_is_in_the_identity(untrained: Path, random_net: Callable[..., SrcnnNet], tmp_path: Path) -> None:
    narrow = saved(random_net("9-1-5"), tmp_path / "narrow", "9-1-5")
    specs = ["srcnn", "srcnn:scale=3", "srcnn:scale=4", f"srcnn:kernel=9-1-5,weights={narrow}"]
    identities = [json.dumps(plugins.parse("scorers", spec).identity(), sort_keys=True) for spec in specs]
    assert len(set(identities)) == len(specs)
    assert not any(str(tmp_path) in identity for identity in identities)


@pytest.mark.parametrize(
    ("spec", "there"),
    [("srcnn", "nothing"), ("srcnn:scale=3", "nothing"), ("srcnn:kernel=9-1-5", "srcnn_955_x2")],
)
def test_bundled_weights_that_are_missing_are_one_line(
    spec: str, there: str, tmp_path: Path, photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setattr("curate.scorers.srcnn._BUNDLED", folder)
    if there != "nothing":
        (folder / f"{there}.safetensors").touch()
    ingest([photos([(48, 60)])], tmp_path / "store", patch=24)
    with pytest.raises(UsageError) as error:
        score(tmp_path / "store", ["sobel", spec])
    scorer = plugins.parse("scorers", spec)
    scale, kernel = scorer.scale, scorer.kernel or "9-5-5"
    assert str(error.value) == (
        f"no bundled weights for srcnn:scale={scale},kernel={kernel}; there are: {there}; "
        "or name a file: srcnn:weights=FILE"
    )
    assert Store.open(tmp_path / "store").score_sets() == []


@pytest.mark.parametrize(
    ("spec", "kind", "reason"),
    [
        ("srcnn:weights={}/absent.mat", UsageError, "no such file or folder"),
        ("srcnn:weights={}/x3", UsageError, "is for srcnn:scale=3,kernel=9-5-5, not for srcnn:scale=2"),
        ("srcnn:scale=3,kernel=9-1-5,weights={}/x3", UsageError, "not for srcnn:scale=3,kernel=9-1-5"),
        ("srcnn:weights={}/fsrcnn", UsageError, "is for fsrcnn:"),
        ("srcnn:weights={}/half.mat", DataError, "missing: conv2.weight"),
        ("srcnn:weights={}/notes.txt", UsageError, "file of type"),
        ("srcnn:scale=5", UsageError, "scale should be 2, 3 or 4, found 5"),
        ("srcnn:kernel=9-3-5", UsageError, "'9-5-5' or '9-1-5'"),
        ("sobel:scale=2", UsageError, "has no option 'scale'"),
    ],
)
def test_weights_and_options_that_do_not_fit_are_one_line(
    spec: str, kind: type[CurateError], reason: str, random_net: Callable[..., SrcnnNet], tmp_path: Path
) -> None:
    saved(random_net(scale=3), tmp_path / "x3")
    Checkpoint(Fsrcnn(d=2, s=1, m=1), Fsrcnn(d=2, s=1, m=1).build().state_dict(), {}).save(tmp_path / "fsrcnn")
    first: dict[str, Any] = {key: value for key, value in to_matlab(random_net()).items() if key.endswith("conv1")}
    scipy.io.savemat(tmp_path / "half.mat", first)
    (tmp_path / "notes.txt").write_text("weights")
    with pytest.raises(kind) as error:
        plugins.parse("scorers", spec.format(tmp_path)).build(CPU)
    assert reason in str(error.value)
    assert str(error.value).isprintable()
