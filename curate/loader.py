"""Manifest -> training batches: random crops inside the chosen windows, LR by the exact bicubic, in a seeded order.

Decoding a photograph costs far more than cropping it, so samples are drawn block by block: the photographs are shuffled
and cut into blocks that fit the cache, and the windows of a block are shuffled among each other. A block is decoded
once an epoch, the next one while the current one is used; a corpus that fits the cache is one block: a full shuffle.
Of a packed photograph only the cells under a block's crops are decoded. LR is made of the crops of a batch together,
each cut with the margin that the bicubic kernel reaches, mirrored where the photograph ends. One thread does this, with
no more of torch's own: these wait for each other, and beside threads that decode it took three times as long.

Sample n is a function of (manifest, options, seed, n) alone: any step can be resumed, and threads do not matter.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from curate import pool
from curate.errors import DataError, UsageError, listed, one_line
from curate.manifest import Manifest
from curate.resize import downscale, margin
from curate.store import Cell, Store
from curate.windows import cropped

__all__ = ["Batch", "batches"]

_AHEAD = 2  # batches that are made before they are asked for

_Pixels = npt.NDArray[np.uint8]  # HWC, sRGB
_Ints = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """One step's samples, on the CPU."""

    lr_BCHW: Tensor  # float32 sRGB in [0, 1]
    hr_BCHW: Tensor  # the same, H and W `scale` times larger
    weight_B: Tensor  # float32, mean 1 over the manifest
    seed_B: Tensor  # int64: a number of each sample's own, for `curate.degrade` and whatever else is drawn
    between: tuple[Tensor, ...] = ()  # HR smaller by each of `between`'s factors, float32 sRGB in [0, 1]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; the seeds, which are for the CPU's generators, stay."""
        lr_BCHW, hr_BCHW, weight_B = (tensor.to(device, non_blocking=True) for tensor in self[:3])
        between = tuple(tensor.to(device, non_blocking=True) for tensor in self.between)
        return Batch(lr_BCHW, hr_BCHW, weight_B, self.seed_B, between)

    def parts(self, number: int) -> "list[Batch]":
        """The batch cut into `number` batches, in its order; `number` should divide its length."""
        between = [tensor.chunk(number) for tensor in self.between]
        own = zip(*(tensor.chunk(number) for tensor in self[:4]), strict=True)
        return [
            Batch(lr, hr, weight, seed, tuple(more[part] for more in between))
            for part, (lr, hr, weight, seed) in enumerate(own)
        ]


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
    between: tuple[int, ...] = (),
    store: Store | None = None,
    cache_bytes: int = 1 << 30,
) -> Iterator[Batch]:
    """Endless batches of `crop` x `crop` HR pixels from inside the manifest's windows, and their LR.

    Every window is drawn once an epoch; epochs follow one another without a gap. `start` is the number of the first
    batch, for resuming. `augment` flips and turns. `share` (i, n) gives the i-th of n equal parts of every batch: the n
    processes of a training see one batch together, whatever n is. The LR is the store's own where it was ingested with
    one for this scale, and otherwise MATLAB's bicubic of the whole photograph (cropped to a multiple of 12), so that it
    equals the crop of the whole LR image. `between` are factors by which HR is shrunk besides, in the same way, for
    networks that answer at several sizes. Up to twice `cache_bytes` of decoded photographs are held in memory.
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
    if any(factor < 1 or scale % factor for factor in between):
        raise UsageError(f"factors between should divide the scale {scale}, found {listed(map(str, between))}")
    plan = _Plan.of(manifest, source, scale, crop, cache_bytes)
    cache = _Cache(source, scale, crop, max(map(margin, between), default=0))
    return _batches(plan, cache, batch_size, seed, start, augment, share, between)


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
    image_bytes: _Ints  # I, decoded HR, and LR where the store has one
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
        shapes_I2 = np.array([store.shape(image_id) for image_id in ids.tolist()], np.int64)
        weight = columns["weight"].astype(np.float32)
        areas = shapes_I2.prod(1)
        paired = np.array([bool(store.cells(image_id, f"lr{scale}")) for image_id in ids.tolist()])
        sizes = areas * 3 + areas * 3 // scale**2 * paired
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


class _Layer(NamedTuple):
    """What a photograph's crops are cut from: its HR pixels, or the LR image that the store was ingested with."""

    role: str
    factor: int  # px of this layer to an LR px
    margin: int  # px around a crop
    side: int  # px of a crop with its margins
    height: int  # px; what is beyond the end is the mirror image
    width: int
    cells: list[Cell]


class _Piece(NamedTuple):
    """What is decoded at a time."""

    image_id: str
    role: str
    cell: Cell


class _Cache:
    """Cells of photographs, decoded by threads ahead of their use and dropped after it."""

    def __init__(self, store: Store, scale: int, crop: int, least: int = 0) -> None:
        self.store = store
        self.scale = scale
        self.crop = crop
        self.least = least  # px of HR around a crop, where its LR needs none
        self.pool = ThreadPoolExecutor(pool.workers())
        self.pending: dict[_Piece, Future[_Pixels]] = {}
        self.known: dict[str, tuple[_Layer, ...]] = {}

    def layers(self, image_id: str) -> tuple[_Layer, ...]:
        """HR with the margin that its LR is made with, or HR and the store's own LR."""
        if image_id not in self.known:
            height, width = map(cropped, self.store.shape(image_id))
            lr = self.store.cells(image_id, f"lr{self.scale}")
            around = self.least if lr else max(self.least, margin(self.scale))
            hr = self.store.cells(image_id)
            layers = [_Layer("hr", self.scale, around, self.crop + 2 * around, height, width, hr)]
            if lr:
                height, width = max(cell.y + cell.height for cell in lr), max(cell.x + cell.width for cell in lr)
                layers.append(_Layer(f"lr{self.scale}", 1, 0, self.crop // self.scale, height, width, lr))
            self.known[image_id] = tuple(layers)
        return self.known[image_id]

    def want(self, pieces: list[_Piece]) -> None:
        """Keep the photographs of these pieces and no others; start decoding what is missing, in this order."""
        wanted = {piece.image_id for piece in pieces}
        for piece in [piece for piece in self.pending if piece.image_id not in wanted]:
            self.pending.pop(piece).cancel()
        for piece in pieces:
            if piece not in self.pending:
                self.pending[piece] = self.pool.submit(self.store.decode, *piece)

    def cut(self, image_id: str, corner: tuple[int, int]) -> list[_Pixels]:
        """The crop at (y, x), LR px, of every layer, with its margins; each piece under it must be wanted."""
        return [self._cut(image_id, layer, *corner) for layer in self.layers(image_id)]

    def _cut(self, image_id: str, layer: _Layer, y: int, x: int) -> _Pixels:
        first_y, first_x = y * layer.factor - layer.margin, x * layer.factor - layer.margin
        top, bottom = max(first_y, 0), min(first_y + layer.side, layer.height)
        left, right = max(first_x, 0), min(first_x + layer.side, layer.width)
        pixels = self._read(image_id, layer, top, bottom, left, right)
        if pixels.shape[:2] == (layer.side, layer.side):
            return pixels
        beyond = (
            (top - first_y, first_y + layer.side - bottom),
            (left - first_x, first_x + layer.side - right),
            (0, 0),
        )
        return np.pad(pixels, beyond, mode="symmetric")

    def _read(self, image_id: str, layer: _Layer, top: int, bottom: int, left: int, right: int) -> _Pixels:
        """Pixels of a layer. A packed store may lack the outermost of a margin, on which no LR pixel depends."""
        pixels = np.zeros((bottom - top, right - left, 3), np.uint8)
        for cell in layer.cells:
            first_y, end_y = max(top, cell.y), min(bottom, cell.y + cell.height)
            first_x, end_x = max(left, cell.x), min(right, cell.x + cell.width)
            if first_y < end_y and first_x < end_x:
                decoded = self.pending[_Piece(image_id, layer.role, cell)].result()
                there = decoded[first_y - cell.y : end_y - cell.y, first_x - cell.x : end_x - cell.x]
                if there.shape == pixels.shape:
                    return there
                pixels[first_y - top : end_y - top, first_x - left : end_x - left] = there
        return pixels

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


class _Sample(NamedTuple):
    hr: _Pixels  # with its margin, where the LR is to be made
    lr: _Pixels | None  # the store's own
    turn: int
    weight: np.float32
    seed: int


def _batches(
    plan: _Plan,
    cache: _Cache,
    batch_size: int,
    seed: int,
    start: int,
    augment: bool,
    share: tuple[int, int],
    between: tuple[int, ...],
) -> Iterator[Batch]:
    size = batch_size // share[1]
    mine = range(share[0] * size, (share[0] + 1) * size)  # places in a batch
    samples = (
        sample
        for number, sample in enumerate(_samples(plan, cache, seed, start * batch_size, augment))
        if number % batch_size in mine
    )
    threads = torch.get_num_threads()
    maker = ThreadPoolExecutor(1, initializer=_without_helpers)
    try:
        maker.submit(int).result()
        torch.set_num_threads(threads)  # threads that this process starts later take the last number that was set
        ahead = deque(maker.submit(_batch, plan, samples, size, between) for _ in range(_AHEAD))
        while True:
            yield ahead.popleft().result()
            ahead.append(maker.submit(_batch, plan, samples, size, between))
    finally:
        cache.close()
        maker.shutdown(cancel_futures=True)


def _without_helpers() -> None:
    """torch has no more than this thread to work for it."""
    torch.get_num_threads()  # a thread's first call of many takes the process's number; this is one, and now it is over
    torch.set_num_threads(1)


def _batch(plan: _Plan, source: Iterator[Callable[[], _Sample]], size: int, between: tuple[int, ...]) -> Batch:
    samples = [cut() for cut in islice(source, size)]
    made = iter(_shrunk([sample.hr for sample in samples if sample.lr is None], plan.scale, plan.crop))
    lrs = [_turned(next(made) if sample.lr is None else sample.lr, sample.turn) for sample in samples]
    hrs = [_turned(_middle(sample.hr, plan.crop), sample.turn) for sample in samples]
    smaller = tuple(_stack(_smaller(samples, factor, plan.crop)) for factor in between)
    weight_B = torch.tensor([sample.weight for sample in samples], dtype=torch.float32)
    seed_B = torch.tensor([sample.seed for sample in samples], dtype=torch.int64)
    return Batch(_stack(lrs), _stack(hrs), weight_B, seed_B, smaller)


def _smaller(samples: list[_Sample], factor: int, crop: int) -> list[_Pixels]:
    made = _shrunk([sample.hr for sample in samples], factor, crop)
    return [_turned(pixels, sample.turn) for pixels, sample in zip(made, samples, strict=True)]


def _shrunk(crops: list[_Pixels], scale: int, crop: int) -> _Pixels:
    """The LR, BHWC, of crops with margins, each `margin(scale)` or more."""
    if not crops:
        return np.empty((0, 0, 0, 3), np.uint8)
    needed = np.stack([_middle(pixels, crop + 2 * margin(scale)) for pixels in crops])
    lr_BCHW = downscale(torch.from_numpy(needed).permute(0, 3, 1, 2), scale)
    beyond = margin(scale) // scale
    return lr_BCHW[..., beyond:-beyond, beyond:-beyond].permute(0, 2, 3, 1).numpy()


def _middle(pixels: _Pixels, crop: int) -> _Pixels:
    beyond = (len(pixels) - crop) // 2
    return pixels[beyond : beyond + crop, beyond : beyond + crop]


def _samples(plan: _Plan, cache: _Cache, seed: int, start: int, augment: bool) -> Iterator[Callable[[], _Sample]]:
    """What cuts sample `start`, `start` + 1, ... for ever. To be called, if at all, before the next is taken."""
    number, position = divmod(start, len(plan.image))
    while True:
        epoch = plan.epoch(seed, number)
        block = -1
        for index in range(position, len(epoch.window)):
            if epoch.block[index] != block:
                block = int(epoch.block[index])
                cache.want(_in_blocks(plan, cache, epoch, index, block))
            yield partial(_cut, plan, cache, epoch, index, augment)
        number, position = number + 1, 0


def _cut(plan: _Plan, cache: _Cache, epoch: _Epoch, index: int, augment: bool) -> _Sample:
    """Sample `index` of an epoch."""
    window = int(epoch.window[index])
    turn = int(epoch.turn[index]) if augment else 0
    y, x = epoch.corner_W2[index].tolist()
    hr, *lr = cache.cut(plan.image_ids[plan.image[window]], (y, x))
    return _Sample(hr, lr[0] if lr else None, turn, plan.weight[window], int(epoch.seed[index]))


def _in_blocks(plan: _Plan, cache: _Cache, epoch: _Epoch, index: int, block: int) -> list[_Piece]:
    """The pieces under the crops of this block and the next from `index` on, those needed first in front."""
    end = int(np.searchsorted(epoch.block, block + 1, side="right"))
    used, corner_N2 = plan.image[epoch.window[index:end]], epoch.corner_W2[index:end]
    order = np.argsort(used, kind="stable")
    found, starts = np.unique(used[order], return_index=True)
    first: dict[_Piece, int] = {}
    for image, crops in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
        for layer in cache.layers(plan.image_ids[image]):
            for cell, crop in _under(layer, corner_N2[crops]):
                first[_Piece(plan.image_ids[image], layer.role, cell)] = int(crops[crop])
    return sorted(first, key=first.__getitem__)


def _under(layer: _Layer, corner_N2: _Ints) -> list[tuple[Cell, int]]:
    """The cells under crops, and the first crop over each."""
    if len(layer.cells) == 1:
        return [(layer.cells[0], 0)]
    first_N12 = (corner_N2 * layer.factor - layer.margin)[:, None]
    cell_C2 = np.array([(cell.y, cell.x) for cell in layer.cells])
    end_C2 = cell_C2 + [(cell.height, cell.width) for cell in layer.cells]
    over_NC = np.all((first_N12 < end_C2) & (first_N12 + layer.side > cell_C2), axis=2)
    return [(layer.cells[cell], int(over_NC[:, cell].argmax())) for cell in np.flatnonzero(over_NC.any(0))]


def _turned(pixels: _Pixels, turn: int) -> _Pixels:
    """One of the eight symmetries: a quarter turn 0 to 3 times, then mirrored from 4 on. A view."""
    if turn % 2:
        pixels = pixels.transpose(1, 0, 2)
    if turn in (1, 2, 5, 6):
        pixels = pixels[::-1]
    if turn in (2, 3, 4, 5):
        pixels = pixels[:, ::-1]
    return pixels


def _stack(crops: list[_Pixels]) -> Tensor:
    """float32 in [0, 1], BCHW."""
    stack_BCHW = np.empty((len(crops), 3, *crops[0].shape[:2]), np.float32)
    for place_CHW, crop in zip(stack_BCHW, crops, strict=True):
        place_CHW[:] = crop.transpose(2, 0, 1)
    return torch.from_numpy(stack_BCHW).div_(255)
