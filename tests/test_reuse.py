"""No silent reuse: other options, weights, code or bytes make it anew or are refused, and the line says which differs.

A section a place where an old result could be taken. Each is first made, then one thing is changed.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from conftest import encoded_png, scene
from PIL import Image

import curate
from curate import (
    duplication,
    evaluation,
    exporting,
    ingestion,
    leakage,
    measurement,
    packing,
    pipeline,
    reuse,
    scoring,
    survey,
)
from curate import training as training_module
from curate.archs.fsrcnn import Fsrcnn
from curate.checkpoint import Checkpoint
from curate.engine import Part
from curate.errors import DataError, UsageError
from curate.exporting import export
from curate.ingestion import ingest
from curate.packing import pack
from curate.scorers.sobel import Sobel
from curate.store import Store

NET = "fsrcnn:scale=2,d=4,s=2,m=1"
CONFIG = curate.TrainConfig(steps=4, batch_size=2, crop=24, save_every=2)
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def quick(monkeypatch: Patch) -> None:
    """No waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def photographs(folder: Path, *seeds: int, shrink: int = 1) -> Path:
    """`0.png`, `1.png`, ...: a photograph each seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (folder / f"{number}.png").write_bytes(encoded_png(seed, 36 // shrink, 48 // shrink))
    return folder


def made(folder: Path, *seeds: int, lr: int | None = None) -> Store:
    """A store of such photographs; with LR images of their own that begin at seed `lr`."""
    photos = photographs(folder / "photos", *seeds)
    lrs = {}
    if lr is not None:
        lrs = {2: str(photographs(folder / "X2", *range(lr, lr + len(seeds)), shrink=2))}
    ingest([photos], folder / "store", patch=24, step=12, lr=lrs)
    return Store.open(folder / "store")


def network(path: Path, seed: int) -> Path:
    """The file of an untrained network: other weights for each seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Checkpoint(Fsrcnn(scale=2, d=4, s=2, m=1), Fsrcnn(scale=2, d=4, s=2, m=1).build().state_dict(), {}).save(path)
    return path


def in_place_of(store: Store, other: Store) -> Store:
    """The other store's photographs under the first one's scores and findings."""
    for name in ("shards", "tables/images", "tables/cells", "tables/patches", "commits/ingest"):
        shutil.rmtree(store.path / name)
        shutil.copytree(other.path / name, store.path / name)
    return Store.open(store.path)


# --- the words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "asked", "expected"),
    [
        ({}, {}, ""),
        ({"a": 1, "b": [2]}, {"b": [2], "a": 1}, ""),
        ({"rate": 0.1, "seed": 0}, {"rate": 0.2, "seed": 0}, "rate 0.1, not 0.2"),
        ({"a": 1}, {"b": 2}, "no b, not 2; a 1, not none"),
        ({"weights": "ab" * 32}, {"weights": "cd" * 32}, "weights abababab..., not cdcdcdcd..."),
        ({}, dict.fromkeys("abcdefg", 1), "; ".join(f"no {key}, not 1" for key in "abcde") + "; and 2 more"),
        ({"a": "x\n\x1b"}, {"a": 1}, "a x\\n\\x1b, not 1"),
    ],
)
def test_differences(found: dict[str, Any], asked: dict[str, Any], expected: str) -> None:
    assert reuse.differences(found, asked) == expected


def test_the_nearest_is_the_one_that_is_named() -> None:
    there = {"far": {"a": 1, "b": 1}, "near": {"a": 1, "b": 2}, "too": {"a": 3, "b": 2}}
    assert reuse.anew("x", there, {"a": 2, "b": 2}) == "x is made anew: near has a 1, not 2"
    assert reuse.anew("x", there, {"a": 1, "b": 1}) == reuse.anew("x", {}, {"a": 1}) == ""


# --- scores -----------------------------------------------------------------------------------------------------------


def sobel_anew(patch: Patch, tmp_path: Path) -> str:
    patch.setattr(Sobel, "version", Sobel.version + 1)
    return "sobel"


def means_anew(patch: Patch, tmp_path: Path) -> str:
    patch.setattr(scoring, "_MEANS_VERSION", scoring._MEANS_VERSION + 1)
    return "sobel"


def other_weights(patch: Patch, tmp_path: Path) -> str:
    return f"loss:checkpoint={network(tmp_path / 'net', 2)}"


SCORES: dict[str, tuple[str, Callable[[Patch, Path], str], str]] = {
    "options": ("entropy", lambda patch, path: "entropy:bins=64", "bins 256, not 64"),
    "weights": ("loss:checkpoint={0}/net", other_weights, "checkpoint {1}..., not {2}..."),
    "code": ("sobel", sobel_anew, f"code version {Sobel.version}, not {Sobel.version + 1}"),
    "code of means": ("sobel", means_anew, "code version of means 2, not 3"),
}


@pytest.mark.parametrize("what", SCORES)
def test_scores_by_another_scorer_are_made_anew(tmp_path: Path, monkeypatch: Patch, what: str) -> None:
    first, change, expected = SCORES[what]
    network(tmp_path / "net", 1)
    store = made(tmp_path, 0, 1)
    assert curate.score(store, [first.format(tmp_path)], device="cpu").why == []
    (before,) = store.score_sets()
    spec = change(monkeypatch, tmp_path)
    report = curate.score(store, [spec], device="cpu")
    (after,) = (found for found in store.score_sets() if found != before)
    hashes = [str(found.record.identity.get("checkpoint"))[:8] for found in (before, after)]
    label = after.record.label
    assert report.why == [f"{label} is made anew: {before.folder} has {expected.format('', *hashes)}"]
    assert report.skipped == 0 and report.images == 2
    fresh = Store.open(shutil.copytree(store.path, tmp_path / "fresh"))
    shutil.rmtree(fresh.path / "tables" / "scores")
    shutil.rmtree(fresh.path / "commits" / "scores")
    curate.score(fresh := Store.open(fresh.path), [spec], device="cpu")
    assert fresh.score_table(after, 0).equals(store.score_table(after, 0))
    assert curate.score(store, [spec], device="cpu").why == []  # it is there now


def test_scores_of_other_photographs_are_made_anew(tmp_path: Path) -> None:
    store, other = made(tmp_path / "a", 0, 1), made(tmp_path / "b", 2, 3)
    for each in (store, other):
        curate.score(each, ["sobel"], device="cpu")
    store = in_place_of(store, other)
    (found,) = store.score_sets()
    report = curate.score(store, ["sobel"], device="cpu")
    assert report.why == [f"{found.folder}: scored again, 1 shard is not the one that was scored before"]
    assert store.score_table(found, 0).equals(other.score_table(found, 0))


def test_two_scores_of_one_label_are_told_apart_in_sql(tmp_path: Path) -> None:
    store = made(tmp_path, 0)
    for seed in (1, 2):
        curate.score(store, [f"loss:checkpoint={network(tmp_path / 'net', seed)}"], device="cpu")
    names = list(store.score_columns())
    assert len(names) == 2 and all(name.startswith("loss:checkpoint=net@") for name in names)


# --- checks -----------------------------------------------------------------------------------------------------------


def test_findings_are_of_these_test_images_this_code_and_these_photographs(tmp_path: Path, monkeypatch: Patch) -> None:
    bench = tmp_path / "Bench"
    bench.mkdir()
    pictures = [np.repeat(scene(200, 240, seed)[..., None], 3, axis=2) for seed in (1, 2)]
    Image.fromarray(pictures[0]).save(bench / "a.png")
    (tmp_path / "photos").mkdir()
    Image.fromarray(pictures[1]).save(tmp_path / "photos" / "0.png")
    ingest([tmp_path / "photos"], tmp_path / "store", patch=96, step=96)
    first = curate.leaks(tmp_path / "store", bench)
    assert (first.leaks.num_rows, first.why) == (0, [])
    assert curate.leaks(tmp_path / "store", bench).images == 0
    Image.fromarray(pictures[1]).save(bench / "a.png")  # the same name
    second = curate.leaks(tmp_path / "store", bench)
    assert second.leaks.num_rows == 1 and "Bench is made anew: leaks@" in second.why[0]
    assert "test image a.png " in second.why[0] and second.why[0].count("...") == 2
    monkeypatch.setattr(leakage, "_VERSION", leakage._VERSION + 1)
    (line,) = curate.leaks(tmp_path / "store", bench).why
    assert line.endswith(f"has code version {leakage._VERSION - 1}, not {leakage._VERSION}")


def test_duplicates_are_looked_for_again(tmp_path: Path, monkeypatch: Patch) -> None:
    store, other = made(tmp_path / "a", 0, 1), made(tmp_path / "b", 2, 3)
    assert curate.duplicates(store).why == []
    store = in_place_of(store, other)
    report = curate.duplicates(store)
    assert report.images == 2
    assert report.why[0].endswith("looked at again, 1 shard or those before are not those that were looked at")
    monkeypatch.setattr(duplication, "_VERSION", duplication._VERSION + 1)
    report = curate.duplicates(store)
    assert report.images == 2
    assert report.why[0].endswith(f"has code version {duplication._VERSION - 1}, not {duplication._VERSION}")


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A training, as it is asked for."""

    folder: Path
    arch: str = NET
    config: curate.TrainConfig = CONFIG
    manifest: str = "all.parquet"

    def train(self, steps: int | None = None) -> Checkpoint:
        def stop(name: str, *_: object) -> None:
            raise StoppedError

        options = {"init": self.folder / "net", "validate": self.folder / "Bench", "device": "cpu"}
        manifest = self.folder / self.manifest
        with pytest.MonkeyPatch.context() as patch:
            if steps is not None:
                patch.setattr(training_module._Keeper, "finish", stop)
            return curate.train(self.arch, manifest, self.config, self.folder / "run", **options)


class StoppedError(Exception):
    """Raised in the middle of a run."""


def other_manifest(asked: Asked) -> Asked:
    curate.select(asked.folder / "store", "random", keep=0.5).save(asked.folder / "half.parquet")
    return replace(asked, manifest="half.parquet")


def other_store(asked: Asked) -> Asked:
    """The same photographs, with other LR images."""
    shutil.rmtree(asked.folder / "store")
    made(asked.folder, 0, 1, lr=200)
    curate.select(asked.folder / "store", "random", keep=1.0).save(asked.folder / "all.parquet")
    return asked


def written(asked: Asked, write: Callable[[], object]) -> Asked:
    write()
    return asked


TRAININGS: dict[str, tuple[Callable[[Asked, Patch], Asked], str]] = {
    "options": (lambda asked, patch: replace(asked, config=replace(CONFIG, rate=0.002)), "rate 0.001, not 0.002"),
    "arch": (lambda asked, patch: replace(asked, arch=NET.replace("d=4", "d=5")), f"arch {NET}, not "),
    "chosen patches": (lambda asked, patch: other_manifest(asked), "manifest "),
    "weights to start from": (lambda asked, patch: written(asked, lambda: network(asked.folder / "net", 2)), "init "),
    "LR images": (lambda asked, patch: other_store(asked), "lr "),
    "validation images": (
        lambda asked, patch: written(asked, lambda: photographs(asked.folder / "Bench", 8)),
        "validation ",
    ),
    "code": (
        lambda asked, patch: written(asked, lambda: patch.setattr(training_module, "_VERSION", 2)),
        "code 1, not 2",
    ),
    "code that measures": (
        lambda asked, patch: written(asked, lambda: patch.setattr(evaluation, "_MEASURED", "evaluate 2")),
        "validation ",
    ),
}


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    made(tmp_path, 0, 1, lr=100)
    curate.select(tmp_path / "store", "random", keep=1.0).save(tmp_path / "all.parquet")
    network(tmp_path / "net", 1)
    photographs(tmp_path / "Bench", 7)
    return Asked(tmp_path)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("what", TRAININGS)
def test_a_run_of_other_things_is_neither_taken_nor_gone_on_with(
    asked: Asked, monkeypatch: Patch, what: str, ended: bool
) -> None:
    if ended:
        asked.train()
    else:
        with pytest.raises(StoppedError):
            asked.train(2)
    before = {path: path.read_bytes() for path in (asked.folder / "run").rglob("*") if path.is_file()}
    change, expected = TRAININGS[what]
    with pytest.raises(UsageError) as refused:
        change(asked, monkeypatch).train()
    said = "holds a model trained with" if ended else "holds a run that began with"
    assert f"{said} {expected}" in str(refused.value) and str(refused.value).isprintable()
    assert {path: path.read_bytes() for path in before} == before


def test_what_an_older_curate_does_not_say_is_what_it_was_then(asked: Asked, monkeypatch: Patch) -> None:
    """Entries that came later: without them a run was of the first code, the defaults, and its own store."""
    real = training_module._Run.recipe.func  # type: ignore[attr-defined]
    later = ("lr", "validation", "code")
    with monkeypatch.context() as patch:
        old = property(lambda run: {key: value for key, value in real(run).items() if key not in later})
        patch.setattr(training_module._Run, "recipe", old)
        patch.setattr(training_module._Run, "defaults", property(lambda run: {}))
        curate.train(NET, asked.folder / "all.parquet", CONFIG, asked.folder / "run", device="cpu")
    again = curate.train(NET, asked.folder / "all.parquet", CONFIG, asked.folder / "run", device="cpu")
    assert "code" not in again.recipe
    with pytest.raises(UsageError, match=r"trained with no validation, not \w{8}\.\.\.;"):
        curate.train(NET, asked.folder / "all.parquet", CONFIG, asked.folder / "run", validate=asked.folder / "Bench")
    monkeypatch.setattr(training_module, "_VERSION", 2)
    with pytest.raises(UsageError, match="trained with code 1, not 2"):
        curate.train(NET, asked.folder / "all.parquet", CONFIG, asked.folder / "run", device="cpu")


# --- manifests, packed stores, exports --------------------------------------------------------------------------------


def test_a_manifest_and_a_store_that_was_changed(tmp_path: Path) -> None:
    store, other = made(tmp_path / "a", 0, 1), made(tmp_path / "b", 2, 3)
    manifest = curate.select(store, "random", keep=1.0).save(tmp_path / "all.parquet")
    then, now = store.digest(), other.digest()
    in_place_of(store, other)
    with pytest.raises(DataError) as refused:
        curate.Manifest.load(tmp_path / "all.parquet").store()
    assert str(refused.value).endswith(f"first 1 shards differs, {then[:8]}... then, {now[:8]}... now")
    assert manifest.recipe.store.digest == then


def chosen(store: Store, name: str, seed: int = 0, strategy: str = "random") -> Path:
    curate.select(store, f"{strategy}:seed={seed}", keep=0.5).save(store.path.parent / name)
    return store.path.parent / name


@pytest.mark.parametrize("what", ["patches", "source bytes", "code", "shard size", "a store"])
def test_a_packed_store_of_other_things_is_refused(tmp_path: Path, monkeypatch: Patch, what: str) -> None:
    store = made(tmp_path / "a", 0, 1, lr=100)
    manifest = chosen(store, "one.parquet")
    pack(manifest, tmp_path / "packed", shard_size=1)
    out, options = tmp_path / "packed", {"shard_size": 1}
    if what == "patches":
        manifest, expected = (
            chosen(store, "two.parquet", 1),
            r"is packed from other things \(manifest \w{8}\.\.\., not ",
        )
    elif what == "source bytes":  # of LR images: an HR image is its own id
        manifest = chosen(made(tmp_path / "b", 0, 1, lr=200), "one.parquet")
        expected = r"is packed from other things \(store \w{8}\.\.\., not \w{8}\.\.\.\); name a new or empty folder"
    elif what == "code":
        monkeypatch.setattr(packing, "_VERSION", "pack 3")
        expected = "was begun by another version of what packs, not 'pack 3': name a new or empty folder"
    elif what == "shard size":
        options, expected = {}, "was begun with shards of another size: give the same --shard-size"
    else:
        out, expected = store.path, "is a store of photographs; name a new or empty folder"
    with pytest.raises(UsageError, match=expected):
        pack(manifest, out, **options)


@pytest.mark.parametrize("what", ["target", "scale", "patches", "LR bytes", "code"])
def test_an_export_of_other_things_is_refused(tmp_path: Path, monkeypatch: Patch, what: str) -> None:
    store = made(tmp_path / "a", 0, 1, lr=100)
    manifest, options = chosen(store, "one.parquet"), {"to": "basicsr", "scale": 2}
    export(manifest, tmp_path / "out", **options)
    assert export(manifest, tmp_path / "out", **options).kept > 0
    if what == "target":
        options["to"], expected = "folder", "target basicsr, not folder"
    elif what == "scale":
        options["scale"], expected = 3, "scale 2, not 3"
    elif what == "patches":
        manifest, expected = chosen(store, "two.parquet", 1), "hash of windows, scores and weights "
    elif what == "LR bytes":
        manifest, expected = chosen(made(tmp_path / "b", 0, 1, lr=200), "one.parquet"), "hash of the store's LR images "
    else:
        monkeypatch.setattr(exporting, "_VERSION", 2)
        expected = "code version 1, not 2"
    with pytest.raises(UsageError, match=f"holds another export: {expected}"):
        export(manifest, tmp_path / "out", **options)


# --- ingest -----------------------------------------------------------------------------------------------------------


def test_lr_images_that_were_replaced_are_told(tmp_path: Path) -> None:
    store = made(tmp_path, 0, 1, lr=100)
    lr = {2: str(tmp_path / "X2")}
    assert ingest([tmp_path / "photos"], store.path, lr=lr).other_lr == 0
    photographs(tmp_path / "X2", 200, shrink=2)
    report = ingest([tmp_path / "photos"], store.path, lr=lr)
    assert (report.known, report.other_lr, report.without_lr) == (2, 1, 0)


def test_shards_of_another_version_are_told(tmp_path: Path, monkeypatch: Patch) -> None:
    store = made(tmp_path, 0)
    monkeypatch.setattr(ingestion, "FINGERPRINT", "f" * 16)
    assert ingest([tmp_path / "photos"], store.path).other_version == 1


@pytest.mark.parametrize("what", ["listing", "LR", "code", "refused bytes"])
def test_what_other_parts_examined_is_taken_for_the_same_sources_alone(
    tmp_path: Path, monkeypatch: Patch, what: str
) -> None:
    monkeypatch.setattr(survey, "CHUNK", 1)
    photos = photographs(tmp_path / "photos", 0, 1)
    (photos / "2.png").write_bytes(b"no picture")
    lrs = photographs(tmp_path / "X2", 10, 11, 12, shrink=2)
    options: dict[str, Any] = {"patch": 24, "step": 12, "lr": {2: str(lrs)}}
    assert ingest([photos], tmp_path / "store", **options, part=Part.parse("1/2")).missing == 1
    expected = 1  # of the chunks are missing: this part's are there
    if what == "listing":
        (photos / "3.png").write_bytes(encoded_png(3))
        (lrs / "3.png").write_bytes(encoded_png(13, 18, 24))
        expected = 2
    elif what == "LR":
        (lrs / "0.png").rename(lrs / "0x2.png")
    elif what == "code":
        monkeypatch.setattr(survey, "_FINGERPRINT", "f" * 16)
    else:
        (photos / "2.png").write_bytes(encoded_png(2))
    read, names = curate.sources.Source.read, []  # type: ignore[attr-defined]
    monkeypatch.setattr("curate.sources.Source.read", lambda source: names.append(source.name) or read(source))
    assert ingest([photos], tmp_path / "store", **options, part=Part.parse("1/2")).missing == expected
    assert bool(names) == (what != "refused bytes")  # the chunks are used again only there
    if what == "refused bytes":  # the row is of the bytes that were examined; the others are new, as ever
        report = ingest([photos], tmp_path / "store", **options, part=Part.parse("2/2"))
        assert [name for name, _ in report.refused] == ["photos/2.png"]
        assert ingest([photos], tmp_path / "store", **options).added == 1


# --- a study ----------------------------------------------------------------------------------------------------------

STUDY = """
[ingest]
patch = 24
step = 12
[score]
scorers = ["sobel"]
[[select]]
name = "hard"
strategy = "des"
by = "sobel"
[[train]]
archs = ["fsrcnn:scale=2,d=4,s=2,m=1"]
options = { steps = 2, batch_size = 2, crop = 24 }
"""


@pytest.fixture
def study(tmp_path: Path) -> Callable[[str], Any]:
    photographs(tmp_path / "photos", 0, 1, 2)
    photographs(tmp_path / "Bench", 7)

    def run(text: str = STUDY) -> Any:
        (tmp_path / "study.toml").write_text(text)
        return pipeline.run(tmp_path / "study.toml", tmp_path / "out", [tmp_path / "photos"], [tmp_path / "Bench"])

    run()
    return run


@pytest.mark.parametrize("what", ["bytes", "code", "weights"])
def test_a_study_measures_again_what_is_not_the_same(
    study: Callable[[], Any], tmp_path: Path, monkeypatch: Patch, what: str
) -> None:
    calls: list[str] = []
    evaluate = measurement.evaluate
    monkeypatch.setattr(
        measurement, "evaluate", lambda *given, **options: calls.append("") or evaluate(*given, **options)
    )
    study()
    assert calls == []
    (record,) = (tmp_path / "out" / "runs").rglob("Bench.json")
    before = json.loads(record.read_bytes())
    if what == "bytes":
        photographs(tmp_path / "Bench", 8)
    elif what == "code":
        monkeypatch.setattr(evaluation, "_MEASURED", "evaluate 2")
    else:
        record.write_text(json.dumps(before | {"weights": "of another network"}))
    (row,) = study().to_pylist()
    assert calls == [""]
    (average,) = [curate.evaluate(record.parent, tmp_path / "Bench")["psnr"].to_pylist()]
    assert row["psnr"] == pytest.approx(np.mean(average))
    assert (row["psnr"] != before["psnr"]) == (what == "bytes")


@pytest.mark.parametrize("what", ["replaced", "gone"])
def test_a_study_of_other_photographs_is_refused(study: Callable[[], Any], tmp_path: Path, what: str) -> None:
    if what == "replaced":
        (tmp_path / "photos" / "1.png").write_bytes(encoded_png(9))
    else:
        (tmp_path / "photos" / "1.png").unlink()
    with pytest.raises(
        UsageError, match=r"was begun with other photographs: 1\.png went or were replaced; name another"
    ):
        study()


def test_a_study_with_other_options_trains_nothing_on_top_of_what_is_there(study: Callable[[str], Any]) -> None:
    with pytest.raises(UsageError, match=r"holds a model trained with rate 0\.001, not 0\.002"):
        study(STUDY.replace("steps = 2,", "steps = 2, rate = 0.002,"))
    with pytest.raises(UsageError, match=r"holds a model trained with manifest \w{8}\.\.\., not \w{8}\.\.\.;"):
        study(STUDY.replace('"des"', '"asc"'))
    with pytest.raises(UsageError, match="a store has one grid"):
        study(STUDY.replace("step = 12", "step = 6"))


# --- the cache --------------------------------------------------------------------------------------------------------


def test_what_was_replaced_at_a_url_is_read_anew(tmp_path: Path, memory: str) -> None:
    """Under the very same names: the cache goes by the hashes of contents."""

    def uploaded(folder: Path, *seeds: int) -> tuple[list[bytes], list[float]]:
        store = made(folder, *seeds)
        curate.score(store, ["sobel"], device="cpu")
        fs, root = fsspec.url_to_fs(memory)
        if fs.exists(root):
            fs.rm(root, recursive=True)
        for path in store.path.rglob("*"):
            if path.is_file():
                with fsspec.open(f"{memory}/store/{path.relative_to(store.path)}", "wb") as file:
                    file.write(path.read_bytes())
        far = Store.open(f"{memory}/store")
        ids = far.images()["image_id"].to_pylist()
        scores = far.query("select sobel from scores order by patch_id")["sobel"].to_pylist()
        assert scores == store.query("select sobel from scores order by patch_id")["sobel"].to_pylist()
        curate.select(far, "random", keep=1.0).save(f"{memory}/all.parquet")
        assert set(curate.Manifest.load(f"{memory}/all.parquet").table["image_id"].to_pylist()) == set(ids)
        return [far.read_bytes(image_id) for image_id in ids], scores

    first, second = uploaded(tmp_path / "a", 0, 1), uploaded(tmp_path / "b", 2, 3)
    assert first[0] == [encoded_png(0), encoded_png(1)] and second[0] == [encoded_png(2), encoded_png(3)]
    assert first[1] != second[1]
