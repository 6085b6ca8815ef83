"""A candidate in 32 bytes, to be sorted where memory is short: what its patch_id says, as numbers, its score and shard.

A patch_id is `{image_id}_{y}_{x}_{size}`, an image_id 16 hex digits: so the text is made again of the numbers. In the
order of the text, ids of images are in the order of their numbers; y, x and size are not (`120_` is before `12_`).
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate import coverage, histogram, layout
from curate.errors import DataError, one_line
from curate.pieces import Key, Keys, Rows

__all__ = ["COLUMNS", "by_image", "by_score", "manifest", "of", "ordered", "pixels", "windows"]

COLUMNS = ("image_id", "y", "x", "size", "shard", "score")  # of a batch, from which rows are made
_ROW = np.dtype([("image", "<u8"), ("score", "<f8"), *((name, "<i4") for name in ("y", "x", "size", "shard"))])
_WINDOW = np.dtype([("image", "<u8"), *((name, "<i4") for name in ("y", "x", "size"))])
_DIGITS = 16  # of an image_id
_VALUES = np.full(256, 255, np.uint8)  # of a character that is a hex digit
_VALUES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_TWO = np.frombuffer(bytes(range(256)).hex().encode(), "<u2")  # a byte's two digits


def of(batch: pa.RecordBatch) -> Rows:
    """Rows of a batch (`COLUMNS`, score as float64). DataError if one lacks its place, or its image has no id."""
    if missing := [name for name in COLUMNS[:-1] if batch[name].null_count]:
        raise DataError(f"the store is damaged: it has patches without {', '.join(missing)}")
    rows = np.empty(batch.num_rows, _ROW)
    rows["image"] = _numbers(batch["image_id"])
    for name in COLUMNS[1:]:
        rows[name] = batch[name].to_numpy()
    return rows


def by_image(rows: Rows) -> Keys:
    """Keys in the order of image_id."""
    return np.asarray(rows["image"])


def by_score(*, descending: bool) -> Key:
    """Keys in the order of the score, those of the histogram; inverted if `descending`."""

    def key(rows: Rows) -> Keys:
        keys = histogram.keys(rows["score"])
        return ~keys if descending else keys

    return key


def ordered(rows: Rows, *, descending: bool) -> Rows:
    """Rows by score, equal scores by patch_id."""
    score = by_score(descending=descending)(rows)
    score -= score.min(initial=2**64 - 1)
    used = int(np.bitwise_or.reduce(score))  # float32 scores have 29 low bits that are 0
    unused = (used & -used).bit_length() - 1 if used else 0
    bits = used.bit_length() - unused
    key = score >> np.uint64(unused) << np.uint64(64 - bits) | rows["image"] >> np.uint64(bits)
    order = np.argsort(key)
    rows, key = rows.take(order), key.take(order)
    same = key[1:] == key[:-1]
    if same.any():  # all of them have one score, and nearly all one image
        tied = np.flatnonzero(np.r_[same, False] | np.r_[False, same])
        group = np.r_[0, (~same).cumsum()][tied]
        text = pa.table({"group": group, "patch_id": _patch_ids(rows[tied])})
        rows[tied] = rows[tied[pc.sort_indices(text, [("group", "ascending"), ("patch_id", "ascending")])]]
    return rows


def manifest(rows: Rows, first: int) -> pa.Table:
    """Rows of a manifest that all count the same, the first one with the rank `first`."""
    columns = {name: pa.array(rows[name]) for name in COLUMNS[1:]}
    columns |= {"patch_id": _patch_ids(rows), "image_id": _image_ids(rows["image"])}
    columns |= {"rank": pa.array(np.arange(first, first + len(rows)))}
    columns |= {"weight": pa.array(np.ones(len(rows), np.float32))}
    return pa.table([columns[field.name] for field in layout.MANIFEST], schema=layout.MANIFEST)


def windows(rows: Rows) -> Rows:
    """Where they are, and no more: 20 bytes each."""
    found = np.empty(len(rows), _WINDOW)
    for name in _WINDOW.names or ():
        found[name] = rows[name]
    return found


def pixels(rows: Rows) -> int:
    """`coverage.pixels` of one of `windows` and more."""
    rows = rows.take(np.argsort(rows["image"]))
    image = np.r_[0, (np.diff(rows["image"]) != 0).cumsum()]
    return coverage.of_sorted(image, *(rows[name].astype(np.int64) for name in ("y", "x", "size")))


def _numbers(ids: pa.StringArray) -> Keys:
    """The numbers of image_ids. DataError for what is none."""
    right = pc.equal(pc.binary_length(ids), _DIGITS)
    if pc.all(right).as_py() is not False:
        offsets = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset :][: len(ids) + 1]
        text_ND = np.frombuffer(ids.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]].reshape(-1, _DIGITS)
        values_ND = _VALUES[text_ND]
        if values_ND.max(initial=0) < 16:
            return (values_ND[:, 0::2] << 4 | values_ND[:, 1::2]).view(">u8").ravel().astype(np.uint64)
        right = pa.array(values_ND.max(axis=1) < 16)
    wrong = ids.filter(pc.invert(right))[0].as_py()
    raise DataError(f"the store is damaged: an image_id should be 16 hex digits, found '{one_line(wrong)}'")


def _image_ids(images: Keys) -> pa.StringArray:
    digits = _TWO[images.astype(">u8").view(np.uint8)]
    offsets = np.arange(0, (len(images) + 1) * _DIGITS, _DIGITS, dtype=np.int32)
    return pa.StringArray.from_buffers(len(images), pa.py_buffer(offsets), pa.py_buffer(digits))


def _patch_ids(rows: Rows) -> pa.StringArray:
    numbers = (pa.array(rows[name]).cast(pa.string()) for name in ("y", "x", "size"))
    return pc.binary_join_element_wise(_image_ids(rows["image"]), *numbers, "_")
