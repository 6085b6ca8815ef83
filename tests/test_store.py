"""A store gives back what was put in, names its states, and says so when a byte of it is not what was committed."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import add_scores

from curate import __version__, images
from curate.errors import CurateError, DataError, UsageError
from curate.ingestion import ingest
from curate.layout import CELLS, EXAMINED, IMAGES, PATCHES
from curate.store import Cell, Store

PATCH, STEP = 24, 12
SHAPES = ((50, 61), (36, 48), (48, 36), (60, 60), (26, 72), (37, 40))
PARTS = ("shards/{}.tar", "tables/images/{}.parquet", "tables/cells/{}.parquet", "tables/patches/{}.parquet")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Path:
    """A folder with `photos` and a `store` of them in several shards. Not to be changed: see `store`."""
    folder = tmp_path_factory.mktemp("made")
    write_photos(folder / "photos", SHAPES)
    report = ingest([folder / "photos"], folder / "store", patch=PATCH, step=STEP, shard_size=6_000)
    assert report.added == len(SHAPES) and report.shards >= 3
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    """A copy of that store, to do with as one likes."""
    shutil.copytree(made / "store", tmp_path / "store")
    return Store.open(tmp_path / "store")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names_and_ids(store: Store) -> list[tuple[str, str]]:
    table = store.images()
    return list(zip(table["name"].to_pylist(), table["image_id"].to_pylist(), strict=True))


def line(refused: pytest.ExceptionInfo[CurateError]) -> str:
    assert str(refused.value).isprintable()
    return str(refused.value)


# --- making and opening -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["store", "deep/er/store", "with space", "été 1.0", "a'b", "x[1]*?"])
def test_created_is_opened_with_the_same_grid_and_is_empty(tmp_path: Path, name: str) -> None:
    created = Store.create(tmp_path / name, patch=30, step=7)
    opened = Store.open(str(tmp_path / name))
    assert opened.header == created.header and (opened.header.patch, opened.header.step) == (30, 7)
    assert list(tree(tmp_path / name)) == ["store.json"]
    assert opened.commits() == {}
    assert opened.images().equals(IMAGES.empty_table()) and opened.patches().equals(PATCHES.empty_table())
    with pytest.raises(UsageError, match="is empty: ingest photographs first"):
        opened.query("select 1")


def test_an_empty_folder_can_become_a_store(tmp_path: Path) -> None:
    Store.create(tmp_path, patch=30, step=30)
    assert Store.is_store(tmp_path)


@pytest.mark.parametrize(("patch", "step"), [(0, 1), (-1, 1), (24, 0), (24, -1), (24, 25)])
def test_a_grid_that_is_none_is_refused(tmp_path: Path, patch: int, step: int) -> None:
    with pytest.raises(UsageError, match=f"found {patch} and {step}"):
        Store.create(tmp_path / "store", patch=patch, step=step)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("there", ["notes.txt", ".hidden", "store.json/x", "shards/000000.tar"])
def test_a_folder_of_something_else_is_left_untouched(tmp_path: Path, there: str) -> None:
    path = tmp_path / "folder" / there
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match="is not a store") as refused:
        Store.create(tmp_path / "folder", patch=24, step=12)
    assert "name a new or empty folder" in line(refused)
    assert tree(tmp_path) == {f"folder/{there}": b"mine"}


@pytest.mark.parametrize("place", ["file", "file/store", "file/deep/er", "dead"])
def test_a_place_where_no_folder_can_be_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=place):
        Store.create(tmp_path / place, patch=24, step=12)
    assert tree(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize(
    ("place", "found"),
    [("nothing", "found nothing"), ("file", "found a file"), ("", "found a folder without store.json")],
)
def test_what_is_not_a_store_is_refused_with_what_it_is(tmp_path: Path, place: str, found: str) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(UsageError, match="is not a store") as refused:
        Store.open(tmp_path / place)
    assert found in line(refused) and "curate ingest" in line(refused)
    assert refused.value.exit_code == 2


def test_a_store_is_made_and_opened_at_a_url(memory: str) -> None:
    with pytest.raises(UsageError, match="is not a store: found nothing"):
        Store.open(f"{memory}/store")
    created = Store.create(f"{memory}/store", patch=30, step=7)
    assert Store.open(f"{memory}/store").header == created.header and Store.is_store(created.path)
    with pytest.raises(UsageError, match=r"is not a store .*; name a new or empty folder"):
        Store.create(memory, patch=30, step=7)


@pytest.mark.parametrize("act", [Store.open, lambda url: Store.create(url, patch=24, step=12)])
def test_a_url_with_credentials_is_refused_and_not_repeated(act: Callable[[str], Store]) -> None:
    with pytest.raises(UsageError, match="a store should be a URL without credentials") as refused:
        act("s3://AKIAKEY:hunter2@bucket/store")
    assert "AKIAKEY" not in line(refused) and "hunter2" not in line(refused)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "Invalid JSON"),
        (b"\xff\xfe\0", "store.json is not a valid StoreHeader"),
        (b"[]", "store.json is not a valid StoreHeader"),
        (b'{"format": 1, "patch": 24, "step": 12}', "created_by: Field required"),
        (b'{"format": 1, "patch": 0, "step": 12, "created_by": ""}', "patch: Input should be greater than 0"),
        (b'{"format": 1, "patch": 24, "step": 12, "created_by": "", "more": 1}', "more: Extra inputs"),
        (
            b'{"format": 2, "grids": [[24, 12]]}',
            f"format 2 is not one that curate {__version__} reads (it reads 1); update",
        ),
    ],
)
def test_a_damaged_or_newer_header_is_told_in_one_line(store: Store, content: bytes, expected: str) -> None:
    (store.path / "store.json").write_bytes(content)
    with pytest.raises(DataError) as refused:
        Store.open(store.path)
    assert expected in line(refused)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_tables_are_their_units_one_after_another(store: Store) -> None:
    units = list(store.commits())
    assert units == list(range(len(units))) and len(units) > 1
    for name, schema, table in (("images", IMAGES, store.images()), ("patches", PATCHES, store.patches())):
        parts = [store.unit_table(name, unit) for unit in units]
        assert table.equals(pa.concat_tables(parts)) and table.schema.equals(schema)
        assert [part.num_rows for part in parts] == [store.rows(record, name) for record in store.commits().values()]
    assert store.unit_table("cells", 0).schema.equals(CELLS)


def test_a_table_with_other_columns_is_damage(store: Store) -> None:
    for name in ("images", "cells", "patches"):
        part = store.write_table(name, 7, pa.table({"other": [1]}))
        store.commit("ingest", 7, "f", [part])
        with pytest.raises(DataError, match=r"has columns other int64; it should have (image|patch)_id string,"):
            store.unit_table(name, 7)


# --- states -----------------------------------------------------------------------------------------------------------


def test_the_digest_of_the_first_shards_stays_when_the_store_grows(
    store: Store, write_photos: Callable[..., Path], tmp_path: Path
) -> None:
    count = len(store.commits())
    before = [store.digest(shards) for shards in range(count + 1)]
    assert len(set(before)) == count + 1 and before[count] == store.digest()
    ingest([write_photos(tmp_path / "more", ((40, 40),), seed=50)], store.path)
    for grown in (store, Store.open(store.path)):
        assert [grown.digest(shards) for shards in range(count + 1)] == before
        assert grown.digest() == grown.digest(count + 1) not in before


def test_the_digest_is_of_what_was_ingested_and_not_of_when_or_where(made: Path, tmp_path: Path) -> None:
    ingest([made / "photos"], tmp_path / "again", patch=PATCH, step=STEP, shard_size=6_000)
    ingest([made / "photos"], tmp_path / "other", patch=PATCH, step=STEP - 1, shard_size=6_000)
    digests = [Store.open(path).digest() for path in (made / "store", tmp_path / "again", tmp_path / "other")]
    assert digests[0] == digests[1] != digests[2]


def test_scores_are_no_part_of_the_digest(store: Store) -> None:
    before = store.digest()
    add_scores(store, "sobel", "f" * 16, units=[0])
    assert store.digest() == before


def test_files_without_a_record_do_not_count(store: Store) -> None:
    before, images_before = store.digest(), store.images()
    for part in PARTS:
        (store.path / part.format("000099")).write_bytes(b"garbage")
    for name in ("notes.txt", "12.json", "abc123.json", ".000099.json.5.tmp", "000099.json.bak"):
        (store.path / "commits" / "ingest" / name).write_bytes(b"garbage")
    assert store.digest() == before
    assert store.images().equals(images_before)
    assert store.query("select count(*) as n from images").to_pylist() == [{"n": images_before.num_rows}]


def test_units_go_on_beyond_six_digits_in_order(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", patch=24, step=12)
    for unit in (1_000_000, 2, 999_999):
        store.commit("ingest", unit, "f", [])
    assert list(store.commits()) == [2, 999_999, 1_000_000]


# --- damage -----------------------------------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
}


def flip(path: Path, at: int) -> None:
    """Change one byte of a file and not its size."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x41
    path.write_bytes(data)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_part_that_is_missing_or_of_another_size_is_named(store: Store, part: str, damage: str) -> None:
    path = store.path / part.format("000001")
    DAMAGE[damage](path)
    for read in (store.images, store.patches, store.digest, store.views, lambda: Store.open(store.path).cell("x")):
        with pytest.raises(DataError, match="the store is damaged") as refused:
            read()
        assert part.format("000001") in line(refused) and "bytes, found" in line(refused)


def test_a_part_is_looked_at_once_for_each_opening(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []
    honest = Store._check_part
    monkeypatch.setattr(
        Store, "_check_part", lambda self, part, listed: (looked_at.append(part.path), honest(self, part, listed))
    )
    opened = Store.open(store.path)
    for _ in range(2):
        assert opened.images().num_rows and opened.query("from images").num_rows and opened.digest()
    parts = [part.path for record in store.commits().values() for part in record.parts]
    assert len(set(parts)) == len(parts)
    assert sorted(looked_at) == sorted(2 * parts)  # by `store` too


@pytest.mark.parametrize("name", ["images", "cells", "patches"])
def test_no_byte_of_a_table_changes_unnoticed(store: Store, name: str) -> None:
    path = store.path / "tables" / name / "000001.parquet"
    whole = path.read_bytes()
    for at in range(0, len(whole), 41):
        flip(path, at)
        for read in (Store.images, Store.views, lambda opened: opened.cell("x")):
            with pytest.raises(DataError, match=r"000001\.parquet"):
                read(Store.open(store.path))
        path.write_bytes(whole)
    assert Store.open(store.path).images().num_rows == len(SHAPES)


def test_no_byte_of_a_score_table_changes_unnoticed(store: Store) -> None:
    found = add_scores(store, "sobel", "f" * 16, units=[0])
    path = store.path / "tables" / "scores" / found.folder / "000000.parquet"
    flip(path, path.stat().st_size // 3)
    with pytest.raises(DataError, match=r"000000\.parquet"):
        Store.open(store.path).query("select * from scores")


def test_a_changed_image_is_noticed_when_it_is_read_and_others_are_fine(store: Store) -> None:
    whole = {image_id: store.read_bytes(image_id) for _, image_id in names_and_ids(store)}
    for image_id in whole:
        cell = store.cell(image_id)
        for at in (cell.offset, cell.offset + cell.size // 2, cell.offset + cell.size - 1):
            flip(store.shard_path(cell.shard), at)
            opened = Store.open(store.path)
            for read in (opened.read_bytes, lambda image_id, opened=opened: opened.read(image_id, 0, 0, 1, 1)):
                with pytest.raises(DataError, match=rf"'{image_id}' \(hr\) in .* is damaged: its hash differs"):
                    read(image_id)
            assert all(opened.read_bytes(other) == data for other, data in whole.items() if other != image_id)
            flip(store.shard_path(cell.shard), at)
        assert Store.open(store.path).read_bytes(image_id) == whole[image_id]


@pytest.mark.parametrize("damage", ["missing", "a folder", "empty"])
def test_a_shard_that_goes_while_the_store_is_open_is_named(store: Store, damage: str) -> None:
    image_id = next(image_id for _, image_id in names_and_ids(store) if store.cell(image_id).shard == 0)
    DAMAGE[damage](store.shard_path(0))
    with pytest.raises(DataError, match=r"000000\.tar") as refused:
        store.read_bytes(image_id)
    assert image_id in line(refused)


def edit_record(store: Store, changes: dict[str, object]) -> None:
    path = store.path / "commits" / "ingest" / "000001.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"checksum": None} | changes))


@pytest.mark.parametrize("path", ["../x", "shards/../../x", "..", "/x", "shards\\..\\x"])
def test_a_record_cannot_lead_out_of_the_store(store: Store, tmp_path: Path, path: str) -> None:
    (tmp_path / "x").write_bytes(b"")
    edit_record(store, {"parts": [{"path": path, "bytes": 0, "xxh3": ""}]})
    for read in (store.images, store.digest, store.views):
        with pytest.raises(DataError, match="names a file outside the store") as refused:
            read()
        assert "000001.json" in line(refused)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"format": 2, "codec": "new"},
            f"format 2 is not one that curate {__version__} reads (it reads 1); update curate",
        ),
        ({"unit": -1}, "unit: Input should be greater than or equal to 0"),
        ({"parts": [{"path": "shards/000000.tar"}]}, "parts.0.bytes: Field required"),
        ({"note": "mine"}, "note: Extra inputs are not permitted"),
    ],
)
def test_a_damaged_or_newer_record_is_named(store: Store, changes: dict[str, object], expected: str) -> None:
    edit_record(store, changes)
    with pytest.raises(DataError) as refused:
        store.commits()
    assert expected in line(refused) and "000001.json is not a valid CommitRecord" in line(refused)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_score_columns_are_named_by_the_label_and_by_the_fingerprint_where_two_have_one(store: Store) -> None:
    add_scores(store, "one", "a" * 16, units=[0])
    add_scores(store, "two", "b" * 16, units=[0], columns=("mean", "max"))
    assert list(store.score_columns()) == ["one", "two.mean", "two.max"]
    add_scores(store, "one", "c" * 16, units=[0], first=100)
    assert list(store.score_columns()) == ["one@aaaaaaaa", "one@cccccccc", "two.mean", "two.max"]
    answer = store.query('select min("one@aaaaaaaa") as a, min("one@cccccccc") as c, max("two.max") as m from scores')
    assert answer.to_pylist() == [{"a": 0, "c": 100, "m": store.unit_table("patches", 0).num_rows - 1}]


def test_a_score_set_is_made_once_and_never_taken_for_another(store: Store) -> None:
    first = add_scores(store, "one", "a" * 16, units=[0])
    before = tree(store.path)
    assert add_scores(store, "one", "a" * 16, units=[]) == first and tree(store.path) == before
    with pytest.raises(DataError, match="another ScorerRecord whose fingerprint begins alike"):
        add_scores(store, "one", "a" * 8 + "b" * 8, units=[])
    assert tree(store.path) == before


# --- pixels -----------------------------------------------------------------------------------------------------------


def test_bytes_and_pixels_are_those_of_the_photograph(store: Store, made: Path) -> None:
    for name, image_id in names_and_ids(store):
        data = (made / "photos" / name).read_bytes()
        pixels = images.decode(data)
        assert store.read_bytes(image_id) == data
        np.testing.assert_array_equal(store.read(image_id, 0, 0, *pixels.shape[:2]), pixels)


def test_a_cell_says_where_the_bytes_lie(store: Store) -> None:
    for _, image_id in names_and_ids(store):
        cell = store.cell(image_id)
        with tarfile.open(store.shard_path(cell.shard)) as tar:
            places = {member.name: (member.offset_data, member.size) for member in tar.getmembers()}
        assert (cell.offset, cell.size) in [place for name, place in places.items() if name.startswith(image_id)]
        assert (cell.height, cell.width) == images.decode(store.read_bytes(image_id)).shape[:2]
    assert store.cell("0" * 16) is None and store.cell(names_and_ids(store)[0][1], "lr2") is None


def test_a_photograph_is_one_cell_of_its_size(store: Store) -> None:
    assert store.header.packed is None
    for _, image_id in names_and_ids(store):
        (cell,) = store.cells(image_id)
        assert store.is_whole(image_id) and cell == store.cell(image_id)
        assert (cell.y, cell.x, (cell.height, cell.width)) == (0, 0, store.shape(image_id))
        np.testing.assert_array_equal(store.pixels(image_id), images.decode(store.read_bytes(image_id)))
    assert store.cells("0" * 16) == [] == store.cells(image_id, "lr2")
    for read in (store.shape, store.pixels, lambda image_id: store.read(image_id, 0, 0, 1, 1)):
        with pytest.raises(DataError, match="has no hr of image 'ffff'"):
            read("ffff")


def test_decoded_photographs_are_kept_up_to_so_many_pixels(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda data, **how: (decoded.append(data), decode(data, **how))[1])
    ids = [image_id for _, image_id in names_and_ids(store)][:2]
    for limit, expected in ((10**6, 2), (1, 10)):  # the last one is always kept
        monkeypatch.setattr("curate.store._DECODED_PIXELS", limit)
        opened = Store.open(store.path)
        decoded.clear()
        for image_id in ids * 5:
            opened.read(image_id, 0, 0, 1, 1)
            opened.read(image_id, 1, 1, 1, 1)
        assert len(decoded) == expected


def test_every_window_of_the_grid_is_the_crop_of_its_photograph(store: Store) -> None:
    whole = {image_id: images.decode(store.read_bytes(image_id)) for _, image_id in names_and_ids(store)}
    rows = store.patches().to_pylist()
    for i in np.random.default_rng(0).permutation(len(rows)):  # in no order: more images than are kept decoded
        image_id, y, x, size = (rows[i][key] for key in ("image_id", "y", "x", "size"))
        window = store.read(image_id, y, x, size, size)
        assert window.shape == (PATCH, PATCH, 3) and window.dtype == np.uint8
        np.testing.assert_array_equal(window, whole[image_id][y : y + size, x : x + size])


def test_a_window_is_the_callers_own(store: Store) -> None:
    image_id = names_and_ids(store)[0][1]
    first = store.read(image_id, 3, 4, 5, 6)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(store.read(image_id, 3, 4, 5, 6), kept)


@pytest.mark.parametrize(
    "window", [(-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 51, 5), (0, 0, 5, 62), (46, 0, 5, 5), (0, 57, 5, 5), (0, 0, 0, 5)]
)
def test_a_window_outside_the_image_is_refused(store: Store, window: tuple[int, int, int, int]) -> None:
    image_id = dict(names_and_ids(store))["000.png"]  # 50 x 61
    with pytest.raises(UsageError, match="is not inside image") as refused:
        store.read(image_id, *window)
    assert "50x61" in line(refused)


@pytest.mark.parametrize("role", ["hr", "lr2"])
def test_an_image_that_is_not_there_is_named(store: Store, role: str) -> None:
    with pytest.raises(DataError, match=f"has no {role} of image 'ffff'"):
        store.read_bytes("ffff", role)


def test_what_is_committed_later_is_found(store: Store, write_photos: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "more", ((40, 41),), seed=50)
    assert store.cell("x") is None  # the index is made
    source = Store.open(store.path)
    ingest([folder], store.path)
    image_id = dict(names_and_ids(source))["000.png"]
    assert isinstance(Store.open(store.path).cell(image_id), Cell)


# --- writing ----------------------------------------------------------------------------------------------------------


def test_one_table_gives_one_file(store: Store) -> None:
    table = store.patches()
    first, second = store.write_table("copies", 0, table), store.write_table("copies", 1, table)
    assert (first.bytes, first.xxh3, first.rows) == (second.bytes, second.xxh3, second.rows)
    assert (store.path / first.path).read_bytes() == (store.path / second.path).read_bytes()
    assert first.rows == table.num_rows and first.path == "tables/copies/000000.parquet"


def test_writing_clears_what_a_killed_writer_left(store: Store) -> None:
    before = tree(store.path)
    for folder in (".", "shards", "tables/images", "commits/ingest"):
        (store.path / folder / ".x.tar.123.tmp").write_bytes(b"half")
    with store.writing():
        assert tree(store.path) == before


def test_writing_together_clears_nothing_away(store: Store) -> None:
    other = store.path / "shards" / ".000001.tar.0123.tmp"  # of another part, which is at it
    with store.writing(shared=True):
        other.write_bytes(b"half")
        with Store.open(store.path).writing(shared=True):
            assert other.read_bytes() == b"half"
    with store.writing():
        assert not other.exists()


def test_the_last_of_those_who_write_together_folds_the_records(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.records._BLOCKS", (2,))
    records = store.path / "commits" / "ingest"
    assert len(list(records.glob("*.json"))) >= 2
    with store.writing(shared=True):
        with Store.open(store.path).writing(shared=True):
            pass
        assert not list(records.glob("*.jsonl"))  # another one is still at it
    assert list(records.glob("*.jsonl"))


def test_units_are_removed_with_their_folders(store: Store) -> None:
    before = tree(store.path)
    for kind in ("examined/0a", "examined/0b"):
        part = store.write_table(kind, 3, EXAMINED.empty_table())
        store.commit(kind, 3, "0" * 16, [part])
    store.remove_units("examined/0a")
    assert list(store.commits("examined/0b")) == [3] and store.commits("examined/0a") == {}
    assert store.examined_table("examined/0b", 3).schema.equals(EXAMINED)
    store.remove_units("examined/0b")
    store.remove_units("examined/0b")
    assert tree(store.path) == before
    assert not list(store.path.rglob("examined"))


def test_two_do_not_write_at_once(store: Store) -> None:
    with (
        store.writing(),
        pytest.raises(CurateError, match="another curate is writing"),
        Store.open(store.path).writing(),
    ):
        pass
    with store.writing():
        pass


def test_every_file_of_a_store_is_in_its_records(made: Path) -> None:
    store = Store.open(made / "store")
    named = {part.path: part for record in store.commits().values() for part in record.parts}
    there = tree(store.path)
    records = {f"commits/ingest/{unit:06}.json" for unit in store.commits()}
    assert there.keys() == named.keys() | records | {"store.json"}
    assert {path: len(there[path]) for path in named} == {path: part.bytes for path, part in named.items()}


def test_shards_hold_what_the_cells_say_and_nothing_else(made: Path) -> None:
    store = Store.open(made / "store")
    for unit in store.commits():
        cells = store.unit_table("cells", unit).to_pylist()
        data = store.shard_path(unit).read_bytes()
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            members = sorted((member.offset_data, member.size) for member in tar.getmembers())
        assert sorted((cell["offset"], cell["size"]) for cell in cells) == members


# --- tables that another program wrote, and records that vouch for them -----------------------------------------------


def vouched(store: Store, folder: str, kind: str, table: pa.Table) -> Store:
    """The store with another table in unit 0, opened anew."""
    record = store.commits(kind)[0]
    part = store.write_table(folder, 0, table)
    store.commit(kind, 0, record.fingerprint, [*(known for known in record.parts if known.path != part.path), part])
    return Store.open(store.path)


@pytest.mark.parametrize(
    ("column", "value"),
    [("offset", -1), ("size", -1), ("size", 2**62), ("offset", 2**62), ("height", 7), ("width", -3), ("xxh3", 1)],
)
def test_a_cell_that_is_not_there_is_damage(column: str, value: int, store: Store) -> None:
    cells = store.unit_table("cells", 0)
    index = cells.schema.get_field_index(column)
    field = cells.schema.field(index)
    values = pa.array([value] * cells.num_rows, field.type)
    damaged = vouched(store, "cells", "ingest", cells.set_column(index, field, values))
    with pytest.raises(DataError) as refused:
        damaged.pixels(cells["image_id"][0].as_py())
    assert line(refused)


@pytest.mark.parametrize(("height", "width"), [(0, 60), (-48, 60), (2**31 - 1, 2**31 - 1), (None, 60)])
def test_an_image_of_no_size_is_damage(height: int | None, width: int, store: Store) -> None:
    images = store.unit_table("images", 0)
    rows = [row | {"height": height, "width": width} for row in images.to_pylist()]
    damaged = vouched(store, "images", "ingest", pa.Table.from_pylist(rows, images.schema))
    with pytest.raises(DataError) as refused:
        damaged.read(store.unit_table("cells", 0)["image_id"][0].as_py(), 0, 0, 5, 5)
    assert line(refused)


def test_scores_of_other_types_are_damage(write_store: Callable[..., Store], tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", [2], {"sobel": [1.0, 2.0]})
    (found,) = store.score_sets()
    table = store.score_table(found, 0)
    assert table.num_rows == 2
    damaged = vouched(store, found.kind, found.kind, table.set_column(1, "sobel", pa.array(["a", "b"])))
    with pytest.raises(DataError, match="has columns patch_id string, sobel string; it should have"):
        damaged.score_table(found, 0)
