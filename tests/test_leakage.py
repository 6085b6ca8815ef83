"""Leaks: a test image hidden in a corpus is found however it was disguised, and a selection leaves it out."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import scene
from PIL import Image
from typer.testing import CliRunner

from curate import layout
from curate.cli import app
from curate.errors import DataError, UsageError
from curate.ingestion import ingest
from curate.leakage import Forgotten, forget, leaks
from curate.manifest import Manifest
from curate.packing import pack
from curate.scoring import score
from curate.selection import select
from curate.store import Store
from curate.verification import verify


def save(folder: Path, name: str, picture: np.ndarray, **options: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).convert("RGB").save(folder / name, **options)
    return folder


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A benchmark of three images."""
    for number in range(3):
        save(tmp_path / "Bench" / "HR", f"{number}.png", scene(160, 200, number))
    return tmp_path / "Bench"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four photographs; two of them are disguised test images: 0.png inside a larger one, and a crop of 1.png."""
    folder = tmp_path / "corpus"
    wide = scene(220, 300, 50)
    wide[40:200, 60:260] = scene(160, 200, 0)
    save(folder, "hidden.jpg", wide, quality=60)
    crop = Image.fromarray(scene(160, 200, 1)[10:150, 20:190]).resize((255, 210), Image.Resampling.BICUBIC)
    save(folder, "larger.jpg", np.asarray(crop), quality=80)
    save(folder, "clean.png", scene(150, 190, 51))
    return save(folder, "other.png", scene(150, 190, 52))


@pytest.fixture
def store(corpus: Path, tmp_path: Path) -> Store:
    ingest([corpus], tmp_path / "store", patch=48, step=24)
    score(tmp_path / "store", ["sobel"])
    return Store.open(tmp_path / "store")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_disguised_test_images_are_found_where_they_are(store: Store, bench: Path) -> None:
    report = leaks(store, bench)
    assert (report.images, report.tests, report.featureless) == (4, 3, [])
    rows = {row["name"]: row for row in report.leaks.to_pylist()}
    assert {name: row["test"] for name, row in rows.items()} == {"hidden.jpg": "0.png", "larger.jpg": "1.png"}
    hidden, larger = rows["hidden.jpg"], rows["larger.jpg"]
    assert (hidden["y"], hidden["x"]) == (pytest.approx(40, abs=1), pytest.approx(60, abs=1))
    assert hidden["test_share"] > 0.95 and hidden["share"] == pytest.approx(160 * 200 / (220 * 300), abs=0.03)
    assert larger["scale"] == pytest.approx(1.5, rel=0.02) and larger["share"] > 0.95
    assert larger["test_share"] == pytest.approx(140 * 170 / (160 * 200), abs=0.03)
    assert all(row["benchmark"] == "Bench" and row["correlation"] > 0.9 for row in rows.values())


def test_status_and_sql_say_it_and_a_selection_leaves_it_out(store: Store, bench: Path) -> None:
    before = select(store, "des", by="sobel", keep=1.0)
    assert before.recipe.checks == {}
    leaks(store, bench / "HR")
    statuses = store.query("select name, status from images order by name")
    assert statuses.to_pylist() == [
        {"name": "clean.png", "status": "ok"},
        {"name": "hidden.jpg", "status": "overlaps 0.png of Bench"},
        {"name": "larger.jpg", "status": "overlaps 1.png of Bench"},
        {"name": "other.png", "status": "ok"},
    ]
    assert store.query("select count(*) as n from leaks join scores using (image_id)")["n"][0].as_py() > 0
    clean = select(store, "des", by="sobel", keep=1.0)
    flagged = set(store.query("select image_id from flags")["image_id"].to_pylist())
    kept = [row for row in before.table.to_pylist() if row["image_id"] not in flagged]
    assert clean.table["patch_id"].to_pylist() == [row["patch_id"] for row in kept]
    counts = clean.recipe.counts
    assert counts["flagged"] == len(before) - len(clean) and counts["candidates"] == len(clean)
    assert list(clean.recipe.checks.values()) == ["Bench"]
    everything = select(store, "des", by="sobel", keep=1.0, with_flagged=True)
    assert everything.table.equals(before.table) and everything.recipe.checks == {}
    assert everything.recipe.counts["flagged"] == 0
    where = "image_id in (select image_id from leaks)"
    assert len(select(store, "des", by="sobel", keep=1.0, with_flagged=True, where=where)) == counts["flagged"]
    with pytest.raises(UsageError, match=r"flagged ones left out, which --with-flagged takes; .* --forget NAME"):
        select(store, "des", by="sobel", where=where)


def test_progress_counts_the_tests_and_then_the_images(store: Store, bench: Path) -> None:
    told: list[tuple[int, int]] = []
    leaks(store, bench, progress=lambda done, total, note="": told.append((done, total)))
    assert told == [(done, 3 + 4) for done in range(1, 8)]


def test_nothing_is_deleted_and_the_second_time_nothing_is_done(store: Store, bench: Path) -> None:
    before = tree(store.path)
    first = leaks(store, bench)
    after = tree(store.path)
    assert before.items() <= after.items()
    again = leaks(store, bench)
    assert again.images == 0 and again.leaks.equals(first.leaks)
    assert tree(store.path) == after


def test_what_was_found_of_one_test_set_is_forgotten(store: Store, bench: Path, tmp_path: Path) -> None:
    before, everything = tree(store.path), select(store, "des", by="sobel", keep=1.0)
    leaks(store, bench)
    checked = select(store, "des", by="sobel", keep=1.0).save(tmp_path / "checked.parquet")
    first = tree(store.path)
    own = save(tmp_path / "Own", "a.png", scene(150, 190, 51))  # clean.png
    leaks(store, own)
    leaks(store, save(tmp_path / "elsewhere" / "Own", "b.png", scene(150, 190, 99)))  # another one of that name
    assert len(select(store, "random", keep=1.0)) < len(checked)
    done = forget(store, "Own")
    assert (done.name, done.findings, done.left) == ("Own", 1, ["Bench"])
    assert tree(store.path) == first
    assert select(store, "des", by="sobel", keep=1.0).table.equals(checked.table)
    assert forget(store, "Own") == Forgotten("Own", 0, ["Bench"]) and tree(store.path) == first
    assert forget(store, "Bench") == Forgotten("Bench", 2, [])
    assert tree(store.path) == before and not list(store.path.rglob("checks"))
    now = select(Store.open(store.path), "des", by="sobel", keep=1.0)
    assert now.table.equals(everything.table) and now.recipe.checks == {}
    assert list(Manifest.load(tmp_path / "checked.parquet").recipe.checks.values()) == ["Bench"]
    again = leaks(store, bench)  # by the Store that has forgotten it
    assert again.images == 4 and tree(store.path) == first


def test_findings_of_all_versions_are_forgotten(store: Store, bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(store.path)
    leaks(store, bench)
    monkeypatch.setattr("curate.leakage._VERSION", 2)
    leaks(store, bench)
    assert forget(store, "Bench").findings == 4 and tree(store.path) == before


def test_forgetting_that_was_killed_goes_on(
    corpus: Path, bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest([corpus], tmp_path / "store", patch=48, step=24, shard_size=1)
    before = tree(tmp_path / "store")
    leaks(tmp_path / "store", bench)
    (tmp_path / "store").rename(tmp_path / "checked")
    unlink, rmdir = Path.unlink, Path.rmdir
    for last in range((4 + 2) + (4 + 1 + 2)):  # records and folders; tables, what says whose they are, and folders
        left = iter(range(last))

        def cut(act: Callable[..., None], left: Iterator[int] = left) -> Callable[..., None]:
            def acting(*arguments: object, **options: object) -> None:
                if next(left, None) is None:
                    raise KeyboardInterrupt
                act(*arguments, **options)

            return acting

        shutil.copytree(tmp_path / "checked", tmp_path / "store")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", cut(unlink))
            patch.setattr(Path, "rmdir", cut(rmdir))
            with pytest.raises(KeyboardInterrupt):
                forget(tmp_path / "store", "Bench")
        assert verify(tmp_path / "store").whole, last
        assert not Store.open(tmp_path / "store").findings().leaks.num_rows or last < 4
        forget(tmp_path / "store", "Bench")
        assert tree(tmp_path / "store") == before and not list((tmp_path / "store").rglob("checks")), last
        shutil.rmtree(tmp_path / "store")


def test_a_test_set_that_is_the_corpus_itself_is_told(store: Store, corpus: Path, bench: Path, tmp_path: Path) -> None:
    report = leaks(store, corpus, name="my set")
    assert report.warning.startswith("every one of the 4 images of my set is itself in the store")
    assert report.warning.endswith(f"curate leaks {store.path} --forget 'my set'") and report.warning.isprintable()
    with pytest.raises(UsageError, match="flagged ones left out, which --with-flagged takes"):
        select(store, "des", by="sobel")
    save(tmp_path / "some", "0.png", scene(160, 200, 0))
    (tmp_path / "some" / "clean.png").write_bytes((corpus / "clean.png").read_bytes())
    assert leaks(store, tmp_path / "some").warning == leaks(store, bench).warning == ""


def test_a_store_that_has_grown_is_looked_at_where_it_is_new(store: Store, bench: Path, tmp_path: Path) -> None:
    leaks(store, bench)
    more = save(tmp_path / "more", "late.jpg", scene(160, 200, 2), quality=70)
    ingest([more], store.path)
    unseen = Store.open(store.path)
    assert unseen.query("select status from images where name = 'late.jpg'")["status"].to_pylist() == ["ok"]
    manifest = select(unseen, "random", keep=1.0)
    assert manifest.recipe.counts["unchecked"] == unseen.unit_table("patches", 1).num_rows > 0
    result = CliRunner().invoke(app, ["select", str(store.path), "random", "-o", str(tmp_path / "manifest.parquet")])
    assert "candidates are of shards that a check has not seen" in result.stderr
    report = leaks(unseen, bench)
    assert select(unseen, "random", keep=1.0).recipe.counts["unchecked"] == 0
    assert report.images == 1 and report.leaks.num_rows == 3


def test_a_check_that_was_killed_ends_with_the_same_bytes(
    corpus: Path, bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "killed"):
        ingest([corpus], tmp_path / name, patch=48, step=24, shard_size=1)
    leaks(tmp_path / "whole", bench)
    commit, calls = Store.commit, []

    def killed(self: Store, *arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        commit(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        leaks(tmp_path / "killed", bench)
    monkeypatch.undo()
    assert tree(tmp_path / "killed") != tree(tmp_path / "whole")
    report = leaks(tmp_path / "killed", bench)
    assert report.images == 3
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def test_another_test_set_of_the_same_name_is_another_check(store: Store, bench: Path, tmp_path: Path) -> None:
    leaks(store, bench)
    other = save(tmp_path / "elsewhere" / "Bench", "a.png", scene(150, 190, 51))  # clean.png
    assert leaks(store, other).leaks["name"].to_pylist() == ["clean.png"]
    assert leaks(store, other, name="mine").leaks["benchmark"].to_pylist() == ["mine"]
    assert store.query("select distinct name from leaks")["name"].length() == 3
    assert len(store.check_sets()) == 3


def test_findings_of_an_older_version_make_room(store: Store, bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.leakage._AGREE", 2.0)  # finds nothing
    assert leaks(store, bench).leaks.num_rows == 0
    monkeypatch.setattr("curate.leakage._AGREE", 0.9)
    assert leaks(store, bench).leaks.num_rows == 0  # it is done already
    monkeypatch.setattr("curate.leakage._VERSION", 2)
    assert leaks(store, bench).leaks.num_rows == 2
    assert [found.record.version for found in store.check_sets()] == [2]
    assert store.query("select count(*) as n from leaks")["n"].to_pylist() == [2]


def test_a_test_image_without_features_is_named(store: Store, tmp_path: Path) -> None:
    folder = save(tmp_path / "Flat", "sky.png", np.full((90, 90), 77, np.uint8))
    report = leaks(store, folder)
    assert report.featureless == ["sky.png"] and report.leaks.num_rows == 0


def test_bad_input_is_one_line(store: Store, bench: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        leaks(store, tmp_path / "nowhere")
    with pytest.raises(UsageError, match="one line"):
        leaks(store, bench, name="two\nlines")
    (bench / "HR" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"the test image 'bad\.png' cannot be read"):
        leaks(store, bench)
    (bench / "HR" / "bad.png").unlink()
    pack(select(store, "des", by="sobel").save(tmp_path / "half.parquet"), tmp_path / "packed")
    with pytest.raises(UsageError, match="is packed"):
        leaks(tmp_path / "packed", bench)


def test_the_command_shows_what_it_found(store: Store, bench: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["leaks", str(store.path), str(bench)])
    assert result.exit_code == 0
    head, *rows, last = result.stdout.splitlines()
    assert re.split(" {2,}", head) == ["image", "test image", "scale", "share of image", "correlation"]
    assert sorted(row.split()[:2] for row in rows) == [["hidden.jpg", "0.png"], ["larger.jpg", "1.png"]]
    assert all(re.fullmatch(r"(\S+ +){2}(\d(\.\d{1,3})? *){3}", row) for row in rows) and len(rows) == 2
    assert last == ("2 images overlap 2 of 3 test images, 4 images newly looked at; 'curate select' leaves them out")
    result = CliRunner().invoke(app, ["leaks", str(store.path), str(bench), "--json"])
    assert {row["name"] for row in json.loads(result.stdout)} == {"hidden.jpg", "larger.jpg"}
    assert json.loads(result.stdout)[0].keys() == {"name", *layout.LEAKS.names}
    result = CliRunner().invoke(app, ["leaks", str(store.path), str(bench)])
    assert result.stdout.splitlines()[-1].endswith(
        "test images, all were looked at before; 'curate select' leaves them out"
    )
    result = CliRunner().invoke(app, ["select", str(store.path), "des", "-o", str(tmp_path / "m.parquet")])
    assert result.exit_code == 0 and "patches of flagged images left out" in result.stderr
    result = CliRunner().invoke(
        app, ["select", str(store.path), "des", "--with-flagged", "-o", str(tmp_path / "n.parquet")]
    )
    assert result.exit_code == 0 and "flagged" not in result.stderr
    for name, said in (
        ("Set5", "0 findings of Set5 forgotten; there are findings of: Bench"),
        ("Bench", "2 findings of Bench forgotten, and there are no others"),
    ):
        result = CliRunner().invoke(app, ["leaks", str(store.path), "--forget", name])
        assert (result.exit_code, result.stdout) == (0, f"{said}\n")
    result = CliRunner().invoke(app, ["leaks", str(store.path), "--forget", "Bench", "--json"])
    assert json.loads(result.stdout) == {"name": "Bench", "findings": 0, "left": []}


def test_one_photograph_of_bsds_is_one_of_set5(shared: Path, tmp_path: Path) -> None:
    """A golden fact: 302003.jpg of BSDS500's train folder is woman.png, 1.39 times larger."""
    photos = [shared / "corpus" / "bsds-train" / f"{name}.jpg" for name in (302003, 100075, 12003, 135069, 189003)]
    ingest(photos, tmp_path / "store", patch=96, step=48)
    (row,) = leaks(tmp_path / "store", shared / "benchmark" / "Set5").leaks.to_pylist()
    assert (row["name"], row["benchmark"], row["test"]) == ("302003.jpg", "Set5", "woman.png")
    assert row["scale"] == pytest.approx(1.39, abs=0.005) and row["correlation"] > 0.999


def test_set5_hidden_in_a_corpus_as_jpeg_is_found(
    shared: Path, tmp_path: Path, write_photos: Callable[..., Path]
) -> None:
    folder = write_photos(tmp_path / "photos", [(260, 300)] * 3)
    for path in sorted((shared / "benchmark" / "Set5" / "HR").iterdir()):
        Image.open(path).convert("RGB").save(folder / f"holiday-{path.stem}.jpg", quality=50)
    ingest([folder], tmp_path / "store", patch=96, step=48)
    found = leaks(tmp_path / "store", shared / "benchmark" / "Set5").leaks
    assert {row["name"]: row["test"] for row in found.to_pylist()} == {
        f"holiday-{name}.jpg": f"{name}.png" for name in ("baby", "bird", "butterfly", "head", "woman")
    }
