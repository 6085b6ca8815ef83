"""Multiply-adds are those of closed forms done by hand, and of the literature's tables where these count the same."""

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curate import plugins
from curate.archs import Arch
from curate.archs._layers import Bicubic
from curate.errors import UsageError
from curate.macs import convention, multiply_adds, parameters
from curate.resize import upscale

HD = (720, 1280)  # height, width: the literature's answer
PX = {1: 1280 * 720, 2: 640 * 360, 3: 427 * 240, 4: 320 * 180}  # of its input by scale; 1280 / 3 is 426.7


@dataclass(frozen=True)
class Given(Arch):
    """An arch whose network is whatever `make` returns."""

    make: Callable[[], nn.Module]
    scale: int = 2
    colour: Literal["y", "rgb"] = "rgb"

    peak: ClassVar[float] = 1.0

    def build(self) -> nn.Module:
        return self.make()


# Closed forms: kernel * kernel * maps in * maps out, at each px of `PX` unless said otherwise


def srcnn(second: int) -> int:
    return 9 * 9 * 64 + second * second * 64 * 32 + 5 * 5 * 32  # at each px of the answer


def fsrcnn_convs() -> int:
    return 5 * 5 * 56 + 56 * 12 + 4 * 3 * 3 * 12 * 12 + 12 * 56


def fsrcnn() -> int:
    return fsrcnn_convs() + 9 * 9 * 56  # the transposed conv spreads each LR px over 9x9 px


def drrn() -> int:
    return 9 * 128 + 25 * 2 * 9 * 128 * 128 + 9 * 128  # at each px of the answer


def idn(channels: int) -> int:
    first = 9 * channels * 64 + 9 * 64 * 64
    top = 9 * 64 * 48 + 9 * 48 * 32 // 4 + 9 * 32 * 64  # the second of three convs has 4 groups
    bottom = 9 * 48 * 64 + 9 * 64 * 48 // 4 + 9 * 48 * 80
    return first + 4 * (top + bottom + 80 * 64) + 17 * 17 * 64 * channels


def imdn(scale: int) -> int:
    module = 9 * 64 * 64 + 2 * 9 * 48 * 64 + 9 * 48 * 16 + 64 * 64
    return 9 * 3 * 64 + 6 * module + 6 * 64 * 64 + 9 * 64 * 64 + 9 * 64 * 3 * scale**2


def edsr(scale: int, features: int = 64, convs: int = 2 * 16 + 1) -> int:
    """`convs` of features to features between the first conv and the upsampler."""
    square = 9 * features * features
    upsampler = {2: 4, 3: 9, 4: 4 + 4 * 4}[scale] * square  # x4: two steps, the second at twice the size
    return 9 * 3 * features + convs * square + upsampler + scale**2 * 9 * features * 3


def rcan(scale: int) -> int:
    return edsr(scale, convs=10 * (20 * 2 + 1) + 1)


def rdn(scale: int) -> int:
    block = sum(9 * (64 + 64 * layer) * 64 for layer in range(8)) + 9 * 64 * 64  # 1x1: 64 + 8 * 64 maps to 64
    return 16 * block + 16 * 64 * 64 + edsr(scale, convs=2)


def swinir_light(scale: int) -> int:
    """At each px of the input with its border."""
    attention = 3 * 60 * 60 + 2 * 64 * 60 + 60 * 60  # q, k and v; their products with the 64 px of a window; result
    block = attention + 2 * 60 * 120
    return 9 * 3 * 60 + 4 * (6 * block + 9 * 60 * 60) + 9 * 60 * 60 + 9 * 60 * 3 * scale**2


def unet() -> int:
    """At each px of the answer: each level has a quarter of the px and, conv for conv, four times the products."""
    return 9 * (3 * 32 + 32 * 32) + 4 * 9 * (32 * 64 + 64 * 64) // 4 + 4 * (4 * 64 * 32 // 4 + 9 * 3 * 32 * 32) + 3 * 32


def dlsr(scale: int, c: int, operations: int) -> int:
    """`operations`: weights of a cell's three. All at each px, but for what the attention does from its stride 2 on."""
    height, width = {2: (360, 640), 3: (240, 427), 4: (180, 320)}[scale]
    halved = (height - 3) // 2 + 1, (width - 3) // 2 + 1
    pooled = (halved[0] - 7) // 3 + 1, (halved[1] - 7) // 3 + 1
    inner = c // 4
    cell = 3 * c * c // 2 + 9 * c * c // 2 + 2 * c * c + 2 * c * inner + inner * inner + operations
    near = 9 * 3 * c + 6 * cell + 4 * 2 * c * c + 6 * c * c + 9 * c * c + 9 * c * 3 * scale**2
    far = halved[0] * halved[1] + 3 * pooled[0] * pooled[1]
    return near * height * width + 6 * 9 * inner * inner * far


def dlsr_operations(c: int) -> int:
    return c * c + 2 * (7 * 7 * c + c * c) + 2 * (5 * 5 * c + c * c)  # conv_1x1, sep_7x7, sep_5x5


def drn(c: int, blocks: int) -> int:
    """x4, for c maps at the answer's size: of all its answers, and of the attentions, which work on one px each."""
    size = [PX[1], PX[2], PX[4]]
    down = (9 * c * c + 9 * c * 2 * c) * size[1] + (9 * 2 * c * 2 * c + 9 * 2 * c * 4 * c) * size[2]
    body = blocks * 2 * 9 * 4 * c * 4 * c + 9 * 4 * c * 16 * c
    up = body * size[2] + 4 * c * 2 * c * size[1] + body * size[1] + 4 * c * c * size[0]
    tails = 9 * 4 * c * 3 * (size[2] + size[1]) + 9 * 2 * c * 3 * size[0]
    means = 9 * (2 * size[0] + size[1] + size[2])
    return 9 * 3 * c * size[0] + down + up + tails + means + 2 * blocks * 2 * 4 * c * (4 * c // 16)


CLOSED = {  # spec: parameters, multiply-adds for 1280x720
    "srcnn": (57_281, 57_184 * 921_600),
    "srcnn:scale=3": (57_281, srcnn(5) * 1281 * 720),
    "srcnn:scale=4": (57_281, srcnn(5) * PX[1]),
    "srcnn:kernel=9-1-5": (8_129, srcnn(1) * PX[1]),
    "fsrcnn": (12_809, 12_464 * 230_400),
    "fsrcnn:scale=3": (12_809, fsrcnn() * PX[3]),
    "fsrcnn:scale=4": (12_809, fsrcnn() * PX[4]),
    "drrn": (297_216, drrn() * PX[1]),
    "drrn:scale=3": (297_216, drrn() * 1281 * 720),
    "idn": (552_769, idn(1) * PX[2]),
    "idn:scale=3": (552_769, idn(1) * PX[3]),
    "idn:scale=4": (552_769, idn(1) * PX[4]),
    "idn:colour=rgb": (590_915, idn(3) * PX[2]),
    # The attention's two 1x1 convs, 64 -> 4 -> 64, work on one px.
    "imdn": (694_404, imdn(2) * PX[2] + 6 * 2 * 64 * 4),
    "imdn:scale=3": (703_059, imdn(3) * PX[3] + 6 * 2 * 64 * 4),
    "imdn:scale=4": (715_176, imdn(4) * PX[4] + 6 * 2 * 64 * 4),
    "edsr": (1_369_859, edsr(2) * PX[2]),
    "edsr:scale=3": (1_554_499, edsr(3) * PX[3]),
    "edsr:scale=4": (1_517_571, edsr(4) * PX[4]),
    "edsr:features=256,blocks=32,res_scale=0.1": (40_729_603, edsr(2, 256, 65) * PX[2]),
    "rcan": (15_444_643, rcan(2) * PX[2] + 200 * 2 * 64 * 4),
    "rcan:scale=4": (15_592_355, rcan(4) * PX[4] + 200 * 2 * 64 * 4),
    "rdn": (22_123_395, rdn(2) * PX[2]),
    "rdn:scale=3": (22_308_035, rdn(3) * PX[3]),
    "rdn:scale=4": (22_271_107, rdn(4) * PX[4]),
    "drn": (4_804_065, drn(16, 30)),
    "unet": (7_760_163, unet() * PX[1]),
    "dlsr": (322_620, dlsr(2, 48, dlsr_operations(48))),
    "dlsr:scale=3": (329_115, dlsr(3, 48, dlsr_operations(48))),
    "dlsr:scale=4": (338_208, dlsr(4, 48, dlsr_operations(48))),
    "dlsr:genotype=dlsr-s": (56_268, dlsr(2, 18, dlsr_operations(18))),
    "dlsr:genotype=dlsr-div": (327_804, dlsr(2, 48, 6 * 48 * 48 + 2 * (9 + 25 + 25) * 48)),
    # The border: 640x360, 427x240 and 320x180 px up to the next windows of 8x8 px, one more where they fit.
    "swinir:variant=light": (910_152, swinir_light(2) * 648 * 368),
    "swinir:variant=light,scale=3": (918_267, swinir_light(3) * 432 * 248),
    "swinir:variant=light,scale=4": (929_628, swinir_light(4) * 328 * 184),
}


@pytest.mark.parametrize("spec", CLOSED)
def test_closed_forms(spec: str) -> None:
    arch = plugins.parse("archs", spec)
    assert (parameters(arch), multiply_adds(arch, *HD)) == CLOSED[spec]


# What the literature prints, G: CARN (Ahn et al. 2018), table 1; SwinIR (Liang et al. 2021), table 3, also of IMDN.
# These have no figures of IDN, RCAN and RDN.


def test_srcnn_is_as_in_carns_table() -> None:
    for scale in (2, 3, 4):
        assert giga(CLOSED["srcnn" if scale == 2 else f"srcnn:scale={scale}"][1]) == 52.7


def test_imdn_is_as_in_swinirs_table() -> None:
    assert [giga(CLOSED[spec][1]) for spec in ("imdn", "imdn:scale=3", "imdn:scale=4")] == [158.8, 71.5, 40.9]


def test_drrn_is_as_in_carns_table_but_for_x3() -> None:
    """The table has 6,796.9 for every scale; at x3 the answer made of 427x240 px is 1281x720."""
    assert giga(CLOSED["drrn"][1]) == 6796.9
    assert giga(CLOSED["drrn:scale=3"][1]) == 6802.2
    assert giga(CLOSED["drrn:scale=3"][1] * 1280 / 1281) == 6796.9


def test_carns_table_counts_fsrcnns_transposed_convolution_at_the_answers_px() -> None:
    """6.0, 5.0 and 4.6 in the table, where there are 2.9, 1.3 and 0.7.

    A convolution would make 81 products a map for each px of the answer; with stride `scale` 81 / scale**2 meet there.
    """
    specs = {2: "fsrcnn", 3: "fsrcnn:scale=3", 4: "fsrcnn:scale=4"}
    assert [giga(CLOSED[spec][1]) for spec in specs.values()] == [2.9, 1.3, 0.7]
    assert [giga(fsrcnn_convs() * PX[scale] + 9 * 9 * 56 * PX[1]) for scale in specs] == [6.0, 5.0, 4.6]


def test_carns_table_counts_edsrs_mean_shifts() -> None:
    """316.3 in the table: the public code shifts the mean by 1x1 convs of 3 to 3 maps, before and after; ours adds."""
    assert giga(CLOSED["edsr"][1]) == 316.2
    assert giga(CLOSED["edsr"][1] + 3 * 3 * PX[2] + 3 * 3 * PX[1]) == 316.3


def test_swinirs_table_is_for_another_size_and_leaves_out_parts_of_the_last_convs() -> None:
    """195.6, 87.2 and 49.6 in the table, where there are 249.3, 112.9 and 64.3.

    They are what `flops()` of the authors' code gives for the size in its `__main__`: 1024x720, not 1280x720. It counts
    attention's products as we do, and a LayerNorm's; but of the conv after the groups 3 taps of 9, and of the last
    conv 3 maps for 3 * scale**2.
    """
    norms = (1 + 4 * 6 * 2) * 60
    left_out = {scale: 6 * 60 * 60 + 9 * 60 * 3 * (scale**2 - 1) for scale in (2, 3, 4)}
    px = {scale: (1024 // scale // 8 + 1) * 8 * (720 // scale // 8 + 1) * 8 for scale in (2, 3, 4)}
    printed = [(swinir_light(scale) + norms - left_out[scale]) * px[scale] for scale in (2, 3, 4)]
    assert [giga(number) for number in printed] == [195.6, 87.2, 49.6]
    light = ("swinir:variant=light", "swinir:variant=light,scale=3", "swinir:variant=light,scale=4")
    assert [giga(CLOSED[spec][1]) for spec in light] == [249.3, 112.9, 64.3]


def test_dlsrs_table_has_one_to_three_percent_more() -> None:
    """68.1, 69.3 and 12.4 in the paper (Huang et al. 2021), by a counter that it does not name.

    At x3 and x4 it has 30.9 and 17.9.
    """
    x2 = ("dlsr", "dlsr:genotype=dlsr-div", "dlsr:genotype=dlsr-s")
    assert [round(CLOSED[spec][1] / 1e9, 2) for spec in x2] == [67.31, 68.50, 12.07]
    printed = {"dlsr": 68.1, "dlsr:genotype=dlsr-div": 69.3, "dlsr:genotype=dlsr-s": 12.4}
    printed |= {"dlsr:scale=3": 30.9, "dlsr:scale=4": 17.9}
    for spec, number in printed.items():
        assert 1.009 < number * 1e9 / CLOSED[spec][1] < 1.03


def giga(number: float) -> float:
    return round(number / 1e9, 1)


# Any arch


FEWER = {"drn": "blocks=1", "rcan": "groups=1,blocks=2", "rdn": "blocks=2", "swinir": "groups=1,blocks=2"}


@pytest.mark.parametrize("name", plugins.names("archs"))
def test_every_arch_is_counted(name: str) -> None:
    """At any size; and a checkpoint's numbers are its parameters, so that a file's header tells them."""
    arch = plugins.parse("archs", ":".join(filter(None, [name, FEWER.get(name, "")])))
    assert 0 < multiply_adds(arch, 33, 61) < multiply_adds(arch, 64, 128)
    assert parameters(arch) == sum(tensor.numel() for tensor in arch.build().state_dict().values())


@pytest.mark.parametrize("spec", ["srcnn", "rdn:blocks=2", "rcan:groups=1,blocks=2", "swinir:groups=1,variant=light"])
def test_sizes_that_no_memory_holds(spec: str) -> None:
    """Counted as quickly as any, for nothing is computed."""
    arch = plugins.parse("archs", spec)
    assert multiply_adds(arch, 99_984, 99_984) / multiply_adds(arch, 9_984, 9_984) == pytest.approx(100, rel=0.02)


@pytest.mark.parametrize("spec", ["drrn:units=2", "swinir:groups=1,blocks=1"])
def test_counting_draws_no_random_number(spec: str) -> None:
    arch = plugins.parse("archs", spec)
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    parameters(arch), multiply_adds(arch, 48, 48), convention(arch, 48, 48)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("spec", ["fsrcnn", "unet:levels=1", "swinir:groups=1,blocks=2"])
def test_the_callers_grad_mode_does_not_matter(spec: str, mode: Callable[[], AbstractContextManager[Any]]) -> None:
    arch = plugins.parse("archs", spec)
    expected = multiply_adds(arch, 40, 56)
    with mode():
        grad = torch.is_grad_enabled()
        assert multiply_adds(arch, 40, 56) == expected
        assert torch.is_grad_enabled() == grad


@pytest.mark.parametrize(
    ("scale", "size", "lr"),
    [
        (2, (720, 1280), (360, 640)),
        (3, (720, 1280), (240, 427)),
        (4, (720, 1280), (180, 320)),
        (2, (721, 1279), (361, 640)),  # halves go up
        (3, (722, 1279), (241, 426)),
        (4, (718, 1277), (180, 319)),
        (3, (3, 4), (1, 1)),
    ],
)
def test_the_input_is_the_answer_divided_by_the_scale_and_rounded(
    scale: int, size: tuple[int, int], lr: tuple[int, int]
) -> None:
    arch = Given(lambda: nn.Conv2d(3, 1, 1, bias=False), scale)
    assert multiply_adds(arch, *size) == 3 * lr[0] * lr[1]
    assert f"{size[1]}x{size[0]} px from {lr[1]}x{lr[0]} px of RGB" in convention(arch, *size)


@pytest.mark.parametrize("size", [(2, 9), (9, 2), (0, 0), (-9, 9)])
def test_a_size_below_one_lr_pixel_is_refused(size: tuple[int, int]) -> None:
    for function in (multiply_adds, convention):
        with pytest.raises(UsageError, match=f"at least 3x3 px, found {size[1]}x{size[0]}$"):
            function(plugins.parse("archs", "srcnn:scale=3"), *size)


def test_a_size_that_the_network_does_not_take_is_refused() -> None:
    arch: Arch = plugins.parse("archs", "dlsr:scale=3,features=4")
    with pytest.raises(UsageError, match=r"at least 45x45 px, found 60x44$"):
        multiply_adds(arch, 44, 60)
    assert multiply_adds(arch, 45, 60) > 0


def test_the_convention_says_what_is_counted_and_what_is_not() -> None:
    line = convention(plugins.parse("archs", "srcnn:scale=3"), *HD)
    assert line.isprintable() and "of luma" in line
    counted, _, uncounted = line.partition(";")
    assert all(word in counted for word in ("convolutions", "linear", "attention", "1280x720", "427x240", "borders"))
    assert all(word in uncounted for word in ("biases", "activations", "normalisation", "pooling", "bicubic"))


# Layer by layer, against loops over every product


class Upscaled(nn.Module):
    """Bicubic by the same function, in no module that says so."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return upscale(x_BCHW, 2, rounding="none")


def test_bicubic_enlargement_is_not_counted() -> None:
    conv = 9 * 3 * 5 * 40 * 60
    assert count(lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 5, 3, padding=1))) == conv
    assert count(lambda: nn.Sequential(Bicubic(2), nn.Conv2d(3, 5, 3, padding=1))) == conv
    assert count(lambda: nn.Sequential(Upscaled(), nn.Conv2d(3, 5, 3, padding=1))) > conv
    assert count(lambda: Bicubic(2)) == 0


def test_bicubic_enlargement_is_not_counted_wherever_it_is() -> None:
    class Twice(nn.Module):
        """One enlargement under two names, called three times."""

        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = Bicubic(2)
            self.inner = nn.Sequential(nn.Conv2d(3, 3, 1), self.first)

        def forward(self, lr_BCHW: Tensor) -> Tensor:
            return self.first(lr_BCHW) + self.second(lr_BCHW) + self.inner(lr_BCHW)

    assert count(Twice) == 3 * 3 * 20 * 30


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "same size": lambda: nn.Conv2d(3, 8, 3, padding=1),
    "borders lost": lambda: nn.Conv2d(3, 4, (3, 5)),
    "strided": lambda: nn.Conv2d(3, 4, 5, stride=(2, 3), padding=2),
    "dilated": lambda: nn.Conv2d(3, 4, 3, dilation=2),
    "replicated": lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"),
    "grouped": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4, padding=1)),
    "depthwise": lambda: nn.Conv2d(3, 6, 3, groups=3),
    "grouped, strided": lambda: nn.Conv2d(3, 9, 3, stride=2, groups=3, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 9, stride=3, padding=4, output_padding=2),
    "transposed, grouped": lambda: nn.ConvTranspose2d(3, 6, 4, stride=2, groups=3),
    "linear": lambda: nn.Linear(30, 7),
    "linear, no bias": lambda: nn.Linear(30, 7, bias=False),
    "not counted": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.PReLU(4), nn.AvgPool2d(2), nn.PixelShuffle(2), nn.Softmax(dim=1)
    ),
    "twice": lambda: nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1)] * 2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_by_loops_over_every_product(name: str) -> None:
    assert count(LAYERS[name]) == by_loops(LAYERS[name]())


def test_attention_has_two_products_for_every_pair_of_tokens_and_channel() -> None:
    class Plain(nn.Module):
        def forward(self, x_BCHW: Tensor) -> Tensor:
            tokens_BNC = x_BCHW.flatten(2).transpose(1, 2)
            return F.scaled_dot_product_attention(tokens_BNC, tokens_BNC, tokens_BNC)

    class WithWeights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(3, 3, batch_first=True)

        def forward(self, x_BCHW: Tensor) -> Tensor:
            tokens_BNC = x_BCHW.flatten(2).transpose(1, 2)
            result: Tensor = self.attention(tokens_BNC, tokens_BNC, tokens_BNC)[0]
            return result

    tokens = 20 * 30
    assert count(Plain) == 2 * tokens * tokens * 3
    assert count(WithWeights) == 2 * tokens * tokens * 3 + 4 * 3 * 3 * tokens  # q, k, v and the result


def test_networks_that_look_at_values_while_they_are_built() -> None:
    """As most transformers do, for the rates of their stochastic depth."""

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, lr_BCHW: Tensor) -> Tensor:
            return self.conv(lr_BCHW) * self.rates[0]

    assert count(Transformer) == 3 * 2 * 20 * 30


def count(make: Callable[[], nn.Module]) -> int:
    """Of a network for an input of 20x30 px, RGB."""
    return multiply_adds(Given(make), 40, 60)


def by_loops(net: nn.Module) -> int:
    """The products that convolutions and linear layers make of 20x30 px, also those with padding, one by one."""
    products = 0

    def on_call(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal products
        if isinstance(module, nn.Linear):
            places, maps, groups = inputs[0].shape[:-1], (module.in_features, module.out_features), 1
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            px = (output if isinstance(module, nn.Conv2d) else inputs[0]).shape[2:]
            places, maps, groups = px + module.kernel_size, (module.in_channels, module.out_channels), module.groups
        else:
            return
        for _ in itertools.product(*map(range, places)):
            for source, target in itertools.product(*map(range, maps)):
                products += source * groups // maps[0] == target * groups // maps[1]

    for module in net.modules():
        module.register_forward_hook(on_call)
    net(torch.zeros(1, 3, 20, 30))
    return products
