"""The super-net: two forms of one function, which with one choice a place is the discrete network."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from curate.archs.dlsr import DlsrNet
from curate.genotype import CHOOSING, LAYERS, OPERATIONS
from curate.nas.costs import operation_parameters
from curate.nas.supernet import Architecture, Form, Shares, SuperNet

FORMS: tuple[Form, ...] = ("plain", "fused")
FEATURES = 6
GAIN = 1.3  # of weights, over torch's initial ones
CERTAIN = 2000.0  # before softmax: the shares of what is less are exactly 0


def net(scale: int = 2, features: int = FEATURES, *, connections: bool = True, form: Form = "fused") -> SuperNet:
    """Fresh, but with larger weights, so that cells are seen in the answer, and no attention that a ReLU silences."""
    torch.manual_seed(scale)
    made = SuperNet(scale, features, connections=connections, form=form)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith(("esa.conv_max.bias", "esa.conv3.bias")):
                weight.fill_(10)
            elif weight.ndim > 1:
                weight.mul_(GAIN)
    return made


def architecture(*, connections: bool = True, dtype: torch.dtype = torch.float32) -> Architecture:
    """Not near zero: no share is like another."""
    fresh = Architecture.fresh(connections=connections, seed=1)
    far = {name: (700 * leaf.detach()).to(dtype).requires_grad_() for name, leaf in fresh.tensors().items()}
    return Architecture.of(far)


def image(height: int = 15, width: int = 18, batch: int = 2) -> Tensor:
    return 255 * torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def answered(made: SuperNet, leaves: Architecture, lr_BCHW: Tensor, form: Form) -> tuple[Tensor, dict[str, Tensor]]:
    """The answer, and the gradients of its L1 by name: those of all weights, alpha and betas."""
    made.form = form
    sr_BCHW = made(lr_BCHW, leaves.shares())
    named = {**dict(made.named_parameters()), **leaves.tensors()}
    gradients = torch.autograd.grad(sr_BCHW.abs().mean(), list(named.values()))
    return sr_BCHW.detach(), dict(zip(named, gradients, strict=True))


def apart(found: Tensor, right: Tensor) -> float:
    """The error as a share of what is right."""
    return float((found.double() - right.double()).norm() / right.double().norm())


# --- two forms of one function ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("scale", "connections"), [(2, True), (3, False), (4, True)])
def test_forms_are_the_same_function(scale: int, connections: bool, dtype: torch.dtype, error: float) -> None:
    made = net(scale, connections=connections).to(dtype)
    leaves = architecture(connections=connections, dtype=dtype)
    (plain_BCHW, slow), (fused_BCHW, fast) = (answered(made, leaves, image().to(dtype), form) for form in FORMS)
    assert plain_BCHW.shape == (2, 3, 15 * scale, 18 * scale)
    assert apart(fused_BCHW, plain_BCHW) < error / 100  # another architecture changes it by more than 1e-3
    assert len(slow) == len(list(made.parameters())) + (5 if connections else 1)
    assert {name: apart(fast[name], slow[name]) for name in slow if not apart(fast[name], slow[name]) < error} == {}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("connections", [True, False])
def test_gradients_reach_everything(form: Form, connections: bool) -> None:
    """Each weight and each value of the architecture changes the answer."""
    found = answered(net(connections=connections), architecture(connections=connections), image(), form)[1]
    assert [name for name, gradient in found.items() if not gradient.isfinite().all() or not gradient.any()] == []
    for name in ("alpha", *(f"beta{cell}" for cell in (CHOOSING if connections else ()))):
        assert found[name].all(), name


def test_bfloat16_is_as_good_in_either_form() -> None:
    made, leaves = net(features=8), architecture()
    right_BCHW, right = answered(made, leaves, image(18, 18), "plain")
    errors, of_alpha = {}, {}
    for form in FORMS:
        with torch.autocast("cpu", torch.bfloat16):
            sr_BCHW, found = answered(made, leaves, image(18, 18), form)
        assert sr_BCHW.dtype == torch.bfloat16
        assert found["alpha"].dtype == torch.float32
        errors[form], of_alpha[form] = apart(sr_BCHW, right_BCHW), apart(found["alpha"], right["alpha"])
    assert 0 < errors["fused"] < min(0.02, 2 * errors["plain"])
    assert 0 < of_alpha["fused"] < 0.05, of_alpha


@contextmanager
def kept() -> Iterator[list[Tensor]]:
    """What is kept for gradients within."""
    tensors: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield tensors


def test_the_fused_form_keeps_less() -> None:
    """Of maps: bytes in storages of their own, weights aside."""
    made, found = net(), {}
    weights = {weight.untyped_storage().data_ptr() for weight in made.parameters()}
    for form in FORMS:
        made.form = form
        with kept() as tensors:
            made(image(30, 30), architecture().shares())
        sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        found[form] = sum(size for place, size in sizes.items() if place not in weights)
    assert found["fused"] < 0.8 * found["plain"], found


# --- the discrete network in it ---------------------------------------------------------------------------------------


def discrete(made: SuperNet, chosen: Architecture, scale: int) -> DlsrNet:
    """The network of the genotype, with the super-net's weights of what is chosen, and with its shares of inputs."""
    genotype, shares, state = chosen.genotype(), chosen.shares(), {}
    wanted = {f"c{layer}_r": str(OPERATIONS.index(name)) for layer, name in enumerate(genotype.operations, start=1)}
    inputs = dict(zip(CHOOSING, genotype.inputs, strict=True))
    for name, tensor in made.state_dict().items():
        first, _, rest = name.partition(".")
        if "_r." in rest:
            layer, number, place = rest.split(".", 2)
            if number == wanted[layer]:
                state[f"{first}.{layer}.op.{place}"] = tensor
        elif name in {f"c{cell}.0.weight" for cell in CHOOSING}:
            cell = int(first[1:])
            columns = tensor.split(FEATURES, dim=1)
            state[name] = torch.cat([columns[n - 1] * shares.betas[cell][n - 1] for n in inputs[cell]], dim=1).detach()
        else:
            state[name] = tensor
    found = DlsrNet(scale, genotype, FEATURES).to(next(made.parameters()).dtype)
    found.load_state_dict(state)
    return found


def certain(operations: list[str], inputs: list[list[int]] | None) -> Architecture:
    """One operation a layer has all the share; the inputs of a cell share alike."""
    alpha_LO = torch.zeros(LAYERS, len(OPERATIONS), dtype=torch.float64)
    for layer, name in enumerate(operations):
        alpha_LO[layer, OPERATIONS.index(name)] = CERTAIN
    betas = {cell: torch.zeros(cell - 1, dtype=torch.float64) for cell in (CHOOSING if inputs else ())}
    for cell, chosen in zip(CHOOSING, inputs or (), strict=False):
        betas[cell][[number - 1 for number in chosen]] = CERTAIN
    return Architecture(alpha_LO, betas)


TRIPLES = [list(OPERATIONS[first : first + 3]) for first in (0, 3, 6)]  # all nine


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("operations", TRIPLES)
@pytest.mark.parametrize(
    "inputs",
    [None, [[1, 2], [2, 3], [2, 4], [4, 5]], [[2], [1], [3], [2]]],
    ids=["chain", "dlsr's", "one's"],
)
def test_one_choice_a_place_is_the_discrete_network(
    operations: list[str], inputs: list[list[int]] | None, form: Form
) -> None:
    made, chosen = net(3, connections=inputs is not None, form=form).double(), certain(operations, inputs)
    assert chosen.shares().alpha_LO.unique().tolist() == [0, 1]
    for cell, share_J in chosen.shares().betas.items():
        number = len((inputs or [])[cell - CHOOSING[0]])
        assert sorted(share_J.tolist()) == [0] * (cell - 1 - number) + [1 / number] * number
    genotype = chosen.genotype()
    assert list(genotype.operations) == operations
    assert all(set(asked) <= set(found) for asked, found in zip(inputs or (), genotype.inputs, strict=False))
    lr_BCHW = image().double()
    with torch.no_grad():
        assert apart(made(lr_BCHW, chosen.shares()), discrete(made, chosen, 3)(lr_BCHW)) < 1e-12


@pytest.mark.parametrize("connections", [True, False])
@pytest.mark.parametrize(("scale", "features"), [(2, 4), (3, 6), (4, 18), (2, 48)])
def test_parameters(scale: int, features: int, connections: bool) -> None:
    half, inner = features // 2, features // 4
    attention = features * inner + inner + inner**2 + inner + 4 * (9 * inner**2 + inner) + inner * features + features
    fixed = 3 * (features + 1) * half + (9 * features + 1) * half + (4 * half + 1) * features
    mixed = LAYERS * sum(operation_parameters(name, features) for name in OPERATIONS)
    joints = sum((cell - 1) * features**2 + features for cell in CHOOSING) if connections else 0
    ends = 28 * features + (6 + 9) * features**2 + 2 * features + (9 * features + 1) * 3 * scale**2
    counted = sum(weight.numel() for weight in SuperNet(scale, features, connections=connections).parameters())
    assert counted == 6 * (attention + fixed + mixed) + joints + ends


def test_form_may_be_changed_and_nothing_stays() -> None:
    """Weights have the same names in either form, and a pass leaves the super-net as it was."""
    made = net(form="plain")
    assert list(made.state_dict()) == list(net(form="fused").state_dict())
    before = made(image(), architecture().shares())
    made.form = "fused"
    made(image(), architecture().shares())
    made.form = "plain"
    assert torch.equal(made(image(), architecture().shares()), before)
    assert all(getattr(module, "mixing", None) is None for module in made.modules())


# --- the architecture -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connections", [True, False])
def test_fresh(connections: bool) -> None:
    fresh, again, other = (Architecture.fresh(connections=connections, seed=seed) for seed in (5, 5, 6))
    names = ["alpha", *(["beta3", "beta4", "beta5", "beta6"] if connections else [])]
    assert list(fresh.tensors()) == names
    assert [tuple(leaf.shape) for leaf in fresh.leaves()] == [(3, 9), (2,), (3,), (4,), (5,)][: len(names)]
    for name, leaf in fresh.tensors().items():
        assert leaf.dtype == torch.float32
        assert leaf.requires_grad and leaf.is_leaf
        assert 0 < leaf.abs().max() < 5e-3  # of a deviation of 1e-3
        assert torch.equal(leaf, again.tensors()[name])
        assert not torch.equal(leaf, other.tensors()[name])
    assert torch.allclose(fresh.shares().alpha_LO, torch.full((3, 9), 1 / 9), atol=1e-3)


def test_fresh_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Architecture.fresh(connections=True, seed=9)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("connections", [True, False])
def test_tensors_there_and_back(connections: bool) -> None:
    first, second = (Architecture.fresh(connections=connections, seed=seed) for seed in (0, 1))
    assert all(a is b for a, b in zip(Architecture.of(first.tensors()).leaves(), first.leaves(), strict=True))
    leaves = second.leaves()
    second.restore(first.tensors())
    assert all(a is b for a, b in zip(second.leaves(), leaves, strict=True))  # what an optimiser holds
    assert all(torch.equal(a, b) for a, b in zip(second.leaves(), first.leaves(), strict=True))
    assert all(leaf.requires_grad for leaf in second.leaves())


def test_shares_sum_to_one() -> None:
    shares = architecture(dtype=torch.float64).shares()
    assert isinstance(shares, Shares)
    for share in (*shares.alpha_LO, *shares.betas.values()):
        assert share.sum().item() == pytest.approx(1, abs=1e-12)
        assert (share > 0).all()


BETAS = {"3": [0.0, 0.0], "4": [1.0, 2.0, 3.0], "5": [5.0, 0.0, 0.0, 6.0], "6": [1.0, 4.0, 4.0, 4.0, 0.0]}


@pytest.mark.parametrize(
    ("betas", "inputs"),
    [
        ({}, ((1, 2), (2, 3), (1, 4), (2, 3))),
        ({"4": [3.0, 1.0, 2.0]}, ((1, 2), (1, 3), (1, 4), (2, 3))),
        ({"4": [7.0] * 3, "5": [7.0] * 4, "6": [7.0] * 5}, ((1, 2), (1, 2), (1, 2), (1, 2))),
        ({"5": [-1.0, -1.0, -1.0, 0.0]}, ((1, 2), (2, 3), (1, 4), (2, 3))),
        ({"6": [0.0, 0.0, 0.0, 1.0, 2.0]}, ((1, 2), (2, 3), (1, 4), (4, 5))),
    ],
)
def test_genotype(betas: dict[str, Any], inputs: tuple[tuple[int, ...], ...]) -> None:
    """The largest of each; of equal ones the earlier; inputs in their order, whichever has more."""
    alpha_LO = torch.zeros(LAYERS, len(OPERATIONS))
    alpha_LO[0, [7, 8]] = 1  # two alike
    alpha_LO[2, 6] = 1e-9
    values = {int(cell): torch.tensor(value_J) for cell, value_J in (BETAS | betas).items()}
    found = Architecture(alpha_LO, values).genotype()
    assert found.operations == ("dil_3x3", "conv_1x1", "sep_7x7")
    assert found.inputs == inputs


def test_genotype_without_connections() -> None:
    assert Architecture.fresh(connections=False, seed=0).genotype().inputs == ((2,), (3,), (4,), (5,))
