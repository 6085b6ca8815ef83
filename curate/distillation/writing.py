"""The result of a distillation as a store and a manifest like any other: patches, an image and a window each.

    store.json                 `distilled`: what the patches are made from, and how; two runs with the same are one
    shards/000000.tar          {image_id}.webp, and where the patches have LR of their own {image_id}.lr2.webp
    tables/images/...          source `distilled`, name `GROUP/000012.webp` (`000012.webp` without groups)
    manifest.parquet           every patch once, in order; comes last: with it the distillation has ended
    distill/                   the run's own: curves, and while it lasts its state; nothing of it is looked at here

Patches are lossless WebP by the encoder of `pack`, whose bytes are the same every time: 26 to 29 % fewer than PNG's for
photographs and 4 % fewer where they are noisy, in a millisecond for 96 px; slower methods take 1 % off that.

Which patches go into which shard follows from their numbers alone, so a run that was killed goes on after the shards
that are finished, and ends with the same bytes. An image's id is a hash of its file: of patches that are equal in every
pixel the first is kept.
"""

import hashlib
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from curate import __version__, layout, pool, reuse, storage, windows
from curate.errors import CurateError, UsageError, one_line
from curate.ingestion import patch_table
from curate.manifest import Manifest
from curate.packing import MANIFEST_FILE, lossless
from curate.progress import Progress, silent
from curate.schema import STATUS_OK, DistilledFrom, Distilling, ManifestRecipe, StoreReference
from curate.shards import write_tar
from curate.storage import Place
from curate.store import INGEST, Store

__all__ = ["SOURCE", "begin", "fitting", "is_finished", "packed_bytes", "write"]

SOURCE = "distilled"  # of every image, in SQL: images.source

_STRATEGY = "distill"
_SHARD_BYTES = 256_000_000  # of pixels
_MOST_ROWS = 50_000  # images in a shard, however small they are

_Pixels = npt.NDArray[np.uint8]


def begin(out: str | Place, *, patch: int, made_from: Distilling) -> Store:
    """The store of a distillation to patches of `patch` px: made in `out`, a new or empty folder, or the one of the
    very same distillation that is there, unfinished or finished.

    UsageError if `out` holds anything else, which says how that differs, and for a patch that is no multiple of 12.
    """
    if patch < 1 or patch % windows.MULTIPLE:
        sizes = f"a multiple of {windows.MULTIPLE} px, so that its x2, x3 and x4 LR are whole"
        raise UsageError(f"a distilled patch should be {sizes}; found {patch}")
    path = storage.place(out, "a distilled store")
    if not Store.is_store(path):
        try:
            return Store.create(path, patch=patch, step=patch, distilled=made_from)
        except CurateError:
            if not Store.is_store(path):  # else another run has made it in this moment
                raise
    opened = Store.open(path)
    there = opened.header.distilled
    asked = made_from.model_dump(mode="json")
    if there is None or opened.header.patch != patch or there.model_dump(mode="json") != asked:
        raise UsageError(f"'{one_line(out)}' is there already and is {_other(opened, patch, made_from)}")
    return opened


def _other(opened: Store, patch: int, made_from: Distilling) -> str:
    there = opened.header.distilled
    if there is None:
        return f"{opened.kind}; name a new or empty folder"
    asked = Distilling.model_validate(made_from.model_dump(mode="json"))  # a tuple is a list in a document
    differing = reuse.differences({"patch": opened.header.patch, **there.flat()}, {"patch": patch, **asked.flat()})
    return f"distilled otherwise ({differing}); give the same options, or name a new or empty folder"


def is_finished(store: Store) -> bool:
    """Whether a distillation has ended: its manifest is written last."""
    return (store.path / MANIFEST_FILE).is_file()


def write(
    store: Store,
    hr: Iterable[_Pixels],
    *,
    groups: Sequence[str | None],
    manifest: Manifest,
    source: Store | None = None,
    scores: Sequence[float | None] | None = None,
    weights: Sequence[float] | None = None,
    lr: Mapping[int, Iterable[_Pixels]] | None = None,
    shard_bytes: int = _SHARD_BYTES,
    progress: Progress = silent,
) -> Manifest:
    """Write the patches of a distillation that `begin` has opened, and its manifest, which is returned as it is saved.

    `hr` are N patches in batches (uint8 RGB, n x patch x patch x 3) of any sizes, `groups` the names of their classes,
    where they have any. `manifest` is the one that they were distilled from, of the store `source` (by default the one
    that it names). `lr` maps a scale to the patches' LR in batches, for those whose LR is not the bicubic of their HR.
    `scores` go into the manifest as they are, `weights` scaled so that their mean is 1. A shard holds about
    `shard_bytes` of pixels, memory a few batches.

    Call it under `store.writing()`. What an earlier run has finished is skipped, its patches are taken and not looked
    at. Raises CurateError if that was of more patches, OSError as the file system does, and as `Manifest.store` does.
    """
    made_from = store.header.distilled
    assert made_from is not None and all(len(given) == len(groups) for given in (scores, weights) if given is not None)
    writing = _Writing(store, made_from, _split(manifest, source or manifest.store()), groups, progress)
    side = store.header.patch
    per_shard = max(1, min(_MOST_ROWS, shard_bytes // (3 * side * side)))
    if len(units := store.commits()) > (planned := -(-len(groups) // per_shard)):
        begun = f"'{one_line(store.path)}' was begun with more patches: it has {len(units)} shards"
        raise CurateError(f"{begun}, {len(groups)} patches take {planned}; name a new or empty folder")
    patches = _numbered(hr, lr or {}, side)
    for unit, first in enumerate(range(0, len(groups), per_shard)):
        writing.shard(unit, list(range(first, min(first + per_shard, len(groups)))), patches)
    assert next(patches, None) is None, "more patches than groups"
    table = _rows(store, scores, weights)
    return Manifest(table, _recipe(store, made_from, manifest, len(groups))).save(store.path / MANIFEST_FILE)


# --- patches ----------------------------------------------------------------------------------------------------------


class _Patch(NamedTuple):
    """A patch: its pixels by role."""

    number: int
    pixels: dict[str, _Pixels]


class _Files(NamedTuple):
    """A patch, encoded."""

    number: int
    image_id: str
    sha256: str
    data: dict[str, bytes]  # by role
    sides: dict[str, int]  # px


def _numbered(hr: Iterable[_Pixels], lr: Mapping[int, Iterable[_Pixels]], side: int) -> Iterator[_Patch]:
    sides = {"hr": side, **{f"lr{scale}": side // scale for scale in sorted(lr)}}
    layers = [_each(hr), *(_each(lr[scale]) for scale in sorted(lr))]
    for number, pixels in enumerate(zip(*layers, strict=True)):
        patch = dict(zip(sides, pixels, strict=True))
        assert all(p.shape == (sides[role], sides[role], 3) and p.dtype == np.uint8 for role, p in patch.items())
        yield _Patch(number, patch)


def _each(batches: Iterable[_Pixels]) -> Iterator[_Pixels]:
    return (pixels for batch in batches for pixels in batch)


def _encoded(patch: _Patch) -> _Files:
    """Several threads do this at the same time."""
    data = {role: lossless(pixels) for role, pixels in patch.pixels.items()}
    sha256 = hashlib.sha256(data["hr"]).hexdigest()
    return _Files(patch.number, sha256[:16], sha256, data, {role: len(p) for role, p in patch.pixels.items()})


# --- shards -----------------------------------------------------------------------------------------------------------


@dataclass
class _Writing:
    """The writing of a store's shards, one after the other."""

    store: Store
    made_from: Distilling
    split: str
    groups: Sequence[str | None]
    progress: Progress
    known: set[str] = field(default_factory=set)  # ids of the patches so far
    bytes: int = 0

    def shard(self, unit: int, numbers: Sequence[int], patches: Iterator[_Patch]) -> None:
        """Take so many patches, write them and commit them; if that is done already, only take them."""
        mine = islice(patches, len(numbers))
        record = self.store.commits().get(unit)
        if record is not None:
            taken = sum(1 for _ in mine)
            self.known.update(self.store.unit_table("images", unit)["image_id"].to_pylist())
        else:
            taken = self._write(unit, mine)
        assert taken == len(numbers), "fewer patches than groups"
        self.progress(numbers[-1] + 1, len(self.groups), f"{self.bytes / 1e6:.1f} MB")

    def _write(self, unit: int, patches: Iterator[_Patch]) -> int:
        rows: list[_Files] = []
        taken = 0

        def members() -> Iterator[tuple[str, bytes]]:
            nonlocal taken
            for found in pool.ahead(_encoded, patches):
                taken += 1
                if found.image_id in self.known:
                    continue
                self.known.add(found.image_id)
                rows.append(found)
                for role, data in found.data.items():
                    self.bytes += len(data)
                    yield _member(found, role), data

        path = self.store.shard_path(unit)
        digest, offsets = write_tar(path, members())
        tables = {
            "images": pa.Table.from_pylist([self._image(found) for found in rows], layout.IMAGES),
            "cells": pa.Table.from_pylist([_cell(f, role, offsets) for f in rows for role in f.data], layout.CELLS),
            "patches": patch_table(
                [(found.image_id, found.sides["hr"], found.sides["hr"]) for found in rows],
                self.store.header.patch,
                self.store.header.step,
            ),
        }
        parts = [self.store.part(path, digest)]
        parts += [self.store.write_table(name, unit, table) for name, table in tables.items()]
        self.store.commit(INGEST, unit, self.made_from.fingerprint, parts)
        return taken

    def _image(self, found: _Files) -> dict[str, object]:
        group = self.groups[found.number]
        return {
            "image_id": found.image_id,
            "name": f"{'' if group is None else group + '/'}{found.number:06d}.webp",
            "sha256": found.sha256,
            "height": found.sides["hr"],
            "width": found.sides["hr"],
            "status": STATUS_OK,
            "source": SOURCE,
            "split": self.split,
        }


def _member(found: _Files, role: str) -> str:
    return f"{found.image_id}{'' if role == 'hr' else '.' + role}.webp"


def _cell(found: _Files, role: str, offsets: Mapping[str, int]) -> dict[str, object]:
    return {
        "image_id": found.image_id,
        "y": 0,
        "x": 0,
        "height": found.sides[role],
        "width": found.sides[role],
        "role": role,
        "offset": offsets[_member(found, role)],
        "size": len(found.data[role]),
        "xxh3": xxhash.xxh3_64_intdigest(found.data[role]),
    }


def _split(manifest: Manifest, source: Store) -> str:
    """The split of the images that it was distilled from, if they have one."""
    images = source.images()
    chosen = pc.is_in(images["image_id"], manifest.table["image_id"].combine_chunks())
    splits = images.filter(chosen)["split"].unique().to_pylist()
    return str(splits[0]) if len(splits) == 1 else "train"


# --- the manifest -----------------------------------------------------------------------------------------------------


def _rows(store: Store, scores: Sequence[float | None] | None, weights: Sequence[float] | None) -> pa.Table:
    """A row a patch, in order."""
    tables, numbers = [], list[int]()
    for unit in store.commits():
        patches = store.unit_table("patches", unit)
        tables.append(patches.append_column("shard", pa.array(np.full(len(patches), unit, np.int32))))
        names = store.unit_table("images", unit)["name"].to_pylist()
        numbers += [int(PurePosixPath(name).stem) for name in names]
    weight = np.ones(len(numbers)) if weights is None else np.asarray(weights, np.float64)[numbers]
    columns = {
        "rank": pa.array(np.arange(len(numbers))),
        "score": pa.array([None if scores is None else scores[number] for number in numbers], pa.float64()),
        "weight": pa.array((weight / weight.mean()).astype(np.float32)),
    }
    table = pa.concat_tables(tables)
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table.select(layout.MANIFEST.names).cast(layout.MANIFEST)


def _recipe(store: Store, made_from: Distilling, manifest: Manifest, asked: int) -> ManifestRecipe:
    units, then = store.commits(), manifest.recipe
    patches = sum(store.rows(unit, "patches") for unit in units.values())
    counts = {"patches": patches, "candidates": patches, "selected": patches, "copies": asked - patches}
    source = manifest.store_path()
    return ManifestRecipe(
        store=StoreReference(url=str(store.path.resolve()), shards=len(units), digest=store.digest()),
        strategy=_STRATEGY,
        options=made_from.options,
        by=None,
        keep=1.0,
        where=None,
        counts={**counts, "pixels": patches * store.header.patch**2},
        scorers={},
        versions={
            "curate": __version__,
            "python": platform.python_version(),
            "arrow": pa.cpp_version,  # which writes the file
            **{package: version(package) for package in ("numpy", "pillow", "pyarrow")},
        },
        origin="distilled",
        distilled_from=DistilledFrom(
            store=then.store.model_copy(update={"url": storage.relative(source.resolve(), store.path.resolve())}),
            manifest=made_from.manifest,
            patches=len(manifest),
            strategy=then.strategy,
            options=then.options,
            by=then.by,
            keep=then.keep,
            unit=then.unit,
            where=then.where,
            origin=then.origin,
        ),
    )


# --- bytes ------------------------------------------------------------------------------------------------------------


def packed_bytes(manifest: Manifest, store: Store, progress: Progress = silent) -> int:
    """Bytes that a manifest's windows would take as patches of their own, by the encoder of distilled ones.

    Windows that overlap count in full. Raises as `Store.read` does.
    """
    columns = (manifest.table[name].to_pylist() for name in ("image_id", "y", "x", "size"))
    places = sorted(zip(*columns, strict=True))  # an image's one after the other: it is decoded once
    pixels = (store.read(image_id, y, x, size, size) for image_id, y, x, size in places)
    total = 0
    for done, size in enumerate(pool.ahead(_size, pixels), 1):
        total += size
        progress(done, len(places), f"{total / 1e6:.1f} MB")
    return total


def fitting(hr: Iterable[_Pixels], limit: int) -> int:
    """How many of the first patches of `hr` (as `write` takes them) take `limit` bytes or fewer together, encoded."""
    count = total = 0
    for size in pool.ahead(_size, _each(hr)):
        total += size
        if total > limit:
            break
        count += 1
    return count


def _size(pixels: _Pixels) -> int:
    return len(lossless(pixels))
