"""EDSR, RCAN and IMDN: published sizes, public files under their own names, and each layer against its formula."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from curate import plugins
from curate.archs import Arch
from curate.archs.edsr import Edsr
from curate.archs.imdn import Imdn
from curate.archs.rcan import Rcan
from curate.checkpoint import Checkpoint
from curate.errors import DataError, UsageError
from curate.evaluation import averages, evaluate

MEAN = torch.tensor([0.4488, 0.4371, 0.4040])  # of R, G, B over DIV2K, in [0, 1]

TINY = [
    Edsr(scale=2, features=6, blocks=2),
    Edsr(scale=3, features=5, blocks=1),
    Edsr(scale=4, features=6, blocks=3),
    Rcan(scale=2, groups=2, blocks=3, features=8, reduction=4),
    Rcan(scale=3, groups=3, blocks=1, features=6, reduction=2),
    Rcan(scale=4, groups=1, blocks=2, features=8, reduction=8),
    Imdn(scale=2, features=16, modules=2),
    Imdn(scale=3, features=32, modules=1),
    Imdn(scale=4, features=16, modules=3),
]


def seeded_state(arch: Arch, seed: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return arch.build().state_dict()


def network_of(arch: Arch, state: dict[str, Tensor]) -> torch.nn.Module:
    network = arch.build().eval()
    network.load_state_dict(arch.adapt(state))
    return network


def both(modules: list[str]) -> list[str]:
    return [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]


def upsampler_indices(scale: int) -> list[int]:
    """Places of the convolutions in a public upsampler; pixel shuffles are between them."""
    return [0, 2] if scale == 4 else [0]


# The names of public files, in the order of their networks


def edsr_pytorch_names(arch: Edsr) -> list[str]:
    blocks = [f"body.{block}.body.{conv}" for block in range(arch.blocks) for conv in (0, 2)]
    tail = [f"tail.0.{index}" for index in upsampler_indices(arch.scale)]
    return both(["head.0", *blocks, f"body.{arch.blocks}", *tail, "tail.1"])


def basicsr_edsr_names(arch: Edsr) -> list[str]:
    blocks = [f"body.{block}.conv{conv}" for block in range(arch.blocks) for conv in (1, 2)]
    tail = [f"upsample.{index}" for index in upsampler_indices(arch.scale)]
    return both(["conv_first", *blocks, "conv_after_body", *tail, "conv_last"])


def authors_rcan_names(arch: Rcan) -> list[str]:
    body = []
    for group in range(arch.groups):
        for block in range(arch.blocks):
            inner = ("body.0", "body.2", "body.3.conv_du.0", "body.3.conv_du.2")
            body += [f"body.{group}.body.{block}.{name}" for name in inner]
        body.append(f"body.{group}.body.{arch.blocks}")
    tail = [f"tail.0.{index}" for index in upsampler_indices(arch.scale)]
    return both(["head.0", *body, f"body.{arch.groups}", *tail, "tail.1"])


def basicsr_rcan_names(arch: Rcan) -> list[str]:
    body = []
    for group in range(arch.groups):
        for block in range(arch.blocks):
            inner = ("rcab.0", "rcab.2", "rcab.3.attention.1", "rcab.3.attention.3")
            body += [f"body.{group}.residual_group.{block}.{name}" for name in inner]
        body.append(f"body.{group}.conv")
    tail = [f"upsample.{index}" for index in upsampler_indices(arch.scale)]
    return both(["conv_first", *body, "conv_after_body", *tail, "conv_last"])


def authors_imdn_names(arch: Imdn) -> list[str]:
    inner = ("c1", "c2", "c3", "c4", "c5", "cca.conv_du.0", "cca.conv_du.2")
    modules = [f"IMDB{number}.{name}" for number in range(1, arch.modules + 1) for name in inner]
    return both(["fea_conv", *modules, "c.0", "LR_conv", "upsampler.0"])


def mean_shifts(peak: float = 255.0, mean: Tensor = MEAN) -> dict[str, Tensor]:
    """The constant layers in the files of EDSR-PyTorch and RCAN."""
    identity = torch.eye(3).reshape(3, 3, 1, 1)
    return {
        "sub_mean.weight": identity,
        "sub_mean.bias": -peak * mean,
        "add_mean.weight": identity,
        "add_mean.bias": peak * mean,
    }


def public_state(arch: Arch, layout: str) -> dict[str, Tensor]:
    """Random weights of `arch` as a public file of this layout holds them."""
    tensors = seeded_state(arch).values()
    if isinstance(arch, Edsr):
        names = edsr_pytorch_names(arch) if layout == "authors" else basicsr_edsr_names(arch)
    elif isinstance(arch, Rcan):
        names = authors_rcan_names(arch) if layout == "authors" else basicsr_rcan_names(arch)
    else:
        assert isinstance(arch, Imdn)
        names = authors_imdn_names(arch)
    shifts = mean_shifts() if layout == "authors" and not isinstance(arch, Imdn) else {}
    return {**shifts, **dict(zip(names, tensors, strict=True))}


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"params": {f"module.{k}": v for k, v in s.items()}}])
@pytest.mark.parametrize("layout", ["authors", "basicsr"])
@pytest.mark.parametrize("arch", TINY, ids=plugins.spec_of)
def test_public_files_load_without_naming_the_arch(arch: Arch, layout: str, wrap, tmp_path: Path) -> None:
    torch.save(wrap(public_state(arch, layout)), tmp_path / "public.pth")
    loaded = Checkpoint.load(tmp_path / "public.pth")
    assert loaded.arch == arch
    expected = seeded_state(arch)
    assert list(loaded.state) == list(expected)
    assert all(torch.equal(loaded.state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("arch", TINY, ids=plugins.spec_of)
def test_given_options_stand_and_the_rest_is_inferred(arch: Arch, tmp_path: Path) -> None:
    name = type(arch).__name__.lower()
    torch.save(public_state(arch, "authors"), tmp_path / "public.pth")
    assert Checkpoint.load(tmp_path / "public.pth", f"{name}:scale={arch.scale}").arch == arch
    with pytest.raises(DataError, match="does not fit"):
        Checkpoint.load(tmp_path / "public.pth", f"{name}:scale={arch.scale % 3 + 2}")


def test_half_precision_rounds_the_mean_and_still_loads() -> None:
    state = {name: tensor.half() for name, tensor in public_state(TINY[0], "authors").items()}
    assert TINY[0].infer(TINY[0].adapt(state))["scale"] == 2


@pytest.mark.parametrize(("features", "res_scale"), [(64, 1.0), (256, 0.1)])
def test_the_large_edsr_comes_with_its_residual_scaling(features: int, res_scale: float) -> None:
    with torch.device("meta"):
        state = Edsr(features=features, blocks=1).build().state_dict()
    assert Edsr().infer(state)["res_scale"] == res_scale


# States of other networks


SWINIR = both(
    [
        "conv_first",
        "patch_embed.norm",
        "layers.0.residual_group.blocks.0.norm1",
        "layers.0.conv",
        "conv_after_body",
        "conv_before_upsample.0",
        "upsample.0",
        "conv_last",
    ]
)
RRDB = both(["conv_first", "body.0.rdb1.conv1", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"])
MSRRESNET = both(["conv_first", "body.0.conv1", "body.0.conv2", "upconv1", "upconv2", "conv_hr", "conv_last"])
MDSR = both(["head.0", "pre_process.0.0.body.0", "body.0.body.0", "body.0.body.2", "body.1", "upsample.0.0", "tail.0"])
DLSR = both(["fea_conv", "B1.c1_d", "c.0", "LR_conv", "upsampler.0"])
IMDN_AS = both(["fea_conv.0", "fea_conv.2", "IMDB1.c1", "c.0", "LR_conv", "upsampler.0"])


@pytest.mark.parametrize("bare", [Edsr(), Rcan(), Imdn()], ids=plugins.spec_of)
@pytest.mark.parametrize("names", [SWINIR, RRDB, MSRRESNET, DLSR, IMDN_AS])
def test_other_networks_are_not_taken_for_these(bare: Arch, names: list[str]) -> None:
    state = {name: torch.zeros((12, 3, 3, 3) if name.endswith("weight") else 12) for name in names}
    assert bare.adapt(state) == state
    assert bare.infer(state) == {}


def test_a_network_of_several_scales_is_not_taken_for_edsr() -> None:
    state = {name: torch.zeros((12, 3, 3, 3) if name.endswith("weight") else 12) for name in MDSR}
    assert Edsr().infer(Edsr().adapt({**mean_shifts(), **state})) == {}


@pytest.mark.parametrize("arch", TINY, ids=plugins.spec_of)
def test_each_recognises_its_own_alone(arch: Arch) -> None:
    state = public_state(arch, "authors")
    found = {type(bare) for bare in (Edsr(), Rcan(), Imdn()) if bare.infer(bare.adapt(state))}
    assert found == {type(arch)}


@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 0, 3, 3), (7, 64, 3, 3)])
@pytest.mark.parametrize("arch", TINY[::3], ids=plugins.spec_of)
def test_shapes_that_cannot_be_do_not_pass_for_a_network(arch: Arch, shape: tuple[int, ...]) -> None:
    assert "scale" not in arch.infer({**seeded_state(arch), last_step(arch): torch.zeros(shape)})
    arch.infer({name: torch.zeros(shape) for name in seeded_state(arch)})


def last_step(arch: Arch) -> str:
    return "upsampler.0.weight" if isinstance(arch, Imdn) else "upsample.0.weight"


# The mean


@pytest.mark.parametrize("arch", [TINY[0], TINY[3]], ids=plugins.spec_of)
@pytest.mark.parametrize(
    "shifts", [mean_shifts(peak=1.0), mean_shifts(mean=torch.tensor([0.4690, 0.4490, 0.4036])), {}]
)
def test_weights_for_another_mean_or_range_are_refused(arch: Arch, shifts: dict[str, Tensor]) -> None:
    state = {name: tensor for name, tensor in public_state(arch, "authors").items() if "_mean." not in name}
    with pytest.raises(DataError, match=r"sub_mean should shift by -114\.444, -111\.460, -103\.020 \(the DIV2K mean"):
        arch.adapt({**shifts, **state})


def test_a_mean_layer_that_mixes_colours_is_refused() -> None:
    state = public_state(TINY[0], "authors")
    state["add_mean.weight"] = state["add_mean.weight"].flip(0)
    with pytest.raises(DataError, match="add_mean should shift by 114"):
        TINY[0].adapt(state)


@pytest.mark.parametrize("arch", [TINY[0], TINY[3]], ids=plugins.spec_of)
@torch.no_grad()
def test_without_weights_the_answer_is_the_mean(arch: Arch) -> None:
    network = arch.build()
    for parameter in network.parameters():
        parameter.zero_()
    sr_BCHW = network(255 * torch.rand(1, 3, 7, 9))
    torch.testing.assert_close(sr_BCHW, 255 * MEAN.reshape(1, 3, 1, 1).expand_as(sr_BCHW))


# Against the formulas


def conv(state: dict[str, Tensor], name: str, image_BCHW: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(image_BCHW, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)


@pytest.mark.parametrize("layout", ["authors", "basicsr"])
@pytest.mark.parametrize("arch", [*TINY[:3], Edsr(features=6, blocks=2, res_scale=0.1)], ids=plugins.spec_of)
@torch.no_grad()
def test_edsr_of_either_range_is_the_formula(arch: Edsr, layout: str) -> None:
    """BasicSR's reading of the weights: [0, 1] in and out, times 255 inside."""
    network = network_of(arch, public_state(arch, layout))
    state = public_state(arch, "basicsr")
    lr_BCHW = torch.rand(2, 3, 7, 9)
    mean_BC11 = MEAN.reshape(1, 3, 1, 1)
    first = features = conv(state, "conv_first", (lr_BCHW - mean_BC11) * 255)
    for block in range(arch.blocks):
        inner = conv(state, f"body.{block}.conv1", features).clamp(min=0)
        features = features + arch.res_scale * conv(state, f"body.{block}.conv2", inner)
    features = first + conv(state, "conv_after_body", features)
    for index in upsampler_indices(arch.scale):
        features = F.pixel_shuffle(conv(state, f"upsample.{index}", features), 3 if arch.scale == 3 else 2)
    expected = conv(state, "conv_last", features) / 255 + mean_BC11
    torch.testing.assert_close(network(255 * lr_BCHW) / 255, expected)


def attention(state: dict[str, Tensor], squeeze: str, excite: str, pooled_C: npt.NDArray[np.float64]) -> Tensor:
    """A factor for each map, by a loop over the units."""

    def units(name: str, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        weight, bias = state[f"{name}.weight"].double().numpy(), state[f"{name}.bias"].double().numpy()
        return np.array([sum(weight[o, i, 0, 0] * v for i, v in enumerate(values)) + bias[o] for o in range(len(bias))])

    return torch.from_numpy(1 / (1 + np.exp(-units(excite, np.maximum(units(squeeze, pooled_C), 0))))).float()


@torch.no_grad()
def test_rcan_is_the_formula() -> None:
    arch = TINY[3]
    assert isinstance(arch, Rcan)
    network = network_of(arch, public_state(arch, "authors"))
    state = public_state(arch, "basicsr")
    lr_1CHW = 255 * torch.rand(1, 3, 7, 9)
    mean_1C11 = 255 * MEAN.reshape(1, 3, 1, 1)
    first = features = conv(state, "conv_first", lr_1CHW - mean_1C11)
    for group in range(arch.groups):
        start = features
        for block in range(arch.blocks):
            prefix = f"body.{group}.residual_group.{block}.rcab"
            inner = conv(state, f"{prefix}.2", conv(state, f"{prefix}.0", features).clamp(min=0))
            pooled_C = inner[0].double().numpy().mean(axis=(1, 2))
            factors_C = attention(state, f"{prefix}.3.attention.1", f"{prefix}.3.attention.3", pooled_C)
            features = features + inner * factors_C.reshape(1, -1, 1, 1)
        features = start + conv(state, f"body.{group}.conv", features)
    features = first + conv(state, "conv_after_body", features)
    features = F.pixel_shuffle(conv(state, "upsample.0", features), 2)
    torch.testing.assert_close(network(lr_1CHW), conv(state, "conv_last", features) + mean_1C11)


@pytest.mark.parametrize("arch", TINY[6:], ids=plugins.spec_of)
@torch.no_grad()
def test_imdn_is_the_formula(arch: Imdn) -> None:
    state = public_state(arch, "authors")
    network = network_of(arch, state)
    quarter = arch.features // 4
    lr_1CHW = torch.rand(1, 3, 7, 9)
    first = features = conv(state, "fea_conv", lr_1CHW)
    outputs = []
    for number in range(1, arch.modules + 1):
        prefix, rest, done = f"IMDB{number}", features, []
        for name in ("c1", "c2", "c3"):
            maps = conv(state, f"{prefix}.{name}", rest)
            maps = torch.where(maps > 0, maps, 0.05 * maps)
            done.append(maps[:, :quarter])
            rest = maps[:, quarter:]
        distilled = torch.cat([*done, conv(state, f"{prefix}.c4", rest)], dim=1)
        values_CN = distilled[0].double().numpy().reshape(arch.features, -1)
        mean_C = values_CN.sum(axis=1) / values_CN.shape[1]
        contrast_C = np.sqrt(((values_CN - mean_C[:, None]) ** 2).sum(axis=1) / values_CN.shape[1])
        factors_C = attention(state, f"{prefix}.cca.conv_du.0", f"{prefix}.cca.conv_du.2", mean_C + contrast_C)
        features = features + conv(state, f"{prefix}.c5", distilled * factors_C.reshape(1, -1, 1, 1))
        outputs.append(features)
    fused = conv(state, "c.0", torch.cat(outputs, dim=1))
    fused = first + conv(state, "LR_conv", torch.where(fused > 0, fused, 0.05 * fused))
    expected = F.pixel_shuffle(conv(state, "upsampler.0", fused), arch.scale)
    torch.testing.assert_close(network(lr_1CHW), expected)


def test_contrast_of_a_flat_map_has_a_finite_gradient() -> None:
    network = Imdn(features=16, modules=1).build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    network(torch.rand(1, 3, 7, 7)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)


# Sizes and options


def conv_size(inputs: int, outputs: int, kernel: int) -> int:
    return inputs * outputs * kernel**2 + outputs


def ends_size(scale: int, features: int) -> int:
    """The parameters of EDSR and RCAN outside their bodies, the conv after the body included."""
    steps = (2, 2) if scale == 4 else (scale,)
    upsampler = sum(conv_size(features, features * step**2, 3) for step in steps)
    return conv_size(3, features, 3) + conv_size(features, features, 3) + upsampler + conv_size(features, 3, 3)


def size(arch: Arch) -> int:
    """Parameters in closed form."""
    if isinstance(arch, Edsr):
        return ends_size(arch.scale, arch.features) + 2 * arch.blocks * conv_size(arch.features, arch.features, 3)
    if isinstance(arch, Rcan):
        n, inner = arch.features, arch.features // arch.reduction
        block = 2 * conv_size(n, n, 3) + conv_size(n, inner, 1) + conv_size(inner, n, 1)
        return ends_size(arch.scale, n) + arch.groups * (arch.blocks * block + conv_size(n, n, 3))
    assert isinstance(arch, Imdn)
    n, quarter = arch.features, arch.features // 4
    convs = conv_size(n, n, 3) + 2 * conv_size(n - quarter, n, 3) + conv_size(n - quarter, quarter, 3)
    module = convs + conv_size(n, n, 1) + conv_size(n, n // 16, 1) + conv_size(n // 16, n, 1)
    ends = conv_size(3, n, 3) + conv_size(arch.modules * n, n, 1) + conv_size(n, n, 3)
    return ends + arch.modules * module + conv_size(n, 3 * arch.scale**2, 3)


PUBLISHED = {
    "edsr": (1_369_859, 1_554_499, 1_517_571),
    "edsr:features=256,blocks=32,res_scale=0.1": (40_729_603, 43_680_003, 43_089_923),
    "rcan": (15_444_667 - 24, 15_629_307 - 24, 15_592_379 - 24),  # without the constants of sub_mean and add_mean
    "imdn": (694_404, 703_059, 715_176),
}


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("spec", PUBLISHED)
def test_parameter_counts_are_the_published_networks(spec: str, scale: int) -> None:
    arch: Arch = plugins.parse("archs", spec, scale=scale)
    with torch.device("meta"):
        network = arch.build()
    assert sum(parameter.numel() for parameter in network.parameters()) == PUBLISHED[spec][scale - 2] == size(arch)


@pytest.mark.parametrize("arch", TINY, ids=plugins.spec_of)
def test_parameter_counts_of_other_options(arch: Arch) -> None:
    assert sum(parameter.numel() for parameter in arch.build().parameters()) == size(arch)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("edsr:scale=8", "scale should be 2, 3 or 4, found 8"),
        ("edsr:blocks=0", "features and blocks should be at least 1, found features=64, blocks=0"),
        ("edsr:features=0", "found features=0"),
        ("edsr:res_scale=0", "res_scale should be above 0 and up to 1, found 0"),
        ("edsr:res_scale=nan", "found nan"),
        ("rcan:scale=1", "scale should be 2, 3 or 4, found 1"),
        ("rcan:groups=0", "found groups=0, blocks=20"),
        ("rcan:blocks=0", "found groups=10, blocks=0"),
        ("rcan:reduction=0", "features should be a multiple of reduction"),
        ("rcan:features=40", "found features=40, reduction=16"),
        ("imdn:scale=5", "scale should be 2, 3 or 4, found 5"),
        ("imdn:features=24", "features should be a multiple of 16, found 24"),
        ("imdn:modules=0", "modules should be at least 1, found 0"),
    ],
)
def test_options_out_of_range_are_one_line(spec: str, reason: str) -> None:
    with pytest.raises(UsageError, match="arch '") as error:
        plugins.parse("archs", spec)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


# Published figures


def test_public_imdn_measures_as_published(shared: Path) -> None:
    """38.00 dB and .9605 on Set5 x2, from the LR files, by a file that tells its arch and scale."""
    folder = shared / "benchmark" / "Set5"
    checkpoint = Checkpoint.load(shared / "checkpoints" / "imdn_x2.pth")
    assert checkpoint.arch == Imdn(scale=2)
    measured = averages(evaluate(checkpoint, folder / "HR", lr=folder / "LR_bicubic" / "X2", device="cpu"))
    assert f"{measured['psnr']:.2f} {measured['ssim']:.4f}" == "38.00 0.9605"
    assert measured["psnr"] == pytest.approx(37.996, abs=0.001)
