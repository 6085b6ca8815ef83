"""A study's file: which manifests it makes for which seeds, and what is wrong with it, before there is a store."""

from collections.abc import Callable
from pathlib import Path

import pytest

from curate.errors import CurateError, UsageError
from curate.plan import Made, Pipeline

ROOT = Path(__file__).parents[1]
STUDY = """
[ingest]
patch = 48
step = 24
[score]
scorers = ["sobel"]
[[select]]
name = "hard"
strategy = "des"
by = "sobel"
[[select]]
name = "few"
strategy = "random:seed={seed}"
keep = 0.1
[[distill]]
name = "dm"
from = "hard"
like = "few"
options = { size = 24, objective = "dm", arch = "fsrcnn:scale=2,d=6,s=3,m=1" }
[[distill]]
name = "dc"
from = "hard"
share = 0.05
options = { size = 36, objective = "dc", arch = "fsrcnn:scale=2,d=6,s=3,m=1" }
[[train]]
archs = ["fsrcnn:scale=2,d=6,s=3,m=1"]
seeds = [3, 1]
options = { steps = 2, batch_size = 2, crop = 24 }
[[train]]
archs = ["fsrcnn:scale=3,d=6,s=3,m=1"]
manifests = ["hard", "dc"]
seeds = [7]
options = { steps = 1, batch_size = 2, crop = 36 }
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Pipeline]:
    def load(text: str) -> Pipeline:
        (tmp_path / "study.toml").write_text(text)
        return Pipeline.load(tmp_path / "study.toml")

    return load


def labels(plan: Pipeline, *names: str) -> list[str]:
    return [made.label for name in names for made in plan.manifests(name)]


def test_a_manifest_that_depends_on_the_seed_is_one_for_each_training_seed(load: Callable[[str], Pipeline]) -> None:
    plan = load(STUDY)
    assert labels(plan, "hard", "few", "dc") == ["hard", "few-seed3", "few-seed1", "dc"]
    assert labels(plan, "dm") == ["dm-seed3", "dm-seed1"]  # its budget is that of another draw
    assert plan.manifest("few", 3) == Made("few", 3) and plan.manifest("hard", 3) == Made("hard", None)
    own = load(
        STUDY.replace("share = 0.05\noptions = { size = 36", 'share = 0.05\noptions = { seed = "{seed}", size = 36')
    )
    assert labels(own, "hard", "dc") == ["hard", "dc-seed3", "dc-seed1", "dc-seed7"]
    (block,) = (block for block in own.distill if block.name == "dc")
    assert block.config(7, patches=1).seed == 7
    of_few = load(STUDY.replace('from = "hard"\nlike', 'from = "few"\nlike'))
    assert labels(of_few, "dm") == ["dm-seed3", "dm-seed1"]


def test_what_is_only_distilled_of_is_made_for_the_seeds_of_that(load: Callable[[str], Pipeline]) -> None:
    plan = load(STUDY.replace("seeds = [3, 1]", 'manifests = ["dm"]\nseeds = [3, 1]'))
    assert labels(plan, "few") == ["few-seed3", "few-seed1"]


def test_all_manifests_are_trained_on_unless_some_are_named(load: Callable[[str], Pipeline]) -> None:
    trainings = load(STUDY).trainings()
    assert [(t.manifest, t.seed) for t in trainings if "scale=2" in t.arch] == [
        (name, seed) for name in ("hard", "few", "dm", "dc") for seed in (3, 1)
    ]
    assert [t.folder for t in trainings][2] == "few_fsrcnn-scale=2-d=6-s=3-m=1_3"


def test_a_text_with_the_seed_in_it_stays_a_text(load: Callable[[str], Pipeline]) -> None:
    (block, _) = load(STUDY).distill
    changed = block.model_copy(update={"options": {**block.options, "teacher": "runs/{seed}", "objective": "dc"}})
    assert changed.config(5, bytes=9).teacher == "runs/5"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('from = "hard"', 'from = "hart"', "dm: no select 'hart'; there are: few, hard; did you mean 'hard'?"),
        ('from = "hard"', 'from = "dc"', "dm: no select 'dc'"),
        ('from = "hard"\n', "", "distill.0.from: Field required"),
        ('like = "few"', 'like = "fewer"', "dm: no select 'fewer'"),
        ('like = "few"\n', "", "among the options, like, or share; found nothing"),
        ('like = "few"', 'like = "few"\nshare = 0.1', "found like, share"),
        ("{ size = 24", "{ patches = 4, size = 24", "dm: one budget should be given"),
        ('like = "few"\noptions = {', "options = { patches = 4,", None),
        ('like = "few"\noptions = {', "options = { bytes = 4000,", None),
        ("share = 0.05", "share = 1.5", "dc: share should be above 0 and at most 1, found 1.5"),
        ("share = 0.05", "share = 0", "dc: share should be above 0"),
        ('name = "dm"', 'name = "hard"', "and its own, found 'hard'"),
        ('name = "dm"', 'name = "../dm"', "and its own, found '../dm'"),
        ('"dm"\nfrom = "hard"\nlike = "few"', '"few-seed1"\nfrom = "hard"\nshare = 0.1', "found twice: few-seed1"),
        ("size = 24,", "sizes = 24,", "dm: options: no option 'sizes'"),
        ("size = 24,", "size = 25,", "dm: options: size should be a multiple of 12 px"),
        ("size = 24,", "size = 60,", "dm: size should be at most the patch's 48 px, found 60"),
        ("size = 24,", 'size = 24, seed = "{sed}",', "dm: options: seed should be a valid integer, found '{sed}'"),
        ('objective = "dm"', 'objective = "md"', "dm: options: objective should be"),
        ('objective = "dm"', 'objective = "dm", space = "latent"', "dm: options: space should be"),
        ('objective = "dm"', 'objective = "dm", space = "vae", model = "nowhere/here/there"', "nowhere/here/there"),
        ('objective = "dc"', 'objective = "dc", teacher = "nowhere.pth"', "nowhere.pth"),
        ('"dm", arch = "fsrcnn', '"dm", arch = "fsrcn', "dm: no 'fsrcn' in curate.archs"),
        ('"dm", arch = "fsrcnn:', '"dm", arch = "lab.net:', "'lab.net:scale=2,d=6,s=3,m=1' is code outside curate"),
        ("crop = 24 }", "crop = 36 }", "a crop should be a multiple of 2, and at most dm's 24 px, found 36"),
        ("crop = 36 }", "crop = 48 }", "a multiple of 3, and at most dc's 36 px, found 48"),
        ("random:seed={seed}", "random:seed=x{seed}", "strategy 'random'"),
        ("random:seed={seed}", "random:seed={sed}", "strategy 'random'"),
        ("seeds = [3, 1]", 'manifests = ["hard"]\nseeds = [3, 1]', "few: {seed} stands for the seed of a"),
        ('manifests = ["hard", "dc"]', 'manifests = ["hard", "dv"]', "no manifest 'dv'; there are: dc, dm, few, hard"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(old: str, new: str, reason: str | None, load: Callable[[str], Pipeline]) -> None:
    assert old in STUDY
    if reason is None:  # what is right beside it
        assert load(STUDY.replace(old, new, 1)).trainings()
        return
    with pytest.raises(CurateError) as error:
        load(STUDY.replace(old, new, 1))
    assert reason in str(error.value) and str(error.value).isprintable()


def test_a_seed_that_no_training_gives_is_refused(load: Callable[[str], Pipeline]) -> None:
    with pytest.raises(
        UsageError, match=r"study.toml': few: .seed. stands for the seed of a training or a search, and none"
    ):
        load(STUDY[: STUDY.index("[[distill]]")])


@pytest.mark.usefixtures("tiny_ldm")
def test_the_studies_that_are_shipped_are_valid() -> None:
    studies = [path for path in (ROOT / "pipelines").glob("*.toml") if "[ingest]" in path.read_text("utf-8")]
    networks = {
        study.stem: len({training.arch for training in Pipeline.load(study).trainings()}) for study in sorted(studies)
    }
    assert networks == {"distill_study": 2, "distill_study_small": 1, "pruning_study": 2, "sobel_vs_loss": 1}
    for study in studies:
        plan = Pipeline.load(study)
        for arch in {training.arch for training in plan.trainings()}:
            of_arch = [training for training in plan.trainings() if training.arch == arch]
            assert len({training.config.steps for training in of_arch}) == 1  # equal steps
            assert len({training.seed for training in of_arch}) == 3
        for block in plan.distill:
            assert len(plan.manifests(block.name)) == 3  # the spread is of the draw too
            assert block.like in {chosen.name for chosen in plan.select}  # equal bytes


@pytest.mark.usefixtures("untrained")
def test_the_file_in_the_formats_is_one(load: Callable[[str], Pipeline]) -> None:
    page = (ROOT / "docs/formats.md").read_text("utf-8")
    plan = load(page.partition("```toml\n")[2].partition("```")[0])
    assert labels(plan, "dm-5") == ["dm-5-seed0", "dm-5-seed1", "dm-5-seed2"] and len(plan.trainings()) == 6
