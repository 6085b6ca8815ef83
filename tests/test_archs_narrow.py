"""Of every arch with units, the network without some maps is the one whose maps count for nothing."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from curate import plugins, units
from curate.archs import Arch
from curate.archs._narrow import narrow
from curate.checkpoint import full_spec
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
