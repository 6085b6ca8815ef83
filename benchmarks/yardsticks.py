"""The field's usual way of doing what curate does, done well: what the benchmarks compare it to.

A DataLoader reads the sub-images of `cutting.py` and crops them; a plain loop scores them. Pure decoding. A super-net
that computes its branches one by one.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from curate import images, pool
from curate.archs._depthwise import Depthwise
from curate.archs.srcnn import SrcnnNet
from curate.config import NasConfig
from curate.loader import Batch
from curate.metrics import rgb_to_y
from curate.nas.costs import Costs
from curate.nas.graphs import Graphs
from curate.nas.levels import Levels
from curate.nas.supernet import Architecture, Form, SuperNet

__all__ = [
    "BATCH",
    "Loader",
    "Pairs",
    "decode_all",
    "levels",
    "loader",
    "loop",
    "random_batches",
    "read",
    "slopes",
    "stepper",
]

cv2.setNumThreads(1)  # processes that are started later have one thread each

BATCH = 16
_Pixels = npt.NDArray[np.uint8]
Loader = DataLoader[tuple[Tensor, ...]]


def decode_all(corpus: Path) -> None:
    """Pure decoding: the fastest of curate's decoders, as many threads as cores, files in the page cache."""
    with ThreadPoolExecutor(pool.workers()) as threads:
        for _ in threads.map(_decode, sorted(corpus.iterdir())):
            pass


def _decode(path: Path) -> None:
    images.decode(path.read_bytes(), whole=True)


# A paired data set


class Pairs(Dataset[tuple[Tensor, ...]]):
    """Random crops of sub-images, flipped and turned: (HR, LR), or HR alone without an LR folder. CHW RGB in [0, 1]."""

    def __init__(self, names: list[str], hr: Path, lr: Path | None, crop: int, scale: int) -> None:
        self.names, self.hr, self.lr, self.crop, self.scale = names, hr, lr, crop, scale

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        hr = cv2.imread(str(self.hr / self.names[index]))
        size = self.crop // self.scale
        y, x = (random.randint(0, side // self.scale - size) for side in hr.shape[:2])
        crops = [hr[y * self.scale :, x * self.scale :][: self.crop, : self.crop]]
        if self.lr is not None:
            crops.append(cv2.imread(str(self.lr / self.names[index]))[y:, x:][:size, :size])
        turn = random.randrange(8)
        return tuple(_tensor(crop, turn) for crop in crops)


def _tensor(crop_BGR: _Pixels, turn: int) -> Tensor:
    turned = np.rot90(crop_BGR[:, :, ::-1], turn % 4)
    if turn >= 4:
        turned = turned[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(turned.transpose(2, 0, 1))).float().div_(255)


def loader(pairs: Pairs) -> Loader:
    """Shuffled batches by as many processes as cores, which stay from epoch to epoch."""
    return DataLoader(
        pairs,
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=pool.workers(),
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
    )


# A plain loop that scores sub-images


def read(folder: Path, names: list[str]) -> DataLoader[Tensor]:
    """The sub-images as batches, HR alone, uint8, by as many processes as cores, which stay."""
    whole = _Whole(folder, names)
    return DataLoader(whole, BATCH, num_workers=pool.workers(), persistent_workers=True)


class _Whole(Dataset[Tensor]):
    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        pixels = cv2.cvtColor(cv2.imread(str(self.folder / self.names[index])), cv2.COLOR_BGR2RGB)
        return torch.from_numpy(pixels).permute(2, 0, 1)


@torch.inference_mode()
def loop(net: SrcnnNet, batches: Iterable[Tensor], scale: int, device: str = "cpu") -> list[float]:
    """The loss of every sub-image: fp32, torch's default layout and threads, its own bicubic."""
    losses = []
    for batch_BCHW in batches:
        hr_BCHW = batch_BCHW.to(device).float() / 255
        lr_BCHW = F.interpolate(hr_BCHW, scale_factor=1 / scale, mode="bicubic", antialias=True)
        hr_B1HW = rgb_to_y(hr_BCHW)
        bicubic_B1HW = F.interpolate(rgb_to_y(lr_BCHW), scale_factor=scale, mode="bicubic")
        losses += (net.refine(bicubic_B1HW) - hr_B1HW).square().mean((1, 2, 3)).tolist()
    return losses


# A search


def levels(form: Form, precision: str, features: int, number: int, device: torch.device) -> Levels:
    """A fresh super-net with its optimisers: the same numbers in either form."""
    config = NasConfig.of(
        {"form": form, "precision": precision, "features": features, "batch_size": number}, "the benchmark"
    )
    torch.manual_seed(0)
    net = SuperNet(config.scale, features, form=form).to(device, memory_format=torch.channels_last)
    architecture = Architecture.fresh(connections=True, seed=0, device=device)
    return Levels(net, architecture, config, Costs.of(config, device).to(device))


def random_batches(number: int, crop: int, scale: int, device: torch.device) -> tuple[Batch, Batch]:
    """One for the weights, one for the architecture."""
    made = []
    for seed in (0, 1):
        hr_BCHW = torch.rand(number, 3, crop, crop, generator=torch.Generator().manual_seed(seed))
        lr_BCHW = F.avg_pool2d(hr_BCHW, scale)
        made.append(Batch(lr_BCHW, hr_BCHW, torch.ones(number), torch.zeros(number, dtype=torch.int64)).to(device))
    return made[0], made[1]


def stepper(form: Form, made: Levels, training: Batch, validation: Batch) -> Callable[[], None]:
    """A mixed-level step, as a search does it, or, of the plain form, as a plain loop would."""
    device = training.lr_BCHW.device
    steps = Graphs(made) if form == "fused" and device.type == "cuda" else made

    def step() -> None:
        with torchs_depthwise(form):
            steps.step(training, validation)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def slopes(form: Form, made: Levels, training: Batch, validation: Batch) -> Tensor:
    """The gradient of the mixed-level loss in the operations' values, float32 on the CPU."""
    with torchs_depthwise(form):
        return made._mixed(training, validation)[0][0].float().cpu()


@contextmanager
def torchs_depthwise(form: Form) -> Iterator[None]:
    """Torch's own depthwise convolutions in the plain form."""
    ours = Depthwise.forward
    if form == "plain":
        Depthwise.forward = torch.nn.Conv2d.forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        Depthwise.forward = ours  # type: ignore[method-assign]
