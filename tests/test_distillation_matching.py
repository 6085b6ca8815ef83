"""A step's patches and networks are drawn by (seed, step) alone; real patches are of the groups of the synthetic."""

import numpy as np
import pytest
import torch
from torch import Tensor

from curate.config import DistillConfig
from curate.distillation import matching
from curate.distillation.matching import Matchings, Trajectories
from curate.distillation.pool import Pool

OPTIONS = {
    "patches": 12, "size": 24, "arch": "fsrcnn:scale=2,d=8,s=4,m=1", "batch_size": 5, "real_batch": 8,
    "net_every": 4, "net_steps": 3, "experts": 2, "expert_epochs": 2, "ahead": 1, "latest": 1, "inner_steps": 3,
    "expert_batch": 8,
}  # fmt: skip
GROUPS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0])


@pytest.fixture
def pool() -> Pool:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(30, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(24, 24), mode="bicubic").clamp(0, 1)
    return Pool((smooth * 255).to(torch.uint8), torch.arange(30) % 3, torch.arange(30))


@pytest.fixture
def patches() -> Tensor:
    return torch.rand(12, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def made(pool: Pool, objective: str, **options: object) -> matching.Matching:
    config = DistillConfig(**{**OPTIONS, "objective": objective, **options})  # type: ignore[arg-type]
    return matching.build(config, pool, GROUPS, torch.device("cpu"))


@pytest.mark.parametrize("objective", ["dc", "dm", "mtt"])
def test_a_step_can_be_done_again(objective: str, pool: Pool, patches: Tensor) -> None:
    """On a fresh objective, whatever steps came before."""
    first, again = made(pool, objective), made(pool, objective)
    for step in range(3):
        first.ask(step, first.rows(step), patches[first.rows(step)])
    again.restore({name: tensor.clone() for name, tensor in first.tensors().items()})
    rows = first.rows(5)
    assert torch.equal(rows, again.rows(5))
    a, b = first.ask(5, rows, patches[rows]), again.ask(5, rows, patches[rows])
    assert a.value == b.value
    assert torch.equal(a.slope_M3HW, b.slope_M3HW)
    assert a.slope_M3HW.abs().max() > 0


@pytest.mark.parametrize("objective", ["dc", "dm"])
def test_a_batch_is_of_few_groups_and_every_patch_has_its_turn(objective: str, pool: Pool) -> None:
    asked = made(pool, objective)
    seen = set()
    for step in range(60):
        rows = asked.rows(step)
        assert len(rows) == len(set(rows.tolist())) == 5
        groups = GROUPS[rows].unique(return_counts=True)
        assert len(groups[0]) <= 2  # of three to six patches each
        seen |= set(rows.tolist())
    assert seen == set(range(12))


def test_one_group_gives_any_batch(pool: Pool) -> None:
    config = DistillConfig(**{**OPTIONS, "objective": "dm"})  # type: ignore[arg-type]
    one = Pool(pool.patches_P3HW, torch.zeros(30, dtype=torch.int64), pool.rank_P)
    asked = matching.build(config, one, torch.zeros(12, dtype=torch.int64), torch.device("cpu"))
    assert {tuple(asked.rows(step).tolist()) for step in range(20)} != {tuple(asked.rows(0).tolist())}


def test_networks_stay_for_some_steps(pool: Pool) -> None:
    asked = made(pool, "dc")
    assert isinstance(asked, Matchings)
    nets = [{name: tensor.clone() for name, tensor in asked._net(step).items()} for step in (0, 3, 4)]
    name = next(iter(nets[0]))
    assert torch.equal(nets[0][name], nets[1][name])
    assert not torch.equal(nets[0][name], nets[2][name])


@pytest.mark.parametrize("form", ["full", "constant"])
def test_inner_batches_cover_the_patches(form: str, pool: Pool) -> None:
    asked = made(pool, "mtt", form=form, batch_size=4)
    assert isinstance(asked, Trajectories)
    batches = asked._batches(0)
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert sorted(torch.cat(batches).tolist()) == list(range(12))
    assert torch.equal(asked.rows(0), torch.arange(12))


def test_the_rate_of_trajectories_is_learnt_and_stays_above_zero(pool: Pool, patches: Tensor) -> None:
    asked = made(pool, "mtt")
    assert isinstance(asked, Trajectories)
    before = float(asked.log_rate)
    for step in range(4):
        rows = asked.rows(step)
        asked.ask(step, rows, patches[rows])
    assert float(asked.log_rate) != before
    assert np.isfinite(float(asked.log_rate.exp())) and asked.log_rate.exp() > 0


def test_labels_of_a_teacher_are_what_networks_should_give(pool: Pool, patches: Tensor) -> None:
    config = DistillConfig(**{**OPTIONS, "objective": "dc"})  # type: ignore[arg-type]
    plain, own, other = (
        matching.build(config, pool, GROUPS, torch.device("cpu"), label)
        for label in (None, lambda patches: patches, lambda patches: patches * 0)
    )
    rows = plain.rows(0)
    values = [asked.ask(0, rows, patches[rows]).value for asked in (plain, own, other)]
    assert values[0] == values[1] != values[2]
