"""What each option of training does, against the same by hand."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from test_training import BRIEF, NET, Probe, distance, fresh, refusal, scalars
from torch import nn

from curate import plugins
from curate.checkpoint import Checkpoint
from curate.config import TrainConfig
from curate.degrade import Degradation
from curate.errors import UsageError
from curate.evaluation import averages, evaluate
from curate.ingestion import ingest
from curate.loader import batches
from curate.manifest import Manifest
from curate.metrics import rgb_to_y
from curate.selection import select
from curate.training import train

STEADY = replace(BRIEF, schedule="constant")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Manifest:
    folder = tmp_path_factory.mktemp("options")
    ingest([write_photos(folder / "photos", [(60, 72), (49, 50)])], folder / "store", patch=24, step=12)
    return select(folder / "store", "random", keep=1).save(folder / "all.parquet")


# When it stops


@pytest.mark.parametrize(("epochs", "batch_size"), [(1, 4), (0.5, 7), (2, 16)])
def test_epochs_are_of_the_full_set_however_few_patches_are_chosen(
    epochs: float, batch_size: int, manifest: Manifest
) -> None:
    config = TrainConfig(epochs=epochs, batch_size=batch_size, crop=12)
    patches = manifest.recipe.counts["patches"]
    for keep in (1, 0.25):
        chosen = select(manifest.store(), "random", keep=keep)
        assert train(NET, chosen, config).recipe["steps"] == ceil(epochs * patches / batch_size)


def test_epochs_are_the_steps_that_they_say(manifest: Manifest) -> None:
    by_epochs = train(NET, manifest, TrainConfig(epochs=1, batch_size=8, crop=12))
    by_steps = train(NET, manifest, TrainConfig(steps=by_epochs.recipe["steps"], batch_size=8, crop=12))
    assert distance(by_epochs.state, by_steps.state) == 0


# The weights that it gives


def test_the_running_mean_is_the_result(manifest: Manifest) -> None:
    one, two, three = (train(NET, manifest, replace(STEADY, steps=n)).state for n in (1, 2, 3))
    mean = train(NET, manifest, replace(STEADY, steps=3, ema=0.6)).state
    for name, tensor in mean.items():
        by_hand = 0.6 * (0.6 * one[name] + 0.4 * two[name]) + 0.4 * three[name]
        torch.testing.assert_close(tensor, by_hand, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_the_batch(parts: int, manifest: Manifest) -> None:
    whole, cut = (train(NET, manifest, replace(BRIEF, accumulate=n)) for n in (1, parts))
    assert distance(whole.state, cut.state) < 1e-6
    assert cut.recipe["last"] == pytest.approx(whole.recipe["last"], rel=1e-4)


def test_clipping_bounds_the_gradient(manifest: Manifest) -> None:
    """Below Adam's epsilon (1e-8) a gradient hardly moves anything; unclipped, each weight moves by about the rate."""
    start = fresh(NET).state_dict()
    moved = [
        distance(train(NET, manifest, replace(STEADY, steps=1, clip=clip)).state, start) for clip in (0, 1e-12, 1e9)
    ]
    assert moved[1] < 1e-3 * moved[0]
    assert moved[2] == moved[0]


def test_charbonnier_is_its_formula(manifest: Manifest) -> None:
    """Its epsilon is 1e-3 of white, whatever the network's range: a Probe's white is 255."""
    made = train(Probe(), manifest, replace(BRIEF, steps=1, loss="charbonnier", seed=3))
    lr_BCHW, hr_BCHW, _, _ = next(batches(manifest, scale=2, crop=12, batch_size=4, seed=3))
    error = 255 * (nn.functional.interpolate(lr_BCHW, scale_factor=2, mode="nearest") - hr_BCHW)
    assert made.recipe["last"]["loss"] == pytest.approx(float((error**2 + 0.255**2).sqrt().mean()), rel=1e-5)


# The rate


def rates(manifest: Manifest, run: Path, **options: Any) -> list[float]:
    train(NET, manifest, replace(BRIEF, steps=8, log_every=1, **options), run)
    return [value for _, value in scalars(run)["train/rate"]]


def test_multistep_falls_after_its_milestones(manifest: Manifest, tmp_path: Path) -> None:
    found = rates(manifest, tmp_path, schedule="multistep", milestones=(2, 5), gamma=0.1)
    assert found == pytest.approx([1e-3] * 2 + [1e-4] * 3 + [1e-5] * 3)


def test_warmup_rises_in_equal_parts(manifest: Manifest, tmp_path: Path) -> None:
    found = rates(manifest, tmp_path, schedule="constant", warmup=4)
    assert found == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4] + [1e-3] * 4)


# Where it starts


def test_another_scale_starts_with_all_but_the_upsampler(manifest: Manifest) -> None:
    slow = replace(BRIEF, steps=1, rate=1e-9)
    small = "edsr:scale={},features=8,blocks=1"
    before = Checkpoint(plugins.parse("archs", small.format(2)), fresh(small.format(2), seed=5).state_dict(), {})
    for scale in (3, 4):
        made = train(small.format(scale), manifest, replace(slow, crop=12), init=before)
        plain = fresh(small.format(scale)).state_dict()
        taken = {n for n, t in made.state.items() if n in before.state and before.state[n].shape == t.shape}
        own = made.state.keys() - taken
        assert any(name.startswith("body") for name in taken)
        assert own and all(name.startswith("upsample") for name in own)
        for name, tensor in made.state.items():
            torch.testing.assert_close(tensor, before.state[name] if name in taken else plain[name], atol=1e-7, rtol=0)


def test_another_network_s_fitting_layers_are_not_taken(manifest: Manifest) -> None:
    wide = "edsr:features=8,blocks=2"
    before = Checkpoint(plugins.parse("archs", wide), fresh(wide).state_dict(), {})
    refused = refusal(UsageError, lambda: train("edsr:features=8,blocks=1", manifest, BRIEF, init=before))
    assert "do not fit" in refused


# What it sees


def test_degradations_are_drawn_from_each_sample_s_own_seed(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    real = Degradation.__call__

    def watched(self: Degradation, image_BCHW: torch.Tensor, seeds_B: list[int]) -> torch.Tensor:
        seen.append(list(seeds_B))
        return real(self, image_BCHW, seeds_B)

    monkeypatch.setattr(Degradation, "__call__", watched)
    train(NET, manifest, replace(BRIEF, degrade="second_order", crop=24, accumulate=2))
    expected = [
        b.seed_B.tolist() for b, _ in zip(batches(manifest, scale=2, crop=24, batch_size=4), range(3), strict=False)
    ]
    assert [a + b for a, b in zip(seen[::2], seen[1::2], strict=True)] == expected
    assert len({seed for seeds in expected for seed in seeds}) == 12


def test_bicubic_is_the_store_s_own_lr(manifest: Manifest) -> None:
    """Not made again from the crop, whose borders would be wrong."""
    config = replace(BRIEF, steps=1, rate=1e-9)
    lr_BCHW, hr_BCHW, _, _ = next(batches(manifest, scale=2, crop=12, batch_size=4))
    loss = (fresh(NET)(rgb_to_y(lr_BCHW)) - rgb_to_y(hr_BCHW)).abs().mean()
    assert train(NET, manifest, config).recipe["last"]["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_a_degradation_that_does_not_exist_is_one_line(manifest: Manifest) -> None:
    assert "rain" in refusal(UsageError, lambda: train(NET, manifest, replace(BRIEF, degrade="rain")))


# While it runs


def test_the_best_checkpoint_is_kept(manifest: Manifest, photo_folder: Path, tmp_path: Path) -> None:
    config = replace(BRIEF, steps=12, rate=0.05, schedule="constant", validate_every=3, save_every=5)
    made = train(NET, manifest, config, tmp_path, validate=photo_folder)
    measured = scalars(tmp_path)["val/psnr"]
    assert [step for step, _ in measured] == [3, 6, 9, 12]
    step, decibel = max(measured, key=lambda point: point[1])
    best = Checkpoint.load(tmp_path / "best")
    assert made.recipe["best"] == best.recipe["best"]
    assert (made.recipe["best"]["step"], made.recipe["best"]["psnr"]) == (step, pytest.approx(decibel, abs=1e-4))
    assert averages(evaluate(best, photo_folder))["psnr"] == pytest.approx(decibel, abs=1e-4)
    last = averages(evaluate(made, photo_folder))
    assert {"psnr": measured[-1][1], "ssim": scalars(tmp_path)["val/ssim"][-1][1]} == pytest.approx(last, abs=1e-4)


def test_validation_does_not_change_the_training(manifest: Manifest, photo_folder: Path) -> None:
    a, b = (train(NET, manifest, BRIEF, validate=folder) for folder in (None, photo_folder))
    assert distance(a.state, b.state) == 0
    assert (a.recipe["best"], b.recipe["best"]["step"]) == (None, 3)


def test_the_running_mean_is_what_is_validated(manifest: Manifest, photo_folder: Path) -> None:
    made = train(NET, manifest, replace(BRIEF, rate=0.02, ema=0.9), validate=photo_folder)
    assert averages(evaluate(made, photo_folder)) == pytest.approx(
        {name: made.recipe["best"][name] for name in ("psnr", "ssim")}
    )


def test_curves_go_to_weights_and_biases_too(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    started: list[dict[str, Any]] = []
    run = SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda: logged.append((-1, {}))
    )
    fake = ModuleType("wandb")
    fake.init = lambda **options: started.append(options) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train(NET, manifest, BRIEF, tmp_path / "run", wandb="my-project")
    assert (started[0]["project"], started[0]["name"], started[0]["resume"]) == ("my-project", "run", "allow")
    assert started[0]["config"]["rate"] == BRIEF.rate
    assert [step for step, _ in logged] == [1, 2, 3, -1]
    assert logged[0][1]["train/loss"] == pytest.approx(scalars(tmp_path / "run")["train/loss"][0][1])


def test_weights_and_biases_not_installed_is_one_line(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "pip install 'curate[wandb]'" in refusal(UsageError, lambda: train(NET, manifest, BRIEF, wandb="p"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecates
def test_compiled_training_is_training(manifest: Manifest) -> None:
    """Slow: a compiler runs for half a minute. Rounding differs where operations are fused."""
    plain, compiled = (train(NET, manifest, replace(BRIEF, compile=on)) for on in (False, True))
    assert distance(plain.state, compiled.state) < 1e-4
    assert compiled.state.keys() == plain.state.keys()


# Several processes


@pytest.mark.parametrize("options", [["--accumulate", "2", "--ema", "0.9"]])
def test_two_processes_train_as_one(options: list[str], manifest: Manifest, tmp_path: Path) -> None:
    command = [
        "train",
        str(manifest.path),
        "--arch",
        NET,
        "--steps",
        "6",
        "--batch-size",
        "8",
        "--crop",
        "12",
        *options,
    ]
    curate = str(Path(sys.executable).with_name("curate"))
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", curate]
    printed = []
    for name, launch in (("one", [curate]), ("two", two)):
        done = subprocess.run([*launch, *command, "-o", str(tmp_path / name)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.replace(str(tmp_path / name), ""))
    one, both = (Checkpoint.load(tmp_path / name) for name in ("one", "two"))
    assert (one.recipe["processes"], both.recipe["processes"]) == (1, 2)
    assert distance(one.state, both.state) < 1e-6
    assert both.recipe["last"] == pytest.approx(one.recipe["last"], rel=1e-4)
    assert printed[0] == printed[1]  # one of them speaks


def test_one_device_for_several_processes_is_refused(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr("curate.processes.pick_device", lambda name: torch.device(name))
    message = refusal(UsageError, lambda: train(NET, manifest, BRIEF, device="cuda:1"))
    assert "each process has its own device" in message


def test_a_batch_that_cannot_be_shared_is_one_line(manifest: Manifest) -> None:
    message = refusal(UsageError, lambda: batches(manifest, scale=2, crop=12, batch_size=4, share=(0, 3)))
    assert "a batch of 4 cannot be shared among 3 processes" in message


def test_shares_make_up_the_batch(manifest: Manifest) -> None:
    for start in (0, 5):
        whole = next(batches(manifest, scale=2, crop=12, batch_size=6, start=start))
        parts = [next(batches(manifest, scale=2, crop=12, batch_size=6, start=start, share=(i, 3))) for i in range(3)]
        for field in range(4):
            assert torch.equal(whole[field], torch.cat([part[field] for part in parts]))
