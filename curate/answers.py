"""Answers to `curate sql`: a table for people, or CSV, JSON or Parquet, streamed to standard output or into a file."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from curate import display, limits, sql, storage
from curate.errors import UsageError, one_line

if TYPE_CHECKING:
    import duckdb

__all__ = ["Answers", "asked"]

_TABLE_ROWS = 1000  # of an answer that are drawn; other forms stream without a limit
_SCRIPT = 16 << 20  # bytes of queries on standard input


@dataclass(frozen=True, slots=True)
class Answers:
    """How queries of a `watched` connection are answered. UsageError for a form that `out`, a file, cannot have."""

    connection: duckdb.DuckDBPyConnection
    form: Literal["table", "csv", "json", "parquet"]
    out: str | None = None
    timeout: float | None = None  # seconds that one may take

    def __post_init__(self) -> None:
        if self.out is not None and self.form == "table":
            raise UsageError(
                f"-o should be NAME.csv, .json or .parquet, or go with --format, found '{one_line(self.out)}'"
            )
        limits.check(self.timeout)

    def of(self, query: str, most: int) -> tuple[int, bool]:
        """Give the answer to one query, at most so many rows of a table; how many, and whether there are more."""
        with limits.time(self.timeout, self.connection.interrupt):
            if self.form == "table":
                with self._watched():
                    columns, rows, more = sql.head(self.connection, query, most)
                display.table(columns, rows, whole=True)
                return len(rows), more
            if self.out is not None:
                place = storage.place(self.out, "an answer")
                storage.remove_leftovers_of(place)
                counts: list[int] = []
                with self._watched():
                    found = sql.reader(self.connection, query)
                    storage.publish(place, lambda stream: counts.append(sql.write(found, stream, self.form)))  # type: ignore[arg-type]
                return counts[0], False
            # What is streamed to a terminal shows by itself how far it is.
            with contextlib.nullcontext() if sys.stdout.isatty() else self._watched(), display.named_output():
                found = sql.reader(self.connection, query)
                return sql.write(found, sys.stdout.buffer, self.form), False

    def of_all(self, queries: Sequence[str]) -> None:
        """Give the answers to all, one after the other. UsageError for none, and for several in a form that is one."""
        if not queries:
            raise UsageError("no query: give one, or several on standard input")
        if len(queries) > 1 and self.form != "table":
            raise UsageError(f"--format {self.form} is one answer, found {len(queries)} queries on standard input")
        for index, query in enumerate(queries):
            if index:
                display.answer("")
            _, more = self.of(query, _TABLE_ROWS)
            if more:
                display.note(f"the first {_TABLE_ROWS} rows; --format csv, json or parquet gives them all")

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Progress of what takes longer than a second, as DuckDB estimates it."""
        with (
            display.progress("sql", "%", after=1.0) as progress,
            sql.watching(self.connection, lambda share: progress(round(100 * share), 100)),
        ):
            yield


def asked() -> str:
    """The queries that standard input holds. UsageError for more than any are."""
    data = b"" if sys.stdin is None else sys.stdin.buffer.read(_SCRIPT + 1)
    if len(data) > _SCRIPT:
        raise UsageError(f"standard input should be queries, found more than {_SCRIPT >> 20} MiB")
    return data.decode("utf-8", "surrogateescape")
