"""What is compressed, with what, and how: what the stages of `curate drc` have in common."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from curate import degrade, units
from curate.archs import Arch
from curate.checkpoint import Checkpoint, full_spec, weights_hash
from curate.config import DrcConfig
from curate.dual import Regression, dual_networks
from curate.loader import Batch, batches
from curate.manifest import Manifest
from curate.objective import Objective
from curate.store import Store
from curate.units import PrunableUnit

__all__ = ["Work"]


@dataclass(frozen=True)
class Work:
    """All that does not change from stage to stage."""

    checkpoint: Checkpoint
    manifest: Manifest
    config: DrcConfig
    store: Store
    device: torch.device
    dual: dict[str, Tensor] | None = None  # weights of the dual networks that the checkpoint was trained with

    @property
    def arch(self) -> Arch:
        return self.checkpoint.arch

    @cached_property
    def units(self) -> tuple[PrunableUnit, ...]:
        """Of the checkpoint's network as it is, which may have been pruned before."""
        return units.left(self.arch)

    @cached_property
    def objective(self) -> Objective:
        """What search and selection go by: L1 of the answers, and of the way back."""
        degradation = degrade.parse(self.config.degrade, self.arch.scale)
        return Objective(self.arch, dual=self.config.dual, degradation=degradation)

    @property
    def identity(self) -> dict[str, Any]:
        """What two stages of the same name must have in common to be the same one, besides their own options."""
        return {
            "arch": full_spec(self.arch),
            "weights": weights_hash(self.checkpoint.state),
            "manifest": self.manifest.digest(),
            "dual_networks": None if self.dual is None else weights_hash(self.dual),
            "seed": self.config.seed,
        }

    def regression(self) -> Regression:
        """The checkpoint's network with its dual networks, or fresh ones of the seed, on the device, in eval mode.

        Without dual networks where the dual loss has no weight. Torch's random generator stays as it was.
        """
        duals: nn.ModuleList | None = None
        if self.config.dual:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.config.seed)
                duals = dual_networks(self.arch)
            if self.dual is not None:
                duals.load_state_dict(self.dual)
        whole = Regression(self.arch, self.checkpoint.module(), duals).eval()
        return whole.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def batches(self, part: Manifest, seed: int, start: int = 0) -> Iterator[Batch]:
        """Batches of a part of the manifest from the `start`-th on."""
        return batches(
            part,
            scale=self.arch.scale,
            crop=self.config.crop,
            batch_size=self.config.batch_size,
            seed=seed,
            start=start,
            between=self.objective.between,
            store=self.store,
        )
