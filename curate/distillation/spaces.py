"""What is changed when patches are distilled, and how patches come of it: pixels, latents, or a diffusion's start.

    pixel   the patch itself
    vae     latents, decoded
    ldm     latents z, from which a frozen diffusion model samples, z led into it on the way (LD3M, Moser et al. 2024)

An autoencoder loses the finest details, which are what super-resolution learns from. With `residual` what it lost of
the real patch that each synthetic one starts as is added to what is decoded: at the start they are equal, and the
details stay while the latents move what lies beneath.

Axes in names: N synthetic patches, B those of a chunk, C channels, H height, W width, K tokens and D numbers of each.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from curate.ldm import LatentModel
from curate.tensors import halving, step_seed

__all__ = ["Injection", "Latents", "Ldm", "Learnables", "Pixels", "Space", "backward", "drawn"]

Injection = Literal["code", "paper"]
Learnables = dict[str, Tensor]  # name -> N x ...


class Space:
    """How learnables become patches. What a row of them becomes depends on that row alone."""

    def start(self, patches_B3HW: Tensor) -> Learnables:
        """The learnables that stand for real patches (float, sRGB in [0, 1])."""
        raise NotImplementedError

    def patches(self, learnables: Mapping[str, Tensor], rows_B: Tensor) -> Tensor:
        """patches_B3HW of the learnables of some rows (B x ...), whose numbers are `rows_B`; differentiable.

        Not cut to [0, 1].
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Pixels(Space):
    """The patch itself."""

    def start(self, patches_B3HW: Tensor) -> Learnables:
        return {"pixels": patches_B3HW.clone()}

    def patches(self, learnables: Mapping[str, Tensor], rows_B: Tensor) -> Tensor:
        return learnables["pixels"]


@dataclass(frozen=True)
class Latents(Space):
    """Latents of an autoencoder, scaled to deviation 1 or thereabouts."""

    model: LatentModel

    def start(self, patches_B3HW: Tensor) -> Learnables:
        return {"latents": self.model.encode(patches_B3HW)}

    def patches(self, learnables: Mapping[str, Tensor], rows_B: Tensor) -> Tensor:
        return self.model.decode(learnables["latents"])


@dataclass(frozen=True)
class Ldm(Space):
    """Latents z, and a condition where the denoiser takes one; patches are sampled from them by DDIM without noise.

    The start is z noised as at the first step, each row with noise of its own, which is the same at every step of the
    distillation: the patch that is looked at is the one that is differentiated. Of S sampling steps, counted i = S - 1
    to 0, z is led into each:

    code    as LD3M's code does: the clean latents are (S - 1 - i) / (S - 1) of what the denoiser sees in the noise and
            i / (S - 1) of z, quantised where there is a codebook. The first step is z's alone, the last the denoiser's
    paper   as its text says: of the state after the step, 1 - i / S is DDIM's, i / S that of the start, noise and all

    Memory of one call of the denoiser: its others are computed again for the gradient.
    """

    model: LatentModel
    sampling: int = 10  # steps
    injection: Injection = "code"
    guidance: float = 1.0  # of a conditional denoiser
    seed: int = 0  # of the noise

    def start(self, patches_B3HW: Tensor) -> Learnables:
        learnables = {"latents": self.model.encode(patches_B3HW)}
        if self.model.condition_shape is not None:
            learnables["condition"] = patches_B3HW.new_zeros(len(patches_B3HW), *self.model.condition_shape)
        return learnables

    def patches(self, learnables: Mapping[str, Tensor], rows_B: Tensor) -> Tensor:
        schedule = self.model.schedule
        assert schedule is not None
        latents_BCHW, condition_BKD = learnables["latents"], learnables.get("condition")
        steps = schedule.steps(self.sampling)
        first_BCHW = state_BCHW = schedule.noised(latents_BCHW, self._noise(rows_B, latents_BCHW), steps[0])
        led_BCHW = self.model.quantise(latents_BCHW)
        for index, step in enumerate(steps):
            left = self.sampling - 1 - index
            clean_BCHW, noise_BCHW = self._predicted(state_BCHW, step, condition_BKD)
            if self.injection == "code":
                clean_BCHW = torch.lerp(clean_BCHW, led_BCHW, left / (self.sampling - 1))
            state_BCHW = clean_BCHW if not left else schedule.noised(clean_BCHW, noise_BCHW, steps[index + 1])
            if self.injection == "paper":
                state_BCHW = torch.lerp(state_BCHW, first_BCHW, left / self.sampling)
        return self.model.decode(state_BCHW)

    def _predicted(self, state_BCHW: Tensor, step: int, condition_BKD: Tensor | None) -> tuple[Tensor, Tensor]:
        def ask(state_BCHW: Tensor, condition_BKD: Tensor | None) -> tuple[Tensor, Tensor]:
            if torch.is_grad_enabled():
                found: tuple[Tensor, Tensor] = checkpoint(
                    self.model.predict, state_BCHW, step, condition_BKD, use_reentrant=False
                )
                return found
            return self.model.predict(state_BCHW, step, condition_BKD)

        clean_BCHW, noise_BCHW = ask(state_BCHW, condition_BKD)
        if condition_BKD is None or self.guidance == 1:
            return clean_BCHW, noise_BCHW
        null_clean_BCHW, null_noise_BCHW = ask(state_BCHW, None)
        # Both are linear in the denoiser's answer, which is what is led away from the null condition's.
        return (
            torch.lerp(null_clean_BCHW, clean_BCHW, self.guidance),
            torch.lerp(null_noise_BCHW, noise_BCHW, self.guidance),
        )

    def _noise(self, rows_B: Tensor, like_BCHW: Tensor) -> Tensor:
        each = []
        for row in rows_B.tolist():
            generator = torch.Generator().manual_seed(step_seed(self.seed, row))
            each.append(torch.randn(like_BCHW.shape[1:], generator=generator))
        return torch.stack(each).to(like_BCHW)


def drawn(
    space: Space, learnables: Mapping[str, Tensor], rows_M: Tensor, residual_N3HW: Tensor | None, chunk: int
) -> Tensor:
    """The patches of M rows, patches_M3HW in [0, 1], without a graph, `chunk` at a time or fewer."""

    def work(size: int) -> Tensor:
        return torch.cat([_patches(space, learnables, rows_B, residual_N3HW) for rows_B in _chunks(rows_M, size)])

    with torch.no_grad():
        return halving(work, chunk)


def backward(
    space: Space,
    learnables: Mapping[str, Tensor],
    rows_M: Tensor,
    slope_M3HW: Tensor,
    chunk: int,
) -> Learnables:
    """The gradient of each learnable, M x ..., from that of the patches: these are made again, `chunk` at a time.

    What is beyond [0, 1] was cut off, but its gradient is not: it could never come back.
    """

    def work(size: int) -> Learnables:
        parts: list[Learnables] = []
        for rows_B, slope_B3HW in zip(_chunks(rows_M, size), _chunks(slope_M3HW, size), strict=True):
            leaves = {name: tensor[rows_B].detach().requires_grad_() for name, tensor in learnables.items()}
            with torch.enable_grad():
                patches_B3HW = space.patches(leaves, rows_B)
            found = torch.autograd.grad(
                patches_B3HW, list(leaves.values()), slope_B3HW, allow_unused=True, materialize_grads=True
            )
            parts.append(dict(zip(leaves, found, strict=True)))
        return {name: torch.cat([part[name] for part in parts]) for name in learnables}

    return halving(work, chunk)


def _patches(space: Space, learnables: Mapping[str, Tensor], rows_B: Tensor, residual_N3HW: Tensor | None) -> Tensor:
    patches_B3HW = space.patches({name: tensor[rows_B] for name, tensor in learnables.items()}, rows_B)
    if residual_N3HW is not None:
        patches_B3HW = patches_B3HW + residual_N3HW[rows_B]
    return patches_B3HW.clamp(0, 1)


def _chunks(tensor: Tensor, size: int) -> Iterator[Tensor]:
    return iter(tensor.split(size))  # type: ignore[no-untyped-call]
