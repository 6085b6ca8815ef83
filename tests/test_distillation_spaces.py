"""Learnables become patches and gradients come back to them, in every space and whatever the chunk."""

import copy
from collections.abc import Callable

import pytest
import torch
from latents import write_ldm
from torch import Tensor

from curate.distillation import spaces
from curate.distillation.spaces import Latents, Ldm, Pixels, Space
from curate.ldm import LatentModel, load


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> LatentModel:
    return load(write_ldm(tmp_path_factory.mktemp("kl"), "kl", "unet"))


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> LatentModel:
    return load(write_ldm(tmp_path_factory.mktemp("vq"), "vq", "conditional"))


@pytest.fixture
def patches() -> Tensor:
    return torch.rand(5, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2


Make = Callable[[LatentModel], Space]
SPACES: dict[str, Make] = {
    "pixel": lambda model: Pixels(),
    "vae": Latents,
    "ldm, code": lambda model: Ldm(model, sampling=3),
    "ldm, paper": lambda model: Ldm(model, sampling=3, injection="paper"),
}


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest, kl: LatentModel) -> Space:
    return SPACES[request.param](kl)


def test_pixels_are_the_patches(patches: Tensor) -> None:
    assert torch.equal(Pixels().patches(Pixels().start(patches), torch.arange(5)), patches)


def test_latents_are_those_of_the_patches(kl: LatentModel, patches: Tensor) -> None:
    space = Latents(kl)
    learnables = space.start(patches)
    assert torch.equal(learnables["latents"], kl.encode(patches))
    assert torch.equal(space.patches(learnables, torch.arange(5)), kl.decode(learnables["latents"]))


def test_a_patch_depends_on_its_own_row_alone(space: Space, patches: Tensor) -> None:
    learnables = space.start(patches)
    together = space.patches(learnables, torch.arange(5))
    alone = space.patches({name: tensor[3:4] for name, tensor in learnables.items()}, torch.tensor([3]))
    torch.testing.assert_close(alone[0], together[3])


def test_noise_belongs_to_the_row(kl: LatentModel, patches: Tensor) -> None:
    """The same latents as another row are another patch, and as the same row the same one at every step."""
    space, learnables = Ldm(kl, sampling=3), {"latents": kl.encode(patches[:1])}
    first, again, other = (space.patches(learnables, torch.tensor([row])) for row in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("name", SPACES)
def test_gradients_are_those_of_finite_differences(name: str, kl: LatentModel) -> None:
    """In float64, along a random direction of all learnables."""
    torch.manual_seed(0)
    space = SPACES[name](copy.deepcopy(kl).double())
    patches = torch.rand(2, 3, 8, 8, dtype=torch.float64) * 0.6 + 0.2
    learnables, rows = space.start(patches), torch.arange(2)
    slope = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = spaces.backward(space, learnables, rows, slope, chunk=1)
    directions = {key: torch.randn(tensor.shape, dtype=torch.float64) for key, tensor in learnables.items()}

    def value(shift: float) -> float:
        moved = {key: tensor + shift * directions[key] for key, tensor in learnables.items()}
        return float((space.patches(moved, rows) * slope).sum())

    expected = (value(1e-5) - value(-1e-5)) / 2e-5
    along = sum(float((found[key] * directions[key]).sum()) for key in learnables)
    assert along == pytest.approx(expected, rel=1e-5)
    assert abs(expected) > 1e-3


def test_the_chunk_changes_nothing_but_rounding(space: Space, patches: Tensor) -> None:
    learnables, rows = space.start(patches), torch.tensor([4, 0, 2])
    slope = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    drawn = [spaces.drawn(space, learnables, rows, None, chunk) for chunk in (1, 2, 16)]
    gradients = [spaces.backward(space, learnables, rows, slope, chunk) for chunk in (1, 2, 16)]
    for other in drawn[1:]:
        torch.testing.assert_close(other, drawn[0])
    for gradient in gradients[1:]:
        for name, tensor in gradient.items():
            torch.testing.assert_close(tensor, gradients[0][name], rtol=1e-3, atol=1e-3)


def test_memory_that_does_not_suffice_halves_the_chunk(patches: Tensor) -> None:
    sizes = []

    class Full(Pixels):
        def patches(self, learnables: dict[str, Tensor], rows_B: Tensor) -> Tensor:
            sizes.append(len(rows_B))
            if len(rows_B) > 2:
                raise torch.OutOfMemoryError("too much")
            return super().patches(learnables, rows_B)

    learnables = Full().start(patches)
    slope = torch.ones_like(patches)
    assert torch.equal(spaces.drawn(Full(), learnables, torch.arange(5), None, 5), patches)
    assert sizes == [5, 3, 2, 2, 1]
    found = spaces.backward(Full(), learnables, torch.arange(5), slope, 5)
    assert torch.equal(found["pixels"], slope)


def test_a_residual_is_added_and_what_is_beyond_is_cut_off(patches: Tensor) -> None:
    residual = torch.full((5, 3, 24, 24), 0.5)
    found = spaces.drawn(Pixels(), Pixels().start(patches), torch.tensor([1]), residual, 4)
    assert torch.equal(found, (patches[1:2] + 0.5).clamp(0, 1))


def test_injection_of_the_code_begins_with_the_latents_and_ends_with_the_denoiser(kl: LatentModel) -> None:
    """Two steps: after the first the clean latents are z alone; the last is DDIM's, step by step by hand."""
    latents = torch.randn(1, kl.channels, 4, 4, generator=torch.Generator().manual_seed(0))
    space, schedule = Ldm(kl, sampling=2), kl.schedule
    assert schedule is not None
    first, last = schedule.steps(2)
    state = schedule.noised(latents, space._noise(torch.tensor([7]), latents), first)
    _, noise = kl.predict(state, first)
    clean, _ = kl.predict(schedule.noised(latents, noise, last), last)
    torch.testing.assert_close(space.patches({"latents": latents}, torch.tensor([7])), kl.decode(clean))


def test_injection_of_the_paper_keeps_a_part_of_the_noisy_start(kl: LatentModel) -> None:
    latents = torch.randn(1, kl.channels, 4, 4, generator=torch.Generator().manual_seed(0))
    space, schedule = Ldm(kl, sampling=2, injection="paper"), kl.schedule
    assert schedule is not None
    first, last = schedule.steps(2)
    start = schedule.noised(latents, space._noise(torch.tensor([7]), latents), first)
    clean, noise = kl.predict(start, first)
    state = 0.5 * schedule.noised(clean, noise, last) + 0.5 * start
    clean, _ = kl.predict(state, last)
    torch.testing.assert_close(space.patches({"latents": latents}, torch.tensor([7])), kl.decode(clean))


def test_a_condition_is_learnt_and_guided(conditional: LatentModel, patches: Tensor) -> None:
    """At the null condition guidance changes nothing; away from it, it does, and its gradient arrives."""
    plain, guided = Ldm(conditional, sampling=2), Ldm(conditional, sampling=2, guidance=3.0)
    learnables, rows = plain.start(patches), torch.arange(5)
    assert learnables["condition"].shape == (5, *conditional.condition_shape)
    torch.testing.assert_close(plain.patches(learnables, rows), guided.patches(learnables, rows))
    learnables["condition"] += 1.0
    assert not torch.allclose(plain.patches(learnables, rows), guided.patches(learnables, rows), atol=1e-5)
    found = spaces.backward(guided, learnables, rows, torch.ones_like(patches), 5)
    assert all(tensor.abs().max() > 0 for tensor in found.values())


def test_a_quantised_space_still_has_gradients(conditional: LatentModel, patches: Tensor) -> None:
    space = Latents(conditional)
    learnables = space.start(patches)
    found = spaces.backward(space, learnables, torch.arange(5), torch.ones_like(patches), 5)
    assert found["latents"].abs().max() > 0
