"""Rows of numbers say what a table of text says, in the order that the text has."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import coverage, rows, windows
from curate.errors import DataError
from curate.layout import MANIFEST
from curate.strategies import ranked

IDS = ["0123456789abcdef", "0123456789abcdf0", "ffffffffffffffff", "0000000000000000", "a000000000000000"]
corners = st.sampled_from([0, 1, 9, 10, 12, 100, 120, 1200, 2**31 - 1])
# As float32 has them: 29 bits of float64 are 0; and others, which no store has.
scores = st.sampled_from([0.0, -0.0, 0.5, float(np.float32(0.1)), -3.0, 1e30]) | st.floats(-1, 1)
places = st.tuples(st.sampled_from(IDS), corners, corners, st.sampled_from([24, 96, 480]))
tables = st.lists(st.tuples(places, scores), min_size=1, max_size=30, unique_by=lambda row: row[0])


def batch(found: list[tuple[tuple[str, int, int, int], float]], **columns: Any) -> pa.RecordBatch:
    ids, y, x, size = zip(*(place for place, _ in found), strict=True)
    whole = {"image_id": ids, "y": y, "x": x, "size": size, "shard": range(len(ids)), "score": [s for _, s in found]}
    kinds = {field.name: field.type for field in MANIFEST}
    return pa.record_batch({name: pa.array(list(whole[name]), kinds[name]) for name in whole} | columns)


@given(found=tables, descending=st.booleans())
@settings(deadline=None, max_examples=150, derandomize=True)
def test_sorted_rows_are_the_sorted_table(
    found: list[tuple[tuple[str, int, int, int], float]], descending: bool
) -> None:
    table = pa.table(batch(found))
    table = table.append_column("patch_id", pa.array([windows.patch_id(*place) for place, _ in found]))
    expected = table.take(ranked(table, descending=descending))
    made = rows.manifest(rows.ordered(rows.of(batch(found)), descending=descending), 7)
    assert made.schema.equals(MANIFEST)
    assert made.select(table.column_names).to_pydict() == expected.to_pydict()
    assert str(made["score"].to_pylist()) == str(expected["score"].to_pylist())  # -0.0 is not 0.0 there
    assert made["rank"].to_pylist() == list(range(7, 7 + len(found))) and set(made["weight"].to_pylist()) == {1.0}


@given(found=tables)
@settings(deadline=None, max_examples=30, derandomize=True)
def test_pixels_are_those_of_the_table(found: list[tuple[tuple[str, int, int, int], float]]) -> None:
    assert rows.pixels(rows.windows(rows.of(batch(found)))) == coverage.pixels(pa.table(batch(found)))


def test_a_piece_of_a_batch_is_that_piece() -> None:
    whole = batch([((image_id, 0, 12 * number, 24), 0.5) for number in range(3) for image_id in IDS])
    assert rows.of(whole.slice(4, 6)).tolist() == rows.of(whole).tolist()[4:10]


@pytest.mark.parametrize(
    "image_id", ["", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF", "0123456789abcdeg", "é123456789abcde"]
)
def test_an_id_that_no_store_has_is_damage(image_id: str) -> None:
    ids = pa.array([IDS[0], image_id, IDS[1]])
    with pytest.raises(DataError, match=f"an image_id should be 16 hex digits, found '{image_id}'"):
        rows.of(batch([((IDS[0], 0, number, 24), 0.5) for number in range(3)], image_id=ids))
