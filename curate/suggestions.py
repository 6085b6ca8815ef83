"""What may come next in an SQL text that is being typed, and whether it is a whole query yet.

Texts are cut into tokens by DuckDB's own tokenizer, so that a string, a comment or a quoted name is what DuckDB will
take it for. Nothing here knows of a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import duckdb

from curate.sql import identifier

__all__ = ["Kind", "Names", "Suggestion", "finished", "names", "suggestions"]

Kind = Literal["table", "column", "function", "keyword"]

# What a SELECT is written with; DuckDB has five times as many.
_KEYWORDS = """\
select from where group order limit having with join left using on and or not in is null as by all distinct
between like ilike case when then else end desc asc union except intersect exists filter over partition qualify
cast values describe summarize show tables exclude replace offset inner outer cross right full nulls first last
pivot unpivot sample true false interval date timestamp recursive any rows range unbounded preceding following
"""
_BEFORE_A_TABLE = {"from", "join", "describe", "summarize", "desc"}
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # a name that needs no quotes, unless it is a word of SQL's own
_WORD = re.compile(r"(?<!\w)[^\W\d]\w*$")
_ENDED = re.compile(r"""[\w"']$""")  # a number or something quoted, which nothing continues
_ELSEWHERE = " zz"  # a word put after a text: it is one of its own unless the text ends in something open


@dataclass(frozen=True)
class Names:
    """What a connection knows: columns by table, in order; functions; words that are no names unless quoted."""

    tables: Mapping[str, Sequence[str]]
    functions: Sequence[str] = ()
    reserved: frozenset[str] = frozenset()


class Suggestion(NamedTuple):
    """`text` in place of the last `replaces` characters before the cursor; `name` is for the person."""

    text: str
    replaces: int
    name: str
    kind: Kind


class _Token(NamedTuple):
    start: int  # byte
    kind: duckdb.token_type
    text: str


def names(connection: duckdb.DuckDBPyConnection) -> Names:
    """The names that queries of a connection may use."""
    tables: dict[str, list[str]] = {}
    columns = (
        "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal ORDER BY table_name, column_index"
    )
    for table, column in connection.execute(columns).fetchall():
        tables.setdefault(table, []).append(column)
    functions = connection.execute(
        "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type IN ('aggregate', 'macro', 'scalar') "
        "AND regexp_full_match(function_name, '[a-z][a-z0-9_]*') ORDER BY ALL"
    ).fetchall()
    reserved = connection.execute("SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category = 'reserved'")
    words = frozenset(word for (word,) in reserved.fetchall())
    return Names(tables, [name for (name,) in functions], words)


def finished(text: str) -> bool:
    """Whether a text ends in a `;` that is part of no string, comment or name."""
    tokens = _tokens(text)
    inside = _open(text)
    if inside and not inside.text.startswith("--"):
        return False
    written = [token.text for token in tokens if token.kind != duckdb.token_type.comment]
    return written[-1:] == [";"]


def suggestions(before: str, known: Names, after: str = "") -> list[Suggestion]:
    """What may follow `before`, the text up to the cursor, likeliest first; `after` is the text beyond it.

    Nothing within a string or a comment. Columns of the tables that the query names come before others. Names that
    begin as the word at the cursor does come before those that only have it somewhere.
    """
    inside = _open(before)
    if inside is None:
        word = match[0] if (match := _WORD.search(before)) else ""
        if not word and _ENDED.search(before):
            return []
    elif inside.text.startswith('"'):
        word = before.encode(errors="replace")[inside.start :].decode()
    else:
        return []
    head = _tokens(before[: len(before) - len(word)])
    head = head[_last_end(head) :]
    tail = _tokens(after)
    query = head + tail[: next((i for i, token in enumerate(tail) if token.text == ";"), len(tail))]
    tables, named = _scope(query, known.tables)
    found = _fitting(head, word, known, tables, named)
    return list(_matching(found, word, known.reserved))


def _fitting(
    head: Sequence[_Token],
    word: str,
    known: Names,
    tables: Mapping[str, Sequence[str]],
    named: Mapping[str, Sequence[str]],
) -> Iterator[tuple[str, Kind]]:
    """All that may stand after `head`, whatever its first letters."""
    before = head[-1].text.lower() if head else ""
    if before == "." and len(head) > 1:
        for column in named.get(_name(head[-2]), ()):
            yield column, "column"
        return
    if before == "as":  # a new name
        return
    if before in _BEFORE_A_TABLE:
        for table in tables:
            yield table, "table"
        if before in ("from", "join"):
            return
    every = dict.fromkeys(column for columns in known.tables.values() for column in columns)
    scope = dict.fromkeys(column for columns in named.values() for column in columns)
    if head and not named:
        scope = every
    for column in scope:
        yield column, "column"
    if not word.startswith('"'):
        for keyword in _KEYWORDS.split():
            yield keyword, "keyword"
    if before not in _BEFORE_A_TABLE:
        for table in tables:
            yield table, "table"
    for column in every:
        if column not in scope:
            yield column, "column"
    if word and not word.startswith('"'):
        for function in known.functions:
            yield function, "function"


def _matching(found: Iterable[tuple[str, Kind]], word: str, reserved: frozenset[str]) -> Iterator[Suggestion]:
    """Those that `word`, which may be a quoted name's beginning, is part of; as they are to be written."""
    sought = word.removeprefix('"').replace('""', '"').lower()
    later: list[Suggestion] = []
    for name, kind in found:
        is_name = kind in ("table", "column")
        text = name
        if is_name and (word.startswith('"') or not _PLAIN.fullmatch(name) or name.lower() in reserved):
            text = identifier(name)
        elif kind == "keyword" and word.isupper():
            text = name.upper()
        elif kind == "function":
            text = f"{name}("
        suggestion = Suggestion(text, len(word), name, kind)
        if name.lower().startswith(sought):
            yield suggestion
        elif is_name and sought in name.lower():
            later.append(suggestion)
    yield from later


def _scope(
    query: Sequence[_Token], tables: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Sequence[str]], dict[str, Sequence[str]]]:
    """The tables that there are in a query, its own WITH included, and columns by the names and aliases it gives."""
    columns = {name.lower(): fields for name, fields in tables.items()}
    texts = [token.text.lower() for token in query]
    own = [
        _name(token)
        for i, token in enumerate(query[:-2])
        if i and texts[i - 1] in ("with", "recursive", ",") and texts[i + 1 : i + 3] == ["as", "("]
    ]
    named: dict[str, Sequence[str]] = {}
    for i, token in enumerate(query):
        if token.kind not in (duckdb.token_type.identifier, duckdb.token_type.keyword) or _name(token) not in columns:
            continue
        fields = named[_name(token)] = columns[_name(token)]
        alias = i + 1 + (texts[i + 1 : i + 2] == ["as"])
        if alias < len(query) and query[alias].kind == duckdb.token_type.identifier:
            named[_name(query[alias])] = fields
    return {**tables, **dict.fromkeys(own, ())}, named


def _name(token: _Token) -> str:
    """A token as the name that DuckDB compares: without quotes, in small letters."""
    text = token.text
    return (text[1:-1].replace('""', '"') if text.startswith('"') else text).lower()


def _last_end(tokens: Sequence[_Token]) -> int:
    """Where the tokens of the last query begin."""
    return max((i + 1 for i, token in enumerate(tokens) if token.text == ";"), default=0)


def _tokens(text: str) -> list[_Token]:
    data = text.encode(errors="replace")
    found = duckdb.tokenize(data.decode())
    spans = pairwise([*(start for start, _ in found), len(data)])
    return [
        _Token(start, kind, data[start:end].decode().strip())
        for (start, end), (_, kind) in zip(spans, found, strict=True)
    ]


def _open(text: str) -> _Token | None:
    """The string, comment or quoted name in which a text ends."""
    last = _tokens(text + _ELSEWHERE)[-1]
    return None if last.text == _ELSEWHERE.strip() else last
