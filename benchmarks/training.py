"""How many steps a second `curate train` makes, beside a plain PyTorch loop on the same data.

python benchmarks/training.py
The plain loop is the field's usual one: the windows cut out as PNG files, HR and LR, a Dataset that opens both for each
sample, a DataLoader of as many workers as there are cores. The third column is the bound: the same steps on one batch
that lies in memory. Corpus: 12 mosaics of `corpus.py`, 480-px windows. Seconds include the start of all three.
"""

import platform
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from corpus import SAMPLES, Size, mosaics
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import curate
from curate import images, plugins, pool
from curate.archs import Arch
from curate.manifest import Manifest
from curate.metrics import rgb_to_y
from curate.resize import downscale
from curate.tensors import to_float, to_pixels, to_tensor

BATCH, CROP, SCALE = 16, 48, 2
RUNS = (("fsrcnn", 150), ("edsr:features=32,blocks=4", 50))  # arch, steps
ROUNDS = 2


def main() -> None:
    """Measure every row and print the table as Markdown."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = mosaics(SAMPLES, folder / "corpus", Size(images=12))
        curate.ingest([corpus], folder / "store")
        manifest = curate.select(folder / "store", "random", keep=1).save(folder / "all.parquet")
        cut(corpus, manifest, folder / "cut")
        print(f"{platform.machine()}, {pool.workers()} cores, torch {torch.__version__}; x{SCALE}, ", end="")
        print(f"{BATCH} crops of {CROP} px, {len(manifest)} windows; steps/s, best of {ROUNDS}\n")
        print("| arch | curate train | plain PyTorch loop | bound | curate / plain | curate / bound |")
        print("|---|---|---|---|---|---|")
        for spec, steps in RUNS:
            arch: Arch = plugins.parse("archs", spec)
            works = (
                lambda arch=arch, steps=steps: curate.train(arch, manifest, config(steps)),
                lambda arch=arch, steps=steps: plain(arch, folder / "cut", steps),
                lambda arch=arch, steps=steps: bound(arch, manifest, steps),
            )
            ours, theirs, best = (steps / seconds for seconds in fastest(works))
            print(f"| {spec} | {ours:.1f} | {theirs:.1f} | {best:.1f} | {ours / theirs:.2f} | {ours / best:.2f} |")


def config(steps: int) -> curate.TrainConfig:
    return curate.TrainConfig(steps=steps, batch_size=BATCH, crop=CROP)


class Cut(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of PNG files, cropped and flipped at random."""

    def __init__(self, folder: Path) -> None:
        self.names = sorted(path.name for path in (folder / "HR").iterdir())
        self.folder = folder

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        hr, lr = (np.asarray(Image.open(self.folder / kind / self.names[index])) for kind in ("HR", "LR"))
        size = CROP // SCALE
        y, x = (int(torch.randint(side - size + 1, ())) for side in lr.shape[:2])
        hr, lr = hr[y * SCALE :, x * SCALE :][:CROP, :CROP], lr[y:, x:][:size, :size]
        if torch.rand(()) < 0.5:
            hr, lr = hr[:, ::-1], lr[:, ::-1]
        return to_float(to_tensor(lr)), to_float(to_tensor(hr))


def cut(corpus: Path, manifest: Manifest, folder: Path) -> None:
    """The windows of the manifest as files, as sub-image scripts leave them."""
    for kind in ("HR", "LR"):
        (folder / kind).mkdir(parents=True)
    store = manifest.store()
    for row in manifest.table.sort_by("image_id").to_pylist():  # each photograph is decoded once
        hr = store.read(row["image_id"], row["y"], row["x"], row["size"], row["size"])
        lr = to_pixels(downscale(to_tensor(hr)[None], SCALE)[0])
        for kind, pixels in (("HR", hr), ("LR", lr)):
            (folder / kind / f"{row['patch_id']}.png").write_bytes(images.encode_png(np.ascontiguousarray(pixels)))


def plain(arch: Arch, folder: Path, steps: int) -> None:
    loader = DataLoader(Cut(folder), BATCH, shuffle=True, drop_last=True, num_workers=pool.workers())

    def endless() -> object:
        while True:
            yield from loader

    fit(arch, islice(endless(), steps))


def bound(arch: Arch, manifest: Manifest, steps: int) -> None:
    batch = next(curate.batches(manifest, scale=SCALE, crop=CROP, batch_size=BATCH))
    fit(arch, ((batch.lr_BCHW, batch.hr_BCHW) for _ in range(steps)))


def fit(arch: Arch, feed: object) -> None:
    net = arch.build().to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    for lr_BCHW, hr_BCHW in feed:
        if arch.colour == "y":
            lr_BCHW, hr_BCHW = rgb_to_y(lr_BCHW), rgb_to_y(hr_BCHW)
        loss = (net(lr_BCHW * arch.peak) - hr_BCHW * arch.peak).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def fastest(works: tuple[Callable[[], object], ...]) -> list[float]:
    """The least seconds of each, over a few rounds by turns."""
    seconds = [float("inf")] * len(works)
    for _ in range(ROUNDS):
        for i, work in enumerate(works):
            started = time.perf_counter()
            work()
            seconds[i] = min(seconds[i], time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
