"""Bytes of a store's files, made again from what is left of them and of the files beside them.

    one flipped bit     of a small file whose hash is known: each is tried
    a shard             from its members, wherever they are found, and the table of cells, which says where they lie
    the table of cells  from the shard
    the table of patches  from the table of images and the grid, or a packed store's manifest
    what a retry settled  from the table of images, and what was refused and is taken: each likely order is tried

What is made is right if it has the hash of the record, byte for byte, and only the caller, who has that, can tell.
"""

import io
import itertools
import os
import re
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import pyarrow as pa
import xxhash

from curate import images, layout
from curate.shards import write_members
from curate.store import write_parquet

__all__ = ["Shard", "cell_table", "one_bit", "parquet_bytes", "retried_tables"]

MOST_BYTES = 1 << 16  # of a file whose bits are tried: three seconds
_MOST_NAMES = 64  # combinations of member names that are tried
_MOST_ROWS = 1_000_000  # of the tables that are tried: three seconds
_MOST_FOLDERS = 24  # orders in which folders may have been named
_MEMBER = re.compile(r"([0-9a-f]{16})(?:\.(lr\d))?(?:\.(\d+)_(\d+))?\.[a-z]+")


def one_bit(data: bytes, is_right: Callable[[bytes | bytearray], bool]) -> bytes | None:
    """`data` with the one bit flipped that makes it right; None if there is none, or it is too long to try."""
    if len(data) > MOST_BYTES:
        return None
    changed = bytearray(data)
    for at in range(len(data)):
        for bit in range(8):
            changed[at] ^= 1 << bit
            if is_right(changed):
                return bytes(changed)
            changed[at] ^= 1 << bit
    return None


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as a store has it."""
    file = io.BytesIO()
    write_parquet(table, file)
    return file.getvalue()


def cell_table(tar: Path) -> pa.Table:
    """The cells of a shard that is whole; every image in it is decoded. Raises what tarfile and the codecs do."""
    rows = []
    with tarfile.open(tar, "r:") as opened, tar.open("rb") as file:
        for member in opened:
            match = _MEMBER.fullmatch(member.name)
            if match is None:
                raise tarfile.TarError(f"'{member.name}' is no member of a shard")
            data = os.pread(file.fileno(), member.size, member.offset_data)
            height, width = images.size(data)
            rows.append(
                {
                    "image_id": match[1],
                    "y": int(match[3] or 0),
                    "x": int(match[4] or 0),
                    "height": height,
                    "width": width,
                    "role": match[2] or "hr",
                    "offset": member.offset_data,
                    "size": member.size,
                    "xxh3": xxhash.xxh3_64_intdigest(data),
                }
            )
    return pa.Table.from_pylist(rows, layout.CELLS)


_Place = tuple[str, str]  # source, name


def retried_tables(found: Sequence[_Place], others: Collection[_Place], rows: int | None) -> Iterator[pa.Table]:
    """What the table `retried` of a shard may have been, likely ones first; with so many rows, if that is known.

    `found` are the sources of its table of images, in order. `others` were refused and are taken, all before it: any of
    them may have been settled too.
    """
    numbers = range(len(others), -1, -1) if rows is None else [rows - len(found)]
    most = 1 + _MOST_ROWS // (500 + len(found))
    some = (chosen for n in numbers if n >= 0 for chosen in itertools.combinations(sorted(others), n))
    choices = list(itertools.islice(some, most))
    orders = itertools.chain(
        (order for chosen in choices for order in _by_folder(found, chosen)),
        (order for chosen in choices for order in _in_between(found, chosen)),
    )
    for order in itertools.islice(orders, most):
        columns = ([place[i] for place in order] for i in range(2))
        yield pa.table(list(columns), schema=layout.RETRIED)


def _by_folder(found: Sequence[_Place], others: Iterable[_Place]) -> Iterator[list[_Place]]:
    """Within a folder by name, as sources are listed; the folders in any order that the found ones allow."""
    places, known = [*found, *others], set(found)
    folders = dict.fromkeys(source for source, _ in places)
    for named in itertools.islice(itertools.permutations(folders), _MOST_FOLDERS):
        rank = {source: i for i, source in enumerate(named)}
        order = sorted(places, key=lambda place: (rank[place[0]], place[1]))
        if [place for place in order if place in known] == list(found):
            yield order


def _in_between(found: Sequence[_Place], others: Sequence[_Place]) -> Iterator[list[_Place]]:
    """Anywhere: two folders of one name were named, or files in no order."""
    for gaps in itertools.combinations_with_replacement(range(len(found) + 1), len(others)):
        order = list(found)
        for gap, place in reversed(list(zip(gaps, others, strict=True))):
            order.insert(gap, place)
        yield order


_Content = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard that is put together again."""

    tar: Path | None  # what is left of it
    rows: Sequence[Mapping[str, Any]]  # of the table of cells, in the order of their offsets
    endings: Mapping[str, str]  # image_id -> ending of its own file, as far as known
    found: Mapping[tuple[int, int], _Content]  # (size, xxh3) -> members that were found elsewhere

    @classmethod
    def of(
        cls, tar: Path | None, cells: pa.Table, names: Mapping[str, str], found: Mapping[tuple[int, int], _Content]
    ) -> "Shard":
        """`names` are those of the photographs, by image_id."""
        endings = {image_id: PurePosixPath(name).suffix.lower() for image_id, name in names.items()}
        taken = {image_id: end if end in images.SUFFIXES else ".img" for image_id, end in endings.items()}
        return cls(tar, cells.sort_by("offset").to_pylist(), taken, found)

    def missing(self) -> list[Mapping[str, Any]]:
        """The rows of members that are damaged, and found nowhere."""
        return [row for row in self.rows if self._content(row) is None]

    def damaged(self) -> list[Mapping[str, Any]]:
        """The rows of members that are damaged in the tar."""
        return [row for row in self.rows if not _is(row, self._there(row))]

    def writer(self, xxh3: str) -> Callable[[BinaryIO], object] | None:
        """What writes the file with this hash; None if that cannot be had."""
        candidates = [self._names(row) for row in self.rows]
        for names in itertools.islice(itertools.product(*candidates), _MOST_NAMES):
            sink = _Hash()
            write_members(cast(BinaryIO, sink), self._members(names))
            if sink.digest.hexdigest() == xxh3:
                return lambda file, names=names: write_members(file, self._members(names))  # type: ignore[misc]
        return None

    def patched(self) -> Callable[[BinaryIO], object]:
        """What writes as much of it as there is, each member in its place; zeros for what is cut off."""
        names = [self._names(row)[0] for row in self.rows]
        return lambda file: write_members(file, self._members(names))

    def _members(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        for name, row in zip(names, self.rows, strict=True):
            content = self._content(row)
            yield name, self._there(row).ljust(row["size"], b"\0") if content is None else content

    def _there(self, row: Mapping[str, Any]) -> bytes:
        return self._read(row["offset"], row["size"])

    def _read(self, start: int, size: int) -> bytes:
        if self.tar is None:
            return b""
        with self.tar.open("rb") as file:
            return os.pread(file.fileno(), size, start)

    def _content(self, row: Mapping[str, Any]) -> bytes | None:
        data = self._there(row)
        if _is(row, data):
            return data
        elsewhere = self.found.get((row["size"], row["xxh3"]))
        data = elsewhere() if elsewhere is not None else b""
        return data if _is(row, data) else None

    def _names(self, row: Mapping[str, Any]) -> list[str]:
        """What a member may be called: as its header says, or as it would have been."""
        block = self._read(row["offset"] - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
        stem = row["image_id"] + ("" if row["role"] == "hr" else f".{row['role']}")
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
            if header.name.startswith(stem) and _MEMBER.fullmatch(header.name) and header.size == row["size"]:
                return [header.name]
        except (tarfile.TarError, UnicodeDecodeError):
            pass
        own = self.endings.get(row["image_id"], ".png")
        packed = [f"{stem}.{row['y']}_{row['x']}{ending}" for ending in (".webp", ".png")]
        endings = [own, *sorted(images.SUFFIXES - {own}), ".img"]
        if row["role"] == "hr" and row["image_id"] in self.endings:
            return [stem + own, *packed]
        return [*(stem + ending for ending in endings), *packed]


class _Hash:
    """A file that is hashed and not kept."""

    def __init__(self) -> None:
        self.digest = xxhash.xxh3_128()

    def write(self, data: bytes) -> None:
        self.digest.update(data)


def _is(row: Mapping[str, Any], data: bytes) -> bool:
    return bool(len(data) == row["size"] and xxhash.xxh3_64_intdigest(data) == row["xxh3"])
