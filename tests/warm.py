"""A warm process: it has imported curate, and forks a child for each command, which runs as the program does.

    warm = Warm()                                    some seconds, once
    child = warm.start("info", store, faults=...)    as `curate info STORE`, in a process group of its own
    child.end()                                      Ended: exit code, what it said, which calls it made

A child may be told to fail at its k-th call of a kind (`Fault`), to run with a limit on the size of files, without
root's right to read and write everything, or with a clock that runs backwards. Calls are counted below one folder.

The file is also the program that forks: it reads a request a line and answers each with a line, both JSON.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["create", "fsync", "rename", "mkdir", "remove", "read", "list"]


@dataclass(frozen=True)
class Fault:
    """The `at`-th call of a kind, counted from 0, fails with `errno`; and all later ones too if it `lasts`."""

    kind: Kind
    at: int
    errno: int
    lasts: bool = False


@dataclass(frozen=True)
class Ended:
    """What a command left."""

    code: int  # negative: the signal that killed it
    out: str
    err: str
    calls: list[tuple[str, str]]  # (kind, path below the folder), in order


class Child:
    """A command under way."""

    def __init__(self, warm: "Warm", pid: int, folder: Path) -> None:
        self.pid = pid
        self._warm = warm
        self._folder = folder

    def end(self) -> Ended:
        """Wait for its end."""
        code = self._warm.ask(wait=self.pid)["code"]
        out, err = ((self._folder / name).read_text("utf-8", "replace") for name in ("out", "err"))
        log = self._folder / "calls"
        calls = [tuple(json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []
        return Ended(code, out, err, calls)


class Warm:
    """The process that forks. `inside` runs it in a mount namespace of its own (see `tmpfs`)."""

    def __init__(self, *, namespace: bool = False) -> None:
        before = ["unshare", "--user", "--map-root-user", "--mount"] if namespace else []
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self._number = 0
        command = [*before, sys.executable, __file__]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.ask()

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def start(
        self,
        *arguments: object,
        below: Path | None = None,
        faults: tuple[Fault, ...] = (),
        file_size: int | None = None,
        unprivileged: bool = False,
        clock: float | None = None,
        stdout: str | None = None,
        env: dict[str, str] | None = None,
    ) -> Child:
        self._number += 1
        folder = Path(self._folder.name) / str(self._number)
        folder.mkdir()
        pid = self.ask(
            argv=[str(argument) for argument in arguments],
            folder=str(folder),
            below=str(below) if below else None,
            faults=[asdict(fault) for fault in faults],
            file_size=file_size,
            unprivileged=unprivileged,
            clock=clock,
            stdout=stdout,
            env=env or {},
        )["pid"]
        return Child(self, pid, folder)

    def run(self, *arguments: object, **how: Any) -> Ended:
        return self.start(*arguments, **how).end()

    def mount(self, *arguments: str) -> bool:
        """`mount ARGUMENTS...` in its namespace: whether it could be done."""
        return bool(self.ask(mount=list(arguments))["code"] == 0)

    def tree(self, folder: Path) -> dict[str, str]:
        """Name -> contents of all files below a folder as the process sees it."""
        return dict(self.ask(tree=str(folder)))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()


# --- the program ------------------------------------------------------------------------------------------------------


def serve() -> None:
    for name in MODULES:
        __import__(name)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        if "argv" in request:
            pid = os.fork()
            if pid == 0:
                become(request)
                return
            answer: Any = {"pid": pid}
        elif "wait" in request:
            answer = {"code": os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])}
        elif "mount" in request:
            answer = {"code": subprocess.run(["mount", *request["mount"]], capture_output=True, check=False).returncode}
        elif "umount" in request:
            answer = {"code": subprocess.run(["umount", request["umount"]], check=False).returncode}
        elif "tree" in request:
            root = Path(request["tree"])
            answer = {str(p.relative_to(root)): p.read_bytes().hex() for p in sorted(root.rglob("*")) if p.is_file()}
        else:
            answer = {}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


MODULES = [
    "curate.cli",
    "curate.demo",
    "curate.exporting",
    "curate.inspection",
    "curate.packing",
    "curate.pipeline",
    "curate.reporting",
    "lmdb",
    "pyarrow.parquet",
    "torch.utils.tensorboard.writer",
    "webdataset",
]


def become(request: dict[str, Any]) -> None:
    """In the child: run the command, and leave as the program does."""
    os.setsid()
    folder = Path(request["folder"])
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, name in ((1, request["stdout"] or str(folder / "out")), (2, str(folder / "err"))):
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    (folder / "out").touch()
    os.environ.update(request["env"])
    if request["file_size"] is not None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"], resource.RLIM_INFINITY))
    if request["unprivileged"]:
        give_up_rights()
    if request["clock"] is not None:
        turn_back(request["clock"])
    if request["below"]:
        watch(request["below"], [Fault(**fault) for fault in request["faults"]], folder / "calls")
    from curate import cli

    sys.argv = ["curate", *request["argv"]]
    cli.entry()


def watch(below: str, faults: list[Fault], log: Path) -> None:
    """Note the calls that concern files below a folder, and let some fail."""
    counts: dict[str, int] = {}
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    prefix = below.rstrip("/") + "/"

    def meet(kind: str, path: object) -> None:
        name = str(Path.cwd() / os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else ""
        if not (name + "/").startswith(prefix):
            return
        number = counts.get(kind, 0)
        counts[kind] = number + 1
        os.write(descriptor, (json.dumps([kind, name.removeprefix(prefix)]) + "\n").encode())
        for fault in faults:
            if fault.kind == kind and (number == fault.at or (fault.lasts and number > fault.at)):
                raise OSError(fault.errno, os.strerror(fault.errno), None if kind == "fsync" else os.fsdecode(path))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            flags = arguments[2] or 0
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            meet("create" if writes else "read", arguments[0])
        elif event in EVENTS:
            meet(EVENTS[event], arguments[0])

    sync = os.fsync

    def fsync(descriptor: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            meet("fsync", Path(f"/proc/self/fd/{descriptor}").readlink())
        sync(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)


EVENTS = {"os.rename": "rename", "os.mkdir": "mkdir", "os.remove": "remove", "os.scandir": "list", "os.listdir": "list"}


def give_up_rights() -> None:
    """What is forbidden by a file's mode is forbidden to root too: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH go."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    for place in (0, 1):  # effective, permitted
        data[place] &= ~0b110
    assert libc.capset(header, data) == 0


def turn_back(seconds: float) -> None:
    """Every look at the clock finds it so many seconds earlier than the one before."""
    import time

    now = time.time()

    def back() -> Iterator[float]:
        moment = now
        while True:
            moment -= seconds
            yield moment

    moments = back()
    time.time = lambda: next(moments)
    time.time_ns = lambda: int(next(moments) * 1e9)


if __name__ == "__main__":
    serve()
