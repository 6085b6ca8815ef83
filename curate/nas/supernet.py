"""The super-net of DLSR: every mixed layer computes all nine operations, every cell takes all earlier cells' outputs.

How much of each is the architecture: alpha of the operations (three layers, shared by the six cells), beta of the
inputs of cells 3 to 6, both before softmax. Each cell has weights of its own.

A mixed layer is sum_o share_o * operation_o(x). Its `plain` form is that sum. The `fused` one computes the same with
fewer products, in less memory, since nothing between an operation's last convolution and the sum is nonlinear:

    conv 1, 3, 5, 7       one convolution with the kernel  sum_o share_o * W_o  (smaller kernels amid zeros)
    sep 3, 5, 7, dil 3, 5 share one ReLU of the input; their last 1x1 convolutions are one, of all five's maps side by
                          side, whose weights carry the shares
    inputs of a cell      the 1x1 convolution that joins them carries their shares

So no operation's answer is kept for the gradient of its share, which comes by way of the weights.

Axes in names: B batch, C channels, H height, W width, L mixed layers of a cell, O operations, J inputs of a cell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curate.archs._depthwise import depthwise
from curate.archs.dlsr import SLOPE, Cell, joint, operation
from curate.genotype import CELLS, CHOOSING, LAYERS, OPERATIONS, Genotype

__all__ = ["Architecture", "Form", "MixedCell", "Shares", "SuperNet", "fused", "plain"]

Form = Literal["plain", "fused"]

_INITIAL = 1e-3  # deviation of a fresh architecture
_CONVS = [OPERATIONS.index(f"conv_{side}x{side}") for side in (1, 3, 5, 7)]
_SEPS = [OPERATIONS.index(f"sep_{side}x{side}") for side in (3, 5, 7)]
_DILS = [OPERATIONS.index(f"dil_{side}x{side}") for side in (3, 5)]


@dataclass(frozen=True)
class Shares:
    """An architecture after softmax."""

    alpha_LO: Tensor
    betas: dict[int, Tensor]  # cell -> J; empty: each cell takes the one before it alone


@dataclass(frozen=True)
class Architecture:
    """What is searched: float32 leaves that gradients reach."""

    alpha_LO: Tensor
    betas: dict[int, Tensor]  # of cells 3 to 6: J values each, the earlier cells in their order; empty: not searched

    @classmethod
    def fresh(cls, *, connections: bool, seed: int, device: torch.device | str = "cpu") -> "Architecture":
        """Near zero: all operations and inputs alike."""
        generator = torch.Generator().manual_seed(seed)

        def leaf(*size: int) -> Tensor:
            return (_INITIAL * torch.randn(size, generator=generator)).to(device).requires_grad_()

        alpha_LO = leaf(LAYERS, len(OPERATIONS))
        return cls(alpha_LO, {cell: leaf(cell - 1) for cell in CHOOSING} if connections else {})

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Architecture":
        """The way back from `tensors`: these very tensors."""
        return cls(tensors["alpha"], {cell: tensors[f"beta{cell}"] for cell in CHOOSING if f"beta{cell}" in tensors})

    def tensors(self) -> dict[str, Tensor]:
        """By name: alpha, beta3 to beta6."""
        return {"alpha": self.alpha_LO, **{f"beta{cell}": beta_J for cell, beta_J in self.betas.items()}}

    def leaves(self) -> list[Tensor]:
        """In the order of `tensors`."""
        return list(self.tensors().values())

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the values of `tensors`."""
        with torch.no_grad():
            for name, leaf in self.tensors().items():
                leaf.copy_(tensors[name])

    def shares(self) -> Shares:
        """After softmax; gradients go through."""
        return Shares(self.alpha_LO.softmax(1), {cell: beta_J.softmax(0) for cell, beta_J in self.betas.items()})

    def genotype(self) -> Genotype:
        """Of each layer the operation, of each cell the two inputs with the largest values, in their order."""
        operations = [OPERATIONS[number] for number in self.alpha_LO.argmax(1).tolist()]
        if not self.betas:
            return Genotype.of(operations, [[cell - 1] for cell in CHOOSING])
        # Of equal values the earlier: argmax says so, topk does not.
        order = {cell: beta_J.argsort(descending=True, stable=True) for cell, beta_J in self.betas.items()}
        return Genotype.of(operations, [sorted(n + 1 for n in order[cell][:2].tolist()) for cell in CHOOSING])


class SuperNet(nn.Module):
    """(lr_BCHW, shares) -> sr_BCHW as `archs.dlsr.DlsrNet`, of which all that surrounds the mixed layers is the same.

    `form` changes how it is computed, not what, and may be set at any time.
    """

    def __init__(self, scale: int, features: int, *, connections: bool = True, form: Form = "fused") -> None:
        super().__init__()
        self.form: Form = form
        self.fea_conv = nn.Conv2d(3, features, 3, padding=1)
        for cell in range(1, CELLS + 1):
            self.add_module(f"B{cell}", MixedCell(features))
        for cell in CHOOSING if connections else ():
            self.add_module(f"c{cell}", joint(cell - 1, features))
        self.cout = joint(CELLS, features)
        self.LR_conv = nn.Conv2d(features, features, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(features, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, lr_BCHW: Tensor, shares: Shares) -> Tensor:
        first_BCHW = maps_BCHW = self.fea_conv(lr_BCHW)
        outputs: list[Tensor] = []
        for cell in range(1, CELLS + 1):
            if cell in shares.betas:
                maps_BCHW = self._joined(cell, outputs, shares.betas[cell])
            mixed = self.get_submodule(f"B{cell}")
            assert isinstance(mixed, MixedCell)
            mixed.mixing = _Mixing(shares.alpha_LO, self.form)
            maps_BCHW = mixed(maps_BCHW)
            mixed.mixing = None
            outputs.append(maps_BCHW)
        fused_BCHW = first_BCHW + self.LR_conv(self.cout(torch.cat(outputs, dim=1)))
        sr_BCHW: Tensor = self.upsampler(fused_BCHW)
        return sr_BCHW

    def _joined(self, cell: int, outputs: list[Tensor], share_J: Tensor) -> Tensor:
        layers = self.get_submodule(f"c{cell}")
        if self.form == "plain":
            weighed = [share * maps_BCHW for share, maps_BCHW in zip(share_J, outputs, strict=True)]
            joined_BCHW: Tensor = layers(torch.cat(weighed, dim=1))
            return joined_BCHW
        conv = next(iter(layers.children()))
        assert isinstance(conv, nn.Conv2d)
        weight = conv.weight * share_J.repeat_interleave(outputs[0].shape[1])[:, None, None]
        return F.leaky_relu(F.conv2d(torch.cat(outputs, dim=1), weight, conv.bias), SLOPE)


@dataclass(frozen=True)
class _Mixing:
    share_LO: Tensor
    form: Form


class MixedCell(Cell):
    """A cell with all operations in each of its three layers."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        for layer in range(1, LAYERS + 1):
            self.add_module(f"c{layer}_r", nn.ModuleList(operation(name, features) for name in OPERATIONS))
        self.mixing: _Mixing | None = None  # of the forward pass that is under way

    def mixed(self, layer: int, maps_BCHW: Tensor) -> Tensor:
        assert self.mixing is not None
        operations = self.get_submodule(f"c{layer}_r")
        assert isinstance(operations, nn.ModuleList)
        form = plain if self.mixing.form == "plain" else fused
        return form(operations, maps_BCHW, self.mixing.share_LO[layer - 1])


def plain(operations: nn.ModuleList, maps_BCHW: Tensor, share_O: Tensor) -> Tensor:
    """The sum of the operations' answers, each times its share."""
    answers = [share * module(maps_BCHW) for share, module in zip(share_O, operations, strict=True)]
    total_BCHW: Tensor = answers[0]
    for answer_BCHW in answers[1:]:
        total_BCHW = total_BCHW + answer_BCHW
    return total_BCHW


def fused(operations: nn.ModuleList, maps_BCHW: Tensor, share_O: Tensor) -> Tensor:
    """The same, by the linearity of convolutions."""
    weights = [list(module.parameters()) for module in operations]  # of an operation's convolutions, in their order
    dense_BCHW = F.conv2d(maps_BCHW, _dense(weights, share_O), padding=3)
    bent_BCHW = F.relu(maps_BCHW)
    wide = []
    for number in _SEPS:
        first, point, second, _ = weights[number]
        inner_BCHW = F.relu(F.conv2d(depthwise(bent_BCHW, first), point))
        wide.append(depthwise(inner_BCHW, second))
    wide += [depthwise(bent_BCHW, weights[number][0], dilation=2) for number in _DILS]
    last = torch.cat([share_O[number] * weights[number][-1] for number in (*_SEPS, *_DILS)], dim=1)
    return dense_BCHW + F.conv2d(torch.cat(wide, dim=1), last)


def _dense(weights: Sequence[Sequence[Tensor]], share_O: Tensor) -> Tensor:
    """The four convolutions as one of 7x7."""
    total = share_O[_CONVS[-1]] * weights[_CONVS[-1]][0]
    for number, margin in zip(_CONVS[:-1], (3, 2, 1), strict=True):
        total = total + F.pad(share_O[number] * weights[number][0], (margin,) * 4)
    return total
