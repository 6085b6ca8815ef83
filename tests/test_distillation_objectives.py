"""Objectives against finite differences, definitions written down as loops, and what has to leave them alone."""

import math
import weakref
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from test_distillation_nets import Toy, patches
from torch import Tensor

from curate import loader, plugins
from curate.archs.fsrcnn import Fsrcnn
from curate.archs.srcnn import Srcnn
from curate.distillation import objectives
from curate.distillation.nets import MatchingNet, Parameters
from curate.distillation.objectives import (
    Distance,
    Form,
    Statistics,
    distribution_distance,
    distribution_matching,
    expert,
    gradient_distance,
    gradient_matching,
    symmetry,
    trajectory_matching,
)
from curate.errors import CurateError, DataError, UsageError

NETS = [Toy(), Srcnn(kernel="9-1-5")]
SMALL = {
    "dlsr": "features=8",
    "drn": "features=4,blocks=1",
    "drrn": "units=2,features=8",
    "edsr": "features=8,blocks=1",
    "idn": "features=12,d=4,blocks=1",
    "imdn": "features=16,modules=1",
    "rcan": "features=16,groups=1,blocks=1",
    "rdn": "features=8,blocks=1,layers=2",
    "swinir": "embed=12,groups=1,blocks=2",
    "unet": "features=8,levels=1",
}


@pytest.fixture(params=NETS, ids=["toy", "srcnn"])
def net(request: pytest.FixtureRequest) -> MatchingNet:
    return MatchingNet(request.param, dtype=torch.float64)


def doubles(number: int = 2, side: int = 8, seed: int = 0) -> Tensor:
    return patches(number, side, seed, torch.float64)


def rough(net: MatchingNet, seed: int = 0) -> Parameters:
    """Weights of which none is near 0, for slopes that are not."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
        for name, tensor in net.fresh(seed).items()
    }


def assert_slope(value: Callable[[Tensor], Tensor], at: Tensor, gradient: Tensor, step: float = 1e-5) -> None:
    """The gradient is that of central differences along three random directions."""
    assert gradient.shape == at.shape and gradient.dtype == at.dtype
    for seed in range(3):
        direction = torch.randn(at.shape, generator=torch.Generator().manual_seed(seed), dtype=at.dtype)
        expected = (value(at + step * direction) - value(at - step * direction)).item() / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-4)
    assert gradient.flatten(1).abs().sum(dim=1).gt(0).all() if gradient.ndim else gradient.ne(0)


def gradient_of(value: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    leaf = at.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(value(leaf), [leaf])
    return found


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["cos", "mse", "both"])
def test_gradient_matching_has_the_slope_of_finite_differences(net: MatchingNet, distance: Distance) -> None:
    parameters, real, synthetic = rough(net), doubles(3, seed=1), doubles(2)

    def value(hr: Tensor) -> Tensor:
        return gradient_matching(net, parameters, hr, real, distance=distance)

    assert value(synthetic) > 0.01
    assert_slope(value, synthetic, gradient_of(value, synthetic))


def test_gradient_matching_by_group_is_the_sum_of_groups(net: MatchingNet) -> None:
    parameters, real, synthetic = rough(net), doubles(5, seed=1), doubles(3)
    mine, its = torch.tensor([2, 0, 2]), torch.tensor([0, 1, 2, 2, 0])
    whole = gradient_matching(net, parameters, synthetic, real, groups=(mine, its))
    parts = [gradient_matching(net, parameters, synthetic[mine == g], real[its == g]) for g in (0, 2)]
    torch.testing.assert_close(whole, sum(parts))


@pytest.mark.parametrize("distance", ["cos", "mse", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_patches_have_equal_gradients(distance: Distance, dtype: torch.dtype) -> None:
    net, hr = MatchingNet(Srcnn(), dtype=dtype), patches(3, dtype=dtype)
    parameters = net.fresh(0)

    def value(given: Tensor) -> Tensor:
        return gradient_matching(net, parameters, given, hr, distance=distance)

    away = patches(3, seed=9, dtype=dtype)
    assert value(hr).dtype == dtype
    assert abs(value(hr).item()) < 1e-6 * value(away).item()
    assert gradient_of(value, hr).norm() < 1e-2 * gradient_of(value, away).norm()


def test_gradient_distance_is_one_minus_cosine_of_every_row() -> None:
    real, synthetic = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = 0.0
    for a, b in zip(real.tolist(), synthetic.tolist(), strict=True):
        product, lengths = sum(x * y for x, y in zip(a, b, strict=True)), math.hypot(*a) * math.hypot(*b)
        expected += 1 - product / lengths
    assert gradient_distance({"w": real}, {"w": synthetic}).item() == pytest.approx(expected, rel=1e-9)
    relative = 5 * ((real - synthetic).square().sum() / real.square().sum()).item()
    assert gradient_distance({"w": real}, {"w": synthetic}, "mse").item() == pytest.approx(relative, rel=1e-9)
    both = gradient_distance({"w": real}, {"w": synthetic}, "both").item()
    assert both == pytest.approx(expected + relative, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e6])
def test_cosines_do_not_see_lengths_nor_any_distance_the_scale_of_both(scale: float) -> None:
    """Late networks have gradients of 1e-9: an epsilon in their unit would drown them."""
    generator = torch.Generator().manual_seed(0)
    real, synthetic = torch.randn(2, 5, 7, generator=generator)
    rows = torch.rand(5, 1, generator=generator) + 0.5
    plain = gradient_distance({"w": real}, {"w": synthetic})
    torch.testing.assert_close(gradient_distance({"w": real * rows}, {"w": synthetic * rows.flip(0)}), plain)
    for distance in ("cos", "mse", "both"):
        expected = gradient_distance({"w": real}, {"w": synthetic}, distance)
        found = gradient_distance({"w": scale * real}, {"w": scale * synthetic}, distance)
        torch.testing.assert_close(found, expected)


def test_dead_rows_count_nothing_and_hide_nothing() -> None:
    real, synthetic = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    dead = real.clone()
    dead[2] = 0
    synthetic.requires_grad_()
    value = gradient_distance({"w": dead}, {"w": synthetic}, "both")
    alive = [0, 1, 3, 4]
    torch.testing.assert_close(value, gradient_distance({"w": real[alive]}, {"w": synthetic[alive]}, "both"))
    # Synthetic rows of 0, where the real ones are not: as far as an unrelated one, and a slope that is finite.
    nothing = torch.zeros_like(real, requires_grad=True)
    away = gradient_distance({"w": real}, {"w": nothing})
    assert away.item() == pytest.approx(5)
    assert torch.autograd.grad(away, [nothing])[0].isfinite().all()
    real[1, 1] = torch.nan
    assert gradient_distance({"w": real}, {"w": synthetic}).isnan()
    with pytest.raises(DataError, match="no gradient to match"):
        gradient_distance({"w": torch.zeros(5, 7)}, {"w": synthetic})


def test_patches_that_are_learned_by_gradients_come_closer() -> None:
    net = MatchingNet(Fsrcnn(d=8, s=4, m=1))
    assert descended(lambda hr: gradient_matching(net, net.fresh(0), hr, patches(8, seed=1)), 1.0) < 0.7


def descended(value: Callable[[Tensor], Tensor], rate: float, steps: int = 15) -> float:
    """The value after some steps on the patches, in parts of that before."""
    hr = patches(2)
    first = value(hr).item()
    for _ in range(steps):
        gradient = gradient_of(value, hr)
        hr = (hr - rate * gradient / gradient.abs().max() / steps).clamp(0, 1)
    return value(hr).item() / first


# --- distributions ----------------------------------------------------------------------------------------------------

STATISTICS: list[Statistics] = ["mean", "moments", "fourier", "all"]


@pytest.mark.parametrize("statistics", STATISTICS)
def test_distribution_matching_has_the_slope_of_finite_differences(net: MatchingNet, statistics: Statistics) -> None:
    parameters, real, synthetic = rough(net), doubles(3, seed=1), doubles(2)

    def value(hr: Tensor) -> Tensor:
        return distribution_matching(net, parameters, hr, real, seed=5, statistics=statistics)

    assert_slope(value, synthetic, gradient_of(value, synthetic))


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_patches_are_distributed_alike(statistics: Statistics, dtype: torch.dtype) -> None:
    net, hr = MatchingNet(Srcnn(), dtype=dtype), patches(3, 24, dtype=dtype)
    parameters = net.fresh(0)

    def value(given: Tensor) -> Tensor:
        return distribution_matching(net, parameters, given, hr, seed=1, statistics=statistics)

    away = patches(3, 24, seed=9, dtype=dtype).square()
    assert value(hr).dtype == dtype
    assert value(hr) < 1e-7 * value(away)
    assert gradient_of(value, hr).norm() < 1e-2 * gradient_of(value, away).norm()


@pytest.mark.parametrize("statistics", STATISTICS)
def test_distributions_know_no_order_and_no_scale(statistics: Statistics) -> None:
    generator = torch.Generator().manual_seed(0)
    real = [torch.randn(4, 5, 20, 20, generator=generator, dtype=torch.float64) for _ in range(2)]
    synthetic = [torch.randn(3, 5, 20, 20, generator=generator, dtype=torch.float64) + 0.3 for _ in range(2)]

    def value(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        return distribution_distance(ours, theirs, seed=2, statistics=statistics)

    plain = value(synthetic, real)
    assert plain > 0
    torch.testing.assert_close(value([maps[[2, 0, 1]] for maps in synthetic], [maps.flip(0) for maps in real]), plain)
    moved = [[scale * maps + 7 for scale, maps in zip((1e-6, 300), side, strict=True)] for side in (synthetic, real)]
    torch.testing.assert_close(value(*moved), plain, rtol=1e-6, atol=1e-9)
    tints = torch.linspace(0.1, 10, 5, dtype=torch.float64)[:, None, None]  # each map of its own scale
    torch.testing.assert_close(value([tints * maps for maps in synthetic], [tints * maps for maps in real]), plain)


def test_moments_are_those_of_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    synthetic = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64) * 2 + 0.5
    columns = [np.stack([maps[:, c].flatten().numpy() for c in range(3)]) for maps in (synthetic, real)]
    mean, deviation = columns[1].mean(axis=1, keepdims=True), columns[1].std(axis=1, keepdims=True)
    ours, theirs = ((column - mean) / deviation for column in columns)
    means = np.square(ours.mean(axis=1) - theirs.mean(axis=1)).mean()
    covariances = np.square(np.cov(ours, bias=True) - np.cov(theirs, bias=True)).sum() / 3

    def value(statistics: Statistics) -> float:
        return distribution_distance([synthetic], [real], seed=0, statistics=statistics).item()

    assert value("mean") == pytest.approx(means)
    assert value("moments") == pytest.approx(means + covariances)
    assert value("all") == pytest.approx(value("moments") + value("fourier"))


def test_only_fourier_tells_textures_of_equal_moments() -> None:
    """Two values against a normal distribution, of one mean and deviation."""
    real = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    real = (real - real.mean()) / real.std(correction=0)
    synthetic = real.sign()
    synthetic = (synthetic - synthetic.mean()) / synthetic.std(correction=0)
    assert distribution_distance([synthetic], [real], seed=0, statistics="moments") < 1e-20
    found = distribution_distance([synthetic], [real], seed=0, statistics="fourier").item()
    chance = distribution_distance([real[:32]], [real[32:]], seed=0, statistics="fourier").item()
    assert found > 20 * chance


def test_the_seed_decides_what_is_drawn() -> None:
    net, real, synthetic = MatchingNet(Srcnn()), patches(4, 36, seed=1), patches(2, 36)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    values = [distribution_matching(net, net.fresh(0), synthetic, real, seed=seed).item() for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    assert values[0] == values[1] != values[2]
    assert values[0] == pytest.approx(values[2], rel=0.5)


def test_distributions_by_group_are_the_sum_of_groups() -> None:
    net, real, synthetic = MatchingNet(Srcnn()), patches(5, seed=1), patches(3)
    parameters = net.fresh(0)
    mine, its = torch.tensor([2, 0, 2]), torch.tensor([0, 1, 2, 2, 0])
    whole = distribution_matching(net, parameters, synthetic, real, seed=1, groups=(mine, its))
    parts = [distribution_matching(net, parameters, synthetic[mine == g], real[its == g], seed=1) for g in (0, 2)]
    torch.testing.assert_close(whole, sum(parts))


def test_dead_maps_hide_nothing() -> None:
    real, synthetic = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    real[:, 1] = 0.25
    assert distribution_distance([synthetic], [real], seed=0).isfinite()
    assert distribution_distance([real], [real], seed=0) == 0
    assert distribution_distance([synthetic], [torch.zeros_like(real)], seed=0) > 0
    # What a map that is all but dead has is noise of the arithmetic: it must not outweigh the others by its scale.
    noise, faint = real.clone(), synthetic.clone()
    noise[:, 1] += 1e-7 * synthetic[:, 0]
    faint[:, 1] = 0.25 + 1e-5 * synthetic[:, 1]
    found, without = (
        distribution_distance([ours], [theirs], seed=0, statistics="moments")
        for ours, theirs in ((faint, noise), (faint[:, ::2], noise[:, ::2]))
    )
    assert found < without
    synthetic[0, 0, 0, 0] = torch.nan
    assert distribution_distance([synthetic], [real], seed=0).isnan()
    assert distribution_distance([real], [synthetic], seed=0).isnan()


def test_patches_that_are_learned_by_distributions_come_closer() -> None:
    net = MatchingNet(Srcnn(kernel="9-1-5"))
    real = patches(8, seed=1).square()
    assert descended(lambda hr: distribution_matching(net, net.fresh(0), hr, real, seed=1), 1.0) < 0.5


# --- trajectories -----------------------------------------------------------------------------------------------------

BATCHES = [torch.tensor([0, 1]), torch.tensor([2, 0]), torch.tensor([1, 1])]  # patch 3 is in none
RATE = torch.tensor(0.3, dtype=torch.float64)


def apart(a: Parameters, b: Parameters) -> Tensor:
    return torch.stack([(a[name] - b[name]).square().sum() for name in a]).sum()


def arrived(
    net: MatchingNet, start: Parameters, target: Parameters, hr: Tensor, batches: list[Tensor], rate: Tensor
) -> Tensor:
    """How far from the target, in parts of the start's distance, written down plainly."""
    parameters = start
    for batch in batches:
        gradient = net.gradient(parameters, hr[batch])
        parameters = {name: tensor - rate * gradient[name] for name, tensor in parameters.items()}
    return apart(parameters, target) / apart(start, target)


@pytest.mark.parametrize("form", ["full", "constant"])
def test_one_step_has_the_slopes_of_finite_differences(net: MatchingNet, form: Form) -> None:
    start, target, hr = rough(net), rough(net, 1), doubles()
    batch = [torch.tensor([0, 1])]
    found = trajectory_matching(net, start, target, hr, batch, RATE, form=form)
    assert found.value.item() == pytest.approx(arrived(net, start, target, hr, batch, RATE).item(), rel=1e-12)
    assert_slope(lambda given: arrived(net, start, target, given, batch, RATE), hr, found.patches_N3HW)
    assert_slope(lambda rate: arrived(net, start, target, hr, batch, rate), RATE, found.rate)


def test_one_step_is_the_same_in_both_forms(net: MatchingNet) -> None:
    start, target, hr = rough(net), rough(net, 1), doubles(3)
    full, constant = (
        trajectory_matching(net, start, target, hr, [torch.tensor([0, 2])], RATE, form=form)
        for form in ("full", "constant")
    )
    assert torch.equal(full.value, constant.value)
    torch.testing.assert_close(full.patches_N3HW, constant.patches_N3HW, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(full.rate, constant.rate, rtol=1e-10, atol=1e-14)
    assert not full.patches_N3HW[1].any() and not constant.patches_N3HW[1].any()


def test_several_steps_have_the_slopes_of_finite_differences_in_full(net: MatchingNet) -> None:
    start, target, hr = rough(net), rough(net, 1), doubles(3)
    found = trajectory_matching(net, start, target, hr, BATCHES, RATE, form="full")
    assert_slope(lambda given: arrived(net, start, target, given, BATCHES, RATE), hr, found.patches_N3HW)
    assert_slope(lambda rate: arrived(net, start, target, hr, BATCHES, rate), RATE, found.rate)


def test_several_steps_in_constant_memory_take_the_parameters_on_the_way_as_constants(net: MatchingNet) -> None:
    """The gradient of the value as a function of the steps' gradients alone, by autograd."""
    start, target, hr = rough(net), rough(net, 1), doubles(4)
    way = [start]
    for batch in BATCHES:
        gradient = net.gradient(way[-1], hr[batch])
        way.append({name: tensor - RATE * gradient[name] for name, tensor in way[-1].items()})

    def value(given: Tensor, rate: Tensor) -> Tensor:
        end = start
        for at, batch in zip(way, BATCHES, strict=False):
            gradient = net.gradient(at, given[batch], create_graph=True)
            end = {name: tensor - rate * gradient[name] for name, tensor in end.items()}
        return apart(end, target) / apart(start, target)

    leaf, rate = hr.clone().requires_grad_(), RATE.clone().requires_grad_()
    by_patch, by_rate = torch.autograd.grad(value(leaf, rate), [leaf, rate])
    found = trajectory_matching(net, start, target, hr, BATCHES, RATE, form="constant")
    assert found.value.item() == pytest.approx(value(hr, RATE).item(), rel=1e-12)
    torch.testing.assert_close(found.patches_N3HW, by_patch, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(found.rate, by_rate, rtol=1e-9, atol=1e-13)
    assert not found.patches_N3HW[3].any()
    full = trajectory_matching(net, start, target, hr, BATCHES, RATE, form="full")
    assert torch.equal(full.value, found.value)
    assert not torch.allclose(full.patches_N3HW, found.patches_N3HW, rtol=1e-3)  # what it leaves out is there
    # and is of the order of the rate
    full, constant = (
        trajectory_matching(net, start, target, hr, BATCHES, RATE / 100, form=form).patches_N3HW
        for form in ("full", "constant")
    )
    assert torch.cosine_similarity(full.flatten(), constant.flatten(), dim=0) > 0.999


def test_memory_is_that_of_one_step_in_constant_and_grows_in_full() -> None:
    net = MatchingNet(Srcnn(kernel="9-1-5"))
    start, target, hr = net.fresh(0), net.fresh(1), patches()

    def held(form: Form, steps: int) -> int:
        """Bytes of the largest graph at a time."""
        now, most = 0, 0

        def keep(tensor: Tensor) -> "Kept":
            nonlocal now, most
            now += tensor.nbytes
            most = max(most, now)
            kept = Kept(tensor)
            weakref.finalize(kept, release, tensor.nbytes)
            return kept

        def release(size: int) -> None:
            nonlocal now
            now -= size

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
            trajectory_matching(net, start, target, hr, [torch.tensor([0, 1])] * steps, torch.tensor(0.1), form=form)
        return most

    assert held("constant", 6) == held("constant", 2)
    assert held("full", 6) > 2.5 * held("full", 2)
    assert held("full", 2) > held("constant", 2)


class Kept:
    """A tensor of a graph, as an object that can be watched."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("form", ["full", "constant"])
def test_an_experts_own_way_is_matched_by_its_own_batches(form: Form) -> None:
    """Plain SGD is what both do: the expert's patches in its order, at its rate, arrive where it did."""
    net, pool = MatchingNet(Srcnn(kernel="9-1-5"), dtype=torch.float64), doubles(6, 12)
    way = expert(net, pool, epochs=2, batch=2, rate=0.1, seed=3)
    generator = torch.Generator().manual_seed(3)
    batches: list[Tensor] = []
    turns: list[int] = []
    for _ in range(2):
        for rows in torch.split(torch.randperm(6, generator=generator), 2):
            batches.append(rows)
            turns.append(int(torch.randint(8, (), generator=generator)))
    rate = torch.tensor(0.1, dtype=torch.float64)
    found = trajectory_matching(net, way[0], way[2], pool, batches, rate, form=form, turns=turns)
    assert found.value < 1e-20
    assert found.patches_N3HW.norm() < 1e-8 and abs(found.rate) < 1e-8
    away = trajectory_matching(net, way[0], way[2], pool, batches, 2 * rate, form=form, turns=turns)
    assert away.value == pytest.approx(1, rel=0.5)
    half = trajectory_matching(net, way[0], way[1], pool, batches[:3], rate, form=form, turns=turns[:3])
    assert half.value < 1e-20
    luma = trajectory_matching(net, way[0], way[2], pool, batches, rate, form=form, turns=turns, labels=pool)
    assert luma.value < 1e-20
    other = trajectory_matching(net, way[0], way[2], pool, batches, rate, form=form, turns=turns, labels=pool.flip(0))
    assert other.value > 0.01


def test_patches_and_rate_that_are_learned_by_trajectories_come_closer() -> None:
    net = MatchingNet(Fsrcnn(d=8, s=4, m=1))
    way = expert(net, patches(8, seed=1), epochs=2, batch=2, rate=0.05, seed=0, augment=False)
    hr, rate, batches = patches(2), torch.tensor(0.05), [torch.tensor([0, 1])] * 4
    values = []
    for _ in range(12):
        found = trajectory_matching(net, way[0], way[-1], hr, batches, rate)
        values.append(found.value.item())
        hr = (hr - 0.1 * found.patches_N3HW / found.patches_N3HW.abs().max()).clamp(0, 1)
        rate = rate - 1e-3 * found.rate / found.rate.abs()
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["full", "constant"])
def test_trajectories_keep_the_dtype_and_leave_what_they_were_given(form: Form, dtype: torch.dtype) -> None:
    net, hr = MatchingNet(Toy(), dtype=dtype), patches(dtype=dtype).requires_grad_()
    start, target = net.fresh(0), net.fresh(1)
    copy, rate = {name: tensor.clone() for name, tensor in start.items()}, torch.tensor(0.1, dtype=dtype)
    found = trajectory_matching(net, start, target, hr, [torch.tensor([0, 1])] * 2, rate, form=form)
    for tensor in (found.value, found.patches_N3HW, found.rate):
        assert tensor.dtype == dtype and not tensor.requires_grad
    assert all(torch.equal(start[name], copy[name]) for name in copy) and hr.grad is None


# --- experts ----------------------------------------------------------------------------------------------------------


def test_an_expert_is_plain_sgd() -> None:
    net, pool = MatchingNet(Srcnn(kernel="9-1-5")), patches(5)
    way = expert(net, pool, epochs=2, batch=2, rate=0.1, seed=7, augment=False)
    network = net.arch.build()
    network.load_state_dict(net.fresh(7))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(7)
    for epoch in range(2):
        order = torch.randperm(5, generator=generator)
        for rows in (order[:2], order[2:4], order[4:]):
            lr_BCHW, target_BCHW = net.pair(pool[rows])
            optimiser.zero_grad()
            (network(lr_BCHW) - target_BCHW).square().mean().backward()
            optimiser.step()
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(way[epoch + 1][name], parameter.detach())
    assert len(way) == 3
    assert all(torch.equal(way[0][name], tensor) for name, tensor in net.fresh(7).items())


def test_an_expert_is_its_seeds_and_learns() -> None:
    net = MatchingNet(Fsrcnn(d=8, s=4, m=1))
    pool = (patches(8) * 255).to(torch.uint8)
    told: list[tuple[int, int]] = []
    first, again, other = (
        expert(
            net,
            pool,
            epochs=3,
            batch=4,
            rate=0.05,
            seed=seed,
            progress=lambda done, total, note="": told.append((done, total)),
        )
        for seed in (0, 0, 1)
    )
    assert told == [(1, 3), (2, 3), (3, 3)] * 3
    assert all(torch.equal(first[3][name], again[3][name]) for name in first[3])
    assert any(not torch.equal(first[3][name], other[3][name]) for name in first[3])
    losses = [net.loss(parameters, pool.float() / 255).item() for parameters in first]
    assert losses == sorted(losses, reverse=True) and losses[3] < losses[0]
    assert {tensor.dtype for tensor in first[3].values()} == {torch.float32}


def test_a_rate_that_is_too_high_is_one_line() -> None:
    with pytest.raises(DataError, match="not finite after epoch 1; its rate 1e\\+30 is too high"):
        expert(MatchingNet(Srcnn()), patches(8), epochs=2, batch=1, rate=1e30, seed=0)


# --- symmetries -------------------------------------------------------------------------------------------------------


def test_turns_are_the_eight_symmetries_and_those_of_training() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    square_1CHW = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    turned = [symmetry(square_1CHW, turn) for turn in range(8)]
    assert len({tensor.numpy().tobytes() for tensor in turned}) == 8
    for turn, tensor in enumerate(turned):
        assert np.array_equal(tensor[0].permute(1, 2, 0).numpy(), loader._turned(pixels, turn))
    assert torch.equal(turned[4], square_1CHW.flip(-1))


def test_each_patch_has_its_own_turn_or_all_have_one() -> None:
    hr, turns = patches(8, 6), torch.arange(8).flip(0)
    each = symmetry(hr, turns)
    for row, turn in enumerate(turns.tolist()):
        assert torch.equal(each[row], symmetry(hr[row : row + 1], turn)[0])
        assert torch.equal(symmetry(hr, turn)[row], each[row])
    gradient = gradient_of(lambda given: (symmetry(given, turns) * each).sum(), hr)
    assert torch.equal(gradient, hr)  # back to where each pixel came from


def test_lr_turns_with_its_hr() -> None:
    """What is learned under a turn is learned for the patch as it lies."""
    net, hr = MatchingNet(Srcnn()), patches()
    for turn in range(8):
        torch.testing.assert_close(net.pair(symmetry(hr, turn))[0], symmetry(net.pair(hr)[0], turn))


# --- every network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", plugins.names("archs"))
def test_every_network_can_be_matched(name: str) -> None:
    """All objectives have a value and a gradient of every synthetic patch, 0 where patches are equal."""
    options = SMALL.get(name, "")
    net = MatchingNet(plugins.parse("archs", f"{name}:{options}" if options else name), dtype=torch.float64)
    side = max(16, 2 * net.arch.least)
    parameters, real, synthetic = net.fresh(0), doubles(3, side, seed=1), doubles(2, side)
    objective: list[Callable[[Tensor], Tensor]] = [
        lambda hr: gradient_matching(net, parameters, hr, real),
        lambda hr: distribution_matching(net, parameters, hr, real, seed=0),
    ]
    for value in objective:
        gradient = gradient_of(value, synthetic)
        assert gradient.isfinite().all() and gradient.flatten(1).norm(dim=1).gt(0).all()
        assert abs(value(real).item()) < 1e-9 < value(synthetic).item()
    for form in ("full", "constant"):
        found = trajectory_matching(
            net, parameters, net.fresh(1), synthetic, [torch.tensor([0, 1])] * 2, RATE / 1e3, form=form
        )
        assert found.patches_N3HW.isfinite().all() and found.patches_N3HW.flatten(1).norm(dim=1).gt(0).all()
        assert found.rate.isfinite() and found.rate.ne(0)


# --- bad input --------------------------------------------------------------------------------------------------------

GROUPS = (torch.tensor([0, 5]), torch.tensor([0, 1, 1]))


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (lambda net, p, hr: gradient_matching(net, p, hr, hr[:0]), "found 2 synthetic and 0 real"),
        (lambda net, p, hr: distribution_matching(net, p, hr[:0], hr, seed=0), "found 0 synthetic and 2 real"),
        (lambda net, p, hr: gradient_matching(net, p, hr, patches(3), groups=GROUPS), "found none of: 5"),
        (lambda net, p, hr: distribution_matching(net, p, hr, patches(3), seed=0, groups=GROUPS), "found none of: 5"),
        (lambda net, p, hr: gradient_matching(net, p, hr, hr, groups=GROUPS), "found 2 and 3 for 2 synthetic patches"),
        (lambda net, p, hr: gradient_matching(net, p, hr[..., 1:], hr), "multiples of the scale 2, found 12x11 px"),
        (lambda net, p, hr: gradient_matching(net, p, hr, hr, distance="l2"), "'l2'; there are: both, cos, mse"),
        (
            lambda net, p, hr: distribution_matching(net, p, hr, hr, seed=0, statistics="gram"),
            "'gram'; there are: all, fourier, mean, moments",
        ),
        (lambda net, p, hr: distribution_distance([], [], seed=0), "two convolutions or more"),
        (lambda net, p, hr: trajectory_matching(net, p, p, hr, BATCHES, RATE), "found them equal"),
        (lambda net, p, hr: trajectory_matching(net, p, net.fresh(1), hr, [], RATE), "found no batches"),
        (
            lambda net, p, hr: trajectory_matching(net, p, net.fresh(1), hr, BATCHES, RATE, turns=[0]),
            "3 steps take as many turns, found 1",
        ),
        (
            lambda net, p, hr: trajectory_matching(net, p, net.fresh(1), hr, BATCHES, RATE, form="half"),
            "no form 'half' of trajectories; there are: constant, full",
        ),
        (lambda net, p, hr: expert(net, hr[:0], epochs=1, batch=1, rate=1, seed=0), "0 patches"),
        (lambda net, p, hr: expert(net, hr, epochs=0, batch=1, rate=1, seed=0), "found epochs=0"),
        (lambda net, p, hr: symmetry(hr[..., 2:], 1), "found 12x10 px"),
        (lambda net, p, hr: symmetry(hr, 8), "turns from 0 to 7, found 8, 8"),
        (lambda net, p, hr: symmetry(hr, [1]), "2 patches take as many turns"),
    ],
)
def test_what_cannot_be_matched_is_one_line(
    question: Callable[[MatchingNet, Parameters, Tensor], object], reason: str
) -> None:
    net = MatchingNet(Srcnn())
    with pytest.raises(CurateError) as error:
        question(net, net.fresh(0), patches())
    assert reason in str(error.value) and str(error.value).isprintable()
    assert isinstance(error.value, UsageError)


@pytest.mark.parametrize("kind", ["patches", "weights"])
def test_what_is_not_finite_is_not_hidden(kind: Literal["patches", "weights"]) -> None:
    net, hr, real = MatchingNet(Srcnn()), patches(), patches(seed=1)
    parameters, target = net.fresh(0), net.fresh(1)
    if kind == "patches":
        hr[0, 0, 0, 0] = torch.nan
    else:
        parameters["conv1.weight"][0, 0, 0, 0] = torch.nan
    assert gradient_matching(net, parameters, hr, real).isnan()
    assert distribution_matching(net, parameters, hr, real, seed=0).isnan()
    for form in ("full", "constant"):
        assert trajectory_matching(
            net, parameters, target, hr, [torch.tensor([0, 1])], torch.tensor(0.1), form=form
        ).value.isnan()


def test_some_places_stand_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = [torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))]
    other = [torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(1)) * 2]
    few = distribution_distance(other, maps, seed=0, statistics="fourier")
    monkeypatch.setattr(objectives, "_POSITIONS", 400)
    every = distribution_distance(other, maps, seed=0, statistics="fourier")
    assert few != every and few.item() == pytest.approx(every.item(), rel=0.3)
