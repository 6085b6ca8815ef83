"""Faults of the machine: disks that are full, read-only or failing, files that may not be read, wrong clocks.

Of every verb that writes: one line that names the file and the reason, exit code 1 (2 where the place itself is a
mistake), no file under its final name that is not whole, no temporary file; and the same command, when the fault has
passed, ends with the bytes of one that met none.
"""

import errno
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from verbs import FAST, VERBS, Work, every, make, results
from warm import Ended, Fault, Kind, Warm

KINDS: tuple[Kind, ...] = ("mkdir", "create", "fsync", "rename", "read")
SAYS = {
    "mkdir": (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES),
    "create": (errno.EACCES, errno.ENOSPC, errno.EROFS, errno.EDQUOT),
    "fsync": (errno.EIO, errno.ENOSPC),
    "rename": (errno.EIO, errno.EPERM, errno.ENOSPC),
    "read": (errno.EIO, errno.EACCES),
}


@pytest.fixture(scope="module")
def work(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Work:
    return make(warm, tmp_path_factory.mktemp("faults"))


@pytest.fixture
def out(work: Work) -> Path:
    """Where verbs write: one place for all tests, since some files name it."""
    return work.folder / "out"


def check(ended: Ended, tree: dict[str, bytes], good: dict[str, bytes], fault: object) -> None:
    """What is asked of a command that met a fault."""
    line = ended.line()
    assert ended.code == (2 if "cannot make" in line or "cannot export" in line else 1), (fault, ended)
    left = results(tree)
    assert [name for name in left if ".tmp" in name or ".partial" in name] == [], (fault, ended)
    changed = [name for name in left if left[name] != good.get(name) and not name.endswith("state.safetensors")]
    assert changed == [], (fault, ended)


def meet(work: Work, verb: str, out: Path, faults: list[Fault]) -> int:
    """One fault after the other in one folder, and at last none; how many were met."""
    good, met = work.expected(verb, out), 0
    work.prepare(verb, out)
    for fault in [*faults, None]:
        ended = work.warm.run(*work.argv(verb, out), below=out, faults=[fault] if fault else [])
        made = fault is not None and fault.kind == "mkdir" and ended.code == 0  # by another thread in this moment
        if fault is None or made or fault.at >= Counter(kind for kind, _ in ended.calls)[fault.kind]:
            assert ended.code == 0, (fault, ended)
            assert results(work.warm.tree(out)) == good
            work.prepare(verb, out)
            continue
        check(ended, work.warm.tree(out), good, fault)
        assert os.strerror(fault.errno) in ended.line() and str(out) in ended.line(), (fault, ended)
        failed = [path for kind, path in ended.calls if kind == fault.kind][fault.at]
        if fault.kind == "fsync":
            assert ("rename", failed) not in ended.calls, "a file that may not be on disk got its name"
        met += 1
    return met


@pytest.mark.parametrize("verb", FAST)
def test_calls_that_fail_one_after_the_other(work: Work, out: Path, verb: str) -> None:
    """In the middle of it, and then at once, again and again."""
    counts = work.calls(verb, out)
    faults = [Fault("rename", counts["rename"] // 2, errno.EIO), Fault("fsync", 0, errno.EIO)]
    faults += [Fault("create", 0, errno.ENOSPC), Fault("mkdir", 0, errno.EDQUOT)]
    assert meet(work, verb, out, faults) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.timeout(1800)
def test_every_call_that_can_fail(work: Work, out: Path, verb: str) -> None:
    """Each call that a clean run makes, of each kind, fails once, in a folder of its own."""
    counts = work.calls(verb, out)
    met = Counter[str]()
    for kind in KINDS:
        for at in every(verb, counts[kind]):
            met[kind] += meet(work, verb, out, [Fault(kind, at, SAYS[kind][at % len(SAYS[kind])])])
    sys.stderr.write(f"{verb}: {met.total()} faults met: {dict(met)} of {dict(counts)}\n")
    assert met.total() >= 4


@pytest.fixture
def disk(work: Work, out: Path) -> Iterator[Path]:
    """The same place, where small disks are put."""
    if not work.warm.has_disks:
        pytest.skip("needs to mount a tmpfs in a namespace of its own, which this system forbids")
    yield out
    work.warm.disk(out, pages=0)


def fill(work: Work, verb: str, out: Path, more: float) -> int:
    """The same command on a disk that is first read-only and then grows, until it suffices; how often it was full."""
    good, full = work.expected(verb, out), 0
    work.prepare(verb, out)
    found = work.warm.tree(out)
    pages = 1.0 + sum(-(-len(data) // 4096) for data in found.values())
    assert work.warm.disk(out, pages=int(pages) + 1)
    for name, data in found.items():
        work.warm.write(out / name, data)
    assert work.warm.disk(out, pages=int(pages), again=True, options=",ro")
    read_only = work.warm.run(*work.argv(verb, out))
    check(read_only, work.warm.tree(out), good, "read-only")
    assert "Read-only file system" in read_only.line() and work.warm.tree(out) == found
    while True:
        assert work.warm.disk(out, pages=int(pages), again=True, options=",rw")
        ended = work.warm.run(*work.argv(verb, out))
        if ended.code == 0:
            break
        check(ended, work.warm.tree(out), good, f"{pages} pages")
        assert "No space left on device" in ended.line() or "is the disk full?" in ended.line(), ended
        assert str(out) in ended.line() and "the same command goes on" in ended.line().lower(), ended
        full += 1
        pages = max(pages * more, pages + 1)
        assert pages < 5000
    assert results(work.warm.tree(out)) == good
    return full


@pytest.mark.slow
@pytest.mark.parametrize("verb", FAST)
def test_a_disk_that_is_read_only_then_full_then_large_enough(work: Work, disk: Path, verb: str) -> None:
    assert fill(work, verb, disk, 2) >= (
        verb not in ("select", "select, all at once", "diff")
    )  # of these one page does


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.timeout(1200)
def test_a_disk_that_is_full_at_every_page(work: Work, disk: Path, verb: str) -> None:
    sys.stderr.write(f"{verb}: {fill(work, verb, disk, 1)} times full\n")


@pytest.mark.parametrize("verb", FAST)
def test_a_folder_where_nothing_may_be_written(work: Work, out: Path, verb: str) -> None:
    good = work.expected(verb, out)
    work.prepare(verb, out)
    folders = [path for path in (out, *out.rglob("*")) if path.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    before = work.warm.tree(out)
    ended = work.warm.run(*work.argv(verb, out), unprivileged=True)
    for folder in folders:
        folder.chmod(0o755)
    check(ended, work.warm.tree(out), good, "mode")
    assert "Permission denied" in ended.line() and str(out) in ended.line() and work.warm.tree(out) == before


@pytest.mark.parametrize("verb", ["duplicates", "leaks", "score", "pack", "export, files", "train", "report"])
def test_what_a_thread_cannot_read_is_told(work: Work, out: Path, verb: str) -> None:
    """Pixels are read by threads ahead of their use."""
    work.prepare(verb, out)
    shards = sorted((out if (out / "store").exists() else work.folder).joinpath("store", "shards").iterdir())
    for shard in shards:
        shard.chmod(0)
    ended = work.warm.run(*work.argv(verb, out), unprivileged=True)
    for shard in shards:
        shard.chmod(0o644)
    assert ended.code == 1 and "cannot be read: Permission denied" in ended.line()
    assert any(str(shard) in ended.line() for shard in shards)


@pytest.mark.parametrize("verb", FAST)
def test_no_clock_changes_what_is_written(work: Work, out: Path, verb: str) -> None:
    """A clock that is an hour earlier at each look, and photographs and tables from the year 2100."""
    good = work.expected(verb, out)
    work.prepare(verb, out)
    files = [path for top in (work.folder, out) for path in top.rglob("*")]
    for path in files:
        os.utime(path, (4e9, 4e9))
    ended = work.warm.run(*work.argv(verb, out), clock=3600)
    assert ended.code == 0, ended
    assert results(work.warm.tree(out)) == good


def test_photographs_that_cannot_be_read_are_rows_with_the_reason(work: Work, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "store"
    photos.mkdir()
    for path in (work.folder / "photos").iterdir():
        (photos / path.name).write_bytes(path.read_bytes())
    faults = [Fault("read", at, code) for at, code in ((0, errno.ENOENT), (1, errno.EIO))]
    ended = work.warm.run("ingest", photos, out, "--patch", 48, below=photos, faults=faults)
    assert ended.code == 0 and ended.out.startswith("2 images added") and "2 refused" in ended.out, ended
    reasons = sorted(line.rpartition(": ")[2] for line in ended.err.splitlines())
    assert reasons == ["Input/output error", "No such file or directory"]
    again = work.warm.run("ingest", photos, out, "--patch", 48)
    assert again.code == 0 and again.out.startswith("2 images added"), again


def test_the_curves_of_a_run_that_cannot_be_written_are_one_line(work: Work, tmp_path: Path) -> None:
    ended = work.warm.run(*work.argv("train", tmp_path), below=tmp_path, faults=[Fault("create", 0, errno.ENOSPC)])
    assert ended.code == 1 and "No space left on device" in ended.line() and "events.out.tfevents" in ended.line()


@pytest.mark.parametrize(
    "argv", [("strategies",), ("info", "{store}"), ("sql", "{store}", "from scores", "--format", "csv")]
)
def test_a_full_disk_behind_standard_output_is_one_line(work: Work, argv: tuple[str, ...]) -> None:
    filled = [argument.format(store=work.folder / "store") for argument in argv]
    ended = work.warm.run(*filled, stdout="/dev/full")
    assert ended.code == 1 and "No space left on device: 'standard output'" in ended.line()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_so_it_is_where_python_keeps_what_is_written_until_the_end(unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", "from curate.cli import entry; entry()", "strategies", "--json"]
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "No space left on device: 'standard output'" in ended.stderr


def test_a_run_s_state_and_a_manifest_that_may_not_be_read_are_not_called_damaged(work: Work, tmp_path: Path) -> None:
    train = work.argv("train", tmp_path)
    assert work.warm.run(*train, below=tmp_path, faults=[Fault("fsync", 4, errno.EIO)]).code == 1
    state = tmp_path / "run" / "state.safetensors"
    for path, begins in ((state, "Permission denied"), (work.folder / "half.parquet", "the manifest")):
        path.chmod(0)
        ended = work.warm.run(*train, unprivileged=True)
        path.chmod(0o644)
        assert ended.code == 1 and str(path) in ended.line() and ended.line().startswith(f"curate: {begins}"), ended
        assert "damaged" not in ended.line() and "Permission denied" in ended.line()


def test_a_finished_run_whose_state_could_not_be_taken_away_loses_it_later(work: Work, tmp_path: Path) -> None:
    train = work.argv("train", tmp_path)
    assert work.warm.run(*train, below=tmp_path, faults=[Fault("remove", 0, errno.EIO)]).code == 1
    assert (tmp_path / "run" / "state.safetensors").exists() and (tmp_path / "run" / "model.safetensors").exists()
    assert work.warm.run(*train).code == 0
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_a_store_that_lost_its_records_can_be_asked_what_it_is(work: Work, out: Path) -> None:
    work.prepare("leaks", out)
    assert work.warm.run(*work.argv("leaks", out)).code == 0
    for path in (out / "store" / "commits" / "ingest").iterdir():
        path.unlink()
    ended = work.warm.run("info", out / "store")
    assert ended.code == 0 and "images: 0" in ended.out, ended
