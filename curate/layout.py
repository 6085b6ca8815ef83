"""The columns of every table that curate writes, as Arrow schemas. Documents, and the version of all, are in `schema`.

They have a module of their own because Arrow takes longer to import than most questions take to answer.
"""

import pyarrow as pa

__all__ = [
    "CELLS",
    "DUPLICATES",
    "EXAMINED",
    "IMAGES",
    "LEAKS",
    "MANIFEST",
    "OF_SHARD",
    "PATCHES",
    "RETRIED",
    "scores_schema",
]

IMAGES = pa.schema(
    [
        pa.field("image_id", pa.string()),  # 16 hex of the bytes' SHA-256; null for a refused image: no id comes twice
        pa.field("name", pa.string(), False),  # path below the folder or archive that was ingested
        pa.field("sha256", pa.string()),  # of the source file's bytes; null if they could not be read
        pa.field("height", pa.int32()),  # px, upright (EXIF orientation applied); null if it could not be decoded
        pa.field("width", pa.int32()),
        pa.field("status", pa.string(), False),  # ok | the reason why the image was refused
        pa.field("source", pa.string(), False),  # the folder's or archive's own name
        pa.field("split", pa.string(), False),  # train, or what the user called it
    ]
)
CELLS = pa.schema(
    [
        pa.field("image_id", pa.string(), False),
        pa.field("y", pa.int32(), False),  # px in the image of this role; 0, 0 and its size if it is stored whole
        pa.field("x", pa.int32(), False),
        pa.field("height", pa.int32(), False),
        pa.field("width", pa.int32(), False),
        pa.field("role", pa.string(), False),  # hr | lr2 | lr3 | lr4
        pa.field("offset", pa.int64(), False),  # bytes from the start of the shard to the member's content
        pa.field("size", pa.int64(), False),  # bytes of the member's content
        pa.field("xxh3", pa.uint64(), False),  # xxh3-64 of the member's content
    ]
)
RETRIED = pa.schema(  # the sources whose refusals in units before this one are history
    [
        pa.field("source", pa.string(), False),  # as in `images`
        pa.field("name", pa.string(), False),
    ]
)
EXAMINED = pa.schema(  # a source, while several workers or runs ingest; its row is at its place in the listing
    [
        pa.field("sha256", pa.string()),
        pa.field("status", pa.string(), False),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("known", pa.bool_(), False),  # the store had it already
        pa.field(
            "pictures",
            pa.list_(
                pa.struct(
                    {
                        "role": pa.string(),
                        "suffix": pa.string(),  # of the member in the shard
                        "height": pa.int32(),
                        "width": pa.int32(),
                        "size": pa.int64(),  # bytes
                        "xxh3": pa.uint64(),
                    }
                )
            ),
            False,
        ),
    ]
)
PATCHES = pa.schema(
    [
        pa.field("patch_id", pa.string(), False),
        pa.field("image_id", pa.string(), False),
        pa.field("y", pa.int32(), False),  # px, top edge of the window in the HR image
        pa.field("x", pa.int32(), False),
        pa.field("size", pa.int32(), False),  # px, side of the window
    ]
)
OF_SHARD = {  # by the folder's name; `retried` is there only of a shard that `curate ingest --retry-failed` wrote
    "images": IMAGES,
    "cells": CELLS,
    "patches": PATCHES,
    "retried": RETRIED,
}
DUPLICATES = pa.schema(
    [
        pa.field("image_id", pa.string(), False),
        pa.field("phash", pa.uint64()),  # perceptual hash; null if the image is too flat to have one
        pa.field("twin", pa.string()),  # image_id of a near-duplicate from this shard or one before it; null for none
        pa.field("distance", pa.int32()),  # bits in which their hashes differ
        pa.field("correlation", pa.float32()),  # of their pixels
    ]
)
LEAKS = pa.schema(
    [
        pa.field("image_id", pa.string(), False),
        pa.field("benchmark", pa.string(), False),  # name of the test set
        pa.field("test", pa.string(), False),  # name of the test image that it overlaps
        pa.field("correlation", pa.float32(), False),  # of the pixels that both show
        pa.field("share", pa.float32(), False),  # of the image's pixels that lie in the test image, 0 to 1
        pa.field("test_share", pa.float32(), False),  # of the test image's pixels that lie in the image
        pa.field("scale", pa.float32(), False),  # px of the image for a px of the test image
        pa.field("degrees", pa.float32(), False),  # how far the test image is turned in it, clockwise
        pa.field("y", pa.float32(), False),  # px, where the test image's top-left corner lies in the image
        pa.field("x", pa.float32(), False),
    ]
)
MANIFEST = pa.schema(
    [
        pa.field("rank", pa.int64(), False),  # 0 is the first pick
        *PATCHES,
        pa.field("score", pa.float64()),  # what it was ranked by; null for a choice without a score
        pa.field("weight", pa.float32(), False),  # factor of the patch's loss in training; mean 1
        pa.field("shard", pa.int32(), False),  # where the store keeps the image
    ]
)


def scores_schema(columns: tuple[str, ...], length: int | None = None) -> pa.Schema:
    """The schema of a scorer's table: patch_id and a float32 column a score, or lists of so many of them."""
    kind = pa.float32() if length is None else pa.list_(pa.float32(), length)
    return pa.schema([pa.field("patch_id", pa.string(), False), *(pa.field(c, kind) for c in columns)])
