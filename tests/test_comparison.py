"""A diff counts what sets count, over manifests made by hand and by choice."""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from typer.testing import CliRunner

from curate import coverage, layout, sql
from curate.cli import app
from curate.comparison import SIDES, diff, summary
from curate.errors import DataError, UsageError
from curate.ingestion import ingest
from curate.manifest import Manifest
from curate.packing import pack
from curate.selection import select
from curate.store import Store

UNITS = (5, 7, 30, 2)


@pytest.fixture
def store(tmp_path: Path, write_store: Callable[..., Store]) -> Store:
    rng = np.random.default_rng(0)
    scores = {name: rng.random(sum(UNITS)).round(2).tolist() for name in ("sobel", "srcnn")}
    return write_store(tmp_path / "store", UNITS, scores)


def ids(manifest: Manifest) -> list[str]:
    found: list[str] = manifest.table["patch_id"].to_pylist()
    return found


def test_scores_that_both_manifests_have_are_not_asked_of_the_store(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (select(store, strategy, by="srcnn", keep=0.4) for strategy in ("refined", "des"))
    with monkeypatch.context() as patch:
        patch.delattr(Store, "connect")
        found = diff(one, two)
    with monkeypatch.context() as patch:
        patch.setattr("curate.comparison._is_the_score", lambda *_: False)
        asked = diff(one, two)
    assert found.counts == asked.counts and found.changes.equals(asked.changes)
    assert found.by_score.equals(asked.by_score) and found.by_image.equals(asked.by_image)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (("des", "srcnn"), ("des", "sobel")),
        (("refined", "srcnn"), ("des", "srcnn")),
        (("random", None), ("asc", "sobel")),
    ],
)
def test_it_counts_what_sets_count(a: tuple[str, str | None], b: tuple[str, str | None], store: Store) -> None:
    one, two = (select(store, strategy, by=by, keep=0.4) for strategy, by in (a, b))
    found = diff(one, two)
    ours, theirs = set(ids(one)), set(ids(two))
    expected = {"both": ours & theirs, "left": ours - theirs, "entered": theirs - ours}
    rows = found.changes.to_pylist()
    assert {side: {row["patch_id"] for row in rows if row["side"] == side} for side in SIDES} == expected
    assert {side: found.counts[side] for side in SIDES} == {side: len(patches) for side, patches in expected.items()}
    assert found.counts["jaccard"] == len(ours & theirs) / len(ours | theirs)
    for row in rows:
        for rank, manifest in ((row["rank_a"], one), (row["rank_b"], two)):
            assert (ids(manifest).index(row["patch_id"]) if row["patch_id"] in ids(manifest) else None) == rank
    both = [row for row in rows if row["side"] == "both"]
    spearman = scipy.stats.spearmanr([row["rank_a"] for row in both], [row["rank_b"] for row in both]).statistic
    assert found.counts["rank_correlation"] == pytest.approx(spearman)
    assert found.counts["pixels_a"] == coverage.pixels(one.table)


def test_by_image_and_by_score_add_up(store: Store) -> None:
    one, two = select(store, "des", by="srcnn", keep=0.5), select(store, "refined", by="sobel", keep=0.3)
    found = diff(one, two)
    for table in (
        found.by_image,
        *(found.by_score.filter(found.by_score["score"].to_numpy() == n) for n in ("sobel", "srcnn")),
    ):
        assert {side: sum(table[side].to_pylist()) for side in SIDES} == {side: found.counts[side] for side in SIDES}
    named = {row["image_id"]: row["name"] for row in store.images().to_pylist()}
    for row in found.by_image.to_pylist():
        assert row["name"] == named[row["image_id"]]
        inside = [change["side"] for change in found.changes.to_pylist() if change["image_id"] == row["image_id"]]
        assert Counter(inside) == {side: row[side] for side in SIDES if row[side]}
    moved = [row["left"] + row["entered"] for row in found.by_image.to_pylist()]
    assert moved == sorted(moved, reverse=True)
    scores = {row["patch_id"]: row for row in store.query("select patch_id, sobel, srcnn from scores").to_pylist()}
    for change in found.changes.to_pylist():
        assert {name: change[name] for name in ("sobel", "srcnn")} == pytest.approx(
            {name: scores[change["patch_id"]][name] for name in ("sobel", "srcnn")}
        )
    lows = [row["low"] for row in found.by_score.to_pylist() if row["score"] == "sobel"]
    assert lows == sorted(lows) and len(lows) == 10


def test_equal_and_disjoint_manifests(store: Store) -> None:
    half = select(store, "des", by="srcnn", keep=0.5)
    same = diff(half, half).counts
    assert (same["jaccard"], same["left"], same["entered"]) == (1, 0, 0)
    assert same["rank_correlation"] == pytest.approx(1)
    other = diff(half, select(store, "asc", by="srcnn", keep=0.4)).counts
    assert (other["jaccard"], other["both"], other["rank_correlation"]) == (0, 0, None)
    assert other["pixels_either"] <= other["pixels_a"] + other["pixels_b"]


def test_an_opposite_order_is_minus_one(store: Store) -> None:
    up, down = (select(store, strategy, by="srcnn", keep=1) for strategy in ("asc", "des"))
    assert diff(up, down).counts["rank_correlation"] < -0.9  # equal scores keep their order in both


def test_the_command(store: Store, tmp_path: Path) -> None:
    for strategy in ("des", "refined"):
        select(store, strategy, by="srcnn", keep=0.5).save(tmp_path / f"{strategy}.parquet")
    files = [str(tmp_path / "des.parquet"), str(tmp_path / "refined.parquet")]
    shown = CliRunner().invoke(app, ["diff", *files, "-o", str(tmp_path / "changes.parquet")])
    assert shown.exit_code == 0, shown.output
    assert "jaccard: 0.8" in shown.output and "entered" in shown.output
    found = diff(*files)
    assert pq.read_table(tmp_path / "changes.parquet").equals(found.changes)
    lines = shown.stdout.splitlines()
    assert lines[0] == f"from A, {files[0]}, to B, {files[1]}: 'left' is in A alone, 'entered' in B alone"
    assert "by srcnn, from low to high, a tenth of the patches a row:" in lines
    assert "by image, those that changed most first:" in lines  # all of them
    printed = json.loads(CliRunner().invoke(app, ["diff", *files, "--json"]).stdout)
    assert printed["both"] == found.counts["both"] and len(printed["by_image"]) == found.by_image.num_rows


def test_tables_have_titles_that_say_what_is_cut(store: Store) -> None:
    found = diff(select(store, "des", by="srcnn", keep=0.5), select(store, "des", by="sobel", keep=0.3))
    tables = found.titled(images=2)
    titles = [f"by {score}, from low to high, a tenth of the patches a row:" for score in ("sobel", "srcnn")]
    assert [*tables] == [*titles, f"by image, those that changed most first, 2 of {len(found.by_image)}:"]
    for score, title in zip(("sobel", "srcnn"), titles, strict=True):
        rows = [row for row in found.by_score.to_pylist() if row.pop("score") == score]
        assert tables[title].to_pylist() == rows
    assert tables[[*tables][-1]].equals(found.by_image.slice(0, 2))


def test_windows_of_two_sizes_are_no_patches_to_compare(tmp_path: Path, photo_folder: Path) -> None:
    for name, patch in (("small", 48), ("large", 96)):
        ingest([photo_folder], tmp_path / name, patch=patch)
        select(tmp_path / name, "random").save(tmp_path / f"{name}.parquet")
    with pytest.raises(UsageError) as refused:
        diff(tmp_path / "small.parquet", tmp_path / "large.parquet")
    message = str(refused.value)
    assert message.isprintable() and "of 48 px in '" in message and "of 96 px in '" in message
    assert "small.parquet" in message and "large.parquet" in message


def test_manifests_of_two_stores_with_nothing_in_common_are_told(
    tmp_path: Path, write_photos: Callable[..., Path]
) -> None:
    for seed, name in enumerate(("a", "b")):
        photos = write_photos(tmp_path / f"photos-{name}", [(60, 60), (50, 70)], seed=10 * seed)
        ingest([photos], tmp_path / name, patch=48, step=4)
        select(tmp_path / name, "random").save(tmp_path / f"{name}.parquet")
    files = [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
    (note,) = diff(*files).notes
    assert "have no photograph in common, and are of different stores" in note and note.isprintable()
    shown = CliRunner().invoke(app, ["diff", *files])
    assert shown.exit_code == 0 and shown.stderr == f"{note}\n"
    ingest([tmp_path / "photos-b"], tmp_path / "a")  # it has grown, and is the same store still
    later = select(tmp_path / "a", "random", where="source = 'photos-b'")
    assert diff(Manifest.load(files[0]), later).notes == diff(later, Manifest.load(files[0])).notes == []
    pack(files[0], tmp_path / "packed")
    assert diff(files[0], tmp_path / "packed" / "manifest.parquet").notes == []


def test_a_file_that_is_no_manifest_is_one_line(store: Store, tmp_path: Path) -> None:
    half = select(store, "des", by="srcnn")
    with pytest.raises(UsageError, match="is not a manifest: found nothing"):
        diff(half, tmp_path / "nothing.parquet")


def by_hand(one: Manifest, two: Manifest, store: Store) -> dict[str, Any]:
    """All that a comparison says, from rows in Python's own lists and sets."""
    a, b = ({row["patch_id"]: row for row in manifest.table.to_pylist()} for manifest in (one, two))
    names = {row["image_id"]: row["name"] for row in store.images().to_pylist()}
    scores = sorted({manifest.recipe.by for manifest in (one, two)} - {None}, key=str)
    known = {row["patch_id"]: row for row in store.query("select * from scores").to_pylist()}
    changes, images = [], dict[str, Counter[str]]()
    for patch in sorted(a | b):
        row, side = (a | b)[patch], "both" if patch in a and patch in b else "left" if patch in a else "entered"
        images.setdefault(row["image_id"], Counter())[side] += 1
        ranks = {f"rank_{name}": found.get(patch, {}).get("rank") for name, found in (("a", a), ("b", b))}
        values = {score: known[patch][score] for score in scores}
        changes.append({"patch_id": patch, "image_id": row["image_id"], "name": names[row["image_id"]]})
        changes[-1] |= {"side": side, **ranks, **values}
    by_score = []
    for score in scores:
        rows = [row for row in changes if row[score] is not None and not math.isnan(row[score])]
        rows.sort(key=lambda row: (row[score], row["patch_id"]))
        for tenth in np.array_split(np.arange(len(rows)), 10):
            part = [rows[index] for index in tenth]
            counts = {side: sum(row["side"] == side for row in part) for side in SIDES}
            by_score += [{"score": score, "low": part[0][score], "high": part[-1][score], **counts}] if part else []
    both = [row for row in changes if row["side"] == "both"]
    places = [sorted(row[f"rank_{name}"] for row in both) for name in "ab"]
    apart = sum((places[0].index(row["rank_a"]) - places[1].index(row["rank_b"])) ** 2 for row in both)
    n = len(both)
    painted = [
        {(row["image_id"], row["x"] + x) for row in rows for x in range(24)} for rows in (a.values(), b.values())
    ]
    return {
        "counts": {
            "a": len(a),
            "b": len(b),
            **{side: sum(row["side"] == side for row in changes) for side in SIDES},
            "jaccard": n / len(changes),
            "rank_correlation": None if n < 3 else float(1 - Fraction(6 * apart, n**3 - n)),
            "pixels_a": 24 * len(painted[0]),
            "pixels_b": 24 * len(painted[1]),
            "pixels_either": 24 * len(painted[0] | painted[1]),
        },
        "by_image": [
            {"image_id": image_id, "name": names[image_id], **{side: counts[side] for side in SIDES}}
            for image_id, counts in sorted(
                images.items(), key=lambda item: (-item[1]["left"] - item[1]["entered"], item[0])
            )
        ],
        "by_score": by_score,
        "changes": changes,
    }


def test_it_says_what_is_counted_by_hand_of_tables_and_of_files_within_little_memory(
    tmp_path: Path, write_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal scores, missing and endless ones; the command's way never loads a manifest."""
    monkeypatch.setattr("curate.coverage._AT_ONCE", 7)
    monkeypatch.setattr("curate.comparison._BATCH_ROWS", 3)
    monkeypatch.setattr("curate.comparison._GROUP_ROWS", 16)
    rng = np.random.default_rng(1)
    odd: list[float | None] = [None, math.nan, math.inf, -math.inf]
    scores = {
        name: [odd[k] if k < len(odd) else float(k % 6) for k in rng.integers(0, 16, sum(UNITS))]
        for name in ("sobel", "srcnn")
    }
    store = write_store(tmp_path / "store", UNITS, scores)
    some = [
        select(store, strategy, by=by, keep=keep)
        for strategy, by, keep in (
            ("des", "sobel", 0.6),
            ("asc", "sobel", 0.9),
            ("refined", "srcnn", 0.4),
            ("random", None, 0.5),
        )
    ]
    files = [manifest.save(tmp_path / f"{number}.parquet").path for number, manifest in enumerate(some)]
    monkeypatch.delattr(Manifest, "load")
    for one, two in ((0, 1), (0, 2), (3, 1), (3, 3)):
        expected, out = by_hand(some[one], some[two], store), tmp_path / "changes.parquet"
        table = diff(some[one], some[two])
        streamed = summary(str(files[one]), str(files[two]), out, memory="64MB")
        for found, changes in ((table, table.changes), (streamed, pq.read_table(out))):
            assert list(found.counts.items()) == list(expected["counts"].items())
            assert found.by_image.to_pylist() == expected["by_image"]
            assert found.by_score.to_pylist() == expected["by_score"]
            assert repr(changes.to_pylist()) == repr(expected["changes"])  # where NaN is NaN
            assert found.notes == []
        assert table.by_score.schema == streamed.by_score.schema and table.changes.schema == changes.schema


def test_more_than_memory_holds_is_spilled_into_a_folder_that_is_gone_afterwards(
    tmp_path: Path, write_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "spill"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "spill").mkdir()
    values = np.random.default_rng(0).permutation(100_000).astype(np.float32).tolist()
    store = write_store(tmp_path / "store", [100_000], {"sobel": values})
    files = [str(select(store, name, keep=0.6).save(tmp_path / f"{name}.parquet").path) for name in ("asc", "des")]
    spilled = [0]

    def watching(*_: Any) -> Any:
        spilled.append(sum(file.stat().st_size for file in (tmp_path / "spill").rglob("*") if file.is_file()))
        return contextlib.nullcontext()

    monkeypatch.setattr("curate.comparison._Joined._shown", watching)
    monkeypatch.setattr("curate.sql.connect", partial(sql.connect, threads=1))  # each takes its share
    found = summary(*files, tmp_path / "changes.parquet", memory="24MB")
    assert max(spilled) > 0 and list((tmp_path / "spill").iterdir()) == []
    assert found.counts["both"] == 20_000 and found.counts["rank_correlation"] == -1
    changes = pq.ParquetFile(tmp_path / "changes.parquet").read()
    assert changes["patch_id"].to_pylist() == sorted(changes["patch_id"].to_pylist()) and len(changes) == 100_000


@pytest.mark.parametrize("memory", ["much", ""])
def test_an_amount_of_memory_that_is_none_is_refused(store: Store, memory: str) -> None:
    half = select(store, "des", by="srcnn")
    with pytest.raises(UsageError, match="SQL: "):
        diff(half, half, memory=memory)


def test_every_column_of_a_file_is_looked_at(store: Store, tmp_path: Path) -> None:
    """Also those that are not compared: damage in one means that the file is not what was written."""
    whole = select(store, "des", by="srcnn").save(tmp_path / "whole.parquet")
    metadata, data = pq.read_metadata(tmp_path / "whole.parquet"), (tmp_path / "whole.parquet").read_bytes()
    for number in range(metadata.num_columns):
        column = metadata.row_group(0).column(number)
        damaged = bytearray(data)
        start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        damaged[start + column.total_compressed_size - 1] ^= 1
        (tmp_path / "damaged.parquet").write_bytes(damaged)
        with pytest.raises(DataError, match="is not a manifest") as refused:
            summary(str(whole.path), str(tmp_path / "damaged.parquet"))
        assert str(refused.value).isprintable()


def test_one_patch_that_is_two_windows_is_refused(store: Store) -> None:
    one = select(store, "des", by="srcnn", keep=1)
    for name in ("x", "image_id"):
        values = one.table[name].to_pylist()
        values[3] = "0" * 16 if name == "image_id" else values[3] + 1
        number = one.table.column_names.index(name)
        field = one.table.schema.field(number)
        other = Manifest(one.table.set_column(number, field, pa.array(values, field.type)), one.recipe)
        patch = one.table["patch_id"][3].as_py()
        with pytest.raises(DataError, match=f"have a patch '{patch}' each, which are two different windows") as refused:
            diff(one, other)
        assert str(refused.value).isprintable()


def test_manifests_of_nothing_have_nothing_in_common(store: Store) -> None:
    nothing = Manifest(layout.MANIFEST.empty_table(), select(store, "des", by="srcnn").recipe)
    found = diff(nothing, nothing)
    assert found.counts["jaccard"] is found.counts["rank_correlation"] is None and found.changes.num_rows == 0


def test_progress_is_told(store: Store, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    for strategy in ("asc", "des"):
        select(store, strategy, by="sobel").save(tmp_path / f"{strategy}.parquet")
    files = (str(tmp_path / "asc.parquet"), str(tmp_path / "des.parquet"))
    summary(*files, progress=lambda done, total, note="": told.append((done, total, note)))
    assert told[:2] == [(22, 22, "read"), (22, 22, "read")] and all(done <= total for done, total, _ in told)
