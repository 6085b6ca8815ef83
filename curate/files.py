"""Writing files so that they are whole or absent, on a local file system.

`publish` is the only way in which curate writes into a store: temporary name, fsync, read back, rename, fsync of the
folder. A file that exists under its final name is complete. A writer holds a lock on its temporary file, so that one
whose writer was killed can be told from one that is being written.
"""

import contextlib
import errno
import fcntl
import glob
import os
import re
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import BinaryIO, Concatenate, ParamSpec

import xxhash

from curate.errors import CurateError, DataError, UsageError, one_line

__all__ = [
    "FAILING",
    "BusyError",
    "begin_to_sync",
    "file_hash",
    "local_path",
    "lock",
    "make_folder",
    "publish",
    "publish_bytes",
    "remove_leftovers",
    "remove_leftovers_of",
    "size_and_hash",
    "sync_folder",
]

FAILING = (errno.EDQUOT, errno.EIO, errno.ENOSPC)  # what a full or failing disk says, whatever path was given

_BLOCK = 1 << 20  # bytes read at a time
_FEW = 1 << 16  # bytes of a file that are read first
_RANDOM = "[0-9a-f]" * 16  # in a temporary file's name

_P = ParamSpec("_P")


class BusyError(CurateError):
    """Another process holds a lock."""


def local_path(path: str | Path, what: str) -> Path:
    """`path` as a local path; `what` ("a store", ...) is named in the error for a URL."""
    # A Path has made one slash of two. One letter before the colon is a drive.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise UsageError(f"{what} should be a local path, found the URL '{one_line(path)}'")
    return Path(path)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing; on return none of them can be lost by a power cut."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def _named(publish: Callable[Concatenate[Path, _P], str]) -> Callable[Concatenate[Path, _P], str]:
    """What the system says of a file that is published names that file: not its temporary one, and not none."""

    @wraps(publish)
    def named(path: Path, /, *args: _P.args, **kwargs: _P.kwargs) -> str:
        try:
            return publish(path, *args, **kwargs)
        except OSError as error:
            told = error.filename
            unsaid = told is None or str(told) == str(path.parent)
            if error.errno is not None and (unsaid or str(told).startswith(str(path.with_name(f".{path.name}.")))):
                error.filename = str(path)
            raise

    return named


@_named
def publish(path: Path, write: Callable[[BinaryIO], object], *, new: bool = False) -> str:
    """Write a file by calling `write` on a temporary one, and give it its name only when it is safely on disk.

    Returns the xxh3-128 hash (hex) of what was read back. Folders are made as needed. Raises DataError if the bytes
    read back are not as many as were written, OSError as the file system does, with the name of this file;
    FileExistsError where the file should be `new` and another process was first.
    """
    make_folder(path.parent)
    with _temporary(path) as file:  # and its lock, until it has its name
        temporary = Path(file.name)
        try:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            written = file.tell()
            digest = file_hash(temporary)
            if temporary.stat().st_size != written:
                raise DataError(f"wrote {written} bytes of {path.name}, read back {temporary.stat().st_size}")
            if new:
                _name_new(temporary, path)
            else:
                temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):  # a disk that fails at this too: what went wrong first is told
                temporary.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)
    return digest


def begin_to_sync(file: BinaryIO, start: int, end: int) -> None:
    """Have the system begin to put these bytes of an open file on disk, so that its sync will find little to wait for.

    Measured on shards of 256 MB: 30 ms instead of 230. What is on disk for certain is so by a sync alone.
    """
    file.flush()
    if hasattr(os, "posix_fadvise"):  # not on macOS
        # Bytes that wait to be written are not dropped: the advice only starts their way to the disk.
        os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)


def _temporary(path: Path) -> BinaryIO:
    """A new file beside `path`, locked where the file system can."""
    while True:
        # The name is random so that no two machines share one.
        file = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp").open("xb")
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:  # else it was taken for a leftover before it was locked
            return file
        file.close()


def _name_new(temporary: Path, path: Path) -> None:
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.replace(path)
    else:
        temporary.unlink()


def publish_bytes(path: Path, data: bytes, *, new: bool = False) -> str:
    """`publish` for content that is already in memory; checks that the very same bytes are read back."""

    def write(file: BinaryIO) -> None:
        file.write(data)

    digest = publish(path, write, new=new)
    if digest != xxhash.xxh3_128_hexdigest(data):
        path.unlink()
        raise DataError(f"{path.name}: the bytes read back are not those written; is the disk failing?")
    return digest


def file_hash(path: str | Path) -> str:
    """xxh3-128 of a file's bytes, in hex."""
    return size_and_hash(path)[1]


def size_and_hash(path: str | Path) -> tuple[int, str]:
    """How many bytes a file has, and their xxh3-128 in hex. Of a pipe that nobody writes to there are none."""
    digest, size, wanted = xxhash.xxh3_128(), 0, _FEW
    # Thousands of small files are read so: a file object, or room for a whole block, takes as long as what is read.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        while block := os.read(descriptor, wanted):
            digest.update(block)
            size, wanted = size + len(block), _BLOCK if len(block) == wanted else wanted
        return size, digest.hexdigest()
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that killed writers left below `folder`; those that are being written stay."""
    for path in folder.rglob(".*.tmp"):
        _remove_dead(path)


def remove_leftovers_of(path: Path) -> None:
    """Delete the temporary files that killed writers of this very file left beside it."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{_RANDOM}.tmp"):
        _remove_dead(leftover)


def _remove_dead(temporary: Path) -> None:
    with contextlib.suppress(OSError), temporary.open("rb") as file:  # gone meanwhile, or its writer holds it
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.unlink()


@contextlib.contextmanager
def lock(folder: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold `folder` for writing, alone or `shared` with others who do; the system frees it if this process dies.

    If another process holds it otherwise, `wait` for its end, or raise BusyError.
    """
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, kind)
        except BlockingIOError:
            raise BusyError(f"another curate is writing to '{one_line(folder)}'; wait for its end") from None
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk: what was renamed or removed there stays so when the power fails."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(folder)  # the system knows a number alone
        raise
    finally:
        os.close(descriptor)
