"""How many pixels a set of windows covers: windows overlap, pixels do not."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["pixels"]


def pixels(windows: pa.Table) -> int:
    """Pixels under the windows (columns image_id, y, x, size), each counted once."""
    if windows.num_rows == 0:
        return 0
    image = windows["image_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    y, x, size = (windows[name].to_numpy().astype(np.int64) for name in ("y", "x", "size"))
    order = np.argsort(image, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(image[order]) != 0])
    return sum(_of_one(y[rows], x[rows], size[rows]) for rows in np.split(order, starts[1:]))


def _of_one(y: npt.NDArray[np.int64], x: npt.NDArray[np.int64], size: npt.NDArray[np.int64]) -> int:
    """The same for windows of one image: the rectangles between all their edges, each covered or not."""
    rows, columns = np.unique(np.r_[y, y + size]), np.unique(np.r_[x, x + size])
    # Corners of the windows counted with signs; the sums of these in both directions say how many windows lie there.
    depth = np.zeros((len(rows), len(columns)), np.int64)
    top, left = np.searchsorted(rows, y), np.searchsorted(columns, x)
    bottom, right = np.searchsorted(rows, y + size), np.searchsorted(columns, x + size)
    for sign, row, column in ((1, top, left), (-1, bottom, left), (-1, top, right), (1, bottom, right)):
        np.add.at(depth, (row, column), sign)
    covered = depth.cumsum(0).cumsum(1)[:-1, :-1] > 0
    return int((np.diff(rows)[:, None] * np.diff(columns))[covered].sum())
