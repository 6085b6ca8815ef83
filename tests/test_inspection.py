"""Info says what a path is and what there is in it, as JSON can hold it, and refuses what it is not."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from curate import __version__, display
from curate.errors import DataError, UsageError
from curate.ingestion import ingest
from curate.inspection import info
from curate.manifest import Manifest
from curate.selection import select
from curate.store import Store

SCORES: list[float | None] = [1.5, math.nan, 3.0, 0.5, 2.0, None, 7.0, 1.0, 4.0]  # of the first two units
Write = Callable[..., Store]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, write_store: Write) -> Path:
    """A folder with `store`, and `chosen.parquet` and `drawn.parquet` of it."""
    folder = tmp_path_factory.mktemp("place")
    store = write_store(folder / "store", (5, 4, 3), {"sobel": SCORES, "srcnn:scale=3": [0.0] * 12})
    select(store, "des", by="sobel", keep=0.5).save(folder / "chosen.parquet")
    select(store, "random").save(folder / "drawn.parquet")
    return folder


def test_a_store_has_its_grid_its_counts_and_its_scores(place: Path) -> None:
    store = Store.open(place / "store")
    fingerprints = {found.record.label: found.record.fingerprint for found in store.score_sets()}
    folders = ("shards", "tables/images", "tables/cells", "tables/patches")
    files_of_units = [path for name in folders for path in (place / "store" / name).iterdir()]
    expected = {
        "kind": "store",
        "patch": 24,
        "step": 12,
        "images": 3,
        "refused": 0,
        "patches": 12,
        "shards": 3,
        "bytes": sum(path.stat().st_size for path in files_of_units),
        "digest": store.digest(),
        "created_by": f"curate {__version__}",
        "scores": {
            "sobel": {"patches": 9, "fingerprint": fingerprints["sobel"]},
            "srcnn:scale=3": {"patches": 12, "fingerprint": fingerprints["srcnn:scale=3"]},
        },
    }
    for path in (place / "store", str(place / "store")):
        content = info(path)
        assert content == expected and next(iter(content)) == "kind"


def test_an_ingested_store_counts_what_was_refused(tmp_path: Path, photos: Callable[..., Path]) -> None:
    folder = photos(((50, 61), (36, 48), (12, 40)))  # the last is smaller than a patch
    (folder / "broken.png").write_bytes(b"no picture")
    report = ingest([folder], tmp_path / "store", patch=24, step=12, shard_size=4000)
    content = info(tmp_path / "store")
    assert (content["images"], content["refused"]) == (report.added, len(report.refused)) == (2, 2)
    assert (content["patches"], content["shards"]) == (report.patches, report.shards)
    assert content["scores"] == {} and content["bytes"] >= report.bytes > 0


def test_an_empty_store_is_one(tmp_path: Path) -> None:
    Store.create(tmp_path / "store", patch=30, step=7)
    content = info(tmp_path / "store")
    assert (content["kind"], content["patch"], content["step"]) == ("store", 30, 7)
    assert {content[name] for name in ("images", "refused", "patches", "shards", "bytes")} == {0}


def test_an_unfinished_scorer_has_scored_nothing(tmp_path: Path, write_store: Write) -> None:
    write_store(tmp_path / "store", (5,), {"sobel": []})
    assert info(tmp_path / "store")["scores"]["sobel"]["patches"] == 0


def test_a_manifest_has_its_counts_and_its_recipe(place: Path) -> None:
    manifest = Manifest.load(place / "chosen.parquet")
    assert info(place / "chosen.parquet") == {
        "kind": "manifest",
        "patches": 4,
        "images": 2,
        "score": {"lowest": 2.0, "highest": 7.0},
        "recipe": manifest.recipe.model_dump(mode="json"),
    }
    assert manifest.recipe.counts["without_finite_score"] == 5


def test_a_manifest_without_scores_has_none(place: Path) -> None:
    content = info(str(place / "drawn.parquet"))
    assert content["patches"] == 6 and content["score"] == {"lowest": None, "highest": None}


def test_a_manifest_need_not_be_called_parquet_nor_have_its_store(place: Path, tmp_path: Path) -> None:
    (tmp_path / "chosen").write_bytes((place / "chosen.parquet").read_bytes())
    assert info(tmp_path / "chosen") == info(place / "chosen.parquet")


@pytest.mark.parametrize("name", ["store", "chosen.parquet", "drawn.parquet"])
def test_it_fits_into_json_and_on_lines_for_people(place: Path, name: str) -> None:
    content = info(place / name)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    lines = display.tree(content)
    assert lines[0] == f"kind: {content['kind']}" and all(line.isprintable() for line in lines)


def test_looking_changes_nothing(place: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in place.rglob("*") if path.is_file()}
    for name in ("store", "chosen.parquet"):
        info(place / name)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in place.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("nothing", "found nothing"),
        ("folder", "found a folder without a store.json or a model.safetensors"),
        ("", "found a folder without"),
        ("a\n\x1b[31m", r"a\n\x1b[31m' is not a store, a manifest or a checkpoint: found nothing"),
        ("s3://bucket/store", "a store, a manifest or a checkpoint should be a local path, found the URL"),
    ],
)
def test_what_is_none_of_them_is_a_mistake_of_the_users(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError) as refused:
        info(name if "://" in name else tmp_path / name)
    assert found in str(refused.value) and str(refused.value).isprintable()
    assert refused.value.exit_code == 2


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(DataError, match="is not a manifest"):
        info(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("path", "content", "part"),
    [
        ("store.json", "{}", "is not a valid StoreHeader: patch: Field required"),
        ("store.json", '{"format": 2}', "update curate"),
        ("commits/ingest/000000.json", "{}", "is not a valid CommitRecord"),
        ("tables/images/000000.parquet", "", "should have"),
    ],
)
def test_a_damaged_store_is_refused(tmp_path: Path, write_store: Write, path: str, content: str, part: str) -> None:
    write_store(tmp_path / "store", (5,))
    (tmp_path / "store" / path).write_text(content)
    with pytest.raises(DataError) as refused:
        info(tmp_path / "store")
    assert part in str(refused.value) and str(refused.value).isprintable() and refused.value.exit_code == 1
