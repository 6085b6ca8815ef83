"""Distillation from a manifest to a store: the objective falls, nothing depends on where a run was stopped, and what
does not fit is one line before anything is written."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latents import write_ldm
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from curate import distillation, stopping
from curate.archs.dlsr import Dlsr
from curate.checkpoint import Checkpoint
from curate.config import DistillConfig, TrainConfig
from curate.distillation import RUN_FOLDER, DistillReport, distill
from curate.distillation.writing import packed_bytes
from curate.errors import DataError, UsageError
from curate.ingestion import ingest
from curate.manifest import Manifest
from curate.packing import MANIFEST_FILE
from curate.reporting import report
from curate.resize import downscale
from curate.resume import STATE_FILE
from curate.selection import select
from curate.store import Store
from curate.tensors import to_float, to_tensor
from curate.training import train

ARCH = "fsrcnn:scale=2,d=8,s=4,m=1"
QUICK: dict[str, Any] = {
    "patches": 6,
    "size": 24,
    "arch": ARCH,
    "steps": 6,
    "pool": 40,
    "clusters": 3,
    "batch_size": 4,
    "real_batch": 8,
    "net_every": 3,
    "net_steps": 2,
    "rate": 0.01,
    "experts": 2,
    "expert_epochs": 3,
    "expert_batch": 16,
    "ahead": 1,
    "latest": 2,
    "inner_steps": 3,
    "sampling": 2,
    "log_every": 2,
    "save_every": 2,
    "chunk": 4,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the disk, and what a stopped run says of itself is forgotten."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(stopping, "_kept", stopping._kept)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Manifest:
    """Every window, of 24 px, of three photographs. Not to be changed."""
    folder = tmp_path_factory.mktemp("source")
    photos = write_photos(folder / "photos", [(72, 96), (60, 84), (96, 72)])
    ingest([photos], folder / "store", patch=24, step=12)
    return select(folder / "store", "random", keep=1.0).save(folder / "all.parquet")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_ldm(tmp_path_factory.mktemp("ldm"), "kl", "unet"))


def config(**options: Any) -> DistillConfig:
    return DistillConfig(**{**QUICK, **options})


def pixels(made: DistillReport) -> list[np.ndarray]:
    """Of the patches, in the order of their ranks."""
    chosen = Manifest.load(made.manifest)
    store = chosen.store()
    return [store.read(image_id, 0, 0, 24, 24) for image_id in chosen.table["image_id"].to_pylist()]


def files(folder: Path) -> dict[str, bytes]:
    """All but the curves, whose times differ."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("events.")
    }


KINDS: dict[str, dict[str, Any]] = {
    "dc in pixels": {"objective": "dc", "space": "pixel"},
    "dm in pixels": {"objective": "dm", "space": "pixel"},
    "mtt in pixels": {"objective": "mtt", "space": "pixel"},
    "mtt in the memory of one step": {"objective": "mtt", "space": "pixel", "form": "constant"},
    "dm in latents": {"objective": "dm", "space": "vae"},
    "dc through a diffusion": {"objective": "dc", "space": "ldm"},
    "dm through a diffusion, as the paper": {"objective": "dm", "space": "ldm", "injection": "paper", "rate": 1.0},
    "sgd, of images": {"objective": "dc", "space": "pixel", "optimizer": "sgd", "rate": 10.0, "groups": "image"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_distillation_is_a_store_that_trains(kind: str, manifest: Manifest, model: str, tmp_path: Path) -> None:
    options = config(**KINDS[kind], model=None if KINDS[kind]["space"] == "pixel" else model)
    made = distill(manifest, options, tmp_path / "made")
    chosen = Manifest.load(tmp_path / "made" / MANIFEST_FILE)
    assert made.patches == len(chosen) == 6
    assert chosen.recipe.origin == "distilled"
    assert chosen.recipe.distilled_from is not None
    assert chosen.recipe.distilled_from.manifest == manifest.digest()
    assert made.moved is not None and made.moved < 60  # something happened
    trained = train(ARCH, chosen, TrainConfig(steps=2, crop=24, batch_size=2))
    assert all(tensor.isfinite().all() for tensor in trained.state.values())
    assert not [name for name in files(tmp_path / "made") if name.endswith(".safetensors")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(
    kind: str, manifest: Manifest, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = config(**KINDS[kind], model=None if KINDS[kind]["space"] == "pixel" else model)
    distill(manifest, options, tmp_path / "whole")
    done: list[int] = []

    def watch(step: int, total: int, note: str = "") -> None:
        if total == options.steps:
            done.append(step)

    with monkeypatch.context() as patched:
        patched.setattr(stopping, "caught", lambda: done[-1:] in ([1], [3]))
        for steps in ([1], [1, 2, 3]):
            done.clear()
            with pytest.raises(stopping.Stopped):
                distill(manifest, options, tmp_path / "parts", progress=watch)
            assert done[0] in (1, 2) and done[-1] == steps[-1]
            assert (tmp_path / "parts" / RUN_FOLDER / STATE_FILE).is_file()
    distill(manifest, options, tmp_path / "parts")
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


def test_the_same_again_is_the_same_and_a_finished_run_is_left_alone(manifest: Manifest, tmp_path: Path) -> None:
    first = distill(manifest, config(), tmp_path / "a")
    distill(manifest, config(), tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    before = files(tmp_path / "a")
    (tmp_path / "a" / RUN_FOLDER / STATE_FILE).write_bytes(b"of a run that was killed when it was about to end")
    again = distill(manifest, config(log_every=3), tmp_path / "a")
    assert files(tmp_path / "a") == before
    assert (again.patches, again.bytes) == (first.patches, first.bytes)
    other = distill(manifest, config(seed=1), tmp_path / "c")
    assert not np.array_equal(pixels(other)[0], pixels(first)[0])


@pytest.mark.parametrize("objective", ["dc", "dm", "mtt"])
def test_the_objective_falls(objective: str, manifest: Manifest, tmp_path: Path) -> None:
    """Against one fixed network, where each step asks the same question."""
    options = config(
        objective=objective, steps=40, net_every=1000, net_steps=0, groups="none", batch_size=6, real_batch=40,
        experts=1, latest=0, log_every=10, save_every=1000, statistics="moments", rate=0.002,
    )  # fmt: skip
    distill(manifest, options, tmp_path / "made")
    events = EventAccumulator(str(tmp_path / "made" / RUN_FOLDER)).Reload()
    values = [point.value for point in events.Scalars("distill/objective")]
    assert values[-1] < 0.9 * values[0]


def test_without_steps_the_patches_are_the_real_ones(manifest: Manifest, model: str, tmp_path: Path) -> None:
    """In every space: the residual is what it is for."""
    source = manifest.store()
    real = {source.read(row["image_id"], row["y"], row["x"], 24, 24).tobytes() for row in manifest.table.to_pylist()}
    for space in ("pixel", "vae", "ldm"):
        options = config(steps=0, space=space, model=None if space == "pixel" else model)
        made = distill(manifest, options, tmp_path / space)
        assert made.moved is None or made.moved > 90
        assert {patch.tobytes() for patch in pixels(made)} <= real
    bare = distill(manifest, config(steps=0, space="vae", model=model, residual=False), tmp_path / "bare")
    assert not {patch.tobytes() for patch in pixels(bare)} & real


def test_a_budget_in_bytes_holds(manifest: Manifest, tmp_path: Path) -> None:
    whole = packed_bytes(manifest, manifest.store())
    made = distill(manifest, config(patches=None, bytes=whole // 4), tmp_path / "made")
    chosen = Manifest.load(made.manifest)
    assert packed_bytes(chosen, chosen.store()) <= whole // 4
    assert len(manifest) // 6 <= made.patches < len(manifest) // 2
    still = distill(manifest, config(patches=None, bytes=whole // 4, steps=0), tmp_path / "still")
    assert whole // 4 - packed_bytes(Manifest.load(still.manifest), Store.open(tmp_path / "still")) < 2 * whole // len(
        manifest
    )


def test_patches_start_as_the_first_of_the_manifest_if_asked(manifest: Manifest, tmp_path: Path) -> None:
    options = config(steps=0, start="rank", groups="none", patches=4, pool=1000)
    made = distill(manifest, options, tmp_path / "made")
    source = manifest.store()
    first = [source.read(row["image_id"], row["y"], row["x"], 24, 24) for row in manifest.table.slice(0, 4).to_pylist()]
    assert {patch.tobytes() for patch in pixels(made)} == {patch.tobytes() for patch in first}


@pytest.mark.parametrize("arch", ["srcnn:scale=2,kernel=9-1-5", "edsr:scale=2,features=4,blocks=1"])
def test_a_teacher_s_answers_are_hr(arch: str, manifest: Manifest, tmp_path: Path) -> None:
    teacher = train(arch, manifest, TrainConfig(steps=3, crop=24, batch_size=4), tmp_path / "teacher")
    made = distill(manifest, config(teacher=str(tmp_path / "teacher")), tmp_path / "made")
    store = Manifest.load(made.manifest).store()
    for image_id in Manifest.load(made.manifest).table["image_id"].to_pylist():
        lr = to_float(to_tensor(store.pixels(image_id, "lr2")))[None]
        hr = to_float(to_tensor(store.pixels(image_id)))[None]
        assert lr.shape == (1, 3, 12, 12)
        with torch.no_grad():
            answer = distillation._Teacher(teacher, torch.device("cpu")).answer(lr)
        seen = distillation.rgb_to_y(hr) if answer.shape[1] == 1 else hr
        inside = (hr > 0.02).all(1, keepdim=True) & (hr < 0.98).all(1, keepdim=True)  # luma of what was cut off differs
        assert (seen - answer.clamp(0, 1)).abs()[inside.expand_as(seen)].max() < 0.5 / 255 + 1e-4
        assert (downscale(hr, 2) - lr).abs().mean() > 1e-3  # it is not the bicubic of that HR


def test_curves_and_pictures_are_there_to_look_at(manifest: Manifest, tmp_path: Path) -> None:
    distill(manifest, config(), tmp_path / "made")
    events = EventAccumulator(str(tmp_path / "made" / RUN_FOLDER), size_guidance={"images": 0}).Reload()
    assert [point.step for point in events.Scalars("distill/objective")] == [2, 4, 6]
    pictures = events.Images("patches/now")
    assert [picture.step for picture in pictures] == [0, 2, 4, 6]
    assert (pictures[0].width, pictures[0].height) == (6 * 25 - 1, 2 * 25 - 1)
    assert pictures[0].encoded_image_string != pictures[-1].encoded_image_string


def test_an_objective_that_is_not_finite_stops_with_the_step_and_keeps_the_state(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.distillation import matching

    asks = matching.Matchings.ask

    def ask(self: matching.Matchings, step: int, *given: Any) -> matching.Asked:
        found = asks(self, step, *given)
        return found if step != 5 else matching.Asked(float("nan"), found.slope_M3HW)

    with monkeypatch.context() as patched:
        patched.setattr(matching.Matchings, "ask", ask)
        with pytest.raises(DataError, match=r"not finite at step 5: .* smaller --rate; the state of step 4 is kept"):
            distill(manifest, config(), tmp_path / "made")
    assert (tmp_path / "made" / RUN_FOLDER / STATE_FILE).is_file()
    assert not (tmp_path / "made" / MANIFEST_FILE).exists()
    distill(manifest, config(), tmp_path / "made")
    distill(manifest, config(), tmp_path / "whole")
    assert files(tmp_path / "made") == files(tmp_path / "whole")


def test_memory_of_a_step_does_not_depend_on_the_number_of_patches(
    manifest: Manifest, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more patches are drawn with a graph than a chunk, and no more are looked at than a batch."""
    from curate.distillation.spaces import Latents

    drawn: list[tuple[bool, int]] = []
    patches = Latents.patches

    def watched(self: Latents, learnables: Any, rows_B: torch.Tensor) -> torch.Tensor:
        drawn.append((torch.is_grad_enabled() and not torch.is_inference_mode_enabled(), len(rows_B)))
        return patches(self, learnables, rows_B)

    monkeypatch.setattr(Latents, "patches", watched)
    for number in (6, 36):
        drawn.clear()
        distill(manifest, config(space="vae", model=model, patches=number), tmp_path / str(number))
        graphs = [rows for graph, rows in drawn if graph]
        assert max(graphs) <= QUICK["chunk"] and sum(graphs) == QUICK["steps"] * QUICK["batch_size"]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "more patches than the manifest has": ({"patches": 500}, "500 patches should be distilled from as many or more"),
    "more patches than the pool": ({"patches": 41}, "41 patches should be distilled from as many or more"),
    "patches larger than the windows": ({"size": 36}, "36 px do not fit into the manifest's windows of 24 px"),
    "patches too small for the network": ({"arch": "dlsr"}, "a side: patches should be 30 px or more, found 24"),
    "no such network": ({"arch": "fsrcn"}, "no 'fsrcn' in curate.archs"),
    "no such model": ({"space": "vae", "model": "nowhere/at all"}, "no folder 'nowhere/at all'"),
    "bytes for no patch": ({"patches": None, "bytes": 10}, "10 bytes hold no patch of 24 px"),
    "no such teacher": ({"teacher": "nowhere"}, "no checkpoint 'nowhere'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line(case: str, manifest: Manifest, tmp_path: Path) -> None:
    options, expected = BAD[case]
    with pytest.raises(UsageError, match=expected.replace("(", r"\(")) as raised:
        distill(manifest, config(**options), tmp_path / "made")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "made" / MANIFEST_FILE).exists()


def test_models_that_do_not_fit_are_one_line(manifest: Manifest, tmp_path: Path) -> None:
    alone = write_ldm(tmp_path / "alone", "kl", None)
    with pytest.raises(UsageError, match="takes a model with a denoiser, found an autoencoder alone"):
        distill(manifest, config(space="ldm", model=str(alone)), tmp_path / "made")
    coarse = write_ldm(tmp_path / "coarse", "kl", "unet", halvings=2)
    with pytest.raises(UsageError, match="multiples of 16 px"):
        distill(manifest, config(space="ldm", model=str(coarse)), tmp_path / "made")
    teacher = train("fsrcnn:scale=3,d=8,s=4,m=1", manifest, TrainConfig(steps=1, crop=24), tmp_path / "x3")
    assert isinstance(teacher, Checkpoint)
    with pytest.raises(UsageError, match="of one scale, found x3 and x2"):
        distill(manifest, config(teacher=str(tmp_path / "x3")), tmp_path / "made")
    wide = Dlsr(features=4)
    Checkpoint(wide, wide.build().state_dict(), {}).save(tmp_path / "wide")
    with pytest.raises(UsageError, match="dlsr:features=4 takes LR of 15 px or more a side: patches should be 30 px"):
        distill(manifest, config(teacher=str(tmp_path / "wide")), tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_another_distillation_does_not_go_into_the_same_folder(manifest: Manifest, tmp_path: Path) -> None:
    distill(manifest, config(), tmp_path / "made")
    with pytest.raises(UsageError, match="rate"):
        distill(manifest, config(rate=0.02), tmp_path / "made")
    with pytest.raises(UsageError, match="a store of photographs"):
        distill(manifest, config(), manifest.store().path)


def test_the_report_s_command_makes_it_again(manifest: Manifest, tmp_path: Path) -> None:
    """As the command line reads it; only the manifest's name stands open."""
    import shlex

    import typer.main

    from curate.cli import app
    from curate.config import settle

    asked = config(form="constant", residual=False)
    made = distill(manifest, asked, tmp_path / "made")
    record = report([made.manifest], out=tmp_path / "report.html")
    (command,) = [line for line in record.commands if line.startswith("curate distill")]
    words = shlex.split(command)
    group: Any = typer.main.get_command(app)
    given = group.commands["distill"].make_context("distill", words[2:]).params
    options = {name: given[name] for name in asked.recipe() if given[name] is not None}
    again = settle(DistillConfig, None, options).recipe()
    own = {"log_every": asked.log_every, "save_every": asked.save_every, "arch": asked.arch}
    assert again | own == asked.recipe()


def test_gradient_reaches_the_latents(model: str) -> None:
    """Of a whole step, patches drawn without a graph and again with one: as finite differences have it, in float64."""
    from curate import plugins
    from curate.distillation.nets import MatchingNet
    from curate.distillation.objectives import gradient_matching
    from curate.distillation.spaces import Ldm, backward, drawn
    from curate.ldm import load

    torch.manual_seed(0)
    net = MatchingNet(plugins.parse("archs", "srcnn:scale=2,kernel=9-1-5"), dtype=torch.float64)
    space, rows = Ldm(load(model).double(), sampling=2), torch.arange(3)
    real = torch.rand(3, 3, 16, 16, dtype=torch.float64) * 0.4 + 0.3
    learnables = space.start(real)
    residual = real - drawn(space, learnables, rows, None, 2)
    parameters = net.fresh(0)

    def value(shift: float) -> float:
        moved = {"latents": learnables["latents"] + shift * direction}
        patches = drawn(space, moved, rows, residual, 2)
        return float(gradient_matching(net, parameters, patches, real.flip(-1)).detach())

    direction = torch.randn(learnables["latents"].shape, dtype=torch.float64)
    patches = drawn(space, learnables, rows, residual, 2).requires_grad_()
    (slope,) = torch.autograd.grad(gradient_matching(net, parameters, patches, real.flip(-1)), [patches])
    found = backward(space, learnables, rows, slope, chunk=2)["latents"]
    expected = (value(1e-8) - value(-1e-8)) / 2e-8  # less than to where a ReLU turns
    assert float((found * direction).sum()) == pytest.approx(expected, rel=1e-3)
    assert abs(expected) > 1e-6


def test_a_distilled_store_is_distilled_from_again(manifest: Manifest, tmp_path: Path) -> None:
    first = distill(manifest, config(patches=12), tmp_path / "first")
    second = distill(str(first.manifest), config(patches=3), tmp_path / "second")
    recipe = Manifest.load(second.manifest).recipe
    assert recipe.distilled_from is not None and recipe.distilled_from.origin == "distilled"
    assert len(Store.open(tmp_path / "second").images()) == 3
