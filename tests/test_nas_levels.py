"""Steps of a search against the same written out; what the architecture is charged with moves it, and only then."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from curate.config import NasConfig
from curate.genotype import OPERATIONS
from curate.loader import Batch
from curate.losses import hfen
from curate.nas.costs import Costs, operation_parameters
from curate.nas.levels import Levels, Losses
from curate.nas.supernet import Architecture, Shares, SuperNet

FEATURES, SCALE, LR = 4, 2, 15
SIZES = torch.tensor([operation_parameters(name, FEATURES) for name in OPERATIONS], dtype=torch.float64)
SMALLEST, LARGEST = OPERATIONS.index("conv_1x1"), OPERATIONS.index("conv_7x7")
Loss = Callable[[SuperNet, Shares, Batch], Tensor]


def config(method: str = "milenas", **options: Any) -> NasConfig:
    defaults = {"features": FEATURES, "rate": 0.002, "arch_rate": 0.01, "weight_decay": 0.01, "validation_weight": 0.5}
    return NasConfig(method=method, **{**defaults, **options})  # type: ignore[arg-type]


def levels(asked: NasConfig, dtype: torch.dtype = torch.float64) -> Levels:
    """The same each time, but for the options."""
    torch.manual_seed(0)
    net = SuperNet(SCALE, FEATURES, connections=asked.connections, form=asked.form).to(dtype)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.endswith(("esa.conv_max.bias", "esa.conv3.bias")):
                weight.fill_(10)  # or a ReLU silences the attention's only map, and nothing behind it has a gradient
    fresh = Architecture.fresh(connections=asked.connections, seed=1).tensors()
    leaves = {name: (300 * leaf.detach()).to(dtype).requires_grad_() for name, leaf in fresh.items()}
    return Levels(net, Architecture.of(leaves), asked, Costs.of(asked, torch.device("cpu")))


def by_descent(made: Levels) -> Levels:
    """The architecture moves by its gradient, whose direction Adam's first step alone would show."""
    made.of_architecture = torch.optim.SGD(made.architecture.leaves(), lr=1)
    return made


def batch(seed: int, dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    hr_BCHW = torch.rand(2, 3, SCALE * LR, SCALE * LR, generator=generator, dtype=dtype)
    lr_BCHW = torch.nn.functional.avg_pool2d(hr_BCHW, SCALE)
    return Batch(lr_BCHW, hr_BCHW, torch.tensor([0.4, 1.6], dtype=dtype), torch.tensor([0, 1]))


def loss(net: SuperNet, shares: Shares, batch: Batch) -> Tensor:
    sr_BCHW, hr_BCHW = net(255 * batch.lr_BCHW, shares), 255 * batch.hr_BCHW
    loss_B = (sr_BCHW - hr_BCHW).abs().mean((1, 2, 3)) + 0.2 * hfen(sr_BCHW, hr_BCHW)
    return (batch.weight_B * loss_B).sum() / 2


def charge(architecture: Architecture) -> Tensor:
    return (architecture.alpha_LO.softmax(1) * SIZES / SIZES.sum()).sum()


def copied(made: Levels) -> tuple[SuperNet, Architecture]:
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in made.architecture.tensors().items()}
    return deepcopy(made.net), Architecture.of(leaves)


def optimisers(net: SuperNet, architecture: Architecture, asked: NasConfig) -> list[torch.optim.Optimizer]:
    decay = asked.weight_decay
    return [
        torch.optim.Adam(net.parameters(), lr=asked.rate, betas=(0.9, 0.999), weight_decay=decay),
        torch.optim.Adam(architecture.leaves(), lr=asked.arch_rate, betas=(0.5, 0.999), weight_decay=decay),
    ]


def descend(value: Tensor, optimiser: torch.optim.Optimizer, all_of_them: list[torch.optim.Optimizer]) -> None:
    for one in all_of_them:
        one.zero_grad()
    value.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def values(made: Levels) -> dict[str, Tensor]:
    """All that a step may change."""
    return {name: value.detach().clone() for name, value in (*named(made), *made.architecture.tensors().items())}


def named(made: Levels) -> list[tuple[str, Tensor]]:
    return list(made.net.named_parameters())


def moved(before: dict[str, Tensor], made: Levels) -> dict[str, Tensor]:
    return {name: value - before[name] for name, value in values(made).items()}


def assert_same(made: Levels, net: SuperNet, architecture: Architecture) -> None:
    right = {**dict(net.named_parameters()), **architecture.tensors()}
    for name, value in values(made).items():
        torch.testing.assert_close(value, right[name].detach(), rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


# --- the three kinds of steps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("connections", "steps"), [(True, 2), (False, 1)])
def test_mixed_levels(connections: bool, steps: int) -> None:
    """Weights by the training loss; then, at the new weights, alpha and betas by both losses and the charge."""
    asked = config(connections=connections)
    made = levels(asked)
    net, architecture = copied(made)
    both = optimisers(net, architecture, asked)
    for step in range(steps):
        training, validation = batch(2 * step), batch(2 * step + 1)
        found = made.step(training, validation)

        of_training = loss(net, architecture.shares(), training)
        descend(of_training, both[0], both)
        of_validation, of_size = loss(net, architecture.shares(), validation), charge(architecture)
        whole = loss(net, architecture.shares(), training) + 0.5 * of_validation + 0.2 * of_size
        descend(whole, both[1], both)

        assert_same(made, net, architecture)
        right = [value.item() for value in (of_training, of_validation, of_size)]
        assert [value.item() for value in found if value is not None] == pytest.approx(right, rel=1e-6)


def test_warm_up() -> None:
    """Weights alone; of the architecture not a bit changes."""
    asked = config()
    made = levels(asked)
    net, architecture = copied(made)
    before = values(made)
    found = made.step(batch(0), None)
    assert found == Losses(found.training)
    changed = {name for name, value in moved(before, made).items() if value.any()}
    assert changed == {name for name, _ in named(made)}
    both = optimisers(net, architecture, asked)
    descend(loss(net, architecture.shares(), batch(0)), both[0], both)
    assert_same(made, net, architecture)


def test_darts() -> None:
    """The architecture by the validation batch alone, at the weights as they are; then the weights, in it as it is."""
    asked = config("darts")
    made, other = (by_descent(levels(asked)) for _ in range(2))
    net, architecture = copied(made)
    before = values(made)
    found = made.step(batch(0), batch(1))
    other.step(batch(7), batch(1))
    for one, leaf in zip(other.architecture.leaves(), made.architecture.leaves(), strict=True):
        assert torch.equal(one, leaf)

    of_validation, of_size = loss(net, architecture.shares(), batch(1)), charge(architecture)
    gradients = torch.autograd.grad(of_validation + 0.2 * of_size, architecture.leaves())
    for name, gradient in zip(architecture.tensors(), gradients, strict=True):
        torch.testing.assert_close(moved(before, made)[name], -gradient, rtol=1e-6, atol=1e-9)

    architecture.restore(made.architecture.tensors())
    both = optimisers(net, architecture, asked)
    of_training = loss(net, architecture.shares(), batch(0))
    descend(of_training, both[0], both)
    assert_same(made, net, architecture)
    right = [value.item() for value in (of_training, of_validation, of_size)]
    assert [value.item() for value in found if value is not None] == pytest.approx(right, rel=1e-6)


def unrolled(
    net: SuperNet, architecture: Architecture, asked: NasConfig, training: Batch, validation: Batch
) -> tuple[list[Tensor], list[Tensor]]:
    """The validation loss's gradient at w' = w - rate * (dL_training/dw + decay * w): w' held, and by way of w'."""
    weights = dict(net.named_parameters())
    slopes = torch.autograd.grad(
        loss(net, architecture.shares(), training), list(weights.values()), create_graph=True, materialize_grads=True
    )
    after = {
        name: weight - asked.rate * (slope + asked.weight_decay * weight)
        for (name, weight), slope in zip(weights.items(), slopes, strict=True)
    }

    def at(these: dict[str, Tensor]) -> Tensor:
        def called(lr_BCHW: Tensor, shares: Shares) -> Tensor:
            answer: Tensor = torch.func.functional_call(net, these, (lr_BCHW, shares))
            return answer

        return loss(called, architecture.shares(), validation)  # type: ignore[arg-type]

    held = {name: weight.detach() for name, weight in after.items()}
    direct = list(torch.autograd.grad(at(held), architecture.leaves()))
    whole = torch.autograd.grad(at(after), architecture.leaves())
    return direct, [all_of_it - part for all_of_it, part in zip(whole, direct, strict=True)]


def test_darts_of_second_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact gradient, by derivatives of derivatives; then the weights, from where they were.

    The difference is so small here that no kink of a ReLU or of L1 lies between its sides.
    """
    monkeypatch.setattr("curate.nas.levels._DIFFERENCE", 1e-6)
    asked = config("darts2", rate=0.01, cost_weight=0.0, form="plain")
    made = by_descent(levels(asked))
    net, architecture = copied(made)
    before = values(made)
    made.step(batch(0), batch(1))

    direct, by_way = unrolled(net, architecture, asked, batch(0), batch(1))
    for name, one, other in zip(architecture.tensors(), direct, by_way, strict=True):
        found = -moved(before, made)[name] - one
        assert other.norm() > 1e-6 * one.norm()  # there is something to find
        assert (found - other).norm() < 1e-6 * other.norm(), name

    again = levels(asked)
    again.architecture.restore(made.architecture.tensors())
    again.step(batch(0), None)
    for (name, weight), (_, right) in zip(named(made), named(again), strict=True):
        assert torch.equal(weight, right), name


def test_where_second_order_looks() -> None:
    """At the weights, a step of descent further, and 0.01 to either side of them."""
    asked = config("darts2", rate=0.01)
    made, seen = levels(asked), []
    made.net.register_forward_pre_hook(
        lambda *_: seen.append(torch.cat([weight.detach().flatten() for weight in made.weights]))
    )
    net, architecture = copied(made)
    made.step(batch(0), batch(1))
    first, further, plus, minus, last = seen
    assert torch.equal(first, last)
    torch.testing.assert_close((plus + minus) / 2, first, rtol=1e-12, atol=1e-12)
    assert ((plus - minus) / 2).norm().item() == pytest.approx(0.01)
    slopes = torch.autograd.grad(loss(net, architecture.shares(), batch(0)), list(net.parameters()))
    slope = torch.cat([slope.flatten() for slope in slopes])
    torch.testing.assert_close(first - further, 0.01 * (slope + 0.01 * first), rtol=1e-6, atol=1e-12)


# --- the charge -------------------------------------------------------------------------------------------------------


def test_the_charge_pushes_large_operations_down() -> None:
    """With next to nothing else in the loss, step by step: the gradient reaches alpha."""
    made = levels(config(cost_weight=1e9, arch_rate=0.1, weight_decay=0.0), torch.float32)
    expected, shares = [], []
    for step in range(4):
        share_LO = made.architecture.shares().alpha_LO.detach()
        shares.append(share_LO)
        expected.append(float(made.costs.expected(share_LO)))
        made.step(batch(2 * step, torch.float32), batch(2 * step + 1, torch.float32))
    for before, after in pairwise(shares):
        assert (after[:, LARGEST] < before[:, LARGEST]).all()
        assert (after[:, SMALLEST] > before[:, SMALLEST]).all()
    assert expected == sorted(expected, reverse=True)
    assert expected[-1] < 0.9 * expected[0]


@cache
def gradient(asked: NasConfig) -> Tensor:
    """By which alpha moves."""
    made = by_descent(levels(asked))
    before = values(made)
    made.step(batch(0), batch(1))
    return -moved(before, made)["alpha"]


@pytest.mark.parametrize("method", ["milenas", "darts"])
def test_the_charge_is_a_part_of_the_gradient(method: str) -> None:
    """Of its weight; without a weight there is none, nor below a target."""
    free, charged = gradient(config(method, cost_weight=0.0)), gradient(config(method, cost_weight=3.0))
    leaves = levels(config(method)).architecture
    (right,) = torch.autograd.grad(3 * charge(leaves), leaves.alpha_LO)
    assert right.norm() > 1e-3
    torch.testing.assert_close(charged - free, right, rtol=1e-6, atol=1e-9)
    assert torch.equal(gradient(config(method, cost_weight=3.0, target=1e9)), free)


def test_a_target_that_is_exceeded() -> None:
    asked = config(cost_weight=3.0, target=1000.0)
    made = levels(asked)
    (right,) = torch.autograd.grad(
        3 * made.costs.expected(made.architecture.alpha_LO.softmax(1)) / 1000, made.architecture.alpha_LO
    )
    torch.testing.assert_close(gradient(asked) - gradient(config(cost_weight=0.0)), right, rtol=1e-5, atol=1e-9)


def test_the_charge_is_told_without_a_weight() -> None:
    made = levels(config(cost_weight=0.0), torch.float32)
    right = charge(made.architecture).item()
    found = made.step(batch(0, torch.float32), batch(1, torch.float32)).charge
    assert found is not None
    assert found.item() == pytest.approx(right, rel=1e-6)


# --- what the losses are ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_weights_of_samples() -> None:
    """A sample of weight 0 is as if it were not there, in either batch."""
    made, other = (levels(config(hfen=0.0)) for _ in range(2))
    weight_B = torch.tensor([2.0, 0.0], dtype=torch.float64)
    first, second = batch(0)._replace(weight_B=weight_B), batch(1)._replace(weight_B=weight_B)
    alone = [Batch(*(tensor[:1] for tensor in one[:2]), weight_B[:1] / 2, one.seed_B[:1]) for one in (first, second)]
    found, right = made.step(first, second), other.step(*alone)
    assert [value.item() for value in found if value is not None] == pytest.approx(
        [value.item() for value in right if value is not None]
    )
    for name, value in values(made).items():
        torch.testing.assert_close(value, values(other)[name], rtol=1e-6, atol=1e-9)


def test_the_validation_loss_without_a_weight() -> None:
    made, other = (levels(config(validation_weight=0.0), torch.float32) for _ in range(2))
    made.step(batch(0, torch.float32), batch(1, torch.float32))
    other.step(batch(0, torch.float32), batch(5, torch.float32))
    assert torch.equal(made.architecture.alpha_LO, other.architecture.alpha_LO)


def test_bfloat16() -> None:
    """Products alone: weights, architecture and losses stay float32, and the losses are near."""
    found = {}
    for precision in ("fp32", "bf16"):
        made = levels(config(precision=precision), torch.float32)
        losses = made.step(batch(0, torch.float32), batch(1, torch.float32))
        found[precision] = [value for value in losses if value is not None]
        assert {value.dtype for value in (*found[precision], *values(made).values())} == {torch.float32}
    one, other = ([value.item() for value in found[precision]] for precision in ("fp32", "bf16"))
    assert other == pytest.approx(one, rel=0.01)
    assert other[:2] != one[:2]
