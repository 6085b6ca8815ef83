"""Stage 2 of DRC: the maps of each unit that stay, one by one by the gradient of the loss (Guo et al., after DCP).

Units go in order; those that are done stay as they are. Of a unit all maps are closed first. Then, until as many are
open as are to stay: the gradient of

    feature_weight * MSE(what the unit's readers make in the network as it was, in this one)
    + the loss of the answers + dual * that of the way back

by the weights that read the maps, added up over the selection set, says which maps would lower the loss most: a map's
score is the sum, over all outputs of all that reads it, of the Frobenius norm of the gradient of the kernel between
(of linear layers, the absolute value; of attention, over all heads). The best `per_pass` are opened with the weights
that they had, and one epoch of SGD over the set follows, of the open maps' weights and the readers' biases. The
optimiser is a fresh one each time, as the authors' is: momentum would come from another set of maps. All else, dual
networks too, is frozen and in eval mode.

A unit of which all maps stay is left as it is.

    folder/state.safetensors   what is selected so far, to go on from; it stays when the selection has ended, for the
                               caller to delete once the result is written

Axes in names: B batch, C channels, H height, W width.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor

from curate import resume, stopping, units
from curate.drc import readers
from curate.drc.chosen import Chosen, close, reopen
from curate.drc.crops import selection_set
from curate.drc.gates import importance
from curate.drc.readers import Prefix
from curate.drc.work import Work
from curate.dual import Answer
from curate.errors import DataError
from curate.progress import Progress
from curate.storage import Place
from curate.units import PrunableUnit

__all__ = ["Chosen", "greedy", "scores"]

_VERSION = 1  # raise it when the same options begin to choose other maps
_OPTIONS = (
    "dual", "batch_size", "crop", "degrade", "patches", "per_pass", "feature_weight", "layer_rate", "precision"
)  # fmt: skip
_MOMENTUM = 0.9
_CACHE = 4 << 30  # bytes of what a network computes before a layer, for the whole set


def greedy(work: Work, widths: Sequence[int], folder: Place, progress: Progress) -> Chosen:
    """Choose `widths` maps of each unit, from 1 to all, or go on with what `folder` holds.

    The same inputs, seed and threads give the same maps and weights, bit for bit, on a CPU, whether or not the
    selection was stopped on its way. Progress counts maps.

    Raises UsageError for a manifest of too few patches, DataError if the loss is not finite.
    """
    identity = {
        **work.identity,
        "stage": "prune",
        "code": _VERSION,
        "widths": units.text(widths, work.units),
        **{name: getattr(work.config, name) for name in _OPTIONS},
    }
    snapshot = resume.Snapshot.load(folder, identity)
    selection = _Selection(work, widths)
    if snapshot is not None:
        selection.restore(snapshot)
    with stopping.deferred():
        try:
            for number in range(len(work.units)):
                if selection.choose(number, progress):
                    selection.snapshot().save(folder, identity)
        except stopping.Stopped:
            if selection.done:
                selection.snapshot().save(folder, identity)
            stopping.keep(f"{selection.done} of {selection.total} maps are chosen")
            raise
    return selection.chosen()


def scores(gradients: Mapping[str, Tensor], unit: PrunableUnit) -> Tensor:
    """How much opening each map of a unit would change the loss, from the gradients of the parameters that read it."""
    norms = {
        name: gradient.flatten(2).norm(dim=2) if gradient.ndim > 2 else gradient for name, gradient in gradients.items()
    }
    return importance(norms, unit)


class _Selection:
    """The network as it was, the one that is left so far, and which maps of it are chosen."""

    def __init__(self, work: Work, widths: Sequence[int]) -> None:
        self.work, self.config, self.units = work, work.config, work.units
        self.set = selection_set(work)
        self.whole = work.regression().requires_grad_(False)
        self.original = deepcopy(self.whole)
        self.weights, self.before = (dict(whole.net.named_parameters()) for whole in (self.whole, self.original))
        of = [readers.layers(self.original.net, unit.readers) for unit in self.units]
        with self.cast():
            self.calls = readers.calls(self.original, self.set[0].lr_BCHW, of)
        self.opened: list[list[int]] = [[] for _ in self.units]  # in the order in which they were chosen
        self._widths = list(widths)

    @property
    def done(self) -> int:
        return sum(map(len, self.opened))

    @property
    def total(self) -> int:
        return sum(self._widths)

    def cast(self) -> torch.autocast:
        return torch.autocast(self.work.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def chosen(self) -> Chosen:
        state = {name: tensor.cpu().contiguous() for name, tensor in self.whole.net.state_dict().items()}
        return Chosen([sorted(maps) for maps in self.opened], state)

    def snapshot(self) -> resume.Snapshot:
        tensors = resume.with_prefix("net.", self.whole.net.state_dict())
        tensors |= {f"opened.{number}": torch.tensor(maps) for number, maps in enumerate(self.opened) if maps}
        return resume.Snapshot(self.done, None, tensors)

    def restore(self, snapshot: resume.Snapshot) -> None:
        self.whole.net.load_state_dict(resume.without_prefix("net.", snapshot.tensors))
        for number, maps in resume.without_prefix("opened.", snapshot.tensors).items():
            self.opened[int(number)] = maps.tolist()

    def choose(self, number: int, progress: Progress) -> bool:
        """Choose the maps of a unit that are not chosen yet. Whether there were any."""
        unit, width, opened = self.units[number], self._widths[number], self.opened[number]
        if len(opened) == width:
            return False
        if width == unit.width:
            opened.extend(range(width))
            progress(self.done, self.total, unit.name)
            return True
        close(self.weights, unit, [one for one in range(unit.width) if one not in opened])
        layer = _Layer(self, number)
        while len(opened) < width:
            layer.grow(min(self.config.per_pass, width - len(opened)))
            progress(self.done, self.total, unit.name)
        return True


class _Layer:
    """The layers that read a unit's maps, some of these open; nothing else in the network changes or has gradients."""

    def __init__(self, selection: _Selection, number: int) -> None:
        self._of, self._config = selection, selection.config
        self._unit, self._opened = selection.units[number], selection.opened[number]
        net, original, given = selection.whole.net, selection.original, [images.lr_BCHW for images in selection.set]
        self._layers = readers.layers(net, self._unit.readers)
        self._weights = {span.parameter: selection.weights[span.parameter] for span in self._unit.readers}
        self._biases = {
            name: selection.weights[name]
            for name in (f"{weight.rpartition('.')[0]}.bias" for weight in self._weights)
            if name in selection.weights
        }
        gates = {span.parameter: selection.weights[span.parameter] for span in self._unit.gates}
        self._changing = {**self._weights, **self._biases, **gates}
        selection.whole.requires_grad_(False)
        for leaf in (*self._weights.values(), *self._biases.values()):
            leaf.requires_grad_()
        with selection.cast():
            of, most = readers.layers(original.net, self._unit.readers), selection.calls[number]
            self._wanted = [
                [call.made for call in readers.ran(original, one, of, most)] if self._config.feature_weight else []
                for one in given
            ]
            changing = readers.layers(net, (*self._unit.readers, *self._unit.gates))
            self._prefix = Prefix(selection.whole, changing, given, _CACHE)

    def grow(self, more: int) -> None:
        """Open the best closed maps, and fit what is open: both or, where the selection is stopped, neither."""
        best = self._best(more)
        before = {name: parameter.detach().clone() for name, parameter in self._changing.items()}
        reopen(self._of.weights, self._of.before, self._unit, best)
        self._opened.extend(best)
        try:
            self._fit()
        except stopping.Stopped:
            del self._opened[-more:]
            with torch.no_grad():
                for name, parameter in self._changing.items():
                    parameter.copy_(before[name])
            raise

    def _best(self, number: int) -> list[int]:
        """The closed maps with the highest scores; the first ones where these are the same."""
        totals = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        for loss in self._losses():
            for total, gradient in zip(
                totals.values(), torch.autograd.grad(loss, list(self._weights.values())), strict=True
            ):
                total += gradient
        if not all(total.isfinite().all() for total in totals.values()):
            raise DataError(f"the loss is not finite at {self._unit.name}: select with a smaller --layer-rate")
        scores_W = scores(totals, self._unit)
        scores_W[self._opened] = -1
        return scores_W.argsort(descending=True, stable=True)[:number].tolist()

    def _fit(self) -> None:
        """One epoch of descent."""
        if not self._config.layer_rate:
            return
        leaves = [*self._weights.values(), *self._biases.values()]
        optimiser = torch.optim.SGD(leaves, lr=self._config.layer_rate, momentum=_MOMENTUM, nesterov=True)
        places = self._places()
        for loss in self._losses():
            gradients = torch.autograd.grad(loss, leaves)
            for (name, leaf), gradient in zip((self._weights | self._biases).items(), gradients, strict=True):
                leaf.grad = gradient
                if name in places:
                    axis, open_ = places[name]
                    leaf.grad = torch.zeros_like(gradient).index_copy_(axis, open_, gradient.index_select(axis, open_))
            optimiser.step()
        optimiser.zero_grad()

    def _places(self) -> dict[str, tuple[int, Tensor]]:
        """Of each weight the axis along which the maps lie, and where the open ones are."""
        found: dict[str, tuple[int, list[int]]] = {}
        for span in self._unit.readers:
            _, places = found.setdefault(span.parameter, (span.axis, []))
            places.extend(span.places(self._unit.width, self._opened))
        device = self._of.work.device
        return {name: (axis, torch.tensor(places, device=device)) for name, (axis, places) in found.items()}

    def _losses(self) -> Iterator[Tensor]:
        """The loss of each batch of the set, in order. Stopped where a signal has come."""
        for number, images in enumerate(self._of.set):
            if stopping.caught():
                raise stopping.Stopped
            with self._of.cast(), readers.taken(self._layers) as calls:
                answer: Answer = self._prefix(number, images.lr_BCHW)
            loss = self._of.work.objective(answer.float(), images)
            for call, wanted in zip(calls, self._wanted[number], strict=bool(self._wanted[number])):
                loss = loss + self._config.feature_weight * _distance(call.made, wanted, images.weight_B)
            yield loss


def _distance(made: Tensor, wanted: Tensor, weight_B: Tensor) -> Tensor:
    """The mean squared difference of a batch, each sample's by its weight."""
    squares = (made.float() - wanted.float()).square()
    return (squares.reshape(len(weight_B), -1).mean(1) * weight_B).mean()
