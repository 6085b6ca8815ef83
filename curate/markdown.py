"""A result as Markdown: a table, and a figure over the seeds."""

from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import NamedTuple

__all__ = ["Column", "figure", "table"]


class Column(NamedTuple):
    """A column of figures over the seeds."""

    title: str
    name: str  # of what it shows
    unit: float = 1
    form: str = ".2f"  # Python's format
    spread: bool = True  # whether to say the deviation too

    def cell(self, values: Iterable[float | None], *, spread: bool = True) -> str:
        """The figure of those values that are known, in its unit."""
        known = [value / self.unit for value in values if value is not None]
        return figure(known if not known or (spread and self.spread) else [mean(known)], self.form)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    first, *others = (f"| {' | '.join(cells)} |" for cells in (head, *rows))
    return [first, "|" + "---|" * len(head), *others]


def figure(values: Sequence[float], form: str = ".2f") -> str:
    """Mean ± standard deviation, in Python's format `form`; the mean of one value, `-` of none."""
    if not values:
        return "-"
    return f"{mean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")
