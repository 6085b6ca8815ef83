"""The blocks of a study's file: their keys, and what these are for one seed. `plan` shows a file, and checks it."""

from typing import Any

import pydantic

from curate.config import DistillConfig, DrcConfig, NasConfig, TrainConfig
from curate.errors import UsageError, listed
from curate.selection import Unit

__all__ = ["SEED", "Block", "Clean", "Distill", "Drc", "Ingest", "Nas", "Retrain", "Score", "Select", "Train"]

SEED = "{seed}"  # stands for the seed of the training, search or compression that is to use it

_FINETUNING = ("finetune_", "optimizer")  # how options begin that are the same for all methods


class Block(pydantic.BaseModel):
    """What they have in common: a key that is not known is refused."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Ingest(Block):
    """`[ingest]`: the grid."""

    patch: pydantic.PositiveInt  # px
    step: pydantic.PositiveInt  # px


class Clean(Block):
    """`[clean]`: what is looked for before anything is chosen; no manifest has an image that was found."""

    duplicates: bool = False
    leaks: bool = False  # overlaps with the test folders


class Score(Block):
    """`[score]`."""

    scorers: list[str]  # specs


class Select(Block):
    """One `[[select]]`: a manifest, and the options of `curate select`."""

    name: str
    strategy: str  # spec
    by: str | None = None
    keep: float = 0.5
    unit: Unit = "patches"
    where: str | None = None

    def strategy_for(self, seed: int | None) -> str:
        """The spec for a training's seed."""
        return self.strategy.replace(SEED, str(seed))


class Distill(Block):
    """One `[[distill]]`: a store with a manifest, made of a select's patches, and the options of `curate distill`.

    One budget: `patches` or `bytes` among the options, `like` or `share`.
    """

    name: str
    source: str = pydantic.Field(alias="from")  # a select's name
    like: str | None = None  # a select's name: as many bytes as its patches take, encoded alike
    share: float | None = None  # as many patches as a select would keep of what the source was chosen from
    options: dict[str, Any] = {}  # of DistillConfig

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the selects that come first."""
        return (self.source,) if self.like is None else (self.source, self.like)

    def config(self, seed: int | None, **budget: int) -> DistillConfig:
        """The options for a training's seed, and a budget that is not among them. UsageError for what does not fit."""
        options = {name: _seeded(value, seed) for name, value in self.options.items()}
        return DistillConfig.of({**options, **budget}, f"{self.name}: options")


def _seeded(value: Any, seed: int | None) -> Any:
    """An option for a training's seed: a number where it is nothing but the seed."""
    if value == SEED:
        return seed
    return value.replace(SEED, str(seed)) if isinstance(value, str) else value


class Train(Block):
    """One `[[train]]`: every arch on every manifest with every seed, all with the same options."""

    archs: list[str]  # specs
    manifests: list[str] | None = None  # names; None for all
    seeds: list[int] = [0]
    options: dict[str, Any]  # of TrainConfig, but for the seed


class Retrain(Block):
    """`[nas.retrain]`: what each network that was found is trained on, to see what it is worth."""

    manifest: str  # a name
    options: dict[str, Any]  # of TrainConfig, but for the seed


class Nas(Block):
    """One `[[nas]]`: a search on every manifest with every seed, and the options of `curate nas dlsr`."""

    name: str
    manifests: list[str] = pydantic.Field(min_length=1)  # names; the first is what the others are compared with
    seeds: list[int] = pydantic.Field([0], min_length=1)
    options: dict[str, Any] = {}  # of NasConfig, but for the seed
    retrain: Retrain | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the manifests that come first."""
        return tuple(self.manifests) if self.retrain is None else (*self.manifests, self.retrain.manifest)

    def config(self, seed: int) -> NasConfig:
        """The options of the search with a seed. UsageError for what does not fit."""
        return NasConfig.of(_with_seed(self.options, seed, self.name), f"{self.name}: options")

    def retraining(self, seed: int) -> TrainConfig | None:
        """The options of the training that follows. UsageError for what does not fit."""
        if self.retrain is None:
            return None
        options = _with_seed(self.retrain.options, seed, f"{self.name}: retrain")
        return TrainConfig.of(options, f"{self.name}: retrain.options")


class Drc(Block):
    """One `[[drc]]`: a network, trained once and compressed by each method on every manifest with every seed.

    Once, because the maps of networks of two trainings have nothing to do with each other.
    """

    name: str
    arch: str  # spec
    base: str  # what it is trained on: a manifest's name
    manifests: list[str] = pydantic.Field(min_length=1)  # names; the first is what the others are compared with
    seeds: list[int] = pydantic.Field([0], min_length=1)
    train: dict[str, Any]  # of TrainConfig
    options: dict[str, Any] = {}  # of DrcConfig, but for the seed
    methods: dict[str, dict[str, Any]] = pydantic.Field(min_length=1)  # options of their own, by the methods' names

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the manifests that come first."""
        return (self.base, *self.manifests)

    def training(self) -> TrainConfig:
        """The options of the training. UsageError for what does not fit."""
        return TrainConfig.of(self.train, f"{self.name}: train")

    def config(self, method: str | None, seed: int) -> DrcConfig:
        """The options of a method with a seed; of None those that all have. UsageError for what does not fit."""
        own = {} if method is None else self.methods[method]
        whose = self.name if method is None else f"{self.name}: {method}"
        if alone := [name for name in own if name.startswith(_FINETUNING)]:
            raise UsageError(f"{whose}: all methods are finetuned alike: {listed(alone)} should be among the options")
        return DrcConfig.of(_with_seed({**self.options, **own}, seed, whose), f"{whose}: options")


def _with_seed(options: dict[str, Any], seed: int, whose: str) -> dict[str, Any]:
    if "seed" in options:
        raise UsageError(f"{whose}: seeds are given by seeds = [0, 1, ...], found seed {options['seed']!r} in options")
    return {**options, "seed": seed}
