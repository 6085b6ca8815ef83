"""The words: every command that they show runs or exists, every link leads somewhere, every verb and file is named."""

import os
import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import pytest
import typer.main
from conftest import synthetic_photo
from pages import ROOT, all_blocks, blocks, commands, shell
from PIL import Image

import curate
from curate import plugins
from curate.cli import app
from curate.engine import Engine, joined
from curate.genotype import Genotype

PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "schemas/*.md", "benchmarks/*.md", "tests/*.md", "curate/*/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"  # which speaks of what was there then
)
RUN = ("sh", "python", "sql")  # languages of blocks that a test runs
MEASURED = {"benchmarks/RESULTS.md"}  # the commands are those of measurements


# --- the README's commands --------------------------------------------------------------------------------------------


def readme(begins: str) -> str:
    """The README's shell block that begins so."""
    (script,) = (script for script in blocks("README.md", "sh") if script.startswith(begins))
    return script


def cheaper(script: str, replaced: dict[str, str]) -> str:
    """A script that does less work; what is replaced is in it."""
    for word, less in replaced.items():
        assert word in script, word
        script = script.replace(word, less)
    return script


def test_the_readme_s_commands_run(div2k: Path) -> None:
    printed = commands(cheaper(readme("curate ingest DIV2K/"), {"--steps 20000": "--steps 2"}), div2k)
    assert "2 images added (8 patches" in printed and "4 of 8 patches selected" in printed
    assert "average" in printed and (div2k / "run" / "model.safetensors").exists()


def test_the_readme_s_object_stores_work(s3: str, div2k: Path) -> None:
    remote = fsspec.filesystem("s3")
    for bucket in ("photos", "lab"):
        remote.mkdir(bucket)
    remote.put(str(div2k / "DIV2K" / "DIV2K_train_HR"), "s3://photos/DIV2K", recursive=True)
    printed = commands(cheaper(readme("curate ingest s3://"), {"--steps 20000": "--steps 2"}), div2k)
    assert "2 images added (8 patches" in printed and "4 of 8 patches selected" in printed
    assert remote.exists("lab/store/store.json") and remote.exists("lab/run/model.safetensors")


@pytest.fixture
def to_train(tmp_path: Path) -> Path:
    """A folder with what the README's training takes: two manifests, Set5, a recipe, a run at x2; all of it small."""
    for i in range(2):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(synthetic_photo(204, 300, i)).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "Set5").mkdir()
    Image.fromarray(synthetic_photo(60, 72, 3)).save(tmp_path / "Set5" / "baby.png")
    curate.ingest([tmp_path / "photos"], tmp_path / "store", patch=192, step=96)
    for name in ("refined", "half"):
        curate.select(tmp_path / "store", "random", keep=1.0).save(tmp_path / f"{name}.parquet")
    less = {
        '"swinir:scale=2"': '"swinir:scale=2,embed=12,groups=1,blocks=2,heads=2"',
        "steps = 500_000": "steps = 2",
        "batch_size = 32": "batch_size = 4",
        "crop = 96": "crop = 32",
    }
    (tmp_path / "pipelines").mkdir()
    recipe = (ROOT / "pipelines/swinir_x2.toml").read_text("utf-8")
    (tmp_path / "pipelines/swinir_x2.toml").write_text(cheaper(recipe, less), "utf-8")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/curate").symlink_to(Path(sys.executable).parent / "curate")
    commands(
        "curate train half.parquet --arch edsr:scale=2,features=8,blocks=1 --steps 1 --crop 32 -o run-x2", tmp_path
    )
    return tmp_path


def test_the_readme_s_training_trains(to_train: Path) -> None:
    less = {
        "--nproc-per-node 4": "--standalone --nproc-per-node 2",
        "--epochs 100": "--epochs 1 --batch-size 2 --crop 32",
        "edsr:scale=3 --steps 300000": "edsr:scale=3,features=8,blocks=1 --steps 2 --batch-size 2",
    }
    lines = cheaper(readme("curate train refined.parquet"), less).splitlines(keepends=True)
    alone = "".join(line for line in lines if not line.startswith("torchrun "))
    (together,) = set(lines) - set(alone.splitlines(keepends=True))
    printed = commands(alone, to_train)
    assert printed.count(" steps, loss ") == 3 and "best validation" in printed
    shell(together, to_train, OMP_NUM_THREADS="1")
    for run in ("run", "run4", "half", "run-x3", "run/best"):
        assert (to_train / run / "model.safetensors").exists(), run


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def cluster(tmp_path: Path, write_photos: Callable[..., Path]) -> Path:
    """A folder with photographs, and `alone/`: the store, scored by srcnn, that one process makes of them."""
    write_photos(tmp_path / "photos", [(492, 504), (480, 492)])
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/photos").symlink_to(tmp_path / "photos")
    commands("curate ingest photos store\ncurate score store srcnn --device cpu", tmp_path / "alone")
    return tmp_path


def test_the_readme_s_parts_are_the_whole(cluster: Path) -> None:
    """`sbatch` is a program here that prints what it is to wrap, as a shell reads it for each number of the array."""
    (cluster / "bin").mkdir()
    stub = (
        "#!/bin/sh\n"
        'while [ "$1" != --wrap ]; do [ "$1" = --array ] && array=$2; shift; done\n'
        'for i in $(seq "${array%-*}" "${array#*-}"); do SLURM_ARRAY_TASK_ID=$i sh -euc "echo $2"; done\n'
    )
    (cluster / "bin/sbatch").write_text(stub)
    (cluster / "bin/sbatch").chmod(0o755)
    commands("curate select alone/store refined -o refined.parquet", cluster)
    less = {"--array 1-16": "--array 1-2", "_ID/16": "_ID/2", "--array 1-4": "--array 1-2", "_ID/4": "_ID/2"}
    lines = cheaper(readme("curate ingest photos store --engine"), less).splitlines()
    batches, mine = ([line for line in lines if line.startswith(word)] for word in ("sbatch ", "curate pack "))
    path = f"{cluster / 'bin'}{os.pathsep}{os.environ['PATH']}"
    parts = shell("\n".join(batches), cluster, PATH=path).splitlines()
    assert len(parts) == 4 and len({*parts}) == 4
    printed = commands("\n".join([*parts, *mine]), cluster)
    assert printed.count(" images added") == printed.count(" patches of ") - 1 == 2  # ingest and score twice, pack once
    assert tree(cluster / "store") == tree(cluster / "alone/store") and (cluster / "core/manifest.parquet").exists()


@pytest.mark.slow
def test_the_readme_s_ray_makes_the_same_bytes(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs the extra ray: pip install 'curate[ray]'")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    less = {"--workers 16": "--workers 1", "--workers 4 --device cuda": "--workers 1 --device cpu"}
    lines = cheaper(readme("curate ingest photos store --engine"), less).splitlines()
    with joined(Engine("ray", 1)):
        commands("\n".join(line for line in lines if "--engine ray" in line), cluster)
    assert tree(cluster / "store") == tree(cluster / "alone/store")


def test_the_readme_s_python_runs(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("README.md", "python")
    assert "192, step=96" in code and "    ..." in code
    monkeypatch.chdir(tmp_path)
    smaller = code.replace("patch=192, step=96", "patch=96, step=48")
    exec(smaller.replace("    ...", "    break"), {})
    assert (tmp_path / "refined.parquet").exists()


# --- every page -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_its_language_and_what_can_run_is_run(page: str) -> None:
    languages = {block.language for block in all_blocks(page)}
    assert "" not in languages
    if languages & set(RUN) and page not in MEASURED:
        tests = (path.read_text("utf-8") for path in (ROOT / "tests").glob("test_*.py"))
        assert any(f'"{page}"' in test for test in tests), "no test runs it"


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", (ROOT / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: str) -> set[str]:
    """What links within a page may name: its headings as GitHub writes them, a second one of a name with -1."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.*?) *$", prose(page), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.append(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return {name if found[:i].count(name) == 0 else f"{name}-{found[:i].count(name)}" for i, name in enumerate(found)}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"`[^`]*`", "", prose(page))
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"(https?|mailto):", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        is_here = target.exists() and ROOT in [target.resolve(), *target.resolve().parents]
        if not is_here or (anchor and anchor not in anchors(str(target.resolve().relative_to(ROOT)))):
            wrong.append(link)
    assert wrong == []


def shown_commands(page: str) -> list[str]:
    """Every `curate VERB ...` in a page's blocks and between its backticks, one a line of the shell."""
    scripts = [block.text for block in all_blocks(page) if block.language == "sh"]
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]
    lines = [line for script in scripts for line in script.replace("\\\n", " ").splitlines()] + inline
    found = [re.search(r"(?:^|[ /$'])curate (?=[a-z-]).*", line) for line in lines]
    return [match[0].lstrip(" /$'") for match in found if match]


@cache
def program() -> Any:
    """All verbs, as Click has them: made once, for many commands."""
    return typer.main.get_command(app)


def mistakes(command: str) -> list[str]:
    """The verbs and options of a command that there are not."""
    group = program()
    try:
        words = shlex.split(re.sub(r"'$", "", command) if command.count("'") % 2 else command)
    except ValueError:
        return [f"cannot be read: {command}"]
    verb = words[1]
    if verb.startswith("-"):  # an option of curate's own
        asked, given = group, words[1:]
    elif verb in group.commands:
        asked, given = group.commands[verb], words[2:]
    else:
        return [] if verb == "COMMAND" else [f"no verb {verb}: {command}"]
    if given and given[0] in getattr(asked, "commands", {}):  # a verb of a group
        asked, given = asked.commands[given[0]], given[1:]
    elif default := getattr(asked, "default", None):  # its own command, whose name may be left out
        asked = asked.commands[default]
    known = {name for p in asked.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
    given = [word.partition("=")[0] for word in given if re.match(r"--?[a-z]", word)]
    return [f"no option {option}: {command}" for option in given if option not in known]


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_words_exist(page: str) -> None:
    assert [mistake for command in shown_commands(page) for mistake in mistakes(command)] == []


def test_what_does_not_exist_is_noticed() -> None:
    """Or the test before it would find nothing."""
    assert len(shown_commands("README.md")) > 40
    for command in ("curate explain STORE", "curate select s refined --best 3", "curate ingest a b --part 1/2 --lr2=x"):
        assert len(mistakes(command)) == 1


@pytest.mark.parametrize("page", PAGES)
def test_scorers_strategies_and_networks_have_the_options_that_are_named(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`srcnn:scale=3` anywhere on a page is one of some kind; a sum (`blur+noise`) is a degradation, not looked at."""
    monkeypatch.chdir(tmp_path)
    for folder in (".", "RUN", "search"):  # which pages name
        Path(folder).mkdir(exist_ok=True)
        Genotype.parse("dlsr").save(f"{folder}/genotype.json")
    kinds: tuple[plugins.Kind, ...] = ("scorers", "strategies", "archs")
    wrong = []
    for spec in re.findall(r"(?<![\w.])(\w+:\w+=[^\s`'\"|)]+)", (ROOT / page).read_text("utf-8")):
        named = [kind for kind in kinds if spec.partition(":")[0] in plugins.names(kind)]
        if named and "+" not in spec and "{seed}" not in spec:  # a study fills that in
            refused = []
            for kind in named:
                try:
                    plugins.parse(kind, spec.rstrip(".,;"))
                except curate.CurateError as error:
                    refused.append(str(error))
            wrong += refused if len(refused) == len(named) else []
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_make_and_pip_are_asked_for_what_there_is(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    made = re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE)
    assert set(made) <= targets
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert {name for found in re.findall(r"curate\[([a-z,]+)\]", text) for name in found.split(",")} <= extras.keys()
    programs = re.findall(r"(?:^|`)python ((?:benchmarks|docs|pipelines|fuzz)/\S+\.py)", text, re.MULTILINE)
    assert [program for program in programs if not (ROOT / program).exists()] == []


# --- the README's tree, the examples ----------------------------------------------------------------------------------


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
    readme = (ROOT / "README.md").read_text("utf-8")
    grouped = [(f"{group.name} ", group.typer_instance) for group in app.registered_groups]
    for before, command in [(before, c) for before, verbs in [("", app), *grouped] for c in verbs.registered_commands]:
        assert command.callback is not None
        name = before + (command.name or command.callback.__name__)
        assert f"`curate {name}" in readme or f"`{name}`" in readme, name
        assert command.help or command.callback.__doc__, name


def test_every_file_of_the_package_is_in_the_readme_s_tree() -> None:
    (tree,) = (block for block in blocks("README.md", "text") if block.startswith("curate/"))
    modules = {path.name for path in (ROOT / "curate").glob("*.py")} - {"__init__.py"}
    assert modules == set(re.findall(r"\b\w+\.py\b", tree))
    for kind in ("scorers", "strategies", "archs"):
        line = next(line for line in tree.splitlines() if f" {kind}/" in line)
        assert all(name in line for name in plugins.names(kind)), kind  # type: ignore[arg-type]
