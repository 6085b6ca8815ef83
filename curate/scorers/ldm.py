"""LDM: how badly a latent diffusion model denoises the patch, and what its autoencoder loses of it.

Axes in names: B batch, S steps, C channels, H height, W width.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curate.errors import UsageError
from curate.ldm import LatentModel, Schedule
from curate.scorers._latents import LatentScorer

__all__ = ["Ldm"]

_STEPS = re.compile(r"\d{1,6}(\+\d{1,6})*")


@dataclass(frozen=True)
class Ldm(LatentScorer):
    """Two columns: `ldm_loss` and `vae_mse`. High is a patch unlike those that the model learned, or hard to rebuild.

    `ldm_loss` is the mean over `timesteps` and latents of (noise - predicted noise)^2: from 0, about 1 for a model that
    predicts none. It is the loss that the model was trained by, without a condition, on the patch's own latents. What
    the denoiser answers otherwise (latents, v, flow) is turned into noise. The noise is drawn from `seed` and the
    patch's 8-bit pixels: a patch has the same wherever it lies, on any device, and two patches never share theirs.
    Without a denoiser `ldm_loss` is NaN, which `curate score` counts and a selection leaves out.

    `vae_mse` is the mean of (patch - decoded)^2 over R, G and B in [0, 1], decoded from its own latents and clamped:
    10^(-PSNR / 10), from 0 to 1. It is the detail that the latents cannot hold.

    The patch's sides should be multiples of the model's: px a latent, times what the denoiser halves. On a CPU a
    patch's scores are the same bits whatever it is scored with; on a GPU their last digits differ with the batch.
    """

    timesteps: str = "100+300+500+700"  # training steps after whose noise the patch is denoised
    seed: int = 0

    columns: ClassVar[tuple[str, ...]] = ("ldm_loss", "vae_mse")
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not _STEPS.fullmatch(self.timesteps):
            raise ValueError(f"timesteps should be numbers like 100+300+500+700, found {self.timesteps}")

    def measure(self, model: LatentModel) -> Callable[[Tensor], Tensor]:
        if model.schedule is not None:
            self._check_steps(model.schedule)

        def both(patches_BCHW: Tensor) -> Tensor:
            latents_BCHW = model.encode(patches_BCHW)
            decoded_BCHW = model.decode(latents_BCHW).clamp(0, 1)
            vae_mse_B = _mean_square(decoded_BCHW - patches_BCHW)
            return torch.stack([self._loss(model, latents_BCHW, patches_BCHW), vae_mse_B], dim=1)

        return both

    @property
    def _steps(self) -> list[int]:
        return [int(step) for step in self.timesteps.split("+")]

    def _check_steps(self, schedule: Schedule) -> None:
        if max(self._steps) >= len(schedule):
            raise UsageError(f"timesteps of this model should be below {len(schedule)}, found {self.timesteps}")

    def _loss(self, model: LatentModel, latents_BCHW: Tensor, patches_BCHW: Tensor) -> Tensor:
        if model.schedule is None:
            return torch.full_like(latents_BCHW[:, 0, 0, 0], torch.nan)
        shape = (len(self._steps), *latents_BCHW.shape[1:])
        noise_BSCHW = torch.stack([self._noise(patch_CHW, shape) for patch_CHW in patches_BCHW]).to(latents_BCHW)
        losses = []
        for index, step in enumerate(self._steps):
            noise_BCHW = noise_BSCHW[:, index]
            noisy_BCHW = model.schedule.noised(latents_BCHW, noise_BCHW, step)
            losses.append(_mean_square(model.predict(noisy_BCHW, step)[1] - noise_BCHW))
        return torch.stack(losses).mean(0)

    def _noise(self, patch_CHW: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A patch's own noise, on the CPU."""
        pixels_CHW = (patch_CHW * 255).round().to(torch.uint8).cpu().contiguous()
        digest = hashlib.sha256(f"{self.seed} {tuple(pixels_CHW.shape)} ".encode())
        digest.update(pixels_CHW.numpy().data)
        seed = int.from_bytes(digest.digest()[:8], "little", signed=True)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _mean_square(difference_BCHW: Tensor) -> Tensor:
    return difference_BCHW.square().mean((1, 2, 3))
