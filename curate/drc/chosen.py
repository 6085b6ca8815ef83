"""What a selection leaves: which maps of each unit stay, and the network's weights with the others closed.

A closed map has no effect: the columns that read it are 0, and of attention the rows that make its queries too. So the
network with closed maps gives what the smaller one without them gives (`curate.archs._narrow`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from curate.units import PrunableUnit

__all__ = ["Chosen", "close", "reopen"]


class Chosen(NamedTuple):
    """A selection's result."""

    kept: list[list[int]]  # the maps of each of `Work.units` that stay, ascending
    state: dict[str, Tensor]  # of the network before removal, on the CPU: closed columns are 0


@torch.no_grad()
def close(parameters: Mapping[str, Tensor], unit: PrunableUnit, maps: Sequence[int]) -> None:
    """Take the effect of these maps away, in place."""
    for span in (*unit.readers, *unit.gates):
        weight = parameters[span.parameter]
        places = torch.tensor(span.places(unit.width, maps), dtype=torch.int64, device=weight.device)
        weight.index_fill_(span.axis, places, 0)


@torch.no_grad()
def reopen(
    parameters: Mapping[str, Tensor], original: Mapping[str, Tensor], unit: PrunableUnit, maps: Sequence[int]
) -> None:
    """Give these maps the weights that they have in `original`, in place: the way back from `close`."""
    for span in (*unit.readers, *unit.gates):
        weight = parameters[span.parameter]
        places = torch.tensor(span.places(unit.width, maps), dtype=torch.int64, device=weight.device)
        weight.index_copy_(span.axis, places, original[span.parameter].index_select(span.axis, places))
