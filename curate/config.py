"""Options of the long verbs as frozen dataclasses: one set of names for Python, the command line and TOML."""

from dataclasses import dataclass
from typing import Literal

from curate.errors import UsageError

__all__ = ["TrainConfig"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train; every field is an option of `curate train`."""

    steps: int  # optimiser steps
    batch_size: int = 16  # crops a step
    crop: int = 96  # HR px, side of a crop
    rate: float = 1e-3  # Adam's step size at the start
    schedule: Literal["cosine", "constant"] = "cosine"  # cosine falls to 1 % of the rate at the last step
    loss: Literal["l1", "mse"] = "l1"
    precision: Literal["fp32", "bf16"] = "fp32"  # of the network's products; weights and loss stay float32
    seed: int = 0  # of the weights, the order, crops and flips
    log_every: int = 100  # steps between two points in TensorBoard

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_size": 1, "crop": 1, "log_every": 1, "seed": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UsageError(f"{name} should be {value} or more, found {getattr(self, name)}")
        if not 0 < self.rate < 1:
            raise UsageError(f"rate should be above 0 and below 1, found {self.rate}")
