"""Optimisers by name: Adam and AdamW of torch, and SOAP, which gets more out of a step of a small network.

SOAP (Vyas et al. 2024, Algorithm 3) is Adam in the eigenbases of Shampoo's two-sided statistics. Image patches have a
thousand times more energy in their mean than in their details, so the weights that read them are badly conditioned, and
Adam, which scales each weight alone, is slow along the details. In the eigenbasis those directions have a scale of
their own. A convolution's weight is an array of three axes here: outputs, inputs, kernel values.

Axes in names: N any axis of the array, with its own basis.
"""

from collections.abc import Callable, Iterable
from math import cos, pi
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from curate.config import TrainConfig

__all__ = ["Soap", "by_name", "cosine", "optimiser"]

_LARGEST_AXIS = 1024  # longer axes keep their own basis: its square matrices would cost more than they give
_REFRESH = 10  # steps between two updates of the bases


def optimiser(parameters: Iterable[nn.Parameter], config: TrainConfig) -> Optimizer:
    """The optimiser that the config names. All of its state is tensors, for checkpoints without pickle."""
    betas = (config.beta1, config.beta2)
    return by_name(parameters, config.optimizer, config.rate, betas=betas, weight_decay=config.weight_decay)


def by_name(
    parameters: Iterable[nn.Parameter],
    name: Literal["adam", "adamw", "soap"],
    rate: float,
    *,
    betas: tuple[float | None, float | None] = (None, None),
    weight_decay: float = 0.0,
) -> Optimizer:
    """The same; betas that are None are the optimiser's own."""
    first, second = (0.95, 0.95) if name == "soap" else (0.9, 0.999)
    known = (first if betas[0] is None else betas[0], second if betas[1] is None else betas[1])
    if name == "soap":
        return Soap(parameters, lr=rate, betas=known)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, betas=known, weight_decay=weight_decay)


def cosine(step: int, steps: int) -> float:
    """What a rate is multiplied by at a step, counted from 0: it falls from 1 to 1 % along a cosine."""
    return 0.01 + 0.99 * (1 + cos(pi * step / steps)) / 2


class Soap(Optimizer):
    """SOAP for float32 parameters of any shape. The first step only measures and leaves the weights as they are."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, betas: tuple[float, float] = (0.95, 0.95), eps: float = 1e-8
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step. `closure` is part of torch's signature and may not be given."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, _as_array(parameter.grad), group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        (beta1, beta2), eps = group["betas"], group["eps"]
        state = self.state[parameter]
        if not state:
            self.state[parameter] = _first_state(gradient)
            return
        state["step"] += 1
        bases = [state.get(f"basis{axis}") for axis in range(gradient.ndim)]
        state["mean"].lerp_(gradient, 1 - beta1)
        rotated = _rotate(gradient, bases)
        state["square"].mul_(beta2).addcmul_(rotated, rotated, value=1 - beta2)
        step = float(state["step"])
        size = group["lr"] * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
        move = _rotate(state["mean"], bases) / (state["square"].sqrt() + eps)
        back = [basis if basis is None else basis.T for basis in bases]
        parameter.sub_(_rotate(move, back).reshape(parameter.shape), alpha=size)
        for axis, basis in enumerate(bases):
            if basis is not None:
                state[f"gram{axis}"].lerp_(_gram(gradient, axis), 1 - beta2)
                if step % _REFRESH == 0:
                    _refresh(state, axis)


def _as_array(gradient: Tensor) -> Tensor:
    """The gradient with one axis for a kernel's values and none of length 1, contiguous: its sums are the same then
    whatever the memory layout of the parameter."""
    kernels = gradient.flatten(2) if gradient.ndim > 2 else gradient
    return kernels.squeeze().float().contiguous()


def _first_state(gradient: Tensor) -> dict[str, Tensor]:
    """Names to tensors: `step`, `mean` and `square` (in the eigenbasis), and of each axis `gram` and `basis`."""
    state = {"step": torch.zeros(()), "mean": torch.zeros_like(gradient), "square": torch.zeros_like(gradient)}
    for axis, length in enumerate(gradient.shape):
        if length <= _LARGEST_AXIS:
            gram = _gram(gradient, axis)
            state[f"gram{axis}"] = gram
            # eigh would raise on a gradient that is not finite; so the loss tells of it, as with the other optimisers.
            vectors = torch.linalg.eigh(gram.nan_to_num(0, 0, 0))[1]
            state[f"basis{axis}"] = vectors.flip(1).contiguous()  # largest eigenvalue first
    return state


def _gram(array: Tensor, axis: int) -> Tensor:
    """How the slices along one axis go together: NN."""
    rows = array.movedim(axis, 0).reshape(array.shape[axis], -1)
    return rows @ rows.T


def _rotate(array: Tensor, bases: list[Tensor | None]) -> Tensor:
    """`array` with each axis in its basis (None: as it is)."""
    for basis in bases:  # each turn takes the first axis and puts it last
        array = array.movedim(0, -1)
        if basis is not None:
            array = array @ basis
    return array.contiguous()


def _refresh(state: dict[str, Tensor], axis: int) -> None:
    """One step of power iteration towards the eigenbasis, largest eigenvalue first; the squares follow the order."""
    gram, basis = state[f"gram{axis}"], state[f"basis{axis}"]
    order = (basis * (gram @ basis)).sum(0).argsort(descending=True, stable=True)
    state["square"] = state["square"].index_select(axis, order)
    state[f"basis{axis}"] = torch.linalg.qr(gram @ basis[:, order])[0].contiguous()
