"""How a long verb says how far it is: a function that the caller may pass, called now and then."""

from typing import Protocol

__all__ = ["Progress", "silent"]


class Progress(Protocol):
    """Called as `progress(done, total, note)`: units finished, units in all, and a few words ("3 refused")."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def silent(done: int, total: int, note: str = "") -> None:
    """The default of every library function: say nothing."""
