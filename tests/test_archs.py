"""Every architecture keeps the Arch contract; SRCNN and FSRCNN are the published networks."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from curate import plugins
from curate.archs import Arch
from curate.archs.fsrcnn import Fsrcnn
from curate.archs.srcnn import Srcnn, SrcnnNet
from curate.errors import DataError, UsageError
from curate.resize import upscale

# The large ones at a depth that takes a second; their published sizes are counted beside them.
FEWER = {
    "dlsr": "features=16",
    "drn": "features=8,blocks=1",
    "drrn": "units=3",
    "rcan": "groups=2,blocks=2",
    "rdn": "blocks=2,layers=3",
    "swinir": "embed=24,groups=2,blocks=2",
}
SCALES = {"drn": (4, 8)}  # of the others (2, 3, 4)
SPECS = [
    ",".join(filter(None, [f"{name}:scale={scale}", FEWER.get(name, "")]))
    for name in plugins.names("archs")
    for scale in SCALES.get(name, (2, 3, 4))
]


def lr_image(arch: Arch, *, height: int = 9, width: int = 13) -> Tensor:
    """A small image as `arch` takes it, of rough and smooth parts; as much larger as `arch` asks for."""
    channels = 1 if arch.colour == "y" else 3
    height, width = height + arch.least - 1, width + arch.least - 1
    image_BCHW = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(5))
    image_BCHW[..., : width // 2] = image_BCHW[..., : width // 2].mean()
    low, high = (16 / 255, 235 / 255) if arch.colour == "y" else (0.0, 1.0)
    return (low + (high - low) * image_BCHW) * arch.peak


@pytest.fixture(params=SPECS)
def arch(request: pytest.FixtureRequest) -> Arch:
    built: Arch = plugins.parse("archs", request.param)
    return built


def test_output_is_scale_times_the_input_at_odd_sizes(arch: Arch) -> None:
    network = arch.build().eval()
    for height, width in ((9, 13), (16, 10), (7, 7), (1, 2), (2, 1)):
        lr_BCHW = lr_image(arch, height=height, width=width)
        sr_BCHW = network(lr_BCHW)
        assert sr_BCHW.shape == (*lr_BCHW.shape[:2], *(side * arch.scale for side in lr_BCHW.shape[2:]))
        assert sr_BCHW.dtype == torch.float32
        assert sr_BCHW.isfinite().all()


@pytest.mark.parametrize("arch", [spec for spec in SPECS if ":scale=3" not in spec], indirect=True)  # x3 is as x2
def test_gradient_reaches_every_parameter(arch: Arch) -> None:
    torch.manual_seed(0)
    network: Any = arch.build()
    # Tints: an attention over channels may be dead for one colour.
    tints_BC11 = torch.rand(8, 1 if arch.colour == "y" else 3, 1, 1)
    lr_BCHW = tints_BC11 * lr_image(arch)[:1]
    answers = network.scales(lr_BCHW) if len(arch.outputs) > 1 else [network(lr_BCHW)]
    assert [sr_BCHW.shape[-1] // lr_BCHW.shape[-1] for sr_BCHW in answers] == list(arch.outputs)
    sum(sr_BCHW.square().sum() for sr_BCHW in answers).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_state_dict_round_trips_and_adapt_leaves_it_alone(arch: Arch) -> None:
    torch.manual_seed(0)
    network, other = arch.build().eval(), arch.build().eval()
    state = arch.adapt(network.state_dict())
    assert list(state) == list(network.state_dict())
    other.load_state_dict(state)
    assert torch.equal(network(lr_image(arch)), other(lr_image(arch)))


def test_the_callers_seed_decides_the_weights(arch: Arch) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(arch.build().state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_inferred_options_build_the_same_shapes(arch: Arch) -> None:
    state = arch.build().state_dict()
    bare = plugins.parse("archs", plugins.spec_of(arch).partition(":")[0])
    inferred = bare.infer(state)
    given = {} if "scale" in inferred else {"scale": arch.scale}
    rebuilt = plugins.parse("archs", plugins.spec_of(bare), **given, **inferred)
    assert {k: v.shape for k, v in rebuilt.build().state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert arch.infer({"nobody.knows": torch.zeros(1)}) == {}


def test_a_spec_builds_the_same_arch_again(arch: Arch) -> None:
    assert plugins.parse("archs", plugins.spec_of(arch)) == arch
    assert arch.peak in (1.0, 255.0)


@pytest.mark.parametrize(
    ("spec", "count"),
    [("srcnn", 57_281), ("srcnn:kernel=9-1-5", 8_129), ("fsrcnn", 12_809), ("fsrcnn:d=32,s=5,m=1", 4_086)],
)
def test_parameter_counts_are_the_published_networks(spec: str, count: int) -> None:
    network = plugins.parse("archs", spec).build()
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("srcnn:scale=7", "scale should be 2, 3 or 4, found 7"),
        ("fsrcnn:scale=1", "scale should be 2, 3 or 4, found 1"),
        ("srcnn:kernel=9-9-9", "'9-5-5' or '9-1-5'"),
        ("fsrcnn:d=0", "found d=0"),
        ("fsrcnn:scale=two", "not 'two'"),
    ],
)
def test_options_out_of_range_are_one_line(spec: str, reason: str) -> None:
    with pytest.raises(UsageError, match="arch '") as error:
        plugins.parse("archs", spec)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kernel", ["9-5-5", "9-1-5"])
def test_fresh_srcnn_is_close_to_its_bicubic_input(kernel: str) -> None:
    torch.manual_seed(0)
    arch: Srcnn = plugins.parse("archs", f"srcnn:kernel={kernel}")
    lr_B1HW = lr_image(arch, height=24, width=31)
    with torch.no_grad():
        difference = arch.build()(lr_B1HW) - upscale(lr_B1HW, 2).clamp(0)
    assert difference.abs().max() < 2 / 255
    assert difference.abs().max() > 0


@pytest.mark.parametrize(("kernel", "radius"), [("9-5-5", 8), ("9-1-5", 6)])
def test_srcnn_in_strips_of_its_radius_is_srcnn_of_the_whole(kernel: str, radius: int) -> None:
    torch.manual_seed(0)
    network: SrcnnNet = plugins.parse("archs", f"srcnn:kernel={kernel}").build()
    assert network.radius == radius
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    bicubic_B1HW = torch.rand(1, 1, 50, 20)
    with torch.no_grad():
        whole = network.refine(bicubic_B1HW)
        upper = network.refine(bicubic_B1HW[..., : 25 + radius, :])[..., :25, :]
        lower = network.refine(bicubic_B1HW[..., 25 - radius :, :])[..., radius:, :]
        too_short = network.refine(bicubic_B1HW[..., : 25 + radius - 1, :])[..., :25, :]
    torch.testing.assert_close(torch.cat([upper, lower], dim=2), whole)
    assert not torch.allclose(too_short, whole[..., :25, :])


def test_srcnn_keeps_a_flat_image_flat_up_to_its_borders() -> None:
    torch.manual_seed(0)
    network = Srcnn(kernel="9-1-5").build()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    sr_B1HW = network(torch.full((1, 1, 12, 12), 0.5))
    assert sr_B1HW.max() - sr_B1HW.min() < 1e-5


def test_fsrcnn_starts_near_zero_and_is_not_clamped() -> None:
    torch.manual_seed(0)
    network = Fsrcnn(scale=3).build()
    assert network(lr_image(Fsrcnn())).abs().max() < 0.5


def test_matlab_arrays_of_wrong_shapes_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"weights_conv1 should have axes KO, K a square number, found shape \(80, 64\)"
    ):
        Srcnn().adapt({"weights_conv1": torch.zeros(80, 64)})
    with pytest.raises(DataError, match="weights_conv2 should have axes IKO"):
        Srcnn().adapt({"weights_conv1": torch.zeros(81, 64), "weights_conv2": torch.zeros(64, 32)})


def test_importing_the_protocol_does_not_import_torch() -> None:
    code = (
        "import sys, curate.archs, curate.plugins; curate.plugins.describe('archs'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
