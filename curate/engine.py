"""How units of work are done: in this process, or by workers on a Ray cluster; and which of them, if a run is a part.

A job says what a worker needs to do any unit. It is pickled, sent to each worker once, and opened there: it loads its
models and opens its store by path. Workers read pixels themselves and write shards; only rows and tables come back, in
the order of the units, to the one process that writes tables and records. So what an interrupted run leaves is always
the first of its units, and the engine cannot be told from the bytes.

A worker that dies costs the unit that it was at: another one takes its place, and the unit is done again.

A job holds names alone: credentials, addresses of object stores and the cache are those of the machine that a worker is
on, so that they are in no file and no message of Ray's.
"""

import importlib
import logging
import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, Literal, Protocol, TypeVar

from curate import __version__, pool, stopping
from curate.errors import AccessError, CurateError, UsageError, counted, one_line
from curate.storage import Place, is_url

__all__ = ["LOCAL", "WHOLE", "Engine", "Job", "Part", "has_gpus", "joined", "require_disk", "run", "share"]

_TRIES = 3  # how often a unit is begun whose worker dies
_RAY_STORE = 2**27  # bytes for what it passes on: jobs, rows and tables, no pixels
_AHEAD = 2  # units a worker that may be begun before the first of them is taken
_PATIENCE = 100  # looks, 0.2 s apart, for processors that the workers of an earlier run may just be giving back

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_ItemIn = TypeVar("_ItemIn", contravariant=True)
_ResultOut = TypeVar("_ResultOut", covariant=True)


class Job(Protocol[_ItemIn, _ResultOut]):
    """What there is to do to an item. It, items and results can be pickled."""

    def open(self) -> Callable[[_ItemIn], _ResultOut]:
        """Load what it takes, and return what does one item."""
        ...

    def name(self, item: _ItemIn) -> str:
        """What to call an item in an error."""
        ...


@dataclass(frozen=True, slots=True)
class Engine:
    """Where units are done: `local` is this process with all its processors, `ray` a cluster's workers.

    Ray joins the cluster at RAY_ADDRESS. Without that it starts one on this machine, with a worker a processor.
    """

    name: Literal["local", "ray"] = "local"
    workers: int | None = None  # of Ray; None: as many as it can have

    def __post_init__(self) -> None:
        if self.name not in ("local", "ray"):
            raise UsageError(f"the engine should be local or ray, found '{one_line(self.name)}'")
        if self.workers is not None and self.name == "local":
            raise UsageError("the local engine uses every processor as it is; workers are for the engine ray")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"there should be 1 worker or more, found {self.workers}")


@dataclass(frozen=True, slots=True)
class Part:
    """One of `count` runs that share the units of a job between them."""

    index: int = 0  # from 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Part":
        """`1/4` is the first of four. UsageError for what is none."""
        index, _, number = text.partition("/")
        if not re.fullmatch(r"\d{1,9}/\d{1,9}", text) or not 1 <= int(index) <= int(number):
            raise UsageError(f"a part should be 1/4, 2/4, ... 4/4, found '{one_line(text)}'")
        return cls(int(index) - 1, int(number))

    @property
    def is_whole(self) -> bool:
        """Whether there are no others."""
        return self.count == 1

    def has(self, unit: int) -> bool:
        """Whether that unit is this part's."""
        return unit % self.count == self.index


def require_disk(part: Part, path: str | Place) -> None:
    """UsageError for parts of which one does what needs all of them, at a URL, where no lock says which one."""
    if not part.is_whole and is_url(path):
        asked = f"parts of an ingest meet on a disk that they share, found the URL '{one_line(path)}'"
        raise UsageError(f"{asked}; --engine ray shares the work there")


LOCAL = Engine()
WHOLE = Part()


def run(
    job: Job[_Item, _Result], items: Iterable[_Item], engine: Engine, gpu: bool = False
) -> Iterator[tuple[_Item, _Result]]:
    """Do the items, and yield each with its result, in their order; a few of them are done ahead.

    With `gpu` each worker of Ray gets a GPU of its own. Raises what the job raises, UsageError where Ray is not
    installed or would have no processor left, CurateError for an item whose worker died three times.
    """
    if engine.name == "ray":
        yield from _on_ray(job, items, engine, gpu)
    else:
        function = job.open()
        yield from ((item, function(item)) for item in items)


# --- Ray --------------------------------------------------------------------------------------------------------------


@contextmanager
def joined(engine: Engine) -> Iterator[None]:
    """Stay on the engine's cluster for several calls of `run`: joining takes seconds. Raises what `run` does first."""
    if engine.name != "ray" or (ray := _ray()).is_initialized():
        yield
        return
    try:
        _start(ray, engine)
        share(_nodes(ray), engine.workers, gpu=False)  # refuses what does not fit
        yield
    finally:
        ray.shutdown()


def share(nodes: list[tuple[int, int]], workers: int | None, gpu: bool) -> tuple[int, int]:
    """How many workers there are, and CPUs for each, on a cluster of nodes of (CPUs, GPUs).

    One CPU at least stays free: actors that hold every CPU of a cluster stop all else on it. Each worker with a GPU
    gets one of its node's. UsageError if so many workers do not fit.
    """
    cpus, gpus = (sum(column) for column in zip(*nodes, strict=True))
    most = min(cpus - 1, gpus) if gpu else cpus - 1
    wanted = max(most, 1) if workers is None else workers
    for each in range((cpus - 1) // wanted, 0, -1):
        if _room(nodes, each, gpu) >= wanted:
            return wanted, each
    there = f"{counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}" if gpu else counted(cpus, "CPU")
    asked = f"{counted(wanted, 'worker')} {'does' if wanted == 1 else 'do'} not fit on a Ray cluster of {there}"
    instead = f"ask for {counted(most, 'worker')}{' or fewer' * (most > 1)}" if most > 0 else "it needs a larger one"
    raise UsageError(f"{asked}, of which 1 CPU stays free: {instead}")


def _room(nodes: list[tuple[int, int]], cpus: int, gpu: bool) -> int:
    """How many workers of so many CPUs fit on the nodes."""
    return sum(min(node[0] // cpus, node[1]) if gpu else node[0] // cpus for node in nodes)


@dataclass(slots=True)
class _Failure:
    """An error for the user, on its way back."""

    error: CurateError | OSError


class _Worker(Generic[_Item, _Result]):
    """Runs in a process of its own, on any machine of the cluster."""

    def __init__(self, job: Job[_Item, _Result], cpus: int, version: str) -> None:
        self._job = job
        self._version = version
        self._function: Callable[[_Item], _Result] | None = None
        pool.limit(cpus)

    def do(self, item: _Item) -> _Result | _Failure:
        # Ray would wrap what is raised, and hide its one line in a traceback.
        try:
            self._function = self._function or self._open()
            return self._function(item)
        except (CurateError, OSError) as error:
            where = self._function is None or isinstance(error, AccessError)
            return _Failure(_elsewhere(error) if where else error)

    def _open(self) -> Callable[[_Item], _Result]:
        if self._version != __version__:
            raise UsageError(f"it has curate {__version__}, and this process {self._version}: they should be the same")
        return self._job.open()


def _elsewhere(error: CurateError | OSError) -> CurateError:
    """An error that says less of what was asked than of where a worker is."""
    kind = type(error) if isinstance(error, CurateError) else UsageError
    there = "workers have the files and the environment of their own machine, not of this one"
    return kind(f"a worker of Ray on {one_line(socket.gethostname())}: {one_line(error)}; {there}")


@dataclass(slots=True)
class _Task(Generic[_Item]):
    number: int
    item: _Item
    tries: int = 0
    worker: Any = None


@dataclass(slots=True)
class _Crew(Generic[_Item, _Result]):
    """The workers of one run."""

    ray: Any
    job: Job[_Item, _Result]
    workers: int
    resources: dict[str, int]  # of each
    idle: list[Any] = field(default_factory=list)
    busy: dict[Any, _Task[_Item]] = field(default_factory=dict)  # by the reference of what it will be

    def begin(self, task: _Task[_Item]) -> None:
        task.tries += 1
        task.worker = self.idle.pop() if self.idle else self._hire()
        self.busy[task.worker.do.remote(task.item)] = task

    def _hire(self) -> Any:
        kind = self.ray.remote(max_restarts=0, **self.resources)(_Worker)
        return kind.remote(self.job, self.resources["num_cpus"], __version__)

    def has_room(self) -> bool:
        return len(self.busy) < self.workers

    def wait(self) -> tuple[_Task[_Item], _Result | None]:
        """The first task that is done, with its result, or None: its worker has died."""
        (reference,), _ = self.ray.wait(list(self.busy), num_returns=1)
        task = self.busy.pop(reference)
        died = (self.ray.exceptions.RayActorError, self.ray.exceptions.OutOfMemoryError)
        try:
            answer: _Result | _Failure = self.ray.get(reference)
        except died as error:
            self.ray.kill(task.worker)
            if getattr(error, "actor_init_failed", False):
                reason = one_line(str(error).strip().rpartition("\n")[2])
                raise UsageError(
                    f"a worker of Ray cannot start: {reason}; each machine of the cluster needs curate {__version__}"
                ) from None
            self._shrink()
            if task.tries == _TRIES:
                reason = one_line(str(error).strip().partition("\n")[0])
                what = f"{self.job.name(task.item)}: the worker at it died {_TRIES} times, perhaps for lack of memory"
                raise CurateError(f"{what}; the same command goes on; Ray says: {reason}") from None
            return task, None
        self.idle.append(task.worker)
        if isinstance(answer, _Failure):
            raise answer.error
        return task, answer

    def _shrink(self) -> None:
        """Of a machine that was lost the workers do not come again: they would be waited for."""
        room = _room(_nodes(self.ray), self.resources["num_cpus"], self.resources["num_gpus"] > 0)
        self.workers = max(1, min(self.workers, room))

    def dismiss(self) -> None:
        for worker in (*self.idle, *(task.worker for task in self.busy.values())):
            self.ray.kill(worker)


def _on_ray(
    job: Job[_Item, _Result], items: Iterable[_Item], engine: Engine, gpu: bool
) -> Iterator[tuple[_Item, _Result]]:
    with joined(engine):
        ray = _ray()
        workers, cpus = _free_share(ray, engine.workers, gpu)
        crew = _Crew[_Item, _Result](ray, job, workers, {"num_cpus": cpus, "num_gpus": int(gpu)})
        try:
            yield from _in_order(crew, items)
        finally:
            crew.dismiss()


def _free_share(ray: Any, workers: int | None, gpu: bool) -> tuple[int, int]:
    """`share`, of what other work on the cluster leaves: workers without a place would be waited for, without a word.

    UsageError if it leaves too little.
    """
    wanted, each = share(_nodes(ray), workers, gpu)
    for _ in range(_PATIENCE):
        free = [int(ray.available_resources().get(name, 0)) for name in ("CPU", "GPU")]
        if free[0] >= wanted * each and free[1] >= wanted * gpu:
            return wanted, each
        time.sleep(0.2)
    most = min(free) if gpu else free[0]
    if most < (1 if workers is None else wanted):
        left = f"{counted(free[0], 'CPU')} and {counted(free[1], 'GPU')}" if gpu else counted(free[0], "CPU")
        asked = f"{counted(wanted, 'worker')} should start, and other work on this Ray cluster leaves {left}"
        instead = f"ask for {counted(most, 'worker')}{' or fewer' * (most > 1)}, or wait" if most else "wait"
        raise UsageError(f"{asked}: {instead} until that has ended")
    wanted = min(wanted, most)
    return wanted, min(each, free[0] // wanted)


def _in_order(crew: _Crew[_Item, _Result], items: Iterable[_Item]) -> Iterator[tuple[_Item, _Result]]:
    new = (_Task(number, item) for number, item in zip(count(), items, strict=False))
    again: deque[_Task[_Item]] = deque()
    done: dict[int, tuple[_Item, _Result]] = {}
    begun = given = 0
    while True:
        while again and crew.has_room():
            crew.begin(again.popleft())
        while crew.has_room() and begun - given < _AHEAD * crew.workers and (task := next(new, None)):
            crew.begin(task)
            begun += 1
        if not crew.busy:
            return
        task, result = crew.wait()
        if result is None:
            again.append(task)
            continue
        done[task.number] = (task.item, result)
        while given in done:
            yield done.pop(given)
            given += 1


def has_gpus(engine: Engine) -> bool:
    """Whether the engine's cluster has GPUs; this process' own are not meant. Stay on it: see `joined`."""
    with joined(engine):
        return engine.name == "ray" and any(gpus for _, gpus in _nodes(_ray()))


def _nodes(ray: Any) -> list[tuple[int, int]]:
    """CPUs and GPUs of each machine of the cluster."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in resources]


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UsageError("the engine ray is not installed: pip install 'curate[ray]'") from None


def _start(ray: Any, engine: Engine) -> None:
    """Join the cluster at RAY_ADDRESS, or start one here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with stopping.kept():
        _init(ray, engine)


def _init(ray: Any, engine: Engine) -> None:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:  # RuntimeError: another Ray, another Python
            reason = one_line(str(error).strip().partition("\n")[0])
            asked = f"cannot join the Ray cluster at RAY_ADDRESS '{one_line(address)}': {reason}"
            token = "if it asks for a token, is RAY_AUTH_MODE=token set, and the token in ~/.ray/auth_token?"
            raise UsageError(f"{asked}; is it up? {token}") from None
        return
    workers = engine.workers or pool.workers()
    cpus = max(workers, pool.workers()) + 1  # one for what is not a worker; a thread each does the work
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=_RAY_STORE, **quiet)
