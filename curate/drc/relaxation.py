"""The choice of how many maps each unit keeps as a smooth function: the relaxation of DRC's search (Guo et al.).

A unit of c maps has a few candidates k_1 < k_2 < ..., and a number alpha for each. Its block should answer with the sum
over candidates of softmax(alpha) times what the block with the k_v most important maps alone answers. The layer that
reads the maps is linear, so this sum is one pass: map j counts

    gate_j = sum over v of softmax(alpha)_v * [rank(j) < k_v]

where the map whose readers' weights have the largest L1 norm has rank 0. The maps that every candidate has count 1,
those that none has 0. Norms are those of the weights as they are at each pass; no gradient goes through the order.

Attention is not linear in its queries and keys: there the relaxation is another function than the sum over candidates,
and the same once one of them has all the weight. A head's feature of gate g adds g q k to the scores and, with its
value, g v to the answer. The authors' code runs attention once for each candidate instead, and adds the answers up with
alpha itself as weights in place of its softmax.

Axes in names: U units, V candidates (of the unit that has most), W maps (of the widest unit), L an axis of a weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from curate.drc.gates import Gates, importance
from curate.units import PrunableUnit

__all__ = ["OwnWeights", "Relaxation", "candidates"]

_TENTHS = range(5, 11)  # of what is left by the ratio
_STEP = 4  # maps: what candidates are multiples of
_INITIAL = 1e-3  # standard deviation of the first alpha


def candidates(width: int, ratio: float, count: int = 1) -> list[int]:
    """How many of `width` maps a unit may keep where `ratio` of them should go: ascending, each once.

    Of c (1 - ratio) maps 50, 60, ... 100 %, each rounded down to a whole number and then to a multiple of 4, up where
    more than 2 are beyond it; at least 4. Units of fewer than 4 maps are not rounded and keep 1 at least.

    Of attention `width` is the features of a head and `count` the heads: c is all of them together, and numbers are
    rounded, in the same way, to multiples of `count` in place of 4, as heads lose the same features. (The published
    config of SwinIR-light has 36 and 48 of 60, with 6 heads: both are candidates for a ratio of 0.2.)
    """
    step = count if count > 1 else _STEP if width >= _STEP else 1
    found = set()
    for tenths in _TENTHS:
        number = int(round(width * count * (1 - ratio) * tenths / 10, 6))  # 20 * 0.7 * 0.5 is 7, not 6.999...
        beyond = number % step
        number += step - beyond if 2 * beyond > step else -beyond
        found.add(min(max(number, step), width * count) // count)
    return sorted(found)


class Relaxation:
    """Of a network's units: alpha_UV -> the weights of the network between its candidates."""

    def __init__(
        self, units: Sequence[PrunableUnit], ratio: float, parameters: Mapping[str, Tensor], *, ranked: bool = True
    ) -> None:
        """`parameters` are the network's, by name; for their shapes and device. Without `ranked` maps keep their order
        in place of that of their importance."""
        self.units = tuple(units)
        self.widths = [candidates(unit.width, ratio, unit.count) for unit in self.units]
        self.ranked = ranked
        self._gates = Gates(self.units, parameters)
        self.device = parameters[self.units[0].readers[0].parameter].device
        most, widest = max(map(len, self.widths)), max(unit.width for unit in self.units)
        kept_UV = torch.tensor([own + [0] * (most - len(own)) for own in self.widths], device=self.device)
        self._there_UV = kept_UV > 0
        self._counted_UVW = (torch.arange(widest, device=self.device) < kept_UV[..., None]).float()
        places = [number * widest + of for number, unit in enumerate(self.units) for of in range(unit.width)]
        self._places = torch.tensor(places, device=self.device)  # of each unit's maps in a UW laid out flat

    def fresh(self, seed: int) -> Tensor:
        """alpha_UV near zero, a leaf: all candidates alike. What is beyond a unit's candidates is not looked at."""
        drawn_UV = torch.randn(self._there_UV.shape, generator=torch.Generator().manual_seed(seed))
        return (_INITIAL * drawn_UV).to(self.device).requires_grad_()

    def shares(self, alpha_UV: Tensor) -> Tensor:
        """softmax over each unit's candidates; 0 beyond them."""
        return alpha_UV.masked_fill(~self._there_UV, -torch.inf).softmax(1)

    def of_units(self, values_UV: Tensor) -> dict[str, Tensor]:
        """The values of each unit's candidates, by the unit's name."""
        rows = zip(self.units, self.widths, values_UV, strict=True)
        return {unit.name: value_V[: len(own)] for unit, own, value_V in rows}

    def gates(self, parameters: Mapping[str, Tensor], alpha_UV: Tensor) -> list[Tensor]:
        """What each map of each unit counts; gradients go to alpha."""
        by_rank_UW = (self.shares(alpha_UV)[..., None] * self._counted_UVW).sum(1)
        gate_UW = by_rank_UW.gather(1, self._ranks(parameters)) if self.ranked else by_rank_UW
        gates = gate_UW.flatten().index_select(0, self._places)
        return list(gates.split_with_sizes([unit.width for unit in self.units]))

    def weights(self, parameters: Mapping[str, Tensor], alpha_UV: Tensor) -> dict[str, Tensor]:
        """Those of the network's parameters that are others in the network between the candidates."""
        return self._gates(parameters, self.gates(parameters, alpha_UV))

    def own(self) -> dict[str, nn.Parameter]:
        """Weights besides the network's that the search trains."""
        return {}

    @torch.no_grad()
    def _ranks(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The rank of each map, 0 the most important; UW, all units at once. Maps that are not there come last."""
        norms = torch.cat([importance(parameters, unit) for unit in self.units])
        norm_UW = norms.new_full((self._counted_UVW[:, 0].numel(),), -1.0).index_copy(0, self._places, norms)
        order_UW = norm_UW.reshape(len(self.units), -1).argsort(dim=1, descending=True, stable=True)
        return order_UW.argsort(dim=1)


class OwnWeights(Relaxation):
    """DARTS for numbers of maps, the baseline: each candidate has a copy of the readers' weights to itself.

    The candidate of k maps takes the first k, whatever their importance; the mixture by softmax is one weight again,
    the sum of the copies' columns, so it is one pass too. DRC's candidates share their weights, and small ones are a
    part of large ones; here each is trained for as much as it takes part. Of attention the queries are gated as in DRC.
    """

    def __init__(self, units: Sequence[PrunableUnit], ratio: float, parameters: Mapping[str, Tensor]) -> None:
        super().__init__(units, ratio, parameters, ranked=False)
        self._gates = Gates([replace(unit, readers=()) for unit in self.units], parameters)
        self._readers = [
            _Reader.of(number, unit, widths, parameters, name, axis)
            for number, (unit, widths) in enumerate(zip(self.units, self.widths, strict=True))
            for name, axis in dict.fromkeys((span.parameter, span.axis) for span in unit.readers)
        ]

    def own(self) -> dict[str, nn.Parameter]:
        return {f"{reader.number}.{reader.name}": reader.copies for reader in self._readers}

    def weights(self, parameters: Mapping[str, Tensor], alpha_UV: Tensor) -> dict[str, Tensor]:
        made = super().weights(parameters, alpha_UV)
        share_UV = self.shares(alpha_UV)
        for reader in self._readers:
            weight = made.get(reader.name, parameters[reader.name])
            made[reader.name] = reader.mixed(weight, share_UV[reader.number])
        return made


@dataclass(frozen=True)
class _Reader:
    """A weight that reads a unit's maps along one of its axes, once for each candidate."""

    number: int  # the unit's
    name: str
    copies: nn.Parameter  # candidates x the weight's shape
    read: Tensor  # the same, 1 along the axis: 1 where a candidate reads
    others: Tensor  # the weight's shape, 1 but along the axis: 1 where no map of the unit is

    @classmethod
    def of(
        cls,
        number: int,
        unit: PrunableUnit,
        widths: Sequence[int],
        parameters: Mapping[str, Tensor],
        name: str,
        axis: int,
    ) -> "_Reader":
        weight = parameters[name].detach()
        spans = [span for span in unit.readers if (span.parameter, span.axis) == (name, axis)]
        places = torch.arange(weight.shape[axis])
        rows = [
            torch.isin(places, torch.tensor([at for span in spans for at in span.places(unit.width, range(width))]))
            for width in (*widths, unit.width)
        ]
        shape = [1] * weight.ndim
        shape[axis] = len(places)
        read = torch.stack(rows[:-1]).to(weight).reshape(len(widths), *shape)
        copies = nn.Parameter(torch.stack([weight] * len(widths)))
        return cls(number, name, copies, read, (~rows[-1]).to(weight).reshape(shape))

    def mixed(self, weight: Tensor, share_V: Tensor) -> Tensor:
        """The weight with the copies' columns, by their shares, in place of its own."""
        share = share_V[: len(self.copies)].to(weight).reshape(-1, *[1] * weight.ndim)
        return weight * self.others + (self.copies * (share * self.read)).sum(0)
