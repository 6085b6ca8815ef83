"""The survey: all sources examined before the first shard is written, by several workers or runs.

A single process examines a photograph and writes it in one go. Several cannot: whether a photograph is a copy, and
which shard it goes to, depends on all those before it. So they first examine the sources in chunks, each of which
leaves a table and a record under `examined/` in the store. When all are there, shards are laid out from these rows and
written from the sources, which are read again, and the survey is removed. A chunk that is there is not examined again,
whoever did it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import pyarrow as pa
import xxhash

from curate import layout, pool
from curate.errors import DataError, UsageError, one_line
from curate.examination import Examined, Examiner, Picture
from curate.sources import PairedFolder, Source
from curate.store import Store

__all__ = ["ChangedError", "Chunk", "Examination", "Survey", "read_again"]

CHUNK = 32  # sources in one, unless there are very many: then there are
_MOST = 1024  # chunks
_FINGERPRINT = hashlib.sha256(b"examine 1").hexdigest()[:16]  # the version of what a row says


class ChangedError(DataError):
    """A source is not what it was when it was examined."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A few sources, one after another."""

    number: int
    sources: Sequence[Source]


@dataclass(frozen=True, slots=True)
class Survey:
    """The chunks of one listing of sources, in a store."""

    store: Store
    chunks: Sequence[Chunk]
    kind: str  # of its records
    only: Set[tuple[str, str]] | None = None  # the places (source, name) that are looked at; None: every one

    @classmethod
    def of(
        cls,
        store: Store,
        sources: Sequence[Source],
        pairs: Mapping[int, PairedFolder],
        only: Set[tuple[str, str]] | None = None,
    ) -> "Survey":
        """The survey of these sources and their LR images by scale: the same one wherever they are listed so.

        Of a retry it is another one, whatever `only` holds: that gets less while its shards are written.
        """
        digest = hashlib.sha256(_FINGERPRINT.encode() + (b"" if only is None else b" retry"))
        for source in sources:
            lrs = [[n, found and found.name] for n in sorted(pairs) for found in [pairs[n].lookup(source.name)]]
            digest.update(json.dumps([source.source, source.name, source.start, source.size, lrs]).encode())
        size = max(CHUNK, -(-len(sources) // _MOST))
        starts = range(0, len(sources), size)
        chunks = [Chunk(number, sources[start : start + size]) for number, start in enumerate(starts)]
        return cls(store, chunks, f"examined/{digest.hexdigest()[:16]}", only)

    def is_listed(self) -> bool:
        """Whether the store has, or has refused, a file of each source's name."""
        names = self.store.images().select(["source", "name"]).to_pylist()
        known = {(row["source"], row["name"]) for row in names}
        return all((source.source, source.name) in known for chunk in self.chunks for source in chunk.sources)

    def missing(self) -> list[Chunk]:
        """The chunks that nobody has examined."""
        done = self.store.commits(self.kind)
        return [chunk for chunk in self.chunks if chunk.number not in done or self._passed_over(chunk)]

    def _passed_over(self, chunk: Chunk) -> bool:
        """Whether a source of an examined chunk that is to be looked at was not: it has been refused since."""
        return self.only is not None and any(
            item.known and item.sha256 is None and item.place in self.only for item in self._items(chunk)
        )

    def keep(self, chunk: Chunk, examined: Sequence[Examined]) -> None:
        """Publish and commit what was found out about a chunk."""
        table = pa.Table.from_pylist([_row(item) for item in examined], layout.EXAMINED)
        part = self.store.write_table(self.kind, chunk.number, table)
        self.store.commit(self.kind, chunk.number, _FINGERPRINT, [part])

    def examined(self) -> Iterator[Examined]:
        """All sources in order, without their bytes. All chunks must be there."""
        for chunk in self.chunks:
            yield from self._items(chunk)

    def _items(self, chunk: Chunk) -> Iterator[Examined]:
        rows = self.store.examined_table(self.kind, chunk.number).to_pylist()
        for source, row in zip(chunk.sources, rows, strict=True):
            pictures = {picture.pop("role"): Picture(**picture) for picture in row.pop("pictures")}
            yield Examined(source, **row, pictures=pictures)

    def remove(self) -> None:
        """Leave nothing of it in the store."""
        self.store.remove_units(self.kind)


def _row(item: Examined) -> dict[str, object]:
    names = ("sha256", "status", "height", "width", "known")
    pictures = [
        {"role": role, **{name: getattr(picture, name) for name in Picture.__dataclass_fields__}}
        for role, picture in item.pictures.items()
    ]
    return {**{name: getattr(item, name) for name in names}, "pictures": pictures}


@dataclass(frozen=True, slots=True)
class Examination:
    """The job of examining a chunk."""

    examiner: Examiner

    def open(self) -> Callable[[Chunk], list[Examined]]:
        return self._examine

    def _examine(self, chunk: Chunk) -> list[Examined]:
        return [item.without_data() for item in pool.ahead(self.examiner.examine, chunk.sources)]

    def name(self, chunk: Chunk) -> str:
        return f"the photographs from '{one_line(chunk.sources[0].name)}' on"


def read_again(item: Examined, pairs: Mapping[int, PairedFolder]) -> Examined:
    """The item with its bytes. ChangedError if they are not those that were examined."""
    data = {}
    for role, picture in item.pictures.items():
        source = item.source if role == "hr" else pairs[int(role.removeprefix("lr"))].lookup(item.source.name)
        content = _content(source) if source else b""
        if (len(content), xxhash.xxh3_64_intdigest(content)) != (picture.size, picture.xxh3):
            name = one_line(source.name if source else f"the {role} of {item.source.name}")
            raise ChangedError(f"'{name}' has changed since it was examined: ingest again, every part of it")
        data[role] = content
    return Examined(item.source, item.sha256, item.status, item.height, item.width, item.pictures, item.known, data)


def _content(source: Source) -> bytes:
    try:
        return source.read()
    except OSError as error:
        raise UsageError(f"'{one_line(source.name)}' cannot be read any more: {one_line(error)}") from None
