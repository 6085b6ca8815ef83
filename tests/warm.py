"""A warm process: it has imported curate, and forks a child for each command, which runs as the program does.

    warm = Warm()                                    some seconds, once
    child = warm.start("info", store, faults=...)    as `curate info STORE`, in a session of its own
    child.end()                                      Ended: exit code, what it said, which calls it made

A child may meet a `Fault` at its k-th call of a kind: the call fails, or a signal comes, or it hangs. It may run
without root's right to read and write everything, or with a clock that runs backwards. Calls are counted below one
folder.

The process lives in a mount namespace of its own where the system lets it, and can have small disks there: `Warm.disk`.
What lies on these is seen by it alone (`Warm.tree`).

The file is also the program that forks: it reads a request a line and answers each with a line, both JSON.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["create", "fsync", "rename", "mkdir", "remove", "read"]


@dataclass(frozen=True)
class Fault:
    """What happens at the `at`-th call of a kind, counted from 0, instead of the call or before it."""

    kind: Kind
    at: int
    errno: int = 0  # it fails
    signal: int = 0  # this comes first
    seconds: float = 0  # it hangs so long


@dataclass(frozen=True)
class Ended:
    """What a command left."""

    code: int  # negative: the signal that killed it
    out: str
    err: str
    calls: list[tuple[Kind, str]]  # with the path below the folder, in order

    def line(self) -> str:
        """The one line that it said of an error; AssertionError if it said more, or anything else."""
        (said,) = self.err.splitlines()
        assert said.startswith("curate: ") and said.isprintable() and not self.out, self
        return said


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

    def left(self) -> list[str]:
        """The names of the processes that it has left behind in its session."""
        names = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # it has ended
                state, *numbers = (
                    (folder / "stat").read_text().rpartition(")")[2].split() if folder.name.isdigit() else "Z"
                )
                if state != "Z" and int(numbers[2]) == self.pid:
                    names.append((folder / "comm").read_text().strip())
        return names


class Warm:
    """The process that forks."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self._number = 0
        apart = ["unshare", "--user", "--map-root-user", "--mount"]
        may = shutil.which("unshare") and subprocess.run([*apart, "true"], capture_output=True, check=False)
        self._process = subprocess.Popen(
            [*(apart if may and may.returncode == 0 else []), sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        place = Path(self._folder.name) / "probe"
        place.mkdir()
        self.has_disks = bool(may) and self.disk(place, pages=1)
        if self.has_disks:
            self.disk(place, pages=0)

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
        faults: Sequence[Fault] = (),
        unprivileged: bool = False,
        clock: float = 0,
        grace: float = 3,
        stdout: str | None = None,
    ) -> Child:
        """Begin a command. Faults are met below a folder; each look at the clock finds it `clock` seconds earlier."""
        self._number += 1
        folder = Path(self._folder.name) / str(self._number)
        folder.mkdir()
        pid = self.ask(
            argv=[str(argument) for argument in arguments],
            folder=str(folder),
            below=str(below) if below else None,
            faults=[asdict(fault) for fault in faults],
            unprivileged=unprivileged,
            clock=clock,
            grace=grace,
            stdout=stdout,
        )["pid"]
        return Child(self, pid, folder)

    def run(self, *arguments: object, **how: Any) -> Ended:
        """A command from its start to its end."""
        return self.start(*arguments, **how).end()

    def disk(self, folder: Path, *, pages: int, again: bool = False, options: str = "") -> bool:
        """Put an empty disk of so many pages of 4 KiB there, or change it, or take it away (0 pages): did it work?"""
        flags = ["-o", f"{'remount,' if again else ''}size={pages * 4096}{options}"]
        command = ["mount", "-t", "tmpfs", *flags, "none", str(folder)] if pages else ["umount", str(folder)]
        return bool(self.ask(command=command)["code"] == 0)

    def tree(self, folder: Path) -> dict[str, bytes]:
        """Name -> contents of all files below a folder as the process sees it."""
        return {name: bytes.fromhex(data) for name, data in self.ask(tree=str(folder)).items()}

    def write(self, path: Path, data: bytes) -> None:
        """Write a file where the process sees it."""
        self.ask(write=str(path), data=data.hex())

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.kill()  # it has nothing to end, and Python's own end takes seconds
        self._process.wait()
        self._folder.cleanup()


# --- the program ------------------------------------------------------------------------------------------------------

MODULES = (
    "curate.cli",
    "curate.demo",
    "curate.display",
    "curate.exporting",
    "curate.inspection",
    "curate.pipeline",
    "curate.reporting",
    "lmdb",
    "pyarrow.parquet",
    "tensorboard.compat.proto.event_pb2",
    "tensorboard.summary.writer.record_writer",
    "torch._dynamo",  # an optimiser imports it
)


def serve() -> None:
    import distilled

    for name in MODULES:
        __import__(name)
    distilled.add_verb()
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
        elif "command" in request:
            answer = {"code": subprocess.run(request["command"], capture_output=True, check=False).returncode}
        elif "write" in request:
            path = Path(request["write"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes.fromhex(request["data"]))
            answer = {}
        else:
            root = Path(request["tree"])
            answer = {str(p.relative_to(root)): p.read_bytes().hex() for p in sorted(root.rglob("*")) if p.is_file()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def become(request: dict[str, Any]) -> None:
    """In the child: run the command, and leave as the program does."""
    os.setsid()
    folder = Path(request["folder"])
    (folder / "out").touch()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, request["stdout"] or str(folder / "out")), (2, str(folder / "err"))):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600), number)
    if request["unprivileged"]:
        give_up_rights()
    if request["clock"]:
        turn_back(request["clock"])
    if request["below"]:
        watch(request["below"], [Fault(**fault) for fault in request["faults"]], folder / "calls")
    from curate import cli, stopping

    stopping._GRACE = stopping._LONG_GRACE = request["grace"]
    sys.argv = ["curate", *request["argv"]]
    cli.entry()


def watch(below: str, faults: list[Fault], log: Path) -> None:
    """Note the calls that concern files below a folder, and bring on what is to happen."""
    counts: dict[str, int] = {}
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    prefix = below.rstrip("/") + "/"

    def meet(kind: str, path: object) -> None:
        name = str(Path.cwd() / os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else ""
        if not (name + "/").startswith(prefix) or (kind == "mkdir" and os.access(name, os.F_OK)):
            return
        number = counts.get(kind, 0)
        counts[kind] = number + 1
        os.write(descriptor, (json.dumps([kind, name.removeprefix(prefix)]) + "\n").encode())
        for fault in faults:
            if (fault.kind, fault.at) == (kind, number):
                if fault.signal:
                    os.kill(os.getpid(), fault.signal)
                time.sleep(fault.seconds)
                if fault.errno:
                    raise OSError(fault.errno, os.strerror(fault.errno), *([name] if kind != "fsync" else []))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            writes = (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            meet("create" if writes else "read", arguments[0])
        elif event in ("os.rename", "os.mkdir", "os.remove"):
            meet(event.removeprefix("os."), arguments[0])

    sync = os.fsync

    def fsync(descriptor: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            meet("fsync", Path(f"/proc/self/fd/{descriptor}").readlink())
        sync(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)


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

    def back(moment: float) -> Iterator[float]:
        while True:
            moment -= seconds
            yield moment

    moments = back(time.time())
    time.time = lambda: next(moments)
    time.time_ns = lambda: int(next(moments) * 1e9)


if __name__ == "__main__":
    serve()
