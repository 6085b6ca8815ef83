"""Killed at any instant and run again, every verb ends with the bytes of a run that was not; so do two at a time.

`crashing` explains how a command dies at its n-th step. The fast tests take some of the steps of each verb, the slow
ones all of them, and processes that are killed from outside at random.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from crashing import HOWS, differences, tree

ROOT = Path(__file__).parents[1]
NET = "fsrcnn:scale=2,d=6,s=3,m=1"
INGEST = ["ingest", "photos", "store", "--patch", "24", "--step", "12", "--shard-size", "1"]
SCORE = ["score", "store", "sobel", "laplacian"]
SELECT = ["select", "store", "des", "--by", "sobel", "-o", "half.parquet"]
PACK = ["pack", "half.parquet", "packed", "--shard-size", "1"]
DISTILLED = ["write-distilled", "half.parquet", "made"]  # what `curate distill` ends with
TRAIN = ["train", "half.parquet", "--arch", NET, "--batch-size", "2", "--crop", "12", "-o", "run"]
WIDE = [*INGEST[:2], "wide", "--patch", "36", "--step", "36"]  # for crops whose LR is 15 px
SEARCH = ["nas", "dlsr", "wide.parquet", "--features", "4", "--crop", "30", "--batch-size", "1", "--steps", "3"]
SEARCH += ["--warmup", "1", "--save-every", "1", "-o", "search"]
FULL = [*TRAIN[:2], "--arch", "drn:scale=4,features=4,blocks=1", "--dual", "0.1", *TRAIN[4:-1], "full", "--steps", "1"]
RULES = [
    "drc",
    "full",
    "half.parquet",
    "--numbers",
    "uniform",
    "--criterion",
    "l1",
    "--finetune-steps",
    "0",
    "-o",
    "rules",
]
DRC = ["drc", "full", "half.parquet", "--search-steps", "2", "--batch-size", "2", "--crop", "12", "--patches", "2"]
DRC += ["--per-pass", "16", "--finetune-steps", "2", "--finetune-batch-size", "2", "--finetune-crop", "12"]
DRC += ["--save-every", "1", "-o", "small"]
SLIM = ["drc", "slim", "full", "--config", "1.4.8.8.8.8", "-o", "slim"]
STEPS = ["--steps", "5", "--save-every", "2", "--validate", "bench", "--validate-every", "2"]
STUDY = """
[ingest]
patch = 24
step = 12
[clean]
duplicates = true
[score]
scorers = ["sobel"]
[[select]]
name = "hard"
strategy = "des"
by = "sobel"
[[train]]
archs = ["fsrcnn:scale=2,d=6,s=3,m=1"]
options = { steps = 2, batch_size = 2, crop = 12, save_every = 1 }
"""

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """A function that sends a request to `crashing`, as a process of its own, and returns the answer."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(Path(__file__).with_name("crashing.py"))]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        pipes = server.stdin, server.stdout

        def request(**what: Any) -> Any:
            pipes[0].write(json.dumps(what, default=str) + "\n")
            pipes[0].flush()
            answer = json.loads(pipes[1].readline())
            assert "error" not in answer, answer["error"]
            return answer["answer"]

        yield request
        server.stdin.close()


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path], ask: Ask) -> dict[str, Path]:
    """Folders to start from: `photos` alone, with a `store`, with what was `chosen` from it, with it `packed`."""
    top = tmp_path_factory.mktemp("crashes")
    made = {"photos": top / "photos"}
    write_photos(made["photos"] / "photos", [(36, 48), (48, 36), (40, 40)])
    write_photos(made["photos"] / "more", [(37, 48), (36, 50)], seed=7)
    write_photos(made["photos"] / "bench", [(36, 36)], seed=9)
    (made["photos"] / "study.toml").write_text(STUDY)
    work = top / "work"
    shutil.copytree(made["photos"], work)
    steps = {
        "store": [INGEST],
        "chosen": [SCORE, SELECT, [*SELECT[:-1], "tenth.parquet", "--keep", "0.1"]],
        "wide": [WIDE, ["select", "wide", "random", "--keep", "1", "-o", "wide.parquet"]],
        "trained": [FULL],
        "packed": [PACK, [*INGEST[:1], "more", *INGEST[2:]], SCORE],
    }
    for name, commands in steps.items():
        ask(do="make", work=work, commands=commands)
        made[name] = top / name
        shutil.copytree(work, made[name])
    return made


def in_parts(words: list[str]) -> list[list[str]]:
    return [[*words, "--part", f"{number}/2"] for number in (1, 2)]


EXPORTS = {
    to: ("chosen", [["export", "half.parquet", "out", "--to", to]]) for to in ("basicsr", "hf", "lmdb", "webdataset")
}
SCENES = {
    "ingest": ("photos", [INGEST]),
    "ingest more": ("store", [[*INGEST[:1], "photos", "more", *INGEST[2:]]]),
    "ingest in parts": ("photos", in_parts(INGEST)),
    "duplicates, leaks": ("store", [["duplicates", "store"], ["leaks", "store", "bench"]]),
    "leaks, forget": ("store", [["leaks", "store", "photos"], ["leaks", "store", "--forget", "photos"]]),
    "score": ("store", [SCORE]),
    "score in parts": ("store", in_parts(SCORE)),
    "select": ("chosen", [[*SELECT[:-1], "new/of it.parquet"]]),
    "sql, diff": (
        "chosen",
        [
            ["sql", "store", "select * from scores order by all", "--format", "parquet", "-o", "answers/all.parquet"],
            ["diff", "half.parquet", "tenth.parquet", "-o", "answers/diff.parquet"],
        ],
    ),
    "report": ("chosen", [["report", "half.parquet", "-o", "page/report.html", "--png", "page/png"]]),
    "pack": ("chosen", [PACK]),
    "pack again": ("packed", [PACK]),
    "pack in parts": ("chosen", in_parts(PACK)),
    "write distilled": ("chosen", [DISTILLED]),
    **{f"export to {to}": scene for to, scene in EXPORTS.items()},
    "train": ("chosen", [[*TRAIN, *STEPS]]),
    "nas dlsr": ("wide", [SEARCH]),
    "drc": ("trained", [DRC]),
    "drc, by rules": ("trained", [RULES]),
    "drc slim": ("trained", [SLIM]),
    "run": ("photos", [["run", "study.toml", "out", "photos", "--test", "bench"]]),
}

LONG = (
    "nas dlsr",
    "drc",
    "drc, by rules",
    "report",
    "run",
    "train",
    "train, other options",
)  # which only the slow tests take


def crash(ask: Ask, starts: dict[str, Path], scene: str, **options: Any) -> Any:
    start, commands = SCENES[scene]
    work = starts["photos"].with_name("work")
    return ask(do="crash", start=starts[start], work=work, commands=commands, **options)


def told(name: str, found: Mapping[str, Any]) -> None:
    counts = {key: len(value) if isinstance(value, list) else value for key, value in found.items()}
    print(name, counts)  # noqa: T201 - with -s: how many kills there were is the result


@pytest.mark.parametrize("scene", [name for name in SCENES if name not in LONG])
def test_killed_at_some_of_its_steps_and_run_again(ask: Ask, starts: dict[str, Path], scene: str) -> None:
    found = crash(ask, starts, scene, hows=("kill", "some"), most=2)
    told(scene, found)
    assert found["wrong"] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scene", SCENES)
def test_killed_at_every_step_and_run_again(ask: Ask, starts: dict[str, Path], scene: str) -> None:
    found = crash(ask, starts, scene, hows=HOWS)
    told(scene, found)
    assert found["wrong"] == []


# --- what the machinery would notice ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blind", "hows"),
    [
        ("sync", ["names"]),  # a record, and of what it names the names alone
        ("sync folder", ["some"]),  # a record, and not all that it names
        ("sync folder", ["cut"]),  # what was finished is gone
    ],
)
def test_a_sync_that_is_left_out_is_noticed(ask: Ask, starts: dict[str, Path], blind: str, hows: list[str]) -> None:
    assert crash(ask, starts, "ingest", hows=hows, most=8, blind=[blind])["wrong"] != []


# --- two at a time ----------------------------------------------------------------------------------------------------

MORE = [*INGEST[:1], "photos", "more", *INGEST[2:]]
WIDER = [*INGEST[:3], "--patch", "36", "--step", "36", "--shard-size", "1"]
# name -> what they start from, the one that is stopped at each step, the one that runs meanwhile
MEETINGS: dict[str, tuple[str, list[list[str]], list[list[str]]]] = {
    "ingest, ingest": ("photos", [INGEST], [INGEST]),
    "ingest, the same part": ("photos", in_parts(INGEST)[:1], in_parts(INGEST)[:1]),
    "ingest, the other part": ("photos", in_parts(INGEST)[:1], in_parts(INGEST)[1:]),
    "ingest, score": ("store", [MORE], [SCORE]),
    "score, score": ("store", [SCORE], [SCORE]),
    "score, the same part": ("store", in_parts(SCORE)[:1], in_parts(SCORE)[:1]),
    "score, the other part": ("store", in_parts(SCORE)[:1], in_parts(SCORE)[1:]),
    "score, ingest": ("store", [SCORE], [MORE]),
    "select, select": ("chosen", [SELECT], [SELECT]),
    "pack, pack": ("chosen", [PACK], [PACK]),
    "write distilled, write distilled": ("chosen", [DISTILLED], [DISTILLED]),
    "pack, the other part": ("chosen", in_parts(PACK)[:1], in_parts(PACK)[1:]),
    "export, export": ("chosen", EXPORTS["basicsr"][1], EXPORTS["basicsr"][1]),
    "train, train": ("chosen", [[*TRAIN, *STEPS]], [[*TRAIN, *STEPS]]),
    "drc, drc": ("trained", [RULES], [RULES]),
    "run, run": ("photos", *2 * (SCENES["run"][1],)),
}
# as above, but the two want different things, so that one of them is refused, or comes first
RIVALS: dict[str, tuple[str, list[list[str]], list[list[str]]]] = {
    "ingest, another grid": ("photos", [INGEST], [WIDER]),
    "pack, another manifest": ("chosen", [PACK], [[PACK[0], "tenth.parquet", *PACK[2:]]]),
    "write distilled, another manifest": ("chosen", [DISTILLED], [[DISTILLED[0], "tenth.parquet", "made"]]),
    "export, another target": ("chosen", EXPORTS["basicsr"][1], EXPORTS["webdataset"][1]),
    "select, another choice": ("chosen", [SELECT], [[*SELECT, "--keep", "0.1"]]),
    "train, other options": ("chosen", [[*TRAIN, *STEPS]], [[*TRAIN, *STEPS, "--rate", "0.01"]]),
}
WAITS = 0.3  # seconds after which one that waits for the other is taken to wait


def meet(ask: Ask, starts: dict[str, Path], name: str, **options: Any) -> Any:
    start, commands, others = (MEETINGS | RIVALS)[name]
    work, same = starts["photos"].with_name("work"), name in MEETINGS
    what = {"start": starts[start], "work": work, "commands": commands, "others": others, "same": same}
    found = ask(do="meet", seconds=WAITS, **what, **options)
    told(name, found | {"ends": {end: found["ends"].count(end) for end in found["ends"]}})
    return found


FAST = ["ingest, ingest", "score, the other part", "pack, pack", *(name for name in RIVALS if name not in LONG)]


@pytest.mark.parametrize("name", FAST)
def test_two_at_a_time_do_no_harm(ask: Ask, starts: dict[str, Path], name: str) -> None:
    assert meet(ask, starts, name, most=2)["wrong"] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", MEETINGS | RIVALS)
def test_two_at_a_time_do_no_harm_wherever_they_meet(ask: Ask, starts: dict[str, Path], name: str) -> None:
    assert meet(ask, starts, name)["wrong"] == []


# --- killed from outside ----------------------------------------------------------------------------------------------

COMMANDS = [  # one after the other, all that there is to do
    *in_parts(INGEST),
    MORE,
    ["duplicates", "store"],
    ["leaks", "store", "bench"],
    ["leaks", "store", "--forget", "bench"],
    SCORE,
    SELECT,
    PACK,
    *EXPORTS["webdataset"][1],
    SCENES["sql, diff"][1][0],
    ["report", "half.parquet", "-o", "page/report.html"],
    [*TRAIN, *STEPS],
    *SCENES["run"][1],
]


def start(words: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    """The command, as a group of processes of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", "from curate.cli import entry; entry()", *words]
    with (folder.parent / "said").open("wb") as said:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said, start_new_session=True)


def names(folder: Path) -> set[str]:
    return {f"{top}/{name}" for top, folders, files in os.walk(folder) for name in (*folders, *files)}


def begun(process: "subprocess.Popen[bytes]", folder: Path, before: set[str]) -> bool:
    """Wait until a command makes its first file, or ends without one."""
    while names(folder) == before and process.poll() is None:
        time.sleep(0.002)
    return process.poll() is None


def finish(words: list[str], folder: Path) -> tuple[float, float]:
    """Run a command to its end; how many seconds that took, and how many from its first file on."""
    before, started = names(folder), time.monotonic()
    process = start(words, folder)
    begun(process, folder, before)
    first = time.monotonic()
    assert process.wait(300) == 0, (folder.parent / "said").read_text()
    return time.monotonic() - started, time.monotonic() - first


def kill_at_random(
    words: list[str], folder: Path, seconds: tuple[float, float], lots: random.Random, most: int
) -> Counter[str]:
    """Start a command again and again, and kill it each time somewhere before its usual end; then let it finish.

    Most of a short command's time is its start: one of three kills comes at any moment, two after its first file. By
    turns its group of processes is killed, and its first process alone. Returns what came of the tries: `killed`,
    and whether that was while it was `starting`, before it had changed anything, or `working`; `ended` before.
    """
    tries: Counter[str] = Counter()
    untouched = shutil.copytree(folder, folder.parent / "untouched")
    for turn in range(most):
        before, there = tree(folder), names(folder)
        process = start(words, folder)
        if turn % 3:
            begun(process, folder, there)
        try:
            code = process.wait(seconds[turn % 3 > 0] * lots.random())
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL) if turn % 2 else process.kill()
            code = process.wait()
        assert code in (0, -signal.SIGKILL), (folder.parent / "said").read_text()
        tries["ended" if code == 0 else "killed"] += 1
        if code:
            tries["starting" if tree(folder) == before else "working"] += 1
        else:  # another time from the beginning
            shutil.rmtree(folder)
            shutil.copytree(untouched, folder)
    shutil.rmtree(untouched)
    finish(words, folder)
    return tries


def killed_from_outside(commands: list[list[str]], begin: Path, folder: Path, most: int, seed: int) -> Counter[str]:
    """Each command killed up to so many times; what is there after each must be what an unkilled one leaves."""
    shutil.copytree(begin, folder / "whole" / "work")
    shutil.copytree(begin, folder / "killed" / "work")
    tries: Counter[str] = Counter()
    lots = random.Random(seed)
    for words in commands:
        seconds = finish(words, folder / "whole" / "work")
        found = kill_at_random(words, folder / "killed" / "work", seconds, lots, most)
        told(" ".join(words[:2]), found)
        tries += found
        assert differences(tree(folder / "killed" / "work"), tree(folder / "whole" / "work")) == [], words
    return tries


@pytest.mark.slow
def test_killed_at_random_and_run_again(starts: dict[str, Path], tmp_path: Path) -> None:
    tries = killed_from_outside([INGEST, SCORE], starts["photos"], tmp_path, most=2, seed=1)
    assert tries["killed"] >= 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_verb_killed_at_random_and_run_again(starts: dict[str, Path], tmp_path: Path) -> None:
    tries = killed_from_outside(COMMANDS, starts["photos"], tmp_path, most=14, seed=2)
    told("all", tries)
    assert tries["killed"] >= 100
