"""Options of `curate nas dlsr`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from curate.config.options import Config
from curate.errors import UsageError, listed

__all__ = ["NasConfig"]

_TRAINED = ("random", "evolution")  # methods that train one network after another


@dataclass(frozen=True)
class NasConfig(Config):
    """How to search: the defaults are DLSR's (Huang et al. 2021), which takes days on a GPU."""

    method: Annotated[
        Literal["milenas", "darts", "darts2", "random", "evolution"],
        "Mixed-level updates, DARTS of first or second order, or networks trained one by one in the same budget.",
    ] = "milenas"
    scale: Annotated[int, "2, 3 or 4."] = 2
    features: Annotated[int, "Maps throughout."] = 48
    connections: Annotated[bool, "Search the cells' inputs too; without it each takes the one before (DLSR-B)."] = True
    steps: Annotated[int, "Of the super-net."] = 200_000
    warmup: Annotated[int | None, "Of these, steps of the weights alone (a tenth)."] = None
    share: Annotated[float, "Of the patches, whose photographs are kept for the architecture's updates."] = 0.13
    batch_size: Annotated[int, "Crops a step, from either part of the photographs."] = 64
    crop: Annotated[int, "Side of a crop, HR px."] = 64
    rate: Annotated[float, "Step size of the weights (Adam)."] = 3e-4
    weight_decay: Annotated[float, "Of weights and architecture (L2)."] = 1e-8
    arch_rate: Annotated[float, "Step size of the architecture (Adam, betas 0.5 and 0.999)."] = 3e-4
    validation_weight: Annotated[float, "Of the loss on the second part in a mixed-level update."] = 1.0
    hfen: Annotated[float, "Weight of the high-frequency error beside L1."] = 0.2
    cost: Annotated[
        Literal["parameters", "macs", "latency"],
        "What large operations are charged with; in DLSR's space the first two are one.",
    ] = "parameters"
    cost_weight: Annotated[float, "Of that in the architecture's loss; 0 for none."] = 0.2
    target: Annotated[
        float | None, "Charge only what is beyond: parameters, multiply-adds for 1280x720, or ms on this device."
    ] = None
    snapshots: Annotated[tuple[int, ...], "Steps whose genotypes are kept (each quarter of the steps)."] = ()
    candidates: Annotated[int, "Networks that random and evolution train."] = 16
    population: Annotated[int, "Of evolution: the youngest, whose best is changed next."] = 6
    form: Annotated[Literal["fused", "plain"], "How the super-net is computed: fast, or branch by branch."] = "fused"
    precision: Annotated[Literal["fp32", "bf16"], "Of the networks' products."] = "fp32"
    graphs: Annotated[bool, "On a GPU, record the steps once and replay them."] = True
    seed: Annotated[int, "Of the parts, weights, architecture, order and crops."] = 0
    log_every: Annotated[int, "Steps between two points of the curves."] = 100
    save_every: Annotated[int, "Steps between two states to resume from."] = 1000

    _least: ClassVar[Mapping[str, float]] = {
        "steps": 1,
        "warmup": 0,
        "batch_size": 1,
        "crop": 1,
        "weight_decay": 0,
        "validation_weight": 0,
        "hfen": 0,
        "cost_weight": 0,
        "candidates": 1,
        "population": 1,
        "seed": 0,
        "log_every": 1,
        "save_every": 1,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in (2, 3, 4):
            raise UsageError(f"scale should be 2, 3 or 4, found {self.scale}")
        if self.features < 4 or self.features % 2:
            raise UsageError(f"features should be an even number of 4 or more, found {self.features}")
        if not 0 < self.share < 1:
            raise UsageError(f"share should be above 0 and below 1, found {self.share}")
        for name in ("rate", "arch_rate"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(f"{name} should be above 0 and below 1, found {getattr(self, name)}")
        if self.target is not None and not 0 < self.target < float("inf"):
            raise UsageError(f"target should be above 0, found {self.target}")
        if self.warming >= self.steps and self.method not in _TRAINED:
            raise UsageError(f"warmup should be less than the {self.steps} steps, found {self.warming}")
        if self.population > self.candidates and self.method == "evolution":
            raise UsageError(f"population should be at most the {self.candidates} candidates, found {self.population}")
        wrong = [step for step in self.snapshots if not 0 < step <= self.steps]
        if wrong or list(self.snapshots) != sorted(set(self.snapshots)):
            found = listed(map(str, self.snapshots))
            raise UsageError(f"snapshots should be rising steps from 1 to {self.steps}, found {found}")

    @property
    def warming(self) -> int:
        """Steps of the weights alone."""
        return self.steps // 10 if self.warmup is None else self.warmup

    @property
    def kept(self) -> tuple[int, ...]:
        """Steps whose genotypes are kept, the last one among them."""
        quarters = tuple(step for step in (self.steps * part // 4 for part in (1, 2, 3)) if step)
        return tuple(dict.fromkeys([*(self.snapshots or quarters), self.steps]))
