"""Info: what a path is (a store, a manifest or a checkpoint), its counts and its recipe."""

from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from curate import files
from curate.errors import UsageError, one_line
from curate.manifest import Manifest
from curate.schema import STATUS_OK
from curate.store import Store

__all__ = ["info"]

_CHECKPOINTS = (".safetensors", ".pth", ".pt", ".mat")


def info(path: str | Path) -> dict[str, Any]:
    """Everything that is worth knowing about a path, JSON-able; its first key, `kind`, says what it is.

    Raises UsageError for a path that is none of the three, DataError for a damaged one.
    """
    where = files.local_path(path, "a store, a manifest or a checkpoint")
    if Store.is_store(where):
        return _store(Store.open(where))
    if where.suffix.lower() in _CHECKPOINTS or (where.is_dir() and any(where.glob("*.safetensors"))):
        return _checkpoint(where)
    if where.is_file():
        return _manifest(Manifest.load(where))
    found = "a folder without a store.json or a model.safetensors" if where.is_dir() else "nothing"
    raise UsageError(f"'{one_line(path)}' is not a store, a manifest or a checkpoint: found {found}")


def _store(store: Store) -> dict[str, Any]:
    units = store.commits()
    images = store.images()
    ok = pc.sum(pc.equal(images["status"], STATUS_OK)).as_py() or 0
    scores = {}
    for name, (found, _) in store.score_columns().items():
        rows = sum(part.rows or 0 for record in store.commits(found.kind).values() for part in record.parts)
        scores[name] = {"patches": rows, "fingerprint": found.record.fingerprint, **found.record.identity}
    return {
        "kind": "store",
        "patch": store.header.patch,
        "step": store.header.step,
        "images": ok,
        "refused": images.num_rows - ok,
        "patches": sum(store.rows(unit, "patches") for unit in units.values()),
        "shards": len(units),
        "bytes": sum(part.bytes for unit in units.values() for part in unit.parts),
        "digest": store.digest(),
        "created_by": store.header.created_by,
        "scores": scores,
    }


def _manifest(manifest: Manifest) -> dict[str, Any]:
    score = manifest.table["score"]
    extremes = pc.min_max(score).as_py()
    return {
        "kind": "manifest",
        "patches": len(manifest),
        "images": pc.count_distinct(manifest.table["image_id"]).as_py(),
        "score": {"lowest": extremes["min"], "highest": extremes["max"]},
        "recipe": manifest.recipe.model_dump(mode="json"),
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    from curate.checkpoint import read_recipe

    return {"kind": "checkpoint", **read_recipe(path)}
