"""The commit records of one kind of work, few files however many units there are.

    commits/ingest/000107.json            the record of one unit, as it was committed
    commits/ingest/000000-000099.jsonl    the records of a hundred units, a line each, byte for byte
    commits/ingest/000000-009999.jsonl    of ten thousand

`fold` puts full blocks together: which files there are afterwards depends on which units are finished alone. A block is
written before the files that it takes the place of are removed, so that a run that is killed in between leaves both,
which say the same. A unit that is done again gets a file of its own until the next `fold`: the smaller file counts.
"""

import contextlib
import gc
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from curate import schema, storage
from curate.errors import CurateError, DataError, one_line
from curate.schema import CommitRecord
from curate.storage import Entry, Place

__all__ = ["Committed", "Records"]

_BLOCKS = (10_000, 100)  # units, each a multiple of the next: 10,000 units are 1 file, 9,999 are 99 and 99
_NAME = re.compile(r"(\d{6,})(?:-(\d{6,})\.jsonl|\.json)")
_TRIES = 5  # listings, while another run folds


class Committed(NamedTuple):
    """A record, and its bytes."""

    record: CommitRecord
    data: bytes
    where: Place


class Records:
    """The records in one folder."""

    def __init__(self, folder: Place) -> None:
        self.folder = folder
        self._files: dict[str, tuple[Entry, list[Committed]]] = {}  # as last read

    def read(self) -> dict[int, Committed]:
        """Unit -> record of all that is committed, in order; files that have not changed are not read again.

        DataError for one that is not a record.
        """
        for _ in range(_TRIES):
            listed = {name: entry for name, entry in storage.entries(self.folder).items() if _NAME.fullmatch(name)}
            new = {name: entry for name, entry in listed.items() if self._files.get(name, (None,))[0] != entry}
            try:
                contents = storage.read_all(self.folder, new)
            except FileNotFoundError:  # folded since it was listed
                continue
            with _uncollected():
                read = {name: _parse(self.folder / name, data) for name, data in zip(new, contents, strict=True)}
            self._files = {
                name: (entry, read[name] if name in read else self._files[name][1]) for name, entry in listed.items()
            }
            return self._known()
        raise CurateError(f"the records in '{one_line(self.folder)}' are changing all the time; try again")

    def _known(self) -> dict[int, Committed]:
        found: dict[int, Committed] = {}
        for name in sorted(self._files, key=lambda name: -len(_units(name))):
            found |= {committed.record.unit: committed for committed in self._files[name][1]}
        return dict(sorted(found.items()))

    @staticmethod
    def is_record(name: str) -> bool:
        """Whether a file of that name holds records."""
        return _NAME.fullmatch(name) is not None

    def survey(self) -> tuple[dict[int, Committed], list[tuple[str, str]], set[int]]:
        """What `read` gives without the records that are damaged; what is wrong, as (file's name, problem); and the
        units whose records are in these files, or should be, and are lost."""
        found, problems, named = dict[int, Committed](), list[tuple[str, str]](), set[int]()
        for name in sorted(self._names(), key=lambda name: (-len(_units(name)), name)):
            try:
                data = (self.folder / name).read_bytes()
                named.update(_units(name))
            except FileNotFoundError:  # folded since it was listed
                continue
            except OSError as error:
                problems.append((name, f"cannot be read: {error.strerror}"))
                named.update(_units(name))
                continue
            whole, wrong = _parse_each(self.folder / name, data)
            found |= whole
            problems += [(name, problem) for problem in wrong]
        return dict(sorted(found.items())), problems, named - found.keys()

    def add(self, record: CommitRecord) -> None:
        """Write a record: in an object store only if no other run has committed this unit since it was last read.

        CurateError if one has, and not the same.
        """
        path, data = self.folder / f"{record.unit:06d}.json", schema.dump(record)
        if isinstance(path, Path):
            storage.publish_bytes(path, data)
            return
        before, now = self._known().get(record.unit), self.read().get(record.unit)
        if now is None:
            storage.create_bytes(path, data)
        elif now.data != data:
            if before is None or before.data != now.data:
                raise CurateError(
                    f"another run has written '{one_line(now.where)}' meanwhile, and not the same; "
                    "run again when it has ended"
                )
            storage.publish_bytes(path, data)

    def remove(self, units: Collection[int]) -> None:
        """Remove the records of some units, and what is damaged beside them in one file; all others stay."""
        for name in self._names():
            if len(_units(name)) > 1 and not set(units).isdisjoint(_units(name)):
                self.unfold(name, units)
        storage.remove(self.folder / name for name in self._names() if _units(name)[0] in units)

    def unfold(self, name: str, without: Collection[int] = ()) -> None:
        """Give each whole record of a file of several a file of its own, but for some units, and remove that file."""
        whole, _, _ = self.survey()
        there = self._names()
        for unit in _units(name):
            single = f"{unit:06d}.json"
            if unit in whole and unit not in without and single not in there:
                storage.publish_bytes(self.folder / single, whole[unit].data)
        storage.remove([self.folder / name])

    def _names(self) -> list[str]:
        return [name for name in storage.entries(self.folder) if _NAME.fullmatch(name)]

    def fold(self) -> None:
        """Put full blocks of records together. Call it under the store's lock."""
        names = self._names()
        found = dict[int, Committed]()
        for units in _full_blocks(unit for name in names for unit in _units(name)):
            block = f"{units[0]:06d}-{units[-1]:06d}.jsonl"
            parts = [name for name in names if name != block and _units(name)[0] in units]
            if parts:  # only then is anything read
                found = found or self.read()
                storage.publish_bytes(self.folder / block, b"".join(found[unit].data + b"\n" for unit in units))
                storage.remove(self.folder / name for name in parts)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's collector, which looks at all records again and again while they become tens of thousands."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _units(name: str) -> range:
    """The units in a file."""
    match = _NAME.fullmatch(name)
    assert match
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def _full_blocks(units: Iterable[int]) -> list[range]:
    """The largest blocks that have all their units."""
    blocks, left = [], set(units)
    for size in _BLOCKS:
        counts: dict[int, int] = {}
        for unit in left:
            counts[unit // size] = counts.get(unit // size, 0) + 1
        full = [range(number * size, (number + 1) * size) for number, count in counts.items() if count == size]
        blocks += full
        left.difference_update(*full)
    return sorted(blocks, key=lambda block: block[0])


def _parse(path: Place, data: bytes) -> list[Committed]:
    if path.name.endswith(".json"):
        return [Committed(schema.parse(CommitRecord, data, path), data, path)]
    lines = data.splitlines()
    found = [Committed(schema.parse(CommitRecord, line, path), line, path) for line in lines]
    if [committed.record.unit for committed in found] != list(_units(path.name)):
        raise DataError(f"the store is damaged: '{one_line(path)}' has other records than its name says")
    return found


def _parse_each(path: Place, data: bytes) -> tuple[dict[int, Committed], list[str]]:
    """The records of a file that are whole, and what is wrong with the others."""
    units = _units(path.name)
    lines = data.split(b"\n") if path.name.endswith(".jsonl") else [data]
    found, problems = dict[int, Committed](), list[str]()
    if path.name.endswith(".jsonl") and lines.pop() != b"":
        problems.append("it does not end with a line break")
    if len(lines) != len(units):
        problems.append(f"it should hold {len(units)} records, found {len(lines)}")
    for unit, line in zip(units, lines, strict=False):
        try:
            record = schema.parse(CommitRecord, line, f"the record of unit {unit}")
        except DataError as error:
            problems.append(str(error))
            continue
        if record.unit != unit:
            problems.append(f"in the place of the record of unit {unit} is that of unit {record.unit}")
        elif not schema.is_as_written(record, line):
            problems.append(f"the record of unit {unit} is not as curate writes it")
        else:
            found[unit] = Committed(record, line, path)
    return found, problems
