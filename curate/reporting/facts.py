"""What a report says, as tables and arrays: read from the store once, by SQL; no pixels and no pictures here.

Arrays have an entry a patch of the store, in the order of patch_id; `image` is a patch's row in `images`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curate import sql
from curate.errors import DataError, one_line
from curate.flags import Findings
from curate.manifest import Manifest
from curate.store import ScoreSet, Store

__all__ = ["Choice", "Facts", "gather"]


@dataclass(frozen=True)
class Choice:
    """One manifest, laid beside the store's patches."""

    name: str  # its file's name without the ending
    manifest: Manifest
    by: str | None  # column of the score that it was ranked by; None for a choice without one
    rank: npt.NDArray[np.int64]  # in the manifest; -1 for a patch that is not in it
    candidates: npt.NDArray[np.bool_]  # what it could choose from

    @property
    def is_distilled(self) -> bool:
        """Whether its patches were made, and not chosen."""
        return self.manifest.recipe.origin == "distilled"

    @property
    def chosen(self) -> npt.NDArray[np.bool_]:
        """Which patches are in it."""
        return self.rank >= 0


@dataclass(frozen=True)
class Facts:
    """All that a report draws and tells."""

    store: Store
    choices: tuple[Choice, ...]
    patches: pa.Table  # patch_id, image_id, y, x, size; sorted by patch_id
    image: npt.NDArray[np.int64]
    scores: dict[str, npt.NDArray[np.float64]]  # column -> values, NaN for none
    sets: dict[str, ScoreSet]  # column -> what drew it
    images: pa.Table  # image_id, name, height, width, status, source: those with patches, sorted by image_id
    refused: pa.Table  # name, source, status: at ingest
    findings: Findings

    @property
    def main_score(self) -> str | None:
        """The score that the hardest and the easiest are told by: the first manifest's, else the store's first."""
        named = [choice.by for choice in self.choices if choice.by is not None]
        return next(iter([*named, *self.scores]), None)


def gather(store: Store, manifests: Mapping[str, Manifest]) -> Facts:
    """Read what a report of these manifests (name -> manifest of this store) needs."""
    sets = {name: found for name, (found, _) in store.score_columns().items() if not found.record.vector}
    values = "".join(f", CAST({sql.identifier(name)} AS DOUBLE) AS {sql.identifier(name)}" for name in sets)
    table = store.query(f"SELECT patch_id, image_id, y, x, size, shard{values} FROM scores ORDER BY patch_id")
    columns = "image_id, name, height, width, status, source"
    used = "image_id IN (SELECT image_id FROM patches)"
    images = store.query(f"SELECT {columns} FROM images WHERE {used} ORDER BY image_id")
    # A refused image has no windows; a flagged one has, and its status comes from the checks.
    refused = store.query(
        f"SELECT name, source, status FROM images WHERE status <> 'ok' AND NOT coalesce({used}, false) ORDER BY ALL"
    )
    scores = {name: _floats(table[name]) for name in sets}
    findings = store.findings()
    flagged = _mask(pc.is_in(table["image_id"], findings.flags["image_id"]))
    choices = []
    for name, manifest in manifests.items():
        rank = _ranks(table, manifest, name)
        by = _column(manifest, sets)
        if by is not None and by not in scores:  # a packed store has no scores; the manifest kept its own
            scores[by] = _from_manifest(manifest, rank)
        candidates = _candidates(store, table, manifest, flagged)
        if by is not None:
            candidates &= np.isfinite(scores[by])
        choices.append(Choice(name, manifest, by, rank, candidates))
    image = pc.index_in(table["image_id"], images["image_id"]).to_numpy().astype(np.int64)
    patches = table.select(["patch_id", "image_id", "y", "x", "size"])
    return Facts(store, tuple(choices), patches, image, scores, sets, images, refused, findings)


def _ranks(table: pa.Table, manifest: Manifest, name: str) -> npt.NDArray[np.int64]:
    """The rank of each patch in a manifest, -1 for none. DataError if it names patches that the store lacks."""
    found = pc.index_in(manifest.table["patch_id"], table["patch_id"])
    if found.null_count:
        missing = manifest.table["patch_id"].filter(pc.is_null(found))[0].as_py()
        raise DataError(f"the manifest '{one_line(name)}' names the patch '{one_line(missing)}', which the store lacks")
    rank = np.full(table.num_rows, -1, np.int64)
    rank[found.to_numpy()] = np.arange(len(manifest))
    return rank


def _column(manifest: Manifest, sets: Mapping[str, ScoreSet]) -> str | None:
    """The store's column of the score that a manifest was ranked by: the same fingerprint, whatever its name now."""
    by = manifest.recipe.by
    fingerprint = manifest.recipe.scorers.get(by) if by is not None else None
    same = [name for name, found in sets.items() if found.record.fingerprint == fingerprint]
    return by if by in same or not same else same[0]


def _candidates(
    store: Store, table: pa.Table, manifest: Manifest, flagged: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """What a manifest could choose from: its store as it was, its condition, without what checks had flagged."""
    recipe = manifest.recipe
    units = list(store.commits())[: recipe.store.shards]
    candidates = _mask(pc.is_in(table["shard"], pa.array(units, pa.int32())))
    if recipe.checks:
        candidates &= ~flagged
    if recipe.where is not None:
        joined = "SELECT scores.*, images.* EXCLUDE (image_id) FROM scores JOIN images USING (image_id)"
        meeting = store.query(f"SELECT patch_id FROM ({joined}) WHERE (\n{recipe.where}\n)")
        candidates &= _mask(pc.is_in(table["patch_id"], meeting["patch_id"]))
    return candidates


def _from_manifest(manifest: Manifest, rank: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    values = np.full(len(rank), np.nan)
    values[rank >= 0] = _floats(manifest.table["score"])[rank[rank >= 0]]
    return values


def _floats(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    values = np.array(column.to_numpy(), np.float64)  # null becomes NaN
    values[~np.isfinite(values)] = np.nan
    return values


def _mask(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    return np.array(column.to_numpy(), bool)
