"""Repair: what can be made again from what is left, byte for byte as its record says, and the names of what cannot.

    documents   one flipped bit; the header from the windows, a record from files that agree
    tables      one flipped bit; cells from the shard, patches from the images, images from photographs that are named,
                what a retry settled from the images of its shard and of those before
    shards      headers and padding from the tables; members from photographs, or a copy of the store, that are named
    scores, findings  their record and table are removed: `curate score` does what is missing
    leftovers   removed

Nothing is written over that is whole. Every file comes whole or not at all, and a record goes before its files do, so
that a repair that is killed leaves no more damage than there was, and goes on when it is run again.
"""

import contextlib
import hashlib
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from curate import (
    __version__,
    checks,
    compressions,
    exports,
    files,
    fsck,
    ingestion,
    layout,
    packing,
    pool,
    retries,
    salvage,
    schema,
    storage,
    windows,
)
from curate.errors import CurateError, DataError, counted, one_line
from curate.fsck import HEADER, Look
from curate.layout import OF_SHARD
from curate.manifest import Manifest
from curate.progress import Progress, silent
from curate.records import Committed, Records
from curate.retries import Refusals
from curate.schema import STATUS_OK, CheckRecord, CommitRecord, Part, ScorerRecord, Sealed, StoreHeader, VerifyRecord
from curate.sources import Source, find
from curate.storage import Place
from curate.store import INGEST
from curate.verification import verify

__all__ = ["RepairReport", "repair"]


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was done, what is to be done, and what is wrong still."""

    rebuilt: list[tuple[str, str]]  # (file, how)
    removed: list[tuple[str, str]]  # (file, why)
    again: list[str]  # commands that make again what was removed
    left: VerifyRecord  # what a deep verification finds afterwards: what is lost, and what is not curate's


def repair(path: str | Path, *, sources: Sequence[str | Path] = (), progress: Progress = silent) -> RepairReport:
    """Make again what is damaged at a path, as far as that can be done, and verify all of it.

    `sources` are photographs, as `ingest` takes them, and other copies of the store: what has the hash that a damaged
    file should have is taken from there. Of a checkpoint the recipe beside it is written again; of an export damaged
    files are removed. Raises UsageError for a path that is none of these, CurateError if another run is writing.
    """
    where = storage.place(path, "what is to be repaired")
    if fsck.is_store(where):
        copies = [place for place in map(_place, sources) if fsck.is_store(place)]
        photographs = [str(source) for source in sources if _place(source) not in copies]
        work = _Repair(where, find(photographs).sources if photographs else [], copies, progress)
        work.run()
        return RepairReport(work.rebuilt, work.removed, work.again, verify(where, deep=True, progress=progress))
    found = verify(where, deep=True, progress=progress)
    rebuilt, removed, again = list[tuple[str, str]](), list[tuple[str, str]](), list[str]()
    (checked,) = found.checked
    if checked.kind == "checkpoint" and not found.whole:
        from curate import checkpoint

        for place in compressions.checkpoints(where):
            rebuilt += [(str(file), "from the recipe beside the weights") for file in checkpoint.mend(place)]
        rebuilt += [(str(file), "from the record beside it") for file in compressions.mend(where)]
    elif checked.kind == "export" and not found.whole:
        removed += [(str(file), "damaged") for file in exports.remove_damaged(where)]
        again += [_command("export", "MANIFEST", str(path), "--to", exports.target(where))]
    return RepairReport(rebuilt, removed, again, verify(where, deep=True, progress=progress))


def _place(source: str | Path) -> Place:
    return storage.place(source, "a copy of the store")


def _command(*words: str) -> str:
    return shlex.join(["curate", *map(one_line, words)])


@dataclass
class _Repair:
    """The repair of one store."""

    path: Place
    photographs: list[Source]
    copies: list[Place]  # of this store
    progress: Progress
    rebuilt: list[tuple[str, str]] = field(default_factory=list)
    removed: list[tuple[str, str]] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    by_key: dict[tuple[int, int], Source] | None = None  # photographs by size and xxh3-64, when they have been read

    def run(self) -> None:
        """Every step begins with what is there: where an earlier run was killed does not matter."""
        with storage.lock(self.path):
            for name in storage.tree(self.path):
                last = name.rpartition("/")[2]
                if last.startswith(".") and last.endswith(".tmp"):
                    self._remove(name, "a temporary file of a run that was killed")
            self._mend_documents()
            self._mend_header()
            self._mend_shards()
            self._mend_records()
            self._drop_results()
            self._remove_unnamed()
            self._fold()

    # ---- what is done to a file

    def _publish(self, name: str, data: bytes, how: str) -> None:
        storage.publish_bytes(self._at(name), data)
        self.rebuilt.append((name, how))

    def _remove(self, name: str, why: str) -> None:
        storage.remove([self._at(name)])
        self.removed.append((name, why))

    def _at(self, name: str) -> Place:
        return self.path.joinpath(*name.split("/"))

    def _bytes(self, name: str) -> bytes:
        """Of a small file; none if it is not there."""
        try:
            return self._at(name).read_bytes()
        except OSError:
            return b""

    def _size(self, part: Part) -> int:
        return storage.entries(self._at(part.path).parent)[self._at(part.path).name].size

    def _is_whole(self, part: Part) -> bool:
        """Whether a file is the one that its record names."""
        try:
            with storage.local_copy(self._at(part.path)) as copy:
                return copy.stat().st_size == part.bytes and files.file_hash(copy) == part.xxh3
        except (OSError, CurateError):
            return False

    # ---- documents

    def _mend_documents(self) -> None:
        """One flipped bit of a document that carries its checksum."""
        look = fsck.look(self.path)
        for fault in look.faults:
            kind: type[Sealed] | None = None
            if fault.kind == "damaged" and fault.path == HEADER:
                kind = StoreHeader
            elif fault.kind == "damaged" and fault.path.endswith(("/scorer.json", "/check.json")):
                kind = ScorerRecord if fault.path.endswith("/scorer.json") else CheckRecord
            elif fault.kind == "damaged" and fault.path.startswith("commits/"):
                self._mend_lines(fault.path)
            if kind is not None and (data := _unflipped(kind, self._bytes(fault.path))):
                self._publish(fault.path, data, "one bit had changed")

    def _mend_lines(self, name: str) -> None:
        """The records in a file."""
        data = self._bytes(name)
        many = name.endswith(".jsonl")
        lines = data.removesuffix(b"\n").split(b"\n") if many else [data]
        mended = [line if _is_sealed(CommitRecord, line) else _unflipped(CommitRecord, line) for line in lines]
        whole = [line for line in mended if line is not None]
        text = b"".join(line + b"\n" for line in whole) if many else b"".join(whole)
        if len(whole) == len(lines) and text != data:
            self._publish(name, text, "one bit had changed")

    def _mend_header(self) -> None:
        """The grid, from sizes of images and places of windows: if one grid alone has them."""
        look = fsck.look(self.path)
        if look.header is not None:
            return
        for copy in self.copies:
            twin = fsck.look(copy)
            if twin.header is not None and [c.data for c in twin.units.values()] == [
                c.data for c in look.units.values()
            ]:
                self._publish(HEADER, (copy / HEADER).read_bytes(), f"from {one_line(copy)}")
                return
        steps: set[int] | None = None
        sizes = set[int]()
        for unit in look.units:
            images, patches = (fsck.table_of(look, unit, name) for name in ("images", "patches"))
            if images is None or patches is None:
                continue
            sizes |= set(pc.unique(patches["size"]).to_pylist())
            for row in images.filter(pc.field("status") == STATUS_OK).to_pylist():
                mine = patches.filter(pc.field("image_id") == row["image_id"])
                for side, axis in ((row["height"], "y"), (row["width"], "x")):
                    starts, size = sorted(set(mine[axis].to_pylist())), max(sizes)
                    fit = {n for n in range(1, size + 1) if windows.offsets(windows.cropped(side), size, n) == starts}
                    steps = fit if steps is None else steps & fit
        if len(sizes) == 1 and steps is not None and len(steps) == 1:
            header = StoreHeader(patch=sizes.pop(), step=steps.pop(), created_by=f"curate {__version__}")
            self._publish(HEADER, schema.dump(header, indent=2), "from the places of the windows")

    # ---- shards and their tables

    def _mend_shards(self) -> None:
        look = fsck.look(self.path)
        parts = [part for committed in look.units.values() for part in committed.record.parts]
        damaged = set[str]()
        for done, (part, whole) in enumerate(zip(parts, pool.ahead(self._is_whole, parts), strict=True), 1):
            damaged |= set() if whole else {part.path}
            self.progress(done, len(parts), f"{len(damaged)} damaged" if damaged else "")
        for unit, committed in look.units.items():
            named = fsck.parts_of(committed.record)
            if bad := [name for name, part in named.items() if part.path in damaged]:
                self._mend_shard(look, unit, named, bad)

    def _mend_shard(self, look: Look, unit: int, parts: dict[str, Part], damaged: list[str]) -> None:
        for name in damaged:
            self._from_copies(parts[name])
        for name in OF_SHARD:
            if name in damaged and not self._is_whole(parts[name]):
                self._mend_bit(parts[name])
        if "images" in damaged and not self._is_whole(parts["images"]):
            self._mend_images(look, unit, parts["images"])
        if "shards" in damaged and not self._is_whole(parts["shards"]):
            self._mend_tar(look, unit, parts["shards"])
        makers: dict[str, tuple[Callable[[], Iterable[pa.Table]], str]] = {
            "patches": (lambda: self._patches(look, unit), "from the table of images"),
            "cells": (lambda: self._cells(parts["shards"]), "from the shard"),
            "retried": (lambda: self._settled(look, unit, parts["retried"].rows), "from the tables of images"),
        }
        for name, (make, how) in makers.items():
            if name in damaged and not self._is_whole(parts[name]):
                candidates = map(salvage.parquet_bytes, make())
                right = (data for data in candidates if xxhash.xxh3_128_hexdigest(data) == parts[name].xxh3)
                if (data := next(right, None)) is not None:
                    self._publish(parts[name].path, data, how)
        if "cells" in damaged and "shards" in damaged and not self._is_whole(parts["shards"]):
            self._mend_tar(look, unit, parts["shards"])

    def _mend_images(self, look: Look, unit: int, part: Part) -> None:
        """The table of images, from photographs: of a shard where none was refused, for of these nothing is left."""
        cells = fsck.table_of(look, unit, "cells")
        if cells is None or not self.photographs:
            return
        taken = cells.filter(pc.field("role") == "hr").to_pylist()
        sources = [self._photograph(row["size"], row["xxh3"]) for row in taken]
        others = [fsck.table_of(look, other, "images") for other in look.units if other != unit]
        splits = {split for table in others if table is not None for split in table["split"].to_pylist()}
        for split in sorted(splits | {"train"}):
            rows = [
                {
                    "image_id": row["image_id"],
                    "name": source.name,
                    "sha256": hashlib.sha256(source.read()).hexdigest(),
                    "height": row["height"],
                    "width": row["width"],
                    "status": STATUS_OK,
                    "source": source.source,
                    "split": split,
                }
                for row, source in zip(taken, sources, strict=True)
                if source is not None
            ]
            data = salvage.parquet_bytes(pa.Table.from_pylist(rows, layout.IMAGES))
            if xxhash.xxh3_128_hexdigest(data) == part.xxh3:
                self._publish(part.path, data, "from photographs")
                return

    def _from_copies(self, part: Part) -> None:
        """A file of another copy of the store."""
        for copy in self.copies:
            with contextlib.suppress(OSError, CurateError), storage.local_copy(copy / part.path) as file:
                if file.stat().st_size == part.bytes and files.file_hash(file) == part.xxh3:
                    storage.publish(self._at(part.path), partial(_copy, file))
                    self.rebuilt.append((part.path, f"from {one_line(copy)}"))
                    return

    def _mend_bit(self, part: Part) -> None:
        data = self._bytes(part.path)
        if len(data) == part.bytes:
            right = salvage.one_bit(data, lambda changed: xxhash.xxh3_128_hexdigest(changed) == part.xxh3)
            if right is not None:
                self._publish(part.path, right, "one bit had changed")

    def _mend_tar(self, look: Look, unit: int, part: Part) -> None:
        cells, images = (fsck.table_of(look, unit, name) for name in ("cells", "images"))
        if cells is None:
            return
        names = {} if images is None else dict(zip(*(images[c].to_pylist() for c in ("image_id", "name")), strict=True))
        there = self._at(part.path).is_file()
        with storage.local_copy(self._at(part.path)) if there else contextlib.nullcontext() as copy:
            shard = salvage.Shard.of(copy, cells, names, {})
            damaged = shard.damaged()
            if damaged and self.photographs:
                found = {(row["size"], row["xxh3"]): self._photograph(row["size"], row["xxh3"]) for row in damaged}
                shard = salvage.Shard.of(copy, cells, names, {key: s.read for key, s in found.items() if s is not None})
            missing = shard.missing()
            writer = None if missing else shard.writer(part.xxh3)
            how = (
                f"{counted(len(damaged), 'image')} from photographs"
                if damaged
                else "its headers and padding from the tables"
            )
            if writer is None and there and (len(missing) < len(damaged) or self._size(part) != part.bytes):
                writer = shard.patched()
                how = (
                    f"{len(damaged) - len(missing)} images from photographs; {len(missing)} are lost, the others whole"
                )
            if writer is not None:
                storage.publish(self._at(part.path), writer)
                self.rebuilt.append((part.path, how))

    def _photograph(self, size: int, xxh3: int) -> Source | None:
        if self.by_key is None:
            keys = pool.ahead(_key, self.photographs)
            pairs = zip(keys, self.photographs, strict=True)
            self.by_key = {key: source for key, source in pairs if key is not None}
        return self.by_key.get((size, xxh3))

    def _patches(self, look: Look, unit: int) -> Iterator[pa.Table]:
        images, header = fsck.table_of(look, unit, "images"), look.header
        if images is None or header is None:
            return
        taken = images.filter(pc.field("status") == STATUS_OK)
        sizes = zip(*(taken[name].to_pylist() for name in ("image_id", "height", "width")), strict=True)
        table = ingestion.patch_table(sizes, header.patch, header.step)
        if header.packed is not None:
            try:
                chosen = Manifest.load(self.path / packing.MANIFEST_FILE).table["patch_id"].combine_chunks()
            except CurateError:
                return
            table = table.filter(pc.is_in(table["patch_id"], chosen))
        yield table

    def _cells(self, tar: Part) -> Iterator[pa.Table]:
        if self._is_whole(tar):
            with storage.local_copy(self._at(tar.path)) as copy:
                yield salvage.cell_table(copy)

    def _retried(
        self, look: Look, unit: int, images: pa.Table | None, before: Refusals, rows: int | None
    ) -> Iterator[pa.Table]:
        """What the table of what a retry settled may have been, which has so many rows, if that is known."""
        if images is None:
            return
        found = retries.sources(images)
        others = set[tuple[str, str]]()
        if rows != len(found):  # it settled sources too that had been taken since
            for earlier in range(unit):
                if (table := fsck.table_of(look, earlier, "images")) is not None:
                    taken = retries.sources(table.filter(pc.field("status") == STATUS_OK))
                    others |= before.sources.intersection(taken).difference(found)
        yield from salvage.retried_tables(found, others, rows)

    def _settled(self, look: Look, unit: int, rows: int | None) -> Iterator[pa.Table]:
        """`_retried` of a shard that has its record."""
        before = Refusals()
        for earlier in range(unit):
            before.add(*(fsck.table_of(look, earlier, name) for name in ("images", "retried")))
        yield from self._retried(look, unit, fsck.table_of(look, unit, "images"), before, rows)

    # ---- records of shards

    def _mend_records(self) -> None:
        """Of shards whose files are there and agree, whether their record is damaged, missing or was never written."""
        look = fsck.look(self.path)
        there = {int(name[7:-4]) for name in look.sizes if name.startswith("shards/") and name[7:-4].isdecimal()}
        recorded, found, refusals = set(look.units), set[int](), Refusals()
        sealed = all(schema.is_sealed(committed.data) for committed in look.units.values())
        for unit in range(max(there - recorded, default=-1) + 1):
            if unit in there - recorded and (record := self._record(look, unit, refusals)):
                name, data = f"commits/{INGEST}/{unit:06d}.json", schema.dump(record, sealed=sealed)
                if unit == 0 or unit - 1 in recorded or unit - 1 in found:  # never leave a gap of our own
                    self._publish(name, data, "its files are there and agree")
                look.units[unit] = Committed(record, data, self._at(name))
                found.add(unit)
            refusals.add(*(fsck.table_of(look, unit, name) for name in ("images", "retried")))
        blocks = [fault.path for fault in look.faults if fault.path.startswith(f"commits/{INGEST}/")]
        for name in blocks:
            last = name.rpartition("/")[2]
            if last.endswith(".jsonl") and look.lost[INGEST] <= found:
                Records(self.path / "commits" / INGEST).unfold(last)
                self.removed.append((name, "damaged; each of its records has a file of its own"))

    def _record(self, look: Look, unit: int, before: Refusals) -> CommitRecord | None:
        """Of the files that are there; `before` is what no retry had settled before."""
        own, more = fsck.names(INGEST, unit)
        if look.header is None or not all(name in look.sizes for name in own):
            return None
        there = [name for name in more if name in look.sizes]
        for names in [[*own, *there], own] if there else [own]:  # what only a killed run left may be there too
            made = self._made(look, unit, names)
            if made is not None and self._is_sure(look, made, before):
                return made
        return self._record_of_retry(look, unit, before)

    def _made(self, look: Look, unit: int, names: Sequence[str]) -> CommitRecord | None:
        """The record of these files; None if they do not agree."""
        parts = []
        for name in names:
            with storage.local_copy(self._at(name)) as copy:
                parts.append(Part(path=name, bytes=copy.stat().st_size, xxh3=files.file_hash(copy), rows=None))
        tables = {part.path: table for part in parts[1:] if (table := fsck.table(look, part)) is not None}
        rows = {path: table.num_rows for path, table in tables.items()}
        parts = [part.model_copy(update={"rows": rows.get(part.path)}) for part in parts]
        made = CommitRecord(unit=unit, fingerprint=look.fingerprint, parts=parts)
        if len(tables) < len(parts) - 1 or list(fsck.faults_of_shard(look, made)):
            return None
        named = fsck.parts_of(made)
        if look.is_packed:
            ids = tables[named["images"].path]["image_id"].to_pylist()
            made = made.model_copy(update={"fingerprint": packing.fingerprint(ids)})
        return made if self._is_tar_as_written(named["shards"], tables[named["cells"].path]) else None

    def _is_sure(self, look: Look, made: CommitRecord, before: Refusals) -> bool:
        """Whether a shard has these files, neither fewer nor more."""
        if (witnessed := self._is_witnessed(look, made)) is not None:
            return witnessed
        tables = {name: fsck.table(look, part) for name, part in fsck.parts_of(made).items() if name in OF_SHARD}
        if "retried" in tables:
            return before.sources.issuperset(retries.sources(tables["retried"])) or not before.is_complete
        # Where all of it was refused before, it may be a retry that was killed before it wrote what it settled.
        return not before.sources.issuperset(retries.sources(tables["images"]))

    def _record_of_retry(self, look: Look, unit: int, before: Refusals) -> CommitRecord | None:
        """Of a retry whose table of what it settled is lost too, and is made again: the scores tell the right one."""
        own, (path,) = fsck.names(INGEST, unit)
        made = self._made(look, unit, own)
        if made is None or self._is_witnessed(look, made) is None:
            return None
        images = fsck.table(look, fsck.parts_of(made)["images"])
        for table in self._retried(look, unit, images, before, None):
            data = salvage.parquet_bytes(table)
            part = Part(path=path, bytes=len(data), xxh3=xxhash.xxh3_128_hexdigest(data), rows=table.num_rows)
            record = made.model_copy(update={"parts": [*made.parts, part]})
            if self._is_witnessed(look, record):
                self._publish(path, data, "from the tables of images")
                return record
        return None

    def _is_tar_as_written(self, part: Part, cells: pa.Table) -> bool:
        with storage.local_copy(self._at(part.path)) as copy:
            return salvage.Shard.of(copy, cells, {}, {}).writer(part.xxh3) is not None

    def _is_witnessed(self, look: Look, made: CommitRecord) -> bool | None:
        """Whether the scores of a shard were made from these very files; None if there are none that tell."""
        told = set[bool]()
        for work, record in look.sets.items():
            scored = look.commits.get(work, {}).get(made.unit)
            if isinstance(record, ScorerRecord) and scored is not None and not look.is_packed:
                marks = [record.fingerprint, *(part.xxh3 for part in made.parts)]
                told.add(scored.record.fingerprint == checks.digest(marks))
        return all(told) if told else None

    # ---- scores and findings

    def _drop_results(self) -> None:
        """Remove what can be computed again."""
        look = fsck.look(self.path)
        if look.header is None:
            return  # what they are scores of is not known
        for work in [*look.commits, *(work for work in look.sets if work not in look.commits)]:
            if work != INGEST:
                self._drop(look, work)
        for fault in look.faults:
            if fault.path.endswith(("/scorer.json", "/check.json")) and fault.kind != "foreign":
                if fault.kind == "damaged":
                    self._remove(fault.path, "damaged")
                self._again(look, fault.work)
        if look.ends_with_manifest and not self._has_manifest():
            self._again(look, "")

    def _drop(self, look: Look, work: str) -> None:
        units = look.commits.get(work, {})
        bad = set(look.lost.get(work, ()))
        stale = {fault.unit for fault in look.faults if fault.work == work and fault.kind == "stale"}
        for unit, committed in units.items():
            (part,) = committed.record.parts
            if not self._is_whole(part):
                self._from_copies(part)
                if not self._is_whole(part):
                    self._mend_bit(part)
            if unit in stale or not self._is_whole(part):
                bad.add(unit)
        if bad:
            Records(self.path.joinpath("commits", *work.split("/"))).remove(bad)
        unrecorded = [f.path for f in look.faults if f.work == work and f.kind == "leftover"]
        gone = [f"tables/{work}/{unit:06d}.parquet" for unit in sorted(bad)]
        for name in [*gone, *(name for name in unrecorded if name not in gone)]:
            if name in look.sizes:
                self._remove(name, "it can be computed again")
            elif name in gone:
                self.removed.append((name, "its record: it can be computed again"))
        if bad or (unrecorded and not work.startswith("examined")):
            self._again(look, work)

    def _remove_unnamed(self) -> None:
        """What a killed run left of a shard that another has written since."""
        look = fsck.look(self.path)
        for fault in look.faults:
            if fault.kind == "leftover" and fault.work == INGEST and fault.unit in look.units:
                self._remove(fault.path, "a killed run left it, and the shard was written without it")

    def _again(self, look: Look, work: str) -> None:
        kind, _, folder = work.partition("/")
        store = str(self.path)
        record = look.sets.get(work)
        name = record.label if record is not None else folder.rpartition("@")[0]
        if kind == "examined":
            command = _command("ingest", "PHOTOS", store)
        elif look.is_packed:
            command = _command("pack", "MANIFEST", store)
        elif not work:
            command = _command("distill", "MANIFEST", "-o", store)
        elif kind == "scores":
            command = _command("score", store, name)
        else:
            command = _command(folder.rpartition("@")[0], store, *(["FOLDER"] if folder.startswith("leaks") else []))
        if command not in self.again:
            self.again.append(command)

    def _has_manifest(self) -> bool:
        """Whether the store's own manifest can be read."""
        try:
            Manifest.load(self.path / packing.MANIFEST_FILE)
        except CurateError:
            return False
        return True

    def _fold(self) -> None:
        look = fsck.look(self.path)
        for work in look.commits:
            if not any(fault.path.startswith(f"commits/{work}/") for fault in look.faults):
                Records(self.path.joinpath("commits", *work.split("/"))).fold()


def _is_sealed(kind: type[Sealed], data: bytes | bytearray) -> bool:
    if not schema.is_sealed(bytes(data)):
        return False
    try:
        schema.parse(kind, bytes(data), "")
    except DataError:
        return False
    return True


def _unflipped(kind: type[Sealed], data: bytes) -> bytes | None:
    """A document without the bit that has changed: its checksum says which it is."""
    return salvage.one_bit(data, lambda changed: _is_sealed(kind, changed))


def _key(source: Source) -> tuple[int, int] | None:
    try:
        data = source.read()
    except (OSError, CurateError):
        return None
    return len(data), xxhash.xxh3_64_intdigest(data)


def _copy(source: Path, target: BinaryIO) -> None:
    with source.open("rb") as file:
        shutil.copyfileobj(file, target, 1 << 20)
