"""Every patch that meets several conditions at once: blockiness<30+sobel>=0.02 (BHI filters so, Phips 2024)."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curate.errors import UsageError, one_line
from curate.strategies import Picks, Strategy, ranked

__all__ = ["Threshold"]

_EXAMPLE = """blockiness<30+"srcnn:scale=3">=1e-3+split='train'"""
_CONDITION = re.compile(
    r"""\s* (?P<name> "(?:[^"]|"")+" | [^\s"'+<>=!] (?:[^"'+<>=!]*[^\s"'+<>=!])? )
        \s* (?P<operator> <= | >= | != | [<>=] )
        \s* (?P<value> '(?:[^']|'')*' | [-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)? )
        \s* (?P<more> \+ | \Z )""",
    re.VERBOSE,
)
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
    "=": pc.equal,
    "!=": lambda column, value: pc.or_(pc.less(column, value), pc.greater(column, value)),  # never true of NaN
}


@dataclass(frozen=True)
class Threshold(Strategy):
    """The rows that meet all conditions, in the order of the score, highest first; without one in that of patch_id.

    A condition is NAME OPERATOR VALUE with one of < <= > >= = !=, and `+` joins them. A name is a column of `scores` or
    `images`; one that holds any of + < > = ! or quotes stands in double quotes, doubled within: "srcnn:scale=3". Text
    values stand in single quotes. A number is rounded to the column's own type first, as in SQL, so that a float32
    that is written 0.02 meets >=0.02. Null and NaN meet no condition.

    At most `budget` rows are kept, so say `--keep 1` for all that meet the conditions. A comma ends an option but in
    double quotes, so that a text value can hold none; `--where` takes any SQL.
    """

    conditions: str = ""  # joined by +

    needs_score: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _parsed(self.conditions)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for name, _, _ in _parsed(self.conditions)))

    def select(self, candidates: pa.Table, budget: int) -> Picks:
        conditions = _parsed(self.conditions)
        if not conditions:
            raise UsageError(f"threshold needs conditions, such as threshold:conditions={_EXAMPLE}")
        rows = np.flatnonzero(np.logical_and.reduce([_meets(candidates, *condition) for condition in conditions]))
        if not len(rows):
            raise UsageError(f"none of {candidates.num_rows} candidates meets {one_line(self.conditions)}")
        order = ranked(candidates.select(["patch_id", "score"]).take(pa.array(rows)), descending=True)
        return Picks.equal(rows[order[:budget]])


def _parsed(conditions: str) -> list[tuple[str, str, str | float]]:
    """Name, operator and value of each. ValueError for anything else."""
    found: list[tuple[str, str, str | float]] = []
    start, more = 0, bool(conditions)
    while more:
        match = _CONDITION.match(conditions, start)
        if match is None:
            raise ValueError(f"conditions should be like {_EXAMPLE}, found '{conditions[start:]}'")
        name, value = match["name"], match["value"]
        number_or_text = value[1:-1].replace("''", "'") if value.startswith("'") else float(value)
        found.append((name[1:-1].replace('""', '"') if name[0] == '"' else name, match["operator"], number_or_text))
        start, more = match.end(), bool(match["more"])
    return found


def _meets(candidates: pa.Table, name: str, operator: str, value: str | float) -> npt.NDArray[np.bool_]:
    column = candidates[name]
    if pa.types.is_integer(column.type):
        column = column.cast(pa.float64())
    if not (pa.types.is_string(column.type) if isinstance(value, str) else pa.types.is_floating(column.type)):
        wanted = "text" if isinstance(value, str) else "a number"
        raise UsageError(f"column '{one_line(name)}' holds {column.type}, and cannot be compared with {wanted}")
    met = _OPERATORS[operator](column, pa.scalar(value, column.type))
    return np.asarray(pc.fill_null(met, False), bool)
