"""A diff counts what sets count, over manifests made by hand and by choice."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats
from typer.testing import CliRunner

from curate import coverage
from curate.cli import app
from curate.comparison import SIDES, diff
from curate.errors import UsageError
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
        patch.delattr(Store, "query")
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


def test_progress_is_told_step_by_step(store: Store) -> None:
    told: list[tuple[int, int]] = []
    one, two = select(store, "asc", by="sobel"), select(store, "des", by="sobel")
    diff(one, two, progress=lambda done, total, note="": told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4)]
