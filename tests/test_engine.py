"""Jobs are done by this process or by Ray's workers with the same results; a worker that dies costs its item only."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curate import __version__, engine  # and nothing that imports torch: every worker of Ray imports this module
from curate.engine import LOCAL, WHOLE, Engine, Part, joined, run, share
from curate.errors import AccessError, CurateError, DataError, UsageError
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
        ([(1, 0)], None, False, "1 worker does not fit on a Ray cluster of 1 CPU, .*: it needs a larger one"),
        ([(8, 1)], 2, True, "2 workers do not fit on a Ray cluster of 8 CPUs and 1 GPU, .*: ask for 1 worker$"),
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
    error: Exception = ConnectionError("Failed to connect to Ray cluster at 127.0.0.1:1\nand more")

    def init(address: str, **options: object) -> None:
        raise error

    absent = SimpleNamespace(is_initialized=lambda: False, init=init, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", absent)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UsageError, match=r"cannot join the Ray cluster at RAY_ADDRESS '.*': Failed to connect to Ray"):
        list(run(Squares(tmp_path / "marker"), [1], Engine("ray")))
    error = RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 1.0.0")
    with pytest.raises(UsageError, match=r"Version mismatch: .*RAY_AUTH_MODE=token") as refused:
        list(run(Squares(tmp_path / "marker"), [1], Engine("ray")))
    assert str(refused.value).isprintable()


@dataclass(frozen=True)
class Failing:
    """Fails when it is opened, or at an item."""

    error: CurateError | OSError
    opens: bool

    def open(self) -> Callable[[int], int]:
        if not self.opens:
            raise self.error

        def fail(number: int) -> int:
            raise self.error

        return fail

    def name(self, number: int) -> str:
        return str(number)


@pytest.mark.parametrize(
    ("error", "opens", "version", "kind", "said"),
    [
        (UsageError("no store"), False, "", UsageError, r"a worker of Ray on .*: no store; workers have the files and"),
        (
            PermissionError("denied"),
            False,
            "",
            UsageError,
            r"a worker of Ray on .*: denied; workers have the files and",
        ),
        (AccessError("no access"), True, "", AccessError, r"a worker of Ray on .*: no access; workers have the files"),
        (DataError("damaged"), True, "", DataError, "damaged$"),
        (OSError("disk full"), True, "", OSError, "disk full$"),
        (
            DataError("damaged"),
            True,
            "0.0.1",
            UsageError,
            r"a worker of Ray on .*: it has curate .*, and this process 0.0.1: they",
        ),
    ],
)
def test_an_error_that_is_a_machine_s_says_which_machine(
    error: CurateError | OSError,
    opens: bool,
    version: str,
    kind: type[Exception],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("curate.pool._limit", 0)
    worker = engine._Worker(Failing(error, opens), 1, version or __version__)
    failure = worker.do(1)
    assert isinstance(failure, engine._Failure) and type(failure.error) is kind
    assert re.match(said, str(failure.error)) and str(failure.error).isprintable()


class ActorDiedError(Exception):
    actor_init_failed = False


class FakeRay:
    """Just enough of Ray for a crew: its workers are in this process, and all that is begun is done at once."""

    def __init__(self, *nodes: dict[str, float], free: dict[str, float] | None = None) -> None:
        self.machines = list(nodes)
        self.free = free or {}
        self.hired = 0
        self.exceptions = SimpleNamespace(RayActorError=ActorDiedError, OutOfMemoryError=MemoryError)
        self.fails: Callable[[int], Exception | None] = lambda number: None

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": resources} for resources in self.machines]

    def available_resources(self) -> dict[str, float]:
        return self.free

    def remote(self, **resources: object) -> Callable[[type], Any]:
        def hire(*arguments: Any) -> Any:
            self.hired += 1
            worker = engine._Worker(*arguments)
            return SimpleNamespace(do=SimpleNamespace(remote=lambda item: (self.hired, item, worker)))

        return lambda kind: SimpleNamespace(remote=hire)

    def wait(self, references: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return references[:1], references[1:]

    def get(self, reference: tuple[int, int, Any]) -> Any:
        _, item, worker = reference
        if error := self.fails(item):
            raise error
        return worker.do(item)

    def kill(self, worker: object) -> None:
        pass


def test_of_a_machine_that_is_lost_no_worker_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.pool._limit", 0)
    (tmp_path / "marker").touch()
    fake = FakeRay({"CPU": 2.0}, {"CPU": 3.0})
    crew = engine._Crew[int, int](fake, Squares(tmp_path / "marker"), 4, {"num_cpus": 1, "num_gpus": 0})

    def lose(number: int) -> Exception | None:
        if number == 1 and len(fake.machines) == 2:
            fake.machines.pop()
            return ActorDiedError("its machine has gone")
        return None

    fake.fails = lose
    assert list(engine._in_order(crew, range(9))) == [(number, number * number) for number in range(9)]
    assert crew.workers == 2


def test_a_worker_that_cannot_start_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.pool._limit", 0)
    error = ActorDiedError("The actor died, \x1b[36mray::_Worker\x1b[39m\n  File x\nNo module named 'curate'\n")
    error.actor_init_failed = True
    fake = FakeRay({"CPU": 2.0})
    fake.fails = lambda number: error
    crew = engine._Crew[int, int](fake, Squares(tmp_path / "marker"), 1, {"num_cpus": 1, "num_gpus": 0})
    with pytest.raises(UsageError, match=r"a worker of Ray cannot start: No module named 'curate'; each machine"):
        list(engine._in_order(crew, range(9)))
    assert fake.hired == 1


@pytest.mark.parametrize(
    ("total", "free", "workers", "gpu", "expected"),
    [
        ({"CPU": 8.0}, {"CPU": 8.0}, 2, False, (2, 3)),
        ({"CPU": 8.0}, {"CPU": 5.5}, 2, False, (2, 2)),  # other work has some of them
        ({"CPU": 8.0}, {"CPU": 2.0}, None, False, (2, 1)),
        ({"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}, None, True, (1, 1)),
        ({"CPU": 8.0}, {"CPU": 2.0}, 3, False, "leaves 2 CPUs: ask for 2 workers or fewer, or wait until that has"),
        ({"CPU": 8.0}, {}, None, False, "7 workers should start, and other work .* leaves 0 CPUs: wait until that"),
        ({"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}, 2, True, "leaves 8 CPUs and 1 GPU: ask for 1 worker, or"),
    ],
)
def test_what_other_work_holds_is_not_waited_for(
    total: dict[str, float],
    free: dict[str, float],
    workers: int | None,
    gpu: bool,
    expected: tuple[int, int] | str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    if isinstance(expected, str):
        with pytest.raises(UsageError, match=expected) as refused:
            engine._free_share(FakeRay(total, free=free), workers, gpu)
        assert str(refused.value).isprintable()
    else:
        assert engine._free_share(FakeRay(total, free=free), workers, gpu) == expected


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


Shows = list[Killing] | list[Callable[..., None]]
SIZES = [(50, 61), (60, 48), (48, 36), (60, 60), (37, 72), (36, 40), (9, 9)]


def all_verbs(photos: str, place: str, where: Engine, shows: Shows) -> None:
    """Ingest, score, select and pack into `place`, a folder or a URL."""
    from curate import ingest, pack, score, select

    store = f"{place}/store"
    ingest([photos], store, patch=24, step=12, shard_size=6_000, engine=where, progress=shows[0])
    report = score(store, ["sobel", "noise"], device="cpu", engine=where, progress=shows[1])
    assert (report.images, report.skipped, report.not_finite) == (6, 0, 0)
    select(store, "des", by="sobel", keep=0.3).save(f"{place}/des.parquet")
    assert pack(f"{place}/des.parquet", f"{place}/core", shard_size=3_000, engine=where).missing == 0


def test_two_workers_of_whom_one_is_killed_leave_the_bytes_of_one_process(
    ray: Any, write_photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curate.survey.CHUNK", 2)
    photos = write_photos(tmp_path / "photos", SIZES)
    shows = [Killing(), Killing()]
    all_verbs(str(photos), str(tmp_path / "one"), LOCAL, [silent, silent])
    with joined(Engine("ray", 2)):
        all_verbs(str(photos), str(tmp_path / "two"), Engine("ray", 2), shows)
    assert all(show.killed for show in shows)
    for name in ("store", "core"):
        assert len(list((tmp_path / "one" / name / "shards").iterdir())) >= 2
    assert tree(tmp_path / "two") == tree(tmp_path / "one")


@pytest.mark.slow
def test_on_an_object_store_workers_leave_the_same_and_no_credentials(
    ray: Any, s3: str, write_photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read from s3:// and written to it, a worker killed in mid-run; credentials come by the environment alone."""
    from curate.storage import RemotePath, file_system, publish_bytes

    monkeypatch.setattr("curate.survey.CHUNK", 2)
    monkeypatch.setenv("CURATE_CACHE", str(tmp_path / "cache"))
    photos = write_photos(tmp_path / "photos", SIZES)
    for path in photos.iterdir():
        publish_bytes(RemotePath(f"{s3}/photos/{path.name}"), path.read_bytes())
    shows = [Killing(), Killing()]
    all_verbs(str(photos), str(tmp_path / "one"), LOCAL, [silent, silent])
    with joined(Engine("ray", 2)):
        all_verbs(f"{s3}/photos", f"{s3}/two", Engine("ray", 2), shows)
        session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert all(show.killed for show in shows)
    fs, root = file_system(f"{s3}/two")
    there = {name.removeprefix(f"{root}/"): bytes(fs.cat_file(name)) for name in fs.find(root)}
    assert there == tree(tmp_path / "one")
    written = [path for folder in (session, tmp_path / "cache") for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 20
    for data in (*there.values(), *(path.read_bytes() for path in written)):
        assert b"hunter2" not in data and b"AKIATEST" not in data
