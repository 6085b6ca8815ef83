"""SwinIR (Liang et al. 2021): self-attention in windows of 8x8 px, every other time shifted by 4; RGB, slow, accurate.

Conv 3x3 to `embed` features, `groups` times (`blocks` Swin Transformer blocks (Liu et al. 2021), a conv, plus the
group's input), a conv, plus the first features. The DIV2K mean is subtracted first and added last.

    variant    upsampler                                                      embed  groups  parameters at x2
    classical  conv to 64 maps, leaky ReLU, PixelShuffleUpsampler, last conv    180       6        11,752,487
    light      one conv to 3 * scale**2 maps, pixel shuffle                      60       4           910,152

The paper's figures for light differ: its 878K parameters leave the conv after the groups out, and its 195.6 G
multiply-adds are those of 1024x720 px, not 1280x720. Modules are named as in the authors' checkpoints.

Axes in names: B batch, C channels (R G B, or features), H height, W width, K windows, N tokens (px) of a window,
M heads of attention, D features of a head.
"""

import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from curate.archs import Arch
from curate.archs._layers import (
    DIV2K_MEAN,
    SCALES,
    PixelShuffleUpsampler,
    check_scale,
    upsampler_scale,
    upsampler_units,
)
from curate.archs._narrow import built
from curate.units import PrunableUnit, Span, rows, settled

__all__ = ["Swinir", "SwinirNet", "WindowAttention", "merge_windows", "split_windows"]

_WINDOW = 8  # px, height and width
_SHIFT = _WINDOW // 2  # px, of every other block
_OFFSETS = 2 * _WINDOW - 1  # relative positions within a window, along one axis
_MLP_RATIO = 2  # inner features of a block's MLP / features
_UPSAMPLED = 64  # maps in the classical variant's upsampler
_INITIAL_STD = 0.02

_PUBLISHED = {"classical": {"embed": 180, "groups": 6}, "light": {"embed": 60, "groups": 4}}

_BLOCK_NAMES = r"residual_group\.blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)"
_TABLE_NAMES = r"residual_group\.blocks\.\d+\.attn\.relative_position_bias_table"
_AROUND_NAMES = r"conv_first|patch_embed\.norm|norm|conv_after_body|conv_before_upsample\.0|upsample\.[02]|conv_last"
_NAMES = re.compile(
    rf"layers\.\d+\.({_BLOCK_NAMES}|{_TABLE_NAMES}|conv\.(weight|bias))|({_AROUND_NAMES})\.(weight|bias)"
)


@dataclass(frozen=True)
class Swinir(Arch):
    """SwinIR's options."""

    scale: int = 2  # 2, 3 or 4
    variant: Literal["classical", "light"] = "classical"  # the upsampler, and the published embed and groups
    embed: int | None = None  # features throughout; None: the variant's
    groups: int | None = None  # residual groups; None: the variant's
    blocks: int = 6  # in each group
    heads: int = 6  # of attention
    drop_path: float = 0.1  # share of images that skip the last block in training; less before it, 0 at the first
    config: str | None = None  # what pruning has left: numbers of maps, or a file of them (`curate.units`)

    colour: ClassVar[Literal["y", "rgb"]] = "rgb"
    peak: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_scale(self.scale)
        embed, groups = self._sizes()
        if groups < 1 or self.blocks < 1:
            raise ValueError(f"groups and blocks should be at least 1, found groups={groups}, blocks={self.blocks}")
        if self.heads < 1 or embed < 1 or embed % self.heads:
            found = f"found embed={embed}, heads={self.heads}"
            raise ValueError(f"embed should be a multiple of heads, both at least 1, {found}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path should be at least 0 and below 1, found {self.drop_path}")
        object.__setattr__(self, "config", settled(self))

    @property
    def tail(self) -> str:  # type: ignore[override]
        return "upsample.0" if self.variant == "light" else "conv_last"

    def build(self) -> "SwinirNet":
        """A fresh network: linear layers of small random weights, convolutions of torch's own."""
        embed, groups = self._sizes()
        net = SwinirNet(
            self.scale,
            direct=self.variant == "light",
            embed=embed,
            num_groups=groups,
            num_blocks=self.blocks,
            heads=self.heads,
            drop_path=self.drop_path,
        )
        return built(net, self)

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the constants that the authors' files carry: they follow from the sizes of window and image."""
        constants = (".attn.relative_position_index", ".attn_mask")
        return {name: tensor for name, tensor in state.items() if not name.endswith(constants)}

    def infer(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """All options but drop_path and config; embed and groups only where they are not the variant's."""
        first = state.get("conv_first.weight")
        table = state.get("layers.0.residual_group.blocks.0.attn.relative_position_bias_table")
        upsampler = _upsampler_in(state)
        if first is None or table is None or upsampler is None or first.ndim != 4 or table.ndim != 2:
            return {}
        blocks = [name for name in state if name.endswith(".norm1.weight")]
        sizes = {
            "embed": first.shape[0],
            "groups": sum(".blocks.0." in name for name in blocks),
            "blocks": sum(name.startswith("layers.0.") for name in blocks),
            "heads": table.shape[1],
        }
        if not all(_NAMES.fullmatch(name) for name in state) or len(table) != _OFFSETS**2 or not all(sizes.values()):
            return {}
        if sizes["embed"] % sizes["heads"] or len(blocks) != sizes["groups"] * sizes["blocks"]:
            return {}
        variant, scale = upsampler
        published = _PUBLISHED[variant]
        own = {name: size for name, size in sizes.items() if size != published.get(name)}
        return {"scale": scale, "variant": variant, **own}

    def prunable(self) -> tuple[PrunableUnit, ...]:
        """Of each block its attention, then its MLP; then of the classical variant's upsampler.

        All heads of an attention keep the same of their features. All other features are summed with others.
        """
        return tuple(self._units())

    def _units(self) -> Iterator[PrunableUnit]:
        embed, groups = self._sizes()
        for block in (
            f"layers.{group}.residual_group.blocks.{index}" for group in range(groups) for index in range(self.blocks)
        ):
            attn, fc1, fc2 = f"{block}.attn", f"{block}.mlp.fc1", f"{block}.mlp.fc2"
            makers = rows(f"{attn}.qkv", outer=3 * self.heads)
            readers = (Span(f"{attn}.proj.weight", 1, outer=self.heads),)
            queries = rows(f"{attn}.qkv", outer=self.heads)  # without those a feature is in no score
            yield PrunableUnit(attn, embed // self.heads, makers, readers, gates=queries, count=self.heads)
            yield PrunableUnit(f"{block}.mlp", _MLP_RATIO * embed, rows(fc1), (Span(f"{fc2}.weight", 1),))
        if self.variant == "classical":
            before = "conv_before_upsample.0"
            yield PrunableUnit(before, _UPSAMPLED, rows(before), (Span("upsample.0.weight", 1),))
            yield from upsampler_units(self.scale, _UPSAMPLED, "conv_last")

    def _sizes(self) -> tuple[int, int]:
        """embed and groups."""
        published = _PUBLISHED[self.variant]
        embed = published["embed"] if self.embed is None else self.embed
        groups = published["groups"] if self.groups is None else self.groups
        return embed, groups


def _upsampler_in(state: dict[str, Tensor]) -> tuple[str, int] | None:
    """The variant and the scale that the last layers are of."""
    last, before = state.get("upsample.0.weight"), state.get("conv_before_upsample.0.weight")
    if last is None or last.ndim != 4:
        return None
    if before is None:
        light = {3 * scale**2: scale for scale in SCALES}.get(last.shape[0])
        return None if light is None or "upsample.2.weight" in state else ("light", light)
    classical = upsampler_scale(state, before.shape[0], "conv_last") if before.ndim else None
    return None if classical is None else ("classical", classical)


class SwinirNet(nn.Module):
    """lr_BCHW -> sr_BCHW, float32 sRGB in [0, 1], H and W times `scale`; the output is not clamped.

    Windows need sizes that are multiples of 8: the image is continued at the bottom and right by its mirror image, and
    what that adds to the result is cut off. In eval mode the next larger multiple is taken, 8 px more for a size that
    is one already, as in the authors' test program: published figures come from that.

    direct: the light variant's upsampler.
    """

    mean_C11: Tensor

    def __init__(
        self,
        scale: int,
        *,
        direct: bool,
        embed: int,
        num_groups: int,
        num_blocks: int,
        heads: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.scale = scale
        num_rates = num_groups * num_blocks
        rates = [drop_path * index / max(num_rates - 1, 1) for index in range(num_rates)]
        self.register_buffer("mean_C11", torch.tensor(DIV2K_MEAN).reshape(3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, embed, 3, padding=1)
        self.patch_embed = nn.Sequential(OrderedDict(norm=nn.LayerNorm(embed)))
        self.layers = nn.ModuleList(
            _Group(embed, heads, rates[start : start + num_blocks]) for start in range(0, num_rates, num_blocks)
        )
        self.norm = nn.LayerNorm(embed)
        self.conv_after_body = nn.Conv2d(embed, embed, 3, padding=1)
        if direct:
            self.conv_before_upsample: nn.Module = nn.Identity()
            self.upsample = nn.Sequential(nn.Conv2d(embed, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
            self.conv_last: nn.Module = nn.Identity()
        else:
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(embed, _UPSAMPLED, 3, padding=1), nn.LeakyReLU())
            self.upsample = PixelShuffleUpsampler(scale, _UPSAMPLED)
            self.conv_last = nn.Conv2d(_UPSAMPLED, 3, 3, padding=1)

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        height, width = lr_BCHW.shape[2:]
        first_BCHW = self.conv_first(self._padded(lr_BCHW - self.mean_C11))
        mask_KNN = _wrap_mask(first_BCHW)
        features_BHWC = self.patch_embed(first_BCHW.permute(0, 2, 3, 1))  # B C H W -> B H W C
        for group in self.layers:
            features_BHWC = group(features_BHWC, mask_KNN)
        deep_BCHW = self.conv_after_body(self.norm(features_BHWC).permute(0, 3, 1, 2))  # B H W C -> B C H W
        sr_BCHW: Tensor = self.conv_last(self.upsample(self.conv_before_upsample(first_BCHW + deep_BCHW)))
        return sr_BCHW[..., : height * self.scale, : width * self.scale] + self.mean_C11

    def _padded(self, image_BCHW: Tensor) -> Tensor:
        for axis in (2, 3):
            size = image_BCHW.shape[axis]
            more = -size % _WINDOW if self.training else _WINDOW - size % _WINDOW
            position = torch.arange(size + more, device=image_BCHW.device) % (2 * size)  # there and back, and again
            image_BCHW = image_BCHW.index_select(axis, torch.minimum(position, 2 * size - 1 - position))
        return image_BCHW


class _Group(nn.Module):
    """Blocks and a conv, plus the input. rates: of each block's stochastic depth."""

    def __init__(self, embed: int, heads: int, rates: list[float]) -> None:
        super().__init__()
        self.residual_group = _Blocks(embed, heads, rates)
        self.conv = nn.Conv2d(embed, embed, 3, padding=1)

    def forward(self, features_BHWC: Tensor, mask_KNN: Tensor) -> Tensor:
        attended_BHWC = self.residual_group(features_BHWC, mask_KNN)
        residual_BCHW: Tensor = self.conv(attended_BHWC.permute(0, 3, 1, 2))  # B H W C -> B C H W
        return features_BHWC + residual_BCHW.permute(0, 2, 3, 1)  # B C H W -> B H W C


class _Blocks(nn.Module):
    def __init__(self, embed: int, heads: int, rates: list[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _Block(embed, heads, shift=_SHIFT * (index % 2), drop_path=rate) for index, rate in enumerate(rates)
        )

    def forward(self, features_BHWC: Tensor, mask_KNN: Tensor) -> Tensor:
        for block in self.blocks:
            features_BHWC = block(features_BHWC, mask_KNN)
        return features_BHWC


class _Block(nn.Module):
    """Attention within windows, then an MLP of each token: two residual branches, each after a LayerNorm."""

    def __init__(self, embed: int, heads: int, *, shift: int, drop_path: float) -> None:
        super().__init__()
        self.shift = shift
        self.drop_path = drop_path
        inner = _MLP_RATIO * embed
        self.norm1 = nn.LayerNorm(embed)
        self.attn = WindowAttention(embed, heads)
        self.norm2 = nn.LayerNorm(embed)
        self.mlp = nn.Sequential(OrderedDict(fc1=_linear(embed, inner), gelu=nn.GELU(), fc2=_linear(inner, embed)))

    def forward(self, features_BHWC: Tensor, mask_KNN: Tensor) -> Tensor:
        features_BHWC = features_BHWC + self._or_dropped(self._attend(self.norm1(features_BHWC), mask_KNN))
        features_BHWC = features_BHWC + self._or_dropped(self.mlp(self.norm2(features_BHWC)))
        return features_BHWC

    def _attend(self, features_BHWC: Tensor, mask_KNN: Tensor) -> Tensor:
        height, width = features_BHWC.shape[1:3]
        if not self.shift:
            return merge_windows(self.attn(split_windows(features_BHWC)), height, width)
        rolled_BHWC = features_BHWC.roll((-self.shift, -self.shift), dims=(1, 2))
        rolled_BHWC = merge_windows(self.attn(split_windows(rolled_BHWC), mask_KNN), height, width)
        return rolled_BHWC.roll((self.shift, self.shift), dims=(1, 2))

    def _or_dropped(self, residual_BHWC: Tensor) -> Tensor:
        """Stochastic depth (Huang et al. 2016): in training, 0 for some images of the batch; the expectation stays."""
        if not self.training or not self.drop_path:
            return residual_BHWC
        keep = 1 - self.drop_path
        kept_B111 = torch.rand(len(residual_BHWC), 1, 1, 1, device=residual_BHWC.device) < keep
        return residual_BHWC * kept_B111 / keep


class WindowAttention(nn.Module):
    """windows_BKNC -> the same shape: each token attends to those of its window, with a bias by relative position.

    mask_KNN is added to each head's scores; -inf keeps a pair of tokens apart.
    """

    index_NN: Tensor

    def __init__(self, embed: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = _linear(embed, 3 * embed)
        self.proj = _linear(embed, embed)
        self.relative_position_bias_table = nn.Parameter(torch.empty(_OFFSETS**2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=_INITIAL_STD)
        self.register_buffer("index_NN", _relative_positions(), persistent=False)

    def forward(self, windows_BKNC: Tensor, mask_KNN: Tensor | None = None) -> Tensor:
        # B K N (3 M D) -> 3 B K M N D. D is what the weights make it; the scale stays that of the full width, which a
        # pruned network's weights were trained with.
        q_BKMND, k_BKMND, v_BKMND = self.qkv(windows_BKNC).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        scale = (windows_BKNC.shape[-1] // self.heads) ** -0.5
        # Not scaled_dot_product_attention: a learned bias rules out its fused kernel in training, where it takes 6-21 %
        # more time on a CPU; in eval mode it takes 2-11 % less. In place: a megapixel's scores are 1.6 GB.
        scores_BKMNN = (q_BKMND * scale) @ k_BKMND.transpose(-2, -1)
        scores_BKMNN += self.relative_position_bias_table[self.index_NN].permute(2, 0, 1)  # N N M -> M N N
        if mask_KNN is not None:
            scores_BKMNN += mask_KNN[:, None]
        mixed_BKMND = scores_BKMNN.softmax(dim=-1) @ v_BKMND
        result_BKNC: Tensor = self.proj(mixed_BKMND.transpose(2, 3).flatten(3))  # B K M N D -> B K N (M D)
        return result_BKNC


def split_windows(image_BHWC: Tensor) -> Tensor:
    """image_BHWC, H and W multiples of 8 -> windows_BKNC: K windows row by row, N = 64 px of each row by row."""
    batch, height, width, channels = image_BHWC.shape
    # B H W C -> B H/8 8 W/8 8 C -> B H/8 W/8 8 8 C -> B K N C
    grid = image_BHWC.reshape(batch, height // _WINDOW, _WINDOW, width // _WINDOW, _WINDOW, channels)
    return grid.transpose(2, 3).reshape(batch, -1, _WINDOW**2, channels)


def merge_windows(windows_BKNC: Tensor, height: int, width: int) -> Tensor:
    """The image_BHWC of which `split_windows` made these windows."""
    batch, channels = windows_BKNC.shape[0], windows_BKNC.shape[3]
    # B K N C -> B H/8 W/8 8 8 C -> B H/8 8 W/8 8 C -> B H W C
    grid = windows_BKNC.reshape(batch, height // _WINDOW, width // _WINDOW, _WINDOW, _WINDOW, channels)
    return grid.transpose(2, 3).reshape(batch, height, width, channels)


def _wrap_mask(features_BCHW: Tensor) -> Tensor:
    """mask_KNN for windows of the rolled image: -inf between px that only the roll has made neighbours, else 0."""
    height, width = features_BCHW.shape[2:]
    wrapped_H = torch.arange(height, device=features_BCHW.device) >= height - _SHIFT
    wrapped_W = torch.arange(width, device=features_BCHW.device) >= width - _SHIFT
    region_HW = 2 * wrapped_H[:, None] + wrapped_W
    region_KN = split_windows(region_HW[None, ..., None])[0, ..., 0]
    apart_KNN = region_KN[:, :, None] != region_KN[:, None, :]
    return features_BCHW.new_zeros(apart_KNN.shape).masked_fill_(apart_KNN, -torch.inf)


def _relative_positions() -> Tensor:
    """Row of the bias table for each pair of a window's tokens -> index_NN: (dy + 7) * 15 + dx + 7, as in Swin."""
    y_N, x_N = torch.meshgrid(torch.arange(_WINDOW), torch.arange(_WINDOW), indexing="ij")
    y_N, x_N = y_N.flatten(), x_N.flatten()
    dy_NN, dx_NN = (axis_N[:, None] - axis_N + _WINDOW - 1 for axis_N in (y_N, x_N))
    return dy_NN * _OFFSETS + dx_NN


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.trunc_normal_(linear.weight, std=_INITIAL_STD)
    nn.init.zeros_(linear.bias)
    return linear
