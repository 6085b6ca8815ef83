"""A run that is killed goes on: the same losses, the same bytes as if nothing had happened."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import BRIEF, NET, distance, refusal, scalars
from torch import Tensor
from warm import Warm

from curate import files, stopping, training
from curate.checkpoint import Checkpoint, check, weights_hash
from curate.config import TrainConfig
from curate.errors import CurateError, DataError, UsageError
from curate.ingestion import ingest
from curate.manifest import Manifest
from curate.resume import STATE_FILE, problems
from curate.selection import select
from curate.training import train

STEPS = 9
CONFIG = TrainConfig(steps=STEPS, batch_size=4, crop=12, log_every=4, save_every=3)
SWINIR = "swinir:scale=2,embed=12,groups=1,blocks=2,heads=2,drop_path=0.5"
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": (NET, {}),
    "soap": (NET, {"optimizer": "soap", "warmup": 3}),
    "everything": (
        NET,
        {
            "optimizer": "adamw",
            "weight_decay": 0.1,
            "schedule": "multistep",
            "milestones": (2, 5),
            "loss": "charbonnier",
            "hfen": 0.2,
            "ema": 0.7,
            "clip": 0.5,
            "accumulate": 2,
            "precision": "bf16",
        },
    ),
    "stochastic depth": (SWINIR, {}),
    "degradations": (NET, {"degrade": "second_order", "crop": 24}),
}


class Killed(BaseException):
    """Not an Exception: nobody may catch it."""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Manifest:
    folder = tmp_path_factory.mktemp("resume")
    ingest([write_photos(folder / "photos", [(60, 72), (49, 50)])], folder / "store", patch=24, step=12)
    return select(folder / "store", "random", keep=1).save(folder / "all.parquet")


@pytest.fixture
def kill_in_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the next run die in its n-th step, counted from 1 in this process; 0 heals it."""
    real = training._loss
    left = 0

    def deadly(*arguments: Any) -> tuple[Tensor, Tensor]:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(training, "_loss", deadly)

    def arm(step: int) -> None:
        nonlocal left
        left = step

    return arm


def curve(run: Path) -> list[tuple[int, float]]:
    return scalars(run)["train/loss"]


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    name: str, manifest: Manifest, tmp_path: Path, kill_in_step: Callable[[int], None]
) -> None:
    arch, options = RUNS[name]
    config = replace(CONFIG, **options)
    parts = config.accumulate
    train(arch, manifest, config, tmp_path / "whole")
    for step in (2, 4, 6, 8):
        run = tmp_path / f"killed-{step}"
        kill_in_step(step * parts)
        with pytest.raises(Killed):
            train(arch, manifest, config, run)
        assert (run / STATE_FILE).exists() == (step > 3)
        assert not (run / "model.safetensors").exists()
        kill_in_step(2)
        with pytest.raises(Killed):  # and once more, on its way
            train(arch, manifest, config, run)
        kill_in_step(0)
        train(arch, manifest, config, run)
        assert not (run / STATE_FILE).exists()
        for file in ("model.safetensors", "recipe.json"):
            assert (run / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
        assert curve(run) == curve(tmp_path / "whole")


@pytest.mark.parametrize("step", [1, 4, 7, STEPS])
def test_a_stopped_run_has_its_state_of_the_step_that_it_was_in(
    step: int, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C loses no step, though a state is saved every thousand alone."""
    config = replace(CONFIG, save_every=1000)
    train(NET, manifest, config, tmp_path / "whole")
    monkeypatch.setattr(stopping, "_caught", [])
    monkeypatch.setattr(stopping, "_kept", stopping._kept)
    monkeypatch.setattr(stopping.threading, "Timer", lambda seconds, function: threading.Thread())
    told: list[tuple[int, str]] = []

    def stop(done: int, total: int, note: str = "") -> None:
        told.append((done, note))
        if done == step:
            stopping._stop(signal.SIGINT, None)

    with pytest.raises(stopping.Stopped):
        train(NET, manifest, config, tmp_path / "run", progress=stop)
    assert not stopping._deferring
    saved = f"step {step} of {STEPS} is saved" if step < STEPS else "what is finished is kept"
    assert stopping.line() == f"stopped by SIGINT; {saved}, and the same command goes on"
    assert told[-1][0] == step
    stopping._caught.clear()
    again: list[tuple[int, str]] = []
    train(NET, manifest, config, tmp_path / "run", progress=lambda done, total, note="": again.append((done, note)))
    ended = [(step, "going on"), *((left, "") for left in range(step + 1, STEPS + 1))] if step < STEPS else []
    assert [done for done, _ in again] == [done for done, _ in ended]
    assert again[:1] == ended[:1]
    for name in ("model.safetensors", "recipe.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_resumed_run_takes_only_the_steps_that_are_left(
    manifest: Manifest, tmp_path: Path, kill_in_step: Callable[[int], None]
) -> None:
    kill_in_step(8)
    with pytest.raises(Killed):
        train(NET, manifest, CONFIG, tmp_path / "run")
    kill_in_step(4)  # 6 are in the state: 3 are left
    train(NET, manifest, CONFIG, tmp_path / "run")


def test_the_best_validation_outlives_a_kill(
    manifest: Manifest, photo_folder: Path, tmp_path: Path, kill_in_step: Callable[[int], None]
) -> None:
    config = replace(CONFIG, validate_every=2, rate=0.03)
    whole = train(NET, manifest, config, tmp_path / "whole", validate=photo_folder)
    kill_in_step(6)
    with pytest.raises(Killed):
        train(NET, manifest, config, tmp_path / "run", validate=photo_folder)
    kill_in_step(0)
    resumed = train(NET, manifest, config, tmp_path / "run", validate=photo_folder)
    assert resumed.recipe == whole.recipe
    best = [tmp_path / run / "best" / "model.safetensors" for run in ("whole", "run")]
    assert best[0].read_bytes() == best[1].read_bytes()
    assert scalars(tmp_path / "run")["val/psnr"] == scalars(tmp_path / "whole")["val/psnr"]


def test_sigkill_from_outside(warm: Warm, manifest: Manifest, tmp_path: Path) -> None:
    """The command, killed by the operating system, and given again."""
    command = ["train", str(manifest.path), "--arch", NET, "--steps", "120", "--batch-size", "4", "--crop", "12"]
    command += ["--log-every", "10", "--save-every", "20", "-o"]
    run = tmp_path / "run"
    killed = warm.start(*command, run)
    deadline = time.monotonic() + 60
    while not (run / STATE_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.end().code == -signal.SIGKILL
    assert (run / STATE_FILE).exists() and not (run / "model.safetensors").exists()
    for folder in (run, tmp_path / "whole"):
        assert warm.run(*command, folder).code == 0
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert curve(run) == curve(tmp_path / "whole")


def test_a_run_that_was_killed_while_it_was_ending_is_ended_by_the_next(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = tmp_path / "run", replace(BRIEF, save_every=1)
    train(NET, manifest, config, tmp_path / "whole")
    real = training._end

    def dying(folder: Path, made: Checkpoint) -> None:
        state = (folder / STATE_FILE).read_bytes()
        real(folder, made)
        (folder / STATE_FILE).write_bytes(state)
        (folder / "recipe.json").unlink()
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "_end", dying)
        train(NET, manifest, config, run)
    train(NET, manifest, config, run)
    assert not (run / STATE_FILE).exists()
    assert (run / "recipe.json").read_bytes() == (tmp_path / "whole" / "recipe.json").read_bytes()


def test_what_another_has_trained_meanwhile_is_not_written_over(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beaten(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(training, "batches", batches)
        train(NET, manifest, replace(BRIEF, seed=1), tmp_path / "run")
        return batches(*arguments, **options)

    batches = training.batches
    monkeypatch.setattr(training, "batches", beaten)
    with pytest.raises(CurateError, match=r"another curate has trained in .* meanwhile"):
        train(NET, manifest, BRIEF, tmp_path / "run")
    assert Checkpoint.load(tmp_path / "run").recipe["config"]["seed"] == 1


# What it goes on with, and what not


def test_a_finished_run_is_returned_as_it_is(
    manifest: Manifest, tmp_path: Path, kill_in_step: Callable[[int], None]
) -> None:
    made = train(NET, manifest, BRIEF, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    kill_in_step(1)
    again = train(NET, manifest, replace(BRIEF, log_every=7, save_every=2), tmp_path / "run")
    assert distance(made.state, again.state) == 0 and again.recipe == made.recipe
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"rate": 2e-3}, "rate 0.001, not 0.002"),
        ({"seed": 4, "loss": "mse"}, "loss l1, not mse; seed 0, not 4"),
        ({"arch": "fsrcnn:d=7,s=3,m=1"}, "arch fsrcnn:scale=2,d=6,s=3,m=1, not fsrcnn:scale=2,d=7,s=3,m=1"),
    ],
)
def test_another_run_is_refused_and_the_difference_named(
    change: dict[str, Any],
    difference: str,
    ended: bool,
    manifest: Manifest,
    tmp_path: Path,
    kill_in_step: Callable[[int], None],
) -> None:
    if ended:
        train(NET, manifest, CONFIG, tmp_path / "run")
    else:
        kill_in_step(5)
        with pytest.raises(Killed):
            train(NET, manifest, CONFIG, tmp_path / "run")
    arch = change.pop("arch", NET)
    message = refusal(UsageError, lambda: train(arch, manifest, replace(CONFIG, **change), tmp_path / "run"))
    assert difference in message and "name another folder with -o" in message
    change["arch"] = arch


def test_another_manifest_or_start_is_another_run(manifest: Manifest, tmp_path: Path) -> None:
    made = train(NET, manifest, BRIEF, tmp_path / "run")
    half = select(manifest.store(), "random", keep=0.5)
    assert "manifest" in refusal(UsageError, lambda: train(NET, half, BRIEF, tmp_path / "run"))
    assert "no init" in refusal(UsageError, lambda: train(NET, manifest, BRIEF, tmp_path / "run", init=made))


@pytest.mark.parametrize("damage", ["cut", "noise", "no record"])
def test_a_damaged_state_is_one_line(
    damage: str, manifest: Manifest, tmp_path: Path, kill_in_step: Callable[[int], None]
) -> None:
    kill_in_step(5)
    with pytest.raises(Killed):
        train(NET, manifest, CONFIG, tmp_path)
    file = tmp_path / STATE_FILE
    content = file.read_bytes()
    if damage == "no record":
        from safetensors.torch import save

        content = save({"a": torch.zeros(1)})
    file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"\0" * 100 if damage == "noise" else content)
    assert STATE_FILE in refusal(DataError, lambda: train(NET, manifest, CONFIG, tmp_path))


def test_two_trainings_do_not_share_a_folder(manifest: Manifest, tmp_path: Path) -> None:
    with files.lock(tmp_path):
        assert "another curate is writing" in refusal(CurateError, lambda: train(NET, manifest, CONFIG, tmp_path))


def test_the_number_of_threads_that_decode_does_not_matter(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for workers in (1, 5):
        monkeypatch.setattr("curate.pool.workers", lambda number=workers: number)
        made.append(weights_hash(train(NET, manifest, CONFIG).state))
    assert made[0] == made[1]


def test_every_flipped_bit_of_a_state_is_found_and_never_gone_on_with(
    manifest: Manifest, tmp_path: Path, kill_in_step: Callable[[int], None]
) -> None:
    kill_in_step(5)
    with pytest.raises(Killed):
        train(NET, manifest, CONFIG, tmp_path)
    kill_in_step(0)
    data = (tmp_path / STATE_FILE).read_bytes()
    assert problems(tmp_path) == [] and check(tmp_path) == ([tmp_path / STATE_FILE], [])
    header = 8 * (8 + int.from_bytes(data[:8], "little"))
    for bit in [*range(64, header, header // 12), *range(header, 8 * len(data), 2 * len(data))]:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / STATE_FILE).write_bytes(changed)
        assert len(problems(tmp_path)) == len(check(tmp_path)[1]) == 1, bit
    assert "damaged" in refusal(DataError, lambda: train(NET, manifest, CONFIG, tmp_path))
    (tmp_path / STATE_FILE).write_bytes(data)
    train(NET, manifest, CONFIG, tmp_path)
