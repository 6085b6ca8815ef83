"""A search is the same twice, stopped and resumed to the same bytes, and what it finds trains."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from curate import macs, nas, schema, stopping
from curate.archs.dlsr import Dlsr
from curate.config import NasConfig, TrainConfig
from curate.errors import DataError, UsageError
from curate.genotype import OPERATIONS, Genotype
from curate.ingestion import ingest
from curate.manifest import Manifest
from curate.nas.levels import Losses
from curate.nas.supernet import Architecture
from curate.resume import STATE_FILE
from curate.schema import GenotypeRecord
from curate.selection import select
from curate.training import train

QUICK: dict[str, Any] = {
    "steps": 7, "warmup": 2, "features": 4, "crop": 30, "batch_size": 2, "log_every": 2, "save_every": 3,
    "share": 0.4, "arch_rate": 0.05, "snapshots": (3,), "candidates": 3, "population": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the disk, and what a stopped run says of itself is forgotten."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(stopping, "_kept", stopping._kept)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Manifest:
    folder = tmp_path_factory.mktemp("nas")
    ingest([write_photos(folder / "photos", [(48, 60), (60, 48), (36, 72)])], folder / "store", patch=36, step=12)
    return select(folder / "store", "random", keep=1.0).save(folder / "all.parquet")


def config(**options: Any) -> NasConfig:
    return NasConfig(**{**QUICK, **options})


def files(folder: Path) -> dict[str, bytes]:
    """All that two searches have alike."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("events.") and path.name != nas.SECONDS_FILE
    }


@pytest.mark.slow
def test_a_search_by_candidates_goes_on_with_what_it_began_with(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latencies that candidates are charged with, and the options."""
    monkeypatch.setattr(nas.costs, "milliseconds", lambda net, image_BCHW: 1.0)
    few: dict[str, Any] = {"method": "random", "steps": 1, "warmup": 0, "snapshots": (), "cost": "latency"}

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nas.search(manifest, config(**few), tmp_path / "run", progress=killed)
    monkeypatch.setattr(nas.costs, "milliseconds", lambda net, image_BCHW: pytest.fail("measured again"))
    with pytest.raises(UsageError, match=r"holds a run that began with cost_weight 0\.2, not 5"):
        nas.search(manifest, config(**few, cost_weight=5.0), tmp_path / "run")
    tried = json.loads(nas.search(manifest, config(**few), tmp_path / "run").path.read_bytes())["search"]["tried"]
    assert [one["charge"] for one in tried] == pytest.approx([0.2 * 3 / 9] * 3)


METHODS = ["milenas", "darts", "darts2", "random", "evolution"]
FAST = ["milenas", "random"]  # one of each kind


@pytest.mark.parametrize(
    "method", [pytest.param(method, marks=[] if method in FAST else pytest.mark.slow) for method in METHODS]
)
def test_what_is_found_trains(method: str, manifest: Manifest, tmp_path: Path) -> None:
    few = {"random": 1, "evolution": 1, "darts": 3, "darts2": 3}
    small = {"steps": few[method], "warmup": 0, "snapshots": ()} if method in few else {}
    found = nas.search(manifest, config(method=method, **small), tmp_path / "search")
    assert not (tmp_path / "search" / STATE_FILE).exists()
    arch = Dlsr(genotype=str(tmp_path / "search" / "genotype.json"), features=4)
    assert arch.genotype == found.genotype.name
    assert (found.parameters, found.multiply_adds) == (macs.parameters(arch), macs.multiply_adds(arch, 720, 1280))
    made = train(arch, manifest, TrainConfig(steps=1, batch_size=2, crop=30), tmp_path / "run")
    assert made.arch == arch and made.recipe["config"]["hfen"] == 0.2  # the network's own


@pytest.mark.slow
@pytest.mark.parametrize("method", ["darts", "evolution"])  # of milenas a search that was stopped shows it
def test_the_same_search_twice_is_the_same(method: str, manifest: Manifest, tmp_path: Path) -> None:
    small = {"steps": 2, "warmup": 1, "snapshots": (), "candidates": 2}
    for name in ("one", "two"):
        nas.search(manifest, config(method=method, **small), tmp_path / name)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_what_a_search_writes(manifest: Manifest, tmp_path: Path) -> None:
    report = nas.search(manifest, config(), tmp_path / "run")
    assert report.seconds > 0 and report.steps == 7 and report.path == tmp_path / "run" / "genotype.json"
    record = schema.parse(GenotypeRecord, report.path.read_bytes(), "it")
    assert record.search is not None
    assert record.search["identity"]["warmup"] == 2 and record.search["step"] == 7
    assert record.search["patches"]["training"] + record.search["patches"]["architecture"] == len(manifest)
    assert sorted(path.name for path in (tmp_path / "run" / "snapshots").iterdir()) == [
        "00000003.json",
        "00000007.json",
    ]
    assert Genotype.load(tmp_path / "run" / "snapshots" / "00000007.json") == report.genotype
    final = load_file(tmp_path / "run" / "architecture.safetensors")
    assert {name: tuple(value.shape) for name, value in final.items()} == {
        "alpha": (3, 9), "beta3": (2,), "beta4": (3,), "beta5": (4,), "beta6": (5,),
    }  # fmt: skip
    assert Architecture.of(final).genotype() == report.genotype
    rows = pq.read_table(tmp_path / "run" / "history.parquet").to_pylist()
    assert sorted({row["step"] for row in rows}) == [0, 2, 4, 6, 7]
    last = {row["choice"]: row["value"] for row in rows if row["step"] == 7 and row["of"] == "layer2"}
    assert list(last.values()) == final["alpha"][1].tolist() and list(last) == list(OPERATIONS)
    warm = [[row["value"] for row in rows if row["step"] == step] for step in (0, 2)]
    assert warm[0] == warm[1] and np.abs(warm[0]).max() < 0.01  # not touched before the warm-up's end
    assert record.search["initial"] == str(Architecture.of({"alpha": torch.tensor(
        [[row["value"] for row in rows if row["step"] == 0 and row["of"] == f"layer{n}"] for n in (1, 2, 3)]
    ), **{f"beta{cell}": torch.tensor(
        [row["value"] for row in rows if row["step"] == 0 and row["of"] == f"cell{cell}"]
    ) for cell in (3, 4, 5, 6)}}).genotype())  # fmt: skip
    for name in ("architecture.svg", "genotype.svg"):
        assert (tmp_path / "run" / name).read_text().startswith("<svg")
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [point.step for point in events.Scalars("search/validation")] == [4, 6, 7]
    assert events.Scalars("layer1/conv_7x7")[-1].value == pytest.approx(float(final["alpha"].softmax(1)[0, 3]))


@pytest.mark.slow
def test_a_search_may_be_at_a_url(manifest: Manifest, memory: str) -> None:
    """All but TensorBoard's curves; one that has ended is found again."""
    report = nas.search(manifest, config(steps=3, warmup=1), f"{memory}/run")
    assert Genotype.load(f"{memory}/run/genotype.json") == report.genotype
    assert nas.search(manifest, config(steps=3, warmup=1), f"{memory}/run") == report


def test_without_connections(manifest: Manifest, tmp_path: Path) -> None:
    report = nas.search(manifest, config(connections=False, steps=3, warmup=1), tmp_path / "run")
    assert report.genotype.inputs == ((2,), (3,), (4,), (5,))
    assert load_file(tmp_path / "run" / "architecture.safetensors").keys() == {"alpha"}


def test_a_search_that_is_stopped_goes_on_to_the_same_bytes(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the warm-up, at its end, and after it."""
    nas.search(manifest, config(), tmp_path / "whole")
    done: list[int] = []
    for stop in (1, 2, 5):
        with monkeypatch.context() as patched:
            patched.setattr(stopping, "caught", lambda stop=stop: done[-1:] == [stop])
            with pytest.raises(stopping.Stopped):
                nas.search(manifest, config(), tmp_path / "parts", progress=lambda step, *_: done.append(step))
    assert len(done) < 10  # it went on, and did not begin again
    nas.search(manifest, config(), tmp_path / "parts")
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


@pytest.mark.slow
def test_seconds_are_those_of_all_parts(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 1000))
    monkeypatch.setattr(nas, "monotonic", lambda: float(next(clock)))
    with monkeypatch.context() as patched:
        patched.setattr(stopping, "caught", lambda: True)
        with pytest.raises(stopping.Stopped):
            nas.search(manifest, config(), tmp_path / "run")
    assert nas.search(manifest, config(save_every=100), tmp_path / "run").seconds == 2000


@pytest.mark.slow
def test_a_measured_latency_is_measured_once(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def fake(net: torch.nn.Module, image_BCHW: torch.Tensor) -> float:
        measured.append(type(net).__name__)
        return float(len(measured))

    monkeypatch.setattr(nas.costs, "milliseconds", fake)
    latency = config(cost="latency", target=5.0, steps=3)
    with monkeypatch.context() as patched:
        patched.setattr(stopping, "caught", lambda: True)
        with pytest.raises(stopping.Stopped):
            nas.search(manifest, latency, tmp_path / "run")
    assert len(measured) == len(OPERATIONS) + 1
    report = nas.search(manifest, latency, tmp_path / "run")
    assert len(measured) == len(OPERATIONS) + 1
    record = json.loads(report.path.read_bytes())["search"]
    assert record["cost"]["of"] == "latency" and record["cost"]["total"] > 0


def test_a_finished_search_is_returned_and_another_one_refused(manifest: Manifest, tmp_path: Path) -> None:
    report = nas.search(manifest, config(), tmp_path / "run")
    before = files(tmp_path / "run")
    assert nas.search(manifest, config(log_every=3, snapshots=()), tmp_path / "run") == report
    assert files(tmp_path / "run") == before
    with pytest.raises(UsageError, match=r"holds a search with arch_rate 0\.05, not 0\.1; name another folder with -o"):
        nas.search(manifest, config(arch_rate=0.1), tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        nas.search(manifest, config(), tmp_path / "file")
    Genotype.parse("dlsr").save((tmp_path / "file").with_name("genotype.json"))
    with pytest.raises(UsageError, match="holds a genotype of another making"):
        nas.search(manifest, config(), tmp_path)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_state(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = nas.Levels.step

    def broken(levels: nas.Levels, *batches: Any) -> Losses:
        found = step(levels, *batches)
        return found._replace(training=found.training * (float("nan") if broken.calls > 4 else 1))  # type: ignore[attr-defined]

    def counting(levels: nas.Levels, *batches: Any) -> Losses:
        broken.calls += 1  # type: ignore[attr-defined]
        return broken(levels, *batches)

    broken.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(nas.Levels, "step", counting)
    with pytest.raises(DataError, match="the training loss is nan at step 6: search with a smaller --rate"):
        nas.search(manifest, config(), tmp_path / "run")
    assert (tmp_path / "run" / STATE_FILE).is_file() and not (tmp_path / "run" / "genotype.json").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"crop": 28}, "dlsr takes LR of 15 px or more a side: a crop should be 30 px or more, found 28, in LR 14"),
        ({"crop": 31}, "a crop should be a multiple of the scale 2, found 31"),
        ({"crop": 38}, "a crop of 38 px on the x2 grid does not fit into windows of 36 px; take a smaller --crop"),
        (
            {"scale": 3},
            "dlsr:scale=3 takes LR of 15 px or more a side: a crop should be 45 px or more, found 30, in LR 10",
        ),
    ],
)
def test_what_cannot_be_searched_is_one_line(
    options: dict[str, Any], reason: str, manifest: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as error:
        nas.search(manifest, config(**options), tmp_path / "run")
    assert str(error.value) == reason
    assert not (tmp_path / "run" / "genotype.json").exists()


def test_a_manifest_too_small_to_split(manifest: Manifest, tmp_path: Path) -> None:
    one = manifest.table["image_id"][0].as_py()
    few = Manifest(
        manifest.table.filter(manifest.table["image_id"].to_numpy(False) == one), manifest.recipe, manifest.path
    )
    reason = f"a search should have patches of two photographs or more, to split them; found {len(few)} patches of"
    with pytest.raises(UsageError, match=reason):
        nas.search(few, config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
def test_a_search_on_a_gpu_is_one_on_the_cpu(manifest: Manifest, tmp_path: Path) -> None:
    """Steps one by one, and replayed as graphs; architectures agree to the rounding of sums."""
    ends = {}
    for name, device, graphs in (("cpu", "cpu", False), ("gpu", "cuda", False), ("graphs", "cuda", True)):
        nas.search(manifest, config(steps=16, graphs=graphs), tmp_path / name, device=device)
        ends[name] = load_file(tmp_path / name / "architecture.safetensors")["alpha"]
    assert (ends["gpu"] - ends["cpu"]).abs().max() < 0.02
    assert (ends["graphs"] - ends["gpu"]).abs().max() < 0.02
