"""What the user calls photographs: folders, files, tar files and fsspec URLs, as one sorted list.

    what is named              what is taken                                        source       name
    photos/                    files below it with an image ending                  photos       train/0001.png
    photos/train/0001.png      that file, whatever its ending                       train        0001.png
    photos.tar, .tar.gz, .tgz  members with an image ending                         photos.tar   train/0001.png
    s3://bucket/photos, ...    the same three, by URL                               photos       train/0001.png

Hidden files and folders (`.name`) and other endings are passed over and counted. A tar file is never unpacked into
the file system: only the bytes of regular members are read, links and devices are not, and member names are text.
A compressed tar file cannot be read from the middle, so `find` writes it, decompressed, to a nameless temporary file,
which lives as long as its sources do and makes them impossible to pickle.
"""

import errno
import gzip
import os
import tempfile
import weakref
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, cast

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem

from curate import storage
from curate.errors import DataError, UsageError, listed, one_line
from curate.images import MAX_BYTES, SUFFIXES
from curate.members import Member, members

__all__ = ["Found", "PairedFolder", "Source", "benchmark_name", "find", "hr_folder"]


class _File(Protocol):
    """Where the bytes of a source lie: hashable, equal for the same file."""

    def read(self, start: int, size: int | None) -> bytes:
        """`size` bytes (None: all) from byte `start`, or as many as there are. Raises OSError."""
        ...


@dataclass(frozen=True, slots=True)
class _Stored:
    """A file of a file system; a local one by its resolved path.

    It is pickled as names alone: a file system may hold credentials that fsspec's own settings gave it, and another
    process has its own.
    """

    fs: AbstractFileSystem
    path: str
    url: str = field(default="", compare=False)  # that the file system is found by; of a local one ""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return _stored, (self.path, self.url)

    def read(self, start: int, size: int | None) -> bytes:
        if isinstance(self.fs, LocalFileSystem):
            if size is None and (found := os.path.getsize(self.path)) > MAX_BYTES:  # noqa: PTH202 - for every photograph
                raise _too_large(found)
            return self._read(start, size)
        return storage.retried(lambda: self._read(start, size), str(self.fs.unstrip_protocol(self.path)))

    def _read(self, start: int, size: int | None) -> bytes:
        if size is None:
            return cast(bytes, self.fs.cat_file(self.path))
        return cast(bytes, self.fs.cat_file(self.path, start=start, end=start + size))

    def open(self) -> BinaryIO:
        return cast(BinaryIO, self.fs.open(self.path, "rb"))


def _stored(path: str, url: str) -> _Stored:
    return _Stored(storage.file_system(url)[0] if url else _LOCAL, path, url)


@dataclass(frozen=True)
class _Decompressed:
    """What a compressed file holds, in a temporary file that is closed, and so is gone, when nobody refers to it."""

    origin: _Stored
    file: BinaryIO = field(compare=False)

    def __post_init__(self) -> None:
        weakref.finalize(self, self.file.close)

    def read(self, start: int, size: int | None) -> bytes:
        assert size is not None  # members only
        return os.pread(self.file.fileno(), size, start)  # threads share the file's position, which pread leaves alone


@dataclass(frozen=True, slots=True)
class Source:
    """One photograph, not read yet."""

    source: str  # where it came from: base name of the folder, of the tar file, or of a single file's folder
    name: str  # path below that, with '/'; one printable line
    file: _File  # the file, or the tar file that holds it
    start: int = 0  # where in `file` it starts, byte
    size: int | None = None  # bytes; None for the whole file

    @property
    def suffix(self) -> str:
        """The file ending in lower case, '.png'; '' for none."""
        return _suffix(self.name)

    @property
    def is_everywhere(self) -> bool:
        """Whether other processes can read it: it is neither in a compressed tar file nor in this one's memory."""
        return isinstance(self.file, _Stored) and not isinstance(self.file.fs, MemoryFileSystem)

    def read(self) -> bytes:
        """The bytes of the photograph's file. Raises OSError if they cannot be read, or are too many."""
        if self.size is not None and self.size > MAX_BYTES:
            raise _too_large(self.size)
        data = self.file.read(self.start, self.size)
        if self.size is not None and len(data) != self.size:
            raise OSError("the tar file has changed since it was listed")
        return data


@dataclass(frozen=True, slots=True)
class Found:
    """What `find` found."""

    sources: list[Source]
    ignored: int  # files passed over: hidden, or of an ending that is no image's; a hidden folder counts as one


def _too_large(size: int) -> OSError:
    return OSError(errno.EFBIG, f"{size} bytes are more than an image may have; the limit is {MAX_BYTES}")


def find(paths: Sequence[str | Path]) -> Found:
    """All photographs of `paths`, in that order, and within each by name in code-point order.

    The same file met twice, through symbolic links too, is listed where it was met first. Raises UsageError for a path
    that does not exist, has no images, or needs a package that is not installed; DataError for a damaged tar file.
    """
    if not paths:
        raise UsageError("no photographs were named; name folders, files, tar files or URLs")
    sources: dict[tuple[_File, int], Source] = {}
    ignored = 0
    for path in paths:
        found = _find_one(path)
        ignored += found.ignored
        for source in found.sources:
            sources.setdefault((source.file, source.start), source)
    return Found(list(sources.values()), ignored)


def hr_folder(folder: str | Path) -> str | Path:
    """Where the HR images of a test set are: `HR` below `folder`, where that is a benchmark's, or `folder` itself."""
    hr = Path(folder) / "HR"
    # os.path.isdir: Path.is_dir raises on a name that is too long or may not be read
    return hr if os.path.isdir(hr) else folder  # noqa: PTH112


def benchmark_name(folder: str | Path) -> str:
    """What a test set is called: `Set5` for `data/Set5`, `data/Set5/HR` and `s3://bucket/Set5`."""
    parts = [part for part in str(folder).split("/") if part] or [""]
    if parts[-1] in (".", "..", "HR") and "://" not in str(folder):
        parts = list(Path(folder).resolve().parts)
    if parts[-1] == "HR":
        parts.pop()
    return one_line(parts[-1])


@dataclass(frozen=True, slots=True)
class PairedFolder:
    """The low-resolution images of one scale, found by the names of their high-resolution images."""

    folder: str
    scale: int
    by_path: dict[str, list[Source]]  # name without its image ending -> images
    by_stem: dict[str, list[Source]]  # the same without folders

    @classmethod
    def open(cls, folder: str, scale: int) -> "PairedFolder":
        """List the images of `folder`, or whatever else `find` takes; raises what it does."""
        by_path: dict[str, list[Source]] = {}
        by_stem: dict[str, list[Source]] = {}
        for source in find([folder]).sources:
            stem = _without_ending(source.name)
            by_path.setdefault(stem, []).append(source)
            by_stem.setdefault(PurePosixPath(stem).name, []).append(source)
        return cls(folder, scale, by_path, by_stem)

    def lookup(self, name: str) -> Source | None:
        """The LR image of the HR image `name`, or None.

        For `sub/0001.png` and scale 2 these are tried, with any image ending, and the first that exists is taken:
        `sub/0001x2`, `0001x2` in any folder, `sub/0001`, `0001` in any folder. UsageError if several fit equally well.
        """
        path = _without_ending(name)
        stem = PurePosixPath(path).name
        mark = f"x{self.scale}"
        for table, key in (
            (self.by_path, path + mark),
            (self.by_stem, stem + mark),
            (self.by_path, path),
            (self.by_stem, stem),
        ):
            if key in table:
                return self._only(table[key], name)
        return None

    def _only(self, candidates: list[Source], name: str) -> Source:
        if len(candidates) > 1:
            names = listed(source.name for source in candidates)
            raise UsageError(
                f"'{one_line(self.folder)}' has several x{self.scale} images for '{one_line(name)}': {names}"
            )
        return candidates[0]


# --- one path ---------------------------------------------------------------------------------------------------------


def _find_one(path: str | Path) -> Found:
    shown = one_line(path)
    try:
        if "://" not in str(path):
            return _find_local(Path(path), shown)
        storage.refuse_credentials(str(path), "photographs")
        fs, root = storage.file_system(str(path))
        if isinstance(fs, LocalFileSystem):
            return _find_local(Path(root), shown)
        return storage.retried(lambda: _find_remote(fs, root, str(path), shown), str(path))
    except OSError as error:
        raise UsageError(f"cannot read '{shown}': {one_line(error)}") from None


def _find_local(path: Path, shown: str) -> Found:
    if path.is_dir():
        return _images(_walk(path), shown)
    if not path.exists():
        raise UsageError(f"'{shown}' does not exist")
    if not path.is_file():
        raise UsageError(f"'{shown}' is neither a folder nor a file")
    return _find_file(_local(path), path.name, _label(path.parent), shown)


def _find_remote(fs: AbstractFileSystem, root: str, url: str, shown: str) -> Found:
    path = PurePosixPath(root)
    # In this order: to a web server every address is a file, and may be a folder too.
    is_file = _is_tar(path.name) or _suffix(path.name) in SUFFIXES
    kind = storage.kind(url)
    if not is_file and kind == "directory":
        label, below = one_line(path.name) or shown, root.rstrip("/") + "/"
        names = ((n, one_line(n.removeprefix(below))) for n in fs.find(root))
        return _images((Source(label, name, _Stored(fs, n, url)) for n, name in names), shown)
    if kind is None:
        raise UsageError(f"'{shown}' does not exist")
    return _find_file(_Stored(fs, root, url), path.name, one_line(path.parent.name), shown)


def _find_file(file: _Stored, name: str, parent: str, shown: str) -> Found:
    if _is_tar(name):
        return _images(_members(file, name, shown), shown)
    return Found([Source(parent, one_line(name), file)], 0)


def _images(files: Iterable[Source | None], shown: str) -> Found:
    """Those of `files` that are images, by name; None stands for what cannot be one. UsageError if none is."""
    candidates = list(files)
    sources = [file for file in candidates if file and _suffix(file.name) in SUFFIXES and not _is_hidden(file.name)]
    ignored = len(candidates) - len(sources)
    if not sources:
        endings = ", ".join(sorted(SUFFIXES))
        raise UsageError(f"no images in '{shown}': {ignored} other files were found; endings looked for: {endings}")
    return Found(sorted(sources, key=lambda source: (source.name, source.start)), ignored)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _without_ending(name: str) -> str:
    """`name` without its ending, if that is an image's; `a.b.png` -> `a.b`, `a.b` as it is."""
    return name[: -len(_suffix(name))] if _suffix(name) in SUFFIXES else name


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


# --- local folders ----------------------------------------------------------------------------------------------------

_LOCAL = LocalFileSystem()


def _local(path: Path) -> _Stored:
    # realpath, because Path.resolve raises on a link that leads to itself.
    return _Stored(_LOCAL, os.path.realpath(path))


def _label(path: Path) -> str:
    """The base name, and for '.', '..' and the like what they stand for."""
    return one_line(path.name if path.name not in ("", "..") else path.resolve().name) or "/"


def _walk(root: Path) -> Iterator[Source | None]:
    """All files below `root`, through symbolic links too; None for a hidden folder, which is not entered, and the like.

    Breadth first, and a folder is entered once, however many links lead to it or around in circles.
    """
    label, entered, waiting = _label(root), set(), deque([("", root)])
    while waiting:
        prefix, folder = waiting.popleft()
        real = Path(os.path.realpath(folder))
        if real in entered:
            continue
        entered.add(real)
        with os.scandir(real) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = real / entry.name
                if not path.is_dir():
                    yield _entry_source(entry, path, label, prefix + entry.name)
                elif entry.name.startswith("."):
                    yield None
                else:
                    waiting.append((prefix + entry.name + "/", path))


def _entry_source(entry: os.DirEntry[str], path: Path, label: str, name: str) -> Source | None:
    if entry.is_file(follow_symlinks=False):
        return Source(label, one_line(name), _Stored(_LOCAL, str(path)))  # its folder is resolved already
    # A dead link is listed, so that reading it tells the reason; a pipe is not: reading it would wait for ever.
    return Source(label, one_line(name), _local(path)) if path.is_file() or not path.exists() else None


# --- tar files --------------------------------------------------------------------------------------------------------

_BLOCK = 1 << 20  # bytes decompressed at a time
_MAX_PACKED = 1 << 30  # bytes that a compressed tar file may grow to, whatever its size
_MAX_GROWTH = 200  # times its size that it may grow to beyond that: photographs hardly shrink at all


def _is_tar(name: str) -> bool:
    return name.lower().endswith((".tar", ".tar.gz", ".tgz"))


def _members(tar: _Stored, name: str, shown: str) -> list[Source | None]:
    """The regular members; None for what else there is, folders left out. DataError if the file is damaged or cut."""
    label = one_line(name)
    try:
        if name.lower().endswith(".tar"):
            with tar.open() as stream:
                return [_member(found, label, tar) for found in members(stream) if not found.is_folder]
        whole = _decompressed(tar, shown)
        return [_member(found, label, whole) for found in members(whole.file) if not found.is_folder]
    except ValueError as error:
        raise DataError(f"the tar file '{shown}' is damaged: {one_line(error)}") from None


def _member(found: Member, label: str, file: _File) -> Source | None:
    if not found.is_file:
        return None
    parts = (part for part in found.name.split("/") if part not in ("", ".", ".."))
    return Source(label, one_line("/".join(parts)), file, found.start, found.size)


def _decompressed(tar: _Stored, shown: str) -> _Decompressed:
    result = _Decompressed(tar, cast(BinaryIO, tempfile.TemporaryFile()))  # noqa: SIM115 - the result closes it
    try:
        with tar.open() as packed, gzip.open(packed) as stream:
            _copy(packed, cast(BinaryIO, stream), result.file, shown)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot decompress the tar file '{shown}': {one_line(error)}") from None
    result.file.seek(0)  # this flushes what Python still holds, and pread would not see
    return result


def _copy(packed: BinaryIO, stream: BinaryIO, target: BinaryIO, shown: str) -> None:
    """All of `stream`, which is what `packed` holds. DataError where that is out of all proportion."""
    size = 0
    while block := stream.read(_BLOCK):
        size += len(block)
        if size > max(_MAX_PACKED, _MAX_GROWTH * packed.tell()):
            raise DataError(
                f"the tar file '{shown}' grows to more than {_MAX_GROWTH} times its size when it is decompressed: "
                "if that is right, decompress it yourself"
            )
        target.write(block)
