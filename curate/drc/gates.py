"""What a unit's maps count: multiplied by a gate each, without touching the network.

A gate of 0 has the effect of removing the map, one of 1 that of leaving it. The gates stand before the layer that reads
the maps, as factors of the columns of its weights, which is the same by linearity; of attention they are factors of the
queries too, so that a closed head feature has no part in the scores. The weights so made replace the network's own for
one call (`torch.func.functional_call`): gradients reach both.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from curate.units import PrunableUnit, Span

__all__ = ["Gates", "importance"]


@torch.no_grad()
def importance(parameters: Mapping[str, Tensor], unit: PrunableUnit) -> Tensor:
    """The L1 norm of what reads each map of a unit, over all that reads it: float32, as long as the unit is wide."""
    norms = []
    for span in unit.readers:
        weight = parameters[span.parameter].detach().float()
        others = [axis for axis in range(weight.ndim) if axis != span.axis]
        along = torch.linalg.vector_norm(weight, 1, others)[span.start : span.start + span.length(unit.width)]
        norms.append(along.reshape(span.outer, unit.width, span.inner).sum((0, 2)))
    return norms[0] if len(norms) == 1 else torch.stack(norms).sum(0)


class Gates:
    """The gates of a network's units."""

    def __init__(self, units: Sequence[PrunableUnit], parameters: Mapping[str, Tensor]) -> None:
        """`parameters` are the network's, by name; for their shapes and device."""
        self.units = tuple(units)
        self._places: dict[tuple[str, int], list[tuple[int, Span]]] = {}
        for number, unit in enumerate(self.units):
            for span in (*unit.readers, *unit.gates):
                self._places.setdefault((span.parameter, span.axis), []).append((number, span))
        self._lengths = {key: parameters[key[0]].shape[key[1]] for key in self._places}

    def __call__(self, parameters: Mapping[str, Tensor], gates: Sequence[Tensor]) -> dict[str, Tensor]:
        """Those of the parameters that gates change, as they then are. gates: of each unit, as long as it is wide."""
        made: dict[str, Tensor] = {}
        for (name, axis), spans in self._places.items():
            weight = made.get(name, parameters[name])
            shape = [1] * weight.ndim
            shape[axis] = self._lengths[name, axis]
            made[name] = weight * self._factors(self._lengths[name, axis], spans, gates).to(weight).reshape(shape)
        return made

    def _factors(self, length: int, spans: Sequence[tuple[int, Span]], gates: Sequence[Tensor]) -> Tensor:
        """The factor of each place along an axis; 1 where no unit lies."""
        pieces: list[Tensor] = []
        at = 0
        for number, span in sorted(spans, key=lambda one: one[1].start):
            gate = gates[number]
            if span.start > at:
                pieces.append(gate.new_ones(span.start - at))
            pieces.append(gate[None, :, None].expand(span.outer, -1, span.inner).reshape(-1))
            at = span.start + span.length(self.units[number].width)
        if at < length:
            pieces.append(gates[spans[0][0]].new_ones(length - at))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
