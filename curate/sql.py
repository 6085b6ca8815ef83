"""Read-only SQL over named Parquet files: DuckDB with every door to the outside closed.

A query is one SELECT (or FROM, WITH, VALUES, DESCRIBE, SUMMARIZE). It sees the views it is given and can read no other
file, write none, load no extension and change no setting. DuckDB itself keeps it from other files; but a file that may
be read may also be written, by a COPY within a SELECT or by SQL within a string, and so `check` looks for both.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import duckdb

from curate.errors import CurateError, UsageError, listed, one_line

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "FORMATS",
    "Format",
    "Lists",
    "batches",
    "casts",
    "check",
    "connect",
    "head",
    "identifier",
    "narrow",
    "number",
    "parquet",
    "query_error",
    "reader",
    "statements",
    "text",
    "watching",
    "write",
]

Format = Literal["csv", "json", "parquet"]
FORMATS: tuple[Format, ...] = ("csv", "json", "parquet")

_WATCH_SECONDS = 0.25
_SHOWN = 200  # characters of a query that is too long to be repeated in a message
_LONG = 1000  # characters of a line of DuckDB's, which may have all of a query in it
_BATCH_ROWS = 65_536  # rows in memory at a time while an answer is streamed
_MANY = 100  # files of a list, from which on it pays to plan a query twice
_TABLE_FUNCTIONS = ("generate_series", "range", "unnest")  # others read files, run SQL in strings or change DuckDB
# Values that Python gets from DuckDB as it would by way of Arrow, which takes longer to import than most answers take.
_PLAIN = {"VARCHAR", "BOOLEAN", "FLOAT", "DOUBLE"} | {
    f"{sign}{size}INT" for sign in ("", "U") for size in ("TINY", "SMALL", "BIG", "HUGE")
}
_PLAIN |= {"INTEGER", "UINTEGER"}
_SETTINGS = {
    "temp_directory": "''",  # it could be read and written: by default `.tmp` where curate was started
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    # What these do for files that are far costs more than half of what it takes to read a small one that is here.
    "enable_external_file_cache": "false",
    "parquet_metadata_cache": "false",
    "disable_parquet_prefetching": "true",
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "enable_progress_bar": "false",  # DuckDB takes `python -c` and notebooks for somebody who looks on
    "lock_configuration": "true",  # the last
}


_WILD = re.compile(r"([*?\[])")
_NO_COLUMN = re.compile("Binder Error: (Referenced column|Cannot extract field|.*does not have a column named)")
_NOT_THE_QUERY = ("IO Error", "Out of Memory Error")  # how DuckDB begins


def identifier(name: str) -> str:
    """`name` quoted as an SQL identifier. UsageError for one that is not UTF-8, as a file's name may be."""
    _check_utf8(name)
    return '"' + name.replace('"', '""') + '"'


def casts(columns: Mapping[str, str]) -> str:
    """Expressions for columns (name -> SQL type), for a view. Where they have these types, it costs nothing."""
    return ", ".join(f"CAST({identifier(name)} AS {kind}) AS {identifier(name)}" for name, kind in columns.items())


def parquet(files: Sequence[str | Path], columns: str = "*", *, beside: Sequence[str] = (), **options: bool) -> str:
    """A SELECT over Parquet files, for a view. `options` go to read_parquet; `beside` is for `Lists` alone."""
    paths = ", ".join(text(_literal(file)) for file in files)
    return _read(f"[{paths}]", columns, options)


def _read(paths: str, columns: str, options: Mapping[str, bool]) -> str:
    options = {"hive_partitioning": False, **options}  # a folder called `split=train` is no column
    extra = "".join(f", {key}={str(value).lower()}" for key, value in options.items())
    return f"SELECT {columns} FROM read_parquet({paths}{extra})"


class Lists:
    """The lists of files that the views of a connection read, as variables.

    Thousands of paths in the text of a view are parsed and looked at again by every view and query: of small files that
    takes as long as reading them.
    """

    def __init__(self) -> None:
        self.variables: dict[str, list[str]] = {}  # name -> patterns
        self.beside: dict[str, list[str]] = {}  # name -> columns of files that only these are wanted of

    def parquet(
        self, files: Sequence[str | Path], columns: str = "*", *, beside: Sequence[str] = (), **options: bool
    ) -> str:
        """`parquet`, for a view of the connection that has these lists.

        `beside`: the columns that are wanted of files which add none and take away none of the rows of the view. A
        query that names none of these columns need not read them: see `narrow`.
        """
        name = f"files_{len(self.variables)}"
        self.variables[name] = [_literal(file) for file in files]
        if beside and len(files) >= _MANY:
            self.beside[name] = list(beside)
        return _read(f"getvariable('{name}')", columns, options)


def connect(
    views: Mapping[str, str | pa.Table],
    files: Iterable[str | Path],
    *,
    lists: Lists | None = None,
    memory: str | None = None,
    threads: int | None = None,
    spill: Path | None = None,
    watched: bool = False,
) -> duckdb.DuckDBPyConnection:
    """A connection with `views` (name -> SELECT, or a table in memory) that can reach `files` and nothing else.

    `lists` are those that the views were made with, if they were.
    It takes about `memory` (`1GB`; DuckDB's own limit is 80 % of the machine's) and `threads` (all), and puts what goes
    beyond that memory into the folder `spill`, a private one; without one a query that needs more is refused, and
    nothing is ever written to a disk. Of a `watched` one `watching` tells how far it is.

    Raises UsageError if a view cannot be made (two names that differ by case alone, a file that is not Parquet), and
    for an amount of memory or a number of threads that is none; CurateError for a file that is gone.
    """
    allowed = list(dict.fromkeys(path for file in files for path in (str(file), _literal(file))))
    variables = {} if lists is None else lists.variables
    for paths in (allowed, *variables.values()):
        _check_utf8("\n".join(paths))
    connection = duckdb.connect(":memory:")
    try:
        for name, paths in variables.items():
            connection.execute(f"SET VARIABLE {name} = ?", [paths])
        if lists is not None and lists.beside:
            connection.execute("SET VARIABLE beside = ?", [json.dumps(lists.beside)])
            for name in lists.beside:
                connection.execute(f"SET VARIABLE all_{name} = getvariable('{name}')")
        for name, source in views.items():
            if isinstance(source, str):
                connection.execute(f"CREATE VIEW {identifier(name)} AS {source}")
            else:
                connection.register(name, source)
        if memory is not None:
            connection.execute(f"SET memory_limit={text(memory)}")
        if threads is not None:
            connection.execute(f"SET threads={threads}")
    except duckdb.Error as error:
        raise query_error(error) from None
    connection.execute("SET allowed_paths = ?", [allowed])
    spilling = {} if spill is None else {"temp_directory": text(str(spill))}
    seen = {"enable_progress_bar": "true", "enable_progress_bar_print": "false"} if watched else {}
    for name, value in (seen | _SETTINGS | spilling | seen).items():
        connection.execute(f"SET {name}={value}")
    return connection


def narrow(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """Have what stands beside a view's rows read only where a query, or one that wants no more, needs it.

    DuckDB would open all files of a scorer to see that it has a row for each patch, which is known. Of a scorer whose
    columns are not in its plan it gets the first file alone, for the types of these columns.
    """
    ((beside,),) = connection.execute("SELECT getvariable('beside')").fetchall()
    if beside is None:
        return
    lists: dict[str, list[str]] = json.loads(beside)
    for name in lists:
        connection.execute(f"SET VARIABLE {name} = getvariable('all_{name}')")
    try:
        plan = "".join(text for _, text in connection.execute(f"EXPLAIN (FORMAT json) {query}").fetchall())
    except (duckdb.ProgrammingError, duckdb.DataError):
        return  # of a wrong query, which says itself what is wrong
    for name, columns in lists.items():
        if not any(json.dumps(column)[1:-1] in plan for column in columns):
            connection.execute(f"SET VARIABLE {name} = getvariable('all_{name}')[:1]")


@contextlib.contextmanager
def watching(connection: duckdb.DuckDBPyConnection, tell: Callable[[float], None]) -> Iterator[None]:
    """Tell four times a second which share of a query, 0 to 1, a `watched` connection has done, as far as it knows."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_WATCH_SECONDS):
            done = connection.query_progress()  # in percent; -1 between queries
            if done >= 0:
                tell(min(done / 100, 1.0))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def text(value: str) -> str:
    """`value` quoted as an SQL string. UsageError for one that is not UTF-8."""
    _check_utf8(value)
    return "'" + value.replace("'", "''") + "'"


def number(value: float) -> str:
    """A finite float64 in SQL, to the last bit."""
    return f"CAST('{value!r}' AS DOUBLE)"


def _check_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"SQL takes UTF-8 alone, found '{one_line(text)}'") from None


def _literal(file: str | Path) -> str:
    """A path as a pattern that matches this path alone."""
    return _WILD.sub(r"[\1]", str(file))


def check(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """UsageError if a SELECT holds anything that writes, or calls a table function that is not for queries here."""
    _check_utf8(query)
    ((parsed,),) = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
    try:
        tree = json.loads(parsed)
    except RecursionError:
        raise UsageError(f"the query is nested too deeply: '{_shown(query)}'") from None
    if tree["error"]:
        raise UsageError(f"SQL: {one_line(tree['error_message'])}: '{_shown(query)}'")
    for node in _nodes(tree):
        if str(node.get("type")).endswith("_QUERY_NODE"):  # COPY, INSERT, UPDATE, ... as a common table expression
            found = node["type"].removesuffix("_QUERY_NODE")
            raise UsageError(f"a query can only read; found {found}: '{_shown(query)}'")
        function = node["function"]["function_name"] if node.get("type") == "TABLE_FUNCTION" else None
        if function is not None and function.lower() not in _TABLE_FUNCTIONS:
            known = listed(_TABLE_FUNCTIONS)
            raise UsageError(f"the table function '{one_line(function)}' is not for queries here; there are: {known}")


def _shown(query: str) -> str:
    """A query as a message repeats it."""
    return one_line(query if len(query) <= _SHOWN else f"{query[:_SHOWN]} ...")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object in parsed JSON."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
        waiting += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def reader(connection: duckdb.DuckDBPyConnection, query: str) -> pa.RecordBatchReader:
    """Run one SELECT and stream its answer; of two columns with one name the second is called `name_1`.

    Raises UsageError with DuckDB's own first line for a query it refuses, at once or while the answer is read.
    """
    import pyarrow as pa

    with _refusing(connection):
        answer = _by_arrow(_answer(connection, query))
    return pa.RecordBatchReader.from_batches(answer.schema, batches(answer))


def statements(connection: duckdb.DuckDBPyConnection, script: str) -> list[str]:
    """The statements of a script, each as it stands there; whether they are queries is not looked at.

    Raises UsageError for one that DuckDB cannot parse, before any of them has been run.
    """
    _check_utf8(script)
    with _refusing(connection):
        return [statement.query for statement in connection.extract_statements(script)]


def head(
    connection: duckdb.DuckDBPyConnection, query: str, limit: int
) -> tuple[list[str], list[tuple[object, ...]], bool]:
    """The names of the columns and the first `limit` rows of an answer, and whether there are more.

    Raises UsageError as `reader`.
    """
    with _refusing(connection):
        answer = _answer(connection, query).limit(limit + 1)
        if all(str(kind) in _PLAIN for kind in answer.types):
            rows = answer.fetchall()
        else:
            stream = batches(_by_arrow(answer))
            rows = [row for batch in stream for row in zip(*map(_values, batch.columns), strict=True)]
    return answer.columns, rows[:limit], len(rows) > limit


def _answer(connection: duckdb.DuckDBPyConnection, query: str) -> duckdb.DuckDBPyRelation:
    """One SELECT, checked and not run yet."""
    _check_utf8(query)
    body = _body(query)
    statements = connection.extract_statements(body)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        found = ", ".join(statement.type.name for statement in statements) or "nothing"
        hint = " (PIVOT should name its values: ON name IN (...))" if "MULTI" in found else ""
        raise UsageError(f"a query should be one SELECT; found {found}{hint}: '{_shown(query)}'")
    check(connection, body)
    narrow(connection, body)
    return connection.sql(body).project("*")


def _body(query: str) -> str:
    """A query without the `;` and the comments at its end: DuckDB makes a subquery of it as it stands."""
    data = query.encode()
    end = len(data)
    for start, kind in reversed(duckdb.tokenize(query)):
        if kind != duckdb.token_type.comment and data[start : start + 1] != b";":
            break
        end = start
    return data[:end].decode()


def _by_arrow(answer: duckdb.DuckDBPyRelation) -> pa.RecordBatchReader:
    import pyarrow as pa

    try:
        return answer.to_arrow_reader(_BATCH_ROWS)
    except pa.ArrowException as error:  # of types that it does not have
        raise query_error(error) from None


@contextlib.contextmanager
def _refusing(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """DuckDB's errors as `query_error`."""
    try:
        yield
    except duckdb.Error as error:
        raise query_error(error, connection) from None


def batches(answer: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """The batches of DuckDB's answer. An error that it meets on the way comes through Arrow, as one of Arrow's."""
    import pyarrow as pa

    while True:
        try:
            batch = answer.read_next_batch()
        except StopIteration:
            return
        except (pa.ArrowException, OSError) as error:
            raise query_error(error) from None
        yield batch


def query_error(error: Exception, connection: duckdb.DuckDBPyConnection | None = None) -> CurateError:
    """DuckDB's complaint as one line: its first line, and what there is instead, if it or `connection` says so.

    A UsageError, but for what the disk or the memory did.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any(lines[0].startswith(kind) or f": {kind}" in lines[0] for kind in _NOT_THE_QUERY):
        hint = "; allow more memory, or make room where it spills to (TMPDIR)" if "offload" in lines[0] else ""
        return CurateError(one_line(f"SQL: {lines[0]}{hint}"))
    lines = [line if len(line) <= _LONG else f"{line[:_LONG]} ..." for line in lines]
    hints = [line for line in lines[1:] if line.startswith(("Did you mean", "Candidate", "LINE"))]
    if connection is not None and lines[0].startswith("Catalog Error: Table with name"):
        there = listed(name for (name,) in connection.sql("SHOW TABLES").fetchall())
        hints = [f"there are: {there}; a manifest is one with -m FILE.parquet"]
    if _NO_COLUMN.match(lines[0]):
        hints.append('the columns of a view: curate sql STORE "DESCRIBE scores"')
    return UsageError(one_line("SQL: " + "; ".join(lines[:1] + hints)))


def write(batches: pa.RecordBatchReader, output: BinaryIO, form: Format) -> int:
    """Stream an answer as CSV (with a header), JSON (one array, an object a line) or Parquet; returns the rows."""
    if form == "parquet":
        return _write_parquet(batches, output)
    return _write_csv(batches, _Utf8(output)) if form == "csv" else _write_json(batches, _Utf8(output))


def _values(column: pa.Array) -> list[Any]:
    """Python values; dates and times as text, since Arrow's go further than Python's."""
    import pyarrow as pa

    is_time = pa.types.is_temporal(column.type) and not pa.types.is_interval(column.type)
    return list((column.cast(pa.string()) if is_time else column).to_pylist())


class _Utf8:
    """A text sink over bytes, for csv and json."""

    def __init__(self, output: BinaryIO) -> None:
        self.output = output

    def write(self, text: str) -> None:
        self.output.write(text.encode())


def _write_csv(batches: pa.RecordBatchReader, sink: _Utf8) -> int:
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(batches.schema.names)
    rows = 0
    for batch in batches:
        writer.writerows(zip(*map(_cells, batch.columns), strict=True))
        rows += batch.num_rows
    return rows


def _cells(column: pa.Array) -> list[Any]:
    """Values for CSV: lists and structs as JSON."""
    import pyarrow as pa

    values = _values(column)
    if not pa.types.is_nested(column.type):
        return values
    return [value if value is None else _json(_finite(value)) for value in values]


def _write_json(batches: pa.RecordBatchReader, sink: _Utf8) -> int:
    names, rows = batches.schema.names, 0
    for batch in batches:
        columns = (_finite(_values(column)) for column in batch.columns)
        lines = [_json(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]
        if lines:
            sink.write(("[\n" if rows == 0 else ",\n") + ",\n".join(lines))
        rows += len(lines)
    sink.write("\n]\n" if rows else "[]\n")
    return rows


_json = json.JSONEncoder(default=str, ensure_ascii=False, allow_nan=False).encode


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _write_parquet(batches: pa.RecordBatchReader, output: BinaryIO) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 0
    try:
        with pq.ParquetWriter(output, batches.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
                rows += batch.num_rows
    except pa.ArrowNotImplementedError as error:
        raise UsageError(one_line(f"Parquet cannot hold this answer, CAST it to VARCHAR: {error}")) from None
    return rows
