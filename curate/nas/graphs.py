"""A search's steps on a GPU as CUDA graphs: recorded once, replayed from then on.

A step launches some thousands of small kernels, which takes a processor longer than the GPU needs for them. The first
steps of either kind, with and without the architecture's update, run as they do elsewhere, which also builds what a
recording must not; what is recorded then reads its batches from the same memory each time.
"""

from dataclasses import dataclass, field

import torch

from curate.loader import Batch
from curate.nas.levels import Levels, Losses

__all__ = ["Graphs"]

_AT_FIRST = 3  # steps of either kind before it is recorded


@dataclass
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: list[torch.Tensor]
    losses: Losses


@dataclass
class Graphs:
    """`Levels.step`, the same arguments and answers."""

    levels: Levels
    _done: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    _recorded: dict[bool, _Recorded] = field(default_factory=dict)

    def step(self, training: Batch, validation: Batch | None) -> Losses:
        """One step, of batches on the GPU."""
        kind = validation is not None
        if self._done[kind] < _AT_FIRST:
            self._done[kind] += 1
            return self._apart(training, validation)
        given = [tensor for batch in (training, validation) if batch is not None for tensor in batch[:3]]
        if kind not in self._recorded:
            self._recorded[kind] = self._record(training, validation)
        recorded = self._recorded[kind]
        for place, tensor in zip(recorded.inputs, given, strict=True):
            place.copy_(tensor)
        recorded.graph.replay()
        found = recorded.losses
        return Losses(found.training.clone(), *(None if loss is None else loss.clone() for loss in found[1:]))

    def _apart(self, training: Batch, validation: Batch | None) -> Losses:
        """On a stream of its own, as what is to be recorded must have run."""
        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            losses = self.levels.step(training, validation)
        torch.cuda.current_stream().wait_stream(stream)
        return losses

    def _record(self, training: Batch, validation: Batch | None) -> _Recorded:
        kept = [None if batch is None else _copied(batch) for batch in (training, validation)]
        inputs = [tensor for batch in kept if batch is not None for tensor in batch[:3]]
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        assert kept[0] is not None
        with torch.cuda.graph(graph):  # nothing is computed yet
            losses = self.levels.step(kept[0], kept[1])
        return _Recorded(graph, inputs, losses)


def _copied(batch: Batch) -> Batch:
    lr_BCHW, hr_BCHW, weight_B = (tensor.clone() for tensor in batch[:3])
    return Batch(lr_BCHW, hr_BCHW, weight_B, batch.seed_B)
