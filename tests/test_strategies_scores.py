"""Strategies of scores and columns against their definitions, written down once more in plain Python."""

import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import plugins
from curate.errors import UsageError
from curate.manifest import Manifest
from curate.selection import select
from curate.store import Store
from curate.strategies import Picks, Strategy
from curate.strategies.ensemble import Ensemble
from curate.strategies.importance import Importance, chances_of, drawn
from curate.strategies.stratified import Stratified
from curate.strategies.threshold import Threshold
from curate.strategies.window import Window

NAN, INF = math.nan, math.inf
UNITS = (5, 4, 3)
SOBEL = [3.0, 1.0, 2.0, 2.0, 5.0, 2.0, 0.5, 4.0, 1.0, 6.0, 2.0, 0.25]
MIXED = [NAN, 1.0, INF, 2.0, -INF, None, 0.5, NAN, 1.0]  # and the last unit is not scored
OTHER = 'x>1, "y"+z'  # a label with all that is special in an option

quickly = settings(deadline=None, max_examples=60, derandomize=True)
few = st.integers(0, 4).map(float)  # scores with ties
Write = Callable[..., Store]


def table(**columns: Any) -> pa.Table:
    """Candidates with these columns, in an order that is not that of their ids p0, p1, ..."""
    count = len(next(iter(columns.values())))
    ids = [f"p{i:03d}" for i in range(count)]
    made = pa.table({"patch_id": ids, "image_id": ids, "score": [0.0] * count, "at": range(count)})
    for name, values in columns.items():
        values = values if isinstance(values, pa.Array) else pa.array(values)
        made = made.drop_columns(name) if name in made.column_names else made
        made = made.append_column(name, values)
    return made.take(pa.array(np.random.default_rng(count).permutation(count)))


def chosen(strategy: Strategy | str, candidates: pa.Table, budget: int) -> list[int]:
    """The numbers of the rows that it picks, counted as the columns were given."""
    strategy = plugins.parse("strategies", strategy) if isinstance(strategy, str) else strategy
    return list(candidates.take(pa.array(strategy.select(candidates, budget).rows))["at"].to_pylist())


def refusal(question: Callable[[], object]) -> str:
    """The line with which it is refused."""
    with pytest.raises(UsageError) as refused:
        question()
    message = str(refused.value)
    assert message.isprintable() and refused.value.exit_code == 2
    return message


def parse(spec: str) -> Any:
    return plugins.parse("strategies", spec)


def ids(manifest: Manifest) -> list[str]:
    return list(manifest.table["patch_id"].to_pylist())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, write_store: Write) -> Store:
    scores = {"sobel": SOBEL, "mixed": MIXED, "srcnn:scale=3": SOBEL[::-1]}
    return write_store(tmp_path_factory.mktemp("strategies") / "store", UNITS, scores)


# --- window -----------------------------------------------------------------------------------------------------------


@given(st.lists(few, min_size=1, max_size=40), st.integers(0, 99), st.integers(1, 100), st.integers(1, 40))
@quickly
def test_ranks_are_those_from_lo_to_hi_of_the_descending_order(
    scores: list[float], lo: int, width: int, budget: int
) -> None:
    hi = min(lo + width, 100)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    first, last = (math.floor(Fraction(part * len(scores), 100) + Fraction(1, 2)) for part in (lo, hi))
    strategy = Window(lo=lo / 100, hi=hi / 100)
    if first == last:
        assert "no rank lies from" in refusal(lambda: strategy.select(table(score=scores), budget))
    else:
        assert chosen(strategy, table(score=scores), budget) == order[first:last][:budget]


def test_keep_limits_the_range_and_does_not_widen_it(store: Store) -> None:
    order = ids(select(store, "des", by="sobel", keep=1))
    assert ids(select(store, "window", by="sobel")) == order[3:9]
    assert ids(select(store, "window", by="sobel", keep=1)) == order[3:9]
    assert ids(select(store, "window:lo=0.25,hi=1", by="sobel", keep=0.5)) == order[3:9]
    assert ids(select(store, "window:lo=0.25,hi=1", by="sobel", keep=1)) == order[3:]
    assert ids(select(store, "window:lo=0.5,hi=0.75", by="sobel", keep=0.25)) == order[6:9]


# --- threshold --------------------------------------------------------------------------------------------------------

COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq}
COMPARE["!="] = operator.ne
values = st.one_of(st.none(), st.sampled_from([NAN, INF, -INF, 0.0, 0.1, 0.5, 1.0, 2.0]))


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@given(st.lists(st.tuples(values, st.integers(0, 3), st.sampled_from(["a", "b's", None])), min_size=1), st.data())
@quickly
def test_threshold_keeps_what_meets_every_condition(rows: list[tuple[Any, int, Any]], data: st.DataObject) -> None:
    numbers, whole, texts = (list(column) for column in zip(*rows, strict=True))
    kinds = {"number": values.filter(lambda v: v is not None and math.isfinite(v)), "whole": st.integers(0, 3)}
    kinds["text"] = st.sampled_from(["a", "b's", "c"])
    conditions = [
        (name, data.draw(st.sampled_from(sorted(COMPARE))), data.draw(kinds[name]))
        for name in data.draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=3))
    ]

    def meets(row: dict[str, Any], name: str, sign: str, value: Any) -> bool:
        found = row[name]
        return found is not None and found == found and COMPARE[sign](found, value)

    written = "+".join(
        f"{name} {sign} " + ("'" + value.replace("'", "''") + "'" if isinstance(value, str) else f"{value}")
        for name, sign, value in conditions
    )
    candidates = table(number=pa.array(numbers, pa.float64()), whole=whole, text=pa.array(texts, pa.string()))
    expected = [
        row["at"]
        for row in candidates.sort_by("patch_id").to_pylist()
        if all(meets(row, *condition) for condition in conditions)
    ]
    strategy = Threshold(conditions=written)
    assert set(strategy.columns) == {name for name, _, _ in conditions}
    if expected:
        assert chosen(strategy, candidates, len(rows)) == expected
        assert chosen(strategy, candidates, 2) == expected[:2]
    else:
        assert f"none of {len(rows)} candidates meets" in refusal(lambda: strategy.select(candidates, 1))


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters=","), min_size=1), min_size=1, max_size=3))
@quickly
def test_any_name_without_a_comma_can_be_quoted(names: list[str]) -> None:
    strategy = Threshold(conditions="+".join(f"{quoted(name)}<1" for name in names))
    assert strategy.columns == tuple(dict.fromkeys(names))
    if len(set(names)) == len(names):
        assert Ensemble(by="+".join(map(quoted, names))).columns == tuple(names)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ("a<1", ("a",)),
        (" a_b <= -1.5e+3 + c.d>.5+e@0a1b2c3d!=1. ", ("a_b", "c.d", "e@0a1b2c3d")),
        ("a>1e+1+a<2e+1", ("a",)),
        ("my score=1+lab:x-y>=0", ("my score", "lab:x-y")),
        ("\"srcnn:scale=3\"<0.1+split='train'", ("srcnn:scale=3", "split")),
        ("name='1+1=2 \"it''s\"'", ("name",)),
        ("", ()),
    ],
)
def test_conditions_are_read_as_they_are_meant(conditions: str, expected: tuple[str, ...]) -> None:
    strategy = parse(f"threshold:conditions={conditions}")
    assert strategy.columns == expected
    assert parse(plugins.spec_of(strategy)).columns == expected


NO_CONDITIONS = """a | a< | <1 | a<1+ | +a<1 | a<1++b<1 | a==1 | a<>1 | a<b | a<'b | "a<1 | ""<1 | a<1 b<1 | a<1e+x
| srcnn:scale=3<1 | a<nan | a<--1 | a<0x1 | a<1;b | + | a\t<\x1b | a<1 and b<1 | a 'b'<1 | a<1e5'"""


@pytest.mark.parametrize("conditions", [text.strip() for text in NO_CONDITIONS.split("|")])
def test_what_is_no_condition_is_refused(conditions: str) -> None:
    message = refusal(lambda: parse(f"threshold:conditions={conditions}"))
    assert "strategy 'threshold': conditions should be like blockiness<30" in message


def test_a_comma_ends_an_option_but_in_double_quotes() -> None:
    name = "net:a=1,k=2"
    candidates = table(**{name: pa.array([3.0, 1.0, 2.0]), "b": pa.array([1.0, 2.0, 9.0])})
    for spec, expected in {
        f'threshold:conditions="{name}">1.5+b<5': [0],
        f'ensemble:by="{name}"+b,weights=1+9': [2, 1, 0],
        f'ensemble:weights=9+1,by="{name}"+b': [0, 2, 1],
    }.items():
        made = parse(spec)
        assert name in made.columns and parse(plugins.spec_of(made)) == made
        assert chosen(made, candidates, 3) == expected
    assert "no option 'k'" in refusal(lambda: parse("threshold:conditions=net:a=1,k=2<1"))
    assert "conditions should be like" in refusal(lambda: parse('threshold:conditions="net:a=1<1'))


@pytest.mark.parametrize("condition", ["a<9", "a<=9", "a>-9", "a>=-9", "a=1", "a!=9", "b!='c'", "b<'c'"])
def test_what_is_missing_meets_no_condition(condition: str) -> None:
    candidates = table(a=pa.array([NAN, None, 1.0], pa.float32()), b=pa.array([None, None, "a"]))
    assert chosen(f"threshold:conditions={condition}", candidates, 3) == [2]


def test_a_number_is_rounded_as_the_scores_are() -> None:
    scores = pa.array([0.02, 0.019, 0.021], pa.float32())
    for conditions, expected in {
        "a>=0.02": [0, 2],
        "a=0.02": [0],
        "a<0.02": [1],
        "a>0.02": [2],
        "a<1e300": [0, 1, 2],
    }.items():
        assert chosen(Threshold(conditions=conditions), table(a=scores), 3) == expected


def test_a_threshold_is_the_condition_that_sql_knows(store: Store) -> None:
    for conditions, where in {
        "sobel>=2": "sobel >= 2",
        'sobel<5+"srcnn:scale=3">0.5': 'sobel < 5 AND "srcnn:scale=3" > 0.5',
        "split='val'": "split = 'val'",
        "split!='val'+width>48+sobel!=2": "split <> 'val' AND width > 48 AND sobel <> 2",
        "source='photos'+x>=12": "source = 'photos' AND x >= 12",
        "mixed<2": "mixed < 2",
    }.items():
        for by in ("sobel", None):
            found = select(store, f"threshold:conditions={conditions}", by=by, keep=1)
            everything = select(store, "des", by="sobel", keep=1, where=where)
            assert ids(found) == (ids(everything) if by else sorted(ids(everything)))


def test_a_threshold_says_why_it_keeps_nothing(store: Store) -> None:
    assert "threshold needs conditions, such as" in refusal(lambda: select(store, "threshold"))
    for conditions, part in {
        "sobel>100": "none of 12 candidates meets sobel>100",
        "sobel>0+split='test'": "none of 12 candidates meets sobel>0+split='test'",
        "blockiness<30": "the strategy needs 'blockiness'; the store has:",
        "sobel='2'": "column 'sobel' holds float, and cannot be compared with text",
        "split>2": "column 'split' holds string, and cannot be compared with a number",
    }.items():
        assert part in refusal(lambda conditions=conditions: select(store, f"threshold:conditions={conditions}"))


# --- stratified -------------------------------------------------------------------------------------------------------


def water_filled(sizes: list[int], budget: int) -> list[int]:
    """What each stratum gives: equal shares, the small ones whole and their rest divided again, the first ones more."""
    given_by = [0] * len(sizes)
    while budget and (open_ := [i for i, size in enumerate(sizes) if given_by[i] < size]):
        each, more = divmod(budget, len(open_))
        for place, i in enumerate(open_):
            part = min(sizes[i] - given_by[i], each or int(place < more))
            given_by[i] += part
            budget -= part
    return given_by


def check_strata(picks: list[int], strata: list[Any], scores: list[float], budget: int, sign: int) -> None:
    """The picks are the best of each stratum in equal parts, each one's first before any one's second."""
    members: dict[Any, list[int]] = {}
    for i in sorted(range(len(scores)), key=lambda i: (sign * scores[i], i)):
        members.setdefault(strata[i], []).append(i)
    values = sorted(members, key=lambda value: (value is None, value if value is not None else 0))
    quotas = water_filled([len(members[value]) for value in values], budget)
    turns = [(rank, place) for place, quota in enumerate(quotas) for rank in range(quota)]
    assert picks == [members[values[place]][rank] for rank, place in sorted(turns)]


@given(st.lists(st.tuples(few, st.sampled_from(["b", "a", "c", "", None])), min_size=1, max_size=40), st.data())
@quickly
def test_every_stratum_gives_its_equal_share(rows: list[tuple[float, Any]], data: st.DataObject) -> None:
    scores, strata = (list(column) for column in zip(*rows, strict=True))
    candidates = table(score=scores, source=pa.array(strata, pa.string()))
    order, sign = data.draw(st.sampled_from([("des", -1), ("asc", 1)]))
    strategy = Stratified(per="source", order=order)
    whole = chosen(strategy, candidates, len(rows))
    assert sorted(whole) == list(range(len(rows)))
    for budget in range(1, len(rows) + 1):
        picks = chosen(strategy, candidates, budget)
        assert picks == whole[:budget]  # any prefix is balanced as well
        check_strata(picks, strata, scores, budget, sign)


@given(st.lists(st.one_of(few, st.sampled_from([NAN, INF, None])), min_size=1, max_size=40), st.integers(1, 12))
@quickly
def test_a_bin_holds_an_equal_part_of_the_values_and_no_value_is_in_two(values: list[Any], bins: int) -> None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    strata = [
        bins * sum(other < value for other in finite) // len(finite) if value in finite else None for value in values
    ]
    candidates = table(score=[0.0] * len(values), sobel=pa.array(values, pa.float32()))
    for budget in {1, len(values) // 2 or 1, len(values)}:
        picks = chosen(f"stratified:per=sobel,bins={bins}", candidates, budget)
        check_strata(picks, strata, [0.0] * len(values), budget, -1)


def test_bins_of_the_score_itself_spread_the_choice_over_all_its_values() -> None:
    scores = [float(i) for i in range(100)]
    assert sorted(chosen("stratified:per=score", table(score=scores), 10)) == list(range(9, 100, 10))
    assert sorted(chosen("stratified:per=score,order=asc", table(score=scores), 10)) == list(range(0, 100, 10))
    assert sorted(chosen("stratified:per=score,bins=1", table(score=scores), 10)) == list(range(90, 100))


def test_random_within_a_stratum_is_seeded_even_and_needs_no_score() -> None:
    candidates = table(score=pa.array([None] * 12, pa.float64()), source=["a"] * 9 + ["b"] * 3)
    draws = [chosen(f"stratified:per=source,order=random,seed={seed}", candidates, 6) for seed in range(600)]
    assert draws[7] == chosen("stratified:per=source,order=random,seed=7", candidates, 6)
    assert all(sum(i < 9 for i in draw) == 3 for draw in draws)
    counts = Counter(i for draw in draws for i in draw)
    assert all(150 < counts[i] < 250 for i in range(9)) and all(counts[i] == 600 for i in range(9, 12))
    assert not parse("stratified:order=random").needs_score and parse("stratified").needs_score
    assert parse("stratified:per=score,order=random").needs_score


def test_no_image_takes_more_than_its_share(store: Store) -> None:
    for per in ("image", "name", "shard"):
        manifest = select(store, f"stratified:per={per}", by="sobel", keep=0.75)
        assert sorted(Counter(manifest.table["image_id"].to_pylist()).values()) == [3, 3, 3]
    manifest = select(store, "stratified:order=random", keep=0.5)
    assert manifest.recipe.by is None and manifest.recipe.scorers == {}
    assert sorted(Counter(manifest.table["image_id"].to_pylist()).values()) == [2, 2, 2]
    split = select(store, "stratified:per=split", by="sobel", keep=0.5).table["shard"].to_pylist()
    assert [shard % 2 for shard in split] == [0, 1, 0, 1, 0, 1]  # train, val, train, ...
    assert len(select(store, "stratified:per=srcnn:scale=3,bins=3", by="sobel")) == 6
    assert "the strategy needs 'camera'" in refusal(lambda: select(store, "stratified:per=camera", by="sobel"))


# --- importance -------------------------------------------------------------------------------------------------------


def exact_chances(sizes: list[int], budget: int) -> list[Fraction]:
    """Chances in proportion to the sizes; those of 1 or more are certain, and the rest is divided again."""
    certain: set[int] = set()
    while True:
        rest = sum(size for i, size in enumerate(sizes) if i not in certain)
        left = budget - len(certain)
        over = {i for i, size in enumerate(sizes) if i not in certain and rest and left * size >= rest}
        if not over:
            break
        certain |= over
    others = len(sizes) - len(certain)
    even = Fraction(left, others) if others and not rest else None
    return [
        Fraction(1) if i in certain else even if even is not None else Fraction(left * size, rest)
        for i, size in enumerate(sizes)
    ]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.data())
@quickly
def test_chances_are_proportional_and_add_up_to_the_budget(sizes: list[int], data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, len(sizes)))
    found = chances_of(np.array(sizes, float), budget)
    expected = exact_chances(sizes, budget)
    assert sum(expected) == budget
    np.testing.assert_allclose(found, [float(chance) for chance in expected], rtol=1e-12)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.data())
@quickly
def test_by_enumeration_each_row_is_drawn_with_its_chance(sizes: list[int], data: st.DataObject) -> None:
    """All draws, by every start at which they change: their parts of [0, 1) are their chances."""
    budget = data.draw(st.integers(1, len(sizes)))
    losses = np.random.default_rng(budget).normal(size=len(sizes))
    chances = chances_of(np.array(sizes, float), budget)
    changes = np.unique(np.r_[0, np.cumsum(chances[chances < 1]) % 1, 1])
    included, total = np.zeros(len(sizes)), 0.0
    for start, end in itertools.pairwise(changes):
        rows = drawn(chances, (start + end) / 2)
        assert len(rows) == budget and (np.diff(rows) > 0).all()
        included[rows] += end - start
        total += (end - start) * (losses[rows] / chances[rows]).sum()
    np.testing.assert_allclose(included, chances, atol=1e-9)
    assert total == pytest.approx(losses[chances > 0].sum(), abs=1e-8)  # Horvitz and Thompson: without bias


@given(
    st.lists(st.one_of(st.floats(0, 1), st.floats(0, 1.7e308), st.just(0.0), st.just(5e-324)), min_size=1, max_size=30),
    st.data(),
)
@quickly
def test_there_are_always_as_many_as_asked_for(scores: list[float], data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, len(scores)))
    strategy = Importance(seed=data.draw(st.integers(0, 9)), smooth=data.draw(st.sampled_from([0.0, 0.25, 1.0])))
    picks = strategy.select(table(score=scores), budget)
    assert len(set(picks.rows.tolist())) == len(picks.rows) == budget
    assert picks.weights.mean() == pytest.approx(1, abs=1e-5) and (picks.weights >= 0).all()


def test_over_many_seeds_the_weighted_mean_is_that_of_all() -> None:
    rng = np.random.default_rng(0)
    scores = np.r_[rng.gamma(0.5, size=36), 40.0, 60.0, 0.3, 0.1]  # two of them certain
    losses = scores * rng.uniform(0.5, 1.5, size=40) + rng.normal(size=40)
    candidates = table(score=scores)
    at = np.asarray(candidates["at"])
    for smooth, slack in ((0.0, 0.35), (0.3, 0.1), (1.0, 0.1)):
        sizes = (1 - smooth) * scores / scores.sum() + smooth / 40
        chances = chances_of(sizes, 12)
        draws = [Importance(seed=seed, smooth=smooth).select(candidates, 12) for seed in range(3000)]
        often = np.bincount(np.concatenate([at[picks.rows] for picks in draws]), minlength=40) / 3000
        assert (abs(often - chances) <= 4.5 * np.sqrt(chances * (1 - chances) / 3000) + 1e-12).all()
        estimates = np.array([(losses[at[p.rows]] / chances[at[p.rows]]).sum() for p in draws])
        assert abs(estimates.mean() - losses.sum()) < 4 * estimates.std() / math.sqrt(3000)
        for picks in draws[:20]:
            inverse = 1 / chances[at[picks.rows]]
            np.testing.assert_allclose(picks.weights, inverse / inverse.mean(), rtol=1e-5)
        means = np.array([(losses[at[p.rows]] * p.weights).mean() for p in draws])
        assert abs(means.mean() - losses.mean()) < slack * losses.std()  # of the ratio, where the mean is 1 each time


@pytest.mark.parametrize("start", [0.0, 2**-53, 0.5, 1 - 2**-40, 1 - 2**-53])
@pytest.mark.parametrize("near", [2**-53, 2**-50, 1e-12])
@pytest.mark.parametrize("count", [2, 10, 1000, 4096])
def test_rounding_draws_no_row_twice_and_none_that_is_not_there(count: int, near: float, start: float) -> None:
    rest = count * near
    for parts in (1, 3):
        for chances in (np.r_[np.full(count, 1 - near), [rest / parts] * parts],):
            for given_chances in (chances, chances[::-1]):
                rows = drawn(given_chances, start)
                assert len(rows) == count and (np.diff(rows) > 0).all() and rows[-1] < len(chances)


@pytest.mark.parametrize("smooth", [0.01, 0.1, 0.5, 1.0])
def test_smoothing_bounds_the_weights(smooth: float) -> None:
    scores = np.random.default_rng(1).gamma(0.1, size=200)  # from 1e-40 to 1
    sizes = (1 - smooth) * scores / scores.sum() + smooth / 200
    assert 1 / chances_of(sizes, 50).min() <= 200 / 50 / smooth * (1 + 1e-9)
    if smooth == 1:
        assert set(Importance(smooth=smooth).select(table(score=scores), 50).weights.tolist()) == {1.0}


def test_without_smoothing_a_score_of_nothing_is_drawn_only_where_all_others_are() -> None:
    candidates = table(score=[0.0, 2.0, 0.0, 1.0, 0.0, 0.0])
    draws = [chosen(f"importance:seed={seed}", candidates, 2) for seed in range(30)]
    assert all(sorted(draw) == [1, 3] for draw in draws)
    more = Counter(i for seed in range(400) for i in chosen(f"importance:seed={seed}", candidates, 4))
    assert more[1] == more[3] == 400 and all(150 < more[i] < 250 for i in (0, 2, 4, 5))


def test_a_negative_score_is_no_importance(store: Store) -> None:
    message = refusal(lambda: Importance().select(table(score=[1.0, -0.5]), 1))
    assert message == "importance draws by scores of 0 or more, found -0.5"


def test_importance_writes_its_weights_into_the_manifest(store: Store) -> None:
    manifest = select(store, "importance:seed=3", by="sobel", keep=0.5)
    scores, weights = (np.asarray(manifest.table[name]) for name in ("score", "weight"))
    chances = chances_of(np.array(SOBEL) / sum(SOBEL), 6)
    of = dict(zip(SOBEL, chances, strict=True))
    inverse = np.array([1 / of[score] for score in scores])
    np.testing.assert_allclose(weights, inverse / inverse.mean(), rtol=1e-5)
    assert ids(select(store, "importance", by="sobel", seed=3)) == ids(manifest)
    assert len({tuple(ids(select(store, "importance", by="sobel", seed=seed))) for seed in range(9)}) > 5


# --- ensemble ---------------------------------------------------------------------------------------------------------


def mean_ranks(columns: list[list[Any]], weights: list[Fraction]) -> list[Fraction | None]:
    """Weighted sums of ranks from 1 at the lowest, equal values at the mean of theirs; None without all values."""
    complete = [all(v is not None and math.isfinite(v) for v in row) for row in zip(*columns, strict=True)]

    def rank(column: list[Any], value: Any) -> Fraction:
        others = [v for v, whole in zip(column, complete, strict=True) if whole]
        return sum(v < value for v in others) + Fraction(sum(v == value for v in others) + 1, 2)

    return [
        sum(weight * rank(column, column[i]) for weight, column in zip(weights, columns, strict=True))
        if whole
        else None
        for i, whole in enumerate(complete)
    ]


@given(
    st.lists(st.tuples(*[st.one_of(few, few, few, values)] * 3), min_size=1, max_size=25),
    st.lists(st.sampled_from(["1", "2", "0.1", "0.3", "0.25"]), min_size=3, max_size=3),
    st.sampled_from([0, 5, 20]),
)
@quickly
def test_an_ensemble_is_the_order_of_the_mean_ranks(rows: list[tuple[Any, ...]], weights: list[str], drop: int) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)]
    means = mean_ranks(columns, [Fraction(weight) for weight in weights])
    order = sorted(range(len(rows)), key=lambda i: (means[i] is None, -(means[i] or 0), i))
    names = dict(zip(("a", "b", OTHER), (pa.array(c, pa.float64()) for c in columns), strict=True))
    by = "+".join(["a", "b", quoted(list(names)[2])])
    strategy = Ensemble(by=by, weights="+".join(weights), drop_top=drop / 100)
    first = math.floor(Fraction(drop * len(rows), 100) + Fraction(1, 2))
    for budget in {1, (len(rows) - first) // 2 or 1}:
        if first + budget <= len(rows):
            expected = [i for i in order[first : first + budget] if means[i] is not None]
            assert chosen(strategy, table(**names), budget) == expected


@pytest.mark.parametrize("kinds", [(3, 4, 5), (120, 120, 120), (9, 1000, 30)])
@pytest.mark.parametrize("weights", ["1+1+1", "0.1+0.2+0.3", "0.7+0.1+0.3", "5+0.000001+2"])
def test_equal_scores_share_their_rank_and_equal_means_are_equal(weights: str, kinds: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    columns = [rng.integers(kind, size=120) for kind in kinds]
    means = mean_ranks([column.tolist() for column in columns], [Fraction(weight) for weight in weights.split("+")])
    expected = sorted(range(120), key=lambda i: (-(means[i] or 0), i))
    candidates = table(**dict(zip("abc", columns, strict=True)))
    assert chosen(Ensemble(by="a+b+c", weights=weights), candidates, 120) == expected


def test_an_ensemble_of_one_is_that_score(store: Store) -> None:
    for by in ("sobel", "srcnn:scale=3", '"srcnn:scale=3"'):
        alone = select(store, f"ensemble:by={by}")
        assert ids(alone) == ids(select(store, "des", by=by.strip('"')))
        assert alone.recipe.by is None and alone.table["score"].null_count == 6
        refined = select(store, f"ensemble:by={by},drop_top=0.1", keep=0.25)
        assert ids(refined) == ids(select(store, "refined", by=by.strip('"'), drop_top=0.1, keep=0.25))


def test_the_weight_of_a_score_decides_between_two_that_disagree() -> None:
    candidates = table(a=[1.0, 2.0, 3.0, 4.0], b=[4.0, 3.0, 2.0, 1.0])
    for weights, expected in {
        "": [0, 1, 2, 3],
        "0.1+0.1": [0, 1, 2, 3],
        "3+1": [3, 2, 1, 0],
        "1+1.5": [0, 1, 2, 3],
    }.items():
        assert chosen(Ensemble(by="a+b", weights=weights), candidates, 4) == expected
    assert chosen("ensemble:by=a+b,weights=3+1,drop_top=0.25", candidates, 2) == [2, 1]


def test_rows_without_one_of_the_scores_are_candidates_that_come_last(store: Store) -> None:
    manifest = select(store, "ensemble:by=sobel+mixed", keep=1)
    assert len(manifest) == 4 and manifest.recipe.counts["candidates"] == 12
    assert manifest.recipe.counts["without_finite_score"] == 0
    assert len(select(store, "ensemble:by=sobel+mixed", keep=0.25)) == 3
    assert "nothing to choose" in refusal(lambda: select(store, "ensemble:by=sobel+mixed", where="mixed IS NULL"))
    assert ids(select(store, "ensemble:by=sobel+mixed", keep=1, where="mixed < 9 AND mixed > -9")) == ids(manifest)


def test_whole_numbers_can_be_ranked_and_text_cannot(store: Store) -> None:
    assert len(select(store, "ensemble:by=width+x")) == 6
    found = refusal(lambda: select(store, "ensemble:by=sobel+split"))
    assert found == "column 'split' holds string, and ranks need numbers"
    assert "the strategy needs 'srcnn'" in refusal(lambda: select(store, "ensemble"))


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("window:lo=0.5,hi=0.5", "0 <= lo < hi <= 1, found lo=0.5 and hi=0.5"),
        ("window:lo=-0.1", "found lo=-0.1"),
        ("window:hi=1.1", "hi=1.1"),
        ("window:lo=nan", "lo=nan"),
        ("stratified:bins=0", "from 1 to 10000, found 0"),
        ("stratified:bins=10001", "found 10001"),
        ("stratified:seed=-1", "0 or more, found -1"),
        ("stratified:order=up", "'des', 'asc' or 'random'"),
        ("importance:smooth=1.5", "from 0 to 1, found 1.5"),
        ("importance:smooth=nan", "found nan"),
        ("importance:seed=-1", "0 or more, found -1"),
        ("ensemble:drop_top=1", "from 0 to below 1, found 1.0"),
        ("ensemble:by=", "by should be names joined by +"),
        ("ensemble:by=a+", "found 'a+'"),
        ('ensemble:by="a', "found '\"a'"),
        ("ensemble:by=a++b", "found 'a++b'"),
        ("ensemble:by=a+\"a\"", "every score once"),
        ("ensemble:weights=1", "above 0 for each of sobel, srcnn, joined by +; found '1'"),
        ("ensemble:weights=1+0", "found '1+0'"),
        ("ensemble:weights=1+-1", "found '1+-1'"),
        ("ensemble:weights=1+1e999999999", "found '1+1e999999999'"),
        ("ensemble:weights=1+1+1", "found '1+1+1'"),
        ("ensemble:weights=one+two", "found 'one+two'"),
    ],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(spec: str, found: str) -> None:
    assert found in refusal(lambda: parse(spec))


@pytest.mark.parametrize("spec", ["threshold:conditions=v<1", "stratified:per=v", "ensemble:by=v"])
def test_a_vector_is_no_column_to_choose_by(spec: str) -> None:
    candidates = table(v=pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)))
    assert "column 'v' holds fixed_size_list" in refusal(lambda: parse(spec).select(candidates, 1))


@pytest.mark.parametrize(
    "spec",
    [
        "window:lo=0.1,hi=0.6",
        'threshold:conditions="srcnn:scale=3">0.5+sobel<5',
        "stratified:per=srcnn:scale=3,bins=2",
        "importance:seed=4,smooth=0.1",
        'ensemble:by="srcnn:scale=3"+sobel,weights=2+1,drop_top=0.1',
    ],
)
def test_the_recipe_chooses_again_and_names_the_scores_that_were_used(store: Store, spec: str) -> None:
    manifest = select(store, spec, by="mixed" if spec.startswith("stratified") else "sobel", keep=0.5)
    recipe = manifest.recipe
    assert recipe.strategy == spec
    again = select(store, recipe.strategy, by=recipe.by, keep=recipe.keep)
    assert again.table.equals(manifest.table) and again.recipe == recipe
    assert set(recipe.scorers) == {recipe.by, *parse(spec).columns} & {"sobel", "mixed", "srcnn:scale=3"}


def test_picks_of_equal_weight_are_so() -> None:
    candidates = table(score=[1.0, 2.0, 3.0], sobel=[1.0, 2.0, 3.0], srcnn=[1.0, 2.0, 3.0])
    for spec in ("window", "threshold:conditions=sobel>1", "stratified", "ensemble"):
        picks: Picks = parse(spec).select(candidates, 2)
        assert set(picks.weights.tolist()) == {1.0}
