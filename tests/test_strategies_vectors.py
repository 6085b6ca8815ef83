"""Strategies of vectors against their definitions, written down once more without any of their short cuts."""

import itertools
import math
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from curate import layout, plugins, schema
from curate.errors import UsageError
from curate.selection import select
from curate.store import Store
from curate.strategies import Strategy, _vectors, cluster, facility, kcenter
from curate.strategies._vectors import Points, Scale, points_of, vectors

Vectors = npt.NDArray[np.float32]
SPECS = ("kcenter", "cluster:drop_low=0.2", "facility", "facility:limit=0")


def normal(count: int, length: int = 5, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((count, length)).astype(np.float32)


def lattice(count: int, length: int = 2, seed: int = 0) -> Vectors:
    """Full of equal vectors and of equal distances."""
    return np.random.default_rng(seed).integers(3, size=(count, length)).astype(np.float32)


def fixed(vectors_ND: Vectors) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), vectors_ND.shape[1])


def table(values: Vectors | pa.Array | pa.ChunkedArray, scores: Any = None) -> pa.Table:
    """Candidates p000, p001, ... in this order."""
    ids = [f"p{i:05d}" for i in range(len(values))]
    column = fixed(values) if isinstance(values, np.ndarray) else values
    return pa.table({"patch_id": ids, "score": np.zeros(len(ids)) if scores is None else scores, "embedding": column})


def picked(strategy: Strategy | str, candidates: pa.Table, budget: int) -> list[int]:
    strategy = plugins.parse("strategies", strategy) if isinstance(strategy, str) else strategy
    return [int(row) for row in strategy.select(candidates, budget).rows]


def refusal(question: Callable[[], object]) -> str:
    """The line with which it is refused."""
    with pytest.raises(UsageError) as refused:
        question()
    assert str(refused.value).isprintable()
    return str(refused.value)


# --- vectors from Arrow -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 3), pa.list_(pa.float32()), pa.large_list(pa.float64())])
def test_vectors_are_read_from_every_kind_of_list_however_it_is_chunked(kind: pa.DataType) -> None:
    expected = normal(9, 3)
    column = pa.array(expected.tolist(), kind)
    pieces = pa.chunked_array([column[:2], column[2:2], column[2:7], column[7:]])
    for given in (column, pieces, pa.concat_arrays([column[4:], column[:4]])[5:]):
        found = vectors(pa.table({"embedding": given}), "embedding")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected[: len(given)])


@pytest.mark.parametrize("spec", SPECS)
def test_lists_of_fixed_size_or_not_are_the_same(spec: str) -> None:
    values = lattice(40)
    assert picked(spec, table(pa.array(values.tolist(), pa.list_(pa.float32()))), 12) == picked(spec, table(values), 12)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([[1.0, 2.0], None, [3.0, 4.0]]), "'embedding' is missing or not finite in 1 of 3 candidates; run "),
        (pa.array([[1.0, None], [1.0, 2.0], [3.0, 4.0]]), "not finite in 1 of 3"),
        (pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2)), "not finite in 1 of 3"),
        (pa.array([[1.0, math.nan], [math.inf, 2.0], [3.0, 4.0]]), "not finite in 2 of 3"),
        (pa.array([None, None, None], pa.list_(pa.float32())), "not finite in 3 of 3"),
        (pa.array([[1.0, 2.0], [1.0], [3.0, 4.0]]), "should be of one length, found 1 to 2"),
        (pa.array([[], [], []], pa.list_(pa.float32())), "should be of one length, found 0 to 0"),
        (pa.array([1.0, 2.0, 3.0]), "should hold vectors, as the scorer 'embedding' makes them, found double"),
        (pa.array([["a"], ["b"], ["c"]]), "should hold vectors"),
    ],
)
def test_what_is_no_vector_is_refused(spec: str, column: pa.Array, expected: str) -> None:
    strategy = spec.replace("drop_low=0.2", "drop_low=0")
    assert expected in refusal(lambda: picked(strategy, table(column), 1))


@pytest.mark.parametrize("spec", ["kcenter:by=x\ty", "cluster:by=x\ty", "facility:by=x\ty"])
def test_without_the_column_it_is_said_what_there_is(spec: str) -> None:
    message = refusal(lambda: picked(spec, table(normal(3)), 1))
    assert message == "no column 'x\\ty' of vectors; the candidates have: embedding, patch_id, score"


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("kcenter:seed=-1", "seed should be 0 or more, found -1"),
        ("kcenter:start=far", "'mean' or 'seeded', not 'far'"),
        ("kcenter:scale=x", "'columns', 'length' or 'none', not 'x'"),
        ("cluster:seed=-1", "seed should be 0 or more, found -1"),
        ("cluster:drop_low=1", "from 0 to below 1, found 1.0"),
        ("cluster:drop_low=nan", "found nan"),
        ("cluster:clusters=0", "clusters should be 1 or more, found 0"),
        ("facility:seed=-1", "seed should be 0 or more, found -1"),
        ("facility:limit=-1", "limit should be 0 or more, found -1"),
        ("facility:epsilon=0", "above 0 and below 1, found 0.0"),
        ("facility:epsilon=1", "found 1.0"),
    ],
)
def test_options_out_of_range_are_refused(spec: str, found: str) -> None:
    assert found in refusal(lambda: plugins.parse("strategies", spec))


# --- points -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 64, 65, 1000])
@pytest.mark.parametrize("power", [-60, -3, 0, 60])
def test_distances_are_exact_on_the_grid_and_close_to_the_true_ones(length: int, power: int) -> None:
    values = normal(20, length) * np.float32(2.0**power) + np.float32(2.0 ** (power + 2))
    points = Points.of(values)
    whole = [[int(x) for x in row] for row in points.grid_ND]
    exact = [[sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) for b in whole] for a in whole]
    assert points.squared_distances(points.grid_ND).tolist() == exact
    true = np.linalg.norm(values[:, None].astype(np.float64) - values, axis=2)
    np.testing.assert_allclose(np.sqrt(exact) * true[0, 1] / math.sqrt(exact[0][1]), true, rtol=1e-4)


def test_the_grid_of_equal_points_is_one_point() -> None:
    points = Points.of(np.full((4, 3), 0.1, np.float32))
    assert not points.grid_ND.any() and points.variance() == 1


@pytest.mark.parametrize("scale", ["columns", "length", "none"])
def test_distances_are_those_of_the_scaled_vectors(scale: Scale) -> None:
    values = normal(50, 4) * np.array([1, 100, 0.01, 5], np.float32) + 3
    true = values.astype(np.float64)
    scaled = {
        "columns": true / np.maximum(true.std(axis=0), true.std(axis=0).max() / 1000),
        "length": true / np.linalg.norm(true, axis=1, keepdims=True),
        "none": true,
    }[scale]
    points = points_of(table(values), "embedding", scale)
    found = np.sqrt(points.squared_distances(points.grid_ND) / points.variance())
    spread = np.sqrt(np.square(scaled - scaled.mean(axis=0)).sum(axis=1).mean())
    np.testing.assert_allclose(found, np.linalg.norm(scaled[:, None] - scaled, axis=2) / spread, atol=2e-4)


@pytest.mark.parametrize("scale", ["columns", "length"])
def test_scaling_takes_what_has_no_size(scale: Scale) -> None:
    values = np.zeros((3, 2), np.float32)
    assert not points_of(table(values), "embedding", scale).grid_ND.any()
    values[1] = 7
    assert np.unique(points_of(table(values), "embedding", scale).grid_ND, axis=0).shape == (2, 2)


def test_the_noise_of_a_dead_feature_stays_small() -> None:
    values = normal(200, 3) * np.array([1, 0.5, 1e-8], np.float32)
    grid_ND = points_of(table(values), "embedding", "columns").grid_ND
    low, middle, dead = np.sort(grid_ND.std(axis=0))[[2, 1, 0]]
    assert low / middle == pytest.approx(1, rel=1e-3) and dead < low / 1e4


@pytest.mark.parametrize("spec", [*SPECS, "kcenter:scale=none", "kcenter:scale=length", "facility:scale=none"])
def test_the_size_of_blocks_changes_nothing(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for values in (normal(60), lattice(60)):
        monkeypatch.undo()
        expected = picked(spec, table(values), 20)
        monkeypatch.setattr(_vectors, "_BLOCK", 7 * values.shape[1])
        monkeypatch.setattr(facility, "_AT_ONCE", 150)
        assert picked(spec, table(values), 20) == expected


@pytest.mark.parametrize("spec", SPECS)
def test_the_order_of_rows_does_not_matter_where_distances_are_nearly_equal(spec: str) -> None:
    """On a sphere, moved by the last bits: sums of floats in another order would choose otherwise."""
    values = normal(300, 64)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    candidates = table(values)
    expected = picked(spec, candidates, 60)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(values))
        assert order[picked(spec, candidates.take(pa.array(order)), 60)].tolist() == expected


# --- kcenter ----------------------------------------------------------------------------------------------------------


def squared(values: Vectors) -> npt.NDArray[np.float64]:
    return np.square(values[:, None].astype(np.float64) - values).sum(axis=2)


def farthest_first(squared_NN: npt.NDArray[np.float64], first: int, count: int) -> list[int]:
    """Of the rows left, that with the largest distance to the nearest pick, the first of equals."""
    picks = [first]
    while len(picks) < count:
        rest = [row for row in range(len(squared_NN)) if row not in picks]
        picks.append(max(rest, key=lambda row: (squared_NN[row, picks].min(), -row)))
    return picks


@pytest.mark.parametrize("make", [normal, lattice])
@pytest.mark.parametrize("seed", range(5))
def test_kcenter_is_farthest_first(make: Callable[..., Vectors], seed: int) -> None:
    values = make(40, 2 + seed, seed=seed)
    nearest = np.square(values - values.mean(axis=0, dtype=np.float64)).sum(axis=1)
    found = picked("kcenter:scale=none", table(values), 40)
    assert nearest[found[0]] == pytest.approx(nearest.min(), abs=1e-5)
    assert found == farthest_first(squared(values), found[0], 40)
    assert picked("kcenter:scale=none", table(values), 15) == found[:15]  # any prefix is a choice of its own


def test_kcenter_starts_in_the_middle_or_anywhere() -> None:
    values = np.array([[0.0], [10.0], [4.0], [5.0]], np.float32)  # mean 4.75
    assert picked("kcenter", table(values), 4) == [3, 0, 1, 2]
    starts = {seed: picked(f"kcenter:start=seeded,seed={seed}", table(values), 3) for seed in range(30)}
    assert {start[0] for start in starts.values()} == {0, 1, 2, 3}
    assert all(start == farthest_first(squared(values), start[0], 3) for start in starts.values())


def test_kcenter_takes_equal_vectors_last_in_the_order_of_their_ids() -> None:
    values = np.array([[1.0], [1.0], [0.0], [1.0], [0.0], [0.0], [1.0]], np.float32)
    assert picked("kcenter", table(values), 7) == [0, 2, 1, 3, 4, 5, 6]


@pytest.mark.parametrize("seed", range(8))
def test_kcenter_is_within_twice_the_smallest_radius(seed: int) -> None:
    values = normal(11, 2, seed=seed)
    distances = np.sqrt(squared(values))

    def radius(picks: tuple[int, ...] | list[int]) -> float:
        return float(distances[list(picks)].min(axis=0).max())

    picks = picked("kcenter:scale=none,start=seeded", table(values), 5)
    for count in range(1, 6):
        least = min(map(radius, itertools.combinations(range(11), count)))
        assert least <= radius(picks[:count]) <= 2 * least + 1e-5


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("make", [normal, lattice])  # the lattice's 9 points are many times there
def test_kcenter_picks_the_same_by_torch(
    make: Callable[..., Vectors], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = table(make(300, 2))
    expected = picked("kcenter", candidates, 100)
    asked = []

    def by_torch(points: Points, first: int, count: int, wanted: str) -> npt.NDArray[np.int64]:
        asked.append(wanted)
        return original(points, first, count, device)

    original = kcenter._farthest_first_by_torch
    monkeypatch.setattr(kcenter, "_farthest_first_by_torch", by_torch)
    monkeypatch.setattr(kcenter, "_WORTH_A_GPU", 300 * 2 * 100 - 1)
    assert picked("kcenter", candidates, 100) == expected and len(asked) == kcenter._has_gpu()
    monkeypatch.setattr(kcenter, "_has_gpu", lambda: True)
    assert picked("kcenter", candidates, 100) == expected and asked[-1] == "cuda"
    before = len(asked)
    picked("kcenter", candidates, 99)  # not worth it
    assert len(asked) == before


# --- facility ---------------------------------------------------------------------------------------------------------


def similarities(values: Vectors) -> npt.NDArray[np.float64]:
    distances = np.sqrt(squared(values))
    spread = np.sqrt(np.square(values - values.mean(axis=0, dtype=np.float64)).sum(axis=1).mean())
    return 1 / (1 + distances / (spread or 1))


def coverage(similar_NN: npt.NDArray[np.float64], picks: tuple[int, ...] | list[int]) -> float:
    return float(similar_NN[list(picks)].max(axis=0).sum())


def greedy(similar_NN: npt.NDArray[np.float64], count: int) -> list[int]:
    picks: list[int] = []
    while len(picks) < count:
        rest = [row for row in range(len(similar_NN)) if row not in picks]
        picks.append(max(rest, key=lambda row: (round(coverage(similar_NN, [*picks, row]), 9), -row)))
    return picks


@pytest.mark.parametrize("make", [normal, lattice])
@pytest.mark.parametrize("seed", range(4))
def test_facility_is_the_greedy_choice(make: Callable[..., Vectors], seed: int) -> None:
    values = make(30, 2 + seed, seed=seed)
    expected = greedy(similarities(values), 20)
    assert picked("facility:scale=none", table(values), 20) == expected
    assert picked("facility:scale=none", table(values), 7) == expected[:7]


def test_facility_takes_equal_gains_in_the_order_of_their_ids() -> None:
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 2, np.float32)
    assert picked("facility", table(corners), 8) == list(range(8))
    assert picked("facility", table(np.ones((5, 3), np.float32)), 5) == [0, 1, 2, 3, 4]
    assert picked("facility:limit=0", table(np.ones((5, 3), np.float32)), 1) == [0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [0, 12])
def test_facility_covers_nearly_as_much_as_the_best_choice(seed: int, limit: int) -> None:
    values = normal(12, 2, seed=seed)
    similar_NN = similarities(values)
    picks = picked(f"facility:limit={limit},scale=none", table(values), 4)
    for count in range(1, 5) if limit else [4]:
        best = max(coverage(similar_NN, subset) for subset in itertools.combinations(range(12), count))
        assert (1 - 1 / math.e) * best <= coverage(similar_NN, picks[:count]) <= best + 1e-4


@pytest.mark.parametrize(("count", "kinds"), [(10, 8), (60, 8), (300, 8), (60, 600)])
def test_facility_beyond_its_limit_loses_little(count: int, kinds: int) -> None:
    values = normal(kinds, 6, seed=1)[np.random.default_rng(2).integers(kinds, size=600)] * 3 + normal(600, 6)
    similar_NN = similarities(values)
    candidates = table(values)
    exact = coverage(similar_NN, picked("facility:limit=600,scale=none", candidates, count))
    by_chance = coverage(similar_NN, picked("random", candidates, count))
    draws = [picked(f"facility:limit=599,scale=none,seed={seed}", candidates, count) for seed in range(3)]
    for draw in draws:
        assert len(set(draw)) == count
        covered = coverage(similar_NN, draw)
        assert covered > 0.98 * exact and covered - by_chance > 0.75 * (exact - by_chance)
    assert len({tuple(draw) for draw in draws}) == 3


def test_facility_is_exact_up_to_its_limit_and_where_all_are_drawn() -> None:
    for values in (lattice(50), normal(50)):
        candidates = table(values)
        exact = picked("facility:limit=50", candidates, 4)
        assert picked("facility:limit=49,epsilon=0.017", candidates, 4) == exact  # 50 / 4 * ln(1 / 0.017) > 50
    assert {tuple(picked(f"facility:limit=49,seed={seed}", candidates, 25)) for seed in range(3)} != {tuple(exact)}
    assert picked("facility:limit=50,seed=1", candidates, 4) == exact


def test_facility_beyond_its_limit_takes_all_that_there_are() -> None:
    assert sorted(picked("facility:limit=0", table(normal(30)), 30)) == list(range(30))


# --- cluster ----------------------------------------------------------------------------------------------------------

SIZES = (40, 7, 25, 3)


def blobs(seed: int = 0) -> tuple[Vectors, npt.NDArray[np.int64]]:
    """Vectors far apart in four groups of other sizes, in any order, and their groups."""
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(4), SIZES))
    return normal(len(groups), 3, seed) + np.eye(4, 3, dtype=np.float32)[groups] * 100, groups


@pytest.mark.parametrize("seed", range(4))
def test_cluster_draws_evenly_until_a_cluster_has_no_more(seed: int) -> None:
    values, groups = blobs(seed)
    found = groups[picked("cluster:clusters=4,drop_low=0", table(values), sum(SIZES))]
    for length in range(1, len(found) + 1):
        counts = Counter(found[:length].tolist())
        open_groups = [counts[group] for group in range(4) if counts[group] < SIZES[group]]
        fullest = max(counts.values())
        assert all(fullest - 1 <= count for count in open_groups)
    assert (
        picked("cluster:clusters=4,drop_low=0", table(values), 20)
        == picked("cluster:clusters=4,drop_low=0", table(values), 40)[:20]
    )


def test_cluster_finds_the_smallest_sum_of_squares() -> None:
    for seed in range(5):
        points = Points.of(normal(7, 2, seed=seed))
        grid_ND = points.grid_ND.astype(np.float64)

        def inertia(labels: Any, grid_ND: npt.NDArray[np.float64] = grid_ND) -> float:
            groups = [grid_ND[np.asarray(labels) == k] for k in range(3)]
            return sum(float(np.square(group - group.mean(axis=0)).sum()) for group in groups if len(group))

        best = min(inertia(labels) for labels in itertools.product(range(3), repeat=7))
        found = inertia(cluster.kmeans(points, 3, np.random.default_rng(seed)))
        assert best * (1 - 1e-9) <= found <= best * 1.0001


@pytest.mark.parametrize("drop_low", ["0", "0.1", "0.25", "0.5", "0.7", "0.9", "0.95"])
def test_cluster_leaves_out_the_lowest_scores(drop_low: str) -> None:
    for count in (1, 2, 9, 10, 15, 41):
        scores = np.random.default_rng(count).integers(8, size=count).astype(float)
        left = math.floor((1 - float(drop_low)) * count + 0.5 + 1e-9)
        in_order = sorted(range(count), key=lambda row: (-scores[row], row))
        candidates, spec = table(normal(count), scores), f"cluster:drop_low={drop_low}"
        if left:
            assert set(picked(spec, candidates, left)) == set(in_order[:left])
        message = refusal(lambda spec=spec, candidates=candidates, left=left: picked(spec, candidates, left + 2))
        assert f"dropping {count - left} and keeping {left + 2} of {count} candidates" in message


def test_cluster_needs_the_score_for_nothing_else() -> None:
    values, scores = normal(40), np.random.default_rng(0).permutation(40).astype(float)
    expected = picked("cluster", table(values, scores), 15)
    assert picked("cluster", table(values, np.where(scores >= 20, 100 - scores, 0)), 15) == expected


def test_cluster_looks_only_at_the_vectors_of_those_left() -> None:
    column = pa.array([None, [1.0], [2.0], None, [4.0], [5.0]], pa.list_(pa.float32()))
    assert set(picked("cluster:drop_low=0.34", table(column, [0.0, 1, 2, 0, 4, 5]), 4)) == {1, 2, 4, 5}


def test_cluster_has_fewer_clusters_where_fewer_vectors_differ() -> None:
    values = np.repeat(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]], np.float32), [10, 2, 5], axis=0)
    found = picked("cluster:drop_low=0", table(values), 9)
    assert sorted(Counter(values[found, 0].tolist()).items()) in ([(1, 4), (3, 2), (5, 3)], [(1, 3), (3, 2), (5, 4)])
    assert len(picked("cluster:drop_low=0", table(np.ones((6, 2), np.float32)), 6)) == 6


def test_cluster_is_a_draw_of_its_seed() -> None:
    candidates = table(normal(200))
    draws = {tuple(picked(f"cluster:drop_low=0,seed={seed}", candidates, 50)) for seed in range(5)}
    assert len(draws) == 5
    times = Counter(
        row for seed in range(300) for row in picked(f"cluster:drop_low=0,clusters=1,seed={seed}", table(normal(9)), 3)
    )
    assert len(times) == 9 and all(60 < count < 140 for count in times.values())  # 100 expected, deviation 8


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "most"),
    [
        (lambda candidates, points: picked("kcenter", candidates, 300), 24),
        (lambda candidates, points: picked("cluster", candidates, 300), 24),
        (lambda candidates, points: facility._stochastic_greedy(points, 4, 150, np.random.default_rng(0)), 24),
    ],
    ids=["kcenter", "cluster", "facility"],
)
def test_memory_is_that_of_a_few_copies_of_the_vectors(
    question: Callable[..., object], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_STARTS", 1)
    monkeypatch.setattr(cluster, "_STEPS", 5)
    candidates = table(normal(20_000, 64), np.arange(20_000.0))  # 4.9 MiB; N x N distances would be 1.5 GiB
    points = points_of(candidates, "embedding", "columns")
    tracemalloc.start()
    try:
        question(candidates, points)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert 1 < peak < most


# --- from a store -----------------------------------------------------------------------------------------------------

LABEL = "embedding:checkpoint=model.safetensors"


@pytest.fixture
def store(tmp_path: Path, write_store: Callable[..., Store]) -> Store:
    """Twelve patches with sobel 0, 1, ..., 11, and vectors at two labels."""
    made = write_store(tmp_path / "store", scores={"sobel": [float(i) for i in range(12)]})
    for label in ("embedding", LABEL):
        record = schema.ScorerRecord(
            scorer="embedding",
            label=label,
            columns=["embedding"],
            identity={},
            fingerprint=f"{len(label):x}".ljust(16, "0"),
        )
        found = made.add_score_set(record)
        for unit in made.commits():
            ids = made.unit_table("patches", unit)["patch_id"]
            columns = [ids, fixed(normal(len(ids), 4, seed=unit))]
            part = made.write_table(found.kind, unit, pa.table(columns, schema=layout.scores_schema(("embedding",), 4)))
            made.commit(found.kind, unit, "0" * 16, [part])
    return made


@pytest.mark.parametrize("name", ["kcenter", "facility"])
def test_vectors_are_found_in_a_store(store: Store, name: str) -> None:
    manifest = select(store, name, keep=0.5)
    again = select(store, f"{name}:by={LABEL}", keep=0.5)
    assert manifest.table.num_rows == 6 and manifest.table["score"].null_count == 6
    assert manifest.table["patch_id"].equals(again.table["patch_id"])
    assert (manifest.recipe.strategy, again.recipe.strategy) == (name, f"{name}:by={LABEL}")
    assert list(manifest.recipe.scorers) == ["embedding"] and list(again.recipe.scorers) == [LABEL]


def test_cluster_takes_its_score_beside_its_vectors(store: Store) -> None:
    manifest = select(store, "cluster:clusters=2", by="sobel", keep=0.5)
    assert sorted(manifest.table["score"].to_pylist()) == [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]
    assert list(manifest.recipe.scorers) == ["embedding", "sobel"]
    assert "dropping 6 and keeping 9 of 12" in refusal(lambda: select(store, "cluster", by="sobel", keep=0.75))
    assert "say --by NAME" in refusal(lambda: select(store, "cluster"))


@pytest.mark.parametrize("name", ["kcenter", "facility"])
def test_a_store_without_the_vectors_is_refused(store: Store, name: str) -> None:
    assert "needs 'embeddings'; the store has: " in refusal(lambda: select(store, f"{name}:by=embeddings"))
    assert "'sobel' should hold vectors" in refusal(lambda: select(store, f"{name}:by=sobel"))


def test_patches_without_a_vector_can_be_left_out(store: Store, write_store: Callable[..., Store]) -> None:
    grown = write_store(store.path, units=[2], first=3)
    assert "'embedding' is missing or not finite in 2 of 14" in refusal(lambda: select(grown, "kcenter"))
    assert select(grown, "kcenter", where="embedding IS NOT NULL").recipe.counts["candidates"] == 12
