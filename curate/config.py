"""Options of the long verbs as frozen dataclasses: one set of names for Python, the command line and TOML.

Each field's help is part of its type (`Annotated`), so that the command line and this page cannot drift apart.
"""

import dataclasses
import tomllib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar, get_args, get_origin, get_type_hints

import pydantic

from curate import plugins
from curate.errors import UsageError, listed, meant, one_line
from curate.files import local_path

__all__ = ["Config", "DistillConfig", "LdmConfig", "Option", "TrainConfig", "options_of", "plan", "settle"]

_LEAST = {
    "steps": 1,
    "batch_size": 1,
    "accumulate": 1,
    "crop": 1,
    "warmup": 0,
    "seed": 0,
    "log_every": 1,
    "validate_every": 1,
    "save_every": 1,
}
_ENDS = {"steps", "epochs"}  # one says when to stop
_SHARES = ("beta1", "beta2", "ema")  # from 0 to below 1


@dataclass(frozen=True)
class Config:
    """What the options of a long verb have in common."""

    _least: ClassVar[Mapping[str, float]] = {}  # the smallest value of options that have one

    def __post_init__(self) -> None:
        for option in options_of(type(self)):
            found = getattr(self, option.name)
            if get_origin(option.type) is Literal and found not in get_args(option.type):
                raise UsageError(f"{option.name} should be one of {listed(get_args(option.type))}, found {found}")
        for name, value in self._least.items():
            found = getattr(self, name)
            if found is not None and not value <= found < float("inf"):
                raise UsageError(f"{name} should be {value} or more, found {found}")

    def recipe(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def of(cls, options: Mapping[str, Any], source: str) -> Self:
        """From options by name, checked by type (text is no number); `source` says in errors where they come from."""
        kinds = {option.name: option.type for option in options_of(cls)}
        try:
            if unknown := options.keys() - kinds.keys():
                there = f"there are: {', '.join(kinds)}{meant(min(unknown), kinds)}"
                raise UsageError(f"no option '{one_line(listed(unknown))}'; {there}")
            return cls(**{name: _checked(name, kinds[name], value) for name, value in options.items()})
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from None


@dataclass(frozen=True)
class TrainConfig(Config):
    """How to train; every field is an option of `curate train` and a key of a recipe's TOML file."""

    steps: Annotated[int | None, "Optimiser steps."] = None
    epochs: Annotated[float | None, "Or: the steps that this many passes over the full set would take."] = None
    batch_size: Annotated[int, "Crops a step, over all processes."] = 16
    accumulate: Annotated[int, "Parts that a batch is cut into, one after another, to save memory."] = 1
    crop: Annotated[int, "Side of a crop, HR px."] = 96
    optimizer: Annotated[Literal["adam", "adamw", "soap"], "SOAP suits small networks."] = "adam"
    rate: Annotated[float, "Step size at the start."] = 1e-3
    beta1: Annotated[float | None, "Decay of the mean gradient (0.9; soap 0.95)."] = None
    beta2: Annotated[float | None, "Decay of its mean square (0.999; soap 0.95)."] = None
    weight_decay: Annotated[float, "Of adam (L2) and adamw."] = 0.0
    clip: Annotated[float, "Largest norm of the gradient; 0 for none."] = 0.0
    schedule: Annotated[
        Literal["cosine", "multistep", "constant"], "Of the rate: cosine falls to 1 %, multistep at milestones."
    ] = "cosine"
    milestones: Annotated[tuple[int, ...], "Steps after which multistep lowers the rate."] = ()
    gamma: Annotated[float, "What multistep multiplies the rate by."] = 0.5
    warmup: Annotated[int, "Steps in which the rate rises from near 0."] = 0
    loss: Annotated[Literal["l1", "mse", "charbonnier"], "Between the network's answer and HR."] = "l1"
    ema: Annotated[float, "Decay of a running mean of the weights, which then is the result; 0 for none."] = 0.0
    precision: Annotated[Literal["fp32", "bf16"], "Of the network's products."] = "fp32"
    compile: Annotated[bool, "Compile the network first (minutes, once)."] = False
    degrade: Annotated[str, "How LR is made: bicubic, blur, second_order, ..."] = "bicubic"
    seed: Annotated[int, "Of weights, order, crops, flips and degradations."] = 0
    log_every: Annotated[int, "Steps between two points of the curves."] = 100
    validate_every: Annotated[int, "Steps between two validations."] = 1000
    save_every: Annotated[int, "Steps between two states to resume from."] = 1000

    _least: ClassVar[Mapping[str, float]] = _LEAST

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.steps is None) == (self.epochs is None):
            found = "neither" if self.steps is None else f"{self.steps} steps and {self.epochs} epochs"
            raise UsageError(f"one of steps and epochs should be given, found {found}")
        for name in _SHARES:
            found = getattr(self, name)
            if found is not None and not 0 <= found < 1:
                raise UsageError(f"{name} should be 0 or more and below 1, found {found}")
        if not 0 < self.rate < 1:
            raise UsageError(f"rate should be above 0 and below 1, found {self.rate}")
        for name in ("weight_decay", "clip"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name} should be 0 or more, found {getattr(self, name)}")
        if self.weight_decay and self.optimizer == "soap":
            raise UsageError(f"weight_decay goes with adam and adamw, found {self.weight_decay} and soap")
        if not 0 < self.gamma <= 1:
            raise UsageError(f"gamma should be above 0 and at most 1, found {self.gamma}")
        if self.epochs is not None and not 0 < self.epochs < float("inf"):
            raise UsageError(f"epochs should be above 0, found {self.epochs}")
        if (self.schedule == "multistep") != bool(self.milestones):
            raise UsageError(f"milestones go with schedule multistep, found {self.schedule} and {self.milestones}")
        if list(self.milestones) != sorted({step for step in self.milestones if step > 0}):
            raise UsageError(f"milestones should be rising steps above 0, found {self.milestones}")
        if self.batch_size % self.accumulate:
            raise UsageError(f"batch_size {self.batch_size} should be a multiple of accumulate {self.accumulate}")


@dataclass(frozen=True)
class LdmConfig(Config):
    """How to train a latent diffusion model: first the autoencoder, then, in its latents, the denoiser."""

    kind: Annotated[Literal["kl", "vq"], "The autoencoder: Gaussian latents, or those of a codebook."] = "kl"
    latents: Annotated[int, "Channels of a latent, a pixel of which stands for 4 x 4."] = 4
    codes: Annotated[int, "Of the codebook of vq."] = 1024
    width: Annotated[int, "Maps of the autoencoder at full resolution; twice and four times as many below."] = 32
    denoiser_width: Annotated[int, "Maps of the U-Net at the latent's resolution; 2 and 3 times as many below."] = 64
    autoencoder_steps: Annotated[int, "Optimiser steps of the first stage."] = 10000
    denoiser_steps: Annotated[int, "Of the second; 0 for an autoencoder alone."] = 10000
    autoencoder_crop: Annotated[int, "Side of a crop of the first stage, px."] = 48
    crop: Annotated[int, "Of the second."] = 96
    batch_size: Annotated[int, "Crops a step."] = 16
    optimizer: Annotated[Literal["adam", "adamw", "soap"], "SOAP suits small networks."] = "adam"
    rate: Annotated[float, "Step size at the start of each stage; it falls to 1 % along a cosine."] = 1e-3
    kl: Annotated[float, "Weight of the latents' divergence from a unit Gaussian, of kl."] = 1e-6
    ema: Annotated[float, "Decay of a running mean of the U-Net's weights, which is the result; 0 for none."] = 0.999
    precision: Annotated[Literal["fp32", "bf16"], "Of the networks' products."] = "fp32"
    half: Annotated[bool, "Write the weights as float16: half the bytes."] = False
    seed: Annotated[int, "Of weights, order, crops and noise."] = 0
    log_every: Annotated[int, "Steps between two points of the curves."] = 100
    save_every: Annotated[int, "Steps between two states to resume from."] = 1000

    _least: ClassVar[Mapping[str, float]] = {
        "latents": 1,
        "codes": 2,
        "autoencoder_steps": 1,
        "denoiser_steps": 0,
        "batch_size": 1,
        "kl": 0,
        "seed": 0,
        "log_every": 1,
        "save_every": 1,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, of in (("width", 8), ("denoiser_width", 16), ("autoencoder_crop", 4), ("crop", 16)):
            if (found := getattr(self, name)) < of or found % of:
                raise UsageError(f"{name} should be a multiple of {of}, found {found}")
        if not 0 < self.rate < 1:
            raise UsageError(f"rate should be above 0 and below 1, found {self.rate}")
        if not 0 <= self.ema < 1:
            raise UsageError(f"ema should be 0 or more and below 1, found {self.ema}")


@dataclass(frozen=True)
class DistillConfig(Config):
    """How to distil a manifest's patches into a few new ones."""

    patches: Annotated[int | None, "How many to make."] = None
    bytes: Annotated[int | None, "Or: the bytes that they may take in the store."] = None
    size: Annotated[int, "Their side, HR px; real patches are crops of this size."] = 96
    space: Annotated[
        Literal["pixel", "vae", "ldm"], "What is changed: pixels, latents, or what a diffusion starts at."
    ] = "pixel"
    model: Annotated[str | None, "A folder or hub name of diffusers, for vae and ldm (the bundled one)."] = None
    residual: Annotated[
        bool, "Add to what is decoded the details that the autoencoder lost of the patch at the start."
    ] = True
    injection: Annotated[
        Literal["code", "paper"], "Of the latents into the diffusion, as LD3M's code or paper has it."
    ] = "code"
    sampling: Annotated[int, "Steps of the diffusion."] = 10
    guidance: Annotated[float, "Of a conditional denoiser away from the null condition; 1 for none."] = 1.0
    objective: Annotated[Literal["dc", "dm", "mtt"], "Match gradients, distributions of features, or trajectories."] = (
        "dc"
    )
    arch: Annotated[str, "The matching network."] = "fsrcnn:scale=2,d=32,s=8,m=1"
    distance: Annotated[Literal["cos", "mse", "both"], "Of gradients (dc)."] = "cos"
    statistics: Annotated[Literal["mean", "moments", "fourier", "all"], "Of features (dm)."] = "all"
    groups: Annotated[Literal["cluster", "image", "none"], "What stands for classes."] = "cluster"
    clusters: Annotated[int, "How many."] = 10
    start: Annotated[
        Literal["random", "rank"], "Which real patches to begin with: drawn, or the manifest's first ones."
    ] = "random"
    pool: Annotated[int, "Real patches to compare with, held in memory as 8 bits."] = 4096
    batch_size: Annotated[int, "Synthetic patches a step (of dc and dm; of each inner step of mtt)."] = 32
    real_batch: Annotated[int, "Real patches a step."] = 64
    steps: Annotated[int, "Steps of the patches."] = 500
    optimizer: Annotated[Literal["adam", "sgd"], "Of the patches."] = "adam"
    rate: Annotated[
        float, "Step size: of adam about what a value moves a step, in [0, 1] or latents of deviation 1."
    ] = 0.003
    momentum: Annotated[float, "Of sgd."] = 0.5
    net_every: Annotated[int, "Steps between two fresh matching networks (dc, dm)."] = 20
    net_steps: Annotated[int, "Each is trained by a random number of steps on real patches, up to this one."] = 60
    net_rate: Annotated[float, "Step size of that (Adam)."] = 1e-3
    experts: Annotated[int, "Networks trained on real patches (mtt)."] = 4
    expert_epochs: Annotated[int, "Passes of each over the pool."] = 20
    expert_rate: Annotated[float, "Step size of that (plain SGD)."] = 0.1
    expert_batch: Annotated[int, "Real patches a step of that."] = 64
    ahead: Annotated[int, "Epochs of an expert that a trajectory is to cover."] = 2
    latest: Annotated[int, "The last epoch of an expert at which one may start."] = 10
    inner_steps: Annotated[int, "Steps on synthetic patches that are to cover them."] = 20
    form: Annotated[Literal["full", "constant"], "Of a trajectory's gradient: exact, or in the memory of one step."] = (
        "full"
    )
    teacher: Annotated[str | None, "A checkpoint whose answers stand for HR."] = None
    chunk: Annotated[int, "Patches that are decoded at a time; halved where memory does not suffice."] = 16
    seed: Annotated[int, "Of all that is drawn."] = 0
    log_every: Annotated[int, "Steps between two points of the curves."] = 50
    save_every: Annotated[int, "Steps between two states to resume from, and pictures."] = 200

    _least: ClassVar[Mapping[str, float]] = {
        "patches": 1,
        "bytes": 1,
        "size": 12,
        "sampling": 2,
        "guidance": 0,
        "clusters": 1,
        "pool": 1,
        "batch_size": 1,
        "real_batch": 1,
        "steps": 0,
        "net_every": 1,
        "net_steps": 0,
        "experts": 1,
        "expert_epochs": 1,
        "expert_batch": 1,
        "ahead": 1,
        "latest": 0,
        "inner_steps": 1,
        "chunk": 1,
        "seed": 0,
        "log_every": 1,
        "save_every": 1,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.patches is None) == (self.bytes is None):
            found = "neither" if self.patches is None else f"{self.patches} patches and {self.bytes} bytes"
            raise UsageError(f"a budget should be given, in patches or in bytes, found {found}")
        if self.size % 12:
            raise UsageError(f"size should be a multiple of 12 px, so that x2, x3 and x4 divide it, found {self.size}")
        for name in ("rate", "net_rate", "expert_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{name} should be above 0, found {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum should be 0 or more and below 1, found {self.momentum}")
        if self.latest + self.ahead > self.expert_epochs:
            asked = f"{self.ahead} epochs from epoch {self.latest}"
            raise UsageError(f"experts of {self.expert_epochs} epochs have no {asked}: give more --expert-epochs")
        if self.teacher is not None and self.objective == "dm":
            raise UsageError("a teacher's labels go with dc and mtt: dm does not look at HR")
        if self.model is not None and self.space == "pixel":
            raise UsageError(f"a model goes with the spaces vae and ldm, found {one_line(self.model)} and pixel")


_ConfigT = TypeVar("_ConfigT", bound=Config)


def _checked(name: str, kind: Any, value: Any) -> Any:
    """`value` as its option has it: a list, as TOML and JSON say it, is a tuple. UsageError for another type."""
    plain = tuple(value) if isinstance(value, list) else value
    try:
        return pydantic.TypeAdapter(kind).validate_python(plain, strict=True)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        expected = problem["msg"].removeprefix("Input ")
        raise UsageError(f"{name} {one_line(expected)}, found {one_line(repr(problem['input']))}") from None


class Option(NamedTuple):
    """A field of a config, for those who make a command line of it."""

    name: str
    type: Any
    help: str
    default: Any


def options_of(config: type[Config]) -> list[Option]:
    """The fields in their order."""
    hints = get_type_hints(config, include_extras=True)
    made = []
    for field in dataclasses.fields(config):
        kind, text = get_args(hints[field.name])
        made.append(Option(field.name, kind, text, field.default))
    return made


def plan(recipe: str | Path | None, arch: str | None, given: Mapping[str, Any]) -> tuple[str, TrainConfig]:
    """The arch and the options of a recipe's TOML file (`arch`, and TrainConfig's names); what is `given` wins.

    A given end stands for the file's, steps or epochs, and a given schedule does without the file's milestones.
    Raises UsageError for a file that is none, for names and values that do not fit, and where no arch is named.
    """
    options, source = _of_file(recipe)
    named = options.pop("arch", None)
    if not isinstance(named, str | None):
        raise UsageError(f"{source}: arch should be a spec such as 'swinir:scale=2', found {one_line(named)}")
    if given.keys() & _ENDS:
        options = {name: value for name, value in options.items() if name not in _ENDS}
    if given.get("schedule", "multistep") != "multistep":
        options.pop("milestones", None)
    if arch is None and named is not None:
        plugins.require_named(named, (), "--arch")
    spec = arch or named
    if spec is None:
        raise UsageError(f"{source}: which network? Name it with --arch, or as arch in a recipe")
    if recipe is not None and given:
        source += f" with {', '.join(given)}"
    return spec, TrainConfig.of({**options, **given}, source)


def settle(
    config: type[_ConfigT], recipe: str | Path | None, given: Mapping[str, Any], ends: Set[str] = frozenset()
) -> _ConfigT:
    """The options of a recipe's TOML file; what is `given` wins, and one of `ends` for all of these.

    Raises as `plan` does.
    """
    options, source = _of_file(recipe)
    if given.keys() & ends:
        options = {name: value for name, value in options.items() if name not in ends}
    if recipe is not None and given:
        source += f" with {', '.join(given)}"
    return config.of({**options, **given}, source)


def _of_file(recipe: str | Path | None) -> tuple[dict[str, Any], str]:
    """The options in a recipe, and what to call it in errors."""
    return ({}, "options") if recipe is None else (_read(recipe), f"'{one_line(recipe)}'")


def _read(recipe: str | Path) -> dict[str, Any]:
    file = local_path(recipe, "a recipe")
    if not file.is_file():
        raise UsageError(f"no recipe '{one_line(file)}': there is no such file")
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"'{one_line(file)}' is not a TOML file: {one_line(error)}") from None
