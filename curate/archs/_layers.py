"""Layers that several networks share. Not an arch: its name starts with an underscore.

Axes in names: B batch, C channels, H height, W width.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from curate.resize import upscale

__all__ = ["DIV2K_MEAN", "SCALES", "Bicubic", "PixelShuffleUpsampler", "check_scale", "upsampler_scale"]

SCALES = (2, 3, 4)
DIV2K_MEAN = (0.4488, 0.4371, 0.4040)  # of R, G, B in [0, 1]: what EDSR, RCAN and SwinIR subtract from their input


def check_scale(scale: int) -> None:
    """ValueError, for an Arch's `__post_init__`, unless the scale is 2, 3 or 4."""
    if scale not in SCALES:
        raise ValueError(f"scale should be 2, 3 or 4, found {scale}")


class Bicubic(nn.Module):
    """lr_BCHW -> the image `scale` times larger by MATLAB's bicubic, unrounded. No parameters.

    A module of its own so that counters of multiply-adds can leave it out, as the literature does.
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        return upscale(lr_BCHW, self.scale, rounding="none")


class PixelShuffleUpsampler(nn.Sequential):
    """features_BCHW -> the same C, H and W times `scale`: 3x3 convolutions and pixel shuffles (ESPCN, Shi et al. 2016).

    x2 and x3 take one step, x4 two of x2. Modules are named as in the public files of EDSR, RCAN, SwinIR.
    """

    def __init__(self, scale: int, features: int) -> None:
        steps = (2, 2) if scale == 4 else (scale,)
        layers = []
        for step in steps:
            layers += [nn.Conv2d(features, features * step**2, 3, padding=1), nn.PixelShuffle(step)]
        super().__init__(*layers)


def upsampler_scale(state: Mapping[str, Tensor], features: int) -> int | None:
    """The scale of the `PixelShuffleUpsampler` that is called `upsample`, of so many features; None if it is none."""
    steps = [state.get(f"upsample.{index}.weight") for index in (0, 2)]
    maps = [step.shape[0] for step in steps if step is not None and step.ndim == 4]
    return {(4 * features,): 2, (9 * features,): 3, (4 * features, 4 * features): 4}.get(tuple(maps))
