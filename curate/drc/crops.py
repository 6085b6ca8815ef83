"""The selection set: the few crops that a selection looks at again and again."""

import torch

from curate.drc.work import Work
from curate.errors import UsageError, counted
from curate.objective import Images

__all__ = ["selection_set"]


def selection_set(work: Work) -> list[Images]:
    """Batches of `patches` crops in all, drawn once by the seed, on the device.

    UsageError where the manifest has fewer patches than that: some would be seen twice.
    """
    config = work.config
    if len(work.manifest) < config.patches:
        asked = f"it should have {config.patches} (--patches) or more"
        raise UsageError(
            f"too few patches for the selection set: {asked}, found {counted(len(work.manifest), 'patch')}"
        )
    made = []
    feed = work.batches(work.manifest, config.seed)
    for _ in range(config.patches // config.batch_size):
        images = work.objective.images(next(feed).to(work.device))
        made.append(images._replace(lr_BCHW=images.lr_BCHW.contiguous(memory_format=torch.channels_last)))
    return made
