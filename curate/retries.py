"""Retries: which refusals are history, because the same source was examined again later.

A unit that `curate ingest --retry-failed` wrote has, beside its images, a table `retried` of the sources (source, name)
that it settles. Refusals of these sources in units before it are history: they stay in their unit's table, which never
changes, and `images` no longer shows them. What was taken is never hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from curate.schema import STATUS_OK

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Refusals", "shown", "sources", "view"]

_UNIT = "CAST(parse_filename({0}.filename, true) AS INTEGER)"


@dataclass(slots=True)
class Refusals:
    """The sources (source, name) whose refusal no retry has settled, while the units go by in order."""

    sources: set[tuple[str, str]] = field(default_factory=set)
    is_complete: bool = True  # False once the images of a unit are not known

    def add(self, images: pa.Table | None, retried: pa.Table | None) -> None:
        """The next unit: what it settled, and what was refused in it. None for a table that is lost, or is not there.

        Where a table of what was retried is lost, there are too many sources here, never too few.
        """
        import pyarrow.compute as pc

        if retried is not None:
            self.sources.difference_update(sources(retried))
        if images is None:
            self.is_complete = False
        else:
            self.sources.update(sources(images.filter(pc.field("status") != STATUS_OK)))


def shown(images: Mapping[int, pa.Table], retried: Mapping[int, pa.Table]) -> Iterator[pa.Table]:
    """The images of each unit without the refusals that a later unit settled; both are tables by unit."""
    import pyarrow as pa

    settled: dict[tuple[str, str], int] = {}  # source -> the last unit that settled it
    for unit, table in retried.items():
        settled |= dict.fromkeys(sources(table), unit)
    for unit, table in images.items():
        statuses = table["status"].to_pylist()
        keep = [
            status == STATUS_OK or settled.get(source, unit) <= unit
            for source, status in zip(sources(table), statuses, strict=True)
        ]
        yield table if all(keep) else table.filter(pa.array(keep, pa.bool_()))


def view(images: str, retried: str) -> str:
    """`shown` as SQL: of SELECTs over the Parquet of all units, with a column `filename`."""
    later = f"later.source = image.source AND later.name = image.name AND {_UNIT.format('later')} > unit"
    numbered = f"SELECT *, {_UNIT.format('found')} AS unit FROM ({images}) found"
    return (
        f"SELECT image.* EXCLUDE (filename, unit) FROM ({numbered}) image "
        f"WHERE image.status = '{STATUS_OK}' OR NOT EXISTS (SELECT 1 FROM ({retried}) later WHERE {later})"
    )


def sources(table: pa.Table) -> list[tuple[str, str]]:
    """(source, name) of each row."""
    return list(zip(table["source"].to_pylist(), table["name"].to_pylist(), strict=True))
