"""The Store: photographs in tar shards, and tables about them. The only module that knows the disk layout.

    store.json                          StoreHeader: format version, grid, what it was packed from
    shards/000007.tar                   {image_id}.png|jpg|...  the source file's bytes, verbatim; {image_id}.lr2.png
                                        {image_id}.{y}_{x}.webp, {image_id}.lr2.{y}_{x}.webp packed cells, or png
    tables/images|cells|patches/000007.parquet, tables/retried/000007.parquet of a retry (`curate.retries`)
    tables/scores/srcnn@0a1b2c3d/       scorer.json, 000007.parquet
    tables/checks/leaks@0a1b2c3d/       check.json, 000007.parquet
    commits/ingest/000007.json          CommitRecord of a shard and its three tables
    commits/scores/srcnn@0a1b2c3d/000007.json, commits/checks/leaks@0a1b2c3d/000007.json
    commits/ingest/000000-000099.jsonl  the records of a hundred units (`curate.records`)

The shard number is the unit of work everywhere. A file without a commit record is garbage that the next run replaces;
shards are only ever added, so a digest over the first n records names a state of the store.

A store lies in a local folder or at a URL (`curate.storage`). From afar, tables are fetched whole into the local cache
and checked there, so that SQL reads local files; of shards only the members that are asked for are fetched.

What only some questions need (NumPy, Arrow, image codecs) is imported by these: half a second.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar

import xxhash

from curate import __version__, files, flags, retries, schema, sql, storage, views
from curate.errors import DataError, UsageError, one_line
from curate.records import Records
from curate.schema import STATUS_OK, CheckRecord, CommitRecord, Distilling, Packing, Part, ScorerRecord, StoreHeader
from curate.storage import Entry, Place
from curate.views import Scores, Tables

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

__all__ = ["INGEST", "Cell", "CheckSet", "ScoreSet", "Store", "write_parquet"]

INGEST = "ingest"  # the kind of commit that adds a shard
_HEADER = "store.json"
_SCORER, _CHECK = _DOCUMENTS = ("scorer.json", "check.json")  # what made the tables beside them
_TABLES = ("images", "cells", "patches", "retried")  # of a shard; the last of those that `--retry-failed` wrote
_DECODED_PIXELS = 2**25  # kept by `Store.read`, 100 MB


class Cell(NamedTuple):
    """A rectangle of an image, and where its bytes lie."""

    shard: int
    height: int
    width: int
    y: int  # of its top-left corner
    x: int
    offset: int
    size: int
    xxh3: int


@dataclass(frozen=True, slots=True)
class ScoreSet:
    """One folder of scores: a scorer with fixed options, weights and code version."""

    record: ScorerRecord

    @property
    def folder(self) -> str:
        """`srcnn@0a1b2c3d`."""
        return f"{self.record.scorer}@{self.record.fingerprint[:8]}"

    @property
    def kind(self) -> str:
        """The kind of its commits."""
        return f"scores/{self.folder}"


@dataclass(frozen=True, slots=True)
class CheckSet:
    """One folder of findings: a check of the images with a fixed reference and code version."""

    record: CheckRecord

    @property
    def folder(self) -> str:
        """`leaks@0a1b2c3d`."""
        return f"{self.record.check}@{self.record.fingerprint[:8]}"

    @property
    def kind(self) -> str:
        """The kind of its commits."""
        return f"checks/{self.folder}"


_RecordT = TypeVar("_RecordT", ScorerRecord, CheckRecord)


class Store:
    """A store on a local disk or at a URL. Make one with `Store.create`, open one with `Store.open`."""

    def __init__(self, path: Place, header: StoreHeader) -> None:
        self.path = path
        self.header = header
        self._commits: dict[str, Records] = {}  # by kind
        self._parts: dict[str, Part] = {}  # of the commits that were read, by their path
        self._cells: dict[tuple[str, str], list[Cell]] | None = None
        self._shapes: dict[str, tuple[int, int]] | None = None
        self._documents: dict[Place, bytes] = {}  # of scorers and checks
        self._verified: set[tuple[str, str]] = set()  # (path, hash) of tables that were found to have it
        self._fetched: dict[tuple[str, str], Path] = {}  # (path, hash) of tables that are far -> their copy here
        self._decoded: OrderedDict[Cell, npt.NDArray[np.uint8]] = OrderedDict()

    @property
    def kind(self) -> str:
        """What it is, in words."""
        if self.header.packed is not None:
            return "a packed store"
        return "a store of photographs" if self.header.distilled is None else "a distilled store"

    # ---- making and opening

    @classmethod
    def create(
        cls,
        path: str | Place,
        *,
        patch: int,
        step: int,
        packed: Packing | None = None,
        distilled: Distilling | None = None,
    ) -> Store:
        """Make an empty store with windows of `patch` px every `step` px. The folder must be new or empty."""
        folder = storage.place(path, "a store")
        if patch < 1 or not 1 <= step <= patch:
            raise UsageError(f"a patch should be 1 px or more and a step from 1 to the patch, found {patch} and {step}")
        if not _is_free(folder):
            raise UsageError(f"'{one_line(folder)}' is not a store (it has no {_HEADER}); name a new or empty folder")
        try:
            if isinstance(folder, Path):
                files.make_folder(folder)
        except OSError as error:
            if error.errno in files.FAILING:
                raise
            raise UsageError(f"cannot make a store at '{one_line(folder)}': {error.strerror}") from None
        made_by = f"curate {__version__}"
        header = StoreHeader(patch=patch, step=step, created_by=made_by, packed=packed, distilled=distilled)
        storage.create_bytes(folder / _HEADER, schema.dump(header, indent=2))
        return cls(folder, header)

    @classmethod
    def open(cls, path: str | Place) -> Store:
        """Open a store. UsageError if there is none at `path`, DataError if its header is damaged or too new."""
        folder = storage.place(path, "a store")
        if not cls.is_store(folder):
            found = "a file" if folder.is_file() else "a folder without store.json" if folder.exists() else "nothing"
            raise UsageError(
                f"'{one_line(path)}' is not a store: found {found}; 'curate ingest PHOTOS STORE' makes one"
            )
        return cls(folder, schema.parse(StoreHeader, (folder / _HEADER).read_bytes(), folder / _HEADER))

    @staticmethod
    def is_store(path: Place) -> bool:
        """Whether there is a store at `path`."""
        return (path / _HEADER).is_file()

    @contextlib.contextmanager
    def writing(self, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
        """Hold the store for writing, and clear away what a killed writer left half done; at the end fold its records.

        `shared`: together with the other parts of a run, each of which writes units of its own; the last one to end
        clears away and folds. It waits for one that does not share; one that does not share waits for others only if
        `wait` says so, and is refused without. At a URL nothing is held: two runs that do the same may go on at the
        same time, of others the second is refused; parts `fold` themselves when all of them are done.
        """
        with storage.lock(self.path, shared=shared, wait=shared or wait):
            if not shared:
                storage.remove_leftovers(self.path)
            yield
            if not shared:
                self.fold(self._kinds())
        if shared and isinstance(self.path, Path):
            with contextlib.suppress(files.BusyError), storage.lock(self.path):
                storage.remove_leftovers(self.path)
                self.fold(self._kinds())

    def fold(self, kinds: Iterable[str]) -> None:
        """Put the records of these kinds together. At a URL nobody may be about to replace one of them."""
        for kind in kinds:
            self._records_of(kind).fold()

    # ---- units and commits

    def commits(self, kind: str = INGEST) -> dict[int, CommitRecord]:
        """Unit -> record of all finished units of a kind, in order.

        DataError if a part is gone or has another size, or a table another hash. An image's bytes are checked when it
        is read, a table's once for each Store: SQL would not notice that they have changed.
        """
        committed = self._records_of(kind).read()
        listed: dict[str, dict[str, Entry]] = {}
        for record, _, where in committed.values():
            self._check_parts(record, where, listed)
        return {unit: found.record for unit, found in committed.items()}

    def commit(self, kind: str, unit: int, fingerprint: str, parts: Sequence[Part]) -> None:
        """Declare a unit finished. Call it when all its parts are published.

        At a URL, CurateError if another run has finished it meanwhile, and not with the same bytes.
        """
        self._records_of(kind).add(CommitRecord(unit=unit, fingerprint=fingerprint, parts=list(parts)))
        self._cells = self._shapes = None

    def remove_units(self, kind: str) -> None:
        """Remove all units of a kind that nothing refers to: records first, and last what says who made them.

        So a removal that is cut off leaves no record without its table, and no table of which nothing says whose it is.
        """
        for top in ("commits", "tables"):
            folder = self.path.joinpath(top, *kind.split("/"))
            names = sorted(storage.entries(folder))  # several records in one file come before single ones
            storage.remove(folder / name for name in names if name not in _DOCUMENTS)
            storage.remove(folder / name for name in names if name in _DOCUMENTS)
            _remove_empty(folder)
        for name in _DOCUMENTS:
            self._documents.pop(self.path.joinpath("tables", *kind.split("/"), name), None)
        self._parts = {path: part for path, part in self._parts.items() if not path.startswith(f"tables/{kind}/")}

    def digest(self, shards: int | None = None) -> str:
        """SHA-256 (hex) over the records of the first `shards` units (all by default): what was ingested, exactly."""
        digest = hashlib.sha256()
        self.commits()
        committed = list(self._records_of(INGEST).read().values())
        for found in committed if shards is None else committed[:shards]:
            digest.update(found.data)
        return digest.hexdigest()

    def _records_of(self, kind: str) -> Records:
        return self._commits.setdefault(kind, Records(self.path.joinpath("commits", *kind.split("/"))))

    def _kinds(self) -> list[str]:
        """All kinds of work that are committed here."""
        below = [f"{kind}/{name}" for kind in ("scores", "checks") for name in self._folders(f"commits/{kind}")]
        return [INGEST, *below]

    def _folders(self, name: str) -> list[str]:
        return storage.folders(self.path.joinpath(*name.split("/")))

    def _check_parts(self, record: CommitRecord, where: Place, listed: dict[str, dict[str, Entry]]) -> None:
        """Look at each part once. `listed` holds the folders at a URL that were looked at."""
        for part in record.parts:
            if self._parts.get(part.path) is not part:
                _check_inside(part.path, where)
                self._check_part(part, listed)
                self._parts[part.path] = part

    def _check_part(self, part: Part, listed: dict[str, dict[str, Entry]]) -> None:
        """DataError if a part is gone or has another size, or another hash: a table that is far has it on arrival."""
        size, digest = self._local(part) if isinstance(self.path, Path) else (self._listed(part, listed), part.xxh3)
        if size != part.bytes:
            found, shown = "nothing" if size is None else f"{size} bytes", one_line(self.path / part.path)
            raise DataError(f"the store is damaged: '{shown}' should have {part.bytes} bytes, found {found}")
        if digest != part.xxh3:
            shown = one_line(self.path / part.path)
            raise DataError(f"the store is damaged: '{shown}' has changed: its hash differs")

    def _local(self, part: Part) -> tuple[int | None, str]:
        """How many bytes a part on the local disk has, None if there is no file, and of a table, once, their hash."""
        name, known = f"{self.path}/{part.path}", (part.path, part.xxh3)  # a Path takes longer to make than to read
        try:
            if part.rows is None or known in self._verified:
                status = os.stat(name)  # noqa: PTH116
                return status.st_size if stat.S_ISREG(status.st_mode) else None, part.xxh3
            size, digest = files.size_and_hash(name)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None, part.xxh3
        if digest == part.xxh3:
            self._verified.add(known)
        return size, digest

    def _listed(self, part: Part, listed: dict[str, dict[str, Entry]]) -> int | None:
        """How many bytes a part at a URL has, None if there is none."""
        folder, _, name = part.path.rpartition("/")
        if folder not in listed:
            listed[folder] = storage.entries(self.path / folder)
        entry = listed[folder].get(name)
        return None if entry is None else entry.size

    # ---- writing

    def shard_path(self, unit: int) -> Place:
        """Where the tar of a unit lies."""
        return self.path / "shards" / f"{unit:06d}.tar"

    def part(self, path: Place, xxh3: str, rows: int | None = None) -> Part:
        """The record of a file that was just published."""
        size = path.stat().st_size if isinstance(path, Path) else path.size()
        assert size is not None
        return Part(path=storage.relative_name(path, self.path), bytes=size, xxh3=xxh3, rows=rows)

    def write_table(self, folder: str, unit: int, table: pa.Table) -> Part:
        """Publish the Parquet of one unit under `tables/<folder>`; the same table gives the same bytes."""
        path = self.path / "tables" / folder / f"{unit:06d}.parquet"
        digest = storage.publish(path, lambda file: write_parquet(table, file))
        return self.part(path, digest, table.num_rows)

    # ---- tables

    def images(self, *, history: bool = False) -> pa.Table:
        """One row a source file as it was ingested, refused ones with their reason; columns as `layout.IMAGES`.

        `history`: with the refusals that `curate ingest --retry-failed` has settled since.
        """
        import pyarrow as pa

        units = self.commits()
        retried = [] if history else _retries(units)
        if not retried:
            return self._table("images")
        self._part_paths("images", units)  # fetched together, if they are far
        images = {unit: self.unit_table("images", unit) for unit in units}
        return pa.concat_tables(retries.shown(images, {unit: self.unit_table("retried", unit) for unit in retried}))

    def statuses(self) -> pa.ChunkedArray:
        """The status of each row of `images`; only where a retry has settled some are the other columns read too."""
        import pyarrow as pa

        units = self.commits()
        if _retries(units):
            return self.images()["status"]
        expected = pa.schema([_layout_of("images").field("status")])
        paths = self._part_paths("images", units)
        tables = [self._parquet(Path(path), expected, ["status"]) for path in paths]
        return pa.concat_tables(tables or [expected.empty_table()])["status"]

    def patches(self) -> pa.Table:
        """One row a window; columns as `layout.PATCHES`."""
        return self._table("patches")

    def unit_table(self, name: str, unit: int) -> pa.Table:
        """The images, cells or patches of one unit; of a retry also what it `retried`."""
        return self._parquet(self._part_path(name, unit), _layout_of(name))

    def _table(self, name: str) -> pa.Table:
        import pyarrow as pa

        units = list(self.commits())
        self._part_paths(name, units)  # fetched together, if they are far
        tables = [self.unit_table(name, unit) for unit in units]
        return pa.concat_tables(tables) if tables else _layout_of(name).empty_table()

    def _part_path(self, folder: str, unit: int) -> Path:
        """The Parquet of one unit, on the local disk."""
        (path,) = self._part_paths(folder, [unit])
        return Path(path)

    def _part_paths(self, folder: str, units: Iterable[int]) -> list[str]:
        names = [f"tables/{folder}/{unit:06d}.parquet" for unit in units]
        if isinstance(self.path, Path):
            return [f"{self.path}/{name}" for name in names]  # a Path each would take longer than all else here
        if not self._parts.keys() >= set(names):
            self.commits(INGEST if folder in _TABLES else folder)
        parts = [self._parts[name] for name in names]
        missing = [part for part in parts if not self._is_fetched(part)]
        copies = storage.all_local((self.path / part.path, part.xxh3, part.bytes) for part in missing)
        self._fetched |= {(part.path, part.xxh3): copy for part, copy in zip(missing, copies, strict=True)}
        return [str(self._fetched[part.path, part.xxh3]) for part in parts]

    def _is_fetched(self, part: Part) -> bool:
        copy = self._fetched.get((part.path, part.xxh3))
        return copy is not None and copy.exists()

    @staticmethod
    def _parquet(path: Path, expected: pa.Schema | None = None, columns: list[str] | None = None) -> pa.Table:
        import pyarrow as pa

        from curate import tables

        try:
            table = tables.read(path, columns)
            table.validate(full=True)  # text that is not UTF-8 would be found out when it is looked at
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise DataError(one_line(f"'{path}' cannot be read: {error}")) from None
        if expected is not None and not table.schema.equals(expected):
            raise _other_columns(path, table.schema, expected)
        return table

    @staticmethod
    def rows(unit: CommitRecord, name: str) -> int:
        """How many rows the images, cells or patches of a unit have, by its record."""
        return sum(part.rows or 0 for part in unit.parts if part.path.startswith(f"tables/{name}/"))

    # ---- scores

    def score_sets(self) -> list[ScoreSet]:
        """Every scorer that has scored here, by label and fingerprint."""
        return [ScoreSet(record) for record in self._records(ScorerRecord, "scores", _SCORER)]

    def _records(self, kind: type[_RecordT], folder: str, name: str) -> list[_RecordT]:
        paths = [self.path / "tables" / folder / found / name for found in self._folders(f"tables/{folder}")]
        there = [path for path in paths if path in self._documents or path.is_file()]
        for path in there:
            # They never change; from a disk they are read again, which costs nothing.
            if isinstance(path, Path) or path not in self._documents:
                self._documents[path] = path.read_bytes()
        records = [schema.parse(kind, self._documents[path], path) for path in there]
        return sorted(records, key=lambda record: (record.label, record.fingerprint))

    def add_score_set(self, record: ScorerRecord) -> ScoreSet:
        """Make the folder of a scorer, or find it: the fingerprint says whether it is the same one."""
        found = ScoreSet(record)
        self._add_record(self.path / "tables" / found.kind / _SCORER, record)
        return found

    @staticmethod
    def _add_record(path: Place, record: _RecordT) -> None:
        if not path.is_file():
            storage.create_bytes(path, schema.dump(record, indent=2))
        elif schema.parse(type(record), path.read_bytes(), path).fingerprint != record.fingerprint:
            raise DataError(f"'{one_line(path)}' is of another {type(record).__name__} whose fingerprint begins alike")

    def score_table(self, found: ScoreSet, unit: int) -> pa.Table:
        """The scores of one unit: patch_id and the scorer's columns."""
        import pyarrow as pa

        from curate import layout

        path, expected = self._part_path(found.kind, unit), layout.scores_schema(tuple(found.record.columns))
        table = self._parquet(path)
        kinds = table.schema.types
        if table.column_names != expected.names or kinds[0] != pa.string() or not all(map(_is_score, kinds[1:])):
            raise _other_columns(path, table.schema, expected)
        return table

    def score_columns(self) -> dict[str, tuple[ScoreSet, str]]:
        """SQL column -> (its score set, the column in its tables).

        A scorer's only column has the scorer's label (`srcnn`, `srcnn:scale=3`), one of several the label and its own
        name. Where two score sets have one label (other weights or code under the same options), each name gets its
        fingerprint (`srcnn@0a1b2c3d`), so that neither is used in silence.
        """
        sets = self.score_sets()
        labels = [found.record.label for found in sets]
        named = {}
        for found in sets:
            label = found.record.label
            if labels.count(label) > 1:
                label = f"{label}@{found.record.fingerprint[:8]}"
            columns = found.record.columns
            for column in columns:
                named[label if len(columns) == 1 else f"{label}.{column}"] = (found, column)
        return named

    # ---- checks

    def check_sets(self) -> list[CheckSet]:
        """Every check that has looked at the images here, by label; of one label those of the newest version alone."""
        records = self._records(CheckRecord, "checks", _CHECK)
        newest = {(r.check, r.label): r.version for r in sorted(records, key=lambda record: record.version)}
        return [CheckSet(record) for record in records if record.version == newest[record.check, record.label]]

    def add_check_set(self, record: CheckRecord) -> CheckSet:
        """Make the folder of a check, or find it."""
        found = CheckSet(record)
        self._add_record(self.path / "tables" / found.kind / _CHECK, record)
        return found

    def remove_checks(self, check: str, label: str) -> int:
        """Remove what a check has found under a label, by whatever version of it, and return how many rows that was.

        None is no error: a removal that was killed is given again.
        """
        rows = 0
        for record in self._records(CheckRecord, "checks", _CHECK):
            if (record.check, record.label) == (check, label):
                kind = CheckSet(record).kind
                rows += sum(self.rows(found.record, kind) for found in self._records_of(kind).read().values())
                self.remove_units(kind)
        for top in ("commits", "tables"):  # what a removal that was killed before its end has left
            folder = self.path / top / "checks"
            for empty in (*(folder / name for name in storage.folders(folder)), folder):
                _remove_empty(empty)
        return rows

    def check_table(self, found: CheckSet, unit: int) -> pa.Table:
        """The findings of one unit: columns as `layout.DUPLICATES` or `layout.LEAKS`."""
        from curate import layout

        expected = layout.LEAKS if found.record.check == "leaks" else layout.DUPLICATES
        return self._parquet(self._part_path(found.kind, unit), expected)

    def examined_table(self, kind: str, unit: int) -> pa.Table:
        """What an ingest by several has found out about some sources: columns as `layout.EXAMINED`."""
        from curate import layout

        return self._parquet(self._part_path(kind, unit), layout.EXAMINED)

    def findings(self) -> flags.Findings:
        """What the checks have found: near-duplicates, leaks, and the images that they flag."""
        sets = self.check_sets()
        if not sets or not self.commits():
            return flags.nothing()
        import pyarrow as pa
        import pyarrow.compute as pc

        from curate import layout

        pairs, leaks = [layout.DUPLICATES.empty_table()], [layout.LEAKS.empty_table()]
        for found in sets:
            tables = [self.check_table(found, unit) for unit in self.commits(found.kind)]
            if found.record.check == "leaks":
                leaks += tables
            else:
                pairs += [table.filter(pc.field("twin").is_valid()) for table in tables]
        duplicates, overlaps = pa.concat_tables(pairs), pa.concat_tables(leaks)
        concerned = flags.concerned(duplicates, overlaps)
        if not len(concerned):  # nothing was found: the tables of images and cells need not be read
            return flags.nothing()
        cells = [self.unit_table("cells", unit) for unit in self.commits()]
        return flags.findings(
            self.images().filter(pc.field("image_id").isin(concerned)),
            pa.concat_tables(cells).filter((pc.field("role") == "hr") & pc.field("image_id").isin(concerned)),
            duplicates,
            overlaps,
        )

    # ---- SQL

    def views(self) -> dict[str, str | pa.Table]:
        """The views that a query sees, as `curate.views` makes them. UsageError for an empty store."""
        return views.of(self._tables())

    def columns(self) -> dict[str, list[str]]:
        """View -> the names of its columns, of which no table has to be read."""
        return views.columns(self.score_columns())

    def _tables(self) -> Tables:
        units = self.commits()
        if not units:
            ended = "its distillation has not ended: give the same 'curate distill' again"
            first = "ingest photographs first" if self.header.distilled is None else ended
            raise UsageError(f"'{one_line(self.path)}' is empty: {first}")
        return Tables(
            patches=self._part_paths("patches", units),
            images=self._part_paths("images", units),
            retried=self._part_paths("retried", _retries(units)),
            findings=self.findings() if self.check_sets() else None,
            scores=list(self._scores()),
            rows=_row_counts(units),
        )

    def _scores(self) -> Iterator[Scores]:
        sets: dict[str, tuple[ScoreSet, dict[str, str]]] = {}
        for name, (found, column) in self.score_columns().items():
            sets.setdefault(found.folder, (found, {}))[1][name] = column
        for found, columns in sets.values():
            units = self.commits(found.kind)
            yield Scores(self._part_paths(found.kind, units), columns, _row_counts(units, found.kind))

    def score_files(self, found: ScoreSet) -> list[str]:
        """The Parquet files of a score set: patch_id and the scorer's columns."""
        return self._part_paths(found.kind, self.commits(found.kind))

    def query(self, query: str, manifests: Mapping[str, Path] | None = None) -> pa.Table:
        """The answer to one SELECT over `images`, `patches`, `scores` and `manifests` (view name -> file)."""
        return self.stream(query, manifests).read_all()

    def stream(self, query: str, manifests: Mapping[str, Path] | None = None) -> pa.RecordBatchReader:
        """`query`, as batches: for answers that do not fit into memory. Raises UsageError for a query it refuses."""
        return sql.reader(self.connect(manifests), query)

    def connect(
        self,
        manifests: Mapping[str, Path] | None = None,
        *,
        memory: str | None = None,
        threads: int | None = None,
        spill: Path | None = None,
        watched: bool = False,
    ) -> duckdb.DuckDBPyConnection:
        """A connection for one query, within about `memory` (`1GB`) and `threads`; its `interrupt` ends the query.

        What goes beyond that memory goes into the folder `spill`, a private one, if there is one. Of a `watched` one
        `sql.watching` tells how far it is.
        """
        tables, named, lists = self._tables(), dict(manifests or {}), sql.Lists()
        return sql.connect(
            views.of(tables, named, lists.parquet),
            [*tables.files(), *named.values()],
            lists=lists,
            memory=memory,
            threads=threads,
            spill=spill,
            watched=watched,
        )

    # ---- pixels

    def cells(self, image_id: str, role: str = "hr") -> list[Cell]:
        """Where the bytes of an image lie in this role (`hr`, `lr2`, ...): cells that do not overlap, or none.

        A store of photographs has one for the whole file, a packed one also several that leave gaps.
        """
        if self._cells is None:
            self._cells = self._index_cells()
        return self._cells.get((image_id, role), [])

    def cell(self, image_id: str, role: str = "hr") -> Cell | None:
        """The first of the `cells`, or None."""
        return next(iter(self.cells(image_id, role)), None)

    def _index_cells(self) -> dict[tuple[str, str], list[Cell]]:
        index: dict[tuple[str, str], list[Cell]] = {}
        for unit in self.commits():
            columns = self.unit_table("cells", unit).to_pydict()
            names = ("image_id", "role", *Cell._fields[1:])
            for image_id, role, *place in zip(*(columns[name] for name in names), strict=True):
                index.setdefault((image_id, role), []).append(Cell(unit, *place))
        return index

    def shape(self, image_id: str) -> tuple[int, int]:
        """Height and width of a photograph, px, also where only parts of it are stored. DataError if it is absent."""
        from curate import images

        if self._shapes is None:
            import pyarrow.compute as pc

            known = pc.field("height").is_valid() & pc.field("width").is_valid()
            columns = self.images().filter((pc.field("status") == STATUS_OK) & known)
            sizes = zip(columns["height"].to_pylist(), columns["width"].to_pylist(), strict=True)
            self._shapes = dict(zip(columns["image_id"].to_pylist(), sizes, strict=True))
        if image_id not in self._shapes:
            raise self._absent(image_id, "hr")
        height, width = self._shapes[image_id]
        if min(height, width) < 1 or height * width > images.MAX_PIXELS:
            raise DataError(
                f"the store '{one_line(self.path)}' is damaged: image '{one_line(image_id)}' of {height}x{width}"
            )
        return height, width

    def is_whole(self, image_id: str, role: str = "hr") -> bool:
        """Whether all of an image, which is there, is in one file, and not parts of it in packed cells."""
        if self.header.packed is None:
            return True
        first, *more = self.cells(image_id, role)
        return role == "hr" and not more and (first.height, first.width) == self.shape(image_id)

    def require_whole(self, verb: str) -> None:
        """UsageError if the store is packed: `verb` (scored, added to) is what cannot be done to it."""
        if self.header.packed is not None:
            packed = f"'{one_line(self.path)}' is packed, it has parts of photographs only"
            raise UsageError(f"{packed} and cannot be {verb}; take the store that it was packed from")

    def read_bytes(self, image_id: str, role: str = "hr") -> bytes:
        """The stored file of an image, as it was ingested; of a packed store perhaps another, lossless one.

        DataError if it is absent, cut or changed, UsageError if there are only packed parts of it.
        """
        (cell, *_) = self._present(image_id, role)
        if not self.is_whole(image_id, role):
            packed = f"'{one_line(self.path)}' is packed, it has parts of image '{one_line(image_id)}' ({role}) only"
            raise UsageError(f"{packed}; take the store that it was packed from")
        return self._bytes(image_id, role, cell)

    def pixels(self, image_id: str, role: str = "hr") -> npt.NDArray[np.uint8]:
        """The pixels of an image: uint8 RGB, (height, width, 3). In a packed store what it does not have is black.

        (An LR image ends there where the last of its cells does.) Raises as `read_bytes` does, but for UsageError.
        """
        cells = self._present(image_id, role)
        if self.is_whole(image_id, role):
            return self.decode(image_id, role, cells[0])
        from curate import images

        ends = [(cell.y + cell.height, cell.x + cell.width) for cell in cells]
        height, width = self.shape(image_id) if role == "hr" else map(max, zip(*ends, strict=True))
        if min(min(cell.y, cell.x) for cell in cells) < 0 or any(y > height or x > width for y, x in ends):
            raise self._misplaced(image_id, role)
        if height * width > images.MAX_PIXELS:
            raise self._misplaced(image_id, role)
        import numpy as np

        canvas = np.zeros((height, width, 3), np.uint8)
        for cell, (bottom, right) in zip(cells, ends, strict=True):
            canvas[cell.y : bottom, cell.x : right] = self.decode(image_id, role, cell)
        return canvas

    def decode(self, image_id: str, role: str, cell: Cell) -> npt.NDArray[np.uint8]:
        """The pixels of one of the `cells`, uint8 RGB; several threads may do so. DataError if it is cut or changed."""
        from curate import images

        pixels = images.decode(self._bytes(image_id, role, cell), whole=True)
        if pixels.shape[:2] != (cell.height, cell.width):
            raise self._misplaced(image_id, role)
        return pixels

    def read(self, image_id: str, y: int, x: int, height: int, width: int) -> npt.NDArray[np.uint8]:
        """The pixels of a window: uint8 RGB, (height, width, 3); only the cells under it are read.

        UsageError if it is not inside the image, or not all of it is in this packed store.
        """
        cells = self._present(image_id, "hr")
        rows, columns = self.shape(image_id)
        window = f"window y={y} x={x} {height}x{width}"
        if min(y, x) < 0 or min(height, width) < 1 or y + height > rows or x + width > columns:
            raise UsageError(f"{window} is not inside image '{one_line(image_id)}' of {rows}x{columns}")
        import numpy as np

        pixels, missing = np.empty((height, width, 3), np.uint8), height * width
        for cell in cells:
            top, bottom = max(y, cell.y), min(y + height, cell.y + cell.height)
            left, right = max(x, cell.x), min(x + width, cell.x + cell.width)
            if top < bottom and left < right:
                decoded = self._decoded_cell(image_id, cell)
                there = decoded[top - cell.y : bottom - cell.y, left - cell.x : right - cell.x]
                pixels[top - y : bottom - y, left - x : right - x] = there
                missing -= (bottom - top) * (right - left)
        if missing:
            packed = f"the packed store '{one_line(self.path)}' lacks {missing} of its pixels"
            raise UsageError(f"{window} of image '{one_line(image_id)}' was not packed: {packed}")
        return pixels

    def _present(self, image_id: str, role: str) -> list[Cell]:
        if cells := self.cells(image_id, role):
            return cells
        raise self._absent(image_id, role)

    def _absent(self, image_id: str, role: str) -> DataError:
        return DataError(f"the store '{one_line(self.path)}' has no {role} of image '{one_line(image_id)}'")

    def _misplaced(self, image_id: str, role: str) -> DataError:
        shown = one_line(self.path)
        return DataError(
            f"the store '{shown}' is damaged: the cells of image '{one_line(image_id)}' ({role}) do not fit"
        )

    def _bytes(self, image_id: str, role: str, cell: Cell) -> bytes:
        path = self.shard_path(cell.shard)
        if min(cell.offset, cell.size) < 0:
            raise DataError(f"image '{one_line(image_id)}' ({role}) in '{one_line(path)}' cannot lie before its start")
        try:
            data = storage.member(path, cell.offset, cell.size, cell.xxh3)
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
            raise DataError(f"image '{one_line(image_id)}' ({role}) in '{one_line(path)}' {problem}") from None
        if len(data) != cell.size or xxhash.xxh3_64_intdigest(data) != cell.xxh3:
            raise DataError(f"image '{one_line(image_id)}' ({role}) in '{one_line(path)}' is damaged: its hash differs")
        return data

    def _decoded_cell(self, image_id: str, cell: Cell) -> npt.NDArray[np.uint8]:
        if cell not in self._decoded:
            self._decoded[cell] = self.decode(image_id, "hr", cell)
            while len(self._decoded) > 1 and sum(c.height * c.width for c in self._decoded) > _DECODED_PIXELS:
                self._decoded.popitem(last=False)
        self._decoded.move_to_end(cell)
        return self._decoded[cell]


def write_parquet(table: pa.Table, file: BinaryIO) -> None:
    """A table as a store has it; the same table gives the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Parquet's statistics leave NaN out and DuckDB believes them: with none, isnan() and max() are right.
    exact = [field.name for field in table.schema if not pa.types.is_floating(field.type)]
    pq.write_table(table, file, compression="zstd", write_statistics=exact)


def _is_score(kind: pa.DataType) -> bool:
    """Whether a column holds scores: numbers, or vectors of them."""
    import pyarrow as pa

    return bool(kind == pa.float32() or (pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float32()))


def _other_columns(path: Path, found: pa.Schema, expected: pa.Schema) -> DataError:
    there, wanted = (", ".join(f"{field.name} {field.type}" for field in fields) for fields in (found, expected))
    return DataError(one_line(f"'{path}' has columns {there}; it should have {wanted}"))


def _is_free(folder: Place) -> bool:
    """Whether a store can be made here: nothing is there but what a run left that was killed while it made one."""
    if not isinstance(folder, Path):
        return not (storage.entries(folder) or storage.folders(folder))
    return not folder.exists() or (folder.is_dir() and all(map(_is_leftover, folder.iterdir())))


def _remove_empty(folder: Place) -> None:
    """Remove a folder on a disk if nothing is in it, and then the one that it is in."""
    if isinstance(folder, Path):
        for empty in (folder, folder.parent):
            with contextlib.suppress(OSError):  # there is none, or there are others beside it
                empty.rmdir()
                files.sync_folder(empty.parent)


def _row_counts(units: Mapping[int, CommitRecord], name: str = "patches") -> dict[int, int]:
    """Unit -> how many rows its table has, by its record."""
    return {number: Store.rows(unit, name) for number, unit in units.items()}


def _retries(units: Mapping[int, CommitRecord]) -> list[int]:
    """The units that settle refusals of units before them."""
    return [n for n, unit in units.items() if any(part.path.startswith("tables/retried/") for part in unit.parts)]


def _is_leftover(path: Path) -> bool:
    """Whether a run that was killed while it made a store left this."""
    return path.match(f".{_HEADER}.*.tmp")


def _check_inside(relative: str, where: Place) -> None:
    """A path that a record names must not lead out of the store."""
    if relative.startswith("/") or "\\" in relative or ".." in relative.split("/"):
        raise DataError(f"'{one_line(where)}' names a file outside the store: '{one_line(relative)}'")


def _layout_of(table: str) -> pa.Schema:
    from curate import layout

    return layout.OF_SHARD[table]
