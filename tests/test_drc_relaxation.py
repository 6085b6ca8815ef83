"""Candidates are the published rule's; the network between them is what brute force makes of it, in one pass."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from curate.archs._narrow import narrow
from curate.archs.drn import Drn
from curate.archs.swinir import WindowAttention
from curate.drc.gates import importance
from curate.drc.relaxation import OwnWeights, Relaxation, candidates
from curate.units import PrunableUnit, Span, fitted

DRN = Drn(features=4, blocks=1)  # units of 4, 8 and four times 16 maps, two before a pixel shuffle
BODY = PrunableUnit("body", 16, (Span("0.weight", 0), Span("0.bias", 0)), (Span("2.weight", 1),))
HEADS = 2
ATTENTION = PrunableUnit(
    "attention",
    8,
    (Span("qkv.weight", 0, outer=3 * HEADS), Span("qkv.bias", 0, outer=3 * HEADS)),
    (Span("proj.weight", 1, outer=HEADS),),
    (Span("qkv.weight", 0, outer=HEADS), Span("qkv.bias", 0, outer=HEADS)),
    HEADS,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def body() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 2, 3))


def known(net: nn.Module) -> dict[str, Tensor]:
    return dict(net.named_parameters())


def largest(net: nn.Module, unit: PrunableUnit, number: int) -> list[int]:
    norm_W = importance(known(net), unit).tolist()
    return sorted(sorted(range(unit.width), key=lambda map_: -norm_W[map_])[:number])


def one_hot(relaxation: Relaxation, choice: int) -> Tensor:
    """alpha of which the same candidate of each unit, or its last, has all the weight."""
    alpha_UV = torch.full_like(relaxation.fresh(0).detach(), -100.0)
    for row_V, widths in zip(alpha_UV, relaxation.widths, strict=True):
        row_V[min(choice, len(widths) - 1)] = 100
    return alpha_UV


@pytest.mark.parametrize(
    ("width", "ratio", "count", "expected"),
    [
        (64, 0.3, 1, [20, 24, 32, 36, 40, 44]),  # of 22, 26, 31, 35, 40, 44
        (64, 0.5, 1, [16, 20, 24, 28, 32]),  # of 16, 19, 22, 25, 28, 32
        (16, 0.3, 1, [4, 8, 12]),  # of 5, 6, 7, 8, 10, 11
        (20, 0.3, 1, [8, 12]),  # of 7, 8, 9, 11, 12, 14: 7 is not 6.999
        (8, 0.9, 1, [4]),
        (3, 0.3, 1, [1, 2]),
        (1, 0.9, 1, [1]),
        (7, 1e-9, 1, [4, 7]),  # 8 would be more than there are
        (10, 0.3, 6, [3, 4, 5, 6, 7]),  # of 21, 25, 29, 33, 37, 42 of six heads, 18 to 42 left
        (10, 0.2, 6, [4, 5, 6, 7, 8]),  # SwinIR-light's published 36 and 48 of 60 are among them
        (2, 0.9, 6, [1]),
    ],
)
def test_candidates(width: int, ratio: float, count: int, expected: list[int]) -> None:
    assert candidates(width, ratio, count) == expected


@pytest.mark.parametrize(("file", "ratio"), [("drn_s_x4_03.txt", 0.3), ("drn_s_x4_05.txt", 0.5)])
def test_published_numbers_are_candidates(shared: Path, file: str, ratio: float) -> None:
    units = Drn().prunable()
    for unit, number in zip(units, fitted(shared / "drc-configs" / file, units), strict=True):
        assert number in candidates(unit.width, ratio), unit.name


class Mixture(nn.Module):
    """A layer by brute force: the sum over candidates of what it makes of the maps of each."""

    def __init__(self, layer: nn.Conv2d, share_V: Tensor, kept: list[list[int]]) -> None:
        super().__init__()
        self.layer, self.share_V, self.kept = layer, share_V, kept

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        layer = self.layer
        answers = [
            share * F.conv2d(maps_BCHW[:, kept], layer.weight[:, kept], layer.bias, padding=layer.padding)
            for share, kept in zip(self.share_V, self.kept, strict=True)
        ]
        return torch.stack(answers).sum(0)


def test_one_pass_is_the_sum_over_candidates() -> None:
    """Of all units of a network at once, those before a pixel shuffle too."""
    net = DRN.build()
    relaxation = Relaxation(DRN.prunable(), 0.2, known(net))
    alpha_UV = torch.randn_like(relaxation.fresh(0))
    brute = deepcopy(net)
    choices = 0
    for unit, widths, alpha_V in zip(relaxation.units, relaxation.widths, alpha_UV, strict=True):
        path = unit.readers[0].parameter.removesuffix(".weight")
        layer = brute.get_submodule(path)
        assert isinstance(layer, nn.Conv2d)
        kept = [largest(net, unit, width) for width in widths]
        brute.set_submodule(path, Mixture(layer, alpha_V[: len(widths)].softmax(0), kept))
        choices += len(widths) > 1
    assert choices >= 4
    lr_BCHW = 255 * torch.rand(2, 3, 8, 8)
    made = functional_call(net, relaxation.weights(known(net), alpha_UV), (lr_BCHW,))
    assert torch.allclose(made, brute(lr_BCHW), atol=1e-3)
    assert not torch.allclose(made, net(lr_BCHW), atol=1e-1)


@pytest.mark.parametrize("choice", [0, 1, 4])
def test_attention_with_one_candidate_is_the_pruned_one(choice: int) -> None:
    net = WindowAttention(HEADS * ATTENTION.width, HEADS)
    relaxation = Relaxation([ATTENTION], 0.2, known(net))
    assert relaxation.widths == [[3, 4, 5, 6]]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    windows_BKNC = torch.randn(2, 3, 64, HEADS * ATTENTION.width)
    made = functional_call(net, relaxation.weights(known(net), one_hot(relaxation, choice)), (windows_BKNC,))
    kept = largest(net, ATTENTION, relaxation.widths[0][min(choice, 3)])
    assert torch.allclose(made, narrow(deepcopy(net), [ATTENTION], [kept])(windows_BKNC), atol=1e-4)


def test_ranks_are_those_of_the_weights_as_they_are() -> None:
    net = body()
    relaxation = Relaxation([BODY], 0.2, known(net))
    alpha_UV = one_hot(relaxation, 0)
    for strong in (range(12, 16), range(3, 7)):
        with torch.no_grad():
            net[2].weight.fill_(0.1)
            net[2].weight[:, list(strong)] = -5
        gate_W = relaxation.gates(known(net), alpha_UV)[0]
        assert gate_W.nonzero().flatten().tolist() == list(strong)
    unranked = Relaxation([BODY], 0.2, known(net), ranked=False)
    assert unranked.gates(known(net), alpha_UV)[0].tolist() == [1] * 4 + [0] * 12


@pytest.mark.parametrize("kind", [Relaxation, OwnWeights])
def test_gradients_of_alpha(kind: type[Relaxation]) -> None:
    """Against finite differences."""
    net, image_BCHW = body().double(), torch.rand(1, 3, 6, 6).double()
    relaxation = kind([BODY], 0.2, known(net))
    alpha_UV = torch.randn_like(relaxation.fresh(0)).double().requires_grad_()
    factor_BCHW = torch.randn(1, 2, 2, 2).double()

    def value(alpha_UV: Tensor) -> Tensor:
        made: Tensor = functional_call(net, relaxation.weights(known(net), alpha_UV), (image_BCHW,))
        return (made * factor_BCHW).sum()

    (found_UV,) = torch.autograd.grad(value(alpha_UV), [alpha_UV])
    sides = torch.eye(alpha_UV.shape[1]).double()[:, None] * 1e-5
    expected_V = [(value(alpha_UV + side_UV) - value(alpha_UV - side_UV)).item() / 2e-5 for side_UV in sides]
    assert found_UV[0].tolist() == pytest.approx(expected_V, rel=1e-6) and min(map(abs, expected_V)) > 1e-4


@pytest.mark.parametrize("best", [0, 1, 2])
def test_alpha_moves_to_the_best_candidate(best: int) -> None:
    """To the one that made what the network should answer, nothing being charged for maps."""
    net = body().requires_grad_(False)
    relaxation = Relaxation([BODY], 0.2, known(net))
    image_BCHW = torch.rand(4, 3, 8, 8)

    def answer(alpha_UV: Tensor) -> Tensor:
        made: Tensor = functional_call(net, relaxation.weights(known(net), alpha_UV), (image_BCHW,))
        return made

    target = answer(one_hot(relaxation, best))
    alpha_UV = relaxation.fresh(0)
    adam = torch.optim.Adam([alpha_UV], lr=0.2)
    for _ in range(30):
        adam.zero_grad()
        (answer(alpha_UV) - target).square().mean().backward()  # type: ignore[no-untyped-call]
        adam.step()
    assert alpha_UV.argmax() == best and relaxation.shares(alpha_UV)[0, best] > 0.8


@pytest.mark.parametrize("unit", [BODY, ATTENTION], ids=lambda unit: unit.name)
def test_weights_of_each_candidates_own(unit: PrunableUnit) -> None:
    """Begin as the shared ones in the maps' own order; with one candidate's weight they are its copy and no other's."""
    net = body() if unit is BODY else WindowAttention(HEADS * ATTENTION.width, HEADS)
    shared, own = Relaxation([unit], 0.2, known(net), ranked=False), OwnWeights([unit], 0.2, known(net))

    def same(alpha_UV: Tensor) -> bool:
        one, other = shared.weights(known(net), alpha_UV), own.weights(known(net), alpha_UV)
        return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)

    assert same(torch.randn_like(own.fresh(0)))
    ((name, copies),) = own.own().items()
    assert name == f"0.{unit.readers[0].parameter}" and len(copies) == len(own.widths[0])
    with torch.no_grad():
        copies[0] += 1
        copies[2] += 1
    assert same(one_hot(own, 1)) and not same(one_hot(own, 0)) and not same(torch.zeros_like(own.fresh(0)))


def test_copies_leave_what_other_units_read() -> None:
    """Two units whose maps are read by one layer, and one map beside them that is nobody's."""
    weight = {"both.weight": torch.randn(2, 16 + 1 + 16, 1, 1)}
    units = [PrunableUnit(str(start), 16, (), (Span("both.weight", 1, start),)) for start in (0, 17)]
    shared, own = Relaxation(units, 0.2, weight, ranked=False), OwnWeights(units, 0.2, weight)
    alpha_UV = torch.randn_like(own.fresh(0))
    made = own.weights(weight, alpha_UV)["both.weight"]
    assert torch.allclose(made, shared.weights(weight, alpha_UV)["both.weight"])
    assert torch.equal(made[:, 16], weight["both.weight"][:, 16])
