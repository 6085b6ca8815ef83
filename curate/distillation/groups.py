"""What stands for classes, which photographs have none: clusters of patches alike, or images.

A group is a number from 0 up. Synthetic patches of a group are matched with real patches of the same one.

Axes in names: P patches of a pool, N synthetic patches, K features, H height, W width.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from curate.errors import UsageError, counted, listed
from curate.metrics import rgb_to_y
from curate.strategies._vectors import scaled
from curate.strategies.cluster import kmeans
from curate.tensors import to_float

__all__ = ["by_image", "clusters", "looks", "matched"]

_CHUNK = 256  # patches looked at a time
_FLOOR = 1e-6  # of energies before their logarithm: half a step of 8 bits, squared, is four times that


def clusters(pool_P3HW: Tensor, number: int, seed: int) -> Tensor:
    """group_P int64 from k-means over what patches look like (`looks`): 0 up to `number` - 1, or fewer if few differ.

    pool_P3HW: uint8, or floating sRGB in [0, 1]. Raises UsageError for no patches, or a number that is not 1 or more.
    """
    if number < 1 or not len(pool_P3HW):
        raise UsageError(f"clusters take patches, and a number of 1 or more, found {len(pool_P3HW)} and {number}")
    points = scaled(looks(pool_P3HW).numpy(), "columns")
    labels = kmeans(points, number, np.random.default_rng(seed))
    return _numbered(labels)


def by_image(image_ids: Sequence[str]) -> Tensor:
    """group_P int64: a group for each image, in the order of the ids."""
    return _numbered(np.asarray(image_ids, dtype=object).astype(str))


def matched(groups: tuple[Tensor, Tensor] | None, synthetic: int, real: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each group that has synthetic patches, the rows of these and of its real ones; without groups, all rows.

    groups: group_N of the synthetic and of the real patches.
    Raises UsageError for no patches, groups of another number of patches, and a group without real ones.
    """
    if not synthetic or not real:
        raise UsageError(f"matching takes patches of both kinds, found {synthetic} synthetic and {real} real")
    if groups is None:
        groups = torch.zeros(synthetic, dtype=torch.int64), torch.zeros(real, dtype=torch.int64)
    mine_N, its_N = groups
    if (len(mine_N), len(its_N)) != (synthetic, real):
        found = f"{len(mine_N)} and {len(its_N)} for {counted(synthetic, 'synthetic patch')} and {real} real"
        raise UsageError(f"every patch should have a group, found {found}")
    if missing := set(mine_N.tolist()) - set(its_N.tolist()):
        raise UsageError(f"synthetic patches of a group take real ones of it, found none of: {listed(missing)}")
    present = sorted(set(mine_N.tolist()))
    return iter([((mine_N == group).nonzero()[:, 0], (its_N == group).nonzero()[:, 0]) for group in present])


def looks(pool_P3HW: Tensor) -> Tensor:
    """features_PK float32, cheap ones: log energy along 4 directions and of fine detail, luma, contrast, chroma.

    pool_P3HW: uint8, or floating sRGB in [0, 1], at least 3x3 px.
    """
    shape = tuple(pool_P3HW.shape)
    if len(shape) != 4 or shape[1] != 3 or min(shape[2:]) < 3:
        raise UsageError(f"patches should have shape (P, 3, H, W), H and W at least 3, found {shape}")
    return torch.cat([_looks(chunk_P3HW) for chunk_P3HW in torch.split(pool_P3HW, _CHUNK)])


def _looks(pool_P3HW: Tensor) -> Tensor:
    image_P3HW = to_float(pool_P3HW) if pool_P3HW.dtype == torch.uint8 else pool_P3HW.detach().float()
    luma_P1HW = rgb_to_y(image_P3HW)
    chroma_P2HW = image_P3HW[:, ::2] - luma_P1HW  # red and blue beside the luma
    inner = luma_P1HW[..., 1:-1, 1:-1]
    steps = [
        luma_P1HW[..., 1 + y : luma_P1HW.shape[-2] - 1 + y, 1 + x : luma_P1HW.shape[-1] - 1 + x] - inner
        for y, x in ((0, 1), (1, 0), (1, 1), (1, -1))
    ]
    energies = [step.square() for step in steps]
    detail = luma_P1HW - F.avg_pool2d(F.pad(luma_P1HW, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    columns = [(energy.mean(dim=(1, 2, 3)) + _FLOOR).log() for energy in [*energies, detail.square()]]
    columns += [luma_P1HW.mean(dim=(1, 2, 3)), (luma_P1HW.var(dim=(1, 2, 3), correction=0) + _FLOOR).log()]
    columns += [*chroma_P2HW.std(dim=(2, 3), correction=0).T, *chroma_P2HW.mean(dim=(2, 3)).T]
    return torch.stack(columns, dim=1).cpu()


def _numbered(labels: npt.NDArray[np.int64 | np.str_]) -> Tensor:
    """Labels as numbers from 0 up, none left out, in their order."""
    return torch.from_numpy(np.unique(labels, return_inverse=True)[1].astype(np.int64))
