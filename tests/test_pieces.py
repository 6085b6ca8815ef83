"""Every row comes once, pieces come in the order of their keys, and none is larger than what may be held."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.pieces import Pieces, Rows, even, lengths

KIND = np.dtype([("first", "<u8"), ("second", "<u8"), ("number", "<i4")])
keys = st.sampled_from([0, 1, 2, 3, 255, 256, 2**32, 2**63, 2**64 - 2, 2**64 - 1]) | st.integers(0, 2**64 - 1)


def made(pairs: list[tuple[int, int]]) -> Rows:
    return np.array([(*pair, number) for number, pair in enumerate(pairs)], KIND)


def by_first(rows: Rows) -> Rows:
    return np.asarray(rows["first"])


def by_second(rows: Rows) -> Rows:
    return np.asarray(rows["second"])


@given(
    pairs=st.lists(st.tuples(keys, st.integers(0, 3)), max_size=60),
    bounds=st.lists(keys, max_size=5, unique=True).map(sorted),
    most=st.integers(1, 70),
    at_once=st.integers(1, 9),
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_pieces_are_all_rows_in_order(
    pairs: list[tuple[int, int]],
    bounds: list[int],
    most: int,
    at_once: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("pieces") / "here"
    pieces = Pieces(folder, [by_first, by_second], np.array(bounds, np.uint64), most)
    rows = made(pairs)
    for start in range(0, len(rows), at_once):
        pieces.add(rows[start : start + at_once])
    found = list(pieces)
    assert sorted(number for piece in found for number in piece["number"].tolist()) == list(range(len(pairs)))
    seen = [list(zip(piece["first"].tolist(), piece["second"].tolist(), strict=True)) for piece in found]
    assert all(max(one) <= min(other) for one, other in pairwise(seen))
    assert all(len(piece) <= max(most, at_once) or len(set(piece)) == 1 for piece in seen)
    assert folder.exists() == (len(pairs) > most and len(pairs) > at_once) and not list(folder.rglob("*"))


def test_a_disk_that_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        name = "spill/0.rows"

        def write(self, data: memoryview) -> int:
            raise OSError(28, "No space left on device")

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    pieces = Pieces(tmp_path, [by_first], even(0, 3, 2), 1)
    monkeypatch.setattr(Path, "open", lambda *_, **__: Full())
    with pytest.raises(OSError, match=r"No space left on device: 'spill/0\.rows'"):
        for number in range(3):
            pieces.add(made([(number, 0)]))


@pytest.mark.parametrize(("low", "high", "parts"), [(0, 2**64 - 1, 256), (5, 6, 256), (7, 7, 3), (0, 9, 1), (3, 12, 4)])
def test_even_ranges_cover_all_keys(low: int, high: int, parts: int) -> None:
    bounds = [low, *even(low, high, parts).tolist(), high + 1]
    sizes = np.diff(np.array(bounds, object)).tolist()
    assert len(sizes) <= parts and min(sizes) > 0 and max(sizes) - min(sizes) <= 1


@given(st.lists(st.integers(0, 9), max_size=9), st.integers(1, 7))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_lengths_are_those_asked_for_and_no_row_is_lost(sizes: list[int], length: int) -> None:
    rows = made([(0, 0)] * sum(sizes))
    found = list(lengths(np.split(rows, np.cumsum(sizes)[:-1]) if sizes else [], length))
    assert [len(piece) for piece in found] == [length] * (sum(sizes) // length) + [sum(sizes) % length] * bool(
        sum(sizes) % length
    )
    assert np.concatenate([*found, rows[:0]])["number"].tolist() == list(range(sum(sizes)))
