"""Verify: is what lies at a path what curate wrote, and if not, what is hit?

A store is looked at by `curate.fsck`, a checkpoint by `curate.checkpoint`, an export by `curate.exports`, what a
compression has besides checkpoints by `curate.compressions`. A manifest is compared with its store. Here paths are told
apart, and faults become findings that name the images, patches, scores and manifests that they hit. Nothing is written,
and nothing that is damaged stops the rest from being looked at.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from curate import compressions, exports, fsck, pool, retries, storage
from curate.errors import CurateError, UsageError, counted, listed, one_line
from curate.fsck import Fault, Look
from curate.manifest import Manifest
from curate.progress import Progress, silent
from curate.schema import ScorerRecord, VerifiedPath, VerifyFinding, VerifyRecord
from curate.sources import Source, find
from curate.storage import Place
from curate.store import INGEST

__all__ = ["describe", "verify"]

_PHOTOGRAPHS = "photographs"  # the `work` of faults that are none of the store's own files


@dataclass
class _Checked:
    """One path, while it is looked at."""

    path: Place
    kind: str
    files: int = 0
    bytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    look: Look | None = None  # of a store


def verify(
    *paths: str | Place, deep: bool = False, against: Sequence[str] = (), progress: Progress = silent
) -> VerifyRecord:
    """Look at stores, manifests, checkpoints (or runs) and exports, and say what is wrong and what that hits.

    Without `deep` documents are read and files are looked for, with their sizes; with it every byte is read and
    compared. Manifests that are named too are told where a fault hits them; a manifest's store is the one that it
    names, or of these paths the one that it was made from. `against` are photographs, as `ingest` takes them, that the
    stores were made from: which of them have changed since?

    Raises UsageError for a path that is none of these, and for `against` without a store. Damage is never raised.
    """
    if not paths:
        raise UsageError("what should be verified? Name stores, manifests, checkpoints, exports")
    all_checked = [_classified(path) for path in paths]
    stores = [checked for checked in all_checked if checked.kind == "store"]
    if against and not stores:
        raise UsageError("photographs are compared with a store: name it too")
    sources = find(list(against)).sources if against else []
    for checked in stores:
        checked.look = fsck.look(checked.path)
        checked.faults += _store_faults(checked, deep, progress)
    manifests = _Manifests(deep, [checked.look for checked in stores if checked.look])
    for checked in all_checked:
        if checked.kind == "manifest":
            checked.faults += manifests.check(checked.path)
            checked.files, checked.bytes = 1, _size(checked.path)
        elif checked.look is not None:
            _check_inner_manifests(checked, manifests)
            checked.faults += _changed_sources(checked.look, sources, progress)
        else:
            _check_others(checked, deep)
    findings = [finding for checked in all_checked for finding in _findings(checked, manifests.loaded)]
    return VerifyRecord(
        deep=deep,
        whole=all(finding.harmless for finding in findings),
        checked=[
            VerifiedPath(path=str(checked.path), kind=checked.kind, files=checked.files, bytes=checked.bytes)  # type: ignore[arg-type]
            for checked in all_checked
        ],
        findings=findings,
    )


def describe(record: VerifyRecord) -> list[str]:
    """What was found, a line each, and the sum of it."""
    lines = [_line(finding) for finding in record.findings]
    files, size = sum(path.files for path in record.checked), sum(path.bytes for path in record.checked)
    looked = f"{counted(files, 'file')}, {size / 1e6:.1f} MB"
    unread = "" if record.deep else "; contents were not read, --deep reads them"
    grave = [finding for finding in record.findings if not finding.harmless]
    if not grave:
        return [*lines, f"checked {looked}: {'whole' if record.deep else 'all there, of the right size'}{unread}"]
    images = {name for finding in grave for name in finding.images}
    hit = f"{counted(len(grave), 'finding')}, {counted(len(images), 'image')} hit"
    return [*lines, f"checked {looked}: {hit}{unread}"]


def _line(finding: VerifyFinding) -> str:
    hits = []
    if finding.images:
        hits.append(f"{len(finding.images)} images ({listed(finding.images)})" if len(finding.images) > 1 else "")
    if finding.patches:
        hits.append(counted(finding.patches, "patch"))
    if finding.scores:
        hits.append(f"scores {listed(finding.scores)}")
    hits += [f"{counted(count, 'patch')} of {name}" for name, count in finding.manifests.items()]
    text = ", ".join(filter(None, hits))
    return one_line(f"{finding.kind:8} {finding.path}: {finding.problem}" + (f"; hits {text}" if text else ""))


def _classified(path: str | Place) -> _Checked:
    where = storage.place(path, "a store, a manifest, a checkpoint or an export")
    if fsck.is_store(where):
        return _Checked(where, "store")
    if (where / "export.json").is_file():
        return _Checked(where, "export")
    if where.suffix == ".safetensors" or any(name.endswith(".safetensors") for name in storage.entries(where)):
        return _Checked(where, "checkpoint")
    if compressions.is_compression(where):  # which has no model yet
        return _Checked(where, "checkpoint")
    if where.is_file() and where.suffix not in (".pth", ".pt", ".mat"):
        return _Checked(where, "manifest")
    found = "nothing" if not where.exists() else "a folder of other things" if where.is_dir() else "a file of another"
    raise UsageError(
        f"'{one_line(path)}' should be a store, a manifest, a checkpoint or an export of curate's, found {found}"
    )


def _size(path: Place) -> int:
    return (path.stat().st_size if not isinstance(path, storage.RemotePath) else path.size()) or 0


# --- stores -----------------------------------------------------------------------------------------------------------


def _store_faults(checked: _Checked, deep: bool, progress: Progress) -> list[Fault]:
    look = checked.look
    assert look is not None
    checked.files, checked.bytes = len(look.sizes), sum(max(size, 0) for size in look.sizes.values())
    return look.faults + (list(fsck.faults_within(look, progress)) if deep else [])


def _check_inner_manifests(checked: _Checked, manifests: "_Manifests") -> None:
    """The manifest of a packed or distilled store, and others that were put beside the header."""
    look = checked.look
    assert look is not None
    for name in look.manifests:
        faults = manifests.check(look.path / name, look)
        checked.faults += [replace(fault, path=name) for fault in faults]


def _changed_sources(look: Look, sources: Sequence[Source], progress: Progress) -> Iterator[Fault]:
    """Photographs that are not what they were when they were ingested."""
    if not sources:
        return
    known: dict[tuple[str, str], dict[str | None, str | None]] = {}
    images, retried = (
        {unit: table for unit in look.units if (table := fsck.table_of(look, unit, name)) is not None}
        for name in ("images", "retried")
    )
    for rows in retries.shown(images, retried):
        for row in rows.to_pylist():
            known.setdefault((row["source"], row["name"]), {})[row["sha256"]] = row["image_id"]
    hashes = {sha256 for hashes in known.values() for sha256 in hashes}
    for done, (source, sha256) in enumerate(zip(sources, pool.ahead(_sha256, sources), strict=True), 1):
        progress(done, len(sources), "photographs")
        name, ours = f"{source.source}/{source.name}", known.get((source.source, source.name))
        image_id = next(filter(None, ours.values()), None) if ours else None
        if sha256 is None:
            yield Fault("changed", name, "the photograph cannot be read", _PHOTOGRAPHS, image_id=image_id)
        elif ours is not None and sha256 not in ours:
            problem = "the photograph is not the one that was ingested"
            yield Fault("changed", name, problem, _PHOTOGRAPHS, image_id=image_id)
        elif ours is None and sha256 not in hashes:
            yield Fault("new", name, "the photograph is not in the store", _PHOTOGRAPHS)
    there = {(source.source, source.name) for source in sources}
    folders = {source.source for source in sources}
    for (folder, name), ours in known.items():
        if folder in folders and (folder, name) not in there:
            image_id = next(filter(None, ours.values()), None)
            problem = "the photograph is not there any more"
            yield Fault("gone", f"{folder}/{name}", problem, _PHOTOGRAPHS, image_id=image_id)


def _sha256(source: Source) -> str | None:
    try:
        return hashlib.sha256(source.read()).hexdigest()
    except (OSError, CurateError):
        return None


# --- manifests --------------------------------------------------------------------------------------------------------


@dataclass
class _Manifests:
    """Manifests, compared with their stores."""

    deep: bool
    looks: list[Look]
    loaded: dict[str, tuple[Manifest, Place]] = field(default_factory=dict)  # by path; with the store's place

    def check(self, path: Place, look: Look | None = None) -> list[Fault]:
        """What is wrong with a manifest, whose store `look` shows if it lies in it."""
        try:
            manifest = Manifest.load(path)
        except (CurateError, OSError) as error:
            kind: fsck.Kind = "foreign" if look is not None and not look.ends_with_manifest else "damaged"
            return [Fault(kind, str(path), one_line(error))]
        look = look or self._look(manifest)
        faults = list(_rows(manifest, str(path)))
        if self.deep and not Manifest.is_as_written(path):
            faults.append(Fault("damaged", str(path), "its bytes are not those that are written for its rows"))
        if look is None:
            where = one_line(manifest.store_path())
            return [*faults, Fault("missing", str(path), f"its store is not at '{where}'; name that too")]
        self.loaded[str(path)] = manifest, look.path
        return faults + list(_against_store(manifest, look, str(path)))

    def _look(self, manifest: Manifest) -> Look | None:
        """Of the manifest's store: where it should be, or one of those that were named."""
        where = manifest.store_path()
        for look in self.looks:
            if look.path.resolve() == where.resolve():
                return look
        reference = manifest.recipe.store
        for look in self.looks:
            if look.digest(reference.shards) == reference.digest:
                return look
        if not fsck.is_store(where):
            return None
        self.looks.append(fsck.look(where))
        return self.looks[-1]


def _rows(manifest: Manifest, path: str) -> Iterator[Fault]:
    """What the rows say by themselves."""
    table = manifest.table
    columns = [table[name].to_pylist() for name in ("patch_id", "image_id", "y", "x", "size")]
    if any(patch_id != f"{image_id}_{y}_{x}_{size}" for patch_id, image_id, y, x, size in zip(*columns, strict=True)):
        yield Fault("damaged", path, "it has ids that are not those of their windows")
    if table["rank"].to_pylist() != list(range(len(manifest))):
        yield Fault("damaged", path, "its ranks are not 0, 1, 2, ...")
    if pc.count_distinct(table["patch_id"]).as_py() != len(manifest):
        yield Fault("damaged", path, "it has a patch twice")


def _against_store(manifest: Manifest, look: Look, path: str) -> Iterator[Fault]:
    reference = manifest.recipe.store
    if len(look.units) < reference.shards or look.digest(reference.shards) != reference.digest:
        problem = f"'{one_line(look.path)}' is not the store that it was made from, or has changed since"
        yield Fault("changed", path, f"{problem}: the digest of its first {reference.shards} shards differs")
    for unit in pc.unique(manifest.table["shard"]).to_pylist():
        mine = manifest.table.filter(pc.field("shard") == unit)["patch_id"]
        patches = fsck.table_of(look, unit, "patches")
        if patches is None:
            problem = f"the store has no table of the patches of shard {unit}, or it is damaged"
            yield Fault("missing", path, f"{problem}: {len(mine)} patches cannot be found")
            continue
        absent = mine.filter(pc.invert(pc.is_in(mine, patches["patch_id"].combine_chunks())))
        if len(absent):
            yield Fault("damaged", path, f"{len(absent)} of its patches are not in shard {unit}: {absent[0]}, ...")


# --- checkpoints and exports ------------------------------------------------------------------------------------------


def _check_others(checked: _Checked, deep: bool) -> None:
    if checked.kind == "checkpoint":
        from curate import checkpoint, dual  # only here torch is imported

        places = compressions.checkpoints(checked.path)
        looks = [dual.check(place) for place in places]
        if checked.path.name != dual.DUAL_FILE:
            looks = [*map(checkpoint.check, places), *looks, compressions.check(checked.path)]
        found, problems = (list(chain.from_iterable(parts)) for parts in zip(*looks, strict=True))
    else:
        found, problems = exports.check(checked.path, deep)
    checked.files, checked.bytes = len(found), sum(map(_size, found))
    checked.faults += [Fault("damaged", str(name), problem) for name, problem in problems]


# --- what is hit ------------------------------------------------------------------------------------------------------


def _findings(checked: _Checked, manifests: dict[str, tuple[Manifest, Place]]) -> Iterator[VerifyFinding]:
    hits = _Hits(checked.look, manifests) if checked.look is not None else None
    for fault in checked.faults:
        plain = VerifyFinding(
            kind=fault.kind,
            path=fault.path if checked.look is None or fault.work == _PHOTOGRAPHS else f"{checked.path}/{fault.path}",
            problem=fault.problem,
            harmless=fault.kind in fsck.HARMLESS,
        )
        yield plain if hits is None or plain.harmless else hits.of(fault, plain)


@dataclass
class _Hits:
    """What the faults of a store hit."""

    look: Look
    manifests: dict[str, tuple[Manifest, Place]]
    tables: dict[tuple[str, int], pa.Table | None] = field(default_factory=dict)

    def of(self, fault: Fault, finding: VerifyFinding) -> VerifyFinding:
        """The finding, with what it hits."""
        if fault.image_id is not None:
            return self._image(fault, finding)
        if fault.path.startswith("tables/retried/"):
            history = "it says which earlier refusals are history, and nothing else"
            return finding.model_copy(update={"problem": f"{fault.problem}; {history}"})
        if fault.unit is None or fault.work.partition("/")[0] not in (INGEST, "scores"):
            return finding
        images = self._table("images", fault.unit) if fault.work == INGEST else None
        names = [] if images is None else images.filter(pc.field("image_id").is_valid())["name"].to_pylist()
        patches = self._table("patches", fault.unit)
        committed = self.look.units.get(fault.unit)
        counted = sum(p.rows or 0 for p in committed.record.parts if "/patches/" in p.path) if committed else 0
        return finding.model_copy(
            update={
                "images": names,
                "patches": len(patches) if patches is not None else counted,
                "scores": self._labels(fault.work, fault.unit),
                "manifests": self._counts("shard", fault.unit, fault.work),
            }
        )

    def _image(self, fault: Fault, finding: VerifyFinding) -> VerifyFinding:
        units = self.look.units if fault.unit is None else [fault.unit]  # of a photograph it is not known which
        names = {unit: name for unit in units if (name := self._name(unit, fault.image_id))}
        unit, name = next(iter(names.items()), (fault.unit, str(fault.image_id)))
        patches = None if unit is None else self._table("patches", unit)
        count = 0 if patches is None else pc.sum(pc.equal(patches["image_id"], fault.image_id)).as_py() or 0
        update = {
            "images": [name],
            "patches": count,
            "scores": [] if unit is None else self._labels(INGEST, unit),
            "manifests": self._counts("image_id", fault.image_id, INGEST),
        }
        if fault.work != _PHOTOGRAPHS:
            role = "" if fault.role == "hr" else f", {fault.role}"
            update["problem"] = f"image {name} ({fault.image_id}{role}): {fault.problem}"
        return finding.model_copy(update=update)

    def _name(self, unit: int, image_id: str | None) -> str | None:
        images = self._table("images", unit)
        names = [] if images is None else images.filter(pc.field("image_id") == image_id)["name"].to_pylist()
        return names[0] if names else None

    def _table(self, name: str, unit: int) -> pa.Table | None:
        if (name, unit) not in self.tables:
            self.tables[name, unit] = fsck.table_of(self.look, unit, name)
        return self.tables[name, unit]

    def _labels(self, work: str, unit: int) -> list[str]:
        """The scores of a set, or all that were made from a shard."""
        sets = self.look.sets
        mine = [work] if work != INGEST else [name for name in sets if unit in self.look.commits.get(name, {})]
        found = [sets[name] for name in mine if name in sets]
        return sorted({record.label for record in found if isinstance(record, ScorerRecord)})

    def _counts(self, column: str, value: object, work: str) -> dict[str, int]:
        """How many patches of which manifests are hit; of scores only those manifests that were chosen by them."""
        labels = self._labels(work, -1) if work != INGEST else []
        counts = {}
        for path, (manifest, store) in self.manifests.items():
            used = work == INGEST or any(label in manifest.recipe.scorers for label in labels)
            if store == self.look.path and used:
                counts[path] = pc.sum(pc.equal(manifest.table[column], value)).as_py() or 0
        return {path: count for path, count in counts.items() if count}
