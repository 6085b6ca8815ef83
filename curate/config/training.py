"""Options of `curate train`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from curate import plugins
from curate.config.options import Config, of_file
from curate.errors import UsageError, one_line

__all__ = ["TrainConfig", "plan"]

_LEAST = {
    "steps": 1,
    "batch_size": 1,
    "accumulate": 1,
    "crop": 1,
    "warmup": 0,
    "hfen": 0,
    "dual": 0,
    "teacher_weight": 0,
    "seed": 0,
    "log_every": 1,
    "validate_every": 1,
    "save_every": 1,
}
_ENDS = {"steps", "epochs"}  # one says when to stop
_SHARES = ("beta1", "beta2", "ema")  # from 0 to below 1


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
    hfen: Annotated[
        float | None,
        "Weight of the high-frequency error beside the loss (the network's own: 0.2 of dlsr, 0 of others).",
    ] = None
    dual: Annotated[
        float, "Weight of the dual regression loss, of small networks that learn the way back to LR; 0 for none."
    ] = 0.0
    teacher_weight: Annotated[float, "Weight of the distance to a teacher (--teacher)."] = 1.0
    teacher_by: Annotated[Literal["features", "answer"], "What is compared with the teacher's."] = "features"
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


def plan(recipe: str | Path | None, arch: str | None, given: Mapping[str, Any]) -> tuple[str, TrainConfig]:
    """The arch and the options of a recipe's TOML file (`arch`, and TrainConfig's names); what is `given` wins.

    A given end stands for the file's, steps or epochs, and a given schedule does without the file's milestones.
    Raises UsageError for a file that is none, for names and values that do not fit, and where no arch is named.
    """
    options, source = of_file(recipe)
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
