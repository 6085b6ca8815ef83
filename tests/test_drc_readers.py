"""What comes before a layer is computed once, and what a network then makes is the same to the last bit."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from curate.drc import readers
from curate.drc.readers import Prefix

ROOM = 1 << 30


class Counted(nn.Conv2d):
    """A convolution 3x3 of four maps that knows how often it was computed."""

    def __init__(self) -> None:
        super().__init__(4, 4, 3, padding=1)
        self.times = 0

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        self.times += 1
        return super().forward(maps_BCHW)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Counted(), nn.ReLU(), Counted())

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        added_BCHW: Tensor = maps_BCHW + self.body(maps_BCHW)
        return added_BCHW


class Net(nn.Module):
    """A conv, three blocks in a row, `turns` times, what goes around them; in place `before` or `after` them."""

    def __init__(self, turns: int = 1, in_place: str = "") -> None:
        super().__init__()
        self.first = nn.ModuleList([Counted()])
        self.row = nn.Sequential(Block(), Block(), Block())
        self.last = Counted()
        self.turns, self.in_place = turns, in_place

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        first_BCHW = self.first[0](maps_BCHW)
        if self.in_place == "before":
            first_BCHW += maps_BCHW
        found_BCHW = first_BCHW
        for _ in range(self.turns):
            found_BCHW = self.row(found_BCHW)
        if self.in_place == "after":
            first_BCHW += found_BCHW
            found_BCHW = first_BCHW
        answer_BCHW: Tensor = self.last(found_BCHW + first_BCHW)
        return answer_BCHW

    def times(self) -> list[int]:
        """How often each convolution was computed since this was last asked, in the order of the network."""
        convs = [module for module in self.modules() if isinstance(module, Counted)]
        found = [conv.times for conv in convs]
        for conv in convs:
            conv.times = 0
        return found


@pytest.fixture
def batches() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.rand(2, 4, 6, 6) for _ in range(2)]


def test_nothing_before_the_layer_is_computed_again(batches: list[Tensor]) -> None:
    """first, then two convolutions of each block: of the second block's second one on, all is computed."""
    net = Net()
    layer = net.get_submodule("row.1.body.2")
    prefix = Prefix(net, [layer], batches, ROOM)
    assert net.times() == [2, 2, 2, 2, 0, 0, 0, 0]
    for number in (0, 1, 0):
        answer = prefix(number, batches[number])
        assert net.times() == [0, 0, 0, 0, 1, 1, 1, 1]
        assert torch.equal(answer, net(batches[number]))
        net.times()
    with torch.no_grad():
        layer.weight.mul_(2)
    assert torch.equal(prefix(1, batches[1]), net(batches[1]))


def test_gradients_are_the_same(batches: list[Tensor]) -> None:
    net = Net()
    layer = net.get_submodule("row.1.body.2")
    prefix = Prefix(net, [layer], batches, ROOM)
    one, other = (
        torch.autograd.grad(answer.sum(), [layer.weight, net.last.weight])
        for answer in (prefix(0, batches[0]), net(batches[0]))
    )
    assert all(map(torch.equal, one, other))


def test_a_recursion_goes_on_from_its_first_turn(batches: list[Tensor]) -> None:
    net = Net(turns=2)
    prefix = Prefix(net, [net.get_submodule("row.1.body.2")], batches, ROOM)
    net.times()
    answer = prefix(0, batches[0])
    assert net.times() == [0, 1, 1, 1, 2, 2, 2, 1]
    assert torch.equal(answer, net(batches[0]))


def test_of_several_layers_the_first_counts(batches: list[Tensor]) -> None:
    net = Net()
    prefix = Prefix(net, [net.last, net.get_submodule("row.0.body.0")], batches, ROOM)
    net.times()
    answer = prefix(0, batches[0])
    assert net.times() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert torch.equal(answer, net(batches[0]))


@pytest.mark.parametrize(("in_place", "limit"), [("", 6911), ("before", ROOM), ("after", ROOM)])
def test_all_is_computed_where_nothing_can_be_kept(in_place: str, limit: int, batches: list[Tensor]) -> None:
    """No room, or a kept tensor is added to in place: it would be another one the next time."""
    net = Net(in_place=in_place)
    prefix = Prefix(net, [net.get_submodule("row.2.body.2")], batches, limit)
    wanted = [net(batch) for batch in batches]
    with torch.no_grad():
        assert all(torch.equal(prefix(number, batches[number]), wanted[number]) for number in (0, 0, 1, 0, 1))
    net.times()
    prefix(0, batches[0])
    assert net.times() == [1] * 8


def test_of_modules_in_a_row_the_last_is_kept(batches: list[Tensor]) -> None:
    """Of each of two batches three tensors of 1152 bytes: first, the second block, the ReLU in the third."""
    net = Net()
    prefix = Prefix(net, [net.get_submodule("row.2.body.2")], batches, 6912)
    net.times()
    prefix(0, batches[0])
    assert net.times() == [0, 0, 0, 0, 0, 0, 1, 1]


def test_modules_that_are_changed_in_place_while_they_are_kept(batches: list[Tensor]) -> None:
    net = nn.Sequential(Counted(), nn.ReLU(inplace=True), Counted(), nn.ReLU(inplace=True), Counted())
    prefix = Prefix(net, [net[2]], batches, ROOM)
    assert all(torch.equal(prefix(number, batches[number]), net(batches[number])) for number in (0, 0, 1))
    with readers.taken([net[2]]) as found:
        net(batches[0])
    assert torch.equal(found[0].made, net[2](*found[0].given))


def test_a_network_runs_no_further_than_asked(batches: list[Tensor]) -> None:
    net = Net(turns=2)
    layer = net.get_submodule("row.1.body.2")
    assert readers.calls(net, batches[0], [[layer], [net.last, layer], []]) == [2, 3, 0]
    net.times()
    found = readers.ran(net, batches[0], [layer], 1)
    assert net.times() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert len(found) == 1 and torch.equal(found[0].made, layer(*found[0].given))
    assert Counter(map(type, readers.ran(net, batches[0], [layer], 2))) == {readers.Call: 2}
