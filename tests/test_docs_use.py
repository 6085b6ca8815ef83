"""The pages for users: every command runs, and what they show is what is printed."""

import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pages
import pytest
from conftest import synthetic_photo
from pages import all_blocks, run_page
from PIL import Image
from typer.testing import CliRunner

import curate
from curate import resize, stopping
from curate.cli import app
from curate.tensors import to_pixels, to_tensor

RUN = ("sh", "python", "sql")
BARS = r"[─-▟·]"
WOMAN = synthetic_photo(200, 240, 99)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """`run(page, cheaper)`: what each block printed; of commands their notes too, as a terminal shows them.

    Commands run in this process, where torch is imported once and not once a command.
    """

    def commands(script: str, folder: Path) -> str:
        parts = [shlex.split(line) for line in script.splitlines()]
        assert {part[0] for part in parts} == {"curate"}
        ran = [CliRunner().invoke(app, part[1:]) for part in parts]
        assert [f"{done.output}{done.exception!r}" for done in ran if done.exit_code] == []
        return "".join(done.output for done in ran)

    monkeypatch.setattr(pages, "shell", commands)
    return lambda page, cheaper: run_page(page, tmp_path, cheaper, monkeypatch)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """DIV2K/ with three photographs of four windows each and their X2 LR; Set5/ with its five names."""
    for i in range(1, 4):
        put(tmp_path / "DIV2K", (f"DIV2K_train_HR/{i:04}.png", f"DIV2K_train_LR_bicubic/X2/{i:04}x2.png"), photo(i))
    for i, name in enumerate(("baby", "bird", "butterfly", "head")):
        put(tmp_path / "Set5", (f"HR/{name}.png", f"LR_bicubic/X2/{name}x2.png"), synthetic_photo(48, 60, i))
    put(tmp_path / "Set5", ("HR/woman.png", "LR_bicubic/X2/womanx2.png"), WOMAN)
    return tmp_path


@pytest.fixture
def faulty(photographs: Path) -> Path:
    """The same, and six faults: two LR images, a second copy, half a file, a near-duplicate, a leak."""
    leaking = photo(9)
    leaking[60:260, 24:264] = WOMAN
    darker = (photo(1) * 0.9 + 12).astype(np.uint8)
    for i, pixels in enumerate((photo(1), photo(1) + 1, photo(1), photo(1), darker, leaking), 4):
        put(photographs / "DIV2K", (f"DIV2K_train_HR/{i:04}.png", f"DIV2K_train_LR_bicubic/X2/{i:04}x2.png"), pixels)
    hr, lr = photographs / "DIV2K/DIV2K_train_HR", photographs / "DIV2K/DIV2K_train_LR_bicubic/X2"
    Image.fromarray(photo(1)[:120]).save(lr / "0004x2.png")
    (lr / "0005x2.png").unlink()
    (hr / "0006.png").write_bytes((hr / "0001.png").read_bytes())
    (hr / "0007.png").write_bytes((hr / "0002.png").read_bytes()[:-2000])
    return photographs


def photo(seed: int) -> np.ndarray:
    return synthetic_photo(492, 504, seed)


def put(folder: Path, names: tuple[str, str], hr: np.ndarray) -> None:
    """A photograph and its LR."""
    lr = to_pixels(resize.downscale(to_tensor(hr)[None], 2)[0])
    for name, pixels in zip(names, (hr, lr), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name, compress_level=1)


def shape(line: str) -> str:
    """A line without what differs from run to run: numbers, hashes, bars, widths of columns."""
    line = re.sub(BARS, " ", line)
    for pattern in (r"[0-9a-f]{16,64}", r"(?<=@)[0-9a-f]{8}", r"-?\d+(\.\d+)?(e-?\d+)?"):
        line = re.sub(pattern, "#", line)
    return " ".join(line.split())


def is_among(line: str, lines: set[str]) -> bool:
    """Of pictures a part of a line will do: what stands beside what depends on the numbers."""
    return shape(line) in lines or (re.search(BARS, line) is not None and any(shape(line) in found for found in lines))


def is_tree(block: pages.Block) -> bool:
    return block.text.partition("\n")[0].endswith("/")


def not_printed(page: str, printed: list[str]) -> list[str]:
    """Lines of the page's text blocks that the command before did not print, whatever the numbers are. Trees aside."""
    outputs = iter(printed)
    lines: set[str] = set()
    missing = []
    for block in all_blocks(page):
        if block.language in RUN:
            lines = {shape(line) for line in next(outputs).splitlines()}
        elif block.language == "text" and not is_tree(block):
            shown = [line for line in block.text.splitlines() if line.strip() not in ("", "...")]
            missing += [line for line in shown if not is_among(line, lines)]
    return missing


def test_what_is_not_printed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    page = [pages.Block("sh", "curate score"), pages.Block("text", "12 patches of 3 images, 0.5 s\nall done\n...\n")]
    monkeypatch.setitem(globals(), "all_blocks", lambda _: page)
    assert not_printed("page", ["7 patches of  1 images, 1e-05 s\n"]) == ["all done"]


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")  # Lightning's, of torch
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its tar files to Python
def test_the_trainers_page_runs(photographs: Path, run: Callable[..., list[str]]) -> None:
    page = "docs/trainers.md"
    printed = run(
        page,
        {
            "seed=0), 200)": "seed=0), 2)",
            "trainer(40)": "trainer(6)",
            "trainer(20)": "trainer(3)",
            "losses[20:]": "losses[3:]",
        },
    )
    assert not_printed(page, printed) == []
    stubs = ["basicsr/basicsr.yml", "kair/kair.json", "neosr/neosr.toml", "trainner/trainner.yml"]
    text = "".join((photographs / f"coreset-{stub}").read_text("utf-8") for stub in stubs)
    crops = re.findall(r"\| `(\w+_size)` \| .R px \| (\d+) \|", (pages.ROOT / page).read_text("utf-8"))
    assert len(crops) == len(stubs)
    assert [key for key, pixels in crops if not re.search(rf'\b{key}"?(:| =) {pixels}\b', text)] == []
    for block in all_blocks(page):
        if is_tree(block):  # every file of the export, and no other, but for the two that all have
            name, *patterns = block.text.split()
            patterns += ["manifest.parquet", "export.json"]
            out = photographs / name
            found = [file.relative_to(out) for file in out.rglob("*") if file.is_file()]
            assert [pattern for pattern in patterns if not any(file.match(pattern) for file in found)] == []
            assert [str(file) for file in found if not any(file.match(pattern) for pattern in patterns)] == []
        elif block.language in ("yaml", "toml", "json"):  # a stub, as it is but for where the export lies
            shown = block.text.replace("/data/", f"{photographs}/")
            (file,) = (stub for stub in stubs if f"/coreset-{stub.partition('/')[0]}/" in shown)
            lines = (photographs / f"coreset-{file}").read_text("utf-8").splitlines(keepends=True)
            assert shown == "".join(line for line in lines if not line.startswith("#"))
            stubs.remove(file)
    assert stubs == []


def test_the_tutorial_runs(faulty: Path, run: Callable[..., list[str]]) -> None:
    page = "docs/tutorial.md"
    study = (pages.ROOT / "pipelines/pruning_study.toml").read_text("utf-8")
    (faulty / "pipelines").mkdir()
    (faulty / "pipelines/pruning_study.toml").write_text(less(study), "utf-8")
    printed = run(page, {"--steps 1000 --crop 48": "--steps 3 --crop 48"})
    assert not_printed(page, printed) == []
    assert curate.info(faulty / "run-packed")["weights"] == curate.info(faulty / "run-refined")["weights"]
    assert "asc-50" in printed[-3] and "Set5" in printed[-3]


def less(study: str) -> str:
    """The published study with two core-sets, one network and one seed, of few steps."""
    for name in ("full", "asc-25", "asc-75", "des-25", "des-75", "refined-50"):
        study = re.sub(rf'\[\[select\]\]\nname = "{name}"\n.*?\n\n', "", study, flags=re.DOTALL)
    head, train, _ = study.split("[[train]]")
    return f"{head}[[train]]{train}".replace("[0, 1, 2]", "[0]").replace("6000", "2")


def test_what_a_stopped_command_says_is_in_the_tutorial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_caught", [signal.SIGTERM])
    assert f"\ncurate: {stopping.line()}\n" in (pages.ROOT / "docs/tutorial.md").read_text("utf-8")


def test_the_distil_page_runs(photographs: Path, run: Callable[..., list[str]]) -> None:
    """With few steps of small networks on small windows, and not many: `ldm` takes a tenth of a second for each."""
    for path in (photographs / "DIV2K/DIV2K_train_HR").iterdir():
        Image.fromarray(synthetic_photo(148, 160, int(path.stem))).save(path)
    quick = "--arch fsrcnn:scale=2,d=8,s=4,m=1 --steps 1 --pool 10 --net-steps 1 --real-batch 8"
    small = "--width 8 --denoiser-width 16 --batch-size 2 --crop 16 --autoencoder-crop 16"
    printed = run(
        "docs/distill.md",
        {
            "ingest DIV2K/DIV2K_train_HR store": "ingest DIV2K/DIV2K_train_HR store --patch 48 --step 48",
            "--patches 300 --size 96": f"--patches 6 --size 48 {quick}",
            "--patches 300 --space": f"--patches 6 --size 48 {quick} --space",
            "--steps 20000 -o run": "--steps 1 --crop 48 -o run",
            "tensorboard --logdir few/distill\n": "",
            "--autoencoder-steps 10000 --denoiser-steps 20000": f"--autoencoder-steps 1 --denoiser-steps 1 {small}",
            "sample model -o samples.png": "sample model -o samples.png --steps 2",
        },
    )
    assert "origin: distilled" in printed[0] and "6 patches, " in printed[0]
    assert "16 samples: samples.png" in printed[1] and "6 patches, " in printed[1]


def test_the_search_page_runs(photographs: Path, run: Callable[..., list[str]]) -> None:
    """With few steps of a small super-net on small windows; its study is run by a slow test."""
    printed = run(
        "docs/nas.md",
        {
            "ingest DIV2K/DIV2K_train_HR store": "ingest DIV2K/DIV2K_train_HR store --patch 48 --step 48",
            "--steps 200000 --precision bf16": "--features 4 --crop 30 --batch-size 1 --warmup 1 --steps 2",
            "--crop 128 --steps 100000": "--crop 48 --batch-size 2 --steps 1",
            "curate run pipelines/nas_proxy_small.toml study DIV2K/DIV2K_train_HR --test Set5": "curate info store",
        },
    )
    assert " parameters, " in printed[0] and ": search/genotype.json" in printed[0] and ": found.svg" in printed[0]
    assert "conv_7x7" in printed[1]


def test_the_compression_page_runs(photographs: Path, run: Callable[..., list[str]]) -> None:
    """With few steps of small networks on small windows."""
    quick = (
        "--search-steps 1 --batch-size 2 --crop 24 --patches 4 --per-pass 16 --finetune-steps 1 "
        "--finetune-batch-size 2 --finetune-crop 24 --device cpu"
    )
    printed = run(
        "docs/drc.md",
        {
            "ingest DIV2K/DIV2K_train_HR store": "ingest DIV2K/DIV2K_train_HR store --patch 48 --step 48",
            "drn:scale=4 --dual 0.1 --crop 384 --batch-size 32 --steps 1000000": (
                "drn:scale=4,features=4,blocks=1 --dual 0.1 --crop 24 --batch-size 2 --steps 1"
            ),
            "--ratio 0.3": f"--ratio 0.3 {quick}",
            "edsr:scale=4 --dual 0.1 --steps 300000": "edsr:scale=4,features=8,blocks=1 --dual 0.1 --crop 24 --steps 1",
            "--config DRNS_x4_30.txt": "--config 1.4.8.8.8.8",
        },
    )
    assert "31,527 -> " in printed[0] and " ms for 320x180 on cpu: small" in printed[0]
    assert "down.0.dual_module: " in printed[2] and " with dual networks, " in printed[4]


def test_the_questions_page_runs(photographs: Path, run: Callable[..., list[str]]) -> None:
    page = "docs/faq.md"
    printed = run(page, {})
    assert not_printed(page, printed) == []
    psnr = [float(number) for number in re.findall(r": ([\d.]+) dB", printed[1])]
    assert psnr[0] - psnr[1] == pytest.approx(1.32, abs=0.011)  # two roundings
    shares = dict(re.findall(r"^(.*?): ([\d.]+) %", "".join(printed), re.MULTILINE))
    assert float(shares.pop("curate")) == 0 and min(map(float, shares.values())) > 0
    assert "243 240" in "".join(printed) and "[0, 240, 480, 720, 876] 40" in "".join(printed)
