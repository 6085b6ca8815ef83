"""Latent diffusion models of a few KB, in the folders that diffusers writes. Not a test."""

import json
import warnings
from pathlib import Path
from typing import Any, Literal

import torch

__all__ = ["SCHEDULES", "Autoencoder", "Denoiser", "write_ldm"]

Autoencoder = Literal["kl", "vq", "dc", "tiny"]
Denoiser = Literal["unet", "conditional", "dit", "pixart", "sana"]

FOLDERS = {"vq": "vqvae", "unet": "unet", "conditional": "unet"}  # others: vae, transformer
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
SCHEDULES: dict[str, dict[str, Any]] = {
    "flow": FLOW,
    **{
        kind: {
            "_class_name": "DDIMScheduler",
            "num_train_timesteps": 1000,
            "beta_start": 0.0015,
            "beta_end": 0.0195,
            "beta_schedule": "scaled_linear",
            "prediction_type": kind,
        }
        for kind in ("epsilon", "sample", "v_prediction")
    },
}


def write_ldm(
    folder: Path,
    autoencoder: Autoencoder = "kl",
    denoiser: Denoiser | None = "unet",
    *,
    factor: int = 4,
    channels: int = 4,
    seed: int = 0,
    schedule: str = "epsilon",
    halvings: int = 0,
) -> Path:
    """Write a model of random weights into `folder`, which it makes: the autoencoder, the denoiser, the schedule.

    factor: px a latent, a power of two. halvings: of latents, by a U-Net. schedule: one of SCHEDULES.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        _autoencoder(autoencoder, factor, channels).save_pretrained(folder / FOLDERS.get(autoencoder, "vae"))
        if denoiser is not None:
            _denoiser(denoiser, channels, halvings).save_pretrained(folder / FOLDERS.get(denoiser, "transformer"))
            (folder / "scheduler").mkdir(exist_ok=True)
            (folder / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULES[schedule]))
    return folder


def _autoencoder(kind: Autoencoder, factor: int, channels: int) -> Any:
    import diffusers

    blocks = factor.bit_length()
    usual = {
        "block_out_channels": [8] * blocks,
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "latent_channels": channels,
        "norm_num_groups": 4,
        "scaling_factor": 0.5,
    }
    match kind:
        case "kl":
            return diffusers.AutoencoderKL(**usual, shift_factor=0.25)
        case "vq":
            return diffusers.VQModel(**usual, num_vq_embeddings=32)
        case "dc":
            return diffusers.AutoencoderDC(
                latent_channels=channels,
                attention_head_dim=8,
                encoder_block_out_channels=[8] * blocks,
                decoder_block_out_channels=[8] * blocks,
                encoder_layers_per_block=[1] * blocks,
                decoder_layers_per_block=[1] * blocks,
                encoder_qkv_multiscales=[[]] * blocks,
                decoder_qkv_multiscales=[[]] * blocks,
                scaling_factor=0.5,
            )
        case "tiny":
            return diffusers.AutoencoderTiny(
                latent_channels=channels,
                encoder_block_out_channels=[8] * blocks,
                decoder_block_out_channels=[8] * blocks,
                num_encoder_blocks=[1] * blocks,
                num_decoder_blocks=[1] * blocks,
                scaling_factor=0.5,
            )


def _denoiser(kind: Denoiser, channels: int, halvings: int) -> Any:
    import diffusers

    usual = {
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": 1,
        "block_out_channels": [8] * (halvings + 1),
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    transformer = {"in_channels": channels, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4}
    match kind:
        case "unet":
            levels = ["DownBlock2D"] * (halvings + 1), ["UpBlock2D"] * (halvings + 1)
            return diffusers.UNet2DModel(**usual, down_block_types=levels[0], up_block_types=levels[1])
        case "conditional":
            levels = ["CrossAttnDownBlock2D"] * (halvings + 1), ["CrossAttnUpBlock2D"] * (halvings + 1)
            return diffusers.UNet2DConditionModel(
                **usual, down_block_types=levels[0], up_block_types=levels[1], cross_attention_dim=6
            )
        case "dit":
            return diffusers.DiTTransformer2DModel(
                **transformer, out_channels=2 * channels, sample_size=8, num_embeds_ada_norm=5, norm_num_groups=4
            )
        case "pixart":
            return diffusers.PixArtTransformer2DModel(
                **transformer,
                out_channels=2 * channels,
                sample_size=8,
                cross_attention_dim=8,
                caption_channels=6,
                norm_num_groups=4,
                use_additional_conditions=False,
            )
        case "sana":
            return diffusers.SanaTransformer2DModel(
                **transformer,
                out_channels=channels,
                num_cross_attention_heads=2,
                cross_attention_head_dim=4,
                cross_attention_dim=8,
                caption_channels=6,
                sample_size=8,
            )
