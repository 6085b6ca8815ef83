"""DLSR: published sizes, each operation and connection against loops over taps, and the authors' files as they are."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from curate import plugins
from curate.archs.dlsr import LEAST, Attention, Dlsr, operation
from curate.checkpoint import MODEL_FILE, Checkpoint, full_spec, weights_hash
from curate.errors import CurateError, DataError, UsageError
from curate.evaluation import averages, evaluate
from curate.genotype import CHOOSING, OPERATIONS, PUBLISHED, Genotype
from curate.macs import parameters
from curate.schema import CheckpointRecipe, dump

ODD = "conv_3x3+dil_5x5+sep_3x3@2.31.4321.1"  # published by nobody: one, two and several inputs, the latest first


# Sizes


def weights(name: str, c: int) -> int:
    """Of an operation; all of them act at each px."""
    k = int(name[-1])
    return {"conv": k * k * c * c, "sep_": 2 * (k * k * c + c * c), "dil_": k * k * c + c * c}[name[:4]]


def attention(c: int) -> tuple[int, int, int]:
    """Weights at each px, weights after the pooling or at its stride, biases."""
    f = c // 4
    return c * f + f * f + f * c, 4 * 9 * f * f, 6 * f + c


def size(arch: Dlsr) -> int:
    c, genotype = arch.width, Genotype.parse(arch.genotype)
    near, far, biases = attention(c)
    cell = 3 * (c * c // 2 + c // 2) + (9 * c * c // 2 + c // 2) + (2 * c * c + c) + near + far + biases
    cell += sum(weights(name, c) for name in genotype.operations)
    joints = sum(len(chosen) * c * c + c for chosen in genotype.inputs if len(chosen) > 1)
    ends = (9 * 3 * c + c) + (6 * c * c + c) + (9 * c * c + c) + (9 * c * 3 * arch.scale**2 + 3 * arch.scale**2)
    return 6 * cell + joints + ends


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ("dlsr", 322_620),
        ("dlsr:genotype=dlsr-div", 327_804),
        ("dlsr:genotype=dlsr-s", 56_268),
        ("dlsr:scale=3", 329_115),  # 329K in the paper
        ("dlsr:scale=4", 338_208),  # 338K
    ],
)
def test_parameters_are_the_published_ones(spec: str, count: int) -> None:
    arch = plugins.parse("archs", spec)
    assert parameters(arch) == size(arch) == count


def test_parameters_of_any_genotype() -> None:
    rng = random.Random(1)
    for trial in range(12):
        inputs = [rng.sample(range(1, cell), rng.randint(1, cell - 1)) for cell in CHOOSING]
        genotype = Genotype.of(rng.choices(OPERATIONS, k=3), inputs)
        arch = Dlsr(scale=2 + trial % 3, genotype=str(genotype), features=rng.choice((4, 6, 18, 48)))
        assert parameters(arch) == size(arch)


def test_operations_are_as_large_as_in_the_papers_table() -> None:
    """Table I, K for 50 maps, in the order of the columns of alpha."""
    table = (2.5, 22.5, 62.5, 122.5, 5.9, 7.5, 9.9, 2.95, 3.75)
    for name, printed in zip(OPERATIONS, table, strict=True):
        counted = sum(tensor.numel() for tensor in operation(name, 50).state_dict().values())
        assert counted == weights(name, 50) == printed * 1000


# The network, once more from its formulas, by loops over taps, in float64


def conv(
    x_BCHW: Tensor, weight: Tensor, bias: Tensor | None = None, *, pad: int = -1, stride: int = 1, dilation: int = 1
) -> Tensor:
    """`pad` -1: as much as keeps the size. Of a depthwise weight each map is by itself."""
    side, depthwise = weight.shape[-1], weight.shape[1] == 1 < x_BCHW.shape[1]
    pad = dilation * (side - 1) // 2 if pad < 0 else pad
    batch, channels, height, width = x_BCHW.shape
    padded = x_BCHW.new_zeros(batch, channels, height + 2 * pad, width + 2 * pad)
    padded[..., pad : pad + height, pad : pad + width] = x_BCHW
    rows, columns = ((edge + 2 * pad - dilation * (side - 1) - 1) // stride + 1 for edge in (height, width))
    result = x_BCHW.new_zeros(batch, weight.shape[0], rows, columns)
    for i in range(side):
        for j in range(side):
            top, left = i * dilation, j * dilation
            seen = padded[..., top : top + stride * rows : stride, left : left + stride * columns : stride]
            if depthwise:
                result += weight[:, 0, i, j][:, None, None] * seen
            else:
                result += torch.einsum("oc,bchw->bohw", weight[:, :, i, j], seen)
    return result if bias is None else result + bias[:, None, None]


def largest(x_BCHW: Tensor) -> Tensor:
    """Of 7x7 px, every third."""
    rows, columns = ((edge - 7) // 3 + 1 for edge in x_BCHW.shape[2:])
    parts = [
        [x_BCHW[..., 3 * i : 3 * i + 7, 3 * j : 3 * j + 7].amax((2, 3)) for j in range(columns)] for i in range(rows)
    ]
    return torch.stack([torch.stack(row, -1) for row in parts], -2)


def bilinear(x_BCHW: Tensor, height: int, width: int) -> Tensor:
    """Pixel centres at half px, borders repeated."""
    for axis, wanted in ((2, height), (3, width)):
        there = x_BCHW.shape[axis]
        at = ((torch.arange(wanted, dtype=torch.float64) + 0.5) * there / wanted - 0.5).clamp(0, there - 1)
        low = at.floor().long()
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(4)])
        high = (low + 1).clamp(max=there - 1)
        x_BCHW = x_BCHW.index_select(axis, low) * (1 - share) + x_BCHW.index_select(axis, high) * share
    return x_BCHW


def relu(x: Tensor, slope: float = 0.0) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def leaky(x: Tensor) -> Tensor:
    return relu(x, 0.05)


def expected(state: Mapping[str, Tensor], genotype: Genotype, scale: int, lr_BCHW: Tensor) -> Tensor:
    """What the network of these weights answers."""

    def biased(name: str, x: Tensor, **how: int) -> Tensor:
        return conv(x, state[f"{name}.weight"], state[f"{name}.bias"], **how)

    def mixed(prefix: str, name: str, x: Tensor) -> Tensor:
        if name.startswith("conv"):
            return conv(x, state[f"{prefix}.0.weight"])
        for first in (1, 4) if name.startswith("sep") else (1,):
            wide = conv(relu(x), state[f"{prefix}.{first}.weight"], dilation=2 if name.startswith("dil") else 1)
            x = conv(wide, state[f"{prefix}.{first + 1}.weight"])
        return x

    def weighed(prefix: str, x: Tensor) -> Tensor:
        a = biased(f"{prefix}.conv1", x)
        v = relu(biased(f"{prefix}.conv_max", largest(biased(f"{prefix}.conv2", a, pad=0, stride=2))))
        c = bilinear(biased(f"{prefix}.conv3_", relu(biased(f"{prefix}.conv3", v))), *x.shape[2:])
        return x / (1 + torch.exp(-biased(f"{prefix}.conv4", c + biased(f"{prefix}.conv_f", a))))

    def cell(number: int, x: Tensor) -> Tensor:
        aside = []
        for layer, name in enumerate(genotype.operations, start=1):
            aside.append(leaky(biased(f"B{number}.c{layer}_d", x)))
            x = leaky(mixed(f"B{number}.c{layer}_r.op", name, x) + x)
        aside.append(leaky(biased(f"B{number}.c4", x)))
        return weighed(f"B{number}.esa", biased(f"B{number}.c5", torch.cat(aside, dim=1)))

    first = biased("fea_conv", lr_BCHW)
    outputs = [cell(1, first)]
    outputs.append(cell(2, outputs[0]))
    for number, chosen in zip(CHOOSING, genotype.inputs, strict=True):
        x = torch.cat([outputs[earlier - 1] for earlier in chosen], dim=1)
        outputs.append(cell(number, leaky(biased(f"c{number}.0", x)) if len(chosen) > 1 else x))
    fused = first + biased("LR_conv", leaky(biased("cout.0", torch.cat(outputs, dim=1))))
    maps = biased("upsampler.0", fused)
    batch, _, height, width = maps.shape
    split = maps.reshape(batch, 3, scale, scale, height, width)
    return split.permute(0, 1, 4, 2, 5, 3).reshape(batch, 3, height * scale, width * scale)


def rough(arch: Dlsr, seed: int = 0) -> dict[str, Tensor]:
    """Weights so large that every part counts, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        * (0.3 if tensor.ndim == 1 else tensor[0].numel() ** -0.5)
        for name, tensor in arch.build().state_dict().items()
    }


def answers(spec: str, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The network's and the formulas'."""
    arch: Dlsr = plugins.parse("archs", spec)
    state = rough(arch)
    network = arch.build().double()
    network.load_state_dict(state)
    lr_BCHW = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        return network(lr_BCHW), expected(state, Genotype.parse(arch.genotype), arch.scale, lr_BCHW)


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_its_formula(name: str) -> None:
    """In the first layer, between two others."""
    torch.testing.assert_close(*answers(f"dlsr:features=4,genotype={name}+sep_3x3+{name}@12.23.24.45", 16, 19))


@pytest.mark.parametrize("inputs", ["1.1.1.1", "2.3.4.5", "12.123.1234.12345", "21.321.4321.54321", "2.31.4321.1"])
def test_each_connection_is_its_formula(inputs: str) -> None:
    torch.testing.assert_close(*answers(f"dlsr:features=4,genotype=conv_3x3+dil_5x5+sep_3x3@{inputs}", 15, 15))


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ("dlsr:features=8", (15, 21)),
        ("dlsr:features=8,genotype=dlsr-div,scale=3", (23, 16)),
        ("dlsr:features=18,scale=4", (31, 38)),  # the attention pools to more than one px
    ],
)
def test_published_networks_are_their_formulas(spec: str, size: tuple[int, int]) -> None:
    torch.testing.assert_close(*answers(spec, *size))


def test_the_order_of_inputs_matters() -> None:
    """Each output meets the weights of its place."""
    one, other = (answers(f"dlsr:features=4,genotype=conv_1x1+conv_1x1+conv_1x1@{i}", 15, 15)[0] for i in ORDERS)
    assert not torch.allclose(one, other)


ORDERS = ("12.23.24.45", "21.23.24.45")


# The shortest input


@pytest.mark.parametrize(("height", "width"), [(LEAST, LEAST), (LEAST, 40), (40, LEAST)])
def test_fifteen_px_are_enough(height: int, width: int) -> None:
    network = Dlsr(features=4).build()
    with torch.no_grad():
        assert network(torch.rand(1, 3, height, width)).isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(14, 14), (14, 40), (40, 14), (1, 1)])
def test_fewer_are_refused_in_one_line(height: int, width: int) -> None:
    message = f"dlsr's input should be 15x15 px or more (its attention pools that much), found {width}x{height} px"
    with pytest.raises(UsageError) as error:
        Dlsr(features=4).build()(torch.rand(1, 3, height, width))
    assert str(error.value) == message


def test_fifteen_is_what_stride_and_pooling_need() -> None:
    assert Dlsr.least == LEAST == next(side for side in range(3, 99) if (side - 3) // 2 + 1 >= 7)
    attention = Attention(4)
    with torch.no_grad():
        assert attention.conv2(torch.rand(1, 1, LEAST, LEAST)).shape[2:] == (7, 7)


# Names of the same network


def test_a_genotype_may_be_a_name_a_text_or_a_file(tmp_path: Path) -> None:
    for name in ("dlsr", "dlsr-div", ODD):
        genotype = Genotype.parse(name)
        genotype.save(tmp_path / "genotype.json")
        genotype.save(tmp_path / "a, b.json")
        for written in (name, str(genotype), f"{tmp_path}/genotype.json", f'"{tmp_path}/a, b.json"'):
            arch = plugins.parse("archs", f"dlsr:genotype={written},scale=3")
            assert arch == Dlsr(scale=3, genotype=name)
            assert arch.genotype == name
            assert plugins.parse("archs", plugins.spec_of(arch)) == arch


def test_one_network_has_one_name() -> None:
    assert plugins.spec_of(Dlsr(features=48)) == plugins.spec_of(Dlsr(genotype=str(PUBLISHED["dlsr"]))) == "dlsr"
    assert Dlsr(genotype="dlsr-s") == Dlsr(genotype="dlsr-s", features=18) == Dlsr(features=18)
    assert plugins.spec_of(Dlsr(genotype="dlsr-s")) == "dlsr:features=18"
    assert Dlsr(genotype="dlsr-s", features=48) == Dlsr()
    assert [arch.width for arch in (Dlsr(), Dlsr(genotype="dlsr-s"), Dlsr(features=6))] == [48, 18, 6]
    assert full_spec(Dlsr(genotype="dlsr-s")) == "dlsr:scale=2,genotype=dlsr,features=18"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("dlsr:scale=5", "scale should be 2, 3 or 4, found 5"),
        ("dlsr:features=2", "features should be an even number of 4 or more, found 2"),
        ("dlsr:features=0", "found 0"),
        ("dlsr:features=-4", "found -4"),
        ("dlsr:features=17", "found 17"),
        ("dlsr:features=many", "not 'many'"),
        ("dlsr:genotype=dlsr-b", "no genotype 'dlsr-b'; there are: dlsr, dlsr-div, dlsr-s; did you mean 'dlsr-s'?"),
        ("dlsr:genotype=conv_2x2+sep_7x7+sep_5x5@12.23.24.45", "no operation 'conv_2x2'"),
    ],
)
def test_options_out_of_range_are_one_line(spec: str, reason: str) -> None:
    with pytest.raises(UsageError) as error:
        plugins.parse("archs", spec)
    assert reason in str(error.value) and str(error.value).isprintable()


# Checkpoints of curate's own


def untrained(spec: str) -> Checkpoint:
    arch: Dlsr = plugins.parse("archs", spec)
    torch.manual_seed(3)
    return Checkpoint(arch, arch.build().state_dict(), {})


def refused(kind: type[CurateError], path: Path, arch: str | None = None) -> str:
    with pytest.raises(kind) as error:
        Checkpoint.load(path, arch)
    message = str(error.value)
    assert message.isprintable() and len(message) < 500 + len(str(path))
    return message


def test_a_checkpoint_does_not_need_the_file(tmp_path: Path) -> None:
    file = tmp_path / "genotype.json"
    Genotype.parse(ODD).save(file)
    made = untrained(f"dlsr:genotype={file},features=4")
    made.save(tmp_path / "run")
    file.unlink()
    loaded = Checkpoint.load(tmp_path / "run")
    assert loaded.arch == made.arch == Dlsr(genotype=ODD, features=4)
    lr_BCHW = torch.rand(1, 3, 15, 15)
    with torch.no_grad():
        assert torch.equal(loaded.module()(lr_BCHW), made.module()(lr_BCHW))
    Genotype.parse(ODD).save(file)
    assert Checkpoint.load(tmp_path / "run", f"dlsr:genotype={file}").arch == made.arch
    assert "not for dlsr:genotype=dlsr-div" in refused(UsageError, tmp_path / "run", "dlsr:genotype=dlsr-div")


@pytest.mark.parametrize("given", ["dlsr:genotype=dlsr-s", "dlsr", "dlsr:features=18", "dlsr:genotype=dlsr"])
def test_a_checkpoint_goes_by_any_name_of_its_network(given: str, tmp_path: Path) -> None:
    untrained("dlsr:genotype=dlsr-s").save(tmp_path)
    assert Checkpoint.load(tmp_path, given).arch == Dlsr(genotype="dlsr-s")


def test_a_record_opens_no_other_file(tmp_path: Path) -> None:
    """Whoever made it would choose what is read here, or which server is asked."""
    file = tmp_path / "genotype.json"
    Genotype.parse("dlsr").save(file)
    state = untrained("dlsr:features=4").state
    for named in (str(file), f'"{file}"'):
        record = CheckpointRecipe(arch=f"dlsr:genotype={named},features=4", weights=weights_hash(state), training={})
        safetensors.torch.save_file(state, tmp_path / MODEL_FILE, {"curate": dump(record).decode()})
        assert f"it names another file, '{file}'" in refused(DataError, tmp_path)


# The authors' files


def as_they_are(state: dict[str, Tensor]) -> dict[str, Any]:
    optimizer = {"state": {0: {"step": 7, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 3e-4}]}
    return {"epoch": 1000, "state_dict": state, "optimizer": optimizer}


def in_parallel(state: dict[str, Tensor]) -> dict[str, Any]:
    return as_they_are({f"module.{name}": tensor for name, tensor in state.items()})


@pytest.mark.parametrize(("scale", "wrap"), [(2, as_they_are), (3, dict), (4, in_parallel)])
@pytest.mark.parametrize("genotype", ["dlsr", "dlsr-div", "dlsr-s"])
def test_published_networks_are_recognised(genotype: str, scale: int, wrap: Callable[..., Any], tmp_path: Path) -> None:
    made = untrained(f"dlsr:genotype={genotype},scale={scale}")
    file = tmp_path / "net.pt"
    torch.save(wrap(made.state), file)
    for spec in (None, "dlsr", f"dlsr:genotype={genotype}", f"dlsr:scale={scale}"):
        loaded = Checkpoint.load(file, spec)
        assert loaded.arch == made.arch
        assert list(loaded.state) == list(made.state)
        assert all(torch.equal(loaded.state[name], tensor) for name, tensor in made.state.items())


UNPUBLISHED = [
    ODD,
    "sep_7x7+sep_5x5+sep_5x5@12.23.24.45",
    "conv_1x1+sep_7x7+sep_5x5@1.23.24.45",  # DLSR's but for one connection less
    "conv_1x1+sep_7x7+sep_5x5@12.23.234.45",  # or more
    "dil_3x3+dil_5x5+conv_7x7@2.3.4.5",
]


@pytest.mark.parametrize(("genotype", "features"), [*((genotype, 4) for genotype in UNPUBLISHED), (UNPUBLISHED[0], 48)])
def test_others_have_to_be_told(genotype: str, features: int, tmp_path: Path) -> None:
    file = tmp_path / "net.pt"
    made = untrained(f"dlsr:genotype={genotype},features={features},scale=3")
    torch.save(as_they_are(made.state), file)
    for spec in (None, "dlsr", "dlsr:scale=3"):
        assert refused(UsageError, file, spec) == (
            f"'{file}' fits dlsr of some genotype, which weights do not show: say which with --arch dlsr:genotype=..."
        )
    assert Checkpoint.load(file, f"dlsr:genotype={genotype}").arch == made.arch
    Genotype.parse(genotype).save(tmp_path / "genotype.json")
    assert Checkpoint.load(file, f"dlsr:genotype={tmp_path}/genotype.json").arch == made.arch
    message = refused(DataError, file, "dlsr:genotype=dlsr-div")
    assert message.startswith(f"'{file}' does not fit dlsr:") and "genotype=dlsr-div" in message


def test_every_operation_is_seen_in_the_weights() -> None:
    """Of DLSR with one layer exchanged."""
    seen = set()
    for layer in range(3):
        for name in OPERATIONS:
            operations = [*PUBLISHED["dlsr"].operations]
            operations[layer] = name
            with torch.device("meta"):
                state = Dlsr(genotype=f"{'+'.join(operations)}@12.23.24.45", features=4).build().state_dict()
            seen.add(tuple((name, tensor.shape) for name, tensor in state.items()))
            genotype = "dlsr" if tuple(operations) == PUBLISHED["dlsr"].operations else None
            assert Dlsr().infer(state) == {"scale": 2, "features": 4, "genotype": genotype}
    assert len(seen) == 1 + 3 * 8


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("fea_conv.weight", None),
        ("fea_conv.weight", ()),
        ("fea_conv.weight", (0, 3, 3, 3)),
        ("fea_conv.weight", (2, 3, 3, 3)),
        ("fea_conv.weight", (9, 3, 3, 3)),
        ("upsampler.0.weight", None),
        ("upsampler.0.weight", ()),
        ("upsampler.0.weight", (15, 4, 3, 3)),
        ("B1.c1_r.op.0.weight", None),
        ("B1.c1_r.op.0.weight", ()),
        ("B1.c1_r.op.0.weight", (4, 4, 9, 9)),
        ("B1.c2_r.op.1.weight", None),
        ("B1.c2_r.op.1.weight", (4, 1, 9, 9)),
        ("B1.c2_r.op.1.weight", (4, 1, 5, 5)),
        ("B1.c4_r.op.0.weight", (4, 4, 3, 3)),
        ("B7.c4.weight", (4, 4, 3, 3)),
        ("c2.0.weight", (4, 8, 1, 1)),
    ],
)
def test_what_fits_no_variant_is_not_recognised(name: str, shape: tuple[int, ...] | None) -> None:
    state = dict(untrained("dlsr:features=4").state)
    assert Dlsr().infer(state)
    if shape is None:
        del state[name]
    else:
        state[name] = torch.zeros(shape)
    assert Dlsr().infer(state) == {}


def test_other_networks_are_not_taken_for_it() -> None:
    state = untrained("dlsr").state
    for name in plugins.names("archs"):
        other = plugins.parse("archs", name)
        assert bool(other.infer(other.adapt(state))) == (name == "dlsr")
        assert bool(Dlsr().infer(other.build().state_dict())) == (name == "dlsr")


def test_what_only_its_own_names_show_does_not_fit(tmp_path: Path) -> None:
    """Recognised by the first cell, refused for the second."""
    state = dict(untrained("dlsr:features=4").state)
    state["B2.c1_r.op.0.weight"] = torch.zeros(4, 4, 3, 3)
    torch.save(state, tmp_path / "net.pt")
    assert "of another shape: B2.c1_r.op.0.weight (4, 4, 3, 3) for (4, 4, 1, 1)" in refused(
        DataError, tmp_path / "net.pt"
    )


def test_the_authors_file_measures_as_published(shared: Path) -> None:
    """38.04 dB and .9606 on Set5 x2, by a file that tells its arch; LR that is made gives the same."""
    file = shared / "checkpoints" / "dlsr_x2.pt"
    if not file.is_file():
        pytest.skip("needs ../shared/data/checkpoints/dlsr_x2.pt (the authors' file), absent here")
    checkpoint = Checkpoint.load(file)
    assert checkpoint.arch == Dlsr()
    folder = shared / "benchmark" / "Set5"
    measured = averages(evaluate(checkpoint, folder, device="cpu"))
    assert f"{measured['psnr']:.2f} {measured['ssim']:.4f}" == "38.04 0.9606"
    assert abs(measured["psnr"] - 38.04) < 0.005 and abs(measured["ssim"] - 0.9606) < 0.00005
