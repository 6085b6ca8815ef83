"""Answers in each form; what is refused; progress of what takes long."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from curate import answers, display
from curate.answers import Answers, asked
from curate.errors import UsageError
from curate.progress import Progress
from curate.store import Store


@pytest.fixture
def store(tmp_path: Path, write_store: Callable[..., Store]) -> Store:
    return write_store(tmp_path / "store")


def test_every_form_says_the_same(store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    query = "select name, height from images order by name"
    connection = store.connect(watched=True)
    assert Answers(connection, "table").of(query, 2) == (2, True)
    table = capfd.readouterr().out.splitlines()
    assert [line.split() for line in table] == [["name", "height"], ["0.png", "24"], ["1.png", "24"]]
    assert Answers(connection, "json").of(query, 2) == (3, False)
    rows = json.loads(capfd.readouterr().out)
    assert Answers(connection, "csv", str(tmp_path / "a.csv")).of(query, 2) == (3, False)
    assert capfd.readouterr() == ("", "")
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines == ["name,height", *(f"{row['name']},{row['height']}" for row in rows)]


def test_what_cannot_be_is_refused_before_anything_is_asked(store: Store, tmp_path: Path) -> None:
    connection = store.connect(watched=True)
    with pytest.raises(UsageError, match=r"-o should be NAME\.csv"):
        Answers(connection, "table", str(tmp_path / "a.csv"))
    with pytest.raises(UsageError, match="--timeout"):
        Answers(connection, "table", timeout=-1.0)
    with pytest.raises(UsageError, match="found 2 queries"):
        Answers(connection, "csv").of_all(["select 1", "select 2"])
    with pytest.raises(UsageError, match="no query"):
        Answers(connection, "csv").of_all([])


def test_several_are_answered_in_turn(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    Answers(store.connect(watched=True), "table").of_all(["select 1 as a", "select * from range(1001)"])
    out, err = capfd.readouterr()
    assert out.startswith("a\n1\n\nrange\n") and len(out.splitlines()) == 2 + 1 + 1 + 1000
    assert err.startswith("the first 1000 rows")


def test_a_long_query_tells_how_far_it_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []

    class Shown:
        def __enter__(self) -> Progress:
            return lambda done, total, note="": told.append((done, total))

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(display, "progress", lambda verb, unit, after: Shown())
    monkeypatch.setattr("curate.sql._WATCH_SECONDS", 0.01)
    query = "select count(*) from range(6000) a, range(6000) b where (a.range + b.range) % 7 = 3"
    Answers(store.connect(watched=True), "table").of(query, 1)
    assert told and all(0 <= done <= total == 100 for done, total in told)


def test_queries_on_standard_input_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_SCRIPT", 10)
    for data in (b"select 1", b"0123456789"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert asked() == data.decode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"0123456789a")))
    with pytest.raises(UsageError, match="standard input should be queries"):
        asked()
    monkeypatch.setattr(sys, "stdin", None)
    assert asked() == ""
