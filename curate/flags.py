"""Flags: which images the checks of a store advise against, and why.

Of every group of near-duplicates one image is kept, the one with the most pixels (then bytes, then the smallest id),
and the others are flagged; every image that overlaps a test image is flagged. A flag is an image's status in SQL, and a
selection leaves flagged images out unless it is told otherwise. Nothing is deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from curate.errors import DataError, one_line

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["COLUMNS", "NO_VIEWS", "Findings", "concerned", "findings", "kept", "named", "nothing", "require"]

# column -> SQL type; as SQL, since a question to a store without findings needs no Arrow, which is long to import
_FLAGS = {"image_id": "VARCHAR", "reason": "VARCHAR"}
_PAIRS = {
    "image_id": "VARCHAR",
    "name": "VARCHAR",
    "twin": "VARCHAR",
    "twin_name": "VARCHAR",
    "kept": "VARCHAR",  # image_id of the one that is kept of their group
    "distance": "INTEGER",
    "correlation": "FLOAT",
}
_LEAKS = {"image_id": "VARCHAR", "name": "VARCHAR", "benchmark": "VARCHAR", "test": "VARCHAR"} | dict.fromkeys(
    ("correlation", "share", "test_share", "scale", "degrees", "y", "x"), "FLOAT"
)


def _no_view(columns: Mapping[str, str]) -> str:
    return f"SELECT {', '.join(f'CAST(NULL AS {kind}) AS {name}' for name, kind in columns.items())} WHERE false"


COLUMNS = {"duplicates": _PAIRS, "leaks": _LEAKS, "flags": _FLAGS}  # of the views
NO_VIEWS = {name: _no_view(columns) for name, columns in COLUMNS.items()}  # of no check


@dataclass(frozen=True, slots=True)
class Findings:
    """What all checks of a store have found, as tables."""

    duplicates: pa.Table  # a row a pair: image_id, name, twin, twin_name, kept (of its group), distance, correlation
    leaks: pa.Table  # `layout.LEAKS`, with the image's name
    flags: pa.Table  # image_id, reason: every image once


def nothing() -> Findings:
    """The findings of no check."""
    return Findings(_table([], _PAIRS), _table([], _LEAKS), _table([], _FLAGS))


def _table(rows: Sequence[Mapping[str, object]], columns: Mapping[str, str]) -> pa.Table:
    import pyarrow as pa

    types = {"VARCHAR": pa.string(), "INTEGER": pa.int32(), "FLOAT": pa.float32()}
    return pa.Table.from_pylist(rows, pa.schema([(name, types[kind]) for name, kind in columns.items()]))


def concerned(duplicates: pa.Table, leaks: pa.Table) -> pa.Array:
    """The image_id of each image that a check has found something of, as often as it has."""
    import pyarrow as pa

    columns = (duplicates["image_id"], duplicates["twin"], leaks["image_id"])
    return pa.concat_arrays([chunk for column in columns for chunk in column.chunks])


def findings(images: pa.Table, cells: pa.Table, duplicates: pa.Table, leaks: pa.Table) -> Findings:
    """Put together what a store's checks have found.

    `duplicates` are pairs (`layout.DUPLICATES`, each with a twin), `leaks` as `layout.LEAKS`; `images` and `cells` are
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
        _table(shown, _PAIRS),
        _table(overlaps, _LEAKS),
        _table(flags, _FLAGS),
    )


def require(found: Iterable[str], there: Container[str]) -> None:
    """DataError if a check has found something of an image that is not there."""
    absent = next((image_id for image_id in found if image_id not in there), None)
    if absent is not None:
        raise DataError(f"the store is damaged: its checks name image '{one_line(absent)}', which it does not have")


def named(rows: pa.Table, images: pa.Table) -> pa.Table:
    """A table of images (image_id, ...) with the column `name` after its first; `images` are the store's."""
    import pyarrow as pa
    import pyarrow.compute as pc

    taken = images.filter(pc.field("image_id").is_valid())
    names = dict(zip(taken["image_id"].to_pylist(), taken["name"].to_pylist(), strict=True))
    require(rows["image_id"].to_pylist(), names)
    return rows.add_column(1, "name", pa.array([names[key] for key in rows["image_id"].to_pylist()], pa.string()))


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
