"""History: kept in order, bounded, for its owner alone; a place that is no good costs the history and one line."""

import json
import os
import stat
from pathlib import Path

import pytest

from curate import history
from curate.history import History

TEXTS = ["select 1;", "select 'a\nb',\n'\x1b[31m\udce9';", '\\ "quoted" é 😀;', ".tables"]


def test_what_is_added_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "sql_history"
    first = History(path)
    assert first.entries == [] and first.trouble is None
    for text in TEXTS:
        first.add(text)
        first.add(text)  # twice in a row is once
    again = History(path)
    assert again.entries == first.entries == TEXTS and again.trouble is None
    assert len(path.read_bytes().splitlines()) == len(TEXTS)


def test_it_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "sql_history"
    History(path).add("select 'secret'")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    History(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    path.write_text("none\n" + path.read_text())  # and so it is written anew
    History(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_several_write_at_a_time(tmp_path: Path) -> None:
    one, other = History(tmp_path / "h"), History(tmp_path / "h")
    for i in range(10):
        (one, other)[i % 2].add(f"select {i};")
    assert History(tmp_path / "h").entries == [f"select {i};" for i in range(10)]


def test_the_newest_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_ENTRIES", 5)
    for i in range(12):
        History(tmp_path / "h").add(f"select {i};")
    assert History(tmp_path / "h").entries == [f"select {i};" for i in range(7, 12)]
    assert len((tmp_path / "h").read_bytes().splitlines()) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["h"]


def test_of_a_file_of_any_length_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_BYTES", 100)
    path = tmp_path / "h"
    path.write_text("".join(json.dumps(f"select {i:03};") + "\n" for i in range(100)))
    opened = History(path)
    assert opened.entries == [f"select {i:03};" for i in range(93, 100)] and opened.trouble is None
    assert path.stat().st_size <= 100
    with path.open("wb") as sparse:
        sparse.truncate(1 << 40)
    assert History(path).entries == [] and path.stat().st_size == 0


def test_lines_that_are_none_are_said_once(tmp_path: Path) -> None:
    path = tmp_path / "h"
    path.write_bytes(b'"a"\n\x00\xff\n{}\n' + b"[" * 100_000 + b'\n12\n"b"\n"cut of')
    opened = History(path)
    assert opened.entries == ["a", "b"]
    assert (
        opened.trouble is not None
        and opened.trouble.startswith("5 lines of the history '")
        and opened.trouble.isprintable()
    )
    opened.add("c")
    again = History(path)
    assert again.entries == ["a", "b", "c"] and again.trouble is None


def test_a_place_that_is_no_good_costs_the_history_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder\n").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("file/h", "folder\n", "pipe", "x" * 300):
        opened = History(tmp_path / name)
        opened.add("select 1;")
        assert opened.entries == [] and opened.trouble is not None
        assert opened.trouble.startswith("no history: '") and opened.trouble.isprintable()
    assert History(Path("/dev/null")).trouble == "no history: '/dev/null': not a file"


def test_a_place_that_goes_bad_on_the_way(tmp_path: Path) -> None:
    opened = History(tmp_path / "h" / "h")
    opened.add("select 1;")
    (tmp_path / "h" / "h").unlink()
    (tmp_path / "h" / "h").mkdir()
    opened.add("select 2;")
    assert opened.trouble is not None and "Is a directory" in opened.trouble
    opened.add("select 3;")


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CURATE_HISTORY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    monkeypatch.setenv("HOME", "/me")
    assert history.place() == Path("/state/curate/sql_history")
    for ignored in ("relative", ""):
        monkeypatch.setenv("XDG_STATE_HOME", ignored)
        assert history.place() == Path("/me/.local/state/curate/sql_history")
    monkeypatch.setenv("CURATE_HISTORY", "/mine")
    assert history.place() == Path("/mine")
    monkeypatch.setenv("CURATE_HISTORY", "")
    assert history.place() is None
    kept = History(None)
    kept.add("select 1;")
    assert kept.entries == [] and kept.trouble is None
