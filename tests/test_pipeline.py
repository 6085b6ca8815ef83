"""A study from one file: what is wrong is said before it starts, what is done is not done again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
from conftest import scene
from PIL import Image
from typer.testing import CliRunner

from curate import distillation
from curate import pipeline as module
from curate.checkpoint import Checkpoint
from curate.cli import app
from curate.distillation.writing import packed_bytes
from curate.errors import UsageError
from curate.evaluation import averages, evaluate
from curate.manifest import Manifest
from curate.pipeline import Pipeline, run
from curate.store import Store

STUDY = """
[ingest]
patch = 48
step = 24
[score]
scorers = ["sobel"]
[[select]]
name = "full"
strategy = "random"
keep = 1.0
[[select]]
name = "hard"
strategy = "des"
by = "sobel"
[[train]]
archs = ["fsrcnn:scale=2,d=6,s=3,m=1", "fsrcnn:scale=3,d=6,s=3,m=1"]
seeds = [0, 1]
options = { steps = 2, batch_size = 2, crop = 24 }
[[train]]
archs = ["fsrcnn:scale=4,d=6,s=3,m=1"]
manifests = ["hard"]
options = { steps = 1, batch_size = 2, crop = 24 }
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path / "study.toml"


@pytest.fixture
def bench(tmp_path: Path, write_photos: Callable[..., Path]) -> Path:
    write_photos(tmp_path / "Bench" / "HR", [(60, 72)], 9)
    return tmp_path / "Bench"


def test_what_a_study_tests_on_is_kept_out_of_what_it_trains_on(study: Path, tmp_path: Path) -> None:
    for name in ("photos", "Bench"):
        (tmp_path / name).mkdir()
    for seed in range(4):
        Image.fromarray(scene(150, 180, seed)).convert("RGB").save(tmp_path / "photos" / f"{seed}.png")
    Image.open(tmp_path / "photos" / "2.png").crop((5, 5, 165, 145)).save(tmp_path / "Bench" / "test.png")
    Image.open(tmp_path / "photos" / "3.png").resize((144, 120)).save(tmp_path / "photos" / "copy-of-3.jpg", quality=70)
    study.write_text("[clean]\nduplicates = true\nleaks = true\n" + STUDY[: STUDY.index("[[train]]")])
    run(study, tmp_path / "out", [tmp_path / "photos"], [tmp_path / "Bench"])
    store = Store.open(tmp_path / "out" / "store")
    flagged = store.query("select name from images where status <> 'ok' order by name")["name"].to_pylist()
    assert flagged == ["2.png", "copy-of-3.jpg"]
    chosen = store.query(
        "select distinct name from images join full_ using (image_id) order by name",
        {"full_": tmp_path / "out" / "full.parquet"},
    )
    assert chosen["name"].to_pylist() == ["0.png", "1.png", "3.png"]


def test_every_run_is_in_the_table_and_what_it_says_is_measured(
    study: Path, bench: Path, photo_folder: Path, tmp_path: Path
) -> None:
    table = run(study, tmp_path / "out", [photo_folder], [bench, photo_folder])
    rows = table.to_pylist()
    assert len(rows) == (2 * 2 * 2 + 1) * 2
    assert {row["test"] for row in rows} == {"Bench", "photos"}
    assert {row["patches"] for row in rows if row["manifest"] == "full"} == {rows[0]["patches"]}
    assert pq.read_table(tmp_path / "out" / "result.parquet").equals(table)
    for training in Pipeline.load(study).trainings():
        made = Checkpoint.load(tmp_path / "out" / "runs" / training.folder)
        assert made.recipe["config"]["seed"] == training.seed
        (row,) = (
            row
            for row in rows
            if (row["arch"], row["manifest"], row["seed"], row["test"])
            == (training.arch, training.manifest, training.seed, "Bench")
        )
        assert {"psnr": row["psnr"], "ssim": row["ssim"]} == averages(evaluate(made, bench))
        assert row["patches"] == made.recipe["manifest"]["patches"]
    page = (tmp_path / "out" / "result.md").read_text()
    assert "| hard |" in page and "±" in page and "2 seeds" in page
    picture = ElementTree.parse(tmp_path / "out" / "result.svg").getroot()
    assert len(picture.findall("{*}circle")) == len(rows)


def test_the_same_study_again_does_nothing_again(
    study: Path, bench: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(study, tmp_path / "out", [photo_folder], [bench])
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("done already")

    monkeypatch.setattr("curate.measurement.evaluate", never)
    monkeypatch.setattr("curate.training._fit", never)
    assert run(study, tmp_path / "out", [photo_folder], [bench]).equals(first)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_killed_study_goes_on(
    study: Path, bench: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(study, tmp_path / "whole", [photo_folder], [bench])
    real, calls = module.train, iter(range(4))

    def dying(*arguments: Any, **options: Any) -> Checkpoint:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(module, "train", dying)
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path / "out", [photo_folder], [bench])
    monkeypatch.setattr(module, "train", real)
    assert run(study, tmp_path / "out", [photo_folder], [bench]).equals(whole)


def test_a_measurement_is_of_the_weights_that_are_there(
    study: Path, bench: Path, photo_folder: Path, tmp_path: Path
) -> None:
    first = run(study, tmp_path / "out", [photo_folder], [bench])
    (record, *_) = sorted((tmp_path / "out" / "runs").rglob("Bench.json"))
    record.write_text(json.dumps({"weights": "of another network", "psnr": 99.0, "ssim": 1.0}))
    assert run(study, tmp_path / "out", [photo_folder], [bench]).equals(first)


def test_the_command(study: Path, bench: Path, photo_folder: Path, tmp_path: Path) -> None:
    command = ["run", str(study), str(tmp_path / "out"), str(photo_folder), "--test", str(bench / "HR")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "| trained on | patches |" in done.stdout and "Bench" in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"sobel"]', '"sobol"]', "no 'sobol' in curate.scorers"),
        ('"des"', '"best"', "no 'best' in curate.strategies"),
        ('by = "sobel"', 'by = "srcnn"', "hard: by should be one of sobel, found srcnn"),
        ('by = "sobel"', "", "hard: by should be one of sobel, found None"),
        ('name = "hard"', 'name = "full"', "and its own, found 'full'"),
        ('name = "hard"', 'name = "../hard"', "letters, digits, '-', '_' and '.', and its own, found '../hard'"),
        ('by = "sobel"', 'by = "sobel"\nwhere = "sobol > 1"', "hard: SQL: Binder Error"),
        ('by = "sobel"', 'by = "sobel"\nwhere = "name like \'a"', "hard: SQL: "),
        ('by = "sobel"', 'by = "sobel"\nkeep = 1.5', "hard: keep should be above 0 and at most 1, found 1.5"),
        ('"des"', '"ensemble:by=sobel+entropy"', "hard: the strategy needs 'entropy'; the store has: height, "),
        ('"des"', '"kcenter"', "hard: the strategy needs 'embedding'"),
        ('"sobel"]', '"sobel", "loss:checkpoint=nowhere.pth"]', "nowhere.pth"),
        ('"sobel"]', '"sobel", "embedding"]', None),
        ('by = "sobel"', 'by = "sobel"\nwhere = "width > 5 and image_id not in (select image_id from leaks)"', None),
        ('["hard"]', '["hart"]', "no manifest 'hart'; there are: full, hard"),
        ("fsrcnn:scale=4", "fsrcn:scale=4", "no 'fsrcn' in curate.archs"),
        (
            "crop = 24 }\n[[train]]",
            "crop = 25 }\n[[train]]",
            "a multiple of 2, and at most the patch's 48 px, found 25",
        ),
        ("crop = 24 }\n[[train]]", "crop = 96 }\n[[train]]", "found 96"),
        ("steps = 2,", 'steps = "2",', "steps should be a valid integer, found '2'"),
        ("steps = 2,", "stepps = 2,", "no option 'stepps'"),
        ("patch = 48", "patch = 0", "ingest.patch: Input should be greater than 0"),
        ("patch = 48", "patches = 48", "ingest.patch: Field required"),
        ("[score]", "[[score]]", "score: Input should be"),
        ("[ingest]", "format = 2\n[ingest]", "format 2 is not one that curate "),
        ("[ingest]", "format = 2\nwritten_by = '99.1'\n[ingest]", "update curate to 99.1, which wrote it, or newer"),
        ("[ingest]", "format = 1\n[ingest]", None),
        ("[ingest]", "format = '1'\n[ingest]", "format: Input should be 1"),
        ("[ingest]", "colour = 'red'\n[ingest]", "colour: Extra inputs are not permitted"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "found twice: full_fsrcnn-scale=2-d=6-s=3-m=1_0"),
        ("[ingest]", "[ingest", "is not a TOML file"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_step(
    old: str, new: str, reason: str | None, study: Path, photo_folder: Path, tmp_path: Path
) -> None:
    assert old in STUDY
    study.write_text(STUDY.replace(old, new, 1))
    if reason is None:  # what is right beside it
        assert Pipeline.load(study).trainings()
        return
    with pytest.raises(UsageError) as error:
        run(study, tmp_path / "out", [photo_folder])
    assert reason in str(error.value) and "study.toml" in str(error.value)
    assert str(error.value).isprintable()
    assert not (tmp_path / "out").exists()


def test_folders_that_are_not_there_are_said_before_the_first_step(
    study: Path, bench: Path, photo_folder: Path, tmp_path: Path
) -> None:
    for photos, tests in (([tmp_path / "nowhere"], []), ([photo_folder], [tmp_path / "nowhere"])):
        with pytest.raises(UsageError, match="nowhere"):
            run(study, tmp_path / "out", photos, tests)
    with pytest.raises(UsageError, match="names of their own"):
        run(study, tmp_path / "out", [photo_folder], [bench, bench / "HR"])
    with pytest.raises(UsageError, match="no pipeline"):
        Pipeline.load(tmp_path / "none.toml")
    assert not (tmp_path / "out").exists()


# --- distillations, and draws of each training's seed -----------------------------------------------------------------

NET = "fsrcnn:scale=2,d=4,s=2,m=1"
TINY = (
    f'size = 24, arch = "{NET}", pool = 48, clusters = 2, batch_size = 4, real_batch = 6, net_every = 1, '
    "net_steps = 2, save_every = 1"
)
DISTILLED = f"""
[ingest]
patch = 36
step = 36
[score]
scorers = ["sobel"]
[[select]]
name = "all"
strategy = "random"
keep = 1.0
[[select]]
name = "few"
strategy = "random:seed={{seed}}"
keep = 0.15
[[distill]]
name = "dm"
from = "all"
like = "few"
options = {{ seed = "{{seed}}", objective = "dm", steps = 3, {TINY} }}
[[distill]]
name = "dc"
from = "all"
share = 0.05
options = {{ objective = "dc", steps = 2, {TINY} }}
[[train]]
archs = ["{NET}"]
manifests = ["few", "dm", "dc"]
seeds = [0, 2]
options = {{ steps = 2, batch_size = 2, crop = 24 }}
"""


@pytest.fixture
def distilled(tmp_path: Path) -> Path:
    (tmp_path / "distilled.toml").write_text(DISTILLED)
    return tmp_path / "distilled.toml"


def test_a_training_takes_the_draw_and_the_distillation_of_its_seed(
    distilled: Path, bench: Path, photo_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    table = run(distilled, out, [photo_folder], [bench])
    assert sorted(path.name for path in out.glob("*.parquet")) == [
        *("all.parquet", "few-seed0.parquet", "few-seed2.parquet", "result.parquet")
    ]
    assert sorted(path.name for path in (out / "distilled").iterdir()) == ["dc", "dm-seed0", "dm-seed2"]
    manifests = {"dc": Manifest.load(out / "distilled/dc/manifest.parquet")}
    for seed in (0, 2):
        manifests[f"few-seed{seed}"] = Manifest.load(out / f"few-seed{seed}.parquet")
        manifests[f"dm-seed{seed}"] = Manifest.load(out / f"distilled/dm-seed{seed}/manifest.parquet")
        assert manifests[f"few-seed{seed}"].recipe.options == {"seed": seed}
        assert manifests[f"dm-seed{seed}"].recipe.options["seed"] == seed
    assert len({manifest.digest() for manifest in manifests.values()}) == 5
    for row in table.to_pylist():
        label = row["manifest"] if row["manifest"] == "dc" else f"{row['manifest']}-seed{row['seed']}"
        used = manifests[label]
        recipe = Checkpoint.load(out / "runs" / f"{row['manifest']}_fsrcnn-scale=2-d=4-s=2-m=1_{row['seed']}").recipe
        assert recipe["manifest"]["digest"] == used.digest() and recipe["config"]["seed"] == row["seed"]
        assert row["origin"] == used.recipe.origin == ("selected" if row["manifest"] == "few" else "distilled")
        assert row["patches"] == len(used) and row["bytes"] == packed_bytes(used, used.store())
    assert pq.read_table(out / "result.parquet").equals(table)
    lines = (out / "result.md").read_text().splitlines()
    assert lines[0] == f"| trained on | patches | bytes | {NET}, Bench |"
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| few", "| dm", "| dc"] and lines[2].count("±") == 1
    few = [row["bytes"] for row in table.to_pylist() if row["manifest"] == "few"]
    assert f" | {round(sum(few) / 2):,} | " in lines[2]  # the mean over the seeds


def test_budgets_are_those_of_the_selects_they_stand_beside(photo_folder: Path, tmp_path: Path) -> None:
    """The same bytes as another manifest's patches, and the same number as a select of the same share keeps."""
    Image.fromarray(scene(150, 180, 1)).convert("RGB").save(photo_folder / "scene.png")
    Image.open(photo_folder / "scene.png").resize((144, 120)).save(photo_folder / "copy.jpg", quality=70)
    text = "[clean]\nduplicates = true\n" + DISTILLED[: DISTILLED.index("[[train]]")].replace("{seed}", "1")
    text = (
        text.replace("steps = 3", "steps = 0").replace("share = 0.05", "share = 0.15").replace('seed = "1"', "seed = 1")
    )
    (tmp_path / "study.toml").write_text(text)
    out = tmp_path / "out"
    run(tmp_path / "study.toml", out, [photo_folder])
    few = Manifest.load(out / "few.parquet")
    assert few.recipe.counts["flagged"] > 10  # a share of them would be 2 patches more
    assert len(Manifest.load(out / "distilled/dc/manifest.parquet")) == len(few)
    dm = Manifest.load(out / "distilled/dm/manifest.parquet")
    asked, taken = packed_bytes(few, few.store()), packed_bytes(dm, dm.store())
    assert dm.recipe.options["bytes"] == asked and 0.75 * asked < taken <= asked
    assert len(dm) > len(few)  # smaller ones


@pytest.mark.slow
def test_a_study_that_was_killed_while_it_distilled_goes_on(
    distilled: Path, bench: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(distilled, tmp_path / "whole", [photo_folder], [bench])
    step, steps = distillation._step, list[int]()

    def counted(live_run: Any, live: Any) -> None:
        if len(steps) == 5:
            steps.append(live.step)
            raise KeyboardInterrupt
        steps.append(live.step)
        step(live_run, live)

    monkeypatch.setattr(distillation, "_step", counted)
    with pytest.raises(KeyboardInterrupt):
        run(distilled, tmp_path / "out", [photo_folder], [bench])
    assert run(distilled, tmp_path / "out", [photo_folder], [bench]).equals(whole)
    assert steps == [0, 1, 2, 0, 1, 2, 2, 0, 1]  # the third step of the second one is begun twice, and nothing else
    for path in (tmp_path / "whole/distilled").rglob("*.parquet"):
        assert (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("done already")

    for name in ("curate.training._fit", "curate.distillation._fit", "curate.pipeline.packed_bytes"):
        monkeypatch.setattr(name, never)
    monkeypatch.setattr("curate.measurement.evaluate", never)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert run(distilled, tmp_path / "out", [photo_folder], [bench]).equals(whole)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_study_without_distillations_has_no_columns_of_theirs(
    study: Path, bench: Path, photo_folder: Path, tmp_path: Path
) -> None:
    table = run(study, tmp_path / "out", [photo_folder], [bench])
    assert table.column_names == ["arch", "manifest", "patches", "seed", "steps", "test", "psnr", "ssim"]
    assert (tmp_path / "out/result.md").read_text().startswith("| trained on | patches | fsrcnn:scale=2")
    assert not (tmp_path / "out/bytes.json").exists() and not (tmp_path / "out/distilled").exists()


@pytest.mark.parametrize(
    "record",
    [
        *(b"", b"\xff", b"[]", b"1", b"[" * 100_000, b'{"webp": "1"}', b'{"webp": "1", "bytes": [5]}'),
        *(b'{"webp": "1", "bytes": {"d": "5"}}', b'{"webp": "1", "bytes": {"d": true}}'),
        b'{"webp": "2", "bytes": {"d": 5}}',
    ],
)
def test_damaged_bytes_and_those_of_another_encoder_are_counted_again(record: bytes, tmp_path: Path) -> None:
    file = tmp_path / "bytes.json"
    assert module._kept_bytes(file, "1") == {}
    file.write_bytes(record)
    assert module._kept_bytes(file, "1") == {}
    file.write_bytes(b'{"webp": "1", "bytes": {"d": 5}}')
    assert module._kept_bytes(file, "1") == {"d": 5}
