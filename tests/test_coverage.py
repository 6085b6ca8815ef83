"""Pixels are counted once however many windows lie over them; a share of them is kept to the last patch that fits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import coverage
from curate.errors import DataError, UsageError
from curate.manifest import Manifest
from curate.selection import candidates, select
from curate.store import Store
from curate.strategies import Picks
from curate.strategies.des import Des

UNITS = (5, 4, 3)  # windows of 24 px, 12 apart in a row: 72, 60 and 48 px long
PIXELS = 24 * (72 + 60 + 48)
SOBEL = [3.0, 1.0, 2.0, 2.5, 5.0, 2.0, 0.5, 4.0, 1.0, 6.0, 2.0, 0.25]
windows = st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.integers(0, 30), st.integers(1, 12))
Write = Callable[..., Store]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, write_store: Write) -> Store:
    return write_store(
        tmp_path_factory.mktemp("coverage") / "store", UNITS, {"sobel": SOBEL, "signed": [-1.0, *SOBEL[1:]]}
    )


def painted(rows: list[dict[str, Any]]) -> int:
    """The pixels under the windows, painted one by one."""
    masks: dict[str, Any] = {}
    for row in rows:
        mask = masks.setdefault(row["image_id"], np.zeros((120, 120), bool))
        mask[row["y"] : row["y"] + row["size"], row["x"] : row["x"] + row["size"]] = True
    return sum(int(mask.sum()) for mask in masks.values())


@given(st.lists(windows, max_size=25))
@settings(deadline=None, max_examples=80, derandomize=True)
def test_pixels_are_those_of_a_painted_mask(given_windows: list[tuple[str, int, int, int]]) -> None:
    rows = [dict(zip(("image_id", "y", "x", "size"), window, strict=True)) for window in given_windows]
    kinds = [("image_id", pa.string()), ("y", pa.int32()), ("x", pa.int32()), ("size", pa.int32())]
    table = pa.Table.from_pylist(rows, pa.schema(kinds))
    assert coverage.pixels(table) == painted(rows)
    assert coverage.pixels(pa.concat_tables([table[:3], table[3:3], table[3:]])) == painted(rows)


@given(st.lists(windows, max_size=25), st.integers(1, 9), st.sampled_from([1, 50, 2**22]), st.sampled_from([0, 2**20]))
@settings(deadline=None, max_examples=80, derandomize=True)
def test_pixels_are_the_same_in_any_portions(
    given_windows: list[tuple[str, int, int, int]], at_once: int, rectangles: int, small: int
) -> None:
    rows = [dict(zip(("image_id", "y", "x", "size"), window, strict=True)) for window in sorted(given_windows)]
    kinds = [("image_id", pa.string()), ("y", pa.int32()), ("x", pa.int32()), ("size", pa.int32())]
    table = pa.Table.from_pylist(rows, pa.schema(kinds))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_AT_ONCE", at_once), ("_RECTANGLES", rectangles), ("_SMALL", small)):
            patch.setattr(coverage, name, value)
        assert coverage.pixels(table) == painted(rows)


def test_many_windows_off_any_grid_take_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand of them have sixteen million rectangles between their edges."""
    rng = np.random.default_rng(0)
    rows = [
        {"image_id": "a", "y": int(y), "x": int(x), "size": int(size)}
        for y, x, size in zip(*rng.integers(0, 3000, (2, 2000)), rng.integers(1, 60, 2000), strict=True)
    ] + [{"image_id": "a", "y": 0, "x": 0, "size": size} for size in range(1, 500)]
    table, largest = pa.Table.from_pylist(rows), 0
    mask = np.zeros((3060, 3060), bool)
    for row in rows:
        mask[row["y"] : row["y"] + row["size"], row["x"] : row["x"] + row["size"]] = True
    bincount = np.bincount

    def watched(x: Any, minlength: int) -> Any:
        nonlocal largest
        largest = max(largest, minlength)
        return bincount(x, minlength=minlength)

    monkeypatch.setattr(np, "bincount", watched)
    for limit in (2**22, 2**12):
        monkeypatch.setattr(coverage, "_RECTANGLES", limit)
        largest = 0
        assert coverage.pixels(table) == mask.sum()
        assert largest <= max(limit, 8 * 2 * len(rows))


def test_windows_further_apart_than_32_bits_can_multiply() -> None:
    kinds = {"y": [0, 2**30], "x": [0, 2**30], "size": [2**20, 2**20]}
    table = pa.table({"image_id": ["a", "a"], **{name: pa.array(v, pa.int32()) for name, v in kinds.items()}})
    assert coverage.pixels(table) == 2 * 2**40


def pixels_of(manifest: Manifest) -> int:
    return painted(manifest.table.to_pylist())


def test_the_store_has_the_pixels_that_it_is_made_of(store: Store) -> None:
    assert coverage.pixels(candidates(store, None)) == PIXELS
    assert pixels_of(select(store, "des", by="sobel", keep=1, unit="pixels")) == PIXELS


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec", ["des", "random", "refined", "stratified", "window:lo=0.1,hi=0.8", "ensemble:by=sobel"]
)
def test_as_many_patches_are_kept_as_fit_and_not_one_more(store: Store, spec: str) -> None:
    most = 11 if spec == "refined" else 12
    every = [select(store, spec, by="sobel", keep=k / 12) for k in range(1, most + 1)]
    for keep in (0.14, 0.3, 0.5, 0.77, 1):
        manifest = select(store, spec, by="sobel", keep=keep, unit="pixels")
        assert manifest.recipe.unit == "pixels" and manifest.recipe.keep == keep
        assert manifest.recipe.counts["pixels"] == pixels_of(manifest) <= keep * PIXELS
        fitting = [found for found in every if pixels_of(found) <= keep * PIXELS]
        longest = max(fitting, key=len)
        assert manifest.table.equals(longest.table)


@pytest.mark.parametrize("keep", [0.1, 0.37, 0.5, 0.9])
def test_of_a_strategy_that_takes_long_three_selections_are_enough(
    tmp_path: Path, write_store: Write, keep: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    once = Des.select

    def counted(self: Des, candidates: pa.Table, budget: int) -> Picks:
        calls.append(budget)
        return once(self, candidates, budget)

    monkeypatch.setattr(Des, "select", counted)
    scores = np.random.default_rng(0).random(600).tolist()
    store = write_store(tmp_path / "store", [200] * 3, {"sobel": scores})
    select(store, "des", by="sobel", keep=keep, unit="pixels")
    assert len(calls) <= 3


def test_half_of_the_pixels_are_more_than_half_of_the_patches_where_these_overlap(store: Store) -> None:
    in_a_row = "name = '0.png'"  # 72 px, in windows of 24
    pixels = select(store, "asc", by="sobel", keep=0.5, unit="pixels", where=in_a_row)
    assert pixels_of(pixels) <= 36 * 24 and pixels.recipe.counts["selected"] == 2
    assert len(select(store, "asc", by="sobel", keep=0.5, where=in_a_row)) == 3


@pytest.mark.parametrize("keep", [0.001, 0.13])
def test_where_not_one_patch_fits_nothing_is_chosen(store: Store, keep: float) -> None:
    assert keep * PIXELS < 24 * 24
    with pytest.raises(UsageError) as refused:
        select(store, "des", by="sobel", keep=keep, unit="pixels")
    assert str(refused.value) == f"nothing to choose: {keep} of the pixels of 12 candidates is 0 patches"


def test_what_is_passed_over_is_not_kept_where_all_the_rest_fits(tmp_path: Path, write_store: Write) -> None:
    """One window an image, so none overlap: half of the pixels are half of the patches, all but those passed over."""
    store = write_store(tmp_path / "store", [1] * 10, {"sobel": [float(i) for i in range(10)]})
    half = select(store, "refined:drop_top=0.5", keep=0.5, unit="pixels")
    assert half.table["score"].to_pylist() == [4.0, 3.0, 2.0, 1.0, 0.0]
    assert half.table.equals(select(store, "refined:drop_top=0.5", keep=0.5).table)
    assert select(store, "refined:drop_top=0.5", keep=1, unit="pixels").table.equals(half.table)


def test_a_strategy_that_refuses_any_number_says_why_itself(store: Store) -> None:
    with pytest.raises(UsageError, match="none of 12 candidates meets sobel>100"):
        select(store, "threshold:conditions=sobel>100", unit="pixels")
    with pytest.raises(UsageError, match="importance draws by scores of 0 or more"):
        select(store, "importance", by="signed", unit="pixels")


def test_a_draw_stays_within_the_pixels_too(store: Store) -> None:
    for seed in range(10):
        manifest = select(store, f"importance:seed={seed}", by="sobel", keep=0.4, unit="pixels")
        assert 0 < pixels_of(manifest) <= 0.4 * PIXELS


def test_other_units_are_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="no unit 'images'; there are: patches, pixels"):
        select(store, "des", by="sobel", unit="images")  # type: ignore[arg-type]


@pytest.mark.parametrize(("y", "x", "size"), [(-1, 0, 5), (0, -(2**31), 5), (0, 0, 0), (0, 0, -5)])
def test_what_is_no_window_is_refused(y: int, x: int, size: int) -> None:
    row = {"image_id": "a", "y": y, "x": x, "size": size}
    with pytest.raises(DataError, match="a window should be inside its image"):
        coverage.pixels(pa.Table.from_pylist([row]))
