"""Networks that curate does not know: what can be pruned in them, found by Torch-Pruning and tried out.

Torch-Pruning (Fang et al. 2023) follows the gradients of an answer back through the network and says which layers share
their maps. Of what it proposes the simple blocks are taken: one layer makes maps, elementwise functions and depthwise
convolutions may follow, one layer reads them. What it does not see, such as a reshape by a constant, a pixel shuffle,
or a function across maps, shows when it is tried: with random maps of a unit masked, and with them removed, the network
should give one answer. A unit of which that is not so is left out.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from curate import plugins
from curate.archs import Arch
from curate.archs._narrow import narrow
from curate.archs.slim import Slim, is_writable, written
from curate.checkpoint import Checkpoint, full_spec
from curate.drc.gates import Gates
from curate.errors import UsageError, one_line, short
from curate.units import PrunableUnit, Span

__all__ = ["prepared", "units_of"]

_SIDE = 8  # px of the image that is tried, where the network takes so few: no border where zeros are all there is
_NOISE = 0.02  # added to the weights: a layer that begins with zeros would hide what is before it
_TOLERANCE = 1e-7  # of what masking changes; in float64
_SHOWN = 200  # characters of a message from code that is not ours
_CONVS = (nn.Conv2d, nn.ConvTranspose2d)

# What Torch-Pruning, torch and a network raise on each other.
_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


class _Ends(NamedTuple):
    """Axes of a layer's weight."""

    makes: int
    reads: int


def prepared(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint itself where its arch has prunable units; else the same weights as `slim`, with what is found.

    UsageError where nothing is, and as `units_of` says.
    """
    arch = checkpoint.arch
    if arch.prunable():
        return checkpoint
    found = units_of(arch, checkpoint.module())
    if not found:
        raise UsageError(f"{one_line(plugins.spec_of(arch))} has no prunable units")
    if isinstance(arch, Slim):
        slim: Arch = replace(arch, units=written(found))
    else:
        slim = plugins.parse("archs", "slim", arch=full_spec(arch), units=written(found))
    return Checkpoint(slim, checkpoint.state, checkpoint.recipe)


def units_of(arch: Arch, net: nn.Module) -> tuple[PrunableUnit, ...]:
    """What can be removed from `net`, which `arch` built, in the order of its modules; () where nothing is found.

    Every unit has been tried, on a copy of the network in float64 on the CPU. UsageError where Torch-Pruning is not
    installed, or fails on the network.
    """
    pruning = _torch_pruning(arch)
    net = copy.deepcopy(net).cpu().double().eval().requires_grad_(True)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Torch-Pruning's, of parameters that it guesses about: none of them is taken
        torch.manual_seed(0)
        side = max(arch.least, _SIDE)
        lr_BCHW = arch.peak * torch.rand(1, 1 if arch.colour == "y" else 3, side, side, dtype=torch.float64)
        try:
            graph = pruning.DependencyGraph().build_dependency(net, example_inputs=lr_BCHW, verbose=False)
            proposed = tuple(_proposed(pruning, graph, net))
        except _ERRORS as error:
            reason = short(f"{type(error).__name__}: {error}", _SHOWN)
            raise UsageError(f"Torch-Pruning cannot follow {one_line(plugins.spec_of(arch))}: {reason}") from None
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(_NOISE * torch.randn_like(parameter))
            return _holding(net, proposed, lr_BCHW)


def _torch_pruning(arch: Arch) -> ModuleType:
    try:
        import torch_pruning
    except ImportError:
        what = f"finding what can be pruned in {one_line(plugins.spec_of(arch))}"
        raise UsageError(f"{what} needs the package torch-pruning: pip install 'curate[prune]'") from None
    return torch_pruning  # type: ignore[no-any-return]


# What Torch-Pruning says


def _proposed(pruning: Any, graph: Any, net: nn.Module) -> Iterator[PrunableUnit]:
    """The simple blocks among its groups, of each parameter's axis the first."""
    names = {module: name for name, module in net.named_modules()}
    parameters = {name for name, _ in net.named_parameters()}
    taken: set[tuple[str, int]] = set()
    for module in names:
        if not isinstance(module, (*_CONVS, nn.Linear)) or _groups(module) > 1 or module not in graph.module2node:
            continue
        making = graph.get_pruner_of_module(module).prune_out_channels
        try:
            found = graph.get_pruning_group(module, making, idxs=[0])
        except _ERRORS:  # as for window attention: nothing is known of this layer, so that it stays whole
            continue
        group = [(dependency.target.module, dependency.handler) for dependency, _ in found]
        unit = _unit(pruning, graph, module, group, names)
        if unit is None or unit.width < 2:
            continue
        places = {(span.parameter, span.axis) for span in unit.spans}
        ours = all(name in parameters and is_writable(name) for name, _ in places)
        if ours and not places & taken:
            taken |= places
            yield unit


def _unit(
    pruning: Any, graph: Any, root: nn.Module, group: Sequence[tuple[Any, Any]], names: dict[nn.Module, str]
) -> PrunableUnit | None:
    """A group as a unit; None where it is more than one maker, what passes maps on, and one reader of them all."""
    width = _width(root, _ends(root).makes)
    makers, readers = _all_of(root, names[root], _ends(root).makes), []
    for module, handler in group:
        if module is root:
            if not graph.is_out_channel_pruning_fn(handler):
                return None
        elif module not in names:
            # A reshape may change nothing, as that of a PReLU's slopes does. Where it does, it shows.
            kinds = pruning.ops.OPTYPE
            if pruning.ops.module2type(module) not in (kinds.ELEMENTWISE, kinds.RESHAPE):
                return None
        elif _passes(module, width):
            makers += _all_of(module, names[module], 0)
        elif (
            isinstance(module, (*_CONVS, nn.Linear))
            and _groups(module) == 1
            and graph.is_in_channel_pruning_fn(handler)
            and _width(module, _ends(module).reads) == width
        ):
            readers.append(Span(f"{names[module]}.weight", _ends(module).reads))
        else:
            return None
    return PrunableUnit(names[root], width, tuple(makers), tuple(readers)) if len(readers) == 1 else None


def _passes(module: nn.Module, width: int) -> bool:
    """Whether what it makes of a map is of that map alone, by weights of its own for each."""
    if isinstance(module, nn.PReLU):
        return module.num_parameters in (1, width)
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels == width


def _all_of(module: nn.Module, name: str, axis: int) -> list[Span]:
    """The parameters of a layer, as far as they lie along its maps."""
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return []
    bias = getattr(module, "bias", None)
    return [Span(f"{name}.weight", axis), *([Span(f"{name}.bias", 0)] if bias is not None else [])]


def _width(module: nn.Module, axis: int) -> int:
    return module.get_parameter("weight").shape[axis]


def _ends(module: nn.Module) -> _Ends:
    return _Ends(1, 0) if isinstance(module, nn.ConvTranspose2d) else _Ends(0, 1)


def _groups(module: nn.Module) -> int:
    return module.groups if isinstance(module, _CONVS) else 1


# What is so


def _holding(net: nn.Module, units: tuple[PrunableUnit, ...], lr_BCHW: Tensor) -> tuple[PrunableUnit, ...]:
    """The units that can be removed: all at once where all can, else those of each half."""
    if not units or _holds(net, units, lr_BCHW):
        return units
    if len(units) == 1:
        return ()
    half = len(units) // 2
    return _holding(net, units[:half], lr_BCHW) + _holding(net, units[half:], lr_BCHW)


def _holds(net: nn.Module, units: Sequence[PrunableUnit], lr_BCHW: Tensor) -> bool:
    """Whether the network gives one answer with about half of each unit's maps, by chance, masked and removed."""
    kept = [sorted(torch.randperm(unit.width)[: (unit.width + 1) // 2].tolist()) for unit in units]
    gates = [
        torch.zeros(unit.width).index_fill_(0, torch.tensor(chosen), 1)
        for unit, chosen in zip(units, kept, strict=True)
    ]
    parameters = dict(net.named_parameters())
    whole = net(lr_BCHW)
    masked = functional_call(net, Gates(units, parameters)(parameters, gates), (lr_BCHW,))
    try:
        removed = narrow(copy.deepcopy(net), units, kept)(lr_BCHW)
    except _ERRORS:  # whatever it says, the maps cannot be removed
        return False
    changed = (whole - masked).abs().max()
    return (
        bool(changed > 0)
        and removed.shape == masked.shape
        and bool((removed - masked).abs().max() <= _TOLERANCE * changed)
    )
