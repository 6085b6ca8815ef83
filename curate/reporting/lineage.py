"""Lineage: every hash, option and version behind a report, and the commands that make its manifests again."""

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from curate import storage
from curate.errors import one_line
from curate.reporting.facts import Choice, Facts
from curate.storage import Place

__all__ = ["commands", "facts_of_choice", "facts_of_store", "select_command"]


def commands(facts: Facts, here: Place) -> list[str]:
    """What to run in the folder `here` to make the manifests again, given the photographs."""
    store = _path(facts.store.path, here)
    return [
        *_ingest(facts, store),
        *_checks(facts, store),
        *_scores(facts, store),
        *(select_command(choice, facts, here) for choice in facts.choices),
    ]


def select_command(choice: Choice, facts: Facts, here: Place) -> str:
    """The `curate select` that wrote a manifest."""
    recipe, path = choice.manifest.recipe, choice.manifest.path
    out = _path(path, here) if path is not None else f"{choice.name}.parquet"
    words = ["curate", "select", _path(facts.store.path, here), recipe.strategy, "-o", out]
    words += ["--keep", f"{recipe.keep:g}" if float(f"{recipe.keep:g}") == recipe.keep else repr(recipe.keep)]
    words += ["--by", choice.by] if choice.by is not None else []
    words += ["--unit", recipe.unit] if recipe.unit != "patches" else []
    words += ["--where", recipe.where] if recipe.where is not None else []
    words += ["--with-flagged"] if facts.store.check_sets() and not recipe.checks else []
    return _line(words)


def facts_of_store(facts: Facts) -> dict[str, Any]:
    """What was ingested, exactly."""
    store = facts.store
    units = store.commits()
    return {
        "digest": store.digest(),
        "shards": len(units),
        "bytes": sum(part.bytes for unit in units.values() for part in unit.parts),
        "images": facts.images.num_rows,
        "refused": facts.refused.num_rows,
        "patches": facts.patches.num_rows,
        "patch_px": store.header.patch,
        "step_px": store.header.step,
        "created_by": store.header.created_by,
        "packed": None if store.header.packed is None else store.header.packed.model_dump(mode="json"),
        "checks": {found.folder: found.record.label for found in store.check_sets()},
        "scorers": {
            name: {"fingerprint": found.record.fingerprint, **found.record.identity}
            for name, found in facts.sets.items()
        },
    }


def facts_of_choice(choice: Choice) -> dict[str, Any]:
    """A manifest's recipe, and the hash of what a trainer reads of it."""
    return {"digest": choice.manifest.digest(), "recipe": choice.manifest.recipe.model_dump(mode="json")}


def _ingest(facts: Facts, store: str) -> list[str]:
    if facts.store.header.packed is not None:
        return []  # it was packed from another store, which is named by its digest
    header = facts.store.header
    words = ["curate", "ingest", *_unique(facts.images["source"]), store]
    words += ["--patch", str(header.patch), "--step", str(header.step)]
    roles = _unique(role for unit in facts.store.commits() for role in facts.store.unit_table("cells", unit)["role"])
    for role in roles:
        words += ["--lr", f"{role[2:]}=LR"] if role.startswith("lr") else []
    return [_line(words)]


def _checks(facts: Facts, store: str) -> list[str]:
    used = {folder for choice in facts.choices for folder in choice.manifest.recipe.checks}
    lines = []
    for found in facts.store.check_sets():
        if found.folder in used:
            leaks = found.record.check == "leaks"
            lines.append(_line(["curate", found.record.check, store, *([found.record.label] if leaks else [])]))
    return lines


def _scores(facts: Facts, store: str) -> list[str]:
    labels = _unique(found.record.label for found in facts.sets.values())
    return [_line(["curate", "score", store, *labels])] if labels else []


def _unique(values: Iterable[Any]) -> list[str]:
    return sorted({str(value) for value in values})


def _line(words: Sequence[str]) -> str:
    return shlex.join([one_line(word) for word in words])


def _path(path: Place, here: Place) -> str:
    """A path as seen from `here`, so that a report and what it tells of can be moved together."""
    return storage.relative(path.resolve(), here.resolve())
