"""The views show the tables of a store: all rows, scores beside their patches, in columns that are known beforehand."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import add_scores

from curate import sql, views
from curate.errors import CurateError, UsageError
from curate.ingestion import ingest
from curate.layout import IMAGES, PATCHES
from curate.scoring import score
from curate.store import Store


@pytest.fixture
def store(tmp_path: Path, write_store: Callable[..., Store]) -> Store:
    """Tables in three files, without photographs and scores."""
    return write_store(tmp_path / "store")


def test_sql_sees_the_tables(store: Store) -> None:
    assert store.query("select * from images").to_pylist() == store.images().to_pylist()
    assert store.query("select * exclude (shard) from patches").to_pylist() == store.patches().to_pylist()
    shards = store.query("select distinct shard, image_id from patches").to_pylist()
    ids = store.images()["image_id"].to_pylist()
    assert {(row["shard"], row["image_id"]) for row in shards} == {(store.cell(key).shard, key) for key in ids}


def test_columns_in_sql_are_those_of_the_tables() -> None:
    types = {"string": "VARCHAR", "int32": "INTEGER"}
    for columns, table in ((views._IMAGES, IMAGES), (views._PATCHES, PATCHES)):
        assert columns == {field.name: types[str(field.type)] for field in table}


def test_columns_are_those_of_the_views(tmp_path: Path, write_store: Callable[..., Store]) -> None:
    half = [0.5] * 12
    store = write_store(tmp_path / "store", scores={"sobel": half, "srcnn": half, "srcnn:scale=3": half})
    connection = store.connect()
    real = {view: [row[0] for row in connection.execute(f"DESCRIBE {view}").fetchall()] for view in store.columns()}
    assert store.columns() == real
    assert real.keys() == store.views().keys()


# --- scores -----------------------------------------------------------------------------------------------------------


def test_scores_stand_beside_their_patches_and_missing_ones_are_null(store: Store) -> None:
    add_scores(store, "sobel", "a" * 16, units=[0, 2])
    answer = store.query("select * from scores order by patch_id")
    assert answer.drop_columns("sobel").equals(store.query("select * from patches order by patch_id"))
    by_id = dict(zip(answer["patch_id"].to_pylist(), answer["sobel"].to_pylist(), strict=True))
    for unit in store.commits():
        ids = store.unit_table("patches", unit)["patch_id"].to_pylist()
        expected = [float(i) for i in range(len(ids))] if unit in (0, 2) else [None] * len(ids)
        assert [by_id[patch_id] for patch_id in ids] == expected


def test_a_score_set_without_finished_units_is_a_column_of_nulls(store: Store) -> None:
    add_scores(store, "one", "a" * 16, units=[])
    answer = store.query("select * from scores")
    assert answer.schema.names == [*store.query("select * from patches").schema.names, "one"]
    assert answer["one"].null_count == answer.num_rows > 0


def test_a_score_set_without_columns_is_not_seen(store: Store) -> None:
    before = store.query("from scores order by patch_id")
    add_scores(store, "one", "a" * 16, units=[0, 1, 2], columns=())
    assert store.query("from scores order by patch_id").equals(before)


QUESTIONS = (
    "from scores order by patch_id",
    "select count(*), count(half), bit_xor(hash(patch_id, whole, other, half)) from scores",
    "select shard, count(*), max(whole) from scores where x >= 12 and other < 0.5 group by shard order by shard",
    "select patch_id, other from scores order by whole desc, patch_id limit 7",
    "select patch_id, whole from scores where patch_id in (select patch_id from patches where x = 24) order by 1",
    "select patch_id, half, whole from scores join images using (image_id) where split = 'val' order by patch_id",
    "select whole, other from scores join (select max(patch_id) as patch_id from patches) using (patch_id)",
    "select a.patch_id, b.other from scores a join scores b using (patch_id) where a.whole > 0.9 order by 1",
    "select bit_xor(hash(patch_id, x, whole)) from (from scores order by patch_id limit 4000)",
    "select row_number() over (order by other, patch_id) as place, patch_id from scores order by place limit 9",
)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, write_store: Callable[..., Store]) -> Store:
    """Several files, each longer than what a thread reads at a time; `half` has the scores of the first two alone."""
    units = (5000, 1, 2049, 4100)
    whole, other = np.random.default_rng(0).random((2, sum(units))).astype(np.float32)
    scores = {"whole": whole.tolist(), "other": other.tolist(), "half": whole[:5001].tolist()}
    return write_store(tmp_path_factory.mktemp("scored") / "store", units, scores)


@pytest.mark.parametrize("question", QUESTIONS)
def test_scores_row_by_row_and_scores_by_patch_id_give_one_answer(
    scored: Store, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = scored.query(question)
    monkeypatch.setattr("curate.sql._MANY", 1)
    assert beside.equals(scored.query(question))
    view = scored.views()["scores"]
    assert isinstance(view, str) and (view.count("POSITIONAL JOIN"), view.count("USING (patch_id)")) == (2, 1)
    monkeypatch.setattr("curate.store._row_counts", lambda *_: object())  # never equal
    view = scored.views()["scores"]
    assert isinstance(view, str) and (view.count("POSITIONAL JOIN"), view.count("USING (patch_id)")) == (0, 3)
    assert beside.equals(scored.query(question)) and beside.num_rows


@pytest.mark.parametrize("joined", [False, True])
def test_scores_that_a_query_does_not_need_are_not_read(
    scored: Store, tmp_path: Path, joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curate.sql._MANY", 2)
    if joined:
        monkeypatch.setattr("curate.store._row_counts", lambda *_: object())
    copy = Store.open(shutil.copytree(scored.path, tmp_path / "store"))
    connection = copy.connect()
    for found in copy.score_sets():
        if found.record.label != "whole":
            Path(copy.score_files(found)[1]).write_bytes(b"none")
    for needed in (
        "select count(*) from scores",
        "select count(*) as n, max(whole) as m from scores join images using (image_id)",
        "select a.patch_id from scores a join scores b using (patch_id) where a.whole > 0.9 order by 1",
    ):
        assert sql.reader(connection, needed).read_all().equals(scored.query(needed))
    for needed in ("select max(other) from scores", "from scores", "select scores from scores", "summarize scores"):
        with pytest.raises(CurateError, match=r"Parquet|parquet"):
            sql.reader(connection, needed).read_all()


def test_what_is_wrong_with_a_query_is_said_in_the_same_words_where_scores_may_be_left_out(
    scored: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong in ("select nothing from scores", "select cast('a' as int) from scores", "select 1 from nowhere"):
        with pytest.raises(UsageError) as before:
            scored.query(wrong)
        monkeypatch.setattr("curate.sql._MANY", 1)
        with pytest.raises(UsageError) as after:
            scored.query(wrong)
        assert str(after.value) == str(before.value)
        monkeypatch.undo()


def test_the_scores_of_a_unit_are_in_the_order_of_its_patches(photo_folder: Path, tmp_path: Path) -> None:
    ingest([photo_folder], tmp_path / "store", patch=24, step=12, shard_size=6_000)
    store = Store.open(tmp_path / "store")
    assert len(store.commits()) >= 3
    score(store, ["sobel", "laplacian"])
    for unit in store.commits():
        ids = store.unit_table("patches", unit)["patch_id"]
        assert [store.score_table(found, unit)["patch_id"] == ids for found in store.score_sets()] == [True, True]
    view = store.views()["scores"]
    assert isinstance(view, str) and view.count("POSITIONAL JOIN") == 2


def test_a_manifest_cannot_hide_a_view(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be called 'patches' in SQL"):
        store.query("select 1", {"patches": tmp_path / "patches.parquet"})
