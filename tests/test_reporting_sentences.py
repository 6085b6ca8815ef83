"""What a page says in sentences: ranks from 1, numbers alike, few images by their number and many by a tenth."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from curate.ingestion import ingest
from curate.reporting import ranks, sentences
from curate.reporting.facts import Facts, gather
from curate.reporting.words import number
from curate.schema import ReportedManifest, ReportedWindow
from curate.selection import select
from curate.store import Store


def window(first: int, last: int, candidates: int, gaps: int = 0) -> ReportedWindow:
    chosen = last + 1 - first - gaps
    return ReportedWindow(candidates=candidates, chosen=chosen, first=first, last=last, gaps=gaps, low=0.25, high=0.75)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            window(21, 233, 426),
            "ranks 22 to 234 of 426, highest first, from 0.75 down to 0.25: passes over the 4.9 % above, "
            "leaves the 45.1 % below",
        ),
        (
            window(0, 212, 426),
            "ranks 1 to 213 of 426, highest first, from 0.75 down to 0.25: nothing is passed over above, "
            "leaves the 50.0 % below",
        ),
        (window(0, 9, 10), "all 10, from 0.75 down to 0.25"),
        (window(4, 9, 10, gaps=2), "spread over ranks 5 to 10 of 10, from 0.75 down to 0.25"),
        (None, "none of its patches has this score"),
    ],
)
def test_a_window_in_words_counts_from_one(found: ReportedWindow | None, words: str) -> None:
    assert sentences.of_window(found, number) == words


def record(facts: Facts, index: int = 0) -> ReportedManifest:
    choice = facts.choices[index]
    windows = {}
    if choice.by is not None:
        score = facts.scores[choice.by]
        found = ranks.window(score, ranks.descending(score, choice.candidates), choice.chosen)
        assert found is not None
        windows[choice.by] = window(found.first, found.last, found.candidates)
    counts = {"patches": int(choice.chosen.sum()), "images": 3, "pixels": 5_000_000}
    more = {"sources": {}, "sizes": {}, "digest": "d", "recipe": {}, "command": "c"}
    return ReportedManifest(name=choice.name, by=choice.by, top_tenth=0.622, windows=windows, **counts, **more)


@pytest.mark.parametrize(("num", "words"), [(1, None), (4, "The image that gives most gives "), (20, "The 2 images")])
def test_of_few_images_there_is_no_tenth(
    num: int, words: str | None, tmp_path: Path, write_photos: Callable[..., Path]
) -> None:
    ingest([write_photos(tmp_path / "photos", [(60, 60)] * num)], tmp_path / "store", patch=48, step=48)
    store = Store.open(tmp_path / "store")
    facts = gather(store, {"m": select(store, "random", keep=1.0)})
    said = sentences.of_coverage(facts, facts.choices[0], record(facts))
    assert said.startswith("m takes patches from 3 of ")
    assert ("tenth" in said) == (num == 20)
    if words is None:
        assert said.endswith("each counted once).")
    else:
        assert words in said and (num != 4 or f"gives {100 / num:.1f} % of its patches" in said)


def test_a_choice_is_told_by_strategy_window_and_condition(tmp_path: Path, write_store: Callable[..., Store]) -> None:
    store = write_store(tmp_path / "store", units=(40,), scores={"sobel": [float(i) for i in range(40)]})
    refined = select(store, "refined", by="sobel", drop_top=0.1, where="sobel >= 20")
    facts = gather(store, {"m": refined, "r": select(store, "random")})
    said = sentences.of_choice(facts.choices[0], record(facts), number)
    assert said.startswith(
        "Strategy refined:drop_top=0.1 by sobel keeps 10 of 20 candidate patches (50.0 %). Ranks 3 to"
    )
    assert said.endswith("Candidates met the condition sobel >= 20.")
    assert "looks at no score of its own, keeps 20 of 40" in sentences.of_choice(
        facts.choices[1], record(facts, 1), number
    )


def test_a_note_says_where_candidates_are_others_than_those_drawn(
    tmp_path: Path, write_store: Callable[..., Store]
) -> None:
    store = write_store(tmp_path / "store", units=(40,), scores={"sobel": [*np.linspace(0, 1, 39).tolist(), None]})
    one, two = select(store, "des", by="sobel"), select(store, "asc", by="sobel")
    alike = gather(store, {"one": one, "two": two, "random": select(store, "random")})
    assert sentences.notes(alike, alike.choices[0]) == []
    few = select(store, "asc", by="sobel", where="sobel > 0.5")
    other = gather(store, {"one": one, "two": two, "few": few})
    (note,) = sentences.notes(other, other.choices[0])
    assert note.startswith("Curves and histograms are drawn of the candidates of one; few could choose from others")
