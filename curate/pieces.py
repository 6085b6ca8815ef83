"""Rows that memory does not hold, in the order of their keys: parted by key into files, a file in memory at a time.

Rows are those of a structured array, keys unsigned integers that NumPy makes of them. Within a piece the rows are in no
order; of two pieces the one that comes first has the smaller keys.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

__all__ = ["Key", "Keys", "Pieces", "Rows", "even", "lengths"]

Rows = npt.NDArray[Any]  # a structured array
Keys = npt.NDArray[np.uint64]
Key = Callable[[Rows], Keys]

_PARTS = 256  # of a piece that is too large


def even(low: int, high: int, parts: int) -> Keys:
    """The bounds that cut the keys from `low` to `high` into `parts` ranges, or fewer where there are no more keys."""
    bounds = sorted({low + (high + 1 - low) * part // parts for part in range(1, parts)} - {low})
    return np.array(bounds, np.uint64)


class Pieces:
    """Rows by the first of `keys`, cut at `bounds`; by the next one where a piece would be too large and has one key.

    Up to `most` rows are held, and a piece has no more, unless all its keys are the same. What is more lies in `folder`
    until its piece is taken. Nothing is written there where all rows are no more than that.
    """

    def __init__(self, folder: Path, keys: Sequence[Key], bounds: Keys, most: int) -> None:
        self._folder, self._keys, self._bounds, self._most = folder, keys, bounds, most
        self._held: list[Rows] = []
        self._counts = np.zeros(len(bounds) + 1, np.int64)  # rows of each piece that are in its file

    def add(self, rows: Rows) -> None:
        """More rows."""
        if sum(map(len, self._held)) + len(rows) > self._most:
            self._spill()
        self._held.append(rows)

    def __iter__(self) -> Iterator[Rows]:
        """The pieces, each once; no more rows can be added."""
        if not self._counts.any():
            if held := [rows for rows in self._held if len(rows)]:
                self._held = []
                yield np.concatenate(held)
            return
        self._spill()
        for number in np.flatnonzero(self._counts):
            path = self._path(int(number))
            if self._counts[number] <= self._most:
                yield self._read(path)
            else:
                yield from self._smaller(path)
            path.unlink()

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.rows"

    def _spill(self) -> None:
        """Put what is held into the files of its pieces."""
        if not self._held:
            return
        rows, self._held = np.concatenate(self._held), []
        self._dtype = rows.dtype
        piece = np.searchsorted(self._bounds, self._keys[0](rows), "right")
        smallest = np.min_scalar_type(len(self._bounds))  # 16 bits are sorted by their digits
        rows = rows.take(np.argsort(piece.astype(smallest), kind="stable"))  # `take` is ten times as fast as an index
        counts = np.bincount(piece, minlength=len(self._counts))
        self._folder.mkdir(exist_ok=True)
        start = 0
        for number in np.flatnonzero(counts):
            end = start + int(counts[number])
            with self._path(int(number)).open("ab", buffering=0) as file:
                _write(file, rows[start:end])
            start = end
        self._counts += counts

    def _read(self, path: Path) -> Rows:
        return np.fromfile(path, self._dtype)

    def _parts(self, path: Path) -> Iterator[Rows]:
        with path.open("rb") as file:
            while len(rows := np.fromfile(file, self._dtype, max(1, self._most // 4))):
                yield rows

    def _smaller(self, path: Path) -> Iterator[Rows]:
        """The pieces of a piece that is too large."""
        for place, key in enumerate(self._keys):
            ends = [(int(keys.min()), int(keys.max())) for keys in map(key, self._parts(path))]
            low, high = min(low for low, _ in ends), max(high for _, high in ends)
            if low < high:
                with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                    pieces = Pieces(Path(folder), self._keys[place:], even(low, high, _PARTS), self._most)
                    for rows in self._parts(path):
                        pieces.add(rows)
                    yield from pieces
                return
        yield self._read(path)


def lengths(pieces: Iterable[Rows], length: int) -> Iterator[Rows]:
    """The same rows, `length` at a time; the last ones may be fewer."""
    waiting: list[Rows] = []
    for piece in pieces:
        waiting.append(piece)
        del piece
        while sum(map(len, waiting)) >= length:
            whole = [np.concatenate(waiting)]
            waiting = [whole[0][length:].copy()]
            yield whole.pop()[:length]  # and hold it no longer
    if sum(map(len, waiting)):
        yield np.concatenate(waiting)


def _write(file: BinaryIO, rows: Rows) -> None:
    """All of it: a disk that is full takes a part and refuses the next one."""
    data = rows.view(np.uint8).data
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        error.filename = file.name  # the system knows a number alone
        raise
