"""A search for numbers of maps is stopped and resumed to the same bytes, and moves what it should by what it should."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from curate import stopping
from curate.archs.drn import Drn
from curate.checkpoint import Checkpoint
from curate.config import DrcConfig
from curate.drc import relaxation
from curate.drc import search as stage
from curate.drc.search import candidates, search
from curate.drc.work import Work
from curate.errors import DataError, UsageError
from curate.ingestion import ingest
from curate.loader import Batch
from curate.manifest import Manifest
from curate.resume import STATE_FILE
from curate.selection import select

QUICK: dict[str, Any] = {
    "ratio": 0.2, "search_steps": 5, "crop": 32, "batch_size": 1, "patches": 1, "arch_rate": 0.05, "log_every": 2,
    "save_every": 3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the disk, and what a stopped run says of itself is forgotten."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(stopping, "_kept", stopping._kept)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Manifest:
    folder = tmp_path_factory.mktemp("drc")
    ingest([write_photos(folder / "photos", [(48, 60), (60, 48)])], folder / "store", patch=36, step=12)
    return select(folder / "store", "random", keep=1.0).save(folder / "all.parquet")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """Six units; four of them have three candidates."""
    arch = Drn(features=4, blocks=1)
    torch.manual_seed(0)
    return Checkpoint(arch, arch.build().state_dict(), {})


@pytest.fixture
def make(checkpoint: Checkpoint, manifest: Manifest) -> Callable[..., Work]:
    def work(**options: Any) -> Work:
        return Work(checkpoint, manifest, DrcConfig(**{**QUICK, **options}), manifest.store(), torch.device("cpu"))

    return work


def batch(seed: int) -> Batch:
    torch.manual_seed(seed)
    between = tuple(torch.rand(1, 3, side, side) for side in (8, 16))
    return Batch(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 32, 32), torch.ones(1), torch.zeros(1).long(), between)


def files(folder: Path) -> dict[str, bytes]:
    """All that two searches have alike."""
    there = (path for path in sorted(folder.iterdir()) if not path.name.startswith("events."))
    return {path.name: path.read_bytes() for path in there}


def events(folder: Path, name: str) -> list[Any]:
    """The points of a loss's curve."""
    return list(EventAccumulator(str(folder)).Reload().Scalars(f"search/{name}"))


def test_what_a_search_writes(make: Callable[..., Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = make()
    before = torch.get_rng_state()
    found = search(work, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert {"alpha.safetensors", "history.parquet"} <= files(tmp_path).keys() and not (tmp_path / STATE_FILE).exists()
    alphas = load_file(tmp_path / "alpha.safetensors")
    rows = pq.read_table(tmp_path / "history.parquet").to_pylist()
    assert sorted({row["step"] for row in rows}) == [0, 2, 4, 5]
    assert [point.step for point in events(tmp_path, "validation")] == [2, 4, 5]
    curves = EventAccumulator(str(tmp_path)).Reload()
    for unit, width in zip(work.units, found.widths, strict=True):
        last = [row for row in rows if row["step"] == 5 and row["unit"] == unit.name]
        assert [row["candidate"] for row in last] == candidates(unit.width, 0.2)
        assert [row["alpha"] for row in last] == alphas[unit.name].tolist()
        assert sum(row["share"] for row in last) == pytest.approx(1)
        assert width == max(last, key=lambda row: float(row["alpha"]))["candidate"]
        mean = sum(row["share"] * row["candidate"] for row in last)
        assert curves.Scalars(f"maps/{unit.name}")[-1].value == pytest.approx(mean)
    first = [row["alpha"] for row in rows if row["step"] == 0]
    assert 0 < max(map(abs, first)) < 0.01
    monkeypatch.setattr(stage, "_fit", lambda *_: pytest.fail("searched again"))
    assert search(make(log_every=3, save_every=1), tmp_path) == found
    with pytest.raises(UsageError, match=r"holds a run that began with ratio 0\.2, not 0\.4; name another folder"):
        search(make(ratio=0.4), tmp_path)


@pytest.mark.parametrize("numbers", ["search", "darts"])
def test_a_search_that_is_stopped_goes_on_to_the_same_bytes(
    numbers: str, make: Callable[..., Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = make(numbers=numbers)
    whole = search(work, tmp_path / "whole")
    done: list[int] = []
    for stop in (1, 4):
        with monkeypatch.context() as patched:
            patched.setattr(stopping, "caught", lambda stop=stop: done[-1:] == [stop])
            with pytest.raises(stopping.Stopped):
                search(work, tmp_path / "parts", lambda step, *_: done.append(step))
    assert len(done) < 7  # it went on, and did not begin again
    with pytest.raises(UsageError, match=r"holds a run that began with rate 0\.0001, not 0\.001"):
        search(make(numbers=numbers, rate=1e-3), tmp_path / "parts")
    assert search(work, tmp_path / "parts") == whole
    assert files(tmp_path / "whole") == files(tmp_path / "parts")
    for name in ("training", "validation"):
        one, other = ([(point.step, point.value) for point in events(tmp_path / of, name)] for of in ("whole", "parts"))
        assert one == other


@pytest.mark.parametrize("numbers", ["search", "darts"])
def test_a_half_moves_alpha_and_the_other_the_weights(numbers: str, make: Callable[..., Work]) -> None:
    def moved(training: int, validation: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        live = stage._Live.start(make(numbers=numbers), None)
        live.move(batch(training), batch(validation))
        return live.alpha_UV.detach(), {**live.regression.state_dict(), **live.relaxation.own()}

    (alpha, weights), (same_alpha, other_weights), (other_alpha, _) = moved(1, 2), moved(3, 2), moved(1, 4)
    assert torch.equal(alpha, same_alpha) and not torch.equal(alpha, other_alpha)
    start = stage._Live.start(make(numbers=numbers), None)
    before = {**start.regression.state_dict(), **start.relaxation.own()}
    changed = {name.partition(".")[0] for name in weights if not torch.equal(weights[name], before[name])}
    assert {"net", "duals", *("345" if numbers == "darts" else "")} <= changed  # 3 4 5: copies of units' readers
    assert any(not torch.equal(weights[name], other_weights[name]) for name in weights)


def test_what_is_searched_with(make: Callable[..., Work], monkeypatch: pytest.MonkeyPatch) -> None:
    """The dual loss has a say in alpha's gradient, importance in the order of maps; bfloat16 is near float32."""

    def gradient(**options: Any) -> tuple[float, torch.Tensor]:
        live = stage._Live.start(make(**options), None)
        loss = live.loss(batch(1), live.alpha_UV)
        return float(loss.detach()), torch.autograd.grad(loss, [live.alpha_UV])[0]

    loss, usual = gradient()
    assert usual.abs().sum() > 0
    for other in ({"dual": 0.0}, {"importance": False}):
        assert not torch.allclose(gradient(**other)[1], usual, rtol=1e-2)
    assert loss != gradient(precision="bf16")[0] == pytest.approx(loss, rel=0.02)
    monkeypatch.setattr(relaxation, "importance", lambda *_: pytest.fail("ranked"))
    gradient(importance=False)


def test_what_is_drawn_in_a_step_is_the_steps_own(make: Callable[..., Work]) -> None:
    """As that of stochastic depth, whatever was drawn before."""
    found = []
    for seed in (1, 2):
        live = stage._Live.start(make(), None)
        live.regression.net.head.register_forward_hook(lambda module, inputs, answer: F.dropout(answer))
        held, trained = batch(1), batch(2)
        torch.manual_seed(seed)
        live.move(trained, held)
        found.append((live.losses["validation"], live.losses["training"]))
    assert found[0] == found[1]


def test_weights_are_clipped_and_their_steps_fall(make: Callable[..., Work]) -> None:
    moved = []
    for options in ({"clip": 1e-9, "search_steps": 1}, {"clip": 0.0}):
        live = stage._Live.start(make(**options), None)
        weight = live.regression.net.head.weight.detach()
        before = weight.clone()
        live.move(batch(1), batch(2))
        moved.append(float((weight - before).abs().max()))
        last = live.of_weights.param_groups[0]["lr"]
        live.step = 4
        live.move(batch(1), batch(2))
    assert moved[0] < 0.2 * moved[1] and last == 1e-4
    assert live.of_weights.param_groups[0]["lr"] < 0.2e-4


def test_what_cannot_be_searched(make: Callable[..., Work], manifest: Manifest, tmp_path: Path) -> None:
    work = make()
    of = manifest.table["image_id"]
    one = Manifest(manifest.table.filter([name == of[0] for name in of]), manifest.recipe, manifest.path)
    (tmp_path / "file").touch()
    for asked, folder, line in (
        (replace(work, manifest=one), "run", "patches of two photographs or more"),
        (make(crop=3), "run", "crop should be 4 px or more, found 3"),
        (make(crop=40), "run", "take a smaller --crop"),
        (work, "file", "is a file"),
    ):
        with pytest.raises(UsageError, match=line):
            search(asked, tmp_path / folder)
    assert not list((tmp_path / "run").glob("events.*"))
    broken = {name: tensor * float("nan") for name, tensor in work.checkpoint.state.items()}
    with pytest.raises(DataError, match="loss is nan at step 2: search with a smaller --rate"):
        search(replace(work, checkpoint=replace(work.checkpoint, state=broken)), tmp_path / "broken")
