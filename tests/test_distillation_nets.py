"""A matching network is its Arch, as a function of parameters and patches."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from curate import plugins
from curate.archs import Arch
from curate.archs.dlsr import Dlsr
from curate.archs.edsr import Edsr
from curate.archs.fsrcnn import Fsrcnn
from curate.archs.idn import Idn
from curate.archs.rcan import Rcan
from curate.archs.srcnn import Srcnn
from curate.archs.swinir import Swinir
from curate.distillation.nets import MatchingNet
from curate.errors import UsageError
from curate.metrics import rgb_to_y
from curate.resize import downscale

SMALL_EDSR = Edsr(features=8, blocks=1)


@dataclass(frozen=True)
class Toy(Arch):
    """Two grouped layers, smooth, the second transposed: 3 -> 4 maps, tanh, -> 3 maps of twice the size."""

    scale: int = 2
    groups: int = 1

    colour: ClassVar[Literal["y", "rgb"]] = "rgb"
    peak: ClassVar[float] = 1.0

    def build(self) -> nn.Module:
        first = nn.Conv2d(3, 6, 3, padding=1)
        last = nn.ConvTranspose2d(6, 3, 4, stride=2, padding=1, groups=self.groups)
        return nn.Sequential(first, nn.Tanh(), last)


def patches(number: int = 2, side: int = 12, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("arch", [Srcnn(scale=3), Fsrcnn(), SMALL_EDSR, Idn(colour="rgb", features=12, d=4, blocks=1)])
@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_the_loss_is_that_of_training_in_parts_of_white(arch: Arch, loss: Literal["mse", "l1"]) -> None:
    net, hr_N3HW, weight_N = MatchingNet(arch, loss=loss), patches(), torch.tensor([0.5, 1.5])
    torch.manual_seed(3)
    network = arch.build()
    seen = rgb_to_y(hr_N3HW) if arch.colour == "y" else hr_N3HW
    lr = downscale(hr_N3HW, arch.scale)
    sr = network((rgb_to_y(lr) if arch.colour == "y" else lr) * arch.peak) / arch.peak
    each = (sr - seen).square() if loss == "mse" else (sr - seen).abs()
    found = net.loss(net.fresh(3), hr_N3HW)
    assert found.item() == pytest.approx(each.mean().item(), rel=1e-5)
    weighted = net.loss(net.fresh(3), hr_N3HW, weight_N)
    assert weighted.item() == pytest.approx((each.mean(dim=(1, 2, 3)) * weight_N).mean().item(), rel=1e-5)


def test_weights_are_the_seeds_and_no_generator_is_moved() -> None:
    torch.manual_seed(8)
    before = torch.get_rng_state()
    net = MatchingNet(Fsrcnn())
    first, again, other = net.fresh(4), net.fresh(4), net.fresh(5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    expected = dict(Fsrcnn().build().named_parameters())
    assert first.keys() == again.keys() == expected.keys()
    assert all(torch.equal(first[name], expected[name]) and torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert not any(tensor.requires_grad for tensor in first.values())


def test_a_net_has_no_state_of_its_own() -> None:
    """What it is called with decides, not what it was called with before."""
    net, hr_N3HW = MatchingNet(SMALL_EDSR), patches()
    before = net.loss(net.fresh(1), hr_N3HW)
    net.trained(net.fresh(2), [patches(seed=3)] * 3, 3, 1e-3)
    net.features(net.fresh(2), hr_N3HW)
    assert torch.equal(net.loss(net.fresh(1), hr_N3HW), before)


def test_what_is_random_in_training_is_off() -> None:
    arch = Swinir(embed=12, groups=1, blocks=2, drop_path=0.9)
    net, hr_N3HW = MatchingNet(arch), patches(8)
    before = torch.get_rng_state()
    parameters = net.fresh(0)
    assert len({net.loss(parameters, hr_N3HW).item() for _ in range(3)}) == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_are_those_of_the_module() -> None:
    net, hr_N3HW = MatchingNet(Srcnn()), patches()
    parameters = net.fresh(0)
    network = Srcnn().build()
    network.load_state_dict(parameters)
    lr_BCHW, target_BCHW = net.pair(hr_N3HW)
    (network(lr_BCHW) - target_BCHW).square().mean().backward()
    found = net.gradient(parameters, hr_N3HW)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad)
        assert not found[name].requires_grad and not parameters[name].requires_grad


@pytest.mark.parametrize("groups", [1, 3])
def test_rows_of_a_transposed_convolution_are_its_output_channels(groups: int) -> None:
    """By loops: of each output channel the weights that end in it, and by what they do: a row moves its output only."""
    net = MatchingNet(Toy(groups=groups))
    weight = net.fresh(0)["2.weight"]  # inputs, outputs of a group, 4, 4
    inputs, outputs = 6 // groups, 3 // groups
    expected = []
    for group in range(groups):
        for output in range(outputs):
            taps = [weight[group * inputs + i, output, y, x] for i in range(inputs) for y in range(4) for x in range(4)]
            expected.append(torch.stack(taps))
    parameters = net.fresh(0)
    rows = net.rows(parameters)
    assert torch.equal(rows["2.weight"], torch.stack(expected))
    assert torch.equal(rows["0.weight"], parameters["0.weight"].reshape(6, 27))
    assert rows.keys() == {"0.weight", "2.weight"}  # no biases


@pytest.mark.parametrize("groups", [1, 3])
def test_a_row_reaches_one_output_channel(groups: int) -> None:
    net, hr_N3HW = MatchingNet(Toy(groups=groups)), patches()
    parameters = net.fresh(0)
    for channel in range(3):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in parameters.items()}
        lr_BCHW, _ = net.pair(hr_N3HW)
        sr_BCHW = torch.func.functional_call(net.module, leaves, (lr_BCHW,))
        found = torch.autograd.grad(sr_BCHW[:, channel].sum(), list(leaves.values()))
        moved = net.rows(dict(zip(leaves, found, strict=True)))["2.weight"].ne(0).any(dim=1)
        assert moved.tolist() == [channel == other for other in range(3)]


def test_rows_of_grouped_convolutions_and_shared_ones() -> None:
    rows = MatchingNet(Idn(features=12, d=4, blocks=1))
    parameters = rows.fresh(0)
    weights = {name for name, tensor in parameters.items() if tensor.ndim == 4}
    assert rows.rows(parameters).keys() == weights
    assert all(len(rows.rows(parameters)[name]) == len(parameters[name]) for name in weights - {"deconv.weight"})
    assert rows.rows(parameters)["deconv.weight"].shape == (1, 12 * 17 * 17)


def test_features_are_the_maps_of_all_convolutions_but_the_last() -> None:
    net, hr_N3HW = MatchingNet(Srcnn()), patches()
    parameters = net.fresh(0)
    network = Srcnn().build()
    network.load_state_dict(parameters)
    lr_BCHW, _ = net.pair(hr_N3HW)
    first_BCHW = network.conv1(network.bicubic(lr_BCHW))
    first, second = net.features(parameters, hr_N3HW)
    torch.testing.assert_close(first, first_BCHW)
    torch.testing.assert_close(second, network.conv2(first_BCHW.relu()))


def test_features_leave_out_what_is_no_map_and_leave_no_hook() -> None:
    net = MatchingNet(Rcan(features=16, groups=1, blocks=1))
    maps = net.features(net.fresh(0), patches())
    assert {tuple(map_BCHW.shape[2:]) for map_BCHW in maps} == {(6, 6)}  # not the 1x1 ones of channel attention
    with pytest.raises(UsageError):
        net.features(net.fresh(0), patches(side=13))
    with pytest.raises(RuntimeError):
        net.features({}, patches())
    assert not any(module._forward_hooks for module in net.module.modules())


@pytest.mark.parametrize("by", ["adam", "sgd"])
def test_training_lowers_the_loss_and_leaves_what_it_was_given(by: Literal["adam", "sgd"]) -> None:
    net, hr_N3HW = MatchingNet(Fsrcnn(d=8, s=4, m=1)), patches()
    parameters = net.fresh(0)
    copies = {name: tensor.clone() for name, tensor in parameters.items()}
    trained = net.trained(parameters, [hr_N3HW] * 10, 10, 1e-2, by)
    assert net.loss(trained, hr_N3HW) < 0.9 * net.loss(parameters, hr_N3HW)
    assert all(torch.equal(parameters[name], copies[name]) for name in copies)
    assert not any(tensor.requires_grad for tensor in trained.values())
    unmoved = net.trained(parameters, [], 0, 1.0)
    assert all(torch.equal(unmoved[name], copies[name]) for name in copies)


def test_a_step_of_sgd_is_the_gradient() -> None:
    net, hr_N3HW = MatchingNet(Toy()), patches()
    parameters = net.fresh(0)
    gradient, stepped = net.gradient(parameters, hr_N3HW), net.trained(parameters, [hr_N3HW], 1, 0.5, "sgd")
    for name, tensor in parameters.items():
        torch.testing.assert_close(stepped[name], tensor - 0.5 * gradient[name])


def test_targets_stand_in_for_the_patches() -> None:
    net, hr_N3HW, other_N3HW = MatchingNet(Srcnn()), patches(), patches(seed=1)
    parameters = net.fresh(0)
    assert torch.equal(net.loss(parameters, hr_N3HW, target=hr_N3HW), net.loss(parameters, hr_N3HW))
    as_rgb = net.loss(parameters, hr_N3HW, target=other_N3HW)
    assert torch.equal(net.loss(parameters, hr_N3HW, target=rgb_to_y(other_N3HW)), as_rgb)
    assert not torch.equal(as_rgb, net.loss(parameters, hr_N3HW))
    for target in (other_N3HW[:1], other_N3HW[..., :6], other_N3HW[:, :2]):
        with pytest.raises(UsageError, match=r"targets should be .* found \(") as error:
            net.loss(parameters, hr_N3HW, target=target)
        assert str(error.value).isprintable()
    with pytest.raises(UsageError, match="targets"):
        MatchingNet(SMALL_EDSR).pair(hr_N3HW, rgb_to_y(hr_N3HW))  # luma, of a network on RGB


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (patches(side=13), "multiples of the scale 2, found 13x13 px"),
        (patches(number=0), "N, H and W at least 1, found (0, 3, 12, 12)"),
        (patches()[:, :1], "found (2, 1, 12, 12)"),
        (patches()[0], "found (3, 12, 12)"),
        (patches().double(), "torch.float32, as the network is, found torch.float64"),
        ((patches() * 255).to(torch.uint8), "found torch.uint8"),
    ],
)
def test_patches_that_do_not_fit_are_one_line(bad: Tensor, reason: str) -> None:
    net = MatchingNet(Srcnn())
    for question in (net.loss, net.features, net.gradient):
        with pytest.raises(UsageError) as error:
            question(net.fresh(0), bad)
        assert reason in str(error.value) and str(error.value).isprintable()


def test_patches_that_are_too_small_for_the_network_are_one_line() -> None:
    net = MatchingNet(Dlsr(features=4))
    for question in (net.loss, net.features, net.gradient):
        with pytest.raises(UsageError, match=r"sides of patches should be 30 px or more, found 28, in LR 14$"):
            question(net.fresh(0), patches(side=28))
    assert net.loss(net.fresh(0), patches(side=30)).isfinite()


def test_unknown_options_and_too_few_batches_are_one_line() -> None:
    net = MatchingNet(Toy())
    with pytest.raises(UsageError, match="no loss 'huber'; there are: l1, mse"):
        MatchingNet(Toy(), loss="huber")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no steps by 'soap'; there are: adam, sgd"):
        net.trained(net.fresh(0), [], 0, 1.0, by="soap")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="3 steps take as many batches, found 2"):
        net.trained(net.fresh(0), [patches()] * 2, 3, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["edsr:features=8,blocks=1", "srcnn:kernel=9-1-5"])
def test_the_dtype_is_kept(name: str, dtype: torch.dtype) -> None:
    net = MatchingNet(plugins.parse("archs", name), dtype=dtype)
    hr_N3HW = patches(dtype=dtype)
    parameters = net.fresh(0)
    assert net.loss(parameters, hr_N3HW).dtype == dtype
    assert {tensor.dtype for tensor in net.gradient(parameters, hr_N3HW).values()} == {dtype}
    assert {tensor.dtype for tensor in net.features(parameters, hr_N3HW)} == {dtype}


def test_what_is_not_finite_stays_so() -> None:
    net, hr_N3HW = MatchingNet(Srcnn()), patches()
    hr_N3HW[0, 0, 0, 0] = torch.nan
    assert net.loss(net.fresh(0), hr_N3HW).isnan()
