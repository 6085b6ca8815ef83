"""Ingest: photographs -> a Store. Bytes are copied verbatim; every image is read once, and proven whole.

Sources are taken in order and packed greedily into shards. What the store already knows is skipped, and a shard counts
only when its record is written: so a second run adds only what is new, and an interrupted run, run again, ends with
the same bytes as one that was not.

A refused source whose bytes have changed is new. To retry is to look at refused sources alone, whatever their bytes
are now: those that are whole now, or are refused for another reason, go into shards of their own, beside which a table
`retried` says whose refusals are history now (`curate.retries`).
"""

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from curate import layout, pool, storage, windows
from curate.engine import LOCAL, WHOLE, Engine, Part, joined, require_disk, run
from curate.errors import CurateError, DataError, UsageError, counted, listed, one_line
from curate.examination import TOO_SMALL, UNREADABLE, Examined, Examiner
from curate.progress import Meter, Progress, silent
from curate.schema import STATUS_OK
from curate.schema import Part as FilePart
from curate.shards import write_tar
from curate.sources import PairedFolder, Source, find
from curate.storage import Place
from curate.store import INGEST, Cell, Store, write_parquet
from curate.survey import ChangedError, Examination, Survey, read_again

__all__ = ["FINGERPRINT", "FINGERPRINTS", "IngestReport", "ingest", "patch_table"]

_DEFAULT_PATCH = 480  # px, as sub-images of DIV2K are usually cut
MAX_ROWS = 50_000  # source files in one shard, however small they are
FINGERPRINTS = [hashlib.sha256(text).hexdigest()[:16] for text in (b"ingest 1", b"ingest 2")]  # all there have been
FINGERPRINT = FINGERPRINTS[-1]  # the version of what is done to a source


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What one run did. Images are source files; patches are windows."""

    added: int  # images taken by this run
    refused: list[tuple[str, str]]  # (source/name, reason) of the images that this run refused, or a retry again
    known: int  # source files that the store had already (taken or refused); of a retry: that it had taken since
    without_lr: int  # of those taken before, how many have no LR image of a scale that was asked for now
    other_lr: int  # and how many have another one than is there now
    other_version: int  # shards of the store that another version of what ingests has written
    ignored: int  # files of the folders that do not look like images
    shards: int  # shards that this run wrote
    patches: int  # windows that this run added
    bytes: int  # of image files that this run added
    patch: int  # px, of the store
    small: list[int]  # px: of each image refused for being smaller than a patch, the largest patch that fits into it
    like_lr: list[str] = field(default_factory=list)  # files that are named as LR images of others among them are
    missing: int = 0  # chunks of sources that the other parts have not examined yet: the last of them writes the shards

    def suspicion(self) -> str:
        """What to look at where files are named as LR images of others are; else ''."""
        if not self.like_lr:
            return ""
        number = counted(len(self.like_lr), "file")
        return (
            f"{number} named as LR images of others are ('{one_line(self.like_lr[0])}'): are they photographs? "
            "LR folders go with --lr 2=FOLDER"
        )

    @property
    def is_in_vain(self) -> bool:
        """Whether there were photographs, and each was refused."""
        return bool(self.refused) and not (self.added or self.known or self.missing)

    def in_words(self, *, again: bool = False) -> str:
        """One line for people; `again` if it was a retry of what had been refused."""
        words = [counted(self.added, "image") + " added"]
        if self.added:
            size = f"{self.bytes / 1e6:.1f} MB"
            words[0] += f" ({counted(self.patches, 'patch')}, {counted(self.shards, 'shard')}, {size})"
        if self.known:
            words.append(f"{self.known} already there")
        if self.refused:
            words.append(f"{len(self.refused)} refused{' again' * again}")
        if self.ignored and not again:
            words.append(f"{counted(self.ignored, 'other file')} ignored")
        return ", ".join(words)

    def advice(self) -> str:
        """What to do where images are smaller than a patch: a patch that nine in ten of them have room for; else ''."""
        if not self.small:
            return ""
        one = len(self.small) == 1
        fits = sorted(self.small)[len(self.small) // 10]
        taken = sum(side >= fits for side in self.small)
        return (
            f"{counted(len(self.small), 'image')} {'is' if one else 'are'} smaller than a patch of {self.patch} px; "
            f"a new store made with --patch {fits} takes {'it' if one else f'{taken} of them'}"
        )


def ingest(
    photos: Sequence[str | Path],
    store: str | Path,
    *,
    patch: int | None = None,
    step: int | None = None,
    shard_size: int = 256_000_000,
    lr: Mapping[int, str] | None = None,
    split: str = "train",
    retry_failed: bool = False,
    engine: Engine = LOCAL,
    part: Part = WHOLE,
    progress: Progress = silent,
) -> IngestReport:
    """Add photographs to a store, which is made if it is not there.

    `photos` are folders, files, tar files and fsspec URLs. `patch` and `step` (px; 480 and 240) are fixed when the
    store is made. A shard holds about `shard_size` bytes. `lr` maps a scale to the folder of its low-resolution
    images (`{2: "DIV2K_train_LR_bicubic/X2"}`), which are kept beside their HR images. Images that the store has
    already are not touched, also where they have no LR image yet: they are counted as `without_lr`.

    `retry_failed`: of `photos` only those are looked at that the store refused, by source and name, whatever their
    bytes are now. What was refused before is then what was found out now: `Store.images` shows every source once.

    On another `engine`, or as one `part` of several runs, sources are examined first and written when all of them are;
    the last part does that. The store's bytes are the same.

    Raises UsageError before anything is written if there are no images, the store is something else, or its grid
    differs, and for a retry also if there is no store, or a refused name is that of several of the photographs. An
    image that is refused is no error: it becomes a row with its reason, and is counted in the report.
    """
    if shard_size < 1:
        raise UsageError(f"a shard should hold 1 byte or more, found {shard_size}")
    require_disk(part, store)
    found = find([str(path) for path in photos])
    pairs = _open_pairs(lr or {}, found.sources)
    lrs = (source for pair in pairs.values() for some in pair.by_path.values() for source in some)
    if engine != LOCAL and not all(source.is_everywhere for source in (*found.sources, *lrs)):
        raise UsageError(
            "workers cannot read a compressed tar file, or memory:// of this process: unpack it into a folder"
        )
    with joined(engine):
        if retry_failed:
            Store.open(store)  # it must be there
        target = _open_or_create(store, patch, step)
        only = _failed_among(found.sources, target) if retry_failed else None
        total = len(found.sources if only is None else only)
        tally = _Tally(total, progress, lambda item: _lr_now(target, item, pairs))
        tally.other_version = sum(unit.fingerprint != FINGERPRINT for unit in target.commits().values())
        survey = Survey.of(target, found.sources, pairs, only)
        if engine == LOCAL and part.is_whole:
            _in_one_go(survey, found.sources, pairs, tally, shard_size, split)
        elif not part.is_whole and survey.only is None and survey.is_listed():
            _part_again(survey, found.sources, pairs, tally, shard_size, split, part)
        else:
            tally.missing = _in_two_goes(survey, pairs, tally, shard_size, split, engine, part)
    return replace(tally.report(found.ignored, target.header.patch), like_lr=_like_lr(found.sources))


def _in_one_go(
    survey: Survey,
    sources: Sequence[Source],
    pairs: Mapping[int, PairedFolder],
    tally: "_Tally",
    shard_size: int,
    split: str,
    wait: bool = False,
) -> None:
    """Each source is read once: examined by several threads ahead, and written by this one."""
    store = survey.store
    with store.writing(wait=wait):
        # Arrow's first table takes 13 MB that it keeps: taken now, they are not on top of what is read meanwhile.
        write_parquet(layout.PATCHES.empty_table(), io.BytesIO())
        known = _Known.of(store, survey.only)
        examiner = Examiner(pairs, frozenset(known.files), store.header.patch, survey.only)
        examined = pool.ahead(examiner.examine, sources)
        items = _new(tally, tally.meter.waiting("decoding", examined), known)
        _commit(survey, _written_here(store, _numbered(store, items, shard_size)), tally, split)
        survey.remove()  # that parts of a run have begun


def _part_again(
    survey: Survey,
    sources: Sequence[Source],
    pairs: Mapping[int, PairedFolder],
    tally: "_Tally",
    shard_size: int,
    split: str,
    part: Part,
) -> None:
    """One part where all was ingested before: the others may not come again, so that it does not wait for them.

    If a file of its own has changed since, it does everything.
    """
    store = survey.store
    examine = Examination(Examiner(pairs, frozenset(_Known.of(store, None).files), store.header.patch)).open()
    mine = [item for chunk in survey.chunks if part.has(chunk.number) for item in examine(chunk)]
    if all(item.known for item in mine):
        sources = []
        tally.total = sum(1 for _ in tally.over(mine))
    _in_one_go(survey, sources, pairs, tally, shard_size, split, wait=True)


def _in_two_goes(
    survey: Survey,
    pairs: Mapping[int, PairedFolder],
    tally: "_Tally",
    shard_size: int,
    split: str,
    engine: Engine,
    part: Part,
) -> int:
    """Each source is read by whoever examines it, and again by whoever writes it. Returns what others must examine."""
    store = survey.store
    with store.writing(shared=not part.is_whole):
        _examine(survey, pairs, engine, part, tally.progress)
        if missing := survey.missing():
            return len(missing)
    with store.writing(wait=not part.is_whole):
        if not survey.missing():  # another part may have come before
            items = _new(tally, survey.examined(), _Known.of(store, survey.only))
            units = _units(_numbered(store, items, shard_size))
            _commit(survey, _written_there(store, units, pairs, survey, engine), tally, split)
            survey.remove()
    return 0


@dataclass(slots=True)
class _Tally:
    """Counts what passes, and tells the progress display."""

    total: int
    progress: Progress
    lr_now: Callable[[Examined], str]
    done: int = 0
    added: int = 0
    known: int = 0
    without_lr: int = 0
    other_lr: int = 0
    other_version: int = 0
    bytes: int = 0
    patches: int = 0
    shards: int = 0
    missing: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    small: list[int] = field(default_factory=list)
    meter: Meter = field(default_factory=lambda: Meter(rest="writing"))

    def over(self, examined: Iterable[Examined]) -> Iterator[Examined]:
        for item in examined:
            self.done += 1
            taken = item.known and item.status == STATUS_OK
            self.known += taken
            lr = self.lr_now(item) if taken else ""
            self.without_lr += lr == "none"
            self.other_lr += lr == "other"
            self.added += bool(item.pictures)
            self.bytes += item.size
            if item.status != STATUS_OK:
                self.refused.append((f"{item.source.source}/{item.source.name}", item.status))
            if item.status.startswith(TOO_SMALL) and item.height and item.width:
                self.small.append(windows.cropped(min(item.height, item.width)))
            self.meter.add(pixels=(item.height or 0) * (item.width or 0))
            refused = f"{len(self.refused)} refused" if self.refused else ""
            self.progress(self.done, self.total, self.meter.note(refused))
            yield item

    def report(self, ignored: int, patch: int) -> IngestReport:
        return IngestReport(
            added=self.added,
            refused=self.refused,
            known=self.known,
            without_lr=self.without_lr,
            other_lr=self.other_lr,
            other_version=self.other_version,
            ignored=ignored,
            shards=self.shards,
            patches=self.patches,
            bytes=self.bytes,
            patch=patch,
            small=self.small,
            missing=self.missing,
        )


_LR_NAME = re.compile(r"(.+)x[2348]")  # as in DIV2K: 0001x2.png


def _like_lr(sources: Sequence[Source]) -> list[str]:
    """The names of those that are called as LR images of others among them."""
    stems = {PurePosixPath(source.name).stem for source in sources}
    matches = ((source.name, _LR_NAME.fullmatch(PurePosixPath(source.name).stem)) for source in sources)
    return [name for name, match in matches if match and match[1] in stems]


def _open_pairs(lr: Mapping[int, str], sources: Sequence[Source]) -> dict[int, PairedFolder]:
    """The LR folders by scale. UsageError if one has no images, or is not one to one with the sources."""
    if not lr.keys() <= {2, 3, 4}:
        raise UsageError(f"LR images should be of scale 2, 3 or 4, found {listed(lr)}")
    pairs = {scale: PairedFolder.open(folder, scale) for scale, folder in sorted(lr.items())}
    for scale, pair in pairs.items():
        owners: dict[Source, str] = {}
        for source in sources:
            found = pair.lookup(source.name)
            first = found and owners.setdefault(found, source.name)
            if found and first != source.name:
                both = f"'{one_line(first)}' and '{one_line(source.name)}'"
                raise UsageError(f"'{one_line(found.name)}' would be the x{scale} LR image of both {both}")
    return pairs


def _lr_now(store: Store, known: Examined, pairs: Mapping[int, PairedFolder]) -> str:
    """Whether an image that the store took before has `none` of the LR images asked for, or `other` ones; else ''."""
    image_id = (known.sha256 or "")[:16]
    if store.cell(image_id) is None:
        return ""
    there = {scale: store.cell(image_id, f"lr{scale}") for scale in pairs}
    if None in there.values():
        return "none"
    now = {scale: pair.lookup(known.source.name) for scale, pair in pairs.items()}
    same = all(cell and (lr := now[scale]) and _holds(lr, cell) for scale, cell in there.items())
    return "" if same else "other"


def _holds(source: Source, cell: Cell) -> bool:
    """Whether a file has the bytes of a cell."""
    try:
        data = source.read()
    except OSError:
        return False
    return (len(data), xxhash.xxh3_64_intdigest(data)) == (cell.size, cell.xxh3)


def _open_or_create(store: str | Path, patch: int | None, step: int | None) -> Store:
    path = storage.place(store, "a store")
    if not Store.is_store(path):
        size = _DEFAULT_PATCH if patch is None else patch
        try:
            return Store.create(path, patch=size, step=max(size // 2, 1) if step is None else step)
        except CurateError:
            if not Store.is_store(path):  # else another run has made it in this moment
                raise
    opened = Store.open(path)
    opened.require_whole("added to")
    if opened.header.distilled is not None:
        raise UsageError(
            f"'{one_line(store)}' is distilled, its patches were made for one manifest, and cannot be added to; "
            "ingest photographs into another store"
        )
    grid = (opened.header.patch, opened.header.step)
    asked = (grid[0] if patch is None else patch, grid[1] if step is None else step)
    if asked != grid:
        raise UsageError(
            f"'{one_line(store)}' has windows of {grid[0]} px every {grid[1]} px, asked for {asked[0]}/{asked[1]}; "
            "a store has one grid: make another store"
        )
    return opened


_Place = tuple[str, str]  # source, name
_Refusal = tuple[str | None, str]  # SHA-256, reason


def _failed(store: Store) -> dict[_Place, list[_Refusal]]:
    """The refusals that no retry has settled."""
    failed: dict[_Place, list[_Refusal]] = {}
    for row in store.images().filter(pc.field("status") != STATUS_OK).to_pylist():
        failed.setdefault((row["source"], row["name"]), []).append((row["sha256"], row["status"]))
    return failed


def _failed_among(sources: Iterable[Source], store: Store) -> set[_Place]:
    """Where the sources are that the store has refused. UsageError if two of them cannot be told apart."""
    failed, found = _failed(store).keys(), set[_Place]()
    for source in sources:
        if (place := (source.source, source.name)) in failed:
            if place in found:
                twice = f"'{one_line(source.name)}', refused before, is in two folders called '{one_line(place[0])}'"
                raise UsageError(f"{twice}: retry them one after the other")
            found.add(place)
    return found


@dataclass(slots=True)
class _Known:
    """What the store has seen: source files as (source, name, sha256), and the images taken as image_id -> sha256."""

    files: set[tuple[str, str, str | None]]  # of a retry: those that were taken
    taken: dict[str, str]
    failed: dict[_Place, list[_Refusal]] | None  # what a retry looks at again; None: it is none

    @classmethod
    def of(cls, store: Store, only: Set[_Place] | None) -> "_Known":
        rows = store.images(history=True).select(["source", "name", "sha256", "image_id", "status"]).to_pylist()
        taken = [row for row in rows if row["status"] == STATUS_OK]
        return cls(
            {(row["source"], row["name"], row["sha256"]) for row in (rows if only is None else taken)},
            {row["image_id"]: row["sha256"] for row in taken},
            None if only is None else {place: found for place, found in _failed(store).items() if place in only},
        )

    def new(self, item: Examined) -> Examined:
        """The item, or, if it shows a photograph that was taken, a refused copy."""
        self.files.add(item.file)
        image_id, sha256 = item.image_id, item.sha256
        if image_id is None or sha256 is None:
            return item
        if image_id not in self.taken:
            self.taken[image_id] = sha256
            return item
        if (first := self.taken[image_id]) != sha256:
            raise DataError(f"two photographs share the image id {image_id}: SHA-256 {first} and {sha256}")
        return replace(item, status=f"copy of {image_id}", pictures={}, data={})


def _only_new(examined: Iterable[Examined], known: _Known) -> Iterator[Examined]:
    """Pass everything on; a source seen before becomes known, a second copy of a photograph refused. Adds to `known`.

    What this run has seen counts as what the store has: an interrupted run, run again, cannot tell the two apart.
    """
    for item in examined:
        if item.file in known.files:
            yield replace(item, status=STATUS_OK, pictures={}, data={}, known=True)
        else:
            yield known.new(item)


def _again(examined: Iterable[Examined], known: _Known, failed: dict[_Place, list[_Refusal]]) -> Iterator[Examined]:
    """What was refused, each place once: known where it was taken since, or is refused as it was. Adds to `known`."""
    for item in examined:
        if (item.known and item.sha256 is None) or (before := failed.pop(item.place, None)) is None:
            continue  # it was not looked at, or is settled
        if item.file in known.files:
            yield replace(item, status=STATUS_OK, pictures={}, data={}, known=True)
        else:
            found = known.new(item)
            yield replace(found, known=before == [(found.sha256, found.status)])


def _new(tally: _Tally, examined: Iterable[Examined], known: _Known) -> Iterator[Examined]:
    """Those that the store does not have yet, or of a retry, those that are not what they were."""
    if known.failed is None:
        return (item for item in tally.over(_only_new(examined, known)) if not item.known)
    found = tally.over(_again(examined, known, known.failed))
    return (item for item in found if not item.known or item.status == STATUS_OK)


def _numbered(store: Store, items: Iterable[Examined], shard_size: int) -> Iterator[tuple[int, Examined]]:
    """Items with the numbers of their shards: greedily, in order, so that where a run was cut off does not matter."""
    unit, rows, size = max(store.commits(), default=-1) + 1, 0, 0
    for item in items:
        full = size > 0 and item.size > 0 and size + item.size > shard_size
        if full or rows == MAX_ROWS:
            unit, rows, size = unit + 1, 0, 0
        rows, size = rows + 1, size + item.size
        yield unit, item


# --- shards -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Unit:
    """What goes into one shard."""

    number: int
    items: Sequence[Examined]  # without their bytes


@dataclass(frozen=True, slots=True)
class _Shard:
    """A tar that was published."""

    file: FilePart
    offsets: dict[str, int]  # by member


def _units(numbered: Iterable[tuple[int, Examined]]) -> Iterator[_Unit]:
    for number, group in groupby(numbered, key=itemgetter(0)):
        yield _Unit(number, [item for _, item in group])


def _written_here(store: Store, numbered: Iterable[tuple[int, Examined]]) -> Iterator[tuple[_Unit, _Shard]]:
    """Shards of items with their bytes. Of one that is written its row is kept: memory does not grow with the shard."""
    for number, group in groupby(numbered, key=itemgetter(0)):
        rows: list[Examined] = []
        shard = _write_shard(store, number, _noted((item for _, item in group), rows))
        yield _Unit(number, rows), shard


def _noted(items: Iterable[Examined], rows: list[Examined]) -> Iterator[Examined]:
    for item in items:
        rows.append(item.without_data())
        yield item


def _written_there(
    store: Store, units: Iterable[_Unit], pairs: Mapping[int, PairedFolder], survey: Survey, engine: Engine
) -> Iterator[tuple[_Unit, _Shard]]:
    """Shards of items whose bytes are read again, by workers."""
    try:
        yield from run(_Writing(store.path.resolve(), pairs), units, engine)
    except ChangedError:
        survey.remove()
        raise
    if engine != LOCAL:
        storage.remove_leftovers(store.path / "shards")  # of a worker that died


@dataclass(frozen=True, slots=True)
class _Writing:
    """The job of writing a shard."""

    store: Place
    pairs: Mapping[int, PairedFolder]

    def open(self) -> Callable[[_Unit], _Shard]:
        store = Store.open(self.store)
        read = partial(read_again, pairs=self.pairs)
        return lambda unit: _write_shard(store, unit.number, pool.ahead(read, unit.items))

    def name(self, unit: _Unit) -> str:
        return f"shard {unit.number:06d}"


def _examine(survey: Survey, pairs: Mapping[int, PairedFolder], engine: Engine, part: Part, progress: Progress) -> None:
    """Examine the chunks of this part that are missing."""
    known = _Known.of(survey.store, survey.only)
    job = Examination(Examiner(pairs, frozenset(known.files), survey.store.header.patch, survey.only))
    todo = [chunk for chunk in survey.missing() if part.has(chunk.number)]
    done, total = 0, sum(len(chunk.sources) for chunk in todo)
    for chunk, examined in run(job, todo, engine):
        if engine != LOCAL:
            _require_unreadable_here(job.examiner, examined)
        survey.keep(chunk, examined)
        done += len(examined)
        progress(done, total, "examined")


def _require_unreadable_here(examiner: Examiner, examined: Sequence[Examined]) -> None:
    """UsageError for a photograph that a worker cannot read, and this process can: it must not be refused for that."""
    for item in examined:
        if UNREADABLE in item.status and UNREADABLE not in examiner.examine(item.source).status:
            said = f"a worker of Ray says of '{one_line(item.source.name)}': {item.status}; here it can be read"
            raise UsageError(f"{said}: workers need the same files, and the same address of an object store")


def _write_shard(store: Store, unit: int, items: Iterable[Examined]) -> _Shard:
    path = store.shard_path(unit)
    members = ((_member(item, role), item.data[role]) for item in items for role in item.pictures)
    digest, offsets = write_tar(path, members)
    return _Shard(store.part(path, digest), offsets)


def _commit(survey: Survey, shards: Iterable[tuple[_Unit, _Shard]], tally: _Tally, split: str) -> None:
    """Publish the tables of each shard and commit it, in the order of their numbers."""
    store = survey.store
    for unit, shard in shards:
        taken = [(str(i.image_id), i.pictures["hr"].height, i.pictures["hr"].width) for i in unit.items if i.pictures]
        patches = patch_table(taken, store.header.patch, store.header.step)
        parts = [shard.file]
        parts.append(store.write_table("images", unit.number, _image_table(unit.items, split)))
        parts.append(store.write_table("cells", unit.number, _cell_table(unit.items, shard.offsets)))
        parts.append(store.write_table("patches", unit.number, patches))
        if survey.only is not None:
            parts.append(store.write_table("retried", unit.number, _retried_table(unit.items)))
        store.commit(INGEST, unit.number, FINGERPRINT, parts)
        tally.patches += patches.num_rows
        tally.shards += 1


def _member(item: Examined, role: str) -> str:
    """`{image_id}.png`, `{image_id}.lr2.png`: WebDataset takes what is before the first dot for the key."""
    return f"{item.image_id}{'' if role == 'hr' else '.' + role}{item.pictures[role].suffix}"


def _image_table(group: Sequence[Examined], split: str) -> pa.Table:
    rows = [
        {
            "image_id": item.image_id,
            "name": item.source.name,
            "sha256": item.sha256,
            "height": item.height,
            "width": item.width,
            "status": item.status,
            "source": item.source.source,
            "split": split,
        }
        for item in group
        if not item.known
    ]
    return pa.Table.from_pylist(rows, layout.IMAGES)


def _retried_table(group: Sequence[Examined]) -> pa.Table:
    places = [item.place for item in group]
    return pa.Table.from_pylist(
        [dict(zip(layout.RETRIED.names, place, strict=True)) for place in places], layout.RETRIED
    )


def _cell_table(group: Sequence[Examined], offsets: Mapping[str, int]) -> pa.Table:
    rows = [
        {
            "image_id": item.image_id,
            "y": 0,
            "x": 0,
            "height": picture.height,
            "width": picture.width,
            "role": role,
            "offset": offsets[_member(item, role)],
            "size": picture.size,
            "xxh3": picture.xxh3,
        }
        for item in group
        for role, picture in item.pictures.items()
    ]
    return pa.Table.from_pylist(rows, layout.CELLS)


def patch_table(images: Iterable[tuple[str, int, int]], size: int, step: int) -> pa.Table:
    """The windows of images (image_id, height, width) on the grid; columns as `layout.PATCHES`."""
    corners = [(image_id, windows.grid(height, width, size, step)) for image_id, height, width in images]
    ids = [image_id for image_id, corners_N2 in corners for _ in corners_N2]
    y, x = np.concatenate([np.empty((0, 2), np.int32), *(corners_N2 for _, corners_N2 in corners)]).T
    names = [windows.patch_id(*window, size) for window in zip(ids, y.tolist(), x.tolist(), strict=True)]
    return pa.table([names, ids, y, x, np.full(len(ids), size, np.int32)], schema=layout.PATCHES)
