"""The real patches of a distillation: crops of a manifest's windows, held in memory, and what group each is of.

Synthetic patches are compared with these, and start as some of them.

Axes in names: P patches of the pool, N synthetic patches, M of a batch.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from curate.config import DistillConfig
from curate.distillation.groups import by_image, clusters
from curate.errors import UsageError, counted
from curate.manifest import Manifest
from curate.progress import Progress, silent
from curate.store import Store
from curate.tensors import to_float, to_pixels

__all__ = ["Pool", "check", "read"]

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pool:
    """P real patches."""

    patches_P3HW: Tensor  # uint8
    group_P: Tensor  # int64, from 0 up
    rank_P: Tensor  # int64, of the manifest's window

    def floating(self, rows_M: Tensor, device: torch.device) -> Tensor:
        """Some of them, float32 in [0, 1]."""
        return to_float(self.patches_P3HW[rows_M].to(device))

    def pixels(self, row: int) -> npt.NDArray[np.uint8]:
        """One of them, HWC."""
        return to_pixels(self.patches_P3HW[row])

    @property
    def windows(self) -> int:
        """Of how many windows there are crops."""
        return len(self.rank_P.unique())  # type: ignore[no-untyped-call]

    def starts(self, number: int, config: DistillConfig) -> Tensor:
        """Which of them `number` synthetic patches start as: of different windows, fewer are the first of more.

        Drawn, each group has its share of the pool's windows, to half a patch, in as many of the first ones as one
        likes; by rank they are in the order of the manifest. UsageError where there are fewer windows than that.
        """
        first_P = self._first_of_each_window()
        _require(number, len(first_P), config)
        if config.start == "rank":
            return first_P[:number]
        shuffled_P = first_P[torch.from_numpy(np.random.default_rng([config.seed, 1]).permutation(len(first_P)))]
        place_P = np.empty(len(shuffled_P))
        for group in self.group_P[shuffled_P].unique().tolist():  # type: ignore[no-untyped-call]
            mine = np.flatnonzero(self.group_P[shuffled_P].numpy() == group)
            place_P[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
        return shuffled_P[torch.from_numpy(np.argsort(place_P, kind="stable")[:number])]

    def like(self, group_M: Tensor, number: int, rng: np.random.Generator) -> Tensor:
        """`number` patches drawn so that each group has about the part of them that it has of `group_M`, at least 1."""
        groups, counts = np.unique(group_M.numpy(), return_counts=True)
        wanted = np.maximum(1, np.round(number * counts / counts.sum())).astype(int)
        rows = []
        for group, count in zip(groups.tolist(), wanted.tolist(), strict=True):
            mine = np.flatnonzero(self.group_P.numpy() == group)
            rows += mine[rng.choice(len(mine), count, replace=count > len(mine))].tolist()
        return torch.tensor(rows)

    def _first_of_each_window(self) -> Tensor:
        """A window larger than the patches may have several crops in the pool. In the order of the ranks."""
        return torch.from_numpy(np.sort(np.unique(self.rank_P.numpy(), return_index=True)[1]))


def read(manifest: Manifest, store: Store, config: DistillConfig, progress: Progress = silent) -> Pool:
    """Draw and read the pool: of each window one crop, or of some where there are more windows than the pool holds;
    of windows that are larger than the crops, several where there are fewer.

    UsageError where the crops do not fit the windows.
    """
    check(manifest, config)
    rng = np.random.default_rng([config.seed, 0])
    rank_P, corner_P2 = _drawn(manifest, config, rng)
    ids = manifest.table["image_id"].to_pylist()
    places = sorted(
        (ids[rank], *corner, number)
        for number, (rank, corner) in enumerate(zip(rank_P.tolist(), corner_P2.tolist(), strict=True))
    )
    pixels_PHWC = np.empty((len(rank_P), config.size, config.size, 3), np.uint8)
    for done, (image_id, y, x, number) in enumerate(places, 1):  # an image's one after the other: it is decoded once
        pixels_PHWC[number] = store.read(image_id, y, x, config.size, config.size)
        progress(done, len(places), "reading real patches")
    patches_P3HW = torch.from_numpy(pixels_PHWC).permute(0, 3, 1, 2).contiguous()
    return Pool(
        patches_P3HW, _groups(patches_P3HW, [ids[rank] for rank in rank_P.tolist()], config), torch.from_numpy(rank_P)
    )


def check(manifest: Manifest, config: DistillConfig) -> None:
    """UsageError where the patches do not fit the manifest's windows, or are more than they."""
    least = int(manifest.table["size"].to_numpy().min()) if len(manifest) else 0
    if least < config.size:
        raise UsageError(f"patches of {config.size} px do not fit into the manifest's windows of {least} px")
    _require(config.patches or 0, min(len(manifest), config.pool), config)


def _require(number: int, windows: int, config: DistillConfig) -> None:
    if number > windows:
        found = f"found {counted(windows, 'window')} in a pool of {config.pool}"
        raise UsageError(f"{counted(number, 'patch')} should be distilled from as many or more, {found}")


def _drawn(manifest: Manifest, config: DistillConfig, rng: np.random.Generator) -> tuple[_Ints, _Ints]:
    """Ranks of windows, rising, and the (y, x) of a crop inside each."""
    corner_W2 = np.stack([manifest.table[name].to_numpy().astype(np.int64) for name in ("y", "x")], 1)
    span_W = manifest.table["size"].to_numpy().astype(np.int64) - config.size + 1
    windows = len(corner_W2)
    if windows >= config.pool:
        rank_P = np.sort(rng.permutation(windows)[: config.pool])
    else:
        roomy = np.flatnonzero(span_W > 1)
        more = config.pool - windows if len(roomy) else 0
        rank_P = np.sort(np.concatenate([np.arange(windows), np.resize(rng.permutation(roomy), more)]))
    shift_P2 = rng.integers(0, span_W[rank_P][:, None], (len(rank_P), 2))
    return rank_P.astype(np.int64), corner_W2[rank_P] + shift_P2


def _groups(patches_P3HW: Tensor, image_ids: list[str], config: DistillConfig) -> Tensor:
    if config.groups == "image":
        return by_image(image_ids)
    if config.groups == "none":
        return torch.zeros(len(patches_P3HW), dtype=torch.int64)
    return clusters(patches_P3HW, min(config.clusters, len(patches_P3HW)), config.seed)
