"""The demo runs every verb on the sample photographs, and again skips; it touches nobody else's folder."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from curate import cli, demo
from curate.checkpoint import read_recipe
from curate.errors import UsageError
from curate.evaluation import averages, evaluate
from curate.manifest import Manifest
from curate.progress import Progress, silent
from curate.selection import select
from curate.store import Store

VERBS = [
    "ingest",
    "leaks",
    "score",
    "select",
    "select",
    "select",
    "select",
    "sql",
    "train",
    "eval",
    "train",
    "eval",
    "report",
]
RUNS = ("refined-run", "random-run")
MANIFESTS = ("asc", "des", "refined", "random")


@contextmanager
def bar(verb: str, unit: str) -> Iterator[Progress]:
    yield silent


def told(folder: Path, steps: int = 3) -> list[str]:
    """The story, line by line."""
    lines: list[str] = []
    demo.demo(folder, steps=steps, say=lines.append, progress=bar)
    return lines


def commands(lines: list[str]) -> list[list[str]]:
    return [shlex.split(line.removeprefix("$ ")) for line in lines if line.startswith("$ ")]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def samples(tmp_path: Path, write_photos: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small photographs in place of the package's own, which take a minute of SRCNN on a busy machine."""
    write_photos(tmp_path / "samples" / "photos", [(150, 200), (120, 150)])
    write_photos(tmp_path / "samples" / "test", [(60, 50)], seed=5)
    monkeypatch.setattr(demo, "_SAMPLES", tmp_path / "samples")
    return tmp_path / "samples"


def test_it_runs_every_verb_and_again_skips(samples: Path, untrained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    first = told(folder)
    before = content(folder)

    assert [command[:2] for command in commands(first)] == [["curate", verb] for verb in VERBS]
    report = "\n".join(first)
    assert "  2 photographs, 10 patches; 0 were there already" in first
    assert "  0 photographs overlap the one that is held out" in first
    assert "  10 patches of 2 images scored by sobel, srcnn" in first
    assert first.count("  5 of 10 patches") == 4
    store = Store.open(folder / "store")
    assert {found.record.scorer for found in store.score_sets()} == {"sobel", "srcnn"}
    for name in MANIFESTS:
        manifest = Manifest.load(folder / f"{name}.parquet")
        assert (manifest.recipe.strategy, len(manifest)) == (name, 5)
        assert manifest.store().path.samefile(folder / "store")
    for run in RUNS:
        assert read_recipe(folder / run)["training"]["config"]["steps"] == 3
        decibel = averages(evaluate(folder / run, samples / "test"))["psnr"]
        assert f"  {run.removesuffix('-run'):8} {decibel:.2f} dB" in first
    assert "3 steps, on a chosen and on a random half of the patches (held-out photograph, x2)" in report
    assert report.index("Where to look:") > report.rindex(" dB")

    again = told(folder)
    assert content(folder) == before
    assert commands(again) == commands(first)
    assert "  0 photographs, 0 patches; 2 were there already" in again
    assert "  all patches are scored by sobel, srcnn already" in again
    assert again.count("  trained already") == len(RUNS)
    assert first.count("  trained already") == 0
    assert again[-10:] == first[-10:]  # the same figures


@pytest.mark.slow
def test_it_goes_on_where_it_was_cut_off(samples: Path, untrained: Path, tmp_path: Path) -> None:
    class Cut(BaseException):
        pass

    def say(line: str) -> None:
        if line.startswith(f"$ curate {cut_at}"):
            raise Cut

    whole = tmp_path / "whole"
    told(whole, steps=1)
    for cut_at in ("score", "sql", "eval"):
        folder = tmp_path / cut_at
        with pytest.raises(Cut):
            demo.demo(folder, steps=1, say=say, progress=bar)
        told(folder, steps=1)
        for name in (f"{RUNS[0]}/model.safetensors", "refined.parquet"):
            assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_the_commands_that_it_shows_do_what_it_did(
    samples: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run as they are printed, in another folder, they give the same manifests and models."""
    monkeypatch.chdir(tmp_path)
    lines = told(Path("demo"), steps=2)
    made = content(tmp_path / "demo")
    (tmp_path / "demo").rename(tmp_path / "kept")
    for command in commands(lines):
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code, capsys.readouterr().err
    remade = content(tmp_path / "demo")
    same = [name for name in made if "tfevents" not in name]
    assert {name: remade[name] for name in same} == {name: made[name] for name in same}


def test_the_command_line_tells_the_story(
    samples: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["curate", "demo", str(tmp_path / "demo"), "--steps", "1"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    out = capsys.readouterr().out
    assert [line.split()[2] for line in out.splitlines() if line.startswith("$ curate ")] == VERBS
    assert "Where to look:" in out


def test_the_packages_own_samples_are_enough(untrained: Path) -> None:
    """Four photographs to learn from and another to measure on, each larger than the demo's patches."""
    photos = {path.name for path in (demo._SAMPLES / "photos").iterdir()}
    (held_out,) = (demo._SAMPLES / "test").iterdir()
    assert len(photos) == 4
    assert held_out.name not in photos


@pytest.mark.parametrize("name", ["notes.txt", "store/notes.txt"])
def test_a_folder_of_other_things_is_refused_and_untouched(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = content(tmp_path)
    with pytest.raises(UsageError) as error:
        told(tmp_path)
    assert str(error.value).endswith("holds something else; name a new or empty folder")
    assert str(error.value).isprintable()
    assert content(tmp_path) == before


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(UsageError, match="holds something else; name a new or empty folder"):
        told(tmp_path / "demo")
    assert (tmp_path / "demo").read_text() == "mine"


def test_the_question_of_the_demo_counts_every_patch(samples: Path, untrained: Path, tmp_path: Path) -> None:
    told(tmp_path / "demo", steps=1)
    store = Store.open(tmp_path / "demo" / "store")
    refined = select(store, "refined", by="srcnn").save(tmp_path / "refined.parquet")
    assert refined.path is not None
    rows = store.query(demo._QUESTION, {"refined": refined.path}).to_pylist()
    assert {row["name"] for row in rows} == {"000.png", "001.jpg"}
    assert sum(row["patches"] for row in rows) == 10
    assert sum(row["selected"] for row in rows) == len(refined) == 5
    assert [row["loss_e4"] for row in rows] == sorted((row["loss_e4"] for row in rows), reverse=True)
