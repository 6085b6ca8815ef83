"""Parquet files that anybody may have made, read into memory that their size on disk accounts for.

A few bytes of Parquet can stand for billions of equal rows, or of long strings. Every row of curate's own tables says
something of its own: a row of the emptiest of them takes a byte. What is to be written is put into row groups here too.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate import sql
from curate.errors import UsageError

__all__ = ["batches", "grouped", "read"]

_MAX_ROWS_A_BYTE = 4  # in a file of more than a million rows
_FREE_ROWS = 2**20
_MAX_TEXT = 4096  # bytes of a string, where its column could grow beyond `_FREE_BYTES`
_FREE_BYTES = 2**28
_MEMORY = "1GB"  # for looking at the strings
_BATCH_ROWS = 2**18
_FEW_ROWS = 2**14  # of which reading takes less than telling other threads
_TEXT_ROWS = 2**14  # where each may have such a string


def read(path: Path, columns: Sequence[str] | None = None, *, checked: bool = False, **options: Any) -> pa.Table:
    """The table in a Parquet file, or some of its columns; `options` are those of ParquetFile.

    `checked`: look at the length of strings too.

    Raises what Arrow does, ArrowException or OSError, also for a file of many more rows than bytes.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, **options) as file:
        _check_rows(path, file.metadata)
        if checked:
            _check_strings(path, file.metadata)
        return file.read(columns, use_threads=file.metadata.num_rows > _FEW_ROWS)


def batches(path: Path, columns: Sequence[str], **options: Any) -> Iterator[pa.RecordBatch]:
    """Some columns of a Parquet file, piece by piece, with the checks of `read`. Raises as that does."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, **options) as file:
        _check_rows(path, file.metadata)
        text = _check_strings(path, file.metadata, columns)
        yield from file.iter_batches(min(_BATCH_ROWS, _TEXT_ROWS) if text else _BATCH_ROWS, columns=list(columns))


def grouped(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows, so many at a time, each column in one piece: where pieces end, Parquet would end pages."""
    waiting: list[pa.Table] = []
    for table in tables:
        while (missing := rows - sum(map(len, waiting))) <= len(table):
            waiting, table, group = [], table[missing:], [pa.concat_tables([*waiting, table[:missing]])]
            yield group.pop().combine_chunks()  # and hold it no longer: a million rows are 100 MB
        if len(table):
            waiting.append(table)
        del table
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _check_rows(path: Path, metadata: Any) -> None:
    rows, size = metadata.num_rows, path.stat().st_size
    if rows > max(_FREE_ROWS, _MAX_ROWS_A_BYTE * size):
        raise pa.ArrowInvalid(f"it has {rows} rows in {size} bytes, more than {_MAX_ROWS_A_BYTE} a byte")


def _check_strings(path: Path, metadata: Any, read: Sequence[str] | None = None) -> bool:
    """Whether there are columns of strings; ArrowInvalid for one of long ones.

    DuckDB looks at each of them once, however many rows have it.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    columns = [column for column in columns if read is None or column.path_in_schema in read]
    names = [column.path_in_schema for column in columns if column.physical_type == "BYTE_ARRAY"]
    largest = max((column.total_uncompressed_size for column in columns if column.path_in_schema in names), default=0)
    if metadata.num_rows * largest <= _FREE_BYTES:
        return bool(names)
    longest = ", ".join(f"max(strlen({sql.identifier(name)}))" for name in dict.fromkeys(names))
    connection = sql.connect({"file": sql.parquet([path])}, [path], memory=_MEMORY)
    try:
        (answer,) = sql.reader(connection, f"SELECT greatest({longest}) AS longest FROM file").read_all().to_pylist()
    except UsageError as error:
        raise pa.ArrowInvalid(str(error)) from None
    finally:
        connection.close()
    if (answer["longest"] or 0) > _MAX_TEXT:
        raise pa.ArrowInvalid(f"it has text of {answer['longest']} bytes, more than {_MAX_TEXT}")
    return True
