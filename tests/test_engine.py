"""Jobs are done by this process or by Ray's workers with the same results; a worker that dies costs its item only."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curate import engine  # and nothing that imports torch: every worker of Ray imports this module
from curate.engine import LOCAL, WHOLE, Engine, Part, joined, run, share
from curate.errors import CurateError, DataError, UsageError
from curate.progress import silent

# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_unit_is_in_one_part(count: int) -> None:
    parts = [Part.parse(f"{index}/{count}") for index in range(1, count + 1)]
    assert [sum(part.has(unit) for part in parts) for unit in range(20)] == [1] * 20
    assert [part.is_whole for part in parts] == [count == 1] * count
    assert Part.parse("1/1") == WHOLE


@pytest.mark.parametrize("text", ["", "1", "0/4", "5/4", "1/0", "-1/4", "a/4", "1/4/2", "1 / 4", "½/4", "1/4\n"])
def test_what_is_no_part_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="a part should be 1/4, 2/4") as refused:
        Part.parse(text)
    assert str(refused.value).isprintable()


# --- this process -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Squares:
    """Squares of numbers. Some kill their worker: number 3 the first time, when `marker` is not there; 99 always."""

    marker: Path

    def open(self) -> Callable[[int], int]:
        def square(number: int) -> int:
            if number == 99 or (number == 3 and not self.marker.exists()):
                self.marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if number == 77:
                raise DataError("77 is damaged")
            return number * number

        return square

    def name(self, number: int) -> str:
        return f"number {number}"


def test_the_local_engine_does_one_item_after_another(tmp_path: Path) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in (5, 1, 2):
            taken.append(number)
            yield number

    results = run(Squares(tmp_path / "marker"), items(), LOCAL)
    assert (next(results), taken) == ((5, 25), [5])
    assert list(results) == [(1, 1), (2, 4)]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "dask"}, "the engine should be local or ray, found 'dask'"),
        ({"name": "ray", "workers": 0}, "there should be 1 worker or more, found 0"),
        ({"workers": 2}, "the local engine uses every processor as it is"),
    ],
)
def test_an_engine_that_there_is_not_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Engine(**options)


# --- a cluster's processors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "workers", "gpu", "expected"),
    [
        ([(8, 0)], None, False, (7, 1)),
        ([(8, 0)], 2, False, (2, 3)),
        ([(8, 0)], 7, False, (7, 1)),
        ([(3, 0), (3, 0)], 2, False, (2, 2)),
        ([(4, 0), (4, 0)], 3, False, (3, 2)),  # 7 // 3: two on one node
        ([(16, 0), (2, 0)], 2, False, (2, 8)),
        ([(8, 2)], None, True, (2, 3)),
        ([(8, 1), (8, 1)], 2, True, (2, 7)),
        ([(64, 0), (8, 1)], 1, True, (1, 8)),  # the node with the GPU has no more
        ([(2, 8)], None, True, (1, 1)),
    ],
)
def test_workers_share_the_processors_but_one(
    nodes: list[tuple[int, int]], workers: int | None, gpu: bool, expected: tuple[int, int]
) -> None:
    assert share(nodes, workers, gpu) == expected
    count, cpus = expected
    assert count * cpus < sum(node[0] for node in nodes)


@pytest.mark.parametrize(
    ("nodes", "workers", "gpu", "reason"),
    [
        ([(4, 0)], 4, False, "4 workers do not fit on a Ray cluster of 4 CPUs, of which 1 CPU stays free: ask for 3"),
        ([(1, 0)], None, False, "1 workers do not fit on a Ray cluster of 1 CPUs, .*: it needs a larger one"),
        ([(8, 1)], 2, True, "2 workers do not fit on a Ray cluster of 8 CPUs and 1 GPUs, .*: ask for 1 workers or"),
        ([(8, 0)], None, True, "of 8 CPUs and 0 GPUs, .*: it needs a larger one"),
    ],
)
def test_workers_that_would_hold_every_processor_are_refused(
    nodes: list[tuple[int, int]], workers: int | None, gpu: bool, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason) as refused:
        share(nodes, workers, gpu)
    assert str(refused.value).isprintable()


# --- Ray --------------------------------------------------------------------------------------------------------------


def test_without_ray_the_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"the engine ray is not installed: pip install 'curate\[ray\]'"):
        list(run(Squares(tmp_path / "marker"), [1], Engine("ray")))


def test_a_cluster_that_cannot_be_joined_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(address: str, **options: object) -> None:
        raise ConnectionError(f"Failed to connect to Ray cluster at {address}\nand more")

    absent = SimpleNamespace(is_initialized=lambda: False, init=init, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", absent)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UsageError, match="cannot join the Ray cluster at RAY_ADDRESS") as refused:
        list(run(Squares(tmp_path / "marker"), [1], Engine("ray")))
    assert str(refused.value).isprintable()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray, which starts a cluster here; its workers find this module."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    return pytest.importorskip("ray", reason="needs the extra ray: pip install 'curate[ray]'")


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_item_and_errors_keep_their_line(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_TRIES", 2)  # a process takes its time to start
    job, two = Squares(tmp_path / "marker"), Engine("ray", 2)
    with joined(two):
        assert list(run(job, iter(range(9)), two)) == [(number, number * number) for number in range(9)]
        assert (tmp_path / "marker").exists()
        with pytest.raises(CurateError, match=r"number 99: the worker at it died 2 times, .*; Ray says: ") as refused:
            list(run(job, [1, 99, 2], two))
        assert str(refused.value).isprintable()
        with pytest.raises(DataError) as refused:
            list(run(job, [1, 77, 2], two))
        assert str(refused.value) == "77 is damaged"
        cpus = int(ray.cluster_resources()["CPU"])
        with pytest.raises(UsageError, match=f"{cpus} workers do not fit on a Ray cluster of {cpus} CPUs"):
            list(run(job, [1], Engine("ray", cpus)))
    assert not ray.is_initialized()


def workers_here() -> list[int]:
    """Process ids of Ray's workers on the cluster that this process has started."""
    parents, workers = dict[int, int](), list[int]()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                parents[int(folder.name)] = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
                if folder.joinpath("cmdline").read_bytes().startswith(b"ray::_Worker"):
                    workers.append(int(folder.name))

    def is_here(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_here(parents[pid]))

    return [pid for pid in workers if is_here(pid)]


class Killing:
    """A display of progress that kills a worker of Ray when it is told something the first time."""

    def __init__(self) -> None:
        self.killed: list[int] = []

    def __call__(self, done: int, total: int, note: str = "") -> None:
        if not self.killed:
            self.killed = workers_here()[:1]
            os.kill(self.killed[0], signal.SIGKILL)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_workers_of_whom_one_is_killed_leave_the_bytes_of_one_process(
    ray: Any, write_photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate import ingest, pack, score, select

    monkeypatch.setattr("curate.survey.CHUNK", 2)
    photos = write_photos(tmp_path / "photos", [(50, 61), (60, 48), (48, 36), (60, 60), (37, 72), (36, 40), (9, 9)])
    with joined(Engine("ray", 2)):
        for name, where in (("one", LOCAL), ("two", Engine("ray", 2))):
            shows = [Killing() if where != LOCAL else silent for _ in range(2)]
            store, core = tmp_path / name / "store", tmp_path / name / "core"
            ingest([photos], store, patch=24, step=12, shard_size=6_000, engine=where, progress=shows[0])
            report = score(store, ["sobel", "noise"], device="cpu", engine=where, progress=shows[1])
            assert (report.images, report.skipped, report.not_finite) == (6, 0, 0)
            manifest = select(store, "des", by="sobel", keep=0.3).save(tmp_path / name / "des.parquet")
            assert pack(manifest, core, shard_size=3_000, engine=where).missing == 0
            assert all(show.killed for show in shows if isinstance(show, Killing))
    for name in ("store", "core"):
        assert len(list((tmp_path / "one" / name / "shards").iterdir())) >= 2
        assert tree(tmp_path / "two" / name) == {
            path: data.replace(str(tmp_path / "one").encode(), str(tmp_path / "two").encode())
            for path, data in tree(tmp_path / "one" / name).items()
        }
