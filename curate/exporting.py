"""Export: a core-set as the files that other tools read: its windows cut out, HR and LR beside each other.

    folder           HR/NAME.png, LR_bicubic/X2/NAMEx2.png               kair.json      as DIV2K: EDSR and its kin, KAIR
    basicsr          HR/NAME.png, LR_bicubic/X2/NAME.png, meta_info.txt  basicsr.yml
    neosr, trainner  HR/NAME.png, LR_bicubic/X2/NAME.png                 neosr.toml, trainner.yml
    lmdb             HR.lmdb/, LR_bicubic_X2.lmdb/: a PNG by its NAME    basicsr.yml, neosr.toml
    webdataset       shards/000000.tar: NAME.{hr.png,json,lr2.png}       read.py        rank, score, weight in the json
    hf               data/train-00000-of-00003.parquet                   README.md      the same as columns

In each of them `export.json` says what it is and comes first; `manifest.parquet` (ranks, scores, weights, recipe) comes
last. NAME is the rank and the patch_id, `000012_0123456789abcdef_240_0_480`: sorted by name is ranked, so that the
first n names are the core-set of n. It has no space, dot or letter beyond ASCII, which one reader or another cuts at.

The LR is the crop of the whole photograph's, as in `curate train`: the store's own where it was ingested with one, and
MATLAB's bicubic otherwise. A window whose edges are not on the LR grid is cut inward to it, so that every HR image is
`scale` times its LR image and nothing is shifted; edges that are multiples of 12 lose nothing. Windows overlap, and so
do the images: pixels under several windows are written as often, as those tools expect of sub-images. Nothing can be
linked, for a store keeps photographs in tar shards.

A file with its final name is whole. The same export, run again, keeps what is there and ends with the same bytes as one
that was not interrupted.
"""

import contextlib
import importlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from PIL import Image

from curate import files, images, pool, reuse, schema, stubs
from curate.errors import CurateError, DataError, UsageError, listed, one_line
from curate.manifest import Manifest
from curate.progress import Progress, silent
from curate.resize import downscale
from curate.schema import ExportRecord
from curate.shards import write_members, write_tar
from curate.storage import Place
from curate.store import Store
from curate.tensors import crop_to_multiple, to_pixels, to_tensor

__all__ = ["SCALES", "ExportReport", "check", "export", "remove_damaged", "target"]

SCALES = (2, 3, 4)

_RECORD = "export.json"
_VERSION = 1  # raise it when the same windows begin to give other files
_SIDECAR = "manifest.parquet"
_PATCH_ID = re.compile(r"[0-9a-f]{16}_\d+_\d+_\d+")
_PNG_LEVEL = 1  # of zlib: 3.6 times as fast as 6 on photographs, 2.5 % more bytes
_CHUNK_BYTES = 1 << 28  # of pixels, decoded, in a tar or Parquet file; as PNG about half
_ROW_GROUP = 100  # rows: 60 MB of 480-px windows; the `datasets` library makes them 100 MB at most

_Pixels = npt.NDArray[np.uint8]  # HWC, sRGB


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
    if to not in _TARGETS:
        raise UsageError(f"no target '{one_line(to)}' to export to; there are: {listed(_TARGETS)}")
    if scale is not None and scale not in SCALES:
        raise UsageError(f"scale {scale} asked for; there are: {listed(SCALES)}, and none for HR alone")
    target = _TARGETS[to]
    for package in target.needs:
        _require(package, to)
    manifest = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
    source = store if isinstance(store, Store) else manifest.store(store)
    manifest.verify(source)
    windows = _windows(manifest, scale)
    lrs = [cell.xxh3 for i in manifest.table["image_id"].unique().to_pylist() for cell in source.cells(i, f"lr{scale}")]
    record = ExportRecord(
        target=to, scale=scale, windows=len(windows), digest=_digest(manifest), lr=_lr_digest(lrs), version=_VERSION
    )
    with _claimed(out, record) as folder:
        job = _Job(source, folder, scale, windows, progress)
        target.write(job)
        made = tuple(folder / name for name in target.stubs)
        for path in made:
            _keep_or_write(path, target.stubs[path.name](job))
        if not (folder / _SIDECAR).exists():
            _located(manifest, source).save(folder / _SIDECAR)
    weighted = pc.count_distinct(manifest.table["weight"]).as_py() > 1
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return ExportReport(folder, len(windows), job.kept, size, made, weighted and not target.weights)


# What is cut


class _Window(NamedTuple):
    """One row of the manifest, cut inward to the LR grid."""

    name: str
    patch_id: str
    image_id: str
    rank: int
    score: float | None
    weight: float
    y: int  # HR px, as the three below
    x: int
    height: int
    width: int


class _Cut(NamedTuple):
    """A window's files."""

    window: _Window
    hr: bytes  # PNG
    lr: bytes | None


def _windows(manifest: Manifest, scale: int | None) -> list[_Window]:
    rows = manifest.table.to_pylist()
    if not rows:
        raise UsageError("the manifest has no windows to export")
    digits = max(6, len(str(rows[-1]["rank"])))  # rows are sorted by rank
    windows = [_window(row, digits, scale or 1) for row in rows]
    for a, b in pairwise(windows):
        if a.rank == b.rank:
            raise DataError(f"the manifest has two patches of rank {a.rank}: '{a.patch_id}' and '{b.patch_id}'")
    return windows


def _window(row: dict[str, Any], digits: int, scale: int) -> _Window:
    patch_id = row["patch_id"]
    if not _PATCH_ID.fullmatch(patch_id) or row["rank"] < 0:  # it becomes a file's name
        raise DataError(f"the manifest's patch '{one_line(patch_id)}' of rank {row['rank']} is not one of a store")
    top, left = (-(-row[axis] // scale) * scale for axis in "yx")
    bottom, right = ((row[axis] + row["size"]) // scale * scale for axis in "yx")
    if min(bottom - top, right - left) < scale:
        raise UsageError(f"a window of {row['size']} px has no pixel of its own at x{scale}; take larger windows")
    return _Window(
        name=f"{row['rank']:0{digits}}_{patch_id}",
        patch_id=patch_id,
        image_id=row["image_id"],
        rank=row["rank"],
        score=row["score"],
        weight=row["weight"],
        y=top,
        x=left,
        height=bottom - top,
        width=right - left,
    )


def _lr_digest(hashes: list[int]) -> str | None:
    """Of LR images that the store has; HR images are in the ids."""
    return xxhash.xxh3_128_hexdigest(np.array(hashes, "<u8").tobytes()) if hashes else None


def _digest(manifest: Manifest) -> str:
    digest = xxhash.xxh3_128(manifest.digest().encode())
    for name in ("rank", "score"):
        digest.update(manifest.table[name].to_numpy().astype("<f8").tobytes())
    return digest.hexdigest()


def _by_photograph(windows: list[_Window]) -> list[list[_Window]]:
    found: dict[str, list[_Window]] = {}
    for window in windows:
        found.setdefault(window.image_id, []).append(window)
    return list(found.values())


def _png(pixels: _Pixels, window: _Window, shrink: int) -> bytes:
    """The window's pixels of an image `shrink` times smaller than the HR image, as a file."""
    y, x, height, width = (length // shrink for length in (window.y, window.x, window.height, window.width))
    cut = pixels[y : y + height, x : x + width]
    if min(y, x) < 0 or cut.shape[:2] != (height, width):
        size = f"{pixels.shape[0]}x{pixels.shape[1]}"
        raise DataError(f"the manifest's patch '{window.patch_id}' is not inside its image, x{shrink} {size}")
    file = io.BytesIO()
    Image.fromarray(cut).save(file, "PNG", compress_level=_PNG_LEVEL)
    return file.getvalue()


class _Job:
    """One export under way: what to cut, where to, and how far it is."""

    def __init__(
        self, store: Store | None, out: Path, scale: int | None, windows: list[_Window], progress: Progress
    ) -> None:
        self._store = store  # None where nothing is cut
        self.out = out
        self.scale = scale
        self.windows = windows
        self.done = 0
        self.kept = 0
        self._progress = progress

    @property
    def store(self) -> Store:
        assert self._store is not None
        return self._store

    def advance(self, number: int, kept: int = 0) -> None:
        """`number` more windows are finished, `kept` of them were there already."""
        self.done += number
        self.kept += kept
        self._progress(self.done, len(self.windows), f"{self.kept} there already" if self.kept else "")

    def lr_name(self, separator: str) -> str:
        """`LR_bicubic/X2`: where the LR lie."""
        return f"LR_bicubic{separator}X{self.scale}"

    def cut(self, windows: list[_Window]) -> Iterator[_Cut]:
        """The files of windows of one photograph, which is decoded once. Called by several threads."""
        if not windows:
            return
        image_id = windows[0].image_id
        hr = self.store.pixels(image_id)
        lr = self._lr(image_id, hr, self.scale) if self.scale else None
        for window in windows:
            yield _Cut(window, _png(hr, window, 1), None if lr is None else _png(lr, window, self.scale or 1))

    def _lr(self, image_id: str, hr: _Pixels, scale: int) -> _Pixels:
        """As `curate.loader` has it."""
        role = f"lr{scale}"
        if self.store.cell(image_id, role):
            return self.store.pixels(image_id, role)
        return to_pixels(downscale(crop_to_multiple(to_tensor(hr))[None], scale)[0])

    def chunks(self) -> list[list[_Window]]:
        """The windows, best first, in parts that fit into one file."""
        chunks: list[list[_Window]] = []
        room = 0
        for window in self.windows:
            size = window.height * window.width * 3
            if size > room:
                chunks.append([])
                room = _CHUNK_BYTES
            chunks[-1].append(window)
            room -= size
        return chunks

    def cut_chunk(self, windows: list[_Window]) -> list[_Cut]:
        """The files of all windows of a chunk, in its order; advances."""
        found = {}
        for cuts in pool.ahead(lambda mine: list(self.cut(mine)), _by_photograph(windows)):
            found.update({cut.window.rank: cut for cut in cuts})
            self.advance(len(cuts))
        return [found[window.rank] for window in windows]

    def data(self, *, lmdb: bool = False, meta_info: bool = False) -> stubs.Data:
        """What the config stubs tell."""
        out = self.out.resolve()
        hr, lr = (out / "HR.lmdb", out / f"{self.lr_name('_')}.lmdb") if lmdb else (out / "HR", out / self.lr_name("/"))
        return stubs.Data(
            hr=hr,
            lr=lr if self.scale else None,
            scale=self.scale,
            side=min(min(window.height, window.width) for window in self.windows),
            num_images=len(self.windows),
            meta_info=out / "meta_info.txt" if meta_info else None,
            lmdb=lmdb,
        )


# Where it goes: one function a layout


def _write_folders(job: _Job, lr_suffix: str = "") -> None:
    """A PNG a window; `lr_suffix`, with the scale put in, ends the LR's names."""

    def write(windows: list[_Window]) -> tuple[int, int]:
        missing = [window for window in windows if not all(path.exists() for path in _paths(job, window, lr_suffix))]
        for cut in job.cut(missing):
            for path, data in zip(_paths(job, cut.window, lr_suffix), cut[1:], strict=False):
                if data is not None and not path.exists():
                    files.publish_bytes(path, data)
        return len(windows), len(windows) - len(missing)

    for number, kept in pool.ahead(write, _by_photograph(job.windows)):
        job.advance(number, kept)


def _paths(job: _Job, window: _Window, lr_suffix: str) -> list[Path]:
    """The files of a window."""
    hr = job.out / "HR" / f"{window.name}.png"
    lr = job.out / job.lr_name("/") / f"{window.name}{lr_suffix.format(job.scale)}.png"
    return [hr, lr] if job.scale else [hr]


def _write_meta_info(job: _Job) -> None:
    _write_folders(job)
    _keep_or_write(job.out / "meta_info.txt", _meta_info(job.windows, 1))


def _meta_info(windows: list[_Window], shrink: int, end: str = "") -> str:
    """BasicSR's list: file name, a space, the shape without spaces. Readers split at the first space or dot."""
    return "".join(f"{w.name}.png ({w.height // shrink},{w.width // shrink},3){end}\n" for w in windows)


def _write_chunks(job: _Job, name: Callable[[int, int], str], write: Callable[[Path, list[_Cut]], None]) -> None:
    """One file a chunk: `name` gives its path from its number and how many there are."""
    chunks = job.chunks()
    for number, windows in enumerate(chunks):
        path = job.out / name(number, len(chunks))
        if path.exists():
            job.advance(len(windows), len(windows))
        else:
            write(path, job.cut_chunk(windows))


def _write_webdataset(job: _Job) -> None:
    def write(path: Path, cuts: list[_Cut]) -> None:
        members = {}
        for window, hr, lr in cuts:
            members[f"{window.name}.hr.png"] = hr
            if lr is not None:
                members[f"{window.name}.lr{job.scale}.png"] = lr
            members[f"{window.name}.json"] = json.dumps(_facts(window)).encode()
        write_tar(path, sorted(members.items()))

    _write_chunks(job, _tar_name, write)


def _tar_name(number: int, total: int) -> str:
    return f"shards/{number:06}.tar"


def _facts(window: _Window) -> dict[str, Any]:
    """What a sample of WebDataset says beside its images."""
    return {name: getattr(window, name) for name in ("rank", "patch_id", "score", "weight")}


# Columns beside the images, for Hugging Face.
_FACTS = {
    "rank": pa.int64(),
    "patch_id": pa.string(),
    "image_id": pa.string(),
    "score": pa.float64(),
    "weight": pa.float32(),
}


def _write_huggingface(job: _Job) -> None:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = ["hr", "lr"] if job.scale else ["hr"]
    # How the `datasets` library is told that a struct of bytes and path is an image.
    features: dict[str, dict[str, str]] = {name: {"_type": "Image"} for name in columns}
    features |= {name: {"dtype": _dtype(kind), "_type": "Value"} for name, kind in _FACTS.items()}
    layout = pa.schema(
        [*((name, image) for name in columns), *_FACTS.items()],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )

    def write(path: Path, cuts: list[_Cut]) -> None:
        rows = [
            {"hr": {"bytes": hr, "path": f"{window.name}.png"}, "lr": {"bytes": lr, "path": f"{window.name}.png"}}
            | {name: getattr(window, name) for name in _FACTS}
            for window, hr, lr in cuts
        ]
        table = pa.Table.from_pylist(rows, layout)
        files.publish(path, partial(_write_parquet, table, list(_FACTS)))

    _write_chunks(job, _parquet_name, write)


def _parquet_name(number: int, total: int) -> str:
    return f"data/train-{number:05}-of-{total:05}.parquet"


def _dtype(kind: pa.DataType) -> str:
    return {pa.float64(): "float64", pa.float32(): "float32"}.get(kind, str(kind))


def _write_parquet(table: pa.Table, facts: list[str], file: Any) -> None:
    """PNG is compressed already, and statistics over it are of no use."""
    pq.write_table(
        table,
        file,
        compression="none",
        use_dictionary=False,
        write_statistics=facts,
        row_group_size=_ROW_GROUP,
        write_page_checksum=True,
    )


def _write_lmdb(job: _Job) -> None:
    """One environment for HR and one for LR, as BasicSR makes them, but for lock.mdb: readers open without a lock."""
    shrinks = {"HR.lmdb": 1} | ({f"{job.lr_name('_')}.lmdb": job.scale} if job.scale else {})
    missing = [name for name in shrinks if not (job.out / name).exists()]
    partial_folders = {name: job.out / f".{name}.partial" for name in shrinks}
    _remove(partial_folders.values())  # what a killed run left
    if not missing:
        job.advance(len(job.windows), len(job.windows))
        return
    try:
        with contextlib.ExitStack() as stack:
            opened = {name: stack.enter_context(_lmdb(partial_folders[name], job.windows)) for name in missing}
            for windows in job.chunks():
                cuts = job.cut_chunk(windows)
                for name, environment in opened.items():
                    with environment.begin(write=True) as transaction:
                        for window, hr, lr in cuts:
                            data = hr if shrinks[name] == 1 else lr
                            transaction.put(window.name.encode("ascii"), data, append=True)  # names ascend
        for name in missing:
            text = _meta_info(job.windows, shrinks[name], f" {_PNG_LEVEL}")
            files.publish_bytes(partial_folders[name] / "meta_info.txt", text.encode())
            partial_folders[name].rename(job.out / name)
            files.sync_folder(job.out)
    except _require("lmdb", "lmdb").Error as error:
        problem = one_line(error).rpartition(": ")[2]  # LMDB says "Input/output error" of a full disk, too
        hint = "is the disk full? The same command goes on"
        raise CurateError(f"cannot write into '{one_line(job.out)}': {problem}; {hint}") from None
    finally:
        _remove(partial_folders.values())


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _lmdb(folder: Path, windows: list[_Window]) -> Any:
    """A new environment. Its map is address space, not disk: twice the pixels, and two pages of 64 KiB an image."""
    size = sum(2 * window.height * window.width * 3 + (1 << 17) for window in windows)
    return _require("lmdb", "lmdb").open(str(folder), map_size=size + (1 << 24), lock=False)


# The folder


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
        path = folder / _RECORD
        if path.is_file():
            found = schema.parse(ExportRecord, path.read_bytes(), path)
            if found != (record if found.lr else record.model_copy(update={"lr": None})):  # older ones do not say
                other = reuse.differences(_entries(found), _entries(record))
                raise UsageError(f"'{one_line(folder)}' holds another export: {other}; name a new or empty folder")
        elif not all(entry.match(f".{_RECORD}.*.tmp") for entry in folder.iterdir()):
            raise UsageError(f"'{one_line(folder)}' holds other things, and no {_RECORD}; name a new or empty folder")
        files.remove_leftovers(folder)
        _keep_or_write(path, schema.dump(record, indent=2).decode())
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


def _keep_or_write(path: Path, text: str) -> None:
    if not path.exists():
        files.publish_bytes(path, text.encode("utf-8", "surrogateescape"))


def _located(manifest: Manifest, store: Store) -> Manifest:
    """The manifest with its store where it was found now."""
    reference = manifest.recipe.store.model_copy(update={"url": str(store.path.resolve())})
    return Manifest(manifest.table, manifest.recipe.model_copy(update={"store": reference}))


def _require(package: str, target: str) -> Any:
    """A package that is an extra of curate."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UsageError(f"target {target} needs the package '{package}': pip install 'curate[{package}]'") from None


# Is all there?


def check(path: str | Place, deep: bool) -> tuple[list[Place], list[tuple[Place, str]]]:
    """The files of an export that were looked at, and what is wrong with which; with `deep` by their contents.

    Images have checksums of their own. The configurations beside them are for the user to change, and not looked into.
    Raises UsageError for a URL, and where the package of an LMDB is missing.
    """
    folder = files.local_path(str(path), "an export")
    try:
        data = (folder / _RECORD).read_bytes()
        record = schema.parse(ExportRecord, data, _RECORD)
        if not schema.is_as_written(record, data, indent=2) or record.target not in _TARGETS:
            return [folder / _RECORD], [(folder / _RECORD, "it is not as curate writes it")]
    except DataError as error:
        return [folder / _RECORD], [(folder / _RECORD, str(error))]
    sidecar = folder / _SIDECAR
    if not sidecar.exists():
        return [folder / _RECORD], [(sidecar, "the export has not ended: run it again")]
    try:
        manifest = Manifest.load(sidecar)
        windows = _windows(manifest, record.scale)
    except CurateError as error:
        return [folder / _RECORD, sidecar], [(sidecar, str(error))]
    if _digest(manifest) != record.digest or len(windows) != record.windows:
        return [folder / _RECORD, sidecar], [(sidecar, f"it is not the manifest that {_RECORD} tells of")]
    job = _Job(None, folder, record.scale, windows, silent)
    found = list[Place]()
    problems = list[tuple[Place, str]]()
    if deep and not Manifest.is_as_written(sidecar):
        problems.append((sidecar, "its bytes are not those that are written for its rows"))
    target = _TARGETS[record.target]
    for file, inside in target.files(job):
        found.append(file)
        if not file.exists():
            problems.append((file, "missing"))
        elif deep:
            with contextlib.suppress(StopIteration):
                problems.append((file, next(inside(file))))
    problems += [(folder / name, "missing") for name in target.stubs if not (folder / name).exists()]
    return [folder / _RECORD, sidecar, *found], problems


def remove_damaged(path: str | Place) -> list[Path]:
    """Remove the files of an export that are damaged, so that `export` makes them again; returns them."""
    folder = files.local_path(str(path), "an export")
    unwanted = [file for file, _ in check(folder, True)[1] if isinstance(file, Path) and file.exists()]
    with files.lock(folder):
        for file in unwanted:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    return unwanted


def target(path: str | Place) -> str:
    """The target of an export, `TARGET` if its record cannot be read."""
    folder = files.local_path(str(path), "an export")
    try:
        return schema.parse(ExportRecord, (folder / _RECORD).read_bytes(), _RECORD).target
    except DataError:
        return "TARGET"


_Inside = Callable[[Path], Iterator[str]]  # what is wrong with the contents of a file


def _png_problem(data: bytes, window: _Window, shrink: int) -> Iterator[str]:
    try:
        shape = images.decode(data).shape[:2]
    except DataError as error:
        yield str(error)
        return
    if shape != (window.height // shrink, window.width // shrink):
        yield f"it is of {shape[0]}x{shape[1]} px"


def _shrinks(job: _Job) -> list[int]:
    return [1, job.scale] if job.scale else [1]


def _files_of_folders(job: _Job, lr_suffix: str = "") -> Iterator[tuple[Path, _Inside]]:
    for window in job.windows:
        for file, shrink in zip(_paths(job, window, lr_suffix), _shrinks(job), strict=True):
            yield file, lambda file, window=window, shrink=shrink: _png_problem(file.read_bytes(), window, shrink)  # type: ignore[misc]


def _files_with_meta_info(job: _Job) -> Iterator[tuple[Path, _Inside]]:
    yield from _files_of_folders(job)
    yield job.out / "meta_info.txt", partial(_text_problem, _meta_info(job.windows, 1))


def _text_problem(text: str, file: Path) -> Iterator[str]:
    if file.read_bytes() != text.encode():
        yield "it is not as it is written"


def _files_of_webdataset(job: _Job) -> Iterator[tuple[Path, _Inside]]:
    for number, windows in enumerate(job.chunks()):
        yield job.out / _tar_name(number, 0), partial(_tar_problems, job, windows)


def _tar_problems(job: _Job, windows: list[_Window], file: Path) -> Iterator[str]:
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
    expected = {f"{window.name}.json": json.dumps(_facts(window)).encode() for window in windows}
    if any(members.get(name) != text for name, text in expected.items()):
        yield "its ranks, scores or weights are not those of the manifest"
    for window in windows:
        for name, shrink in zip(("hr", f"lr{job.scale}"), _shrinks(job), strict=False):
            for problem in _png_problem(members.get(f"{window.name}.{name}.png", b""), window, shrink):
                yield f"{window.name}.{name}.png: {problem}"


def _files_of_huggingface(job: _Job) -> Iterator[tuple[Path, _Inside]]:
    chunks = job.chunks()
    for number, windows in enumerate(chunks):
        yield job.out / _parquet_name(number, len(chunks)), partial(_parquet_problems, job, windows)


def _parquet_problems(job: _Job, windows: list[_Window], file: Path) -> Iterator[str]:
    try:
        table, created_by = pq.read_table(file, page_checksum_verification=True), pq.read_metadata(file).created_by
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        yield one_line(error)
        return
    again = io.BytesIO()
    _write_parquet(table, list(_FACTS), again)
    if pq.read_metadata(again).created_by == created_by and again.getbuffer() != file.read_bytes():
        yield "its bytes are not those that are written for its rows"
    if table["patch_id"].to_pylist() != [window.patch_id for window in windows]:
        yield "its windows are not those of the manifest"
        return
    for row, window in zip(table.to_pylist(), windows, strict=True):
        for name, shrink in zip(("hr", "lr"), _shrinks(job), strict=False):
            for problem in _png_problem(row[name]["bytes"], window, shrink):
                yield f"{name} of {window.patch_id}: {problem}"


def _files_of_lmdb(job: _Job) -> Iterator[tuple[Path, _Inside]]:
    for name, shrink in zip(("HR.lmdb", f"{job.lr_name('_')}.lmdb"), _shrinks(job), strict=False):
        yield job.out / name, partial(_lmdb_problems, job, shrink)


def _lmdb_problems(job: _Job, shrink: int, folder: Path) -> Iterator[str]:
    yield from _text_problem(_meta_info(job.windows, shrink, f" {_PNG_LEVEL}"), folder / "meta_info.txt")
    package = _require("lmdb", "lmdb")
    try:
        with package.open(str(folder), readonly=True, lock=False) as opened, opened.begin(buffers=False) as transaction:
            for window in job.windows:
                for problem in _png_problem(transaction.get(window.name.encode()) or b"", window, shrink):
                    yield f"{window.name}: {problem}"
    except (package.Error, OSError) as error:
        yield one_line(error)


# The targets


@dataclass(frozen=True)
class _Target:
    """A layout and the stubs that come with it."""

    write: Callable[[_Job], None]
    files: Callable[[_Job], Iterator[tuple[Path, _Inside]]]  # what it has written, and what may be wrong inside
    stubs: dict[str, Callable[[_Job], str]]  # file name -> its text
    weights: bool = False  # whether what reads it gets the windows' weights
    needs: tuple[str, ...] = ()  # packages that are extras of curate


_TARGETS = {
    "basicsr": _Target(
        _write_meta_info, _files_with_meta_info, {"basicsr.yml": lambda job: stubs.basicsr(job.data(meta_info=True))}
    ),
    "folder": _Target(
        partial(_write_folders, lr_suffix="x{}"),
        partial(_files_of_folders, lr_suffix="x{}"),
        {"kair.json": lambda job: stubs.kair(job.data())},
    ),
    "hf": _Target(
        _write_huggingface,
        _files_of_huggingface,
        {"README.md": lambda job: stubs.huggingface(job.out.resolve().name, job.scale)},
        weights=True,
    ),
    "lmdb": _Target(
        _write_lmdb,
        _files_of_lmdb,
        {
            "basicsr.yml": lambda job: stubs.basicsr(job.data(lmdb=True)),
            "neosr.toml": lambda job: stubs.neosr(job.data(lmdb=True)),
        },
        needs=("lmdb",),
    ),
    "neosr": _Target(_write_folders, _files_of_folders, {"neosr.toml": lambda job: stubs.neosr(job.data())}),
    "trainner": _Target(_write_folders, _files_of_folders, {"trainner.yml": lambda job: stubs.trainner(job.data())}),
    "webdataset": _Target(
        _write_webdataset, _files_of_webdataset, {"read.py": lambda job: stubs.webdataset(job.scale)}, weights=True
    ),
}
