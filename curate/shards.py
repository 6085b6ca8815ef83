"""Tar shards that WebDataset reads as they are, written so that the same members give the same bytes.

Members are sorted by name; times, owners and modes are fixed. Offsets are known as the tar is written, so that a member
can be read at random without an index of its own.
"""

import tarfile
from collections.abc import Mapping
from io import BytesIO
from typing import BinaryIO

from curate import storage
from curate.storage import Place

__all__ = ["write_tar"]

_HEADER = 512  # bytes of a member's header in a USTAR archive


def write_tar(path: Place, members: Mapping[str, bytes]) -> tuple[str, dict[str, int]]:
    """Publish an uncompressed tar; returns its xxh3-128 and member name -> offset of its content in bytes."""
    offsets: dict[str, int] = {}

    def write(file: BinaryIO) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name in sorted(members):
                member = tarfile.TarInfo(name)  # mtime, uid and gid are 0, mode is 0644
                member.size = len(members[name])
                offsets[name] = tar.offset + _HEADER
                tar.addfile(member, BytesIO(members[name]))

    return storage.publish(path, write), offsets
