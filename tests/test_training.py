"""Training learns, repeats itself byte for byte, writes down what it did, and stops when the loss is no number."""

import itertools
import json
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from curate import plugins
from curate.archs import Arch
from curate.archs.fsrcnn import Fsrcnn
from curate.archs.srcnn import Srcnn
from curate.checkpoint import Checkpoint, read_recipe, weights_hash
from curate.config import TrainConfig
from curate.errors import CurateError, DataError, UsageError
from curate.ingestion import ingest
from curate.loader import Batch, batches
from curate.manifest import Manifest
from curate.metrics import rgb_to_y
from curate.selection import select
from curate.training import train

NET = "fsrcnn:scale=2,d=6,s=3,m=1"
BRIEF = TrainConfig(steps=3, batch_size=4, crop=12, log_every=1)
SCALARS = {"train/loss", "train/psnr", "train/images_per_second", "train/rate"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Manifest:
    folder = tmp_path_factory.mktemp("training")
    ingest([write_photos(folder / "photos", [(60, 72), (49, 50)])], folder / "store", patch=24, step=12)
    return select(folder / "store", "random", keep=1).save(folder / "all.parquet")


def weighted(manifest: Manifest, weights: npt.ArrayLike) -> Manifest:
    column = pa.array(np.broadcast_to(np.asarray(weights, np.float32), len(manifest)).copy())
    index = manifest.table.schema.get_field_index("weight")
    return replace(manifest, table=manifest.table.set_column(index, manifest.table.schema.field("weight"), column))


def fresh(arch: str | Arch, seed: int = 0) -> nn.Module:
    """The network that training starts from."""
    built: Arch = plugins.parse("archs", arch) if isinstance(arch, str) else arch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return built.build()


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of two states."""
    return max((a[name] - b[name]).abs().max().item() for name in a)


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves of a run: tag -> (step, value). A run that went on replaces what the one before wrote beyond."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(run.glob("events.out.*"), key=lambda path: path.stat().st_mtime_ns):
        events = EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            points = [(event.step, event.value) for event in events.Scalars(tag)]
            found[tag] = [point for point in found.get(tag, []) if point[0] < points[0][0]] + points
    return found


def refusal(kind: type[CurateError], action: Callable[[], object]) -> str:
    with pytest.raises(kind) as error:
        action()
    assert str(error.value).isprintable()
    return str(error.value)


@dataclass(frozen=True)
class Probe(Arch):
    """Nearest neighbour, plus what a test wants: an arch of a user's own."""

    scale: int = 2
    kind: Literal["plain", "nan", "inf", "steep"] = "plain"
    after: int = 0  # steps that go well

    colour: ClassVar[Literal["y", "rgb"]] = "rgb"
    peak: ClassVar[float] = 255.0

    def build(self) -> "ProbeNet":
        return ProbeNet(self)


class ProbeNet(nn.Module):
    def __init__(self, arch: Probe) -> None:
        super().__init__()
        self.arch = arch
        self.calls = itertools.count()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        sr_BCHW = nn.functional.interpolate(lr_BCHW, scale_factor=self.arch.scale, mode="nearest")
        if self.arch.kind == "plain" or next(self.calls) < self.arch.after:
            return sr_BCHW + self.shift
        if self.arch.kind == "steep":  # a finite loss whose gradient is not
            return sr_BCHW + (self.shift - self.shift.detach()).sqrt()
        return sr_BCHW * float(self.arch.kind) + self.shift


# It learns


@pytest.mark.parametrize("loss", ["l1", "mse"])
def test_the_loss_falls(loss: Literal["l1", "mse"], manifest: Manifest, tmp_path: Path) -> None:
    config = TrainConfig(steps=60, batch_size=8, crop=24, rate=5e-3, loss=loss, log_every=10)
    made = train(NET, manifest, config, tmp_path / "run")
    losses, decibels = ([value for _, value in scalars(tmp_path / "run")[f"train/{tag}"]] for tag in ("loss", "psnr"))
    assert len(losses) == 6
    assert losses[-1] < 0.5 * losses[0]
    assert decibels[-1] > decibels[0] + 3
    assert made.recipe["last"]["loss"] == pytest.approx(losses[-1], rel=1e-5)


@pytest.mark.parametrize("arch", [Fsrcnn(d=6, s=3, m=1), Probe(), Probe(scale=3)], ids=plugins.spec_of)
@pytest.mark.parametrize("loss", ["l1", "mse"])
def test_the_first_step_is_what_it_says(loss: Literal["l1", "mse"], arch: Arch, manifest: Manifest) -> None:
    """Loss and PSNR before any step, and Adam's first: each weight moves by the rate against its gradient."""
    config = TrainConfig(steps=1, batch_size=4, crop=12, rate=1e-4, loss=loss, seed=3)
    made = train(arch, manifest, config)

    source = batches(manifest, scale=arch.scale, crop=12, batch_size=4, seed=3)
    lr_BCHW, hr_BCHW, *_ = next(source)
    lr_BCHW, hr_BCHW = (rgb_to_y(image) if arch.colour == "y" else image for image in (lr_BCHW, hr_BCHW))
    network = fresh(arch, seed=3)
    difference = network(lr_BCHW * arch.peak) - hr_BCHW * arch.peak
    value = difference.abs().mean() if loss == "l1" else difference.square().mean()
    decibel = -10 * torch.log10((difference / arch.peak).square().mean())
    expected = {"loss": value.item(), "psnr": decibel.item()}
    assert made.recipe["last"] == pytest.approx(expected, rel=1e-5)

    value.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        clear = parameter.grad.abs() > 1e-5  # below that Adam's epsilon shortens the step
        moved = (made.state[name] - parameter.detach())[clear]
        torch.testing.assert_close(moved, -1e-4 * parameter.grad.sign()[clear], rtol=0.01, atol=1e-7)


@pytest.mark.gpu
def test_training_on_a_gpu_is_training_on_the_cpu(manifest: Manifest, tmp_path: Path) -> None:
    """Losses to 1e-3 over a few steps: rounding differs, and a GPU may multiply with 10-bit mantissas (TF32)."""
    made = {device: train(NET, manifest, BRIEF, tmp_path / device, device=device) for device in ("cpu", "cuda")}
    for device, checkpoint in made.items():
        assert checkpoint.recipe["device"] == device
        assert {tensor.device.type for tensor in checkpoint.state.values()} == {"cpu"}
    losses = [[value for _, value in scalars(tmp_path / device)["train/loss"]] for device in made]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


# It repeats itself


def test_two_runs_of_one_seed_are_the_same_bytes_and_another_seed_is_not(manifest: Manifest, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(hash(name))  # the caller's numbers do not matter
        torch.rand(7)
        train(NET, manifest, replace(BRIEF, seed=seed), tmp_path / name)
    for file in ("model.safetensors", "recipe.json"):
        first, again, other = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert first == again
        assert first != other


def test_the_callers_random_numbers_are_left_alone(manifest: Manifest) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train(NET, manifest, BRIEF)
    assert torch.equal(torch.rand(1), expected)


def test_how_often_it_logs_does_not_change_the_weights(manifest: Manifest, tmp_path: Path) -> None:
    a, b = (train(NET, manifest, replace(BRIEF, log_every=n), out) for n, out in ((1, tmp_path / "run"), (100, None)))
    assert weights_hash(a.state) == weights_hash(b.state)


# It writes down what it did


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [("cosine", 1e-3, 1e-3 * (0.01 + 0.99 * (1 + np.cos(np.pi * 6 / 7)) / 2)), ("constant", 1e-3, 1e-3)],
)
def test_tensorboard_holds_the_scalars(
    schedule: Literal["cosine", "constant"], first: float, last: float, manifest: Manifest, tmp_path: Path
) -> None:
    config = replace(BRIEF, steps=7, schedule=schedule, log_every=1)
    train(NET, manifest, config, tmp_path / "every")
    train(NET, manifest, replace(config, log_every=3), tmp_path / "third")
    every, third = scalars(tmp_path / "every"), scalars(tmp_path / "third")
    assert set(every) == set(third) == SCALARS
    for tag in SCALARS:
        assert [step for step, _ in every[tag]] == [1, 2, 3, 4, 5, 6, 7]
        assert [step for step, _ in third[tag]] == [3, 6, 7]  # and the last, wherever it falls
        assert all(value > 0 for _, value in every[tag])
    losses = [value for _, value in every["train/loss"]]
    means = [np.mean(losses[:3]), np.mean(losses[3:6]), losses[6]]
    assert [value for _, value in third["train/loss"]] == pytest.approx(means, rel=1e-5)
    rates = [value for _, value in every["train/rate"]]
    assert (rates[0], rates[-1]) == pytest.approx((first, last), rel=1e-5)
    assert rates == sorted(rates, reverse=True)


def test_the_recipe_says_everything(manifest: Manifest, tmp_path: Path) -> None:
    config = TrainConfig(steps=2, batch_size=3, crop=12, rate=2e-3, schedule="constant", loss="mse", seed=4)
    made = train(NET, manifest, config, tmp_path / "run")
    record = read_recipe(tmp_path / "run")
    beside = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert beside.pop("checksum") and beside == record
    assert record == {"format": 1, "arch": NET, "weights": weights_hash(made.state), "training": made.recipe}
    expected = {
        "manifest",
        "config",
        "steps",
        "init",
        "teacher",
        "dual_init",
        "lr",
        "validation",
        "code",
        "last",
        "best",
        "device",
    }
    expected |= {"versions", "processes"}
    assert made.recipe.keys() == expected
    assert made.recipe["config"] == {**asdict(config), "milestones": [], "hfen": 0}
    assert made.recipe["manifest"]["patches"] == len(manifest)
    assert made.recipe["manifest"]["digest"] == manifest.digest()
    assert made.recipe["manifest"]["recipe"] == json.loads(manifest.recipe.model_dump_json())
    assert made.recipe["manifest"]["recipe"]["store"]["digest"] == manifest.store().digest()
    assert (made.recipe["init"], made.recipe["device"]) == (None, "cpu")
    assert made.recipe["versions"]["torch"] == torch.__version__
    assert made.recipe["versions"]["python"] == platform.python_version()
    loaded = Checkpoint.load(tmp_path / "run")
    assert loaded.arch == plugins.parse("archs", NET)
    assert distance(loaded.state, made.state) == 0


def test_without_a_folder_nothing_is_written(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(NET, manifest, BRIEF)
    assert list(tmp_path.iterdir()) == []


def test_a_perfect_psnr_can_be_written_down(tmp_path: Path) -> None:
    """Flat photographs and a network that copies: the error is 0, its PSNR infinite, and JSON has no word for that."""
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (48, 48), (90, 100, 110)).save(tmp_path / "photos" / "flat.png")
    ingest([tmp_path / "photos"], tmp_path / "store", patch=24)
    train(Probe(), select(tmp_path / "store", "random"), BRIEF, tmp_path / "run")
    assert read_recipe(tmp_path / "run")["training"]["last"] == {"loss": 0, "psnr": 100}


def test_progress_is_told_of_every_step(manifest: Manifest) -> None:
    calls: list[tuple[int, int, str]] = []
    config = replace(BRIEF, steps=12)
    train(NET, manifest, config, progress=lambda done, total, note="": calls.append((done, total, note)))
    assert [call[:2] for call in calls] == [(step, 12) for step in range(1, 13)]
    assert "dB" in calls[-1][2]


@pytest.mark.parametrize("holds", ["model", "another file's model", "a file"])
def test_a_folder_that_holds_a_model_is_refused_and_untouched(holds: str, manifest: Manifest, tmp_path: Path) -> None:
    run = tmp_path / "run"
    if holds == "model":
        train(NET, manifest, BRIEF, run)
    elif holds == "a file":
        run.write_text("mine")
    else:
        run.mkdir()
        (run / "best.safetensors").write_bytes(b"weights")

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = content()
    message = refusal(UsageError, lambda: train(NET, manifest, replace(BRIEF, seed=9), run))
    assert "name another folder with -o" in message
    assert holds != "model" or "trained with seed 0, not 9" in message
    assert content() == before


def test_a_folder_of_other_things_takes_a_run(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    train(NET, manifest, BRIEF, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert Checkpoint.load(tmp_path).arch == plugins.parse("archs", NET)


# What it starts from


@pytest.mark.parametrize("form", ["checkpoint", "folder", "file"])
@pytest.mark.parametrize("arch", ["fsrcnn:scale={},d=6,s=3,m=1", "srcnn:scale={},kernel=9-1-5"])
def test_training_starts_from_the_weights_of_another_scale(
    form: str, arch: str, manifest: Manifest, tmp_path: Path
) -> None:
    start = Checkpoint(plugins.parse("archs", arch.format(2)), fresh(arch.format(2), seed=8).state_dict(), {})
    start.save(tmp_path / "x2")
    init = {"checkpoint": start, "folder": tmp_path / "x2", "file": str(tmp_path / "x2" / "model.safetensors")}[form]
    config = TrainConfig(steps=1, batch_size=1, crop=12, rate=1e-9)  # hardly moves
    made = train(arch.format(3), manifest, config, init=init)
    assert made.arch == plugins.parse("archs", arch.format(3))
    assert distance(made.state, start.state) < 1e-7
    assert distance(made.state, fresh(arch.format(3)).state_dict()) > 1e-2
    assert made.recipe["init"] == {"arch": arch.format(2).replace("scale=2,", ""), "weights": weights_hash(start.state)}


def test_the_weights_that_training_starts_from_are_not_changed(manifest: Manifest) -> None:
    start = Checkpoint(plugins.parse("archs", NET), fresh(NET, seed=8).state_dict(), {})
    before = weights_hash(start.state)
    made = train(NET, manifest, BRIEF, init=start)
    assert weights_hash(start.state) == before != weights_hash(made.state)


@pytest.mark.parametrize("other", ["srcnn:kernel=9-1-5", "fsrcnn:d=7,s=3,m=1", "fsrcnn:d=6,s=3,m=2"])
def test_weights_of_another_network_are_refused(other: str, manifest: Manifest, tmp_path: Path) -> None:
    start = Checkpoint(plugins.parse("archs", other), fresh(other).state_dict(), {})
    message = refusal(UsageError, lambda: train(NET, manifest, BRIEF, tmp_path / "run", init=start))
    assert message == f"the weights of {other} do not fit {NET.replace('scale=2,', '')}"
    assert not (tmp_path / "run" / "model.safetensors").exists()


# Weights of the manifest


@pytest.mark.parametrize("loss", ["l1", "mse"])
def test_weights_scale_the_loss(loss: Literal["l1", "mse"], manifest: Manifest) -> None:
    config = replace(BRIEF, steps=1, loss=loss)
    losses = [train(NET, weighted(manifest, weight), config).recipe["last"]["loss"] for weight in (1, 2, 0.5, 0)]
    assert losses == pytest.approx([losses[0] * factor for factor in (1, 2, 0.5, 0)])
    assert losses[0] > 0


def test_patches_of_weight_zero_leave_the_network_as_it_was(manifest: Manifest) -> None:
    made = train(NET, weighted(manifest, 0), BRIEF)
    assert distance(made.state, fresh(NET).state_dict()) == 0
    assert distance(train(NET, manifest, BRIEF).state, made.state) > 0


def test_a_patch_of_weight_zero_gives_no_gradient_among_others(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = list(islice(batches(manifest, scale=2, crop=12, batch_size=4), 3))

    def with_second(replaced: Callable[[Tensor], Tensor], weight: float) -> dict[str, Tensor]:
        def feed(*_: object, **__: object) -> Iterator[Batch]:
            for batch in real:
                lr_BCHW, hr_BCHW, weight_B, seed_B = (tensor.clone() for tensor in batch[:4])
                lr_BCHW[1], hr_BCHW[1], weight_B[1] = replaced(lr_BCHW[1]), replaced(hr_BCHW[1]), weight
                yield Batch(lr_BCHW, hr_BCHW, weight_B, seed_B)

        monkeypatch.setattr("curate.training.batches", feed)
        return train(NET, manifest, BRIEF).state

    seen = [with_second(change, 0) for change in (torch.clone, torch.zeros_like, lambda image: 1 - image)]
    assert distance(seen[0], seen[1]) < 1e-7 and distance(seen[0], seen[2]) < 1e-7
    assert distance(with_second(torch.clone, 1), with_second(torch.zeros_like, 1)) > 1e-5


# What goes wrong


@pytest.mark.parametrize("kind", ["nan", "inf"])
@pytest.mark.parametrize(("after", "log_every", "found_at"), [(0, 1, 1), (4, 2, 6), (9, 3, 10), (5, 100, 10)])
def test_a_loss_that_is_not_finite_stops_and_leaves_no_model(
    kind: Literal["nan", "inf"], after: int, log_every: int, found_at: int, manifest: Manifest, tmp_path: Path
) -> None:
    config = replace(BRIEF, steps=10, log_every=log_every)
    probe = Probe(kind=kind, after=after)
    message = refusal(DataError, lambda: train(probe, manifest, config, tmp_path / "run"))
    assert f"at step {found_at}: train with a smaller --rate" in message
    assert [path.name for path in (tmp_path / "run").iterdir() if "tfevents" not in path.name] == []
    logged = scalars(tmp_path / "run").get("train/loss", [])  # the curve up to there is what one wants to see
    assert [step for step, _ in logged] == [step for step in range(1, after + 1) if step % log_every == 0]
    assert all(isfinite(value) for _, value in logged)
    train(NET, manifest, config, tmp_path / "run")  # the folder can be used again


def test_weights_that_are_not_finite_after_the_last_step_are_not_saved(manifest: Manifest, tmp_path: Path) -> None:
    config = replace(BRIEF, steps=2)
    probe = Probe(kind="steep", after=1)
    message = refusal(DataError, lambda: train(probe, manifest, config, tmp_path / "run"))
    assert "not finite" in message and "--rate" in message
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"crop": 36}, {}, "a crop of 36 px on the x2 grid does not fit into windows of 24 px"),
        ({"crop": 13}, {}, "a crop should be a multiple of the scale 2"),
        ({}, {"device": "abacus"}, "no device 'abacus' here"),
        ({}, {"arch": "resnet"}, "no 'resnet' in curate.archs"),
        ({}, {"init": "nowhere"}, "no checkpoint 'nowhere'"),
        ({}, {"out": "s3://key:secret@bucket/run"}, "a run should be a URL without credentials"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    changes: dict[str, Any], options: dict[str, Any], reason: str, manifest: Manifest, tmp_path: Path
) -> None:
    given = {"arch": NET, "manifest": manifest, "config": replace(BRIEF, **changes), "out": tmp_path / "run"} | options
    assert reason in refusal(UsageError, lambda: train(**given))
    assert list(tmp_path.rglob("*.safetensors")) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"steps": 0}, "steps should be 1 or more, found 0"),
        ({"batch_size": 0}, "batch_size should be 1 or more, found 0"),
        ({"log_every": 0}, "log_every should be 1 or more, found 0"),
        ({"seed": -1}, "seed should be 0 or more, found -1"),
        ({"rate": 0.0}, "rate should be above 0 and below 1, found 0.0"),
        ({"rate": 1.5}, "found 1.5"),
        ({"rate": float("nan")}, "found nan"),
    ],
)
def test_numbers_out_of_range_are_one_line(options: dict[str, Any], reason: str) -> None:
    assert reason in refusal(UsageError, lambda: TrainConfig(**{"steps": 1} | options))


def test_a_store_that_moved_is_found_where_one_says(manifest: Manifest, tmp_path: Path) -> None:
    shutil.copytree(manifest.store().path, tmp_path / "moved")
    lost = replace(manifest, path=tmp_path / "elsewhere" / "all.parquet")
    assert "name it with --store PATH" in refusal(UsageError, lambda: train(NET, lost, BRIEF))
    found = train(NET, lost, BRIEF, store=tmp_path / "moved")
    assert weights_hash(found.state) == weights_hash(train(NET, manifest, BRIEF).state)


def test_srcnn_trains_too(manifest: Manifest) -> None:
    made = train(Srcnn(kernel="9-1-5"), manifest, BRIEF)
    assert 15 < made.recipe["last"]["psnr"] < 60  # it begins at the bicubic's
