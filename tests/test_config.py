"""Options of training have one name everywhere; what is given wins over a recipe; what cannot be is one clear line."""

import json
import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from curate import cli, plugins
from curate.config import Option, TrainConfig, options_of, plan
from curate.errors import UsageError

RECIPES = sorted((Path(__file__).parents[1] / "pipelines").glob("*_x[234].toml"))
OPTIONS = options_of(TrainConfig)
STEPPED = 'arch = "fsrcnn"\nsteps = 9\n'


def refusal(recipe: str | Path | None, arch: str | None = None, **options: Any) -> str:
    """The line with which a plan is refused."""
    with pytest.raises(UsageError) as error:
        plan(recipe, arch, options)
    assert str(error.value).isprintable()
    return str(error.value)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """A recipe, for the test to write."""
    return tmp_path / "mine.toml"


def train_command() -> Any:
    command: Any = typer.main.get_command(cli.app)
    return command.commands["train"]


# The recipes that come with curate


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_a_network_and_fits_it(recipe: Path) -> None:
    spec, config = plan(recipe, None, {})
    arch = plugins.parse("archs", spec)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in arch.build().parameters()) > 0
    assert recipe.stem.endswith(f"_x{arch.scale}")
    assert config.crop % arch.scale == 0 and config.crop >= arch.scale * arch.least
    assert config.steps is not None and all(step < config.steps for step in config.milestones)


def test_every_network_has_a_recipe() -> None:
    named = {plan(recipe, None, {})[0].partition(":")[0] for recipe in RECIPES}
    assert named == set(plugins.names("archs")) - {"slim"}  # which is what is left of another


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_what_a_recipe_s_comments_say_to_add_is_understood(recipe: Path) -> None:
    """Lines that start with an option, such as those for the other scales, whose --init is of the same network."""
    spec, published = plan(recipe, None, {})
    blocks = re.findall(r"(?:^#   --.*\n)+", recipe.read_text("utf-8"), re.MULTILINE)
    assert blocks
    for block in blocks:
        words = shlex.split(block.replace("#   ", ""))
        asked = train_command().make_context("train", ["m.parquet", "-o", "run", *words]).params
        given = {option.name: asked[option.name] for option in OPTIONS if asked[option.name] is not None}
        if "milestones" in given:
            given["milestones"] = cli._numbers(given["milestones"])
        changed, config = plan(recipe, asked["arch"], given)
        arch, before = plugins.parse("archs", changed), plugins.parse("archs", spec)
        assert config.crop % arch.scale == 0
        if asked["init"] is not None:
            assert asdict(arch) == asdict(replace(before, scale=arch.scale))
            alone = len(words) == 2 and arch.scale != 2  # a recipe of another scale needs no more than x2's weights
            assert arch.scale != before.scale or config != published or alone


# A recipe and what is given beside it


def test_what_is_given_wins(toml: Path) -> None:
    toml.write_text('arch = "fsrcnn:scale=3"\nsteps = 9\nrate = 0.5\ncrop = 12\nloss = "mse"\ncompile = true\n')
    assert plan(toml, None, {}) == (
        "fsrcnn:scale=3",
        TrainConfig(steps=9, rate=0.5, crop=12, loss="mse", compile=True),
    )
    changed = plan(toml, "srcnn", {"rate": 0.25, "compile": False, "loss": "l1"})
    assert changed == ("srcnn", TrainConfig(steps=9, rate=0.25, crop=12))
    assert plan(str(toml), None, {})[0] == "fsrcnn:scale=3"


def test_no_recipe_is_needed() -> None:
    assert plan(None, "fsrcnn", {"steps": 9}) == ("fsrcnn", TrainConfig(steps=9))


@pytest.mark.parametrize(("there", "asked"), [("steps = 9", {"epochs": 2.5}), ("epochs = 9", {"steps": 2})])
def test_one_end_replaces_the_other(toml: Path, there: str, asked: dict[str, Any]) -> None:
    toml.write_text(f'arch = "fsrcnn"\n{there}\n')
    assert plan(toml, None, asked)[1] == TrainConfig(**asked)


def test_another_schedule_leaves_the_milestones_of_the_file(toml: Path) -> None:
    toml.write_text(f'{STEPPED}schedule = "multistep"\nmilestones = [2, 5]\n')
    assert plan(toml, None, {})[1].milestones == (2, 5)
    assert plan(toml, None, {"milestones": (3,)})[1].milestones == (3,)
    assert plan(toml, None, {"schedule": "multistep"})[1].milestones == (2, 5)
    assert plan(toml, None, {"schedule": "cosine"})[1] == TrainConfig(steps=9)
    assert "found cosine and (3,)" in refusal(toml, schedule="cosine", milestones=(3,))


def test_whole_numbers_are_numbers(toml: Path) -> None:
    toml.write_text('arch = "fsrcnn"\nepochs = 3\nbeta1 = 0\n')
    config = plan(toml, None, {})[1]
    assert (config.epochs, config.beta1) == (3.0, 0.0) and isinstance(config.epochs, float)


# What is refused, in one line that names the file


WRONG = {
    "an unknown option": (f"{STEPPED}step = 3", "no option 'step'; there are: steps, epochs, batch_size"),
    "an option misspelt": (f"{STEPPED}bach_size = 3", "; did you mean 'batch_size'?"),
    "a table": (f"{STEPPED}[optim]\nrate = 0.1", "no option 'optim'; there are: steps,"),
    "text for a number": ('arch = "fsrcnn"\nsteps = "3"', "steps should be a valid integer, found '3'"),
    "text for a rate": (f'{STEPPED}rate = "1e-3"', "rate should be a valid number, found '1e-3'"),
    "true for a number": ('arch = "fsrcnn"\nsteps = true', "steps should be a valid integer, found True"),
    "true for a rate": (f"{STEPPED}clip = true", "clip should be a valid number, found True"),
    "a share for a number": ('arch = "fsrcnn"\nsteps = 3.0', "steps should be a valid integer, found 3.0"),
    "a number for true": (f"{STEPPED}compile = 1", "compile should be a valid boolean, found 1"),
    "text for true": (f'{STEPPED}compile = "yes"', "compile should be a valid boolean, found 'yes'"),
    "a number for a list": (f"{STEPPED}milestones = 2", "milestones should be a valid tuple, found 2"),
    "a list of texts": (f'{STEPPED}milestones = ["2"]', "milestones should be a valid integer, found '2'"),
    "a day": ('arch = "fsrcnn"\nsteps = 2024-01-01', "steps should be a valid integer, found datetime.date"),
    "an optimiser that is none": (f'{STEPPED}optimizer = "sgd"', "should be 'adam', 'adamw' or 'soap', found 'sgd'"),
    "a control character": (f'{STEPPED}optimizer = "\\u001b[31m"', "found '\\x1b[31m'"),
    "a number for text": (f"{STEPPED}degrade = 3", "degrade should be a valid string, found 3"),
    "no end": ('arch = "fsrcnn"', "one of steps and epochs should be given, found neither"),
    "two ends": (f"{STEPPED}epochs = 2", "one of steps and epochs should be given, found 9 steps and 2.0 epochs"),
    "a value out of range": (f"{STEPPED}crop = 0", "crop should be 1 or more, found 0"),
    "no arch": ("steps = 9", "which network? Name it with --arch, or as arch in a recipe"),
    "an arch that is no text": ("arch = 3\nsteps = 9", "arch should be a spec such as 'swinir:scale=2', found 3"),
    "no TOML": ("arch = fsrcnn", "is not a TOML file: Invalid value (at line 1, column 8)"),
    "no TOML at all": ("steps: 9\nepochs: 2", "is not a TOML file"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_recipe_that_is_wrong(wrong: str, toml: Path) -> None:
    text, expected = WRONG[wrong]
    toml.write_text(text)
    message = refusal(toml)
    assert message.startswith(f"'{toml}'") and expected in message


def test_a_recipe_that_is_no_text(toml: Path) -> None:
    toml.write_bytes(b'arch = "\xff"')
    assert refusal(toml).startswith(f"'{toml}' is not a TOML file")


def test_a_recipe_that_is_not_there(toml: Path) -> None:
    assert refusal(toml) == f"no recipe '{toml}': there is no such file"
    assert refusal(toml.parent) == f"no recipe '{toml.parent}': there is no such file"
    assert refusal("https://somewhere/mine.toml").startswith("a recipe should be a local path")


def test_a_mistake_beside_a_recipe_names_both(toml: Path) -> None:
    toml.write_text(STEPPED)
    assert (
        refusal(toml, rate=2.0, crop=12) == f"'{toml}' with rate, crop: rate should be above 0 and below 1, found 2.0"
    )


def test_a_mistake_without_a_recipe() -> None:
    assert refusal(None, steps=9).startswith("options: which network?")
    assert refusal(None, "fsrcnn", steps=0) == "options: steps should be 1 or more, found 0"


# Limits


LEAST = {"steps": 1, "batch_size": 1, "accumulate": 1, "crop": 1, "warmup": 0, "hfen": 0, "seed": 0}
LEAST |= {"log_every": 1, "validate_every": 1, "save_every": 1}
NAN, INF = float("nan"), float("inf")
FITTING: dict[str, list[Any]] = {
    **{name: [least] for name, least in LEAST.items()},
    "epochs": [1e-9, 1000],
    "rate": [1e-12, 0.999],
    "beta1": [0, 0.999, None],
    "beta2": [0, 0.999, None],
    "ema": [0, 0.9999],
    "hfen": [0, 0.2, None],
    "weight_decay": [0, 10],
    "clip": [0, 1e9],
    "gamma": [1e-9, 1],
}
UNFIT: dict[str, list[Any]] = {
    **{name: [least - 1] for name, least in LEAST.items()},
    "epochs": [0, -1, NAN, INF],
    "rate": [0, -1, 1, NAN, INF],
    "beta1": [-0.1, 1, NAN],
    "beta2": [-0.1, 1, NAN],
    "ema": [-0.1, 1, NAN],
    "hfen": [-0.1, NAN, INF],
    "weight_decay": [-1, NAN, INF],
    "clip": [-1, NAN, INF],
    "gamma": [0, -1, 1.1, NAN],
    "milestones": [(5, 2), (2, 2), (0, 2), (-1,)],
    "optimizer": ["sgd"],
    "schedule": ["linear"],
    "loss": ["huber"],
    "precision": ["fp16"],
}


def config(**options: Any) -> TrainConfig:
    """A config with an end, and with the schedule that milestones need."""
    end = {} if {"steps", "epochs"} & options.keys() else {"steps": 9}
    schedule = {"schedule": "multistep"} if "milestones" in options else {}
    return TrainConfig(**{**end, **schedule, **options})


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FITTING.items() for value in values])
def test_what_fits(name: str, value: Any) -> None:
    assert getattr(config(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in UNFIT.items() for value in values])
def test_what_does_not_fit(name: str, value: Any) -> None:
    """In Python, where nothing has looked at the types."""
    with pytest.raises(UsageError, match=rf"^{name} should be .*found ") as error:
        config(**{name: value})
    assert str(error.value).endswith(str(value))


@pytest.mark.parametrize("options", [{"schedule": "multistep"}, {"milestones": (2, 5), "schedule": "cosine"}])
def test_milestones_go_with_multistep(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="milestones go with schedule multistep"):
        config(**options)


def test_a_batch_is_cut_into_equal_parts() -> None:
    assert config(batch_size=12, accumulate=3).accumulate == 3
    with pytest.raises(UsageError, match="batch_size 12 should be a multiple of accumulate 5"):
        config(batch_size=12, accumulate=5)


# The same names in Python, on the command line and in JSON


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_an_option_has_a_help_text_and_is_on_the_command_line(option: Option) -> None:
    (made,) = [found for found in train_command().params if found.name == option.name]
    assert f"--{option.name.replace('_', '-')}" in made.opts
    assert option.help.endswith(".") and made.default is None
    shown = made.help.removeprefix(option.help)
    assert shown == ("" if option.default in (None, ()) else f" [{option.default}]")


def test_help_shows_every_option() -> None:
    result = CliRunner().invoke(cli.app, ["train", "--help"])
    shown = " ".join(result.output.split())
    assert result.exit_code == 0
    for option in OPTIONS:
        assert f"--{option.name.replace('_', '-')} " in shown and option.help in shown
    assert "Crops a step, over all processes. [16]" in shown and "--compile / --no-compile" in shown


def test_a_recipe_is_the_config_in_json() -> None:
    made = TrainConfig(steps=9, schedule="multistep", milestones=(2, 5), beta2=0.99)
    assert list(made.recipe()) == [option.name for option in OPTIONS]
    assert made.recipe()["milestones"] == [2, 5] and made.recipe()["epochs"] is None
    assert TrainConfig.of(json.loads(json.dumps(made.recipe())), "recipe.json") == made


def test_an_option_of_another_version_is_named() -> None:
    with pytest.raises(UsageError, match=r"^recipe\.json: no option 'momentum'; there are: steps"):
        TrainConfig.of({"steps": 9, "momentum": 0.9}, "recipe.json")


def up_to(end: float, **options: Any) -> st.SearchStrategy[float]:
    return st.floats(0, end, **options)


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    """Any config that fits."""
    whole = st.integers(1, 2**40)
    accumulate = draw(st.integers(1, 64))
    milestones = tuple(sorted(draw(st.sets(whole, max_size=5))))
    schedule = "multistep" if milestones else draw(st.sampled_from(["cosine", "constant"]))
    end = draw(
        st.one_of(
            st.builds(lambda n: {"steps": n}, whole), st.builds(lambda x: {"epochs": x}, up_to(1e6, exclude_min=True))
        )
    )
    drawn = st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("crop", "log_every", "validate_every", "save_every"), whole),
            **dict.fromkeys(("warmup", "seed"), whole.map(lambda n: n - 1)),
            **dict.fromkeys(("beta1", "beta2"), st.none() | up_to(1, exclude_max=True)),
            "hfen": st.none() | up_to(1e300),
            "ema": up_to(1, exclude_max=True),
            "rate": up_to(1, exclude_min=True, exclude_max=True),
            "gamma": up_to(1, exclude_min=True),
            **dict.fromkeys(("weight_decay", "clip"), up_to(1e300)),
            "optimizer": st.sampled_from(["adam", "adamw", "soap"]),
            "loss": st.sampled_from(["l1", "mse", "charbonnier"]),
            "precision": st.sampled_from(["fp32", "bf16"]),
            "compile": st.booleans(),
            "degrade": st.text(max_size=20),
        },
    )
    batch_size = accumulate * draw(st.integers(1, 1000))
    fixed = {"accumulate": accumulate, "batch_size": batch_size, "milestones": milestones, "schedule": schedule}
    options = draw(drawn)
    if options.get("optimizer") == "soap":
        options.pop("weight_decay", None)  # refused with it
    return TrainConfig(**end, **fixed, **options)


def test_soap_has_no_weight_decay() -> None:
    with pytest.raises(UsageError, match=r"weight_decay goes with adam and adamw, found 0\.1 and soap"):
        TrainConfig(steps=1, optimizer="soap", weight_decay=0.1)


@given(configs())
@settings(deadline=None)
def test_any_config_survives_its_recipe(made: TrainConfig) -> None:
    assert TrainConfig.of(made.recipe(), "a test") == made
    assert TrainConfig.of(json.loads(json.dumps(made.recipe(), allow_nan=False)), "a test") == made
