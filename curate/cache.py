"""What was fetched from object stores, kept on the local disk: bounded, least recently used out first.

    $CURATE_CACHE, or $XDG_CACHE_HOME/curate, or ~/.cache/curate
      tables/{xxh3-128}/000007.parquet    a table of a store, or a manifest, under its own name
      pixels/0a/{xxh3-64}-{size}          one member of a shard
      .bytes                              how many bytes these are, as all processes together have counted

Entries are named by the hash of their content, so that they are never stale. Nothing depends on them: they may be
deleted at any time, and several processes may share the folder. $CURATE_CACHE_BYTES (10 GB) is the bound; only tables
that were used within the hour stay beyond it, since a query may still be reading them.
"""

import contextlib
import fcntl
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable
from functools import cache as once
from pathlib import Path
from typing import BinaryIO

from curate.errors import UsageError, one_line

__all__ = ["add", "find", "folder", "limit", "remove"]

_DEFAULT_BYTES = 10_000_000_000
_ACCOUNT = ".bytes"  # how many are there, at most: what was removed is found out when there seem to be too many
_KEPT = 0.95  # of the bound, after a look around: at one of all entries, the next is not the next one that is added
_IN_USE = 3600  # seconds since its last use during which a table is not taken away


def folder() -> Path:
    """Where the cache is; a temporary folder of this process where that place cannot be written."""
    named = os.environ.get("CURATE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    path = Path(named) if named else (Path(base) if base else Path.home() / ".cache") / "curate"
    return _usable(path.absolute())


@once
def _usable(path: Path) -> Path:
    with contextlib.suppress(OSError):
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK | os.X_OK):
            return path
    made = tempfile.TemporaryDirectory(prefix="curate-cache-")
    _temporary.append(made)
    return Path(made.name)


_temporary: list[tempfile.TemporaryDirectory[str]] = []  # removed when Python ends


def limit() -> int:
    """How many bytes are kept. UsageError if $CURATE_CACHE_BYTES is not a number of bytes."""
    text = os.environ.get("CURATE_CACHE_BYTES", str(_DEFAULT_BYTES))
    if not re.fullmatch(r"\d{1,18}", text):
        raise UsageError(
            f"CURATE_CACHE_BYTES should be a number of bytes such as 10000000000, found '{one_line(text)}'"
        )
    return int(text)


def find(key: str) -> Path | None:
    """The file of an entry, which has now been used, or None. It may be gone when it is opened."""
    path = folder() / key
    try:
        os.utime(path)
    except OSError:
        return None
    return path


def remove(key: str) -> None:
    """Take an entry away, because it is not what its name says."""
    (folder() / key).unlink(missing_ok=True)


def add(key: str, size: int, write: Callable[[BinaryIO], object]) -> Path:
    """Write an entry of `size` bytes, whole or not at all, after making room for it. Raises OSError."""
    root = folder()
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    _make_room(root, size)
    # Not by the process' number: containers and machines that share the folder count alike.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def _make_room(root: Path, size: int) -> None:
    """Enter `size` bytes into the account of all processes; where that is too many, look around first, and remove."""
    most = limit()
    with (root / _ACCOUNT).open("a+b") as account:
        with contextlib.suppress(OSError):  # a file system without locks: the account may be wrong until the next look
            fcntl.flock(account, fcntl.LOCK_EX)
        account.seek(0)
        text = account.read(20)
        total = int(text) if text.isdigit() else most
        if total + size > most:
            total = _trim(root, int(most * _KEPT) - size)
        account.truncate(0)
        account.write(b"%d" % (total + size))


def _trim(root: Path, most: int) -> int:
    """Remove the entries used longest ago until at most `most` bytes are there; returns how many there are."""
    entries = []
    for path in root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process has removed it
            status = path.lstat()
            if not path.is_dir() and path.name != _ACCOUNT:
                entries.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in entries)
    now = time.time()
    for used, size, path in sorted(entries):  # one from the future, of a clock that was wrong, is not in use either
        if total <= most:
            break
        if abs(now - used) > _IN_USE or "tables" not in path.relative_to(root).parts:
            path.unlink(missing_ok=True)
            total -= size
    return total
