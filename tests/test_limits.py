"""A question ends in time and within its memory, whatever it asks, with one line and without a trace on the disk."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from curate import limits
from curate.errors import UsageError
from curate.store import Store


class Answer(NamedTuple):
    """What a process said, and how long it took."""

    code: int
    out: str
    err: str
    seconds: float


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, write_store: Callable[..., Store]) -> Path:
    folder = tmp_path_factory.mktemp("limits") / "store"
    write_store(folder, scores={"sobel": [float(i) for i in range(12)]})
    return folder


@pytest.fixture
def ask(store: Path) -> Callable[..., Answer]:
    def answer(query: str, *options: str) -> Answer:
        program = (
            f"import sys; sys.argv[1:] = {['sql', str(store), query, *options]}; from curate.cli import entry; entry()"
        )
        began = time.monotonic()
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
        return Answer(ended.returncode, ended.stdout, ended.stderr, time.monotonic() - began)

    return answer


def test_without_limits_nothing_is_watched() -> None:
    limits.memory(None)
    with limits.time(None, lambda: None):
        time.sleep(0.01)


def test_what_is_done_in_time_is_left_alone() -> None:
    interrupts: list[int] = []
    with limits.time(60, lambda: interrupts.append(1)):
        pass
    with pytest.raises(UsageError, match="another reason"), limits.time(60, lambda: interrupts.append(1)):
        raise UsageError("another reason")
    assert interrupts == []


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_time_that_is_none(seconds: float) -> None:
    with pytest.raises(UsageError, match="--timeout should be seconds above 0"), limits.time(seconds, lambda: None):
        pass


@pytest.mark.parametrize(
    "query",
    [
        "select count(*) from range(1000000000000)",  # an interrupt ends these
        "with recursive r as (select 1 i union all select i + 1 from r) select count(*) from r",
        "select levenshtein(repeat('a', 1000000), repeat('b', 1000000))",  # and does not end this
    ],
)
def test_a_query_without_an_end_is_stopped(ask: Callable[..., Answer], store: Path, query: str) -> None:
    before = sorted(store.rglob("*"))
    answer = ask(query, "--timeout", "0.5", "--threads", "1")
    assert answer.code == 2 and answer.out == ""
    assert answer.err == "curate: the query took longer than 0.5 s and was stopped; --timeout SECONDS gives it longer\n"
    assert answer.seconds < 30 and sorted(store.rglob("*")) == before


@pytest.mark.parametrize(
    "query",
    [
        "select list(range) from range(300000000)",
        "select count(*) from (select hash(range) h, count(*) from range(300000000) group by h)",
        "select range from range(300000000) order by hash(range)",
        "select length(repeat('a', 4000000000))",  # which DuckDB's own limit does not count
        "select string_agg(repeat('x', 100000), '') from range(40000)",
    ],
)
def test_a_query_that_takes_all_memory_is_refused(ask: Callable[..., Answer], store: Path, query: str) -> None:
    before = sorted(store.rglob("*"))
    answer = ask(
        query, "--memory", "100MB", "--threads", "1", "--timeout", "40", "-o", str(store / "x"), "--format", "csv"
    )
    assert answer.code in (1, 2) and answer.out == ""
    assert answer.err.startswith("curate: SQL: Out of Memory Error") and answer.err.count("\n") == 1
    assert sorted(store.rglob("*")) == before


def test_within_its_limits_a_query_is_answered(ask: Callable[..., Answer]) -> None:
    answer = ask("select count(*) as n from scores", "--memory", "100MB", "--threads", "1", "--timeout", "60")
    assert (answer.code, answer.out.split(), answer.err) == (0, ["n", "12"], "")


@pytest.mark.parametrize(
    ("option", "value", "part"),
    [
        ("--memory", "much", "--memory should be"),
        ("--timeout", "0", "--timeout should be"),
        ("--threads", "0", "threads"),
    ],
)
def test_limits_that_are_none(ask: Callable[..., Answer], option: str, value: str, part: str) -> None:
    answer = ask("select 1", option, value)
    assert answer.code == 2 and part in answer.err and answer.out == ""
