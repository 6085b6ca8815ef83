"""Pack: a Manifest -> a Store of just the pixels under its windows, once each and lossless, and a manifest of it.

Windows overlap, cells do not: what an image's windows cover is cut into rectangles, each a lossless WebP, or a PNG,
which takes 1.4 times the bytes and is decoded in two thirds of the time. Where the photograph's own file takes fewer
bytes than these (most JPEGs) it is kept instead, verbatim. So that a window's LR is the crop of the whole image's LR,
the pixels that the bicubic kernel reaches around it are packed too: of a refined half of 96-px windows 2.4 % of the
bytes, where LR cells for x2, x3 and x4 would be 42 % more pixels. Of LR images that the store was ingested with goes
the part under the windows. Training gives the same batches, bit by bit.

The shard is the unit. Which images go into which is planned before any is read, so that several workers or runs can
pack at the same time: done ones are skipped, and an interrupted run, run again, ends with the same bytes as one that
was not. `manifest.parquet` in the new store comes last.
"""

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from PIL import Image

from curate import images, layout, pool, reuse, storage, windows
from curate.engine import LOCAL, WHOLE, Engine, joined, run
from curate.engine import Part as Share
from curate.errors import CurateError, DataError, UsageError, listed, one_line
from curate.manifest import Manifest
from curate.progress import Progress, silent
from curate.schema import CommitRecord, Packing, Part, StoreReference
from curate.shards import write_tar
from curate.storage import Place
from curate.store import INGEST, Store

__all__ = ["MANIFEST_FILE", "Cells", "PackReport", "fingerprint", "lossless", "pack"]

MANIFEST_FILE = "manifest.parquet"  # in the packed store

_SCALE = 4  # the largest that the LR of a window can be made for
_MARGIN = 3 * _SCALE // 2  # HR px that its kernel reaches beyond a window
_LR_SCALES = (2, 3, 4)
_CELL = 512  # px, longest side: smaller ones are read at random for less, 128 px would take 0.7 % more bytes
_MAX_ROWS = 50_000  # images in one shard, however small they are
_PIXEL_BYTES = {"webp": 1.25, "png": 1.7}  # the median of photographs (0.8 to 1.6): what a plan of shards counts with
_VERSION = "pack 2"  # of what is done to an image

Cells = Literal["webp", "png"]

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PackReport:
    """What the packed store is, and what this run did."""

    manifest: Place  # of the packed store: what to train from, when no shard is missing
    patches: int
    images: int
    kept: int  # of the images, how many are there as the very file that the source has, which takes fewer bytes
    cells: int
    bytes: int  # of the packed store's shards and tables
    source_bytes: int  # of those of the store that it was packed from, scores left out
    shards: int  # that this run wrote
    known: int  # images that an earlier run had packed
    missing: int = 0  # shards that other parts have not packed yet: the last of them writes the manifest


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
class _Unit:
    """The images of one shard."""

    number: int
    jobs: Sequence[_Job]

    @property
    def fingerprint(self) -> str:
        return fingerprint(job.image_id for job in self.jobs)


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard that was published, and the rows of its cells."""

    file: Part
    cells: list[dict[str, object]]


def pack(
    manifest: Manifest | str | Path,
    out: str | Path,
    *,
    store: Store | str | Path | None = None,
    shard_size: int = 256_000_000,
    cells: Cells = "webp",
    engine: Engine = LOCAL,
    part: Share = WHOLE,
    progress: Progress = silent,
) -> PackReport:
    """Write a store of a manifest's windows to the folder `out`: new, empty, or an unfinished pack of the same.

    `store` is where the manifest's store is, if it has moved. A shard holds about `shard_size` bytes. `cells` are the
    files that pixels are kept in: `webp` is the smaller kind, `png` the one to train from faster. Scores are taken
    along; a photograph cannot be scored any more where only parts of it are there. `out/manifest.parquet` has the same
    windows, ranks, scores and weights, and names the store in `out`. As one `part` of several runs, this one packs its
    shards; the last of the parts to end writes scores and manifest. The bytes are the same, on every `engine` too.

    Raises UsageError before anything is written if `out` holds something else, or the manifest's store is not found;
    DataError if that is another store, or a window is not inside its image; OSError as the file system does.
    """
    if shard_size < 1:
        raise UsageError(f"a shard should hold 1 byte or more, found {shard_size}")
    if cells not in get_args(Cells):
        raise UsageError(f"no cells '{one_line(cells)}'; there are: {listed(get_args(Cells))}")
    manifest = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
    source = store if isinstance(store, Store) else manifest.store(store)
    manifest.verify(source)
    jobs = _jobs(manifest, source)
    units = list(_planned(source, jobs, shard_size, cells))
    with contextlib.ExitStack() as stack:
        stack.enter_context(joined(engine))
        target = _open_or_create(out, source, manifest, cells)
        stack.enter_context(target.writing(shared=not part.is_whole))
        done = target.commits()
        _check_plan(target, units, done)
        known = sum(len(unit.jobs) for unit in units if unit.number in done)
        count = _Count(progress, len(jobs), known)
        todo = [unit for unit in units if unit.number not in done and part.has(unit.number)]
        written = _written(source, target, todo, engine, count, cells)
        for unit, shard in written:
            _commit(target, unit, shard)
        missing = len(units) - len(target.commits())
        if not missing:
            _copy_scores(source, target)
            _repeat(manifest, source, target).save(target.path / MANIFEST_FILE)
            if not part.is_whole and storage.is_url(target.path):
                target.fold([INGEST, *(found.kind for found in target.score_sets())])
    ids = [job.image_id for job in jobs]
    return PackReport(
        manifest=target.path / MANIFEST_FILE,
        patches=len(manifest),
        images=len(ids),
        kept=sum(_hashes(target, image_id) == _hashes(source, image_id) for image_id in ids),
        cells=sum(target.rows(record, "cells") for record in target.commits().values()),
        bytes=_bytes(target),
        source_bytes=_bytes(source),
        shards=len(todo),
        known=known,
        missing=missing,
    )


def _bytes(store: Store) -> int:
    return sum(part.bytes for record in store.commits().values() for part in record.parts)


def _hashes(store: Store, image_id: str) -> list[int]:
    return [cell.xxh3 for cell in store.cells(image_id)]


def _open_or_create(out: str | Path, source: Store, manifest: Manifest, cells: Cells) -> Store:
    reference = manifest.recipe.store
    packing = Packing(source=reference.digest, manifest=manifest.digest(), scale=_SCALE, cells=cells)
    path = storage.place(out, "a packed store")
    grid = source.header
    if not Store.is_store(path):
        try:
            return Store.create(path, patch=grid.patch, step=grid.step, packed=packing)
        except CurateError:
            if not Store.is_store(path):  # else another run has made it in this moment
                raise
    opened = Store.open(path)
    there = opened.header.packed
    if there != packing:
        told = [{**was.model_dump(exclude={"source"}), "store": was.source} for was in (there, packing) if was]
        other = there and reuse.differences(*told)
        kind = f"packed from other things ({other})" if other else opened.kind
        raise UsageError(f"'{one_line(out)}' is there already and is {kind}; name a new or empty folder")
    return opened


# What is to be packed


def fingerprint(image_ids: Iterable[str]) -> str:
    """Of a shard with these images."""
    return hashlib.sha256(" ".join([_VERSION, *image_ids]).encode()).hexdigest()[:16]


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


def _planned(source: Store, jobs: Sequence[_Job], shard_size: int, cells: Cells) -> Iterator[_Unit]:
    """Images in shards: greedily, in order, by the bytes that their cells should take at most."""
    number, group, size = 0, list[_Job](), 0
    for job in jobs:
        expected = _expected_bytes(source, job, _PIXEL_BYTES[cells])
        if group and (size + expected > shard_size or len(group) == _MAX_ROWS):
            yield _Unit(number, group)
            number, group, size = number + 1, [], 0
        group.append(job)
        size += expected
    if group:
        yield _Unit(number, group)


def _expected_bytes(source: Store, job: _Job, each: float) -> int:
    """Of an image's cells, without reading it."""
    covered = {scale: _area(*_lr_boxes(job, scale)) for scale in _LR_SCALES if source.cells(job.image_id, f"lr{scale}")}
    own = sum(cell.size for cell in source.cells(job.image_id))
    return min(own, int(each * _area(*_hr_boxes(job)))) + int(each * sum(covered.values()))


def _area(first_N2: _Ints, end_N2: _Ints) -> int:
    return sum((cell.bottom - cell.top) * (cell.right - cell.left) for cell in _rectangles(first_N2, end_N2))


def _check_plan(target: Store, units: Sequence[_Unit], done: Mapping[int, CommitRecord]) -> None:
    """UsageError if what is there is not as planned."""
    planned = {unit.number: unit for unit in units}
    for number, record in done.items():
        ids: list[str] = target.unit_table("images", number)["image_id"].to_pylist()
        if record.fingerprint != fingerprint(ids):
            begun = f"'{one_line(target.path)}' was begun by another version of what packs, not '{_VERSION}'"
            raise UsageError(f"{begun}: name a new or empty folder")
        if number not in planned or planned[number].fingerprint != record.fingerprint:
            begun = f"'{one_line(target.path)}' was begun with shards of another size"
            raise UsageError(f"{begun}: give the same --shard-size, or name a new or empty folder")


def _hr_boxes(job: _Job) -> tuple[_Ints, _Ints]:
    """First and end (y, x) of what is packed for each window."""
    first_N2 = np.maximum(job.corners_N2 - _MARGIN, 0)
    return first_N2, np.minimum(job.corners_N2 + job.sizes_N[:, None] + _MARGIN, _cropped(job))


def _lr_boxes(job: _Job, scale: int) -> tuple[_Ints, _Ints]:
    """The same in the LR image."""
    return -(-job.corners_N2 // scale), (job.corners_N2 + job.sizes_N[:, None]) // scale


# One image


def _pack_image(source: Store, kind: Cells, job: _Job) -> list[_Cell]:
    """Several threads do this at the same time."""
    cells = _hr_cells(source, kind, job)
    for scale in _LR_SCALES:
        if source.cells(job.image_id, f"lr{scale}"):
            pixels = source.pixels(job.image_id, f"lr{scale}")
            cells += _encoded(pixels, kind, f"{job.image_id}.lr{scale}", f"lr{scale}", *_lr_boxes(job, scale))
    return cells


def _hr_cells(source: Store, kind: Cells, job: _Job) -> list[_Cell]:
    pixels = source.pixels(job.image_id)
    file = source.read_bytes(job.image_id) if source.is_whole(job.image_id) else b""
    own = hashlib.sha256(file).hexdigest() == job.row["sha256"]  # and not a cell of all of it
    cells, size = [], 0
    for cell in _encoded(pixels, kind, job.image_id, "hr", *_hr_boxes(job)):
        cells.append(cell)
        size += len(cell.data)
        if own and size >= len(file):
            ending = Path(str(job.row["name"])).suffix.lower()
            name = job.image_id + (ending if ending in images.SUFFIXES else ".img")
            return [_Cell(name, "hr", _Rectangle(0, 0, *pixels.shape[:2]), file)]
    return cells


def _encoded(
    pixels: npt.NDArray[np.uint8], kind: Cells, stem: str, role: str, first_N2: _Ints, end_N2: _Ints
) -> Iterator[_Cell]:
    """The cells over boxes of an image."""
    encode = images.encode_png if kind == "png" else lossless
    for place in _rectangles(first_N2, end_N2):
        cut = np.ascontiguousarray(pixels[place.top : place.bottom, place.left : place.right])
        yield _Cell(f"{stem}.{place.top}_{place.left}.{kind}", role, place, encode(cut))


def lossless(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Pixels (uint8 HWC) as a WebP file, without loss.

    For photographs method 0 takes 5 % more bytes, 0.3 of the time, method 4 4 % fewer, 4 times as long.
    """
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
    found, growing = [], dict[tuple[int, int], int]()  # (left, right) of the spans in the row above -> their top
    for y, row in zip(ys.tolist(), covered, strict=True):
        edges = xs[np.flatnonzero(np.diff(row, prepend=False))].tolist()
        spans = list(zip(edges[::2], edges[1::2], strict=True))
        found += [_Rectangle(growing.pop(span), span[0], y, span[1]) for span in growing.keys() - set(spans)]
        for span in spans:
            growing.setdefault(span, y)
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


@dataclass(slots=True)
class _Count:
    """How far it is."""

    progress: Progress
    total: int
    done: int
    bytes: int = 0

    def add(self, images: int, size: int) -> None:
        self.done += images
        self.bytes += size
        self.progress(self.done, self.total, f"{self.bytes / 1e6:.0f} MB")


def _unheard(images: int, size: int) -> None:
    """A worker elsewhere tells nobody how far its shard is."""


@dataclass(frozen=True, slots=True)
class _Packing:
    """The job of packing a shard."""

    source: Place
    target: Place
    cells: Cells
    tell: Callable[[int, int], None]

    def open(self) -> Callable[[_Unit], _Shard]:
        source, target = Store.open(self.source), Store.open(self.target)
        source.cell("")  # builds the index here, before several threads ask for it
        return lambda unit: _write_shard(source, target, unit, self.cells, self.tell)

    def name(self, unit: _Unit) -> str:
        return f"shard {unit.number:06d}"


def _written(
    source: Store, target: Store, units: Sequence[_Unit], engine: Engine, count: _Count, cells: Cells
) -> Iterator[tuple[_Unit, _Shard]]:
    """The units with their shards, in order."""
    here = engine == LOCAL
    job = _Packing(source.path.resolve(), target.path.resolve(), cells, count.add if here else _unheard)
    for unit, shard in run(job, units, engine):
        if not here:
            count.add(len(unit.jobs), shard.file.bytes)
        yield unit, shard
    if not here:
        storage.remove_leftovers(target.path / "shards")  # of a worker that died


def _write_shard(source: Store, target: Store, unit: _Unit, kind: Cells, tell: Callable[[int, int], None]) -> _Shard:
    rows: list[dict[str, object]] = []

    def members() -> Iterator[tuple[str, bytes]]:
        packed = pool.ahead(partial(_pack_image, source, kind), unit.jobs)
        for job, cells in zip(unit.jobs, packed, strict=True):
            for cell in cells:
                rows.append(_cell_row(job, cell))
                yield cell.name, cell.data
            tell(1, sum(len(cell.data) for cell in cells))

    path = target.shard_path(unit.number)
    digest, offsets = write_tar(path, members())
    for row in rows:
        row["offset"] = offsets[str(row.pop("name"))]
    return _Shard(target.part(path, digest), rows)


def _cell_row(job: _Job, cell: _Cell) -> dict[str, object]:
    return {
        "name": cell.name,
        "image_id": job.image_id,
        "y": cell.place.top,
        "x": cell.place.left,
        "height": cell.place.bottom - cell.place.top,
        "width": cell.place.right - cell.place.left,
        "role": cell.role,
        "size": len(cell.data),
        "xxh3": xxhash.xxh3_64_intdigest(cell.data),
    }


def _commit(target: Store, unit: _Unit, shard: _Shard) -> None:
    """Publish the tables of a shard and commit it."""
    patches = [
        {"patch_id": windows.patch_id(image_id, y, x, size), "image_id": image_id, "y": y, "x": x, "size": size}
        for job in unit.jobs
        for image_id in [job.image_id]
        for (y, x), size in zip(job.corners_N2.tolist(), job.sizes_N.tolist(), strict=True)
    ]
    tables = {
        "images": pa.Table.from_pylist([job.row for job in unit.jobs], layout.IMAGES),
        "cells": pa.Table.from_pylist(shard.cells, layout.CELLS),
        "patches": pa.Table.from_pylist(patches, layout.PATCHES),
    }
    parts = [shard.file]
    parts += [target.write_table(name, unit.number, table) for name, table in tables.items()]
    target.commit(INGEST, unit.number, unit.fingerprint, parts)


# What goes with them


def _copy_scores(source: Store, target: Store) -> None:
    """The scores of the packed windows; of a scorer that has gone on since an earlier run, its new ones."""
    for found in source.score_sets():
        records = source.commits(found.kind)
        if not records:
            continue
        parts = [part.xxh3 for record in records.values() for part in record.parts]
        fingerprint = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
        scores = pa.concat_tables([source.score_table(found, unit) for unit in records])
        done = target.commits(found.kind)
        if any(record.fingerprint != fingerprint for record in done.values()):
            target.remove_units(found.kind)  # a table that is replaced would not be what its record says, for a moment
            done = {}
        target.add_score_set(found.record)
        for unit in target.commits():
            if unit not in done:
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
