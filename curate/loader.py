"""Manifest -> training batches: random crops inside the chosen windows, LR by the exact bicubic, in a seeded order.

Decoding a photograph costs far more than cropping it, so samples are drawn block by block: the photographs are shuffled
and cut into blocks that fit the cache, and the windows of a block are shuffled among each other. A block is decoded
once an epoch, the next one while the current one is used; a corpus that fits the cache is one block: a full shuffle.

Sample n is a function of (manifest, options, seed, n) alone: any step can be resumed, and threads do not matter.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from curate import pool
from curate.errors import DataError, UsageError, one_line
from curate.manifest import Manifest
from curate.resize import downscale
from curate.store import Store
from curate.tensors import crop_to_multiple, to_float, to_pixels, to_tensor

__all__ = ["Batch", "batches"]

_Pixels = npt.NDArray[np.uint8]  # HWC, sRGB
_Ints = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """One step's samples, on the CPU."""

    lr_BCHW: Tensor  # float32 sRGB in [0, 1]
    hr_BCHW: Tensor  # the same, H and W `scale` times larger
    weight_B: Tensor  # float32, mean 1 over the manifest
    seed_B: Tensor  # int64: a number of each sample's own, for `curate.degrade` and whatever else is drawn

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; the seeds, which are for the CPU's generators, stay."""
        lr_BCHW, hr_BCHW, weight_B = (tensor.to(device, non_blocking=True) for tensor in self[:3])
        return Batch(lr_BCHW, hr_BCHW, weight_B, self.seed_B)

    def parts(self, number: int) -> "list[Batch]":
        """The batch cut into `number` batches, in its order; `number` should divide its length."""
        return [Batch(*tensors) for tensors in zip(*(tensor.chunk(number) for tensor in self), strict=True)]


def batches(
    manifest: Manifest | str | Path,
    *,
    scale: int,
    crop: int,
    batch_size: int = 16,
    seed: int = 0,
    start: int = 0,
    augment: bool = True,
    share: tuple[int, int] = (0, 1),
    store: Store | None = None,
    cache_bytes: int = 1 << 30,
) -> Iterator[Batch]:
    """Endless batches of `crop` x `crop` HR pixels from inside the manifest's windows, and their LR.

    Every window is drawn once an epoch; epochs follow one another without a gap. `start` is the number of the first
    batch, for resuming. `augment` flips and turns. `share` (i, n) gives the i-th of n equal parts of every batch: the n
    processes of a training see one batch together, whatever n is. The LR is the store's own where it was ingested with
    one for this scale, and otherwise MATLAB's bicubic of the whole photograph (cropped to a multiple of 12), so that it
    equals the crop of the whole LR image. Up to twice `cache_bytes` of decoded photographs are held in memory.
    A packed store gives the batches of the store that it was packed from.

    Raises UsageError if the crop does not fit the windows or the scale, or the store was packed for lower scales;
    DataError if the store is not the manifest's.
    """
    manifest = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
    source = store or manifest.store()
    manifest.verify(source)
    _check_packed(manifest, source, scale)
    if crop < scale or crop % scale or batch_size < 1:
        found = f"found a crop of {crop} and a batch of {batch_size}"
        raise UsageError(f"a crop should be a multiple of the scale {scale} and a batch 1 or more, {found}")
    if batch_size % share[1]:
        raise UsageError(f"a batch of {batch_size} cannot be shared among {share[1]} processes; take a multiple")
    plan = _Plan.of(manifest, source, scale, crop, cache_bytes)
    return _batches(plan, _Cache(source, scale), batch_size, seed, start, augment, share)


def _check_packed(manifest: Manifest, store: Store, scale: int) -> None:
    """A window that was not packed would be black, and the LR of a higher scale wrong at the edge of what was."""
    packed = store.header.packed
    if packed is None:
        return
    if scale > packed.scale:
        found = f"the store '{one_line(store.path)}' was packed for scales up to x{packed.scale}, asked for x{scale}"
        raise UsageError(f"{found}; train from the store that it was packed from")
    absent = set(manifest.table["patch_id"].to_pylist()) - set(store.patches()["patch_id"].to_pylist())
    if absent:
        found = f"{len(absent)} of the manifest's {len(manifest)} windows, such as {one_line(min(absent))}"
        raise DataError(f"{found}, were not packed into '{one_line(store.path)}'; train from its own manifest")


@dataclass(frozen=True)
class _Plan:
    """The manifest as arrays: W windows on I photographs."""

    scale: int
    crop: int  # HR px
    cache_bytes: int
    image_ids: list[str]
    image_bytes: _Ints  # I, decoded HR and LR
    image: _Ints  # W, which photograph
    first_W2: _Ints  # W x 2, the least (y, x) of a crop, LR px
    span_W2: _Ints  # W x 2, how many places there are for it
    weight: npt.NDArray[np.float32]  # W

    @classmethod
    def of(cls, manifest: Manifest, store: Store, scale: int, crop: int, cache_bytes: int) -> "_Plan":
        columns = {name: manifest.table[name].to_numpy() for name in ("image_id", "y", "x", "size", "weight")}
        ids, image = np.unique(columns["image_id"].astype(str), return_inverse=True)
        corner_W2 = np.stack([columns["y"], columns["x"]], 1).astype(np.int64)
        first_W2 = -(-corner_W2 // scale)
        span_W2 = (corner_W2 + columns["size"][:, None] - crop) // scale - first_W2 + 1
        if len(span_W2) == 0 or span_W2.min() < 1:
            found = f"windows of {columns['size'].min()} px" if len(span_W2) else "no windows"
            raise UsageError(
                f"a crop of {crop} px on the x{scale} grid does not fit into {found}; take a smaller --crop"
            )
        areas = np.array([store.shape(image_id) for image_id in ids.tolist()], np.int64).prod(1)
        weight = columns["weight"].astype(np.float32)
        sizes = areas * 3 + areas * 3 // scale**2
        return cls(scale, crop, cache_bytes, ids.tolist(), sizes, image.astype(np.int64), first_W2, span_W2, weight)

    def epoch(self, seed: int, number: int) -> "_Epoch":
        rng = np.random.default_rng([seed, number])
        place = np.empty(len(self.image_ids), np.int64)
        shuffled = rng.permutation(len(self.image_ids))
        intervals = (np.cumsum(self.image_bytes[shuffled]) - 1) // self.cache_bytes
        place[shuffled] = np.unique(intervals, return_inverse=True)[1]  # 0, 1, 2: a huge photograph leaves no gap
        block = place[self.image]
        mixed = rng.permutation(len(block))
        order = mixed[np.argsort(block[mixed], kind="stable")]
        corner_W2 = self.first_W2 + rng.integers(0, self.span_W2)
        turn, seeds = rng.integers(0, 8, len(order)), rng.integers(0, 1 << 63, len(order))
        return _Epoch(order, block[order], corner_W2[order], turn, seeds)


@dataclass(frozen=True)
class _Epoch:
    """One pass over the windows, in its order."""

    window: _Ints
    block: _Ints
    corner_W2: _Ints  # (y, x) of the crop, LR px
    turn: _Ints  # 0..7: one of the eight symmetries of the square
    seed: _Ints  # a number of the sample's own


class _Cache:
    """Photographs as (HR, LR) pixels, decoded by threads ahead of their use and dropped after it."""

    def __init__(self, store: Store, scale: int) -> None:
        self.store = store
        self.scale = scale
        self.pool = ThreadPoolExecutor(pool.workers())
        self.pending: dict[str, Future[tuple[_Pixels, _Pixels]]] = {}

    def want(self, image_ids: list[str]) -> None:
        """Keep these photographs and no others; start decoding those that are missing, in this order."""
        wanted = set(image_ids)
        for image_id in self.pending.keys() - wanted:
            self.pending.pop(image_id).cancel()
        for image_id in image_ids:
            if image_id not in self.pending:
                self.pending[image_id] = self.pool.submit(self._decode, image_id)

    def get(self, image_id: str) -> tuple[_Pixels, _Pixels]:
        return self.pending[image_id].result()

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def _decode(self, image_id: str) -> tuple[_Pixels, _Pixels]:
        hr = self.store.pixels(image_id)
        role = f"lr{self.scale}"
        if self.store.cells(image_id, role):
            return hr, self.store.pixels(image_id, role)
        return hr, to_pixels(downscale(crop_to_multiple(to_tensor(hr))[None], self.scale)[0])


class _Sample(NamedTuple):
    lr: _Pixels
    hr: _Pixels
    weight: np.float32
    seed: int


def _batches(
    plan: _Plan, cache: _Cache, batch_size: int, seed: int, start: int, augment: bool, share: tuple[int, int]
) -> Iterator[Batch]:
    size = batch_size // share[1]
    mine = range(share[0] * size, (share[0] + 1) * size)  # places in a batch
    samples = (
        sample
        for number, sample in enumerate(_samples(plan, cache, seed, start * batch_size, augment))
        if number % batch_size in mine
    )
    try:
        while True:
            lrs, hrs, weights, seeds = zip(*(next(samples)() for _ in range(size)), strict=True)
            weight_B = torch.tensor(weights, dtype=torch.float32)
            yield Batch(_stack(lrs), _stack(hrs), weight_B, torch.tensor(seeds, dtype=torch.int64))
    finally:
        cache.close()


def _samples(plan: _Plan, cache: _Cache, seed: int, start: int, augment: bool) -> Iterator[Callable[[], _Sample]]:
    """What cuts sample `start`, `start` + 1, ... for ever. To be called, if at all, before the next is taken."""
    number, position = divmod(start, len(plan.image))
    while True:
        epoch = plan.epoch(seed, number)
        block = -1
        for index in range(position, len(epoch.window)):
            if epoch.block[index] != block:
                block = int(epoch.block[index])
                cache.want(_in_blocks(plan, epoch, index, block))
            yield partial(_cut, plan, cache, epoch, index, augment)
        number, position = number + 1, 0


def _cut(plan: _Plan, cache: _Cache, epoch: _Epoch, index: int, augment: bool) -> _Sample:
    """Sample `index` of an epoch."""
    window = int(epoch.window[index])
    turn = int(epoch.turn[index]) if augment else 0
    hr, lr = cache.get(plan.image_ids[plan.image[window]])
    y, x = epoch.corner_W2[index].tolist()
    size, scale = plan.crop // plan.scale, plan.scale
    lr_crop = _turned(lr[y : y + size, x : x + size], turn)
    hr_crop = _turned(hr[y * scale : y * scale + plan.crop, x * scale : x * scale + plan.crop], turn)
    return _Sample(lr_crop, hr_crop, plan.weight[window], int(epoch.seed[index]))


def _in_blocks(plan: _Plan, epoch: _Epoch, index: int, block: int) -> list[str]:
    """The photographs of this block and the next from `index` on, those needed first in front."""
    end = int(np.searchsorted(epoch.block, block + 1, side="right"))
    used = plan.image[epoch.window[index:end]]
    _, first = np.unique(used, return_index=True)
    return [plan.image_ids[image] for image in used[np.sort(first)].tolist()]


def _turned(pixels: _Pixels, turn: int) -> _Pixels:
    """One of the eight symmetries: a quarter turn 0 to 3 times, then mirrored from 4 on."""
    turned = np.rot90(pixels, turn % 4)
    return turned[:, ::-1] if turn >= 4 else turned


def _stack(crops: tuple[_Pixels, ...]) -> Tensor:
    return to_float(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous())
