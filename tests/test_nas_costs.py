"""What operations cost is what the networks have; the charge is the paper's, and as steep; the budget is spent."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from curate.archs.dlsr import Dlsr, operation
from curate.config import NasConfig
from curate.genotype import CELLS, LAYERS, OPERATIONS, PUBLISHED, Genotype
from curate.macs import multiply_adds, parameters
from curate.nas.costs import Costs, budget, one_hot, operation_parameters
from curate.nas.supernet import Architecture, SuperNet

CPU = torch.device("cpu")
LARGEST, SMALLEST = OPERATIONS.index("conv_7x7"), OPERATIONS.index("conv_1x1")
PAPER = (2.5, 22.5, 62.5, 122.5, 5.9, 7.5, 9.9, 2.95, 3.75)  # thousands of parameters (Huang et al. 2021, table I)


def config(**options: object) -> NasConfig:
    return NasConfig(**{"features": 8} | options)  # type: ignore[arg-type]


def even() -> torch.Tensor:
    return torch.full((LAYERS, len(OPERATIONS)), 1 / len(OPERATIONS))


@pytest.mark.parametrize("features", [8, 18, 48, 50])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str, features: int) -> None:
    made = operation(name, features)
    assert operation_parameters(name, features) == sum(weight.numel() for weight in made.parameters())


def test_the_papers_table() -> None:
    """To all of its digits, at 50 maps; the charge takes their shares."""
    assert [operation_parameters(name, 50) / 1000 for name in OPERATIONS] == list(PAPER)
    costs = Costs.of(config(features=50), CPU)
    for number, part in enumerate(PAPER):
        share_LO = torch.zeros(LAYERS, len(OPERATIONS))
        share_LO[:, number] = 1
        assert float(costs.term(share_LO)) == pytest.approx(LAYERS * part / sum(PAPER), rel=1e-12)
    assert float(costs.term(even())) == pytest.approx(LAYERS / len(OPERATIONS), rel=1e-6)


@pytest.mark.parametrize(
    ("scale", "features", "connections"), [(2, 48, True), (2, 8, False), (3, 18, True), (3, 8, False), (4, 8, True)]
)
def test_totals_are_the_networks(scale: int, features: int, connections: bool) -> None:
    """Exactly, whatever the operations, with the inputs that a search gives."""
    inputs = [[1, 2], [1, 3], [1, 4], [4, 5]] if connections else [[2], [3], [4], [5]]
    options = config(scale=scale, features=features, connections=connections)
    of_parameters, of_macs = (Costs.of(replace(options, cost=cost), CPU) for cost in ("parameters", "macs"))
    for first in (0, 3, 6):  # all nine operations
        genotype = Genotype.of(OPERATIONS[first : first + 3], inputs)
        arch = Dlsr(scale, str(genotype), features)
        assert of_parameters.total(genotype) == parameters(arch)
        assert of_macs.total(genotype) == multiply_adds(arch, 720, 1280)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_parameters_and_multiply_adds_are_charged_alike(scale: int) -> None:
    share_LO = Architecture.fresh(connections=False, seed=0).alpha_LO.detach().mul(900).softmax(1)
    one, other = (Costs.of(config(scale=scale, cost=cost), CPU) for cost in ("parameters", "macs"))
    assert float(one.term(share_LO)) == pytest.approx(float(other.term(share_LO)), rel=1e-12)
    assert float(one.expected(share_LO)) < float(other.expected(share_LO)) / 10_000  # but these are their own


@pytest.mark.parametrize("cost", ["parameters", "macs"])
@pytest.mark.parametrize("target", [None, 1.0])
def test_the_gradient_pushes_large_operations_down(cost: str, target: float | None) -> None:
    """Descent raises the values of what is cheaper than the mean and lowers the others, the dearest most."""
    costs = Costs.of(config(cost=cost, target=target), CPU)
    architecture = Architecture.fresh(connections=False, seed=0)
    costs.term(architecture.shares().alpha_LO).backward()  # type: ignore[no-untyped-call]
    gradient_LO = architecture.alpha_LO.grad
    assert gradient_LO is not None
    sizes = [operation_parameters(name, 8) for name in OPERATIONS]
    for gradient_O in gradient_LO:
        assert gradient_O.argsort().tolist() == sorted(range(len(sizes)), key=lambda number: sizes[number])
        assert gradient_O[LARGEST] > 0 > gradient_O[SMALLEST]


def test_target() -> None:
    """Nothing is charged below it, and what is beyond as a share of it."""
    free = Costs.of(config(), CPU)
    expected = float(free.expected(even()))
    alpha_LO = torch.zeros(LAYERS, len(OPERATIONS), requires_grad=True)
    for target, charge in ((2 * expected, 0.0), (1.001 * expected, 0.0), (expected / 2, 1.0), (expected / 1.25, 0.25)):
        costs = Costs.of(config(target=target), CPU)
        assert costs.target == target
        term = costs.term(alpha_LO.softmax(1))
        assert term.item() == pytest.approx(charge, rel=1e-6)
        (gradient_LO,) = torch.autograd.grad(term, alpha_LO)
        assert bool(gradient_LO.any()) == (charge > 0)


def test_one_hot() -> None:
    assert one_hot(PUBLISHED["dlsr"]).nonzero().tolist() == [[0, 0], [1, 6], [2, 5]]
    assert one_hot(PUBLISHED["dlsr"]).dtype == torch.float64


def test_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured, so kept: a search that goes on is charged as before."""
    monkeypatch.setattr("curate.nas.costs.HD", (48, 64))
    options = config(features=4, cost="latency", target=3.0)
    found = Costs.of(options, CPU)
    assert found.kind == "latency"
    assert found.fixed >= 0
    assert found.operation_O.shape == (len(OPERATIONS),)
    assert (found.operation_O > 0).all()
    tensors = {name: tensor.clone() for name, tensor in found.tensors().items()}
    again = Costs.restored(options, tensors)
    assert (again.kind, again.fixed, again.target) == (found.kind, found.fixed, found.target)
    assert torch.equal(again.operation_O, found.operation_O)
    assert torch.equal(again.term(even()), found.term(even()))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_latency_is_of_the_image_that_multiply_adds_are_of(scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def looked(_: object, image_BCHW: torch.Tensor) -> float:
        seen.append(tuple(image_BCHW.shape))
        return 1.0

    monkeypatch.setattr("curate.nas.costs.milliseconds", looked)
    costs = Costs.of(config(cost="latency", scale=scale), CPU)
    height, width = 720 // scale, {2: 640, 3: 427, 4: 320}[scale]
    assert set(seen) == {(1, 8, height, width), (1, 3, height, width)}
    assert costs.fixed == 0  # 1 - 3 * 6, which is none
    assert costs.operation_O.tolist() == [CELLS] * len(OPERATIONS)


# --- the budget of random and evolutionary search ---------------------------------------------------------------------


def products(net: torch.nn.Module, scale: int, *more: object) -> int:
    """Of one pass for an answer of 1280x720."""
    width = {2: 640, 3: 427, 4: 320}[scale]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        net.to("meta")(torch.empty(1, 3, 720 // scale, width, device="meta"), *more)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("scale", "connections"), [(2, True), (3, False)])
def test_budget_is_what_the_search_would_take(scale: int, connections: bool) -> None:
    """Counted on the super-net branch by branch, and on a network for each operation."""
    options = config(method="random", steps=1000, warmup=100, candidates=3, scale=scale, connections=connections)
    shares = Architecture.fresh(connections=connections, seed=0, device="meta").shares()
    whole = products(SuperNet(scale, 8, connections=connections, form="plain"), scale, shares)
    inputs = PUBLISHED["dlsr"].inputs if connections else ((2,), (3,), (4,), (5,))
    nets = [Dlsr(scale, str(Genotype.of([name] * LAYERS, inputs)), 8).build() for name in OPERATIONS]
    one = sum(products(net, scale) for net in nets) / len(nets)
    assert budget(options) == int(whole * (1000 + 2 * 900) / (3 * one))


def test_budget_is_shared_out() -> None:
    steps = [budget(config(method="evolution", steps=5000, candidates=number)) for number in (6, 12, 24, 600)]
    assert steps == sorted(steps, reverse=True)
    for number, each in zip((6, 12, 24, 600), steps, strict=True):
        assert steps[0] * 6 - number < number * each < (steps[0] + 1) * 6
    assert budget(config(method="random", steps=2, warmup=0, candidates=100_000)) == 1


def test_budget_of_a_longer_warm_up_than_the_search() -> None:
    """Which random search does not have: no pass counts as less than none."""
    whole = config(method="random", steps=1000, warmup=1000)
    assert budget(replace(whole, warmup=5000)) == budget(whole)
