"""The layers that read a unit's maps, while a network runs: what they are given, what they make, what comes before.

Selection runs a network over the same crops hundreds of times while one layer's weights change. What was computed
before that layer is the same each time: `Prefix` keeps it. What comes after is computed anew, and is all that has a
gradient. Where the unpruned network is asked for what the layer makes, it runs no further than that (`ran`).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from curate.units import Span

__all__ = ["Call", "Prefix", "calls", "layers", "ran", "taken"]


class _Enough(Exception):  # noqa: N818 - nothing is wrong
    """All that was asked of a network has been computed."""


def layers(net: nn.Module, spans: Sequence[Span]) -> list[nn.Module]:
    """The modules whose parameters these are, each once."""
    names = dict.fromkeys(span.parameter.rpartition(".")[0] for span in spans)
    return [net.get_submodule(name) for name in names]


@torch.no_grad()
def calls(net: nn.Module, given: Tensor, of: Sequence[Sequence[nn.Module]]) -> list[int]:
    """How often the layers of each group are called when the network runs once."""
    count: Counter[nn.Module] = Counter()
    with ExitStack() as stack:
        for layer in dict.fromkeys(layer for group in of for layer in group):
            stack.enter_context(layer.register_forward_pre_hook(lambda module, _: count.update([module])))
        net(given)
    return [sum(count[layer] for layer in group) for group in of]


class Call(NamedTuple):
    """What a layer was given and what it made."""

    layer: nn.Module
    given: tuple[Any, ...]
    made: Tensor


@contextmanager
def taken(of: Sequence[nn.Module], most: int = 0) -> Iterator[list[Call]]:
    """The calls of these layers while the block runs a network; after `most` of them, if any, the block is left."""
    found: list[Call] = []

    def hook(module: nn.Module, given: tuple[Any, ...], made: Tensor) -> None:
        found.append(Call(module, given, made.clone()))  # or a ReLU in place would change it
        if len(found) == most:
            raise _Enough

    with ExitStack() as stack:
        for layer in of:
            stack.enter_context(layer.register_forward_hook(hook))
        with suppress(_Enough):
            yield found


@torch.no_grad()
def ran(net: nn.Module, given: Tensor, of: Sequence[nn.Module], most: int) -> list[Call]:
    """The first `most` calls of these layers; what comes after them is not computed."""
    with taken(of, most) as found:
        net(given)
    return found


class Prefix:
    """What a network computes before the first call of some layers, batch by batch, kept for running it again.

    Whole modules are kept, the largest that have ended before that call; of those in a row (nn.Sequential) only the
    last one's result, for no one else sees the others'. Code between modules runs as ever. A module that is called
    again later on, as in a recursion, is computed then.

    Nothing is kept where it would take more than `limit` bytes, or where a kept tensor is changed in place by what
    follows: the network then runs whole, with the same result.
    """

    def __init__(self, net: nn.Module, changing: Sequence[nn.Module], batches: Sequence[Tensor], limit: int) -> None:
        self._net = net
        self._changing = list(changing)
        self._above = [
            module for module in net.modules() if module not in self._changing and _holds(module, self._changing)
        ]
        self._skipped = self._needless()
        self._kept: list[dict[nn.Module, list[Any]]] | None = []
        for number, batch in enumerate(batches):
            made = self._record(batch)
            if number == 0 and (made is None or _bytes(made) * len(batches) > limit):
                self._kept = None
                return
            assert made is not None and self._kept is not None
            self._kept.append(made)

    def __call__(self, number: int, given: Tensor) -> Any:
        """What the network makes of batch `number`, which is `given`."""
        if self._kept is None:
            return self._net(given)
        kept = self._kept[number]
        versions = _versions(kept)
        with ExitStack() as stack:
            for module, results in kept.items():
                stack.enter_context(_instead(module, results))
            made = self._net(given)
        if _versions(kept) != versions:
            self._kept = None  # it was right this once
        return made

    def _record(self, given: Tensor) -> dict[nn.Module, list[Any]] | None:
        made: dict[nn.Module, list[Any]] = {}
        versions: list[tuple[Any, int]] = []

        def ended(module: nn.Module, given: Any, result: Any) -> None:
            kept = None if module in self._skipped else result
            made.setdefault(module, []).append(kept)
            versions.extend((tensor, tensor._version) for tensor in _tensors([kept]))

        def begins(module: nn.Module, given: Any) -> None:
            raise _Enough

        with ExitStack() as stack, torch.no_grad():
            for module in self._above:
                for child in _parts(module):
                    if child not in self._above and child not in self._changing:
                        stack.enter_context(child.register_forward_hook(ended))
            for layer in self._changing:
                stack.enter_context(layer.register_forward_pre_hook(begins))
            with suppress(_Enough):
                self._net(given)
        return made if all(tensor._version == version for tensor, version in versions) else None

    def _needless(self) -> set[nn.Module]:
        """Modules whose results only those see that are not computed again."""
        found: set[nn.Module] = set()
        seen = Counter(module for _, module in self._net.named_modules(remove_duplicate=False))
        for row in self._above:
            if type(row).forward is nn.Sequential.forward:
                children = list(row.children())
                first = next(place for place, child in enumerate(children) if child in (*self._above, *self._changing))
                found.update(child for child in children[: max(first - 1, 0)] if seen[child] == 1)
        return found


@contextmanager
def _instead(module: nn.Module, results: list[Any]) -> Iterator[None]:
    """The module gives these results first, one a call; None stands for what nobody looks at."""
    original: Callable[..., Any] = module.forward
    coming = iter(results)
    over = object()

    def forward(*given: Any, **named: Any) -> Any:
        result = next(coming, over)
        if result is over:
            return original(*given, **named)
        return given[0] if result is None else result

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """A module's own modules that are called: those of a mere list in its place."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _parts(child)
        else:
            yield child


def _holds(module: nn.Module, layers: Sequence[nn.Module]) -> bool:
    return any(inner in layers for inner in module.modules())


def _tensors(results: Sequence[Any]) -> Iterator[Tensor]:
    for result in results:
        if isinstance(result, Tensor):
            yield result
        elif isinstance(result, list | tuple):
            yield from _tensors(result)


def _versions(made: dict[nn.Module, list[Any]]) -> list[int]:
    return [tensor._version for results in made.values() for tensor in _tensors(results)]


def _bytes(made: dict[nn.Module, list[Any]]) -> int:
    tensors = {id(tensor): tensor for results in made.values() for tensor in _tensors(results)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
