"""The command line: what each verb prints, and that a mistake is one clear line, exit code 2, nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import encoded_png, synthetic_photo
from PIL import Image

from curate import cli, plugins
from curate.errors import listed

FSRCNN_SMALL = "fsrcnn:d=8,s=4,m=1"
FSRCNN = Path(__file__).parents[1] / "pipelines" / "fsrcnn_x2.toml"


@dataclass(frozen=True)
class Result:
    """What a command left in the terminal."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `curate ARGUMENTS...` in this process."""

    def command(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["curate", *(str(argument) for argument in arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capfd.readouterr()
        code = end.value.code
        return Result(code if isinstance(code, int) else int(code is not None), captured.out, captured.err)

    return command


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, a store scored by sobel, the manifest of its textured half, and untrained networks."""
    import curate
    from curate import plugins
    from curate.checkpoint import Checkpoint

    folder = tmp_path_factory.mktemp("work")
    (folder / "photos").mkdir()
    for i, size in enumerate(((96, 120), (72, 96), (60, 60))):
        Image.fromarray(synthetic_photo(*size, i)).save(folder / "photos" / f"{i}.png")
    curate.ingest([folder / "photos"], folder / "store", patch=48, step=24)
    curate.score(folder / "store", ["sobel"])
    curate.select(folder / "store", "des").save(folder / "half.parquet")
    for name, spec in (("luma", "fsrcnn:d=8,s=4,m=1"), ("rgb", "edsr:features=8,blocks=1")):
        arch = plugins.parse("archs", spec)
        Checkpoint(arch, arch.build().state_dict(), {}).save(folder / name)
    (folder / "wrong.toml").write_text('arch = "fsrcnn"\nsteps = "many"\n')
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_whole_job(run: Run, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = run("ingest", photo_folder, "store", "--patch", 48, "--step", 24)
    assert first.code == 0 and first.out.startswith("4 images added")
    again = run("ingest", photo_folder, "store")
    assert again.code == 0 and again.out.startswith("0 images added") and "4 already there" in again.out
    assert run("score", "store", "sobel").code == 0
    skipped = run("score", "store", "sobel")
    assert (skipped.code, skipped.out) == (0, "all patches are scored by sobel already\n")
    chosen = run("select", "store", "refined", "--keep", 0.25, "--drop-top", 0.1, "-o", "some.parquet")
    assert chosen.code == 0 and "some.parquet" in chosen.out
    trained = run(
        "train", "some.parquet", "--arch", "fsrcnn:scale=2,d=8,s=4,m=1", "--steps", 2, "--crop", 24, "-o", "run"
    )
    assert trained.code == 0 and trained.out.startswith("2 steps, loss")
    measured = run("eval", "run", photo_folder, "--json")
    answer = json.loads(measured.out)
    assert measured.code == 0 and len(answer["images"]) == 4 and 0 < answer["average"]["ssim"] < 1


def test_sql_answers_in_every_format(run: Run, work: Path, tmp_path: Path) -> None:
    query = "select patch_id, sobel from scores where patch_id in (select patch_id from half) order by sobel desc"
    expected = pq.read_table(work / "half.parquet")["patch_id"].to_pylist()

    def ask(form: str, *more: object) -> Result:
        return run("sql", work / "store", query, "-m", work / "half.parquet", "--format", form, *more)

    assert [line.split()[0] for line in ask("table").out.splitlines()[1:]] == expected
    assert [line.split(",")[0] for line in ask("csv").out.splitlines()[1:]] == expected
    assert [row["patch_id"] for row in json.loads(ask("json").out)] == expected
    assert ask("parquet", "-o", tmp_path / "answer.parquet").code == 0
    assert pq.read_table(tmp_path / "answer.parquet")["patch_id"].to_pylist() == expected


def test_sql_wide_rows_stay_on_one_line_when_piped(run: Run, work: Path) -> None:
    answer = run("sql", work / "store", "select repeat('w', 500) as a, repeat('z', 500) as b")
    assert len(answer.out.splitlines()) == 2 and "w" * 500 in answer.out and "z" * 500 in answer.out


def test_sql_table_stops_at_a_thousand_rows_and_says_so(run: Run, work: Path) -> None:
    answer = run("sql", work / "store", "select * from range(2000)")
    assert len(answer.out.splitlines()) == 1001 and "--format csv" in answer.err


@pytest.mark.parametrize("kind", ["store", "manifest", "checkpoint"])
def test_info_says_what_it_is(run: Run, work: Path, tmp_path: Path, kind: str) -> None:
    paths = {"store": work / "store", "manifest": work / "half.parquet", "checkpoint": tmp_path / "run"}
    if kind == "checkpoint":
        from curate.archs.fsrcnn import Fsrcnn
        from curate.checkpoint import Checkpoint

        arch = Fsrcnn(d=8, s=4, m=1)
        Checkpoint(arch, arch.build().state_dict(), {}).save(paths[kind])
    content = json.loads(run("info", paths[kind], "--json").out)
    assert content["kind"] == kind
    assert run("info", paths[kind]).out.startswith(f"kind: {kind}\n")


def test_info_draws_what_was_chosen(run: Run, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks where the output can carry them, else ASCII; colour on a terminal alone, and not with NO_COLOR."""

    def drawn(name: str) -> str:
        answer = run("info", work / name)
        assert answer.code == 0 and not answer.err
        return answer.out.partition("\n\n")[2]

    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", _Output(sys.stdout, "utf-8"))
    picture = drawn("half.parquet")
    assert "█" in picture and "(rank 50 %)" in picture and "\x1b" not in picture
    assert len(drawn("store").splitlines()) == 2 and "█" in drawn("store")
    assert all(len(line) <= 76 for line in picture.splitlines())
    monkeypatch.setattr(sys.stdout, "tty", True)
    assert drawn("half.parquet").replace("\x1b[36m", "").replace("\x1b[2m", "").replace("\x1b[0m", "") == picture
    assert "\x1b[36m" in drawn("half.parquet")
    monkeypatch.setenv("NO_COLOR", "1")
    assert drawn("half.parquet") == picture
    monkeypatch.setenv("LC_ALL", "C")
    assert drawn("half.parquet").isascii() and "#" in drawn("half.parquet")
    monkeypatch.delenv("LC_ALL")
    monkeypatch.setattr(sys.stdout, "encoding", "ascii")
    assert drawn("half.parquet").isascii() and "#" in drawn("half.parquet")


class _Output:
    """Standard output that says what it is."""

    def __init__(self, stream: Any, encoding: str) -> None:
        self.stream, self.encoding, self.tty = stream, encoding, False

    def isatty(self) -> bool:
        return self.tty

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}])
def test_info_draws_where_there_is_ascii_alone(work: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", "from curate.cli import entry; entry()", "info", str(work / "half.parquet")]
    ended = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, check=True)
    assert ended.stdout.isascii() and b"# " in ended.stdout and not ended.stderr


def test_info_of_a_store_counts(run: Run, work: Path) -> None:
    content = json.loads(run("info", work / "store", "--json").out)
    counted = run("sql", work / "store", "select count(*) as n from patches", "--format", "csv").out.splitlines()[1]
    assert (content["images"], content["refused"], str(content["patches"])) == (3, 0, counted)
    assert content["scores"]["sobel"]["patches"] == content["patches"]


def test_every_verb_prints_json(run: Run, work: Path, tmp_path: Path) -> None:
    """Standard output is one JSON document, with the keys that programs look for; nothing else is on it."""
    from curate.archs.drn import Drn
    from curate.checkpoint import Checkpoint

    store, half, photos, out = work / "store", work / "half.parquet", work / "photos", tmp_path
    brief = ("--arch", FSRCNN_SMALL, "--steps", 1, "--crop", 24)
    tiny = ("--patches", 2, "--size", 12, "--steps", 1, "--arch", FSRCNN_SMALL, "--pool", 20, "--net-steps", 1)
    small = (
        *("--width", 8, "--denoiser-width", 16, "--batch-size", 1, "--crop", 16, "--autoencoder-crop", 16),
        *("--autoencoder-steps", 1, "--denoiser-steps", 1),
    )
    found = ("--features", 4, "--crop", 30, "--batch-size", 1, "--steps", 2, "--warmup", 1)
    rules = ("--numbers", "uniform", "--criterion", "l1", "--finetune-steps", 0)
    commands: dict[str, tuple[tuple[object, ...], set[str]]] = {
        "ingest": ((photos, out / "new", "--patch", 48), {"added", "refused", "patches", "shards", "missing"}),
        "duplicates": ((out / "new",), set()),
        "leaks": ((out / "new", photos), set()),
        "score": ((out / "new", "sobel"), {"columns", "patches", "skipped", "not_finite"}),
        "select": ((store, "des", "--by", "sobel", "-o", out / "a.parquet"), {"manifest", "recipe"}),
        "diff": ((half, half), {"both", "by_score"}),
        "sql": ((store, "select name from images"), set()),
        "report": ((half, "-o", out / "a.html"), {"manifests"}),
        "info": ((half,), {"kind", "recipe"}),
        "verify": ((store,), {"whole"}),
        "repair": ((store,), {"rebuilt", "left"}),
        "train": ((half, *brief, "-o", out / "run"), {"run", "recipe"}),
        "eval": ((work / "luma", photos), {"average", "images"}),
        "pack": ((half, out / "core"), {"manifest", "patches", "bytes"}),
        "distill": ((half, *tiny, "-o", out / "few"), {"manifest", "patches", "bytes", "value", "moved"}),
        "nas dlsr": ((half, *found, "-o", out / "search"), {"genotype", "parameters", "multiply_adds", "seconds"}),
        "nas draw": (("dlsr", "-o", out / "a.svg"), {"picture", "genotype"}),
        "drc compress": (
            (out / "drn", half, *rules, "-o", out / "small"),
            {"path", "arch", "parameters", "multiply_adds", "seconds", "stages", "before", "latency"},
        ),
        "drc slim": ((out / "drn", "--config", "1.8.8.8.8.8", "-o", out / "slim"), {"parameters", "dual_parameters"}),
        "ldm train": ((store, *small, "-o", out / "ldm"), {"model", "recipe"}),
        "ldm sample": ((out / "ldm", "-o", out / "a.png", "--size", 16, "--steps", 2), {"picture", "samples"}),
        "export": ((half, out / "files", "--to", "folder"), {"windows", "stubs"}),
        "run": ((out / "study.toml", out / "study", photos, "--test", photos), set()),
        "scorers": ((), {"srcnn"}),
        "strategies": ((), {"refined"}),
        "archs": ((), {"fsrcnn"}),
    }
    verbs = {item.name or item.callback.__name__ for item in cli.app.registered_commands}
    for group in cli.app.registered_groups:
        verbs |= {f"{group.name} {item.name}" for item in group.typer_instance.registered_commands}
    assert commands.keys() | {"demo"} == verbs
    (out / "study.toml").write_text(
        '[ingest]\npatch = 48\nstep = 48\n[score]\nscorers = ["sobel"]\n[[select]]\nname = "des"\nstrategy = "des"\n'
        f'by = "sobel"\n[[train]]\narchs = ["{FSRCNN_SMALL}"]\noptions = {{ steps = 1, crop = 24 }}\n'
    )
    full = Drn(features=4, blocks=1)
    Checkpoint(full, full.build().state_dict(), {}).save(out / "drn")
    for verb, (arguments, keys) in commands.items():
        result = run(*verb.split(), *arguments, "--json")
        assert result.code == 0, result
        found = json.loads(result.out)
        assert keys <= found.keys() if keys else isinstance(found, list), verb


def test_a_core_set_is_distilled(run: Run, work: Path, tmp_path: Path) -> None:
    """Named either way, by a recipe's options or the command's own, which come before them."""
    (tmp_path / "tiny.toml").write_text(f'size = 12\nsteps = 1\narch = "{FSRCNN_SMALL}"\npool = 20\nbytes = 9000\n')
    ways = ((work / "half.parquet",), ("--from", work / "half.parquet"))
    for number, way in enumerate(ways):
        result = run(
            "distill", *way, "-o", tmp_path / f"few{number}", "--recipe", tmp_path / "tiny.toml", "--patches", 3
        )
        assert result.code == 0, result
        assert result.out.startswith("3 patches, 0.01 MB, objective ")
        assert result.out.endswith(f"{tmp_path}/few{number}/manifest.parquet\n")
    again = run("distill", ways[0][0], "-o", tmp_path / "few0", "--recipe", tmp_path / "tiny.toml", "--patches", 3)
    assert again.out == f"3 patches, 0.01 MB: {tmp_path}/few0/manifest.parquet\n"
    info = run("info", tmp_path / "few0" / "manifest.parquet").out
    assert "origin: distilled" in info and "distilled_from:" in info


def test_photographs_that_are_all_refused_are_a_failure_that_says_what_to_do(
    run: Run, work: Path, tmp_path: Path
) -> None:
    result = run("ingest", work / "photos", tmp_path / "store", "--patch", 240)
    assert result.code == 1 and result.out.startswith("0 images added")
    assert result.err.endswith("a new store made with --patch 60 takes 3 of them\n")
    assert run("ingest", work / "photos", tmp_path / "other", "--patch", 240, "--json").code == 1


def test_the_version_is_said(run: Run) -> None:
    from curate import __version__

    assert run("--version") == Result(0, f"curate {__version__}\n", "")


def test_every_verb_s_line_in_the_list_is_whole(run: Run) -> None:
    listed = run("--help").out.partition("Commands:")[2]
    assert "..." not in listed and len(listed.splitlines()) > 20


def test_quiet_prints_nothing_but_the_result(run: Run, work: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "bad.png").write_bytes(b"no picture")
    shutil.copy(work / "photos" / "0.png", tmp_path / "photos")
    command = ("ingest", tmp_path / "photos", tmp_path / "store", "--patch", 48)
    assert "refused" in run(*command).err
    shutil.rmtree(tmp_path / "store")
    quiet = run(*command, "--quiet")
    assert quiet.err == "" and quiet.out.startswith("1 image added")
    assert "refused" in run("ingest", tmp_path / "photos", tmp_path / "other", "--patch", 48).err  # and only that once


def test_debug_shows_the_way_to_an_error_and_then_its_line(run: Run, work: Path) -> None:
    short, long = run("sql", work / "store", "select nothing"), run("sql", work / "store", "select nothing", "--debug")
    assert (short.code, short.err.count("\n")) == (2, 1)
    assert long.code == 2 and long.err.startswith("Traceback") and long.err.endswith(short.err)


def test_an_error_of_curate_s_own_is_a_line_that_says_where_and_how_to_see_more(
    run: Run, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate import inspection

    def broken(*_: object, **__: object) -> None:
        raise KeyError("x\ny")

    monkeypatch.setattr(inspection, "info", broken)
    result = run("info", work / "store")
    assert result.code == 1 and result.err.count("\n") == 1
    assert "an error of curate's own: KeyError: 'x\\ny' (test_cli.py, line " in result.err
    assert result.err.rstrip().endswith("the same command with --debug shows the way there, for a report")
    debugged = run("info", work / "store", "--debug")
    assert debugged.code == 1 and "Traceback" in debugged.err and 'raise KeyError("x' in debugged.err


@pytest.mark.parametrize("kind", ["scorers", "strategies", "archs"])
def test_lists_name_every_plugin(run: Run, kind: str) -> None:
    from curate import plugins

    lines = run(kind).out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == plugins.names(kind)  # type: ignore[arg-type]


MISTAKES = {
    "a folder without images": (["ingest", "{empty}", "{new}"], "no images in"),
    "photographs that do not exist": (["ingest", "{work}/nowhere", "{new}"], "does not exist"),
    "a store that is a folder of something else": (["ingest", "{work}/photos", "{work}/photos"], "is not a store"),
    "another grid": (["ingest", "{work}/photos", "{work}/store", "--patch", "24"], "a store has one grid"),
    "a patch of nothing": (["ingest", "{work}/photos", "{new}", "--patch", "0"], "patch should be 1 px or more"),
    "a step longer than the patch": (["ingest", "{work}/photos", "{new}", "--patch", "24", "--step", "25"], "step"),
    "a shard size that is none": (["ingest", "{work}/photos", "{new}", "--shard-size", "big"], "such as 256MB"),
    "a part that is none": (["ingest", "{work}/photos", "{new}", "--part", "3/2"], "a part should be 1/4, 2/4"),
    "workers without Ray": (["score", "{work}/store", "sobel", "--workers", "2"], "workers are for the engine ray"),
    "no worker": (["pack", "{work}/half.parquet", "{new}", "--engine", "ray", "--workers", "0"], "1 worker or more"),
    "an LR folder without a scale": (["ingest", "{work}/photos", "{new}", "--lr", "{work}/photos"], "SCALE=DIR"),
    "a store that is not one": (["score", "{work}/photos", "sobel"], "is not a store: found a folder"),
    "a store that is not there": (["score", "{work}/nowhere", "sobel"], "is not a store: found nothing"),
    "a scorer that does not exist": (["score", "{work}/store", "sobell"], listed(plugins.names("scorers"))),
    "a scorer's option that does not exist": (["score", "{work}/store", "srcnn:scail=3"], "has no option 'scail'"),
    "a scorer's option out of range": (["score", "{work}/store", "srcnn:scale=7"], "scale should be 2, 3 or 4"),
    "a device that is not there": (["score", "{work}/store", "sobel", "--device", "abacus"], "no device 'abacus'"),
    "a strategy that does not exist": (
        ["select", "{work}/store", "best", "-o", "{new}"],
        listed(plugins.names("strategies")),
    ),
    "a score that does not exist": (
        ["select", "{work}/store", "des", "--by", "srcnn", "-o", "{new}"],
        "no score 'srcnn' in the store; there are: sobel; 'curate score STORE srcnn' makes it",
    ),
    "a score that is nearly one": (
        ["select", "{work}/store", "des", "--by", "sobl", "-o", "{new}.parquet"],
        "there are: sobel; did you mean 'sobel'?",
    ),
    "scorers with a comma": (["score", "{work}/store", "srcnn,sobel"], "separate scorers by spaces: srcnn sobel"),
    "a scorer's option beside it": (
        ["score", "{work}/store", "srcnn", "--scale", "3"],
        "score has no option '--scale'; a scorer's own options are part of its name: srcnn:scale=3",
    ),
    "a strategy's option beside it": (
        ["select", "{work}/store", "random", "--seed=3", "-o", "{new}.parquet"],
        "select has no option '--seed'; a strategy's own options are part of its name: refined:drop_top=0.1",
    ),
    "an option that is nearly one": (["score", "{work}/store", "sobel", "--devise", "cpu"], "--device"),
    "a share that is none": (["select", "{work}/store", "des", "--keep", "half", "-o", "{new}.parquet"], "or 50%"),
    "a percentage within a strategy": (
        ["select", "{work}/store", "refined:drop_top=5%", "-o", "{new}.parquet"],
        "option 'drop_top' should be a valid number (5% is 0.05), not '5%'",
    ),
    "a manifest called a table": (
        ["select", "{work}/store", "des", "-o", "{new}.csv"],
        "a manifest is a .parquet file: name it new.parquet, found '",
    ),
    "a manifest at a URL called a table": (
        ["select", "{work}/store", "des", "-o", "memory://new.csv"],
        "name it new.parquet, found 'memory://new.csv'",
    ),
    "a manifest that is a folder": (["select", "{work}/store", "des", "-o", "{work}"], "is a folder; name it like"),
    "a report without an ending": (
        ["report", "{work}/half.parquet", "-o", "{new}"],
        "a report is a .html file: name it new.html, found '",
    ),
    "a comparison called a table": (
        ["diff", "{work}/half.parquet", "{work}/half.parquet", "-o", "{new}.csv"],
        "a comparison is a .parquet file: name it new.parquet",
    ),
    "leaks of nothing": (["leaks", "{work}/store"], "or --forget NAME alone, found neither"),
    "leaks of a folder, to be forgotten": (
        ["leaks", "{work}/store", "{work}/photos", "--forget", "Set5"],
        "a FOLDER of test images to look for, or --forget NAME alone, found more",
    ),
    "keep 0": (["select", "{work}/store", "des", "--keep", "0", "-o", "{new}"], "above 0 and at most 1"),
    "keep 1.5": (["select", "{work}/store", "des", "--keep", "1.5", "-o", "{new}"], "found 1.5"),
    "keep nan": (["select", "{work}/store", "des", "--keep", "nan", "-o", "{new}"], "above 0 and at most 1"),
    "more than there is": (
        ["select", "{work}/store", "refined", "--keep", "0.9", "--drop-top", "0.5", "-o", "{new}.parquet"],
        "keep or drop less",
    ),
    "an option of another strategy": (
        ["select", "{work}/store", "des", "--drop-top", "0.1", "-o", "{new}"],
        "has no option 'drop_top'",
    ),
    "a condition on no column": (
        ["select", "{work}/store", "des", "--where", "colour = 1", "-o", "{new}.parquet"],
        'the columns of a view: curate sql STORE "DESCRIBE scores"',
    ),
    "a condition that no patch meets": (
        ["select", "{work}/store", "des", "--where", "name = 'none'", "-o", "{new}.parquet"],
        "nothing to choose",
    ),
    "SQL that writes": (["sql", "{work}/store", "copy images to '{new}'"], "should be one SELECT"),
    "SQL on another file": (["sql", "{work}/store", "select * from '{work}/half.parquet'"], "SQL: "),
    "SQL that is none": (["sql", "{work}/store", "selec 1"], "SQL: "),
    "a manifest that is not there": (
        ["sql", "{work}/store", "select 1", "-m", "{work}/none.parquet"],
        "is not a manifest: found nothing",
    ),
    "info of nothing": (["info", "{work}/nowhere"], "is not a store, a manifest or a checkpoint: found nothing"),
    "training from a store": (
        ["train", "{work}/store", "--arch", "fsrcnn", "--steps", "1", "-o", "{new}"],
        "is not a manifest: found a folder",
    ),
    "an architecture that does not exist": (
        ["train", "{work}/half.parquet", "--arch", "fsrcn", "--steps", "1", "-o", "{new}"],
        "there are: dlsr, drn, drrn, edsr, fsrcnn",
    ),
    "no steps": (
        ["train", "{work}/half.parquet", "--arch", "fsrcnn", "--steps", "0", "-o", "{new}"],
        "steps should be 1 or more, found 0",
    ),
    "a crop larger than the windows": (
        ["train", "{work}/half.parquet", "--arch", "fsrcnn", "--steps", "1", "--crop", "96", "-o", "{new}"],
        "does not fit into windows of 48 px",
    ),
    "no end": (
        ["train", "{work}/half.parquet", "--arch", "fsrcnn", "-o", "{new}"],
        "one of steps and epochs should be",
    ),
    "no network": (["train", "{work}/half.parquet", "--steps", "1", "-o", "{new}"], "which network?"),
    "a recipe that is not there": (
        ["train", "{work}/half.parquet", "--recipe", "{work}/nowhere.toml", "-o", "{new}"],
        "nowhere.toml': there is no such file",
    ),
    "a recipe that is wrong": (
        ["train", "{work}/half.parquet", "--recipe", "{work}/wrong.toml", "-o", "{new}"],
        "wrong.toml': steps should be a valid integer, found 'many'",
    ),
    "an optimiser that does not exist": (
        ["train", "{work}/half.parquet", "--arch", "fsrcnn", "--steps", "1", "--optimizer", "sgd", "-o", "{new}"],
        "'adam', 'adamw', 'soap'",
    ),
    "a checkpoint that is not there": (["eval", "{work}/nowhere", "{work}/photos"], "no checkpoint"),
    "luma of a network of RGB": (
        ["eval", "{work}/rgb", "{work}/photos", "--protocol", "luma"],
        "protocol 'luma' asked for a network of RGB, which takes: rgb, y",
    ),
    "RGB of a network of luma": (
        ["eval", "{work}/luma", "{work}/photos", "--protocol", "rgb"],
        "protocol 'rgb' asked for a network of luma, which takes: luma, y",
    ),
    "a protocol that does not exist": (
        ["eval", "{work}/luma", "{work}/photos", "--protocol", "yuv"],
        "'y', 'luma', 'rgb'",
    ),
    "a distillation of nothing": (["distill", "-o", "{new}", "--patches", "3"], "which manifest to distil? One of"),
    "a distillation of two": (
        ["distill", "{work}/half.parquet", "--from", "{work}/half.parquet", "-o", "{new}", "--patches", "3"],
        "which manifest to distil? One of",
    ),
    "a distillation without a budget": (
        ["distill", "{work}/half.parquet", "-o", "{new}"],
        "a budget should be given, in patches or in bytes, found neither",
    ),
    "a distillation of two budgets": (
        ["distill", "{work}/half.parquet", "-o", "{new}", "--patches", "3", "--bytes", "3MB"],
        "found 3 patches and 3000000 bytes",
    ),
    "a distillation to more than there are": (
        ["distill", "{work}/half.parquet", "-o", "{new}", "--patches", "3000", "--size", "12"],
        "3000 patches should be distilled from as many or more",
    ),
    "a search whose LR is too small": (
        ["nas", "dlsr", "{work}/half.parquet", "-o", "{new}", "--crop", "28"],
        "a crop should be 30 px or more, found 28, in LR 14",
    ),
    "a search that never ends its warm-up": (
        ["nas", "dlsr", "{work}/half.parquet", "-o", "{new}", "--steps", "5", "--warmup", "5"],
        "warmup should be less than the 5 steps, found 5",
    ),
    "snapshots that are no steps": (
        ["nas", "dlsr", "{work}/half.parquet", "-o", "{new}", "--snapshots", "a,b"],
        "--snapshots should be steps such as 250000,400000, found 'a,b'",
    ),
    "a compression that keeps all": (
        ["drc", "{work}/rgb", "{work}/half.parquet", "-o", "{new}", "--ratio", "0"],
        "options: ratio should be above 0 and below 1, found 0.0",
    ),
    "a compression that keeps nothing": (
        ["drc", "compress", "{work}/rgb", "{work}/half.parquet", "-o", "{new}", "--ratio", "1"],
        "options: ratio should be above 0 and below 1, found 1.0",
    ),
    "a compression of nothing": (
        ["drc", "{work}/nowhere", "{work}/half.parquet", "-o", "{new}"],
        "nowhere': there is no such file or folder",
    ),
    "a stage that does not exist": (
        ["drc", "{work}/rgb", "{work}/half.parquet", "-o", "{new}", "--stage", "search"],
        "'channels', 'prune', 'finetune'",
    ),
    "a config that is not there": (
        ["drc", "slim", "{work}/rgb", "--config", "{work}/nowhere.txt", "-o", "{new}"],
        "nowhere.txt': there is no such file",
    ),
    "a genotype of an unknown operation": (
        ["nas", "draw", "conv_9x9+sep_3x3+sep_3x3@12.12.12.12", "-o", "{new}.svg"],
        "no operation 'conv_9x9'",
    ),
    "a genotype of wrong lengths": (
        ["nas", "draw", "sep_3x3+sep_3x3@12.12.12.12", "-o", "{new}.svg"],
        "a genotype should have 3 operations, found 2",
    ),
    "a training of a genotype that is not there": (
        ["train", "{work}/half.parquet", "--arch", "dlsr:genotype={new}.json", "--steps", "1", "-o", "{new}"],
        "there is no such file; 'curate nas dlsr' writes genotype.json",
    ),
    "a training of a network whose LR is too small": (
        ["train", "{work}/half.parquet", "--arch", "dlsr", "--steps", "1", "--crop", "28", "-o", "{new}"],
        "a crop should be 30 px or more, found 28, in LR 14",
    ),
    "bytes that are none": (
        ["distill", "{work}/half.parquet", "-o", "{new}", "--bytes", "few"],
        "--bytes should be a number of bytes such as 256MB or 1GB, found 'few'",
    ),
    "a diffusion model of crops that do not fit": (
        ["ldm", "train", "{work}/store", "-o", "{new}", "--crop", "960"],
        "crop should be at most the store's patch of",
    ),
    "samples of nothing": (["ldm", "sample", "{work}/nowhere", "-o", "{new}.png"], "no folder"),
    "samples as no picture": (["ldm", "sample", "-o", "{new}.gif"], "a picture should be called NAME.png"),
    "a missing argument": (["select", "{work}/store", "des"], "Missing option"),
    "an option that does not exist": (["info", "{work}/store", "--colour", "red"], "--colour"),
    "a verb that does not exist": (["frobnicate"], "frobnicate"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(run: Run, work: Path, tmp_path: Path, mistake: str) -> None:
    arguments, expected = MISTAKES[mistake]
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "readme.txt").write_text("no photograph")
    before = tree(work)
    places = {"work": str(work), "empty": str(empty), "new": str(tmp_path / "new")}
    result = run(*(argument.format(**places) for argument in arguments))
    assert result.code == 2, result
    assert expected in result.err
    lines = [line for line in result.err.splitlines() if not line.startswith(("Usage:", "Try ")) and line]
    assert len(lines) == 1, result.err
    assert not result.out and tree(work) == before and not list(tmp_path.glob("new*"))


MILESTONES = {
    "falling": (["--schedule", "multistep", "--milestones", "5,2"], "should be rising steps above 0, found (5, 2)"),
    "zero": (["--schedule", "multistep", "--milestones", "0,2"], "should be rising steps above 0, found (0, 2)"),
    "none": (["--schedule", "multistep"], "milestones go with schedule multistep, found multistep and ()"),
    "of another schedule": (["--milestones", "2,5"], "milestones go with schedule multistep, found cosine and (2, 5)"),
    **{
        f"written '{text}'": (
            ["--schedule", "multistep", "--milestones", text],
            f"--milestones should be steps such as 250000,400000, found '{text}'",
        )
        for text in ("", "2;5", "2,", "2.5", "-2", "two")
    },
}


@pytest.mark.parametrize("mistake", MILESTONES)
def test_milestones_that_are_none(run: Run, work: Path, tmp_path: Path, mistake: str) -> None:
    arguments, expected = MILESTONES[mistake]
    result = run("train", work / "half.parquet", "--arch", "fsrcnn", "--steps", 9, *arguments, "-o", tmp_path / "run")
    assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1) and expected in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [("--hfen", "-0.1"), ("--hfen", "nan"), ("--hfen", "inf")])
def test_a_weight_of_hfen_that_is_none(run: Run, work: Path, tmp_path: Path, options: tuple[str, str]) -> None:
    result = run("train", work / "half.parquet", "--arch", "fsrcnn", "--steps", 9, *options, "-o", tmp_path / "run")
    assert (result.code, result.out) == (2, "")
    assert result.err == f"curate: options: hfen should be 0 or more, found {options[1]}\n"
    assert not (tmp_path / "run").exists()


def trained_with(folder: Path) -> dict[str, Any]:
    """The options with which a run was trained, and its arch."""
    record = json.loads((folder / "recipe.json").read_text("utf-8"))
    options: dict[str, Any] = record["training"]["config"]
    return {"arch": record["arch"], **options}


def test_a_recipe_trains_and_what_is_given_wins(
    run: Run, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", work / "half.parquet", "--recipe", FSRCNN, "--steps", 2, "--crop", 12, "--batch-size", 2]
    command += ["-o", tmp_path / "run"]
    first = run(*command)
    assert first.code == 0 and first.out.startswith("2 steps, loss")
    options = trained_with(tmp_path / "run")
    assert (options["steps"], options["crop"], options["batch_size"]) == (2, 12, 2)
    assert (options["rate"], options["schedule"], options["loss"]) == (1e-3, "constant", "mse")
    assert options["arch"].startswith("fsrcnn:scale=2")

    def not_again(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    before = tree(tmp_path / "run")
    monkeypatch.setattr("curate.training.batches", not_again)
    again = run(*command)
    assert (again.code, again.out) == (0, first.out)
    assert run(*command, "--log-every", 7).out == first.out  # which changes nothing about the weights
    for option, value, difference in (
        ("--rate", 2e-3, "rate 0.001, not 0.002"),
        ("--arch", "fsrcnn:d=8", "arch fsrcnn:scale=2,d=56,s=12,m=4, not fsrcnn:scale=2,d=8,s=12,m=4"),
        ("--crop", 24, "crop 12, not 24"),
        ("--hfen", 0.2, "hfen 0.0, not 0.2"),
    ):
        other = run(*command, option, value)
        assert (other.code, other.out, len(other.err.splitlines())) == (2, "", 1)
        assert difference in other.err and "name another folder with -o" in other.err
    assert tree(tmp_path / "run") == before


def test_milestones_and_compile_on_the_command_line(run: Run, work: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "compiled.toml"
    recipe.write_text('arch = "fsrcnn:d=8,s=4,m=1"\nsteps = 3\ncrop = 12\nbatch_size = 2\ncompile = true\n')
    command = ["train", work / "half.parquet", "--recipe", recipe, "--no-compile"]
    command += ["--schedule", "multistep", "--milestones", "2,5", "-o", tmp_path / "run"]
    assert run(*command).code == 0
    options = trained_with(tmp_path / "run")
    assert (options["milestones"], options["compile"]) == ([2, 5], False)


@pytest.mark.parametrize(
    ("network", "protocol", "said"),
    [
        ("luma", "y", "on Y, border = scale"),
        ("luma", "luma", "on 8-bit Y, border = scale"),
        ("rgb", "y", "on Y, border = scale"),
        ("rgb", "rgb", "on RGB, border = scale + 6"),
    ],
)
def test_the_protocol_is_chosen_and_said(run: Run, work: Path, network: str, protocol: str, said: str) -> None:
    command = ["eval", work / network, work / "photos", "--protocol", protocol]
    table, answer = run(*command), run(*command, "--json")
    assert (table.code, answer.code) == (0, 0)
    assert said in table.err and said in json.loads(answer.out)["protocol"]
    psnr = json.loads(answer.out)["average"]["psnr"]
    assert table.out.splitlines()[-1].split()[:2] == ["average", f"{psnr:.2f}"]


def test_a_moved_store_is_named_and_can_be_given(run: Run, work: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "alone.parquet"
    manifest.write_bytes((work / "half.parquet").read_bytes())
    command = ["train", manifest, "--arch", "fsrcnn:d=8,s=4,m=1", "--steps", 1, "--crop", 24]
    lost = run(*command, "-o", tmp_path / "a")
    assert lost.code == 2 and "--store PATH" in lost.err and not (tmp_path / "a").exists()
    assert run(*command, "-o", tmp_path / "b", "--store", work / "store").code == 0


def test_refusals_are_listed_and_counted(run: Run, photo_folder: Path, tmp_path: Path) -> None:
    for i in range(12):
        (photo_folder / f"broken{i:02}.png").write_bytes(b"not a picture")
    result = run("ingest", photo_folder, tmp_path / "store", "--patch", 48)
    assert result.code == 0 and "12 refused" in result.out
    assert result.err.count("\nrefused") + result.err.startswith("refused") == 10 and "and 2 more" in result.err
    (photo_folder / "broken00.png").write_bytes(encoded_png(50, 60, 60))
    again = run("ingest", "--retry-failed", photo_folder, tmp_path / "store")
    assert again.out.startswith("1 image added (") and again.out.endswith("), 11 refused again\n")
    counts = run("info", tmp_path / "store", "--json")
    assert [json.loads(counts.out)[name] for name in ("images", "refused")] == [5, 11]


def test_why_something_is_made_anew_is_a_line(run: Run, photo_folder: Path, tmp_path: Path) -> None:
    run("ingest", photo_folder, tmp_path / "store", "--patch", 48)
    assert run("score", tmp_path / "store", "entropy").err == ""
    again = run("score", tmp_path / "store", "entropy:bins=64")
    assert again.code == 0 and again.err.startswith("entropy:bins=64 is made anew: entropy@")
    assert again.err.endswith(" has bins 256, not 64\n")
    run("leaks", tmp_path / "store", photo_folder)
    (photo_folder / "000.png").unlink()
    assert "test image 000.png " in run("leaks", tmp_path / "store", photo_folder).err


def test_terminal_escapes_in_names_are_shown_not_obeyed(run: Run, photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "evil\x1b[31m.png").write_bytes(b"")
    result = run("ingest", photo_folder, tmp_path / "store", "--patch", 48)
    listed = run("sql", tmp_path / "store", "select name from images", "--format", "table")
    assert "\x1b" not in result.out + result.err + listed.out and "evil" in listed.out


def test_a_share_may_be_a_percentage(run: Run, work: Path, tmp_path: Path) -> None:
    for name, keep, drop in (("a", "25%", "12.5 %"), ("b", "0.25", "0.125")):
        command = ("select", work / "store", "refined", "--keep", keep, "--drop-top", drop)
        assert run(*command, "-o", tmp_path / f"{name}.parquet").code == 0
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert [cli._share(text) for text in ("33%", "0.1%", " 5 %", "1e-3", 0.5)] == [0.33, 0.001, 0.05, 0.001, 0.5]


def test_another_choice_is_not_replaced_in_silence(run: Run, work: Path, tmp_path: Path) -> None:
    out = tmp_path / "chosen.parquet"

    def select(*what: object) -> str:
        result = run("select", work / "store", *what, "-o", out)
        assert result.code == 0
        return result.err

    assert select("asc") == select("asc") == ""
    assert select("random", "--keep", "5%") == "replaces a manifest by asc of sobel, 11 patches\n"
    assert select("des") == "replaces a manifest by random, 1 patch\n"
    out.write_bytes(b"mine")
    assert select("des") == "replaces a file that was no manifest, or a damaged one\n"


def test_what_is_zero_or_one_is_said_so(run: Run, work: Path, tmp_path: Path) -> None:
    result = run("select", work / "store", "des", "--keep", "5%", "-o", tmp_path / "one.parquet")
    assert result.out == f"1 of 22 patches selected: {tmp_path / 'one.parquet'}\n"
    assert run("pack", tmp_path / "one.parquet", tmp_path / "core").out.startswith("1 patch of 1 image in ")
    exported = run("export", tmp_path / "one.parquet", tmp_path / "files", "--to", "folder")
    assert exported.out.startswith("1 window exported (0.0 MB)")


def test_a_disk_error_is_one_line(run: Run, work: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "store")

    monkeypatch.setattr("curate.files.publish", full)
    result = run("select", work / "store", "des", "-o", tmp_path / "x.parquet")
    said = "curate: No space left on device: 'store'; make room, and the same command goes on\n"
    assert (result.code, result.err) == (1, said)


def test_sizes_and_pairs_are_parsed() -> None:
    assert cli._bytes("256MB") == 256_000_000 and cli._bytes("1.5 gb") == 1_500_000_000 and cli._bytes("7") == 7
    assert cli._lr_folder("2=a=b") == (2, "a=b")


def test_pack_and_its_manifest_trains_on(run: Run, work: Path, tmp_path: Path) -> None:
    result = run("pack", work / "half.parquet", tmp_path / "packed")
    assert result.code == 0 and "patches of 3 images in" in result.out
    manifest = tmp_path / "packed" / "manifest.parquet"
    assert str(manifest) in result.out.replace("\n", "")
    assert run("pack", work / "half.parquet", tmp_path / "packed").code == 0
    result = run("diff", work / "half.parquet", manifest, "--json")
    found = json.loads(result.out)
    assert found["jaccard"] == found["rank_correlation"] == 1 and found["left"] == found["entered"] == 0
    assert [row["both"] for row in found["by_score"]] != [] and found["pixels_a"] == found["pixels_b"]
    result = run("diff", manifest, work / "half.parquet", "--json")
    assert {**json.loads(result.out)} == {**found}
    result = run("train", manifest, "--arch", FSRCNN_SMALL, "--steps", 1, "--crop", 24, "-o", tmp_path / "run")
    assert result.code == 0 and (tmp_path / "run" / "model.safetensors").exists()
    result = run("pack", work / "half.parquet", tmp_path / "other", "--shard-size", "much")
    assert result.code == 2 and "--shard-size should be a number of bytes" in result.err
    result = run("pack", work / "half.parquet", work / "photos")
    assert result.code == 2 and result.err.count("\n") == 1 and len(list((work / "photos").iterdir())) == 3


def test_parts_of_a_run(run: Run, work: Path, tmp_path: Path) -> None:
    ingest = ("ingest", work / "photos", tmp_path / "store", "--patch", 48, "--step", 24)
    first = run(*ingest, "--part", "2/2")
    assert first.code == 0 and first.out.startswith("this part is done; 1 chunks are left to others")
    assert run(*ingest, "--part", "1/2").out.startswith("3 images added")
    assert tree(tmp_path / "store").items() <= tree(work / "store").items()
    for part, patches in (("2/2", 0), ("1/2", 22)):
        scored = run("score", tmp_path / "store", "sobel", "--part", part)
        assert scored.code == 0 and scored.out.startswith(f"{patches} patches"), scored
    assert tree(tmp_path / "store") == tree(work / "store")
    pack = ("pack", work / "half.parquet", tmp_path / "core")
    first = run(*pack, "--part", "2/2")
    assert first.code == 0 and first.out.startswith("this part is done; 1 shard is left to others")
    assert "patches of 3 images in" in run(*pack, "--part", "1/2").out


def test_without_ray_nothing_is_written(run: Run, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    before = tree(work)
    for command in (
        ("ingest", work / "photos", tmp_path / "new"),
        ("score", work / "store", "noise"),
        ("pack", work / "half.parquet", tmp_path / "new"),
    ):
        result = run(*command, "--engine", "ray")
        assert (result.code, result.out) == (2, "")
        assert result.err == "curate: the engine ray is not installed: pip install 'curate[ray]'\n"
    assert tree(work) == before and not (tmp_path / "new").exists()


def test_export_for_a_reader(run: Run, work: Path, tmp_path: Path) -> None:
    windows = pq.read_table(work / "half.parquet").num_rows
    result = run("export", work / "half.parquet", tmp_path / "out", "--to", "basicsr", "--scale", "4")
    assert result.code == 0 and f"{windows} windows exported (" in result.out and "already" not in result.out
    hr = sorted(path.name for path in (tmp_path / "out").rglob("*.png"))
    assert len(hr) == 2 * windows and list((tmp_path / "out").rglob("*.yml"))
    result = run("export", work / "half.parquet", tmp_path / "out", "--to", "basicsr", "--scale", "4")
    assert result.code == 0 and f"({windows} there already" in result.out
    result = run("export", work / "half.parquet", tmp_path / "out", "--to", "neosr", "--scale", "4")
    assert result.code == 2 and "basicsr" in result.err
    result = run("export", work / "half.parquet", tmp_path / "alone", "--to", "folder", "--scale", "none")
    assert result.code == 0 and len(list((tmp_path / "alone").rglob("*.png"))) == windows
    result = run("export", work / "half.parquet", tmp_path / "new", "--to", "basicssr")
    assert result.code == 2 and "basicssr" in result.err and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "out"),
    [
        (["strategies"], 0, "refined"),
        (["select", "nowhere", "des", "-o", "x.parquet"], 2, ""),
        (["nothing"], 2, ""),
        ([], 2, "Commands"),
    ],
)
def test_the_program_leaves_with_its_exit_code_and_all_that_it_said(
    arguments: list[str], code: int, out: str, tmp_path: Path
) -> None:
    """As a process: what other parts of it want done at the end is done, before it leaves without Python's own end."""
    program = f"""
import atexit, pathlib, sys
from curate import cli
main, sys.argv[0] = cli.main, "curate"
def later():
    atexit.register(pathlib.Path({str(tmp_path / "ended")!r}).touch)
    main()
cli.main = later
cli.entry()
"""
    command = [sys.executable, "-c", program, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == code, ended.stderr
    assert out in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "ended").exists()


def test_a_bug_keeps_its_traceback_and_exit_code_1(tmp_path: Path) -> None:
    program = "import curate.cli as cli; cli.main = lambda: 1 / 0; cli.entry()"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr


def test_closed_outputs_are_no_error(tmp_path: Path) -> None:
    program = "import os, sys; from curate.cli import entry; sys.argv[:] = ['curate', 'strategies']; entry()"
    closing = "import os, sys; os.close(1); os.close(2); os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    assert subprocess.run([sys.executable, "-c", closing, program], cwd=tmp_path, check=False).returncode == 0


def test_verify_and_repair_say_what_is_hit_and_what_was_done(run: Run, work: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(work / "store", store)
    shutil.copy(work / "half.parquet", tmp_path)
    whole = run("verify", store, tmp_path / "half.parquet", "--deep")
    assert whole.code == 0 and whole.out.startswith("checked 10 files") and whole.out.endswith(": whole\n")
    (store / "tables/patches/000000.parquet").unlink()
    tar = store / "shards/000000.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    quick = run("verify", store)
    assert quick.code == 1 and len(quick.out.splitlines()) == 2
    assert quick.out.endswith("1 finding, 3 images hit; contents were not read, --deep reads them\n")
    found = run("verify", store, tmp_path / "half.parquet", "--deep", "--json")
    record = json.loads(found.out)
    assert found.code == 1 and not record["whole"]
    assert {finding["kind"] for finding in record["findings"]} == {"missing", "damaged"}
    assert record["findings"][0]["manifests"] == {
        str(tmp_path / "half.parquet"): pq.read_table(work / "half.parquet").num_rows
    }
    alone = run("repair", store)
    assert alone.code == 1 and "rebuilt  tables/patches/000000.parquet: from the table of images" in alone.out
    done = run("repair", store, "--from", work / "photos")
    assert done.code == 0 and "rebuilt  shards/000000.tar: 1 image from photographs" in done.out
    assert done.out.splitlines()[-1].endswith(": whole")
    assert run("verify", store, "--against", work / "photos").code == 0


@pytest.mark.parametrize("arguments", [["verify", "nothing"], ["repair", "nothing"], ["verify"]])
def test_verify_of_what_is_not_there_is_a_mistake(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).code == 2
