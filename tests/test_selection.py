"""Select keeps what design.md's definition says, counts what it leaves out, and writes down all that decided."""

import itertools
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import curate
from curate import plugins
from curate.coverage import pixels
from curate.errors import DataError, UsageError
from curate.layout import LEAKS, MANIFEST, PATCHES
from curate.manifest import Manifest
from curate.schema import CheckRecord, Part
from curate.selection import candidates, select, write
from curate.store import Store
from curate.strategies import Picks
from curate.strategies.des import Des
from curate.strategies.refined import Refined

NAN, INF = math.nan, math.inf
UNITS = (5, 4, 3)
SOBEL = [3.0, 1.0, 2.0, 2.0, 5.0, 2.0, 0.5, 4.0, 1.0, 6.0, 2.0, -1.0]
MIXED = [NAN, 1.0, INF, 2.0, -INF, None, 0.5, NAN, 1.0]  # and the last unit is not scored
Write = Callable[..., Store]
_write_manifest = Manifest.write
_numbers = itertools.count()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, write_store: Write) -> Store:
    scores = {"sobel": SOBEL, "mixed": MIXED, "srcnn:scale=3": SOBEL[::-1], "none": [NAN] * sum(UNITS)}
    return write_store(tmp_path_factory.mktemp("selection") / "store", UNITS, scores)


def with_scores(store: Store, values: list[float | None]) -> list[tuple[float, str]]:
    """(score, patch_id) of those whose score is finite."""
    ids = store.patches()["patch_id"].to_pylist()
    known = [*values, *[None] * (len(ids) - len(values))]
    return [(score, i) for score, i in zip(known, ids, strict=True) if score is not None and math.isfinite(score)]


def ids(manifest: Manifest) -> list[str]:
    return list(manifest.table["patch_id"].to_pylist())


def refusal(store: Store, *arguments: Any, **options: Any) -> str:
    """The line with which a choice is refused."""
    with pytest.raises(UsageError) as refused:
        select(store, *arguments, **options)
    message = str(refused.value)
    assert message.isprintable() and refused.value.exit_code == 2
    return message


# --- what is chosen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["sobel", "mixed", "srcnn:scale=3"])
@pytest.mark.parametrize("strategy", ["des", "asc", "refined"])
@pytest.mark.parametrize("keep", [0.05, 0.25, 0.5, 0.95])
def test_the_core_set_is_that_of_the_definition(store: Store, by: str, strategy: str, keep: float) -> None:
    rows = with_scores(store, {"sobel": SOBEL, "mixed": MIXED, "srcnn:scale=3": SOBEL[::-1]}[by])
    sign = 1 if strategy == "asc" else -1
    order = sorted(rows, key=lambda row: (sign * row[0], row[1]))
    lo = math.floor(0.05 * len(rows) + 0.5) if strategy == "refined" else 0
    k = math.floor(keep * len(rows) + 0.5)
    if k == 0:
        assert "nothing to choose" in refusal(store, strategy, by=by, keep=keep)
        return
    if lo + k > len(rows):
        assert "more than there are" in refusal(store, strategy, by=by, keep=keep)
        return
    manifest = select(store, strategy, by=by, keep=keep)
    expected = order[lo : lo + k]
    assert list(zip(manifest.table["score"].to_pylist(), ids(manifest), strict=True)) == expected
    assert manifest.table["rank"].to_pylist() == list(range(k))
    assert manifest.table["weight"].to_pylist() == [1.0] * k


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 11])
def test_half_of_an_odd_count_is_rounded_up(tmp_path: Path, write_store: Write, count: int) -> None:
    store = write_store(tmp_path / "store", [count], {"sobel": [float(i) for i in range(count)]})
    manifest = select(store, "des")
    assert len(manifest) == (count + 1) // 2
    assert manifest.table["score"].to_pylist() == [float(i) for i in range(count - 1, count - 1 - len(manifest), -1)]


@pytest.mark.parametrize("strategy", ["des", "asc", "refined:drop_top=0"])
def test_where_all_scores_are_equal_the_patch_id_decides(tmp_path: Path, write_store: Write, strategy: str) -> None:
    store = write_store(tmp_path / "store", UNITS, {"sobel": [0.25] * sum(UNITS)})
    assert ids(select(store, strategy, keep=0.4)) == sorted(store.patches()["patch_id"].to_pylist())[:5]


def test_scores_that_are_no_numbers_are_left_out_and_counted(store: Store) -> None:
    manifest = select(store, "asc", by="mixed", keep=1)
    assert manifest.table["score"].to_pylist() == [0.5, 1.0, 1.0, 2.0]
    assert manifest.recipe.counts == {
        "patches": 12,
        "flagged": 0,
        "unchecked": 0,
        "candidates": 12,
        "without_finite_score": 8,
        "selected": 4,
        "pixels": pixels(manifest.table),
    }


def test_keep_is_a_share_of_those_with_a_finite_score(store: Store) -> None:
    assert select(store, "des", by="mixed", keep=0.5).recipe.counts["selected"] == 2
    assert select(store, "des", by="sobel", keep=0.5).recipe.counts["selected"] == 6


@pytest.mark.parametrize(("keep", "count"), [(1, 12), (1.0, 12), (0.0417, 1), (0.125, 2), (0.2083, 2), (0.375, 5)])
def test_keep_counts_to_the_nearest_and_halves_up(store: Store, keep: float, count: int) -> None:
    assert len(select(store, "des", by="sobel", keep=keep)) == count


def test_random_needs_no_score_and_takes_all_patches_for_candidates(store: Store) -> None:
    manifest = select(store, "random:seed=5", keep=0.5)
    assert manifest.recipe.by is None and manifest.recipe.scorers == {}
    assert manifest.recipe.counts == {
        "patches": 12,
        "flagged": 0,
        "unchecked": 0,
        "candidates": 12,
        "without_finite_score": 0,
        "selected": 6,
        "pixels": pixels(manifest.table),
    }
    assert manifest.table["score"].null_count == 6
    assert len(set(ids(manifest))) == 6
    assert ids(select(store, "random", seed=5)) == ids(manifest) != ids(select(store, "random", seed=6))


def test_random_by_a_score_draws_from_those_that_have_one(store: Store) -> None:
    manifest = select(store, "random", by="mixed", keep=1)
    assert sorted(manifest.table["score"].to_pylist()) == [0.5, 1.0, 1.0, 2.0]
    assert manifest.recipe.counts["without_finite_score"] == 8


def test_a_manifests_rows_are_the_stores(store: Store) -> None:
    manifest = select(store, "refined", by="sobel", keep=0.9)
    assert manifest.table.schema.equals(MANIFEST)
    patches = {row["patch_id"]: row for row in store.query("from patches").to_pylist()}
    for row in manifest.table.to_pylist():
        assert patches[row["patch_id"]] == {name: row[name] for name in patches[row["patch_id"]]}


# --- conditions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "keeps"),
    [
        ("sobel > 2", lambda row: row["sobel"] > 2),
        ("sobel > 1 AND \"srcnn:scale=3\" < 3 -- a comment", lambda row: row["sobel"] > 1 and row["srcnn"] < 3),
        ("split = 'val'", lambda row: row["unit"] == 1),
        ("name LIKE '2%' OR width = 72", lambda row: row["unit"] == 2 or row["unit"] == 0),
        ("shard <> 0 and x >= 12", lambda row: row["unit"] != 0 and row["x"] >= 12),
        ("patch_id IN (SELECT patch_id FROM scores WHERE sobel = 2)", lambda row: row["sobel"] == 2),
        ("image_id IN (SELECT image_id FROM images WHERE split = 'train')", lambda row: row["unit"] != 1),
        ("mixed IS NULL", lambda row: row["unit"] == 2 or (row["unit"] == 1 and row["x"] == 0)),
        ("sobel >\n1\nAND true", lambda row: row["sobel"] > 1),
    ],
)  # fmt: skip
def test_a_condition_is_over_the_columns_of_scores_and_images(
    store: Store, where: str, keeps: Callable[[dict[str, Any]], bool]
) -> None:
    places = [(unit, 12 * i) for unit, count in enumerate(UNITS) for i in range(count)]
    rows = [
        {"unit": unit, "x": x, "sobel": sobel, "srcnn": srcnn, "id": patch_id}
        for (unit, x), sobel, srcnn, patch_id in zip(
            places, SOBEL, SOBEL[::-1], store.patches()["patch_id"].to_pylist(), strict=True
        )
    ]
    manifest = select(store, "asc", by="sobel", keep=1, where=where)
    assert sorted(ids(manifest)) == sorted(row["id"] for row in rows if keeps(row))
    assert manifest.recipe.where == where
    assert manifest.recipe.counts["candidates"] == manifest.recipe.counts["selected"] < 12
    assert manifest.recipe.counts["patches"] == 12


def test_the_score_of_the_choice_and_of_the_condition_can_differ(store: Store) -> None:
    manifest = select(store, "des", by="mixed", keep=1, where="sobel < 3")
    assert manifest.recipe.counts == {
        "patches": 12,
        "flagged": 0,
        "unchecked": 0,
        "candidates": 8,
        "without_finite_score": 4,
        "selected": 4,
        "pixels": pixels(manifest.table),
    }


@pytest.mark.parametrize(
    ("where", "part"),
    [
        ("", "SQL: "),
        ("sobel >", "SQL: "),
        ("sobbel > 1", '"sobel"'),
        ("name = 1 2", "SQL: "),
        ("sobel > 1; drop view images", "SQL: "),
        ("true) UNION ALL SELECT * FROM (SELECT 1", "SQL: "),
        ("sobel > 1, sobel < 2", "SQL: "),
        ("sobel = 'many'", "SQL: Conversion Error"),
        ("max(sobel) > 1", "aggregates"),
        ("row_number() over () = 1", "window functions"),
        ("image_id IN (SELECT id FROM pictures)", "pictures"),
        ("sobel > ?", "SQL: "),
        ("error('in\nvain')", r"SQL: Invalid Input Error: in"),
        ("sobel IN (SELECT a FROM read_csv('secret.csv'))", "table function 'read_csv' is not for queries here"),
        ("patch_id IN (FROM 'secret.csv')", "Cannot access file"),
        ("1 IN (WITH x AS (COPY images TO '{table}' (FORMAT csv, USE_TMP_FILE false)) FROM x)", "only read; found"),
        ("1 IN (FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1')))", "is not for queries here"),
        ("EXISTS (FROM query('WITH x AS (COPY images TO ''{table}'') FROM x'))", "is not for queries here"),
    ],
)  # fmt: skip
def test_a_condition_that_is_none_is_refused_in_one_line(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.csv").write_text("a\n1\n")
    table = store.path / "tables/images/000000.parquet"
    before = table.read_bytes()
    assert part in refusal(store, "des", by="sobel", where=where.replace("{table}", str(table)))
    assert table.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


def test_a_table_of_candidates_is_sorted_and_complete(store: Store) -> None:
    table = candidates(store, "mixed")
    assert table.schema.names == ["patch_id", "image_id", "y", "x", "size", "shard", "score"]
    assert table.schema.field("score").type == pa.float64() and table.num_rows == 12
    assert table["patch_id"].to_pylist() == sorted(table["patch_id"].to_pylist())
    assert candidates(store, None)["score"].null_count == 12


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 1.5, -0.5, 1.0000001, NAN, INF, -INF])
def test_a_share_out_of_range_is_refused(store: Store, keep: float) -> None:
    message = refusal(store, "des", by="sobel", keep=keep)
    assert message == f"keep should be above 0 and at most 1 (0.5 is half of the patches), found {keep}"


@pytest.mark.parametrize(
    ("by", "parts"),
    [
        (None, ["which score to choose by?", "mixed, none, sobel, srcnn:scale=3", "--by NAME"]),
        ("sobbel", ["no score 'sobbel'", "there are: mixed, none, sobel, srcnn:scale=3"]),
        ("srcnn", ["no score 'srcnn'", "srcnn:scale=3; 'curate score STORE srcnn' makes it"]),
        ("entropy:bins=64", ["'curate score STORE entropy:bins=64' makes it"]),
        ("mixt", ["did you mean 'mixed'?"]),
        ("", ["no score ''"]),
        ("x", ["no score 'x'"]),  # a column of the view, but no score
        ("a\n\x1b[31m", [r"no score 'a\n\x1b[31m'"]),
    ],
)
@pytest.mark.parametrize("strategy", ["refined", "random"])
def test_a_score_that_is_not_there_or_not_clear_is_refused(
    store: Store, strategy: str, by: str | None, parts: list[str]
) -> None:
    if strategy == "random" and by is None:
        assert select(store, strategy).recipe.by is None
        return
    message = refusal(store, strategy, by=by)
    assert [part for part in parts if part not in message] == []


def test_the_only_score_need_not_be_named(tmp_path: Path, write_store: Write) -> None:
    store = write_store(tmp_path / "store", scores={"sobel": SOBEL})
    manifest = select(store, "des")
    assert manifest.recipe.by == "sobel"
    assert manifest.table.equals(select(store, "des", by="sobel").table)


def test_two_scorers_of_one_label_are_told_apart(tmp_path: Path, write_store: Write) -> None:
    store = write_store(tmp_path / "store", scores={"sobel": SOBEL})
    (old,) = store.score_sets()
    other = old.record.model_copy(update={"fingerprint": "f" * 16})
    store.add_score_set(other)
    names = sorted([f"sobel@{old.record.fingerprint[:8]}", "sobel@ffffffff"])
    assert f"there are: {names[0]}, {names[1]}" in refusal(store, "des", by="sobel")
    manifest = select(store, "des", by=f"sobel@{old.record.fingerprint[:8]}")
    assert manifest.recipe.scorers == {f"sobel@{old.record.fingerprint[:8]}": old.record.fingerprint}


def test_without_scores_it_says_how_to_make_some(tmp_path: Path, write_store: Write) -> None:
    store = write_store(tmp_path / "store")
    some = "'curate score STORE srcnn sobel' makes some"
    assert f"there are: nothing; {some}" in refusal(store, "des", by="mine")
    assert "there are: nothing; 'curate score STORE sobel' makes it" in refusal(store, "des", by="sobel")
    assert f"which score to choose by? The store has: nothing; {some}" in refusal(store, "des")
    assert len(select(store, "random")) == 6


def test_an_empty_store_is_refused(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", patch=24, step=12)
    assert "is empty: ingest photographs first" in refusal(store, "random")


@pytest.mark.parametrize(
    ("by", "keep", "where", "found"),
    [
        ("none", 0.5, None, "0.5 of 0 candidates is 0 patches"),
        ("sobel", 0.04, None, "0.04 of 12 candidates is 0 patches"),
        ("sobel", 0.5, "sobel > 100", "0.5 of 0 candidates with sobel > 100 is 0 patches"),
        ("sobel", 0.5, "NULL", "0.5 of 0 candidates with NULL is 0 patches"),
        ("mixed", 1, "sobel\n> 100", r"1 of 0 candidates with sobel\n> 100 is 0 patches"),
    ],
)
def test_nothing_to_choose_is_refused(store: Store, by: str, keep: float, where: str | None, found: str) -> None:
    assert refusal(store, "des", by=by, keep=keep, where=where) == f"nothing to choose: {found}"


def test_to_keep_and_drop_more_than_all_is_refused(store: Store) -> None:
    message = refusal(store, "refined:drop_top=0.5", by="sobel", keep=0.75)
    assert message == "dropping 6 and keeping 9 of 12 candidates is more than there are; keep or drop less"


@pytest.mark.parametrize(
    ("strategy", "options", "parts"),
    [
        ("hardest", {}, ["no 'hardest' in curate.strategies", "asc, cluster, des, ensemble"]),
        ("des", {"drop_top": 0.1}, ["no option 'drop_top'"]),
        ("refined:drop_top=0.2", {"drop_top": 0.1}, ["given twice"]),
        ("refined", {"drop_top": 1.0}, ["from 0 to below 1, found 1.0"]),
        (Refined(), {"drop_top": 0.1}, ["drop_top should be set in the strategy itself"]),
        (object, {}, ["is not a strategy"]),
    ],
)
def test_a_strategy_or_option_that_is_none_is_refused(
    store: Store, strategy: Any, options: dict[str, Any], parts: list[str]
) -> None:
    message = refusal(store, strategy, by="sobel", **options)
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize("name", ["nothing", "file", "folder"])
def test_what_is_no_store_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="is not a store"):
        select(tmp_path / name, "random")


# --- what is written down ---------------------------------------------------------------------------------------------


def test_the_recipe_says_everything_that_made_it(store: Store) -> None:
    manifest = select(store, "refined", by="sobel", keep=0.25, where="sobel > 1", drop_top=0.1)
    recipe = manifest.recipe
    (sobel,) = (found for found in store.score_sets() if found.record.label == "sobel")
    assert recipe.model_dump() == {
        "format": 1,
        "store": {"url": str(store.path.resolve()), "shards": 3, "digest": store.digest()},
        "strategy": "refined:drop_top=0.1",
        "options": {"drop_top": 0.1},
        "by": "sobel",
        "keep": 0.25,
        "unit": "patches",
        "where": "sobel > 1",
        "counts": {
            "patches": 12,
            "flagged": 0,
            "unchecked": 0,
            "candidates": 8,
            "without_finite_score": 0,
            "selected": 2,
            "pixels": pixels(manifest.table),
        },
        "scorers": {"sobel": sobel.record.fingerprint},
        "checks": {},
        "packed_from": None,
        "versions": recipe.versions,
    }
    assert recipe.versions["curate"] == curate.__version__ and set(recipe.versions) > {"python"}
    assert {name: recipe.versions[name] for name in ("duckdb", "numpy", "pyarrow")} == {
        name: version(name) for name in ("duckdb", "numpy", "pyarrow")
    }


def test_the_recipe_has_all_options_defaults_too_and_a_spec_that_chooses_again(store: Store) -> None:
    for spec in ("random", "random:seed=3", "refined", "des"):
        manifest = select(store, spec, by="sobel")
        assert manifest.recipe.options == plugins.options_of(plugins.parse("strategies", spec))
        again = select(store, manifest.recipe.strategy, by=manifest.recipe.by, keep=manifest.recipe.keep)
        assert again.table.equals(manifest.table) and again.recipe == manifest.recipe


@pytest.mark.parametrize(
    ("by", "where", "labels"),
    [
        ("sobel", None, ["sobel"]),
        ("sobel", "mixed > 1", ["mixed", "sobel"]),
        ("sobel", 'SOBEL > 1 AND "SRCNN:scale=3" > 1', ["sobel", "srcnn:scale=3"]),
        (None, "patch_id IN (SELECT patch_id FROM scores WHERE mixed > 1)", ["mixed"]),
        (None, "width > 0", []),
    ],
)
def test_the_recipe_has_the_fingerprint_of_every_score_that_decided(
    store: Store, by: str | None, where: str | None, labels: list[str]
) -> None:
    fingerprints = {found.record.label: found.record.fingerprint for found in store.score_sets()}
    recipe = select(store, "random", by=by, where=where).recipe
    assert recipe.scorers == {label: fingerprints[label] for label in labels}


def test_a_store_or_its_path_a_strategy_or_its_spec_choose_the_same(store: Store) -> None:
    first = select(store, "refined:drop_top=0.2", by="sobel")
    for again in (
        select(str(store.path), Refined(drop_top=0.2), by="sobel"),
        select(store.path, "refined", by="sobel", drop_top="0.2"),
    ):
        assert again.table.equals(first.table) and again.recipe == first.recipe


@pytest.mark.parametrize("options", [{"by": "sobel"}, {"by": "mixed", "where": "width > 0"}, {"keep": 1}])
def test_the_same_question_gives_the_same_bytes(store: Store, tmp_path: Path, options: dict[str, Any]) -> None:
    strategy = "refined" if "by" in options else "random:seed=2"
    data = set()
    for _ in range(3):
        path = tmp_path / f"{next(_numbers)}.parquet"
        select(Store.open(store.path), strategy, **options).save(path)
        data.add(path.read_bytes())
    assert len(data) == 1


# --- as a stream ------------------------------------------------------------------------------------------------------

STRATEGIES = ("des", "asc", "refined", "refined:drop_top=0.5", "refined:drop_top=0", "window", "window:lo=0,hi=0.3")
CONDITIONS = (
    None,
    "x > 0",
    "split = 'val' OR score <= 1",
    "image_id IN (SELECT image_id FROM images)",
    "status = 'ok'",
)
some = st.sampled_from([0.0, -0.0, 0.5, 1.0, 1.0000001, 2.0, -3.0, 1e30, 1e-40, NAN, INF, -INF, None])


def flag(store: Store, unit: int) -> None:
    """A check that has seen the first two units, and found something in one of them."""
    record = CheckRecord(check="leaks", label="Set5", version=1, identity={}, fingerprint="f" * 16)
    found = store.add_check_set(record)
    for number in list(store.commits())[:2]:
        image_id = store.unit_table("images", number)["image_id"][0].as_py()
        row = {"image_id": image_id, "benchmark": "Set5", "test": "woman.png"} | dict.fromkeys(LEAKS.names[3:], 1.0)
        table = pa.Table.from_pylist([row] if number == unit else [], LEAKS)
        store.commit(found.kind, number, "0" * 16, [store.write_table(found.kind, number, table)])


@given(
    units=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    data=st.data(),
    strategy=st.sampled_from(STRATEGIES),
    where=st.sampled_from(CONDITIONS),
    keep=st.sampled_from([0.05, 0.3, 0.5, 0.9, 1]),
    flagged=st.sampled_from([None, 0, 1]),
)
@settings(deadline=None, max_examples=10, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_choice_as_a_stream_is_the_choice_from_a_table_byte_for_byte(
    units: list[int],
    data: st.DataObject,
    strategy: str,
    where: str | None,
    keep: float,
    flagged: int | None,
    tmp_path_factory: pytest.TempPathFactory,
    write_store: Write,
) -> None:
    folder = tmp_path_factory.mktemp("stream")
    scored = sum(units) if data.draw(st.booleans()) else sum(units[:-1])
    store = write_store(folder / "store", units, {"score": data.draw(st.lists(some, min_size=scored, max_size=scored))})
    if flagged is not None:
        flag(store, flagged)
    options: dict[str, Any] = {"by": "score", "keep": keep, "where": where, "with_flagged": data.draw(st.booleans())}
    try:
        manifest = select(store, strategy, **options)
    except UsageError as refused:
        with pytest.raises(UsageError, match=re.escape(str(refused))):
            write(store, folder / "stream.parquet", strategy, **options)
        assert not (folder / "stream.parquet").exists()
        return
    rows, batch_rows, held = (data.draw(st.integers(1, 5)) for _ in range(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("curate.manifest._GROUP_ROWS", rows)
        patch.setattr("curate.selection._BATCH_ROWS", batch_rows)
        patch.setattr("curate.selection._MOST_HELD", held)
        recipe = write(store, folder / "stream.parquet", strategy, **options)
        assert recipe == manifest.save(folder / "table.parquet").recipe
    assert (folder / "stream.parquet").read_bytes() == (folder / "table.parquet").read_bytes()
    assert Manifest.load(folder / "stream.parquet").table.equals(manifest.table)


def test_more_than_memory_holds_is_sorted_in_a_folder_that_is_gone_afterwards(
    tmp_path: Path, write_store: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "spill"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "spill").mkdir()
    values = np.random.default_rng(0).permutation(100_000).astype(np.float32).tolist()
    store = write_store(tmp_path / "store", [100_000], {"sobel": values})
    spilled = []

    def watched(path: Any, tables: Any, recipe: Any) -> Any:
        def watching() -> Any:
            for table in tables:
                spilled.append(sum(file.stat().st_size for file in (tmp_path / "spill").rglob("*.rows")))
                yield table

        return _write_manifest(path, watching(), recipe)

    monkeypatch.setattr(Manifest, "write", watched)
    monkeypatch.setattr("curate.selection._BATCH_ROWS", 2048)
    monkeypatch.setattr("curate.selection._TOGETHER", 2048)
    monkeypatch.setattr("curate.selection._MOST_HELD", 20_000)
    write(store, tmp_path / "stream.parquet", "refined")
    monkeypatch.undo()
    assert max(spilled) > 1_000_000 and list((tmp_path / "spill").iterdir()) == []
    select(store, "refined").save(tmp_path / "table.parquet")
    assert (tmp_path / "stream.parquet").read_bytes() == (tmp_path / "table.parquet").read_bytes()


def test_a_condition_that_changes_its_mind_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"should hold for the same patches each time: random\(\) < 0.7"):
        for _ in range(60):  # fewer patches than were counted are found in every second one
            write(store, tmp_path / "x.parquet", "des", by="sobel", keep=1, where="random() < 0.7")


def test_a_strategy_with_a_select_of_its_own_is_asked_with_a_table(store: Store, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Odd(Des):
        def select(self, candidates: pa.Table, budget: int) -> Picks:
            return Picks.equal(np.array([3], np.int64))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("curate.plugins.spec_of", lambda _: "odd")
        assert write(store, tmp_path / "odd.parquet", Odd(), by="sobel").counts["selected"] == 1
    assert write(store, tmp_path / "random.parquet", "random").counts["selected"] == 6
    assert write(store, tmp_path / "des.parquet", "des", by="sobel", unit="pixels").unit == "pixels"


@pytest.mark.parametrize("memory", ["much", "1 parsec", "", "26MB"])
def test_an_amount_of_memory_that_is_none_or_too_little_is_refused(store: Store, tmp_path: Path, memory: str) -> None:
    with pytest.raises(UsageError, match=r"--memory should be (a number of bytes|\d+MB or more).*, found '?" + memory):
        write(store, tmp_path / "x.parquet", "des", by="sobel", memory=memory)


def test_a_choice_writes_nothing(tmp_path: Path, write_store: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = write_store(tmp_path / "store", scores={"sobel": SOBEL})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    json.dumps(select(store, "des", where="width > 0").recipe.model_dump(mode="json"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_patches_added_since_the_scores_are_candidates_without_a_score(tmp_path: Path, write_store: Write) -> None:
    store = write_store(tmp_path / "store", [5], {"sobel": SOBEL[:5]})
    before = select(store, "des", keep=1)
    grown = select(write_store(tmp_path / "store", [4], first=1), "des", keep=1)
    assert ids(grown) == ids(before)
    assert grown.recipe.counts == {
        "patches": 9,
        "flagged": 0,
        "unchecked": 0,
        "candidates": 9,
        "without_finite_score": 4,
        "selected": 5,
        "pixels": pixels(grown.table),
    }
    assert grown.recipe.store.shards == 2 and grown.recipe.store.digest != before.recipe.store.digest


def test_a_scorer_that_was_cut_off_before_its_first_shard_has_nothing_to_choose(
    tmp_path: Path, write_store: Write
) -> None:
    store = write_store(tmp_path / "store", scores={"sobel": []})
    assert refusal(store, "des", by="sobel") == "nothing to choose: 0.5 of 0 candidates is 0 patches"


def test_a_patch_without_its_place_is_damage(write_store: Write, tmp_path: Path) -> None:
    """A table that another program wrote, and a record that vouches for it."""
    store = write_store(tmp_path / "store", [3], {"sobel": [1.0, 2.0, 3.0]})
    rows = store.patches().to_pydict() | {"x": [0, None, 24]}
    nullable = pa.schema([field.with_nullable(True) for field in PATCHES])
    part = store.write_table("patches", 0, pa.table(rows, nullable))
    commit = json.loads((store.path / "commits/ingest/000000.json").read_text())
    parts = [Part(**found) for found in commit["parts"] if "/patches/" not in found["path"]]
    store.commit("ingest", 0, commit["fingerprint"], [*parts, part])
    for act in (lambda: select(store, "des"), lambda: write(store, tmp_path / "m.parquet", "des", keep=1)):
        with pytest.raises(DataError, match="it has patches without x"):
            act()


def test_progress_ends_with_every_row_written_and_changes_no_byte(write_store: Write, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", (30, 20, 50), {"sobel": [row * 37 % 100 / 7 for row in range(100)]})
    told: list[tuple[int, int, str]] = []
    write(
        store, tmp_path / "a.parquet", "refined", progress=lambda done, total, note="": told.append((done, total, note))
    )
    write(store, tmp_path / "b.parquet", "refined")
    assert told[-1] == (50, 50, "written")
    assert all(0 <= done <= total for done, total, _ in told)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
