"""Flags: which images the checks of a store advise against, and why.

Of every group of near-duplicates one image is kept, the one with the most pixels (then bytes, then the smallest id),
and the others are flagged; every image that overlaps a test image is flagged. A flag is an image's status in SQL, and a
selection leaves flagged images out unless it is told otherwise. Nothing is deleted.
"""

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

import pyarrow as pa

from curate import schema
from curate.errors import DataError, one_line

__all__ = ["Findings", "findings", "kept", "nothing", "require"]

_FLAGS = pa.schema([pa.field("image_id", pa.string(), False), pa.field("reason", pa.string(), False)])
_PAIRS = pa.schema(
    [
        ("image_id", pa.string()),
        ("name", pa.string()),
        ("twin", pa.string()),
        ("twin_name", pa.string()),
        ("kept", pa.string()),  # image_id of the one that is kept of their group
        ("distance", pa.int32()),
        ("correlation", pa.float32()),
    ]
)
_LEAKS = pa.schema([schema.LEAKS.field(0), pa.field("name", pa.string()), *list(schema.LEAKS)[1:]])


@dataclass(frozen=True, slots=True)
class Findings:
    """What all checks of a store have found, as tables."""

    duplicates: pa.Table  # a row a pair: image_id, name, twin, twin_name, kept (of its group), distance, correlation
    leaks: pa.Table  # `schema.LEAKS`, with the image's name
    flags: pa.Table  # image_id, reason: every image once


def nothing() -> Findings:
    """The findings of no check."""
    return Findings(_PAIRS.empty_table(), _LEAKS.empty_table(), _FLAGS.empty_table())


def findings(images: pa.Table, cells: pa.Table, duplicates: pa.Table, leaks: pa.Table) -> Findings:
    """Put together what a store's checks have found.

    `duplicates` are pairs (`schema.DUPLICATES`, each with a twin), `leaks` as `schema.LEAKS`; `images` and `cells` are
    the store's rows of the images in them.
    """
    rows = {
        row["image_id"]: row for row in images.to_pylist() if row["height"] is not None and row["width"] is not None
    }
    sizes = dict(zip(*cells.group_by("image_id").aggregate([("size", "sum")]).to_pydict().values(), strict=True))
    pairs = duplicates.to_pylist()
    concerned = [row[name] for row in pairs for name in ("image_id", "twin")]
    require(concerned + leaks["image_id"].to_pylist(), rows.keys() & sizes.keys())

    def worth(image_id: str) -> tuple[int, int]:
        return rows[image_id]["height"] * rows[image_id]["width"], sizes[image_id]

    keepers = kept(((pair["image_id"], pair["twin"]) for pair in pairs), worth)
    shown = [
        pair
        | {"name": rows[pair["image_id"]]["name"], "twin_name": rows[pair["twin"]]["name"]}
        | {"kept": keepers[pair["image_id"]]}
        for pair in pairs
    ]
    overlaps = [leak | {"name": rows[leak["image_id"]]["name"]} for leak in leaks.to_pylist()]
    reasons = {}
    for image_id, keeper in keepers.items():
        if keeper != image_id:
            reasons[image_id] = f"near-duplicate of {rows[keeper]['name']} ({keeper})"
    for leak in overlaps:  # the graver reason
        reasons[leak["image_id"]] = f"overlaps {leak['test']} of {leak['benchmark']}"
    flags = [{"image_id": image_id, "reason": one_line(reasons[image_id])} for image_id in sorted(reasons)]
    return Findings(
        pa.Table.from_pylist(shown, _PAIRS),
        pa.Table.from_pylist(overlaps, _LEAKS),
        pa.Table.from_pylist(flags, _FLAGS),
    )


def require(found: Iterable[str], there: Container[str]) -> None:
    """DataError if a check has found something of an image that is not there."""
    absent = next((image_id for image_id in found if image_id not in there), None)
    if absent is not None:
        raise DataError(f"the store is damaged: its checks name image '{one_line(absent)}', which it does not have")


def kept(pairs: Iterable[tuple[str, str]], worth: Callable[[str], tuple[int, int]]) -> dict[str, str]:
    """Which item of its group each item of `pairs` yields to: the worthiest, of equals the one of the smallest id.

    Pairs that share an item are one group. The worthiest yields to itself.
    """
    leader: dict[str, str] = {}

    def find(item: str) -> str:
        leader.setdefault(item, item)
        while leader[item] != item:
            leader[item] = leader[leader[item]]
            item = leader[item]
        return item

    for one, other in pairs:
        leader[find(one)] = find(other)
    groups: dict[str, list[str]] = {}
    for item in list(leader):
        groups.setdefault(find(item), []).append(item)
    best = {
        name: min(items, key=lambda item: (*(-part for part in worth(item)), item)) for name, items in groups.items()
    }
    return {item: best[find(item)] for item in leader}
