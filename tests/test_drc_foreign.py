"""What Torch-Pruning finds in networks that curate does not know can be removed, and what cannot is not taken."""

import copy
import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from curate import plugins
from curate.archs import Arch
from curate.archs._narrow import narrow
from curate.archs.slim import Slim
from curate.checkpoint import Checkpoint
from curate.drc.foreign import prepared, units_of
from curate.drc.gates import Gates
from curate.errors import UsageError
from curate.units import PrunableUnit, shrunk, text

needs_pruning = pytest.mark.skipif(find_spec("torch_pruning") is None, reason="needs the extra prune")

# A residual block, a depthwise one with slopes, transposed convs; and what cannot be pruned map by map.
NET = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from torch import nn
from curate.archs import Arch

@dataclass(frozen=True)
class Net(Arch):
    scale: int = 2
    width: int = 8
    colour: ClassVar[str] = "rgb"
    peak: ClassVar[float] = 1.0

    def build(self):
        return Network(self.width, self.scale)

class Network(nn.Module):
    def __init__(self, width, scale):
        super().__init__()
        conv = lambda a, b, **more: nn.Conv2d(a, b, 3, padding=1, **more)
        self.head = conv(3, width)
        self.plain = nn.Sequential(conv(width, 6), nn.LeakyReLU(0.1), conv(6, width, bias=False))
        self.separable = nn.Sequential(
            nn.Conv2d(width, 10, 1), conv(10, 10, groups=10), nn.PReLU(10), nn.Conv2d(10, width, 1)
        )
        self.turned = nn.Sequential(
            conv(width, 6), nn.ReLU(), nn.ConvTranspose2d(6, 5, 3, padding=1), nn.Sigmoid(), conv(5, width)
        )
        self.across = nn.ModuleList([conv(width, 6), conv(6, width)])
        self.shuffled = nn.ModuleList([conv(width, 6), conv(6, width)])
        self.joined = nn.ModuleList([conv(width, 4), conv(width, 4), conv(8, width)])
        self.grouped = nn.Sequential(conv(width, 8, groups=2), conv(8, width))
        self.normed = nn.Sequential(conv(width, 6), nn.BatchNorm2d(6), conv(6, width))
        self.attention = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.up = nn.Sequential(conv(width, 4 * scale**2), nn.PixelShuffle(scale), conv(4, 3))

    def forward(self, x):
        x = self.head(x)
        x = x + self.plain(x)
        x = x + self.separable(x)
        x = x + self.turned(x)
        maps = self.across[0](x)
        x = x + self.across[1](maps - maps.mean(1, keepdim=True))
        maps = self.shuffled[0](x)
        batch, _, height, width = maps.shape
        x = x + self.shuffled[1](maps.view(batch, 2, 3, height, width).transpose(1, 2).reshape(maps.shape))
        x = x + self.joined[2](torch.cat([self.joined[0](x), self.joined[1](x)], 1))
        x = x + self.grouped(x) + self.normed(x)
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.attention(tokens).reshape(batch, -1, 3, 2, x.shape[1] // 2).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.projection(mixed.transpose(1, 2).reshape(tokens.shape)).transpose(1, 2).reshape(x.shape)
        return self.up(x)
"""
FOUND = [("plain.0", 6), ("separable.0", 10), ("turned.0", 6), ("turned.2", 5)]

SINGLE = """
from dataclasses import dataclass
from typing import ClassVar
from torch import nn
from curate.archs import Arch

@dataclass(frozen=True)
class Single(Arch):
    scale: int = 2
    broken: bool = False
    colour: ClassVar[str] = "rgb"
    peak: ClassVar[float] = 1.0

    def build(self):
        return Network(self.broken)

class Network(nn.Sequential):
    def __init__(self, broken):
        super().__init__(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))
        self.broken = broken

    def forward(self, x):
        if self.broken:
            raise KeyError("which\\nmap?")
        return super().forward(x)
"""

_numbers = itertools.count()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A function that writes a module of the user's own and returns its dotted name."""
    package = f"foreign_{next(_numbers)}"
    (tmp_path / package).mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str) -> str:
        (tmp_path / package / "net.py").write_text(source)
        return f"{package}.net"

    return write


def fresh(arch: Arch) -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(arch, arch.build().state_dict(), {"steps": 1})


def difference(net: torch.nn.Module, units: tuple[PrunableUnit, ...], lr_BCHW: Tensor) -> float:
    """Between maps masked and maps removed, of what masking them changes."""
    net = net.double().eval()
    kept = [list(range(1, unit.width, 2)) for unit in units]
    gates = [torch.zeros(unit.width).index_fill_(0, torch.tensor(k), 1) for unit, k in zip(units, kept, strict=True)]
    parameters = dict(net.named_parameters())
    with torch.no_grad():
        whole = net(lr_BCHW.double())
        masked = functional_call(net, Gates(units, parameters)(parameters, gates), (lr_BCHW.double(),))
        removed = narrow(copy.deepcopy(net), units, kept)(lr_BCHW.double())
    assert not torch.equal(whole, masked)
    return float((removed - masked).abs().max())


@needs_pruning
def test_simple_blocks_are_found_and_traps_are_not(lab: Callable[[str], str]) -> None:
    """Those of a function across maps, a shuffle, joined maps, groups, norms, attention, a pixel shuffle."""
    arch = plugins.parse("archs", lab(NET))
    torch.manual_seed(0)
    net = arch.build()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    drawn = torch.random.get_rng_state()
    units = units_of(arch, net)
    assert [(unit.name, unit.width) for unit in units] == FOUND
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net.training and units_of(arch, net) == units
    lr_BCHW = torch.rand(2, 3, 9, 12)
    for unit in units:
        assert difference(arch.build(), (unit,), lr_BCHW) < 1e-5, unit.name
    assert difference(arch.build(), units, lr_BCHW) < 1e-5


@needs_pruning
def test_a_network_of_the_user_s_becomes_a_checkpoint_that_can_be_pruned(
    lab: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = lab(NET)
    whole = fresh(plugins.parse("archs", f"{name}:scale=3,width=4"))
    found = prepared(whole)
    assert found.state is whole.state and found.recipe == whole.recipe
    assert isinstance(found.arch, Slim) and found.arch.inner == whole.arch
    units, kept = found.arch.prunable(), [[1, 4], [0, 2, 9], [5], [0, 1, 2, 3, 4]]
    net = narrow(found.module(), units, kept)
    widths = [len(chosen) for chosen in kept]
    arch = replace(found.arch, config=text(widths, units))
    Checkpoint(arch, net.state_dict(), {}).save(tmp_path / "run")

    monkeypatch.setitem(sys.modules, "torch_pruning", None)  # which is not needed again
    loaded = Checkpoint.load(tmp_path / "run", name)
    assert loaded.arch == arch and prepared(loaded) is loaded
    lr_BCHW = torch.rand(1, 3, 6, 7)
    assert loaded.module()(lr_BCHW).shape == (1, 3, 18, 21)
    assert torch.equal(loaded.module()(lr_BCHW), net(lr_BCHW))
    assert shrunk(units, widths)[0].width == 2


@needs_pruning
def test_a_slim_without_units_gets_them(lab: Callable[[str], str]) -> None:
    name = lab(NET)
    found = prepared(fresh(Slim(arch=name)))
    assert found.arch == prepared(fresh(plugins.parse("archs", name))).arch


def test_an_arch_that_says_its_units_is_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    known = fresh(plugins.parse("archs", "drn:features=4,blocks=1"))
    assert prepared(known) is known


@needs_pruning
def test_a_network_without_units_is_one_line(lab: Callable[[str], str]) -> None:
    arch = plugins.parse("archs", lab(SINGLE))
    with pytest.raises(UsageError, match=r"^foreign_\d+\.net has no prunable units$"):
        prepared(fresh(arch))
    with pytest.raises(UsageError, match=r"^Torch-Pruning cannot follow .*:broken=True: KeyError: \S+$") as refused:
        prepared(fresh(replace(arch, broken=True)))
    assert str(refused.value).isprintable()


def test_without_torch_pruning_it_is_named(lab: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(UsageError, match=r"needs the package torch-pruning: pip install 'curate\[prune\]'$"):
        prepared(fresh(plugins.parse("archs", lab(SINGLE))))


# --- a cross-check of the units that curate's archs say ---------------------------------------------------------------


def is_plain(unit: PrunableUnit, parameters: dict[str, Tensor]) -> bool:
    """Whether it takes whole axes and one layer reads it: no pixel shuffle, no head, no map set aside or joined."""
    whole = all(parameters[span.parameter].shape[span.axis] == unit.width for span in unit.spans)
    return whole and not unit.gates and len(unit.readers) == 1


@needs_pruning
@pytest.mark.parametrize(
    ("spec", "plain", "others"),
    [
        ("fsrcnn:d=6,s=4,m=2", 5, 0),
        ("edsr:blocks=2,features=8", 2, 1),
        ("rcan:groups=1,blocks=2,features=16", 2, 1),
        ("drn:features=8,blocks=1", 4, 2),
        ("imdn:features=16,modules=2", 1, 14),
        ("swinir:embed=24,groups=1,blocks=2,variant=light", 2, 2),
        ("dlsr:features=8", 13, 24),
        ("unet:features=4,levels=2", 8, 2),
    ],
)
def test_units_of_curate_s_archs_are_those_that_torch_pruning_finds(spec: str, plain: int, others: int) -> None:
    """All but those that it has wrong, or not at all: before a pixel shuffle, of attention, of joined maps."""
    arch: Arch = plugins.parse("archs", spec)
    torch.manual_seed(0)
    net = arch.build()
    found = {(frozenset(unit.makers), unit.readers): unit.width for unit in units_of(arch, net)}
    ours = arch.prunable()
    agreed = [unit for unit in ours if found.get((frozenset(unit.makers), unit.readers)) == unit.width]
    assert agreed == [unit for unit in ours if is_plain(unit, dict(net.named_parameters()))]
    assert (len(agreed), len(ours) - len(agreed)) == (plain, others)
