"""What a study's file says, read and checked.

    format = 1                                may be left out
    [ingest]                                  OUT/store                    the photographs are named on the command line
    patch = 96
    step = 48
    [clean]                                   may be left out
    duplicates = true
    leaks = true                              against each test folder of the command line
    [score]
    scorers = ["srcnn", "sobel"]
    [[select]]                                OUT/refined-50.parquet
    name = "refined-50"
    strategy = "refined"
    by = "srcnn"
    keep = 0.5
    [[select]]                                OUT/random-5-seed0.parquet   {seed}: once for each seed that trains on it
    name = "random-5"
    strategy = "random:seed={seed}"
    keep = 0.05
    [[distill]]                               OUT/distilled/dm-5-seed0     a store; may be left out
    name = "dm-5"
    from = "refined-50"                       a select's name
    like = "random-5"                         as many bytes as that one's patches; or share = 0.05, as many patches as a
    options = { seed = "{seed}", size = 96 }  select would keep; or patches or bytes among the options, DistillConfig's
    [[train]]                                 OUT/runs/dm-5_fsrcnn_0       each arch on each manifest with each seed
    archs = ["fsrcnn:scale=2"]
    manifests = ["random-5", "dm-5"]          all of them, if left out
    seeds = [0, 1, 2]
    options = { steps = 6000, crop = 48 }     those of TrainConfig
    [[nas]]                                   OUT/nas/search_random-5_0    a search on each manifest with each seed
    name = "search"
    manifests = ["refined-50", "random-5"]    the first is what the others are compared with
    seeds = [0, 1, 2]
    options = { steps = 3000, features = 8 }  those of NasConfig
    [nas.retrain]                             OUT/nas/search_random-5_0/retrained    may be left out
    manifest = "refined-50"                   what each network that was found is trained on
    options = { steps = 2000, crop = 48 }     those of TrainConfig
    [[drc]]                                   OUT/drc/small/trained        a network, trained once
    name = "small"
    arch = "drn:scale=4,features=8,blocks=4"
    base = "random-5"                         what it is trained on
    manifests = ["refined-50", "random-5"]    what each method is fed with: search, selection and finetuning
    seeds = [0, 1]
    train = { steps = 3000, dual = 0.1 }      those of TrainConfig
    options = { ratio = 0.3, crop = 96 }      those of DrcConfig
    [drc.methods.drc]                         OUT/drc/small/drc_random-5_0
    [drc.methods.no-dual]                     options of its own
    dual = 0.0

Every name and option, and every file that is named, is checked here, before there is a store.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pydantic

from curate import degrade, distillation, files, plugins, units
from curate.archs import Arch, check_side
from curate.archs.dlsr import Dlsr
from curate.blocks import SEED, Block, Clean, Distill, Drc, Ingest, Nas, Score, Select, Train
from curate.config import DistillConfig, DrcConfig, NasConfig, TrainConfig
from curate.errors import UsageError, listed, meant, one_line
from curate.schema import FORMAT, unread
from curate.scorers import Scorer
from curate.scoring import score_names
from curate.selection import check_names
from curate.strategies import Strategy
from curate.training import check_crop

__all__ = ["UNPRUNED", "Compression", "Made", "Pipeline", "Search", "Training"]

UNPRUNED = "unpruned"  # a method that leaves all maps where they are, and finetunes as the others do

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BUDGETS = ("patches", "bytes")  # among the options of a distillation


class Pipeline(pydantic.BaseModel):
    """A pipeline's file."""

    model_config = Block.model_config

    format: Literal[1] = FORMAT
    ingest: Ingest
    clean: Clean = Clean()
    score: Score
    select: list[Select]
    distill: list[Distill] = []
    train: list[Train] = []
    nas: list[Nas] = []
    drc: list[Drc] = []

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
            for manifest in self._trained_on(part)
            for seed in part.seeds
        ]

    def searches(self) -> "list[Search]":
        """All searches, in their order."""
        return [
            Search(block, manifest, seed, block.config(seed), block.retraining(seed))
            for block in self.nas
            for manifest in block.manifests
            for seed in block.seeds
        ]

    def compressions(self) -> "list[Compression]":
        """All compressions, in their order; those that prune nothing first."""
        return [
            Compression(block, method, manifest, seed, _method(block, method, seed))
            for block in self.drc
            for method in (UNPRUNED, *block.methods)
            for manifest in block.manifests
            for seed in block.seeds
        ]

    def manifest(self, name: str, seed: int | None) -> "Made":
        """The one of this name that a training, a search or a compression with this seed uses."""
        return Made(name, seed if self._is_seeded(name) else None)

    def manifests(self, name: str) -> "list[Made]":
        """All of this name: one, or one for each seed that uses it, also by what is distilled of it."""
        if not self._is_seeded(name):
            return [Made(name, None)]
        wanted = {name, *(made.name for made in self.distill if name in made.needs)}
        uses = [(self._trained_on(part), part.seeds) for part in self.train]
        uses += [(list(block.needs), block.seeds) for block in self.nas]
        uses += [([block.base], [block.training().seed]) for block in self.drc]
        uses += [(block.manifests, block.seeds) for block in self.drc]
        seeds = (seed for used, own in uses if wanted & set(used) for seed in own)
        return [Made(name, seed) for seed in dict.fromkeys(seeds)]

    def _names(self) -> list[str]:
        return [chosen.name for chosen in self.select] + [distilled.name for distilled in self.distill]

    def _trained_on(self, part: Train) -> list[str]:
        return part.manifests or self._names()

    def _is_seeded(self, name: str) -> bool:
        """Whether it is another for another training's seed, by itself or by what it is made from."""
        seeded = {chosen.name for chosen in self.select if SEED in chosen.strategy}
        for made in self.distill:
            own = any(isinstance(value, str) and SEED in value for value in made.options.values())
            if made.name == name and (own or seeded & set(made.needs)):
                return True
        return name in seeded

    def _require_named(self, modules: Sequence[str]) -> None:
        archs = [spec for part in self.train for spec in part.archs] + [block.arch for block in self.drc]
        archs += [spec for made in self.distill if isinstance(spec := made.options.get("arch"), str)]
        for spec in (*self.score.scorers, *(chosen.strategy for chosen in self.select), *archs):
            plugins.require_named(spec, modules, "--plugin")

    def _check(self) -> None:
        scorers: list[Scorer] = [plugins.parse("scorers", spec) for spec in self.score.scorers]
        for scorer in scorers:
            scorer.identity()  # reads the files that it names
        kinds = {True: pa.list_(pa.float32()), False: pa.float32()}
        scores = {name: kinds[scorer.vector] for scorer in scorers for name in score_names(scorer)}
        self._check_names()
        for chosen in self.select:
            for made in self.manifests(chosen.name):
                _check_select(chosen, made.seed, scores)
        for distilled in self.distill:
            self._check_distill(distilled)
        self._check_trainings()
        self._check_searches()
        self._check_compressions()

    def _check_names(self) -> None:
        names = self._names()
        for name in names:
            _check_name("a manifest", name, names)
        selects = [chosen.name for chosen in self.select]
        for distilled in self.distill:
            if unknown := set(distilled.needs) - set(selects):
                there = f"there are: {listed(selects)}{meant(min(unknown), selects)}"
                raise UsageError(f"{distilled.name}: no select '{one_line(listed(unknown))}'; {there}")
        uses: list[tuple[str, Sequence[str]]] = [("train", part.manifests or []) for part in self.train]
        uses += [(block.name, block.needs) for block in self.nas]
        uses += [(block.name, block.needs) for block in self.drc]
        for user, used in uses:
            if unknown := set(used) - set(names):
                there = f"there are: {listed(names)}{meant(min(unknown), names)}"
                raise UsageError(f"{one_line(user)}: no manifest '{one_line(listed(unknown))}'; {there}")
        for name in names:
            if not self.manifests(name):
                raise UsageError(
                    f"{name}: {SEED} stands for the seed of a training, a search or a compression; none uses it"
                )
        labels = [made.label for name in names for made in self.manifests(name)]
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise UsageError(f"each manifest should have a name of its own, found twice: {listed(twice)}")

    def _check_distill(self, distilled: Distill) -> None:
        budgets = [name for name in _BUDGETS if name in distilled.options]
        budgets += [name for name in ("like", "share") if getattr(distilled, name) is not None]
        if len(budgets) != 1:
            should = "one budget should be given: patches or bytes among the options, like, or share"
            raise UsageError(f"{distilled.name}: {should}; found {listed(budgets)}")
        if distilled.share is not None and not 0 < distilled.share <= 1:
            raise UsageError(f"{distilled.name}: share should be above 0 and at most 1, found {distilled.share}")
        for config in {replace(_tried(distilled, made.seed), seed=0) for made in self.manifests(distilled.name)}:
            with _said_of(distilled.name):
                distillation.check(config)
            if config.size > self.ingest.patch:
                fits = f"at most the patch's {self.ingest.patch} px"
                raise UsageError(f"{distilled.name}: size should be {fits}, found {config.size}")

    def _check_trainings(self) -> None:
        places = [training.folder for training in self.trainings()]
        if twice := {place for place in places if places.count(place) > 1}:
            raise UsageError(f"train: each run should be named once, found twice: {listed(twice)}")
        for training in self.trainings():
            arch: Arch = plugins.parse("archs", training.arch)
            self._check_training(training.arch, arch, training.config, self.manifest(training.manifest, training.seed))

    def _check_searches(self) -> None:
        names = [block.name for block in self.nas]
        for name in names:
            _check_name("a search", name, names)
        places = [search.folder for search in self.searches()]
        if twice := {place for place in places if places.count(place) > 1}:
            raise UsageError(f"nas: each search should be named once, found twice: {listed(twice)}")
        for search in self.searches():
            name, arch = search.block.name, Dlsr(search.config.scale, features=search.config.features)
            self._check_crop(name, arch.scale, search.config.crop, self.manifest(search.manifest, search.seed))
            with _said_of(name):
                check_side(arch, search.config.crop, "a crop")
            if search.block.retrain and search.retraining:
                which = self.manifest(search.block.retrain.manifest, search.seed)
                self._check_training(f"{name}: retrain", arch, search.retraining, which)

    def _check_compressions(self) -> None:
        names = [block.name for block in self.drc]
        for block in self.drc:
            _check_name("a compression", block.name, names)
            for method in block.methods:
                _check_name(f"{block.name}: a method", method, (*block.methods, UNPRUNED))
            arch: Arch = plugins.parse("archs", block.arch)
            if not arch.prunable():
                raise UsageError(f"{block.name}: {one_line(block.arch)} has no maps that curate can prune")
            training = block.training()
            self._check_training(f"{block.name}: train", arch, training, self.manifest(block.base, training.seed))
        places = [f"{one.block.name}/{one.folder}" for one in self.compressions()]
        if twice := {place for place in places if places.count(place) > 1}:
            raise UsageError(f"drc: each compression should be named once, found twice: {listed(twice)}")
        for one in self.compressions():
            self._check_compression(one, self.manifest(one.manifest, one.seed))

    def _check_compression(self, one: "Compression", which: "Made") -> None:
        arch: Arch = plugins.parse("archs", one.block.arch)
        whose = f"{one.block.name}: {one.method}"
        for crop in (one.config.crop, one.config.finetune_crop) if one.config.finetune_steps else (one.config.crop,):
            self._check_crop(whose, arch.scale, crop, which)
            with _said_of(whose):
                check_side(arch, crop, "a crop")
        with _said_of(whose):
            degrade.parse(one.config.degrade, arch.scale)
            if one.config.channels is not None:
                units.fitted(one.config.channels, units.left(arch))

    def _check_training(self, whose: str, arch: Arch, config: TrainConfig, which: "Made") -> None:
        self._check_crop(whose, arch.scale, config.crop, which)
        with _said_of(whose):
            check_crop(arch, config)
            degrade.parse(config.degrade, arch.scale)

    def _check_crop(self, whose: str, scale: int, crop: int, which: "Made") -> None:
        """UsageError for crops that are no multiple of the scale, or larger than the windows of a manifest."""
        most, owner = self.ingest.patch, "the patch's"
        for made in self.distill:
            if made.name == which.name:
                most, owner = _tried(made, which.seed).size, f"{made.name}'s"
        if crop % scale or crop > most:
            fits = f"a multiple of {scale}, and at most {owner} {most} px"
            raise UsageError(f"{whose}: a crop should be {fits}, found {crop}")


def _check_name(kind: str, name: str, names: Sequence[str]) -> None:
    if not _NAME.fullmatch(name) or names.count(name) > 1:
        found = f"found '{one_line(name)}'"
        raise UsageError(f"{kind}'s name should be letters, digits, '-', '_' and '.', and its own, {found}")


def _method(block: Drc, method: str, seed: int) -> DrcConfig:
    """The options of a block's method with a seed."""
    if method != UNPRUNED:
        return block.config(method, seed)
    there = units.left(plugins.parse("archs", block.arch))
    everything = units.text([unit.width for unit in there], there)
    return replace(block.config(None, seed), numbers="uniform", channels=everything, criterion="l1")


@contextmanager
def _said_of(whose: str) -> Iterator[None]:
    """A UsageError says whose mistake it is."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{whose}: {error}") from None


def _check_select(chosen: Select, seed: int | None, scores: Mapping[str, pa.DataType]) -> None:
    strategy: Strategy = plugins.parse("strategies", chosen.strategy_for(seed))
    labels = [name for name, kind in scores.items() if kind == pa.float32()]
    if chosen.by not in labels and (chosen.by is not None or strategy.needs_score):
        raise UsageError(f"{chosen.name}: by should be one of {listed(labels)}, found {one_line(chosen.by)}")
    if not 0 < chosen.keep <= 1:
        raise UsageError(f"{chosen.name}: keep should be above 0 and at most 1, found {chosen.keep}")
    with _said_of(chosen.name):
        check_names(scores, strategy, chosen.where)


def _tried(distilled: Distill, seed: int | None) -> DistillConfig:
    """The options; where the budget is not known before there is a store, with some other."""
    own = any(name in distilled.options for name in _BUDGETS)
    return distilled.config(seed, **({} if own else {"patches": 1}))


class Made(NamedTuple):
    """A manifest of a study."""

    name: str
    seed: int | None  # of the trainings and searches that it is for; None: it is the same for all of them

    @property
    def label(self) -> str:
        """What its file or its store is called."""
        return self.name if self.seed is None else f"{self.name}-seed{self.seed}"


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


@dataclass(frozen=True)
class Search:
    """One search of a study, and the training of what it finds."""

    block: Nas
    manifest: str
    seed: int
    config: NasConfig
    retraining: TrainConfig | None

    @property
    def folder(self) -> str:
        """Its name below `nas`."""
        return f"{self.block.name}_{self.manifest}_{self.seed}"


@dataclass(frozen=True)
class Compression:
    """One compression of a study."""

    block: Drc
    method: str  # a name of the block's, or UNPRUNED
    manifest: str
    seed: int
    config: DrcConfig

    @property
    def folder(self) -> str:
        """Its name below `drc/NAME`, beside that of the trained network."""
        return f"{self.method}_{self.manifest}_{self.seed}"
