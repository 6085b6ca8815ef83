"""DRRN, IDN, RDN and U-Net are the published networks, computed a second time here; public files load under them."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curate import plugins
from curate.archs import Arch
from curate.archs.drrn import Drrn
from curate.archs.idn import Idn
from curate.archs.rdn import Rdn
from curate.archs.unet import Unet
from curate.checkpoint import Checkpoint
from curate.errors import UsageError
from curate.resize import upscale

NAMES = ("drrn", "idn", "rdn", "unet")


def image(channels: int, *, height: int = 9, width: int = 13) -> Tensor:
    """image_1CHW in [0, 1], float64: what is computed in two ways then differs by no more than rounding."""
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def shaken(arch: Arch) -> nn.Module:
    """The arch's network in float64, with weights and biases that are all at work."""
    torch.manual_seed(0)
    network = arch.build().double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


def count(arch: Arch) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in arch.build().parameters())


def conv(network: nn.Module, name: str, maps: Tensor) -> Tensor:
    """The 3x3 or 1x1 convolution of that name, from its weights alone."""
    weight, bias = network.state_dict()[f"{name}.weight"], network.state_dict().get(f"{name}.bias")
    return F.conv2d(maps, weight, bias, padding=weight.shape[-1] // 2, groups=maps.shape[1] // weight.shape[1])


# Published counts


@pytest.mark.parametrize(
    ("spec", "counts"),
    [
        ("drrn", (297_216, 297_216, 297_216)),
        ("idn", (552_769, 552_769, 552_769)),
        ("idn:colour=rgb", (590_915, 590_915, 590_915)),
        ("rdn", (22_123_395, 22_308_035, 22_271_107)),
        ("unet", (7_760_163, 7_760_163, 7_760_163)),
    ],
)
def test_parameter_counts_at_every_scale(spec: str, counts: tuple[int, int, int]) -> None:
    for scale, expected in zip((2, 3, 4), counts, strict=True):
        arch: Arch = plugins.parse("archs", spec, scale=scale)
        assert count(arch) == expected


@pytest.mark.parametrize(("features", "levels"), [(32, 4), (64, 4), (5, 1), (3, 3)])
def test_parameter_count_of_unet_in_closed_form(features: int, levels: int) -> None:
    """Weights of the two 3x3 convs and of the 2x2 one are 9 and 4 times products of widths; a bias for every output."""
    widths = [3] + [features * 2**level for level in range(levels + 1)]
    encoder = sum(9 * (a + b) * b + 2 * b for a, b in pairwise(widths))
    decoder = sum(4 * 2 * b * b + b + 9 * (2 * b + b) * b + 2 * b for b in widths[1:-1])
    assert count(Unet(features=features, levels=levels)) == encoder + decoder + 3 * features + 3


# Computed a second time


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_drrn_is_its_pair_of_convs_unrolled_with_relus_in_place(scale: int) -> None:
    units = 3
    network = shaken(Drrn(scale=scale, units=units, features=6))
    lr_B1HW = 3 * image(1) - 1  # below zero too, where what is rectified tells
    pairs = [(network.conv1.weight.clone(), network.conv2.weight.clone()) for _ in range(units)]
    for pair in pairs:
        for weight in pair:
            weight.detach_().requires_grad_()

    bicubic = upscale(lr_B1HW, scale)
    first = conv(network, "input", torch.relu_(bicubic))
    maps = first
    for weight1, weight2 in pairs:
        inner = F.conv2d(torch.relu_(maps), weight1, padding=1)
        maps = F.conv2d(torch.relu_(inner), weight2, padding=1) + first
    expected = conv(network, "output", torch.relu_(maps)) + bicubic
    assert bicubic.min() == 0 and first.min() == 0  # also what is added later is rectified

    sr_B1HW = network(lr_B1HW)
    torch.testing.assert_close(sr_B1HW, expected)
    sr_B1HW.square().sum().backward()
    expected.square().sum().backward()
    for index, shared in enumerate((network.conv1.weight, network.conv2.weight)):
        torch.testing.assert_close(shared.grad, sum(pair[index].grad for pair in pairs))


@pytest.mark.parametrize(("scale", "colour"), [(2, "y"), (3, "rgb"), (4, "y")])
def test_idn_is_its_slices_and_sums(scale: int, colour: str) -> None:
    features, d = 20, 4
    arch: Idn = plugins.parse("archs", "idn", scale=scale, features=features, d=d, blocks=2, colour=colour)
    network = shaken(arch)
    lr_BCHW = image(1 if colour == "y" else 3)

    def active(name: str, maps: Tensor) -> Tensor:
        return F.leaky_relu(conv(network, name, maps), 0.05)

    maps = active("fblock.module.2", active("fblock.module.0", lr_BCHW))
    for block in ("dblocks.0", "dblocks.1"):
        top = maps
        for layer in (0, 2, 4):
            top = active(f"{block}.enhancement_top.{layer}", top)
        bottom = top[:, : features - d]
        for layer in (0, 2, 4):
            bottom = active(f"{block}.enhancement_bottom.{layer}", bottom)
        upper = bottom[:, :features] + maps
        lower = bottom[:, features:] + top[:, features - d :]
        maps = conv(network, f"{block}.compression", torch.cat([upper, lower], dim=1))
    # A transposed convolution is a convolution of the image with zeros between its pixels, by the turned kernel.
    height, width = lr_BCHW.shape[-2:]
    spread = maps.new_zeros(1, features, height * scale, width * scale)
    spread[..., ::scale, ::scale] = maps
    kernel = network.deconv.weight.transpose(0, 1).flip(2, 3)
    residual = F.conv2d(spread, kernel, network.deconv.bias, padding=8)
    expected = F.interpolate(lr_BCHW, size=spread.shape[-2:], mode="bicubic") + residual
    torch.testing.assert_close(network(lr_BCHW), expected)


@pytest.mark.parametrize(("scale", "growth"), [(2, 4), (3, 4), (4, 3)])
def test_rdn_connects_every_layer_to_all_before_it(scale: int, growth: int) -> None:
    network = shaken(Rdn(scale=scale, blocks=3, layers=2, growth=growth, features=4))
    lr_BCHW = image(3)
    first = conv(network, "sfe1", lr_BCHW)
    maps, outputs = conv(network, "sfe2", first), []
    for block in range(3):
        earlier = [maps]
        for layer in range(2):
            new = conv(network, f"rdbs.{block}.layers.{layer}.conv", torch.cat(earlier, dim=1))
            earlier.append(new.clamp(min=0))
        maps = maps + conv(network, f"rdbs.{block}.lff", torch.cat(earlier, dim=1))
        outputs.append(maps)
    maps = conv(network, "gff.1", conv(network, "gff.0", torch.cat(outputs, dim=1))) + first
    for layer, factor in {2: [(0, 2)], 3: [(0, 3)], 4: [(0, 2), (2, 2)]}[scale]:
        maps = F.pixel_shuffle(conv(network, f"upscale.{layer}", maps), factor)
    torch.testing.assert_close(network(lr_BCHW), conv(network, "output", maps))


@pytest.mark.parametrize(("scale", "height", "width"), [(2, 9, 13), (3, 7, 7), (4, 8, 5)])
def test_unet_joins_what_its_encoder_kept(scale: int, height: int, width: int) -> None:
    network = shaken(Unet(scale=scale, features=2, levels=2))
    lr_BCHW = image(3, height=height, width=width)
    bicubic = upscale(lr_BCHW, scale)
    height, width = bicubic.shape[-2:]
    rows = torch.arange(-(-height // 4) * 4).clamp(max=height - 1)
    columns = torch.arange(-(-width // 4) * 4).clamp(max=width - 1)

    def twice(name: str, maps: Tensor) -> Tensor:
        return conv(network, f"{name}.2", conv(network, f"{name}.0", maps).clamp(min=0)).clamp(min=0)

    def enlarged(index: int, maps: Tensor) -> Tensor:
        """Each pixel becomes 2x2, of weights of their own."""
        weight = network.enlarge[index].weight
        blocks = torch.einsum("bihw,ioyx->bohywx", maps, weight).flatten(4, 5).flatten(2, 3)
        return blocks + network.enlarge[index].bias.reshape(-1, 1, 1)

    full = twice("encoder.0", bicubic[:, :, rows][..., columns])
    half = twice("encoder.1", full.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)))
    quarter = twice("encoder.2", half.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)))
    half = twice("decoder.0", torch.cat([half, enlarged(0, quarter)], dim=1))
    full = twice("decoder.1", torch.cat([full, enlarged(1, half)], dim=1))
    expected = bicubic + conv(network, "last", full)[..., :height, :width]
    torch.testing.assert_close(network(lr_BCHW), expected)


# Fresh networks


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(7, 7), (7, 31), (16, 9)])
def test_unet_without_a_last_layer_is_the_bicubic_image(scale: int, height: int, width: int) -> None:
    network = Unet(scale=scale, features=2, levels=5).build()
    nn.init.zeros_(network.last.weight)
    lr_BCHW = image(3, height=height, width=width).float()
    assert torch.equal(network(lr_BCHW), upscale(lr_BCHW, scale))


@pytest.mark.parametrize(("spec", "most"), [("drrn", 0.02), ("idn", 0.2), ("idn:colour=rgb", 0.2), ("unet", 0.02)])
@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_fresh_residual_networks_are_close_to_bicubic(spec: str, most: float, seed: int) -> None:
    torch.manual_seed(seed)
    arch: Arch = plugins.parse("archs", spec)
    lr_BCHW = image(1 if arch.colour == "y" else 3).float()
    difference = arch.build()(lr_BCHW) - upscale(lr_BCHW, 2).clamp(0)
    assert 0 < difference[..., 4:-4, 4:-4].abs().mean() < most


@torch.no_grad()
def test_fresh_rdn_has_values_of_an_image() -> None:
    torch.manual_seed(0)
    sr_BCHW = Rdn().build()(image(3).float())
    assert 1e-3 < sr_BCHW.std() < 1


# Public files

DRRN = {name: name for name in ("input.weight", "conv1.weight", "conv2.weight", "output.weight")}
DRRN_YJN870 = {  # public module -> ours
    "rbs.0.h0.module.1.weight": "input.weight",
    "rbs.0.ru.module.0.module.1.weight": "conv1.weight",
    "rbs.0.ru.module.1.module.1.weight": "conv2.weight",
    "rec.module.1.weight": "output.weight",
}


def with_biases(modules: dict[str, str]) -> dict[str, str]:
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in modules.items() for kind in ("weight", "bias")}


IDN = with_biases(
    {
        name: name
        for name in (
            "fblock.module.0",
            "fblock.module.2",
            "dblocks.0.enhancement_top.0",
            "dblocks.0.enhancement_top.2",
            "dblocks.0.enhancement_top.4",
            "dblocks.0.enhancement_bottom.0",
            "dblocks.0.enhancement_bottom.2",
            "dblocks.0.enhancement_bottom.4",
            "dblocks.0.compression",
            "deconv",
        )
    }
)
RDN_EDSR_PYTORCH_X2 = with_biases(
    {
        "SFENet1": "sfe1",
        "SFENet2": "sfe2",
        "RDBs.0.convs.0.conv.0": "rdbs.0.layers.0.conv",
        "RDBs.0.convs.1.conv.0": "rdbs.0.layers.1.conv",
        "RDBs.0.LFF": "rdbs.0.lff",
        "RDBs.1.convs.0.conv.0": "rdbs.1.layers.0.conv",
        "RDBs.1.convs.1.conv.0": "rdbs.1.layers.1.conv",
        "RDBs.1.LFF": "rdbs.1.lff",
        "GFF.0": "gff.0",
        "GFF.1": "gff.1",
        "UPNet.0": "upscale.0",
        "UPNet.2": "output",
    }
)
RDN_EDSR_PYTORCH_X4 = RDN_EDSR_PYTORCH_X2 | with_biases({"UPNet.2": "upscale.2", "UPNet.4": "output"})
RDN_X2 = {ours: ours for ours in RDN_EDSR_PYTORCH_X2.values()}
RDN_X4 = {ours: ours for ours in RDN_EDSR_PYTORCH_X4.values()}

PUBLIC = {
    "jt827859032/DRRN-pytorch": ("drrn:scale=3,units=9", Drrn(scale=3, units=9, features=5), DRRN, 1.0),
    "yjn870/DRRN-pytorch": ("drrn:scale=4,units=9", Drrn(scale=4, units=9, features=5), DRRN_YJN870, 1.0),
    "yjn870/IDN-pytorch": ("idn:scale=2", Idn(features=12, d=4, blocks=1, colour="rgb"), IDN, 1.0),
    "yjn870/RDN-pytorch x2": (None, Rdn(blocks=2, layers=2, growth=3, features=3), RDN_X2, 1.0),
    "torchSR x4": (None, Rdn(scale=4, blocks=2, layers=2, growth=3, features=3), RDN_X4, 1.0),
    "EDSR-PyTorch x2": (None, Rdn(blocks=2, layers=2, growth=3, features=3), RDN_EDSR_PYTORCH_X2, 255.0),
    "EDSR-PyTorch x4": (None, Rdn(scale=4, blocks=2, layers=2, growth=3, features=3), RDN_EDSR_PYTORCH_X4, 255.0),
}


@pytest.mark.parametrize("family", PUBLIC)
def test_public_files_are_the_same_network(family: str, tmp_path: Path) -> None:
    """Wrapped as trainers do; `peak` is the family's own range, in which its network is run."""
    spec, arch, names, peak = PUBLIC[family]
    theirs = shaken(arch).float()
    ours = theirs.state_dict()
    assert sorted(names.values()) == sorted(ours)
    wrapped = {f"module.{name}": ours[our_name] for name, our_name in names.items()}
    torch.save({"epoch": 7, "state_dict": wrapped}, tmp_path / "net.pth")
    loaded = Checkpoint.load(tmp_path / "net.pth", spec)
    assert loaded.arch == arch
    assert all(torch.equal(loaded.state[name], ours[name]) for name in ours if peak == 1.0 or name.endswith(".weight"))
    lr_BCHW = image(1 if arch.colour == "y" else 3).float()
    torch.testing.assert_close(loaded.module()(lr_BCHW), theirs(peak * lr_BCHW) / peak, rtol=1e-4, atol=1e-4)


def test_without_an_arch_the_scale_is_asked_for_where_weights_do_not_tell_it(tmp_path: Path) -> None:
    for arch, example in (
        (Drrn(features=5), "drrn:scale=2,features=5"),
        (Idn(features=12, d=4, blocks=1, colour="rgb"), "idn:scale=2,features=12,d=4,blocks=1,colour=rgb"),
        (Unet(features=2, levels=3), "unet:scale=2,features=2,levels=3"),
    ):
        torch.save(arch.build().state_dict(), tmp_path / "net.pth")
        with pytest.raises(UsageError, match=f"say which with --arch {example}$"):
            Checkpoint.load(tmp_path / "net.pth")


def test_a_state_is_recognised_by_its_own_arch_alone() -> None:
    drafts: dict[str, Arch] = {name: plugins.parse("archs", name) for name in plugins.names("archs")}
    states = {name: draft.build().state_dict() for name, draft in drafts.items()}
    pairs = [(a, b) for a in drafts for b in states if a in NAMES or b in NAMES]
    recognised = [(a, b) for a, b in pairs if drafts[a].infer(drafts[a].adapt(states[b]))]
    assert recognised == [(name, name) for name in NAMES]


@pytest.mark.parametrize(
    ("arch", "name", "shape"),
    [
        (Drrn(features=5), "conv2.weight", (5, 4, 3, 3)),
        (Drrn(features=5), "input.weight", ()),
        (Idn(features=12, d=4, blocks=1), "fblock.module.0.weight", (12, 2, 3, 3)),
        (Idn(features=12, d=4, blocks=1), "fblock.module.0.weight", ()),
        (Idn(features=12, d=4, blocks=1), "dblocks.0.enhancement_top.0.weight", (12, 12, 3, 3)),
        (Idn(features=12, d=4, blocks=1), "dblocks.0.enhancement_top.0.weight", ()),
        (Rdn(blocks=1, layers=1, growth=3, features=3), "upscale.0.weight", (15, 3, 3, 3)),
        (Rdn(blocks=1, layers=1, growth=3, features=3), "upscale.0.weight", ()),
        (Rdn(blocks=1, layers=1, growth=3, features=3), "sfe1.weight", ()),
        (Unet(features=2, levels=1), "last.weight", (1, 2, 1, 1)),
        (Unet(features=2, levels=1), "encoder.0.0.weight", ()),
    ],
)
def test_shapes_of_no_variant_are_not_recognised(arch: Arch, name: str, shape: tuple[int, ...]) -> None:
    state = arch.build().state_dict()
    assert arch.infer(state) != {}
    assert arch.infer({**state, name: torch.zeros(shape)}) == {}


@pytest.mark.parametrize("arch", [Idn(features=12, d=4, blocks=1), Rdn(blocks=1, layers=1), Unet(features=2, levels=1)])
def test_an_unknown_name_is_of_another_network(arch: Arch) -> None:
    assert arch.infer({**arch.build().state_dict(), "attention.weight": torch.zeros(3)}) == {}


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("drrn:scale=5", "scale should be 2, 3 or 4, found 5"),
        ("drrn:units=0", "units and features should be at least 1, found units=0, features=128"),
        ("idn:d=6", "multiples of 4, d at least 4 and features above 2 d, found features=64, d=6"),
        ("idn:features=32", "found features=32, d=16"),
        ("idn:blocks=0", "blocks should be at least 1, found 0"),
        ("idn:colour=cmyk", "'y' or 'rgb'"),
        ("rdn:scale=1", "scale should be 2, 3 or 4, found 1"),
        ("rdn:growth=0", "at least 1, found blocks=16, layers=8, growth=0, features=64"),
        ("unet:levels=0", "features and levels should be at least 1, found features=32, levels=0"),
    ],
)
def test_options_that_do_not_fit_are_one_line(spec: str, reason: str) -> None:
    with pytest.raises(UsageError) as error:
        plugins.parse("archs", spec)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
