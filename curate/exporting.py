"""Export: a core-set as the files that other tools read: its windows cut out, HR and LR beside each other.

What lies where for each tool is told in `curate.targets`. In each export `export.json` says what it is and comes first;
`manifest.parquet` (ranks, scores, weights, recipe) comes last.

Windows overlap, and so do the images: pixels under several windows are written as often, as those tools expect of
sub-images. Nothing can be linked, for a store keeps photographs in tar shards.

A file with its final name is whole. The same export, run again, keeps what is there and ends with the same bytes as one
that was not interrupted.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import xxhash

from curate import files, reuse, schema
from curate.cuts import Job
from curate.errors import UsageError, listed, one_line
from curate.exports import RECORD, SIDECAR, digest
from curate.manifest import Manifest
from curate.progress import Progress, silent
from curate.schema import ExportRecord
from curate.store import Store
from curate.targets import TARGETS, Plan, require, windows_of
from curate.writers import WRITERS, keep_or_write

__all__ = ["SCALES", "ExportReport", "export"]

SCALES = (2, 3, 4)

_VERSION = 1  # raise it when the same windows begin to give other files


@dataclass(frozen=True)
class ExportReport:
    """What `export` did."""

    folder: Path
    windows: int  # HR images, or pairs
    kept: int  # of them, that were there already
    bytes: int  # of all files in the folder
    stubs: tuple[Path, ...]  # where to look next
    weights_unread: bool  # the manifest weights its windows, and no reader of this target can


def export(
    manifest: Manifest | str | Path,
    out: str | Path,
    *,
    to: str,
    scale: int | None = 2,
    store: Store | str | Path | None = None,
    progress: Progress = silent,
) -> ExportReport:
    """Write the windows of a manifest into the folder `out`, in the layout of target `to`, HR alone if `scale` is None.

    UsageError for an unknown target or scale, for a folder that holds anything but this export, for windows that are
    smaller than an LR pixel, and where a package is missing; DataError if the store is not the manifest's.
    """
    if to not in TARGETS:
        raise UsageError(f"no target '{one_line(to)}' to export to; there are: {listed(TARGETS)}")
    if scale is not None and scale not in SCALES:
        raise UsageError(f"scale {scale} asked for; there are: {listed(SCALES)}, and none for HR alone")
    target = TARGETS[to]
    for package in target.needs:
        require(package, to)
    manifest = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
    source = store if isinstance(store, Store) else manifest.store(store)
    manifest.verify(source)
    windows = windows_of(manifest, scale)
    lrs = [cell.xxh3 for i in manifest.table["image_id"].unique().to_pylist() for cell in source.cells(i, f"lr{scale}")]
    record = ExportRecord(
        target=to, scale=scale, windows=len(windows), digest=digest(manifest), lr=_lr_digest(lrs), version=_VERSION
    )
    with _claimed(out, record) as folder:
        plan = Plan(folder, scale, windows)
        job = Job(plan, source, progress)
        WRITERS[to](job)
        made = tuple(folder / name for name in target.stubs)
        for path in made:
            keep_or_write(path, target.stubs[path.name](plan))
        if not (folder / SIDECAR).exists():
            _located(manifest, source).save(folder / SIDECAR)
    weighted = pc.count_distinct(manifest.table["weight"]).as_py() > 1
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return ExportReport(folder, len(windows), job.kept, size, made, weighted and not target.weights)


def _lr_digest(hashes: list[int]) -> str | None:
    """Of LR images that the store has; HR images are in the ids."""
    return xxhash.xxh3_128_hexdigest(np.array(hashes, "<u8").tobytes()) if hashes else None


@contextlib.contextmanager
def _claimed(out: str | Path, record: ExportRecord) -> Iterator[Path]:
    """The folder of this export, made or gone on with, held for writing. UsageError if it holds anything else."""
    folder = files.local_path(out, "an export")
    try:
        files.make_folder(folder)
    except OSError as error:
        if error.errno in files.FAILING:
            raise
        raise UsageError(f"cannot export into '{one_line(folder)}': {error.strerror}") from None
    with files.lock(folder):
        path = folder / RECORD
        if path.is_file():
            found = schema.parse(ExportRecord, path.read_bytes(), path)
            if found != (record if found.lr else record.model_copy(update={"lr": None})):  # older ones do not say
                other = reuse.differences(_entries(found), _entries(record))
                raise UsageError(f"'{one_line(folder)}' holds another export: {other}; name a new or empty folder")
        elif not all(entry.match(f".{RECORD}.*.tmp") for entry in folder.iterdir()):
            raise UsageError(f"'{one_line(folder)}' holds other things, and no {RECORD}; name a new or empty folder")
        files.remove_leftovers(folder)
        keep_or_write(path, schema.dump(record, indent=2).decode())
        yield folder


def _entries(record: ExportRecord) -> dict[str, object]:
    return {
        "target": record.target,
        "scale": record.scale,
        "windows": record.windows,
        "hash of windows, scores and weights": record.digest,
        "hash of the store's LR images": record.lr,
        "code version": record.version,
    }


def _located(manifest: Manifest, store: Store) -> Manifest:
    """The manifest with its store where it was found now."""
    reference = manifest.recipe.store.model_copy(update={"url": str(store.path.resolve())})
    return Manifest(manifest.table, manifest.recipe.model_copy(update={"store": reference}))
