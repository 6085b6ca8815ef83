"""One step of each objective: which patches it looks at, with which network, and what it asks of them.

Everything is drawn from (seed, step), so that a step can be done again.

Axes in names: N synthetic patches, M those of a step.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from curate import plugins
from curate.archs import Arch
from curate.config import DistillConfig
from curate.distillation.nets import MatchingNet, Parameters
from curate.distillation.objectives import (
    distribution_matching,
    expert,
    gradient_matching,
    symmetry,
    trajectory_matching,
)
from curate.distillation.pool import Pool
from curate.progress import Progress, silent
from curate.tensors import step_seed

__all__ = ["Asked", "Matching", "Matchings", "Trajectories", "build"]

_INNER_RATE_STEP = 0.01  # of the logarithm of the inner rate, about how far it moves a step

Label = Callable[[Tensor], Tensor]  # patches_M3HW -> what a network should give for them


class Asked(NamedTuple):
    """What a step asks of the patches."""

    value: float  # of the objective
    slope_M3HW: Tensor  # its gradient in them


class Matching(Protocol):
    """An objective with all that it needs but the synthetic patches."""

    def rows(self, step: int) -> Tensor:
        """The numbers of the synthetic patches that a step looks at, each once."""
        ...

    def ask(self, step: int, rows_M: Tensor, patches_M3HW: Tensor) -> Asked:
        """The step, for these patches."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What changes from step to step."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The way back from `tensors`."""
        ...


@dataclass
class Matchings(Matching):
    """Gradients (dc) or distributions (dm): a batch of synthetic patches, and real ones of the same groups."""

    net: MatchingNet
    pool: Pool
    group_N: Tensor
    config: DistillConfig
    label: Label | None = None
    _number: int = -1  # of the network
    _parameters: Parameters = field(default_factory=dict)

    def rows(self, step: int) -> Tensor:
        """Whole groups, drawn one after the other until a batch is full: few groups at a time are told well."""
        rng = np.random.default_rng([self.config.seed, 2, step])
        shuffled_N = rng.permutation(len(self.group_N))
        groups = self.group_N.numpy()[shuffled_N]
        _, first = np.unique(groups, return_index=True)
        drawn = groups[np.sort(first)]  # in the order in which they turn up: large ones sooner
        place = {int(group): index for index, group in enumerate(drawn)}
        by_group = np.argsort([place[int(group)] for group in groups], kind="stable")
        return torch.from_numpy(np.sort(shuffled_N[by_group][: self.config.batch_size]))

    def ask(self, step: int, rows_M: Tensor, patches_M3HW: Tensor) -> Asked:
        config = self.config
        rng = np.random.default_rng([config.seed, 3, step])
        group_M = self.group_N[rows_M]
        real = self.pool.like(group_M, config.real_batch, rng)
        turn = int(rng.integers(8))
        real_R3HW = symmetry(self.pool.floating(real, self.net.device), turn)
        leaves_M3HW = patches_M3HW.detach().requires_grad_()
        turned_M3HW = symmetry(leaves_M3HW, turn)
        parameters = self._net(step)
        groups = (group_M, self.pool.group_P[real])
        with torch.enable_grad():
            if config.objective == "dc":
                target = None if self.label is None else symmetry(self.label(patches_M3HW), turn)
                value = gradient_matching(
                    self.net,
                    parameters,
                    turned_M3HW,
                    real_R3HW,
                    distance=config.distance,
                    groups=groups,
                    target=target,
                )
            else:
                seed = step_seed(config.seed, 4, step) % 2**62
                value = distribution_matching(
                    self.net,
                    parameters,
                    turned_M3HW,
                    real_R3HW,
                    seed=seed,
                    statistics=config.statistics,
                    groups=groups,
                )
            (slope_M3HW,) = torch.autograd.grad(value, [leaves_M3HW])
        return Asked(float(value.detach()), slope_M3HW)

    def _net(self, step: int) -> Parameters:
        """The network of this step: fresh weights and some steps on real patches, another one every `net_every`."""
        config, number = self.config, step // self.config.net_every
        if number != self._number:
            rng = np.random.default_rng([config.seed, 5, number])
            steps = int(rng.integers(config.net_steps + 1))
            fresh = self.net.fresh(step_seed(config.seed, 6, number))
            self._parameters = self.net.trained(fresh, self._real(rng), steps, config.net_rate)
            self._number = number
        return self._parameters

    def _real(self, rng: np.random.Generator) -> Iterator[Tensor]:
        while True:
            rows = rng.integers(0, len(self.pool.group_P), self.config.real_batch)
            yield self.pool.floating(torch.from_numpy(rows), self.net.device)

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        pass


@dataclass
class Trajectories(Matching):
    """Ways of networks (mtt): steps on synthetic patches against epochs on real ones. The steps' rate is learnt too."""

    net: MatchingNet
    experts: list[list[Parameters]]  # each: its parameters after 0, 1, ... epochs
    number: int  # of synthetic patches
    config: DistillConfig
    label: Label | None = None
    log_rate: Tensor = field(default_factory=lambda: torch.zeros(()))
    square: Tensor = field(default_factory=lambda: torch.zeros(()))  # running mean of its squared gradient

    def _batches(self, step: int) -> list[Tensor]:
        """Numbers of the patches of each inner step: the patches over and over, in another order each time."""
        rng = np.random.default_rng([self.config.seed, 2, step])
        size = min(self.config.batch_size, self.number)
        asked = size * self.config.inner_steps
        orders = [rng.permutation(self.number) for _ in range(-(-asked // self.number))]
        return [torch.from_numpy(batch) for batch in np.concatenate(orders)[:asked].reshape(-1, size)]

    def rows(self, step: int) -> Tensor:
        rows_M: Tensor = torch.cat(self._batches(step)).unique()  # type: ignore[no-untyped-call]
        return rows_M

    def ask(self, step: int, rows_M: Tensor, patches_M3HW: Tensor) -> Asked:
        config = self.config
        rng = np.random.default_rng([config.seed, 3, step])
        way = self.experts[int(rng.integers(len(self.experts)))]
        first = int(rng.integers(config.latest + 1))
        batches = [torch.searchsorted(rows_M, batch) for batch in self._batches(step)]
        found = trajectory_matching(
            self.net,
            way[first],
            way[first + config.ahead],
            patches_M3HW,
            batches,
            self.log_rate.exp().to(self.net.device),
            form=config.form,
            turns=rng.integers(0, 8, len(batches)).tolist(),
            labels=None if self.label is None else self.label(patches_M3HW),
        )
        self._move_rate(found.rate.cpu() * self.log_rate.exp())
        return Asked(float(found.value), found.patches_N3HW)

    def _move_rate(self, slope: Tensor) -> None:
        """A step of RMSprop on the rate's logarithm, so that it stays above 0."""
        self.square = 0.9 * self.square + 0.1 * slope.square()
        self.log_rate = self.log_rate - _INNER_RATE_STEP * slope / (self.square.sqrt() + 1e-12)

    def tensors(self) -> dict[str, Tensor]:
        return {"log_rate": self.log_rate, "square": self.square}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.log_rate, self.square = tensors["log_rate"], tensors["square"]


def build(
    config: DistillConfig,
    pool: Pool,
    group_N: Tensor,
    device: torch.device,
    label: Label | None = None,
    progress: Progress = silent,
) -> Matching:
    """The objective that the config names; for mtt the experts are trained now, the same ones every time."""
    arch: Arch = plugins.parse("archs", config.arch)
    net = MatchingNet(arch, device=device)
    if config.objective != "mtt":
        return Matchings(net, pool, group_N, config, label)
    experts = []
    for number in range(config.experts):

        def tell(done: int, total: int, note: str = "", number: int = number) -> None:
            progress(number * total + done, config.experts * total, f"expert {number + 1}")

        experts.append(
            expert(
                net,
                pool.patches_P3HW,
                epochs=config.expert_epochs,
                batch=config.expert_batch,
                rate=config.expert_rate,
                seed=step_seed(config.seed, 7, number) % 2**62,
                progress=tell,
            )
        )
    log_rate = torch.tensor(config.expert_rate).log()
    return Trajectories(net, experts, len(group_N), config, label, log_rate)
