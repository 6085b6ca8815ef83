"""Samples of a latent diffusion model: patches drawn from noise, to see what it has learnt."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curate import files, ldm
from curate.curves import Picture
from curate.errors import UsageError
from curate.progress import Progress, silent
from curate.tensors import pick_device, step_seed

__all__ = ["sample", "samples"]

_LATENTS = 16  # a side, of a model that does not say what it was trained on


def samples(
    model: ldm.LatentModel, number: int, size: int, *, steps: int = 50, seed: int = 0, progress: Progress = silent
) -> Tensor:
    """patches_B3HW, sRGB in [0, 1], by DDIM without noise (Song et al. 2021), each from noise of its own.

    UsageError for a model without denoiser, sizes that it does not take and fewer than 1 of anything.
    """
    if model.schedule is None:
        raise UsageError("this model is an autoencoder alone: nothing can be drawn from it")
    if number < 1:
        raise UsageError(f"samples should be 1 or more, found {number}")
    model.check_size(size, size)
    schedule, order = model.schedule, model.schedule.steps(steps)
    shape = (model.channels, size // model.factor, size // model.factor)
    generators = [torch.Generator().manual_seed(step_seed(seed, index)) for index in range(number)]
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    state_BCHW = noise.to(model.scale.device)
    with torch.inference_mode():
        for done, step in enumerate(order, 1):
            clean_BCHW, noise_BCHW = model.predict(state_BCHW, step)
            state_BCHW = clean_BCHW if done == steps else schedule.noised(clean_BCHW, noise_BCHW, order[done])
            progress(done, steps)
        return model.decode(state_BCHW).clamp(0, 1)


def sample(
    model: str | Path | None,
    out: str | Path,
    *,
    size: int | None = None,
    number: int = 16,
    steps: int = 50,
    seed: int = 0,
    device: str = "auto",
    progress: Progress = silent,
) -> None:
    """`samples` of a model (a folder, a hub name, None for the bundled one) as a PNG, about as wide as it is high.

    `size` is in px; by default what the model's denoiser was trained on.
    """
    file = files.local_path(out, "a picture")
    if file.suffix.lower() != ".png":
        raise UsageError(f"a picture should be called NAME.png, found '{file.name}'")
    loaded = ldm.load(model, device=pick_device(device))
    drawn_B3HW = samples(loaded, number, size or _own_size(loaded), steps=steps, seed=seed, progress=progress)
    files.publish_bytes(file, Picture.sheet(drawn_B3HW, columns=max(1, round(number**0.5))).png)


def _own_size(model: ldm.LatentModel) -> int:
    own: Any = getattr(model.denoiser, "config", {}).get("sample_size") or _LATENTS
    return model.factor * int(own if isinstance(own, int) else max(own))
