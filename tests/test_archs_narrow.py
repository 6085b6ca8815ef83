"""Of every arch with units, the network without some maps is the one whose maps count for nothing."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from curate import plugins, units
from curate.archs import Arch
from curate.archs._narrow import narrow
from curate.checkpoint import Checkpoint, full_spec
from curate.drc.gates import Gates

SEPARABLE = "sep_3x3+dil_5x5+sep_7x7@12.13.234.1"
TINY = (
    "dlsr:features=8",
    f"dlsr:features=8,scale=3,genotype={SEPARABLE}",
    "drn:features=4,blocks=1",
    "drn:features=4,blocks=1,scale=8",
    "drrn:features=6,units=3",
    "edsr:features=4,blocks=2",
    "edsr:features=4,blocks=1,scale=3",
    "edsr:features=4,blocks=1,scale=4",
    "fsrcnn:d=5,s=4,m=2,scale=3",
    "fsrcnn:d=5,s=4,m=0",
    "idn:features=16,d=4,blocks=2",
    "imdn:features=16,modules=2,scale=3",
    "rcan:features=4,groups=2,blocks=2,reduction=2,scale=4",
    "rdn:features=4,growth=3,blocks=2,layers=3",
    "srcnn:kernel=9-1-5",
    "swinir:embed=12,heads=2,groups=2,blocks=2,scale=4",
    "swinir:embed=12,heads=3,groups=1,blocks=2,variant=light",
    "unet:features=4,levels=2",
)


@pytest.fixture(params=TINY)
def arch(request: pytest.FixtureRequest) -> Arch:
    made: Arch = plugins.parse("archs", request.param)
    return made


@cache
def rough(arch: Arch) -> nn.Module:
    """A network of weights so large that every part counts, in float64. Not to be changed: `copied` is."""
    generator = torch.Generator().manual_seed(0)
    net = arch.build().double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            size = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return net


def copied(arch: Arch) -> nn.Module:
    net = arch.build().double().eval()
    net.load_state_dict(rough(arch).state_dict())
    return net


def image(arch: Arch) -> Tensor:
    channels, side = 1 if arch.colour == "y" else 3, max(arch.least, 8)
    drawn = torch.rand(1, channels, side, side + 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return drawn * arch.peak


def answer(net: nn.Module, arch: Arch, weights: dict[str, Tensor] | None = None) -> Tensor:
    with torch.no_grad():
        made: Tensor = functional_call(net, weights or {}, (image(arch),))
    return made


def some(of: tuple[units.PrunableUnit, ...], seed: int) -> list[list[int]]:
    """Of each unit some of its maps, at least one, and not all of several."""
    rng = np.random.default_rng(seed)
    return [sorted(rng.permutation(u.width)[: rng.integers(1, max(2, u.width))].tolist()) for u in of]


def masked(arch: Arch, kept: list[list[int]]) -> Tensor:
    net = rough(arch)
    weights = dict(net.named_parameters())
    masks = []
    for unit, chosen in zip(arch.prunable(), kept, strict=True):
        masks.append(torch.zeros(unit.width, dtype=torch.float64))
        masks[-1][chosen] = 1
    return answer(net, arch, Gates(arch.prunable(), weights)(weights, masks))


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def test_all_units_at_once(arch: Arch) -> None:
    kept = some(arch.prunable(), 1)
    smaller = narrow(copied(arch), arch.prunable(), kept)
    assert apart(answer(smaller, arch), masked(arch, kept)) < 1e-12
    assert apart(masked(arch, kept), answer(rough(arch), arch)) > 1e-3


def test_each_unit_alone(arch: Arch) -> None:
    """Of each kind of a unit, whose names differ by numbers alone, the last one: all but its last map go."""
    of = arch.prunable()
    full = answer(rough(arch), arch)
    kinds = {"".join(c for c in unit.name if not c.isdigit()): number for number, unit in enumerate(of)}
    for number in kinds.values():
        kept = units.kept_first([unit.width for unit in of])
        kept[number] = [of[number].width - 1]
        smaller = narrow(copied(arch), of, kept)
        assert apart(answer(smaller, arch), masked(arch, kept)) < 1e-12
        assert apart(masked(arch, kept), full) > 1e-6, of[number].name


def test_twice_is_once(arch: Arch) -> None:
    of, first = arch.prunable(), some(arch.prunable(), 3)
    rest = units.shrunk(of, [len(chosen) for chosen in first])
    second = some(rest, 4)
    twice = narrow(narrow(copied(arch), of, first), rest, second)
    once = narrow(
        copied(arch), of, [[one[place] for place in chosen] for one, chosen in zip(first, second, strict=True)]
    )
    assert all(torch.equal(tensor, once.state_dict()[name]) for name, tensor in twice.state_dict().items())
    assert torch.equal(answer(twice, arch), answer(once, arch))


def test_an_arch_with_a_config_builds_the_smaller_network(arch: Arch) -> None:
    of, kept = arch.prunable(), some(arch.prunable(), 5)
    smaller = narrow(copied(arch), of, kept)
    named = replace(arch, config=units.text([len(chosen) for chosen in kept], of))
    fresh = named.build()
    assert {n: t.shape for n, t in fresh.state_dict().items()} == {n: t.shape for n, t in smaller.state_dict().items()}
    assert plugins.parse("archs", plugins.spec_of(named)) == plugins.parse("archs", full_spec(named)) == named
    assert [unit.width for unit in units.left(named)] == [len(chosen) for chosen in kept]
    layers = zip(fresh.modules(), smaller.modules(), strict=True)
    assert all(repr(one) == repr(other) for one, other in layers)


@pytest.mark.parametrize("spec", [spec for spec in TINY if spec.startswith("swinir")])
def test_gates_of_attention_are_learned_through_queries_and_projection(spec: str) -> None:
    """A gate counts where a feature is read and, of queries, where it is looked for; its gradient is that of both."""
    arch: Arch = plugins.parse("archs", spec)
    net = rough(arch)
    weights = dict(net.named_parameters())
    number = next(number for number, unit in enumerate(arch.prunable()) if unit.gates)
    of = arch.prunable()[number]

    def made(gate: Tensor) -> Tensor:
        return functional_call(net, Gates([of], weights)(weights, [gate]), (image(arch),)).mean()

    gate = torch.full((of.width,), 0.5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(made(gate), gate)
    with torch.no_grad():
        for place in range(of.width):
            step = torch.zeros(of.width, dtype=torch.float64)
            step[place] = 1e-6
            assert (made(gate + step) - made(gate - step)) / 2e-6 == pytest.approx(float(gradient[place]), rel=1e-4)
    readers_alone = Gates([replace(of, gates=())], weights)(weights, [gate.detach()])
    other = answer(net, arch, readers_alone)
    assert apart(other, answer(net, arch, Gates([of], weights)(weights, [gate.detach()]))) > 1e-6


# Checkpoints


def test_a_checkpoint_knows_its_config(arch: Arch, tmp_path: Path) -> None:
    """One of curate's own says it; of others' the shapes do."""
    of = arch.prunable()
    kept = some(of, 6)
    named = replace(arch, config=units.text([len(chosen) for chosen in kept], of))
    state = {name: tensor.float() for name, tensor in narrow(copied(arch), of, kept).state_dict().items()}
    Checkpoint(named, state, {}).save(tmp_path)
    assert Checkpoint.load(tmp_path).arch == named
    torch.save(state, tmp_path / "net.pth")
    spec = plugins.spec_of(arch)
    loaded = Checkpoint.load(tmp_path / "net.pth", spec)
    assert loaded.arch == named == Checkpoint.load(tmp_path / "net.pth", plugins.spec_of(named)).arch
    assert all(torch.equal(loaded.state[name], tensor) for name, tensor in state.items())


def test_shapes_alone_tell_a_network_that_fits(arch: Arch, tmp_path: Path) -> None:
    """Perhaps another one of the same layers: of a chain of layers nothing says how wide they all were."""
    of = arch.prunable()
    named = replace(arch, config=units.text([max(1, unit.width // 2) for unit in of], of))
    state = named.build().state_dict()
    torch.save(state, tmp_path / "net.pth")
    name = plugins.spec_of(arch).partition(":")[0]
    told = ("scale=", "genotype=", "units=")  # not in the weights
    given = [option for option in plugins.spec_of(arch).partition(":")[2].split(",") if option.startswith(told)]
    loaded = Checkpoint.load(tmp_path / "net.pth", f"{name}:{','.join(given)}" if given else name)
    assert {n: t.shape for n, t in loaded.arch.build().state_dict().items()} == {n: t.shape for n, t in state.items()}
