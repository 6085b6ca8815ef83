"""A packed store has the pixels under the windows, once, and gives the batches of the store that it was packed from."""

import contextlib
import errno
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from curate import coverage, files, images, packing, pool, resize, windows
from curate.engine import Part
from curate.errors import CurateError, DataError, UsageError
from curate.ingestion import ingest
from curate.inspection import info
from curate.layout import scores_schema
from curate.loader import Batch, batches
from curate.manifest import Manifest
from curate.packing import MANIFEST_FILE, PackReport, pack
from curate.salvage import cell_table
from curate.schema import ScorerRecord
from curate.selection import select
from curate.store import Store

PATCH, STEP = 25, 7  # windows off every LR grid
SIZES = ((148, 131), (61, 90), (97, 130), (131, 75), (36, 36))  # height, width: PNG and JPEG by turns
SHARD = 6_000  # bytes: several of a few windows
MARGIN = 6  # px around a window that its x4 LR is made from
_Pixels = npt.NDArray[np.uint8]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Path:
    """`store` with `sparse.parquet`: few windows of it, scattered. Not to be changed."""
    folder = tmp_path_factory.mktemp("packing")
    ingest([write_photos(folder / "photos", SIZES)], folder / "store", patch=PATCH, step=STEP, shard_size=30_000)
    store = Store.open(folder / "store")
    assert len(store.commits()) >= 2
    add_scores(store, "edges", ("score",), units=list(store.commits()))
    add_scores(store, "two", ("mean", "max"), units=[0])
    add_scores(store, "vector", ("vector",), units=[0], length=3)
    select(store, "random:seed=1", keep=0.03).save(folder / "sparse.parquet")
    pack(folder / "sparse.parquet", folder / "packed", shard_size=SHARD)
    assert len(Store.open(folder / "packed").commits()) >= 2
    return folder


def add_scores(
    store: Store, scorer: str, columns: tuple[str, ...], units: list[int], length: int | None = None
) -> None:
    """Scores that tell the patch: a number from its id."""
    record = ScorerRecord(scorer=scorer, label=scorer, columns=list(columns), identity={}, fingerprint=scorer * 4)
    found = store.add_score_set(record)
    for unit in units:
        ids = store.unit_table("patches", unit)["patch_id"]
        numbers = np.array([int(patch_id[:4], 16) + int(patch_id.split("_")[1]) for patch_id in ids.to_pylist()])
        column: Any = pa.array(numbers.astype(np.float32))
        if length:
            column = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(numbers, length).astype(np.float32)), length)
        table = pa.table([ids, *[column] * len(columns)], schema=scores_schema(columns, length))
        store.commit(found.kind, unit, "0" * 16, [store.write_table(found.kind, unit, table)])


@pytest.fixture
def source(made: Path) -> Store:
    return Store.open(made / "store")


@pytest.fixture
def sparse(made: Path) -> Manifest:
    return Manifest.load(made / "sparse.parquet")


@pytest.fixture
def packed(made: Path) -> Manifest:
    return Manifest.load(made / "packed" / MANIFEST_FILE)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def take(manifest: Manifest, number: int, **options: Any) -> list[Batch]:
    feed = batches(manifest, **{"scale": 2, "crop": 12, "batch_size": 4} | options)
    taken = list(islice(feed, number))
    feed.close()  # type: ignore[attr-defined]
    return taken


def same(a: list[Batch], b: list[Batch]) -> bool:
    def tensors(batch: Batch) -> tuple[Tensor, ...]:
        return (*batch[:4], *batch.between)

    pairs = ((tensors(one), tensors(two)) for one, two in zip(a, b, strict=True))
    return all(torch.equal(x, y) for one, two in pairs for x, y in zip(one, two, strict=True))


def masks(manifest: Manifest, store: Store, margin: int) -> dict[str, npt.NDArray[np.bool_]]:
    """What the windows cover of each image, with so many pixels around, in the part that LR is made from."""
    covered: dict[str, npt.NDArray[np.bool_]] = {}
    for row in manifest.table.to_pylist():
        mask = covered.setdefault(row["image_id"], np.zeros(store.shape(row["image_id"]), bool))
        top, left = max(row["y"] - margin, 0), max(row["x"] - margin, 0)
        mask[top : row["y"] + row["size"] + margin, left : row["x"] + row["size"] + margin] = True
    for mask in covered.values():
        mask[windows.cropped(mask.shape[0]) :] = mask[:, windows.cropped(mask.shape[1]) :] = False
    return covered


def line(refused: pytest.ExceptionInfo[CurateError]) -> str:
    assert str(refused.value).isprintable()
    return str(refused.value)


# --- the same batches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_bytes", [1, 100_000, 1 << 30])
@pytest.mark.parametrize(("scale", "crop"), [(1, 25), (2, 12), (2, 24), (3, 21), (4, 12), (4, 20)])
def test_batches_are_those_of_the_source_bit_by_bit(
    scale: int, crop: int, cache_bytes: int, sparse: Manifest, packed: Manifest
) -> None:
    options = {"scale": scale, "crop": crop, "cache_bytes": cache_bytes}
    number = 6 * len(sparse) // 4  # every window several times, at other places in it
    assert same(take(packed, number, **options), take(sparse, number, **options))


def test_one_pixel_of_margin_less_and_some_lr_would_differ(
    made: Path, sparse: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert packing._MARGIN == MARGIN <= resize.margin(4)
    monkeypatch.setattr(packing, "_MARGIN", MARGIN - 1)
    report = pack(sparse, tmp_path / "packed")
    number = 6 * len(sparse) // 4
    options: dict[str, Any] = {"scale": 4, "crop": 20}
    assert not same(take(Manifest.load(report.manifest), number, **options), take(sparse, number, **options))


def paired(folder: Path, write_photos: Callable[..., Path], **options: Any) -> Manifest:
    """A few windows of a store with LR images of its own, whose pixels are no bicubic's; sides round up."""
    photos = write_photos(folder / "photos", SIZES[:4])
    (folder / "lr").mkdir()
    rng = np.random.default_rng(0)
    for path, (height, width) in zip(sorted(photos.iterdir()), SIZES, strict=False):
        noise = rng.integers(0, 256, (-(-height // 2), -(-width // 2), 3), np.uint8)
        Image.fromarray(noise).save(folder / "lr" / f"{path.stem}x2.png")
    ingest([photos], folder / "store", patch=PATCH, step=STEP, lr={2: str(folder / "lr")})
    return select(folder / "store", "random:seed=2", keep=0.02).save(folder / "few.parquet")


def test_lr_images_of_the_stores_own_are_packed_as_they_are(tmp_path: Path, write_photos: Callable[..., Path]) -> None:
    few = paired(tmp_path, write_photos)
    report = pack(few, tmp_path / "packed")
    packed = Manifest.load(report.manifest)
    for scale in (2, 3):
        options = {"scale": scale, "crop": 12}
        assert same(take(packed, 3 * len(few), **options), take(few, 3 * len(few), **options))
    store, source = packed.store(), few.store()
    for image_id in set(few.table["image_id"].to_pylist()):
        there, whole = store.pixels(image_id, "lr2"), source.pixels(image_id, "lr2")
        kept = there.any(2)
        assert 0 < kept.sum() < kept.size
        np.testing.assert_array_equal(there[kept], whole[: there.shape[0], : there.shape[1]][kept])
        assert not store.cells(image_id, "lr3")


def test_a_window_without_an_lr_pixel_is_packed(tmp_path: Path, write_photos: Callable[..., Path]) -> None:
    few = paired(tmp_path, write_photos)
    at = {name: few.table.schema.get_field_index(name) for name in ("y", "x", "size")}
    table = few.table.slice(0, 1)
    for name, value in (("y", 1), ("x", 1), ("size", 1)):
        table = table.set_column(at[name], table.schema.field(name), pa.array([value], pa.int32()))
    report = pack(replace(few, table=table), tmp_path / "packed")
    store = Store.open(tmp_path / "packed")
    image_id = table["image_id"][0].as_py()
    assert store.read(image_id, 1, 1, 1, 1).shape == (1, 1, 3) and store.cells(image_id, "lr2") == []
    assert report.patches == 1


# --- what is packed ---------------------------------------------------------------------------------------------------


def test_cells_cover_the_windows_and_their_margin_once_and_nothing_else(
    sparse: Manifest, packed: Manifest, source: Store
) -> None:
    store = packed.store()
    in_cells = 0
    for image_id, mask in masks(sparse, source, MARGIN).items():
        times = np.zeros(mask.shape, int)
        for cell in store.cells(image_id):
            times[cell.y : cell.y + cell.height, cell.x : cell.x + cell.width] += 1
        assert times.max() == 1
        if not store.is_whole(image_id):
            in_cells += 1
            np.testing.assert_array_equal(times, mask.astype(int))
    assert in_cells >= 2


def test_pixels_are_those_of_the_photograph_and_black_where_there_are_none(
    sparse: Manifest, packed: Manifest, source: Store
) -> None:
    store = packed.store()
    for image_id, mask in masks(sparse, source, MARGIN).items():
        whole, there = source.pixels(image_id), store.pixels(image_id)
        assert store.shape(image_id) == whole.shape[:2] == there.shape[:2]
        expected = whole if store.is_whole(image_id) else np.where(mask[..., None], whole, 0)
        np.testing.assert_array_equal(there, expected)
        assert there.flags.c_contiguous and there.flags.writeable


@pytest.mark.parametrize("cell", [1, 7, 16])
def test_boxes_are_cut_into_cells_that_cover_them_once(cell: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_CELL", cell)
    rng = np.random.default_rng(cell)
    for number in (1, 2, 3, 10, 30):
        first_N2 = rng.integers(0, 40, (number, 2))
        end_N2 = first_N2 + rng.integers(1, 20, (number, 2))
        expected, times = np.zeros((60, 60), bool), np.zeros((60, 60), int)
        for (top, left), (bottom, right) in zip(first_N2.tolist(), end_N2.tolist(), strict=True):
            expected[top:bottom, left:right] = True
        found = packing._rectangles(first_N2, end_N2)
        for top, left, bottom, right in found:
            assert 0 < bottom - top <= cell and 0 < right - left <= cell
            times[top:bottom, left:right] += 1
        np.testing.assert_array_equal(times, expected.astype(int))
        assert found == sorted(found)


def test_windows_side_by_side_are_one_cell() -> None:
    corners = np.array([(y, x) for y in range(0, 480, 48) for x in range(0, 480, 48) if (y + x) % 96 == 0])
    assert packing._rectangles(corners, corners + 96) != [(0, 0, 528, 528)]  # longer than a cell
    assert packing._rectangles(corners[:1], corners[:1] + 96) == [(0, 0, 96, 96)]
    square = np.array([(0, 0), (0, 48), (48, 0), (48, 48), (20, 20)])
    assert packing._rectangles(square, square + 96) == [(0, 0, 144, 144)]


def test_where_the_photographs_file_is_smaller_it_is_kept_as_it_is(made: Path, source: Store, tmp_path: Path) -> None:
    everything = select(source, "random", keep=1)
    report = pack(everything, tmp_path / "packed")
    store = Store.open(tmp_path / "packed")
    with tarfile.open(store.shard_path(0)) as tar:
        names = tar.getnames()
    kept = 0
    for name, image_id in zip(*(source.images()[column].to_pylist() for column in ("name", "image_id")), strict=True):
        file = (made / "photos" / name).read_bytes()
        cells = store.cells(image_id)
        assert sum(cell.size for cell in cells) <= len(file)
        if store.is_whole(image_id) and store.read_bytes(image_id) == file:
            kept += 1
            assert image_id + Path(name).suffix in names
        else:
            assert {n for n in names if n.startswith(image_id)} == {f"{image_id}.{c.y}_{c.x}.webp" for c in cells}
        for cell in cells:
            part = (slice(cell.y, cell.y + cell.height), slice(cell.x, cell.x + cell.width))
            np.testing.assert_array_equal(store.pixels(image_id)[part], images.decode(file)[part])
    assert 2 <= kept == report.kept < report.images  # the JPEGs at least


def test_a_file_without_an_ending_is_kept_under_one_that_promises_nothing(
    tmp_path: Path, write_photos: Callable[..., Path]
) -> None:
    photos = write_photos(tmp_path / "photos", SIZES[:2])
    (photos / "001.jpg").rename(photos / "plain")
    ingest([photos / "plain", photos / "000.png"], tmp_path / "store", patch=PATCH)
    pack(select(tmp_path / "store", "random", keep=1), tmp_path / "packed")
    with tarfile.open(tmp_path / "packed" / "shards" / "000000.tar") as tar:
        assert any(name.endswith(".img") for name in tar.getnames())


def test_a_packed_store_is_smaller(made: Path, sparse: Manifest) -> None:
    report = pack(sparse, made / "smaller")
    assert report.bytes < report.source_bytes
    assert report.bytes == info(made / "smaller")["bytes"] and report.source_bytes == info(made / "store")["bytes"]


# --- tables -----------------------------------------------------------------------------------------------------------


def test_tables_are_those_of_the_source_for_what_was_packed(sparse: Manifest, packed: Manifest, source: Store) -> None:
    store = packed.store()
    chosen = set(sparse.table["image_id"].to_pylist())
    assert store.images().to_pylist() == [row for row in source.images().to_pylist() if row["image_id"] in chosen]
    rows = {row["patch_id"]: row for row in source.patches().to_pylist()}
    packed_rows = store.patches().to_pylist()
    assert {row["patch_id"]: row for row in packed_rows} == {i: rows[i] for i in sparse.table["patch_id"].to_pylist()}
    assert len(packed_rows) == len(sparse)


def test_the_manifest_is_the_same_choice_and_says_where_it_comes_from(
    made: Path, sparse: Manifest, packed: Manifest, source: Store
) -> None:
    assert packed.table.drop_columns("shard").equals(sparse.table.drop_columns("shard"))
    store = packed.store()
    assert [store.cell(i).shard for i in packed.table["image_id"].to_pylist()] == packed.table["shard"].to_pylist()
    assert packed.digest() == sparse.digest() == store.header.packed.manifest
    before, after = sparse.recipe.model_dump(), packed.recipe.model_dump()
    assert after["store"] == {"url": ".", "shards": len(store.commits()), "digest": store.digest()}
    assert after["packed_from"] == {"url": "../store", "shards": len(source.commits()), "digest": source.digest()}
    assert {**after, "store": before["store"], "packed_from": None} == before
    assert (store.header.patch, store.header.step) == (PATCH, STEP)


def test_a_packed_store_is_moved_with_its_manifest(made: Path, sparse: Manifest, tmp_path: Path) -> None:
    shutil.copytree(made / "packed", tmp_path / "elsewhere")
    moved = Manifest.load(tmp_path / "elsewhere" / MANIFEST_FILE)
    assert moved.store().path == tmp_path / "elsewhere"
    assert same(take(moved, 5), take(sparse, 5))


def test_scores_go_with_their_patches(source: Store, packed: Manifest) -> None:
    store = packed.store()
    assert list(store.score_columns()) == list(source.score_columns())
    ids = ", ".join(f"'{patch_id}'" for patch_id in packed.table["patch_id"].to_pylist())
    query = 'select patch_id, edges, "two.mean", "two.max", vector from scores'
    expected = source.query(f"{query} where patch_id in ({ids}) order by patch_id")
    assert store.query(f"{query} order by patch_id").equals(expected)
    assert expected["edges"].null_count == 0 and 0 < expected["two.max"].null_count < len(packed)


def test_scores_made_since_are_added_by_another_run(made: Path, tmp_path: Path, sparse: Manifest) -> None:
    shutil.copytree(made / "store", tmp_path / "store")
    few = select(tmp_path / "store", "random:seed=1", keep=0.03).save(tmp_path / "few.parquet")
    pack(few, tmp_path / "packed", shard_size=SHARD)
    shards = tree(tmp_path / "packed" / "shards")
    grown = Store.open(tmp_path / "store")
    add_scores(grown, "two", ("mean", "max"), units=list(grown.commits()))
    add_scores(grown, "new", ("score",), units=[0])
    report = pack(few, tmp_path / "packed", shard_size=SHARD)
    assert report.shards == 0 and tree(tmp_path / "packed" / "shards") == shards
    answer = Store.open(tmp_path / "packed").query('select "two.max", new from scores')
    assert answer["two.max"].null_count == 0 < answer["new"].null_count < len(few)


def test_sql_info_and_select_answer(made: Path, packed: Manifest, sparse: Manifest) -> None:
    store = packed.store()
    answer = store.query("select count(*) as n from patches join images using (image_id)").to_pylist()
    assert answer == [{"n": len(sparse)}]
    assert info(made / "packed")["patches"] == len(sparse)
    assert info(made / "packed" / MANIFEST_FILE)["recipe"]["packed_from"]["url"] == "../store"
    half = select(store, "des", by="edges", keep=0.5)
    of_source = [row for row in sparse.table.to_pylist() if row["patch_id"] in set(half.table["patch_id"].to_pylist())]
    assert len(half) == len(of_source) > 0
    assert half.recipe.counts["pixels"] == coverage.pixels(half.table)
    take(half, 3, scale=4)


def test_a_packed_store_can_be_packed_again(made: Path, packed: Manifest, source: Store, tmp_path: Path) -> None:
    half = select(packed.store(), "des", by="edges", keep=0.5).save(tmp_path / "half.parquet")
    report = pack(half, tmp_path / "again")
    again = Manifest.load(report.manifest)
    for scale in (2, 3, 4):
        assert same(take(again, 20, scale=scale), take(half, 20, scale=scale))
        assert same(take(again, 20, scale=scale), take(replace(half, path=None), 20, scale=scale, store=source))
    assert again.recipe.packed_from.digest == packed.store().digest()
    direct = pack(replace(half, recipe=half.recipe), tmp_path / "direct", store=source)
    assert direct.cells == report.cells
    assert tree(tmp_path / "direct" / "shards") == tree(tmp_path / "again" / "shards")


def test_a_cell_of_a_whole_photograph_is_not_taken_for_its_file(source: Store, tmp_path: Path) -> None:
    report = pack(select(source, "random", keep=1), tmp_path / "packed")
    store = Store.open(tmp_path / "packed")
    kept_and_whole = sum(store.is_whole(image_id) for image_id in store.images()["image_id"].to_pylist())
    assert kept_and_whole > report.kept
    pack(report.manifest, tmp_path / "again")
    assert tree(tmp_path / "again" / "shards") == tree(tmp_path / "packed" / "shards")


def test_cells_may_be_png_files(made: Path, sparse: Manifest, packed: Manifest, tmp_path: Path) -> None:
    """The same batches; and a store of one kind of cells is not gone on with by the other."""
    as_png = Manifest.load(pack(sparse, tmp_path / "png", cells="png").manifest)
    for scale in (2, 3):
        assert same(take(as_png, 12, scale=scale), take(packed, 12, scale=scale))
    store = as_png.store()
    with tarfile.open(store.shard_path(0)) as tar:
        cells = [name for name in tar.getnames() if "_" in name]
    assert cells and all(name.endswith(".png") for name in cells)
    assert cell_table(Path(str(store.shard_path(0)))).equals(store.unit_table("cells", 0))
    with pytest.raises(UsageError, match=r"packed from other things \(cells png, not webp\)"):
        pack(sparse, tmp_path / "png")
    with pytest.raises(UsageError, match="no cells 'jpg'; there are: png, webp"):
        pack(sparse, tmp_path / "jpg", cells="jpg")  # type: ignore[arg-type]


def test_webdataset_has_the_cells_of_an_image_in_one_sample(packed: Manifest) -> None:
    store = packed.store()
    for unit in store.commits():
        with tarfile.open(store.shard_path(unit)) as tar:
            names = tar.getnames()
        keys = [name.partition(".")[0] for name in names]
        assert keys == [key for key in dict.fromkeys(keys) for _ in range(keys.count(key))]  # side by side
        keys = [name.partition(".")[0] for name in names]
        assert set(keys) == set(store.unit_table("images", unit)["image_id"].to_pylist())
        assert len(names) == store.unit_table("cells", unit).num_rows


# --- reading ----------------------------------------------------------------------------------------------------------


def test_any_window_is_read_from_the_cells_under_it(sparse: Manifest, packed: Manifest, source: Store) -> None:
    store = packed.store()
    rng = np.random.default_rng(0)
    inside = outside = 0
    for image_id, mask in masks(sparse, source, MARGIN).items():
        height, width = mask.shape
        for _ in range(60):
            y, x = int(rng.integers(0, height - 8)), int(rng.integers(0, width - 8))
            window = (y, x, int(rng.integers(1, min(40, height - y) + 1)), int(rng.integers(1, min(40, width - x) + 1)))
            if store.is_whole(image_id) or mask[y : y + window[2], x : x + window[3]].all():
                np.testing.assert_array_equal(store.read(image_id, *window), source.read(image_id, *window))
                inside += 1
            else:
                with pytest.raises(UsageError, match=r"was not packed: the packed store '.*' lacks \d+ of its pixels"):
                    store.read(image_id, *window)
                outside += 1
    assert inside > 20 and outside > 20


def test_only_the_cells_under_a_window_are_decoded(
    packed: Manifest, source: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packing, "_CELL", 20)
    everything = select(source, "random", keep=1)
    pack(everything, tmp_path / "packed")
    store = Store.open(tmp_path / "packed")
    image_id = next(i for i in everything.table["image_id"].to_pylist() if len(store.cells(i)) > 9)
    decoded: list[tuple[int, ...]] = []
    decode = images.decode

    def counting(data: bytes, **how: bool) -> _Pixels:
        decoded.append(decode(data, **how).shape)
        return decode(data, **how)

    monkeypatch.setattr(images, "decode", counting)
    store.read(image_id, 0, 0, 5, 5)
    assert len(decoded) == 1 and max(decoded[0]) <= 20
    store.read(image_id, 2, 2, 5, 5)
    assert len(decoded) == 1  # kept


def test_a_window_outside_the_image_is_refused_with_the_images_size(packed: Manifest) -> None:
    store = packed.store()
    image_id = packed.table["image_id"][0].as_py()
    height, width = store.shape(image_id)
    with pytest.raises(UsageError, match=f"is not inside image '{image_id}' of {height}x{width}"):
        store.read(image_id, 0, 0, height + 1, 1)


def test_a_damaged_cell_is_named_and_others_are_fine(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "packed", tmp_path / "packed")
    store = Store.open(tmp_path / "packed")
    image_id = next(i for i in store.images()["image_id"].to_pylist() if len(store.cells(i)) > 1)
    first, second = store.cells(image_id)[:2]
    path = store.shard_path(first.shard)
    data = bytearray(path.read_bytes())
    data[first.offset + first.size // 2] ^= 1
    path.write_bytes(data)
    for read in (lambda: store.pixels(image_id), lambda: store.read(image_id, first.y, first.x, 1, 1)):
        with pytest.raises(DataError, match=rf"image '{image_id}' \(hr\) in .* is damaged: its hash differs"):
            read()
    assert store.read(image_id, second.y, second.x, second.height, second.width).shape[0] == second.height


# --- what cannot be done ----------------------------------------------------------------------------------------------


def test_parts_of_a_photograph_are_no_file_and_cannot_be_scored(packed: Manifest, source: Store) -> None:
    store = packed.store()
    image_id = next(i for i in packed.table["image_id"].to_pylist() if not store.is_whole(i))
    with pytest.raises(UsageError, match="take the store that it was packed from") as refused:
        store.read_bytes(image_id)
    assert f"is packed, it has parts of image '{image_id}' (hr) only" in line(refused)
    with pytest.raises(UsageError, match="is packed, it has parts of photographs only and cannot be scored") as refused:
        store.require_whole("scored")
    assert "take the store that it was packed from" in line(refused)
    source.require_whole("scored")


def test_a_scale_beyond_that_of_the_margin_is_refused(packed: Manifest) -> None:
    with pytest.raises(UsageError, match="was packed for scales up to x4, asked for x5") as refused:
        take(packed, 1, scale=5, crop=10)
    assert "train from the store that it was packed from" in line(refused)


def test_a_manifest_of_more_windows_than_were_packed_is_refused(
    packed: Manifest, source: Store, sparse: Manifest
) -> None:
    store = packed.store()
    chosen = set(sparse.table["image_id"].to_pylist())
    everything = select(source, "random", keep=1)
    rows = [i for i, image_id in enumerate(everything.table["image_id"].to_pylist()) if image_id in chosen]
    more = replace(everything, table=everything.table.take(pa.array(rows)))
    with pytest.raises(DataError, match="were not packed into") as refused:
        take(more, 1, store=store)
    assert f"{len(more) - len(sparse)} of the manifest's {len(more)} windows" in line(refused)
    assert same(take(sparse, 3, store=store), take(packed, 3))


def other_folder(made: Path, folder: Path) -> str:
    (folder / "out").mkdir()
    (folder / "out" / "notes.txt").write_text("mine")
    return "is not a store"


def store_of_photographs(made: Path, folder: Path) -> str:
    shutil.copytree(made / "store", folder / "out")
    return "is there already and is a store of photographs; name a new or empty folder"


def other_pack(made: Path, folder: Path) -> str:
    pack(select(made / "store", "random:seed=5", keep=0.02), folder / "out")
    return "is there already and is packed from other things (manifest "


def a_file(made: Path, folder: Path) -> str:
    (folder / "out").write_text("mine")
    return "is not a store"


@pytest.mark.parametrize("there", [other_folder, store_of_photographs, other_pack, a_file])
def test_what_is_there_is_left_untouched(
    made: Path, sparse: Manifest, tmp_path: Path, there: Callable[[Path, Path], str]
) -> None:
    expected = there(made, tmp_path)
    before = tree(tmp_path)
    with pytest.raises(UsageError) as refused:
        pack(sparse, tmp_path / "out")
    assert expected in line(refused)
    assert tree(tmp_path) == before


def test_a_store_is_not_packed_into_itself(made: Path, packed: Manifest, sparse: Manifest) -> None:
    before = tree(made)
    for manifest, out in ((sparse, made / "store"), (packed, made / "packed")):
        with pytest.raises(UsageError, match="is there already"):
            pack(manifest, out)
    assert tree(made) == before


def test_a_store_that_is_gone_moved_or_another(made: Path, tmp_path: Path, write_photos: Callable[..., Path]) -> None:
    shutil.copy(made / "sparse.parquet", tmp_path / "sparse.parquet")
    with pytest.raises(UsageError, match="name it with --store PATH") as refused:
        pack(tmp_path / "sparse.parquet", tmp_path / "out")
    line(refused)
    ingest([write_photos(tmp_path / "photos", ((40, 40),))], tmp_path / "other", patch=PATCH, step=STEP)
    with pytest.raises(DataError, match="is not the store that the manifest was made from") as refused:
        pack(tmp_path / "sparse.parquet", tmp_path / "out", store=tmp_path / "other")
    line(refused)
    with pytest.raises(UsageError, match="is not a manifest: found nothing"):
        pack(tmp_path / "nothing.parquet", tmp_path / "out")
    with pytest.raises(UsageError, match="a shard should hold 1 byte or more, found 0"):
        pack(tmp_path / "sparse.parquet", tmp_path / "out", store=made / "store", shard_size=0)
    assert not (tmp_path / "out").exists()
    pack(tmp_path / "sparse.parquet", tmp_path / "out", store=made / "store", shard_size=SHARD)
    assert tree(tmp_path / "out" / "shards") == tree(made / "packed" / "shards")


@pytest.mark.parametrize(("name", "value"), [("y", -1), ("x", 10_000), ("size", 0), ("size", 10_000)])
def test_a_window_outside_its_image_is_damage_and_nothing_is_written(
    sparse: Manifest, tmp_path: Path, name: str, value: int
) -> None:
    values = sparse.table[name].to_pylist()
    column = pa.array([value, *values[1:]], pa.int32())
    at = sparse.table.schema.get_field_index(name)
    table = sparse.table.set_column(at, sparse.table.schema.field(name), column)
    with pytest.raises(DataError, match="is not inside its image: y=") as refused:
        pack(replace(sparse, table=table), tmp_path / "out")
    assert line(refused)
    assert not (tmp_path / "out").exists()


def test_a_photograph_that_was_damaged_since_stops_it(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "store", tmp_path / "store")
    manifest = select(tmp_path / "store", "random:seed=1", keep=0.03)
    store = Store.open(tmp_path / "store")
    cell = store.cell(manifest.table["image_id"][0].as_py())
    path = store.shard_path(cell.shard)
    data = bytearray(path.read_bytes())
    data[cell.offset + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="is damaged: its hash differs"):
        pack(manifest, tmp_path / "out")


# --- the same bytes, always -------------------------------------------------------------------------------------------


def run(made: Path, out: Path) -> PackReport:
    return pack(made / "sparse.parquet", out, shard_size=SHARD)


@pytest.fixture
def whole(made: Path) -> dict[str, bytes]:
    return tree(made / "packed")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Path:
    """The same of two photographs with one score, packed into two shards."""
    folder = tmp_path_factory.mktemp("small")
    ingest([write_photos(folder / "photos", SIZES[1:3])], folder / "store", patch=PATCH, step=STEP)
    add_scores(Store.open(folder / "store"), "edges", ("score",), units=[0])
    select(folder / "store", "random:seed=1", keep=0.05).save(folder / "sparse.parquet")
    assert run(folder, folder / "packed").shards >= 2
    return folder


@pytest.mark.parametrize("threads", [1, 9])
def test_the_number_of_processors_does_not_matter(
    made: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(pool, "workers", lambda: threads)
    run(made, made / f"threads {threads}")
    assert tree(made / f"threads {threads}") == whole


def test_the_same_again_writes_no_shard(made: Path, whole: dict[str, bytes]) -> None:
    report = run(made, made / "packed")
    assert (report.shards, report.known) == (0, report.images)
    assert tree(made / "packed") == whole


class StoppedError(Exception):
    """Raised in the middle of a run."""


def stopping(at: int, when: str) -> Callable[..., str]:
    """A `files.publish` that stops the run at its call number `at`.

    `after` that file is published, `killed` in the middle, so that half a file is left, or `full`: there
    is no space left on the disk.
    """
    publish, calls = files.publish, iter(range(10**6))

    def full(file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def stop(path: Path, write: Callable[..., object], *, new: bool = False) -> str:
        if next(calls) != at:
            return publish(path, write, new=new)
        if when == "after":
            publish(path, write, new=new)
        if when == "full":
            publish(path, full)
        if when == "killed":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.{os.getpid() + 1}.tmp").write_bytes(b"half")
        raise StoppedError

    return stop


@pytest.mark.slow
@pytest.mark.parametrize("when", ["after", "killed", "full"])
def test_interrupted_anywhere_and_run_again_ends_with_the_same_bytes(
    small: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    whole = tree(small / "packed")
    for at in range(len(whole)):
        out = small / f"{when} {at}"
        with monkeypatch.context() as patch:
            patch.setattr(files, "publish", stopping(at, when))
            with pytest.raises(OSError if when == "full" else StoppedError):
                run(small, out)
        if Store.is_store(out):  # what is there is whole, if not all
            partly = Store.open(out)
            for image_id in partly.images()["image_id"].to_pylist():
                partly.pixels(image_id)
        run(small, out)
        assert tree(out) == whole, at


@pytest.mark.parametrize("at", range(3))
def test_interrupted_while_reading_and_run_again_ends_with_the_same_bytes(
    made: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    calls = iter(range(10**6))
    decode = images.decode

    def stop(data: bytes, **how: bool) -> _Pixels:
        if next(calls) == at:
            raise StoppedError
        return decode(data, **how)

    with monkeypatch.context() as patch:
        patch.setattr(images, "decode", stop)
        with pytest.raises(StoppedError):
            run(made, made / f"reading {at}")
    run(made, made / f"reading {at}")
    assert tree(made / f"reading {at}") == whole


def test_nothing_is_written_while_another_process_writes(made: Path, whole: dict[str, bytes]) -> None:
    with Store.open(made / "packed").writing(), pytest.raises(CurateError, match="another curate is writing"):
        run(made, made / "packed")
    assert tree(made / "packed") == whole


@pytest.mark.parametrize("order", [("1/2", "2/2"), ("3/3", "1/3", "2/3"), ("9/9", "1/1")])
def test_parts_in_any_order_end_with_the_same_bytes(
    small: Path, tmp_path: Path, order: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tree(small / "packed")
    for number, text in enumerate(order):
        with monkeypatch.context() as patch:  # each is killed when it has published a shard, or has none
            patch.setattr(files, "publish", stopping(1, "after"))
            with contextlib.suppress(StoppedError):
                pack(small / "sparse.parquet", tmp_path / "out", shard_size=SHARD, part=Part.parse(text))
        report = pack(small / "sparse.parquet", tmp_path / "out", shard_size=SHARD, part=Part.parse(text))
        assert (report.missing == 0) == report.manifest.exists() == (number == len(order) - 1)
    packed = tree(tmp_path / "out")
    del packed[MANIFEST_FILE], whole[MANIFEST_FILE]  # which says where the stores are
    assert packed == whole


def test_the_plan_does_not_depend_on_who_packs_what(made: Path, sparse: Manifest, tmp_path: Path) -> None:
    sizes = [512, SHARD, 3 * SHARD, 10**9]
    counts = [pack(sparse, tmp_path / str(size), shard_size=size).shards for size in sizes]
    assert counts[0] == len(set(sparse.table["image_id"].to_pylist())) and counts[-1] == 1
    assert counts == sorted(counts, reverse=True) and len(set(counts)) > 2


def test_another_shard_size_in_the_middle_is_refused(small: Path, tmp_path: Path) -> None:
    manifest = small / "sparse.parquet"
    assert pack(manifest, tmp_path / "out", shard_size=SHARD, part=Part.parse("1/2")).missing
    before = tree(tmp_path)
    with pytest.raises(UsageError, match="was begun with shards of another size") as refused:
        pack(manifest, tmp_path / "out")
    assert "give the same --shard-size" in line(refused)
    assert tree(tmp_path) == before


# --- the report and the progress --------------------------------------------------------------------------------------


def test_the_report_adds_up(made: Path, sparse: Manifest, tmp_path: Path) -> None:
    report = run(made, tmp_path / "out")
    store = Store.open(tmp_path / "out")
    ids = set(sparse.table["image_id"].to_pylist())
    assert (report.patches, report.images, report.known) == (len(sparse), len(ids), 0)
    assert report.cells == sum(len(store.cells(image_id)) for image_id in ids)
    assert 0 < report.kept < report.images
    assert report.shards == len(store.commits()) and report.manifest == tmp_path / "out" / MANIFEST_FILE
    assert pq.read_table(report.manifest).num_rows == report.patches


def test_progress_counts_every_image_once_and_in_order(sparse: Manifest, tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    report = pack(sparse, tmp_path / "out", progress=lambda done, total, note="": calls.append((done, total, note)))
    assert [call[:2] for call in calls] == [(i + 1, report.images) for i in range(report.images)]
    assert all(note.endswith(" MB") for _, _, note in calls)
