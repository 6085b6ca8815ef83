"""What lies in an object store is the same, byte for byte, as on a disk; what goes wrong on the way is mended or said.

`Flaky` is fsspec's memory file system with a log of requests and failures on demand. The last tests talk
to an S3-compatible server (moto) on loopback.
"""

import contextlib
import errno
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import fsspec
import numpy as np
import pytest
import xxhash
from conftest import put
from fsspec.implementations.memory import MemoryFileSystem

import curate
from curate import files, schema, storage
from curate.config import TrainConfig
from curate.engine import Part
from curate.errors import CurateError, DataError, UsageError
from curate.manifest import Manifest
from curate.storage import RemotePath
from curate.store import Store

SIZES = ((60, 72), (48, 60), (72, 72), (60, 60))


class Flaky(MemoryFileSystem):
    """`flaky://`: notes every request as (method, path, bytes got), and raises what `failures` holds, one a request."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    log: ClassVar[list[tuple[str, str, int]]] = []
    failures: ClassVar[list[BaseException | None]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://")))

    def _note(self, method: str, path: str, size: int = 0) -> None:
        self.log.append((method, path, size))
        if self.failures and (failure := self.failures.pop(0)) is not None:
            raise failure

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        data = super().cat_file(path, start, end, **options)
        self._note("get", path, len(data))
        return bytes(data)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        found = super().info(path, **options)
        self._note("head", path)
        return dict(found)

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        self._note("list", path)
        return super().ls(path, detail, **options)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        self._note("put", path)
        super().pipe_file(path, value, mode, **options)

    def put_file(self, lpath: str, rpath: str, *arguments: Any, **options: Any) -> None:
        self._note("put", rpath)
        super().pipe_file(rpath, Path(lpath).read_bytes())


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


@pytest.fixture
def flaky() -> Iterator[str]:
    """URL of an empty folder in that file system."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    for found in (Flaky.store, Flaky.log, Flaky.failures):
        found.clear()
    yield "flaky://bucket"
    for found in (Flaky.store, Flaky.log, Flaky.failures):
        found.clear()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def remote_tree(url: str) -> dict[str, bytes]:
    fs, root = storage.file_system(url)
    return {path.removeprefix(root.rstrip("/") + "/"): bytes(fs.cat_file(path)) for path in fs.find(root)}


def fetched(part: str) -> int:
    """Bytes got of the files whose path has `part` in it."""
    return sum(size for method, path, size in Flaky.log if method == "get" and part in path)


def one_line(refused: pytest.ExceptionInfo[CurateError]) -> str:
    assert str(refused.value).isprintable()
    return str(refused.value)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("s3://bucket/a/b", RemotePath("s3://bucket/a/b")),
        ("s3://bucket/a/", RemotePath("s3://bucket/a")),
        (Path("s3://bucket/a"), RemotePath("s3://bucket/a")),  # a Path makes s3:/bucket/a of it
        (RemotePath("s3://b"), RemotePath("s3://b")),
        ("file:///tmp/a", Path("/tmp/a")),
        (Path("file:///tmp/a"), Path("/tmp/a")),
        ("a b/é.x", Path("a b/é.x")),
        ("c:/x", Path("c:/x")),
    ],
)
def test_a_place_is_a_path_or_a_url(given: str | storage.Place, expected: storage.Place) -> None:
    assert storage.place(given, "a store") == expected
    assert storage.is_url(given) == isinstance(expected, RemotePath)


def test_a_url_has_the_parts_of_a_path() -> None:
    path = RemotePath("s3://bucket/a") / "x.y.parquet"
    assert (path.name, path.stem, path.suffix, str(path)) == (
        "x.y.parquet",
        "x.y",
        ".parquet",
        "s3://bucket/a/x.y.parquet",
    )
    assert path.parent == RemotePath("s3://bucket/a") == RemotePath("s3://bucket").joinpath("a")


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:hunter2@bucket/store",
        "s3://hunter2@bucket/store",
        "https://me:hunter2@host/a.parquet",
        "sftp://me:hunter2@host/a",
        "simplecache::s3://KEY:hunter2@bucket/a",
        "https://host/a?X-Amz-Signature=hunter2",
        "https://host/a?b=c&token=hunter2",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    acts: list[Callable[[], object]] = [
        lambda: storage.place(url, "a store"),
        lambda: storage.place(Path(url), "a store"),
        lambda: curate.ingest([url], tmp_path / "store"),
        lambda: Manifest.load(url),
    ]
    for act in acts:
        with pytest.raises(UsageError, match="should be a URL without credentials") as refused:
            act()
        assert "hunter2" not in one_line(refused) and "KEY" not in one_line(refused).replace("_KEY", "")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("url", ["sftp://me@host/a", "github://org:repo@main/a", "https://host/a?page=2"])
def test_an_address_is_no_secret(url: str) -> None:
    assert storage.place(url, "photographs") == RemotePath(url)


@pytest.mark.parametrize("url", ["s3://", "zip://a::s3://bucket/b.zip"])
def test_what_is_no_place_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"should be a path or a URL such as s3://bucket/name"):
        storage.place(url, "a store")


@pytest.mark.parametrize(
    ("target", "folder", "name"),
    [
        ("s3://bucket/data/store", "s3://bucket/data", "store"),
        ("s3://bucket/store", "s3://bucket/a/b", "../../store"),
        ("s3://bucket/store", "s3://bucket", "store"),
        ("s3://bucket/store", "s3://other/a", "s3://bucket/store"),
        ("s3://bucket/store", "gs://bucket/a", "s3://bucket/store"),
        ("s3://bucket/store", "/disk/a", "s3://bucket/store"),
        ("/disk/store", "s3://bucket/a", "/disk/store"),
        ("/disk/store", "/disk/a", "../store"),
    ],
)
def test_a_place_is_named_from_a_folder_and_found_from_there(target: str, folder: str, name: str) -> None:
    there, here = storage.place(target, "a store"), storage.place(folder, "a folder")
    assert storage.relative(there, here) == name
    assert storage.resolve(name, here) == there


def test_no_name_leads_out_of_a_bucket() -> None:
    assert storage.resolve("../../../other/x", RemotePath("s3://bucket/a")) == RemotePath("s3://bucket/other/x")


@pytest.mark.parametrize("name", ["ssh://host/store", "reference::s3://bucket/x", "git://x", "file:///etc"])
def test_a_file_does_not_choose_a_file_system(name: str) -> None:
    for folder in (Path("/disk"), RemotePath("s3://bucket/a")):
        with pytest.raises(UsageError, match="if you trust it, say --store URL"):
            storage.resolve(name, folder)


def test_a_scheme_that_is_none_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"cannot open 'nosuch://a/store.json'") as refused:
        Store.open("nosuch://a")
    one_line(refused)


# --- requests that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [TimeoutError(), ConnectionResetError(104, "reset"), OSError(errno.EBUSY, "SlowDown"), OSError("unknown")],
    ids=repr,
)
def test_what_may_pass_is_tried_again_with_longer_and_longer_waits(
    flaky: str, waits: list[float], failure: OSError
) -> None:
    put(f"{flaky}/a", b"content")
    states = random.getstate(), np.random.get_state()[1].tolist()
    Flaky.failures[:] = [failure] * 4
    assert RemotePath(f"{flaky}/a").read_bytes() == b"content"
    assert len(waits) == 4
    assert all(0.5 * base <= wait <= 1.5 * base for wait, base in zip(waits, (0.2, 0.4, 0.8, 1.6), strict=True))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


def test_the_fifth_failure_is_one_clear_line(flaky: str, waits: list[float]) -> None:
    put(f"{flaky}/a", b"content")
    Flaky.failures[:] = [OSError(errno.EBUSY, "Slow\nDown")] * 9
    with pytest.raises(CurateError, match=r"'flaky://bucket/a' cannot be reached: Slow\\nDown \(tried 5 times\)"):
        RemotePath(f"{flaky}/a").read_bytes()
    assert len(waits) == 4 and len(Flaky.failures) == 4


def test_what_will_not_pass_is_not_tried_again(flaky: str, waits: list[float]) -> None:
    put(f"{flaky}/a", b"content")
    with pytest.raises(FileNotFoundError):
        RemotePath(f"{flaky}/b").read_bytes()
    Flaky.failures[:] = [PermissionError("Access Denied")]
    with pytest.raises(CurateError, match=r"no access to 'flaky://bucket/a': Access Denied; credentials come from"):
        RemotePath(f"{flaky}/a").read_bytes()
    Flaky.failures[:] = [OSError(errno.EINVAL, "InvalidArgument")]
    with pytest.raises(OSError, match="InvalidArgument"):
        RemotePath(f"{flaky}/a").read_bytes()
    assert waits == []


def test_photographs_behind_a_bad_line_are_all_taken(
    flaky: str, waits: list[float], photos: Callable[..., Path], tmp_path: Path
) -> None:
    folder = photos(SIZES)
    for path in folder.iterdir():
        put(f"{flaky}/photos/{path.name}", path.read_bytes())
    Flaky.failures[:] = [TimeoutError(), None, TimeoutError(), None, None] * 3
    report = curate.ingest([f"{flaky}/photos"], tmp_path / "store", patch=24, step=12)
    assert report.refused == [] and report.added == len(SIZES) and waits
    Flaky.failures[:] = [TimeoutError()] * 99
    with pytest.raises(CurateError, match="cannot be reached"):
        curate.ingest([f"{flaky}/photos"], tmp_path / "other", patch=24, step=12)


# --- reading ----------------------------------------------------------------------------------------------------------


def make(place: str | Path, photos: Path) -> Store:
    """A store of several shards with scores, by the verbs."""
    curate.ingest([photos], place, patch=24, step=12, shard_size=9_000)
    curate.score(place, ["sobel"])
    return Store.open(place)


@pytest.fixture
def pair(
    flaky: str, photos: Callable[..., Path], tmp_path: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Store, Store]:
    """The same store on the disk and in the flaky file system; its log and the cache are empty."""
    folder = photos(SIZES)
    with monkeypatch.context() as patch:
        patch.setenv("CURATE_CACHE", str(tmp_path / "another"))
        here, there = make(tmp_path / "store", folder), make(f"{flaky}/store", folder)
    Flaky.log.clear()
    return here, there


def test_a_store_at_a_url_is_the_same_bytes(pair: tuple[Store, Store]) -> None:
    here, there = pair
    assert isinstance(here.path, Path)
    assert tree(here.path) == remote_tree(str(there.path)) and len(here.commits()) > 1
    assert here.digest() == there.digest() and here.images().equals(there.images())
    question = "select * from scores join images using (image_id) order by patch_id"
    assert here.query(question).equals(there.query(question))


def test_only_the_members_that_are_asked_for_are_fetched_and_once(pair: tuple[Store, Store]) -> None:
    here, there = pair
    image_id = here.images()["image_id"][2].as_py()
    cell = here.cell(image_id)
    assert cell is not None
    assert there.read_bytes(image_id) == here.read_bytes(image_id)
    assert fetched("/shards/") == cell.size
    assert (there.pixels(image_id) == here.pixels(image_id)).all()
    assert Store.open(there.path).read_bytes(image_id) == here.read_bytes(image_id)
    assert fetched("/shards/") == cell.size


def test_a_question_fetches_its_tables_once_and_no_pixels(pair: tuple[Store, Store]) -> None:
    there = pair[1]
    for _ in range(2):
        Store.open(there.path).query("select count(*) from scores")
    parts = [part for record in there.commits().values() for part in record.parts]
    assert fetched("/tables/patches/") == sum(part.bytes for part in parts if "/patches/" in part.path)
    assert fetched("/shards/") == 0


def test_damage_in_the_cache_is_noticed_and_fetched_again(pair: tuple[Store, Store], private_cache: Path) -> None:
    here, there = pair
    ids, question = here.images()["image_id"].to_pylist(), "select * from scores order by patch_id"
    for image_id in ids:
        there.read_bytes(image_id)
    there.query(question)
    kept = [path for path in private_cache.rglob("*/*") if path.is_file()]
    assert {path.relative_to(private_cache).parts[0] for path in kept} == {"pixels", "tables"}
    for change in (lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b""):
        for path in kept:
            path.write_bytes(change(path.read_bytes()))
        again = Store.open(there.path)
        assert [again.read_bytes(image_id) for image_id in ids] == [here.read_bytes(image_id) for image_id in ids]
        assert again.query(question).equals(here.query(question))
    for path in kept:
        path.unlink()
    assert there.query(question).equals(here.query(question))
    assert there.read_bytes(ids[0]) == here.read_bytes(ids[0])


@pytest.mark.parametrize("name", ["tables/images", "tables/patches", "tables/scores/", "tables/cells", "shards"])
def test_damage_in_the_object_store_is_noticed(pair: tuple[Store, Store], name: str) -> None:
    here, there = pair
    ids = here.images()["image_id"].to_pylist()
    (path,) = [p for p in Flaky.store if f"/store/{name}" in p and p.endswith(("000001.parquet", "000001.tar"))]
    data = bytearray(Flaky.store[path].getvalue())
    data[600 if name == "shards" else len(data) // 2] ^= 1
    Flaky.store[path] = type(Flaky.store[path])(Flaky("flaky"), path, bytes(data))
    there = Store.open(there.path)
    with pytest.raises(DataError, match=r"000001\.(parquet|tar)' .*its hash differs"):
        there.query("select * from scores join images using (image_id)")
        [there.read_bytes(image_id) for image_id in ids]


def test_a_part_that_is_gone_or_cut_is_noticed(pair: tuple[Store, Store]) -> None:
    fs, there = fsspec.filesystem("flaky"), pair[1]
    fs.pipe_file(f"{there.path}/shards/000001.tar", b"short")
    with pytest.raises(DataError, match=r"shards/000001.tar' should have \d+ bytes, found 5 bytes"):
        Store.open(there.path).commits()
    fs.rm(f"{there.path}/shards/000001.tar")
    with pytest.raises(DataError, match=r"shards/000001.tar' should have \d+ bytes, found nothing"):
        Store.open(there.path).commits()


def test_the_cache_s_bound_is_kept_and_only_costs_time(
    pair: tuple[Store, Store], private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pair
    monkeypatch.setenv("CURATE_CACHE_BYTES", "20000")
    ids = here.images()["image_id"].to_pylist()
    for _ in range(2):
        for image_id in ids:
            assert there.read_bytes(image_id) == here.read_bytes(image_id)
            pixels = private_cache / "pixels"
            assert sum(path.stat().st_size for path in pixels.rglob("*") if path.is_file()) <= 20000
    assert there.query("select count(*) from scores").equals(here.query("select count(*) from scores"))


@pytest.mark.parametrize("count", [1, 127, 129, 300])
def test_many_files_come_in_the_order_in_which_they_were_asked_for(memory: str, count: int) -> None:
    parts: list[tuple[storage.Place, str, int]] = []
    for number in range(count):
        data = str(number).encode()
        place = storage.place(put(f"{memory}/{number:03d}", data), "a file")
        parts.append((place, xxhash.xxh3_128_hexdigest(data), len(data)))
    for _ in range(2):  # fetched, and from the cache
        assert [path.read_text() for path in storage.all_local(parts)] == [str(number) for number in range(count)]
    assert storage.all_local([]) == []


# --- writing ----------------------------------------------------------------------------------------------------------


def test_publish_gives_the_hash_that_a_disk_gives(flaky: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(3_000_000)
    place = RemotePath(f"{flaky}/deep/er/a")
    expected = files.publish_bytes(tmp_path / "a", data)
    assert storage.publish(place, lambda file: file.write(data)) == expected
    assert storage.publish_bytes(place, data) == expected
    assert place.read_bytes() == data and place.size() == len(data) and place.read(5, 7) == data[5:12]


def test_a_process_that_is_killed_while_it_publishes_leaves_no_file_here(
    flaky: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def write(file: BinaryIO) -> None:
        file.write(b"abc")
        assert list(tmp_path.iterdir()) == []

    storage.publish(RemotePath(f"{flaky}/a"), write)
    assert RemotePath(f"{flaky}/a").read_bytes() == b"abc"


def test_lost_bytes_are_noticed(flaky: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flaky, "put_file", lambda self, lpath, rpath: self.pipe_file(rpath, b"abc"))
    with pytest.raises(DataError, match="wrote 6 bytes of 'flaky://bucket/a', found 3"):
        storage.publish(RemotePath(f"{flaky}/a"), lambda file: file.write(b"abcdef"))


def test_of_two_writers_the_first_stays(flaky: str, waits: list[float]) -> None:
    place = RemotePath(f"{flaky}/a")
    storage.create_bytes(place, b"first")
    storage.create_bytes(place, b"first")
    with pytest.raises(CurateError, match="another run has written 'flaky://bucket/a' meanwhile, and not the same"):
        storage.create_bytes(place, b"other")
    assert place.read_bytes() == b"first"
    assert waits == []


def test_a_write_whose_answer_was_lost_is_no_conflict(
    flaky: str, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, answers = Flaky.pipe_file, iter([TimeoutError()])

    def losing(self: Flaky, path: str, value: bytes, mode: str = "overwrite") -> None:
        write(self, path, value, mode)
        for error in answers:
            raise error

    monkeypatch.setattr(Flaky, "pipe_file", losing)
    storage.create_bytes(RemotePath(f"{flaky}/a"), b"mine")
    assert len(waits) == 1 and RemotePath(f"{flaky}/a").read_bytes() == b"mine"


class Killed(BaseException):
    """The end of a process: nothing handles it."""


def test_a_run_that_was_killed_at_any_write_ends_with_the_same_bytes(
    flaky: str, photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos(SIZES)
    here = make(tmp_path / "store", folder)
    assert isinstance(here.path, Path)
    whole, note = tree(here.path), Flaky._note
    writes = [0]

    def dying(self: Flaky, method: str, path: str, size: int = 0) -> None:
        if method == "put":
            writes[0] -= 1
            if writes[0] == 0:
                fsspec.filesystem("memory")
                raise Killed
        note(self, method, path, size)

    monkeypatch.setattr(Flaky, "_note", dying)
    for number in range(1, len(whole) + 1):
        writes[0] = number
        place = f"{flaky}/{number}"
        with pytest.raises(Killed):
            make(place, folder)
        assert len(remote_tree(place)) == number - 1
        make(place, folder)
        assert remote_tree(place) == whole


def test_two_runs_of_the_same_do_no_harm_and_of_others_the_second_is_refused(
    flaky: str, photos: Callable[..., Path], tmp_path: Path
) -> None:
    ours, theirs = photos(SIZES), photos(SIZES, name="others", seed=50)
    first, place = Store.create(f"{flaky}/store", patch=24, step=12), f"{flaky}/store"
    with first.writing():  # nothing is held: another run comes in between
        make(place, ours)
    whole = remote_tree(place)
    make(place, ours)
    assert remote_tree(place) == whole
    late = Store.open(place)
    part = late.commits()[0].parts[0]
    with pytest.raises(CurateError, match="another run has written"):
        Store.open(place).commit("ingest", 0, "0" * 16, [part])
    assert remote_tree(place) == whole
    report = curate.ingest([theirs], place, patch=24, step=12)
    assert report.added == len(SIZES)


@pytest.fixture
def folding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two records are folded, and then four."""
    monkeypatch.setattr("curate.records._BLOCKS", (4, 2))


@pytest.fixture
def shards(photos: Callable[..., Path], tmp_path: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """A folder with `store` of five shards, scored, and `half.parquet`; and what packing it in one go leaves."""
    curate.ingest([photos([*SIZES, (48, 72)])], tmp_path / "in" / "store", patch=24, step=12, shard_size=1)
    curate.score(tmp_path / "in" / "store", ["sobel", "noise"])
    curate.select(tmp_path / "in" / "store", "des", by="sobel", keep=0.5).save(tmp_path / "in" / "half.parquet")
    scored = tree(tmp_path / "in")
    curate.pack(tmp_path / "in" / "half.parquet", tmp_path / "in" / "core", shard_size=2_000)
    packed = tree(tmp_path / "in" / "core")
    return scored, packed


def part_of(url: str, verb: str, part: str) -> None:
    if verb == "score":
        curate.score(f"{url}/store", ["sobel", "noise"], part=Part.parse(part))
    else:
        curate.pack(f"{url}/half.parquet", f"{url}/core", shard_size=2_000, part=Part.parse(part))


def stale(url: str) -> None:
    """As if the scores were of other shards: each record has another fingerprint, so that its unit is scored again."""
    for name, data in remote_tree(url).items():
        if name.startswith("commits/scores/"):
            records = [schema.parse(schema.CommitRecord, line, name) for line in data.splitlines()]
            lines = [schema.dump(record.model_copy(update={"fingerprint": "0" * 16})) for record in records]
            storage.publish_bytes(RemotePath(f"{url}/{name}"), b"\n".join(lines) + b"\n" * name.endswith("l"))


@pytest.mark.parametrize(
    ("verb", "other", "stride"),
    [
        ("score", "2/2", 4),
        ("pack", "2/2", 9),
        pytest.param("score", "2/2", 1, marks=pytest.mark.slow),
        pytest.param("score", "1/2", 1, marks=pytest.mark.slow),
        pytest.param("pack", "2/2", 1, marks=pytest.mark.slow),
        pytest.param("pack", "1/2", 1, marks=pytest.mark.slow),
    ],
)
def test_parts_at_a_url_write_at_the_same_time_and_leave_the_bytes_of_one_run(
    flaky: str,
    folding: None,
    shards: tuple[dict[str, bytes], dict[str, bytes]],
    verb: str,
    other: str,
    stride: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other part, or the same one a second time, comes in between at any write; and the first is killed there."""
    scored, packed = shards
    assert all(len([name for name in written if name.endswith(".jsonl")]) >= 3 for written in shards)
    note, acts, writes = Flaky._note, dict[int, Callable[[], None]](), [0]

    def interrupted(self: Flaky, method: str, path: str, size: int = 0) -> None:
        if method == "put":
            writes[0] += 1
            acts.pop(writes[0], lambda: None)()
        note(self, method, path, size)

    def die() -> None:
        raise Killed

    monkeypatch.setattr(Flaky, "_note", interrupted)
    expected = scored | ({f"core/{name}": data for name, data in packed.items()} if verb == "pack" else {})
    number, reached = 1, True
    while reached:
        for kills in (False, True):
            url = f"{flaky}/{number} {kills}"
            for name, data in scored.items():
                storage.publish_bytes(RemotePath(f"{url}/{name}"), data)
            if verb == "score":
                stale(f"{url}/store")
            writes[0], acts[number] = 0, die if kills else partial(part_of, url, verb, other)
            with contextlib.suppress(Killed):
                part_of(url, verb, "1/2")
            reached = not acts
            acts.clear()
            for part in ["1/2"] * kills + ["2/2"] * (kills or not reached or other == "1/2"):
                part_of(url, verb, part)
            assert remote_tree(url) == expected, (number, kills)
        number += stride
    assert number > 10


# --- S3 ---------------------------------------------------------------------------------------------------------------


def test_every_verb_on_s3_gives_what_it_gives_on_a_disk(
    s3: str, photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.checkpoint import Checkpoint
    from curate.duplication import duplicates
    from curate.exporting import export
    from curate.inspection import info
    from curate.leakage import leaks
    from curate.training import train

    folder = photos(SIZES)
    for path in folder.iterdir():
        put(f"{s3}/photos/{path.name}", path.read_bytes())
    results = {}
    for place, source in ((str(tmp_path / "work"), str(folder)), (f"{s3}/work", f"{s3}/photos")):
        curate.ingest([source], f"{place}/store", patch=24, step=12, shard_size=9_000)
        curate.score(f"{place}/store", ["sobel"])
        manifest = curate.select(f"{place}/store", "refined", with_flagged=True).save(f"{place}/refined.parquet")
        assert manifest.recipe.store.url == "store"
        duplicates(f"{place}/store")
        leaks(f"{place}/store", f"{source}/000.png", name="test")
        curate.pack(f"{place}/refined.parquet", f"{place}/packed")
        exported = tmp_path / f"exported from {len(results)}"
        export(f"{place}/refined.parquet", exported, to="folder")
        config = TrainConfig(steps=2, crop=16, batch_size=4)
        train("fsrcnn:scale=2", f"{place}/refined.parquet", config, f"{place}/run")
        answer = Store.open(f"{place}/store").query(
            "select * from scores where patch_id in (select patch_id from refined) order by 1",
            Manifest.named([f"{place}/refined.parquet"]),
        )
        loaded = Checkpoint.load(f"{place}/run")
        assert train("fsrcnn:scale=2", f"{place}/refined.parquet", config, f"{place}/run").recipe == loaded.recipe
        facts = [info(f"{place}/{name}") for name in ("store", "refined.parquet", "run")]
        drawn = [content.pop("histogram", None) for content in facts]  # tables are not fetched for a picture
        assert (drawn[0] == {}) == (drawn[1]["counts"] is None) == place.startswith("s3:")
        results[place] = answer, facts
    here, there = tree(tmp_path / "work"), remote_tree(f"{s3}/work")
    assert {name for name in here if "tfevents" not in name} == there.keys()
    assert {name: data for name, data in here.items() if "tfevents" not in name} == there
    assert results[str(tmp_path / "work")] == results[f"{s3}/work"]
    exports = [tree(tmp_path / f"exported from {number}") for number in range(2)]
    images = [{name: data for name, data in found.items() if name.endswith(".png")} for found in exports]
    assert images[0] == images[1] and images[0] and exports[0].keys() == exports[1].keys()
    written = b"".join([*here.values(), *there.values()])
    assert b"hunter2" not in written and b"AKIATEST" not in written and b"127.0.0.1" not in written


PART = """
import os, signal, sys
import curate
from curate.engine import Part

verb, url, part, dies = sys.argv[1:]

def progress(done, total, note=""):
    if dies == "dies" and 2 * done > total:
        os.kill(os.getpid(), signal.SIGKILL)

if verb == "score":
    curate.score(f"{url}/store", ["sobel", "noise"], part=Part.parse(part), progress=progress)
else:
    curate.pack(f"{url}/half.parquet", f"{url}/core", shard_size=2_000, part=Part.parse(part), progress=progress)
"""


@pytest.mark.slow
def test_two_parts_on_s3_at_once_of_which_one_is_killed_leave_the_bytes_of_one_run(
    s3: str, shards: tuple[dict[str, bytes], dict[str, bytes]]
) -> None:
    scored, packed = shards
    for name, data in scored.items():
        if "/scores/" not in name:
            storage.publish_bytes(RemotePath(f"{s3}/{name}"), data)

    def at_once(verb: str, *parts: tuple[str, str]) -> list[int]:
        command = [sys.executable, "-c", PART, verb, s3]
        started = [subprocess.Popen([*command, *part]) for part in parts]
        return [process.wait(120) for process in started]

    for verb in ("score", "pack"):
        assert at_once(verb, ("1/2", "dies"), ("2/2", "lives")) == [-signal.SIGKILL, 0]
        assert at_once(verb, ("1/2", "lives"), ("2/2", "lives")) == [0, 0]
    assert remote_tree(s3) == scored | {f"core/{name}": data for name, data in packed.items()}


@pytest.mark.slow
def test_a_training_on_s3_that_was_killed_goes_on_to_the_same_bytes(s3: str, photos: Callable[..., Path]) -> None:
    from curate.training import train

    make(f"{s3}/store", photos(SIZES))
    curate.select(f"{s3}/store", "refined").save(f"{s3}/refined.parquet")
    config = TrainConfig(steps=6, crop=16, batch_size=4, save_every=2)

    def go(place: str, die: int | None = None) -> None:
        def progress(done: int, total: int, note: str = "") -> None:
            if die is not None and done >= die:
                raise Killed

        train("fsrcnn:scale=2", f"{s3}/refined.parquet", config, place, progress=progress)

    go(f"{s3}/whole")
    with pytest.raises(Killed):
        go(f"{s3}/cut", die=5)
    assert set(remote_tree(f"{s3}/cut")) == {"state.safetensors"}
    go(f"{s3}/cut")
    assert remote_tree(f"{s3}/cut") == remote_tree(f"{s3}/whole")


def test_training_fetches_the_members_that_it_needs(
    s3: str, photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos([(96, 96)] * 12)
    with monkeypatch.context() as patch:
        patch.setenv("CURATE_CACHE", str(folder.parent / "another"))
        store = make(f"{s3}/store", folder)
    one = store.images()["image_id"][3].as_py()
    manifest = curate.select(store, "random", keep=1.0, where=f"image_id = '{one}'")
    got: list[int] = []
    read = RemotePath.read

    def counting(self: RemotePath, start: int, size: int) -> bytes:
        data = read(self, start, size)
        got.append(len(data) if "/shards/" in str(self) else 0)
        return data

    monkeypatch.setattr(RemotePath, "read", counting)
    next(iter(curate.batches(manifest, scale=2, crop=16, batch_size=4, store=store)))
    cell = store.cell(one)
    assert cell is not None and sum(got) == cell.size


def test_a_large_shard_goes_up_in_parts_and_comes_back(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).bytes(101 << 20)  # s3fs puts up to 100 MB at once
    place = RemotePath(f"{s3}/big.tar")
    assert storage.publish(place, lambda file: file.write(data)) == files.xxhash.xxh3_128_hexdigest(data)
    assert place.size() == len(data) and place.read(60 << 20, 1000) == data[60 << 20 :][:1000]


def test_the_first_of_two_records_stays_on_s3(s3: str) -> None:
    place = RemotePath(f"{s3}/record.json")
    storage.create_bytes(place, b"first")
    storage.create_bytes(place, b"first")
    with pytest.raises(CurateError, match="another run has written"):
        storage.create_bytes(place, b"other")
    assert place.read_bytes() == b"first"


def test_a_server_that_is_not_there_is_one_line(s3: str, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(CurateError, match="cannot be reached: Could not connect to the endpoint") as refused:
        Store.open(s3)
    one_line(refused)
    assert waits == []


def test_what_is_not_there_on_s3_is_one_line(s3: str) -> None:
    for url in (f"{s3}/nothing", "s3://no-such-bucket/store"):
        with pytest.raises(UsageError, match=r"is not a store: found nothing"):
            Store.open(url)
    with pytest.raises(UsageError, match=r"cannot write to 's3://no-such-bucket/store/store.json'") as refused:
        Store.create("s3://no-such-bucket/store", patch=24, step=12)
    one_line(refused)


def test_the_command_line_takes_urls(s3: str, photos: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from curate.cli import app

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    photos(SIZES)
    run("ingest", str(photos(SIZES, name="p")), f"{s3}/store", "--patch", "24", "--step", "12")
    run("score", f"{s3}/store", "sobel")
    run("select", f"{s3}/store", "des", "-o", f"{s3}/des.parquet")
    counted = run("sql", f"{s3}/store", "select count(*) as n from des", "-m", f"{s3}/des.parquet", "--format", "csv")
    assert int(counted.split()[-1]) > 0
    run("sql", f"{s3}/store", "select 1 as one", "-o", f"{s3}/answer.csv", "--format", "csv")
    run("diff", f"{s3}/des.parquet", f"{s3}/des.parquet", "-o", f"{s3}/changes.parquet")
    assert RemotePath(f"{s3}/answer.csv").read_bytes() == b"one\n1\n" and RemotePath(f"{s3}/changes.parquet").is_file()
    assert "manifest" in run("info", f"{s3}/des.parquet")
    trained = run(
        *("train", f"{s3}/des.parquet", "--arch", "srcnn:scale=2", "--steps", "1", "--crop", "16", "-o", f"{s3}/run")
    )
    assert "curves are not written to a URL" in trained + capfd.readouterr().err
    assert "srcnn" in run("info", f"{s3}/run")


def test_a_tree_is_every_file_below_with_its_size(tmp_path: Path, memory: str) -> None:
    sizes = {"a": 3, "deep/er/b": 0, "deep/c.tar": 700}
    for name, size in sizes.items():
        for place in (tmp_path / "here" / name, RemotePath(f"{memory}/here/{name}")):
            storage.publish_bytes(place, bytes(size))
    assert storage.tree(tmp_path / "here") == storage.tree(RemotePath(f"{memory}/here")) == sizes
    assert storage.tree(RemotePath(f"{memory}/nothing")) == {}
    (tmp_path / "here" / "dead").symlink_to(tmp_path / "nothing")
    (tmp_path / "here" / "round").symlink_to(tmp_path / "here")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d").write_bytes(b"1")
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "elsewhere")
    assert storage.tree(tmp_path / "here") == {**sizes, "dead": -1, "linked/d": 1}
