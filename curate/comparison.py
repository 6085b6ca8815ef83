"""Diff: how two core-sets differ. What both chose, in which order, and what entered and left, by image and by score.

`changes` has a row a patch of either: patch_id, image_id, name, side (both | left | entered), its rank in A and in B,
and the scores that A and B were ranked by, under their own names. `left` is in A alone, `entered` in B alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate import coverage, sql
from curate.errors import UsageError, listed, one_line
from curate.manifest import Manifest
from curate.progress import Progress, silent
from curate.store import ScoreSet, Store

__all__ = ["Comparison", "diff"]

SIDES = ("both", "left", "entered")

_BINS = 10  # of a score, each with as many patches of either
_FEWEST_RANKS = 3  # that a correlation is made of
_STEPS = 4  # that progress tells of


@dataclass(frozen=True)
class Comparison:
    """What `diff` found."""

    counts: dict[
        str, Any
    ]  # patches and pixels of A, B, both, ...; jaccard = both / either; Spearman's rank correlation
    by_image: pa.Table  # image_id, name, both, left, entered: patches; the image that changed most first
    by_score: pa.Table  # score, low, high, both, left, entered: patches with low <= score <= high, a tenth of all a row
    changes: pa.Table
    notes: list[str] = field(default_factory=list)  # what makes the comparison one of little sense

    def titled(self, images: int) -> dict[str, pa.Table]:
        """Title -> table, for people: tenths of each score, and the first so many `images`."""
        tables = {}
        for score in pc.unique(self.by_score["score"]).to_pylist():
            tenths = self.by_score.filter(pc.field("score") == score).drop_columns("score")
            tables[f"by {one_line(score)}, from low to high, a tenth of the patches a row:"] = tenths
        shown = min(images, len(self.by_image))
        cut = f", {shown} of {len(self.by_image)}" if shown < len(self.by_image) else ""
        tables[f"by image, those that changed most first{cut}:"] = self.by_image.slice(0, shown)
        return tables


def diff(
    a: Manifest | str | Path,
    b: Manifest | str | Path,
    *,
    store: Store | str | Path | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Compare two manifests of one store (at `store`, if it has moved), at one time or two.

    The rank correlation is Spearman's, over the patches that both hold; null for fewer than 3. Pixels under several
    windows count once. Raises UsageError for windows of different sizes, which are never the same patch, and as
    `Manifest.load` and `Manifest.store` do.
    """
    one, two = (item if isinstance(item, Manifest) else Manifest.load(item) for item in (a, b))
    _require_one_size(one, two)
    source = store if isinstance(store, Store) else one.store(store)
    progress(1, _STEPS, "both read")
    changes = _changes(one, two, source)
    progress(2, _STEPS, "compared patch by patch")
    counts: dict[str, Any] = {"a": len(one), "b": len(two), **_sides(changes)}
    counts["jaccard"] = counts["both"] / changes.num_rows
    counts["rank_correlation"] = _rank_correlation(changes)
    windows = [manifest.table.select(["image_id", "y", "x", "size"]) for manifest in (one, two)]
    for name, tables in (("a", windows[:1]), ("b", windows[1:]), ("either", windows)):
        counts[f"pixels_{name}"] = coverage.pixels(pa.concat_tables(tables))
    progress(3, _STEPS, "pixels counted")
    scores = changes.column_names[changes.column_names.index("rank_b") + 1 :]
    by_score = [row for score in scores for row in _by_score(changes, score)]
    columns = [("score", pa.string()), ("low", pa.float64()), ("high", pa.float64())]
    schema = pa.schema([*columns, *((side, pa.int64()) for side in SIDES)])
    tenths = pa.Table.from_pylist(by_score, schema)
    return Comparison(counts, _by_image(changes), tenths, changes, _strangers(one, two, source))


def _require_one_size(a: Manifest, b: Manifest) -> None:
    ours, theirs = (sorted(pc.unique(manifest.table["size"]).to_pylist()) for manifest in (a, b))
    if ours != theirs:
        found = " and ".join(
            f"of {listed(sizes)} px in {_called(manifest)}" for sizes, manifest in ((ours, a), (theirs, b))
        )
        raise UsageError(f"core-sets are compared window by window, of one size; found windows {found}")


def _strangers(a: Manifest, b: Manifest, store: Store) -> list[str]:
    """A line if two manifests of different stores have no photograph in common."""
    ours, theirs = (manifest.recipe.packed_from or manifest.recipe.store for manifest in (a, b))
    if pc.any(pc.is_in(a.table["image_id"], b.table["image_id"].combine_chunks())).as_py() or theirs.digest in (
        ours.digest,
        store.digest(theirs.shards),
    ):
        return []
    for made, other in ((a, b), (b, a)):
        origin = made.recipe.distilled_from
        if origin is not None and origin.manifest == other.digest():
            return [
                f"{_called(made)} was distilled from {_called(other)}: its patches are new, they have none in common"
            ]
    return [
        f"{_called(a)} and {_called(b)} have no photograph in common, and are of different stores, "
        f"'{one_line(a.store_path())}' and '{one_line(b.store_path())}': is one of them another file than was meant?"
    ]


def _called(manifest: Manifest) -> str:
    """What a manifest is called in a message."""
    return f"'{one_line(manifest.path)}'" if manifest.path is not None else f"the one by {manifest.recipe.strategy}"


def _changes(a: Manifest, b: Manifest, store: Store) -> pa.Table:
    columns = ["patch_id", "image_id", "rank", "score"]
    ours, theirs = a.table.select(columns), b.table.select(columns)
    joined = ours.join(theirs, "patch_id", join_type="full outer", left_suffix="_a", right_suffix="_b")
    in_a, in_b = (pc.is_valid(joined[f"rank_{side}"]) for side in "ab")
    table = pa.table(
        {
            "patch_id": joined["patch_id"],
            "image_id": pc.coalesce(joined["image_id_a"], joined["image_id_b"]),
            "side": pc.if_else(pc.and_(in_a, in_b), "both", pc.if_else(in_a, "left", "entered")),
            "rank_a": joined["rank_a"],
            "rank_b": joined["rank_b"],
            "score": pc.coalesce(joined["score_a"], joined["score_b"]),
        }
    )
    names = store.images().select(["image_id", "name"]).filter(pc.is_valid(pc.field("image_id")))
    columns = ["patch_id", "image_id", "name", "side", "rank_a", "rank_b"]
    table = table.join(names, "image_id").select([*columns, "score"])
    there = store.score_columns()
    wanted = sorted({recipe.by for recipe in (a.recipe, b.recipe) if recipe.by in there} - {None})
    if (
        _is_the_score(a, there) and _is_the_score(b, there) and len(wanted) == 1
    ):  # the manifests have all that is wanted
        return table.rename_columns([*columns, *wanted]).sort_by("patch_id")
    table = table.drop_columns("score")
    if wanted:
        listed = ", ".join(f"CAST({sql.identifier(name)} AS DOUBLE) AS {sql.identifier(name)}" for name in wanted)
        table = table.join(store.query(f"SELECT patch_id, {listed} FROM scores"), "patch_id")
    return table.sort_by("patch_id")


def _is_the_score(manifest: Manifest, there: Mapping[str, tuple[ScoreSet, str]]) -> bool:
    """Whether a manifest was ranked by a score that the store still has."""
    by = manifest.recipe.by
    return by is not None and by in there and manifest.recipe.scorers.get(by) == there[by][0].record.fingerprint


def _sides(changes: pa.Table) -> dict[str, int]:
    return {side: pc.sum(pc.equal(changes["side"], side)).as_py() or 0 for side in SIDES}


def _rank_correlation(changes: pa.Table) -> float | None:
    both = changes.filter(pc.equal(changes["side"], "both"))
    if both.num_rows < _FEWEST_RANKS:
        return None
    # Ranks have no ties: each is the place among those that both hold.
    places = [np.argsort(np.argsort(both[f"rank_{side}"].to_numpy())).astype(float) for side in "ab"]
    return float(np.corrcoef(np.stack(places))[0, 1])


def _by_image(changes: pa.Table) -> pa.Table:
    counts = [pc.cast(pc.equal(changes["side"], side), pa.int64()) for side in SIDES]
    table = pa.table([changes["image_id"], changes["name"], *counts], ["image_id", "name", *SIDES])
    sums = table.group_by(["image_id", "name"]).aggregate([(side, "sum") for side in SIDES])
    sums = sums.rename_columns({f"{side}_sum": side for side in SIDES}).select(["image_id", "name", *SIDES])
    moved = pc.add(sums["left"], sums["entered"])
    order = [("moved", "descending"), ("image_id", "ascending")]
    return sums.append_column("moved", moved).sort_by(order).drop_columns("moved")


def _by_score(changes: pa.Table, score: str) -> list[dict[str, Any]]:
    """Tenths of the patches of either by one score, and how many of each side lie there; none without a score."""
    values = changes[score].to_numpy()  # null is NaN
    sides = {name: np.asarray(pc.equal(changes["side"], name)) for name in SIDES}
    order = np.argsort(values, kind="stable")[: int((~np.isnan(values)).sum())]
    rows = []
    for part in np.array_split(order, _BINS):
        if len(part):
            ends = {"low": float(values[part].min()), "high": float(values[part].max())}
            rows.append({"score": score, **ends, **{name: int(there[part].sum()) for name, there in sides.items()}})
    return rows
