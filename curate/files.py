"""Writing files so that they are whole or absent, on a local file system.

`publish` is the only way in which curate writes into a store: temporary name, fsync, read back, rename, fsync of the
folder. A file that exists under its final name is complete.
"""

import contextlib
import errno
import fcntl
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
    "file_hash",
    "local_path",
    "lock",
    "publish",
    "publish_bytes",
    "remove_leftovers",
]

FAILING = (errno.EDQUOT, errno.EIO, errno.ENOSPC)  # what a full or failing disk says, whatever path was given

_BLOCK = 1 << 20  # bytes read at a time

_P = ParamSpec("_P")


class BusyError(CurateError):
    """Another process holds a lock."""


def local_path(path: str | Path, what: str) -> Path:
    """`path` as a local path; `what` ("a store", ...) is named in the error for a URL."""
    # A Path has made one slash of two. One letter before the colon is a drive.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise UsageError(f"{what} should be a local path, found the URL '{one_line(path)}'")
    return Path(path)


def _named(publish: Callable[Concatenate[Path, _P], str]) -> Callable[Concatenate[Path, _P], str]:
    """What the system says of a file that is published names that file: not its temporary one, and not none."""

    @wraps(publish)
    def named(path: Path, /, *args: _P.args, **kwargs: _P.kwargs) -> str:
        try:
            return publish(path, *args, **kwargs)
        except OSError as error:
            told = error.filename
            if error.errno is not None and (
                told is None or str(told).startswith(str(path.with_name(f".{path.name}.")))
            ):
                error.filename = str(path)
            raise

    return named


@_named
def publish(path: Path, write: Callable[[BinaryIO], object]) -> str:
    """Write a file by calling `write` on a temporary one, and give it its name only when it is safely on disk.

    Returns the xxh3-128 hash (hex) of what was read back. Folders are made as needed. Raises DataError if the bytes
    read back are not as many as were written, OSError as the file system does, with the name of this file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")  # so that no two machines share one
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            written = file.tell()
        digest = file_hash(temporary)
        if temporary.stat().st_size != written:
            raise DataError(f"wrote {written} bytes of {path.name}, read back {temporary.stat().st_size}")
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # a disk that fails at this too: what went wrong first is told
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return digest


def publish_bytes(path: Path, data: bytes) -> str:
    """`publish` for content that is already in memory; checks that the very same bytes are read back."""

    def write(file: BinaryIO) -> None:
        file.write(data)

    digest = publish(path, write)
    if digest != xxhash.xxh3_128_hexdigest(data):
        path.unlink()
        raise DataError(f"{path.name}: the bytes read back are not those written; is the disk failing?")
    return digest


def file_hash(path: str | Path) -> str:
    """xxh3-128 of a file's bytes, in hex."""
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - thousands of tables: a Path takes as long as the hash
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that a killed writer left below `folder`. Call it under `lock`."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
