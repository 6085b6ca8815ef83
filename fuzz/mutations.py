"""Valid files made wrong: bytes, text, JSON, tables of Parquet. All that is random comes from the `Random` given.

edit(data, rng)      any file: bytes flipped, cut, spliced, repeated; integers replaced by extreme ones
retext(data, rng)    text: the same, and numbers, quotes and separators
rejson(data, rng)    a JSON document: a value somewhere in it is another, of another type, deeply nested, or gone
retable(table, rng)  a table as Parquet: other columns, types, nulls and extreme values, other encodings
"""

import io
import json
import math
import re
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["BIG", "edit", "parquet", "rejson", "retable", "retext"]

INTEGERS = (
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**31 - 1,
    -(2**31),
    2**32 - 1,
    2**53,
    2**63 - 1,
    -(2**63),
)
FLOATS = (0.0, -0.0, 0.5, -1.0, 1e308, -1e308, 5e-324, math.inf, -math.inf, math.nan)
BIG = 2**17  # characters of a long text
TEXTS = (
    "",
    "x",
    "ok",
    "hr",
    "0" * 16,
    "..",
    "../../../etc/passwd",
    "/etc/passwd",
    "a\nb",
    "\x1b[2J",
    "\0",
    "\ud7ff\uffff",
    "名前",
    "'",
    '"',
    "%s{}*?[",
    "1e999",
    "9" * 400,
    "A" * BIG,
)
_LEAST = (b"", b"\0", b"\xff", b"\n", b"0", b"-", b"\xff\xff\xff\xff", b"\0\0\0\0", b"PAR1", b"PK\x03\x04", b"\x89PNG")


def edit(data: bytes, rng: Random) -> bytes:
    """One to four edits."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        rng.choice(_EDITS)(made, rng)
    return bytes(made)


def _place(data: bytearray, rng: Random) -> int:
    """Anywhere, but more often near the two ends, where headers and footers are."""
    size = len(data) + 1
    return rng.choice((rng.randrange(size), rng.randrange(min(size, 64)), size - 1 - rng.randrange(min(size, 512))))


def _stretch(data: bytearray, rng: Random) -> tuple[int, int]:
    start = _place(data, rng)
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, 64, 512)))


def _flip(data: bytearray, rng: Random) -> None:
    for at in {_place(data, rng) for _ in range(rng.randint(1, 8))}:
        if at < len(data):
            data[at] ^= 1 << rng.randrange(8)


def _set(data: bytearray, rng: Random) -> None:
    start, end = _stretch(data, rng)
    data[start:end] = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))]) * (end - start)


def _cut(data: bytearray, rng: Random) -> None:
    del data[_place(data, rng) :]


def _drop(data: bytearray, rng: Random) -> None:
    start, end = _stretch(data, rng)
    del data[start:end]


def _repeat(data: bytearray, rng: Random) -> None:
    start, end = _stretch(data, rng)
    data[end:end] = data[start:end] * rng.choice((1, 2, 50))


def _splice(data: bytearray, rng: Random) -> None:
    start, end = _stretch(data, rng)
    at = _place(data, rng)
    data[at : at + end - start] = data[start:end]


def _insert(data: bytearray, rng: Random) -> None:
    at = _place(data, rng)
    data[at:at] = rng.choice(_LEAST)


def _number(data: bytearray, rng: Random) -> None:
    size, letter = rng.choice(((1, "B"), (2, "H"), (4, "I"), (8, "Q")))
    number = rng.choice(INTEGERS) % 2 ** (8 * size)
    at = _place(data, rng)
    data[at : at + size] = struct.pack(rng.choice("<>") + letter, number)


_EDITS: Sequence[Callable[[bytearray, Random], None]] = (
    _flip,
    _flip,
    _set,
    _cut,
    _drop,
    _repeat,
    _splice,
    _insert,
    _number,
    _number,
)


def retext(data: bytes, rng: Random) -> bytes:
    """Numbers, words and separators of a text replaced; now and then its bytes edited too."""
    if rng.randrange(4) == 0:
        return edit(data, rng)
    text = data.decode("utf-8", "surrogateescape")
    for _ in range(rng.randint(1, 3)):
        tokens = list(re.finditer(r"-?\d+(?:\.\d+)?|\w+|[^\w\s]", text))
        if not tokens:
            return edit(data, rng)
        token = rng.choice(tokens)
        new = str(rng.choice((rng.choice(INTEGERS), rng.choice(FLOATS), rng.choice(TEXTS), rng.choice(tokens)[0], "")))
        start, end = token.span() if rng.randrange(3) else (token.end(), token.end())
        text = text[:start] + new + text[end:]
    return text.encode("utf-8", "surrogateescape")


def rejson(data: bytes, rng: Random) -> bytes:
    """A value somewhere in a document replaced, or a key gone, new or renamed; now and then its text edited instead."""
    if rng.randrange(4) == 0:
        return retext(data, rng)
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return edit(data, rng)
    places: list[tuple[Any, Any]] = [([tree], 0)]
    for holder, key in places:  # it grows
        value = holder[key]
        if len(places) < 1000:
            places += [(value, inner) for inner in (value if isinstance(value, dict) else ())]
            places += [(value, inner) for inner in (range(len(value)) if isinstance(value, list) else ())]
    holder, key = rng.choice(places)
    change = rng.randrange(6)
    if change == 0 and isinstance(holder, dict):
        del holder[key]
    elif change == 1 and isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = holder[key]
    else:
        holder[key] = _value(holder[key], rng)
    try:
        # Surrogates and NaN stay as Python writes them: not all parsers take them.
        return json.dumps(places[0][0][0], ensure_ascii=bool(rng.randrange(2))).encode("utf-8", "surrogatepass")
    except RecursionError:  # it was as deep as can be read, and is deeper now
        return edit(data, rng)


def _value(old: Any, rng: Random) -> Any:
    depth = rng.choice((3, 100, 5000))
    return rng.choice(
        (
            rng.choice(INTEGERS),
            rng.choice(INTEGERS),
            rng.choice((2**64, 10**400, -(10**30))),
            rng.choice(FLOATS),
            rng.choice(TEXTS),
            None,
            rng.choice((True, False)),
            [],
            {},
            [old, old],
            {"a": old},
            _Nested(depth).value(),
        )
    )


class _Nested:
    """Lists in lists, no deeper than Python's own encoder goes."""

    def __init__(self, depth: int) -> None:
        self.depth = min(depth, 800)

    def value(self) -> Any:
        made: Any = 1
        for _ in range(self.depth):
            made = [made]
        return made


_KINDS = (
    pa.int8(),
    pa.int64(),
    pa.uint64(),
    pa.float32(),
    pa.float64(),
    pa.string(),
    pa.large_string(),
    pa.binary(),
    pa.bool_(),
    pa.null(),
    pa.timestamp("ns"),
    pa.list_(pa.int32()),
    pa.struct({"a": pa.int32()}),
    pa.dictionary(pa.int32(), pa.string()),
    pa.decimal128(38, 10),
)


def retable(table: pa.Table, rng: Random) -> bytes:
    """Parquet of the table with a few things changed: mostly values, so that it still has the schema."""
    for _ in range(rng.randint(1, 3)):
        table = rng.choice(_TABLE_CHANGES)(table, rng)
    return parquet(
        table,
        row_group_size=rng.choice((None, 1, 3)),
        compression=rng.choice(("zstd", "snappy", "none", "gzip")),
        use_dictionary=bool(rng.randrange(2)),
        data_page_version=rng.choice(("1.0", "2.0")),
        write_statistics=bool(rng.randrange(2)),
    )


def parquet(table: pa.Table, row_group_size: int | None = None, **options: Any) -> bytes:
    """The table with its metadata, but without Arrow's own copy of the schema, as curate writes manifests."""
    output = io.BytesIO()
    with pq.ParquetWriter(output, table.schema, store_schema=False, **options) as writer:
        writer.write_table(table, row_group_size)
        writer.add_key_value_metadata({name.decode(): value for name, value in (table.schema.metadata or {}).items()})
    return output.getvalue()


def _values(table: pa.Table, rng: Random) -> pa.Table:
    """Some values of a column extreme, or of another row."""
    at = rng.randrange(table.num_columns) if table.num_columns else None
    if at is None or not table.num_rows:
        return table
    field, values = table.schema.field(at), table.column(at).to_pylist()
    for _ in range(rng.choice((1, 1, len(values)))):
        values[rng.randrange(len(values))] = _extreme(field.type, values, rng)
    if field.nullable or rng.randrange(4) == 0:
        values[rng.randrange(len(values))] = None
    field = field.with_nullable(field.nullable or None in values)  # Arrow writes no null where none may be
    return table.set_column(at, field, pa.array(values, field.type))


def _extreme(kind: pa.DataType, values: list[Any], rng: Random) -> Any:
    if pa.types.is_integer(kind):
        bits, signed = kind.bit_width, pa.types.is_signed_integer(kind)
        number = rng.choice(INTEGERS) % 2**bits
        return number - 2**bits if signed and number >= 2 ** (bits - 1) else number
    if pa.types.is_floating(kind):
        return rng.choice(FLOATS)
    if pa.types.is_string(kind):
        return rng.choice(TEXTS)
    return rng.choice(values)


def _retyped(table: pa.Table, rng: Random) -> pa.Table:
    if not table.num_columns:
        return table
    at, kind = rng.randrange(table.num_columns), rng.choice(_KINDS)
    name = table.schema.field(at).name
    try:
        column = table.column(at).cast(kind)
    except (pa.ArrowException, ValueError):
        column = pa.nulls(table.num_rows, kind)
    return table.set_column(at, pa.field(name, kind), column)


def _columns(table: pa.Table, rng: Random) -> pa.Table:
    """A column gone, renamed, twice, or elsewhere."""
    if not table.num_columns:
        return table
    at = rng.randrange(table.num_columns)
    change = rng.randrange(4)
    if change == 0:
        return table.remove_column(at)
    if change == 1:
        names = table.column_names
        names[at] = rng.choice((*TEXTS[:-1], *names)).replace("\0", "")
        return table.rename_columns(names)
    field, column = table.schema.field(at), table.column(at)
    moved = table.remove_column(at) if change == 2 else table
    return moved.add_column(rng.randint(0, moved.num_columns), field, column)


def _rows(table: pa.Table, rng: Random) -> pa.Table:
    """No rows, fewer, more, or in another order."""
    order = (
        [rng.randrange(table.num_rows) for _ in range(rng.choice((0, 1, table.num_rows, 300)))] if len(table) else []
    )
    return table.take(pa.array(order, pa.int64()))


def _nullable(table: pa.Table, rng: Random) -> pa.Table:
    """As another tool writes it: every column may hold nulls, and no metadata."""
    fields = [pa.field(field.name, field.type) for field in table.schema]
    return pa.table(table.columns, schema=pa.schema(fields))


_TABLE_CHANGES: Sequence[Callable[[pa.Table, Random], pa.Table]] = (
    _values,
    _values,
    _values,
    _values,
    _rows,
    _columns,
    _retyped,
    _nullable,
)
