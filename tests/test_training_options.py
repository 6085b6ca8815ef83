"""What each option of training does, against the same by hand."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_training import BRIEF, NET, Probe, distance, fresh, refusal, scalars, weighted
from torch import nn

from curate import dual, plugins
from curate.archs.dlsr import Dlsr
from curate.checkpoint import Checkpoint
from curate.config import TrainConfig
from curate.degrade import Degradation
from curate.errors import UsageError
from curate.evaluation import averages, evaluate
from curate.genotype import Genotype
from curate.ingestion import ingest
from curate.loader import batches
from curate.losses import hfen
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


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Manifest:
    """Of windows that hold DLSR's crops."""
    folder = tmp_path_factory.mktemp("large")
    ingest([write_photos(folder / "photos", [(60, 72), (60, 60)])], folder / "store", patch=60, step=12)
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
    lr_BCHW, hr_BCHW, *_ = next(batches(manifest, scale=2, crop=12, batch_size=4, seed=3))
    error = 255 * (nn.functional.interpolate(lr_BCHW, scale_factor=2, mode="nearest") - hr_BCHW)
    assert made.recipe["last"]["loss"] == pytest.approx(float((error**2 + 0.255**2).sqrt().mean()), rel=1e-5)


@pytest.mark.parametrize("loss", ["l1", "mse"])
@pytest.mark.parametrize("arch", [plugins.parse("archs", NET), Probe()], ids=plugins.spec_of)
def test_hfen_stands_beside_the_pixel_loss(arch: Any, loss: Any, manifest: Manifest) -> None:
    """One step by hand: each sample's two losses times its weight, HFEN in the network's range, and Adam's step."""
    weights = np.linspace(0.5, 1.5, len(manifest), dtype=np.float32)
    config = replace(STEADY, steps=1, loss=loss, rate=1e-4, seed=3)
    made = train(arch, weighted(manifest, weights), replace(config, hfen=20.0))

    batch = next(batches(weighted(manifest, weights), scale=2, crop=12, batch_size=4, seed=3))
    assert len(set(batch.weight_B.tolist())) > 1
    luma = arch.colour == "y"
    lr_BCHW, hr_BCHW = (arch.peak * (rgb_to_y(i) if luma else i) for i in (batch.lr_BCHW, batch.hr_BCHW))
    net = fresh(arch, seed=3)
    sr_BCHW = net(lr_BCHW)
    error_BCHW = sr_BCHW - hr_BCHW
    pixels_B = (error_BCHW.abs() if loss == "l1" else error_BCHW**2).mean(dim=(1, 2, 3))
    value = ((pixels_B + 20 * arch.peak / 255 * hfen(sr_BCHW, hr_BCHW)) * batch.weight_B).mean()
    assert made.recipe["last"]["loss"] == pytest.approx(value.item(), rel=1e-5)

    value.backward()
    for name, parameter in net.named_parameters():
        clear = parameter.grad.abs() > 1e-4  # below that Adam's epsilon shortens the step
        moved = (made.state[name] - parameter.detach())[clear]
        torch.testing.assert_close(moved, -1e-4 * parameter.grad.sign()[clear], rtol=0.01, atol=1e-7)
    if arch.colour == "y":  # a Probe has one weight, a shift, of which high frequencies know nothing but the border
        assert distance(made.state, train(arch, weighted(manifest, weights), config).state) > 0


def test_a_network_s_own_hfen_is_the_default(manifest: Manifest, large: Manifest) -> None:
    """0.2 of DLSR, 0 of others; a checkpoint says which it was."""
    small = Dlsr(features=4)
    config = replace(STEADY, steps=1, batch_size=2)
    own, same, none = (train(small, large, replace(config, crop=30, hfen=hfen)) for hfen in (None, 0.2, 0.0))
    assert distance(own.state, same.state) == 0
    assert own.recipe["last"]["loss"] == same.recipe["last"]["loss"] > none.recipe["last"]["loss"]
    assert [made.recipe["config"]["hfen"] for made in (own, same, none)] == [0.2, 0.2, 0.0]
    plain, zero = (train(NET, manifest, replace(config, hfen=hfen)) for hfen in (None, 0.0))
    assert distance(plain.state, zero.state) == 0 and plain.recipe["config"] == zero.recipe["config"]


def test_a_run_with_another_hfen_is_another_run(manifest: Manifest, tmp_path: Path) -> None:
    made = train(NET, manifest, replace(BRIEF, hfen=0.2), tmp_path)
    assert distance(train(NET, manifest, replace(BRIEF, hfen=0.2), tmp_path).state, made.state) == 0
    assert "hfen 0.2, not 0.0;" in refusal(UsageError, lambda: train(NET, manifest, BRIEF, tmp_path))


def test_hfen_is_of_full_precision(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of bf16 only the network's products are: losses get float32 images."""
    seen: list[torch.dtype] = []
    monkeypatch.setattr("curate.losses.hfen", lambda *images: seen.extend(i.dtype for i in images) or hfen(*images))
    train(NET, manifest, replace(STEADY, steps=1, hfen=0.2, precision="bf16"))
    assert seen == [torch.float32] * 2


@pytest.mark.parametrize(
    ("arch", "crop", "options", "reason"),
    [
        ("dlsr", 28, {}, "dlsr takes LR of 15 px or more a side: a crop should be 30 px or more, found 28, in LR 14"),
        ("dlsr:scale=3", 42, {}, "a crop should be 45 px or more, found 42, in LR 14"),
        (NET, 4, {"hfen": 0.2}, "a crop should be 6 px or more for HFEN, found 4; or train with --hfen 0"),
        ("fsrcnn:scale=3,d=6,s=3,m=1", 3, {"hfen": 0.2}, "a crop should be 6 px or more for HFEN, found 3"),
    ],
)
def test_crops_that_are_too_small_are_refused_before_anything_is_made(
    arch: str, crop: int, options: dict[str, Any], reason: str, manifest: Manifest, tmp_path: Path
) -> None:
    config = replace(BRIEF, crop=crop, **options)
    assert reason in refusal(UsageError, lambda: train(arch, manifest, config, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    if options:
        train(arch, manifest, replace(config, hfen=0.0, steps=1))


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


def test_dlsr_starts_from_another_scale_s_weights_also_of_a_genotype_file(large: Manifest, tmp_path: Path) -> None:
    Genotype.of(["conv_3x3", "dil_3x3", "conv_1x1"], [[1], [1, 3], [4], [2, 5]]).save(tmp_path / "genotype.json")
    named = str(tmp_path / "genotype.json")
    for genotype, scale in (("dlsr", 3), (named, 3), (named, 4)):
        before = Dlsr(scale=2, genotype=genotype, features=4)
        start = Checkpoint(before, fresh(before, seed=5).state_dict(), {})
        after = f"dlsr:scale={scale},features=4,genotype={genotype}"
        config = replace(BRIEF, steps=1, rate=1e-9, crop=15 * scale, batch_size=1)
        made = train(after, large, config, init=start)
        plain = fresh(after).state_dict()
        own = {name for name in made.state if name.startswith("upsampler.")}
        assert own and made.arch == replace(before, scale=scale)
        for name, tensor in made.state.items():
            expected = plain[name] if name in own else start.state[name]
            torch.testing.assert_close(tensor, expected, atol=1e-7, rtol=0)
    other = Checkpoint(Dlsr(features=4), fresh(Dlsr(features=4)).state_dict(), {})
    assert "do not fit" in refusal(UsageError, lambda: train(after, large, config, init=other))


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
    lr_BCHW, hr_BCHW, *_ = next(batches(manifest, scale=2, crop=12, batch_size=4))
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


@pytest.mark.parametrize("options", [["--accumulate", "2", "--ema", "0.9", "--dual", "0.1"]])
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
    alone, together = (dual.load(tmp_path / name, made) for name, made in (("one", one), ("two", both)))
    assert alone and together and distance(alone, together) < 1e-6
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
