"""Batches: the right pixels, each window once an epoch, the same for the same seed, from any start, decoded once."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from curate import images
from curate.errors import CurateError, DataError, UsageError
from curate.ingestion import ingest
from curate.loader import Batch, batches
from curate.manifest import Manifest
from curate.packing import pack
from curate.resize import downscale
from curate.selection import select
from curate.store import Cell, Store
from curate.tensors import crop_to_multiple, to_pixels, to_tensor

PATCH, STEP = 25, 7  # windows off every LR grid
SIZES = ((48, 60), (37, 50), (61, 39), (36, 36))  # height, width
TINY = {"cache_bytes": 1}  # a block for each photograph
SMALL = {"cache_bytes": 20_000}  # blocks of one to three
Decoded = list[str]
_Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Store:
    folder = tmp_path_factory.mktemp("loader")
    ingest([write_photos(folder / "photos", SIZES)], folder / "store", patch=PATCH, step=STEP, shard_size=8000)
    return Store.open(folder / "store")


@pytest.fixture(scope="module")
def manifest(store: Store) -> Manifest:
    """All windows, and the weight of window i is i + 1: it tells which one a sample comes from."""
    return tagged(select(store, "random", keep=1))


def tagged(manifest: Manifest) -> Manifest:
    return weighted(manifest, np.arange(1, len(manifest) + 1))


def weighted(manifest: Manifest, weights: npt.ArrayLike) -> Manifest:
    column = pa.array(np.asarray(weights, np.float32))
    index = manifest.table.schema.get_field_index("weight")
    return replace(manifest, table=manifest.table.set_column(index, manifest.table.schema.field("weight"), column))


def feed(manifest: Manifest, **options: Any) -> Iterator[Batch]:
    return batches(manifest, **{"scale": 2, "crop": 12, "batch_size": 1} | options)


def take(manifest: Manifest, number: int, **options: Any) -> list[Batch]:
    """The first batches; the threads behind them end here."""
    source = feed(manifest, **options)
    taken = list(islice(source, number))
    source.close()  # type: ignore[attr-defined]
    return taken


def tags(taken: list[Batch]) -> list[int]:
    """Rows of the manifest that the samples of `tagged` batches come from."""
    return [int(weight) - 1 for batch in taken for weight in batch.weight_B.tolist()]


def same(a: list[Batch], b: list[Batch]) -> bool:
    flat = [[[*batch[:4], *batch.between] for batch in taken] for taken in (a, b)]
    return all(torch.equal(x, y) for one, two in zip(*flat, strict=True) for x, y in zip(one, two, strict=True))


def pixels(image_CHW: Tensor) -> _Pixels:
    return to_pixels((image_CHW * 255).round().to(torch.uint8))


@pytest.fixture(scope="module")
def decoded_hr(store: Store) -> dict[str, _Pixels]:
    ids = store.query("SELECT image_id FROM images")["image_id"].to_pylist()
    return {image_id: images.decode(store.read_bytes(image_id)) for image_id in ids}


# The right pixels


@pytest.mark.parametrize(("scale", "crop"), [(2, 12), (2, 24), (3, 12), (3, 21), (4, 12), (4, 20)])
def test_lr_is_the_crop_of_the_whole_images_lr_and_hr_lies_in_its_window(
    scale: int, crop: int, manifest: Manifest, decoded_hr: dict[str, _Pixels]
) -> None:
    whole_lr = {
        image_id: to_pixels(downscale(crop_to_multiple(to_tensor(hr))[None], scale)[0])
        for image_id, hr in decoded_hr.items()
    }
    rows = manifest.table.to_pylist()
    assert {row["y"] % scale for row in rows} == {row["x"] % scale for row in rows} == set(range(scale))
    taken = take(manifest, len(rows), scale=scale, crop=crop, augment=False)
    for batch, row in zip(taken, (rows[tag] for tag in tags(taken)), strict=True):
        hr, lr = pixels(batch.hr_BCHW[0]), pixels(batch.lr_BCHW[0])
        assert hr.shape == (crop, crop, 3) and lr.shape == (crop // scale, crop // scale, 3)
        last_y, last_x = (row[axis] + PATCH - crop for axis in "yx")
        places = [(y, x) for y in range(row["y"], last_y + 1) for x in range(row["x"], last_x + 1)]
        image, whole = decoded_hr[row["image_id"]], whole_lr[row["image_id"]]
        found = [(y, x) for y, x in places if np.array_equal(image[y : y + crop, x : x + crop], hr)]
        assert found, "the HR crop is nowhere in its window"
        on_grid = [(y // scale, x // scale) for y, x in found if y % scale == x % scale == 0]
        size = crop // scale
        assert any(np.array_equal(whole[y : y + size, x : x + size], lr) for y, x in on_grid)


@pytest.mark.parametrize("scale", [2, 3, 4, 6, 12])
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_lr_at_the_edges_is_that_of_the_whole_image(
    scale: int, packed: bool, tmp_path: Path, make_photo: Callable[..., _Pixels], write_photos: Callable[..., Path]
) -> None:
    """Crops as large as their windows, some of which end where the photograph does, or its part of whole dozens."""
    sizes = [(12, 12), (12, 31), (29, 17), (24, 36)]  # the kernel of the larger scales is wider than the smallest
    ingest([write_photos(tmp_path / "photos", sizes)], tmp_path / "store", patch=12, step=12)
    everything = select(tmp_path / "store", "random", keep=1)
    if packed:
        pack(everything.save(tmp_path / "all.parquet"), tmp_path / "packed")
        everything = Manifest.load(tmp_path / "packed" / "manifest.parquet")
        if scale > 4:
            assert "packed for scales up to x4" in refusal(UsageError, lambda: feed(everything, scale=scale))
            return
    expected = Counter()
    for row in everything.table.to_pylist():
        hr = Store.open(tmp_path / "store").pixels(row["image_id"])
        whole = to_pixels(downscale(crop_to_multiple(to_tensor(hr))[None], scale)[0])
        y, x, size = row["y"] // scale, row["x"] // scale, 12 // scale
        crop = hr[row["y"] : row["y"] + 12, row["x"] : row["x"] + 12]
        expected[crop.tobytes(), whole[y : y + size, x : x + size].tobytes()] += 1
    (batch,) = take(everything, 1, scale=scale, batch_size=len(everything), augment=False)
    pairs = zip(batch.hr_BCHW, batch.lr_BCHW, strict=True)
    assert Counter((pixels(hr).tobytes(), pixels(lr).tobytes()) for hr, lr in pairs) == expected


def test_crops_reach_every_place_in_the_window(
    tmp_path: Path, make_photo: Callable[..., _Pixels], write_photos: Callable[..., Path]
) -> None:
    ingest([write_photos(tmp_path / "photos", [(24, 24)])], tmp_path / "store", patch=24)
    photo = make_photo(24, 24, 0)
    crops = {photo[y : y + 18, x : x + 18].tobytes(): (y, x) for y in (0, 2, 4, 6) for x in (0, 2, 4, 6)}
    only = select(tmp_path / "store", "random", keep=1)
    taken = take(only, 6, crop=18, batch_size=64, augment=False)
    found = Counter(crops[pixels(hr_CHW).tobytes()] for batch in taken for hr_CHW in batch.hr_BCHW)
    assert len(found) == 16
    assert max(found.values()) < 3 * 24 and min(found.values()) > 24 / 3  # 24 each are expected


def test_batches_are_float32_in_0_to_1_of_the_sizes_asked_for(manifest: Manifest) -> None:
    (batch,) = take(manifest, 1, scale=3, crop=21, batch_size=5)
    assert batch.hr_BCHW.shape == (5, 3, 21, 21) and batch.lr_BCHW.shape == (5, 3, 7, 7)
    assert batch.weight_B.shape == (5,)
    assert {tensor.dtype for tensor in batch[:3]} == {torch.float32}
    assert batch.seed_B.dtype == torch.int64 and len(set(batch.seed_B.tolist())) == 5
    assert all(0 <= tensor.min() < tensor.max() <= 1 for tensor in batch[:2])
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved, Batch) and same([moved], [batch])


def symmetries(image: _Pixels) -> list[bytes]:
    turned = [np.rot90(image, quarter) for quarter in range(4)]
    return [np.ascontiguousarray(view).tobytes() for one in turned for view in (one, one[::-1])]


def test_augmentation_is_all_eight_symmetries_of_lr_and_hr_alike(
    tmp_path: Path, make_photo: Callable[..., _Pixels], write_photos: Callable[..., Path]
) -> None:
    ingest([write_photos(tmp_path / "photos", [(24, 24)])], tmp_path / "store", patch=24)
    only = select(tmp_path / "store", "random", keep=1)
    hr = make_photo(24, 24, 0)
    lr = to_pixels(downscale(to_tensor(hr)[None], 2)[0])
    hr_symmetries, lr_symmetries = symmetries(hr), symmetries(lr)
    assert len(set(hr_symmetries)) == len(set(lr_symmetries)) == 8

    found = Counter()
    for batch in take(only, 4, crop=24, batch_size=64):
        for lr_CHW, hr_CHW in zip(batch.lr_BCHW, batch.hr_BCHW, strict=True):
            which = hr_symmetries.index(pixels(hr_CHW).tobytes())
            assert lr_symmetries.index(pixels(lr_CHW).tobytes()) == which
            found[which] += 1
    assert len(found) == 8
    assert max(found.values()) < 3 * 32 and min(found.values()) > 32 / 3  # 32 each are expected
    plain = take(only, 1, crop=24, batch_size=8, augment=False)[0]
    assert {pixels(hr_CHW).tobytes() for hr_CHW in plain.hr_BCHW} == {hr.tobytes()}


# HR in between, for networks that answer at several sizes


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Manifest:
    """Windows of 48 px on photographs whose sides are whole dozens, but not all multiples of 8."""
    folder = tmp_path_factory.mktemp("wide")
    ingest([write_photos(folder / "photos", [(60, 84), (72, 61)])], folder / "store", patch=48, step=12)
    return tagged(select(folder / "store", "random", keep=1).save(folder / "all.parquet"))


@pytest.mark.parametrize(("scale", "between"), [(4, (4, 2)), (8, (8, 4, 2))])
def test_hr_in_between_is_the_crop_of_the_whole_images(scale: int, between: tuple[int, ...], wide: Manifest) -> None:
    """And so is LR, at x8 too, where a photograph's last LR pixel lies half beyond its end."""
    taken = take(wide, len(wide), scale=scale, crop=24, between=between, augment=False)
    rows, store = wide.table.to_pylist(), wide.store()
    whole = {name: crop_to_multiple(to_tensor(store.pixels(name)))[None] for name in {row["image_id"] for row in rows}}
    smaller = {(name, f): to_pixels(downscale(hr, f)[0]) for name, hr in whole.items() for f in (*between, 1)}
    for batch, row in zip(taken, (rows[tag] for tag in tags(taken)), strict=True):
        assert torch.equal(batch.between[0], batch.lr_BCHW)
        images = {1: batch.hr_BCHW, **dict(zip(between, batch.between, strict=True))}
        places = [(y, x) for y in range(row["y"], row["y"] + 25) for x in range(row["x"], row["x"] + 25)]
        grid = [(y, x) for y, x in places if y % scale == x % scale == 0]
        assert any(
            all(
                np.array_equal(
                    smaller[row["image_id"], f][y // f : (y + 24) // f, x // f : (x + 24) // f], pixels(image[0])
                )
                for f, image in images.items()
            )
            for y, x in grid
        )


def test_hr_in_between_is_turned_with_hr_and_cut_with_its_batch(wide: Manifest) -> None:
    turned, plain = (
        take(wide, 2, scale=4, crop=24, batch_size=6, between=(4, 2), augment=augment) for augment in (True, False)
    )
    which = set()
    for one, other in zip(turned, plain, strict=True):
        for sample in range(6):
            pairs = zip((one.hr_BCHW, *one.between), (other.hr_BCHW, *other.between), strict=True)
            found = [symmetries(pixels(b[sample])).index(pixels(a[sample]).tobytes()) for a, b in pairs]
            assert found[0] == found[1] == found[2]
            which.add(found[0])
        cut = one.parts(3)
        assert [[tuple(image.shape) for image in part.between] for part in cut] == [[(2, 3, 6, 6), (2, 3, 12, 12)]] * 3
        joined = [torch.cat(images) for images in zip(*(part.between for part in cut), strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(joined, one.between, strict=True))
    assert len(which) > 3


def test_a_packed_store_has_the_hr_in_between_of_its_own(wide: Manifest, tmp_path: Path) -> None:
    few = replace(wide, table=wide.table.slice(0, 3)).save(tmp_path / "few.parquet")
    pack(few, tmp_path / "packed")
    packed = Manifest.load(tmp_path / "packed" / "manifest.parquet")
    options = {"scale": 4, "crop": 24, "batch_size": 3, "between": (4, 2)}
    assert same(take(packed, 4, **options), take(few, 4, **options))


def test_hr_in_between_is_made_of_hr_whatever_lr_is(tmp_path: Path, write_photos: Callable[..., Path]) -> None:
    """LR of the store's own; also in a packed store, which has no more of HR than it needs."""
    photos = write_photos(tmp_path / "photos", [(72, 72)])
    (tmp_path / "lr").mkdir()
    Image.new("RGB", (18, 18), (1, 2, 3)).save(tmp_path / "lr" / "000x4.png")
    ingest([photos], tmp_path / "own", patch=24, lr={4: str(tmp_path / "lr")})
    ingest([photos], tmp_path / "made", patch=24)
    options = {"scale": 4, "crop": 24, "batch_size": 4, "between": (4, 2)}
    own, made = (
        select(tmp_path / name, "random", keep=1).save(tmp_path / f"{name}.parquet") for name in ("own", "made")
    )
    pack(own, tmp_path / "packed")
    packed = Manifest.load(tmp_path / "packed" / "manifest.parquet")
    (plain,) = take(made, 1, **options)
    for manifest in (own, packed):
        (batch,) = take(manifest, 1, **options)
        assert torch.equal(batch.lr_BCHW[0, :, 0, 0] * 255, torch.tensor([1.0, 2.0, 3.0]))
        assert all(torch.equal(a, b) for a, b in zip(batch.between, plain.between, strict=True))


@pytest.mark.parametrize("between", [(3,), (0,), (4, 8)])
def test_factors_between_that_do_not_divide_the_scale_are_one_line(between: tuple[int, ...], wide: Manifest) -> None:
    message = refusal(UsageError, lambda: feed(wide, scale=4, crop=24, between=between))
    assert message.startswith("factors between should divide the scale 4, found ")


def test_augmentation_changes_neither_order_nor_places(manifest: Manifest) -> None:
    turned, plain = (take(manifest, 40, augment=augment) for augment in (True, False))
    assert tags(turned) == tags(plain)
    for one, other in zip(turned, plain, strict=True):
        assert pixels(one.hr_BCHW[0]).tobytes() in symmetries(pixels(other.hr_BCHW[0]))


def test_the_stores_own_lr_files_are_used_for_their_scale(tmp_path: Path, write_photos: Callable[..., Path]) -> None:
    photos = write_photos(tmp_path / "photos", [(50, 60), (49, 39)])
    (tmp_path / "lr").mkdir()
    for path, (height, width) in zip(sorted(photos.iterdir()), [(25, 30), (25, 20)], strict=True):  # 25 = ceil(49 / 2)
        y, x = np.mgrid[:height, :width].astype(np.uint8)
        Image.fromarray(np.stack([y, x, np.full_like(y, height)], 2)).save(tmp_path / "lr" / f"{path.stem}x2.png")
    ingest([photos], tmp_path / "store", patch=PATCH, step=STEP, lr={2: str(tmp_path / "lr")})
    everything = tagged(select(tmp_path / "store", "random", keep=1))
    rows = everything.table.to_pylist()
    own = take(everything, len(rows), scale=2, augment=False)
    for batch, row in zip(own, (rows[tag] for tag in tags(own)), strict=True):
        lr = pixels(batch.lr_BCHW[0])
        y, x = lr[0, 0, :2].tolist()  # where the LR crop lies
        assert np.array_equal(lr[..., 0], np.repeat(np.arange(y, y + 6)[:, None], 6, 1))
        assert row["y"] <= 2 * y and 2 * y + 12 <= row["y"] + PATCH
        assert row["x"] <= 2 * x and 2 * x + 12 <= row["x"] + PATCH
        whole = images.decode(Store.open(tmp_path / "store").read_bytes(row["image_id"]))
        assert np.array_equal(pixels(batch.hr_BCHW[0]), whole[2 * y : 2 * y + 12, 2 * x : 2 * x + 12])
    made = take(everything, len(rows), scale=3, augment=False)
    assert all(np.ptp(pixels(batch.lr_BCHW[0])[..., 2]) != 0 for batch in made)  # no LR file: blue is not constant


def test_a_batch_may_mix_photographs_with_lr_files_and_without(
    tmp_path: Path, write_photos: Callable[..., Path]
) -> None:
    paired = write_photos(tmp_path / "paired", [(24, 24)], seed=7)
    (tmp_path / "lr").mkdir()
    Image.new("RGB", (12, 12), (1, 2, 3)).save(tmp_path / "lr" / "000x2.png")
    ingest([write_photos(tmp_path / "photos", [(24, 24)])], tmp_path / "store", patch=24)
    ingest([paired], tmp_path / "store", patch=24, lr={2: str(tmp_path / "lr")})
    both = select(tmp_path / "store", "random", keep=1)
    (batch,) = take(both, 1, crop=24, batch_size=2, augment=False)
    store = Store.open(tmp_path / "store")
    whole = {store.pixels(image_id).tobytes(): image_id for image_id in store.images()["image_id"].to_pylist()}
    assert len(whole) == 2
    for hr_CHW, lr_CHW in zip(batch.hr_BCHW, batch.lr_BCHW, strict=True):
        hr, lr = pixels(hr_CHW), pixels(lr_CHW)
        if store.cells(whole[hr.tobytes()], "lr2"):
            assert np.array_equal(lr, np.full((12, 12, 3), (1, 2, 3)))
        else:
            assert np.array_equal(lr, to_pixels(downscale(to_tensor(hr)[None], 2)[0]))


# The order


@pytest.mark.parametrize("cache", [TINY, SMALL, {}], ids=["a photograph a block", "some a block", "one block"])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_each_window_is_drawn_exactly_once_an_epoch(cache: dict[str, int], batch_size: int, manifest: Manifest) -> None:
    size = len(manifest)
    assert size % 5  # so that batches of 5 reach over the ends of epochs
    drawn = tags(take(manifest, -(-3 * size // batch_size), batch_size=batch_size, **cache))
    epochs = [drawn[i * size : (i + 1) * size] for i in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(size))] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(manifest: Manifest) -> None:
    first, again, other = (take(manifest, 30, batch_size=3, seed=seed) for seed in (5, 5, 6))
    assert same(first, again)
    assert tags(first) != tags(other)
    assert not same(first, other)


def test_the_callers_random_numbers_are_neither_read_nor_drawn(manifest: Manifest) -> None:
    np.random.seed(1)
    torch.manual_seed(1)
    first = take(manifest, 5)
    after = np.random.random(), torch.rand(1).item()
    np.random.seed(1)
    torch.manual_seed(1)
    assert after == (np.random.random(), torch.rand(1).item())
    assert same(first, take(manifest, 5))


@pytest.mark.parametrize("cache", [TINY, SMALL, {}], ids=["a photograph a block", "some a block", "one block"])
def test_any_batch_can_be_the_first(cache: dict[str, int], manifest: Manifest) -> None:
    """Over two epochs and their seams."""
    number = 2 * len(manifest) // 5 + 3
    whole = take(manifest, number, batch_size=5, seed=3, **cache)
    for start in range(0, number, 3):
        resumed = take(manifest, 2, batch_size=5, seed=3, start=start, **cache)
        assert same(resumed[: number - start], whole[start : start + 2]), start


def test_weights_are_those_of_the_manifest(store: Store) -> None:
    half = select(store, "random", keep=0.5)
    assert take(half, 1, batch_size=len(half))[0].weight_B.tolist() == [1.0] * len(half)
    weights = np.linspace(0, 2, len(half), dtype=np.float32)
    drawn = take(weighted(half, weights), 1, batch_size=len(half))[0].weight_B
    assert sorted(drawn.tolist()) == weights.tolist()


# Blocks


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch, store: Store, decoded_hr: dict[str, _Pixels]) -> Decoded:
    """Grows by the image_id of every photograph that is decoded."""
    names = {store.read_bytes(image_id): image_id for image_id in decoded_hr}
    seen: Decoded = []
    decode = images.decode

    def counting(data: bytes, **how: bool) -> _Pixels:
        seen.append(names[data])
        return decode(data, **how)

    monkeypatch.setattr(images, "decode", counting)
    return seen


@pytest.mark.parametrize("cache", [TINY, SMALL, {}], ids=["a photograph a block", "some a block", "one block"])
def test_every_photograph_is_decoded_once_an_epoch(cache: dict[str, int], manifest: Manifest, decodes: Decoded) -> None:
    source = feed(manifest, **cache)
    list(islice(source, len(manifest)))
    names = set(manifest.table["image_id"].to_pylist())
    assert sorted(decodes[: len(names)]) == sorted(names)  # after these the next epoch may have begun, ahead
    list(islice(source, 2 * len(manifest)))
    source.close()  # type: ignore[attr-defined]
    most = 4 if cache else 1  # one epoch may be ahead; what fits into memory stays there for ever
    assert len(decodes) <= most * len(SIZES)
    assert max(Counter(decodes).values()) <= most


@pytest.mark.parametrize(("cache", "at_most"), [(TINY, 1), (SMALL, 3)])
def test_a_block_is_over_before_the_next_begins(cache: dict[str, int], at_most: int, manifest: Manifest) -> None:
    """No photograph comes back once another block has begun."""
    photograph = manifest.table["image_id"].to_pylist()
    drawn = [photograph[tag] for tag in tags(take(manifest, len(manifest), **cache))]
    spans = [(drawn.index(image_id), len(drawn) - drawn[::-1].index(image_id)) for image_id in set(drawn)]
    open_at = [sum(first <= index < end for first, end in spans) for index in range(len(drawn))]
    assert max(open_at) <= at_most
    changes = sum(a != b for a, b in pairwise(drawn))
    assert (changes == len(SIZES) - 1) is (at_most == 1)  # within a block windows are mixed


def test_the_next_block_is_decoded_while_this_one_is_used(manifest: Manifest, decodes: Decoded) -> None:
    source = feed(manifest, **TINY)
    next(source)
    deadline = time.monotonic() + 10
    while len(decodes) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(decodes) == 2  # this photograph and the next, no more
    source.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("cache", [TINY, {}], ids=["a photograph a block", "one block"])
def test_of_a_packed_photograph_only_the_cells_under_the_crops_are_decoded(
    cache: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_photos: Callable[..., Path]
) -> None:
    monkeypatch.setattr("curate.packing._CELL", 16)
    ingest([write_photos(tmp_path / "photos", [(192, 192), (192, 204)])], tmp_path / "store", patch=96, step=48)
    some = select(tmp_path / "store", "random", keep=0.2)
    pack(some.save(tmp_path / "some.parquet"), tmp_path / "packed")
    packed = Store.open(tmp_path / "packed")
    decoded: list[tuple[str, str, Cell]] = []
    decode = packed.decode

    def counting(*piece: Any) -> _Pixels:
        decoded.append(piece)
        return decode(*piece)

    monkeypatch.setattr(packed, "decode", counting)
    manifest = Manifest.load(tmp_path / "packed" / "manifest.parquet")
    options = {"seed": 3, "batch_size": 1, **cache}
    take(manifest, len(manifest), store=packed, **options)
    cells = sum(len(packed.cells(image_id)) for image_id in packed.images()["image_id"].to_pylist())
    assert cells > 70
    assert len(manifest) <= len(decoded) <= 9 * len(manifest) < cells  # crops of 20 px with their margins, cells of 16
    assert max(Counter(decoded).values()) <= (2 if cache else 1)  # twice where the next epoch has begun
    assert same(take(manifest, 9, store=packed, **options), take(some, 9, **options))


def test_the_threads_end_with_the_batches(manifest: Manifest) -> None:
    before = threading.active_count()
    source = feed(manifest)
    next(source)
    assert threading.active_count() > before
    source.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


# What cannot be done


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"crop": 26}, "a crop of 26 px on the x2 grid does not fit into windows of 25 px; take a smaller --crop"),
        ({"crop": 24, "scale": 4}, "a crop of 24 px on the x4 grid does not fit into windows of 25 px"),
        ({"crop": 13}, "a crop should be a multiple of the scale 2"),
        ({"crop": 0}, "found a crop of 0"),
        ({"crop": 2, "scale": 4}, "a crop should be a multiple of the scale 4"),
        ({"batch_size": 0}, "a batch of 0"),
    ],
)
def test_crops_and_batches_that_cannot_be_are_one_line(
    options: dict[str, int], reason: str, manifest: Manifest
) -> None:
    with pytest.raises(UsageError) as error:
        feed(manifest, **options)
    assert reason in str(error.value)
    assert str(error.value).isprintable()


def refusal(kind: type[CurateError], source: Callable[[], object]) -> str:
    with pytest.raises(kind) as error:
        source()
    assert str(error.value).isprintable()
    return str(error.value)


def test_a_store_without_the_photographs_is_refused(
    manifest: Manifest, tmp_path: Path, write_photos: Callable[..., Path]
) -> None:
    ingest([write_photos(tmp_path / "photos", [(48, 48)], seed=50)], tmp_path / "other", patch=PATCH)
    other = Store.open(tmp_path / "other")
    assert "is not in the store" in refusal(DataError, lambda: feed(manifest, store=other))


def test_a_damaged_photograph_is_named(tmp_path: Path, write_photos: Callable[..., Path]) -> None:
    ingest([write_photos(tmp_path / "photos", [(48, 48)])], tmp_path / "store", patch=PATCH)
    chosen = select(tmp_path / "store", "random", keep=1)
    (shard,) = (tmp_path / "store" / "shards").iterdir()
    data = bytearray(shard.read_bytes())
    data[900] ^= 1
    shard.write_bytes(data)
    assert "is damaged: its hash differs" in refusal(DataError, lambda: take(chosen, 1))


def test_a_manifest_file_finds_its_store(manifest: Manifest, store: Store, tmp_path: Path) -> None:
    saved = manifest.save(tmp_path / "all.parquet")
    assert saved.path is not None
    from_file = list(islice(batches(saved.path, scale=2, crop=12, batch_size=3), 4))
    assert same(from_file, take(manifest, 4, batch_size=3, store=store))


@pytest.mark.parametrize(
    ("column", "value"), [("y", -1), ("x", -(2**31)), ("y", 2**31 - 1), ("x", 40), ("size", 2**31 - 1), ("size", 100)]
)
def test_a_window_outside_its_image_is_refused(column: str, value: int, manifest: Manifest) -> None:
    index = manifest.table.schema.get_field_index(column)
    values = [value, *manifest.table[column].to_pylist()[1:]]
    table = manifest.table.set_column(index, manifest.table.schema.field(index), pa.array(values, pa.int32()))
    with pytest.raises(DataError, match=r"the manifest's patch .* is not inside its image: "):
        next(feed(replace(manifest, table=table)))


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_weights_that_are_none(weight: float, manifest: Manifest) -> None:
    with pytest.raises(DataError, match=r"the manifest's patch .* has a weight that is none: "):
        next(feed(weighted(manifest, [weight] + [1] * (len(manifest) - 1))))
