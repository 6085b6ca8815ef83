"""The selection set: the few crops that a selection looks at again and again."""

import torch

from curate.drc.work import Work
from curate.errors import UsageError, counted
from curate.objective import Images

__all__ = ["check_patches", "selection_set"]


def check_patches(work: Work) -> None:
    """UsageError where the manifest is smaller than the selection set."""
    if len(work.manifest) < work.config.patches:
        asked = f"it should have {work.config.patches} (--patches) or more"
        raise UsageError(
            f"too few patches for the selection set: {asked}, found {counted(len(work.manifest), 'patch')}"
        )


def selection_set(work: Work) -> list[Images]:
    """Batches of `patches` crops in all, drawn once by the seed, on the device.

    UsageError where the manifest has fewer patches than that: some would be seen twice.
    """
    check_patches(work)
    config = work.config
    made = []
    feed = work.batches(work.manifest, config.seed)
    for _ in range(config.patches // config.batch_size):
        images = work.objective.images(next(feed).to(work.device))
        made.append(images._replace(lr_BCHW=images.lr_BCHW.contiguous(memory_format=torch.channels_last)))
    return made
