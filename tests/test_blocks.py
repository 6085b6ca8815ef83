"""Blocks of a study's file: what their options are for one seed."""

import pydantic
import pytest

from curate.blocks import Distill, Drc, Nas, Select
from curate.config import DrcConfig, NasConfig, TrainConfig
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


DRC = {"name": "small", "arch": "drn", "base": "full", "manifests": ["full", "few"], "train": {"steps": 2, "seed": 5}}
METHODS = {"drc": {}, "no-dual": {"dual": 0.0, "crop": 48}}


def test_a_method_has_the_options_of_all_and_its_own() -> None:
    block = Drc.model_validate({**DRC, "options": {"ratio": 0.5, "crop": 96}, "methods": METHODS})
    assert block.config(None, 3) == block.config("drc", 3) == DrcConfig(ratio=0.5, crop=96, seed=3)
    assert block.config("no-dual", 3) == DrcConfig(ratio=0.5, crop=48, dual=0.0, seed=3)
    assert block.training() == TrainConfig(steps=2, seed=5) and block.needs == ("full", "full", "few")
    assert block.seeds == [0]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"methods": {"drc": {"ratio": 2.0}}}, r"^small: drc: options: ratio should be above 0 and below 1, found 2"),
        ({"methods": {"drc": {"rati": 0.2}}}, r"^small: drc: options: no option 'rati'; there are: ratio, "),
        ({"methods": {"drc": {"seed": 1}}}, r"^small: drc: seeds are given by seeds = .*, found seed 1 in options$"),
        ({"methods": {"drc": {"finetune_steps": 1}}}, r"^small: drc: all methods are finetuned alike: finetune_steps "),
        ({"methods": {"drc": {"optimizer": "soap"}}}, r"^small: drc: all methods are finetuned alike: optimizer "),
        ({"options": {"seed": 1}}, r"^small: drc: seeds are given"),
        ({"train": {"steps": 2, "rate": 2.0}}, r"^small: train: rate should be above 0"),
    ],
)
def test_what_does_not_fit_a_compression_is_said(wrong: dict[str, object], reason: str) -> None:
    block = Drc.model_validate({**DRC, "methods": METHODS, **wrong})
    with pytest.raises(UsageError, match=reason):
        (block.training(), block.config("drc", 0))


@pytest.mark.parametrize("wrong", [{"methods": {}}, {"manifests": []}, {"seeds": []}, {"colour": "red"}])
def test_a_compression_needs_methods_manifests_and_seeds(wrong: dict[str, object]) -> None:
    assert Drc.model_validate({**DRC, "methods": METHODS})
    with pytest.raises(pydantic.ValidationError):
        Drc.model_validate({**DRC, "methods": METHODS, **wrong})
