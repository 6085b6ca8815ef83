"""Optimisers of the synthetic patches, of which a step moves some: what is not in a step's batch stays as it is.

Torch's own move every row at every step, by its momentum, whether or not it has a gradient.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

__all__ = ["RowOptimiser"]

_BETAS = (0.9, 0.99)  # of Adam; the second is short, since a row is in few steps
_EPSILON = 1e-12  # gradients of patches are small


class RowOptimiser:
    """Adam (Kingma & Ba 2015) or SGD with momentum, row by row, on tensors N x ... in place.

    The rate of Adam is about how far a value moves in a step. All of the state is tensors.
    """

    def __init__(
        self, learnables: Mapping[str, Tensor], name: Literal["adam", "sgd"], rate: float, momentum: float = 0.5
    ) -> None:
        self.learnables = learnables
        self.name, self.rate, self.momentum = name, rate, momentum
        self.state = {f"{key}.mean": torch.zeros_like(tensor) for key, tensor in learnables.items()}
        if name == "adam":
            self.state |= {f"{key}.square": torch.zeros_like(tensor) for key, tensor in learnables.items()}
        count = len(next(iter(learnables.values())))
        self.state["steps"] = torch.zeros(count, dtype=torch.int64)  # that each row was in

    @torch.no_grad()
    def step(self, rows_M: Tensor, gradients: Mapping[str, Tensor]) -> None:
        """Move the rows, each named once, by their gradients (M x ...)."""
        self.state["steps"][rows_M] += 1
        for name, gradient in gradients.items():
            tensor = self.learnables[name]
            tensor[rows_M] -= self.rate * self._move(name, rows_M, gradient)

    def _move(self, name: str, rows_M: Tensor, gradient: Tensor) -> Tensor:
        mean = self.state[f"{name}.mean"]
        if self.name == "sgd":
            mean[rows_M] = self.momentum * mean[rows_M] + gradient
            return mean[rows_M]
        square = self.state[f"{name}.square"]
        first, second = _BETAS
        mean[rows_M] = first * mean[rows_M] + (1 - first) * gradient
        square[rows_M] = second * square[rows_M] + (1 - second) * gradient.square()
        times = self.state["steps"][rows_M].to(gradient).reshape(-1, *(1,) * (gradient.ndim - 1))
        return (mean[rows_M] / (1 - first**times)) / ((square[rows_M] / (1 - second**times)).sqrt() + _EPSILON)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The way back from `state`."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])
