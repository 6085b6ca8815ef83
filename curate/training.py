"""Train: a manifest and an Arch -> a Checkpoint. One readable loop.

What a run leaves in its folder: `model.safetensors` with the recipe in its header, `recipe.json`, the same to read, and
TensorBoard's event file.
"""

import platform
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import version
from itertools import islice
from math import cos, pi
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from curate import files, plugins
from curate.archs import Arch
from curate.checkpoint import Checkpoint, weights_hash
from curate.config import TrainConfig
from curate.errors import DataError, UsageError, one_line
from curate.loader import Batch, batches
from curate.manifest import Manifest
from curate.metrics import rgb_to_y
from curate.progress import Progress, silent
from curate.store import Store
from curate.tensors import pick_device

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

__all__ = ["train"]


def train(
    arch: Arch | str,
    manifest: Manifest | str | Path,
    config: TrainConfig,
    out: str | Path | None = None,
    *,
    init: Checkpoint | str | Path | None = None,
    store: Store | str | Path | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> Checkpoint:
    """Train `arch` on the manifest's patches for `config.steps` steps; with `out`, write the run there.

    `init` gives the weights to start from (the same network; the scale may differ where no layer depends on it). The
    same inputs, seed and threads give the same weights on a CPU. Raises UsageError for options that do not fit and an
    `out` that holds a model, DataError if the loss or the weights are not finite any more.
    """
    network: Arch = plugins.parse("archs", arch) if isinstance(arch, str) else arch
    chosen = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
    folder = _new_run(out)
    target = pick_device(device)
    before = Checkpoint.load(init) if isinstance(init, str | Path) else init
    feed = batches(
        chosen,
        scale=network.scale,
        crop=config.crop,
        batch_size=config.batch_size,
        seed=config.seed,
        store=store if isinstance(store, Store) else chosen.store(store),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = network.build()
    if before is not None:
        _load(net, before, network)
    net = net.to(target, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with _writer(folder) or nullcontext() as writer:
        last = _fit(net, network, islice(feed, config.steps), config, target, writer, progress)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise DataError(f"the weights are not finite after step {config.steps}: train with a smaller --rate")
    made = Checkpoint(network, state, _recipe(chosen, config, before, target, last))
    if folder:
        made.save(folder)
    return made


def _fit(
    net: nn.Module,
    arch: Arch,
    feed: Iterator[Batch],
    config: TrainConfig,
    device: torch.device,
    writer: "SummaryWriter | None",
    progress: Progress,
) -> dict[str, float]:
    """The loop. Returns the mean loss and PSNR of the last `log_every` steps."""
    optimiser = torch.optim.Adam(net.parameters(), lr=config.rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _factor(config, step))
    meter = _Meter()
    for step, batch in enumerate(feed, start=1):
        lr_BCHW, hr_BCHW, weight_B = batch.to(device)
        target_BCHW = _seen(hr_BCHW, arch)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            sr_BCHW = net(_seen(lr_BCHW, arch))
        loss = (_distance(sr_BCHW, target_BCHW, config.loss) * weight_B).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        meter.add(loss.detach(), (sr_BCHW.detach().float() - target_BCHW).square().mean() / arch.peak**2, len(weight_B))
        if step % config.log_every == 0 or step == config.steps:
            last = meter.take(step)
            if writer:
                for name, value in {**last, "rate": scheduler.get_last_lr()[0]}.items():
                    writer.add_scalar(f"train/{name}", value, step)
        if step % 10 == 0 or step == config.steps:
            progress(step, config.steps, meter.note())
        scheduler.step()
    return {name: last[name] for name in ("loss", "psnr")}


def _seen(image_BCHW: Tensor, arch: Arch) -> Tensor:
    """An sRGB image in [0, 1] as the network sees it: luma or RGB, in its own range of values."""
    return (rgb_to_y(image_BCHW) if arch.colour == "y" else image_BCHW) * arch.peak


def _distance(sr_BCHW: Tensor, hr_BCHW: Tensor, loss: str) -> Tensor:
    """Mean absolute or squared difference of each sample, as B."""
    difference = sr_BCHW.float() - hr_BCHW
    return (difference.abs() if loss == "l1" else difference.square()).flatten(1).mean(1)


def _factor(config: TrainConfig, step: int) -> float:
    """What the rate is multiplied by at a step, counted from 0."""
    if config.schedule == "constant":
        return 1.0
    return 0.01 + 0.99 * (1 + cos(pi * step / config.steps)) / 2


class _Meter:
    """Means since the last `take`, and speed. Values stay on the device until they are asked for."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.errors: list[Tensor] = []
        self.samples = 0
        self.since = time.monotonic()
        self.latest: dict[str, float] = {}

    def add(self, loss: Tensor, error: Tensor, samples: int) -> None:
        self.losses.append(loss)
        self.errors.append(error)
        self.samples += samples

    def take(self, step: int) -> dict[str, float]:
        """loss, psnr (dB, in the network's colours, no border, 100 at most) and images_per_second; starts anew."""
        loss = float(torch.stack(self.losses).mean())
        if not torch.isfinite(torch.tensor(loss)):
            raise DataError(f"the loss is {loss} at step {step}: train with a smaller --rate")
        error = torch.stack(self.errors).double().mean()
        elapsed = time.monotonic() - self.since
        self.latest = {
            "loss": loss,
            "psnr": float(-10 * torch.log10(error.clamp(min=1e-10))),  # JSON has no infinity
            "images_per_second": self.samples / max(elapsed, 1e-9),
        }
        self.losses, self.errors, self.samples, self.since = [], [], 0, time.monotonic()
        return self.latest

    def note(self) -> str:
        if not self.latest:
            return ""
        return "loss {loss:.5f} {psnr:.2f} dB {images_per_second:.0f} images/s".format(**self.latest)


def _load(net: nn.Module, init: Checkpoint, arch: Arch) -> None:
    """Start from the weights of `init`, which must be those of the same layers."""
    fresh = net.state_dict()
    if {k: v.shape for k, v in init.state.items()} != {k: v.shape for k, v in fresh.items()}:
        raise UsageError(f"the weights of {plugins.spec_of(init.arch)} do not fit {plugins.spec_of(arch)}")
    net.load_state_dict(init.state)


def _new_run(out: str | Path | None) -> Path | None:
    """The folder of a run, which may not hold a model yet; made when there is something to write."""
    if out is None:
        return None
    folder = files.local_path(out, "a run")
    if folder.exists() and (not folder.is_dir() or any(folder.glob("*.safetensors"))):
        raise UsageError(f"'{one_line(out)}' exists and holds a model or is a file; name another folder with -o")
    return folder


def _writer(folder: Path | None) -> "SummaryWriter | None":
    """TensorBoard's writer, which makes the run's folder."""
    if folder is None:
        return None
    from torch.utils.tensorboard.writer import SummaryWriter  # heavy: only where a run is written

    return SummaryWriter(str(folder))


def _recipe(
    manifest: Manifest, config: TrainConfig, init: Checkpoint | None, device: torch.device, last: dict[str, float]
) -> dict[str, Any]:
    """Everything that made the checkpoint, but for its arch."""
    return {
        "manifest": {"patches": len(manifest), "recipe": manifest.recipe.model_dump(mode="json")},
        "config": asdict(config),
        "init": {"arch": plugins.spec_of(init.arch), "weights": weights_hash(init.state)} if init else None,
        "last": last,
        "device": device.type,
        "versions": {"curate": version("curate"), "torch": torch.__version__, "python": platform.python_version()},
    }
