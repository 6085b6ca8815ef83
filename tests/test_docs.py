"""The words: every command that they show runs, every verb and every file of the package is named."""

import re
from pathlib import Path

import pytest
from pages import ROOT, blocks, shell

import curate
from curate import plugins


def test_the_readme_s_commands_run(div2k: Path) -> None:
    (script,) = blocks("README.md", "sh")
    printed = shell(script.replace("--steps 20000", "--steps 2"), div2k)
    assert "2 images added (8 patches" in printed and "4 of 8 patches selected" in printed
    assert "average" in printed and (div2k / "run" / "model.safetensors").exists()


def test_the_readme_s_python_runs(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("README.md", "python")
    assert "192, step=96" in code and "    ..." in code
    monkeypatch.chdir(tmp_path)
    smaller = code.replace("patch=192, step=96", "patch=96, step=48")
    exec(smaller.replace("    ...", "    break"), {})
    assert (tmp_path / "refined.parquet").exists()


def test_the_contributor_s_scorer_works_from_the_current_folder(photo_folder: Path, tmp_path: Path) -> None:
    (code,) = blocks("CONTRIBUTING.md", "python")
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "contrast.py").write_text(code, "utf-8")
    curate.ingest([photo_folder], tmp_path / "store", patch=48, step=48)
    shell("curate score store my_lab.contrast:gain=2 my_lab.contrast", tmp_path)
    answer = curate.Store.open(tmp_path / "store").query(
        'select sum("my_lab.contrast:gain=2.0") / sum("my_lab.contrast") as ratio from scores'
    )
    assert answer["ratio"][0].as_py() == pytest.approx(2.0)


def test_the_plain_loop_trains(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curate.ingest([photo_folder], tmp_path / "store", patch=96, step=48)
    curate.select(tmp_path / "store", "random", keep=1.0).save(tmp_path / "all.parquet")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import plain_pytorch

    manifest = str(tmp_path / "all.parquet")
    assert plain_pytorch.main(manifest, steps=12) < plain_pytorch.main(manifest, steps=1)


def test_the_audit_answers(photo_folder: Path, tmp_path: Path) -> None:
    curate.ingest([photo_folder], tmp_path / "store", patch=48, step=24)
    curate.score(tmp_path / "store", ["sobel"])
    curate.select(tmp_path / "store", "refined").save(tmp_path / "refined.parquet")
    query = (ROOT / "examples" / "audit.sql").read_text("utf-8").replace("scores.srcnn", "scores.sobel")
    rows = curate.Store.open(tmp_path / "store").query(query, {"refined": tmp_path / "refined.parquet"}).to_pylist()
    assert sum(row["percent_of_core_set"] for row in rows) == pytest.approx(100, abs=0.3)
    assert sum(row["chosen"] for row in rows) * 2 == pytest.approx(sum(row["patches"] for row in rows), abs=1)


def test_every_verb_is_in_the_readme_and_has_help() -> None:
    from curate.cli import app

    readme = (ROOT / "README.md").read_text("utf-8")
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        assert f"`curate {name}" in readme or f"`{name}`" in readme, name
        assert command.help or command.callback.__doc__, name


def test_every_file_of_the_package_is_in_the_readme_s_tree() -> None:
    (tree,) = (block for block in blocks("README.md", "") if block.startswith("curate/"))
    modules = {path.name for path in (ROOT / "curate").glob("*.py")} - {"__init__.py"}
    assert modules == set(re.findall(r"\b\w+\.py\b", tree))
    for kind in ("scorers", "strategies", "archs"):
        line = next(line for line in tree.splitlines() if f" {kind}/" in line)
        assert all(name in line for name in plugins.names(kind)), kind  # type: ignore[arg-type]
