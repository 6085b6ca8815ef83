"""Ctrl-C, SIGTERM and SIGHUP: one line that says how to go on, 128 and the signal's number, nothing left behind."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from verbs import FAST, VERBS, Work, every, make, results
from warm import Child, Ended, Fault, Kind, Warm

from curate import pool

KINDS: tuple[Kind, ...] = ("mkdir", "create", "fsync", "rename", "read", "remove")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(scope="module")
def work(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Work:
    return make(warm, tmp_path_factory.mktemp("stopping"))


@pytest.fixture
def out(work: Work) -> Path:
    return work.folder / "out"


def check(child: Child, ended: Ended, number: signal.Signals) -> None:
    """How a command ends that is stopped."""
    kept = r"(what is finished is kept|step \d+ of \d+ is saved|\d+ of \d+ maps are chosen)"
    assert ended.code == 128 + number, ended
    assert re.fullmatch(f"curate: stopped by {number.name}; {kept}, and the same command goes on", ended.line()), ended
    assert child.left() == []


def stop(work: Work, verb: str, out: Path, fault: Fault) -> bool:
    """Stop a verb where a call is made, and give it again; whether it was stopped, and not done before."""
    good, number = work.expected(verb, out), signal.Signals(fault.signal)
    work.prepare(verb, out)
    child = work.warm.start(*work.argv(verb, out), below=out, faults=[fault])
    ended = child.end()
    if ended.code:
        check(child, ended, number)
        left = results(work.warm.tree(out))
        if verb != "export, files":  # whose threads write: what they were at stays, and goes at the next run
            assert [name for name in left if ".tmp" in name or ".partial" in name] == []
        whole = [name for name in left if not name.endswith(("state.safetensors", ".tmp"))]
        assert [name for name in whole if left[name] != good.get(name)] == []
    again = work.warm.run(*work.argv(verb, out))
    assert again.code == 0, again
    assert results(work.warm.tree(out)) == good
    return ended.code != 0


@pytest.mark.parametrize(("verb", "number"), [*zip(FAST, SIGNALS * 3, strict=False)])
def test_a_verb_that_is_stopped_in_its_midst_goes_on(work: Work, out: Path, verb: str, number: int) -> None:
    counts = work.calls(verb, out)
    assert stop(work, verb, out, Fault("rename", counts["rename"] // 2, signal=number))


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.timeout(1800)
def test_a_verb_that_is_stopped_at_any_call_goes_on(work: Work, out: Path, verb: str) -> None:
    counts = work.calls(verb, out)
    faults = [Fault(kind, at, signal=SIGNALS[at % 3]) for kind in KINDS for at in every(verb, counts[kind])]
    stopped = [stop(work, verb, out, fault) for fault in faults]
    sys.stderr.write(f"{verb}: {len(faults)} signals, {sum(stopped)} of them before its end\n")
    assert sum(stopped) >= len(faults) // 2


def test_more_signals_while_it_stops_change_nothing(work: Work, out: Path) -> None:
    """The second comes while the temporary file is removed; the first such file was the new store.json's."""
    work.prepare("ingest", out)
    faults = [Fault("rename", 5, signal=signal.SIGINT), Fault("remove", 1, signal=signal.SIGTERM)]
    child = work.warm.start(*work.argv("ingest", out), below=out, faults=faults)
    ended = child.end()
    assert ("remove", ended.calls[-1][1]) == ended.calls[-1] and ".tmp" in ended.calls[-1][1]
    check(child, ended, signal.SIGINT)
    assert [name for name in work.warm.tree(out) if ".tmp" in name] == []


def test_what_hangs_while_it_stops_is_cut_off(work: Work, out: Path) -> None:
    good = work.expected("pack", out)
    work.prepare("pack", out)
    faults = [Fault("rename", 5, signal=signal.SIGTERM), Fault("remove", 1, seconds=60)]
    started = time.monotonic()
    child = work.warm.start(*work.argv("pack", out), below=out, faults=faults, grace=0.3)
    check(child, child.end(), signal.SIGTERM)
    assert time.monotonic() - started < 20
    assert work.warm.run(*work.argv("pack", out)).code == 0
    assert work.warm.tree(out) == good


@pytest.mark.parametrize(
    "argv",
    [
        ("sql", "{store}", "select * from range(1000000000000)", "--format", "csv", "-o", "{out}/a.csv"),
        ("sql", "{store}", "select count(*) from range(1000000000000)"),
        (
            "select",
            "{store}",
            "des",
            "--by",
            "sobel",
            "--where",
            "(from range(1000000000000) select sum(range + x)) > 0",
        ),
    ],
)
def test_what_duckdb_is_at_is_left(work: Work, out: Path, argv: tuple[str, ...]) -> None:
    """It takes the signal for an interruption of the query, or does not look."""
    work.prepare("select", out)
    places = {"store": work.folder / "store", "out": out}
    more = ("-o", out / "a.parquet") if argv[0] == "select" else ()
    child = work.warm.start(*(argument.format(**places) for argument in argv), *more, grace=0.5)
    time.sleep(1)
    os.killpg(child.pid, signal.SIGINT)
    check(child, child.end(), signal.SIGINT)
    assert work.warm.tree(out) == {}


def test_a_large_photograph_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "workers", lambda: 2)
    end, started = threading.Event(), time.monotonic()

    def slow(number: int) -> int:
        if number:
            end.wait(30)
        return number

    results = pool.ahead(slow, range(9))
    assert next(results) == 0
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert time.monotonic() - started < 10
    end.set()


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """`nohup` and a shell's `&` want it; of other programs' handlers none is taken away."""
    program = """
import os, signal
from curate import stopping
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGTERM, lambda *_: print("mine", flush=True))
stopping.listen()
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
    os.kill(os.getpid(), number)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.stdout == "mine\n" and ended.returncode == 1 and "Stopped" in ended.stderr


def test_a_library_that_takes_sigterm_for_itself_does_not_keep_it(tmp_path: Path) -> None:
    """As Ray does when it starts: its handler is `sys.exit`."""
    program = """
import os, signal, sys
from curate import stopping
stopping.listen()
try:
    with stopping.kept():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
        if sys.argv[1] == "during":
            os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
except stopping.Stopped:
    os._exit(stopping.code())
"""
    for when in ("during", "after"):
        command = [sys.executable, "-c", program, when]
        assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 143


def test_ctrl_c_before_the_first_call_of_a_command(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from curate import cli
cli.app = lambda: os.kill(os.getpid(), signal.SIGINT)
cli.entry()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 130 and ended.stderr.startswith("curate: stopped by SIGINT") and ended.stdout == ""
