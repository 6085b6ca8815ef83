"""Commit records stay few files, and say the same before, during and after they are put together."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from curate import records, schema, storage
from curate.errors import CurateError, DataError
from curate.records import Records
from curate.schema import CommitRecord, Part
from curate.store import INGEST, Store


def record(unit: int, fingerprint: str = "0" * 16) -> CommitRecord:
    part = Part(path=f"tables/images/{unit:06d}.parquet", bytes=1, xxh3="a" * 32, rows=1)
    return CommitRecord(unit=unit, fingerprint=fingerprint, parts=[part])


def write(folder: storage.Place, units: range) -> Records:
    found = Records(folder)
    for unit in units:
        found.add(record(unit))
    return found


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def contents(found: Records) -> dict[int, bytes]:
    return {unit: committed.data for unit, committed in found.read().items()}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 and 16 units."""
    monkeypatch.setattr(records, "_BLOCKS", (16, 4))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("units", "expected"),
    [
        (range(3), ["000000.json", "000001.json", "000002.json"]),
        (range(4), ["000000-000003.jsonl"]),
        (range(1, 9), ["000001.json", "000002.json", "000003.json", "000004-000007.jsonl", "000008.json"]),
        (range(16), ["000000-000015.jsonl"]),
        (range(37), ["000000-000015.jsonl", "000016-000031.jsonl", "000032-000035.jsonl", "000036.json"]),
    ],
)
def test_full_blocks_become_one_file_whose_lines_are_the_records(
    tmp_path: Path, units: range, expected: list[str]
) -> None:
    found = write(tmp_path, units)
    before = contents(found)
    found.fold()
    assert sorted(tree(tmp_path)) == expected
    assert before == contents(found) == contents(Records(tmp_path)) and list(before) == list(units)
    assert b"".join(before[unit] + b"\n" for unit in units) == b"".join(
        data.rstrip(b"\n") + b"\n" for _, data in sorted(tree(tmp_path).items())
    )
    for unit, committed in found.read().items():
        assert committed.record == record(unit)


@pytest.mark.usefixtures("small")
def test_the_files_depend_on_the_finished_units_alone(tmp_path: Path) -> None:
    write(tmp_path / "at once", range(23)).fold()
    grown = Records(tmp_path / "grown")
    for unit in (5, 3, 22, *range(6, 22), 4, 2, 1, 0):
        grown.add(record(unit))
        grown.fold()
    assert tree(tmp_path / "grown") == tree(tmp_path / "at once")
    before = tree(tmp_path / "grown")
    grown.fold()
    assert tree(tmp_path / "grown") == before


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("steps", range(8))
def test_a_fold_that_was_killed_anywhere_changes_nothing_and_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    write(tmp_path / "whole", range(18)).fold()
    cut = write(tmp_path / "cut", range(18))
    before, count = contents(cut), itertools.count()
    remove = Path.unlink

    def dying(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".json" and next(count) == steps:
            raise KeyboardInterrupt
        remove(path, missing_ok)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", dying)
        cut.fold()
    assert contents(Records(tmp_path / "cut")) == before
    Records(tmp_path / "cut").fold()
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


@pytest.mark.usefixtures("small")
def test_a_unit_done_again_counts_and_is_folded_in(tmp_path: Path) -> None:
    found = write(tmp_path, range(16))
    found.fold()
    found.add(record(7, "f" * 16))
    assert Records(tmp_path).read()[7].record.fingerprint == "f" * 16
    found.fold()
    assert list(tree(tmp_path)) == ["000000-000015.jsonl"]
    assert Records(tmp_path).read()[7].record.fingerprint == "f" * 16
    assert Records(tmp_path).read()[8].record == record(8)


@pytest.mark.usefixtures("small")
def test_a_reader_that_listed_before_a_fold_looks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = write(tmp_path, range(6)), Records(tmp_path)
    expected, listing = contents(writer), storage.entries
    folds = itertools.chain([writer.fold], itertools.repeat(lambda: None))

    def listed_then_folded(folder: Path) -> dict[str, storage.Entry]:
        found = listing(folder)
        monkeypatch.setattr(storage, "entries", listing)
        next(folds)()
        return found

    monkeypatch.setattr(storage, "entries", listed_then_folded)
    assert contents(reader) == expected


@pytest.mark.usefixtures("small")
def test_a_block_with_other_units_than_its_name_says_is_damage(tmp_path: Path) -> None:
    write(tmp_path, range(4)).fold()
    lines = (tmp_path / "000000-000003.jsonl").read_bytes().splitlines(keepends=True)
    for damaged in (lines[1:], lines[::-1], [*lines, lines[0]], []):
        (tmp_path / "000000-000003.jsonl").write_bytes(b"".join(damaged))
        with pytest.raises(DataError, match="has other records than its name says"):
            Records(tmp_path).read()
    (tmp_path / "000000-000003.jsonl").write_bytes(b"".join(lines[:3]) + b"{}\n")
    with pytest.raises(DataError, match="is not a valid CommitRecord"):
        Records(tmp_path).read()


def test_records_that_have_not_changed_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = write(tmp_path, range(5))
    reads: list[str] = []
    parse = schema.parse

    def counting(kind: type[CommitRecord], text: bytes, where: Path) -> CommitRecord:
        reads.append(where.name)
        return parse(kind, text, where)

    monkeypatch.setattr(schema, "parse", counting)
    found.read()
    found.add(record(2, "f" * 16))
    assert found.read()[2].record.fingerprint == "f" * 16
    assert sorted(reads) == [f"{unit:06d}.json" for unit in (0, 1, 2, 2, 3, 4)]


@pytest.mark.parametrize("folded", [False, True])
def test_of_two_runs_at_a_url_the_first_record_stays(memory: str, small: None, folded: bool) -> None:
    place = storage.place(memory, "records")
    first, second = write(place, range(3)), Records(place)
    second.read()
    first.add(record(3))
    if folded:
        first.fold()
    second.add(record(3))  # the same: nothing to do
    with pytest.raises(CurateError, match=r"another run has written .* and not the same; run again") as refused:
        Records(place).add(record(3, "f" * 16))
    assert str(refused.value).isprintable()
    assert Records(place).read()[3].record == record(3)
    second.read()
    second.add(record(3, "f" * 16))  # which knew the record that it replaces
    assert Records(place).read()[3].record.fingerprint == "f" * 16


@pytest.mark.usefixtures("small")
def test_a_store_is_the_same_store_with_its_records_folded(tmp_path: Path, write_store: object) -> None:
    store = write_store(tmp_path / "store", [2] * 9, {"sobel": [0.5] * 18})  # type: ignore[operator]
    digests = [store.digest(shards) for shards in range(10)]
    commits, answer = store.commits(), store.query("select * from scores order by patch_id")
    with store.writing():
        pass
    names = {path.name for path in (tmp_path / "store" / "commits").rglob("*.json*")}
    assert names == {"000000-000003.jsonl", "000004-000007.jsonl", "000008.json"}
    folded = Store.open(tmp_path / "store")
    assert [folded.digest(shards) for shards in range(10)] == digests
    assert folded.commits() == commits and list(folded.commits(INGEST)) == list(range(9))
    assert folded.query("select * from scores order by patch_id").equals(answer)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_a_damaged_record_is_named_and_those_beside_it_are_read(tmp_path: Path) -> None:
    found = write(tmp_path, range(10))
    found.fold()
    before = contents(found)
    path = tmp_path / "000004-000007.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1].replace(b"000005", b"000001"), *lines[2:]]))
    (tmp_path / "000009.json").write_bytes(b"{")
    whole, problems, lost = Records(tmp_path).survey()
    assert {unit: committed.data for unit, committed in whole.items()} == {
        unit: data for unit, data in before.items() if unit not in (5, 9)
    }
    assert [name for name, _ in problems] == ["000004-000007.jsonl", "000009.json"] and lost == {5, 9}
    assert "the record of unit 5 is damaged" in problems[0][1]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[:2] + lines[3:],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [*lines, lines[0]],
        lambda lines: [*lines[:3], lines[3] + b" "],
    ],
)
def test_a_block_with_other_lines_than_its_own_is_damaged(tmp_path: Path, change: Callable[..., list[bytes]]) -> None:
    write(tmp_path, range(4)).fold()
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"".join(line + b"\n" for line in change(path.read_bytes().splitlines())))
    _, problems, lost = Records(tmp_path).survey()
    assert problems and lost <= set(range(4))
    path.write_bytes(path.read_bytes()[:-1])
    assert any("does not end with a line break" in problem for _, problem in Records(tmp_path).survey()[1])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("units", [{0}, {5, 17}, {22}, {3, 22, 21}, set(range(16)), set()])
def test_records_are_removed_from_wherever_they_are_and_all_others_stay(tmp_path: Path, units: set[int]) -> None:
    found = write(tmp_path, range(23))
    found.fold()
    before = contents(found)
    found.remove(units)
    assert contents(Records(tmp_path)) == {unit: data for unit, data in before.items() if unit not in units}
    for unit in units:
        found.add(record(unit))
    found.fold()
    assert contents(Records(tmp_path)) == before and len(tree(tmp_path)) == 5
