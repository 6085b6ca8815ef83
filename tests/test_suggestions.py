"""What is suggested at each place of a query, quoted where it must be; and when a text is a whole query."""

import re

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import sql
from curate.suggestions import Names, finished, names, suggestions

HOSTILE = 'a"b\x1b[31m\n; drop'
KNOWN = Names(
    {
        "images": ["image_id", "name", "order"],
        "refined": ["patch_id", "rank"],
        "scores": ["patch_id", "size", "sobel", "srcnn:scale=3", HOSTILE],
    },
    ["abs", "avg", "rank_of"],
    frozenset({"order", "select"}),
)


def texts(before: str, after: str = "", *kinds: str) -> list[str]:
    return [found.text for found in suggestions(before, KNOWN, after) if not kinds or found.kind in kinds]


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("sel", ["select"]),
        ("SEL", ["SELECT"]),
        ("Sel", ["select"]),
        ("select * from ", ["images", "refined", "scores"]),
        ("select * from RE", ["refined"]),
        ("from images join ", ["images", "refined", "scores"]),
        ("describe sc", ["scores"]),
        ("with mine as (from scores) from m", ["mine", "images"]),  # what begins so before what has it within
        ("with a as (select 1), best as (select 2) from be", ["best"]),
        ("select av", ["avg("]),
        ("select srcnn", ['"srcnn:scale=3"']),
        ("select scale", ['"srcnn:scale=3"']),
        ('select "sr', ['"srcnn:scale=3"']),
        ('select "SRCNN:sc', ['"srcnn:scale=3"']),
        ('select "pat', ['"patch_id"']),
        ('select "a""b', ['"a""b\x1b[31m\n; drop"']),
        ("from images where ord", ['"order"', "order"]),  # a word of SQL's own is a name in quotes alone
        ("from scores s where s.", ["patch_id", "size", "sobel", '"srcnn:scale=3"', '"a""b\x1b[31m\n; drop"']),
        ("from scores AS S where s.so", ["sobel"]),
        ('from "scores" where "scores".so', ["sobel"]),
        ('from refined "the best" where "the best".', ["patch_id", "rank"]),
        ("select scores.so", ["sobel"]),
        ("select nobody.", []),
        ("select count(*) as na", []),  # a new name
        ("select 'na", []),
        ("select 'it''s na", []),
        ("select 'a' na", ["name"]),
        ("-- na", []),
        ("select 1 /* na", []),
        ("select 1 /* /* */ na", []),
        ("select $$ na", []),
        ("select e'\\' na", []),
        ("select 1na", []),
        ("select 12", []),
        ("select 'a'", []),
        ("select name_of_nothing", []),
    ],
)
def test_what_is_suggested(before: str, expected: list[str]) -> None:
    found = texts(before)
    assert found[: len(expected)] == expected and bool(found) == bool(expected)


def test_columns_of_the_tables_that_are_named_come_first() -> None:
    for before, after in (("from scores where ", ""), ("select ", " from scores"), ("select ", "\nFROM scores s; x")):
        assert texts(before, after)[:3] == ["patch_id", "size", "sobel"], (before, after)
        assert "name" in texts(before, after, "column")[5:]
    both = texts("select ", " from refined, images i", "column")
    assert both[:5] == ["patch_id", "rank", "image_id", "name", '"order"']


def test_another_query_of_the_text_counts_for_nothing() -> None:
    assert texts("from scores; select ", "; from refined", "column") == texts("select ", "", "column")
    assert texts("from scores s; select s.") == []
    assert texts("select ';' from scores s where s.so") == ["sobel"]


def test_a_suggestion_takes_the_place_of_the_word_alone() -> None:
    for before in ("select so", "from scores s where s.so", 'select "so', "select é, so", "sel", "from "):
        (first, *_) = suggestions(before, KNOWN)
        kept = before[: len(before) - first.replaces]
        assert kept + before[len(kept) :] == before and kept in (
            "select ",
            "from scores s where s.",
            "select é, ",
            "",
            "from ",
        )
        assert (first.text, first.name) != ("", "")


def test_what_is_suggested_is_what_duckdb_reads() -> None:
    connection = duckdb.connect()
    for table, columns in KNOWN.tables.items():
        connection.execute(f"CREATE TABLE {table} ({', '.join(f'{sql.identifier(name)} INT' for name in columns)})")
        for found in suggestions(f"from {table} select {table}.", KNOWN):
            assert connection.sql(f"SELECT {table}.{found.text} FROM {table}").columns == [found.name]


def test_the_names_of_a_connection() -> None:
    connection = sql.connect({"b": 'SELECT 1 AS x, 2 AS "srcnn:scale=3"', "a\nb": 'SELECT 1 AS "\x1b"'}, [])
    known = names(connection)
    assert known.tables == {"a\nb": ["\x1b"], "b": ["x", "srcnn:scale=3"]}
    assert {"avg", "corr", "count", "round", "strftime"} <= set(known.functions)
    assert all(re.fullmatch("[a-z][a-z0-9_]*", name) for name in known.functions)
    assert {"select", "order"} <= known.reserved and "name" not in known.reserved


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("select 1;", True),
        ("select 1; \n", True),
        ("select 1; select 2;", True),
        ("select 1; -- and so on", True),
        ("select 1; /* and */", True),
        (";", True),
        ("select 'é'; ", True),
        ("select ';'", False),
        ("select ';", False),
        ('select ";', False),
        ("select 1 -- ;", False),
        ("select 1; /* ;", False),
        ("select 1 /* /* */ ;", False),
        ("select $$;", False),
        ("select $$;$$;", True),
        ("select 1; select 2", False),
        ("select 1", False),
        ("", False),
        (" \n", False),
        ("-- nothing;", False),
    ],
)
def test_when_a_text_is_a_query(text: str, whole: bool) -> None:
    assert finished(text) is whole


SCRAPS = [
    "select ",
    "from ",
    "scores",
    "s",
    ".",
    ",",
    " as ",
    "'",
    '"',
    "--",
    "\n",
    "/*",
    "*/",
    "$$",
    ";",
    "(",
    "é",
    "\x00",
    "\ud800",
    "😀",
    "with x",
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(SCRAPS)).map("".join) | st.text(), st.lists(st.sampled_from(SCRAPS)).map("".join))
def test_no_text_is_too_strange(before: str, after: str) -> None:
    finished(before + after)
    for found in suggestions(before, KNOWN, after):
        assert 0 <= found.replaces <= len(before)
