"""Info: what a path is (a store, a manifest, a checkpoint or a genotype), its counts and its recipe.

Answers without torch wherever no network is built: for stores, manifests, and checkpoints of curate's own as they are.
"""

import math
import re
from typing import Any

import pyarrow.compute as pc

from curate import compressions, distribution, plugins, storage
from curate.archs import Arch
from curate.errors import DataError, UsageError, listed, one_line
from curate.genotype import GENOTYPE_FILE, Genotype
from curate.manifest import Manifest, Scan
from curate.packing import MANIFEST_FILE
from curate.schema import METADATA_KEY, STATUS_OK, GenotypeRecord
from curate.storage import Place
from curate.store import CheckSet, Store

__all__ = ["info", "parse_size"]

_VERBS = {"arch_rate": "nas dlsr", "autoencoder_steps": "ldm train"}  # by an option that no other's state has
_CHECKPOINTS = (".safetensors", ".pth", ".pt", ".mat")


def info(path: str | Place, *, size: tuple[int, int] | None = None, arch: str | None = None) -> dict[str, Any]:
    """Everything that is worth knowing about a path, JSON-able; its first key, `kind`, says what it is.

    Of a checkpoint, size, the (width, height) of an answer in px, adds `multiply_adds` and the `convention` that they
    are counted by. arch is the spec of its network, for a public file whose weights do not tell it and for an arch
    outside curate, which is imported only if it is named here: without it, `parameters` is what the file says and so
    has running statistics in it, and there is no size. Of a genotype (a file, or a search's folder) size does the same.
    A training run, a search or a compression that has not ended is an `unfinished run`. Of the folder of a compression
    `compression` says which stages have ended, and what is left.
    Raises UsageError for a path that is none of the three, for size or arch where there is no network, and for a
    network that is not known; DataError for a damaged file.
    """
    where = storage.place(path, "a store, a manifest or a checkpoint")
    asked = [name for name, value in (("--size", size), ("--arch", arch)) if value is not None]
    if Store.is_store(where):
        store = Store.open(where)
        _refuse(asked, where, "store")
        return _store(store)
    weights = {name for name in storage.entries(where) if name.endswith(".safetensors")}
    genotype = where / GENOTYPE_FILE if where.is_dir() else where
    if genotype.suffix == ".json" and genotype.is_file():
        _refuse([name for name in asked if name == "--arch"], where, "genotype")
        return _genotype(genotype, size)
    if weights - {"dual.safetensors"} == {"state.safetensors"}:
        _refuse(asked, where, "unfinished run")
        return _unfinished(where)
    if where.suffix.lower() in _CHECKPOINTS or weights:
        return _checkpoint(where, size, arch)
    if compressions.is_compression(where):
        _refuse(asked, where, "unfinished run")
        return _begun(where)
    if where.is_file():
        with Manifest.scan(where) as scan:
            _refuse(asked, where, "manifest")
            return _manifest(scan)
    found = "a folder without a store.json or a model.safetensors" if where.is_dir() else "nothing"
    raise UsageError(f"'{one_line(path)}' is not a store, a manifest or a checkpoint: found {found}")


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) in px of a text as `1280x720`. UsageError for any other."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text.strip(), re.IGNORECASE)
    if not match:
        raise UsageError(f"--size should be WIDTHxHEIGHT in px, such as 1280x720, found '{one_line(text)}'")
    return int(match[1]), int(match[2])


def _refuse(asked: list[str], path: Place, kind: str) -> None:
    """UsageError if anything was asked that only a checkpoint can answer."""
    if asked:
        meant = f"a checkpoint (a run's folder, or a file of type {listed(_CHECKPOINTS)})"
        raise UsageError(f"{' and '.join(asked)} should go with {meant}, found the {kind} '{one_line(path)}'")


def _store(store: Store) -> dict[str, Any]:
    units = store.commits()
    statuses = store.statuses()
    ok = pc.sum(pc.equal(statuses, STATUS_OK)).as_py() or 0
    scores = {}
    for name, (found, _) in store.score_columns().items():
        rows = sum(part.rows or 0 for record in store.commits(found.kind).values() for part in record.parts)
        scores[name] = {"patches": rows, "fingerprint": found.record.fingerprint, **found.record.identity}
    return {
        "kind": "store",
        "patch": store.header.patch,
        "step": store.header.step,
        "images": ok,
        "refused": len(statuses) - ok,
        "patches": sum(store.rows(unit, "patches") for unit in units.values()),
        "shards": len(units),
        "bytes": sum(part.bytes for unit in units.values() for part in unit.parts),
        "digest": store.digest(),
        "created_by": store.header.created_by,
        "packed": None if store.header.packed is None else store.header.packed.model_dump(mode="json"),
        **_distilled(store),
        "scores": scores,
        "flagged": store.findings().flags.num_rows,
        "checks": {found.folder: _seen(store, found) for found in store.check_sets()},
        "histogram": distribution.of_store(store),
    }


def _distilled(store: Store) -> dict[str, Any]:
    """What a distilled store was made from, and what to do if that has not ended; nothing for others."""
    if store.header.distilled is None:
        return {}
    made_from = {"distilled": store.header.distilled.model_dump(mode="json")}
    if (store.path / MANIFEST_FILE).is_file():
        return made_from
    return {**made_from, "to_go_on": "it has not ended: give the same 'curate distill' again"}


def _seen(store: Store, found: CheckSet) -> dict[str, Any]:
    """How many images of the store a check has looked at."""
    tables = [store.unit_table("images", unit) for unit in store.commits(found.kind)]
    ok = sum(pc.sum(pc.equal(table["status"], STATUS_OK)).as_py() or 0 for table in tables)
    return {"label": found.record.label, "images": ok}


def _manifest(scan: Scan) -> dict[str, Any]:
    ends: list[float | None] = []
    for batch in scan.batches("image_id", "score"):  # every one is looked at before DuckDB reads them
        ends += pc.min_max(batch["score"]).as_py().values()
    finite = [score for score in ends if score is not None and math.isfinite(score)]
    return {
        "kind": "manifest",
        "patches": scan.rows,
        "images": distribution.images_of(scan),
        "score": {"lowest": min(finite, default=None), "highest": max(finite, default=None)},
        "recipe": scan.manifest.recipe.model_dump(mode="json"),
        "histogram": distribution.of_manifest(scan),
    }


def _unfinished(folder: Place) -> dict[str, Any]:
    """How far a training run is that the same command goes on with."""
    from curate.resume import begun

    state = begun(folder)
    verb = next((verb for option, verb in _VERBS.items() if option in state.identity), "train")
    compression = compressions.facts(folder)
    how = f"give the same 'curate {'drc' if compression else verb}' again"
    return {
        "kind": "unfinished run",
        "step": state.step,
        "best": state.best,
        "to_go_on": how,
        **compression,
        "options": state.identity,
    }


def _begun(folder: Place) -> dict[str, Any]:
    """How far a compression is that has no model yet."""
    how = "give the same 'curate drc' again"
    return {"kind": "unfinished run", "to_go_on": how, **compressions.facts(folder)}


def _genotype(file: Place, size: tuple[int, int] | None) -> dict[str, Any]:
    """What a search found; with a size, what its network has and takes, at the search's scale and width (x2, 48)."""
    found, record = Genotype.load(file), GenotypeRecord.model_validate_json(file.read_bytes())
    search = record.search or {}
    facts: dict[str, Any] = {
        "kind": "genotype",
        "genotype": found.name,
        "operations": record.operations,
        "inputs": record.inputs,
    }
    if size is not None:
        from curate.macs import convention, multiply_adds, parameters

        options = search.get("identity", {}) if isinstance(search.get("identity"), dict) else {}
        asked = {"scale": options.get("scale", 2), "features": options.get("features")}
        arch: Arch = plugins.parse("archs", "dlsr", genotype=str(found), **asked)
        facts |= {
            "arch": plugins.spec_of(arch),
            "parameters": parameters(arch),
            "multiply_adds": multiply_adds(arch, size[1], size[0]),
            "convention": convention(arch, size[1], size[0]),
        }
    return {**facts, "search": record.search}


def _checkpoint(path: Place, size: tuple[int, int] | None, arch: str | None) -> dict[str, Any]:
    facts = _recorded(path)
    if not facts or size is not None or arch is not None:
        facts |= _loaded(path, size, arch)
    return {"kind": "checkpoint", **facts, **compressions.facts(path)}


def _recorded(path: Place) -> dict[str, Any]:
    """What the header of a checkpoint of curate's own says; {} of others' files, and where there is none."""
    from safetensors import SafetensorError, safe_open

    from curate.checkpoint import MODEL_FILE, read_recipe

    file = path / MODEL_FILE if path.is_dir() else path
    if file.suffix.lower() != ".safetensors" or not file.is_file():
        return {}
    try:
        with storage.local_copy(file) as copy, safe_open(copy, framework="np") as header:
            if METADATA_KEY not in (header.metadata() or {}):
                return {}
            names = header.keys()
            numbers = sum(math.prod(header.get_slice(name).get_shape()) for name in names)
    except SafetensorError:
        raise DataError(f"'{one_line(file)}' is not a safetensors file, or is damaged") from None
    return {**read_recipe(file), "parameters": numbers}


def _loaded(path: Place, size: tuple[int, int] | None, arch: str | None) -> dict[str, Any]:
    """What the network of anyone's checkpoint says."""
    from curate.checkpoint import Checkpoint, full_spec, weights_hash
    from curate.macs import convention, multiply_adds, parameters

    checkpoint = Checkpoint.load(path, arch)
    network = checkpoint.arch
    facts = {
        "arch": full_spec(network),
        "weights": weights_hash(checkpoint.state),
        "parameters": parameters(network),
    }
    if size is None:
        return facts
    width, height = size
    return {
        **facts,
        "multiply_adds": multiply_adds(network, height, width),
        "convention": convention(network, height, width),
    }
