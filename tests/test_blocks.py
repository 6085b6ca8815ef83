"""Blocks of a study's file: what their options are for one seed."""

import pydantic
import pytest

from curate.blocks import Distill, Nas, Select
from curate.config import NasConfig, TrainConfig
from curate.errors import UsageError

OPTIONS = {"steps": 4, "features": 4}


def test_the_seed_is_filled_in() -> None:
    assert Select(name="few", strategy="random:seed={seed}").strategy_for(7) == "random:seed=7"
    block = Distill.model_validate(
        {"name": "dm", "from": "few", "options": {"seed": "{seed}", "teacher": "runs/{seed}", "objective": "dc"}}
    )
    config = block.config(7, patches=9)
    assert (config.seed, config.teacher, config.patches) == (7, "runs/7", 9)


def test_a_search_and_what_follows_have_its_seed() -> None:
    alone = Nas(name="search", manifests=["full", "few"], options=OPTIONS)
    assert alone.config(7) == NasConfig(steps=4, features=4, seed=7)
    assert alone.retraining(7) is None and alone.needs == ("full", "few") and alone.seeds == [0]
    both = Nas.model_validate({**alone.model_dump(), "retrain": {"manifest": "all", "options": {"steps": 2}}})
    assert both.retraining(7) == TrainConfig(steps=2, seed=7) and both.needs == ("full", "few", "all")


def test_what_does_not_fit_is_said_of_its_block() -> None:
    with pytest.raises(UsageError, match=r"^search: options: no option 'step'"):
        Nas(name="search", manifests=["full"], options={"step": 4}).config(0)
    with pytest.raises(UsageError, match=r"^search: seeds are given by seeds = .*, found seed 3 in options$"):
        Nas(name="search", manifests=["full"], options={"seed": 3}).config(0)
    for wrong in ({"manifests": []}, {"seeds": []}, {"colour": "red"}):
        with pytest.raises(pydantic.ValidationError):
            Nas.model_validate({"name": "search", "manifests": ["full"], **wrong})
