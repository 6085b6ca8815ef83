"""The cache keeps to its bound, forgets what was used longest ago, and is never missed when it is gone."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from curate import cache
from curate.errors import UsageError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CURATE_CACHE_BYTES", "1000")
    return tmp_path / "cache"


def content(size: int) -> Callable[[BinaryIO], object]:
    return lambda file: file.write(b"x" * size)


def keep(key: str, size: int, used: float) -> Path:
    """An entry that was used `used` seconds ago."""
    path = cache.add(key, size, content(size))
    then = time.time() - used
    os.utime(path, (then, then))
    return path


def there(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".bytes"}


def test_an_entry_is_found_again_and_has_been_used_then(folder: Path) -> None:
    assert cache.find("pixels/aa/1") is None
    path = keep("pixels/aa/1", 10, used=500)
    assert path == folder / "pixels/aa/1" and path.read_bytes() == b"x" * 10
    assert cache.find("pixels/aa/1") == path and time.time() - path.stat().st_mtime < 60
    cache.remove("pixels/aa/1")
    cache.remove("pixels/aa/1")
    assert cache.find("pixels/aa/1") is None


def test_the_bound_is_kept_and_what_was_used_longest_ago_goes_first(folder: Path) -> None:
    for number in range(10):
        keep(f"pixels/aa/{number}", 100, used=1000 - number)
    cache.find("pixels/aa/0")
    cache.add("pixels/aa/new", 250, content(250))
    assert there(folder) == {f"pixels/aa/{name}" for name in ("0", "4", "5", "6", "7", "8", "9", "new")}
    for number in range(40):
        cache.add(f"pixels/bb/{number}", 90, content(90))
        assert sum((folder / name).stat().st_size for name in there(folder)) <= 1000


def test_a_table_that_may_be_being_read_stays_and_an_old_one_goes(folder: Path) -> None:
    keep("tables/aa/0.parquet", 600, used=7200)
    keep("tables/bb/0.parquet", 300, used=60)
    cache.add("tables/cc/0.parquet", 800, content(800))
    assert there(folder) == {"tables/bb/0.parquet", "tables/cc/0.parquet"}


def test_an_entry_from_the_future_of_a_clock_that_was_wrong_may_go(folder: Path) -> None:
    keep("tables/aa/0.parquet", 600, used=-1e8)
    keep("tables/bb/0.parquet", 300, used=-60)
    cache.add("tables/cc/0.parquet", 800, content(800))
    assert there(folder) == {"tables/bb/0.parquet", "tables/cc/0.parquet"}


def test_what_other_processes_add_counts_too(folder: Path) -> None:
    cache.add("pixels/aa/0", 10, content(10))
    code = "from curate import cache; cache.add('pixels/bb/0', 900, lambda file: file.write(b'y' * 900))"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})
    os.utime(folder / "pixels/bb/0", (1, 1))
    for number in range(1, 8):
        cache.add(f"pixels/aa/{number}", 40, content(40))
    assert cache.find("pixels/bb/0") is None


def test_several_processes_keep_one_bound(folder: Path) -> None:
    """And none of them looks at every entry each time that it adds one to a full cache."""
    code = """
import sys
from curate import cache
looks, trim = [], cache._trim
cache._trim = lambda *arguments: looks.append(1) or trim(*arguments)
for number in range(100):
    cache.add(f"pixels/{number % 7}/{sys.argv[1]}-{number}", 10, lambda file: file.write(b"x" * 10))
assert len(looks) < 60, len(looks)
"""
    started = [subprocess.Popen([sys.executable, "-c", code, str(number)], env={**os.environ}) for number in range(3)]
    most = 0
    while any(process.poll() is None for process in started):
        with contextlib.suppress(FileNotFoundError):
            most = max(most, sum((folder / name).stat().st_size for name in there(folder)))
    assert [process.returncode for process in started] == [0, 0, 0]
    assert 500 < most <= 1000 + 3 * 10  # what is being written


@pytest.mark.parametrize("account", [b"", b"x", b"7" * 20, None])
def test_an_account_that_is_wrong_is_made_anew(folder: Path, account: bytes | None) -> None:
    keep("pixels/aa/0", 800, used=60)
    if account is None:
        (folder / ".bytes").unlink()
    else:
        (folder / ".bytes").write_bytes(account)
    cache.add("pixels/aa/1", 100, content(100))
    assert there(folder) == {"pixels/aa/0", "pixels/aa/1"} and (folder / ".bytes").read_bytes() == b"900"


def test_two_containers_with_one_process_number_do_not_write_into_each_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    name = "pixels/aa/0"

    def write(file: BinaryIO) -> None:
        file.write(b"ours")
        cache.add(name, 4, lambda other: other.write(b"same"))

    assert cache.add(name, 4, write).read_bytes() == b"ours"
    assert there(folder) == {name}


def test_an_entry_is_whole_or_absent(folder: Path) -> None:
    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cache.add("pixels/aa/0", 10, fail)
    assert there(folder) == set()


def test_without_a_place_to_write_it_is_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path / "file" / "cache"))
    path = cache.add("tables/aa/0.parquet", 3, content(3))
    assert path.read_bytes() == b"xxx" and cache.find("tables/aa/0.parquet") == path
    assert there(tmp_path) == {"file"}


@pytest.mark.parametrize(
    ("named", "base", "expected"),
    [("/a/b", "/c", "/a/b"), (None, "/c", "/c/curate"), (None, None, "~/.cache/curate")],
)
def test_where_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str | None, base: str | None, expected: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable, value in (("CURATE_CACHE", named), ("XDG_CACHE_HOME", base)):
        if value is None:
            monkeypatch.delenv(variable, raising=False)
        else:
            monkeypatch.setenv(variable, str(tmp_path) + value)
    home = expected.replace("~", str(tmp_path / "home"))
    assert cache.folder() == Path(home if expected.startswith("~") else str(tmp_path) + expected)


@pytest.mark.parametrize("text", ["", "10 GB", "-1", "1e9"])
def test_a_bound_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("CURATE_CACHE_BYTES", text)
    with pytest.raises(UsageError, match="CURATE_CACHE_BYTES should be a number of bytes"):
        cache.limit()
