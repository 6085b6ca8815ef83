"""An export on disk: what says that it is one, and whether each of its files is as it was written.

export.json       target, scale, number and hash of the windows: comes first
...               images, and the configurations that read them: `curate.targets`
manifest.parquet  ranks, scores, weights, recipe: comes last, and says that all is there
"""

import contextlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from curate import files, images, schema
from curate.errors import CurateError, DataError, one_line
from curate.manifest import Manifest
from curate.schema import ExportRecord
from curate.shards import write_members
from curate.storage import Place
from curate.targets import (
    PNG_LEVEL,
    TARGETS,
    Plan,
    Window,
    facts,
    image_paths,
    meta_info,
    parquet_name,
    require,
    tar_name,
    windows_of,
    write_parquet,
)

__all__ = ["RECORD", "SIDECAR", "check", "digest", "remove_damaged", "target"]

RECORD = "export.json"
SIDECAR = "manifest.parquet"


def digest(manifest: Manifest) -> str:
    """Of the windows with their ranks, scores and weights."""
    found = xxhash.xxh3_128(manifest.digest().encode())
    for name in ("rank", "score"):
        found.update(manifest.table[name].to_numpy().astype("<f8").tobytes())
    return found.hexdigest()


def target(path: str | Place) -> str:
    """The target of an export, `TARGET` if its record cannot be read."""
    folder = files.local_path(str(path), "an export")
    try:
        return schema.parse(ExportRecord, (folder / RECORD).read_bytes(), RECORD).target
    except DataError:
        return "TARGET"


def check(path: str | Place, deep: bool) -> tuple[list[Place], list[tuple[Place, str]]]:
    """The files of an export that were looked at, and what is wrong with which; with `deep` by their contents.

    Images have checksums of their own. The configurations beside them are for the user to change, and not looked into.
    Raises UsageError for a URL, and where the package of an LMDB is missing.
    """
    folder = files.local_path(str(path), "an export")
    try:
        data = (folder / RECORD).read_bytes()
        record = schema.parse(ExportRecord, data, RECORD)
        if not schema.is_as_written(record, data, indent=2) or record.target not in TARGETS:
            return [folder / RECORD], [(folder / RECORD, "it is not as curate writes it")]
    except DataError as error:
        return [folder / RECORD], [(folder / RECORD, str(error))]
    sidecar = folder / SIDECAR
    if not sidecar.exists():
        return [folder / RECORD], [(sidecar, "the export has not ended: run it again")]
    try:
        manifest = Manifest.load(sidecar)
        windows = windows_of(manifest, record.scale)
    except CurateError as error:
        return [folder / RECORD, sidecar], [(sidecar, str(error))]
    if digest(manifest) != record.digest or len(windows) != record.windows:
        return [folder / RECORD, sidecar], [(sidecar, f"it is not the manifest that {RECORD} tells of")]
    found = list[Place]()
    problems = list[tuple[Place, str]]()
    if deep and not Manifest.is_as_written(sidecar):
        problems.append((sidecar, "its bytes are not those that are written for its rows"))
    for file, inside in _FILES[record.target](Plan(folder, record.scale, windows)):
        if not file.exists():
            problems.append((file, "missing"))
            continue
        found += sorted(file.iterdir()) if file.is_dir() else [file]
        if deep:
            with contextlib.suppress(StopIteration):
                problems.append((file, next(inside(file))))
    stubs = TARGETS[record.target].stubs
    problems += [(folder / name, "missing") for name in stubs if not (folder / name).exists()]
    return [folder / RECORD, sidecar, *found], problems


def remove_damaged(path: str | Place) -> list[Path]:
    """Remove the files of an export that are damaged, so that `export` makes them again; returns them.

    Its record stays: without one the folder would be nobody's.
    """
    folder = files.local_path(str(path), "an export")
    damaged = {file for file, _ in check(folder, True)[1]} - {folder / RECORD}
    unwanted = sorted(file for file in damaged if isinstance(file, Path) and file.exists())
    with files.lock(folder):
        for file in unwanted:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    return unwanted


# What each target has written, and what may be wrong inside

_Inside = Callable[[Path], Iterator[str]]  # what is wrong with the contents of a file


def _png_problem(data: bytes, window: Window, shrink: int) -> Iterator[str]:
    try:
        shape = images.size(data)
    except DataError as error:
        yield str(error)
        return
    if shape != (window.height // shrink, window.width // shrink):
        yield f"it is of {shape[0]}x{shape[1]} px"


def _shrinks(plan: Plan) -> list[int]:
    return [1, plan.scale] if plan.scale else [1]


def _files_of_folders(plan: Plan, lr_suffix: str = "") -> Iterator[tuple[Path, _Inside]]:
    for window in plan.windows:
        for file, shrink in zip(image_paths(plan, window, lr_suffix), _shrinks(plan), strict=True):
            yield file, lambda file, window=window, shrink=shrink: _png_problem(file.read_bytes(), window, shrink)  # type: ignore[misc]


def _files_with_meta_info(plan: Plan) -> Iterator[tuple[Path, _Inside]]:
    yield from _files_of_folders(plan)
    yield plan.out / "meta_info.txt", partial(_text_problem, meta_info(plan.windows, 1))


def _text_problem(text: str, file: Path) -> Iterator[str]:
    if file.read_bytes() != text.encode():
        yield "it is not as it is written"


def _files_of_webdataset(plan: Plan) -> Iterator[tuple[Path, _Inside]]:
    chunks = plan.chunks()
    for number, windows in enumerate(chunks):
        yield plan.out / tar_name(number, len(chunks)), partial(_tar_problems, plan, windows)


def _tar_problems(plan: Plan, windows: list[Window], file: Path) -> Iterator[str]:
    try:
        with tarfile.open(file, "r:") as tar:
            members = {
                member.name: cast(IO[bytes], tar.extractfile(member)).read() for member in tar if member.isfile()
            }
    except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
        yield one_line(error)
        return
    again = io.BytesIO()
    write_members(again, members.items())
    if again.getbuffer() != file.read_bytes():
        yield "its headers, padding or end are not as they are written"
    expected = {f"{window.name}.json": json.dumps(facts(window)).encode() for window in windows}
    if any(members.get(name) != text for name, text in expected.items()):
        yield "its ranks, scores or weights are not those of the manifest"
    for window in windows:
        for name, shrink in zip(("hr", f"lr{plan.scale}"), _shrinks(plan), strict=False):
            for problem in _png_problem(members.get(f"{window.name}.{name}.png", b""), window, shrink):
                yield f"{window.name}.{name}.png: {problem}"


def _files_of_huggingface(plan: Plan) -> Iterator[tuple[Path, _Inside]]:
    chunks = plan.chunks()
    for number, windows in enumerate(chunks):
        yield plan.out / parquet_name(number, len(chunks)), partial(_parquet_problems, plan, windows)


def _parquet_problems(plan: Plan, windows: list[Window], file: Path) -> Iterator[str]:
    try:
        table, created_by = pq.read_table(file, page_checksum_verification=True), pq.read_metadata(file).created_by
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        yield one_line(error)
        return
    again = io.BytesIO()
    write_parquet(table, again)
    if pq.read_metadata(again).created_by == created_by and again.getbuffer() != file.read_bytes():
        yield "its bytes are not those that are written for its rows"
    if table["patch_id"].to_pylist() != [window.patch_id for window in windows]:
        yield "its windows are not those of the manifest"
        return
    for row, window in zip(table.to_pylist(), windows, strict=True):
        for name, shrink in zip(("hr", "lr"), _shrinks(plan), strict=False):
            for problem in _png_problem(row[name]["bytes"], window, shrink):
                yield f"{name} of {window.patch_id}: {problem}"


def _files_of_lmdb(plan: Plan) -> Iterator[tuple[Path, _Inside]]:
    for name, shrink in plan.lmdbs().items():
        yield plan.out / name, partial(_lmdb_problems, plan, shrink)


def _lmdb_problems(plan: Plan, shrink: int, folder: Path) -> Iterator[str]:
    listing = folder / "meta_info.txt"
    if not listing.exists():
        yield f"its {listing.name} is missing"
        return
    yield from _text_problem(meta_info(plan.windows, shrink, f" {PNG_LEVEL}"), listing)
    package = require("lmdb", "lmdb")
    try:
        with package.open(str(folder), readonly=True, lock=False) as opened, opened.begin(buffers=False) as transaction:
            for window in plan.windows:
                for problem in _png_problem(transaction.get(window.name.encode()) or b"", window, shrink):
                    yield f"{window.name}: {problem}"
    except (package.Error, OSError) as error:
        yield one_line(error)


_FILES: dict[str, Callable[[Plan], Iterator[tuple[Path, _Inside]]]] = {  # by target
    "basicsr": _files_with_meta_info,
    "folder": partial(_files_of_folders, lr_suffix="x{}"),
    "hf": _files_of_huggingface,
    "lmdb": _files_of_lmdb,
    "neosr": _files_of_folders,
    "trainner": _files_of_folders,
    "webdataset": _files_of_webdataset,
}
