"""Repair makes a store again what it was, byte for byte, wherever it is killed, or names exactly what is lost."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import encoded_png
from test_fsck import all_files, flipped, make, make_retried, unseal

import curate
from curate import files, plugins, records, storage
from curate.errors import CurateError
from curate.repairing import RepairReport, repair
from curate.store import INGEST, Store
from curate.verification import verify

Damage = Callable[[Path], object]


def flip_somewhere(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(flipped(data, random.Random(path.name).randrange(8 * len(data))))


def zero_a_stretch(path: Path) -> None:
    data = path.read_bytes()
    middle = len(data) // 3
    path.write_bytes(data[:middle] + b"\0" * 100 + data[middle + 100 :])


DAMAGE: dict[str, Damage] = {
    "a bit": flip_somewhere,
    "a stretch": zero_a_stretch,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 3),
    "gone": lambda path: path.unlink(),
}

# Of each kind of file one in a shard whose record stands alone, and one in a shard whose record is folded.
PARTS = ("shards/*2.tar", "tables/images/*1.parquet", "tables/cells/*2.parquet", "tables/patches/*0.parquet")
RECORDS = ("store.json", "commits/ingest/*2.json", "commits/ingest/*.jsonl")
RESULTS = (
    *("tables/scores/sobel*/*1.parquet", "tables/scores/sobel*/scorer.json", "commits/scores/sobel*/*.jsonl"),
    *("tables/checks/*/*2.parquet", "tables/checks/*/check.json", "commits/checks/*/*2.json"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store of three shards, the records of the first two of which are folded, and what was made of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_BLOCKS", (4, 2))
        folder = make(tmp_path_factory.mktemp("repair"), 3)
        make_retried(folder)
        yield folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "store", tmp_path / "store"))


@pytest.fixture
def retried(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "retried", tmp_path / "retried"))


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in all_files(folder)}


def the(store: Path, pattern: str) -> Path:
    (path,) = store.glob(pattern)
    return path


def run(report: RepairReport, store: Path) -> None:
    """Do what the report says is to be done."""
    for command in report.again:
        _, verb, folder, *more = command.split()
        assert folder == str(store)
        if verb == "score":
            curate.score(store, more)
        else:
            assert verb == "duplicates" and not more
            curate.duplicates(store)


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("pattern", [*PARTS, *RECORDS, *RESULTS])
def test_what_can_be_made_again_is_the_same_bytes_and_what_cannot_is_named(
    made: Path, store: Path, pattern: str, how: str
) -> None:
    whole = tree(made / "store")
    path = the(store, pattern)
    name = path.relative_to(store).as_posix()
    DAMAGE[how](path)
    report = repair(store)
    run(report, store)
    if pattern.startswith("shards/") or (pattern.startswith("tables/images/") and how != "a bit"):
        assert {finding.path for finding in report.left.findings} == {str(path)}
        changed = {other for other, data in tree(store).items() if data != whole[other]}
        assert changed <= {name} and not report.removed
    else:
        assert tree(store) == whole
        assert report.left.whole or report.again


@pytest.mark.parametrize("pattern", PARTS)
@pytest.mark.parametrize("how", ["a stretch", "cut", "gone"])
@pytest.mark.parametrize("source", ["photographs", "a copy"])
def test_with_photographs_or_a_copy_of_the_store_all_is_made_again(
    made: Path, store: Path, pattern: str, how: str, source: str
) -> None:
    path = the(store, pattern.replace("*2.tar", "*1.tar"))
    DAMAGE[how](path)
    sources = [made / "photos", made / "lr"] if source == "photographs" else [made / "store"]
    report = repair(store, sources=sources)
    assert report.left.whole and [name for name, _ in report.rebuilt] == [path.relative_to(store).as_posix()]
    assert tree(store) == tree(made / "store")


def test_headers_padding_and_end_of_a_shard_are_made_again_from_the_tables(made: Path, store: Path) -> None:
    opened = Store.open(store)
    path = opened.shard_path(1)
    data = path.read_bytes()
    ids = opened.images()["image_id"].drop_null().to_pylist()
    cell = next(cell for image_id in ids for cell in opened.cells(image_id, "lr2") if cell.shard == 1)
    for at in (0, 148, 257, cell.offset - 400, cell.offset + cell.size, len(data) - 1):
        path.write_bytes(flipped(data, 8 * at + 3))
        assert repair(store).left.whole
        assert path.read_bytes() == data
    path.write_bytes(data[: cell.offset - 512] + bytes(512) + data[cell.offset :])  # a whole header
    os.truncate(path, len(data) - 700)
    assert repair(store).left.whole and path.read_bytes() == data


def test_one_image_of_two_is_restored_and_the_other_named_and_the_store_can_be_opened(
    made: Path, tmp_path: Path
) -> None:
    curate.ingest([made / "photos"], tmp_path / "store", patch=24, step=12)
    store = Store.open(tmp_path / "store")
    (path,) = (tmp_path / "store/shards").iterdir()
    whole = path.read_bytes()
    ids = dict(zip(store.images()["name"].to_pylist(), store.images()["image_id"].to_pylist(), strict=True))
    last = store.cell(ids["2.bmp"])
    changed = bytearray(whole[: last.offset + 100])  # cut off within the third, and a bit in the first
    changed[store.cell(ids["0.bmp"]).offset] ^= 1
    path.write_bytes(changed)
    (tmp_path / "some").mkdir()
    shutil.copy(made / "photos/0.bmp", tmp_path / "some/renamed.bmp")
    report = repair(tmp_path / "store", sources=[tmp_path / "some"])
    (finding,) = report.left.findings
    assert finding.images == ["2.bmp"] and finding.patches > 0
    opened = Store.open(tmp_path / "store")
    assert opened.read_bytes(ids["0.bmp"]) == (made / "photos/0.bmp").read_bytes()
    assert opened.read_bytes(ids["1.png"]) == (made / "photos/1.png").read_bytes()
    assert repair(tmp_path / "store", sources=[made / "photos"]).left.whole
    assert path.read_bytes() == whole


def test_a_truncated_shard_keeps_what_is_left_of_it(store: Path) -> None:
    path = store / "shards/000001.tar"
    data = path.read_bytes()
    os.truncate(path, 900)
    with pytest.raises(CurateError):
        Store.open(store).images()
    report = repair(store)
    assert [finding.images for finding in report.left.findings] == [["1.png"], ["1.png"]]
    assert path.read_bytes()[:900] == data[:900] and path.stat().st_size == len(data)
    assert Store.open(store).query("select count(*) as n from scores")["n"].to_pylist()[0] > 0


# --- killed -----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Not an Exception: nobody may catch it."""


def damage_much(store: Path) -> None:
    """Something of every kind."""
    for pattern in (
        "store.json",
        "tables/scores/lap*/scorer.json",
        "commits/checks/*/*2.json",
        "tables/cells/*2.parquet",
    ):
        flip_somewhere(the(store, pattern))
    for pattern in ("commits/ingest/*.jsonl", "tables/scores/sobel*/*0.parquet", "tables/checks/*/*1.parquet"):
        zero_a_stretch(the(store, pattern))
    (store / "tables/patches/000002.parquet").unlink()
    path = store / "shards/000002.tar"
    path.write_bytes(flipped(path.read_bytes(), 8 * 700))
    (store / "shards/.000007.tar.00.tmp").write_bytes(b"left")


def kill_at(number: int, patch: pytest.MonkeyPatch) -> list[str]:
    """Die before the write or the removal of that number; returns the list of those that come."""
    calls: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        act = getattr(storage, name)

        def call(*arguments: Any) -> Any:
            if name == "remove":
                for path in arguments[0]:
                    step(f"remove {path}")
                    act([path])
                return None
            step(f"write {arguments[0]}")
            return act(*arguments)

        return call

    def step(what: str) -> None:
        calls.append(what)
        if len(calls) > number:
            raise Killed

    for name in ("publish", "publish_bytes", "remove"):
        patch.setattr(storage, name, counted(name))
    return calls


def test_killed_at_any_step_and_run_again_it_ends_as_if_it_had_not_been(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_BLOCKS", (4, 2))
    damaged = Path(shutil.copytree(made / "store", tmp_path / "damaged"))
    damage_much(damaged)
    photographs = [made / "photos", made / "lr"]
    once = Path(shutil.copytree(damaged, tmp_path / "once"))
    with monkeypatch.context() as patch:
        steps = kill_at(1000, patch)
        report = repair(once, sources=photographs)
    assert report.left.whole and len(steps) > 12
    expected = tree(once)
    for number in range(len(steps)):
        store = Path(shutil.copytree(damaged, tmp_path / str(number)))
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_at(number, patch)
            repair(store, sources=photographs)
        repair(store, sources=photographs)
        assert tree(store) == expected, steps[number]
        shutil.rmtree(store)
    curate.score(once, ["sobel", "laplacian"])
    curate.duplicates(once)
    assert tree(once) == tree(made / "store")


# --- records ----------------------------------------------------------------------------------------------------------


def test_all_records_of_shards_are_made_again(made: Path, store: Path) -> None:
    shutil.rmtree(store / "commits" / INGEST)
    assert not verify(store).whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_BLOCKS", (4, 2))
        assert repair(store).left.whole
    assert tree(store) == tree(made / "store")


def test_older_records_without_checksums_are_made_again_as_they_were(store: Path) -> None:
    for path in (store / "commits" / INGEST).iterdir():
        unseal(path)
    digest = Store.open(store).digest()
    (store / "commits" / INGEST / "000002.json").unlink()
    report = repair(store)
    assert report.left.whole and Store.open(store).digest() == digest


def test_no_record_is_made_for_files_that_scores_say_are_others(store: Path) -> None:
    opened = Store.open(store)
    images = opened.unit_table("images", 2)
    rows = images.to_pylist()
    rows[0]["name"] = "another.bmp"
    opened.write_table("images", 2, type(images).from_pylist(rows, images.schema))
    (store / "commits" / INGEST / "000002.json").unlink()
    report = repair(store)
    assert [finding.kind for finding in report.left.findings] == ["missing"] and report.rebuilt == []


def test_a_shard_that_lacks_a_file_gets_no_record(store: Path) -> None:
    shutil.rmtree(store / "tables/scores")
    shutil.rmtree(store / "commits/scores")
    shutil.rmtree(store / "tables/checks")
    shutil.rmtree(store / "commits/checks")
    (store / "commits" / INGEST / "000002.json").unlink()
    (store / "tables/cells/000002.parquet").unlink()
    before = tree(store)
    report = repair(store)
    assert report.left.whole and all(finding.harmless for finding in report.left.findings)
    assert tree(store) == before  # a photograph is never removed


# --- retries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("unit", [2, 3])
def test_what_a_retry_settled_is_made_again(made: Path, retried: Path, unit: int, how: str) -> None:
    DAMAGE[how](retried / f"tables/retried/00000{unit}.parquet")
    report = repair(retried)
    assert report.left.whole and [name for name, _ in report.rebuilt] == [f"tables/retried/00000{unit}.parquet"]
    assert tree(retried) == tree(made / "retried")


@pytest.mark.parametrize("named", [["b/x", "a/y"], ["a/y", "b/x"], ["b/x", "a/x"]])
def test_in_whatever_order_the_folders_were_named(tmp_path: Path, named: list[str]) -> None:
    """Of each folder one source was taken before it was retried; two folders may have one name."""
    folders = [tmp_path / name for name in named]
    for step in range(3):  # all are bad; of each folder the first is whole, and taken; the second too, and a retry
        for i, folder in enumerate(folders):
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(2):
                whole = number < step
                (folder / f"{number}{i}.png").write_bytes(encoded_png(2 * i + number) if whole else b"bad")
        curate.ingest(folders, tmp_path / "store", patch=24, step=12, retry_failed=step == 2)
    path = tmp_path / "store/tables/retried/000002.parquet"
    data = path.read_bytes()
    assert Store.open(tmp_path / "store").unit_table("retried", 2).num_rows == 4
    path.unlink()
    assert repair(tmp_path / "store").left.whole and path.read_bytes() == data


def test_where_it_cannot_be_made_again_the_loss_is_named(made: Path, retried: Path) -> None:
    """The table of images of its shard is lost, and one of its sources was refused again."""
    zero_a_stretch(retried / "tables/images/000002.parquet")
    path = retried / "tables/retried/000002.parquet"
    path.unlink()
    found = {finding.path: finding for finding in repair(retried, sources=[made / "tried"]).left.findings}
    assert found.keys() == {str(retried / "tables/images/000002.parquet"), str(path)}
    assert found[str(path)].problem.endswith("it says which earlier refusals are history, and nothing else")
    assert repair(retried, sources=[made / "retried"]).left.whole
    assert tree(retried) == tree(made / "retried")


@pytest.mark.parametrize("lost", ["000002-000003.jsonl", "000000-000003.jsonl", ""])
@pytest.mark.parametrize("tables", [[], [2], [3], [2, 3]])
def test_records_of_a_retry_are_made_again_with_what_it_settled(
    made: Path, retried: Path, lost: str, tables: list[int]
) -> None:
    """Whatever is lost with them: the scores tell which table is the right one."""
    folder = retried / "commits" / INGEST
    for path in [folder / lost] if (folder / lost).is_file() else list(folder.iterdir()):
        path.unlink()
    for unit in tables:
        (retried / f"tables/retried/00000{unit}.parquet").unlink()
    assert repair(retried).left.whole
    assert tree(retried) == tree(made / "retried")


def test_without_scores_nothing_tells_a_retry_that_lost_its_table_from_an_ingest(made: Path, retried: Path) -> None:
    """So it is left as a retry that was killed before it wrote the table: another retry does it again."""
    for name in ("tables/scores", "commits/scores", "tables/checks", "commits/checks"):
        shutil.rmtree(retried / name)
    whole = tree(retried)
    lose_record(retried, 3)
    (retried / "tables/retried/000003.parquet").unlink()
    left = repair(retried).left
    assert left.whole and {Path(finding.path).name for finding in left.findings} == {"000003.tar", "000003.parquet"}
    assert Store.open(retried).images().num_rows == 4
    assert curate.ingest([made / "tried"], retried, retry_failed=True).added == 1
    assert tree(retried) == whole


def test_without_scores_a_record_names_a_retry_only_where_the_refusals_allow_it(made: Path, retried: Path) -> None:
    for name in ("tables/scores", "commits/scores", "tables/checks", "commits/checks"):
        shutil.rmtree(retried / name)
    whole = tree(retried)
    lose_record(retried, 2)
    assert repair(retried).left.whole and tree(retried) == whole
    table = Store.open(retried).unit_table("retried", 2)
    rows = [*table.to_pylist(), {"source": "tried", "name": "0.png"}]  # that was never refused
    Store.open(retried).write_table("retried", 2, type(table).from_pylist(rows, table.schema))
    lose_record(retried, 2)
    report = repair(retried)
    assert not report.left.whole and report.rebuilt == []
    shutil.copy(made / "retried/tables/retried/000002.parquet", retried / "tables/retried")
    zero_a_stretch(retried / "tables/images/000000.parquet")  # now nobody knows what was refused
    assert "commits/ingest/000002.json" in dict(repair(retried).rebuilt)
    shutil.copy(made / "retried/tables/images/000000.parquet", retried / "tables/images")
    assert repair(retried).left.whole and tree(retried) == whole


def lose_record(store: Path, unit: int) -> None:
    unfold(store)
    (store / f"commits/{INGEST}/{unit:06d}.json").unlink()


def unfold(store: Path) -> None:
    """Give every record a file of its own."""
    folder = store / "commits" / INGEST
    for path in folder.glob("*.jsonl"):
        records.Records(folder).unfold(path.name)


def test_a_retry_that_was_killed_before_its_record_is_finished_or_left(made: Path, retried: Path) -> None:
    lose_record(retried, 3)
    shutil.rmtree(retried / "commits/scores")
    assert "commits/ingest/000003.json" in dict(repair(retried).rebuilt)
    opened = Store.open(retried)
    assert opened.images().num_rows == 4 and opened.digest() == Store.open(made / "retried").digest()


def test_what_a_killed_retry_left_of_a_shard_that_another_run_wrote_is_removed(made: Path, retried: Path) -> None:
    left = retried / "tables/retried/000001.parquet"
    shutil.copy(retried / "tables/retried/000002.parquet", left)
    report = repair(retried)
    assert report.left.whole and [name for name, _ in report.removed] == ["tables/retried/000001.parquet"]
    assert tree(retried) == tree(made / "retried")
    shutil.copy(retried / "tables/retried/000002.parquet", left)
    shutil.rmtree(retried / "commits" / INGEST)
    assert repair(retried).left.whole and not left.exists()
    assert Store.open(retried).digest() == Store.open(made / "retried").digest()


# --- what is not curate's, and what is none of a store ----------------------------------------------------------------


def test_foreign_files_stay_and_leftovers_go(store: Path) -> None:
    (store / "notes.txt").write_bytes(b"mine")
    (store / "tables/cells/.x.00.tmp").write_bytes(b"left")
    report = repair(store)
    assert [name for name, _ in report.removed] == ["tables/cells/.x.00.tmp"]
    assert [finding.kind for finding in report.left.findings] == ["foreign"] and (store / "notes.txt").exists()


def test_nothing_is_done_to_what_is_whole(made: Path, store: Path) -> None:
    report = repair(store)
    assert report == RepairReport([], [], [], report.left) and report.left.whole
    assert tree(store) == tree(made / "store")


def test_a_store_that_is_written_to_is_left_alone(store: Path) -> None:
    (store / "tables/cells/000000.parquet").unlink()
    with files.lock(store), pytest.raises(CurateError, match="another curate is writing"):
        repair(store)


def test_a_packed_store_is_repaired_too(made: Path, tmp_path: Path) -> None:
    whole = tree(made / "packed")
    packed = Path(shutil.copytree(made / "packed", tmp_path / "packed"))
    for name in ("cells", "patches"):
        (packed / f"tables/{name}/000000.parquet").unlink()
    (packed / "store.json").write_bytes(flipped(whole["store.json"], 99))
    assert repair(packed).left.whole and tree(packed) == whole
    the(packed, "tables/scores/sobel*/*0.parquet").unlink()
    (packed / "manifest.parquet").unlink()
    report = repair(packed)
    assert report.again == [f"curate pack MANIFEST {packed}"]
    curate.pack(made / "half.parquet", packed, shard_size=20_000)
    again = tree(packed)
    assert {name for name in whole if again[name] != whole[name]} <= {"manifest.parquet"}  # it names where it lies
    assert repair(packed).left.whole


def test_a_store_at_a_url_is_repaired_too(made: Path, memory: str) -> None:
    curate.ingest([made / "photos"], f"{memory}/store", patch=24, step=12, shard_size=1)
    store = Store.open(f"{memory}/store")
    whole = {name: (store.path / name).read_bytes() for name in storage.tree(store.path)}
    storage.remove([store.path / "tables/cells/000001.parquet", store.shard_path(0)])
    storage.publish_bytes(store.path / "store.json", flipped(whole["store.json"], 77))
    report = repair(f"{memory}/store", sources=[made / "photos"])
    assert report.left.whole
    assert {name: (store.path / name).read_bytes() for name in storage.tree(store.path)} == whole


def test_the_recipe_beside_weights_is_written_again(tmp_path: Path) -> None:
    from curate.checkpoint import Checkpoint

    arch = plugins.parse("archs", "fsrcnn:d=8,s=4,m=1,scale=2")
    Checkpoint(arch, arch.build().state_dict(), {"seed": 1}).save(tmp_path)
    whole = tree(tmp_path)
    (tmp_path / "recipe.json").write_bytes(b"{}")
    assert repair(tmp_path).left.whole and tree(tmp_path) == whole
    (tmp_path / "model.safetensors").write_bytes(whole["model.safetensors"][:-1])
    assert not repair(tmp_path).left.whole


def test_damaged_files_of_an_export_are_removed_and_the_command_that_makes_them_is_told(
    made: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    curate.export(curate.select(made / "store", "random", keep=0.5), out, to="basicsr")
    damaged = sorted((out / "HR").iterdir())[0]
    flip_somewhere(damaged)
    report = repair(out)
    assert report.rebuilt == [] and report.removed == [(str(damaged), "damaged")]
    assert report.again == [f"curate export MANIFEST {out} --to basicsr"]
    assert [(finding.path, finding.problem) for finding in report.left.findings] == [(str(damaged), "missing")]
    (out / "export.json").write_bytes(b"{}")
    report = repair(out)
    assert report.removed == [] and [finding.path for finding in report.left.findings] == [str(out / "export.json")]
