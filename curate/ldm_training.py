"""Train a small latent diffusion model on a store's own patches: `curate ldm train`.

What a run leaves in its folder is what diffusers reads, and `curate.ldm` with it:

    model_index.json                                    the parts; written last
    vae/ or vqvae/, unet/   config.json, diffusion_pytorch_model.safetensors
    scheduler/scheduler_config.json
    recipe.json                                         store, options, results, versions
    events.out.*                                        curves and pictures, for TensorBoard
    state.safetensors                                   while it runs: what `curate.resume` needs

Two stages, as in Rombach et al. 2022. The autoencoder (a quarter of the side, KL or VQ) learns to rebuild crops by
their mean absolute error; there is no perceptual or adversarial loss, which would invent the details that
super-resolution is measured by. Then the U-Net learns to predict the noise in its latents, scaled to deviation 1.
"""

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from math import isfinite, log10
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from curate import files, optim, resume, stopping, storage
from curate.config import LdmConfig
from curate.curves import Curves, Picture, draw
from curate.errors import DataError, UsageError, one_line
from curate.loader import Batch, batches
from curate.manifest import Manifest
from curate.progress import Meter, Progress, silent
from curate.reuse import differences
from curate.selection import select
from curate.storage import Place
from curate.store import Store
from curate.tensors import pick_device, step_seed

__all__ = ["INDEX_FILE", "RECIPE_FILE", "train"]

INDEX_FILE = "model_index.json"  # what makes a folder a model of diffusers; written last
RECIPE_FILE = "recipe.json"
_VERSION = 1  # raise it when the same options begin to give other steps
_HARMLESS = ("log_every", "save_every")
_STEPS = 1000  # of the noise schedule
_BETAS = (0.0015, 0.0195)  # its ends, whose square roots are evenly spaced (Rombach et al. 2022)
_LOG_VARIANCE = -6.0  # of fresh latents. At 0 their noise drowns what a fresh encoder says, and it learns far slower
_SHOWN = 8  # patches in a picture


def train(
    store: Store | str | Path,
    config: LdmConfig,
    out: str | Path,
    *,
    device: str = "auto",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train an autoencoder and a denoiser on the windows of a store, in the folder `out`; returns the recipe.

    Images that a check has flagged are left out, as `curate select` does. The same command goes on with a run that was
    stopped, and the same inputs, seed and threads give the same weights on a CPU. A finished run is returned as it is.
    Raises UsageError for options that do not fit and an `out` that holds something else, DataError if the loss is not
    finite any more: the last saved state is kept.
    """
    source = store if isinstance(store, Store) else Store.open(store)
    manifest = select(source, "random", keep=1.0)
    if not len(manifest):
        raise UsageError(f"the store '{one_line(source.path)}' has no patches to train on")
    for name in ("autoencoder_crop", "crop"):
        if getattr(config, name) > source.header.patch:
            found = f"{name} should be at most the store's patch of {source.header.patch} px"
            raise UsageError(f"{found}, found {getattr(config, name)}")
    run = _Run(manifest, config, source)
    folder = storage.place(out, "a latent diffusion model")
    if finished := _finished(folder, run):
        return finished
    on = pick_device(device)
    with ExitStack() as stack:
        if isinstance(folder, Path):
            files.make_folder(folder)
        stack.enter_context(storage.lock(folder))
        storage.remove_leftovers(folder)
        live = _Live.start(run, on, resume.Snapshot.load(folder, run.identity))
        drawn = folder if isinstance(folder, Path) else None
        curves = stack.enter_context(draw(drawn, start=live.step, settings=run.identity))
        stack.enter_context(torch.random.fork_rng([on] if on.type == "cuda" else []))
        with stopping.deferred():
            _fit(run, live, folder, curves, progress)
            return _end(run, live, folder)


@dataclass(frozen=True)
class _Run:
    """What is trained, and how: all that does not change while it is."""

    manifest: Manifest
    config: LdmConfig
    store: Store

    @property
    def steps(self) -> int:
        return self.config.autoencoder_steps + self.config.denoiser_steps

    @property
    def identity(self) -> dict[str, Any]:
        options = {name: value for name, value in self.config.recipe().items() if name not in _HARMLESS}
        return {"patches": self.manifest.digest(), "code": _VERSION, **options}

    def feed(self, start: int, *, stage: int) -> Iterator[Batch]:
        """Batches of a stage from its step `start` on."""
        config = self.config
        crop, seed = (config.autoencoder_crop, config.seed) if stage == 0 else (config.crop, config.seed + 1)
        return batches(
            self.manifest, scale=2, crop=crop, batch_size=config.batch_size, seed=seed, start=start, store=self.store
        )


def _finished(folder: Place, run: _Run) -> dict[str, Any] | None:
    """The recipe of this very run, if it has ended. UsageError where the folder holds another model."""
    if folder.is_file():
        raise UsageError(f"'{one_line(folder)}' is a file; name a folder with -o")
    if not (folder / INDEX_FILE).is_file():
        return None
    try:
        recipe = json.loads((folder / RECIPE_FILE).read_bytes())
        there = recipe["identity"]
        problem = differences(there, run.identity)
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise UsageError(f"'{one_line(folder)}' holds another model; name another folder with -o") from None
    if problem:
        raise UsageError(f"'{one_line(folder)}' holds a model trained with {problem}; name another folder with -o")
    (folder / resume.STATE_FILE).unlink(missing_ok=True)  # of a run that was killed when it was about to end
    return dict(recipe)


@dataclass
class _Live:
    """What changes from step to step: all of it is in a snapshot."""

    config: LdmConfig
    device: torch.device
    autoencoder: Any  # of diffusers, whose networks have other methods than torch's modules
    denoiser: Any
    optimiser: torch.optim.Optimizer  # of the stage that is under way
    mean: AveragedModel | None = None  # of the denoiser
    step: int = 0
    scale: float = 1.0  # what latents are multiplied by
    losses: list[float] = field(default_factory=list)  # since the last point of the curves
    last: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(cls, run: _Run, device: torch.device, snapshot: resume.Snapshot | None) -> "_Live":
        config = run.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            autoencoder, denoiser = _autoencoder(config), _denoiser(config)
        for net in (autoencoder, denoiser):
            net.to(device, memory_format=torch.channels_last)
        live = cls(config, device, autoencoder, denoiser, _optimiser(autoencoder, config))
        if config.ema:
            live.mean = AveragedModel(denoiser, multi_avg_fn=get_ema_multi_avg_fn(config.ema))  # type: ignore[no-untyped-call]
        if snapshot is not None:
            live._restore(snapshot)
        return live

    @property
    def stage(self) -> int:
        """0 while the autoencoder learns, 1 while the denoiser does."""
        return int(self.step >= self.config.autoencoder_steps)

    @property
    def place(self) -> tuple[int, int]:
        """The step within the stage, and its steps."""
        first, second = self.config.autoencoder_steps, self.config.denoiser_steps
        return (self.step, first) if self.stage == 0 else (self.step - first, second)

    def begin_denoiser(self, run: _Run) -> None:
        """The second stage: latents are scaled to deviation 1 over one batch."""
        with torch.no_grad():
            hr_BCHW = next(run.feed(0, stage=1)).hr_BCHW.to(self.device)
            self.scale = 1 / float(_encoded(self.autoencoder, hr_BCHW).std())
        self.optimiser = _optimiser(self.denoiser, self.config)

    def snapshot(self) -> resume.Snapshot:
        tensors = resume.with_prefix("autoencoder.", self.autoencoder.state_dict())
        tensors |= resume.with_prefix("denoiser.", self.denoiser.state_dict())
        tensors |= resume.with_prefix("optimizer.", resume.optimizer_tensors(self.optimiser))
        if self.mean is not None:
            tensors |= resume.with_prefix("ema.", self.mean.state_dict())
        tensors |= {
            "scale": torch.tensor(self.scale, dtype=torch.float64),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            **{f"last.{name}": torch.tensor(value, dtype=torch.float64) for name, value in self.last.items()},
        }
        return resume.Snapshot(self.step, None, tensors)

    def _restore(self, snapshot: resume.Snapshot) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return resume.without_prefix(prefix, snapshot.tensors)

        self.step = snapshot.step
        self.autoencoder.load_state_dict(part("autoencoder."))
        self.denoiser.load_state_dict(part("denoiser."))
        if self.stage == 1:
            self.optimiser = _optimiser(self.denoiser, self.config)
        resume.restore_optimizer(self.optimiser, part("optimizer."))
        if self.mean is not None:
            self.mean.load_state_dict(part("ema."))
        self.scale = float(snapshot.tensors["scale"])
        self.losses = snapshot.tensors["losses"].tolist()
        self.last = {name: float(value) for name, value in part("last.").items()}

    def loss(self, hr_BCHW: Tensor) -> Tensor:
        with torch.autocast(hr_BCHW.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return self._rebuilding(hr_BCHW) if self.stage == 0 else self._denoising(hr_BCHW)

    def _rebuilding(self, hr_BCHW: Tensor) -> Tensor:
        image_BCHW = hr_BCHW * 2 - 1
        if self.config.kind == "vq":
            latents_BCHW = self.autoencoder.encode(image_BCHW).latents
            rebuilt = self.autoencoder.decode(latents_BCHW)
            found: Tensor = (rebuilt.sample.float() - image_BCHW).abs().mean() + rebuilt.commit_loss.mean()
            return found
        posterior = self.autoencoder.encode(image_BCHW).latent_dist
        rebuilt_BCHW = self.autoencoder.decode(posterior.sample()).sample.float()
        # Both terms are sums over a sample in the paper; here they are divided by the sample's pixels.
        divergence = posterior.kl().mean() / image_BCHW[0].numel()
        loss: Tensor = (rebuilt_BCHW - image_BCHW).abs().mean() + self.config.kl * divergence
        return loss

    def _denoising(self, hr_BCHW: Tensor) -> Tensor:
        with torch.no_grad():
            latents_BCHW = _encoded(self.autoencoder, hr_BCHW) * self.scale
        noise_BCHW = torch.randn(latents_BCHW.shape).to(latents_BCHW)
        step_B = torch.randint(0, _STEPS, (len(hr_BCHW),))
        keep_B = _kept()[step_B].to(latents_BCHW)[:, None, None, None]
        noisy_BCHW = keep_B.sqrt() * latents_BCHW + (1 - keep_B).sqrt() * noise_BCHW
        predicted_BCHW = self.denoiser(noisy_BCHW, step_B.to(self.device)).sample.float()
        loss: Tensor = (predicted_BCHW - noise_BCHW).square().mean()
        return loss

    def result(self) -> Any:
        """The denoiser, or the running mean of it."""
        return self.denoiser if self.mean is None else self.mean.module


def _fit(run: _Run, live: _Live, folder: Place, curves: Curves, progress: Progress) -> None:
    meter = Meter(rest="device")
    while live.step < run.steps:
        stage = live.stage
        if stage == 1 and live.place[0] == 0:
            live.begin_denoiser(run)
        done = live.place[0]
        feed = meter.waiting("decoding", run.feed(done, stage=stage))
        for batch in feed:
            _step(run, live, batch)
            _after_step(run, live, batch, folder, curves)
            words = ["autoencoder", "denoiser"][stage]
            words += "".join(f", {name} {value:.4f}" for name, value in live.last.items())
            progress(live.step, run.steps, meter.note(words))
            if stopping.caught() and live.step < run.steps:
                live.snapshot().save(folder, run.identity)
                stopping.keep(f"step {live.step} of {run.steps} is saved")
                raise stopping.Stopped
            if live.place[0] == 0 or live.step == run.steps:  # the next stage, or the end
                break


def _step(run: _Run, live: _Live, batch: Batch) -> None:
    config = run.config
    done, total = live.place
    torch.manual_seed(step_seed(config.seed, live.step))
    for group in live.optimiser.param_groups:
        group["lr"] = config.rate * optim.cosine(done, total)
    loss = live.loss(batch.hr_BCHW.to(live.device, memory_format=torch.channels_last))
    live.losses.append(float(loss.detach()))
    if not isfinite(live.losses[-1]):
        raise DataError(f"the loss is {live.losses[-1]} at step {live.step}: train with a smaller --rate")
    loss.backward()  # type: ignore[no-untyped-call]
    live.optimiser.step()
    live.optimiser.zero_grad(set_to_none=True)
    if live.mean is not None and live.stage == 1:
        if done == 0:
            live.mean.module.load_state_dict(live.denoiser.state_dict())
        live.mean.update_parameters(live.denoiser)
    live.step += 1


def _after_step(run: _Run, live: _Live, batch: Batch, folder: Place, curves: Curves) -> None:
    config, last = run.config, live.step == run.steps
    ended = live.step == config.autoencoder_steps
    if live.step % config.log_every == 0 or ended or last:
        name = "loss" if live.step <= config.autoencoder_steps else "noise_loss"
        live.last[name] = sum(live.losses) / len(live.losses)
        live.losses = []
        values: dict[str, float | Picture] = {f"train/{name}": live.last[name]}
        if live.step <= config.autoencoder_steps:
            rebuilt_BCHW, psnr = _rebuilt(live.autoencoder, batch.hr_BCHW.to(live.device))
            live.last["psnr"] = values["train/psnr"] = psnr
            if live.step % config.save_every == 0 or ended:
                pairs = torch.cat([batch.hr_BCHW[:_SHOWN], rebuilt_BCHW.cpu()[:_SHOWN]])
                values["pictures/crops_and_rebuilt"] = Picture.sheet(pairs, columns=min(_SHOWN, len(batch.hr_BCHW)))
        curves(live.step, values)
    if live.step % config.save_every == 0 and not last:
        live.snapshot().save(folder, run.identity)


@torch.no_grad()
def _rebuilt(autoencoder: Any, hr_BCHW: Tensor) -> tuple[Tensor, float]:
    """What the autoencoder makes of crops, in [0, 1], and its PSNR (dB, RGB, the batch as one)."""
    decoded_BCHW = autoencoder.decode(_encoded(autoencoder, hr_BCHW)).sample.float()
    rebuilt_BCHW = ((decoded_BCHW + 1) / 2).clamp(0, 1)
    error = float((rebuilt_BCHW - hr_BCHW).square().mean())
    return rebuilt_BCHW, -10 * log10(max(error, 1e-10))


def _encoded(autoencoder: Any, hr_BCHW: Tensor) -> Tensor:
    """Unscaled latents, float32: the mean where they are a distribution."""
    found = autoencoder.encode(hr_BCHW * 2 - 1)
    latents_BCHW: Tensor = found.latents if hasattr(found, "latents") else found.latent_dist.mean
    return latents_BCHW.float()


def _kept() -> Tensor:
    """Of each step of the schedule, the share of the signal's energy that is left: float64, `_STEPS`."""
    betas_T = torch.linspace(_BETAS[0] ** 0.5, _BETAS[1] ** 0.5, _STEPS, dtype=torch.float64).square()
    return (1 - betas_T).cumprod(0)


# The networks


def _autoencoder(config: LdmConfig) -> Any:
    from diffusers import AutoencoderKL, VQModel

    shared: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (config.width, 2 * config.width, 4 * config.width),
        "layers_per_block": 1,
        "latent_channels": config.latents,
        "norm_num_groups": 8,
        "sample_size": config.crop,
    }
    if config.kind == "vq":
        return VQModel(**shared, num_vq_embeddings=config.codes, mid_block_add_attention=False)  # type: ignore[no-untyped-call]
    net: Any = AutoencoderKL(**shared, mid_block_add_attention=False)  # type: ignore[no-untyped-call]
    nn.init.constant_(net.quant_conv.bias[config.latents :], _LOG_VARIANCE)
    return net


def _denoiser(config: LdmConfig) -> Any:
    from diffusers import UNet2DModel

    width = config.denoiser_width
    return UNet2DModel(  # type: ignore[no-untyped-call]
        sample_size=config.crop // 4,
        in_channels=config.latents,
        out_channels=config.latents,
        block_out_channels=(width, 2 * width, 3 * width),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
        attention_head_dim=32,
    )


def _optimiser(net: nn.Module, config: LdmConfig) -> torch.optim.Optimizer:
    return optim.by_name(net.parameters(), config.optimizer, config.rate)


# The folder


def _end(run: _Run, live: _Live, folder: Place) -> dict[str, Any]:
    """Write the model, its recipe, and last the index; take the state away."""
    config = run.config
    part = "vqvae" if config.kind == "vq" else "vae"
    nets = {part: live.autoencoder} | ({"unet": live.result()} if config.denoiser_steps else {})
    if not all(tensor.isfinite().all() for net in nets.values() for tensor in net.state_dict().values()):
        raise DataError(f"the weights are not finite after step {live.step}: train with a smaller --rate")
    live.autoencoder.register_to_config(scaling_factor=live.scale)
    for name, net in nets.items():
        _write_net(folder / name, net, half=config.half)
    index: dict[str, Any] = {"_class_name": "LDMPipeline", part: ["diffusers", type(live.autoencoder).__name__]}
    if config.denoiser_steps:
        _write_scheduler(folder / "scheduler")
        index |= {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
    recipe = {
        "identity": run.identity,
        "config": config.recipe(),
        "store": run.manifest.recipe.store.digest,
        "patches": len(run.manifest),
        "steps": run.steps,
        "last": live.last,
        "parameters": {name: sum(tensor.numel() for tensor in net.parameters()) for name, net in nets.items()},
        "device": live.device.type,
        "versions": {name: version(name) for name in ("curate", "torch", "diffusers")}
        | {"python": platform.python_version()},
    }
    storage.publish_bytes(folder / RECIPE_FILE, _json(recipe))
    storage.publish_bytes(folder / INDEX_FILE, _json(index))
    (folder / resume.STATE_FILE).unlink(missing_ok=True)
    storage.remove_leftovers(folder)
    return recipe


def _write_net(folder: Place, net: Any, *, half: bool) -> None:
    if isinstance(folder, Path):
        files.make_folder(folder)
    dtype = torch.float16 if half else torch.float32
    state = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in net.state_dict().items()}
    storage.publish_bytes(folder / "diffusion_pytorch_model.safetensors", save(state, {"format": "pt"}))
    storage.publish_bytes(folder / "config.json", net.to_json_string().encode())


def _write_scheduler(folder: Place) -> None:
    from diffusers import DDIMScheduler

    scheduler: Any = DDIMScheduler(  # type: ignore[no-untyped-call]
        num_train_timesteps=_STEPS,
        beta_start=_BETAS[0],
        beta_end=_BETAS[1],
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
    )
    if isinstance(folder, Path):
        files.make_folder(folder)
    storage.publish_bytes(folder / "scheduler_config.json", scheduler.to_json_string().encode())


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
