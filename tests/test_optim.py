"""SOAP is Algorithm 3 of Vyas et al. (2024), recomputed here in float64, and Adam where there is nothing to rotate."""

import copy
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from curate.config import TrainConfig
from curate.optim import Soap, optimiser

RATE = 0.01
SHAPES = [(), (1,), (7,), (6, 5), (1, 1, 3, 3), (8, 1, 3, 3), (5, 4, 3, 3), (4, 3, 1, 1)]
_Floats = npt.NDArray[np.float64]


def random_gradients(shape: Sequence[int], steps: int, seed: int = 0) -> list[Tensor]:
    """Ever larger ones along other axes, so that the order of the eigenvalues changes."""
    generator = torch.Generator().manual_seed(seed)
    gradients = [torch.randn(shape, generator=generator) for _ in range(steps)]
    turns = [torch.linspace(1, 3, shape[0] if shape else 1), torch.linspace(3, 1, shape[0] if shape else 1)]
    return [g * turns[step % 20 // 10].reshape([-1, *[1] * (g.ndim - 1)][: g.ndim]) for step, g in enumerate(gradients)]


def descend(optimizer: Optimizer, parameter: nn.Parameter, gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """The parameter after each step."""
    weights = []
    for gradient in gradients:
        parameter.grad = gradient if gradient is None else gradient.clone()  # keeps its memory format
        optimizer.step()
        weights.append(parameter.detach().clone())
    return weights


def soap(gradients: Sequence[Tensor], start: float = 0.0, rate: float = RATE) -> list[Tensor]:
    """The weights that SOAP goes through from `start`."""
    parameter = nn.Parameter(torch.full_like(gradients[0], start))
    return descend(Soap([parameter], lr=rate), parameter, gradients)


def assert_same_path(found: Sequence[Tensor], expected: Sequence[Tensor | _Floats]) -> None:
    """To a thousandth of a step, which is what float32 leaves of the eigenvectors."""
    for step, (a, b) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * RATE, err_msg=f"step {step}")


# Against Algorithm 3


def refreshed(gram: _Floats, basis: _Floats) -> tuple[_Floats, npt.NDArray[np.intp]]:
    """Algorithm 4, on columns sorted by their eigenvalue as in the authors' code, and that order."""
    order = np.argsort(-np.diag(basis.T @ gram @ basis))
    return np.linalg.qr(gram @ basis[:, order])[0], order


def matrix_by_hand(gradients: Sequence[Tensor], beta1: float, beta2: float) -> list[_Floats]:
    """The letters of the paper; the first gradient only makes L, R and their eigenvectors."""
    first, *rest = (gradient.double().numpy() for gradient in gradients)
    L, R = first @ first.T, first.T @ first
    Q_L, Q_R = np.linalg.eigh(L)[1][:, ::-1], np.linalg.eigh(R)[1][:, ::-1]
    W = M = V = np.zeros_like(first)
    path = [W]
    for t, G in enumerate(rest, start=1):
        G_rotated = Q_L.T @ G @ Q_R
        M = beta1 * M + (1 - beta1) * G
        M_rotated = Q_L.T @ M @ Q_R
        V = beta2 * V + (1 - beta2) * G_rotated**2
        N_rotated = M_rotated / (1 - beta1**t) / np.sqrt(V / (1 - beta2**t))
        W = W - RATE * Q_L @ N_rotated @ Q_R.T
        path.append(W)
        L = beta2 * L + (1 - beta2) * G @ G.T
        R = beta2 * R + (1 - beta2) * G.T @ G
        if t % 10 == 0:
            (Q_L, rows), (Q_R, columns) = refreshed(L, Q_L), refreshed(R, Q_R)
            V = V[rows][:, columns]
    return path


def array_by_hand(gradients: Sequence[Tensor], axes: Sequence[int]) -> list[_Floats]:
    """An array of axes of these lengths, as a vector in the Kronecker product of its bases; betas 0.95."""
    names = "abc"[: len(axes)]

    def grams(gradient: _Floats) -> list[_Floats]:
        array = gradient.reshape(axes)
        return [np.einsum(f"{names},{names.replace(name, 'z')}->{name}z", array, array) for name in names]

    first, *rest = (gradient.double().numpy() for gradient in gradients)
    averages = grams(first)
    bases = [np.linalg.eigh(gram)[1][:, ::-1] for gram in averages]
    weight = mean = square = np.zeros(first.size)
    path = [weight.reshape(first.shape)]
    for t, gradient in enumerate(rest, start=1):
        basis = reduce(np.kron, bases)
        mean = 0.95 * mean + 0.05 * gradient.ravel()
        square = 0.95 * square + 0.05 * (basis.T @ gradient.ravel()) ** 2
        correction = (1 - 0.95**t) ** 0.5 / (1 - 0.95**t)
        weight = weight - RATE * correction * basis @ (basis.T @ mean / np.sqrt(square))
        path.append(weight.reshape(first.shape))
        averages = [0.95 * average + 0.05 * gram for average, gram in zip(averages, grams(gradient), strict=True)]
        if t % 10 == 0:
            pairs = [refreshed(gram, basis) for gram, basis in zip(averages, bases, strict=True)]
            bases = [basis for basis, _ in pairs]
            square = square.reshape(axes)[np.ix_(*(order for _, order in pairs))].ravel()
    return path


@pytest.mark.parametrize("betas", [(0.95, 0.95), (0.8, 0.9), (0.9, 0.99)])
def test_a_matrix_follows_algorithm_3(betas: tuple[float, float]) -> None:
    gradients = random_gradients((5, 5), 26)
    parameter = nn.Parameter(torch.zeros(5, 5))
    found = descend(Soap([parameter], lr=RATE, betas=betas), parameter, gradients)
    assert_same_path(found, matrix_by_hand(gradients, *betas))


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((4, 3, 2, 2), (4, 3, 4)),
        ((3, 4, 3, 1), (3, 4, 3)),
        ((4, 1, 2, 2), (4, 4)),
        ((3, 3, 1, 1), (3, 3)),
        ((1, 1, 1, 2), (2,)),
        ((2,), (2,)),
    ],
)
def test_a_convolution_is_an_array_of_outputs_inputs_and_kernel_values(
    shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    """And axes of length 1 are none. (Shapes whose first gradient leaves no eigenvector open.)"""
    gradients = random_gradients(shape, 26)
    assert_same_path(soap(gradients), array_by_hand(gradients, axes))


def test_the_first_step_only_measures() -> None:
    for shape in SHAPES:
        assert torch.equal(soap(random_gradients(shape, 1), start=0.3)[0], torch.full(shape, 0.3))


def test_turning_the_problem_turns_the_path() -> None:
    """What Adam does not have: it does not matter in which basis a layer's inputs and outputs are written."""
    gradients = random_gradients((5, 5), 26)
    left, right = (torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(s)))[0] for s in (1, 2))
    turned = soap([left @ gradient @ right for gradient in gradients])
    assert_same_path(turned, [left @ weight @ right for weight in soap(gradients)])


# Against Adam


def adam(gradients: Sequence[Tensor], betas: tuple[float, float] = (0.95, 0.95)) -> list[Tensor]:
    parameter = nn.Parameter(torch.zeros_like(gradients[0]))
    return descend(torch.optim.Adam([parameter], lr=RATE, betas=betas), parameter, gradients)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1, 1), (1025,), (1025, 1), (1, 1, 25, 41)])
def test_without_a_basis_it_is_adam_from_the_second_gradient_on(shape: tuple[int, ...]) -> None:
    """A single weight has nothing to turn, an axis longer than 1024 keeps its own basis."""
    gradients = random_gradients(shape, 26)
    assert_same_path(soap(gradients)[1:], adam(gradients[1:]))


@pytest.mark.parametrize("shape", [(7,), (6, 5), (5, 4, 3, 3)])
def test_until_it_has_seen_a_gradient_it_is_adam(shape: tuple[int, ...]) -> None:
    """A first gradient of zeros leaves the bases as they are, until they are refreshed after step 10."""
    gradients = random_gradients(shape, 21)
    found = soap([torch.zeros(shape), *gradients])
    assert_same_path(found[1:11], adam(gradients)[:10])
    assert (found[-1] - adam(gradients)[-1]).abs().max() > 0.1 * RATE


def test_a_bias_has_the_direction_of_its_first_gradient_as_a_basis() -> None:
    """Where Adam goes along the diagonal: every weight by the rate."""
    gradients = [torch.tensor([4e-3, 1e-3, -1e-3])] * 11
    along = gradients[0] / gradients[0].norm()
    np.testing.assert_allclose(soap(gradients)[-1], -10 * RATE * along, atol=RATE)
    np.testing.assert_allclose(adam(gradients[1:])[-1], -10 * RATE * along.sign(), atol=RATE)


def least_squares(make: Callable[[nn.Parameter], Optimizer]) -> float:
    """The loss after 500 steps on an unknown matrix that is seen through two others, of condition 30 each."""
    generator = torch.Generator().manual_seed(0)

    def conditioned(size: int) -> Tensor:
        left, right = (torch.linalg.qr(torch.randn(size, size, generator=generator))[0] for _ in range(2))
        return left * torch.logspace(0, -1.5, size) @ right

    before, after, target = conditioned(16), conditioned(12), torch.randn(16, 12, generator=generator)
    parameter = nn.Parameter(torch.zeros(16, 12))
    optimizer = make(parameter)
    rate = optimizer.param_groups[0]["lr"]
    for step in range(500):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / 500)
        optimizer.zero_grad()
        loss = (before @ (parameter - target) @ after).square().sum()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def test_it_beats_adam_on_a_badly_conditioned_problem() -> None:
    """Measured: 7e-10 against 9e-5."""
    rates = (0.03, 0.1)
    ours = max(least_squares(lambda p, rate=rate: Soap([p], lr=rate)) for rate in rates)
    theirs = min(
        least_squares(lambda p, rate=rate, betas=betas: torch.optim.Adam([p], lr=rate, betas=betas))
        for rate in rates
        for betas in [(0.9, 0.999), (0.95, 0.95)]
    )
    assert ours < 1e-3 * theirs


# State


@pytest.mark.parametrize("shape", [*SHAPES, (1025, 2)])
def test_the_state_is_contiguous_tensors(shape: tuple[int, ...]) -> None:
    """Of which files without pickle can be made."""
    parameter = nn.Parameter(torch.zeros(shape))
    optimizer = Soap([parameter], lr=RATE)
    for steps in (1, 11):
        descend(optimizer, parameter, random_gradients(shape, steps))
        (state,) = optimizer.state_dict()["state"].values()
        assert all(isinstance(value, Tensor) and value.is_contiguous() for value in state.values())
        assert all(value.isfinite().all() for value in state.values())
    assert state["step"] == 11


def test_the_bases_are_eigenvectors_largest_first() -> None:
    parameter = nn.Parameter(torch.zeros(5, 4, 3, 3))
    optimizer = Soap([parameter], lr=RATE)
    descend(optimizer, parameter, random_gradients((5, 4, 3, 3), 1))
    state = optimizer.state[parameter]
    for axis, length in enumerate((5, 4, 9)):
        gram, basis = state[f"gram{axis}"], state[f"basis{axis}"]
        torch.testing.assert_close(basis.T @ basis, torch.eye(length))
        values = torch.linalg.eigvalsh(gram).flip(0)
        torch.testing.assert_close(basis.T @ gram @ basis, values.diag(), rtol=0, atol=1e-5 * float(values[0]))


@pytest.mark.parametrize("shape", [(), (7,), (6, 5), (5, 4, 3, 3), (1, 4, 3, 3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("steps", [0, 1, 10, 12])
def test_a_state_goes_on_bit_for_bit(shape: tuple[int, ...], memory_format: torch.memory_format, steps: int) -> None:
    def laid_out(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=memory_format) if tensor.ndim == 4 else tensor

    gradients = [laid_out(gradient) for gradient in random_gradients(shape, steps + 15)]
    parameter = nn.Parameter(laid_out(torch.zeros(shape)))
    optimizer = Soap([parameter], lr=RATE)
    descend(optimizer, parameter, gradients[:steps])
    again = nn.Parameter(parameter.detach().clone())
    restored = Soap([again], lr=1.0)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    expected = descend(optimizer, parameter, gradients[steps:])
    for a, b in zip(descend(restored, again, gradients[steps:]), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (7, 5, 3, 5), (16, 1, 9, 9), (1, 6, 5, 5), (6, 4, 1, 1), (1, 1, 3, 3)])
def test_the_memory_format_does_not_change_a_bit(shape: tuple[int, ...]) -> None:
    """Of the parameter, its gradient, or both."""
    gradients = random_gradients(shape, 26)
    expected = soap(gradients)
    for formats in [(torch.channels_last,) * 2, (torch.channels_last, torch.contiguous_format)]:
        for of_weight, of_gradient in (formats, formats[::-1]):
            parameter = nn.Parameter(torch.zeros(shape).contiguous(memory_format=of_weight))
            laid_out = [gradient.contiguous(memory_format=of_gradient) for gradient in gradients]
            found = descend(Soap([parameter], lr=RATE), parameter, laid_out)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            assert parameter.is_contiguous(memory_format=of_weight)


@pytest.mark.parametrize(
    ("shape", "bases"),
    [
        ((), {}),
        ((1, 1, 1, 1), {}),
        ((1025,), {}),
        ((1024,), {"basis0": 1024}),
        ((1025, 3), {"basis1": 3}),
        ((3, 1025), {"basis0": 3}),
        ((2, 3, 33, 33), {"basis0": 2, "basis1": 3}),
        ((1, 5, 3, 3), {"basis0": 5, "basis1": 9}),
    ],
)
def test_long_axes_and_those_of_length_1_keep_no_basis(shape: tuple[int, ...], bases: dict[str, int]) -> None:
    parameter = nn.Parameter(torch.zeros(shape))
    optimizer = Soap([parameter], lr=RATE)
    descend(optimizer, parameter, random_gradients(shape, 3))
    state = optimizer.state[parameter]
    assert {name: len(value) for name, value in state.items() if name.startswith("basis")} == bases
    assert set(state) == {"step", "mean", "square", *bases, *(name.replace("basis", "gram") for name in bases)}
    assert parameter.isfinite().all() and parameter.any()


def test_a_parameter_without_gradient_is_left_alone() -> None:
    trained, frozen = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    optimizer = Soap([frozen, trained], lr=RATE)
    gradients = random_gradients((3, 3), 12)
    path = descend(optimizer, trained, gradients)
    assert torch.equal(frozen, torch.ones(3, 3)) and frozen not in optimizer.state
    assert all(torch.equal(a, b) for a, b in zip(path, soap(gradients, start=1.0), strict=True))
    assert torch.equal(descend(optimizer, trained, [None])[0], path[-1])


# Gradients of all sizes


@pytest.mark.parametrize("shape", SHAPES)
def test_zeros_leave_the_weights_alone(shape: tuple[int, ...]) -> None:
    """All along, and for the first steps, which is how a layer behind one of zeros begins."""
    zeros = [torch.zeros(shape)] * 12
    path = soap([*zeros, *random_gradients(shape, 26)], start=0.3)
    assert all(torch.equal(weight, torch.full(shape, 0.3)) for weight in path[:12])
    assert path[-1].isfinite().all() and (path[-1] - 0.3).abs().max() > RATE


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-4, 1e4, 1e10, 1e15])
def test_gradients_of_any_size_make_steps_of_the_rate(shape: tuple[int, ...], size: float) -> None:
    """Up to `eps`: gradients far below it hardly move a weight."""
    path = torch.stack(soap([size * gradient for gradient in random_gradients(shape, 31)]))
    steps = path.diff(dim=0).square().reshape(30, -1).mean(1).sqrt()
    assert path.isfinite().all()
    assert steps.max() < 2 * RATE
    assert steps.max() > 0.5 * RATE if size >= 1e-4 else steps.max() < 1e-6 * RATE


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e10])
def test_the_same_gradient_again_and_again_stays_finite(shape: tuple[int, ...], size: float) -> None:
    assert all(weight.isfinite().all() for weight in soap([size * random_gradients(shape, 1)[0]] * 31))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [0, 5])
def test_a_gradient_that_is_not_finite_is_seen_in_the_weights(value: float, step: int) -> None:
    """As with the other optimisers, so that training can say so; not in an error of the eigenvectors."""
    gradients = random_gradients((4, 3, 3, 3), 22)
    gradients[step][0] = value
    assert not soap(gradients)[-1].isfinite().any()


# By name


@pytest.mark.parametrize(
    ("options", "kind", "betas"),
    [
        ({}, torch.optim.Adam, (0.9, 0.999)),
        ({"optimizer": "adamw", "weight_decay": 0.1}, torch.optim.AdamW, (0.9, 0.999)),
        ({"optimizer": "adam", "weight_decay": 0.1, "beta2": 0.99}, torch.optim.Adam, (0.9, 0.99)),
        ({"optimizer": "soap"}, Soap, (0.95, 0.95)),
        ({"optimizer": "soap", "beta1": 0.0}, Soap, (0.0, 0.95)),
        ({"optimizer": "soap", "beta1": 0.9, "beta2": 0.99}, Soap, (0.9, 0.99)),
    ],
)
def test_the_config_names_the_optimiser(options: dict, kind: type[Optimizer], betas: tuple[float, float]) -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    made = optimiser([parameter], TrainConfig(steps=1, rate=2e-3, **options))
    assert type(made) is kind
    (group,) = made.param_groups
    assert (group["lr"], group["betas"], group["params"]) == (2e-3, betas, [parameter])
    assert group.get("weight_decay", 0.0) == options.get("weight_decay", 0.0)


@pytest.mark.parametrize(("name", "expected"), [("adam", 1 - 2e-3), ("adamw", 1 - 2e-4)])
def test_weight_decay_is_l2_of_adam_and_decoupled_of_adamw(name: Literal["adam", "adamw"], expected: float) -> None:
    """Without a gradient of the loss: Adam's step has the size of the rate, AdamW's is a share of the weight."""
    parameter = nn.Parameter(torch.ones(2, 2))
    made = optimiser([parameter], TrainConfig(steps=1, rate=2e-3, optimizer=name, weight_decay=0.1))
    (weight,) = descend(made, parameter, [torch.zeros(2, 2)])
    torch.testing.assert_close(weight, torch.full((2, 2), expected))
