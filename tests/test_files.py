"""`files.publish` leaves a whole file or none at all, whatever happens; `files.lock` lets one writer in."""

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import xxhash

from curate import files, storage
from curate.errors import CurateError, DataError, UsageError

FEW, BLOCK = 2**16, 2**20  # bytes that `file_hash` reads first, and then at a time


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def noise(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


# --- publish ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, FEW - 1, FEW, FEW + 1, FEW + BLOCK - 1, FEW + BLOCK, FEW + 2 * BLOCK])
def test_a_published_file_has_its_bytes_and_the_hash_that_was_returned(tmp_path: Path, size: int) -> None:
    data = noise(size)
    path = tmp_path / "new" / "folders" / "a.bin"
    digest = files.publish_bytes(path, data)
    assert contents(path.parent) == {"a.bin": data}
    assert digest == files.file_hash(path) == xxhash.xxh3_128_hexdigest(data)
    assert files.size_and_hash(path) == (size, digest)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert files.size_and_hash(tmp_path / "pipe")[0] == 0


def test_published_in_pieces_or_at_once_is_the_same(tmp_path: Path) -> None:
    pieces = [noise(size) for size in (0, 1, 5000, 17)]
    digest = files.publish(tmp_path / "a", lambda file: [file.write(piece) for piece in pieces])
    assert digest == files.publish_bytes(tmp_path / "b", b"".join(pieces))


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.publish_bytes(path, b"old")
    seen = []

    def write(file: BinaryIO) -> None:
        for _ in range(3):
            file.write(noise(BLOCK))
            seen.append(path.read_bytes())

    files.publish(path, write)
    assert seen == [b"old"] * 3
    assert contents(tmp_path) == {"a": noise(BLOCK) * 3}


def test_the_file_is_on_disk_before_it_has_its_name_and_the_name_before_publish_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_replace(path: Path, target: Path) -> Path:
        events.append(f"named {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    files.publish_bytes(tmp_path / "a", b"bytes")
    assert events == ["file", "named a", "folder"]


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError(), KeyboardInterrupt()], ids=repr)
def test_a_writer_that_fails_leaves_everything_as_it_was(tmp_path: Path, error: BaseException) -> None:
    files.publish_bytes(tmp_path / "a", b"old")

    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    for name in ("a", "b"):
        with pytest.raises(type(error)):
            files.publish(tmp_path / name, write)
    assert contents(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace", "curate.files.file_hash"])
def test_a_step_that_fails_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    files.publish_bytes(tmp_path / "a", b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(step, fail)
        for name in ("a", "b"):
            with pytest.raises(OSError, match="disk full"):
                files.publish_bytes(tmp_path / name, b"new")
    assert contents(tmp_path) == {"a": b"old"}


def test_a_folder_in_the_way_is_an_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(OSError):
        files.publish_bytes(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]


def damaging(change: Callable[[bytes], bytes]) -> Callable[[Path], str]:
    """A `file_hash` of a failing disk: what is read back is not what was written."""
    honest = files.file_hash

    def file_hash(path: Path) -> str:
        path.write_bytes(change(path.read_bytes()))
        return honest(path)

    return file_hash


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_lost_bytes_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(files, "file_hash", damaging(change))
    with pytest.raises(DataError, match="wrote 6 bytes of a, read back"):
        files.publish(tmp_path / "a", lambda file: file.write(b"abcdef"))
    assert contents(tmp_path) == {}


def test_changed_bytes_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "file_hash", damaging(bytes.swapcase))
    with pytest.raises(DataError, match="not those written"):
        files.publish_bytes(tmp_path / "a", b"abcdef")
    assert contents(tmp_path) == {}


# --- what a killed writer leaves --------------------------------------------------------------------------------------


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process that runs `code`, its pipes open."""
    command = [sys.executable, "-c", code, *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


KILLED = """
import os, pathlib, sys
from curate import files
def write(file):
    file.write(b"half")
    file.flush()
    os._exit(9)
files.publish(pathlib.Path(sys.argv[1]), write)
"""


def test_leftovers_of_a_killed_writer_are_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = {"a.tar": b"old", ".hidden": b"", "x.tmp": b"", "a.tmp.parquet": b""}
    for name, data in kept.items():
        (tmp_path / name).write_bytes(data)
    for path in (tmp_path / "a.tar", tmp_path / "deep" / "er" / "b.tar"):
        with python(KILLED, path) as process:
            assert process.wait() == 9
    assert len(contents(tmp_path / "deep" / "er")) == 1
    assert (tmp_path / "a.tar").read_bytes() == b"old"
    files.remove_leftovers(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(kept)


def test_what_is_being_written_is_no_leftover(tmp_path: Path) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"half")
        files.remove_leftovers(tmp_path)
        files.remove_leftovers_of(tmp_path / "a")
        file.write(b" and half")

    files.publish(tmp_path / "a", write)
    assert contents(tmp_path) == {"a": b"half and half"}


def test_one_who_is_taken_for_dead_before_he_holds_his_lock_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locking, calls = files.fcntl.flock, iter([True])

    def late(file: object, how: int) -> None:
        if next(calls, False):
            files.remove_leftovers(tmp_path)
        locking(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(files.fcntl, "flock", late)
    files.publish_bytes(tmp_path / "a", b"bytes")
    assert contents(tmp_path) == {"a": b"bytes"}
    assert next(calls, "asked") == "asked"


def test_leftovers_of_one_file_alone_are_removed(tmp_path: Path) -> None:
    for name in ("a[1].parquet", "b.parquet"):
        with python(KILLED, tmp_path / name) as process:
            assert process.wait() == 9
    (tmp_path / ".a[1].parquet.notes.tmp").write_bytes(b"of somebody")
    assert len(contents(tmp_path)) == 3
    files.remove_leftovers_of(tmp_path / "a[1].parquet")
    assert sorted(path.name[:3] for path in tmp_path.iterdir()) == [".a[", ".b."]
    assert (tmp_path / ".a[1].parquet.notes.tmp").exists()


@pytest.mark.parametrize("linked", [True, False])
def test_of_two_who_make_a_new_file_the_first_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    if not linked:  # as on exFAT
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(PermissionError(1, "no links here")))
    files.publish_bytes(tmp_path / "a", b"first", new=True)
    with pytest.raises(FileExistsError):
        files.publish_bytes(tmp_path / "a", b"second", new=True)
    assert contents(tmp_path) == {"a": b"first"}


def test_new_folders_are_on_disk_before_what_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(files, "sync_folder", lambda folder: synced.append(folder.name))
    files.make_folder(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path.name, "a", "b"]
    files.make_folder(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path.name, "a", "b"]


def test_a_folder_that_cannot_be_synced_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system knows a number alone; of a file that is published it is the file's name that tells."""
    sync = os.fsync

    def failing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    for act, named in (
        (lambda: files.make_folder(tmp_path / "new"), tmp_path),
        (lambda: files.publish_bytes(tmp_path / "a.bin", b"a"), tmp_path / "a.bin"),
    ):
        with pytest.raises(OSError, match="Input/output error") as failed:
            act()
        assert failed.value.filename == str(named)


def test_a_new_file_whose_name_may_not_be_on_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it is there, with these very bytes; the next try finds it whole."""

    def failing(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_folder", failing)
        with pytest.raises(OSError, match="Input/output error"):
            storage.create_bytes(tmp_path / "a", b"a")
    storage.create_bytes(tmp_path / "a", b"a")
    with pytest.raises(CurateError, match="another run has written"):
        storage.create_bytes(tmp_path / "a", b"b")


# --- lock -------------------------------------------------------------------------------------------------------------

HOLDER = """
import pathlib, sys
from curate import files
with files.lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["leaves", "dies"])
def test_one_process_writes_at_a_time(tmp_path: Path, end: str) -> None:
    with python(HOLDER, tmp_path) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(CurateError, match="another curate is writing to") as refused, files.lock(tmp_path):
            pass
        assert refused.value.exit_code == 1 and tmp_path.name in str(refused.value)
        if end == "dies":
            process.kill()
        else:
            process.communicate()
        process.wait()
        with files.lock(tmp_path):
            pass


def test_a_lock_holds_within_one_process_too_and_is_freed_by_an_error(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(ZeroDivisionError), files.lock(tmp_path), files.lock(tmp_path / "other"):
        with pytest.raises(CurateError), files.lock(tmp_path):
            pass
        raise ZeroDivisionError
    with files.lock(tmp_path):
        pass


def test_those_who_share_it_keep_out_those_who_do_not(tmp_path: Path) -> None:
    with (
        files.lock(tmp_path, shared=True),
        files.lock(tmp_path, shared=True),
        pytest.raises(CurateError, match="another curate is writing to"),
        files.lock(tmp_path),
    ):
        pass
    with files.lock(tmp_path), pytest.raises(CurateError), files.lock(tmp_path, shared=True):
        pass


def test_one_who_waits_gets_it_when_the_others_have_ended(tmp_path: Path) -> None:
    with python(HOLDER, tmp_path) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        timer = threading.Timer(0.3, process.communicate)
        timer.start()
        with files.lock(tmp_path, wait=True):
            assert process.wait(10) == 0  # it had ended, or was about to
        timer.join()


# --- paths ------------------------------------------------------------------------------------------------------------


def test_a_local_path_is_taken_as_it_is() -> None:
    assert files.local_path("a b/é.x", "a store") == Path("a b/é.x") == files.local_path(Path("a b/é.x"), "a store")


@pytest.mark.parametrize("url", ["s3://bucket/store", "memory://x", "file:///tmp/store"])
def test_a_url_is_refused_in_one_line_that_says_what_it_should_be(url: str) -> None:
    for given in (url, Path(url)):  # of which a Path makes s3:/bucket
        with pytest.raises(UsageError) as refused:
            files.local_path(given, "a manifest")
        assert str(refused.value).isprintable()
        assert str(refused.value).startswith("a manifest should be a local path, found the URL '")
