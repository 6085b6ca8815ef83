"""Read-only SQL over named Parquet files: DuckDB with every door to the outside closed.

A query is one SELECT (or FROM, WITH, VALUES, DESCRIBE, SUMMARIZE). It sees the views it is given and can read no other
file, write none, load no extension and change no setting.
"""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import UsageError, one_line

__all__ = ["FORMATS", "Format", "connect", "head", "identifier", "parquet", "query_error", "reader", "write"]

Format = Literal["csv", "json", "parquet"]
FORMATS: tuple[Format, ...] = ("csv", "json", "parquet")

_BATCH_ROWS = 65_536  # rows in memory at a time while an answer is streamed


def identifier(name: str) -> str:
    """`name` quoted as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def parquet(files: Sequence[Path], columns: str = "*", **options: bool) -> str:
    """A SELECT over Parquet files, for a view. `options` go to read_parquet."""
    listed = ", ".join("'" + str(file).replace("'", "''") + "'" for file in files)
    extra = "".join(f", {key}={str(value).lower()}" for key, value in options.items())
    return f"SELECT {columns} FROM read_parquet([{listed}]{extra})"


def connect(views: Mapping[str, str | pa.Table], files: Iterable[Path]) -> duckdb.DuckDBPyConnection:
    """A connection with `views` (name -> SELECT, or a table in memory) that can reach `files` and nothing else."""
    connection = duckdb.connect(":memory:")
    for name, source in views.items():
        if isinstance(source, str):
            connection.execute(f"CREATE VIEW {identifier(name)} AS {source}")
        else:
            connection.register(name, source)
    allowed = ", ".join("'" + str(file).replace("'", "''") + "'" for file in files)
    connection.execute(f"SET allowed_paths=[{allowed}]")
    connection.execute("SET enable_external_access=false")
    connection.execute("SET python_enable_replacements=false")
    connection.execute("SET lock_configuration=true")
    return connection


def reader(connection: duckdb.DuckDBPyConnection, query: str) -> pa.RecordBatchReader:
    """Run one SELECT and stream its answer. Raises UsageError with DuckDB's own first line for a query it refuses."""
    try:
        statements = connection.extract_statements(query)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            found = ", ".join(statement.type.name for statement in statements) or "nothing"
            raise UsageError(f"a query should be one SELECT; found {found}: '{one_line(query)}'")
        return connection.sql(query).to_arrow_reader(_BATCH_ROWS)
    except duckdb.Error as error:
        raise query_error(error) from None


def query_error(error: duckdb.Error) -> UsageError:
    """DuckDB's complaint as one line: its first line, and the candidates that it suggests."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hints = [line for line in lines[1:] if line.startswith(("Did you mean", "Candidate", "LINE"))]
    return UsageError(one_line("SQL: " + "; ".join(lines[:1] + hints)))


def head(batches: pa.RecordBatchReader, limit: int) -> tuple[list[tuple[object, ...]], bool]:
    """The first `limit` rows of an answer, and whether there are more."""
    rows: list[tuple[object, ...]] = []
    try:
        for batch in batches:
            rows += zip(*(column.to_pylist() for column in batch.columns), strict=True)
            if len(rows) > limit:
                break
    except duckdb.Error as error:
        raise query_error(error) from None
    return rows[:limit], len(rows) > limit


def write(batches: pa.RecordBatchReader, output: BinaryIO, form: Format) -> int:
    """Stream an answer as CSV (with a header), JSON (one array, an object a line) or Parquet; returns the rows."""
    try:
        if form == "parquet":
            return _write_parquet(batches, output)
        return _write_csv(batches, _Utf8(output)) if form == "csv" else _write_json(batches, _Utf8(output))
    except duckdb.Error as error:
        raise query_error(error) from None


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
        writer.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))
        rows += batch.num_rows
    return rows


def _write_json(batches: pa.RecordBatchReader, sink: _Utf8) -> int:
    rows = 0
    for batch in batches:
        for row in batch.to_pylist():
            sink.write(("[\n" if rows == 0 else ",\n") + json.dumps(_finite(row), default=str, ensure_ascii=False))
            rows += 1
    sink.write("\n]\n" if rows else "[]\n")
    return rows


def _finite(row: dict[str, object]) -> dict[str, object]:
    """JSON has no NaN and no infinity: they become null."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def _write_parquet(batches: pa.RecordBatchReader, output: BinaryIO) -> int:
    rows = 0
    with pq.ParquetWriter(output, batches.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows
