"""The objective: every part of a loss by hand, in the network's own colour and range of values."""

from typing import Any

import pytest
import torch
from test_training import Probe, fresh
from torch import Tensor

from curate import degrade
from curate.archs.drn import Drn
from curate.archs.srcnn import Srcnn
from curate.dual import Regression, dual_networks
from curate.loader import Batch
from curate.losses import distance
from curate.metrics import rgb_to_y
from curate.objective import Objective
from curate.resize import downscale

DRN = Drn(features=4, blocks=1)


def batch(scale: int = 4, between: tuple[int, ...] = (4, 2)) -> Batch:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        hr_BCHW = torch.rand(2, 3, 24, 32)
    smaller = tuple(downscale(hr_BCHW, factor) for factor in between)
    weight_B, seed_B = torch.tensor([0.5, 1.5]), torch.tensor([3, 4])
    return Batch(downscale(hr_BCHW, scale), hr_BCHW, weight_B, seed_B, smaller)


def mean_B(images: Tensor) -> Tensor:
    return images.flatten(1).mean(1)


def test_the_factors_that_the_loader_is_asked_for() -> None:
    asked = [Objective(arch).between for arch in (DRN, Drn(scale=8, features=4, blocks=1), Probe(), Srcnn(scale=3))]
    assert asked == [(4, 2), (8, 4, 2), (), ()]


@pytest.mark.parametrize("loss", ["l1", "mse"])
def test_the_loss_of_several_outputs_is_that_of_the_paper(loss: Any) -> None:
    """The sum of all answers' distances, and the weight times the two ways back; each sample by its own weight."""
    given = batch()
    objective = Objective(DRN, loss, dual=0.1)
    net, duals = fresh(DRN), dual_networks(DRN)
    images = objective.images(given)
    answer = Regression(DRN, net, duals)(images.lr_BCHW)

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return mean_B((a - 255 * b).abs() if loss == "l1" else (a - 255 * b) ** 2)

    small, medium = given.between
    sr1, sr2, sr4 = net.scales(255 * given.lr_BCHW)
    primal_B = apart(sr1, small) + apart(sr2, medium) + apart(sr4, given.hr_BCHW)
    dual_B = apart(duals[0](sr2), given.lr_BCHW) + apart(duals[1](sr4), medium)
    parts = objective.parts(answer, images)
    torch.testing.assert_close(parts.primal_B, primal_B)
    torch.testing.assert_close(parts.dual_B, dual_B)
    expected = 0.5 * ((primal_B + 0.1 * dual_B) * torch.tensor([0.5, 1.5])).sum()
    torch.testing.assert_close(objective(answer, images), expected)
    mse = ((sr4 / 255 - given.hr_BCHW) ** 2).mean()
    torch.testing.assert_close(objective.error(answer, images), mse)


@pytest.mark.parametrize("arch", [Srcnn(scale=4, kernel="9-1-5"), Probe(scale=4)], ids=["luma", "rgb"])
def test_one_output_has_one_distance_in_its_own_colour_and_range(arch: Any) -> None:
    given = batch(between=())
    objective = Objective(arch, "charbonnier", hfen=0.3)
    images = objective.images(given)
    lr, hr = (arch.peak * (rgb_to_y(i) if arch.colour == "y" else i) for i in (given.lr_BCHW, given.hr_BCHW))
    assert torch.equal(images.lr_BCHW, lr) and len(images.targets) == 1 and torch.equal(images.targets[0], hr)
    assert len(images.lower) == 1 and torch.equal(images.lower[0], lr)
    answer = Regression(arch, fresh(arch))(images.lr_BCHW)
    parts = objective.parts(answer, images)
    wanted_B = distance(answer.srs[0], hr, "charbonnier", peak=arch.peak, high=0.3)
    assert torch.equal(parts.primal_B, wanted_B) and torch.equal(parts.dual_B, torch.zeros(2))
    assert torch.equal(objective(answer, images), (wanted_B * given.weight_B).mean())


def test_the_last_step_back_leads_to_degraded_lr_and_those_between_to_clean_images() -> None:
    given = batch()
    blur = degrade.parse("blur:sigma=2", 4)
    plain, blurred = (Objective(DRN, dual=0.1, degradation=one).images(given) for one in (None, blur))
    same = Objective(DRN, degradation=degrade.parse("bicubic", 4)).images(given)
    assert torch.equal(same.lr_BCHW, plain.lr_BCHW)  # the loader's own
    assert torch.equal(blurred.lr_BCHW, 255 * blur(given.hr_BCHW, [3, 4]))
    assert not torch.equal(blurred.lr_BCHW, plain.lr_BCHW)
    assert torch.equal(blurred.lower[0], blurred.lr_BCHW)
    assert all(torch.equal(a, b) for a, b in zip(blurred.targets, plain.targets, strict=True))
    assert torch.equal(blurred.lower[1], 255 * given.between[1])
