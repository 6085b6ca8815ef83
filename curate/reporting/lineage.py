"""Lineage: every hash, option and version behind a report, and the commands that make its manifests again."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from curate import storage
from curate.errors import one_line
from curate.reporting.facts import Choice, Facts
from curate.reporting.words import TIMES, number
from curate.schema import DistilledFrom
from curate.storage import Place
from curate.store import CheckSet

__all__ = [
    "commands",
    "facts_of_choice",
    "facts_of_store",
    "placeholders",
    "select_command",
    "terms_of_choice",
    "terms_of_store",
]

_TEACHER = "TEACHER"
_MANIFEST = "MANIFEST"  # stands for one in another store
_COUNTS = {"patches": "patches in the store", "without_finite_score": "without a finite score"}


def commands(facts: Facts, here: Place) -> list[str]:
    """What to run in the folder `here` to make the manifests again, given the photographs."""
    store = _path(facts.store.path, here)
    return [
        *_ingest(facts, store, here),
        *_checks(facts, store),
        *_scores(facts, store),
        *(select_command(c, facts, here) for c in facts.choices if not (c.is_distilled and _is_distilled(facts))),
    ]


def select_command(choice: Choice, facts: Facts, here: Place) -> str:
    """The `curate select` that wrote a manifest, or the `curate distill` that made its patches."""
    recipe, path = choice.manifest.recipe, choice.manifest.path
    if choice.is_distilled:
        return _distill(recipe.options, facts, here)
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
        "distilled": None if store.header.distilled is None else store.header.distilled.model_dump(mode="json"),
        "checks": {found.folder: found.record.label for found in store.check_sets()},
        "scorers": {
            name: {"fingerprint": found.record.fingerprint, **found.record.identity}
            for name, found in facts.sets.items()
        },
    }


def facts_of_choice(choice: Choice) -> dict[str, Any]:
    """A manifest's recipe, and the hash of what a trainer reads of it."""
    return {"digest": choice.manifest.digest(), "recipe": choice.manifest.recipe.model_dump(mode="json")}


def placeholders(facts: Facts) -> list[tuple[str, str]]:
    """Names in the commands that stand for places which the store does not keep, and what lies there."""
    named = []
    if _is_distilled(facts) or any(choice.is_distilled for choice in facts.choices):
        named = [(_MANIFEST, "manifest that it was distilled from")]
    elif facts.store.header.packed is None:
        named = [(source, "photographs") for source in _unique(facts.images["source"])]
        named += [("LR", "LR images")] if _lr_roles(facts) else []
    return named + [(found.record.label, "test images") for found in _used_checks(facts) if _is_leaks(found)]


def terms_of_store(facts: Facts, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was ingested or made, in words: `record` as `facts_of_store` gives it."""
    packed, distilled = record["packed"], record["distilled"]
    terms = [
        ("digest of what was ingested" if distilled is None else "digest of what was made", record["digest"]),
        *((name, number(record[name])) for name in ("images", "refused", "patches", "shards")),
        ("size", f"{record['bytes'] / 1e6:,.1f} MB"),
        ("windows", f"{record['patch_px']} {TIMES} {record['patch_px']} px, every {record['step_px']} px"),
        ("packed, from", "" if packed is None else _listed(packed)),
        ("distilled, from", "" if distilled is None else _listed(_without_null({**distilled, "options": None}))),
        ("checks", _named_checks(record["checks"])),
        ("written by", record["created_by"]),
    ]
    return [(term, words) for term, words in terms if words]


def terms_of_choice(choice: Choice, digest: str, store_digest: str) -> list[tuple[str, str]]:
    """A recipe in words; what is as the page says elsewhere, or is not there, is left out."""
    recipe = choice.manifest.recipe
    then = recipe.store
    terms = [
        ("strategy", recipe.strategy),
        ("its options", _listed(recipe.options)),
        ("keeps", "" if recipe.origin == "distilled" else f"{recipe.keep:g} of the candidates' {recipe.unit}"),
        ("ranked by", recipe.by or ""),
        ("fingerprints of scores", _listed(recipe.scorers)),
        ("condition", recipe.where or ""),
        ("checks that it heeded", _named_checks(recipe.checks)),
        ("patches", _listed({_COUNTS.get(k, k): number(v) for k, v in recipe.counts.items() if v and k != "pixels"})),
        (
            "pixels under the chosen",
            f"{number(recipe.counts['pixels'] / 1e6)} Mpx" if "pixels" in recipe.counts else "",
        ),
        ("digest of the store then", "" if then.digest == store_digest else f"{then.digest}, shards: {then.shards}"),
        ("packed, from", "" if recipe.packed_from is None else _listed(recipe.packed_from.model_dump(mode="json"))),
        ("distilled, from", "" if recipe.distilled_from is None else _origin(recipe.distilled_from)),
        ("hash of patches and weights", digest),
        ("versions", _listed(recipe.versions)),
    ]
    return [(term, words) for term, words in terms if words]


def _listed(content: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in sorted(content.items()))


def _origin(origin: DistilledFrom) -> str:
    """The manifest that patches were distilled from."""
    kept = {
        "strategy": origin.strategy,
        "options": _listed(origin.options),
        "by": origin.by,
        "keep": f"{origin.keep:g} of the {origin.unit}",
        "condition": origin.where,
        "patches": number(origin.patches),
        "hash of patches and weights": origin.manifest,
        "store": one_line(origin.store.url),
        "its digest": origin.store.digest,
    }
    return ", ".join(f"{name}: {value}" for name, value in _without_null(kept).items())


def _without_null(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if value not in (None, "")}


def _named_checks(checks: Mapping[str, str]) -> str:
    """`duplicates@0a1b2c3d, leaks@4e5f6a7b (Set5)`."""
    return ", ".join(
        folder if folder.partition("@")[0] == label else f"{folder} ({label})"
        for folder, label in sorted(checks.items())
    )


def _used_checks(facts: Facts) -> list[CheckSet]:
    used = {folder for choice in facts.choices for folder in choice.manifest.recipe.checks}
    return [found for found in facts.store.check_sets() if found.folder in used]


def _is_leaks(found: CheckSet) -> bool:
    return found.record.check == "leaks"


def _lr_roles(facts: Facts) -> list[str]:
    roles = (role for unit in facts.store.commits() for role in facts.store.unit_table("cells", unit)["role"])
    return [role for role in _unique(roles) if role.startswith("lr")]


def _ingest(facts: Facts, store: str, here: Place) -> list[str]:
    if facts.store.header.packed is not None:
        return []  # it was packed from another store, which is named by its digest
    if facts.store.header.distilled is not None:
        return [_distill(facts.store.header.distilled.options, facts, here)]
    header = facts.store.header
    words = ["curate", "ingest", *_unique(facts.images["source"]), store]
    words += ["--patch", str(header.patch), "--step", str(header.step)]
    for role in _lr_roles(facts):
        words += ["--lr", f"{role[2:]}=LR"]
    return [_line(words)]


def _is_distilled(facts: Facts) -> bool:
    return facts.store.header.distilled is not None


def _distill(options: Mapping[str, Any], facts: Facts, here: Place) -> str:
    """The `curate distill` that made the store, with all its options."""
    words = ["curate", "distill", _MANIFEST, "-o", _path(facts.store.path, here)]
    for name, value in sorted(options.items()):
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag if value else f"--no-{flag.removeprefix('--')}"]
        elif name == "teacher" and value is not None:  # a hash: where it lay is not recorded
            words += [flag, _TEACHER]
        elif isinstance(value, list):
            words += [flag, ",".join(map(str, value))] if value else []
        elif value is not None:
            words += [flag, str(value)]
    return _line(words)


def _checks(facts: Facts, store: str) -> list[str]:
    return [
        _line(["curate", found.record.check, store, *([found.record.label] if _is_leaks(found) else [])])
        for found in _used_checks(facts)
    ]


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
