"""Which patches are shown: the ends of the order, both sides of a window's edges, what entered and left."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from curate.ingestion import ingest
from curate.reporting import ranks, sheets
from curate.reporting.facts import Facts, gather
from curate.scoring import score
from curate.selection import select
from curate.store import Store

NUM = 40


@pytest.fixture
def facts(tmp_path: Path, write_store: Callable[..., Store]) -> Facts:
    """Forty patches whose score is 39, 38, ..., 0 in the order of the store's rows, and four manifests."""
    store = write_store(tmp_path / "store", units=(NUM,), scores={"sobel": [float(NUM - 1 - i) for i in range(NUM)]})
    refined = select(store, "refined", by="sobel", keep=0.5, drop_top=0.1)
    everything = select(store, "des", by="sobel", keep=1.0)
    random = select(store, "random", keep=0.5)
    broken = select(store, "stratified", by="sobel", keep=0.5, per="score", bins=4)
    return gather(store, {"refined": refined, "all": everything, "random": random, "broken": broken})


def scores(facts: Facts, sheet: sheets.Sheet) -> list[float]:
    return [float(facts.scores["sobel"][row]) for row in sheet.rows]


def test_the_ends_come_first(facts: Facts) -> None:
    hardest, easiest = (sheet.more or sheet for sheet in sheets.extremes(facts, 0, "sobel", 4))
    assert scores(facts, hardest) == [39, 38, 37, 36]
    assert scores(facts, easiest) == [0, 1, 2, 3]


def test_the_hardest_are_of_many_photographs_and_do_not_overlap(
    tmp_path: Path, write_photos: Callable[..., Path]
) -> None:
    ingest([write_photos(tmp_path / "photos", [(120, 200)] * 5)], tmp_path / "store", patch=48, step=24)
    score(tmp_path / "store", ["sobel"])
    made = gather(Store.open(tmp_path / "store"), {"m": select(tmp_path / "store", "des", by="sobel")})
    order = ranks.descending(made.scores["sobel"], made.choices[0].candidates).tolist()
    for sheet, ordered in zip(sheets.extremes(made, 0, "sobel", 8), (order, order[::-1]), strict=True):
        assert sheet.more is not None and list(sheet.more.rows) == ordered[:8]
        assert "at most 2 patches of a photograph, none that overlap" in sheet.words
        assert sheet.rows[0] == ordered[0] and len(sheet.rows) == 8
        assert [ordered.index(row) for row in sheet.rows] == sorted(ordered.index(row) for row in sheet.rows)
        assert np.bincount(made.image[list(sheet.rows)]).max() == 2
        windows = [tuple(made.patches[name][row].as_py() for name in ("image_id", "y", "x")) for row in sheet.rows]
        for (one, y, x), (other, v, u) in combinations(windows, 2):
            assert one != other or abs(y - v) >= 48 or abs(x - u) >= 48
        assert set(sheet.more.rows) <= set(sheets.wanted([sheet]))
    few = sheets.extremes(made, 0, "sobel", 20)[0]
    assert np.bincount(made.image[list(few.rows)]).max() <= 4
    assert max(order.index(row) for row in few.rows) < len(order) // 5  # and not down to the easy ones to have twenty


def test_an_edge_has_both_sides(facts: Facts) -> None:
    """Ranks 4 to 23 of 40 are scores 35 down to 16."""
    upper, lower = sheets.edges(facts, 0, 6)
    assert scores(facts, upper) == [38, 37, 36, 35, 34, 33]
    assert scores(facts, lower) == [18, 17, 16, 15, 14, 13]
    assert upper.words == "By sobel: the last 3 left out and the first 3 chosen."
    assert lower.words == "By sobel: the last 3 chosen and the first 3 left out."


def test_where_nothing_lies_beyond_the_sheet_is_of_the_chosen(facts: Facts) -> None:
    upper, lower = sheets.edges(facts, 1, 6)
    assert scores(facts, upper) == [39, 38, 37, 36, 35, 34]
    assert scores(facts, lower) == [5, 4, 3, 2, 1, 0]
    assert upper.words == "By sobel: nothing lies above; the first 6 chosen."
    assert lower.words == "By sobel: the last 6 chosen; nothing lies below."


def test_a_choice_without_a_score_has_no_edges(facts: Facts) -> None:
    assert sheets.edges(facts, 2, 6) == []


def test_a_broken_window_shows_the_ends_of_what_was_chosen(facts: Facts) -> None:
    choice = facts.choices[3]
    chosen = sorted(facts.scores["sobel"][choice.chosen].tolist())
    highest, lowest = sheets.edges(facts, 3, 4)
    assert (highest.title, lowest.title) == ("Highest chosen", "Lowest chosen")
    assert scores(facts, highest) == chosen[::-1][:4] and scores(facts, lowest) == chosen[:4]


def test_the_sample_is_the_same_each_time_and_in_rank_order(facts: Facts) -> None:
    choice = facts.choices[0]
    sheet = sheets.sample(facts, 0, 8)
    assert sheet == sheets.sample(facts, 0, 8)
    ranks = choice.rank[list(sheet.rows)]
    assert (np.diff(ranks) > 0).all() and (ranks >= 0).all() and len(ranks) == 8


def test_changes_are_what_one_has_alone(facts: Facts) -> None:
    left, entered = sheets.changes(facts, 0, 1, 5)
    assert (left.index, entered.index) == (0, 1)
    assert (left.rows, left.words) == ((), "0 patches are in refined alone.")
    alone = sorted(scores(facts, entered), reverse=True)
    assert alone[0] == 39 and alone[-1] == 0 and len(alone) == 5
    assert all(not 16 <= score <= 35 for score in alone)
    assert set(sheets.wanted([left, entered, entered])) == set(entered.rows)
