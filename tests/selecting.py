"""What tests of selections share: a network that has learned a little, and its selection in plain words."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from curate.archs import Arch
from curate.archs._narrow import narrow
from curate.checkpoint import Checkpoint
from curate.config import DrcConfig
from curate.drc.chosen import Chosen, close
from curate.drc.crops import selection_set
from curate.drc.work import Work
from curate.manifest import Manifest
from curate.objective import Images
from curate.units import PrunableUnit, Span

SMALL: dict[str, Any] = {"batch_size": 2, "crop": 24, "patches": 4, "layer_rate": 1e-5}


def work(arch: Arch, manifest: Manifest, state: dict[str, Tensor] | None = None, **options: Any) -> Work:
    """A network of the same random weights each time, or of `state`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = arch.build().state_dict() if state is None else state
    config = DrcConfig(**{**SMALL, **options})
    return Work(Checkpoint(arch, weights, {}), manifest, config, manifest.store(), torch.device("cpu"))


def trained(arch: Arch, manifest: Manifest, **options: Any) -> Work:
    """After three steps of Adam."""
    made = work(arch, manifest, **options)
    whole = made.regression()
    optimiser = torch.optim.Adam(whole.net.parameters(), lr=1e-3)
    for images in selection_set(made)[:1] * 3:
        made.objective(whole(images.lr_BCHW), images).backward()
        optimiser.step()
        optimiser.zero_grad()
    return work(arch, manifest, whole.net.state_dict(), **options)


def plainly(made: Work, widths: Sequence[int]) -> tuple[list[list[int]], dict[str, Tensor]]:
    """Greedy selection written out: every pass runs both networks whole, and all weights have gradients."""
    config, whole = made.config, made.regression()
    original, batches = deepcopy(whole), selection_set(made)
    weights, before = dict(whole.net.named_parameters()), dict(original.net.named_parameters())
    found = []
    for unit, width in zip(made.units, widths, strict=True):
        if width == unit.width:
            found.append(list(range(width)))
            continue
        opened: list[int] = []
        fill(weights, None, unit, list(range(unit.width)))
        while len(opened) < width:
            totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}
            for images in batches:
                for name, gradient in gradients(made, whole, original, unit, images).items():
                    totals[name] += gradient
            scores = {one: score(totals, unit, one) for one in range(unit.width) if one not in opened}
            best = sorted(scores, key=lambda one: -scores[one])[: min(config.per_pass, width - len(opened))]
            fill(weights, before, unit, best)
            opened += best
            velocity: dict[str, Tensor] = {}
            for images in batches:
                slopes = gradients(made, whole, original, unit, images)
                with torch.no_grad():
                    for name, move in moves(slopes, unit, opened, weights):
                        velocity[name] = move if name not in velocity else 0.9 * velocity[name] + move
                        weights[name] -= config.layer_rate * (move + 0.9 * velocity[name])
        found.append(sorted(opened))
    return found, whole.net.state_dict()


def check_removal(made: Work, chosen: Chosen) -> None:
    """What is closed is 0, and the network without it gives the same."""
    again = {name: tensor.clone() for name, tensor in chosen.state.items()}
    for unit, kept in zip(made.units, chosen.kept, strict=True):
        assert kept == sorted(set(kept))
        close(again, unit, sorted(set(range(unit.width)) - set(kept)))
    assert all(torch.equal(chosen.state[name], again[name]) for name in again)
    masked = Checkpoint(made.arch, chosen.state, {}).module()
    small = narrow(deepcopy(masked), made.units, chosen.kept)
    colours = 1 if made.arch.colour == "y" else 3
    given = made.arch.peak * torch.rand(1, colours, 9, 10, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (small(given) - masked(given)).abs().max() <= 1e-5 * made.arch.peak
    assert size(small) < size(masked)


def size(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def gradients(
    made: Work, whole: nn.Module, original: nn.Module, unit: PrunableUnit, images: Images
) -> dict[str, Tensor]:
    """The gradient of all weights by the loss of a batch."""
    loss = loss_of(made, whole, original, unit, images)
    names = [name for name, _ in whole.net.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(whole.net.parameters())), strict=True))


def loss_of(made: Work, whole: nn.Module, original: nn.Module, unit: PrunableUnit, images: Images) -> Tensor:
    """Of the answers, the way back, and what is made of the unit."""
    here, there = (outputs(one, unit, images) for one in (whole, original))
    loss = made.objective(here[0], images)
    for mine, other in zip(here[1:], there[1:], strict=True):
        loss = loss + made.config.feature_weight * (mine - other.detach()).square().mean()
    return loss


def outputs(whole: nn.Module, unit: PrunableUnit, images: Images) -> list[Any]:
    """The answer, and what each layer makes that reads the unit."""
    made: list[Any] = []
    layers = dict.fromkeys(span.parameter.rpartition(".")[0] for span in unit.readers)
    hooks = [
        whole.net.get_submodule(name).register_forward_hook(lambda module, given, result: made.append(result))
        for name in layers
    ]
    answer = whole(images.lr_BCHW)
    for hook in hooks:
        hook.remove()
    return [answer, *made]


def at(tensor: Tensor, span: Span, unit: PrunableUnit, one: int) -> Iterator[Tensor]:
    """The slices of a parameter that belong to a map."""
    for place in span.places(unit.width, [one]):
        yield tensor.select(span.axis, place)


def score(totals: dict[str, Tensor], unit: PrunableUnit, one: int) -> float:
    """The norm of the kernel of each output of each reader, added up."""
    return sum(
        float(kernel.norm())
        for span in unit.readers
        for columns in at(totals[span.parameter], span, unit, one)
        for kernel in columns
    )


def fill(
    weights: dict[str, nn.Parameter], source: dict[str, nn.Parameter] | None, unit: PrunableUnit, maps: list[int]
) -> None:
    """0, or what the source has."""
    with torch.no_grad():
        for span in (*unit.readers, *unit.gates):
            for one in maps:
                for place in span.places(unit.width, [one]):
                    slot = weights[span.parameter].select(span.axis, place)
                    slot.copy_(
                        torch.zeros_like(slot) if source is None else source[span.parameter].select(span.axis, place)
                    )


def moves(
    slopes: dict[str, Tensor], unit: PrunableUnit, opened: list[int], weights: dict[str, nn.Parameter]
) -> Iterator[tuple[str, Tensor]]:
    """The slopes of what an epoch may change: open columns and the biases of their layers."""
    for span in unit.readers:
        mask = torch.zeros_like(slopes[span.parameter])
        for one in opened:
            for column in at(mask, span, unit, one):
                column.fill_(1)
        yield span.parameter, slopes[span.parameter] * mask
        bias = span.parameter.rpartition(".")[0] + ".bias"
        if bias in weights:
            yield bias, slopes[bias]
