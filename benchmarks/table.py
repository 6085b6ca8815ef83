"""One line of the bench table, and the table as Markdown."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["HEADER", "Row"]

HEADER = "| what | ours | yardstick | its figure | ratio | target | reached |\n|---|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Row:
    """Ours beside a yardstick; `ratio` is said to be good above or below the target."""

    what: str
    ours: str
    yardstick: str
    theirs: str
    ratio: float
    target: float | None = None
    good: Literal["above", "below"] = "above"

    @property
    def reached(self) -> str:
        """yes, no, or nothing where there is no target."""
        if self.target is None:
            return ""
        return "yes" if (self.ratio >= self.target if self.good == "above" else self.ratio <= self.target) else "no"

    def markdown(self) -> str:
        """The line."""
        target = "" if self.target is None else f"{'≥' if self.good == 'above' else '≤'} {self.target:g}"
        cells = (self.what, self.ours, self.yardstick, self.theirs, f"{self.ratio:.2f}", target, self.reached)
        return f"| {' | '.join(cells)} |"
