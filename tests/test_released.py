"""What released versions wrote is read for ever; what a later one writes is refused, with the version that reads it."""

import hashlib
import json
import shutil
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import encoded_png
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import curate
from curate import files, schema
from curate.checkpoint import Checkpoint
from curate.errors import CurateError, UsageError
from curate.exporting import export
from curate.pipeline import Pipeline
from curate.resume import Snapshot
from curate.store import Store

FIXTURES = Path(__file__).parent / "fixtures"
ARCHIVES = {"v1": "4605a1bdc92c97bf99a26c196636b1f333a93b8e8451a331bcbf1b6be12156d9"}  # frozen: none is made anew
NET = "fsrcnn:scale=2,d=4,s=2,m=1"
STEPS = {"batch_size": 2, "crop": 24, "log_every": 10, "save_every": 10}


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What curate 0.1.0 wrote; a test that writes takes `released`."""
    archive = FIXTURES / "v1" / "released.tar.xz"
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == ARCHIVES["v1"], "a frozen fixture was changed"
    folder = tmp_path_factory.mktemp("v1")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture
def released(frozen: Path, tmp_path: Path) -> Path:
    """A copy to write to."""
    return shutil.copytree(frozen, tmp_path / "released")


def test_there_is_a_fixture_of_every_format() -> None:
    assert [path.name for path in sorted(FIXTURES.iterdir()) if path.is_dir()] == list(ARCHIVES)
    assert len(ARCHIVES) == schema.FORMAT


# --- what was written is read -----------------------------------------------------------------------------------------


def test_a_store_opens_and_every_byte_is_what_it_was(frozen: Path) -> None:
    facts = curate.info(frozen / "store")
    assert [facts[name] for name in ("images", "refused", "patches", "shards", "flagged")] == [5, 1, 23, 3, 1]
    assert facts["digest"] == "3ab92cb210d10fbcfa7df30f7d082a9dbd0508d904e390faaeaa42bebb8c6f87"
    assert facts["created_by"] == "curate 0.1.0"
    store = Store.open(frozen / "store")
    taken = [row for row in store.images().to_pylist() if row["image_id"]]
    for row in taken:
        data = store.read_bytes(row["image_id"])
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert data == (frozen / "photos" / row["name"]).read_bytes()
        assert store.read_bytes(row["image_id"], "lr2") == (frozen / "X2" / row["name"]).read_bytes()
    records = [json.loads(path.read_bytes()) for path in (frozen / "store" / "commits").rglob("*.json")]
    parts = [part for record in records for part in record["parts"]]  # of scores and checks too
    assert len(parts) == 3 * (4 + 2 + 2) + 1
    assert all(files.file_hash(frozen / "store" / part["path"]) == part["xxh3"] for part in parts)


def test_sql_gives_the_answers_of_then(frozen: Path) -> None:
    store = Store.open(frozen / "store")
    statuses = {row["name"]: row["status"] for row in store.query("select name, status from images").to_pylist()}
    assert statuses.pop("bad.png").startswith("not an image that curate reads")
    assert statuses.pop("0.png") == "near-duplicate of 3.png (25061ec192acd632)"
    assert statuses == dict.fromkeys(["1.png", "2.png", "3.png", "late.png"], "ok")
    assert store.images(history=True).num_rows == 7  # late.png was cut, and is whole now
    sums = store.query(
        'select sum(sobel) s, sum("gradient.mean") g, count(*) n from scores join images using (image_id)'
    )
    (row,) = sums.to_pylist()
    assert row["n"] == 23
    assert [row["s"], row["g"]] == pytest.approx([5.305315405130386, 1.1130256801843643])
    answer = store.query("select count(*) n, min(rank) low from refined", {"refined": frozen / "refined.parquet"})
    assert answer.to_pylist() == [{"n": 9, "low": 0}]


def test_a_manifest_opens_and_the_same_choice_gives_it_again(frozen: Path) -> None:
    manifest = curate.Manifest.load(frozen / "refined.parquet")
    assert manifest.digest() == "7987bae302059e63a0912e18f53b6ec3"
    manifest.verify(manifest.store())
    recipe = manifest.recipe
    again = curate.select(frozen / "store", recipe.strategy, by=recipe.by, keep=recipe.keep)
    assert again.table.equals(manifest.table)
    assert again.recipe.counts == recipe.counts and again.recipe.scorers == recipe.scorers


def test_a_packed_store_has_the_pixels_of_the_store(frozen: Path) -> None:
    manifest = curate.Manifest.load(frozen / "packed" / "manifest.parquet")
    packed, store = manifest.store(), Store.open(frozen / "store")
    assert len(manifest) == 9 and packed.header.packed is not None
    for row in manifest.table.to_pylist():
        window = (row["image_id"], row["y"], row["x"], row["size"], row["size"])
        np.testing.assert_array_equal(packed.read(*window), store.read(*window))


def test_a_checkpoint_opens_with_the_weights_of_then(frozen: Path) -> None:
    checkpoint = Checkpoint.load(frozen / "run")
    recorded = curate.info(frozen / "run")["weights"]
    assert recorded == "ef0e5dcfa88fc09a373ce496a58446d3b83b98ce6219a451d53ac0323585a6c7"
    with torch.no_grad():
        answer = checkpoint.module()(torch.linspace(0, 1, 144).reshape(1, 1, 12, 12))
    assert answer.shape == (1, 1, 24, 24)
    assert answer.mean().item() == pytest.approx(0.163595, rel=1e-4)


def test_it_trains_a_step_and_a_run_that_was_cut_off_goes_on(released: Path) -> None:
    one = curate.train(NET, released / "refined.parquet", curate.TrainConfig(steps=1, **STEPS), device="cpu")
    assert one.recipe["last"]["loss"] == pytest.approx(0.594963, rel=1e-4)
    whole = Checkpoint.load(released / "run")
    calls: list[int] = []
    config = curate.TrainConfig(steps=20, **STEPS)
    options = {"device": "cpu", "progress": lambda done, total, note="": calls.append(done)}
    made = curate.train(NET, released / "refined.parquet", config, released / "half", **options)
    assert calls == list(range(10, 21))  # it goes on after ten
    for name, tensor in made.state.items():  # another processor gives other last digits
        torch.testing.assert_close(tensor, whole.state[name], rtol=1e-3, atol=1e-4)


def test_a_store_of_then_grows(released: Path) -> None:
    store = Store.open(released / "store")
    digest, before = store.digest(), {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
    options = {"lr": {2: str(released / "X2")}}
    assert curate.ingest([released / "photos"], store.path, **options).known == 6
    (released / "photos" / "new.png").write_bytes(encoded_png(9))
    (released / "X2" / "new.png").write_bytes(encoded_png(109, 18, 24))
    report = curate.ingest([released / "photos"], store.path, **options)
    assert (report.added, report.known, report.shards) == (1, 6, 1)
    assert curate.ingest([released / "photos"], store.path, **options, retry_failed=True).added == 0
    assert all(path.read_bytes() == data for path, data in before.items())
    grown = Store.open(store.path)
    assert grown.digest(3) == digest and len(grown.commits()) == 4
    assert curate.Manifest.load(released / "refined.parquet").store().digest() == grown.digest()
    curate.score(grown, ["sobel"], device="cpu")
    curate.duplicates(grown)
    # This version's differ in their last digits, and are never mixed with those.
    with pytest.raises(UsageError, match=r"sobel@9a25dd95\b.* are of other weights or versions of it: say which"):
        curate.select(grown, "des", by="sobel")
    (now,) = {name for name in grown.score_columns() if name.startswith("sobel@")} - {"sobel@9a25dd95"}
    assert len(curate.select(grown, "des", by=now, keep=1.0)) == 17 + 6


def test_the_other_documents_are_read(frozen: Path) -> None:
    schema.parse(schema.ExportRecord, (frozen / "export" / "export.json").read_bytes(), "export.json")
    assert len(curate.Manifest.load(frozen / "export" / "manifest.parquet")) == 1
    record = schema.parse(schema.ReportRecord, (frozen / "report.json").read_bytes(), "report.json")
    assert record.manifests[0].patches == 9
    assert [training.folder for training in Pipeline.load(frozen / "study.toml").trainings()]


# --- what is newer is refused -----------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], dict[str, Any]]


def in_json(path: Path, change: Change) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))


def in_lines(path: Path, change: Change) -> None:
    """A block of records, in place of its three."""
    names = sorted(path.parent.glob("*.json"))
    records = [json.loads(name.read_bytes()) for name in names]
    path.write_text("".join(json.dumps(record) + "\n" for record in [*records[:-1], change(records[-1])]))
    for name in names:
        name.unlink()


def in_parquet(path: Path, change: Change) -> None:
    table = pq.read_table(path)
    recipe = change(json.loads(table.schema.metadata[b"curate"]))
    pq.write_table(table.replace_schema_metadata({"curate": json.dumps(recipe)}), path)


def in_safetensors(path: Path, change: Change) -> None:
    with safe_open(path, framework="pt") as content:
        record = change(json.loads(content.metadata()["curate"]))
    save_file(load_file(path), path, {"curate": json.dumps(record)})


def in_toml(path: Path, change: Change) -> None:
    added = {key: value for key, value in change({}).items() if key != "format"}
    text = path.read_text().replace("format = 1", "\n".join(f"{key} = '{value}'" for key, value in added.items()))
    path.write_text(f"format = {change({'format': 1})['format']}\n{text}")
    tomllib.loads(path.read_text())


def sets(root: Path) -> object:
    return Store.open(root / "store").score_sets(), Store.open(root / "store").check_sets()


DOCUMENTS: dict[str, tuple[str, Callable[[Path, Change], None], Callable[[Path], object]]] = {
    "a store's header": ("store/store.json", in_json, lambda root: Store.open(root / "store")),
    "a record": ("store/commits/ingest/000001.json", in_json, lambda root: Store.open(root / "store").commits()),
    "a block of records": (
        "store/commits/ingest/000000-000002.jsonl",
        in_lines,
        lambda root: Store.open(root / "store").commits(),
    ),
    "a scorer's record": ("store/tables/scores/sobel@9a25dd95/scorer.json", in_json, sets),
    "a check's record": ("store/tables/checks/leaks@3621c701/check.json", in_json, sets),
    "a manifest": ("refined.parquet", in_parquet, lambda root: curate.Manifest.load(root / "refined.parquet")),
    "a checkpoint": ("run/model.safetensors", in_safetensors, lambda root: Checkpoint.load(root / "run")),
    "a run's state": ("half/state.safetensors", in_safetensors, lambda root: Snapshot.load(root / "half", {})),
    "an export": (
        "export/export.json",
        in_json,
        lambda root: export(root / "few.parquet", root / "export", to="basicsr"),
    ),
    "a study's file": ("study.toml", in_toml, lambda root: Pipeline.load(root / "study.toml")),
}


def refusal(root: Path, document: str, change: Change) -> str:
    path, rewrite, read = DOCUMENTS[document]
    if document != "a run's state":
        read(root)  # as it is, it is read
    rewrite(root / path, change)
    with pytest.raises(CurateError) as refused:
        read(root)
    message = str(refused.value)
    assert message.isprintable() and path.rpartition("/")[2] in message
    return message


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_newer_format_is_refused_with_the_version_that_reads_it(released: Path, document: str) -> None:
    message = refusal(released, document, lambda content: content | {"format": 2, "written_by": "curate 99.1.0"})
    assert message.removesuffix("; delete it to begin again").endswith(
        f"format 2 is not one that curate {curate.__version__} reads (it reads 1); "
        "update curate to 99.1.0, which wrote it, or newer"
    )


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_key_that_format_1_does_not_have_is_refused(released: Path, document: str) -> None:
    """What is not understood may change what the rest means: nothing is passed over in silence."""
    message = refusal(released, document, lambda content: content | {"colour": "red"})
    assert message.removesuffix("; delete it to begin again").endswith("colour: Extra inputs are not permitted")
