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
from PIL import Image
from torch import Tensor, nn

from curate import plugins
from curate.archs import Arch
from curate.checkpoint import Checkpoint
from curate.errors import CurateError, DataError, UsageError
from curate.evaluation import averages, evaluate, summary
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Path:
    return write_photos(tmp_path_factory.mktemp("evaluation") / "hr", SIZES, seed=20)


# By hand, in numpy


def luma(image_HWC: _Floats) -> _Floats:
    """BT.601 of RGB in [0, 1], studio range, as 0..255."""
    return image_HWC @ np.array([65.481, 128.553, 24.966]) + 16


def rounded(image: _Floats) -> _Floats:
    return np.asarray(np.floor(image.clip(0, 255) + 0.5))


def sr_luma(model: Checkpoint, lr_HWC: _Pixels) -> _Floats:
    """The network's answer as luma, 0..255."""
    arch, net = model.arch, model.module()
    image_HWC = luma(lr_HWC / 255)[..., None] if arch.colour == "y" else lr_HWC.astype(np.float64)
    seen_BCHW = torch.from_numpy(image_HWC / 255 * arch.peak).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        answer_HWC = net(seen_BCHW)[0].permute(1, 2, 0).double().numpy() * 255 / arch.peak
    answer_HWC = rounded(answer_HWC)
    return answer_HWC[..., 0] if arch.colour == "y" else luma(answer_HWC / 255)


def psnr_by_hand(sr_HW: _Floats, hr_HW: _Floats, border: int) -> float:
    inner = (slice(border, -border or None),) * 2
    error = float(np.mean((sr_HW[inner] - hr_HW[inner]) ** 2))
    return 10 * log10(255**2 / error) if error else inf


def ssim_by_hand(sr_HW: _Floats, hr_HW: _Floats, border: int) -> float:
    """Wang et al. 2004, window by window."""
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights_11 = np.outer(weights, weights) / weights.sum() ** 2
    a_HW, b_HW = (image[border:-border, border:-border] for image in (sr_HW, hr_HW))
    values = []
    for y in range(a_HW.shape[0] - 10):
        for x in range(a_HW.shape[1] - 10):
            a, b = a_HW[y : y + 11, x : x + 11], b_HW[y : y + 11, x : x + 11]
            mean_a, mean_b = (weights_11 * a).sum(), (weights_11 * b).sum()
            variance_a = (weights_11 * (a - mean_a) ** 2).sum()
            variance_b = (weights_11 * (b - mean_b) ** 2).sum()
            covariance = (weights_11 * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            values.append(luminance * (2 * covariance + c2) / (variance_a + variance_b + c2))
    return float(np.mean(values))


def imresize(image_HWC: _Pixels, scale: int) -> _Pixels:
    lr_BCHW = downscale(torch.from_numpy(image_HWC).permute(2, 0, 1)[None], scale)
    return np.asarray(lr_BCHW[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("name", MODELS)
def test_figures_are_the_fields_protocol_by_hand(name: str, folder: Path) -> None:
    model = MODELS[name]
    scale = model.arch.scale
    table = evaluate(model, folder)
    assert table.column_names == ["name", "psnr", "ssim"]
    assert table["name"].to_pylist() == ["000.png", "001.jpg", "002.png"]
    assert table.schema.metadata[b"protocol"] == b"PSNR and SSIM on Y, border = scale, LR = MATLAB bicubic"
    for row in table.to_pylist():
        hr_HWC = decode((folder / row["name"]).read_bytes())
        height, width = (side - side % scale for side in hr_HWC.shape[:2])
        hr_HWC = hr_HWC[:height, :width]
        sr_HW, hr_HW = sr_luma(model, imresize(hr_HWC, scale)), luma(hr_HWC / 255)
        assert row["psnr"] == pytest.approx(psnr_by_hand(sr_HW, hr_HW, scale), abs=2e-3)  # a float32 on a tie
        assert row["psnr"] != pytest.approx(psnr_by_hand(sr_HW, hr_HW, 0), abs=1e-2)
        assert row["ssim"] == pytest.approx(ssim_by_hand(sr_HW, hr_HW, scale), abs=1e-4)


@pytest.mark.parametrize("name", ["srcnn x2", "rgb x3"])
@pytest.mark.parametrize("multiple", ["scale", 12])
@pytest.mark.parametrize("suffix", ["marked", "plain"])
def test_lr_files_are_used_where_they_are_given(
    name: str, multiple: str | int, suffix: str, folder: Path, tmp_path: Path
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
        lr_HWC = rounded(imresize(hr_HWC, scale) + rng.normal(0, 9, (height // scale, width // scale, 3)))
        lr_name = f"{path.stem}x{scale}.png" if suffix == "marked" else f"{path.stem}.png"
        Image.fromarray(lr_HWC.astype(np.uint8)).save(tmp_path / lr_name)
        sr_HW = sr_luma(model, lr_HWC.astype(np.uint8))
        expected.append(psnr_by_hand(sr_HW, luma(hr_HWC / 255), scale))
    table = evaluate(model, folder, lr=tmp_path)
    assert table["psnr"].to_pylist() == pytest.approx(expected, abs=2e-3)
    assert table["psnr"].to_pylist() != pytest.approx(evaluate(model, folder)["psnr"].to_pylist(), abs=0.1)
    assert summary(table)["protocol"].endswith("LR = files")


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
    path.parent.mkdir(exist_ok=True)
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


def test_the_smallest_image_is_measured(tmp_path: Path) -> None:
    save(tmp_path / "hr" / "small.png", 16, 16)
    assert evaluate(MODELS["rgb x2"], tmp_path / "hr").num_rows == 1


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
        ({"device": "abacus"}, "no device 'abacus' here"),
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
