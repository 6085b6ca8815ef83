"""A study's file: which manifests it makes for which seeds, and what is wrong with it, before there is a store."""

from collections.abc import Callable
from pathlib import Path

import pytest

from curate.config import DrcConfig, NasConfig, TrainConfig
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
NAS = """
[[nas]]
name = "search"
manifests = ["hard", "few"]
seeds = [3, 8]
options = { steps = 4, features = 4, crop = 30 }
[nas.retrain]
manifest = "hard"
options = { steps = 2, crop = 32 }
"""
DRC = """
[[drc]]
name = "small"
arch = "drn:features=4,blocks=1"
base = "few"
manifests = ["hard", "few"]
seeds = [3, 8]
train = { steps = 2, crop = 48, seed = 5 }
options = { crop = 48, finetune_crop = 48 }
[drc.methods.drc]
[drc.methods.uniform-l1]
numbers = "uniform"
criterion = "l1"
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


def test_each_manifest_is_searched_with_each_seed(load: Callable[[str], Pipeline]) -> None:
    plan = load(STUDY + NAS)
    assert [search.folder for search in plan.searches()] == [
        *("search_hard_3", "search_hard_8", "search_few_3", "search_few_8")
    ]
    for search in plan.searches():
        assert search.config == NasConfig(steps=4, features=4, crop=30, seed=search.seed)
        assert search.retraining == TrainConfig(steps=2, crop=32, seed=search.seed)
    assert labels(plan, "few") == ["few-seed3", "few-seed1", "few-seed8"]  # for trainings and searches
    alone = load(STUDY[: STUDY.index("[[distill]]")] + NAS.partition("[nas.retrain]")[0])
    assert labels(alone, "few") == ["few-seed3", "few-seed8"] and not alone.trainings()
    assert [search.retraining for search in alone.searches()] == [None] * 4
    drawn = NAS.replace('manifests = ["hard", "few"]', 'manifests = ["hard"]').replace(
        'manifest = "hard"', 'manifest = "few"'
    )
    assert labels(load(STUDY[: STUDY.index("[[distill]]")] + drawn), "few") == ["few-seed3", "few-seed8"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('name = "search"', 'name = "../search"', "a search's name should be letters, digits, '-', '_' and '.', and"),
        ('name = "search"', "", "nas.0.name: Field required"),
        ('name = "search"', 'name = "search"\nmethod = "milenas"', "nas.0.method: Extra inputs are not permitted"),
        ('["hard", "few"]', '["hart", "few"]', "search: no manifest 'hart'; there are: dc, dm, few, hard; did you"),
        ('["hard", "few"]', '["hard", "few", "hard"]', "found twice: search_hard_3, search_hard_8"),
        ('["hard", "few"]', "[]", "nas.0.manifests: List should have at least 1 item"),
        ('["hard", "few"]', '["dc", "few"]', None),
        ("[3, 8]", "[]", "nas.0.seeds: List should have at least 1 item"),
        ("[3, 8]", "[3, 3]", "nas: each search should be named once, found twice: search_few_3, search_hard_3"),
        ("[3, 8]", "[-1]", "seed should be 0 or more, found -1"),
        ("steps = 4,", "steps = 4, seed = 1,", "search: seeds are given by seeds = [0, 1, ...], found seed 1 in"),
        ("steps = 4,", "step = 4,", "search: options: no option 'step'; there are: method, "),
        ("steps = 4,", 'steps = 4, method = "bayes",', "search: options: method should be"),
        ("steps = 4,", "steps = 4, scale = 5,", "search: options: scale should be 2, 3 or 4, found 5"),
        ("steps = 4,", "steps = 4, scale = 4,", "search: a crop should be a multiple of 4, and at most the patch's 48"),
        ("crop = 30", "crop = 60", "search: a crop should be a multiple of 2, and at most the patch's 48 px, found 60"),
        ("crop = 30", "crop = 28", "px or more a side: a crop should be 30 px or more, found 28, in LR 14"),
        ('["hard", "few"]', '["hard", "dm"]', "search: a crop should be a multiple of 2, and at most dm's 24 px"),
        ('manifest = "hard"', 'manifest = "hart"', "search: no manifest 'hart'"),
        ('manifest = "hard"', "", "nas.0.retrain.manifest: Field required"),
        ('manifest = "hard"', 'manifest = "hard"\narch = "fsrcnn"', "nas.0.retrain.arch: Extra inputs are not"),
        ('manifest = "hard"', 'manifest = "dm"', "search: retrain: a crop should be a multiple of 2, and at most dm's"),
        ("crop = 32", "crop = 50", "search: retrain: a crop should be a multiple of 2, and at most the patch's 48 px"),
        ("crop = 32", "crop = 28", "search: retrain: dlsr:features=4 takes LR of 15 px or more a side: a crop"),
        ("crop = 32", "croq = 32", "search: retrain.options: no option 'croq'"),
        ("crop = 32", "seed = 3", "search: retrain: seeds are given by seeds = [0, 1, ...], found seed 3 in options"),
        ("crop = 32", 'crop = 32, degrade = "fog"', "search: retrain: no degradation 'fog'"),
        ("steps = 2, crop", "crop", "search: retrain.options: one of steps and epochs should be given, found neither"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_search_is_said(
    old: str, new: str, reason: str | None, load: Callable[[str], Pipeline]
) -> None:
    assert old in NAS
    if reason is None:  # what is right beside it
        assert load(STUDY + NAS.replace(old, new, 1)).searches()
        return
    with pytest.raises(UsageError) as error:
        load(STUDY + NAS.replace(old, new, 1))
    assert reason in str(error.value) and str(error.value).isprintable()


def test_searches_of_two_blocks_are_told_apart(load: Callable[[str], Pipeline]) -> None:
    with pytest.raises(UsageError, match=r"a search's name should be .* and its own, found 'search'"):
        load(STUDY + NAS + NAS)
    assert len(load(STUDY + NAS + NAS.replace('"search"', '"again"')).searches()) == 8
    selects = "".join(f'[[select]]\nname = "{name}"\nstrategy = "random"\n' for name in ("b_c", "c"))
    blocks = [
        NAS.replace('["hard", "few"]', f'["{manifest}"]').replace('"search"', f'"{name}"')
        for name, manifest in (("a", "b_c"), ("a_b", "c"))
    ]
    with pytest.raises(UsageError, match="found twice: a_b_c_3, a_b_c_8"):
        load(STUDY.replace("[[train]]", f"{selects}[[train]]", 1) + "".join(blocks))


def test_each_method_is_fed_with_each_manifest_and_seed(load: Callable[[str], Pipeline]) -> None:
    plan = load(STUDY[: STUDY.index("[[distill]]")] + DRC)
    assert [one.folder for one in plan.compressions()] == [
        f"{method}_{manifest}_{seed}"
        for method in ("unpruned", "drc", "uniform-l1") for manifest in ("hard", "few") for seed in (3, 8)
    ]  # fmt: skip
    for one in plan.compressions():
        own = {"numbers": "uniform", "criterion": "l1"} if one.method != "drc" else {}
        everything = {"channels": "4.8.16.16.16.16"} if one.method == "unpruned" else {}
        assert one.config == DrcConfig(crop=48, finetune_crop=48, seed=one.seed, **own, **everything)
    assert labels(plan, "few") == ["few-seed5", "few-seed3", "few-seed8"]  # of the training, and of each compression
    left = load(STUDY + DRC.replace("blocks=1", "blocks=1,config=2.8.9.16.10.8")).compressions()
    assert left[0].config.channels == "2.8.9.16.10.8"  # of a network that was pruned before


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('name = "small"', 'name = "../small"', "a compression's name should be letters, digits, '-', '_' and '.'"),
        ('name = "small"', "", "drc.0.name: Field required"),
        ('name = "small"', 'name = "small"\nratio = 0.3', "drc.0.ratio: Extra inputs are not permitted"),
        ('base = "few"', 'base = "fewer"', "small: no manifest 'fewer'; there are: dc, dm, few, hard; did you mean"),
        ('["hard", "few"]', '["hart", "few"]', "small: no manifest 'hart'; there are: dc, dm, few, hard; did you"),
        ('["hard", "few"]', '["hard", "few", "hard"]', "found twice: small/drc_hard_3, small/drc_hard_8, small/un"),
        ("[3, 8]", "[3, 3]", "drc: each compression should be named once, found twice: small/drc_few_3, "),
        ("[3, 8]", "[-1]", "seed should be 0 or more, found -1"),
        ("methods.drc]", 'methods."../drc"]', "small: a method's name should be letters, digits, '-', '_'"),
        ("methods.drc]", "methods.unpruned]", "and its own, found 'unpruned'"),
        ('"drn:features=4,blocks=1"', '"dran"', "no 'dran' in curate.archs"),
        ('"drn:features=4,blocks=1"', '"lab.net"', "'lab.net' is code outside curate"),
        ("crop = 48, seed", "crop = 50, seed", "small: train: a crop should be a multiple of 4, and at most the"),
        ("steps = 2", "stepps = 2", "small: train: no option 'stepps'; there are: steps, "),
        ("{ crop = 48", "{ crop = 96", "small: unpruned: a crop should be a multiple of 4, and at most the"),
        ("finetune_crop = 48", "finetune_crop = 46", "a multiple of 4, and at most the patch's 48 px, found 46"),
        ("finetune_crop = 48", "finetune_crop = 96, finetune_steps = 0", None),
        ("finetune_crop = 48", 'finetune_crop = 48, degrade = "fog"', "small: unpruned: no degradation 'fog'"),
        ("{ crop = 48", "{ ratio = 1.0, crop = 48", "small: options: ratio should be above 0 and below 1, found 1.0"),
        ('"l1"', '"l2"', "small: uniform-l1: options: criterion should be 'greedy', 'l1', 'thinet' or 'random', found"),
        ('"l1"', '"l1"\nchannels = "4.8"', "small: uniform-l1: config should have a number for each of the 6 units"),
        ('"l1"', '"l1"\nchannels = "4.8.16.16.16.7"', None),
        ('"l1"', '"l1"\ncrop = 50', "small: uniform-l1: a crop should be a multiple of 4"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_compression_is_said(
    old: str, new: str, reason: str | None, load: Callable[[str], Pipeline]
) -> None:
    assert old in DRC
    if reason is None:  # what is right beside it
        assert load(STUDY + DRC.replace(old, new, 1)).compressions()
        return
    with pytest.raises(UsageError) as error:
        load(STUDY + DRC.replace(old, new, 1))
    assert reason in str(error.value) and str(error.value).isprintable()


def test_a_network_without_units_is_not_compressed(
    load: Callable[[str], Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curate.archs.drn.Drn.prunable", lambda _: ())
    with pytest.raises(UsageError, match="small: drn:features=4,blocks=1 has no maps that curate can prune"):
        load(STUDY + DRC)


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
        ('"fsrcnn:scale=3,d=6,s=3,m=1"]', '"dlsr:scale=3"]', "a crop should be 45 px or more, found 36, in LR 12"),
        ('"dm", arch = "fsrcnn:scale=2,d=6,s=3,m=1"', '"dm", arch = "dlsr"', "dm: dlsr takes LR of 15 px"),
        ("crop = 24 }", "crop = 4, hfen = 0.2 }", "a crop should be 6 px or more for HFEN, found 4"),
        ("crop = 24 }", "crop = 4, hfen = -0.2 }", "hfen should be 0 or more, found -0.2"),
        ("crop = 24 }", "crop = 24, hfen = 0.2 }", None),
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
        UsageError, match=r"study.toml': few: .seed. stands for the seed of a training, a search or a comp"
    ):
        load(STUDY[: STUDY.index("[[distill]]")])


@pytest.mark.usefixtures("tiny_ldm")
def test_the_studies_that_are_shipped_are_valid() -> None:
    studies = [path for path in (ROOT / "pipelines").glob("*.toml") if "[ingest]" in path.read_text("utf-8")]
    networks = {
        study.stem: len({training.arch for training in Pipeline.load(study).trainings()}) for study in sorted(studies)
    }
    searching, compressing = ("nas_proxy", "nas_proxy_small"), ("drc_study", "drc_study_small")
    assert networks == {
        **dict.fromkeys((*searching, *compressing), 0),
        "distill_study": 2, "distill_study_small": 1, "pruning_study": 2, "sobel_vs_loss": 1,
    }  # fmt: skip
    for study in studies:
        plan = Pipeline.load(study)
        for arch in {training.arch for training in plan.trainings()}:
            of_arch = [training for training in plan.trainings() if training.arch == arch]
            assert len({training.config.steps for training in of_arch}) == 1  # equal steps
            assert len({training.seed for training in of_arch}) == 3
        for block in plan.distill:
            assert len(plan.manifests(block.name)) == 3  # the spread is of the draw too
            assert block.like in {chosen.name for chosen in plan.select}  # equal bytes
        assert bool(plan.nas) == (study.stem in searching)
        assert bool(plan.drc) == (study.stem in compressing)
        for block in plan.drc:
            assert len(block.seeds) > 1 and block.manifests[0] == block.base == "full"
            assert {"drc", "uniform-l1"} <= block.methods.keys() and block.training().dual == block.config(None, 0).dual
        for searched in plan.nas:
            assert len(searched.seeds) > 1 and searched.manifests[0] == "full"  # the reference has other seeds
            assert searched.retrain and searched.retrain.manifest == "full"


@pytest.mark.usefixtures("untrained")
def test_the_file_in_the_formats_is_one(load: Callable[[str], Pipeline]) -> None:
    page = (ROOT / "docs/formats.md").read_text("utf-8")
    plan = load(page.partition("```toml\n")[2].partition("```")[0])
    assert labels(plan, "dm-5") == ["dm-5-seed0", "dm-5-seed1", "dm-5-seed2"] and len(plan.trainings()) == 6
    assert len(plan.searches()) == 4 and len(plan.compressions()) == 4 * 4
