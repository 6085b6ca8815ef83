"""Matching networks: an Arch as a function of its parameters, for objectives that differentiate through its training.

Axes in names: N patches, B maps of a batch, C channels, H height, W width; R output channels, D weights of one.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from curate.archs import Arch, check_side
from curate.errors import UsageError, listed
from curate.metrics import rgb_to_y
from curate.resize import downscale

__all__ = ["Loss", "MatchingNet", "Parameters", "Steps"]

Parameters = dict[str, Tensor]  # by the names of `named_parameters`, without graph
Loss = Literal["mse", "l1"]
Steps = Literal["adam", "sgd"]


class MatchingNet:
    """An Arch on HR patches hr_N3HW (sRGB in [0, 1]), whose LR is their bicubic one, unrounded.

    Nothing here changes the module's own weights or any global generator of random numbers. Parts that are random in
    training (a dropped path) are off. `dtype` is that of the parameters, the patches and the results.
    """

    def __init__(
        self, arch: Arch, *, loss: Loss = "mse", device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        if loss not in get_args(Loss):
            raise UsageError(f"no loss '{loss}'; there are: {listed(get_args(Loss))}")
        self.arch, self.dtype, self.device = arch, dtype, torch.device(device)
        self._squared = loss == "mse"
        self.module = _built(arch, 0).to(self.device, dtype).eval().requires_grad_(False)
        self._buffers = dict(self.module.named_buffers())
        self._layers = dict(self._weights())

    def fresh(self, seed: int) -> Parameters:
        """The initial weights that this seed gives, the same ones on every device."""
        parameters = _built(self.arch, seed).named_parameters()
        return {name: tensor.detach().to(self.device, self.dtype) for name, tensor in parameters}

    def pair(self, hr_N3HW: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the network takes and what it should give, in its own colours and values; differentiable.

        target: what it should give in place of the patches, as large as they are: sRGB in [0, 1] or, for networks on
        luma, their luma (as of `rgb_to_y`).
        Raises UsageError for patches of another shape or dtype, none at all, or sides that the scale does not divide.
        """
        self._check(hr_N3HW)
        wanted = hr_N3HW if target is None else target
        channels = (1, 3) if self.arch.colour == "y" else (3,)
        if (
            wanted.shape[0] != hr_N3HW.shape[0]
            or wanted.shape[2:] != hr_N3HW.shape[2:]
            or wanted.shape[1] not in channels
        ):
            found = f"{tuple(wanted.shape)} for patches of shape {tuple(hr_N3HW.shape)}"
            raise UsageError(f"targets should be as many and as large as their patches, found {found}")
        return self._seen(downscale(hr_N3HW, self.arch.scale)), self._seen(wanted)

    def loss(
        self,
        parameters: Mapping[str, Tensor],
        hr_N3HW: Tensor,
        weight_N: Tensor | None = None,
        target: Tensor | None = None,
    ) -> Tensor:
        """The mean loss of values in [0, 1], whatever the network's own; differentiable in parameters and patches.

        weight_N: what each patch's loss is multiplied by, of mean 1 as a manifest's. target: see `pair`.
        """
        lr_BCHW, target_BCHW = self.pair(hr_N3HW, target)
        difference_BCHW = (self._called(parameters, lr_BCHW) - target_BCHW) / self.arch.peak
        distance_BCHW = difference_BCHW.square() if self._squared else difference_BCHW.abs()
        loss_N = distance_BCHW.flatten(1).mean(dim=1)
        return (loss_N if weight_N is None else loss_N * weight_N).mean()

    def gradient(
        self,
        parameters: Mapping[str, Tensor],
        hr_N3HW: Tensor,
        weight_N: Tensor | None = None,
        target: Tensor | None = None,
        *,
        create_graph: bool = False,
    ) -> Parameters:
        """The loss's gradient in each parameter; with `create_graph` it can be differentiated, in patches too.

        Parameters that require a gradient keep their graph, others are taken as constants.
        """
        leaves = {name: p if p.requires_grad else p.detach().requires_grad_() for name, p in parameters.items()}
        loss = self.loss(leaves, hr_N3HW, weight_N, target)
        found = torch.autograd.grad(
            loss, list(leaves.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
        return dict(zip(leaves, found, strict=True))

    def rows(self, gradients: Mapping[str, Tensor]) -> Parameters:
        """Of each layer's weight one row_RD for every output channel; biases, slopes, norms and tables are left out."""
        return {name: _rows(gradients[name], layer) for name, layer in self._layers.items()}

    def trained(
        self, parameters: Mapping[str, Tensor], batches: Iterable[Tensor], steps: int, rate: float, by: Steps = "adam"
    ) -> Parameters:
        """The parameters after some steps on real patches, one batch hr_N3HW each: what tells networks from noise.

        Raises UsageError where there are fewer batches than steps.
        """
        if by not in get_args(Steps):
            raise UsageError(f"no steps by '{by}'; there are: {listed(get_args(Steps))}")
        trained = {name: tensor.detach().clone().requires_grad_() for name, tensor in parameters.items()}
        kinds: dict[Steps, Any] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        optimiser = kinds[by](list(trained.values()), lr=rate)
        feed = iter(batches)
        for step in range(steps):
            hr_N3HW = next(feed, None)
            if hr_N3HW is None:
                raise UsageError(f"{steps} steps take as many batches, found {step}")
            optimiser.zero_grad()
            self.loss(trained, hr_N3HW).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return {name: tensor.detach() for name, tensor in trained.items()}

    def features(self, parameters: Mapping[str, Tensor], hr_N3HW: Tensor) -> list[Tensor]:
        """The maps_BCHW that its convolutions give for the patches' LR, in their order, but the last one's.

        A convolution that is applied several times gives as many. Values are those before the activation. Outputs of
        a single place, which channel attention has, are no maps.
        """
        lr_BCHW, _ = self.pair(hr_N3HW)
        maps: list[Tensor] = []
        with self._listening(maps):
            self._called(parameters, lr_BCHW)
        return maps[:-1]

    @contextmanager
    def _listening(self, maps: list[Tensor]) -> Iterator[None]:
        """Every output of a convolution is appended to `maps`."""

        def keep(module: nn.Module, given: Any, output_BCHW: Tensor) -> None:
            if output_BCHW[0, 0].numel() > 1:
                maps.append(output_BCHW)

        convolutions = [
            module for module in self.module.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        ]
        hooks = [module.register_forward_hook(keep) for module in convolutions]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _called(self, parameters: Mapping[str, Tensor], lr_BCHW: Tensor) -> Tensor:
        tensors = {**self._buffers, **parameters}
        result_BCHW: Tensor = torch.func.functional_call(self.module, tensors, (lr_BCHW,), strict=True)
        return result_BCHW

    def _seen(self, image_NCHW: Tensor) -> Tensor:
        """sRGB in [0, 1] as the network sees it: luma or RGB, up to its own peak. One channel is luma already."""
        luma = self.arch.colour == "y" and image_NCHW.shape[1] == 3
        return (rgb_to_y(image_NCHW) if luma else image_NCHW) * self.arch.peak

    def _check(self, hr_N3HW: Tensor) -> None:
        shape, scale = tuple(hr_N3HW.shape), self.arch.scale
        if hr_N3HW.ndim != 4 or shape[1] != 3 or not hr_N3HW.numel():
            raise UsageError(f"patches should have shape (N, 3, H, W), N, H and W at least 1, found {shape}")
        if shape[2] % scale or shape[3] % scale:
            raise UsageError(
                f"sides of patches should be multiples of the scale {scale}, found {shape[2]}x{shape[3]} px"
            )
        check_side(self.arch, min(shape[2:]), "sides of patches")
        if hr_N3HW.dtype != self.dtype:
            raise UsageError(f"patches should be {self.dtype}, as the network is, found {hr_N3HW.dtype}")

    def _weights(self) -> Iterator[tuple[str, nn.Module]]:
        """Names of the weights of which every output channel has a row, and their layers."""
        parameters = dict(self.module.named_parameters())
        for name, module in self.module.named_modules():
            weight = f"{name}.weight" if name else "weight"
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and weight in parameters:
                yield weight, module


def _built(arch: Arch, seed: int) -> nn.Module:
    """A fresh network on the CPU. Seeds the CPU's generator alone: `torch.manual_seed` reaches those of GPUs too."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return arch.build()


def _rows(weight: Tensor, layer: nn.Module) -> Tensor:
    """A weight, or its gradient, as a row_RD for every output channel."""
    if not isinstance(layer, nn.ConvTranspose2d):
        return weight.flatten(1)  # output channels first
    # (inputs, outputs of a group, height, width); the inputs are those of group after group
    by_group = weight.reshape(layer.groups, -1, *weight.shape[1:]).transpose(1, 2)
    return by_group.flatten(0, 1).flatten(1)
