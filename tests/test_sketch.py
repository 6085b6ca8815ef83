"""Pictures for a terminal: as high as the counts, no wider than they may be, readable without colour and in ASCII."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import sketch
from curate.sketch import WIDTH, Pen, Window, bars, spark

PENS = (Pen(), Pen(blocks=False))
counted = st.integers(0, 10**10)
histograms = st.lists(st.tuples(counted, st.fractions(0, 1)), min_size=1, max_size=60).filter(lambda bins: any(bins))


def columns(lines: list[str], bins: int, pen: Pen) -> list[str]:
    """Each bin's column, from its foot up."""
    upright = pen.frame[0]
    rows = [line[line.index(upright) + 1 :].ljust(bins) for line in lines if upright in line]
    return ["".join(row[bin_] for row in reversed(rows)).rstrip() for bin_ in range(bins)]


def found(counts: list[int], chosen: list[int], **more: Any) -> dict[str, Any]:
    """What `distribution.of_manifest` could say."""
    edges = np.linspace(0, 1, len(counts) + 1).tolist()
    content = {
        "score": "srcnn",
        "note": None,
        "candidates": sum(counts),
        "chosen": sum(chosen),
        "without_finite_score": 0,
        "log": False,
        "edges": edges,
        "counts": counts,
        "chosen_counts": chosen,
        "below": 0,
        "chosen_below": 0,
        "window": None,
    }
    return content | more


@given(histograms, st.sampled_from(PENS))
@settings(deadline=None, max_examples=80, derandomize=True)
def test_bars_are_as_high_as_their_counts(bins: list[tuple[int, Any]], pen: Pen) -> None:
    counts = [count for count, _ in bins]
    chosen = [int(count * share) for count, share in bins]
    lines = bars(np.linspace(0, 1, len(counts) + 1).tolist(), counts, chosen, window=None, pen=pen)
    drawn = columns(lines, len(counts), pen)
    by_count = [bar for _, bar in sorted(zip(counts, drawn, strict=True), key=lambda pair: pair[0])]
    assert [len(bar) for bar in by_count] == sorted(len(bar) for bar in by_count)
    assert [bool(bar) for bar in drawn] == [count > 0 for count in counts]
    assert max(map(len, drawn)) == (7 if max(counts) else 0)
    for bar, count, part in zip(drawn, counts, chosen, strict=True):
        assert re.fullmatch(f"[{pen.chosen[0]}]*[{pen.both}]?[{pen.rest[0]}]*|[{pen.chosen[1]}{pen.rest[1]}]", bar)
        if part == count:
            assert not set(bar) & {*pen.rest, pen.both}
        if part == 0:
            assert not set(bar) & {*pen.chosen, pen.both}


@given(histograms, st.text(max_size=80), st.data())
@settings(deadline=None, max_examples=80, derandomize=True)
def test_nothing_is_wider_than_it_may_be(bins: list[tuple[int, Any]], name: str, data: st.DataObject) -> None:
    counts = [count for count, _ in bins]
    chosen = [int(count * share) for count, share in bins]
    low, high = sorted((data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))))
    total = max(1, sum(counts))
    window = {"first": int(total * low), "last": total - 1, "gaps": 0, "low": low, "high": high}
    more = {"score": name, "log": True, "below": 10**10, "without_finite_score": 10**10}
    content = found(counts, chosen, window=window, **more) | {"candidates": total}
    store = {
        name: {"without_finite_score": 1},
        f"{name}.": content | {"lowest": -1e-300, "median": 1, "highest": 1e300},
    }
    for pen in PENS:
        for lines in (sketch.of_manifest(content, pen), sketch.of_store(store, pen)):
            assert all(line.isprintable() and len(line) <= WIDTH for line in lines)
            assert pen.blocks or "".join(lines).isascii()


@given(st.integers(1, 60), st.floats(0, 1), st.floats(0, 1), st.sampled_from(PENS))
@settings(deadline=None, max_examples=80, derandomize=True)
def test_the_window_s_ends_are_marked_under_their_bins(bins: int, one: float, other: float, pen: Pen) -> None:
    low, high = min(one, other), max(one, other)
    edges = np.linspace(0, 1, bins + 1).tolist()
    lines = bars(edges, [3] * bins, [3] * bins, window=Window(low, high, 0.05, 0.55), pen=pen)
    axis = next(index for index, line in enumerate(lines) if line.startswith("0 "))
    text = lines[axis + 1 : -1]
    start = lines[axis].index(pen.frame[1]) + 1
    marks = [(row, at) for row, line in enumerate(text) for at in range(len(line)) if line[at] in pen.frame[3:]]
    places = sorted(at - start for _, at in marks)
    expected = sorted(min(int(np.searchsorted(edges, end, "right")), bins) - 1 for end in (low, high))
    assert places == expected and places[0] >= 0 and places[1] < bins
    words = " ".join(text)
    assert f"{low:.3g} (rank 55 %)" in words and f"{high:.3g} (rank 5 %)" in words


def test_a_manifest_s_picture() -> None:
    counts, chosen = [1, 4, 8, 4, 2], [0, 2, 8, 4, 0]
    window = {"first": 2, "last": 15, "gaps": 0, "low": 0.3, "high": 0.75}
    content = found(counts, chosen, candidates=20, below=1, without_finite_score=3, note="a note", window=window)
    assert sketch.of_manifest(content, Pen(blocks=False)) == [
        "srcnn: # 14 chosen, : 6 not chosen",
        "8 |  #",
        "  |  #",
        "  |  #",
        "  | :##",
        "  | :##",
        "  | ###:",
        "  |:###:",
        "0 +-----",
        "    ^ 0.3 (rank 80 %)",
        "      ^ 0.75 (rank 10 %)",
        "   0   1",
        "not drawn: 1 below 0, 3 without a finite score",
        "a note",
    ]


def test_a_window_at_the_end_of_the_axis_is_marked_inside_the_line() -> None:
    window = {"first": 0, "last": 3, "gaps": 0, "low": 0.5, "high": 0.999}
    lines = sketch.of_manifest(found([1] * 60, [1] * 60, window=window), Pen())
    assert max(map(len, lines)) <= WIDTH and any(line.endswith("0.999 (rank 0 %) ┘") for line in lines)


def test_a_broken_window_is_not_marked() -> None:
    window = {"first": 0, "last": 7, "gaps": 0, "low": 0.0, "high": 1.0}
    whole = sketch.of_manifest(found([4, 4], [4, 4], window=window), Pen())
    broken = sketch.of_manifest(found([4, 4], [4, 3], window=window | {"gaps": 1}), Pen())
    assert "rank" in "".join(whole) and "rank" not in "".join(broken)


def test_the_chosen_patches_alone_are_drawn_as_chosen() -> None:
    alone = sketch.of_manifest(found([4, 4], [4, 4]) | {"candidates": None, "counts": None}, Pen())
    assert alone[0] == "srcnn: █ 8 chosen" and "░" not in "".join(alone)


def test_what_has_no_bins_is_its_note() -> None:
    assert sketch.of_manifest({"score": None, "note": "nothing"}, Pen()) == ["nothing"]


def test_about_half_of_a_row_is_both() -> None:
    for part, bar in ((0, "░"), (1, "░"), (2, "▒"), (4, "▒"), (5, "▒"), (6, "█"), (8, "█")):
        drawn = columns(bars([0, 1, 2], [8, 56], [part, 0], window=None, pen=Pen()), 2, Pen())
        assert drawn == [bar, "░" * 7], part
    assert "▒ both" in sketch.of_manifest(found([8, 56], [4, 0]), Pen())[0]


@given(st.lists(counted, max_size=60), st.sampled_from(PENS))
@settings(deadline=None, max_examples=80, derandomize=True)
def test_a_sparkline_is_as_high_as_its_counts(counts: list[int], pen: Pen) -> None:
    drawn = spark(counts, pen)
    each = -(-len(counts) // 20) or 1
    sums = [sum(counts[start : start + each]) for start in range(0, len(counts), each)]
    levels = [pen.levels.index(step) for step in drawn]
    assert len(drawn) == len(sums) <= 20
    assert [level for _, level in sorted(zip(sums, levels, strict=True))] == sorted(levels)
    assert [level > 0 for level in levels] == [count > 0 for count in sums]
    assert not any(sums) or max(levels) == 8


def test_a_store_has_a_line_for_each_score() -> None:
    score = {"lowest": 0.0, "median": 0.5, "highest": 12.25, "log": True, **found([1, 9], [0, 0])} | {"log": True}
    lines = sketch.of_store(
        {"sobel": score, "none": {"without_finite_score": 2}, "cut": {"without_finite_score": 0}}, Pen()
    )
    assert [line.split() for line in lines] == [
        ["score", "patches", "lowest", "median", "highest"],
        ["sobel", "▁█", "0", "0.5", "12.2", "log", "axis"],
        ["none", "-", "-", "-", "no", "finite", "score"],
        ["cut", "-", "-", "-", "no", "score"],
    ]
    assert sketch.of_store({}, Pen()) == []


def test_colour_is_all_that_colour_adds() -> None:
    content = found([8, 8, 8, 1], [0, 4, 8, 1])
    plain, coloured = (
        sketch.of_manifest(content, Pen(blocks, colour)) for blocks in (True,) for colour in (False, True)
    )
    assert [re.sub("\x1b\\[[0-9]*m", "", line) for line in coloured] == plain != coloured
    assert not any("\x1b" in line for line in plain)
    assert all(line.count("\x1b[0m") * 2 == line.count("\x1b") for line in coloured)


@pytest.mark.parametrize(
    ("encoding", "can"), [("utf-8", True), ("ascii", False), ("latin-1", False), (None, False), ("no such", False)]
)
def test_blocks_are_for_encodings_that_have_them(encoding: str | None, can: bool) -> None:
    assert sketch.can_write(encoding) is can
