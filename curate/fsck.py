"""A store, file by file and byte by byte: is each what its record says, and do they agree?

`look` reads the documents and lists the folders: every record parses, every file that one names is there with its size,
nothing else is. `faults_within` reads all the rest: hashes of files, each member of a shard against the tables, windows
against the grid, ids of scores and findings against those of the patches. Nothing here raises for damage: what is wrong
is a `Fault`, and what is whole is looked at all the same.

Who vouches for what: a commit record for its files (xxh3-128); each document for itself (`schema.Sealed`); the table of
cells for the members of a shard (xxh3-64), an image's id for its file (SHA-256).
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from curate import checks, files, ingestion, pool, schema, storage
from curate.errors import CurateError, DataError, one_line
from curate.ingestion import patch_table
from curate.layout import OF_SHARD
from curate.packing import MANIFEST_FILE
from curate.progress import Progress
from curate.records import Committed, Records
from curate.retries import Refusals, sources
from curate.schema import STATUS_OK, CheckRecord, CommitRecord, Part, ScorerRecord, StoreHeader
from curate.storage import Place
from curate.store import INGEST, Store

__all__ = [
    "HARMLESS",
    "HEADER",
    "Fault",
    "Kind",
    "Look",
    "faults_of_shard",
    "faults_within",
    "is_store",
    "look",
    "names",
    "parts_of",
    "table",
    "table_of",
]

Kind = Literal["damaged", "missing", "stale", "foreign", "changed", "gone", "leftover", "new"]
HARMLESS: tuple[Kind, ...] = ("leftover", "new")

HEADER = "store.json"
_OF_SOME = ("retried",)  # tables that not every shard has
_SET_FILES = {"scores": "scorer.json", "checks": "check.json"}
_RUN = "distill/"  # the folder of a distillation's own files: its curves, and until it has ended its state
_UNIT = re.compile(r"(\d{6,})\.(?:tar|parquet)")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a store."""

    kind: Kind
    path: str  # below the store
    problem: str  # what was found, and what it should be
    work: str = ""  # the kind of commit that the file belongs to: ingest, scores/srcnn@0a1b2c3d; "" for none
    unit: int | None = None  # of that work
    image_id: str | None = None  # if it is that image alone
    role: str = "hr"


@dataclass
class Look:
    """A store as its documents and folders show it."""

    path: Place
    header: StoreHeader | None = None  # None if it is damaged or missing
    commits: dict[str, dict[int, Committed]] = field(default_factory=dict)  # by kind of work; whole records
    lost: dict[str, set[int]] = field(default_factory=dict)  # by kind of work; units that are to have a record
    sets: dict[str, ScorerRecord | CheckRecord] = field(default_factory=dict)  # by kind of work; whole ones
    sizes: dict[str, int] = field(default_factory=dict)  # of all files, by name below the store
    manifests: list[str] = field(default_factory=list)  # files beside the header that may be some
    faults: list[Fault] = field(default_factory=list)

    @property
    def units(self) -> dict[int, Committed]:
        """The shards."""
        return self.commits.get(INGEST, {})

    @property
    def is_packed(self) -> bool:
        return self.header is not None and self.header.packed is not None

    @property
    def has_whole_images(self) -> bool:
        return self.header is not None and self.header.packed is None

    @property
    def ends_with_manifest(self) -> bool:
        """Whether the store's own manifest is written last: it is packed or distilled."""
        return self.header is not None and (self.header.packed or self.header.distilled) is not None

    @property
    def fingerprint(self) -> str:
        """Of the shards of a store that is not packed, as they are written today."""
        made_from = None if self.header is None else self.header.distilled
        return ingestion.FINGERPRINT if made_from is None else made_from.fingerprint

    def digest(self, shards: int) -> str:
        """As `Store.digest`, of what is there."""
        return hashlib.sha256(b"".join(found.data for found in list(self.units.values())[:shards])).hexdigest()

    def parts(self) -> Iterator[tuple[str, int, Part]]:
        """Every file that a record names, with the kind of work and the unit."""
        for work, units in self.commits.items():
            for unit, found in units.items():
                yield from ((work, unit, part) for part in found.record.parts)

    def add(self, kind: Kind, path: str, problem: str, work: str = "", unit: int | None = None) -> None:
        self.faults.append(Fault(kind, path, problem, work, unit))


def is_store(path: Place) -> bool:
    """Whether there is a store at `path`, perhaps one without its header."""
    return Store.is_store(path) or bool(storage.entries(path / "commits" / INGEST))


def look(path: Place) -> Look:
    """Everything that can be said of a store without reading shards and tables."""
    found = Look(path)
    _read_header(found)
    for work in _works(path):
        records = Records(path.joinpath("commits", *work.split("/")))
        found.commits[work], problems, found.lost[work] = records.survey()
        for name, problem in problems:
            found.add("damaged", f"commits/{work}/{name}", problem, work)
    found.sizes = storage.tree(path)
    for work in sorted(work for work in found.commits if work.partition("/")[0] in _SET_FILES) + _bare_sets(found):
        _read_set(found, work)
    _check_files(found)
    _check_units(found)
    _check_fingerprints(found)
    _check_the_rest(found)
    return found


def _works(path: Place) -> list[str]:
    """The kinds of work that have records."""
    several = ("scores", "checks", "examined")
    below = [f"{kind}/{name}" for kind in several for name in storage.folders(path / "commits" / kind)]
    return [INGEST, *below]


def _bare_sets(found: Look) -> list[str]:
    """Scorers and checks that have no records yet."""
    paths = [name.split("/") for name in found.sizes if name.startswith(("tables/scores/", "tables/checks/"))]
    return sorted({"/".join(parts[1:3]) for parts in paths if len(parts) == 4} - found.commits.keys())


# --- documents --------------------------------------------------------------------------------------------------------


def _read_header(found: Look) -> None:
    path = found.path / HEADER
    try:
        data = path.read_bytes()
        found.header = schema.parse(StoreHeader, data, HEADER)
        if not schema.is_as_written(found.header, data, indent=2):
            found.add("damaged", HEADER, "it is not as curate writes it")
    except FileNotFoundError:
        found.add("missing", HEADER, "the store has no header")
    except OSError as error:
        found.add("damaged", HEADER, f"it cannot be read: {error.strerror}")
    except DataError as error:
        found.add("damaged", HEADER, str(error))


def _read_set(found: Look, work: str) -> None:
    kind, _, folder = work.partition("/")
    name = f"tables/{work}/{_SET_FILES[kind]}"
    model: type[ScorerRecord] | type[CheckRecord] = ScorerRecord if kind == "scores" else CheckRecord
    if name not in found.sizes:
        found.add("missing", name, "it should say what made these tables", work)
        return
    try:
        data = (found.path / name).read_bytes()
        record = schema.parse(model, data, name)
    except OSError as error:
        found.add("damaged", name, f"it cannot be read: {error.strerror}", work)
        return
    except DataError as error:
        found.add("damaged", name, str(error), work)
        return
    plugin = record.scorer if isinstance(record, ScorerRecord) else record.check
    unsealed = not schema.is_sealed(data)
    if folder != f"{plugin}@{record.fingerprint[:8]}" or (unsealed and _fingerprint(record) != record.fingerprint):
        found.add("damaged", name, "it says something else than its fingerprint does", work)
    elif not schema.is_as_written(record, data, indent=2):
        found.add("damaged", name, "it is not as curate writes it", work)
    else:
        found.sets[work] = record


def _fingerprint(record: ScorerRecord | CheckRecord) -> str:
    if isinstance(record, ScorerRecord):
        return checks.digest([record.scorer, record.columns, record.identity])
    if record.check == "duplicates":
        return checks.digest([record.label, record.version])
    return checks.digest(["leaks", record.label, record.version, record.identity])


# --- files ------------------------------------------------------------------------------------------------------------


def names(work: str, unit: int) -> tuple[list[str], list[str]]:
    """The files that every unit has, and those that it may have beside them, as its record names them."""
    if work != INGEST:
        return [f"tables/{work}/{unit:06d}.parquet"], []
    tables = {name: f"tables/{name}/{unit:06d}.parquet" for name in OF_SHARD}
    more = [tables.pop(name) for name in _OF_SOME]
    return [f"shards/{unit:06d}.tar", *tables.values()], more


def _all_names(work: str, unit: int) -> list[str]:
    own, more = names(work, unit)
    return own + more


def parts_of(record: CommitRecord) -> dict[str, Part]:
    """The files of a shard, by folder: shards, images, cells, patches, and of a retry retried."""
    return {part.path.split("/")[-2]: part for part in record.parts}


def _check_files(found: Look) -> None:
    """What records name should be there."""
    for work, units in found.commits.items():
        for unit, committed in list(units.items()):
            own, more = names(work, unit)
            paths = [part.path for part in committed.record.parts]
            if sorted(paths) != sorted(own + [path for path in more if path in paths]):
                name = storage.relative_name(committed.where, found.path)
                found.add("damaged", name, f"the record of unit {unit} names other files than its own", work, unit)
                del units[unit]
                found.lost[work].add(unit)
    for work, unit, part in found.parts():
        size = found.sizes.get(part.path)
        if size is None:
            found.add("missing", part.path, f"it should have {part.bytes} bytes", work, unit)
        elif size != part.bytes:
            found.add("damaged", part.path, f"it should have {part.bytes} bytes, found {max(size, 0)}", work, unit)


def _check_units(found: Look) -> None:
    """Shards are numbered without a gap, and scored as they are."""
    units, lost = found.units, found.lost[INGEST]
    known = [*units, *lost, *(unit for work in found.sets for unit in found.commits.get(work, {}))]
    unfinished = found.ends_with_manifest and MANIFEST_FILE not in found.sizes
    if unfinished:
        command = "pack" if found.is_packed else "distill"
        ended = f"the {command} has not ended, or it is lost; run curate {command} again"
        found.add("missing", MANIFEST_FILE, f"it is written last: {ended}")
    for unit in [] if unfinished and found.is_packed else range(max(known, default=-1) + 1):
        if unit not in units and unit not in lost:
            name = f"commits/{INGEST}/{unit:06d}.json"
            found.add("missing", name, f"there is no record of shard {unit}, and there are others", INGEST, unit)
            lost.add(unit)
    for work in found.sets:
        for unit, committed in found.commits.get(work, {}).items():
            if work.startswith("scores/") and unit in units and found.has_whole_images:
                rows, expected = Store.rows(committed.record, work), Store.rows(units[unit].record, "patches")
                if rows != expected:
                    path = committed.record.parts[0].path
                    found.add("stale", path, f"it should have {expected} scores, found {rows}", work, unit)


def _check_fingerprints(found: Look) -> None:
    """Scores and findings are of the shards as they are now."""
    if not found.has_whole_images:
        return  # what a packed store's were made from is elsewhere
    growing = {work: hashlib.sha256(json.dumps([record.fingerprint])[:-1].encode()) for work, record in _checks(found)}
    for unit, committed in found.units.items():
        mark, hashes = committed.record.fingerprint, [part.xxh3 for part in committed.record.parts]
        if found.ends_with_manifest and mark != found.fingerprint:
            where = storage.relative_name(committed.where, found.path)
            found.add("damaged", where, f"unit {unit} is of another distillation than {HEADER} says", INGEST, unit)
        elif mark not in ingestion.FINGERPRINTS and not schema.is_sealed(committed.data):
            where = storage.relative_name(committed.where, found.path)
            found.add("damaged", where, f"the record of unit {unit} has a fingerprint that is none", INGEST, unit)
        expected = {
            work: checks.digest([record.fingerprint, *hashes])
            for work, record in found.sets.items()
            if work not in growing
        }
        for (
            work,
            digest,
        ) in growing.items():  # `checks.digest` of all hashes up to here, without going through them again
            digest.update("".join(f", {json.dumps(text)}" for text in hashes).encode())
            whole = digest.copy()
            whole.update(b"]")
            expected[work] = whole.hexdigest()[:16]
        for work, fingerprint in expected.items():
            made = found.commits.get(work, {}).get(unit)
            if made is not None and made.record.fingerprint != fingerprint:
                path = made.record.parts[0].path
                found.add("stale", path, "it was made from other bytes of the shard than are there", work, unit)


def _checks(found: Look) -> list[tuple[str, ScorerRecord | CheckRecord]]:
    return [(work, record) for work, record in found.sets.items() if _kind(work) == "checks"]


def _kind(work: str) -> str:
    """`scores` of `scores/srcnn@0a1b2c3d`."""
    return work.partition("/")[0]


def _check_the_rest(found: Look) -> None:
    """What no record names."""
    named = {part.path for _, _, part in found.parts()} | {HEADER}
    named |= {f"tables/{work}/{_SET_FILES[_kind(work)]}" for work in found.sets}
    named |= {fault.path for fault in found.faults}
    for name in found.sizes.keys() - named:
        folder, _, last = name.rpartition("/")
        if last.startswith(".") and last.endswith(".tmp"):
            found.add("leftover", name, "a temporary file of a run that was killed; the next one removes it")
        elif folder.startswith("commits/") and Records.is_record(last) and folder[8:] in found.commits:
            continue
        elif (match := _UNIT.fullmatch(last)) and name in _all_names(_work_of(folder), int(match[1])):
            _unfinished(found, name, _work_of(folder), int(match[1]))
        elif name.startswith(_RUN) and (found.header is None or found.header.distilled is not None):
            continue  # what is in it is looked at by those that read it
        elif not folder and last.endswith(".parquet"):
            found.manifests.append(name)
        else:
            found.add("foreign", name, "curate has not written it, or its record is lost")


def _work_of(folder: str) -> str:
    """The kind of work whose files lie in a folder."""
    return folder[7:] if folder.startswith(("tables/scores/", "tables/checks/", "tables/examined/")) else INGEST


def _unfinished(found: Look, name: str, work: str, unit: int) -> None:
    """A file of a unit without a record: it is to be expected of a run that was killed, of its next unit."""
    later = max(found.commits.get(work, {}), default=-1)
    if unit in found.commits.get(work, {}):
        found.add("leftover", name, "the record of its unit does not name it: what a killed run left", work, unit)
        return
    if unit in found.lost.get(work, ()) or (work == INGEST and unit < later):
        return  # told as a damaged or missing record
    if work != INGEST and _kind(work) != "examined" and (work not in found.sets or unit not in found.units):
        found.add("foreign", name, "there is no such shard, or no such scorer or check", work, unit)
        return
    found.add("leftover", name, "no record names it: what a killed run left, or its record is lost", work, unit)


# --- bytes ------------------------------------------------------------------------------------------------------------


class _Unit(NamedTuple):
    work: str
    number: int


def faults_within(found: Look, progress: Progress) -> Iterator[Fault]:
    """What is wrong inside files that are there with their sizes. Everything is read; several threads do it."""
    units = [_Unit(work, number) for work, records in found.commits.items() for number in records]
    total = sum(len(found.commits[unit.work][unit.number].record.parts) for unit in units)
    done = size = 0
    earlier = _Earlier()
    for unit, faults in zip(units, pool.ahead(partial(_check_unit, found), units), strict=True):
        yield from faults
        parts = found.commits[unit.work][unit.number].record.parts
        if unit.work == INGEST:
            yield from earlier.add(found, unit.number)
        done, size = done + len(parts), size + sum(part.bytes for part in parts)
        progress(done, total, f"{size / 1e6:.0f} MB")


def _check_unit(found: Look, unit: _Unit) -> list[Fault]:
    record = found.commits[unit.work][unit.number].record
    if unit.work == INGEST:
        return list(faults_of_shard(found, record))
    return list(_check_table(found, unit, record.parts[0]))


def table(found: Look, part: Part) -> pa.Table | None:
    """A table whose bytes are those of its record; None if they are not."""
    try:
        data = (found.path / part.path).read_bytes()
        if xxhash.xxh3_128_hexdigest(data) != part.xxh3:
            return None
        return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)  # units are read by several threads
    except (OSError, CurateError, pa.ArrowException):
        return None


def table_of(found: Look, unit: int, name: str) -> pa.Table | None:
    """A table of a shard; None if it is damaged or has other columns, or the shard has none of that name."""
    part = parts_of(found.units[unit].record).get(name) if unit in found.units else None
    content = None if part is None else table(found, part)
    return content if content is not None and content.schema.equals(OF_SHARD[name]) else None


def faults_of_shard(found: Look, record: CommitRecord) -> Iterator[Fault]:
    """What is wrong inside the files of a shard."""
    unit = record.unit
    parts = parts_of(record)
    told = {fault.path for fault in found.faults}
    tables = {name: table(found, part) for name, part in parts.items() if name in OF_SHARD}
    for name, content in tables.items():
        path = parts[name].path
        if content is None and path not in told:
            yield Fault("damaged", path, "its hash is not the one in its record", INGEST, unit)
        elif content is not None and not content.schema.equals(OF_SHARD[name]):
            yield Fault("damaged", path, f"it has other columns: {one_line(content.schema.names)}", INGEST, unit)
            tables[name] = None
    images, cells, patches, retried = map(tables.get, OF_SHARD)
    if parts["shards"].path in found.sizes:
        yield from _check_tar(found, unit, parts["shards"], images, cells)
    if images is not None and cells is not None:
        yield from _check_cells(parts["cells"].path, unit, images, cells)
    if images is not None and patches is not None and found.header is not None:
        yield from _check_windows(found.header, parts["patches"].path, unit, images, patches)
    if images is not None and retried is not None:
        yield from _check_retried(parts["retried"].path, unit, images, retried)


def _check_tar(found: Look, unit: int, part: Part, images: pa.Table | None, cells: pa.Table | None) -> Iterator[Fault]:
    whole = {row["image_id"]: row["sha256"] for row in _taken(images)}
    try:
        with storage.local_copy(found.path / part.path) as copy:
            changed = files.file_hash(copy) != part.xxh3
            bad = list(_bad_members(copy, unit, cells, {} if found.is_packed else whole))
    except (OSError, CurateError) as error:
        yield Fault("damaged", part.path, f"it cannot be read: {one_line(error)}", INGEST, unit)
        return
    for image_id, role, problem in bad:
        yield Fault("damaged", part.path, problem, INGEST, unit, image_id, role)
    if changed and not bad:
        what = "its hash is not the one in its record"
        if cells is not None:
            what = "its images are whole, but bytes between them have changed: headers, padding or the end of the tar"
        if found.sizes[part.path] == part.bytes:  # else that is told already
            yield Fault("damaged", part.path, what, INGEST, unit)


def _bad_members(
    tar: Path, unit: int, cells: pa.Table | None, sha256: dict[str, str]
) -> Iterator[tuple[str, str, str]]:
    """(image_id, role, what is wrong) of the members that are not what the tables say."""
    if cells is None:
        return
    with tar.open("rb") as file:
        for row in cells.to_pylist():
            data = os.pread(file.fileno(), row["size"], row["offset"])
            image_id, role = row["image_id"], row["role"]
            if len(data) != row["size"]:
                yield image_id, role, f"cut off after {len(data)} of {row['size']} bytes"
            elif xxhash.xxh3_64_intdigest(data) != row["xxh3"]:
                yield image_id, role, "its bytes are not those that were stored"
            elif role == "hr" and image_id in sha256 and hashlib.sha256(data).hexdigest() != sha256[image_id]:
                yield image_id, role, "its SHA-256 is not the one in the table of images"


def _taken(images: pa.Table | None) -> list[dict[str, Any]]:
    """The rows of images that were taken."""
    if images is None:
        return []
    rows: list[dict[str, Any]] = images.filter(pc.equal(images["status"], STATUS_OK)).to_pylist()
    return rows


def _check_cells(path: str, unit: int, images: pa.Table, cells: pa.Table) -> Iterator[Fault]:
    expected = [row["image_id"] for row in _taken(images)]
    found = cells.filter(pc.equal(cells["role"], "hr"))["image_id"].to_pylist()
    if list(dict.fromkeys(found)) != expected:
        yield Fault("damaged", path, "its images are not those of the table of images", INGEST, unit)


def _check_windows(header: StoreHeader, path: str, unit: int, images: pa.Table, patches: pa.Table) -> Iterator[Fault]:
    """The windows of a store are those of its grid; of a packed one they are some of these."""
    sizes = [(row["image_id"], row["height"], row["width"]) for row in _taken(images)]
    expected = patch_table(sizes, header.patch, header.step)
    if header.packed is not None:  # the chosen ones, in order
        expected = expected.filter(pc.is_in(expected["patch_id"], patches["patch_id"].combine_chunks()))
    if not patches.equals(expected):
        problem = f"its windows are not those of a grid of {header.patch} px every {header.step} px"
        yield Fault("damaged", path, problem, INGEST, unit)


def _check_retried(path: str, unit: int, images: pa.Table, retried: pa.Table) -> Iterator[Fault]:
    """A retry settles what it has found out, in that order, and what was taken before."""
    settled, found = sources(retried), sources(images)
    here = set(found)
    if len(set(settled)) < len(settled):
        yield Fault("damaged", path, "it has a source twice", INGEST, unit)
    elif [source for source in settled if source in here] != found:
        yield Fault(
            "damaged", path, "it lacks sources of the table of images, or has them in another order", INGEST, unit
        )


def _check_table(found: Look, unit: _Unit, part: Part) -> Iterator[Fault]:
    """A table of scores, of findings, or of what was examined."""
    if found.sizes.get(part.path) != part.bytes:
        return  # told already
    content = table(found, part)
    if content is None:
        yield Fault("damaged", part.path, "its hash is not the one in its record", *unit)
        return
    ingested = found.units.get(unit.number)
    if ingested is None or _kind(unit.work) == "examined":
        return
    name, column = ("patches", "patch_id") if _kind(unit.work) == "scores" else ("images", "image_id")
    beside = parts_of(ingested.record)[name]
    rows = table_of(found, unit.number, name)
    if rows is None or column not in content.column_names:
        return
    if found.is_packed or name == "images":
        agree = pc.all(pc.is_in(content[column], rows[column])).as_py() is not False
    else:
        agree = content[column].equals(rows[column])
    if not agree:
        yield Fault("damaged", part.path, f"its ids are not those of {beside.path}", *unit)


@dataclass
class _Earlier:
    """What was seen in the shards before."""

    shards: dict[str, int] = field(default_factory=dict)  # of the images
    refusals: Refusals = field(default_factory=Refusals)
    next: int = 0

    def add(self, found: Look, unit: int) -> Iterator[Fault]:
        """What is wrong between a shard and those before it: images that come again, refusals that never were."""
        parts = parts_of(found.units[unit].record)
        images, retried = (table_of(found, unit, name) for name in ("images", "retried"))
        for row in _taken(images):
            if (first := self.shards.setdefault(row["image_id"], unit)) != unit:
                problem = f"image {row['image_id']} is in shard {first} already"
                yield Fault("damaged", parts["images"].path, problem, INGEST, unit, row["image_id"])
        if unit > self.next:
            self.refusals.is_complete = False  # the record of one between is lost
        if retried is not None and self.refusals.is_complete:
            for source, name in sources(retried):
                if (source, name) not in self.refusals.sources:
                    problem = f"'{one_line(source)}/{one_line(name)}' was not refused before"
                    yield Fault("damaged", parts["retried"].path, problem, INGEST, unit)
        self.refusals.add(images, retried)
        self.next = unit + 1
