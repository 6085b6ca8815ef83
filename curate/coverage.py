"""How many pixels a set of windows covers: windows overlap, pixels do not."""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curate.errors import DataError

__all__ = ["by_images", "pixels", "streamed"]

_AT_ONCE = 2**16  # windows; those of one image are never parted
_RECTANGLES = 2**22  # looked at together, but for those of one image
_FEWEST = 8  # rows of them, which are not parted any more
_SMALL = 2**20  # px of an image's side

_Ints = npt.NDArray[np.int64]


def pixels(windows: pa.Table) -> int:
    """Pixels under the windows (columns image_id, y, x, size), each counted once. DataError for what is no window."""
    if windows.num_rows == 0:
        return 0
    image = windows["image_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    order = np.argsort(image, kind="stable")
    y, x, size = (windows[name].to_numpy().astype(np.int64)[order] for name in ("y", "x", "size"))
    if min(y.min(), x.min()) < 0 or size.min() < 1:
        raise DataError(
            f"a window should be inside its image, found one from {min(y.min(), x.min())} of {size.min()} px"
        )
    columns = (image[order], y, x, size, size)
    return sum(_of_many(*(column[part] for column in columns)) for part in _parts(image[order]))


def streamed(batches: Iterable[pa.RecordBatch]) -> int:
    """`pixels` of a stream in which the windows of an image come one after the other."""
    return sum(map(pixels, by_images(batches)))


def by_images(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """A stream in which the rows of an image come one after the other, in tables that part no image."""
    rest = None
    for batch in batches:
        table = pa.Table.from_batches([batch]) if rest is None else pa.concat_tables([rest, pa.table(batch)])
        end = 0
        if len(table) >= _AT_ONCE:
            others = pc.not_equal(table["image_id"], table["image_id"][-1]).to_numpy()
            end = len(table) - int(np.argmax(others[::-1])) if others.any() else 0
        if end:
            yield table[:end]
        rest = table[end:]
    if rest is not None and len(rest):
        yield rest


def _parts(image: _Ints) -> Iterator[slice]:
    """Slices of about `_AT_ONCE` rows that part no image; `image` is sorted."""
    starts = np.r_[np.flatnonzero(np.r_[True, np.diff(image) != 0]), len(image)]
    start = 0
    while start < len(image):
        end = int(starts[np.searchsorted(starts, min(start + _AT_ONCE, len(image)))])
        yield slice(start, end)
        start = end


def _of_many(image: _Ints, y: _Ints, x: _Ints, height: _Ints, width: _Ints) -> int:
    """Pixels under windows, sorted by image: the rectangles between all edges in an image, each covered or not."""
    image = np.r_[0, np.cumsum(np.diff(image) != 0)]
    heights_NR, top, bottom = _edges(image, y, height)
    widths_NC, left, right = _edges(image, x, width)
    (count, rows), columns = heights_NR.shape, widths_NC.shape[1]
    if count > 1 and count * rows * columns > _RECTANGLES:  # one image has many more than the others
        half = int(np.searchsorted(image, count // 2))
        parts = (slice(None, half), slice(half, None))
        return sum(_of_many(image[part], y[part], x[part], height[part], width[part]) for part in parts)
    if rows > _FEWEST and rows * columns > _RECTANGLES:  # many windows off any grid: above and below, each cut there
        end = y + height
        middle = int((edges := np.unique(np.r_[y, end]))[len(edges) // 2])
        above, below = y < middle, end > middle
        return sum(
            _of_many(image[part], top[part], x[part], (bottom - top)[part], width[part])
            for part, top, bottom in ((above, y, np.minimum(end, middle)), (below, np.maximum(y, middle), end))
        )
    # Corners of the windows counted with signs; the sums of these in both directions say how many windows lie there.
    first, second = (image * rows + top) * columns, (image * rows + bottom) * columns
    cells = count * rows * columns
    more = np.bincount(np.r_[first + left, second + right], minlength=cells)
    depth_NRC = (more - np.bincount(np.r_[first + right, second + left], minlength=cells)).astype(np.int32)
    depth_NRC = depth_NRC.reshape(count, rows, columns)
    np.cumsum(depth_NRC, axis=1, out=depth_NRC)
    np.cumsum(depth_NRC, axis=2, out=depth_NRC)
    covered_NR = np.where(depth_NRC > 0, widths_NC[:, None], 0).sum(axis=2)
    return int((covered_NR * heights_NR).sum())


def _edges(image: _Ints, low: _Ints, size: _Ints) -> tuple[_Ints, _Ints, _Ints]:
    """Along one axis: px from each of an image's edges to its next one, (images, edges); each window's two edges."""
    values, code = _coded(np.r_[low, low + size])
    twice = np.r_[image, image]
    there = np.zeros((int(image[-1]) + 1, len(values)), bool)
    there[twice, code] = True
    place = there.cumsum(axis=1, dtype=np.int32) - 1
    edges = np.zeros((len(there), int(place[:, -1].max()) + 1), np.int64)
    owner, value = np.nonzero(there)
    edges[owner, place[owner, value]] = values[value]
    lengths = np.diff(edges, axis=1, append=0)
    index = place[twice, code].astype(np.int64)
    return np.maximum(lengths, 0), index[: len(low)], index[len(low) :]


def _coded(edges: _Ints) -> tuple[_Ints, _Ints]:
    """The different values, sorted, and the place of each edge among them."""
    if edges.max() >= _SMALL:
        values, code = np.unique(edges, return_inverse=True)
        return values, code
    there = np.zeros(int(edges.max()) + 1, bool)  # by a table of all px: no sorting, which would take most of the time
    there[edges] = True
    return np.flatnonzero(there), (there.cumsum() - 1)[edges]
