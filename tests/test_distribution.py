"""Counts in bins are those of numpy, the window is that of the report, and what is not at hand is said in one line."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import curate
from curate import distribution, files
from curate.distribution import BINS, of_manifest, of_store
from curate.errors import CurateError
from curate.manifest import Manifest
from curate.reporting import ranks
from curate.schema import ScorerRecord
from curate.selection import select
from curate.store import Store

Write = Callable[..., Store]
UNITS = (60, 50, 40)
ROWS = sum(UNITS)


def drawn(seed: int = 0) -> list[float | None]:
    """Scores over decades, some equal, some not there."""
    values: list[float | None] = (10 ** np.random.default_rng(seed).normal(-3, 1, ROWS).astype(np.float32)).tolist()
    values[3:9] = [values[3]] * 6
    values[20], values[41], values[90] = None, math.nan, math.inf
    return values


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, write_store: Write) -> Path:
    """A folder with a store of the scores loss (over decades), flat (0.5 each), few (three values)."""
    folder = tmp_path_factory.mktemp("place")
    scores = {"loss": drawn(), "flat": [0.5] * ROWS, "few": np.resize([-1.0, 0.0, 2.0], ROWS).tolist()}
    write_store(folder / "store", UNITS, scores)
    return folder


def asked(path: Path) -> dict[str, Any]:
    with Manifest.scan(path) as scan:
        return of_manifest(scan)


def chosen(place: Path, tmp_path: Path, strategy: str, **options: Any) -> tuple[dict[str, Any], Manifest]:
    manifest = select(place / "store", strategy, **options).save(tmp_path / "chosen.parquet")
    return asked(tmp_path / "chosen.parquet"), manifest


def floats(column: pa.ChunkedArray) -> np.ndarray:
    values = np.array(column.to_numpy(), np.float64)
    return values[np.isfinite(values)]


def check_counts(counts: list[int], below: int, values: np.ndarray, edges: list[float]) -> None:
    assert counts == np.histogram(values[values >= edges[0]], edges)[0].tolist()
    assert below == (values < edges[0]).sum() and sum(counts) + below == len(values)


def test_a_store_s_counts_are_those_of_numpy(place: Path) -> None:
    store = Store.open(place / "store")
    found = of_store(store)
    assert found.keys() == {"loss", "flat", "few"}
    for name, score in found.items():
        values = floats(store.query(f"SELECT {name} FROM scores")[name])
        check_counts(score["counts"], score["below"], values, score["edges"])
        assert score["without_finite_score"] == ROWS - len(values) and len(score["counts"]) == BINS
        assert (score["lowest"], score["highest"]) == (values.min(), values.max())
        assert score["median"] == pytest.approx(np.quantile(values, 0.5, method="nearest"), rel=2e-3)
    assert [found[name]["log"] for name in ("loss", "flat", "few")] == [True, False, False]


@pytest.mark.parametrize("by", ["loss", "flat", "few"])
@pytest.mark.parametrize("strategy", ["refined", "des", "asc", "random", "stratified:bins=5"])
def test_a_choice_is_counted_and_placed_as_in_the_report(place: Path, tmp_path: Path, strategy: str, by: str) -> None:
    """The window is that of `reporting.ranks`, equal scores at its ends too."""
    found, manifest = chosen(place, tmp_path, strategy, by=by, keep=0.3)
    table = Store.open(place / "store").query(f"SELECT patch_id, CAST({by} AS DOUBLE) AS s FROM scores ORDER BY 1")
    score = np.array(table["s"].to_numpy(), np.float64)
    check_counts(found["counts"], found["below"], score[np.isfinite(score)], found["edges"])
    check_counts(found["chosen_counts"], found["chosen_below"], floats(manifest.table["score"]), found["edges"])
    assert (found["score"], found["note"], found["chosen"]) == (by, None, len(manifest))
    taken = np.isin(table["patch_id"].to_pylist(), manifest.table["patch_id"].to_pylist())
    window = ranks.window(score, ranks.descending(score, np.ones(ROWS, bool)), taken)
    assert window is not None and found["candidates"] == window.candidates
    assert found["window"] == {name: getattr(window, name) for name in ("first", "last", "gaps", "low", "high")}


def test_candidates_are_those_of_then(place: Path, tmp_path: Path, write_store: Write) -> None:
    """A condition holds, also on images, and what was added since does not count."""
    store = tmp_path / "store"
    shutil.copytree(place / "store", store)
    for number, where in enumerate(("few < 1", "split = 'train' AND loss > 0.0005")):
        found, manifest = chosen(tmp_path, tmp_path, "des", by="loss", where=where)
        counts = manifest.recipe.counts
        assert found["note"] is None
        assert found["candidates"] == counts["candidates"] - counts["without_finite_score"] < ROWS - 3
        write_store(store, (8,), first=len(UNITS) + number)
        assert asked(tmp_path / "chosen.parquet") == found
    found, _ = chosen(tmp_path, tmp_path, "random")
    write_store(store, (8,), first=len(UNITS) + 2)  # without scores: such patches are candidates of a random choice
    assert asked(tmp_path / "chosen.parquet") == found and found["candidates"] is not None


def test_what_checks_had_flagged_was_no_candidate(photos: Callable[..., Path], tmp_path: Path) -> None:
    """Nor is it now; a choice with flagged images, or from before the check, has them. Of a packed store, a note."""
    store = tmp_path / "store"
    curate.ingest([photos(((60, 72), (72, 60), (48, 96)))], store, patch=24, step=12)
    curate.score(store, ["sobel"])
    before = select(store, "des").save(tmp_path / "before.parquet")
    curate.leaks(store, tmp_path / "photos" / "000.png", name="test")
    after = select(store, "des").save(tmp_path / "after.parquet")
    with_flagged = select(store, "des", with_flagged=True).save(tmp_path / "with.parquet")
    assert after.recipe.counts["flagged"] > 0
    for manifest, name in ((before, "before"), (after, "after"), (with_flagged, "with")):
        found = asked(tmp_path / f"{name}.parquet")
        assert found["note"] is None and found["candidates"] == manifest.recipe.counts["candidates"]
    curate.pack(tmp_path / "after.parquet", tmp_path / "packed")
    packed = tmp_path / "packed" / "manifest.parquet"
    alone(asked(packed), packed, "its store is packed and has the chosen patches alone")


def test_a_choice_without_a_score_is_laid_beside_one(place: Path, tmp_path: Path) -> None:
    found, manifest = chosen(place, tmp_path, "random", keep=0.5)
    store = Store.open(place / "store")
    values = store.query(
        f"SELECT {found['score']} AS s FROM scores WHERE patch_id IN (SELECT patch_id FROM m)",
        {"m": tmp_path / "chosen.parquet"},
    )["s"]
    check_counts(found["chosen_counts"], found["chosen_below"], floats(values), found["edges"])
    assert found["score"] in store.score_columns() and "was not chosen by a score" in found["note"]
    assert found["window"] is None and found["chosen"] <= len(manifest)


def test_too_many_patches_are_not_looked_up_one_by_one(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribution, "_MOST_JOINED", ROWS - 1)
    found, _ = chosen(place, tmp_path, "random", keep=0.5)
    assert found == {"score": None, "note": f"its store has {ROWS} patches, too many to look each of them up"}


def alone(found: dict[str, Any], path: Path, part: str) -> None:
    """The chosen patches alone are counted, and one line says why."""
    values = floats(Manifest.load(path).table["score"])
    assert part in found["note"] and found["note"].isprintable()
    assert (found["candidates"], found["counts"], found["window"]) == (None, None, None)
    check_counts(found["chosen_counts"], found["chosen_below"], values, found["edges"])
    assert found["chosen"] == len(values)


@pytest.fixture
def copied(place: Path, tmp_path: Path) -> Path:
    """A copy of the folder, in it `chosen.parquet`."""
    shutil.copytree(place / "store", tmp_path / "store")
    select(tmp_path / "store", "refined", by="loss", where="few < 1").save(tmp_path / "chosen.parquet")
    return tmp_path


def test_a_store_that_is_gone_is_said(copied: Path) -> None:
    (copied / "store").rename(copied / "moved")
    alone(asked(copied / "chosen.parquet"), copied / "chosen.parquet", "its store is not at '")


def test_another_store_in_its_place_is_said(copied: Path, write_store: Write) -> None:
    shutil.rmtree(copied / "store")
    write_store(copied / "store", UNITS[:2], {"loss": drawn(1)[: sum(UNITS[:2])]})
    alone(asked(copied / "chosen.parquet"), copied / "chosen.parquet", "the digest of its first 3 shards differs")


def test_a_damaged_store_is_said(copied: Path) -> None:
    next((copied / "store" / "tables" / "scores").glob("loss@*/000001.parquet")).write_bytes(b"")
    alone(asked(copied / "chosen.parquet"), copied / "chosen.parquet", "the store is damaged")


def test_another_score_of_its_name_is_said(copied: Path, write_store: Write) -> None:
    """Of two score sets with one label the one that it was chosen by is taken; where it is gone, none is."""
    before = asked(copied / "chosen.parquet")
    store = Store.open(copied / "store")
    (of_loss,) = (found.record for found in store.score_sets() if found.record.label == "loss")
    store.add_score_set(of_loss.model_copy(update={"fingerprint": "f" * 16}))
    now = asked(copied / "chosen.parquet")
    assert now == before | {"score": f"loss@{of_loss.fingerprint[:8]}"}
    shutil.rmtree(next((copied / "store" / "tables" / "scores").glob(f"loss@{of_loss.fingerprint[:8]}")))
    shutil.rmtree(next((copied / "store" / "commits" / "scores").glob(f"loss@{of_loss.fingerprint[:8]}")))
    found = asked(copied / "chosen.parquet")
    alone(found, copied / "chosen.parquet", "its store lacks the score that it was chosen by, loss (")
    assert "loss (ffffffff)" in found["note"]


def test_candidates_that_are_others_now_are_said(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.load(copied / "chosen.parquet")
    counts = manifest.recipe.counts | {"candidates": 77, "without_finite_score": 0}
    recipe = manifest.recipe.model_copy(update={"counts": counts})
    Manifest(manifest.table, recipe, manifest.path).save(copied / "chosen.parquet")
    alone(asked(copied / "chosen.parquet"), copied / "chosen.parquet", "candidates now, and had 77 when it was chosen")


def test_scores_that_are_others_are_said(copied: Path) -> None:
    manifest = Manifest.load(copied / "chosen.parquet")
    same = pa.array(np.full(len(manifest), 0.01))
    at = manifest.table.schema.get_field_index("score")
    changed = manifest.table.set_column(at, manifest.table.schema.field("score"), same)
    Manifest(changed, manifest.recipe, manifest.path).save(copied / "chosen.parquet")
    alone(asked(copied / "chosen.parquet"), copied / "chosen.parquet", "its scores are not those that its store has")


def test_a_condition_that_cannot_be_asked_any_more_is_said(copied: Path) -> None:
    for folder in ("tables", "commits"):
        shutil.rmtree(next((copied / "store" / folder / "scores").glob("few@*")))
    alone(asked(copied / "chosen.parquet"), copied / "chosen.parquet", "few")


def test_without_any_score_there_is_nothing(tmp_path: Path, write_store: Write) -> None:
    write_store(tmp_path / "store", UNITS)
    select(tmp_path / "store", "random").save(tmp_path / "chosen.parquet")
    nothing = {"score": None, "note": "it was not chosen by a score, and its store has none"}
    assert asked(tmp_path / "chosen.parquet") == nothing and of_store(Store.open(tmp_path / "store")) == {}


def test_scores_that_are_none_have_no_bins(tmp_path: Path, write_store: Write) -> None:
    store = write_store(tmp_path / "store", (4,), {"a": [math.nan, None, math.inf, -math.inf], "b": []})
    assert of_store(store) == {"a": {"without_finite_score": 4}, "b": {"without_finite_score": 0}}
    select(store, "random").save(tmp_path / "chosen.parquet")
    assert asked(tmp_path / "chosen.parquet") == {"score": None, "note": "no candidate has a finite score 'a'"}


def test_a_vector_has_no_distribution(tmp_path: Path, write_store: Write) -> None:
    store = write_store(tmp_path / "store", (2,), {"a": [1.0, 2.0]})
    record = ScorerRecord(scorer="v", label="v", columns=["v"], identity={}, fingerprint="v" * 16)
    kind = store.add_score_set(record).kind
    vectors = pa.array([[1.0, 2.0]] * 2, pa.list_(pa.float32(), 2))
    table = pa.table({"patch_id": store.patches()["patch_id"], "v": vectors})
    store.commit(kind, 0, "0" * 16, [store.write_table(kind, 0, table)])
    assert of_store(store).keys() == {"a"}


def test_a_table_that_is_none_is_a_line(tmp_path: Path, write_store: Write) -> None:
    """Its hash is right, so that only the reader can find out."""
    store = write_store(tmp_path / "store", (2,))
    kind = store.add_score_set(
        ScorerRecord(scorer="v", label="v", columns=["v"], identity={}, fingerprint="v" * 16)
    ).kind
    path = store.path / "tables" / kind / "000000.parquet"
    store.commit(kind, 0, "0" * 16, [store.part(path, files.publish_bytes(path, b"none"), 2)])
    with pytest.raises(CurateError) as refused:
        of_store(Store.open(store.path))
    assert str(refused.value).isprintable()


def test_one_patch_is_a_window(tmp_path: Path, write_store: Write) -> None:
    store = write_store(tmp_path / "store", (1,), {"a": [3.0]})
    select(store, "des", keep=1.0).save(tmp_path / "chosen.parquet")
    found = asked(tmp_path / "chosen.parquet")
    assert found["window"] == {"first": 0, "last": 0, "gaps": 0, "low": 3.0, "high": 3.0}
    assert sum(found["counts"]) == sum(found["chosen_counts"]) == 1


def test_pieces_are_put_together(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = chosen(place, tmp_path, "refined", by="loss")
    stored = of_store(Store.open(place / "store"))
    monkeypatch.setattr("curate.tables._BATCH_ROWS", 7)
    monkeypatch.setattr(distribution, "_BATCH_ROWS", 7)
    assert asked(tmp_path / "chosen.parquet") == whole and of_store(Store.open(place / "store")) == stored
