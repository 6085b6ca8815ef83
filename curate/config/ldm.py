"""Options of `curate ldm train`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from curate.config.options import Config
from curate.errors import UsageError

__all__ = ["LdmConfig"]


@dataclass(frozen=True)
class LdmConfig(Config):
    """How to train a latent diffusion model: first the autoencoder, then, in its latents, the denoiser."""

    kind: Annotated[Literal["kl", "vq"], "The autoencoder: Gaussian latents, or those of a codebook."] = "kl"
    latents: Annotated[int, "Channels of a latent, a pixel of which stands for 4 x 4."] = 4
    codes: Annotated[int, "Of the codebook of vq."] = 1024
    width: Annotated[int, "Maps of the autoencoder at full resolution; twice and four times as many below."] = 32
    denoiser_width: Annotated[int, "Maps of the U-Net at the latent's resolution; 2 and 3 times as many below."] = 64
    autoencoder_steps: Annotated[int, "Optimiser steps of the first stage."] = 10000
    denoiser_steps: Annotated[int, "Of the second; 0 for an autoencoder alone."] = 10000
    autoencoder_crop: Annotated[int, "Side of a crop of the first stage, px."] = 48
    crop: Annotated[int, "Of the second."] = 96
    batch_size: Annotated[int, "Crops a step."] = 16
    optimizer: Annotated[Literal["adam", "adamw", "soap"], "SOAP suits small networks."] = "adam"
    rate: Annotated[float, "Step size at the start of each stage; it falls to 1 % along a cosine."] = 1e-3
    kl: Annotated[float, "Weight of the latents' divergence from a unit Gaussian, of kl."] = 1e-6
    ema: Annotated[float, "Decay of a running mean of the U-Net's weights, which is the result; 0 for none."] = 0.999
    precision: Annotated[Literal["fp32", "bf16"], "Of the networks' products."] = "fp32"
    half: Annotated[bool, "Write the weights as float16: half the bytes."] = False
    seed: Annotated[int, "Of weights, order, crops and noise."] = 0
    log_every: Annotated[int, "Steps between two points of the curves."] = 100
    save_every: Annotated[int, "Steps between two states to resume from."] = 1000

    _least: ClassVar[Mapping[str, float]] = {
        "latents": 1,
        "codes": 2,
        "autoencoder_steps": 1,
        "denoiser_steps": 0,
        "batch_size": 1,
        "kl": 0,
        "seed": 0,
        "log_every": 1,
        "save_every": 1,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, of in (("width", 8), ("denoiser_width", 16), ("autoencoder_crop", 4), ("crop", 16)):
            if (found := getattr(self, name)) < of or found % of:
                raise UsageError(f"{name} should be a multiple of {of}, found {found}")
        if not 0 < self.rate < 1:
            raise UsageError(f"rate should be above 0 and below 1, found {self.rate}")
        if not 0 <= self.ema < 1:
            raise UsageError(f"ema should be 0 or more and below 1, found {self.ema}")
