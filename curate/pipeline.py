"""Run: a whole study from one TOML file: ingest, score, select, train, evaluate, in this order, and one result table.

    format = 1                                may be left out
    [ingest]                                  OUT/store                    the photographs are named on the command line
    patch = 96
    step = 48
    [clean]                                   may be left out
    duplicates = true
    leaks = true                              against each test folder of the command line
    [score]
    scorers = ["srcnn", "sobel"]
    [[select]]                                OUT/des-50.parquet
    name = "des-50"
    strategy = "des"
    by = "srcnn"
    keep = 0.5
    [[train]]                                 OUT/runs/des-50_fsrcnn_0     each arch on each manifest with each seed
    archs = ["fsrcnn:scale=2"]
    manifests = ["des-50"]                    all of them, if left out
    seeds = [0, 1, 2]
    options = { steps = 6000, crop = 48 }     those of TrainConfig
                                              OUT/result.parquet, result.md, result.svg

Every name and option, and every folder, is checked before the first step starts. Every step skips what is done, so that
the same command goes on with a study that was killed.
"""

import json
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pydantic

from curate import files, plot, plugins
from curate.archs import Arch
from curate.checkpoint import Checkpoint, weights_hash
from curate.config import TrainConfig
from curate.duplication import duplicates
from curate.errors import UsageError, listed, meant, one_line
from curate.evaluation import averages, evaluate, fingerprint
from curate.ingestion import ingest
from curate.leakage import leaks
from curate.manifest import Manifest
from curate.progress import Progress, silent
from curate.schema import FORMAT, STATUS_OK, unread
from curate.scorers import Scorer
from curate.scoring import score, score_names
from curate.selection import Unit, check_names, select
from curate.sources import Source, benchmark_name, find, hr_folder
from curate.store import Store
from curate.strategies import Strategy
from curate.tensors import pick_device
from curate.training import train

__all__ = ["Clean", "Ingest", "Pipeline", "Score", "Select", "Train", "Training", "run"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_STRICT = pydantic.ConfigDict(extra="forbid", frozen=True)


class Ingest(pydantic.BaseModel):
    """`[ingest]`: the grid."""

    model_config = _STRICT

    patch: pydantic.PositiveInt  # px
    step: pydantic.PositiveInt  # px


class Clean(pydantic.BaseModel):
    """`[clean]`: what is looked for before anything is chosen; no manifest has an image that was found."""

    model_config = _STRICT

    duplicates: bool = False
    leaks: bool = False  # overlaps with the test folders


class Score(pydantic.BaseModel):
    """`[score]`."""

    model_config = _STRICT

    scorers: list[str]  # specs


class Select(pydantic.BaseModel):
    """One `[[select]]`: a manifest, and the options of `curate select`."""

    model_config = _STRICT

    name: str
    strategy: str  # spec
    by: str | None = None
    keep: float = 0.5
    unit: Unit = "patches"
    where: str | None = None


class Train(pydantic.BaseModel):
    """One `[[train]]`: every arch on every manifest with every seed, all with the same options."""

    model_config = _STRICT

    archs: list[str]  # specs
    manifests: list[str] | None = None  # names; None for all
    seeds: list[int] = [0]
    options: dict[str, Any]  # of TrainConfig, but for the seed


class Pipeline(pydantic.BaseModel):
    """A pipeline's file."""

    model_config = _STRICT

    format: Literal[1] = FORMAT
    ingest: Ingest
    clean: Clean = Clean()
    score: Score
    select: list[Select]
    train: list[Train] = []

    @classmethod
    def load(cls, path: str | Path, modules: Sequence[str] = ()) -> "Pipeline":
        """Read and check a file: every name in it exists and every option is valid. UsageError says what is not.

        Of modules outside curate it may name those in `modules`: no file makes curate import anything by itself.
        """
        file = files.local_path(path, "a pipeline")
        if not file.is_file():
            raise UsageError(f"no pipeline '{one_line(file)}': there is no such file")
        try:
            content = tomllib.loads(file.read_text("utf-8"))
            made = cls.model_validate(content)
            made._require_named(modules)
            made._check()
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"'{one_line(file)}' is not a TOML file: {one_line(error)}") from None
        except pydantic.ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            reason = f"{where}: {problem['msg']}"
            if where == "format" and isinstance(problem["input"], int):
                reason = unread(problem["input"], content)
            raise UsageError(f"'{one_line(file)}': {one_line(reason)}") from None
        except UsageError as error:
            raise UsageError(f"'{one_line(file)}': {error}") from None
        return made

    def trainings(self) -> "list[Training]":
        """All runs, in their order."""
        return [
            Training(manifest, spec, seed, TrainConfig.of({**part.options, "seed": seed}, "train.options"))
            for part in self.train
            for spec in part.archs
            for manifest in (part.manifests or [chosen.name for chosen in self.select])
            for seed in part.seeds
        ]

    def _require_named(self, modules: Sequence[str]) -> None:
        archs = (spec for part in self.train for spec in part.archs)
        for spec in (*self.score.scorers, *(chosen.strategy for chosen in self.select), *archs):
            plugins.require_named(spec, modules, "--plugin")

    def _check(self) -> None:
        scorers: list[Scorer] = [plugins.parse("scorers", spec) for spec in self.score.scorers]
        for scorer in scorers:
            scorer.identity()  # reads the files that it names
        kinds = {True: pa.list_(pa.float32()), False: pa.float32()}
        scores = {name: kinds[scorer.vector] for scorer in scorers for name in score_names(scorer)}
        labels = [name for name, kind in scores.items() if kind == kinds[False]]
        names = [chosen.name for chosen in self.select]
        for chosen in self.select:
            strategy: Strategy = plugins.parse("strategies", chosen.strategy)
            if not _NAME.fullmatch(chosen.name) or names.count(chosen.name) > 1:
                found = f"found '{one_line(chosen.name)}'"
                raise UsageError(f"a manifest's name should be letters, digits, '-', '_' and '.', and its own, {found}")
            if chosen.by not in labels and (chosen.by is not None or strategy.needs_score):
                raise UsageError(f"{chosen.name}: by should be one of {listed(labels)}, found {one_line(chosen.by)}")
            if not 0 < chosen.keep <= 1:
                raise UsageError(f"{chosen.name}: keep should be above 0 and at most 1, found {chosen.keep}")
            try:
                check_names(scores, strategy, chosen.where)
            except UsageError as error:
                raise UsageError(f"{chosen.name}: {error}") from None
        for part in self.train:
            if unknown := set(part.manifests or []) - set(names):
                there = f"there are: {listed(names)}{meant(min(unknown), names)}"
                raise UsageError(f"train: no manifest '{one_line(listed(unknown))}'; {there}")
        places = [training.folder for training in self.trainings()]
        if twice := {place for place in places if places.count(place) > 1}:
            raise UsageError(f"train: each run should be named once, found twice: {listed(twice)}")
        for training in self.trainings():
            arch: Arch = plugins.parse("archs", training.arch)
            crop = training.config.crop
            if crop % arch.scale or crop > self.ingest.patch:
                fits = f"a multiple of {arch.scale}, and at most the patch's {self.ingest.patch} px"
                raise UsageError(f"{training.arch}: a crop should be {fits}, found {crop}")


@dataclass(frozen=True)
class Training:
    """One run of a study."""

    manifest: str
    arch: str
    seed: int
    config: TrainConfig

    @property
    def folder(self) -> str:
        """Its name below `runs`."""
        return f"{self.manifest}_{re.sub(r'[^A-Za-z0-9.=-]+', '-', self.arch)}_{self.seed}"


def run(
    pipeline: Pipeline | str | Path,
    out: str | Path,
    photos: Sequence[str | Path],
    tests: Sequence[str | Path] = (),
    *,
    modules: Sequence[str] = (),
    device: str = "auto",
    progress: Progress = silent,
) -> pa.Table:
    """Do what is not done of a study in the folder `out`, and return its table: a row a run and a test folder.

    Columns: arch, manifest, patches, seed, steps, test, psnr (dB), ssim. `tests` are folders of HR images, or
    benchmarks'. `modules` are those outside curate that the file may name, and so import. Raises UsageError before the
    first step for whatever can be known then, BusyError if another process is at this study.
    """
    plan = pipeline if isinstance(pipeline, Pipeline) else Pipeline.load(pipeline, modules)
    pick_device(device)
    folder = files.local_path(out, "a study")
    sources = find([str(photo) for photo in photos]).sources
    for test in tests:
        find([str(hr_folder(test))])
    places = [benchmark_name(test) for test in tests]
    if len(set(places)) < len(places):
        raise UsageError(f"the test folders should have names of their own, found {listed(places)}")
    try:
        files.make_folder(folder)
    except OSError as error:
        raise UsageError(f"cannot make a study at '{one_line(folder)}': {error.strerror}") from None
    with files.lock(folder):
        files.remove_leftovers(folder)
        return _done(plan, folder, photos, sources, dict(zip(places, tests, strict=True)), device, progress)


def _done(
    plan: Pipeline,
    folder: Path,
    photos: Sequence[str | Path],
    sources: Sequence[Source],
    tests: Mapping[str, str | Path],
    device: str,
    progress: Progress,
) -> pa.Table:
    """The steps, one after the other; `tests` are folders by their benchmarks' names."""
    ingest([str(photo) for photo in photos], folder / "store", patch=plan.ingest.patch, step=plan.ingest.step)
    _refuse_others(Store.open(folder / "store"), sources)
    if plan.clean.duplicates:
        duplicates(folder / "store", progress=_part(progress, 0, 1, "duplicates"))
    for test in tests.values() if plan.clean.leaks else ():
        leaks(folder / "store", test, progress=_part(progress, 0, 1, "leaks"))
    score(folder / "store", plan.score.scorers, device=device, progress=_part(progress, 0, 1, "score"))
    manifests = {chosen.name: _selected(chosen, folder) for chosen in plan.select}
    rows = []
    trainings = plan.trainings()
    for number, training in enumerate(trainings):
        manifest = manifests[training.manifest]
        where = folder / "runs" / training.folder
        part = _part(progress, number, len(trainings), training.folder)
        made = train(training.arch, manifest, training.config, where, device=device, progress=part)
        for place, test in tests.items():
            rows.append(
                {
                    "arch": training.arch,
                    "manifest": training.manifest,
                    "patches": len(manifest),
                    "seed": training.seed,
                    "steps": made.recipe["steps"],
                    "test": place,
                    **_measured(made, where / f"{place}.json", test, device),
                }
            )
    table = pa.Table.from_pylist(rows, _RESULT)
    files.publish(folder / "result.parquet", lambda stream: pq.write_table(table, stream, compression="zstd"))
    files.publish_bytes(folder / "result.md", _markdown(table).encode())
    files.publish_bytes(folder / "result.svg", plot.dots(_groups(table), "PSNR, dB").encode())
    return table


_RESULT = pa.schema(
    [
        ("arch", pa.string()),
        ("manifest", pa.string()),
        ("patches", pa.int64()),
        ("seed", pa.int64()),
        ("steps", pa.int64()),
        ("test", pa.string()),
        ("psnr", pa.float64()),
        ("ssim", pa.float64()),
    ]
)


def _part(progress: Progress, number: int, parts: int, name: str) -> Progress:
    """The progress of part `number` of so many alike, as that of the whole."""

    def within(done: int, total: int, note: str = "") -> None:
        progress(number * total + done, parts * total, f"{name} {note}")

    return within


def _refuse_others(store: Store, sources: Sequence[Source]) -> None:
    """UsageError if the study's store has photographs that are not among the named ones: replaced, or of before."""
    images = store.images().filter(pc.field("status") == STATUS_OK)
    taken = Counter(zip(images["source"].to_pylist(), images["name"].to_pylist(), strict=True))
    others = taken - Counter((source.source, source.name) for source in sources)
    if others:
        names = listed(one_line(name) for _, name in others)
        raise UsageError(
            f"the study at '{one_line(store.path.parent)}' was begun with other photographs: {names} went or were "
            "replaced; name another folder for this one"
        )


def _selected(chosen: Select, folder: Path) -> Manifest:
    """The manifest of one `[[select]]`, written; the same bytes if it was there already."""
    made = select(
        folder / "store", chosen.strategy, by=chosen.by, keep=chosen.keep, unit=chosen.unit, where=chosen.where
    )
    return made.save(folder / f"{chosen.name}.parquet")


def _measured(made: Checkpoint, record: Path, test: str | Path, device: str) -> dict[str, float]:
    """psnr and ssim on a test folder, kept beside the run under the hashes of its weights and of the test images."""
    of = {"weights": weights_hash(made.state), "test": fingerprint(test, made.arch.scale)}
    if record.is_file() and (kept := _kept(record.read_bytes(), of)):
        return kept
    measured = averages(evaluate(made, test, device=device))
    files.publish_bytes(record, json.dumps({**of, **measured}, indent=2).encode())
    return measured


def _kept(record: bytes, of: Mapping[str, str]) -> dict[str, float] | None:
    """What was measured of these weights and images; None of others, or of a damaged record: it is made again."""
    try:
        found = json.loads(record)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or {name: found.pop(name, None) for name in of} != of:
        return None
    whole = found.keys() == {"psnr", "ssim"} and all(isinstance(value, float) for value in found.values())
    return found if whole else None


def _groups(table: pa.Table) -> dict[str, dict[str, list[float]]]:
    """ "arch, test" -> manifest -> PSNR of each seed, in the table's order."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in table.to_pylist():
        groups.setdefault(f"{row['arch']}, {row['test']}", {}).setdefault(row["manifest"], []).append(row["psnr"])
    return groups


def _markdown(table: pa.Table) -> str:
    """Means and standard deviations over the seeds: a row a manifest, a column an arch and test."""
    groups = _groups(table)
    patches = {row["manifest"]: row["patches"] for row in table.to_pylist()}
    lines = [f"| trained on | patches | {' | '.join(groups)} |", "|---|---|" + "---|" * len(groups)]
    for manifest, count in patches.items():
        cells = [_figure(group.get(manifest, [])) for group in groups.values()]
        lines.append(f"| {manifest} | {count:,} | {' | '.join(cells)} |")
    seeds, steps = (sorted(set(table[name].to_pylist())) for name in ("seed", "steps"))
    note = f"PSNR on Y, dB: mean and standard deviation over {len(seeds)} seeds; {listed(map(str, steps))} steps."
    return "\n".join([*lines, "", note, ""])


def _figure(decibels: list[float]) -> str:
    if not decibels:
        return "-"
    return f"{mean(decibels):.2f}" + (f" ± {stdev(decibels):.2f}" if len(decibels) > 1 else "")
