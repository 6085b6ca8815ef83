"""How a long verb says how far it is: a function that the caller may pass, called now and then."""

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol, TypeVar

__all__ = ["Meter", "Progress", "part", "silent"]

_T = TypeVar("_T")

_SOON = 1.0  # seconds before which no speed is worth a word


class Progress(Protocol):
    """Called as `progress(done, total, note)`: units finished, units in all, and a few words ("3 refused").

    Where `done` falls or `total` changes, another stretch of work begins.
    """

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def silent(done: int, total: int, note: str = "") -> None:
    """The default of every library function: say nothing."""


def part(progress: Progress, number: int, parts: int, name: str) -> Progress:
    """The progress of part `number` of so many alike, as that of the whole."""

    def within(done: int, total: int, note: str = "") -> None:
        progress(number * total + done, parts * total, f"{name} {note}")

    return within


class Meter:
    """The words of a note about speed: Mpx/s, and what binds it (decoding, device, ...).

    What binds is the kind of work on which most seconds were spent. Several threads may add to it. `rest` names what is
    done in all the time that nobody adds: where one thread waits for decoded images and writes them, the waiting is
    added as decoding, and the rest is writing.
    """

    def __init__(self, rest: str = "") -> None:
        self._rest = rest
        self._started = monotonic()
        self._seconds = defaultdict[str, float](float)
        self._pixels = 0
        self._lock = threading.Lock()

    def add(self, work: str = "", seconds: float = 0.0, pixels: int = 0) -> None:
        """Seconds spent on a kind of work, and pixels that are done."""
        with self._lock:
            self._seconds[work] += seconds
            self._pixels += pixels

    @contextmanager
    def timed(self, work: str, weight: float = 1.0) -> Iterator[None]:
        """Add the time that the block takes; `weight` is the number of processors that it occupies."""
        before = monotonic()
        yield
        self.add(work, weight * (monotonic() - before))

    def waiting(self, work: str, items: Iterable[_T]) -> Iterator[_T]:
        """The items, the time that each lets wait for it added."""
        iterator, end = iter(items), object()
        while True:
            with self.timed(work):
                item = next(iterator, end)
            if item is end:
                return
            yield item  # type: ignore[misc]

    def bound(self) -> str:
        """`bound by decoding`; '' in the first second, and where nothing was added."""
        elapsed = monotonic() - self._started
        with self._lock:
            seconds = {work: spent for work, spent in self._seconds.items() if work}
        if elapsed < _SOON or not seconds:
            return ""
        if self._rest:
            seconds[self._rest] = elapsed - sum(seconds.values())
        return f"bound by {max(seconds, key=seconds.__getitem__)}"

    def speed(self) -> str:
        """`38.2 Mpx/s`; '' in the first second, and where no pixels were added."""
        elapsed = monotonic() - self._started
        return f"{self._pixels / elapsed / 1e6:.3g} Mpx/s" if self._pixels and elapsed >= _SOON else ""

    def note(self, *words: str) -> str:
        """These words, the speed and what binds it, with commas between those that are not ''."""
        return ", ".join(filter(None, [*words, self.speed(), self.bound()]))
