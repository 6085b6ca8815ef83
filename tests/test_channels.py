"""Compressions of a study: each method on each manifest, measured before and after, and how far the maps agree."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest

from curate import channels, pipeline, schema
from curate.archs.drn import Drn
from curate.channels import Kept, agreement
from curate.checkpoint import Checkpoint
from curate.config import DrcConfig, TrainConfig
from curate.manifest import Manifest
from curate.plan import Pipeline
from curate.schema import KeptRecord, PrunedUnit

FULL = (4, 8, 16, 16, 16, 16)  # widths of drn:features=4,blocks=1
STUDY = """
[ingest]
patch = 48
step = 48
[score]
scorers = ["sobel"]
[[select]]
name = "all"
strategy = "random"
keep = 1.0
[[select]]
name = "few"
strategy = "random:seed={seed}"
keep = 0.25
[[drc]]
name = "small"
arch = "drn:features=4,blocks=1"
base = "all"
manifests = ["all", "few"]
seeds = [0, 5]
train = { steps = 3, batch_size = 2, crop = 48 }
options = { crop = 48, finetune_crop = 48, finetune_steps = 2 }
[drc.methods.drc]
[drc.methods.l1]
numbers = "uniform"
criterion = "l1"
"""


class Report(NamedTuple):
    """As `curate.drc.DrcReport`."""

    arch: Drn
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    seconds: dict[str, float]


class Fake:
    """Stands for training, compressing, loading, measuring and timing, all of which take seconds a network."""

    def __init__(self) -> None:
        self.trained: list[tuple[str, Manifest, TrainConfig, Path]] = []
        self.asked: list[tuple[Path, Manifest, DrcConfig, Path]] = []
        self.timed: list[Drn] = []

    def train(self, arch: str, manifest: Manifest, config: TrainConfig, out: Path, **_: Any) -> None:
        self.trained.append((arch, manifest, config, out))

    def compress(self, checkpoint: Path, manifest: Manifest, config: DrcConfig, out: Path, **_: Any) -> Report:
        number = len(self.asked)
        self.asked.append((checkpoint, manifest, config, out))
        chosen = [list(range(width)) for width in FULL]
        if config.channels is None:
            rng = np.random.default_rng(number)
            chosen = [sorted(rng.choice(width, rng.integers(2, 5), replace=False).tolist()) for width in FULL]
        (out / "pruned").mkdir(parents=True)
        shapes = [
            PrunedUnit(name=str(unit), maps=width, left=len(maps))
            for unit, (width, maps) in enumerate(zip(FULL, chosen, strict=True))
        ]
        record = KeptRecord(units=shapes, kept=chosen, identity={}, versions={})
        (out / "pruned" / "kept.json").write_bytes(schema.dump(record, indent=2))
        arch = Drn(features=4, blocks=1, config=".".join(str(len(one)) for one in chosen))
        return Report(arch, (9000, 1000 + number), (5, 10**9), {"channels": 2.0, "prune": 3.5, "finetune": 100.0})

    def load(self, folder: Path) -> Path:
        return folder

    def measured(self, made: Path, record: Path, test: Path, device: str) -> dict[str, float]:
        assert record == made / "Bench.json"
        return {"psnr": 20.0 if made.name == "pruned" else 30.0 + 0.1 * len(self.asked), "ssim": 0.9}

    def times(self, archs: list[Drn], record: Path, device: str) -> list[float]:
        self.timed = archs
        return [1.5 * number for number, _ in enumerate(archs)]


@pytest.fixture(scope="module")
def patched() -> Iterator[Fake]:
    made = Fake()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channels, "train", made.train)
        patch.setattr(channels.drc, "compress", made.compress)
        patch.setattr(Checkpoint, "load", made.load)
        patch.setattr(channels, "measured", made.measured)
        patch.setattr(channels, "timed", made.times)
        yield made


class Study(NamedTuple):
    """A study that was done."""

    trained: list[tuple[str, Manifest, TrainConfig, Path]]
    asked: list[tuple[Path, Manifest, DrcConfig, Path]]
    timed: list[Drn]
    plan: Pipeline
    out: Path
    rows: list[dict[str, Any]]
    page: str


@pytest.fixture(scope="module")
def study(patched: Fake, tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Study:
    """STUDY, with fakes."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.toml").write_text(STUDY)
    photos, bench = write_photos(folder / "photos"), write_photos(folder / "Bench", [(60, 72)], 9)
    pipeline.run(folder / "study.toml", folder / "out", [photos], [bench])
    table = pipeline.results(folder / "out")["drc"]
    page = (folder / "out" / "drc.md").read_text()
    calls = list(patched.trained), list(patched.asked), list(patched.timed)
    return Study(*calls, Pipeline.load(folder / "study.toml"), folder / "out", table.to_pylist(), page)


def test_one_network_is_trained_and_compressed_by_each_method_with_each_manifest_and_seed(study: Study) -> None:
    out = study.out
    ((arch, manifest, config, trained),) = study.trained
    assert arch == "drn:features=4,blocks=1" and config == TrainConfig(steps=3, batch_size=2, crop=48)
    assert manifest.digest() == Manifest.load(out / "all.parquet").digest() and trained == out / "drc/small/trained"
    todo = study.plan.compressions()
    assert len(study.rows) == len(todo) == len(study.asked) == 3 * 2 * 2
    for number, (one, asked, row) in enumerate(zip(todo, study.asked, study.rows, strict=True)):
        checkpoint, fed, config, where = asked
        label = "all" if one.manifest == "all" else f"few-seed{one.seed}"
        assert checkpoint == trained and where == out / "drc/small" / one.folder and config == one.config
        assert fed.digest() == Manifest.load(out / f"{label}.parquet").digest() and row["patches"] == len(fed)
        assert (row["method"], row["manifest"], row["seed"]) == (one.method, one.manifest, one.seed)
        assert (row["parameters"], row["multiply_adds"]) == (1000 + number, 10**9)
        assert row["seconds"] == 5.5 and row["milliseconds"] == 1.5 * number
        assert (row["psnr_Bench_before"], row["psnr_Bench"]) == (20.0, pytest.approx(30.1 + 0.1 * number))
        assert study.timed[number].config in (row["numbers"], None)
    assert not (out / "result.parquet").exists()


def test_compressions_are_compared_with_the_references_of_the_same_method(study: Study) -> None:
    def kept(method: str, manifest: str, seed: int) -> Kept:
        record = study.out / "drc/small" / f"{method}_{manifest}_{seed}" / "pruned/kept.json"
        return Kept(FULL, tuple(map(tuple, json.loads(record.read_text())["kept"])))

    names = ["numbers_agreement", "numbers_by_chance", "maps_agreement", "maps_by_chance"]
    for row in study.rows:
        found = [row[name] for name in names], [row[f"{name}_other_seeds"] for name in names]
        if row["method"] == "unpruned":
            assert found == ([None] * 4, [None] * 4)
            continue
        mine = kept(row["method"], row["manifest"], row["seed"])
        same, other = (
            list(agreement(mine, kept(row["method"], "all", seed)).values()) for seed in (row["seed"], 5 - row["seed"])
        )
        assert found == ([None] * 4 if row["manifest"] == "all" else same, other)


def test_agreement_is_by_unit_and_chance_is_what_random_maps_and_shuffled_numbers_give() -> None:
    one = Kept((4, 6, 6), ((0, 1), (0, 1, 2, 3), (5,)))
    other = Kept((4, 6, 6), ((1, 2), (2, 3, 4), (5,)))
    found = agreement(one, other)
    assert found["maps_agreement"] == pytest.approx((1 / 3 + 2 / 5 + 1) / 3)
    assert found["numbers_agreement"] == pytest.approx(2 / 3)
    assert agreement(one, one)["maps_agreement"] == agreement(one, one)["numbers_agreement"] == 1
    assert found == pytest.approx(agreement(other, one))

    def all_pairs(width: int, mine: int, theirs: int) -> Any:
        return np.mean([
            len({*a} & {*b}) / len({*a} | {*b})
            for a in combinations(range(width), mine) for b in combinations(range(width), theirs)
        ])  # fmt: skip

    chance = [all_pairs(4, 2, 2), all_pairs(6, 4, 3), all_pairs(6, 1, 1)]
    assert found["maps_by_chance"] == pytest.approx(np.mean(chance))
    # Of the two units of 6 maps one has 4 or 1, the other one 3 or 1: of four ways to pair them one is alike.
    assert found["numbers_by_chance"] == pytest.approx((1 + 2 / 4) / 3)


def test_the_page_says_what_each_is_worth_and_how_far_they_agree(study: Study) -> None:
    worth, alike = study.page.split("\n\n")[1], study.page.split("\n\n")[3]
    head, _, *lines = [line.strip("| ").split(" | ") for line in worth.splitlines()]
    assert head == [
        "method", "fed with", "seconds", "parameters, k", "multiply-adds, G", "latency, ms", "PSNR Bench before",
        "PSNR Bench",
    ]  # fmt: skip
    assert [line[:2] for line in lines] == [[m, f] for m in ("unpruned", "drc", "l1") for f in ("all", "few")]
    assert lines[0][2:] == ["6 ± 0", "1.0 ± 0.0", "1.00 ± 0.00", "0.8 ± 1.1", "20.00 ± 0.00", "30.15 ± 0.07"]
    head, _, *lines = [line.strip("| ").split(" | ") for line in alike.splitlines()]
    assert head[2:5] == ["maps, same seed", "maps, other seeds", "maps, by chance"] and len(lines) == 4
    few = [row for row in study.rows if (row["method"], row["manifest"]) == ("drc", "few")]
    both = [row["maps_agreement"] for row in few]
    assert lines[1][2] == f"{np.mean(both):.2f} ± {np.std(both, ddof=1):.2f}"
    assert lines[1][4] == f"{np.mean([row['maps_by_chance'] for row in few]):.2f}"
    (every, _) = [row for row in study.rows if (row["method"], row["manifest"]) == ("drc", "all")]
    assert lines[0][2:5] == [
        "-", f"{every['maps_agreement_other_seeds']:.2f}", f"{every['maps_by_chance_other_seeds']:.2f}"
    ]  # fmt: skip
    assert "trained once on all for 3 steps" in study.page and "2 steps of finetuning" in " ".join(study.page.split())
    assert max(map(len, study.page.split("\n\n")[2].splitlines())) <= 120


def test_the_picture_has_a_dot_a_network_in_the_colour_of_its_manifest(study: Study) -> None:
    picture = ElementTree.parse(study.out / "drc.svg").getroot()
    dots = Counter(circle.get("fill") for circle in picture.findall("{*}circle"))
    assert sorted(dots.values()) == [7, 7]  # six networks and the legend, of each of the two manifests
    words = [text.text for text in picture.findall("{*}text")]
    assert {"unpruned", "drc", "l1", "all", "few", "small, Bench"} <= {*words}
    assert "1.0 k, 1.00 G, 2.2 ms" in words


def test_a_study_has_no_compressions_that_it_does_not_name_any_more(study: Study, tmp_path: Path) -> None:
    """And where nothing is finetuned there is nothing to measure of that."""
    short = STUDY.replace("finetune_steps = 2", "finetune_steps = 0").replace("[0, 5]", "[5]")
    (tmp_path / "study.toml").write_text(short.replace('["all", "few"]', '["few"]'))
    photos, out = study.out.parent / "photos", tmp_path / "out"
    pipeline.run(tmp_path / "study.toml", out, [photos], [study.out.parent / "Bench"])
    rows = pq.read_table(out / "drc.parquet").to_pylist()
    assert [row["method"] for row in rows] == ["unpruned", "drc", "l1"]
    assert {row["psnr_Bench_before"] for row in rows} == {20.0} and {row["psnr_Bench"] for row in rows} == {None}
    page = (out / "drc.md").read_text()
    assert "no finetuning" in page and "by chance" not in page  # one compression alone is compared with nothing
    assert (out / "drc.svg").read_text().startswith("<svg")
    train = (
        '[[train]]\narchs = ["fsrcnn:scale=2,d=4,s=2,m=1"]\nmanifests = ["all"]\noptions = { steps = 1, crop = 24 }\n'
    )
    text = STUDY.replace(STUDY[STUDY.index('[[select]]\nname = "few"') :], train)
    (tmp_path / "study.toml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "train", lambda *_, **__: Checkpoint(Drn(), {}, {"steps": 1}))
        patch.setattr(pipeline, "measured", lambda *_: {"psnr": 1.0, "ssim": 1.0})
        pipeline.run(tmp_path / "study.toml", out, [photos], [study.out.parent / "Bench"])
    assert not list(out.glob("drc.*")) and list(pipeline.results(out)) == ["result"]
