"""Dual regression compression (Guo et al. 2022): a Checkpoint and a manifest -> a smaller Checkpoint, in three stages.

    channels   how many maps of each unit stay: `search`, or a rule, or numbers that are known
    prune      which ones: `greedy`, or another one of `criteria`; then the others are removed, which makes it smaller
    finetune   a training of the smaller network: `curate.training`, whose run the whole folder is

What they leave in the folder: `curate.compressions`. The same call goes on where the one before was stopped.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from time import monotonic
from typing import Any, Literal, NamedTuple

from torch import Tensor

from curate import compressions, evaluation, files, latency, resume, schema, storage, training, units
from curate import dual as dual_networks
from curate.archs import Arch, check_side
from curate.archs._narrow import narrow
from curate.checkpoint import MODEL_FILE, Checkpoint, full_spec
from curate.compressions import CHANNELS, CHANNELS_FILE, KEPT_FILE, LIST_FILE, PRUNED, SECONDS_FILE, STAGES
from curate.config import DrcConfig, TrainConfig
from curate.drc import greedy, search
from curate.drc.chosen import Chosen
from curate.drc.criteria import by_criterion
from curate.drc.crops import check_patches
from curate.drc.foreign import prepared
from curate.drc.search import ALPHA_FILE, candidates
from curate.drc.slimming import SlimReport, publish, slim, slimmed, versions
from curate.drc.work import Work
from curate.dual import Regression
from curate.errors import DataError, UsageError, one_line
from curate.loader import batches
from curate.macs import multiply_adds, parameters
from curate.manifest import Manifest
from curate.progress import Progress, silent
from curate.reuse import differences
from curate.schema import ChannelsRecord, KeptRecord, PrunedUnit, Sealed
from curate.storage import Place
from curate.store import Store
from curate.teacher import Teacher, check_teacher
from curate.tensors import pick_device

__all__ = ["DrcReport", "Latency", "SlimReport", "Stage", "compress", "measured", "slim", "slimmed"]

Stage = Literal["channels", "prune", "finetune"]

_VERSION = 1  # raise it when the same options begin to choose other maps
_HD = (720, 1280)  # height and width of the answer that multiply-adds are counted for
_OF_BATCHES = ("dual", "batch_size", "crop", "degrade", "precision")
_OF_SEARCH = ("ratio", "importance", "search_steps", "rate", "arch_rate", "arch_decay", "clip", *_OF_BATCHES)
_OF_NUMBERS = {"search": _OF_SEARCH, "darts": _OF_SEARCH, "uniform": ("ratio",)}
_OF_CRITERION: Mapping[str, tuple[str, ...]] = {
    "greedy": ("patches", "per_pass", "feature_weight", "layer_rate", *_OF_BATCHES),
    "thinet": ("patches", *_OF_BATCHES),
    "l1": (),
    "random": (),
}
_ELSEWHERE = "name another folder with -o"


class DrcReport(NamedTuple):
    """What was made; of two numbers the first is before."""

    path: Place  # of the checkpoint: a folder; of the numbers, a file, where there is none yet
    arch: Arch  # of the smaller network
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]  # for an answer of 1280x720
    seconds: dict[str, float]  # of each stage, all parts of one that was stopped and went on
    stages: tuple[str, ...]  # that are done
    before: Arch


class Latency(NamedTuple):
    """How long an answer takes, before and after."""

    size: str  # of the answer: 1280x720
    device: str
    milliseconds: tuple[float, float]


def compress(
    checkpoint: Checkpoint | str | Path,
    manifest: Manifest | str | Path,
    config: DrcConfig,
    out: str | Path,
    *,
    stage: Stage | None = None,
    teacher: Checkpoint | str | Path | None = None,
    dual: Mapping[str, Tensor] | None = None,
    store: Store | str | Path | None = None,
    validate: str | Path | None = None,
    arch: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> DrcReport:
    """Compress a checkpoint in the folder `out`, or go on there; all stages, or one of them alone.

    A stage alone takes what the one before it has left in the folder. One that has ended is not done again.

    `teacher` is a checkpoint of the same scale whose maps, or answers, the finetuned network is to have too. `dual` are
    weights of dual networks; without them those of the checkpoint's run, where it was trained with some, and otherwise
    fresh ones. `validate` is a folder of HR images for the finetuning; `arch` the spec of a public file's network;
    `store` is where the manifest's store is, if it has moved. The same inputs, seed and threads give the same bytes on
    a CPU, whether or not it was stopped on its way.

    Raises UsageError for a network without units, for options, a teacher, dual networks or a manifest that do not fit,
    for a stage whose predecessor has not ended, and an `out` that holds something else; DataError where a loss is not
    finite any more.
    """
    folder = storage.place(out, "a compression")
    asked: Sequence[str] = STAGES if stage is None else (stage,)
    loaded = Checkpoint.load(checkpoint, arch) if isinstance(checkpoint, str | Path) else checkpoint
    before = prepared(loaded)
    chosen = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
    source = store if isinstance(store, Store) else chosen.store(store)
    duals = _beside(checkpoint, loaded) if dual is None else dict(dual)
    work = Work(before, chosen, config, source, pick_device(device), duals)
    run = _Run(work, folder, _named(progress))
    _check(work, asked)
    _check_folder(folder)
    if "finetune" in asked and config.finetune_steps:
        known = Checkpoint.load(teacher) if isinstance(teacher, str | Path) else teacher
        _check_finetuning(work, known, validate)
        finetune = partial(_finetune, run, known, validate, device)
    else:
        finetune = partial(_copy, run)
    given = config.channels is not None and "prune" in asked  # so that the first stage takes no time
    acts: Mapping[str, Callable[[], None]] = {
        "channels": partial(_channels, run),
        "prune": partial(_prune, run),
        "finetune": finetune,
    }
    for name in STAGES:
        if name in asked or (given and name == "channels"):
            acts[name]()
    storage.remove_leftovers(folder)
    return _report(run, asked[-1])


@dataclass(frozen=True)
class _Run:
    """What is compressed, and where."""

    work: Work
    folder: Place
    progress: Callable[[str], Progress]  # of a stage

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """What all stages have in common."""
        return self.work.identity

    @cached_property
    def known(self) -> list[int] | None:
        """The widths that the options name; UsageError where these do not fit."""
        given = self.work.config.channels
        return None if given is None else units.fitted(given, self.work.units)

    @cached_property
    def of_channels(self) -> dict[str, Any]:
        """What the first stage depends on, JSON-able and flat."""
        config = self.work.config
        if self.known is not None:
            channels = units.text(self.known, self.work.units)
            return {**self.made_of, "code": _VERSION, "numbers": "given", "channels": channels}
        return {**self.made_of, "code": _VERSION, **_options(config, "numbers", *_OF_NUMBERS[config.numbers])}

    def of_pruning(self, widths: Sequence[int]) -> dict[str, Any]:
        """What the second stage depends on."""
        config, channels = self.work.config, units.text(widths, self.work.units)
        options = _options(config, "criterion", *_OF_CRITERION[config.criterion])
        return {**self.made_of, "code": _VERSION, "channels": channels, **options}

    def arch(self, widths: Sequence[int]) -> Arch:
        """Of the network that has these widths."""
        full = self.work.arch
        return replace(full, config=units.text(widths, self.work.units))  # type: ignore[type-var]

    def shapes(self, widths: Sequence[int]) -> list[PrunedUnit]:
        return [
            PrunedUnit(name=unit.name, maps=unit.width * unit.count, left=width * unit.count)
            for unit, width in zip(self.work.units, widths, strict=True)
        ]


def _options(config: DrcConfig, *names: str) -> dict[str, Any]:
    options = config.recipe()
    return {name: options[name] for name in names}


def _named(progress: Progress) -> Callable[[str], Progress]:
    """The progress of a stage, which says its name."""

    def of(stage: str) -> Progress:
        def said(done: int, total: int, note: str = "") -> None:
            progress(done, total, f"{stage}: {note}" if note else stage)

        return said

    return of


# What does not fit


def _beside(checkpoint: Checkpoint | str | Path, loaded: Checkpoint) -> dict[str, Tensor] | None:
    """Weights of the dual networks in a run's folder."""
    if isinstance(checkpoint, Checkpoint):
        return None
    where = storage.place(checkpoint, "a checkpoint")
    folder = where if where.is_dir() else where.parent if where.name == MODEL_FILE else None
    return None if folder is None else dual_networks.load(folder, loaded)


def _check(work: Work, asked: Sequence[str]) -> None:
    """UsageError for a network or options that cannot be compressed with, before anything is written."""
    arch, config = work.arch, work.config
    if config.channels is not None:
        units.fitted(config.channels, work.units)
    if work.dual is not None and not dual_networks.fits(work.dual, arch):
        raise UsageError(f"the dual networks are not those of {full_spec(arch)}")
    searched = "channels" in asked and config.channels is None and config.numbers != "uniform"
    looking = "prune" in asked and config.criterion in ("greedy", "thinet")
    if searched or looking:
        check_side(arch, config.crop, "a crop")
        work.batches(work.manifest, config.seed)
    if looking:
        check_patches(work)


def _check_folder(folder: Place) -> None:
    """UsageError for a place that holds something else."""
    if folder.is_file():
        raise UsageError(f"'{one_line(folder)}' is a file; name a folder with -o")
    if not (folder / PRUNED / KEPT_FILE).is_file():
        models = [name for name in storage.entries(folder) if name.endswith(".safetensors")]
        if models:
            raise UsageError(f"'{one_line(folder)}' holds {models[0]}, which is of no compression; {_ELSEWHERE}")


def _check_finetuning(work: Work, teacher: Checkpoint | None, validate: str | Path | None) -> None:
    arch, config = work.arch, _training(work.config)
    training.check_crop(arch, config)
    batches(work.manifest, scale=arch.scale, crop=config.crop, batch_size=config.batch_size, store=work.store)
    check_teacher(arch, config, teacher)
    if teacher is not None:
        whole = Regression(arch, work.checkpoint.module(), watched=config.teacher_by == "features").to(work.device)
        Teacher(teacher, arch, config.teacher_by, work.device).check(whole, config.crop // arch.scale)
    if validate is not None:
        evaluation.fingerprint(validate, arch.scale)


# The stages


def _channels(run: _Run) -> None:
    """Decide how many maps of each unit stay."""
    work, folder = run.work, run.folder / CHANNELS
    record = _finished(folder / CHANNELS_FILE, ChannelsRecord, run.of_channels)
    if record is not None:
        _tidy(folder)
        return
    searching = run.known is None and work.config.numbers != "uniform"
    if not searching:
        _require_none(folder, ALPHA_FILE, resume.STATE_FILE)
    with _timed(run.folder, "channels"):
        if run.known is not None:
            widths = run.known
        elif searching:
            widths = search.search(work, folder, run.progress("channels")).widths  # which locks the folder
        else:
            widths = [candidates(unit.width, work.config.ratio, unit.count)[-1] for unit in work.units]
        made = ChannelsRecord(units=run.shapes(widths), identity=run.of_channels, versions=versions())
        with _locked(folder):
            storage.publish_bytes(folder / LIST_FILE, compressions.listed(made.units))
            storage.publish_bytes(folder / CHANNELS_FILE, schema.dump(made, indent=2))
            _tidy(folder)


def _widths(run: _Run) -> list[int]:
    """What the first stage found. UsageError where it has not ended, or was of another network."""
    record = compressions.read(run.folder).channels
    if record is None:
        asked = "do --stage channels first, or give --channels"
        raise UsageError(f"'{one_line(run.folder)}' has no {CHANNELS}/{CHANNELS_FILE}: {asked}")
    _require_same(run, record.identity, "channels")
    try:
        return units.fitted(".".join(str(one.left) for one in record.units), run.work.units)
    except UsageError as error:
        raise DataError(f"'{one_line(run.folder)}' has a {CHANNELS_FILE} that is not of its network: {error}") from None


def _prune(run: _Run) -> None:
    """Choose which ones, and remove the others."""
    work, folder, widths = run.work, run.folder / PRUNED, _widths(run)
    identity = run.of_pruning(widths)
    if _finished(folder / KEPT_FILE, KeptRecord, identity) is not None:
        _tidy(folder)
        return
    greedily = work.config.criterion == "greedy"
    if not greedily:
        _require_none(folder, resume.STATE_FILE)
    with _locked(folder), _timed(run.folder, "prune"):
        progress = run.progress("prune")
        chosen = greedy.greedy(work, widths, folder, progress) if greedily else by_criterion(work, widths, progress)
        made = _smaller(run, chosen, identity)
        if work.dual is not None:
            dual_networks.save(folder, work.dual, made)
        made.save(folder)
        kept = [list(maps) for maps in chosen.kept]
        record = KeptRecord(units=run.shapes(widths), kept=kept, identity=identity, versions=versions())
        storage.publish_bytes(folder / KEPT_FILE, schema.dump(record, indent=2))
        _tidy(folder)


def _smaller(run: _Run, chosen: Chosen, identity: Mapping[str, Any]) -> Checkpoint:
    """The smaller network, and all that made it."""
    work = run.work
    net = work.checkpoint.module()
    net.load_state_dict(chosen.state)
    state = narrow(net, work.units, chosen.kept).state_dict()
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise DataError("the weights are not finite after the selection: take a smaller --layer-rate")
    patches = {"patches": len(work.manifest), "digest": work.manifest.digest()}
    channels = compressions.read(run.folder).channels
    assert channels is not None
    recipe = {
        "manifest": {**patches, "recipe": work.manifest.recipe.model_dump(mode="json")},
        "compressed": dict(identity),
        "channels_by": channels.identity,
        "device": work.device.type,
        "versions": versions(),
    }
    return Checkpoint(run.arch([len(maps) for maps in chosen.kept]), state, recipe)


def _pruned(run: _Run) -> Checkpoint:
    """What the second stage made. UsageError where it has not ended, or was of another network."""
    record = compressions.read(run.folder).kept
    if record is None:
        raise UsageError(f"'{one_line(run.folder)}' has no {PRUNED}/{KEPT_FILE}: do --stage prune first")
    _require_same(run, record.identity, "pruned maps")
    return Checkpoint.load(run.folder / PRUNED)


def _training(config: DrcConfig) -> TrainConfig:
    return TrainConfig(
        steps=config.finetune_steps,
        batch_size=config.finetune_batch_size,
        crop=config.finetune_crop,
        rate=config.finetune_rate,
        **_options(config, "optimizer", "precision", "degrade", "seed", "dual", "teacher_weight", "teacher_by"),
        **_options(config, "log_every", "validate_every", "save_every"),
    )


def _finetune(run: _Run, teacher: Checkpoint | None, validate: str | Path | None, device: str) -> None:
    """Train the smaller network."""
    pruned, work = _pruned(run), run.work
    done = (run.folder / MODEL_FILE).is_file()

    def train() -> None:
        training.train(
            pruned.arch,
            work.manifest,
            _training(work.config),
            str(run.folder),
            init=pruned,
            store=work.store,
            validate=validate,
            teacher=teacher,
            dual_init=work.dual if work.config.dual else None,
            device=device,
            progress=run.progress("finetune"),
        )

    if done:  # or of another training, which it refuses
        train()
        return
    with _timed(run.folder, "finetune"):
        train()


def _copy(run: _Run) -> None:
    """Without finetuning the run's model is the pruned one."""
    pruned = _pruned(run)
    if resume.is_begun(run.folder):
        raise UsageError(f"'{one_line(run.folder)}' holds a training that has not ended; {_ELSEWHERE}")
    with storage.lock(run.folder):
        if run.work.dual is not None:
            dual_networks.save(run.folder, run.work.dual, pruned)
        publish(pruned, run.folder)


# What the stages share


def _finished(file: Place, kind: type[Sealed], identity: Mapping[str, Any]) -> Sealed | None:
    """The record of this very stage, if it has ended. UsageError where it is of another one."""
    if not file.is_file():
        return None
    try:
        record = schema.parse(kind, file.read_bytes(), f"'{one_line(file)}'")
    except DataError as error:
        raise UsageError(f"{error}; {_ELSEWHERE}") from None
    found: Mapping[str, Any] = record.identity  # type: ignore[attr-defined]
    both = [{name: one[name] for name in identity if name in found} for one in (found, identity)]
    # Options that only one of them has follow from one that both have.
    if problem := differences(*both) or differences(found, identity):
        raise UsageError(f"'{one_line(file)}' was made with {problem}; {_ELSEWHERE}")
    return record


def _require_same(run: _Run, identity: Mapping[str, Any], what: str) -> None:
    """UsageError where the stage before was of another checkpoint."""
    found, asked = ({name: one.get(name) for name in ("arch", "weights")} for one in (identity, run.made_of))
    if problem := differences(found, asked):
        raise UsageError(f"'{one_line(run.folder)}' holds {what} of {problem}; {_ELSEWHERE}")


def _require_none(folder: Place, *names: str) -> None:
    """UsageError where a stage's folder has any of these files, which are of another way to do it, and precious."""
    if found := [name for name in names if (folder / name).is_file()]:
        raise UsageError(f"'{one_line(folder)}' holds {found[0]} of what was begun with other options; {_ELSEWHERE}")


@contextmanager
def _locked(folder: Place) -> Iterator[None]:
    """A stage's folder, made and locked, without what killed runs have left half written."""
    if isinstance(folder, Path):
        files.make_folder(folder)
    with storage.lock(folder):
        storage.remove_leftovers(folder)
        yield


@contextmanager
def _timed(folder: Place, name: str) -> Iterator[None]:
    """Add the seconds of a block to those of a stage, also where it is stopped."""
    started = monotonic()
    try:
        yield
    finally:
        if folder.is_dir() or not isinstance(folder, Path):  # not where nothing was begun
            known = compressions.seconds(folder)
            known[name] = round(known.get(name, 0.0) + monotonic() - started, 3)
            storage.publish_bytes(folder / SECONDS_FILE, compressions.dumped(known))


def _tidy(folder: Place) -> None:
    """Take away the state of a stage that has ended, and what killed ones have left half written."""
    (folder / resume.STATE_FILE).unlink(missing_ok=True)
    storage.remove_leftovers(folder)


def _report(run: _Run, last: str) -> DrcReport:
    widths = _widths(run) if last != "finetune" else None
    paths = {"channels": run.folder / CHANNELS / LIST_FILE, "prune": run.folder / PRUNED, "finetune": run.folder}
    before, after = run.work.arch, run.arch(widths) if widths is not None else _pruned(run).arch
    done = compressions.done(run.folder)
    return DrcReport(
        paths[last],
        after,
        (parameters(before), parameters(after)),
        (multiply_adds(before, *_HD), multiply_adds(after, *_HD)),
        compressions.seconds(run.folder),
        done,
        before,
    )


def measured(report: DrcReport, device: str = "auto") -> Latency:
    """How long both networks take for an answer: of 1280x720 on a GPU, of 320x180 on a CPU."""
    on = pick_device(device)
    height, width = latency.answer(on)
    return Latency(f"{width}x{height}", on.type, (latency.of(report.before, on), latency.of(report.arch, on)))
