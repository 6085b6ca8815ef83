"""The SQL views of a store: `images`, `patches`, `scores`, `duplicates`, `leaks` and `flags`.

They are made from what the store says of its tables (`Tables`); where these lie and whether they are whole is known
to the store alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from curate import flags, retries, sql
from curate.errors import UsageError, listed
from curate.flags import Findings
from curate.schema import STATUS_OK

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Scores", "Tables", "columns", "of"]

# Columns as SQL types, which Python code counts on; here and not from `layout`, for which Arrow would be imported.
_IMAGES = {
    name: "INTEGER" if name in ("height", "width") else "VARCHAR"
    for name in ("image_id", "name", "sha256", "height", "width", "status", "source", "split")
}
_PATCHES = {"patch_id": "VARCHAR", "image_id": "VARCHAR"} | dict.fromkeys(("y", "x", "size"), "INTEGER")


@dataclass(frozen=True, slots=True)
class Scores:
    """The tables of one scorer."""

    files: list[str]  # none where it was cut off before its first shard
    columns: dict[str, str]  # column in SQL -> its name in the files
    rows: dict[int, int]  # unit -> how many of its patches have scores; these are in the order of the patches


@dataclass(frozen=True, slots=True)
class Tables:
    """All tables that the views are made of: Parquet files on the local disk, a unit each, and what was found."""

    images: list[str]
    patches: list[str]
    retried: list[str]  # of the units that settle refusals of units before them
    findings: Findings | None  # None where nobody has looked for any
    scores: list[Scores]
    rows: dict[int, int]  # unit -> how many patches it has

    def files(self) -> list[str]:
        """The files that the views read."""
        return self.images + self.patches + self.retried + [path for scores in self.scores for path in scores.files]


def of(
    tables: Tables, manifests: Mapping[str, Path] | None = None, parquet: Callable[..., str] = sql.parquet
) -> dict[str, str | pa.Table]:
    """View -> its SELECT, or a table in memory.

    `images`, `patches` (with the shard), `scores` (patches with a column a scorer), `duplicates`, `leaks`, and `flags`
    (image_id, reason), which is the status of the images that a check has flagged; and `manifests` (view -> file).
    With the `parquet` of `sql.Lists` they are for the connection that has these lists.

    UsageError for a manifest with the name of another view.
    """
    shard = "CAST(parse_filename(filename, true) AS INTEGER) AS shard"
    patches = parquet(tables.patches, filename=True)
    if tables.retried:
        images = parquet(tables.images, f"{sql.casts(_IMAGES)}, filename", filename=True)
        images = retries.view(images, parquet(tables.retried, filename=True))
    else:
        images = parquet(tables.images, sql.casts(_IMAGES))
    findings: Mapping[str, str | pa.Table] = flags.NO_VIEWS
    if tables.findings is not None and len((found := tables.findings).flags):
        findings = {"duplicates": found.duplicates, "leaks": found.leaks, "flags": found.flags}
        reason = f"CASE WHEN status = '{STATUS_OK}' THEN coalesce(flags.reason, status) ELSE status END"
        joined = f"({images}) ingested LEFT JOIN flags USING (image_id)"
        images = f"SELECT ingested.* REPLACE ({reason} AS status) FROM {joined}"
    views = {
        **findings,
        "images": images,
        "patches": f"SELECT {sql.casts(_PATCHES)}, {shard} FROM ({patches})",
        "scores": _scores(tables, parquet),
    }
    named = dict(manifests or {})
    taken = views.keys() & named.keys()
    if taken:
        raise UsageError(f"a manifest cannot be called '{listed(taken)}' in SQL: the store has a view of that name")
    return views | {name: parquet([path]) for name, path in named.items()}


def columns(scores: Iterable[str]) -> dict[str, list[str]]:
    """View -> the names of its columns; `scores` are those of the scorers."""
    patches = [*_PATCHES, "shard"]
    return {"images": [*_IMAGES], "patches": patches, "scores": [*patches, *scores]} | {
        name: [*columns] for name, columns in flags.COLUMNS.items()
    }


def _scores(tables: Tables, parquet: Callable[..., str]) -> str:
    """Patches with a column a scorer.

    A unit's scores are in the order of its patches. So a scorer that has every row of every unit goes beside the
    patches row by row, which costs what is read and no more; another one, where a scorer was cut off or a packed
    store lacks some, is joined by patch_id, which holds all ids in memory.
    """
    columns, beside, joins = ["patches.*"], [], []
    for index, scores in enumerate(tables.scores):
        alias, wanted = f"s{index}", {name: sql.identifier(column) for name, column in scores.columns.items()}
        for name, column in wanted.items():
            # A scorer that was cut off before its first shard has no table yet.
            value = f"{alias}.{column}" if scores.files else "CAST(NULL AS FLOAT)"
            columns.append(f"{value} AS {sql.identifier(name)}")
        if scores.rows == tables.rows:
            files = parquet(scores.files, ", ".join(wanted.values()), beside=[*scores.columns.values()])
            beside.append(f"POSITIONAL JOIN ({files}) {alias}")
        elif scores.files:
            files = parquet(scores.files, beside=[*scores.columns.values()])
            joins.append(f"LEFT JOIN ({files}) {alias} USING (patch_id)")
    return f"SELECT {', '.join(columns)} FROM {' '.join(['patches', *beside, *joins])}"
