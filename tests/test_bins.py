"""Bins hold every number once, and a log axis is only for positive numbers that are far apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.bins import Spread, tally

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.0, -0.0, 0.25, 5e-324, -1.7e308, 1.7e308]
)


@given(st.lists(numbers, min_size=1, max_size=60), st.integers(1, 20))
@settings(deadline=None, max_examples=200, derandomize=True)
def test_every_number_is_counted_once(values: list[float], bins: int) -> None:
    spread = Spread.of(np.array(values))
    edges = spread.edges(bins)
    counts, below = tally(np.array(values), edges)
    assert len(edges) == bins + 1 and np.isfinite(edges).all() and (edges[1:] >= edges[:-1]).all()
    assert counts.sum() + below == len(values) and (counts >= 0).all()
    assert below == sum(value < edges[0] for value in values) and (spread.wide or below == 0)


@pytest.mark.parametrize("values", [np.geomspace(1e-6, 1, 999), np.linspace(-3, 7, 999), np.array([0.5])])
def test_counts_are_numpy_s(values: np.ndarray) -> None:
    edges = Spread.of(values).edges(17)
    inside = values[values >= edges[0]]
    assert (tally(values, edges)[0] == np.histogram(inside, edges)[0]).all()
    assert edges[-1] >= values.max()


def test_the_last_bin_has_its_upper_edge_and_all_above_it() -> None:
    counts, below = tally(np.array([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 2.0]))
    assert counts.tolist() == [2, 3] and below == 1


@pytest.mark.parametrize("extra", [[-1.0] * 60, [0.0] * 60])
def test_zeros_and_negatives_refuse_a_log_axis(extra: list[float]) -> None:
    values = np.geomspace(1e-9, 1e9, 1000)
    assert Spread.of(values).wide
    assert Spread.of(np.append(values, extra[:50])).wide  # few of them are left out
    assert not Spread.of(np.append(values, extra)).wide


def test_a_score_that_is_the_same_everywhere_has_bins() -> None:
    for value in (0.0, 0.25, -3.0, 1e20, np.finfo(np.float64).max):
        spread = Spread.of(np.full(5, value))
        assert not spread.wide and tally(np.full(5, value), spread.edges(4))[0].sum() == 5


def test_a_log_axis_does_not_begin_at_a_few_numbers_of_nearly_nothing() -> None:
    values = np.append(np.geomspace(1e-3, 1, 999), 1e-30)
    edges = Spread.of(values).edges(10)
    assert 1e-6 < edges[0] < 1e-3 and tally(values, edges)[1] == 1
