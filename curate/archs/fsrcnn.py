"""FSRCNN (Dong et al. 2016): works at LR size and upscales in its last layer, on luma; small and fast.

Conv 5x5 to d maps, 1x1 down to s, m times 3x3, 1x1 back to d, then a 9x9 transposed convolution of stride `scale`; a
PReLU after each but the last. 12,809 parameters with d=56, s=12, m=4. Module names are those of the checkpoints of
yjn870/FSRCNN-pytorch, so that they load as they are.

Axes in names: B batch, H height, W width; the channel is luma.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from curate.archs import Arch
from curate.archs._layers import check_scale
from curate.archs._narrow import built
from curate.units import PrunableUnit, Span, rows, settled

__all__ = ["Fsrcnn", "FsrcnnNet"]

_DECONV_STD = 1e-3  # of the last layer's initial weights (the paper's section 4.1)


@dataclass(frozen=True)
class Fsrcnn(Arch):
    """FSRCNN's options."""

    scale: int = 2  # 2, 3 or 4
    d: int = 56  # maps at the two ends
    s: int = 12  # maps in the middle
    m: int = 4  # number of 3x3 layers in the middle
    config: str | None = None  # what pruning has left: numbers of maps, or a file of them (`curate.units`)

    colour: ClassVar[Literal["y", "rgb"]] = "y"
    peak: ClassVar[float] = 1.0
    tail: ClassVar[str | None] = "last_part"

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if self.d < 1 or self.s < 1 or self.m < 0:
            raise ValueError(f"d and s should be at least 1 and m at least 0, found d={self.d}, s={self.s}, m={self.m}")
        object.__setattr__(self, "config", settled(self))

    def build(self) -> "FsrcnnNet":
        """A fresh network whose output is close to zero."""
        return built(FsrcnnNet(self.scale, d=self.d, s=self.s, m=self.m), self)

    def infer(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """d, s and m, such that pruning leaves these shapes. The scale is a stride, so not in the weights."""
        first, last = state.get("mid_part.0.weight"), state.get("last_part.weight")
        if first is None or last is None or first.ndim != 4 or last.ndim != 4:
            return {}
        convs = [tensor for name, tensor in state.items() if name.startswith("mid_part.") and tensor.ndim == 4]
        inner = max((conv.shape[1] for conv in convs if conv is not first), default=first.shape[0])
        return {"d": max(first.shape[1], last.shape[0]), "s": inner, "m": max(len(convs) - 2, 0)}

    def prunable(self) -> tuple[PrunableUnit, ...]:
        """Of each layer but the last."""
        return tuple(self._units())

    def _units(self) -> Iterator[PrunableUnit]:
        middle = [f"mid_part.{2 * layer}" for layer in range(self.m + 2)]
        widths = [self.d, *[self.s] * (self.m + 1), self.d]
        for width, (layer, reader) in zip(widths, pairwise(["first_part.0", *middle, "last_part"]), strict=True):
            sequence, _, index = layer.partition(".")
            slopes = Span(f"{sequence}.{int(index) + 1}.weight", 0)
            # A transposed convolution's maps in are its first axis.
            columns = Span(f"{reader}.weight", 0 if reader == "last_part" else 1)
            yield PrunableUnit(layer, width, (*rows(layer), slopes), (columns,))


class FsrcnnNet(nn.Module):
    """lr_B1HW -> sr_B1HW, float32 luma in [16, 235] / 255, H and W times `scale`; the output is not clamped."""

    def __init__(self, scale: int, *, d: int, s: int, m: int) -> None:
        super().__init__()
        middle = [layer for _ in range(m) for layer in _conv(s, s, 3)]
        self.first_part = nn.Sequential(*_conv(1, d, 5))
        self.mid_part = nn.Sequential(*_conv(d, s, 1), *middle, *_conv(s, d, 1))
        self.last_part = nn.ConvTranspose2d(d, 1, 9, stride=scale, padding=4, output_padding=scale - 1)
        nn.init.normal_(self.last_part.weight, std=_DECONV_STD)
        assert self.last_part.bias is not None
        nn.init.zeros_(self.last_part.bias)

    def forward(self, lr_B1HW: Tensor) -> Tensor:
        sr_B1HW: Tensor = self.last_part(self.mid_part(self.first_part(lr_B1HW)))
        return sr_B1HW


def _conv(inputs: int, outputs: int, size: int) -> tuple[nn.Conv2d, nn.PReLU]:
    """A convolution that keeps the size, and its PReLU (one slope a map, 0.25 at first)."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    nn.init.kaiming_normal_(conv.weight, a=0.25)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv, nn.PReLU(outputs)
