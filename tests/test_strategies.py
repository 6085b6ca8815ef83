"""Every strategy keeps the contract; those that rank by score choose what design.md says, to the letter."""

from collections import Counter
from decimal import ROUND_FLOOR, Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from curate import plugins
from curate.errors import UsageError
from curate.strategies import Picks, Strategy, ranked, share, stretch
from curate.strategies.refined import Refined

STRATEGIES = plugins.names("strategies")
NEEDS = {"threshold": "threshold:conditions=sobel>=0"}  # those that do nothing without an option
SPECS = [*(NEEDS.get(name, name) for name in STRATEGIES), "refined:drop_top=0.2", "random:seed=7"]
SPECS += ["stratified:per=sobel,order=random", "importance:smooth=0.5", "ensemble:weights=2+1,drop_top=0.2"]
SPECS += ["kcenter:start=seeded", "facility:limit=10,scale=length", "cluster:drop_low=0.2,clusters=3"]
BOUNDED = ("window", "threshold")  # a bound of their own besides the budget: they take what there is within it


def candidates(scores: list[float | None], seed: int = 0) -> pa.Table:
    """A table as `selection.candidates` makes it: patch_ids drawn at random, sorted by them; two scores and vectors."""
    rng = np.random.default_rng(seed)
    ids = sorted(f"{rng.integers(2**63):016x}_0_{x}_24" for x in range(len(scores)))
    zeros = pa.array(np.zeros(len(ids), np.int32))
    columns = {"patch_id": ids, "image_id": [patch_id[:16] for patch_id in ids]}
    columns |= {"y": zeros, "x": zeros, "size": zeros, "shard": zeros, "score": pa.array(scores, pa.float64())}
    columns |= {name: pa.array(rng.integers(5, size=len(ids)), pa.float32()) for name in ("srcnn", "sobel")}
    columns["embedding"] = pa.array(list(rng.integers(3, size=(len(ids), 4))), pa.list_(pa.float32(), 4))
    return pa.table(columns)


def drawn(count: int, kinds: int, seed: int = 0) -> list[float]:
    """`count` scores of which only `kinds` differ: ties, where there are fewer kinds."""
    return np.random.default_rng(seed).integers(kinds, size=count).astype(float).tolist()


def chosen(strategy: Strategy, table: pa.Table, budget: int) -> list[str]:
    """The patch_ids that it picks, in its order."""
    return table.take(pa.array(strategy.select(table, budget).rows))["patch_id"].to_pylist()


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("count", "kinds"), [(1, 1), (2, 1), (7, 3), (60, 60), (61, 5)])
def test_picks_are_distinct_rows_within_the_budget_with_weights_of_mean_one(spec: str, count: int, kinds: int) -> None:
    strategy: Strategy = plugins.parse("strategies", spec)
    table = candidates(drawn(count, kinds))
    for budget in sorted({1, count // 3, count // 2} - {0}):
        picks = strategy.select(table, budget)
        assert picks.rows.dtype == np.int64 and picks.weights.dtype == np.float32
        assert 0 < len(picks.rows) <= budget and len(picks.weights) == len(picks.rows)
        assert len(set(picks.rows.tolist())) == len(picks.rows)
        assert set(picks.rows.tolist()) <= set(range(count))
        assert picks.weights.mean() == pytest.approx(1, abs=1e-6) and (picks.weights >= 0).all()


@pytest.mark.parametrize("spec", SPECS)
def test_the_same_options_pick_the_same(spec: str) -> None:
    table = candidates(drawn(50, 4))
    first = plugins.parse("strategies", spec).select(table, 20)
    again = plugins.parse("strategies", spec).select(table, 20)
    np.testing.assert_array_equal(first.rows, again.rows)
    np.testing.assert_array_equal(first.weights, again.weights)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kinds", [1, 4, 1000])
def test_the_order_of_the_rows_and_how_they_are_chunked_do_not_matter(spec: str, kinds: int) -> None:
    strategy: Strategy = plugins.parse("strategies", spec)
    table = candidates(drawn(50, kinds))
    expected = chosen(strategy, table, 20)
    for seed in range(3):
        shuffled = table.take(pa.array(np.random.default_rng(seed).permutation(50)))
        assert chosen(strategy, shuffled, 20) == expected
        assert chosen(strategy, pa.concat_tables([shuffled[:13], shuffled[13:13], shuffled[13:]]), 20) == expected


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_asked_for_is_not_changed(spec: str) -> None:
    table = candidates(drawn(30, 4))
    before = table.to_pydict()
    plugins.parse("strategies", spec).select(table, 10)
    assert table.to_pydict() == before


@pytest.mark.parametrize("spec", [spec for spec in SPECS if not spec.startswith(BOUNDED)])
def test_more_than_there_are_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="more than there are; keep or drop less") as refused:
        plugins.parse("strategies", spec).select(candidates(drawn(10, 4)), 11)
    assert "keeping 11 of 10 candidates" in str(refused.value) and refused.value.exit_code == 2


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_is_one(name: str) -> None:
    assert isinstance(plugins.parse("strategies", name), Strategy)


# --- the definition ---------------------------------------------------------------------------------------------------


def rounded(fraction: str, count: int) -> int:
    """floor(fraction * count + 0.5), exactly."""
    return int((Decimal(fraction) * count + Decimal("0.5")).to_integral_value(ROUND_FLOOR))


def by_definition(table: pa.Table, *, descending: bool, keep: str, drop_top: str) -> list[str] | None:
    """design.md, written down once more: ranks [lo, lo + k) by (score, then patch_id). None where there are fewer."""
    rows = list(zip(table["score"].to_pylist(), table["patch_id"].to_pylist(), strict=True))
    order = [patch_id for _, patch_id in sorted(rows, key=lambda row: (-row[0] if descending else row[0], row[1]))]
    lo, k = rounded(drop_top, len(rows)), rounded(keep, len(rows))
    both_rounded_up = lo > 0 and lo + k == len(order) + 1  # the last rank of the definition does not exist then
    return order[lo : lo + k] if lo + k <= len(order) or both_rounded_up else None


RULES: dict[str, dict[str, Any]] = {
    "des": {"descending": True, "drop_top": "0"},
    "asc": {"descending": False, "drop_top": "0"},
    "refined": {"descending": True, "drop_top": "0.05"},
    "refined:drop_top=0": {"descending": True, "drop_top": "0"},
    "refined:drop_top=0.285": {"descending": True, "drop_top": "0.285"},
    "refined:drop_top=0.5": {"descending": True, "drop_top": "0.5"},
}
KEEPS = ("0.01", "0.05", "0.145", "0.25", "0.285", "0.3333", "0.5", "0.55", "0.95", "1")
COUNTS = (*range(1, 24), 50, 99, 100, 101, 200, 1000)


@pytest.mark.parametrize("spec", RULES)
@pytest.mark.parametrize("kinds", [1, 3, 10**9])
def test_the_core_set_is_that_of_the_definition(spec: str, kinds: int) -> None:
    strategy: Strategy = plugins.parse("strategies", spec)
    sizes = set()
    for count in COUNTS:
        table = candidates(drawn(count, kinds, seed=count), seed=count)
        for keep in KEEPS:
            expected = by_definition(table, keep=keep, **RULES[spec])
            if expected is None:
                with pytest.raises(UsageError, match="more than there are"):
                    strategy.select(table, share(float(keep), count))
            else:
                assert chosen(strategy, table, share(float(keep), count)) == expected
                sizes.add(len(expected))
    assert len(sizes) >= 25  # it was no empty exercise


def test_refined_is_the_rank_of_five_to_fifty_five_per_cent() -> None:
    """Moser et al. 2024, on a hundred patches: the five hardest are passed over, the next fifty are taken."""
    table = candidates([float(score) for score in range(100)])
    picks = plugins.parse("strategies", "refined").select(table, share(0.5, 100))
    assert table.take(pa.array(picks.rows))["score"].to_pylist() == [float(score) for score in range(94, 44, -1)]


@pytest.mark.parametrize(
    ("scores", "descending", "expected"),
    [
        ([1, 2, 3], True, [2, 1, 0]),
        ([1, 2, 3], False, [0, 1, 2]),
        ([5, 5, 5], True, [0, 1, 2]),
        ([5, 5, 5], False, [0, 1, 2]),
        ([1, 2, 1, 2], True, [1, 3, 0, 2]),
        ([1, 2, 1, 2], False, [0, 2, 1, 3]),
        ([0.0, -0.0, 0.0], True, [0, 1, 2]),
        ([-1e-300, 1e-300, 0, -1e300, 1e300], True, [4, 1, 2, 0, 3]),
        ([0.1, 0.1 + 2**-56, 0.1], True, [1, 0, 2]),
        ([7], True, [0]),
        ([], True, []),
    ],
)
def test_equal_scores_are_in_the_order_of_their_patch_id_in_both_directions(
    scores: list[float | None], descending: bool, expected: list[int]
) -> None:
    assert ranked(candidates(scores), descending=descending).tolist() == expected


def test_patch_ids_are_ordered_as_text() -> None:
    """The window at x = 100 comes before that at x = 20: an order that every language and SQL agree on."""
    table = pa.table({"patch_id": ["a_0_20_24", "a_0_100_24", "B_0_0_24", "é"], "score": [1.0, 1.0, 1.0, 1.0]})
    assert ranked(table, descending=True).tolist() == [2, 1, 0, 3]


# --- shares -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "count", "expected"),
    [
        (0.5, 0, 0),
        (0.5, 1, 1),  # halves go up
        (0.5, 3, 2),
        (0.5, 5, 3),
        (0.05, 10, 1),
        (0.05, 9, 0),
        (0.285, 100, 29),  # 0.285 * 100 is 28.499999999999996 in floating point
        (0.145, 100, 15),
        (1.0, 7, 7),
        (1, 7, 7),
        (0.0, 7, 0),
        (1e-5, 50_000, 1),
        (1e-5, 49_999, 0),
        (0.5, 32_592, 16_296),
        (0.05, 32_592, 1_630),
        (np.float64(0.285), 100, 29),
        (0.3, 2**60 + 5, 345876451382054094),  # more than a float can count
    ],
)
def test_share_rounds_halves_up_exactly(fraction: float, count: int, expected: int) -> None:
    assert share(fraction, count) == expected


def test_share_is_exact_where_floating_point_is_not() -> None:
    differs = 0
    for thousandths in range(1001):
        for count in (*range(60), 100, 200, 500, 999, 1000):
            exact = rounded(f"{thousandths / 1000}", count)
            assert share(thousandths / 1000, count) == exact
            differs += int(thousandths / 1000 * count + 0.5) != exact
    assert differs > 0


# --- one by one -------------------------------------------------------------------------------------------------------


def test_random_needs_no_score_and_its_seed_decides() -> None:
    table = candidates([None] * 40)
    draws = {seed: chosen(plugins.parse("strategies", f"random:seed={seed}"), table, 20) for seed in range(20)}
    assert len({tuple(draw) for draw in draws.values()}) == 20
    scored = table.set_column(6, "score", pa.array(drawn(40, 40)))
    assert chosen(plugins.parse("strategies", "random:seed=3"), scored, 20) == draws[3]


def test_random_takes_every_patch_as_often() -> None:
    table = candidates([None] * 10)
    counts = Counter(
        patch_id
        for seed in range(400)
        for patch_id in chosen(plugins.parse("strategies", f"random:seed={seed}"), table, 5)
    )
    assert len(counts) == 10 and all(150 < count < 250 for count in counts.values())  # 200 expected, deviation 10


def test_those_that_rank_by_the_score_need_one() -> None:
    needs = {name: plugins.parse("strategies", name).needs_score for name in STRATEGIES}
    assert all(needs[name] for name in ("asc", "cluster", "des", "importance", "refined", "stratified", "window"))
    assert not any(needs[name] for name in ("ensemble", "facility", "kcenter", "random", "threshold"))


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("refined:drop_top=1", "from 0 to below 1, found 1.0"),
        ("refined:drop_top=-0.01", "found -0.01"),
        ("refined:drop_top=nan", "found nan"),
        ("refined:drop_top=inf", "found inf"),
        ("random:seed=-1", "0 or more, found -1"),
    ],
)
def test_options_out_of_range_are_refused(spec: str, found: str) -> None:
    with pytest.raises(UsageError, match="should be") as refused:
        plugins.parse("strategies", spec)
    assert found in str(refused.value) and str(refused.value).isprintable()


def test_a_window_is_cut_from_the_order() -> None:
    order = np.array([4, 2, 0, 1, 3])
    assert stretch(order, 1, 3).tolist() == [2, 0, 1] and stretch(order, 5, 0).tolist() == []
    with pytest.raises(UsageError, match="dropping 3 and keeping 4 of 5 candidates is more than there are"):
        stretch(order, 3, 4)


def test_equal_picks_weigh_one_each() -> None:
    assert Picks.equal(np.array([3, 1])).weights.tolist() == [1, 1]


def test_shares_that_add_up_to_everything_fit_however_they_are_rounded() -> None:
    candidates = pa.table({"patch_id": [f"p{i}" for i in range(10)], "score": [float(i) for i in range(10)]})
    picks = Refined(drop_top=0.05).select(candidates, share(0.95, 10))  # 0.5 and 9.5, both rounded up
    assert picks.rows.tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    with pytest.raises(UsageError, match="more than there are"):
        Refined(drop_top=0.2).select(candidates, 10)
