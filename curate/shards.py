"""Tar shards that WebDataset reads as they are, written so that the same members give the same bytes.

Members lie in the order in which they come, and only one of them is held in memory; times, owners and modes are fixed.
Offsets are known as the tar is written, so that a member can be read at random without an index of its own.
"""

import tarfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from curate import files, storage
from curate.storage import Place

__all__ = ["write_members", "write_tar"]

_RECORD = 10240  # bytes; a tar file is a multiple of them
_FLOW = 1 << 25  # bytes after which they begin to go to disk


def write_tar(path: Place, members: Iterable[tuple[str, bytes]]) -> tuple[str, dict[str, int]]:
    """Publish an uncompressed tar of (name, content); returns its xxh3-128 and name -> offset of the content in bytes.

    Members are taken one at a time, as they are written. WebDataset needs those of one key side by side.
    """
    offsets: dict[str, int] = {}

    def write(file: BinaryIO) -> None:
        offsets.update(write_members(file, _flowing(file, members)))

    return storage.publish(path, write), offsets


def _flowing(file: BinaryIO, members: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """The members; meanwhile what is written of them begins to go to disk."""
    begun = 0
    for member in members:
        if (end := file.tell()) - begun >= _FLOW:
            files.begin_to_sync(file, begun, end)
            begun = end
        yield member


def write_members(file: BinaryIO, members: Iterable[tuple[str, bytes]]) -> dict[str, int]:
    """The bytes of such a tar; returns name -> offset of the content."""
    offsets: dict[str, int] = {}
    end = 0
    for name, content in members:
        member = tarfile.TarInfo(name)  # mtime, uid and gid are 0, mode is 0644
        member.size = len(content)
        header = member.tobuf(tarfile.USTAR_FORMAT, "utf-8")
        offsets[name] = end + len(header)
        padding = bytes(-len(content) % tarfile.BLOCKSIZE)
        # Not TarFile.addfile, which copies 16 KB at a time: four times as slow.
        for piece in (header, content, padding):
            file.write(piece)
        end = offsets[name] + len(content) + len(padding)
    file.write(bytes(2 * tarfile.BLOCKSIZE + -(end + 2 * tarfile.BLOCKSIZE) % _RECORD))
    return offsets
