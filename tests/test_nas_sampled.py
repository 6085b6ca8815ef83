"""Random and evolutionary search: what is drawn, what a candidate is worth, and that a search that was killed comes to
the same."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from curate import stopping, storage
from curate.archs.dlsr import Dlsr
from curate.checkpoint import Checkpoint
from curate.config import NasConfig, TrainConfig
from curate.errors import DataError, UsageError
from curate.genotype import OPERATIONS, Genotype
from curate.ingestion import ingest
from curate.loader import batches
from curate.losses import hfen
from curate.manifest import Manifest
from curate.nas import sampled
from curate.nas.sampled import Sampling, Space, Tried, proposed, search
from curate.progress import Progress, silent
from curate.selection import select
from curate.store import Store
from curate.training import train

QUICK: dict[str, Any] = {
    "method": "random",
    "features": 4,
    "crop": 30,  # LR of 15 px, the least that the network takes
    "batch_size": 2,
    "rate": 1e-3,
    "candidates": 3,
    "population": 2,
    "log_every": 1,
    "save_every": 1,
}
COMPARED = sampled._COMPARED
METHODS = ("random", "evolution")
PAIRS = {3: ["12"], 4: ["12", "13", "23"], 5: ["12", "13", "14", "23", "24", "34"]}
PAIRS[6] = [*PAIRS[5], "15", "25", "35", "45"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few crops to compare on, no waiting for the disk, and what a stopped run says of itself is forgotten."""
    monkeypatch.setattr(sampled, "_COMPARED", 2)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(stopping, "_kept", stopping._kept)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Path:
    """A store of three photographs: one is compared on."""
    made = tmp_path_factory.mktemp("sampled")
    ingest([write_photos(made / "photos", [(72, 84), (60, 72), (84, 96)])], made / "store", patch=36, step=24)
    return made


@pytest.fixture
def sampling(folder: Path) -> Callable[..., Sampling]:
    """A function that makes what is searched; without a charge where none is given."""

    def make(charge: Callable[[Genotype], float] = lambda genotype: 0.0, steps: int = 2, **options: Any) -> Sampling:
        parts = [select(folder / "store", "random", keep=1, where=f"name {of} '002.png'") for of in ("!=", "=")]
        return Sampling(NasConfig(**{**QUICK, **options}), *parts, Store.open(folder / "store"), steps, charge)

    return make


def everything(connections: bool) -> list[Genotype]:
    """All genotypes, by another way than the search's; with connections those of equal operations alone."""
    texts = ["+".join(names) for names in product(OPERATIONS, repeat=3)]
    if not connections:
        return [Genotype.parse(f"{text}@2.3.4.5") for text in texts]
    return [Genotype.parse(f"{text}@{'.'.join(ins)}") for text in texts[::91] for ins in product(*PAIRS.values())]


def distance(a: Genotype, b: Genotype) -> int:
    """Operations and inputs that differ."""
    operations = sum(x != y for x, y in zip(a.operations, b.operations, strict=True))
    return operations + sum(len({*x} - {*y}) for x, y in zip(a.inputs, b.inputs, strict=True))


def history(config: NasConfig, values: Sequence[float]) -> list[Tried]:
    """What has been tried: as many random genotypes, of these values."""
    drawn: list[Tried] = []
    for value in values:
        drawn.append(Tried(proposed(replace(config, method="random"), drawn), value, 0.0))
    return drawn


def files(run: Path) -> dict[str, bytes]:
    """All but the curves, whose times differ."""
    found = (path for path in sorted(run.rglob("*")) if path.is_file() and not path.name.startswith("events."))
    return {str(path.relative_to(run)): path.read_bytes() for path in found}


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_there_are_as_many_genotypes_as_said() -> None:
    assert len(Space(False)) == len(set(everything(False))) == 729
    assert len(Space(True)) == 81 * len(set(everything(True))) == 729 * 180


@pytest.mark.parametrize("connections", [True, False])
def test_every_place_of_a_drawn_genotype_takes_every_value_as_often(connections: bool) -> None:
    config = NasConfig(**QUICK, connections=connections)
    drawn = [proposed(replace(config, seed=seed), []) for seed in range(900)]
    for layer in range(3):
        counts = Counter(genotype.operations[layer] for genotype in drawn)
        assert set(counts) == set(OPERATIONS)
        assert min(counts.values()) > 60 and max(counts.values()) < 145  # 100 are expected, the deviation is 9.4
    for place, cell in enumerate(PAIRS):
        counts = Counter("".join(map(str, genotype.inputs[place])) for genotype in drawn)
        choices = PAIRS[cell] if connections else [str(cell - 1)]
        assert set(counts) == set(choices)
        assert 0.55 < len(choices) * counts[choices[0]] / 900 < 1.45


@pytest.mark.parametrize("connections", [True, False])
def test_neighbours_are_all_that_differ_in_one_place(connections: bool) -> None:
    space, all_of_them = Space(connections), everything(connections)
    for genotype in all_of_them[::173]:
        neighbours = space.neighbours(genotype)
        assert len(set(neighbours)) == len(neighbours) == (24 + 2 + 4 + 6 if connections else 24)
        assert {distance(genotype, other) for other in neighbours} == {1}
        assert {other for other in all_of_them if distance(genotype, other) == 1} <= set(neighbours)
        assert all(genotype in space.neighbours(other) for other in neighbours)
        assert all(list(chosen) == sorted(chosen) for other in neighbours for chosen in other.inputs)


@pytest.mark.parametrize("connections", [True, False])
def test_a_mutation_reaches_every_neighbour_and_nothing_else(connections: bool) -> None:
    config = NasConfig(**{**QUICK, "method": "evolution", "population": 1}, connections=connections)
    tried = history(config, [1.0])
    counts = Counter(proposed(replace(config, seed=seed), tried) for seed in range(1080))
    neighbours = Space(connections).neighbours(tried[0].genotype)
    assert set(counts) == set(neighbours)
    assert max(counts.values()) < 2 * 1080 / len(neighbours)


@pytest.mark.parametrize("values", [[4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]], ids=["falling", "equal"])
def test_evolution_changes_the_best_of_some_of_the_youngest(values: list[float]) -> None:
    """Two of four are drawn: the best is one of them in 7 of 16 cases, the worst is all of them in 1. Of equal ones the
    first is the best. Those that have died are better than all."""
    config = NasConfig(**{**QUICK, "method": "evolution", "population": 4, "candidates": 9, "seed": 2})
    tried = history(config, [0.0, 0.0, 0.0, *values])
    genotypes = [one.genotype for one in tried]
    assert min(distance(a, b) for a in genotypes for b in genotypes if a != b) > 2  # so that a child tells its parent
    parents: Counter[int] = Counter()
    for seed in range(800):
        child = proposed(replace(config, seed=seed), tried)
        (parent,) = (number for number, genotype in enumerate(genotypes) if distance(genotype, child) == 1)
        parents[parent] += 1
    best_first = [6, 5, 4, 3] if values[0] > values[-1] else [3, 4, 5, 6]
    shares = [parents.pop(number) / 800 for number in best_first]
    assert not parents
    assert shares == pytest.approx([7 / 16, 5 / 16, 3 / 16, 1 / 16], abs=0.06)


def test_a_charge_counts_as_the_loss_does() -> None:
    config = NasConfig(**{**QUICK, "method": "evolution", "population": 2})  # one of the two is drawn
    tried = history(config, [1.0, 2.0])
    one = [tried[0]._replace(charge=5.0), tried[1]]
    assert [each.value for each in one] == [6.0, 2.0]
    wide = replace(config, population=20, candidates=99)
    many = [
        each._replace(charge=-each.loss if number == 7 else 0.0)
        for number, each in enumerate(history(wide, [9.0] * 20))
    ]
    children = Counter(distance(proposed(replace(wide, seed=seed), many), many[7].genotype) for seed in range(200))
    assert children[1] > 50  # ten of twenty draws find it in 40 % of the cases


@pytest.mark.parametrize("connections", [True, False])
def test_what_was_tried_already_is_changed_once_more(connections: bool) -> None:
    config = NasConfig(**{**QUICK, "method": "evolution", "population": 1}, connections=connections)
    (parent,) = history(config, [1.0])
    neighbours = Space(connections).neighbours(parent.genotype)
    tried = [*(Tried(genotype, 0.0, 0.0) for genotype in neighbours), parent]
    for seed in range(100):
        child = proposed(replace(config, seed=seed), tried)
        assert child not in {one.genotype for one in tried}
        assert distance(parent.genotype, child) >= 2


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_tried_twice_and_in_the_end_all(method: str) -> None:
    config = NasConfig(**{**QUICK, "method": method, "population": 5, "candidates": 729}, connections=False)
    tried: list[Tried] = []
    for number in range(729):
        tried.append(Tried(proposed(config, tried), float(number % 7), 0.0))
    assert {one.genotype for one in tried} == set(everything(False))


# --- what a candidate is worth ----------------------------------------------------------------------------------------


def weighted(manifest: Manifest) -> Manifest:
    """Of weights from 0.5 to 1.5."""
    field = manifest.table.schema.field("weight")
    weights = pa.array(np.linspace(0.5, 1.5, len(manifest)).astype(np.float32))
    return replace(
        manifest, table=manifest.table.set_column(manifest.table.schema.get_field_index("weight"), field, weights)
    )


def by_hand(run: Sampling, made: Checkpoint) -> float:
    """The mean over 16 batches of L1 + hfen * HFEN, of values in [0, 255]."""
    feed = batches(run.architecture, scale=2, crop=30, batch_size=2, seed=run.config.seed, augment=False)
    net, losses = made.module(), list[Tensor]()
    for lr_BCHW, hr_BCHW, weight_B, *_ in islice(feed, 16):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=run.config.precision == "bf16"):
            sr_BCHW = net(255 * lr_BCHW)
        sr_BCHW, hr_BCHW = sr_BCHW.float(), 255 * hr_BCHW
        loss_B = (sr_BCHW - hr_BCHW).abs().mean((1, 2, 3)) + run.config.hfen * hfen(sr_BCHW, hr_BCHW)
        losses.append((loss_B * weight_B).mean())
    return float(torch.stack(losses).double().mean())


@pytest.mark.parametrize(
    "options", [{"hfen": 30.0, "seed": 3}, {"precision": "bf16", "connections": False, "hfen": 0.0}], ids=str
)
def test_a_candidate_is_a_training_and_its_loss_that_of_the_other_part(
    options: dict[str, Any], sampling: Callable[..., Sampling], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampled, "_COMPARED", COMPARED)
    run = sampling(candidates=2, weight_decay=0.1, **options)
    run = replace(run, architecture=weighted(run.architecture))
    best, tried = search(run, tmp_path / "run", device="cpu")
    config = TrainConfig(
        steps=2,
        batch_size=2,
        crop=30,
        rate=1e-3,
        weight_decay=0.1,
        schedule="constant",
        hfen=run.config.hfen,
        precision=run.config.precision,
        seed=run.config.seed,
    )
    for number, (genotype, loss, charge) in enumerate(tried):
        made = Checkpoint.load(tmp_path / f"run/candidates/{number:04}")
        alone = train(Dlsr(2, str(genotype), 4), run.training, config, device="cpu")
        assert made.arch == alone.arch
        assert all(torch.equal(made.state[name], tensor) for name, tensor in alone.state.items())
        assert loss == pytest.approx(by_hand(run, made), rel=1e-6)
        assert charge == 0
    assert best == min(tried, key=lambda one: one.loss).genotype
    if not run.config.connections:
        assert {one.genotype.inputs for one in tried} == {((2,), (3,), (4,), (5,))}


@pytest.mark.parametrize("wanted", range(3))
def test_the_best_is_the_one_of_least_loss_and_charge(
    wanted: int, sampling: Callable[..., Sampling], tmp_path: Path
) -> None:
    genotypes = [one.genotype for one in history(sampling().config, [0.0] * 3)]
    run = sampling(lambda genotype: 1e4 * abs(genotypes.index(genotype) - wanted), steps=1)
    best, tried = search(run, tmp_path / "run", device="cpu")
    assert best == genotypes[wanted]
    assert [one.charge for one in tried] == [1e4 * abs(number - wanted) for number in range(3)]
    assert [one.value for one in tried] == [one.loss + one.charge for one in tried]


def test_of_equal_candidates_the_first_is_the_best(
    sampling: Callable[..., Sampling], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampled, "_compared", lambda *given: 1.0)
    best, tried = search(sampling(steps=1), tmp_path / "run", device="cpu")
    assert best == tried[0].genotype


@pytest.mark.parametrize("connections", [False, True])
def test_more_candidates_than_genotypes_are_refused(
    connections: bool, sampling: Callable[..., Sampling], tmp_path: Path
) -> None:
    most, kind = (131220, "with") if connections else (729, "without")
    run = sampling(candidates=most + 1, connections=connections)
    with pytest.raises(UsageError) as error:
        search(run, tmp_path / "run", device="cpu")
    expected = f"candidates should be at most the {most} genotypes {kind} connections, found {most + 1}"
    assert str(error.value) == expected
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_is_said(
    sampling: Callable[..., Sampling], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = SimpleNamespace(distance=lambda *given, **options: torch.tensor([torch.nan, 1.0]))
    monkeypatch.setattr(sampled, "losses", broken)
    with pytest.raises(DataError, match=r"^the loss of dlsr:genotype=\S+@\S+ is nan: search with a smaller --rate$"):
        search(sampling(), tmp_path / "run", device="cpu")
    assert not list(tmp_path.rglob("comparison.json"))


# --- again, and after a kill ------------------------------------------------------------------------------------------


def test_the_same_seed_searches_the_same_and_another_seed_another(
    sampling: Callable[..., Sampling], tmp_path: Path
) -> None:
    found = {
        name: search(sampling(method="evolution", seed=seed), tmp_path / name, device="cpu")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    }
    assert found["a"] == found["b"]
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert {one.genotype for one in found["a"][1]}.isdisjoint(one.genotype for one in found["c"][1])


class KilledError(Exception):
    """In the place of a kill."""


def killing(at: int) -> Progress:
    """A progress that dies when so many steps are done."""

    def progress(done: int, total: int, note: str = "") -> None:
        assert total == 6
        if done == at:
            raise KilledError

    return progress


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_search_that_is_killed_anywhere_comes_to_the_same(
    method: str, sampling: Callable[..., Sampling], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each step in turn, those that end a candidate's training among them, and in a comparison."""
    run = sampling(method=method)
    whole = search(run, tmp_path / "whole", device="cpu")
    for at in range(1, 7):
        with pytest.raises(KilledError):
            search(run, tmp_path / "again", device="cpu", progress=killing(at))
    assert search(run, tmp_path / "again", device="cpu") == whole
    assert files(tmp_path / "again") == files(tmp_path / "whole")

    compared, calls = sampled._compared, list[int]()

    def compare(*given: Any) -> float:
        calls.append(len(calls))
        if calls[-1] == 1:
            raise KilledError
        return compared(*given)

    monkeypatch.setattr(sampled, "_compared", compare)
    with pytest.raises(KilledError):
        search(run, tmp_path / "third", device="cpu")
    assert len(list(tmp_path.glob("third/candidates/*/model.safetensors"))) == 2
    assert search(run, tmp_path / "third", device="cpu") == whole
    assert files(tmp_path / "third") == files(tmp_path / "whole")
    assert len(calls) == 4  # what was compared before is not again


def test_a_search_goes_on_inside_a_candidate(sampling: Callable[..., Sampling], tmp_path: Path) -> None:
    run, steps = sampling(steps=2), list[int]()
    with pytest.raises(KilledError):
        search(run, tmp_path / "run", device="cpu", progress=killing(4))
    search(run, tmp_path / "run", device="cpu", progress=lambda done, total, note="": steps.append(done))
    assert steps == [3, 4, 5, 6]  # 3 was saved: it says so, and goes on


@pytest.mark.parametrize("method", METHODS)
def test_a_signal_ends_the_step_and_keeps_it(
    method: str, sampling: Callable[..., Sampling], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, done = sampling(method=method, save_every=1000), list[int]()
    with monkeypatch.context() as patched:
        patched.setattr(stopping, "caught", lambda: done[-1:] == [3])
        with pytest.raises(stopping.Stopped):
            search(run, tmp_path / "run", device="cpu", progress=lambda step, total, note="": done.append(step))
    assert done == [1, 2, 3]
    assert (tmp_path / "run/candidates/0001/state.safetensors").is_file()
    assert search(run, tmp_path / "run", device="cpu") == search(run, tmp_path / "whole", device="cpu")
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_progress_is_that_of_all_candidates(sampling: Callable[..., Sampling], tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    notes: list[str] = []

    def progress(done: int, total: int, note: str = "") -> None:
        calls.append((done, total))
        notes.append(note)

    search(sampling(), tmp_path / "run", device="cpu", progress=progress)
    assert calls == [(done, 6) for done in range(1, 7)]
    assert [note.partition(":")[0] for note in notes] == [f"candidate {n} of 3" for n in (1, 1, 2, 2, 3, 3)]


def test_a_comparison_is_made_once(
    sampling: Callable[..., Sampling], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless its record is damaged, or of other weights or another part."""
    run = sampling(candidates=1, population=1)
    whole = search(run, tmp_path / "run", device="cpu")
    compared, made = sampled._compared, list[str]()

    def counted(run: Sampling, checkpoint: Checkpoint, device: str) -> float:
        made.append(checkpoint.arch.genotype)
        return compared(run, checkpoint, device)

    monkeypatch.setattr(sampled, "_compared", counted)
    assert search(run, tmp_path / "run", device="cpu") == whole
    assert not made
    record = tmp_path / "run/candidates/0000/comparison.json"
    content = record.read_bytes()
    written = json.loads(content)
    damaged: list[Any] = [{**written, name: "other"} for name in written]
    damaged += [{**written, "loss": float("nan")}, {"loss": written["loss"]}, [], {}, None]
    for number, other in enumerate(
        [*(json.dumps(each).encode() for each in damaged), b"", b"{", b"\xff", b"[" * 10**5], 1
    ):
        record.write_bytes(other)
        assert search(run, tmp_path / "run", device="cpu") == whole
        assert len(made) == number
        assert record.read_bytes() == content
    search(replace(run, architecture=run.training), tmp_path / "run", device="cpu")
    assert record.read_bytes() != content


def test_a_folder_of_another_search_is_refused(sampling: Callable[..., Sampling], tmp_path: Path) -> None:
    search(sampling(steps=1), tmp_path / "run", device="cpu")
    with pytest.raises(UsageError, match=r"holds a model trained with .*rate 0.001, not 0.002"):
        search(sampling(steps=1, rate=2e-3), tmp_path / "run", device="cpu")


def test_a_search_in_an_object_store(sampling: Callable[..., Sampling], tmp_path: Path, memory: str) -> None:
    run = sampling(steps=1)
    there = storage.place(f"{memory}/run", "a search")
    assert search(run, there, device="cpu") == search(run, tmp_path / "run", device="cpu", progress=silent)
    assert (there / "candidates" / "0002" / "comparison.json").is_file()
    assert search(run, there, device="cpu") == search(run, tmp_path / "run", device="cpu")
