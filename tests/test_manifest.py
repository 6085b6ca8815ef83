"""A manifest is one file that any Parquet reader opens; it knows its store, wherever both are moved, and no other."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from curate import __version__, layout, schema
from curate.coverage import pixels
from curate.errors import CurateError, DataError, UsageError
from curate.manifest import Manifest
from curate.selection import select
from curate.store import Store

SCORES = [float(i) for i in range(12)]
Write = Callable[..., Store]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, write_store: Write) -> Path:
    """A folder with `store` and a manifest `chosen.parquet` of it. Not to be changed: see `work`."""
    folder = tmp_path_factory.mktemp("made")
    store = write_store(folder / "store", scores={"sobel": SCORES})
    select(store, "refined", by="sobel", keep=0.5, where="name <> 'é'").save(folder / "chosen.parquet")
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to do with as one likes."""
    return shutil.copytree(made, tmp_path / "work")


def refusal(kind: type[CurateError], act: Callable[[], object]) -> str:
    """The line with which something is refused."""
    with pytest.raises(kind) as refused:
        act()
    message = str(refused.value)
    assert message.isprintable() and len(message) < 1000
    assert refused.value.exit_code == (2 if kind is UsageError else 1)
    return message


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- one file for everybody -------------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded(work: Path) -> None:
    chosen = select(work / "store", "refined", by="sobel")
    saved = chosen.save(work / "again.parquet")
    for path in (work / "again.parquet", str(work / "again.parquet")):
        loaded = Manifest.load(path)
        assert loaded.table.equals(chosen.table) and loaded.table.schema.equals(layout.MANIFEST)
        assert loaded.table.schema.metadata is None
        assert loaded.recipe == saved.recipe and loaded.path == saved.path == work / "again.parquet"
        assert len(loaded) == len(chosen) == 6
    unchanged = chosen.recipe.model_copy(update={"store": saved.recipe.store})
    assert saved.recipe == unchanged and saved.recipe.store.url == "store"


def test_pyarrow_alone_opens_it(made: Path) -> None:
    table = pq.read_table(made / "chosen.parquet")
    assert table.schema.names == ["rank", "patch_id", "image_id", "y", "x", "size", "score", "weight", "shard"]
    assert table["rank"].to_pylist() == list(range(6))
    assert table["score"].to_pylist() == [10.0, 9.0, 8.0, 7.0, 6.0, 5.0]
    recipe = json.loads(table.schema.metadata[b"curate"])
    assert (recipe["strategy"], recipe["by"], recipe["keep"]) == ("refined", "sobel", 0.5)
    assert recipe["where"] == "name <> 'é'" and recipe["options"] == {"drop_top": 0.05}
    assert recipe["counts"] == {
        "patches": 12,
        "candidates": 12,
        "flagged": 0,
        "unchecked": 0,
        "without_finite_score": 0,
        "selected": 6,
        "pixels": pixels(table),
    }


def test_duckdb_alone_opens_it_and_reads_the_same(made: Path) -> None:
    path = made / "chosen.parquet"
    rows = duckdb.sql(f"FROM '{path}' ORDER BY rank").fetchall()
    assert rows == [tuple(row.values()) for row in pq.read_table(path).to_pylist()]
    query = f"SELECT decode(value) FROM parquet_kv_metadata('{path}') WHERE decode(key) = 'curate'"
    ((recipe,),) = duckdb.sql(query).fetchall()
    read = Manifest.load(path).recipe
    assert recipe.encode() == schema.dump(read)
    assert json.loads(recipe).items() > read.model_dump(mode="json").items()


def test_the_same_manifest_is_the_same_bytes(work: Path) -> None:
    first = (work / "chosen.parquet").read_bytes()
    Manifest.load(work / "chosen.parquet").save(work / "copy.parquet")
    assert (work / "copy.parquet").read_bytes() == first
    Manifest.load(work / "chosen.parquet").save(work / "chosen.parquet")
    assert (work / "chosen.parquet").read_bytes() == first


def test_rows_are_by_rank_whoever_wrote_them_last(work: Path) -> None:
    table = pq.read_table(work / "chosen.parquet")
    pq.write_table(table.take(pa.array([3, 0, 5, 1, 4, 2])), work / "shuffled.parquet")
    assert Manifest.load(work / "shuffled.parquet").table.equals(Manifest.load(work / "chosen.parquet").table)


def test_a_choice_without_a_score_has_nulls(work: Path) -> None:
    select(work / "store", "random").save(work / "drawn.parquet")
    loaded = Manifest.load(work / "drawn.parquet")
    assert loaded.table["score"].null_count == 6 and loaded.recipe.by is None


def test_describe_is_the_recipe_for_people(made: Path) -> None:
    manifest = Manifest.load(made / "chosen.parquet")
    assert json.loads(manifest.describe()) == manifest.recipe.model_dump(mode="json")
    assert "é" in manifest.describe() and len(manifest.describe().splitlines()) > 20


# --- saving -----------------------------------------------------------------------------------------------------------


def test_saving_makes_folders_and_replaces_what_was_there(work: Path) -> None:
    chosen = Manifest.load(work / "chosen.parquet")
    chosen.save(work / "deep" / "er" / "a.parquet")
    (work / "old.parquet").write_bytes(b"old")
    chosen.save(work / "old.parquet")
    assert Manifest.load(work / "old.parquet").table.equals(chosen.table)
    assert Manifest.load(work / "deep/er/a.parquet").store().path.samefile(work / "store")


def test_saving_that_fails_leaves_what_was_there(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(writer: pq.ParquetWriter, table: pa.Table, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    chosen = Manifest.load(work / "chosen.parquet")
    before = tree(work)
    monkeypatch.setattr(pq.ParquetWriter, "write_table", half)
    for name in ("chosen.parquet", "new.parquet"):
        with pytest.raises(OSError, match="No space left"):
            chosen.save(work / name)
    assert tree(work) == before


def test_a_folder_is_no_place_for_a_manifest(work: Path) -> None:
    chosen, before = Manifest.load(work / "chosen.parquet"), tree(work)
    message = refusal(UsageError, lambda: chosen.save(work / "store"))
    assert "a manifest is a file" in message and "name it like refined.parquet" in message
    assert tree(work) == before


# --- what is no manifest ----------------------------------------------------------------------------------------------


def forged(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The manifest again, with another recipe."""
    table = pq.read_table(path)
    recipe = json.loads(table.schema.metadata[b"curate"])
    change(recipe)
    pq.write_table(table.replace_schema_metadata({"curate": json.dumps(recipe)}), path)


def spoil(work: Path, how: str) -> Path:
    path = work / "chosen.parquet"
    table = pq.read_table(path)
    if how == "text":
        path.write_text("rank,patch_id\n")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif how == "no recipe":
        pq.write_table(table.replace_schema_metadata(None), path)
    elif how == "other columns":
        pq.write_table(table.drop_columns("weight"), path)
    elif how == "other types":
        pq.write_table(table.set_column(3, "y", table["y"].cast(pa.int64())), path)
    elif how == "odd columns":
        pq.write_table(pa.table({"a\n\x1b[31m": [1]}), path)
    elif how == "no text":
        path.write_bytes(path.read_bytes().replace(b"weight", b"weigh\xff"))
    elif how == "no JSON":
        pq.write_table(table.replace_schema_metadata({"curate": "{"}), path)
    elif how == "newer":
        forged(path, lambda recipe: recipe.update(format=2, colour="red"))
    elif how == "unknown key":
        forged(path, lambda recipe: recipe.update(colour="red"))
    elif how == "missing key":
        forged(path, lambda recipe: recipe.pop("strategy"))
    return path


@pytest.mark.parametrize(
    ("how", "part"),
    [
        ("text", "is not a manifest: "),
        ("empty", "is not a manifest: "),
        ("cut", "is not a manifest: "),
        ("no recipe", "is a Parquet file but not a manifest: its columns are rank, patch_id,"),
        ("other columns", "is a Parquet file but not a manifest: its columns are rank, patch_id,"),
        ("other types", "is a Parquet file but not a manifest"),
        ("odd columns", r"its columns are a\n\x1b[31m"),
        ("no text", "is not a manifest: 'utf-8' codec can't decode"),
        ("no JSON", "is not a valid ManifestRecipe: the document: Invalid JSON"),
        ("newer", f"format 2 is not one that curate {__version__} reads (it reads 1); update curate"),
        ("unknown key", "colour: Extra inputs are not permitted"),
        ("missing key", "strategy: Field required"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(work: Path, how: str, part: str) -> None:
    path = spoil(work, how)
    for read in (lambda: Manifest.load(path), lambda: Manifest.named([path])):
        message = refusal(DataError, read)
        assert part in message and "chosen.parquet" in message


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("nothing.parquet", "found nothing; 'curate select' writes one"),
        ("store", "found a folder; 'curate select' writes one"),
        ("memory://nowhere/chosen.parquet", "is not a manifest: found nothing"),
        ("a\n\x1b[31m", r"a\n\x1b[31m' is not a manifest: found nothing"),
    ],
)
def test_where_no_file_is_is_a_mistake_of_the_users(made: Path, name: str, part: str) -> None:
    path = name if "://" in name else made / name
    for read in (lambda: Manifest.load(path), lambda: Manifest.named([path])):
        assert part in refusal(UsageError, read)


def test_damage_is_refused_and_never_read_as_something_else(work: Path) -> None:
    """Whichever byte of the rows is changed, or wherever the file is cut; the recipe too."""
    whole = (work / "chosen.parquet").read_bytes()
    table, recipe = (made := Manifest.load(work / "chosen.parquet")).table, made.recipe
    rng = np.random.default_rng(0)
    refused = 0
    for place in range(0, len(whole), 29):
        changed = bytearray(whole)
        changed[place] ^= int(rng.integers(1, 256))
        for data in (bytes(changed), whole[:place]):
            (work / "damaged.parquet").write_bytes(data)
            try:
                loaded = Manifest.load(work / "damaged.parquet")
            except DataError as error:
                assert str(error).isprintable()
                refused += 1
            else:
                assert loaded.table.equals(table) and loaded.recipe == recipe
    assert refused > len(whole) // 29


# --- by pieces --------------------------------------------------------------------------------------------------------


def by_pieces(path: Path, *columns: str) -> pa.Table:
    with Manifest.scan(path) as scan:
        table = pa.Table.from_batches(scan.batches(*columns))
        assert table.num_rows == scan.rows and len(scan.manifest) == 0
        return table.cast(pa.schema([layout.MANIFEST.field(name) for name in columns]))


def test_its_pieces_are_what_is_loaded(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Manifest.load(work / "chosen.parquet")
    columns = ("image_id", "score", "patch_id", "rank")
    for rows in (2**18, 4):
        monkeypatch.setattr("curate.tables._BATCH_ROWS", rows)
        assert by_pieces(work / "chosen.parquet", *columns).equals(loaded.table.select(columns))
    with Manifest.scan(work / "chosen.parquet") as scan:
        assert len(list(scan.batches("score"))) == 2  # and not one
        assert scan.manifest.recipe == loaded.recipe and scan.manifest.store().path == work / "store"


def test_a_digest_is_the_same_of_any_pieces(work: Path) -> None:
    table = (loaded := Manifest.load(work / "chosen.parquet")).table
    for rows in (1, 4, len(table)):
        assert Manifest.digest_of([table[:0], *table.to_batches(max_chunksize=rows)]) == loaded.digest()
    text = "\n".join(table["patch_id"].to_pylist()).encode() + table["weight"].to_numpy().tobytes()
    assert loaded.digest() == xxhash.xxh3_128_hexdigest(text)


def test_damaged_pieces_are_refused(work: Path) -> None:
    """Whichever byte is changed, or wherever the file is cut: the columns that are read are right, or refused."""
    whole, columns = (work / "chosen.parquet").read_bytes(), ("image_id", "score")
    rows = by_pieces(work / "chosen.parquet", *columns)
    rng, refused = np.random.default_rng(0), 0
    for place in range(0, len(whole), 29):
        changed = bytearray(whole)
        changed[place] ^= int(rng.integers(1, 256))
        for data in (bytes(changed), whole[:place]):
            (work / "damaged.parquet").write_bytes(data)
            try:
                found = by_pieces(work / "damaged.parquet", *columns)
            except DataError as error:
                assert str(error).isprintable()
                refused += 1
            else:
                assert found.equals(rows)
    assert refused > len(whole) // 29


# --- several, for SQL -------------------------------------------------------------------------------------------------


def test_manifests_are_named_by_their_files(work: Path) -> None:
    names = ["a b.parquet", "x.y.parquet", "été", "UPPER.PARQUET"]
    for name in names:
        shutil.copy(work / "chosen.parquet", work / name)
    found = Manifest.named([work / name for name in names])
    assert found == {"a b": work / names[0], "x.y": work / names[1], "été": work / names[2], "UPPER": work / names[3]}
    store = Store.open(work / "store")
    for name in found:
        assert store.query(f'select count(*) as n from "{name}"', found).to_pylist() == [{"n": 6}]
    assert Manifest.named([]) == {}


def test_two_manifests_of_one_name_are_refused(work: Path) -> None:
    (work / "other").mkdir()
    shutil.copy(work / "chosen.parquet", work / "other")
    message = refusal(UsageError, lambda: Manifest.named([work / "chosen.parquet", work / "other/chosen.parquet"]))
    assert message == "two manifests are called 'chosen' in SQL; rename one of the files"


def test_naming_reads_no_rows(work: Path) -> None:
    path = work / "chosen.parquet"
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(data)
    assert Manifest.named([path]) == {"chosen": path}
    assert "is not a manifest" in refusal(DataError, lambda: Manifest.load(path))


# --- its store --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("m.parquet", "store"),
        ("sub/m.parquet", "../store"),
        ("store/m.parquet", "."),
        ("../m.parquet", "work/store"),
        ("with space/é/m.parquet", "../../store"),
    ],
)
def test_a_manifest_finds_its_store_when_both_are_moved(work: Path, tmp_path: Path, place: str, url: str) -> None:
    saved = select(work / "store", "des", by="sobel").save(work / place)
    assert saved.recipe.store.url == url
    assert saved.store().path.samefile(work / "store")
    if not place.startswith(".."):
        work = work.rename(tmp_path / "moved")
    loaded = Manifest.load(work / place)
    assert loaded.store().path.samefile(work / "store")
    loaded.verify(loaded.store())


def test_it_does_not_matter_where_one_stands(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "sub").mkdir()
    monkeypatch.chdir(work / "sub")
    saved = select("../store", "des", by="sobel").save("m.parquet")
    assert saved.recipe.store.url == "../store"
    select(work / "store", "des", by="sobel").save(work / "sub" / "n.parquet")
    assert (work / "sub/m.parquet").read_bytes() == (work / "sub/n.parquet").read_bytes()
    monkeypatch.chdir(work)
    assert Manifest.load("sub/m.parquet").store().path.samefile("store")


def test_a_link_to_a_manifest_leads_to_its_store(work: Path, tmp_path: Path) -> None:
    (tmp_path / "link.parquet").symlink_to(work / "chosen.parquet")
    assert Manifest.load(tmp_path / "link.parquet").store().path.samefile(work / "store")
    (tmp_path / "folder").symlink_to(work)
    saved = select(tmp_path / "folder/store", "des", by="sobel").save(tmp_path / "folder" / "m.parquet")
    assert saved.recipe.store.url == "store"


def test_a_manifest_saved_elsewhere_still_means_its_store(work: Path, tmp_path: Path) -> None:
    again = Manifest.load(work / "chosen.parquet").save(tmp_path / "elsewhere" / "copy.parquet")
    assert again.recipe.store.url == "../work/store"
    assert Manifest.load(tmp_path / "elsewhere/copy.parquet").store().path.samefile(work / "store")


def test_before_it_is_saved_it_knows_its_store_too(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = select(work / "store", "random")
    monkeypatch.chdir(work.parent)
    assert chosen.path is None and chosen.store().path.samefile(work / "store")


@pytest.mark.parametrize("moved", ["the store", "the manifest"])
def test_a_store_that_is_not_there_is_said_and_can_be_named(work: Path, tmp_path: Path, moved: str) -> None:
    if moved == "the store":
        where = (work / "store").rename(tmp_path / "new place")
        manifest = Manifest.load(work / "chosen.parquet")
    else:
        where = work / "store"
        manifest = Manifest.load((work / "chosen.parquet").rename(tmp_path / "chosen.parquet"))
    missing = work / "store" if moved == "the store" else tmp_path / "store"
    message = refusal(UsageError, manifest.store)
    assert message == f"the manifest's store is not at '{missing}' any more; name it with --store PATH"
    for path in (where, str(where)):
        assert manifest.store(path).path == where
    saved = manifest.save(tmp_path / "again.parquet")  # it can be saved all the same, and means the same place
    assert str(missing) in refusal(UsageError, saved.store)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("nowhere", "is not a store: found nothing"),
        ("chosen.parquet", "is not a store: found a file"),
        ("", "is not a store: found a folder without store.json"),
        ("memory://nowhere/store", "is not a store: found nothing"),
    ],
)
def test_a_path_that_is_no_store_is_a_mistake_of_the_users(made: Path, path: str, part: str) -> None:
    manifest = Manifest.load(made / "chosen.parquet")
    assert part in refusal(UsageError, lambda: manifest.store(path if "://" in path else made / path))


def test_another_store_is_refused(work: Path, write_store: Write) -> None:
    manifest = Manifest.load(work / "chosen.parquet")
    for name, other in {
        "fewer windows": write_store(work / "a", (5, 4, 2)),
        "fewer shards": write_store(work / "b", (5, 4)),
        "other images": write_store(work / "c", (5, 4, 3), first=1),
        "empty": Store.create(work / "d", patch=24, step=12),
    }.items():
        message = refusal(DataError, lambda other=other: manifest.store(other.path))  # type: ignore[misc]
        assert str(other.path) in message and "is not the store that the manifest was made from" in message, name
        assert "the digest of its first 3 shards differs" in message


def test_a_copy_of_the_store_is_that_store(work: Path, write_store: Write) -> None:
    shutil.copytree(work / "store", work / "copy")
    assert Manifest.load(work / "chosen.parquet").store(work / "copy").path == work / "copy"
    same = write_store(work / "same")  # the same photographs, taken once more on another machine
    assert Manifest.load(work / "chosen.parquet").store(same.path).path == work / "same"


def change(store: Path, how: str) -> None:
    record = store / "commits/ingest/000001.json"
    if how == "a record":
        other = schema.parse(schema.CommitRecord, record.read_bytes(), record).model_copy(update={"fingerprint": "f"})
        record.write_bytes(schema.dump(other))
    elif how == "a record's text":
        record.write_text(record.read_text().replace('"unit": 1', '"unit":  1'))
    elif how == "a record gone":
        record.unlink()
    elif how == "a shard cut":
        os.truncate(store / "shards/000001.tar", 3)
    elif how == "a table gone":
        (store / "tables/patches/000001.parquet").unlink()
    elif how == "the header":
        (store / "store.json").write_text("{}")


@pytest.mark.parametrize(
    ("how", "part"),
    [
        ("a record", "or it was changed since: the digest of its first 3 shards differs"),
        ("a record's text", "000001.json is damaged: it is not what its checksum says"),
        ("a record gone", "or it was changed since: the digest of its first 3 shards differs"),
        ("a shard cut", "000001.tar' should have 6 bytes, found 3 bytes"),
        ("a table gone", "000001.parquet' should have"),
        ("the header", "is not a valid StoreHeader"),
    ],
)
def test_a_store_that_was_changed_is_refused(work: Path, how: str, part: str) -> None:
    manifest = Manifest.load(work / "chosen.parquet")
    change(work / "store", how)
    assert part in refusal(DataError, manifest.store)
    assert part in refusal(DataError, lambda: manifest.store(work / "store"))


def test_a_store_that_has_grown_is_still_that_store(work: Path, write_store: Write) -> None:
    manifest = Manifest.load(work / "chosen.parquet")
    write_store(work / "store", (2, 6), first=3)
    assert len(manifest.store().commits()) == 5
    manifest.verify(manifest.store())
    change(work / "store", "a record")
    assert "the digest of its first 3 shards differs" in refusal(DataError, manifest.store)


def test_scores_made_since_do_not_change_the_store(work: Path, write_store: Write) -> None:
    write_store(work / "store", (), {"srcnn": SCORES})
    assert Manifest.load(work / "chosen.parquet").store().path.samefile(work / "store")


def test_verify_finds_an_image_that_is_not_in_the_store(work: Path) -> None:
    manifest = Manifest.load(work / "chosen.parquet")
    store = manifest.store()
    manifest.verify(store)
    rows = manifest.table.to_pylist()
    rows[3]["image_id"] = "not\nthere"
    forged = Manifest(pa.Table.from_pylist(rows, layout.MANIFEST), manifest.recipe, manifest.path)
    message = refusal(DataError, lambda: forged.verify(store))
    assert message == rf"the manifest's image 'not\nthere' is not in the store '{store.path}'"


def test_text_that_is_not_utf8_is_damage(work: Path) -> None:
    """Arrow reads it, and finds out when it is looked at."""
    table, file = pq.read_table(work / "chosen.parquet"), work / "bad.parquet"
    wrong = pa.array([b"\xff"] * len(table)).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(wrong), wrong.buffers())
    index = table.schema.get_field_index("patch_id")
    table = table.set_column(index, table.schema.field(index), text)
    with pq.ParquetWriter(file, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"curate": table.schema.metadata[b"curate"]})
    assert "is not a manifest: " in refusal(DataError, lambda: Manifest.load(file))
    assert "is not a manifest: " in refusal(DataError, lambda: by_pieces(file, "patch_id"))
