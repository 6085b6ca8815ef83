"""The formats on disk: the JSON documents and the version of everything; the tables' columns are in `layout`.

    store.json            StoreHeader       what the store is, and its grid
    commits/**.json       CommitRecord      one finished unit of work; the record is the truth
    tables/scores/*/scorer.json  ScorerRecord   what drew the scores in this folder
    tables/checks/*/check.json   CheckRecord    what was looked for in this folder
    manifest.parquet      ManifestRecipe    in the file's metadata under `curate`: all that made the manifest
    export.json           ExportRecord      what a folder of exported windows is
    model.safetensors     CheckpointRecipe  in the file's metadata under `curate`: all that made the checkpoint
    dual.safetensors      DualRecord        the same, of the dual networks that it was trained with
    state.safetensors     TrainingState     the same, of a training run that has not ended
    genotype.json         GenotypeRecord    a network that a search found
    channels.json         ChannelsRecord    how many maps of each unit a compression keeps
    kept.json             KeptRecord        which ones

`schemas/*.json` are generated from here: `python -m curate.schema --write`, and `--check` fails if they differ.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeVar

import pydantic
import pydantic_core
import xxhash

from curate import __version__
from curate.errors import DataError, one_line

__all__ = [
    "FORMAT",
    "METADATA_KEY",
    "STATUS_OK",
    "ChannelsRecord",
    "CheckRecord",
    "CheckpointRecipe",
    "CommitRecord",
    "DistilledFrom",
    "Distilling",
    "Document",
    "DualRecord",
    "ExportRecord",
    "GenotypeRecord",
    "KeptRecord",
    "ManifestRecipe",
    "Packing",
    "Part",
    "PrunedUnit",
    "ReportRecord",
    "ReportedManifest",
    "ReportedOverlap",
    "ReportedWindow",
    "ScorerRecord",
    "Sealed",
    "StoreHeader",
    "StoreReference",
    "TrainingState",
    "VerifiedPath",
    "VerifyFinding",
    "VerifyRecord",
    "dump",
    "is_as_written",
    "is_sealed",
    "json_schemas",
    "main",
    "parse",
    "unread",
]

FORMAT: Final = 1  # version of every document and table below; a newer one is refused
METADATA_KEY = "curate"  # where manifests (Parquet) and checkpoints (safetensors) keep their recipe
STATUS_OK = "ok"  # the status of an image that was taken

# Built when it is first used: a question about a store needs three of these models, and building all takes 20 ms.
_STRICT = pydantic.ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Document(pydantic.BaseModel):
    """A JSON document of ours: unknown keys are refused, so that nothing is silently ignored."""

    model_config = _STRICT

    format: Literal[1] = FORMAT


class Sealed(Document):
    """A document that carries a checksum of itself: no other file says what it should be."""

    # xxh3-64, hex, of the text without this entry; null in files that are older than it. `dump` and `parse` see to it:
    # the field is never set.
    checksum: str | None = pydantic.Field(default=None, exclude=True)

    # Keys that are not written where they have their default: such a document is what it was before there were these
    # keys, and an older curate, which refuses a key that it does not know, reads it.
    newer: ClassVar[tuple[str, ...]] = ()

    @pydantic.model_serializer(mode="wrap")
    def _without_newer(self, fields: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = fields(self)
        defaults = {name: type(self).model_fields[name].default for name in self.newer}
        return {name: value for name, value in content.items() if name not in defaults or value != defaults[name]}


class Packing(pydantic.BaseModel):
    """What a packed store holds the pixels of."""

    model_config = _STRICT

    source: str  # digest of the store that it was packed from, when the manifest was made
    manifest: str  # digest of the manifest's patches and weights
    scale: pydantic.PositiveInt  # up to this one the LR of a window can be made exactly: pixels around it are there
    cells: Literal["webp", "png"] = "webp"  # what the cells' files are


class Distilling(pydantic.BaseModel):
    """What the patches of a distilled store were made from, and how: two runs with the same are one."""

    model_config = _STRICT

    source: str  # digest of the store whose patches they were made from, when the manifest was made
    manifest: str  # digest of the manifest's patches and weights
    ldm: str | None = None  # SHA-256 of the weights of the model that they were decoded by; null: there is none
    options: dict[str, Any]  # all of them, defaults included, the seed among them
    code: pydantic.PositiveInt  # version of the code

    @property
    def fingerprint(self) -> str:
        """Of the store's units, 16 hex."""
        return hashlib.sha256(_json(self.model_dump(mode="json"), None)).hexdigest()[:16]

    def flat(self) -> dict[str, object]:
        """Its entries by the names that people know them by: options and what else it depends on."""
        others = {"store": self.source, "manifest": self.manifest, "ldm": self.ldm, "code": self.code}
        return {**others, **self.options}


class StoreHeader(Sealed):
    """`store.json`."""

    newer = ("distilled",)

    patch: pydantic.PositiveInt  # px, side of a window
    step: pydantic.PositiveInt  # px between windows
    created_by: str  # "curate 0.1.0"
    packed: Packing | None = None  # null: it has whole images
    distilled: Distilling | None = None  # null: its images were ingested, or packed


class Part(pydantic.BaseModel):
    """One file of a unit."""

    model_config = _STRICT

    path: str  # below the store, with /
    bytes: pydantic.NonNegativeInt
    xxh3: str  # xxh3-128 of the file, hex
    rows: pydantic.NonNegativeInt | None = None  # of a table


class CommitRecord(Sealed):
    """One finished unit: the files that belong to it, their sizes and hashes."""

    unit: pydantic.NonNegativeInt  # the shard number
    fingerprint: str  # what was done, in 16 hex: options, weights and code version
    parts: list[Part]


class ScorerRecord(Sealed):
    """What drew the scores in one folder of `tables/scores`."""

    scorer: str  # the plugin's name
    label: str  # the name of its column in SQL: the spec without default options, `srcnn:scale=3`
    columns: list[str]
    vector: bool = False  # whether its only column holds lists of numbers
    identity: dict[str, Any]  # options, hashes of weights, version of the scorer's code
    fingerprint: str


class CheckRecord(Sealed):
    """What was looked for in the images of a store: its findings are in one folder of `tables/checks`."""

    check: Literal["duplicates", "leaks"]
    label: str  # the benchmark's name; duplicates
    version: pydantic.PositiveInt  # of the code: where there are several, the newest one's findings count
    identity: dict[str, Any]  # all else that the findings depend on: hashes of the test images
    fingerprint: str


class StoreReference(pydantic.BaseModel):
    """Which store a manifest was made from, and the state that it was in."""

    model_config = _STRICT

    url: str  # relative to the manifest's folder, or absolute
    shards: pydantic.NonNegativeInt  # how many there were
    digest: str  # of their commit records: shards are only ever added, so a grown store still matches


class DistilledFrom(pydantic.BaseModel):
    """The manifest that patches were distilled from, in short."""

    model_config = _STRICT

    store: StoreReference  # whose patches it names; the url as seen from the distilled store
    manifest: str  # digest of its patches and weights
    patches: pydantic.NonNegativeInt  # that it has
    strategy: str  # as in its recipe, and so the others
    options: dict[str, Any]
    by: str | None
    keep: float
    unit: Literal["patches", "pixels"]
    where: str | None
    origin: Literal["selected", "distilled"]  # distilled: it was itself made so


class ManifestRecipe(Sealed):
    """All that made a manifest."""

    newer = ("origin", "distilled_from")

    store: StoreReference
    strategy: str  # spec: `refined:drop_top=0.05`
    options: dict[str, Any]  # all options of the strategy, defaults included, its seed among them
    by: str | None  # label of the score
    keep: float  # share of the candidates
    unit: Literal["patches", "pixels"] = "patches"  # what `keep` counts
    where: str | None  # SQL condition on the candidates
    counts: dict[str, int]  # of patches: in the store, flagged, ..., selected; and pixels under these
    scorers: dict[str, str]  # label -> fingerprint of every scorer that was used
    checks: dict[str, str] = {}  # `leaks@0a1b2c3d` -> `Set5`: the checks whose flagged images were left out
    versions: dict[str, str]
    packed_from: StoreReference | None = None  # the store that these windows were chosen from, if `store` is packed
    origin: Literal["selected", "distilled"] = "selected"  # distilled: its patches were made; `options` says how
    distilled_from: DistilledFrom | None = None  # what from


class ExportRecord(Document):
    """`export.json`: what an export is; another one does not go into its folder."""

    target: str
    scale: int | None  # null: HR alone
    windows: int
    digest: str  # xxh3-128, hex, of ranks, patches, scores and weights
    lr: str | None = None  # the same of the hashes of the store's own LR images; null where it has none
    version: pydantic.PositiveInt = 1  # of the code that cuts the windows


class CheckpointRecipe(Sealed):
    """All that made a checkpoint."""

    arch: str  # spec with every option, defaults too: `fsrcnn:scale=2,d=56,s=12,m=4`
    weights: str  # SHA-256 of names, types, shapes and values, checked when they are loaded
    training: dict[str, Any]  # manifest, options, start, last loss, device, versions


class DualRecord(Sealed):
    """Whose dual networks are in a file."""

    arch: str  # spec of the network with every option
    network: str  # SHA-256 of the network's weights, as the checkpoint beside it says
    weights: str  # the same of the dual networks' own, checked when they are loaded


class TrainingState(Sealed):
    """How far an unfinished training run is; its tensors are beside it."""

    identity: dict[str, Any]  # arch, manifest, start and options: what a run that goes on must have in common with it
    step: pydantic.PositiveInt  # steps done
    best: dict[str, Any] | None  # step, psnr and ssim of the best validation so far
    tensors: str | None = None  # SHA-256 of their names, types, shapes and values; null in older files


class GenotypeRecord(Document):
    """`genotype.json`: a discrete network of DLSR's space, found by a search or written by hand."""

    operations: list[str]  # of the three mixed layers that all cells share
    inputs: list[list[int]]  # of cells 3 to 6: the earlier cells, counted from 1, that each one takes, in this order
    search: dict[str, Any] | None = None  # how it was found: manifest, options, step, versions


class PrunedUnit(pydantic.BaseModel):
    """Maps of a network, some of which go."""

    model_config = _STRICT

    name: str  # the module that they are in
    maps: pydantic.PositiveInt  # before; of attention, features of all heads
    left: pydantic.PositiveInt


class ChannelsRecord(Sealed):
    """`channels.json`: how many maps of each unit are to stay, and how that was found."""

    units: list[PrunedUnit]  # in the order of channels.txt, which has what is left, a line each
    identity: dict[str, Any]  # arch, weights, manifest and options
    versions: dict[str, str]


class KeptRecord(Sealed):
    """`kept.json`: which maps of each unit stayed, and how they were chosen."""

    units: list[PrunedUnit]
    kept: list[list[pydantic.NonNegativeInt]]  # of each unit, numbered as before; of attention, features of a head
    identity: dict[str, Any]  # arch, weights, manifest, channels and options
    versions: dict[str, str]


class ReportedWindow(pydantic.BaseModel):
    """What a manifest takes of its candidates in the descending order of one score; ranks count from 0."""

    model_config = _STRICT

    candidates: pydantic.NonNegativeInt  # with a finite score
    chosen: pydantic.NonNegativeInt  # of these
    first: pydantic.NonNegativeInt  # rank of the highest score that was chosen
    last: pydantic.NonNegativeInt  # rank of the lowest
    gaps: pydantic.NonNegativeInt  # candidates between them that were not chosen; 0: it is one stretch of the order
    low: float  # the lowest score that was chosen
    high: float


class ReportedManifest(pydantic.BaseModel):
    """One manifest of a report."""

    model_config = _STRICT

    name: str  # its file's name without the ending
    by: str | None  # column of the score that it was ranked by
    patches: pydantic.NonNegativeInt
    images: pydantic.NonNegativeInt  # that give at least one patch
    pixels: pydantic.NonNegativeInt  # under the chosen windows, each once
    top_tenth: float  # share of the patches that come from the tenth of the images that give most
    windows: dict[str, ReportedWindow]  # score -> what it takes of that score's order
    sources: dict[str, int]  # chosen patches by source
    sizes: dict[str, int]  # by size class of the image
    digest: str  # xxh3-128 of patches and weights
    recipe: dict[str, Any]  # manifest-recipe.json
    command: str  # that makes it again


class ReportedOverlap(pydantic.BaseModel):
    """How two manifests differ."""

    model_config = _STRICT

    a: str
    b: str
    both: pydantic.NonNegativeInt  # patches
    left: pydantic.NonNegativeInt  # in a alone
    entered: pydantic.NonNegativeInt  # in b alone
    jaccard: float  # both / either
    rank_correlation: float | None  # Spearman's, over the patches that both hold


class ReportRecord(Document):
    """What a report says, in numbers: `curate report --json`."""

    store: dict[str, Any]  # digest, counts, grid, checks, scorers with their fingerprints
    manifests: list[ReportedManifest]
    agreement: dict[str, dict[str, float | None]]  # Spearman's rank correlation of every score with every other
    overlaps: list[ReportedOverlap]  # of every two manifests
    refused: dict[str, int]  # reason -> images refused at ingest
    duplicates: pydantic.NonNegativeInt  # pairs of near-duplicates that a check found
    leaks: pydantic.NonNegativeInt  # overlaps with test images that a check found
    flagged: pydantic.NonNegativeInt  # images that these flag
    commands: list[str]  # that make the manifests again


class VerifiedPath(pydantic.BaseModel):
    """One path that was looked at."""

    model_config = _STRICT

    path: str
    kind: Literal["store", "manifest", "checkpoint", "export"]
    files: pydantic.NonNegativeInt  # that were looked at
    bytes: pydantic.NonNegativeInt  # of them


class VerifyFinding(pydantic.BaseModel):
    """One thing that is not as it should be, and what it hits."""

    model_config = _STRICT

    # damaged, missing: a file that should be otherwise; stale: made from other bytes than are there now; foreign: not
    # of curate's making; changed, gone, new: a photograph, beside the store; leftover: of a run that was killed
    kind: Literal["damaged", "missing", "stale", "foreign", "changed", "gone", "leftover", "new"]
    path: str
    problem: str
    harmless: bool = False  # leftover and new: all is whole nevertheless
    images: list[str] = []  # names
    patches: pydantic.NonNegativeInt = 0
    scores: list[str] = []  # their columns
    manifests: dict[str, int] = {}  # name -> its patches that are hit


class VerifyRecord(Document):
    """What was looked at and what was found: `curate verify --json`."""

    deep: bool  # whether every byte was read
    whole: bool  # nothing was found but what is harmless
    checked: list[VerifiedPath]
    findings: list[VerifyFinding]


_DocumentT = TypeVar("_DocumentT", bound=Document)

# What `dump` adds. Never the last entry; and in no string before it, where the quotes would have backslashes.
_SEAL = re.compile(rb'"checksum": "([0-9a-f]{16})",(?: |\n  )')


def parse(kind: type[_DocumentT], text: str | bytes, where: object) -> _DocumentT:
    """Read a document; DataError (one line, naming `where`) if it is not one, of a newer version, or has changed."""
    data = text.encode() if isinstance(text, str) else text
    seal = _SEAL.search(data) if issubclass(kind, Sealed) else None
    content = data if seal is None else data[: seal.start()] + data[seal.end() :]
    try:
        document = kind.model_validate_json(content)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the document"
        reason = f"{place}: {problem['msg']}"
        if place == "format" and isinstance(problem["input"], int):
            reason = unread(problem["input"], pydantic_core.from_json(text))
        raise DataError(one_line(f"{where} is not a valid {kind.__name__}: {reason}")) from None
    damaged = isinstance(document, Sealed) and document.checksum is not None  # not in the form that `dump` writes
    if damaged or (seal is not None and seal[1].decode() != xxhash.xxh3_64_hexdigest(content)):
        raise DataError(one_line(f"{where} is damaged: it is not what its checksum says"))
    return document


def unread(found: int, content: Mapping[str, Any]) -> str:
    """Why a document of format `found` is refused, and which curate reads it, as far as its content says who wrote it.

    From format 2 on every document says so under `written_by`; of format 1 some do, in places of their own.
    """
    reason = f"format {found} is not one that curate {__version__} reads (it reads {FORMAT}); update curate"
    writers = (_at(content, *path) for path in _WRITERS)
    newer = (version for writer in writers if (version := _release(writer)) > _release(__version__))
    if version := max(newer, default=()):
        reason += f" to {'.'.join(map(str, version))}, which wrote it, or newer"
    return reason


_WRITERS = (("written_by",), ("created_by",), ("versions", "curate"), ("training", "versions", "curate"))


def _at(content: Any, *path: str) -> Any:
    for key in path:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _release(version: object) -> tuple[int, ...]:
    """`curate 1.2.3` -> (1, 2, 3), which can be compared; () for what is no version."""
    match = re.match(r"(?:curate )?(\d{1,9}(?:\.\d{1,9})*)", version) if isinstance(version, str) else None
    return tuple(map(int, match[1].split("."))) if match else ()


def dump(document: Document, indent: int | None = None, *, sealed: bool = True) -> bytes:
    """A document as JSON, UTF-8, keys in a fixed order, with its checksum if it carries one and is to be `sealed`."""
    content = document.model_dump(mode="json")
    data = _json(content, indent)
    if sealed and isinstance(document, Sealed):
        data = _json({**content, "checksum": xxhash.xxh3_64_hexdigest(data)}, indent)
    return data


def is_sealed(data: bytes) -> bool:
    """Whether a document in this text carries its checksum: `parse` has looked at every byte of it."""
    return _SEAL.search(data) is not None


def is_as_written(document: Document, data: bytes, indent: int | None = None) -> bool:
    """Whether `data`, which is read as `document`, is what `dump` makes of it, byte for byte, but for the checksum."""
    return is_sealed(data) or data == dump(document, indent, sealed=False)


def _json(content: dict[str, Any], indent: int | None) -> bytes:
    text = json.dumps(content, indent=indent, ensure_ascii=False, sort_keys=True)
    return (text + "\n" if indent else text).encode()


def json_schemas() -> dict[str, str]:
    """File name -> content of everything under `schemas/`."""
    made_by_store: list[type[Document]] = [StoreHeader, CommitRecord, ScorerRecord, CheckRecord]
    documents: list[type[Document]] = [*made_by_store, ManifestRecipe, ExportRecord, CheckpointRecipe, TrainingState]
    documents += [DualRecord, ReportRecord, VerifyRecord, GenotypeRecord, ChannelsRecord, KeptRecord]
    from curate import layout

    tables = {"images": layout.IMAGES, "cells": layout.CELLS, "patches": layout.PATCHES, "manifest": layout.MANIFEST}
    tables |= {
        "duplicates": layout.DUPLICATES,
        "leaks": layout.LEAKS,
        "examined": layout.EXAMINED,
        "retried": layout.RETRIED,
    }
    content: dict[str, Any] = {
        re.sub(r"(?<!^)([A-Z])", r"-\1", model.__name__).lower(): model.model_json_schema() for model in documents
    }
    content["tables"] = {
        name: [{"name": f.name, "type": str(f.type), "nullable": f.nullable} for f in schema]
        for name, schema in tables.items()
    }
    return {f"{name}.json": json.dumps(value, indent=2) + "\n" for name, value in content.items()}


def main(arguments: list[str] | None = None) -> int:
    """Write `schemas/`, or check that it is what the code says. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m curate.schema", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a file differs, and write nothing")
    parser.add_argument("--write", action="store_true", help="write the files")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("schemas"))
    options = parser.parse_args(arguments)
    stale = []
    for name, text in json_schemas().items():
        path: Path = options.folder / name
        if options.write:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
        if not path.exists() or path.read_text("utf-8") != text:
            stale.append(name)
    if stale:
        sys.stderr.write(f"schemas differ from the code: {', '.join(stale)}; run python -m curate.schema --write\n")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
