"""What DRC's selection is compared with: other ways to say which maps of a unit stay. No weight is trained.

    l1      those whose readers have the largest weights, added up without their signs: what a search ranks maps by, and
            what `curate drc slim` keeps
    thinet  those that rebuild what the readers make, as ThiNet does (Luo et al. 2017)
    random  any, drawn by the seed

ThiNet's, as it is here. Units go in order, in the network as pruned so far. What a reader makes is a sum over the maps;
values of it are drawn at random from all crops of the selection set, all places and outputs alike, and of each the
maps' shares are computed. Maps are kept one by one: each time the one with which the kept ones, each times a factor of
its own, come closest to the values, in least squares. The factors are then multiplied into the weights that read the
maps, as in the paper. (The paper takes maps away one by one instead and fits factors once, in the end: of two equal
maps it keeps both.) A map without a share, or one that others make up for, goes first. In attention the shares are
those of the values' features, under the scores that all features make.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from curate.drc import readers
from curate.drc.chosen import Chosen, close
from curate.drc.crops import selection_set
from curate.drc.gates import importance
from curate.drc.readers import Call
from curate.drc.work import Work
from curate.progress import Progress, silent
from curate.units import PrunableUnit

__all__ = ["by_criterion", "largest", "rebuilding"]

_VALUES = 64  # drawn of what a reader makes of a crop
_RIDGE = 1e-6  # of the mean power of the kept maps: factors stay near 1 where the values do not tell
_NOTHING = 1e-9  # of a map's power: what is left of it is rounding


def by_criterion(work: Work, widths: Sequence[int], progress: Progress = silent) -> Chosen:
    """Choose `widths` maps of each unit by the config's criterion, which is not greedy: `curate.drc.greedy`.

    The same inputs and seed give the same maps. Progress counts maps, of thinet, which also wants patches: UsageError
    for a manifest of too few.
    """
    state = {name: tensor.clone() for name, tensor in work.checkpoint.state.items()}
    criterion = work.config.criterion
    if criterion == "thinet":
        return _thinet(work, widths, progress)
    kept = []
    for number, (unit, width) in enumerate(zip(work.units, widths, strict=True)):
        if criterion == "l1":
            best = largest(state, unit, width)
        else:
            assert criterion == "random", criterion
            best = np.random.default_rng([work.config.seed, number]).permutation(unit.width)[:width].tolist()
        kept.append(sorted(best))
    for unit, maps in zip(work.units, kept, strict=True):
        close(state, unit, _others(unit, maps))
    return Chosen(kept, state)


def largest(parameters: Mapping[str, Tensor], unit: PrunableUnit, width: int) -> list[int]:
    """The maps of a unit whose readers have the largest weights (L1), ascending; of equal ones the first."""
    return sorted(importance(parameters, unit).argsort(descending=True, stable=True)[:width].tolist())


def rebuilding(gram_WW: Tensor, width: int) -> tuple[list[int], Tensor]:
    """Which `width` maps rebuild a sum over all of them best, ascending, and the factor of each.

    gram_WW: float64, the products of the maps' shares, added up over values. Equal maps: the first one.
    """
    left_WW, toward_W = gram_WW.clone(), gram_WW.sum(1)
    least_W = _NOTHING * gram_WW.diagonal()
    kept: list[int] = []
    for _ in range(width):
        power_W = left_WW.diagonal()
        gain_W = torch.where(power_W > least_W, toward_W.square() / power_W, 0.0)
        gain_W[kept] = -1
        best = int(gain_W.argmax())
        kept.append(best)
        if power_W[best] > least_W[best]:
            column_W, power, toward = left_WW[:, best].clone(), power_W[best].clone(), toward_W[best].clone()
            toward_W -= column_W * toward / power
            left_WW -= column_W.outer(column_W) / power
    kept.sort()
    own_KK = gram_WW[kept][:, kept]
    missing_K = gram_WW[kept].sum(1) - own_KK.sum(1)
    ridge = max(_RIDGE * float(own_KK.diagonal().mean()), torch.finfo(torch.float64).tiny)
    return kept, 1 + torch.linalg.solve(own_KK + ridge * torch.eye(width, dtype=torch.float64), missing_K)


@torch.no_grad()
def _thinet(work: Work, widths: Sequence[int], progress: Progress) -> Chosen:
    batches, whole = selection_set(work), work.regression()
    weights = dict(whole.net.named_parameters())
    of = [readers.layers(whole.net, unit.readers) for unit in work.units]
    calls = readers.calls(whole, batches[0].lr_BCHW, of)
    kept: list[list[int]] = []
    for number, (unit, width) in enumerate(zip(work.units, widths, strict=True)):
        progress(sum(map(len, kept)), sum(widths), unit.name)
        if width == unit.width:
            kept.append(list(range(width)))
            continue
        draws = torch.Generator().manual_seed(work.config.seed)
        gram_WW = torch.zeros(unit.width, unit.width, dtype=torch.float64)
        for images in batches:
            for call in readers.ran(whole, images.lr_BCHW, of[number], calls[number]):
                share_WN = _shares(whole.net, unit, call, _VALUES * len(images.weight_B), draws)
                gram_WW += share_WN @ share_WN.T
        best, factor_K = rebuilding(gram_WW, width)
        _scale(weights, unit, best, factor_K)
        close(weights, unit, _others(unit, best))
        kept.append(best)
    return Chosen(kept, {name: tensor.cpu().contiguous() for name, tensor in whole.net.state_dict().items()})


def _shares(net: nn.Module, unit: PrunableUnit, call: Call, number: int, draws: torch.Generator) -> Tensor:
    """What each map contributes to so many values of what a reader made, drawn at random: float64 WN, on the CPU."""
    drawn_N = torch.randint(call.made.numel(), (number,), generator=draws).to(call.made.device)
    spans = [span for span in unit.readers if readers.layers(net, [span])[0] is call.layer]
    bias = getattr(call.layer, "bias", None)
    constant = {} if bias is None else {"bias": torch.zeros_like(bias)}
    shares = []
    for one in range(unit.width):
        alone = dict(constant)
        for span in spans:
            name = span.parameter.rpartition(".")[2]
            weight = getattr(call.layer, name)
            places = torch.tensor(span.places(unit.width, [one]), device=weight.device)
            columns = alone.setdefault(name, torch.zeros_like(weight))
            columns.index_copy_(span.axis, places, weight.index_select(span.axis, places))
        made = functional_call(call.layer, alone, call.given)
        shares.append(made.reshape(-1)[drawn_N])
    return torch.stack(shares).double().cpu()  # at once: a device is waited for once, not for each map


def _scale(weights: Mapping[str, Tensor], unit: PrunableUnit, maps: Sequence[int], factor_K: Tensor) -> None:
    """Multiply the factor of each map into the weights that read it."""
    for span in unit.readers:
        weight = weights[span.parameter]
        places = torch.tensor(span.places(unit.width, maps), device=weight.device)
        shape = [1] * weight.ndim
        shape[span.axis] = len(places)
        factor = factor_K.repeat_interleave(span.inner).repeat(span.outer).to(weight).reshape(shape)
        weight.index_copy_(span.axis, places, weight.index_select(span.axis, places) * factor)


def _others(unit: PrunableUnit, maps: Sequence[int]) -> list[int]:
    return sorted(set(range(unit.width)) - set(maps))
