"""Rows move as torch's optimisers would move them alone, and those that are not in a step stay as they are."""

import pytest
import torch
from torch import Tensor

from curate.distillation.rows import RowOptimiser


def _steps(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(4, generator=generator)[:2] for _ in range(9)]
    return [(chosen, torch.randn(2, 3, 2, generator=generator)) for chosen in rows]


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_row_moves_as_it_would_alone(name: str) -> None:
    start = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(1))
    tensor = start.clone()
    optimiser = RowOptimiser({"z": tensor}, name, rate=0.1, momentum=0.5)  # type: ignore[arg-type]
    for rows, gradient in _steps(0):
        optimiser.step(rows, {"z": gradient})
    for row in range(4):
        alone = torch.nn.Parameter(start[row].clone())
        kinds = {
            "adam": lambda p: torch.optim.Adam([p], lr=0.1, betas=(0.9, 0.99), eps=1e-12),
            "sgd": lambda p: torch.optim.SGD([p], lr=0.1, momentum=0.5),
        }
        theirs = kinds[name](alone)
        for rows, gradient in _steps(0):
            if row in rows.tolist():
                alone.grad = gradient[rows.tolist().index(row)]
                theirs.step()
        torch.testing.assert_close(tensor[row], alone.detach())


def test_rows_that_are_not_in_a_step_stay() -> None:
    tensor = torch.zeros(3, 2)
    optimiser = RowOptimiser({"z": tensor}, "adam", rate=0.1)
    optimiser.step(torch.tensor([0, 1]), {"z": torch.ones(2, 2)})
    optimiser.step(torch.tensor([1]), {"z": torch.ones(1, 2)})
    assert torch.equal(tensor[2], torch.zeros(2))
    torch.testing.assert_close(tensor[0], torch.full((2,), -0.1))
    torch.testing.assert_close(tensor[1], torch.full((2,), -0.2))


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_state_goes_on_where_it_was(name: str) -> None:
    def after(steps: list[tuple[Tensor, Tensor]], tensor: Tensor, state: dict[str, Tensor] | None) -> RowOptimiser:
        optimiser = RowOptimiser({"z": tensor}, name, rate=0.1)  # type: ignore[arg-type]
        if state is not None:
            optimiser.restore(state)
        for rows, gradient in steps:
            optimiser.step(rows, {"z": gradient})
        return optimiser

    whole, parts = torch.zeros(4, 3, 2), torch.zeros(4, 3, 2)
    after(_steps(0), whole, None)
    kept = {key: value.clone() for key, value in after(_steps(0)[:4], parts, None).state.items()}
    after(_steps(0)[4:], parts, kept)
    assert torch.equal(whole, parts)
