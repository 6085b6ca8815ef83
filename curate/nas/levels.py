"""How a search updates weights and architecture, each from its own part of the photographs.

    milenas   mixed levels (He et al. 2020): the weights by L_training; then the architecture by
              L_training + lambda * L_validation + charge, first order, at the weights that have just moved
    darts     two levels (Liu et al. 2019), first order: the architecture by L_validation + charge; then the weights
    darts2    the same, second order: L_validation at the weights that one step of gradient descent would lead to, whose
              dependence on the architecture is a finite difference

L is L1 and HFEN of values up to 255, each sample's times its weight in the manifest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from curate.config import NasConfig
from curate.loader import Batch
from curate.losses import distance
from curate.nas.costs import Costs
from curate.nas.supernet import Architecture, Shares, SuperNet

__all__ = ["Levels", "Losses"]

PEAK = 255.0  # of DLSR's values
_ARCHITECTURE_BETAS = (0.5, 0.999)
_DIFFERENCE = 0.01  # over the gradient's norm: the step of darts2's finite difference


class Losses(NamedTuple):
    """What a step found, each before the update that it is for; on the device."""

    training: Tensor
    validation: Tensor | None = None  # None in the warm-up; of darts2 at the weights that a step would lead to
    charge: Tensor | None = None


@dataclass
class Levels:
    """The super-net, its architecture, and the optimiser of each."""

    net: SuperNet
    architecture: Architecture
    config: NasConfig
    costs: Costs

    def __post_init__(self) -> None:
        config = self.config
        self.weights = list(self.net.parameters())
        decay = config.weight_decay
        on_gpu = self.weights[0].device.type == "cuda"  # where steps are counted on the device, for graphs of them
        self.of_weights = torch.optim.Adam(self.weights, lr=config.rate, weight_decay=decay, capturable=on_gpu)
        leaves = self.architecture.leaves()
        self.of_architecture = torch.optim.Adam(
            leaves, lr=config.arch_rate, betas=_ARCHITECTURE_BETAS, weight_decay=decay, capturable=on_gpu
        )

    def step(self, training: Batch, validation: Batch | None) -> Losses:
        """One step; without a batch for validation, of the weights alone."""
        if validation is None:
            return Losses(self._move_weights(training))
        if self.config.method == "milenas":
            found = self._move_weights(training)
            return Losses(found, *self._move_architecture(*self._mixed(training, validation)))
        second = self.config.method == "darts2"
        moved = self._move_architecture(*(self._unrolled if second else self._first)(training, validation))
        return Losses(self._move_weights(training), *moved)

    def _move_weights(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            shares = self.architecture.shares()
        loss = self._losses(shares, batch)[0]
        _apply(self.of_weights, self.weights, torch.autograd.grad(loss, self.weights))
        return loss.detach()

    def _move_architecture(self, gradients: tuple[Tensor, ...], validation: Tensor) -> tuple[Tensor, Tensor]:
        """By these gradients of the loss, and by what the architecture is charged with."""
        charge = self.costs.term(self.architecture.alpha_LO.softmax(1)).float()
        leaves = self.architecture.leaves()
        if self.config.cost_weight:
            (charged,) = torch.autograd.grad(self.config.cost_weight * charge, leaves[:1])
            gradients = (gradients[0] + charged, *gradients[1:])
        _apply(self.of_architecture, leaves, gradients)
        return validation, charge.detach()

    def _mixed(self, training: Batch, validation: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
        mine, other = self._losses(self.architecture.shares(), training, validation)
        loss = mine + self.config.validation_weight * other
        return torch.autograd.grad(loss, self.architecture.leaves()), other.detach()

    def _first(self, training: Batch, validation: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
        loss = self._losses(self.architecture.shares(), validation)[0]
        return torch.autograd.grad(loss, self.architecture.leaves()), loss.detach()

    def _unrolled(self, training: Batch, validation: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
        """DARTS, equations 7 and 8, where descent is plain: w' = w - rate * (dL_training/dw + decay * w)."""
        rate, leaves = self.config.rate, self.architecture.leaves()
        saved = [weight.detach().clone() for weight in self.weights]
        loss = self._losses(_detached(self.architecture.shares()), training)[0]
        slopes = torch.autograd.grad(loss, self.weights)
        with torch.no_grad():
            for weight, slope in zip(self.weights, slopes, strict=True):
                weight.sub_(rate * (slope + self.config.weight_decay * weight))
        loss = self._losses(self.architecture.shares(), validation)[0]
        gradients = torch.autograd.grad(loss, [*leaves, *self.weights])
        direct, towards = gradients[: len(leaves)], gradients[len(leaves) :]
        size = _DIFFERENCE / torch.stack([slope.norm() for slope in towards]).norm().clamp(min=1e-12)
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                for weight, before, slope in zip(self.weights, saved, towards, strict=True):
                    weight.copy_(before + sign * size * slope)
            sides.append(torch.autograd.grad(self._losses(self.architecture.shares(), training)[0], leaves))
        with torch.no_grad():
            for weight, before in zip(self.weights, saved, strict=True):
                weight.copy_(before)
        mixed = [(plus - minus) / (2 * size) for plus, minus in zip(*sides, strict=True)]
        return tuple(d - rate * m for d, m in zip(direct, mixed, strict=True)), loss.detach()

    def _losses(self, shares: Shares, *batches: Batch) -> list[Tensor]:
        """The mean loss of each batch; all of them go through the network together."""
        lr_BCHW = torch.cat([batch.lr_BCHW for batch in batches])
        lr_BCHW = (PEAK * lr_BCHW).contiguous(memory_format=torch.channels_last)
        with torch.autocast(lr_BCHW.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            sr_BCHW = self.net(lr_BCHW, shares)
        found = []
        for batch, answer_BCHW in zip(batches, sr_BCHW.split([len(b.weight_B) for b in batches]), strict=True):
            loss_B = distance(
                answer_BCHW.to(batch.hr_BCHW.dtype), PEAK * batch.hr_BCHW, "l1", peak=PEAK, high=self.config.hfen
            )
            found.append((loss_B * batch.weight_B).mean())
        return found


def _apply(optimiser: torch.optim.Optimizer, leaves: Sequence[Tensor], gradients: tuple[Tensor, ...]) -> None:
    for leaf, gradient in zip(leaves, gradients, strict=True):
        leaf.grad = gradient
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def _detached(shares: Shares) -> Shares:
    return Shares(shares.alpha_LO.detach(), {cell: share_J.detach() for cell, share_J in shares.betas.items()})
