"""Commands that die where they are told: the machinery of `test_crashes.py`.

A run touches the disk in steps: it makes a folder, opens a file, writes, syncs, renames, removes. `Steps` stands before
each of these functions of Python's and counts. At the n-th step the process kills itself (SIGKILL), or stops to let
another one run. `Disk` knows what had been synced by then, so that a power cut can be played: what was not is lost.

    kill      the process is gone; what it gave to the system is there
    cut       the power is gone too: nothing is there that was not synced
    names     names are there (a file system that writes its folders first), contents that were not synced are not
    some      of what was not synced, each change of a folder and each content is there or not, by lot

As a program it serves requests, a JSON line each, from one process in which everything is imported and warm: a kill
costs two forks, not two starts of Python.
"""

# Paths are strings here: these are the functions that Path calls.
# ruff: noqa: PTH100, PTH115, PTH118, PTH206, PTH208

import builtins
import contextlib
import fcntl
import gc
import hashlib
import io
import json
import os
import random
import shutil
import signal
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["HOWS", "differences", "tree"]

HOWS = ("kill", "cut", "names", "some")
# TensorBoard's files, which grow and hold the time of day, and how long a search took
UNTRACKED = ("events.out.tfevents", "seconds.json")


def tree(folder: Path) -> dict[str, str]:
    """Everything below a folder: name -> hash of a file's content, "folder" for a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not path.name.startswith(UNTRACKED):
            name = path.relative_to(folder).as_posix()
            found[name] = "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """What one tree has otherwise than another."""
    lines = [f"lost {name}" for name in expected.keys() - found.keys()]
    lines += [f"extra {name}" for name in found.keys() - expected.keys()]
    return sorted(
        lines + [f"changed {name}" for name in expected.keys() & found.keys() if expected[name] != found[name]]
    )


# --- what is on the disk ----------------------------------------------------------------------------------------------


class Disk:
    """What a power cut would leave of a folder: contents and names as they were last synced."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.contents: dict[int, bytes] = {}  # inode of a file -> its content when it was last synced
        self.names: dict[int, dict[str, int]] = {}  # inode of a folder -> name -> inode, when it was last synced
        self.changes: list[
            tuple[int, list[tuple[str, int | None]]]
        ] = []  # (folder, [(name, inode or none)]), since then
        self._handles: dict[int, int] = {}  # inode -> a descriptor, which keeps its number from being given again
        self.top = self._scan(root)

    def _scan(self, path: Path) -> int:
        inode = self.know(path)
        if path.is_dir():
            self.names[inode] = {entry.name: self._scan(entry) for entry in path.iterdir()}
        else:
            self.contents[inode] = self._read(inode)
        return inode

    def know(self, path: str | os.PathLike[str]) -> int:
        inode = os.lstat(path).st_ino
        if inode not in self._handles:
            self._handles[inode] = os.open(path, os.O_RDONLY)
            if stat.S_ISDIR(os.fstat(self._handles[inode]).st_mode):
                self.names[inode] = {}
            else:
                self.contents[inode] = b""
        return inode

    def _read(self, inode: int) -> bytes:
        return os.pread(self._handles[inode], os.fstat(self._handles[inode]).st_size, 0)

    def change(self, path: Path, *names: tuple[str, int | None]) -> None:
        """Names in a folder now stand for other inodes, or for none; all of them at once."""
        self.changes.append((self.know(path), list(names)))

    def sync(self, descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        if inode in self.contents:
            self.contents[inode] = self._read(inode)
        elif inode in self.names:
            folder = os.readlink(f"/proc/self/fd/{descriptor}")
            for name in os.listdir(folder):  # libraries in C write files too, and sync them themselves
                path = os.path.join(folder, name)
                if os.lstat(path).st_ino not in self._handles:
                    self._scan(Path(path))
            self.names[inode] = {name: os.lstat(os.path.join(folder, name)).st_ino for name in os.listdir(folder)}
            self.changes = [change for change in self.changes if change[0] != inode]

    def cut(self, how: str, lots: random.Random, to: Path) -> None:
        """Write the folder as it is after a power cut to another place."""
        keep = {"cut": lambda: False, "names": lambda: True, "some": lambda: lots.random() < 0.5}[how]
        names = {inode: dict(found) for inode, found in self.names.items()}
        for folder, changed in self.changes:
            if keep():
                names[folder] |= {name: inode for name, inode in changed if inode is not None}
                for name, inode in changed:
                    if inode is None:
                        names[folder].pop(name, None)
        now = {inode: self._read(inode) for inode in self.contents}
        contents = dict(self.contents)
        if how == "some":
            contents = {inode: now[inode] if lots.random() < 0.5 else synced for inode, synced in contents.items()}
        self._write(to, self.top, names, contents)

    def _write(
        self, path: Path, inode: int, names: Mapping[int, Mapping[str, int]], contents: Mapping[int, bytes]
    ) -> None:
        if inode in contents:
            path.write_bytes(contents[inode])
            return
        path.mkdir(exist_ok=True)
        for name, below in names[inode].items():
            self._write(path / name, below, names, contents)


# --- steps ------------------------------------------------------------------------------------------------------------


class Steps:
    """Counts what a process does to files below a folder, and at one step does `act`."""

    def __init__(self, root: Path, at: int | None, act: "Callable[[Steps], None]", blind: Sequence[str] = ()) -> None:
        self.root = root
        self.at = at
        self.act = act
        self.blind = blind  # kinds of steps that do nothing, as if the code did not have them: "sync", "sync folder"
        self.names: list[str] = []
        self.disk = Disk(root)
        self._lock = threading.RLock()
        self._within = f"{root}{os.sep}"

    def watch(self) -> None:
        """Stand before the functions. They are put back when the process ends."""
        self._around(os, "mkdir", "make", self._added)
        self._around(os, "rmdir", "remove", self._removed)
        self._around(os, "unlink", "remove", self._removed)
        self._around(os, "remove", "remove", self._removed)
        self._around(os, "rename", "rename", self._renamed)
        self._around(os, "replace", "rename", self._renamed)
        self._around(os, "link", "link", self._linked)
        opening, syncing, locking = io.open, os.fsync, fcntl.flock

        def fsync(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            path = os.readlink(f"/proc/self/fd/{number}")
            kind = "sync folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "sync"
            if not self._concerns(path):
                syncing(descriptor)
            elif kind not in self.blind:
                with self._step(kind, path):
                    self.disk.sync(number)  # the disk itself need not turn

        def flock(descriptor: Any, how: int) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            path = os.readlink(f"/proc/self/fd/{number}")
            if self._concerns(path):
                with self._step("lock", path):
                    pass
            locking(descriptor, how)  # it may wait

        def open_(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wxa+") or not self._concerns(os.fsdecode(file)):
                return opening(file, mode, *arguments, **options)
            path = Path(os.fsdecode(file))
            with self._step("open", path):
                new = not path.exists()
                made = _Halved(self, path, mode)
                inode = self.disk.know(path)
                if new:
                    self.disk.change(path.parent, (path.name, inode))
            return made

        os.fsync, fcntl.flock, io.open, builtins.open = fsync, flock, open_, open_  # type: ignore[assignment]

    def _around(self, module: Any, name: str, verb: str, then: Callable[..., None]) -> None:
        original = getattr(module, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            paths = [self._full(path, options) for path in arguments[:2] if isinstance(path, str | os.PathLike)]
            if not self._concerns(paths[-1]):
                return original(*arguments, **options)
            with self._step(verb, paths[-1]):
                before = os.lstat(paths[0]).st_ino if os.path.lexists(paths[0]) else None
                result = original(*arguments, **options)
                then(*map(Path, paths), before)
            return result

        setattr(module, name, wrapped)

    @staticmethod
    def _full(path: str | os.PathLike[str], options: Mapping[str, Any]) -> str:
        if (folder := options.get("dir_fd")) is not None:  # shutil.rmtree
            return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        return os.path.abspath(path)

    def _concerns(self, path: str) -> bool:
        full = os.path.abspath(path)
        ours = full == str(self.root) or full.startswith(self._within)
        return ours and not any(name in full for name in UNTRACKED)

    def _added(self, path: Path, _: int | None) -> None:
        self.disk.change(path.parent, (path.name, self.disk.know(path)))

    def _removed(self, path: Path, _: int | None) -> None:
        self.disk.change(path.parent, (path.name, None))

    def _renamed(self, old: Path, new: Path, inode: int | None) -> None:
        assert old.parent == new.parent  # a move from folder to folder would be two changes
        self.disk.change(old.parent, (old.name, None), (new.name, inode))

    def _linked(self, old: Path, new: Path, inode: int | None) -> None:
        self.disk.change(new.parent, (new.name, inode))

    @contextlib.contextmanager
    def _step(self, verb: str, path: str | os.PathLike[str]) -> Iterator[None]:
        """Other threads stand still meanwhile."""
        with self._lock:
            self.step(verb, path)
            yield

    def step(self, verb: str, path: str | os.PathLike[str]) -> None:
        with self._lock:
            here = self.at == len(self.names)
            self.names.append(f"{verb} {_plain(os.path.relpath(path, self.root))}")
            if here:
                self.act(self)


class _Halved(io.BufferedWriter):
    """A file that is opened for writing: before the first write is whole, half of it is written, which is a step."""

    def __init__(self, steps: Steps, path: Path, mode: str) -> None:
        super().__init__(io.FileIO(str(path), mode.replace("b", "")))  # type: ignore[arg-type]
        self._steps, self._path, self._begun = steps, path, False

    @property
    def name(self) -> str:  # type: ignore[override]
        return str(self._path)

    def write(self, data: Any) -> int:
        if not self._begun:
            self._begun = True
            whole = memoryview(data).cast("B")
            super().write(whole[: len(whole) // 2])
            self.flush()
            self._steps.step("write", self._path)
            super().write(whole[len(whole) // 2 :])
            return len(whole)
        return super().write(data)


def _plain(name: str) -> str:
    """Without the random part of a temporary name."""
    parts = name.split(os.sep)
    if parts[-1].startswith(".") and parts[-1].endswith(".tmp"):
        parts[-1] = parts[-1].rpartition(".tmp")[0].rpartition(".")[0] + ".tmp"
    return os.sep.join(parts)


def die(hows: Sequence[str], seed: int) -> Callable[[Steps], None]:
    """What a step does that is the last one: leave beside the folder what power cuts would leave, and be killed."""

    def act(steps: Steps) -> None:
        for module, name, original in _ORIGINALS:
            setattr(module, name, original)
        for how in hows:
            if how != "kill":
                steps.disk.cut(how, random.Random(seed), _beside(steps.root, how))
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    return act


def _beside(work: Path, how: str) -> Path:
    return work.with_name(f"{work.name}.{how}")


def pause(_: Steps) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


_ORIGINALS = [
    (module, name, getattr(module, name))
    for module, names in {
        os: ("mkdir", "rmdir", "unlink", "remove", "rename", "replace", "link", "fsync"),
        io: ("open",),
        builtins: ("open",),
        fcntl: ("flock",),
    }.items()
    for name in names
]


# --- runs -------------------------------------------------------------------------------------------------------------


def command(words: Sequence[str]) -> int:
    """`curate WORDS` in this process; its exit code. An error that curate does not foresee is printed, and code 70."""
    from curate import cli

    sys.argv = ["curate", *words]
    try:
        cli.main()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


class Child:
    """Commands in a forked process, one after the other until one fails, in the folder `work`."""

    def __init__(self, work: Path, commands: Sequence[Sequence[str]], output: Path, before: Callable[[], Any]) -> None:
        self.output = output
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.chdir(work)
            after = before()
            for number, words in enumerate(commands):
                _beside(work, "at").write_text(str(number))
                if code := command(words):
                    break
            if after is not None:
                after()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, seconds: float = 60, stopped: bool = False) -> int | None:
        """Exit code, minus the signal that killed it, None if it is stopped or still running after that time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG | (os.WUNTRACED if stopped else 0))
            if pid:
                return None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        return None

    def said(self) -> str:
        return self.output.read_text("utf-8", "replace")

    def refused(self) -> bool:
        """Whether the last that it said is curate's one line about an error."""
        *before, last = self.said().splitlines() or [""]
        return last.startswith("curate: ") and not any("Traceback" in line for line in before)


class Scene:
    """A folder as it is before the commands, what they make of it, and the steps that they take."""

    def __init__(self, start: Path, work: Path, commands: Sequence[Sequence[str]], blind: Sequence[str] = ()) -> None:
        self.start, self.work, self.commands, self.blind = start, work, commands, blind
        self.output = work.with_name(f"{work.name}.out")
        self.verdicts: dict[str, str] = {}  # of what a crash left: the same state is gone on from once
        self.expected, self.steps = self._whole()

    def reset(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.start, self.work)

    def run(self, before: Callable[[], Any]) -> Child:
        return Child(self.work, self.commands, self.output, before)

    def again(self, first: int = 0) -> str:
        """Run the commands from the first on, to their end; what is wrong then, or nothing."""
        child = Child(self.work, self.commands[first:], self.output, _fast)
        code = child.wait()
        if code != 0:
            return f"exit {code}: {child.said()[-2000:]}"
        return "; ".join(differences(tree(self.work), self.expected))

    def _whole(self) -> tuple[dict[str, str], list[str]]:
        self.reset()
        names = self.work.with_name(f"{self.work.name}.steps")

        def before() -> Callable[[], object]:
            steps = Steps(self.work, None, pause, self.blind)
            steps.watch()
            return lambda: names.write_text(json.dumps(steps.names))

        child = self.run(before)
        if (code := child.wait()) != 0:
            raise RuntimeError(f"exit {code}: {child.said()}")
        return tree(self.work), json.loads(names.read_text())

    def crash(self, at: int | None, hows: Sequence[str]) -> list[tuple[str, str]]:
        """Die at a step, or after the last one; run again what was killed and what comes after it.

        Returns (how, what is wrong then) where something is. After the last step nothing that was finished may be lost.
        """
        self.reset()
        act = die(hows, at or 0)
        child = self.run(lambda: self._watched(at, act))
        if (code := child.wait()) != -signal.SIGKILL:
            return [("kill", f"not killed but exit {code}: {child.said()[-2000:]}")]
        found, killed = [], int(_beside(self.work, "at").read_text())
        for how in hows:
            if how != "kill":
                shutil.rmtree(self.work)
                _beside(self.work, how).rename(self.work)
            left = tree(self.work)
            lost = [line for line in differences(left, self.expected) if at is None and not line.startswith("extra")]
            state = json.dumps([killed, sorted((_plain(name), content) for name, content in left.items())])
            if state not in self.verdicts:
                self.verdicts[state] = self.again(killed)
            found.append((how, "; ".join([*lost, self.verdicts[state]]).strip("; ")))
        return [(how, problem) for how, problem in found if problem]

    def _watched(self, at: int | None, act: Callable[[Steps], None]) -> Callable[[], None]:
        steps = Steps(self.work, at, act, self.blind)
        steps.watch()
        return lambda: act(steps)

    def meet(self, at: int, others: Sequence[Sequence[str]], seconds: float) -> tuple[str, str]:
        """Stop at a step, let other commands run (for that time, if they wait), and go on; then run both again.

        Returns what is wrong, or nothing, and how the two ended.
        """
        self.reset()
        first = self.run(lambda: Steps(self.work, at, pause).watch())
        first.wait(stopped=True)
        second = Child(self.work, others, _beside(self.work, "second"), _fast)
        code = second.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(first.pid, signal.SIGCONT)
        ends = [first.wait(), second.wait() if code is None else code]
        problems = [
            f"{child.output.name} exit {end}: {child.said()[-2000:]}"
            for child, end in ((first, ends[0]), (second, ends[1]))
            if end != 0 and not (end in (1, 2) and child.refused())
        ]
        return "; ".join(problems), " ".join("done" if end == 0 else "refused" for end in ends)


def _fast() -> None:
    os.fsync = lambda descriptor: None  # type: ignore[assignment]


# --- the server -------------------------------------------------------------------------------------------------------


def warm() -> None:
    """Import everything, and let the libraries that would start threads have none."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import cv2
    import distilled
    import pyarrow as pa
    import pyarrow.parquet
    import torch
    import torch._dynamo  # or every child that counts multiply-adds would
    import torch.utils.tensorboard.writer
    import typer

    from curate import cli, drc, exporting, pipeline, pool, records, reporting, survey, targets, training  # noqa: F401

    distilled.add_verb()
    cli.app = typer.main.get_command(cli.app)  # type: ignore[assignment] # made once, not in every child
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    pool.limit(1)  # so that steps come in one order
    records._BLOCKS = (4, 2)  # so that few units are folded
    targets.CHUNK_BYTES = 4000  # so that few windows fill a file
    survey.CHUNK = 2
    gc.collect()
    gc.freeze()


def serve() -> None:
    warm()
    for line in sys.stdin:
        try:
            answer = {"answer": respond(json.loads(line))}
        except Exception:
            answer = {"error": traceback.format_exc()}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def respond(request: Mapping[str, Any]) -> Any:
    if request["do"] == "make":  # in place: what a scene starts from
        child = Child(Path(request["work"]), request["commands"], Path(request["work"] + ".out"), _fast)
        code = child.wait()
        if code != 0:
            raise RuntimeError(f"exit {code}: {child.said()}")
        return None
    scene = Scene(Path(request["start"]), Path(request["work"]), request["commands"], request.get("blind", ()))
    most = request.get("most") or len(scene.steps)
    chosen = sorted({round((number + 0.5) * len(scene.steps) / most - 0.5) for number in range(most)})
    if request["do"] == "crash":
        hows = request["hows"]
        wrong = [
            [how, "the end" if at is None else f"{at} {scene.steps[at]}", problem]
            for at in [*chosen, None]
            for how, problem in scene.crash(at, hows)
        ]
        kills = len(chosen) + 1
        return {
            "steps": scene.steps,
            "kills": kills,
            "cuts": kills * len([how for how in hows if how != "kill"]),
            "states": len(scene.verdicts),
            "wrong": wrong,
        }
    others = request["others"]
    ends, wrong = [], []
    alone = scene.expected
    both = Scene(scene.start, scene.work, [*scene.commands, *others]) if request.get("same", True) else None
    other = Scene(scene.start, scene.work, others).expected if both is None else {}
    for at in chosen:
        problem, end = scene.meet(at, others, request["seconds"])
        ends.append(end)
        if both is not None:  # the same in whatever order
            problem += both.again()
        elif tree(scene.work) not in (alone, other):
            problem += f"neither the one's nor the other's: {differences(tree(scene.work), alone)}"
        if problem:
            wrong.append(["meet", f"{at} {scene.steps[at]}", problem])
    return {"steps": scene.steps, "wrong": wrong, "ends": ends}


if __name__ == "__main__":
    serve()
    os._exit(0)  # nothing to take down
