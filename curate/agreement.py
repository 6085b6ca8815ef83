"""How far the runs of a study agree: each beside the reference's runs, which do not agree with each other either."""

from collections.abc import Callable, Iterable, Mapping, Set
from statistics import mean
from typing import TypeVar

__all__ = ["OTHERS", "beside", "known_mean", "overlap"]

OTHERS = "_other_seeds"  # after a column's name

_Found = TypeVar("_Found")


def overlap(one: Iterable[int], other: Iterable[int]) -> float:
    """Jaccard's: what two sets share, of all that is in either; they are not both empty."""
    mine: Set[int] = set(one)
    return len(mine & set(other)) / len(mine | set(other))


def beside(
    found: Mapping[tuple[str, int], _Found],
    manifest: str,
    seed: int,
    reference: str,
    agreement: Callable[[_Found, _Found], Mapping[str, float | None]],
) -> dict[str, float | None]:
    """What a run found beside what the reference's found, by the names that `agreement` gives to its figures.

    `found` is by manifest and seed. With the run of the same seed, and, under names that end in `OTHERS`, in the mean
    with those of other seeds. A reference's own row has the latter alone.
    """
    mine = found[manifest, seed]
    seeds = [other for of, other in found if of == reference and other != seed]
    others = [agreement(mine, found[reference, other]) for other in seeds]
    same = agreement(mine, found[reference, seed])
    columns = {name + OTHERS: known_mean(values[name] for values in others) for name in same}
    return columns if manifest == reference else {**columns, **same}


def known_mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None
