"""Evaluation is the field's protocol, computed here by hand; what cannot be measured is named in one line."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log10
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import put
from PIL import Image
from torch import Tensor, nn

from curate import plugins
from curate.archs import Arch
from curate.archs._layers import Bicubic
from curate.archs.dlsr import Dlsr
from curate.checkpoint import Checkpoint
from curate.errors import CurateError, DataError, UsageError
from curate.evaluation import Protocol, averages, evaluate, summary
from curate.images import decode
from curate.resize import downscale

SIZES = ((48, 60), (53, 47), (61, 40))  # height, width: even, odd, of a height that no scale divides
_Pixels = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Nearest(Arch):
    """Nearest neighbour in RGB up to 255 and a bit brighter: an arch of a user's own."""

    scale: int = 2
    brighter: float = 0.0  # of 255

    colour: ClassVar[Literal["y", "rgb"]] = "rgb"
    peak: ClassVar[float] = 255.0

    def build(self) -> "NearestNet":
        return NearestNet(self)


class NearestNet(nn.Module):
    def __init__(self, arch: Nearest) -> None:
        super().__init__()
        self.arch = arch
        self.shift = nn.Parameter(torch.tensor(arch.brighter))

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        return nn.functional.interpolate(lr_BCHW, scale_factor=self.arch.scale, mode="nearest") + self.shift


@dataclass(frozen=True)
class Plain(Arch):
    """MATLAB's bicubic of luma, to measure what the tables call bicubic."""

    scale: int = 2

    colour: ClassVar[Literal["y", "rgb"]] = "y"
    peak: ClassVar[float] = 1.0

    def build(self) -> Bicubic:
        return Bicubic(self.scale)


def untrained(arch: str | Arch) -> Checkpoint:
    """Random weights, near enough to a bicubic upscale that every decibel is a sane one."""
    built: Arch = plugins.parse("archs", arch) if isinstance(arch, str) else arch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return Checkpoint(built, built.build().state_dict(), {})


MODELS = {
    "srcnn x2": untrained("srcnn:kernel=9-1-5"),
    "srcnn x3": untrained("srcnn:scale=3,kernel=9-1-5"),
    "fsrcnn x4": untrained("fsrcnn:scale=4,d=4,s=2,m=1"),
    "rgb x2": untrained(Nearest(brighter=20.3)),
    "rgb x3": untrained(Nearest(scale=3)),
}
MEASURED = [  # every model by the protocols that it can be measured by
    *((name, "y") for name in MODELS),
    *((name, "luma" if model.arch.colour == "y" else "rgb") for name, model in MODELS.items()),
]
SAID = {
    "y": "PSNR and SSIM on Y, border = scale",
    "luma": "PSNR and SSIM on 8-bit Y, border = scale",
    "rgb": "PSNR and SSIM on RGB, border = scale + 6",
}
MADE = {"y": "MATLAB bicubic", "luma": "bicubic of Y, unrounded", "rgb": "MATLAB bicubic"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Path:
    return write_photos(tmp_path_factory.mktemp("evaluation") / "hr", SIZES, seed=20)


# By hand, in numpy


def luma(image_HWC: _Floats) -> _Floats:
    """BT.601 of RGB in [0, 1], studio range, as 0..255."""
    return image_HWC @ np.array([65.481, 128.553, 24.966]) + 16


def rounded(image: _Floats) -> _Floats:
    return np.asarray(np.floor(image.clip(0, 255) + 0.5))


def answer(model: Checkpoint, seen_HWC: _Floats) -> _Floats:
    """The network's answer to luma or RGB of 0..255, as an 8-bit file holds it."""
    seen_BCHW = torch.from_numpy(seen_HWC / 255 * model.arch.peak).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        answer_HWC = model.module()(seen_BCHW)[0].permute(1, 2, 0).double().numpy() * 255 / model.arch.peak
    return rounded(answer_HWC)


def compared(
    model: Checkpoint, protocol: Protocol, hr_HWC: _Pixels, lr_HWC: _Pixels | None
) -> tuple[_Floats, _Floats, int]:
    """SR and HR, 0..255, HWC with one channel or three, and the border; None for an LR image that is to be made."""
    scale = model.arch.scale
    hr_HW1 = luma(hr_HWC / 255)[..., None]
    if protocol == "luma":
        hr_HW1 = rounded(hr_HW1)
        if lr_HWC is None:
            lr_HW = downscale(torch.from_numpy(hr_HW1[..., 0]), scale).numpy()
            return answer(model, lr_HW[..., None]), hr_HW1, scale
    lr_HWC = imresize(hr_HWC, scale) if lr_HWC is None else lr_HWC
    if model.arch.colour == "y":
        return answer(model, luma(lr_HWC / 255)[..., None]), hr_HW1, scale
    sr_HWC = answer(model, lr_HWC.astype(np.float64))
    if protocol == "rgb":
        return sr_HWC, hr_HWC.astype(np.float64), scale + 6
    return luma(sr_HWC / 255)[..., None], hr_HW1, scale


def psnr_by_hand(sr_HWC: _Floats, hr_HWC: _Floats, border: int) -> float:
    inner = (slice(border, -border or None),) * 2
    error = float(np.mean((sr_HWC[inner] - hr_HWC[inner]) ** 2))
    return 10 * log10(255**2 / error) if error else inf


def ssim_by_hand(sr_HWC: _Floats, hr_HWC: _Floats, border: int) -> float:
    """Wang et al. 2004, window by window; the mean over the channels."""
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights_11 = (np.outer(weights, weights) / weights.sum() ** 2)[..., None]

    def mean(window_11C: _Floats) -> _Floats:
        return np.asarray((weights_11 * window_11C).sum((0, 1)))

    a_HWC, b_HWC = (image[border:-border, border:-border] for image in (sr_HWC, hr_HWC))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for y in range(a_HWC.shape[0] - 10):
        for x in range(a_HWC.shape[1] - 10):
            a, b = a_HWC[y : y + 11, x : x + 11], b_HWC[y : y + 11, x : x + 11]
            mean_a, mean_b = mean(a), mean(b)
            variance_a, variance_b = mean((a - mean_a) ** 2), mean((b - mean_b) ** 2)
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            covariance = mean((a - mean_a) * (b - mean_b))
            values.append(luminance * (2 * covariance + c2) / (variance_a + variance_b + c2))
    return float(np.mean(values))


def imresize(image_HWC: _Pixels, scale: int) -> _Pixels:
    lr_BCHW = downscale(torch.from_numpy(image_HWC).permute(2, 0, 1)[None], scale)
    return np.asarray(lr_BCHW[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("name", "protocol"), MEASURED)
def test_figures_are_the_fields_protocol_by_hand(name: str, protocol: Protocol, folder: Path) -> None:
    model = MODELS[name]
    table = evaluate(model, folder, protocol=protocol)
    assert table.column_names == ["name", "psnr", "ssim"]
    assert table["name"].to_pylist() == ["000.png", "001.jpg", "002.png"]
    assert summary(table)["protocol"] == f"{SAID[protocol]}, LR = {MADE[protocol]}"
    for row in table.to_pylist():
        hr_HWC = decode((folder / row["name"]).read_bytes())
        height, width = (side - side % model.arch.scale for side in hr_HWC.shape[:2])
        sr_HWC, hr_HWC, border = compared(model, protocol, hr_HWC[:height, :width], None)
        assert row["psnr"] == pytest.approx(psnr_by_hand(sr_HWC, hr_HWC, border), abs=2e-3)  # a float32 on a tie
        assert row["psnr"] != pytest.approx(psnr_by_hand(sr_HWC, hr_HWC, border - model.arch.scale), abs=1e-2)
        assert row["ssim"] == pytest.approx(ssim_by_hand(sr_HWC, hr_HWC, border), abs=1e-4)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_luma_rounds_hr_and_not_lr(scale: int, tmp_path: Path) -> None:
    """On an image so smooth that all errors are of rounding: 57 to 60 dB, with LR rounded too 2.5 to 5 less."""
    y, x = np.mgrid[0:60, 0:72]
    waves = [90 + 60 * np.sin((a * y + b * x) / 40) for a, b in ((1, 2), (2, 1), (1, -1))]
    hr_HWC = np.stack(waves, axis=-1).round().astype(np.uint8)
    Image.fromarray(hr_HWC).save(tmp_path / "smooth.png")
    bicubic = untrained(Plain(scale=scale))
    found = {protocol: averages(evaluate(bicubic, tmp_path, protocol=protocol))["psnr"] for protocol in ("y", "luma")}
    for protocol, decibel in found.items():
        assert decibel == pytest.approx(psnr_by_hand(*compared(bicubic, protocol, hr_HWC, None)), abs=0.02)
    assert found["luma"] > found["y"] + 0.5


@pytest.mark.parametrize(
    ("name", "protocol"), [("srcnn x2", "y"), ("rgb x3", "y"), ("srcnn x2", "luma"), ("rgb x3", "rgb")]
)
@pytest.mark.parametrize("multiple", ["scale", 12])
@pytest.mark.parametrize("suffix", ["marked", "plain"])
def test_lr_files_are_used_where_they_are_given(
    name: str, protocol: Protocol, multiple: str | int, suffix: str, folder: Path, tmp_path: Path
) -> None:
    """LR of HR cropped to a multiple of the scale, or of 12, as the field's files are; HR is cropped to that."""
    model = MODELS[name]
    scale = model.arch.scale
    rng = np.random.default_rng(0)
    expected = []
    for path in sorted(folder.iterdir()):
        hr_HWC = decode(path.read_bytes())
        height, width = (side - side % (scale if multiple == "scale" else 12) for side in hr_HWC.shape[:2])
        hr_HWC = hr_HWC[:height, :width]
        noisy_HWC = rounded(imresize(hr_HWC, scale) + rng.normal(0, 9, (height // scale, width // scale, 3)))
        lr_HWC = noisy_HWC.astype(np.uint8)
        lr_name = f"{path.stem}x{scale}.png" if suffix == "marked" else f"{path.stem}.png"
        Image.fromarray(lr_HWC).save(tmp_path / lr_name)
        expected.append(psnr_by_hand(*compared(model, protocol, hr_HWC, lr_HWC)))
    table = evaluate(model, folder, lr=tmp_path, protocol=protocol)
    assert table["psnr"].to_pylist() == pytest.approx(expected, abs=2e-3)
    made = evaluate(model, folder, protocol=protocol)
    assert table["psnr"].to_pylist() != pytest.approx(made["psnr"].to_pylist(), abs=0.1)
    assert summary(table)["protocol"] == f"{SAID[protocol]}, LR = files"


def test_a_checkpoint_on_disk_and_a_public_file_measure_alike(folder: Path, tmp_path: Path) -> None:
    model = MODELS["fsrcnn x4"]
    model.save(tmp_path / "run")
    torch.save(model.state, tmp_path / "public.pth")
    expected = evaluate(model, folder)
    assert evaluate(tmp_path / "run", folder).equals(expected)
    assert evaluate(tmp_path / "public.pth", str(folder), arch="fsrcnn:scale=4").equals(expected)


@pytest.mark.gpu
def test_cpu_and_gpu_agree(folder: Path) -> None:
    """To 0.01 dB: a GPU may multiply with 10-bit mantissas (TF32)."""
    cpu, gpu = (evaluate(MODELS["srcnn x2"], folder, device=device) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu["psnr"].to_numpy(), cpu["psnr"].to_numpy(), atol=0.01)


def test_progress_names_the_images(folder: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    evaluate(MODELS["rgb x2"], folder, progress=lambda done, total, note="": calls.append((done, total, note)))
    assert calls == [(1, 3, "000.png"), (2, 3, "001.jpg"), (3, 3, "002.png")]


# A benchmark's folder


@pytest.fixture
def benchmark(folder: Path, tmp_path: Path) -> Path:
    """The field's layout, HR and LR_bicubic of x2; the LR images are of noise, so that it shows where they are used."""
    for path in folder.iterdir():
        hr_HWC = decode(path.read_bytes())
        save(tmp_path / "Set5" / "LR_bicubic" / "X2" / f"{path.stem}x2.png", *(side // 2 for side in hr_HWC.shape[:2]))
        (tmp_path / "Set5" / "HR").mkdir(exist_ok=True)
        (tmp_path / "Set5" / "HR" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "Set5"


@pytest.mark.parametrize(("name", "protocol"), [("srcnn x2", "y"), ("srcnn x2", "luma"), ("rgb x2", "rgb")])
def test_a_benchmarks_own_lr_files_are_used(name: str, protocol: Protocol, benchmark: Path, folder: Path) -> None:
    found = evaluate(MODELS[name], benchmark, protocol=protocol)
    files = evaluate(MODELS[name], folder, lr=benchmark / "LR_bicubic" / "X2", protocol=protocol)
    assert found.equals(files, check_metadata=True)
    assert summary(found)["protocol"] == f"{SAID[protocol]}, LR = files"
    assert not found.equals(evaluate(MODELS[name], folder, protocol=protocol))


def test_other_lr_files_win_over_a_benchmarks(benchmark: Path, folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        height, width = (side - side % 2 for side in decode(path.read_bytes()).shape[:2])
        lr_HWC = imresize(decode(path.read_bytes())[:height, :width], 2)
        (tmp_path / "mine").mkdir(exist_ok=True)
        Image.fromarray(lr_HWC).save(tmp_path / "mine" / f"{path.stem}.png")
    found = evaluate(MODELS["srcnn x2"], str(benchmark), lr=tmp_path / "mine")
    assert found.equals(evaluate(MODELS["srcnn x2"], folder))
    assert summary(found)["protocol"].endswith("LR = files")


@pytest.mark.parametrize("name", ["srcnn x3", "rgb x3"])
def test_lr_files_of_another_scale_are_no_lr_files(name: str, benchmark: Path, folder: Path) -> None:
    found = evaluate(MODELS[name], benchmark)
    assert found.equals(evaluate(MODELS[name], folder), check_metadata=True)
    assert summary(found)["protocol"].endswith("LR = MATLAB bicubic")


def test_without_lr_files_a_benchmarks_are_made(benchmark: Path, folder: Path) -> None:
    (benchmark / "LR_bicubic").rename(benchmark / "elsewhere")
    for protocol in ("y", "luma"):
        found = evaluate(MODELS["srcnn x2"], benchmark, protocol=protocol)
        assert found.equals(evaluate(MODELS["srcnn x2"], folder, protocol=protocol), check_metadata=True)
    made = evaluate(MODELS["srcnn x2"], benchmark / "HR")
    assert made.equals(evaluate(MODELS["srcnn x2"], folder), check_metadata=True)


def test_an_lr_image_that_a_benchmark_lacks_is_named(benchmark: Path) -> None:
    (benchmark / "LR_bicubic" / "X2" / "001x2.png").unlink()
    message = refusal(UsageError, MODELS["rgb x2"], benchmark)
    assert message == "no x2 LR image for '001.jpg' in the LR folder"


def test_a_folder_may_be_a_url(folder: Path, memory: str) -> None:
    for path in folder.iterdir():
        put(f"{memory}/photos/{path.name}", path.read_bytes())
    for url in (f"{memory}/photos", folder.as_uri()):
        assert evaluate(MODELS["srcnn x2"], url).equals(evaluate(MODELS["srcnn x2"], folder), check_metadata=True)


# Published figures


def figures(*arguments: Any, **options: Any) -> tuple[str, str]:
    """As tables print them."""
    mean = averages(evaluate(*arguments, **options))
    return f"{mean['psnr']:.2f}", f"{mean['ssim']:.4f}"


@pytest.mark.parametrize(
    ("scale", "published"), [(2, ("33.66", "0.9299")), (3, ("30.39", "0.8682")), (4, ("28.42", "0.8104"))]
)
def test_the_tables_bicubic_is_measured_by_luma(scale: int, published: tuple[str, str], shared: Path) -> None:
    bicubic = untrained(Plain(scale=scale))
    assert figures(bicubic, shared / "benchmark" / "Set5" / "HR", protocol="luma") == published


def test_srcnn_measures_as_its_authors_say(shared: Path) -> None:
    """36.34 dB, by either protocol; LR that is made is what the files hold, and gives every figure again."""
    model = Checkpoint.load(shared / "checkpoints" / "srcnn_915_x2.mat", "srcnn:scale=2")
    folder = shared / "benchmark" / "Set5"
    files, made = evaluate(model, folder), evaluate(model, folder / "HR")
    assert summary(files)["protocol"] == "PSNR and SSIM on Y, border = scale, LR = files"
    assert summary(made)["protocol"] == "PSNR and SSIM on Y, border = scale, LR = MATLAB bicubic"
    assert made.equals(files)
    assert averages(files) == pytest.approx({"psnr": 36.340, "ssim": 0.95205}, abs=5e-4)
    luma_made = averages(evaluate(model, folder / "HR", protocol="luma"))
    assert luma_made == pytest.approx({"psnr": 36.342, "ssim": 0.95214}, abs=5e-4)


def test_fsrcnn_measures_as_known(shared: Path) -> None:
    model = Checkpoint.load(shared / "checkpoints" / "fsrcnn_x2.pth", "fsrcnn:scale=2")
    folder = shared / "benchmark" / "Set5"
    assert averages(evaluate(model, folder)) == pytest.approx({"psnr": 37.100, "ssim": 0.95615}, abs=5e-4)
    luma_files = averages(evaluate(model, folder, protocol="luma"))
    assert luma_files == pytest.approx({"psnr": 37.063, "ssim": 0.9556}, abs=5e-4)


# Averages and the summary


def test_averages_are_averages_of_the_images(folder: Path) -> None:
    table = evaluate(MODELS["rgb x2"], folder)
    expected = {name: np.mean(table[name].to_pylist()) for name in ("psnr", "ssim")}
    assert averages(table) == pytest.approx(expected)


def test_the_summary_is_json(folder: Path) -> None:
    table = evaluate(MODELS["srcnn x3"], folder)
    assert json.loads(json.dumps(summary(table), allow_nan=False)) == {
        "protocol": "PSNR and SSIM on Y, border = scale, LR = MATLAB bicubic",
        "average": averages(table),
        "images": table.to_pylist(),
    }


def test_an_infinite_psnr_is_null_in_the_summary(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (36, 48), (90, 100, 110)).save(tmp_path / "flat.png")
    Image.open(folder / "000.png").save(tmp_path / "photo.png")
    table = evaluate(untrained(Nearest()), tmp_path)
    assert table["psnr"].to_pylist()[0] == inf
    assert table["ssim"].to_pylist()[0] == pytest.approx(1)
    content = json.loads(json.dumps(summary(table), allow_nan=False))
    assert [row["psnr"] for row in content["images"]] == [None, table["psnr"].to_pylist()[1]]
    assert content["average"] == {"psnr": None, "ssim": averages(table)["ssim"]}


# What cannot be measured


def refusal(kind: type[CurateError], *arguments: Any, **options: Any) -> str:
    with pytest.raises(kind) as error:
        evaluate(*arguments, **options)
    assert str(error.value).isprintable()
    return str(error.value)


def save(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path)


@pytest.mark.parametrize("content", ["truncated", "text", "nothing"])
def test_an_image_that_cannot_be_read_is_named(content: str, folder: Path, tmp_path: Path) -> None:
    whole = (folder / "000.png").read_bytes()
    (tmp_path / "good.png").write_bytes(whole)
    (tmp_path / "bad.png").write_bytes(
        {"truncated": whole[: len(whole) // 2], "text": b"hello", "nothing": b""}[content]
    )
    assert "'bad.png' cannot be measured: " in refusal(DataError, MODELS["rgb x2"], tmp_path)


@pytest.mark.parametrize(("height", "width"), [(2, 3), (14, 40), (40, 14), (15, 15)])
def test_an_image_that_is_too_small_is_named(height: int, width: int, tmp_path: Path) -> None:
    """SSIM takes 11 x 11 px without the border of 2; what LR does not cover is cut off before."""
    save(tmp_path / "hr" / "small.png", height, width)
    message = refusal(DataError, MODELS["rgb x2"], tmp_path / "hr")
    assert message.startswith("'small.png' is ") and message.endswith("measuring takes 15x15")
    save(tmp_path / "lr" / "small.png", height // 2, width // 2)
    assert "'small.png' is " in refusal(DataError, MODELS["rgb x2"], tmp_path / "hr", lr=tmp_path / "lr")


@pytest.mark.parametrize("scale", [2, 3])
def test_an_image_that_is_too_small_for_the_network_is_named(scale: int, tmp_path: Path) -> None:
    model = untrained(Dlsr(scale=scale, features=4))
    least = 15 * scale
    for height, width in ((least - 1, 60), (60, least - 1)):
        save(tmp_path / "hr" / "small.png", height, width)
        save(tmp_path / "lr" / "small.png", height // scale, width // scale)
        for lr in (None, tmp_path / "lr"):
            message = refusal(DataError, model, tmp_path / "hr", lr=lr)
            spec = plugins.spec_of(model.arch)
            assert message.startswith("'small.png' is ") and message.endswith(f"{spec} takes {least}x{least}")
    save(tmp_path / "hr" / "small.png", least, least)
    assert evaluate(model, tmp_path / "hr").num_rows == 1


@pytest.mark.parametrize(("height", "width"), [(26, 40), (40, 26), (15, 15)])
def test_rgbs_border_takes_larger_images(height: int, width: int, tmp_path: Path) -> None:
    """11 x 11 px without the border of 8."""
    save(tmp_path / "hr" / "small.png", height, width)
    save(tmp_path / "lr" / "small.png", height // 2, width // 2)
    for lr in (None, tmp_path / "lr"):
        message = refusal(DataError, MODELS["rgb x2"], tmp_path / "hr", lr=lr, protocol="rgb")
        assert message.startswith("'small.png' is ") and message.endswith("measuring takes 27x27")


@pytest.mark.parametrize(
    ("name", "protocol", "size"),
    [("rgb x2", "y", 16), ("srcnn x2", "luma", 16), ("rgb x2", "rgb", 28), ("rgb x3", "rgb", 29)],
)
def test_the_smallest_image_is_measured(name: str, protocol: Protocol, size: int, tmp_path: Path) -> None:
    """Of x3, 29 px become 27, which is too small."""
    save(tmp_path / "hr" / "small.png", size, size)
    if name == "rgb x3":
        assert "small.png' is 27x27" in refusal(DataError, MODELS[name], tmp_path / "hr", protocol=protocol)
        save(tmp_path / "hr" / "small.png", size + 1, size + 1)
    assert evaluate(MODELS[name], tmp_path / "hr", protocol=protocol).num_rows == 1


def test_a_missing_lr_image_is_named(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "lr" / "000x2.png", 24, 30)
    save(tmp_path / "lr" / "002x3.png", 30, 20)
    message = refusal(UsageError, MODELS["rgb x2"], folder, lr=tmp_path / "lr")
    assert message == "no x2 LR image for '001.jpg' in the LR folder"


@pytest.mark.parametrize(
    ("height", "width"),
    [(25, 20), (20, 25), (10, 10), (18, 20), (20, 18), (13, 13)],
    ids=["too high", "too wide", "of x4", "12 px less high", "12 px less wide", "of x3"],
)
def test_lr_of_another_size_is_refused_not_measured(height: int, width: int, tmp_path: Path) -> None:
    save(tmp_path / "hr" / "a.png", 40 if height != 18 else 48, 40 if width != 18 else 48)
    save(tmp_path / "lr" / "a.png", height, width)
    message = refusal(DataError, MODELS["rgb x2"], tmp_path / "hr", lr=tmp_path / "lr")
    assert f"LR 'a.png' x2 is {2 * height}x{2 * width}, found HR 'a.png' of " in message


def test_an_lr_image_that_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    for name in ("000", "001", "002"):
        (tmp_path / f"{name}x2.png").write_bytes(b"hello")
    assert "'000x2.png' cannot be measured" in refusal(DataError, MODELS["rgb x2"], folder, lr=tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"folder": "{}/absent"}, "absent"),
        ({"folder": "{}/empty"}, "no images in"),
        ({"lr": "{}/empty"}, "no images in"),
        ({"folder": "x" * 5000}, "cannot read 'xxx"),
        ({"device": "abacus"}, "no device 'abacus' here"),
        ({"protocol": "ycbcr"}, "no protocol 'ycbcr'; there are: luma, rgb, y"),
        ({"protocol": "y\n"}, "no protocol 'y"),
        ({"checkpoint": "{}/absent"}, "no such file or folder"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(
    options: dict[str, str], reason: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    given = {"checkpoint": MODELS["rgb x2"], "folder": folder}
    given |= {key: value.format(tmp_path) for key, value in options.items()}
    assert reason in refusal(UsageError, **given)


@pytest.mark.parametrize(
    ("name", "protocol", "message"),
    [
        ("rgb x2", "luma", "protocol 'luma' asked for a network of RGB, which takes: rgb, y"),
        ("srcnn x2", "rgb", "protocol 'rgb' asked for a network of luma, which takes: luma, y"),
    ],
)
def test_a_protocol_of_the_other_colours_is_refused(name: str, protocol: Protocol, message: str, folder: Path) -> None:
    assert refusal(UsageError, MODELS[name], folder, protocol=protocol) == message
