"""Physical removal of a network's maps: a smaller dense network of the same code. Not an arch.

Whatever follows from a layer's weights (its numbers of maps, its groups) is set from them, so that this is the only
place that knows how a layer becomes narrower.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from curate import units
from curate.units import PrunableUnit

__all__ = ["built", "narrow"]

_Net = TypeVar("_Net", bound=nn.Module)


def built(net: _Net, arch: Any) -> _Net:
    """A fresh network, made narrower where the arch has a config.

    Of each unit its first maps are left, with the initial weights that they have in the full network: their spread is
    that of layers as wide as those.
    """
    if arch.config is None:
        return net
    full = arch.prunable()
    return narrow(net, full, units.kept_first(units.fitted(arch.config, full)))


@torch.no_grad()
def narrow(net: _Net, of: Sequence[PrunableUnit], kept: Sequence[Sequence[int]]) -> _Net:
    """The network in place, with the maps `kept` of each unit and without the others; returned for convenience."""
    touched = set()
    for name, axis, gone in units.removed(of, kept):
        path, _, last = name.rpartition(".")
        module = net.get_submodule(path)
        old = getattr(module, last)
        left = torch.tensor([place for place in range(old.shape[axis]) if place not in gone], device=old.device)
        setattr(module, last, nn.Parameter(old.index_select(axis, left).contiguous(), old.requires_grad))
        touched.add(path)
    for path in touched:
        _follow(net.get_submodule(path))
    return net


def _follow(module: nn.Module) -> None:
    """Set what a layer says of its weights."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        if module.groups == module.in_channels == module.out_channels:
            module.groups = module.weight.shape[0]  # depthwise; of others each group becomes narrower
        first, second = module.weight.shape[0], module.weight.shape[1] * module.groups
        turned = isinstance(module, nn.ConvTranspose2d)
        module.in_channels, module.out_channels = (first, second) if turned else (second, first)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
