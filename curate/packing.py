"""Pack: a Manifest -> a Store of just the pixels under its windows, once each and lossless, and a manifest of it.

Windows overlap, cells do not: what an image's windows cover is cut into rectangles, each a lossless WebP. Where the
photograph's own file takes fewer bytes than these (most JPEGs) it is kept instead, verbatim. So that a window's LR is
the crop of the whole image's LR, the pixels that the bicubic kernel reaches around it are packed too: of a refined half
of 96-px windows 2.4 % of the bytes, where LR cells for x2, x3 and x4 would be 42 % more pixels. Of LR images that the
store was ingested with goes the part under the windows. Training gives the same batches, bit by bit.

The shard is the unit, as in ingest: done ones are skipped, and an interrupted run, run again, ends with the same bytes
as one that was not. `manifest.parquet` in the new store comes last.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from PIL import Image

from curate import images, pool, schema, storage, windows
from curate.errors import DataError, UsageError, one_line
from curate.manifest import Manifest
from curate.progress import Progress, silent
from curate.schema import Packing, StoreReference
from curate.shards import write_tar
from curate.storage import Place
from curate.store import INGEST, Store

__all__ = ["MANIFEST_FILE", "PackReport", "pack"]

MANIFEST_FILE = "manifest.parquet"  # in the packed store

_SCALE = 4  # the largest that the LR of a window can be made for
_MARGIN = 3 * _SCALE // 2  # HR px that its kernel reaches beyond a window
_LR_SCALES = (2, 3, 4)
_CELL = 512  # px, longest side: smaller ones are read at random for less, 128 px would take 0.7 % more bytes
_MAX_ROWS = 50_000  # images in one shard, however small they are
_FINGERPRINT = hashlib.sha256(b"pack 1").hexdigest()[:16]

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PackReport:
    """What the packed store is, and what this run did."""

    manifest: Place  # of the packed store: what to train from
    patches: int
    images: int
    kept: int  # of the images, how many are there as the very file that the source has, which takes fewer bytes
    cells: int
    bytes: int  # of the packed store's shards and tables
    source_bytes: int  # of those of the store that it was packed from, scores left out
    shards: int  # that this run wrote
    known: int  # images that an earlier run had packed


class _Rectangle(NamedTuple):
    top: int
    left: int
    bottom: int
    right: int


class _Cell(NamedTuple):
    """A member of a shard."""

    name: str
    role: str
    place: _Rectangle
    data: bytes


@dataclass(frozen=True, slots=True)
class _Job:
    """One image: a row of the table of images, and its windows."""

    row: dict[str, object]
    corners_N2: _Ints
    sizes_N: _Ints

    @property
    def image_id(self) -> str:
        return str(self.row["image_id"])


@dataclass(frozen=True, slots=True)
class _Packed:
    """That image's cells."""

    job: _Job
    cells: list[_Cell]

    @property
    def size(self) -> int:
        return sum(len(cell.data) for cell in self.cells)


def pack(
    manifest: Manifest | str | Path,
    out: str | Path,
    *,
    store: Store | str | Path | None = None,
    shard_size: int = 256_000_000,
    progress: Progress = silent,
) -> PackReport:
    """Write a store of a manifest's windows to the folder `out`: new, empty, or an unfinished pack of the same.

    `store` is where the manifest's store is, if it has moved. A shard holds about `shard_size` bytes. Scores are taken
    along; a photograph cannot be scored any more where only parts of it are there. `out/manifest.parquet` has the same
    windows, ranks, scores and weights, and names the store in `out`.

    Raises UsageError before anything is written if `out` holds something else, or the manifest's store is not found;
    DataError if that is another store, or a window is not inside its image; OSError as the file system does.
    """
    if shard_size < 1:
        raise UsageError(f"a shard should hold 1 byte or more, found {shard_size}")
    manifest = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
    source = store if isinstance(store, Store) else manifest.store(store)
    manifest.verify(source)
    jobs = _jobs(manifest, source)
    target = _open_or_create(out, source, manifest)
    with target.writing():
        known = set(target.images()["image_id"].to_pylist())
        packed = pool.ahead(partial(_pack_image, source), [job for job in jobs if job.image_id not in known])
        unit = first = max(target.commits(), default=-1) + 1
        for group in _groups(_told(packed, len(known), len(jobs), progress), shard_size):
            _write_unit(target, unit, group)
            unit += 1
        _copy_scores(source, target)
        _repeat(manifest, source, target).save(target.path / MANIFEST_FILE)
    ids = [job.image_id for job in jobs]
    return PackReport(
        manifest=target.path / MANIFEST_FILE,
        patches=len(manifest),
        images=len(ids),
        kept=sum(_hashes(target, image_id) == _hashes(source, image_id) for image_id in ids),
        cells=sum(target.rows(record, "cells") for record in target.commits().values()),
        bytes=_bytes(target),
        source_bytes=_bytes(source),
        shards=unit - first,
        known=len(known),
    )


def _bytes(store: Store) -> int:
    return sum(part.bytes for record in store.commits().values() for part in record.parts)


def _hashes(store: Store, image_id: str) -> list[int]:
    return [cell.xxh3 for cell in store.cells(image_id)]


def _open_or_create(out: str | Path, source: Store, manifest: Manifest) -> Store:
    reference = manifest.recipe.store
    packing = Packing(source=reference.digest, manifest=manifest.digest(), scale=_SCALE)
    path = storage.place(out, "a packed store")
    grid = source.header
    if not Store.is_store(path):
        return Store.create(path, patch=grid.patch, step=grid.step, packed=packing)
    opened = Store.open(path)
    if opened.header.packed != packing:
        kind = "a store of photographs" if opened.header.packed is None else "packed from another manifest"
        raise UsageError(f"'{one_line(out)}' is there already and is {kind}; name a new or empty folder")
    return opened


# What is to be packed


def _jobs(manifest: Manifest, source: Store) -> list[_Job]:
    """The images of the manifest in the order of the source, their windows sorted and each once.

    DataError for a window that is not inside its image.
    """
    names = ("image_id", "y", "x", "size")
    columns = [manifest.table[name].to_pylist() for name in names]
    chosen: dict[str, set[tuple[int, int, int]]] = {}
    for image_id, *window in zip(*columns, strict=True):
        chosen.setdefault(image_id, set()).add((window[0], window[1], window[2]))
    jobs = []
    for row in source.images().to_pylist():
        if row["image_id"] in chosen:
            windows_N3 = np.array(sorted(chosen[row["image_id"]]), np.int64)
            jobs.append(_Job(row, windows_N3[:, :2], windows_N3[:, 2]))
            _check_inside(jobs[-1])
    return jobs


def _check_inside(job: _Job) -> None:
    height, width = _cropped(job)
    ends_N2 = job.corners_N2 + job.sizes_N[:, None]
    if job.sizes_N.min() < 1 or job.corners_N2.min() < 0 or (ends_N2.max(0) > (height, width)).any():
        usable = f"{height}x{width} px (cropped to a multiple of {windows.MULTIPLE})"
        raise DataError(f"the manifest has a window outside image '{one_line(job.image_id)}' of {usable}")


def _cropped(job: _Job) -> tuple[int, int]:
    """Height and width of the part of an image that windows lie on, and LR images are made of."""
    height, width = job.row["height"], job.row["width"]
    assert isinstance(height, int) and isinstance(width, int)  # an image that was taken
    return windows.cropped(height), windows.cropped(width)


# One image


def _pack_image(source: Store, job: _Job) -> _Packed:
    """Several threads do this at the same time."""
    cells = _hr_cells(source, job)
    for scale in _LR_SCALES:
        if source.cells(job.image_id, f"lr{scale}"):
            first_N2 = -(-job.corners_N2 // scale)
            end_N2 = (job.corners_N2 + job.sizes_N[:, None]) // scale
            pixels = source.pixels(job.image_id, f"lr{scale}")
            cells += _encoded(pixels, f"{job.image_id}.lr{scale}", f"lr{scale}", first_N2, end_N2)
    return _Packed(job, cells)


def _hr_cells(source: Store, job: _Job) -> list[_Cell]:
    first_N2 = np.maximum(job.corners_N2 - _MARGIN, 0)
    end_N2 = np.minimum(job.corners_N2 + job.sizes_N[:, None] + _MARGIN, _cropped(job))
    pixels = source.pixels(job.image_id)
    file = source.read_bytes(job.image_id) if source.is_whole(job.image_id) else b""
    own = hashlib.sha256(file).hexdigest() == job.row["sha256"]  # and not a cell of all of it
    cells, size = [], 0
    for cell in _encoded(pixels, job.image_id, "hr", first_N2, end_N2):
        cells.append(cell)
        size += len(cell.data)
        if own and size >= len(file):
            ending = Path(str(job.row["name"])).suffix.lower()
            name = job.image_id + (ending if ending in images.SUFFIXES else ".img")
            return [_Cell(name, "hr", _Rectangle(0, 0, *pixels.shape[:2]), file)]
    return cells


def _encoded(pixels: npt.NDArray[np.uint8], stem: str, role: str, first_N2: _Ints, end_N2: _Ints) -> Iterator[_Cell]:
    """The cells over boxes of an image."""
    for place in _rectangles(first_N2, end_N2):
        cut = pixels[place.top : place.bottom, place.left : place.right]
        yield _Cell(f"{stem}.{place.top}_{place.left}.webp", role, place, _webp(cut))


def _webp(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Lossless. For photographs method 0 takes 5 % more bytes, 0.3 of the time, method 4 4 % fewer, 4 times as long."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "WEBP", lossless=True, method=1, quality=0)
    return file.getvalue()


def _rectangles(first_N2: _Ints, end_N2: _Ints) -> list[_Rectangle]:
    """Rectangles that cover what N boxes cover, once each, top to bottom, no side longer than a cell's."""
    some = (end_N2 > first_N2).all(1)  # a window smaller than an LR pixel has none
    first_N2, end_N2 = first_N2[some], end_N2[some]
    ys, xs = (np.unique(np.r_[first_N2[:, axis], end_N2[:, axis]]) for axis in (0, 1))
    # Corners of the boxes counted with signs; the sums of these in both directions say how many boxes lie there.
    depth = np.zeros((len(ys), len(xs)), np.int64)
    top, left = np.searchsorted(ys, first_N2[:, 0]), np.searchsorted(xs, first_N2[:, 1])
    bottom, right = np.searchsorted(ys, end_N2[:, 0]), np.searchsorted(xs, end_N2[:, 1])
    for sign, row, column in ((1, top, left), (-1, bottom, left), (-1, top, right), (1, bottom, right)):
        np.add.at(depth, (row, column), sign)
    covered = depth.cumsum(0).cumsum(1) > 0  # the last row and column are empty
    found, growing = [], dict[tuple[int, int], int]()  # (left, right) of the runs in the row above -> their top
    for y, row in zip(ys.tolist(), covered, strict=True):
        edges = xs[np.flatnonzero(np.diff(row, prepend=False))].tolist()
        runs = list(zip(edges[::2], edges[1::2], strict=True))
        found += [_Rectangle(growing.pop(run), run[0], y, run[1]) for run in growing.keys() - set(runs)]
        for run in runs:
            growing.setdefault(run, y)
    return sorted(piece for rectangle in found for piece in _pieces(rectangle))


def _pieces(rectangle: _Rectangle) -> Iterator[_Rectangle]:
    """A rectangle cut into cells of about one size."""
    ys, xs = _cuts(rectangle.top, rectangle.bottom), _cuts(rectangle.left, rectangle.right)
    for top, bottom in pairwise(ys):
        for left, right in pairwise(xs):
            yield _Rectangle(top, left, bottom, right)


def _cuts(first: int, end: int) -> list[int]:
    number = -(-(end - first) // _CELL)
    return [first + (end - first) * index // number for index in range(number + 1)]


# Shards


def _told(packed: Iterable[_Packed], done: int, total: int, progress: Progress) -> Iterator[_Packed]:
    size = 0
    for number, item in enumerate(packed, done + 1):
        size += item.size
        progress(number, total, f"{size / 1e6:.0f} MB")
        yield item


def _groups(items: Iterable[_Packed], shard_size: int) -> Iterator[list[_Packed]]:
    """Cut into shards greedily, in order, so that where a run was cut off does not matter."""
    group: list[_Packed] = []
    size = 0
    for item in items:
        if group and (size + item.size > shard_size or len(group) == _MAX_ROWS):
            yield group
            group, size = [], 0
        group.append(item)
        size += item.size
    if group:
        yield group


def _write_unit(target: Store, unit: int, group: Sequence[_Packed]) -> None:
    """Publish one shard with its three tables and commit it."""
    members = {cell.name: cell.data for item in group for cell in item.cells}
    digest, offsets = write_tar(target.shard_path(unit), members)
    cells = [
        {
            "image_id": item.job.image_id,
            "y": cell.place.top,
            "x": cell.place.left,
            "height": cell.place.bottom - cell.place.top,
            "width": cell.place.right - cell.place.left,
            "role": cell.role,
            "offset": offsets[cell.name],
            "size": len(cell.data),
            "xxh3": xxhash.xxh3_64_intdigest(cell.data),
        }
        for item in group
        for cell in item.cells
    ]
    patches = [
        {"patch_id": windows.patch_id(image_id, y, x, size), "image_id": image_id, "y": y, "x": x, "size": size}
        for item in group
        for image_id in [item.job.image_id]
        for (y, x), size in zip(item.job.corners_N2.tolist(), item.job.sizes_N.tolist(), strict=True)
    ]
    tables = {
        "images": pa.Table.from_pylist([item.job.row for item in group], schema.IMAGES),
        "cells": pa.Table.from_pylist(cells, schema.CELLS),
        "patches": pa.Table.from_pylist(patches, schema.PATCHES),
    }
    parts = [target.part(target.shard_path(unit), digest)]
    parts += [target.write_table(name, unit, table) for name, table in tables.items()]
    target.commit(INGEST, unit, _FINGERPRINT, parts)


# What goes with them


def _copy_scores(source: Store, target: Store) -> None:
    """The scores of the packed windows; of a scorer that has gone on since an earlier run, its new ones."""
    for found in source.score_sets():
        records = source.commits(found.kind)
        if not records:
            continue
        parts = [part.xxh3 for record in records.values() for part in record.parts]
        fingerprint = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
        target.add_score_set(found.record)
        scores = pa.concat_tables([source.score_table(found, unit) for unit in records])
        done = target.commits(found.kind)
        for unit in target.commits():
            if unit not in done or done[unit].fingerprint != fingerprint:
                rows = pc.index_in(target.unit_table("patches", unit)["patch_id"], scores["patch_id"])
                part = target.write_table(found.kind, unit, scores.take(rows.drop_null()))
                target.commit(found.kind, unit, fingerprint, [part])


def _repeat(manifest: Manifest, source: Store, target: Store) -> Manifest:
    """The manifest of the packed store: the same choice, where to find it, and where it comes from."""
    shards = {image_id: unit for unit in target.commits() for image_id in _image_ids(target, unit)}
    column = pa.array([shards[image_id] for image_id in manifest.table["image_id"].to_pylist()], pa.int32())
    at = manifest.table.schema.get_field_index("shard")
    table = manifest.table.set_column(at, manifest.table.schema.field("shard"), column)
    reference = StoreReference(url=str(target.path.resolve()), shards=len(target.commits()), digest=target.digest())
    origin = manifest.recipe.store.model_copy(
        update={"url": storage.relative(source.path.resolve(), target.path.resolve())}
    )
    recipe = manifest.recipe.model_copy(update={"store": reference, "packed_from": origin})
    return replace(manifest, table=table, recipe=recipe)


def _image_ids(store: Store, unit: int) -> list[str]:
    ids: list[str] = store.unit_table("images", unit)["image_id"].to_pylist()
    return ids
