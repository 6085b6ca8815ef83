"""Windows, shares and rank correlations, against what counting by hand gives."""

import numpy as np
import pytest
from scipy import stats

from curate.reporting.ranks import Window, correlation, descending, share_by_rank, window

NAN = float("nan")


def mask(*rows: int, of: int) -> np.ndarray:
    found = np.zeros(of, bool)
    found[list(rows)] = True
    return found


def test_the_highest_comes_first_and_equals_in_the_order_of_rows() -> None:
    score = np.array([1.0, 3.0, NAN, 3.0, 2.0, 9.0])
    assert descending(score, mask(0, 1, 2, 3, 4, of=6)).tolist() == [1, 3, 4, 0]


def test_a_window_is_where_the_chosen_lie() -> None:
    score = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    order = descending(score, np.ones(5, bool))
    found = window(score, order, mask(1, 2, of=5))
    assert found == Window(candidates=5, chosen=2, first=1, last=2, gaps=0, low=3.0, high=4.0)
    assert found.unbroken
    broken = window(score, order, mask(0, 3, of=5))
    assert broken is not None and (broken.gaps, broken.unbroken) == (2, False)
    assert window(score, order, np.zeros(5, bool)) is None


def test_equal_scores_at_an_end_are_no_gap() -> None:
    """`asc` takes equal scores by patch_id, smallest first, and so not from the end of the descending order."""
    score = np.array([2.0, 1.0, 1.0, 1.0])
    found = window(score, descending(score, np.ones(4, bool)), mask(1, 2, of=4))
    assert found is not None and found.unbroken


def test_shares_are_of_stretches_about_equal() -> None:
    order = np.arange(10)
    edges, shares = share_by_rank(mask(0, 9, of=10), order, 5)
    assert (edges.tolist(), shares.tolist()) == ([0, 2, 4, 6, 8, 10], [0.5, 0.0, 0.0, 0.0, 0.5])
    edges, shares = share_by_rank(mask(0, of=2), np.arange(2), 100)
    assert (edges.tolist(), shares.tolist()) == ([0, 1, 2], [1.0, 0.0])
    assert [len(part) for part in share_by_rank(np.zeros(0, bool), np.arange(0), 100)] == [1, 0]


@pytest.mark.parametrize("of", [7, 99, 100, 101, 426, 1000])
@pytest.mark.parametrize("bins", [5, 100])
def test_stretches_hold_every_rank_once_and_the_chosen_end_at_their_edges(of: int, bins: int) -> None:
    first, last = of // 20, int(0.549 * of)
    edges, shares = share_by_rank(mask(*range(first, last + 1), of=of), np.arange(of), bins)
    assert (edges[0], edges[-1]) == (0, of) and len(edges) <= bins + 3
    assert (shares * np.diff(edges)).sum() == pytest.approx(last + 1 - first)
    taken = np.flatnonzero(shares)
    assert (edges[taken[0]], edges[taken[-1] + 1]) == (first, last + 1) and set(shares[taken]) == {1.0}


def test_the_correlation_is_spearman_s_with_ties_at_their_mean_rank() -> None:
    rng = np.random.default_rng(3)
    one = rng.integers(0, 20, 300).astype(float)
    other = one + rng.integers(0, 20, 300)
    assert correlation(one, other) == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-12)
    assert correlation(one, -one) == pytest.approx(-1)


@pytest.mark.parametrize("other", [[1.0, 1.0, 1.0, 1.0], [NAN, NAN, 1.0, 2.0]])
def test_there_is_no_correlation_of_constants_or_of_too_few(other: list[float]) -> None:
    assert correlation(np.array([1.0, 2.0, 3.0, 4.0]), np.array(other)) is None
