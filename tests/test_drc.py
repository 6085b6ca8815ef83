"""A compression in stages: the same bytes at once, one by one and stopped anywhere; what does not fit is said."""

import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch

from curate import cli, compressions, drc, latency, macs, stopping, units
from curate import dual as dual_networks
from curate.archs import Arch
from curate.checkpoint import Checkpoint, weights_hash
from curate.config import DrcConfig
from curate.drc.search import candidates
from curate.errors import CurateError, UsageError
from curate.ingestion import ingest
from curate.inspection import info
from curate.manifest import Manifest
from curate.plugins import parse
from curate.repairing import repair
from curate.selection import select
from curate.verification import verify

QUICK: dict[str, Any] = {
    "batch_size": 2, "crop": 24, "patches": 4, "per_pass": 8, "search_steps": 3, "save_every": 1, "log_every": 1,
    "finetune_steps": 2, "finetune_batch_size": 2, "finetune_crop": 24, "finetune_rate": 1e-3,
}  # fmt: skip
TINY = "drn:scale=4,features=4,blocks=1"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the disk, and what a stopped run says of itself is forgotten."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(stopping, "_kept", stopping._kept)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Manifest:
    folder = tmp_path_factory.mktemp("drc")
    ingest([write_photos(folder / "photos", [(48, 60), (60, 48), (36, 72)])], folder / "store", patch=36, step=12)
    return select(folder / "store", "random", keep=1.0).save(folder / "all.parquet")


def made(spec: str, seed: int = 3) -> Checkpoint:
    arch: Arch = parse("archs", spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Checkpoint(arch, arch.build().state_dict(), {})


@dataclass(frozen=True)
class Single(Arch):
    """A network of one layer: no maps within it."""

    scale: int = 1
    colour: ClassVar[Literal["y", "rgb"]] = "rgb"
    peak: ClassVar[float] = 1.0

    def build(self) -> torch.nn.Module:
        return torch.nn.Conv2d(3, 3, 3, padding=1)


def single() -> Checkpoint:
    return Checkpoint(Single(), Single().build().state_dict(), {})


def config(**options: Any) -> DrcConfig:
    return DrcConfig(**{**QUICK, **options})


def files(folder: Path) -> dict[str, bytes]:
    """All that two compressions have alike."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("events.") and path.name != compressions.SECONDS_FILE
    }


@pytest.fixture(scope="module")
def whole(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, drc.DrcReport]:
    """A compression whose three stages have ended; not to be written to."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        folder = tmp_path_factory.mktemp("whole") / "run"
        return folder, drc.compress(made(TINY), manifest, config(), folder)


def test_a_checkpoint_becomes_a_smaller_one(whole: tuple[Path, drc.DrcReport]) -> None:
    folder, report = whole
    full = made(TINY)
    numbers = [int(line) for line in (folder / "channels" / "channels.txt").read_text().split()]
    own = units.left(full.arch)
    assert len(numbers) == len(own) and all(
        number in candidates(unit.width, 0.3) for number, unit in zip(numbers, own, strict=True)
    )
    kept = compressions.read(folder).kept
    assert kept is not None and [len(maps) for maps in kept.kept] == numbers
    for name in ("pruned", "."):
        smaller = Checkpoint.load(folder / name)
        assert smaller.arch == report.arch and [unit.width for unit in units.left(smaller.arch)] == numbers
        assert smaller.module()(torch.rand(1, 3, 12, 12)).shape == (1, 3, 48, 48)
    assert report.path == folder and report.before == full.arch and report.stages == compressions.STAGES
    assert report.parameters == (macs.parameters(full.arch), macs.parameters(report.arch))
    assert report.parameters[1] < report.parameters[0] and report.multiply_adds[1] < report.multiply_adds[0]
    assert report.seconds.keys() == {"channels", "prune", "finetune"} and min(report.seconds.values()) > 0
    recipe = Checkpoint.load(folder / "pruned").recipe
    assert recipe["compressed"]["weights"] == weights_hash(full.state)
    assert recipe["compressed"]["channels"] == ".".join(map(str, numbers)) and recipe["compressed"]["patches"] == 4
    assert recipe["channels_by"]["search_steps"] == 3 and recipe["manifest"]["patches"] > 4
    assert Checkpoint.load(folder).recipe["init"]["weights"] == weights_hash(Checkpoint.load(folder / "pruned").state)
    assert not list(folder.rglob("state.safetensors"))


def test_stages_alone_give_what_they_give_together(
    whole: tuple[Path, drc.DrcReport], manifest: Manifest, tmp_path: Path
) -> None:
    run, stages = tmp_path / "run", ("channels", "prune", "finetune")
    with pytest.raises(UsageError, match=r"has no channels/channels.json: do --stage channels first"):
        drc.compress(made(TINY), manifest, config(), run, stage="prune")
    with pytest.raises(UsageError, match=r"has no pruned/kept.json: do --stage prune first"):
        drc.compress(made(TINY), manifest, config(), run, stage="finetune")
    assert not run.exists()
    for number, stage in enumerate(stages, 1):
        report = drc.compress(made(TINY), manifest, config(), run, stage=stage)
        assert report.stages == stages[:number] and report.arch == whole[1].arch
        assert report.path == (run / "channels" / "channels.txt", run / "pruned", run)[number - 1]
        assert info(run)["kind"] == ("checkpoint" if stage == "finetune" else "unfinished run")
        assert info(run)["compression"]["done"] == list(stages[:number]) and verify(run).whole
    assert files(run) == files(whole[0])


def test_stopped_in_each_stage_it_goes_on_to_the_same_bytes(
    whole: tuple[Path, drc.DrcReport], manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said = tmp_path / "run", list[str]()

    def heard(done: int, total: int, note: str = "") -> None:
        said.append(note.partition(":")[0])

    for stage in ("channels", "prune", "finetune"):
        with monkeypatch.context() as patched:
            patched.setattr(stopping, "caught", lambda name=stage: said[-1:] == [name])
            with pytest.raises(stopping.Stopped):
                drc.compress(made(TINY), manifest, config(), run, progress=heard)
        assert list(run.rglob("state.safetensors")), stage
        found = info(run)
        assert found["kind"] == "unfinished run" and found["to_go_on"] == "give the same 'curate drc' again"
        assert verify(run).whole
    drc.compress(made(TINY), manifest, config(), run, progress=heard)
    assert list(dict.fromkeys(said)) == ["channels", "prune", "finetune"]
    assert files(run) == files(whole[0])


def test_what_has_ended_is_not_done_again_and_another_one_is_refused(
    whole: tuple[Path, drc.DrcReport], manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(whole[0], tmp_path / "run")
    before = files(run)
    with monkeypatch.context() as patched:
        for name in ("search", "greedy", "by_criterion"):
            patched.setattr(drc, name, lambda *_: pytest.fail("done again"))
        again = drc.compress(made(TINY), manifest, config(log_every=2, save_every=7), run)
        assert again == whole[1]._replace(path=run)
    for other, stage, problem in [
        ({"search_steps": 4}, None, r"channels.json' was made with search_steps 3, not 4; name another folder with -o"),
        ({"criterion": "l1"}, "prune", r"kept.json' was made with criterion greedy, not l1; name"),
        ({"finetune_steps": 3}, None, r"holds a model trained with steps 2, not 3"),
        ({"finetune_steps": 0}, None, r"holds another model; name another folder with -o"),
        ({"channels": "4.8.16.16.16.16"}, None, r"channels.json' was made with numbers search, not given; name"),
    ]:
        with pytest.raises(UsageError, match=problem):
            drc.compress(made(TINY), manifest, config(**other), run, stage=stage)
    for stage in ("prune", "finetune"):
        with pytest.raises(UsageError, match=r"run' holds (channels|pruned maps) of weights [0-9a-f]{8}\.\.\., not"):
            drc.compress(made(TINY, seed=4), manifest, config(), run, stage=stage)
    assert files(run) == before


def test_what_was_begun_in_another_way_is_kept(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search or a selection that was stopped is not overwritten by a rule, which takes no time."""
    said: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(stopping, "caught", lambda: bool(said))
        for name, how in (("run", config()), ("pruning", config(channels="2.4.8.8.9.8"))):
            said.clear()
            with pytest.raises(stopping.Stopped):
                drc.compress(made(TINY), manifest, how, tmp_path / name, progress=lambda done, *_: said.append(done))
    before = files(tmp_path)
    with pytest.raises(UsageError, match=r"run/channels' holds state.safetensors of what was begun with other options"):
        drc.compress(made(TINY), manifest, config(numbers="uniform"), tmp_path / "run")
    with pytest.raises(UsageError, match=r"pruning/pruned' holds state.safetensors of what was begun"):
        drc.compress(made(TINY), manifest, config(channels="2.4.8.8.9.8", criterion="l1"), tmp_path / "pruning")
    assert files(tmp_path) == before


def test_without_finetuning_the_model_is_the_pruned_one(manifest: Manifest, tmp_path: Path) -> None:
    few = config(numbers="uniform", criterion="l1", finetune_steps=0)
    report = drc.compress(made(TINY), manifest, few, tmp_path / "run")
    assert report.stages == compressions.STAGES and report.path == tmp_path / "run"
    run, pruned = (Checkpoint.load(place) for place in (tmp_path / "run", tmp_path / "run" / "pruned"))
    assert weights_hash(run.state) == weights_hash(pruned.state) and run.recipe == pruned.recipe
    assert drc.compress(made(TINY), manifest, few, tmp_path / "run").arch == report.arch
    with pytest.raises(UsageError, match=r"holds .* trained with"):
        drc.compress(made(TINY), manifest, config(numbers="uniform", criterion="l1"), tmp_path / "run")


WAYS = [("uniform", "thinet"), ("uniform", "random"), ("darts", "greedy")]


@pytest.mark.parametrize(("numbers", "criterion"), WAYS)
def test_other_methods(numbers: str, criterion: str, manifest: Manifest, tmp_path: Path) -> None:
    few = config(numbers=numbers, criterion=criterion, search_steps=1, finetune_steps=0, per_pass=32)
    report = drc.compress(made(TINY), manifest, few, tmp_path / "run")
    assert report.parameters[1] < report.parameters[0]
    assert [unit.left for unit in compressions.read(tmp_path / "run").channels.units] == [
        unit.width for unit in units.left(report.arch)
    ]


# Of DLSR what a search finds, as text.
NETWORKS = {
    "dlsr": ("dlsr:genotype=conv_3x3+sep_3x3+dil_3x3@12.13.24.35,scale=2,features=8", "l1"),
    "swinir": ("swinir:scale=2,embed=12,groups=1,blocks=1,heads=2", "greedy"),
    "edsr": ("edsr:scale=2,features=16,blocks=1", "greedy"),
    "imdn": ("imdn:scale=2,features=16,modules=1", "l1"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks(name: str, manifest: Manifest, tmp_path: Path) -> None:
    spec, criterion = NETWORKS[name]
    few = config(numbers="uniform", criterion=criterion, per_pass=32, patches=2, crop=32, finetune_steps=0)
    report = drc.compress(made(spec), manifest, few, tmp_path / "run")
    assert report.parameters[1] < report.parameters[0] and report.multiply_adds[1] < report.multiply_adds[0]
    assert Checkpoint.load(tmp_path / "run").arch == report.arch


def test_what_was_made_smaller_can_be_made_smaller_again(manifest: Manifest, tmp_path: Path) -> None:
    few = config(numbers="uniform", criterion="l1", finetune_steps=0)
    first = drc.compress(made("edsr:scale=2,features=16,blocks=1"), manifest, few, tmp_path / "run")
    second = drc.compress(tmp_path / "run", manifest, few, tmp_path / "again")
    assert second.before == first.arch and second.parameters[1] < first.parameters[1]
    assert Checkpoint.load(tmp_path / "again").arch.config == "8.8"
    assert (tmp_path / "again" / "channels" / "channels.txt").read_text() == "8\n8\n"


def test_known_numbers_need_no_search_and_may_lie_in_a_file(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("2\n4\n8\n8\n9\n8\n")
    known = config(channels=str(tmp_path / "c.txt"), criterion="l1", finetune_steps=0)
    report = drc.compress(made(TINY), manifest, known, tmp_path / "run", stage="prune")
    assert report.stages == ("channels", "prune") and report.arch.config == "2.4.8.8.9.8"
    slim = drc.slim(made(TINY), tmp_path / "c.txt")
    assert weights_hash(slim.state) == weights_hash(Checkpoint.load(tmp_path / "run" / "pruned").state)
    text = replace(known, channels="2.4.8.8.9.8")
    assert drc.compress(made(TINY), manifest, text, tmp_path / "run").path == tmp_path / "run"


def test_slim_keeps_the_largest(tmp_path: Path) -> None:
    full = made(TINY)
    name = "down.0.dual_module"
    full.state[f"{name}.1.weight"][:, 2] *= 100
    slim = drc.slim(full, "1.8.16.16.16.16")
    assert torch.equal(slim.state[f"{name}.1.weight"], full.state[f"{name}.1.weight"][:, 2:3])
    assert torch.equal(slim.state[f"{name}.0.0.weight"], full.state[f"{name}.0.0.weight"][2:3])
    report = drc.slimmed(full, "1.8.16.16.16.16", tmp_path / "out")
    assert report.parameters == macs.parameters(slim.arch) and report.dual_parameters == 2 * 9 * (3 * 4 + 4 * 3)
    before = files(tmp_path / "out")
    assert drc.slimmed(full, "1.8.16.16.16.16", tmp_path / "out") == report and files(tmp_path / "out") == before
    with pytest.raises(UsageError, match=r"out' holds another model; name another folder with -o"):
        drc.slimmed(full, "2.8.16.16.16.16", tmp_path / "out")
    with pytest.raises(UsageError, match=r"config should have a number for each of the 6 units, found 2"):
        drc.slim(full, "1.8")
    with pytest.raises(UsageError, match=r"has no prunable units"):
        drc.slim(single(), "1")


def test_it_may_be_at_a_url(whole: tuple[Path, drc.DrcReport], manifest: Manifest, memory: str) -> None:
    """All but TensorBoard's curves."""
    few = config(numbers="uniform", criterion="l1", finetune_steps=1)
    report = drc.compress(made(TINY), manifest, few, f"{memory}/run")
    assert Checkpoint.load(f"{memory}/run").arch == report.arch and report.stages == compressions.STAGES
    assert drc.compress(made(TINY), manifest, few, f"{memory}/run") == report


def test_damage_is_found_and_the_list_is_made_again(whole: tuple[Path, drc.DrcReport], tmp_path: Path) -> None:
    run = shutil.copytree(whole[0], tmp_path / "run")
    assert verify(run).checked[0].files >= 7
    (run / "channels" / "channels.txt").write_text("1\n")
    (run / "pruned" / "recipe.json").unlink()
    assert len(verify(run).findings) == 2
    fixed = repair(run)
    assert len(fixed.rebuilt) == 2 and fixed.left.whole and files(run) == files(whole[0])
    for name in ("pruned/kept.json", "channels/channels.json"):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content.replace(b'"maps": 16', b'"maps": 17', 1))
        assert [finding.path for finding in verify(run).findings] == [str(run / name)]
        with pytest.raises(CurateError, match=r"is damaged"):
            info(run)
        (run / name).write_bytes(content)


# --- what does not fit ------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "a small manifest": (TINY, {"patches": 4000, "batch_size": 8}, r"too few patches for the selection set: .* 4000 "),
    "a small crop": ("swinir:scale=2,embed=8,groups=1,blocks=2,heads=2", {"crop": 1}, r"a crop should be "),
    "a crop that does not divide": (TINY, {"crop": 22}, r"a crop should be a multiple of the scale 4"),
    "a large crop": (TINY, {"crop": 96}, r"does not fit into windows of 36 px"),
    "a large crop to finetune": (TINY, {"finetune_crop": 96}, r"does not fit into windows of 36 px"),
    "few numbers": (TINY, {"channels": "4.4"}, r"config should have a number for each of the 6 units, found 2"),
    "large numbers": (TINY, {"channels": "5.8.16.16.16.16"}, r"number 1, of down.0.dual_module, should be a number"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_said_before_anything_is_written(name: str, manifest: Manifest, tmp_path: Path) -> None:
    spec, options, problem = WRONG[name]
    with pytest.raises(UsageError, match=problem) as error:
        drc.compress(made(spec), manifest, config(**options), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_network_without_units(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no prunable units"):
        drc.compress(single(), manifest, config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_and_dual_networks_of_another_kind(manifest: Manifest, tmp_path: Path) -> None:
    few = config(numbers="uniform", criterion="l1")
    teachers = {
        "edsr:scale=2,features=8,blocks=1": r"should have scale 4: edsr:features=8,blocks=1 has scale 2",
        "fsrcnn:scale=4,d=4,s=2,m=1": r"should have colour rgb: fsrcnn:.* has colour y",
        "imdn:scale=4,features=16,modules=1": r"have different sizes, .*; train with --teacher-by answer",
    }
    for spec, problem in teachers.items():
        with pytest.raises(UsageError, match=problem):
            drc.compress(made(TINY), manifest, few, tmp_path / "run", teacher=made(spec))
    with pytest.raises(UsageError, match=r"teacher_weight goes with a teacher"):
        drc.compress(made(TINY), manifest, replace(few, teacher_weight=2.0), tmp_path / "run")
    other = dual_networks.dual_networks(made("drn:scale=4,features=5,blocks=1").arch).state_dict()
    with pytest.raises(UsageError, match=r"the dual networks are not those of drn:.*features=4"):
        drc.compress(made(TINY), manifest, few, tmp_path / "run", dual=other)
    assert not (tmp_path / "run").exists()


def test_a_place_that_holds_something_else(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    made(TINY).save(tmp_path / "run")
    before = files(tmp_path)
    for name, problem in [("file", r"is a file"), ("run", r"holds model.safetensors, which is of no compression")]:
        with pytest.raises(UsageError, match=problem):
            drc.compress(made(TINY), manifest, config(), tmp_path / name)
    with pytest.raises(UsageError, match=r"is a file"):
        drc.slimmed(made(TINY), "1.8.16.16.16.16", tmp_path / "file")
    assert files(tmp_path) == before


def test_dual_networks_and_a_teacher_of_the_same_scale_are_taken(manifest: Manifest, tmp_path: Path) -> None:
    """Those of the checkpoint's run come along, and lie beside what is made of it."""
    from curate.config import TrainConfig
    from curate.training import train

    arch = made(TINY).arch
    train(arch, manifest, TrainConfig(steps=1, batch_size=2, crop=24, dual=0.1), tmp_path / "full")
    trained = Checkpoint.load(tmp_path / "full")
    duals = dual_networks.load(tmp_path / "full", trained)
    few = config(numbers="uniform", criterion="l1", finetune_steps=1)
    for source in (tmp_path / "full", tmp_path / "full" / "model.safetensors"):
        drc.compress(source, manifest, few, tmp_path / "run", teacher=tmp_path / "full")
    pruned = Checkpoint.load(tmp_path / "run" / "pruned")
    beside = dual_networks.load(tmp_path / "run" / "pruned", pruned)
    assert duals is not None and beside is not None and weights_hash(beside) == weights_hash(duals)
    record = compressions.read(tmp_path / "run").kept
    assert record is not None and record.identity["dual_networks"] == weights_hash(duals)
    assert verify(tmp_path / "run").whole


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_s_name_may_be_left_out(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made(TINY).save(tmp_path / "full")
    few = ["--numbers", "uniform", "--criterion", "l1", "--finetune-steps", "0", "--device", "cpu"]
    monkeypatch.setitem(latency._ANSWER, "cpu", (36, 64))
    for words in (["full"], ["compress", "full"], ["--stage", "prune", "full"]):
        monkeypatch.setattr(sys, "argv", ["curate", "drc", *words, str(manifest.path), *few, "-o", "run", "--quiet"])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capfd.readouterr()
        assert end.value.code in (0, None), said.err
        assert re.fullmatch(
            r"31,527 -> [\d,]+ parameters, 4.71 -> [\d.]+ G multiply-adds for 1280x720, "
            r"[\d.e+]+ -> [\d.e+]+ ms for 64x36 on cpu: run(/pruned)?\n", said.out,
        )  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["curate", "drc", "slim", "full", "--config", "1.8.16.16.16.16", "-o", "slim"])
    with pytest.raises(SystemExit):
        cli.main()
    assert re.fullmatch(
        r"[\d,]+ parameters, [\d,]+ with dual networks, [\d.]+ G multiply-adds for 1280x720: slim\n",
        capfd.readouterr().out,
    )
