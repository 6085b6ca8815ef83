"""What makes synthetic patches train as real ones do: the same gradients, the same features, the same way of a network.

    gradient_matching      DC   a network's loss has the same gradient on both (Zhao et al. 2021)
    distribution_matching  DM   a network's maps are distributed alike (Zhao and Bilen 2023; Fourier terms: IDC, 2025)
    trajectory_matching    MTT  a few steps on synthetic patches lead where epochs on real ones did (Cazenavette et al.)
    expert                      the way of a network on real patches
    symmetry                    the same turn or mirroring on both sides; no change of colour, which SR has to keep

All are functions of their arguments alone: whatever is drawn, is drawn from a seed. What is not finite stays so.

Axes in names: N patches, B maps of a batch, C channels, H height, W width; V local vectors, F frequencies; R rows, D
weights of one row.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from curate.distillation.groups import matched
from curate.distillation.nets import MatchingNet, Parameters
from curate.errors import DataError, UsageError, listed
from curate.progress import Progress, silent
from curate.tensors import to_float

__all__ = [
    "Distance",
    "Form",
    "Statistics",
    "Trajectory",
    "distribution_distance",
    "distribution_matching",
    "expert",
    "gradient_distance",
    "gradient_matching",
    "symmetry",
    "trajectory_matching",
]

Distance = Literal["cos", "mse", "both"]
Statistics = Literal["mean", "moments", "fourier", "all"]
Form = Literal["full", "constant"]

_EPSILON = 1e-6  # least length of a row, in parts of its layer's own: below it is noise
_DEAD = 1e-3  # least deviation of a map, in parts of its layer's largest: below it is noise
_FREQUENCIES = 64  # random ones
_POSITIONS = 256  # of each map, at which the local vectors are looked at
_BANDWIDTHS = (0.5, 1.0, 2.0)  # of the frequencies: coarse to fine differences of the distributions


# --- gradients --------------------------------------------------------------------------------------------------------


def gradient_matching(
    net: MatchingNet,
    parameters: Mapping[str, Tensor],
    synthetic_N3HW: Tensor,
    real_N3HW: Tensor,
    *,
    distance: Distance = "cos",
    groups: tuple[Tensor, Tensor] | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """The `gradient_distance` of the loss's gradients on both, as a scalar that is differentiable in the synthetic.

    groups: group_N of the synthetic and of the real patches; the distances of the groups are then added up.
    target: what the network should give for the synthetic patches, in place of themselves (`MatchingNet.pair`).
    Raises UsageError for a group of synthetic patches without real ones, and for patches that do not fit the network.
    """
    total = torch.zeros((), device=net.device, dtype=net.dtype)
    for mine, its in matched(groups, len(synthetic_N3HW), len(real_N3HW)):
        wanted = net.rows(net.gradient(parameters, real_N3HW.detach()[its]))
        labels = None if target is None else target[mine]
        found = net.gradient(parameters, synthetic_N3HW[mine], target=labels, create_graph=True)
        total = total + gradient_distance(wanted, net.rows(found), distance)
    return total


def gradient_distance(
    real: Mapping[str, Tensor], synthetic: Mapping[str, Tensor], distance: Distance = "cos"
) -> Tensor:
    """How far apart two gradients are, given as row_RD of each weight (`MatchingNet.rows`); 0 where they are equal.

    cos   the sum over all rows of 1 - cosine, whatever their lengths
    mse   the squared difference in parts of the real one's square, of each weight, times its rows
    both  their sum: a network near its optimum has short gradients, but each row counts about 1 in both

    Rows of the real gradient that are exactly 0 (a dead map) count nothing: no direction can be matched.
    """
    if distance not in get_args(Distance):
        raise UsageError(f"no distance of gradients '{distance}'; there are: {listed(get_args(Distance))}")
    parts = []
    for name, real_RD in real.items():
        alive_R = real_RD.detach().ne(0).any(dim=1)
        real_RD, synthetic_RD = real_RD[alive_R], synthetic[name][alive_R]
        if not len(real_RD):
            continue
        if distance != "mse":
            parts.append(_turned_away(real_RD, synthetic_RD))
        if distance != "cos":
            parts.append(len(real_RD) * (synthetic_RD - real_RD).square().sum() / real_RD.square().sum())
    if not parts:
        raise DataError("no gradient to match: the network has no weights, or real patches do not move them")
    return torch.stack(parts).sum()


def _turned_away(real_RD: Tensor, synthetic_RD: Tensor) -> Tensor:
    """The sum over rows of 1 - cosine. The epsilon is one of lengths in parts of the layer's own."""
    scale = real_RD.square().sum(dim=1).mean().sqrt()
    return (1 - F.cosine_similarity(real_RD / scale, synthetic_RD / scale, dim=1, eps=_EPSILON)).sum()


# --- distributions ----------------------------------------------------------------------------------------------------


def distribution_matching(
    net: MatchingNet,
    parameters: Mapping[str, Tensor],
    synthetic_N3HW: Tensor,
    real_N3HW: Tensor,
    *,
    seed: int,
    statistics: Statistics = "all",
    groups: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The `distribution_distance` of the network's maps, as a scalar that is differentiable in the synthetic patches.

    groups: as of `gradient_matching`, each compared with its own.
    Raises UsageError for a group of synthetic patches without real ones, patches that do not fit the network, and a
    network of one convolution, which has no maps.
    """
    pairs = matched(groups, len(synthetic_N3HW), len(real_N3HW))
    with torch.no_grad():
        real = net.features(parameters, real_N3HW)
    synthetic = net.features(parameters, synthetic_N3HW)
    distances = [
        distribution_distance([f[mine] for f in synthetic], [f[its] for f in real], seed=seed, statistics=statistics)
        for mine, its in pairs
    ]
    return torch.stack(distances).sum()


def distribution_distance(
    synthetic: Sequence[Tensor], real: Sequence[Tensor], *, seed: int, statistics: Statistics = "all"
) -> Tensor:
    """How differently two batches' maps_BCHW are distributed: the mean over layers; 0 where the batches are equal.

    mean     squared difference of each map's mean
    moments  the same, and squared difference of covariances between maps, over all places and patches
    fourier  squared difference of the characteristic functions of local vectors (the values of all maps at a place),
             at random frequencies: what means and covariances do not tell of a texture
    all      moments and fourier

    Before, each map is moved and scaled by the real one's own mean and deviation, so that maps and layers count alike,
    whatever their values. `seed` decides the frequencies, and the places where the local vectors are looked at, which
    are the same ones in maps of equal size.
    """
    if statistics not in get_args(Statistics):
        raise UsageError(f"no statistics '{statistics}'; there are: {listed(get_args(Statistics))}")
    if not real or not synthetic:
        raise UsageError("no maps to compare: the network should have two convolutions or more")
    seeds = torch.randint(2**62, (len(real),), generator=torch.Generator().manual_seed(seed)).tolist()  # of layers
    distances = []
    for synthetic_BCHW, real_BCHW, drawn in zip(synthetic, real, seeds, strict=True):
        ours_BCHW, theirs_BCHW = _standardised(synthetic_BCHW, real_BCHW)
        distances += [term(ours_BCHW, theirs_BCHW, drawn) for term in _TERMS[statistics]]
    return torch.stack(distances).sum() / len(real)


def _standardised(synthetic_BCHW: Tensor, real_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Both by the real maps' means and deviations, each map by its own; a dead map by its layer's."""
    real_BCHW = real_BCHW.detach()
    deviation_C, mean_C = torch.std_mean(real_BCHW, dim=(0, 2, 3), correction=0)
    divisor_C = deviation_C.maximum(_DEAD * deviation_C.max())
    divisor_C = torch.where(divisor_C == 0, torch.ones_like(divisor_C), divisor_C)  # all dead
    mean_C11, divisor_C11 = mean_C[:, None, None], divisor_C[:, None, None]
    return (synthetic_BCHW - mean_C11) / divisor_C11, (real_BCHW - mean_C11) / divisor_C11


def _apart_in_means(synthetic_BCHW: Tensor, real_BCHW: Tensor, seed: int) -> Tensor:
    return (synthetic_BCHW.mean(dim=(0, 2, 3)) - real_BCHW.mean(dim=(0, 2, 3))).square().mean()


def _apart_in_covariances(synthetic_BCHW: Tensor, real_BCHW: Tensor, seed: int) -> Tensor:
    """Frobenius, by the number of maps: a covariance of unrelated maps has that square."""
    difference_CC = _covariance(synthetic_BCHW) - _covariance(real_BCHW)
    return difference_CC.square().sum() / len(difference_CC)


def _covariance(maps_BCHW: Tensor) -> Tensor:
    maps_CV = maps_BCHW.transpose(0, 1).flatten(1)
    centred_CV = maps_CV - maps_CV.mean(dim=1, keepdim=True)
    return centred_CV @ centred_CV.T / maps_CV.shape[1]


def _apart_in_frequencies(synthetic_BCHW: Tensor, real_BCHW: Tensor, seed: int) -> Tensor:
    """|mean e^{iwv} of the one - that of the other|^2, the mean over frequencies w."""
    channels = real_BCHW.shape[1]
    generator = torch.Generator().manual_seed(seed)
    directions_CF = torch.randn(channels, _FREQUENCIES, generator=generator, dtype=torch.float64) / channels**0.5
    bandwidths_F = torch.tensor(_BANDWIDTHS, dtype=torch.float64).repeat(_FREQUENCIES)[:_FREQUENCIES]
    frequencies_CF = (directions_CF * bandwidths_F).to(real_BCHW)
    difference_2F = _characteristic(synthetic_BCHW, frequencies_CF, seed) - _characteristic(
        real_BCHW, frequencies_CF, seed
    )
    return difference_2F.square().sum(dim=0).mean()


def _characteristic(maps_BCHW: Tensor, frequencies_CF: Tensor, seed: int) -> Tensor:
    """Real and imaginary part, (2, F), of the local vectors' characteristic function, of all patches at some places."""
    maps_BCV = maps_BCHW.flatten(2)
    places = maps_BCV.shape[2]
    if places > _POSITIONS:
        chosen_V = torch.randperm(places, generator=torch.Generator().manual_seed(seed))[:_POSITIONS]
        maps_BCV = maps_BCV[:, :, chosen_V.to(maps_BCV.device)]
    phase_BVF = maps_BCV.transpose(1, 2) @ frequencies_CF
    return torch.stack([phase_BVF.cos().mean(dim=(0, 1)), phase_BVF.sin().mean(dim=(0, 1))])


_Term = Callable[[Tensor, Tensor, int], Tensor]
_TERMS: dict[Statistics, tuple[_Term, ...]] = {
    "mean": (_apart_in_means,),
    "moments": (_apart_in_means, _apart_in_covariances),
    "fourier": (_apart_in_frequencies,),
    "all": (_apart_in_means, _apart_in_covariances, _apart_in_frequencies),
}


# --- trajectories -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trajectory:
    """How far from its target a network arrives, and the gradients of that."""

    value: Tensor  # 1 is as far as it was at the start
    patches_N3HW: Tensor  # the gradient of every synthetic patch; 0 of those that no batch has
    rate: Tensor  # the gradient of the rate


def trajectory_matching(
    net: MatchingNet,
    start: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    synthetic_N3HW: Tensor,
    batches: Sequence[Tensor],
    rate: Tensor,
    *,
    form: Form = "constant",
    turns: Sequence[int] | None = None,
    labels: Tensor | None = None,
) -> Trajectory:
    """Steps of plain SGD from `start`, one for each batch: |arrived - target|^2 / |start - target|^2.

    batches: indices into the synthetic patches, of each step. turns: of each step, as `symmetry` takes them.
    labels: what the network should give for the synthetic patches, in place of themselves (`MatchingNet.pair`).
    rate: of the steps, a scalar. All gradients are given here; nothing has a graph afterwards.

    full      the exact gradient. Memory grows with the steps: the graph of every one is held.
    constant  the memory of one step, for twice the time of the steps (as TESLA, Cui et al. 2023). The parameters at
              which a step's gradient g_i is taken count as constants: what earlier patches and the rate change in
              later g_i, through the parameters, is left out. Of one step it is exact.

    Raises UsageError for no steps, or a start that is the target.
    """
    if form not in get_args(Form):
        raise UsageError(f"no form '{form}' of trajectories; there are: {listed(get_args(Form))}")
    if not batches:
        raise UsageError("matching a trajectory takes one step or more, found no batches")
    if turns is not None and len(turns) != len(batches):
        raise UsageError(f"{len(batches)} steps take as many turns, found {len(turns)}")
    start = {name: tensor.detach() for name, tensor in start.items()}
    target = {name: tensor.detach() for name, tensor in target.items()}
    if not (whole := _squared_distance(start, target)):
        raise UsageError("a trajectory's start should differ from its target, found them equal")
    patches_N3HW = synthetic_N3HW.detach()
    rows = [batch.to(patches_N3HW.device) for batch in batches]
    way = _Way(net, patches_N3HW, rows, list(turns or [0] * len(rows)), labels)
    return (_full if form == "full" else _constant)(way, start, target, whole, rate.detach())


@dataclass(frozen=True, slots=True)
class _Way:
    """The steps to take."""

    net: MatchingNet
    patches_N3HW: Tensor
    batches: list[Tensor]
    turns: list[int]
    labels: Tensor | None

    def gradient(
        self, step: int, parameters: Mapping[str, Tensor], patches_B3HW: Tensor, create_graph: bool
    ) -> Parameters:
        """Of the loss of a step's patches."""
        turn, labels = self.turns[step], None
        if self.labels is not None:
            labels = symmetry(self.labels[self.batches[step]], turn)
        return self.net.gradient(parameters, symmetry(patches_B3HW, turn), target=labels, create_graph=create_graph)


def _full(way: _Way, start: Parameters, target: Parameters, whole: Tensor, rate: Tensor) -> Trajectory:
    patches_N3HW, rate = way.patches_N3HW.clone().requires_grad_(), rate.clone().requires_grad_()
    parameters = start
    for step, batch in enumerate(way.batches):
        gradient = way.gradient(step, parameters, patches_N3HW[batch], create_graph=True)
        parameters = {name: parameters[name] - rate * gradient[name] for name in parameters}
    value = _squared_distance(parameters, target) / whole
    by_patch, by_rate = torch.autograd.grad(value, [patches_N3HW, rate])
    return Trajectory(value.detach(), by_patch, by_rate)


def _constant(way: _Way, start: Parameters, target: Parameters, whole: Tensor, rate: Tensor) -> Trajectory:
    parameters, total = start, {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    for step, batch in enumerate(way.batches):
        gradient = way.gradient(step, parameters, way.patches_N3HW[batch], create_graph=False)
        parameters = _stepped(parameters, gradient, rate)
        total = {name: total[name] + gradient[name] for name in total}
    value = _squared_distance(parameters, target) / whole
    # The value's gradient in the end's parameters; each step's gradient moves these by -rate.
    slope = {name: 2 * (parameters[name] - target[name]) / whole for name in target}
    by_rate = -_product(slope, total)
    by_patch = torch.zeros_like(way.patches_N3HW)
    parameters = start
    for step, batch in enumerate(way.batches):
        patches_B3HW = way.patches_N3HW[batch].requires_grad_()
        gradient = way.gradient(step, parameters, patches_B3HW, create_graph=True)
        (found_B3HW,) = torch.autograd.grad(-rate * _product(slope, gradient), [patches_B3HW])
        by_patch.index_add_(0, batch, found_B3HW)
        parameters = _stepped(parameters, {name: tensor.detach() for name, tensor in gradient.items()}, rate)
    return Trajectory(value, by_patch, by_rate)


def _stepped(parameters: Parameters, gradient: Parameters, rate: Tensor | float) -> Parameters:
    return {name: tensor - rate * gradient[name] for name, tensor in parameters.items()}


def _product(a: Parameters, b: Parameters) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def _squared_distance(a: Parameters, b: Parameters) -> Tensor:
    return torch.stack([(a[name] - b[name]).square().sum() for name in a]).sum()


def expert(
    net: MatchingNet,
    pool_N3HW: Tensor,
    *,
    epochs: int,
    batch: int,
    rate: float,
    seed: int,
    augment: bool = True,
    progress: Progress = silent,
) -> list[Parameters]:
    """The way of a network of fresh weights on real patches: its parameters at the start and after every epoch.

    pool_N3HW: uint8, or floating in [0, 1]. Plain SGD, as `trajectory_matching` takes its steps; the seed decides the
    weights, the order of the patches and, with `augment`, each batch's symmetry. An epoch's last batch may be smaller.
    Raises UsageError for an empty pool, no epochs or an empty batch, DataError if the weights are not finite any more.
    """
    if epochs < 1 or batch < 1 or not len(pool_N3HW):
        found = f"found epochs={epochs}, batch={batch}, {len(pool_N3HW)} patches"
        raise UsageError(f"an expert takes 1 epoch or more of batches of 1 or more, and patches, {found}")
    generator = torch.Generator().manual_seed(seed)
    parameters = net.fresh(seed)
    way = [parameters]
    for epoch in range(epochs):
        order_N = torch.randperm(len(pool_N3HW), generator=generator)
        for rows in torch.split(order_N, batch):
            turn = int(torch.randint(8, (), generator=generator)) if augment else 0
            hr_B3HW = _floating(pool_N3HW[rows.to(pool_N3HW.device)], net)
            parameters = _stepped(parameters, net.gradient(parameters, symmetry(hr_B3HW, turn)), rate)
        if not all(tensor.isfinite().all() for tensor in parameters.values()):
            raise DataError(
                f"an expert's weights are not finite after epoch {epoch + 1}; its rate {rate:g} is too high"
            )
        way.append(parameters)
        progress(epoch + 1, epochs)
    return way


def _floating(hr_N3HW: Tensor, net: MatchingNet) -> Tensor:
    hr_N3HW = hr_N3HW.to(net.device)
    return (to_float(hr_N3HW) if hr_N3HW.dtype == torch.uint8 else hr_N3HW).to(net.dtype)


# --- augmentation -----------------------------------------------------------------------------------------------------


def symmetry(patches_NCHW: Tensor, turns: int | Iterable[int]) -> Tensor:
    """Each patch turned by a quarter 0 to 3 times, and mirrored from 4 on; differentiable.

    turns: 0 to 7, one for all patches, as when real and synthetic ones get the same, or one for each.
    Raises UsageError for other turns, another number of them, or patches that are not square.
    """
    height, width = patches_NCHW.shape[2:]
    each = [turns] * len(patches_NCHW) if isinstance(turns, int) else [int(turn) for turn in turns]
    if len(each) != len(patches_NCHW) or not set(each) <= set(range(8)):
        raise UsageError(f"{len(patches_NCHW)} patches take as many turns from 0 to 7, found {listed(each)}")
    if height != width:
        raise UsageError(f"patches should be square to be turned, found {height}x{width} px")
    if len(set(each)) == 1:
        return _turned(patches_NCHW, each[0])
    return torch.stack([_turned(patch_CHW, turn) for patch_CHW, turn in zip(patches_NCHW, each, strict=True)])


def _turned(patches: Tensor, turn: int) -> Tensor:
    turned = patches.rot90(turn % 4, (-2, -1))
    return turned.flip(-1) if turn >= 4 else turned
