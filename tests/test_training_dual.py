"""Training with the way back, at several sizes and after a teacher: what it learns, keeps, and goes on with."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_teacher import TINY
from test_training import NET, distance, fresh, refusal, scalars

from curate import dual, plugins, training
from curate.archs.drn import Drn
from curate.checkpoint import Checkpoint, read_recipe, weights_hash
from curate.config import TrainConfig
from curate.dual import DUAL_FILE, Regression, dual_networks
from curate.errors import DataError, UsageError
from curate.evaluation import averages, evaluate
from curate.ingestion import ingest
from curate.loader import batches
from curate.manifest import Manifest
from curate.objective import Objective
from curate.resume import STATE_FILE
from curate.selection import select
from curate.training import train
from curate.verification import verify

BRIEF = TrainConfig(steps=2, batch_size=2, crop=24, log_every=1, dual=0.1)
DRN = Drn(features=4, blocks=1)
EDSR = "edsr:scale=2,features=4,blocks=1"


class Killed(BaseException):
    """Not an Exception: nobody may catch it."""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Manifest:
    folder = tmp_path_factory.mktemp("dual")
    ingest([write_photos(folder / "photos", [(72, 84), (72, 72)])], folder / "store", patch=72, step=12)
    return select(folder / "store", "random", keep=1).save(folder / "all.parquet")


def duals(folder: Path, made: Checkpoint) -> dict[str, torch.Tensor]:
    found = dual.load(folder, made)
    assert found is not None
    return found


# What it learns


def test_the_first_step_of_several_sizes_is_what_it_says(manifest: Manifest, tmp_path: Path) -> None:
    """The network starts from the seed's own weights, the dual networks from what the generator gives after these."""
    config = replace(BRIEF, steps=1, rate=1e-4, seed=3)
    made = train(DRN, manifest, config, tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net, fresh_duals = DRN.build(), dual_networks(DRN)
    objective = Objective(DRN, dual=0.1)
    images = objective.images(next(batches(manifest, scale=4, crop=24, batch_size=2, seed=3, between=(4, 2))))
    answer = Regression(DRN, net, fresh_duals)(images.lr_BCHW)
    loss, parts = objective(answer, images), objective.parts(answer, images)
    assert made.recipe["last"]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert made.recipe["last"]["dual"] == pytest.approx(parts.dual_B.mean().item(), rel=1e-5)
    loss.backward()
    for module, state in ((net, made.state), (fresh_duals, duals(tmp_path, made))):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            clear = parameter.grad.abs() > 1e-4
            moved = (state[name] - parameter.detach())[clear]
            torch.testing.assert_close(moved, -1e-4 * parameter.grad.sign()[clear], rtol=0.01, atol=1e-6)
    assert distance(train(DRN, manifest, replace(config, dual=0.0, rate=1e-9)).state, fresh(DRN, 3).state_dict()) < 1e-6


def test_the_dual_loss_falls_whatever_lr_was_made_by(manifest: Manifest, tmp_path: Path) -> None:
    """Of images blurred by wide slanted kernels as of bicubic ones; what has learned is not the same."""
    config = replace(BRIEF, steps=30, batch_size=4, rate=1e-2, log_every=10, dual=1.0)
    found = []
    for name in ("bicubic", "blur:kinds=0:1,sigma=1.5:3"):
        folder = tmp_path / name[:4]
        made = train(NET, manifest, replace(config, degrade=name), folder)
        curve = [value for _, value in scalars(folder)["train/dual"]]
        assert curve[-1] < 0.6 * curve[0]
        found.append(duals(folder, made))
    assert distance(*found) > 1e-3


def test_of_no_weight_is_without(manifest: Manifest, tmp_path: Path) -> None:
    """A tiny weight trains the same network to rounding; none at all leaves no file."""
    tiny = train(NET, manifest, replace(BRIEF, dual=1e-12), tmp_path / "tiny")
    none = train(NET, manifest, replace(BRIEF, dual=0.0), tmp_path / "none")
    assert distance(tiny.state, none.state) < 1e-6
    assert (tmp_path / "tiny" / DUAL_FILE).exists() and not (tmp_path / "none" / DUAL_FILE).exists()
    assert "dual" not in none.recipe["last"] and none.recipe["config"]["dual"] == 0


def test_clipping_is_of_network_and_dual_networks_apart(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = torch.nn.utils.clip_grad_norm_, []

    def watched(parameters: Any, most: float) -> torch.Tensor:
        chosen = list(parameters)
        seen.append(sum(parameter.numel() for parameter in chosen))
        norm = real(chosen, most)
        assert sum(float(parameter.grad.square().sum()) for parameter in chosen) ** 0.5 <= 1.001 * most
        return norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
    train(DRN, manifest, replace(BRIEF, steps=1, clip=0.1))
    counts = [sum(p.numel() for p in module.parameters()) for module in (fresh(DRN), dual_networks(DRN))]
    assert seen == counts


# What it keeps


@pytest.mark.parametrize(
    "arch", [DRN, pytest.param(plugins.parse("archs", NET), marks=pytest.mark.slow)], ids=["several", "one"]
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    arch: Any, manifest: Manifest, tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a teacher, a running mean, validation; and killed once more when it was about to end."""
    teacher = Checkpoint(arch, fresh(arch, seed=8).state_dict(), {})
    config = replace(BRIEF, steps=5, save_every=2, log_every=3, ema=0.7, clip=0.5, accumulate=2, validate_every=2)

    def run(name: str) -> Checkpoint:
        return train(arch, manifest, config, tmp_path / name, teacher=teacher, validate=photo_folder)

    whole = run("whole")
    real, calls = training._loss, 0

    def deadly(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise Killed
        return real(*arguments)

    def dying(*_: Any) -> None:
        raise Killed

    for name, replaced in (("_loss", deadly), ("_end", dying)):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(training, name, replaced)
            run("killed")
    assert {STATE_FILE, DUAL_FILE} <= {path.name for path in (tmp_path / "killed").iterdir()}
    run("killed")
    for file in ("model.safetensors", DUAL_FILE, "recipe.json", f"best/{DUAL_FILE}", "best/model.safetensors"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert scalars(tmp_path / "killed")["train/teacher"] == scalars(tmp_path / "whole")["train/teacher"]
    assert verify(tmp_path / "whole").whole
    assert run("whole").recipe == whole.recipe  # finished: as it is
    best = Checkpoint.load(tmp_path / "whole" / "best")
    assert duals(tmp_path / "whole" / "best", best)
    assert weights_hash(duals(tmp_path / "whole", whole)) == read_dual(tmp_path / "whole")["weights"]


def read_dual(folder: Path) -> dict[str, Any]:
    content = (folder / DUAL_FILE).read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    record: dict[str, Any] = json.loads(header["__metadata__"]["curate"])
    return record


def test_the_running_mean_is_of_the_dual_networks_too(manifest: Manifest, tmp_path: Path) -> None:
    config = replace(BRIEF, schedule="constant")
    one, two = (
        duals(tmp_path / str(n), train(NET, manifest, replace(config, steps=n), tmp_path / str(n))) for n in (1, 2)
    )
    mean = duals(tmp_path / "mean", train(NET, manifest, replace(config, ema=0.6), tmp_path / "mean"))
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, 0.6 * one[name] + 0.4 * two[name], rtol=1e-5, atol=1e-8)


def test_a_folder_with_dual_networks_alone_takes_no_other_run(manifest: Manifest, tmp_path: Path) -> None:
    made = train(NET, manifest, BRIEF, tmp_path)
    assert "dual 0.1, not 0.0" in refusal(UsageError, lambda: train(NET, manifest, replace(BRIEF, dual=0.0), tmp_path))
    (tmp_path / "model.safetensors").unlink()
    plain = replace(BRIEF, dual=0.0)
    assert "holds another model" in refusal(UsageError, lambda: train(NET, manifest, plain, tmp_path))
    assert distance(train(NET, manifest, BRIEF, tmp_path).state, made.state) == 0


def test_a_run_of_before_there_were_these_options_is_known(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = replace(BRIEF, dual=0.0)
    made = train(NET, manifest, plain, tmp_path)
    new = {"dual", "teacher_weight", "teacher_by"}
    recipe = {name: value for name, value in made.recipe.items() if name not in ("teacher", "dual_init")}
    recipe["config"] = {name: value for name, value in recipe["config"].items() if name not in new}
    replace(made, recipe=recipe).save(tmp_path)
    monkeypatch.setattr(training, "batches", lambda *_, **__: pytest.fail("it is trained again"))
    assert train(NET, manifest, plain, tmp_path).recipe == recipe
    assert "dual 0.0, not 0.1" in refusal(UsageError, lambda: train(NET, manifest, BRIEF, tmp_path))


# Where it starts


def test_dual_networks_start_where_those_of_the_first_run_ended(manifest: Manifest, tmp_path: Path) -> None:
    first = train(NET, manifest, replace(BRIEF, seed=5), tmp_path / "first")
    known = duals(tmp_path / "first", first)
    still = replace(BRIEF, steps=1, rate=1e-9)
    beside = train(NET, manifest, still, tmp_path / "beside", init=tmp_path / "first" / "model.safetensors")
    given = train(NET, manifest, still, tmp_path / "given", init=first, dual_init=known)
    alone = train(NET, manifest, still, tmp_path / "alone", init=first)
    for folder, made in (("beside", beside), ("given", given)):
        assert distance(duals(tmp_path / folder, made), known) < 1e-7
        assert made.recipe["dual_init"] == weights_hash(known)
    assert distance(duals(tmp_path / "alone", alone), known) > 1e-2 and alone.recipe["dual_init"] is None
    assert "no dual_init, not" in refusal(
        UsageError, lambda: train(NET, manifest, still, tmp_path / "alone", init=tmp_path / "first")
    )
    other = train(NET.replace("scale=2", "scale=4"), manifest, still, init=tmp_path / "first")
    assert other.recipe["dual_init"] is None  # those of x2 do not lead from x4
    assert train(NET, manifest, replace(still, dual=0.0), init=tmp_path / "first").recipe["dual_init"] is None
    wrong = dual_networks(DRN).state_dict()
    assert "do not fit fsrcnn" in refusal(UsageError, lambda: train(NET, manifest, BRIEF, dual_init=dict(wrong)))
    plain = replace(BRIEF, dual=0.0)
    assert "with a dual loss" in refusal(UsageError, lambda: train(NET, manifest, plain, dual_init=known))
    (tmp_path / "first" / DUAL_FILE).write_bytes(b"noise")
    assert DUAL_FILE in refusal(DataError, lambda: train(NET, manifest, BRIEF, init=tmp_path / "first"))


# A teacher


@pytest.mark.parametrize("by", ["features", "answer"])
def test_a_student_comes_closer_to_its_teacher(by: Any, manifest: Manifest, tmp_path: Path) -> None:
    teacher = Checkpoint(plugins.parse("archs", "fsrcnn:d=8,s=4,m=1"), fresh("fsrcnn:d=8,s=4,m=1", 4).state_dict(), {})
    teacher.save(tmp_path / "teacher")
    config = replace(BRIEF, dual=0.0, steps=30, rate=5e-3, teacher_by=by, teacher_weight=10.0)
    made = train(NET, manifest, config, tmp_path / "run", teacher=tmp_path / "teacher")
    curve = [value for _, value in scalars(tmp_path / "run")["train/teacher"]]
    assert curve[-1] < 0.8 * curve[0]
    losses = [value for _, value in scalars(tmp_path / "run")["train/loss"]]
    plain = train(NET, manifest, replace(config, steps=1, teacher_by="features", teacher_weight=1.0))
    assert losses[0] == pytest.approx(plain.recipe["last"]["loss"] + 10 * curve[0], rel=1e-4)
    assert made.recipe["teacher"] == {"arch": "fsrcnn:d=8,s=4,m=1", "weights": weights_hash(teacher.state)}
    assert read_recipe(tmp_path / "run")["training"]["teacher"] == made.recipe["teacher"]
    wrong = replace(teacher, state=fresh("fsrcnn:d=8,s=4,m=1", 5).state_dict())
    assert "teacher " in refusal(UsageError, lambda: train(NET, manifest, config, tmp_path / "run", teacher=wrong))


@pytest.mark.parametrize(
    ("teacher", "reason"),
    [
        ("fsrcnn:scale=3,d=8", "should have scale 2"),
        ("edsr:features=4,blocks=1", "should have colour y"),
        ("srcnn:kernel=9-1-5", "have different sizes, 12x12 and 24x24"),
    ],
)
def test_a_teacher_that_cannot_be_one_is_refused_before_anything_is_made(
    teacher: str, reason: str, manifest: Manifest, tmp_path: Path
) -> None:
    given = Checkpoint(plugins.parse("archs", teacher), fresh(teacher).state_dict(), {})
    message = refusal(UsageError, lambda: train(NET, manifest, BRIEF, tmp_path / "run", teacher=given))
    assert reason in message and not (tmp_path / "run").exists()


# Whatever is trained


def test_x8_from_photographs_to_figures(manifest: Manifest, photo_folder: Path) -> None:
    """On a store whose grid is of 12 px, of which 8 is no divisor."""
    arch = Drn(scale=8, features=4, blocks=1)
    made = train(arch, manifest, replace(BRIEF, crop=32), validate=photo_folder)
    assert made.recipe["best"]["step"] == 2
    figures = averages(evaluate(made, photo_folder))
    assert figures["psnr"] == pytest.approx(made.recipe["last"]["psnr"], abs=25) and len(made.arch.outputs) == 4


def test_hfen_wants_crops_whose_smallest_answer_it_fits_into(manifest: Manifest) -> None:
    message = refusal(UsageError, lambda: train(DRN, manifest, replace(BRIEF, crop=16, hfen=0.2)))
    assert "a crop should be 20 px or more for HFEN, found 16" in message
    train(DRN, manifest, replace(BRIEF, crop=20, hfen=0.2, steps=1))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TINY))
def test_every_network_is_trained_with_its_way_back(name: str, manifest: Manifest, tmp_path: Path) -> None:
    """Slow: at each scale that it has, blurred, in half precision, after itself as a teacher."""
    for scale in (2, 3, 4, 8):
        spec = f"{name}:" + TINY[name].replace("scale=2", f"scale={scale}").replace("scale=4", f"scale={scale}")
        if (scale == 8 or name == "drn") and not (scale in (4, 8) and name == "drn"):
            assert "scale should be" in refusal(UsageError, lambda spec=spec: plugins.parse("archs", spec))
            continue
        arch = plugins.parse("archs", spec)
        crop = max(24, arch.least * scale)
        config = replace(BRIEF, crop=crop, precision="bf16", degrade="blur:kinds=0:1,sigma=0.5:2")
        teacher = Checkpoint(arch, fresh(arch, seed=4).state_dict(), {})
        made = train(arch, manifest, config, tmp_path / str(scale), teacher=teacher)
        assert made.recipe["last"].keys() == {"loss", "psnr", "dual", "teacher"}
        assert duals(tmp_path / str(scale), made)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [DRN, plugins.parse("archs", NET)], ids=["several", "one"])
def test_all_of_it_can_be_compiled(
    arch: Any, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced, as a compiler does first; it is left out, since it runs for minutes."""
    real, seen = torch.nn.Module.compile, []

    def traced(module: torch.nn.Module) -> None:
        seen.append(module)
        real(module, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    teacher = Checkpoint(arch, fresh(arch, seed=4).state_dict(), {})
    plain, compiled = (
        train(arch, manifest, replace(BRIEF, compile=on), tmp_path / str(on), teacher=teacher) for on in (False, True)
    )
    assert len(seen) == 1 and distance(plain.state, compiled.state) < 1e-5
    ways = [duals(tmp_path / str(on), made) for on, made in ((False, plain), (True, compiled))]
    assert distance(*ways) < 1e-5
