"""Runs of a study beside those of its reference: of the same seed, and of the others."""

from collections.abc import Mapping

import pytest

from curate.agreement import OTHERS, beside, known_mean, overlap


def test_overlap() -> None:
    assert overlap([1, 2, 3], (3, 2, 1)) == 1 and overlap([1], [2]) == 0
    assert overlap([1, 2, 3], [2, 3, 4]) == overlap([2, 3, 4], [1, 2, 3]) == 0.5


def test_runs_are_beside_the_references() -> None:
    found = {("all", 0): 1.0, ("all", 1): 2.0, ("all", 7): 4.0, ("few", 1): 8.0, ("few", 7): None}

    def ratio(one: float | None, other: float | None) -> Mapping[str, float | None]:
        return {"ratio": None if one is None or other is None else one / other, "nothing": None}

    assert beside(found, "few", 1, "all", ratio) == {
        "ratio": 4.0, "nothing": None, "ratio" + OTHERS: pytest.approx((8 + 2) / 2), "nothing" + OTHERS: None
    }  # fmt: skip
    assert beside(found, "all", 1, "all", ratio) == {"ratio" + OTHERS: (2 + 0.5) / 2, "nothing" + OTHERS: None}
    assert beside(found, "few", 7, "all", ratio)["ratio" + OTHERS] is None
    alone = {("all", 0): 1.0, ("few", 0): 3.0}
    assert beside(alone, "few", 0, "all", ratio) == {
        "ratio": 3.0, "nothing": None, "ratio" + OTHERS: None, "nothing" + OTHERS: None
    }  # fmt: skip


def test_the_mean_of_what_is_known() -> None:
    assert known_mean([1.0, None, 2.0]) == 1.5 and known_mean([None]) is None and known_mean([]) is None
