"""Between two numbers lie the ranks that were asked for, and the counts say how many lie before."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.histogram import Histogram, keys

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 0.25, 0.1, -1e-310, 5e-324])


@given(st.lists(numbers, min_size=1, max_size=40), st.booleans(), st.data())
@settings(deadline=None, max_examples=100, derandomize=True)
def test_the_ranks_lie_between_the_numbers(values: list[float], descending: bool, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(values) - 1))
    end = data.draw(st.integers(first + 1, len(values)))
    counts = Histogram()
    counts.add(np.array(values[:7]))
    counts.add(np.array(values[7:]))
    low, high, before = counts.band(first, end, descending=descending)
    order = sorted(values, reverse=descending)
    band = [value for value in order if low <= value <= high]
    assert counts.total == len(values)
    assert before == sum(value > high if descending else value < low for value in values) <= first
    assert band[first - before : end - before] == order[first:end]
    rows = data.draw(st.integers(1, 9))
    cuts = counts.cuts(first, end, rows, descending=descending)
    mine = keys(np.array(order[first:end]))
    parts = np.searchsorted(cuts, ~mine if descending else mine, "right")
    assert (np.diff(cuts.astype(object)) > 0).all() and (np.diff(parts) >= 0).all()  # in the order of the ranks
    for part in set(parts.tolist()):
        inside = np.unique(mine[parts == part] >> np.uint64(42), return_counts=True)[1]
        assert inside.sum() - inside.max() <= rows


def test_little_more_than_the_ranks_is_left() -> None:
    values = np.random.default_rng(0).gamma(2.0, 0.05, 100_000)
    counts = Histogram()
    counts.add(values)
    low, high, before = counts.band(5_000, 55_000, descending=True)
    assert 50_000 <= ((low <= values) & (values <= high)).sum() < 50_300 and before > 4_800


@pytest.mark.parametrize("value", [0.0, -2.5, 1e300])
def test_one_number_is_a_band_of_its_own(value: float) -> None:
    counts = Histogram()
    counts.add(np.full(5, value))
    low, high, before = counts.band(2, 4, descending=False)
    assert low <= value <= high and before == 0


@pytest.mark.parametrize("descending", [False, True])
def test_a_number_at_the_edge_of_its_bucket_is_cut_from_the_others(descending: bool) -> None:
    values = np.repeat([0.25, 0.3, 0.5], 9)
    counts = Histogram()
    counts.add(values)
    cuts = counts.cuts(0, 27, 9, descending=descending)
    parts = np.searchsorted(cuts, ~keys(values) if descending else keys(values), "right")
    assert parts.tolist() == np.repeat([2, 1, 0] if descending else [0, 1, 2], 9).tolist()
