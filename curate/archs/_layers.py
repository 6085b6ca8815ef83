"""Layers that several networks share. Not an arch: its name starts with an underscore.

Axes in names: B batch, C channels, H height, W width.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise

from torch import Tensor, nn

from curate.resize import upscale
from curate.units import PrunableUnit, Span, rows

__all__ = [
    "DIV2K_MEAN",
    "SCALES",
    "Bicubic",
    "PixelShuffleUpsampler",
    "check_scale",
    "upsampler_scale",
    "upsampler_units",
]

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
        layers = []
        for step in _steps(scale):
            layers += [nn.Conv2d(features, features * step**2, 3, padding=1), nn.PixelShuffle(step)]
        super().__init__(*layers)


def upsampler_scale(state: Mapping[str, Tensor], features: int, after: str, name: str = "upsample") -> int | None:
    """The scale of the `PixelShuffleUpsampler` called `name`, by what each of its convs makes of the maps that the next
    one takes; None if it is none. It takes `features` maps; the layer `after` takes what it makes.
    """
    layers = [state.get(f"{layer}.weight") for layer in (f"{name}.0", f"{name}.2", after)]
    convs = [layer for layer in layers if layer is not None and layer.ndim == 4]
    if len(convs) < 2 or convs[0].shape[1] != features:
        return None
    factors = [made.shape[0] / max(taking.shape[1], 1) for made, taking in pairwise(convs)]
    return next((scale for scale in SCALES if factors == [step**2 for step in _steps(scale)]), None)


def upsampler_units(scale: int, features: int, after: str, name: str = "upsample") -> Iterator[PrunableUnit]:
    """Of the `PixelShuffleUpsampler` called `name`, whose maps the layer `after` takes."""
    steps = _steps(scale)
    layers = [*(f"{name}.{2 * index}" for index in range(len(steps))), after]
    for step, (layer, reader) in zip(steps, pairwise(layers), strict=True):
        yield PrunableUnit(layer, features, rows(layer, inner=step**2), (Span(f"{reader}.weight", 1),))


def _steps(scale: int) -> tuple[int, ...]:
    return (2, 2) if scale == 4 else (scale,)
