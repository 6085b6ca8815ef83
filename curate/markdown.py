"""A result as Markdown: a table, and a figure over the seeds."""

from collections.abc import Iterable, Sequence
from statistics import mean, stdev

__all__ = ["figure", "table"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    first, *others = (f"| {' | '.join(cells)} |" for cells in (head, *rows))
    return [first, "|" + "---|" * len(head), *others]


def figure(values: Sequence[float], form: str = ".2f") -> str:
    """Mean ± standard deviation, in Python's format `form`; the mean of one value, `-` of none."""
    if not values:
        return "-"
    return f"{mean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")
