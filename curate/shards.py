"""Tar shards that WebDataset reads as they are, written so that the same members give the same bytes.

Members lie in the order in which they come, and only one of them is held in memory; times, owners and modes are fixed.
Offsets are known as the tar is written, so that a member can be read at random without an index of its own.
"""

import tarfile
from collections.abc import Iterable
from typing import BinaryIO

from curate import storage
from curate.storage import Place

__all__ = ["write_members", "write_tar"]

_RECORD = 10240  # bytes; a tar file is a multiple of them


def write_tar(path: Place, members: Iterable[tuple[str, bytes]]) -> tuple[str, dict[str, int]]:
    """Publish an uncompressed tar of (name, content); returns its xxh3-128 and name -> offset of the content in bytes.

    Members are taken one at a time, as they are written. WebDataset needs those of one key side by side.
    """
    offsets: dict[str, int] = {}
    return storage.publish(path, lambda file: offsets.update(write_members(file, members))), offsets


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
