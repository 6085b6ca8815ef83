"""Every bit of a store is checked: whichever flips is found, and so is what is cut, missing, foreign or stale."""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import encoded_png, synthetic_photo
from distilled import distil, patches
from PIL import Image

import curate
from curate import files, fsck, layout, records, schema
from curate.fsck import Fault
from curate.progress import silent
from curate.store import INGEST, Store

HOW = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def make(folder: Path, number: int = 6) -> Path:
    """A store of so many shards with LR images, two scorers and a check, a manifest of it, a packed store of that, and
    a distilled one."""
    for name, factor in (("photos", 1), ("lr", 2)):
        (folder / name).mkdir(parents=True)
        for i in range(number):
            size = (48 + 12 * i, 60)
            image = Image.fromarray(synthetic_photo(*size, i)).resize((size[1] // factor, size[0] // factor))
            image.save(folder / name / f"{i}.{'png' if i % 2 else 'bmp'}")
    (folder / "photos" / "bad.png").write_bytes(b"no image")
    store = folder / "store"
    curate.ingest([folder / "photos"], store, patch=24, step=12, shard_size=1, lr={2: str(folder / "lr")})
    curate.score(store, ["sobel", "laplacian"])
    curate.duplicates(store)
    curate.select(store, "des", by="sobel", keep=0.3).save(folder / "half.parquet")
    curate.pack(folder / "half.parquet", folder / "packed", shard_size=20_000)
    distil(folder / "half.parquet", folder / "distilled", lr={2: patches(5, 12)}, per_shard=1)
    curate.score(folder / "distilled", ["sobel", "laplacian"])
    return folder


def make_retried(folder: Path) -> Path:
    """A store of four shards, the last two of which settle refusals; of the third one source was taken before."""
    photos, store = folder / "tried", folder / "retried"
    photos.mkdir(parents=True)

    def take(*names: str, **options: bool) -> None:
        for name in names:
            (photos / name).write_bytes(encoded_png(int(name[0])))
        curate.ingest([photos], store, patch=24, step=12, **options)

    for name in ("1.png", "2.png", "3.png"):
        (photos / name).write_bytes(name.encode())
    take("0.png")
    take("2.png")
    (photos / "3.png").write_bytes(b"")
    take("1.png", retry_failed=True)
    take("3.png", retry_failed=True)
    curate.score(store, ["sobel"])
    curate.duplicates(store)
    return store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What `make` makes, with records folded in fours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_BLOCKS", (16, 4))
        folder = make(tmp_path_factory.mktemp("fsck"))
        make_retried(folder)
        yield folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "store", tmp_path / "store"))


@pytest.fixture
def retried(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "retried", tmp_path / "retried"))


def faults(path: Path, deep: bool = True) -> list[Fault]:
    found = fsck.look(path)
    return found.faults + (list(fsck.faults_within(found, silent)) if deep else [])


def kinds(path: Path, deep: bool = False) -> dict[str, str]:
    """Path -> kind of what is wrong."""
    return {fault.path: fault.kind for fault in faults(path, deep)}


def all_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def flip_bits(folder: Path, number: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Flip bits one after the other, as many in each file; returns how many by kind of file, and the unnoticed ones.

    A flip counts as found if a fault names the file.
    """
    rng, made, unnoticed = random.Random(seed), Counter[str](), list[str]()
    for path in all_files(folder):
        name, data = path.relative_to(folder).as_posix(), path.read_bytes()
        for bit in rng.sample(range(8 * len(data)), number):
            path.write_bytes(flipped(data, bit))
            made["/".join(name.split("/")[:2])] += 1
            if name not in {fault.path for fault in named(folder)}:
                unnoticed.append(f"{name}: bit {bit}")
        path.write_bytes(data)
    return made, unnoticed


def named(folder: Path) -> list[Fault]:
    """All faults of a store, those of the manifest in it too."""
    found = []
    if (folder / "manifest.parquet").exists():
        verified = curate.verify(folder / "manifest.parquet", deep=True)
        found = [Fault("damaged", "manifest.parquet", f.problem) for f in verified.findings if not f.harmless]
    return found + faults(folder)


def test_a_store_as_it_was_written_has_no_fault(made: Path) -> None:
    for name in ("store", "packed", "distilled", "retried"):
        assert faults(made / name) == []
    names = {path.name for path in all_files(made / "store" / "commits" / INGEST)}
    assert names == {"000000-000003.jsonl", "000004.json", "000005.json"}


@pytest.mark.parametrize(
    "name", ["store", "distilled", *(pytest.param(name, marks=pytest.mark.slow) for name in ("packed", "retried"))]
)
def test_every_flipped_bit_of_any_file_is_found_and_its_file_named(made: Path, name: str) -> None:
    flips, unnoticed = flip_bits(made / name, 2 if name in ("store", "distilled") else 4, seed=0)
    assert unnoticed == [] and sum(flips.values()) >= 80
    assert flips["tables/retried"] == (8 if name == "retried" else 0)
    assert {"store.json", "shards", "tables/cells", "tables/scores", "commits/ingest", "commits/scores"} < {
        "shards" if kind.startswith("shards/") else kind for kind in flips
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["store", "packed", "distilled", "retried"])
def test_thousands_of_flipped_bits_are_found(made: Path, name: str) -> None:
    flips, unnoticed = flip_bits(made / name, 40, seed=1)
    assert unnoticed == []
    assert sum(flips.values()) > 800


@pytest.mark.slow
def test_every_bit_of_every_document_is_found(made: Path) -> None:
    """Not some of them: all."""
    documents = [path for path in all_files(made / "store") if path.suffix in (".json", ".jsonl")]
    one_of_a_kind = {path.parent.relative_to(made / "store").parts[:2]: path for path in documents}
    for path in one_of_a_kind.values():
        data = path.read_bytes()
        for bit in range(8 * len(data)):
            path.write_bytes(flipped(data, bit))
            assert path.relative_to(made / "store").as_posix() in kinds(made / "store"), bit
        path.write_bytes(data)


@pytest.mark.parametrize("how", HOW)
def test_whatever_is_cut_or_missing_is_found_without_reading_it(store: Path, how: str) -> None:
    for path in all_files(store):
        name, data = path.relative_to(store).as_posix(), path.read_bytes()
        if path.name == "store.json" and how == "a folder":
            continue  # then it is no store
        HOW[how](path)
        told = kinds(store)
        unfolded = name.endswith(".json") and how in ("gone", "a folder") and not name.startswith("tables/")
        if unfolded and name != "store.json" and not name.startswith(f"commits/{INGEST}/000004"):
            # of the last record of all, and of scores, it cannot be told whether it ever was there
            table = name.replace("commits/", "tables/").replace(".json", ".parquet")
            expected = {table} if INGEST not in name else {"shards/000005.tar"} | {name}
            assert expected & told.keys()
        elif name.endswith(".jsonl") and how in ("gone", "a folder"):
            assert told, name
        else:
            assert told.get(name) in ("damaged", "missing"), (name, told)
        shutil.rmtree(path) if path.is_dir() else None
        path.write_bytes(data)
    assert kinds(store) == {}


@pytest.mark.parametrize(
    "name",
    [
        *("notes.txt", "shards/notes.txt", "shards/000000.tar.bak", "tables/images/000001.parquet~", "deep/er/file"),
        *("tables/scores/sobel@00000000/000000.parquet", "commits/ingest/000001.json.old", "shards/1.tar"),
    ],
)
def test_a_foreign_file_is_named(store: Path, name: str) -> None:
    (store / name).parent.mkdir(parents=True, exist_ok=True)
    (store / name).write_bytes(b"foreign")
    told = kinds(store)
    assert told.pop(name) == "foreign"
    assert told.keys() <= {"tables/scores/sobel@00000000/scorer.json"}


@pytest.mark.parametrize("name", [".store.json.0f.tmp", "shards/.000009.tar.0f.tmp", "shards/000006.tar"])
def test_what_a_killed_run_left_is_harmless(store: Path, name: str) -> None:
    (store / name).write_bytes(b"left")
    assert kinds(store) == {name: "leftover"}


def test_scores_of_a_shard_that_has_changed_are_stale(store: Path) -> None:
    opened = Store.open(store)
    (found, *_) = opened.score_sets()
    record = opened.commits(found.kind)[4]
    opened.commit(found.kind, 4, "0" * 16, record.parts)
    assert kinds(store) == {f"tables/{found.kind}/000004.parquet": "stale"}
    found = opened.check_sets()[0]
    opened.commit(found.kind, 5, "0" * 16, opened.commits(found.kind)[5].parts)
    assert kinds(store)[f"tables/{found.kind}/000005.parquet"] == "stale"


def forge(store: Path, name: str, unit: int, change: Callable[..., object]) -> None:
    """Give a unit another table, and a record that vouches for it."""
    opened = Store.open(store)
    record = opened.commits()[unit]
    part = opened.write_table(name, unit, change(opened.unit_table(name, unit)))
    parts = [part if part.path == old.path else old for old in record.parts]
    opened.commit(INGEST, unit, record.fingerprint, parts)


def shifted(patches: object) -> object:
    rows = patches.to_pylist()
    rows[0]["x"] += 1
    return type(patches).from_pylist(rows, layout.PATCHES)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("patches", shifted, "its windows are not those of a grid of 24 px every 12 px"),
        ("patches", lambda table: table.slice(1), "its windows are not those of a grid"),
        ("cells", lambda table: table.slice(2), "its images are not those of the table of images"),
        ("images", lambda table: table.drop_columns(["status"]), "it has other columns"),
        ("images", lambda table: table.slice(0, 0), "its images are not those of the table of images"),
    ],
)
def test_tables_that_do_not_agree_are_found_though_their_records_do(
    store: Path, name: str, change: Callable[..., object], problem: str
) -> None:
    forge(store, name, 4, change)
    assert problem in [fault.problem[: len(problem)] for fault in faults(store) if fault.unit == 4]


def test_a_flipped_bit_of_an_image_is_told_as_that_image_and_other_bytes_of_the_tar_as_such(store: Path) -> None:
    opened = Store.open(store)
    for image_id in opened.images()["image_id"].drop_null().to_pylist()[::3]:
        for role in ("hr", "lr2"):
            cell = opened.cell(image_id, role)
            path = opened.shard_path(cell.shard)
            data = path.read_bytes()
            path.write_bytes(flipped(data, 8 * (cell.offset + cell.size // 2)))
            (fault,) = faults(store)
            assert (fault.unit, fault.image_id, fault.role) == (cell.shard, image_id, role)
            for at in (cell.offset - 1, cell.offset - 512, len(data) - 1):
                path.write_bytes(flipped(data, 8 * at))
                (fault,) = faults(store)
                assert fault.image_id is None and "bytes between them have changed" in fault.problem
            path.write_bytes(data)


def test_an_image_in_two_shards_is_found(store: Path) -> None:
    opened = Store.open(store)
    first = opened.unit_table("images", 4)
    forge(store, "images", 5, lambda table: first)
    assert any("is in shard 4 already" in fault.problem for fault in faults(store))


def test_a_record_of_other_files_than_its_own_is_damaged(store: Path) -> None:
    opened = Store.open(store)
    record = opened.commits()[4]
    opened.commit(INGEST, 4, record.fingerprint, record.parts[:2])
    assert kinds(store)["commits/ingest/000004.json"] == "damaged"


# --- retries ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_bits_of_what_a_retry_settled_are_checked(retried: Path) -> None:
    path = retried / "tables/retried/000002.parquet"
    data = path.read_bytes()
    for bit in range(3, 8 * len(data), 41):
        path.write_bytes(flipped(data, bit))
        assert kinds(retried, deep=True) == {"tables/retried/000002.parquet": "damaged"}, bit
    path.write_bytes(data)
    for how in HOW.values():
        how(path)
        assert kinds(retried).keys() == {"tables/retried/000002.parquet"}
        shutil.rmtree(path) if path.is_dir() else None
        path.write_bytes(data)
    assert kinds(retried) == {}


def names_changed(change: Callable[[list[str]], list[str]]) -> Callable[..., object]:
    def changed(table: object) -> object:
        rows = [{"source": "tried", "name": name} for name in change(table["name"].to_pylist())]
        return type(table).from_pylist(rows, layout.RETRIED)

    return changed


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (names_changed(lambda names: [*names, "0.png"]), "'tried/0.png' was not refused before"),
        (names_changed(lambda names: [*names, "1.png"]), "it has a source twice"),
        (names_changed(lambda names: names[1:]), "it lacks sources of the table of images"),
        (names_changed(lambda names: names[::-1]), "it lacks sources of the table of images"),
        (lambda table: table.rename_columns(["source", "title"]), "it has other columns: ['source', 'title']"),
    ],
)
def test_what_a_retry_settled_was_refused_before(retried: Path, change: Callable[..., object], problem: str) -> None:
    forge(retried, "retried", 2, change)
    told = [fault.problem for fault in faults(retried) if fault.path == "tables/retried/000002.parquet"]
    assert [text for text in told if text.startswith(problem)]


def test_what_is_settled_twice_was_refused_in_between(retried: Path) -> None:
    forge(retried, "retried", 3, names_changed(lambda names: [*names, "1.png"]))
    assert "'tried/1.png' was not refused before" in [fault.problem for fault in faults(retried)]


def test_where_earlier_images_are_lost_nothing_is_said_of_their_refusals(retried: Path) -> None:
    path = retried / "tables/images/000000.parquet"
    data = path.read_bytes()
    path.write_bytes(flipped(data, 400))
    assert kinds(retried, deep=True) == {"tables/images/000000.parquet": "damaged"}
    path.write_bytes(data)
    commits = records.Records(retried / "commits" / INGEST)
    commits.unfold("000000-000003.jsonl")
    commits.remove([0])
    told = kinds(retried, deep=True)
    assert told["commits/ingest/000000.json"] == "missing" and not any("/retried/" in path for path in told)


def test_a_table_that_the_record_of_its_shard_does_not_name_is_a_leftover(retried: Path) -> None:
    """A retry was killed, and the shard of its number written by another run."""
    shutil.copy(retried / "tables/retried/000002.parquet", retried / "tables/retried/000001.parquet")
    assert kinds(retried, deep=True) == {"tables/retried/000001.parquet": "leftover"}


def unseal(path: Path, indent: int | None = None) -> None:
    """Write a document as it was before documents had checksums."""
    kind = {"store.json": schema.StoreHeader, "scorer.json": schema.ScorerRecord, "check.json": schema.CheckRecord}
    model = kind.get(path.name, schema.CommitRecord)
    lines = path.read_bytes().splitlines() if path.suffix == ".jsonl" else [path.read_bytes()]
    old = [schema.dump(schema.parse(model, line, path), indent, sealed=False) for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in old) if path.suffix == ".jsonl" else old[0])


def test_an_older_store_without_checksums_is_whole_and_most_of_its_bits_are_checked(store: Path) -> None:
    """Of its documents: not the version that made it, and not the label of a scorer."""
    for path in all_files(store):
        if path.suffix in (".json", ".jsonl"):
            unseal(path, 2 if path.name in ("store.json", "scorer.json", "check.json") else None)
    assert faults(store) == []
    rng = random.Random(2)
    for path in [path for path in all_files(store) if path.suffix in (".json", ".jsonl")]:
        data = path.read_bytes()
        free = {at for value in (b"curate 0.1.0", b'"sobel",\n  "scorer') for at in span(data, value)}
        for bit in rng.sample(range(8 * len(data)), 2):
            if path.name == "scorer.json" or bit // 8 in free:
                continue
            path.write_bytes(flipped(data, bit))
            assert faults(store), (path, bit, data[bit // 8 - 9 : bit // 8 + 9])
        path.write_bytes(data)


def span(data: bytes, value: bytes) -> range:
    start = data.find(value)
    return range(start, start + len(value)) if start >= 0 else range(0)


def test_looking_reads_no_shard_and_no_table(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> str:
        raise AssertionError(path)

    monkeypatch.setattr(files, "file_hash", refuse)
    monkeypatch.setattr(fsck, "table", refuse)
    assert fsck.look(store).faults == []


def test_a_store_at_a_url_is_checked_too(made: Path, memory: str) -> None:
    curate.ingest([made / "photos"], f"{memory}/store", patch=24, step=12, shard_size=1)
    store = Store.open(f"{memory}/store")
    found = fsck.look(store.path)
    assert found.faults + list(fsck.faults_within(found, silent)) == []
    tar = store.shard_path(3)
    data = tar.read_bytes()
    from conftest import put

    put(str(tar), flipped(data, 8 * 600))
    put(f"{memory}/store/notes.txt", b"foreign")
    found = fsck.look(store.path)
    assert [(fault.kind, fault.path) for fault in found.faults] == [("foreign", "notes.txt")]
    assert [fault.unit for fault in fsck.faults_within(found, silent)] == [3]
