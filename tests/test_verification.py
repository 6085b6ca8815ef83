"""`verify` says what is wrong and what that hits: images, patches, scores, manifests. Damage is never raised."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import synthetic_photo
from PIL import Image
from test_fsck import all_files, flipped, make, make_retried, unseal

import curate
from curate import layout, records, schema
from curate.errors import UsageError
from curate.manifest import Manifest
from curate.schema import VerifyFinding, VerifyRecord
from curate.store import Store
from curate.verification import describe, verify


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_BLOCKS", (16, 4))
        yield make(tmp_path_factory.mktemp("verify"))


@pytest.fixture
def work(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "work"))


def only(record: VerifyRecord) -> VerifyFinding:
    (finding,) = record.findings
    return finding


def flip(path: Path, at: int) -> None:
    path.write_bytes(flipped(path.read_bytes(), 8 * at))


def test_what_is_as_it_was_written_is_whole(made: Path) -> None:
    paths = [made / name for name in ("store", "half.parquet", "packed", "packed/manifest.parquet")]
    for deep in (False, True):
        record = verify(*paths, deep=deep)
        assert record.whole and record.findings == [] and record.deep == deep
        assert [path.kind for path in record.checked] == ["store", "manifest", "store", "manifest"]
        assert record.checked[0].files == len(all_files(made / "store"))
        assert record.checked[0].bytes == sum(path.stat().st_size for path in all_files(made / "store"))
        said = "whole" if deep else "all there, of the right size; contents were not read, --deep reads them"
        assert describe(record)[-1].endswith(f" MB: {said}")


def test_a_flipped_bit_of_an_image_says_what_it_hits(work: Path) -> None:
    store = Store.open(work / "store")
    manifest = Manifest.load(work / "half.parquet")
    for row in store.images().to_pylist():
        if row["image_id"] is None:
            continue
        cell = store.cell(row["image_id"])
        flip(store.shard_path(cell.shard), cell.offset)
        finding = only(verify(work / "store", work / "half.parquet", deep=True))
        assert finding.kind == "damaged" and finding.path == str(store.shard_path(cell.shard))
        assert finding.images == [row["name"]] and row["image_id"] in finding.problem and row["name"] in finding.problem
        assert finding.patches == store.patches()["image_id"].to_pylist().count(row["image_id"]) > 0
        assert finding.scores == ["laplacian", "sobel"]
        used = manifest.table["image_id"].to_pylist().count(row["image_id"])
        assert finding.manifests == ({str(work / "half.parquet"): used} if used else {})
        flip(store.shard_path(cell.shard), cell.offset)


def test_a_damaged_table_hits_its_whole_shard_and_one_of_scores_its_scores(work: Path) -> None:
    store = Store.open(work / "store")
    images, rows = store.unit_table("images", 2)["name"].to_pylist(), store.rows(store.commits()[2], "patches")
    flip(work / "store/tables/patches/000002.parquet", 40)
    finding = only(verify(work / "store", deep=True))
    assert finding.images == images and finding.patches == rows
    flip(work / "store/tables/patches/000002.parquet", 40)
    (path,) = (work / "store/tables/scores").glob("sobel@*/000002.parquet")
    flip(path, 40)
    finding = only(verify(work / "store", work / "half.parquet", deep=True))
    chosen = Manifest.load(work / "half.parquet").table["shard"].to_pylist().count(2)
    assert finding.scores == ["sobel"] and finding.images == []
    assert finding.manifests == ({str(work / "half.parquet"): chosen} if chosen else {})


def test_a_truncated_shard_is_found_quickly_and_deep_down_names_its_images(work: Path) -> None:
    path = work / "store/shards/000001.tar"
    os.truncate(path, 1000)
    quick = only(verify(work / "store"))
    assert quick.kind == "damaged" and "bytes, found 1000" in quick.problem
    deep = verify(work / "store", deep=True).findings[1:]
    (name,) = quick.images
    assert [finding.images for finding in deep] == [[name], [name]]
    assert [", lr2)" in finding.problem for finding in deep] == [False, True]
    assert all("cut off after" in finding.problem for finding in deep)


def test_findings_that_are_harmless_leave_it_whole(work: Path) -> None:
    (work / "store/shards/.000001.tar.00.tmp").write_bytes(b"")
    record = verify(work / "store", deep=True)
    assert record.whole and only(record).harmless and only(record).kind == "leftover"
    (work / "store/notes.txt").write_bytes(b"")
    assert not verify(work / "store").whole


# --- manifests --------------------------------------------------------------------------------------------------------


def test_a_manifest_whose_store_has_moved_is_found_by_its_digest(work: Path) -> None:
    (work / "store").rename(work / "elsewhere")
    finding = only(verify(work / "half.parquet"))
    assert finding.kind == "missing" and "its store is not at" in finding.problem
    assert verify(work / "half.parquet", work / "elsewhere", deep=True).whole


def test_a_manifest_of_a_store_that_was_made_anew_is_told(work: Path) -> None:
    shutil.rmtree(work / "store")
    curate.ingest([work / "photos"], work / "store", patch=24, step=12, shard_size=1)
    finding = only(verify(work / "half.parquet"))
    assert finding.kind == "changed" and "digest of its first" in finding.problem


def test_every_flipped_bit_of_a_manifest_is_found(work: Path) -> None:
    path = work / "half.parquet"
    data = path.read_bytes()
    for bit in range(3, 8 * len(data), 8 * len(data) // 150):
        path.write_bytes(flipped(data, bit))
        assert not verify(path, deep=True).whole, bit
    path.write_bytes(data)
    assert verify(path, deep=True).whole


def forged(work: Path, change: Callable[[list[dict[str, object]]], object]) -> Path:
    manifest = Manifest.load(work / "half.parquet")
    rows = manifest.table.to_pylist()
    change(rows)
    Manifest(pa.Table.from_pylist(rows, layout.MANIFEST), manifest.recipe, manifest.path).save(work / "forged.parquet")
    return work / "forged.parquet"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows[1].update(x=rows[1]["x"] + 12), "ids that are not those of their windows"),
        (lambda rows: rows[1].update(rank=99), "ranks are not 0, 1, 2"),
        (lambda rows: rows[1].update(rows[0] | {"rank": 1}), "has a patch twice"),
        (lambda rows: rows[1].update(shard=77), "no table of the patches of shard 77"),
        (
            lambda rows: rows[1].update(patch_id=rows[1]["image_id"] + "_1_1_24", y=1, x=1),
            "1 of its patches are not in",
        ),
    ],
)
def test_a_manifest_with_other_windows_than_its_store_has_is_damaged(
    work: Path, change: Callable[[list[dict[str, object]]], object], problem: str
) -> None:
    record = verify(forged(work, change))
    assert not record.whole and any(problem in finding.problem for finding in record.findings)


def test_an_older_manifest_without_a_checksum_is_whole(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.load(work / "half.parquet")
    dump = schema.dump
    monkeypatch.setattr(schema, "dump", lambda document, indent=None: dump(document, indent, sealed=False))
    manifest.save(work / "old.parquet")
    monkeypatch.undo()
    assert not schema.is_sealed((work / "old.parquet").read_bytes())
    assert verify(work / "old.parquet", deep=True).whole
    for path in all_files(work / "store"):
        if path.suffix in (".json", ".jsonl"):
            unseal(path, 2 if path.name in ("store.json", "scorer.json", "check.json") else None)
    assert verify(work / "store", deep=True).whole


# --- photographs ------------------------------------------------------------------------------------------------------


def test_photographs_that_have_changed_since_are_named_with_what_they_hit(work: Path) -> None:
    photos = work / "photos"
    assert verify(work / "store", against=[str(photos)]).whole
    flip(photos / "1.png", 100)
    (photos / "2.bmp").unlink()
    shutil.copy(photos / "3.png", photos / "copy.png")
    Image.fromarray(synthetic_photo(60, 60, 99)).save(photos / "another.png")
    record = verify(work / "store", work / "half.parquet", against=[str(photos)])
    found = {finding.path: finding for finding in record.findings}
    kinds = {path: finding.kind for path, finding in found.items()}
    assert kinds == {"photos/1.png": "changed", "photos/2.bmp": "gone", "photos/another.png": "new"}
    assert found["photos/1.png"].images == ["1.png"] and found["photos/1.png"].patches > 0
    assert found["photos/another.png"].harmless and not found["photos/2.bmp"].harmless


def test_photographs_without_a_store_are_a_mistake(work: Path) -> None:
    with pytest.raises(UsageError, match="name it too"):
        verify(work / "half.parquet", against=[str(work / "photos")])


def test_refusals_that_are_history_count_no_more(tmp_path: Path) -> None:
    """A photograph that is again what was refused is not the one that was taken."""
    store = make_retried(tmp_path)
    assert verify(store, deep=True, against=[str(tmp_path / "tried")]).whole
    (tmp_path / "tried/1.png").write_bytes(b"1.png")
    finding = only(verify(store, against=[str(tmp_path / "tried")]))
    assert (finding.kind, finding.path, finding.images) == ("changed", "tried/1.png", ["1.png"])
    patches = Store.open(store).unit_table("patches", 2)
    assert finding.patches == len(patches) > 0
    flip(store / "tables/images/000002.parquet", 50)
    finding = only(verify(store, deep=True))  # the shard has two rows of images, of which one is taken
    assert finding.patches == len(patches) and finding.scores == ["sobel"]


def test_a_damaged_table_of_what_was_settled_hits_no_image(tmp_path: Path) -> None:
    store = make_retried(tmp_path)
    flip(store / "tables/retried/000002.parquet", 50)
    finding = only(verify(store, deep=True))
    assert (finding.images, finding.patches, finding.scores) == ([], 0, [])
    assert finding.problem.endswith("it says which earlier refusals are history, and nothing else")


# --- checkpoints and what is none of these ----------------------------------------------------------------------------


def test_a_checkpoint_is_told_from_a_changed_one(work: Path) -> None:
    from curate import plugins
    from curate.checkpoint import Checkpoint

    arch = plugins.parse("archs", "fsrcnn:d=8,s=4,m=1,scale=2")
    Checkpoint(arch, arch.build().state_dict(), {"seed": 1}).save(work / "run")
    assert verify(work / "run").whole and verify(work / "run/model.safetensors", deep=True).whole
    flip(work / "run/model.safetensors", -3)
    finding = only(verify(work / "run"))
    assert finding.path == str(work / "run/model.safetensors") and "not those that were saved" in finding.problem


def test_an_export_that_lacks_a_file_is_damaged(work: Path) -> None:
    report = curate.export(work / "half.parquet", work / "out", to="basicsr")
    whole = verify(work / "out")
    stubs = sum(path.stat().st_size for path in report.stubs)
    assert whole.whole and whole.checked[0].bytes == report.bytes - stubs
    lost = sorted((work / "out/HR").iterdir())[0]
    lost.unlink()
    for deep in (False, True):
        found = verify(work / "out", deep=deep)
        finding = only(found)
        assert (finding.path, finding.problem) == (str(lost), "missing")
        assert found.checked[0].files == whole.checked[0].files - 1


@pytest.mark.parametrize(
    ("name", "found"), [("nothing", "found nothing"), ("photos", "found a folder"), ("x.pth", "found a file")]
)
def test_a_path_that_is_none_of_these_is_a_mistake(work: Path, name: str, found: str) -> None:
    (work / "x.pth").write_bytes(b"")
    with pytest.raises(UsageError, match=found):
        verify(work / name)


def test_no_path_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="what should be verified"):
        verify()


def test_the_record_is_json_and_its_lines_are_one_a_finding(work: Path) -> None:
    (work / "store/a\nb").write_bytes(b"")
    record = verify(work / "store")
    assert schema.parse(VerifyRecord, record.model_dump_json(), "x") == record
    assert json.loads(record.model_dump_json())["findings"][0]["kind"] == "foreign"
    lines = describe(record)
    assert len(lines) == 2 and all(line.isprintable() for line in lines)
    assert lines[1].endswith(": 1 finding, 0 images hit; contents were not read, --deep reads them")
