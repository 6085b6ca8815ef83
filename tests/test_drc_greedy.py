"""Greedy selection against the same written out; what is closed, what stays, and going on to the same bytes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from selecting import check_removal, loss_of, plainly, trained, work
from torch import Tensor

from curate import stopping
from curate.archs import Arch
from curate.archs.drn import Drn
from curate.archs.drrn import Drrn
from curate.archs.edsr import Edsr
from curate.archs.imdn import Imdn
from curate.archs.swinir import Swinir
from curate.drc.chosen import Chosen, close, reopen
from curate.drc.crops import selection_set
from curate.drc.greedy import greedy, scores
from curate.drc.work import Work
from curate.errors import DataError, UsageError
from curate.ingestion import ingest
from curate.manifest import Manifest
from curate.progress import silent
from curate.resume import STATE_FILE
from curate.selection import select
from curate.units import PrunableUnit, Span

TINY = Drn(features=4, blocks=1)  # units of 4, 8, 16, 16, 16, 16 maps
WIDTHS = [2, 8, 2, 16, 16, 1]
ARCHS = [
    (TINY, WIDTHS),
    (Edsr(scale=2, features=4, blocks=1), [2, 2]),
    (Swinir(scale=2, variant="light", embed=8, groups=1, blocks=1, heads=2), [2, 3]),  # features of a head, MLP
    (Drrn(scale=2, features=4, units=2), [2]),  # a recursion: the reader is called twice
    (Imdn(scale=2, features=16, modules=1), [1, 12, 4, 2, 4, 12, 4, 16]),  # several readers of maps, in some units
]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Manifest:
    folder = tmp_path_factory.mktemp("greedy")
    ingest([write_photos(folder / "photos", [(48, 60)])], folder / "store", patch=32, step=12)
    return select(folder / "store", "random", keep=1.0).save(folder / "all.parquet")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the disk, and what a stopped selection says of itself is forgotten."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(stopping, "_kept", stopping._kept)


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def equal(one: Chosen, other: Chosen) -> bool:
    same = all(torch.equal(one.state[name], other.state[name]) for name in other.state)
    return one.kept == other.kept and one.state.keys() == other.state.keys() and same


def closed(made: Work, chosen: Chosen) -> dict[str, Tensor]:
    """The checkpoint's weights, without the effect of what is not kept."""
    state = {name: tensor.clone() for name, tensor in made.checkpoint.state.items()}
    for unit, kept in zip(made.units, chosen.kept, strict=True):
        close(state, unit, sorted(set(range(unit.width)) - set(kept)))
    return state


@pytest.mark.parametrize(("arch", "widths"), ARCHS, ids=lambda one: type(one).__name__)
def test_selection_is_what_is_written_out(arch: Arch, widths: list[int], manifest: Manifest, tmp_path: Path) -> None:
    """The scores, the order, the steps of the open weights and the biases; then removal changes nothing."""
    made = trained(arch, manifest, feature_weight=0.5, layer_rate=1e-6 if arch.peak > 1 else 1e-3)
    chosen = greedy(made, widths, tmp_path, silent)
    kept, state = plainly(made, widths)
    assert chosen.kept == kept
    for name, tensor in state.items():
        assert torch.allclose(chosen.state[name], tensor, rtol=1e-4, atol=1e-6), name
    assert any(not torch.equal(tensor, closed(made, chosen)[name]) for name, tensor in chosen.state.items())
    check_removal(made, chosen)


def test_first_is_the_map_whose_opening_lowers_the_loss_most(manifest: Manifest, tmp_path: Path) -> None:
    """One map of a layer matters more than the others: the gradient finds it, as trying all of them does."""
    number, important = 2, 7  # of the residual block at the input's size
    made = work(TINY, manifest)
    unit, state = made.units[number], dict(made.checkpoint.state)
    for span in unit.spans:
        state[span.parameter] = state[span.parameter].clone()
        state[span.parameter].select(span.axis, important).mul_(8)
    made = work(TINY, manifest, state, layer_rate=0.0, feature_weight=1000.0)
    widths = [one.width for one in made.units]
    widths[number] = 1
    assert greedy(made, widths, tmp_path, silent).kept[number] == [important]

    whole, original, batches = made.regression(), made.regression(), selection_set(made)
    weights, before = (dict(one.net.named_parameters()) for one in (whole, original))

    @torch.no_grad()
    def loss(one: int) -> float:
        close(weights, unit, range(unit.width))
        reopen(weights, before, unit, [one])
        return sum(float(loss_of(made, whole, original, unit, images)) for images in batches)

    assert min(range(unit.width), key=loss) == important


def test_rounds_of_several_maps(manifest: Manifest, tmp_path: Path) -> None:
    """Two at a time, as many as are left in the end; without steps no weight changes; progress counts maps."""
    made = work(TINY, manifest, layer_rate=0.0, per_pass=2, dual=0.0, feature_weight=0.0)
    told: list[tuple[int, int, str]] = []
    chosen = greedy(made, WIDTHS, tmp_path, lambda done, total, note="": told.append((done, total, note)))
    assert [len(kept) for kept in chosen.kept] == WIDTHS
    assert chosen.kept == plainly(made, WIDTHS)[0]
    assert all(torch.equal(tensor, chosen.state[name]) for name, tensor in closed(made, chosen).items())
    assert [done for done, _, _ in told] == [2, 10, 12, 28, 44, 45]
    assert told[0] == (2, sum(WIDTHS), "down.0.dual_module")


@pytest.mark.parametrize("option", [{"dual": 5.0}, {"feature_weight": 1e4}, {"precision": "bf16"}])
def test_what_the_loss_is_made_of_decides(option: dict[str, Any], manifest: Manifest, tmp_path: Path) -> None:
    widths = [1, *(unit.width for unit in work(TINY, manifest).units[1:])]
    one, other = (
        greedy(work(TINY, manifest, **options), widths, folder(tmp_path, name), silent)
        for name, options in (("usual", {}), ("other", option))
    )
    assert not equal(one, other)


def test_scores_add_up_norms_of_kernels_over_all_that_reads_a_map() -> None:
    """Two layers, one of which reads each map in two heads."""
    conv, linear = torch.zeros(2, 3, 3, 3), torch.zeros(2, 6)
    conv[0, 1, 0, :2] = torch.tensor([3.0, -4.0])
    conv[1, 1, 2, 2] = -2
    linear[:, 5] = torch.tensor([1.0, -1.5])
    unit = PrunableUnit("unit", 3, (), (Span("conv.weight", 1), Span("linear.weight", 1, outer=2)))
    assert scores({"conv.weight": conv, "linear.weight": linear}, unit).tolist() == [0, 7, 2.5]


@pytest.fixture(scope="module")
def whole(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Chosen:
    return greedy(work(TINY, manifest), WIDTHS, tmp_path_factory.mktemp("whole"), silent)


def test_the_same_twice(manifest: Manifest, whole: Chosen, tmp_path: Path) -> None:
    assert equal(greedy(work(TINY, manifest), WIDTHS, tmp_path, silent), whole)


@pytest.mark.parametrize(("batches", "chosen"), [(1, 0), (7, 1), (10, 10)])  # two a look, two an epoch
def test_a_stopped_selection_goes_on(
    batches: int, chosen: int, manifest: Manifest, whole: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = iter(range(1000))
    with monkeypatch.context() as patched, pytest.raises(stopping.Stopped):
        patched.setattr(stopping, "caught", lambda: next(counted) >= batches)
        greedy(work(TINY, manifest), WIDTHS, tmp_path, silent)
    assert stopping._kept == f"{chosen} of {sum(WIDTHS)} maps are chosen"
    assert equal(greedy(work(TINY, manifest), WIDTHS, tmp_path, silent), whole)


def test_a_killed_selection_goes_on(
    manifest: Manifest, whole: Chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done is not done again, and other options are another selection."""
    seen: list[int] = []

    def kill(done: int, total: int, note: str = "") -> None:
        seen.append(done)
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        greedy(work(TINY, manifest), WIDTHS, tmp_path, kill)
    with pytest.raises(UsageError, match=r"holds a run that began with layer_rate 1e-05, not 0\.0001"):
        greedy(work(TINY, manifest, layer_rate=1e-4), WIDTHS, tmp_path, silent)
    seen.clear()
    assert equal(greedy(work(TINY, manifest), WIDTHS, tmp_path, lambda *done: seen.append(done[0])), whole)
    assert seen[0] == 11
    assert (tmp_path / STATE_FILE).is_file()
    assert equal(greedy(work(TINY, manifest), WIDTHS, tmp_path, lambda *_: pytest.fail("done again")), whole)


def test_too_few_patches(manifest: Manifest, tmp_path: Path) -> None:
    asked = r"too few patches for the selection set: it should have 400 \(--patches\) or more"
    with pytest.raises(UsageError, match=rf"^{asked}, found {len(manifest)} patches$"):
        greedy(work(TINY, manifest, patches=400), WIDTHS, tmp_path, silent)


def test_a_loss_that_is_not_finite(manifest: Manifest, tmp_path: Path) -> None:
    state = dict(work(TINY, manifest).checkpoint.state)
    state["head.weight"] = 1e25 * state["head.weight"]
    advice = "select with a smaller --layer-rate"
    with pytest.raises(DataError, match=rf"^the loss is not finite at down\.0\.dual_module: {advice}$"):
        greedy(work(TINY, manifest, state), WIDTHS, tmp_path, silent)
