"""Files made again from what is left: right by their hash, or not at all."""

import io
from pathlib import Path

import pyarrow as pa
import pytest
import xxhash
from test_fsck import flipped

import curate
from curate import layout, salvage
from curate.salvage import MOST_BYTES, Shard, cell_table, one_bit, parquet_bytes
from curate.store import Store


@pytest.fixture
def store(photo_folder: Path, tmp_path: Path) -> Store:
    curate.ingest([photo_folder], tmp_path / "store", patch=48, step=24)
    return Store.open(tmp_path / "store")


@pytest.mark.parametrize("size", [1, 2, 100, 3000])
def test_one_bit_is_found_wherever_it_is_and_two_are_not(size: int) -> None:
    data = bytes(range(7, 7 + 200)) * 16
    data = data[:size]
    right = xxhash.xxh3_128_digest(data)
    for bit in {0, 8 * size // 2, 8 * size - 1}:
        assert one_bit(flipped(data, bit), lambda changed: xxhash.xxh3_128_digest(changed) == right) == data
    assert one_bit(flipped(flipped(data, 0), 5), lambda changed: xxhash.xxh3_128_digest(changed) == right) is None


def test_a_large_file_is_not_tried() -> None:
    assert one_bit(bytes(MOST_BYTES + 1), lambda changed: True) is None


def test_tables_are_written_as_the_store_writes_them(store: Store) -> None:
    for name in ("images", "cells", "patches"):
        path = store.path / "tables" / name / "000000.parquet"
        assert parquet_bytes(store.unit_table(name, 0)) == path.read_bytes()  # type: ignore[union-attr]


def test_the_cells_of_a_shard_are_told_by_itself(store: Store) -> None:
    assert cell_table(Path(str(store.shard_path(0)))).equals(store.unit_table("cells", 0))


def test_the_cells_of_a_packed_shard_too(store: Store, tmp_path: Path) -> None:
    curate.select(store.path, "random", keep=0.1).save(tmp_path / "some.parquet")
    curate.pack(tmp_path / "some.parquet", tmp_path / "packed")
    packed = Store.open(tmp_path / "packed")
    cells = packed.unit_table("cells", 0)
    assert len(cells) > 4 and cell_table(Path(str(packed.shard_path(0)))).equals(cells)


def rebuilt(shard: Shard, xxh3: str) -> bytes | None:
    writer = shard.writer(xxh3)
    if writer is None:
        return None
    file = io.BytesIO()
    writer(file)
    return file.getvalue()


def test_a_shard_is_made_of_its_members_alone(store: Store, photo_folder: Path) -> None:
    """Without the tar, from photographs and tables; their endings are known by their names."""
    whole = Path(str(store.shard_path(0))).read_bytes()
    cells, images = store.unit_table("cells", 0), store.unit_table("images", 0)
    xxh3 = store.commits()[0].parts[0].xxh3
    contents = [path.read_bytes() for path in sorted(photo_folder.iterdir())]
    found = {(len(data), xxhash.xxh3_64_intdigest(data)): lambda data=data: data for data in contents}
    names = dict(zip(images["image_id"].to_pylist(), images["name"].to_pylist(), strict=True))
    assert rebuilt(Shard.of(None, cells, names, found), xxh3) == whole  # type: ignore[arg-type]
    del found[next(iter(found))]
    assert len(Shard.of(None, cells, names, found).missing()) == 1  # type: ignore[arg-type]


def test_another_hash_is_not_had(store: Store) -> None:
    shard = Shard.of(Path(str(store.shard_path(0))), store.unit_table("cells", 0), {}, {})
    assert shard.missing() == shard.damaged() == [] and rebuilt(shard, "0" * 32) is None


def test_a_tar_of_others_is_no_shard(tmp_path: Path) -> None:
    import tarfile

    (tmp_path / "notes.txt").write_bytes(b"x")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "notes.txt", "notes.txt")
    with pytest.raises(tarfile.TarError, match="is no member of a shard"):
        cell_table(tmp_path / "x.tar")


def test_an_empty_table_is_a_table() -> None:
    empty = layout.CELLS.empty_table()
    assert pa.parquet.read_table(pa.BufferReader(parquet_bytes(empty))).equals(empty)
    assert salvage.Shard.of(None, empty, {}, {}).missing() == []


def settled(found: list[str], others: list[str], rows: int | None) -> list[list[str]]:
    """Candidates as `folder/name`."""
    places = [[(place.split("/")[0], place.split("/")[1]) for place in some] for some in (found, others)]
    tables = list(salvage.retried_tables(places[0], places[1], rows))
    assert all(table.schema.equals(layout.RETRIED) for table in tables)
    return [[f"{row['source']}/{row['name']}" for row in table.to_pylist()] for table in tables]


def test_what_a_retry_settled_is_guessed_likely_orders_first() -> None:
    assert settled(["a/1", "a/3"], ["a/2"], 2) == [["a/1", "a/3"]] * 2
    assert settled(["a/1", "a/3"], ["a/2"], 3)[0] == ["a/1", "a/2", "a/3"]
    assert settled(["b/5", "a/1"], ["a/2", "b/3"], 4)[0] == ["b/3", "b/5", "a/1", "a/2"]
    assert settled([], ["b/1", "a/2"], 2)[:2] in ([["b/1", "a/2"], ["a/2", "b/1"]], [["a/2", "b/1"], ["b/1", "a/2"]])
    assert ["a/3", "a/2", "a/1"] in settled(["a/3", "a/1"], ["a/2"], 3)  # two folders of one name
    assert settled(["a/1", "a/3"], ["a/2"], 1) == settled(["a/1"], [], 2) == []
    assert {len(order) for order in settled(["a/1"], ["a/2", "a/3"], None)} == {1, 2, 3}


def test_there_is_an_end_to_what_is_tried() -> None:
    others = [f"{folder}/{i}" for folder in "bcdefgh" for i in range(6)]
    assert len(settled(["a/9", "a/1"], others, 22)) <= 2000
