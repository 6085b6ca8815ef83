"""What operations cost, and what a search charges the architecture for them.

Every operation works at the LR size, has a stride of 1 and no bias, so its multiply-adds are its parameters times the
pixels: charged by their share of all operations, the two are the same thing. They differ as a target for the whole
network, whose attention works on a smaller grid. Latency is measured on the device that searches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from curate.archs.dlsr import Dlsr, operation
from curate.config import NasConfig
from curate.genotype import CELLS, CHOOSING, LAYERS, OPERATIONS, Genotype
from curate.latency import milliseconds
from curate.macs import multiply_adds, parameters

__all__ = ["HD", "Costs", "budget", "one_hot", "operation_parameters"]

HD = (720, 1280)  # height, width of the answer that multiply-adds and latency are for


@dataclass(frozen=True)
class Costs:
    """Of the whole network: its fixed part, and one layer's operations in all six cells."""

    kind: Literal["parameters", "macs", "latency"]
    fixed: float  # parameters, multiply-adds for 1280x720, or ms
    operation_O: Tensor  # float64, in the order of OPERATIONS
    target: float | None = None  # what is beyond it is charged; None: all

    @classmethod
    def of(cls, config: NasConfig, device: torch.device) -> "Costs":
        """Those that the config names; of latency another figure each time."""
        arch = Dlsr(config.scale, str(_simplest(connections=config.connections)), config.features)
        made_O = CELLS * torch.tensor([operation_parameters(name, config.features) for name in OPERATIONS]).double()
        known = LAYERS * float(made_O[0])  # the operations of the simplest network
        height, width = (round(side / config.scale) for side in HD)
        if config.cost == "parameters":
            return cls("parameters", parameters(arch) - known, made_O, config.target)
        if config.cost == "macs":
            pixels = height * width
            return cls("macs", multiply_adds(arch, *HD) - known * pixels, made_O * pixels, config.target)
        lr_BCHW = torch.rand(1, config.features, height, width, device=device).to(memory_format=torch.channels_last)
        times = [milliseconds(operation(name, config.features), lr_BCHW) for name in OPERATIONS]
        made_O = CELLS * torch.tensor(times).double()
        whole = milliseconds(arch.build(), 255 * lr_BCHW[:, :3])
        return cls("latency", max(0.0, whole - LAYERS * float(made_O[0])), made_O, config.target)

    def tensors(self) -> dict[str, Tensor]:
        """For a snapshot: what is measured is another figure each time."""
        return {"fixed": torch.tensor(self.fixed, dtype=torch.float64), "operation": self.operation_O}

    @classmethod
    def restored(cls, config: NasConfig, tensors: Mapping[str, Tensor]) -> "Costs":
        """The way back from `tensors`."""
        return cls(config.cost, float(tensors["fixed"]), tensors["operation"], config.target)

    def expected(self, share_LO: Tensor) -> Tensor:
        """Of a network with these shares of operations (each layer's sum to 1); gradients go through."""
        return self.fixed + (self._here(share_LO) * self.operation_O).sum()

    def term(self, share_LO: Tensor) -> Tensor:
        """What a loss is charged with, before it is weighted, 0 or more; its gradient pushes large operations down.

        Without a target each layer's expected cost as a share of the sum over all operations, added up (Huang et al.
        2021, equation 9). With one, by how much of it the whole network exceeds it.
        """
        if self.target is not None:
            return torch.relu(self.expected(share_LO) / self.target - 1)
        return (self._here(share_LO) * (self.operation_O / self.operation_O.sum())).sum()

    def to(self, device: torch.device) -> "Costs":
        """The same on a device: what is there is charged without waiting."""
        return replace(self, operation_O=self.operation_O.to(device))

    def _here(self, share_LO: Tensor) -> Tensor:
        return share_LO.double().to(self.operation_O.device)

    def total(self, genotype: Genotype) -> float:
        """Of a discrete network. Joints of another number of inputs than two are not looked at."""
        return float(self.expected(one_hot(genotype)))


def one_hot(genotype: Genotype) -> Tensor:
    """The shares of a discrete network: float64, LAYERS x OPERATIONS."""
    chosen = torch.tensor([OPERATIONS.index(name) for name in genotype.operations])
    return nn.functional.one_hot(chosen, len(OPERATIONS)).double()


def operation_parameters(name: str, features: int) -> int:
    """k^2 C^2 of conv, 2 (k^2 C + C^2) of sep, k^2 C + C^2 of dil."""
    taps = int(name[-1]) ** 2
    if name.startswith("conv"):
        return taps * features**2
    return (2 if name.startswith("sep") else 1) * (taps * features + features**2)


def budget(config: NasConfig) -> int:
    """Steps of each of the candidates that random and evolution train: together the products of the config's search.

    A step of a mixed-level search takes one pass of the super-net for the weights and, after the warm-up, two for the
    architecture; a candidate's takes one of a network of the mean operation. At least 1.
    """
    arch = Dlsr(config.scale, str(_simplest(connections=config.connections)), config.features)
    pixels = round(HD[0] / config.scale) * round(HD[1] / config.scale)
    of_O = [CELLS * pixels * operation_parameters(name, config.features) for name in OPERATIONS]
    fixed = multiply_adds(arch, *HD) - LAYERS * of_O[0]
    more = sum(cell - 1 - 2 for cell in CHOOSING) if config.connections else 0  # inputs of the joints beyond two
    whole = fixed + more * config.features**2 * pixels + LAYERS * sum(of_O)
    one = fixed + LAYERS * sum(of_O) / len(of_O)
    passes = config.steps + 2 * max(0, config.steps - config.warming)
    return max(1, int(passes * whole / (config.candidates * one)))


def _simplest(*, connections: bool) -> Genotype:
    inputs = [[1, 2]] * len(CHOOSING) if connections else [[cell - 1] for cell in CHOOSING]
    return Genotype.of([OPERATIONS[0]] * LAYERS, inputs)
