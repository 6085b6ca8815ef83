"""One process, or the several that `torchrun` started: which this one is, its device, and what they do together.

Built on accelerate. A batch is shared among the processes, so that a training is the same one however many there are
(to the rounding of sums that are added up in another order).
"""

import os
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from curate.errors import UsageError, one_line
from curate.tensors import pick_device

__all__ = ["Team"]


class Team:
    """The processes that train together, as one of them sees it."""

    def __init__(self, device: str = "auto") -> None:
        """Find out about the others. Raises UsageError for a device that is not here, or one device for several."""
        target = pick_device(device)
        launched = "LOCAL_RANK" in os.environ  # torchrun's
        if launched and target.index is not None:
            raise UsageError(
                f"under torchrun each process has its own device: say cuda or cpu, found {one_line(device)}"
            )
        # The device is placed by us: accelerate would hold one for the life of this Python.
        self._accelerator = Accelerator(device_placement=False, cpu=launched and target.type == "cpu")
        self.device: torch.device = self._accelerator.device if launched else target
        self.rank: int = self._accelerator.process_index
        self.size: int = self._accelerator.num_processes

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes, measures and speaks."""
        return self.rank == 0

    def share(self, net: nn.Module) -> nn.Module:
        """The network as it is trained: its gradients become the mean over all processes."""
        prepared: nn.Module = self._accelerator.prepare_model(net, device_placement=False)
        return prepared

    def alone(self, net: nn.Module) -> AbstractContextManager[Any]:
        """In it, gradients of a shared network stay in this process: for all parts of a batch but the last."""
        quiet: AbstractContextManager[Any] = self._accelerator.no_sync(net)
        return quiet

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, in every one of them."""
        return self._accelerator.reduce(values, reduction="mean") if self.size > 1 else values
