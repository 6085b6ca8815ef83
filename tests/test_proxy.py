"""Searches of a study: each on its manifest, what it found trained and measured, and how far they agree."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save
from typer.testing import CliRunner

from curate import pipeline, proxy
from curate.archs.dlsr import Dlsr
from curate.checkpoint import Checkpoint, full_spec
from curate.cli import app
from curate.config import NasConfig, TrainConfig
from curate.errors import DataError
from curate.evaluation import averages, evaluate
from curate.genotype import OPERATIONS, Genotype
from curate.macs import multiply_adds, parameters
from curate.manifest import Manifest
from curate.nas import SearchReport
from curate.plan import Pipeline
from curate.proxy import Found, agreement

FOUND = [  # in the order of the searches: `all` with seeds 0 and 5, then `few`
    "conv_1x1+sep_7x7+sep_5x5@12.23.24.45",
    "conv_1x1+sep_7x7+dil_3x3@12.12.24.45",
    "conv_1x1+sep_3x3+sep_5x5@12.23.13.45",
    "conv_1x1+sep_7x7+dil_3x3@12.12.24.45",
]
STUDY = """
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
strategy = "random:seed={seed}"
keep = 0.25
[[nas]]
name = "search"
manifests = ["all", "few"]
seeds = [0, 5]
options = { steps = 4, warmup = 1, features = 4, crop = 32, batch_size = 2 }
[nas.retrain]
manifest = "all"
options = { steps = 2, batch_size = 2, crop = 36 }
"""


class Fake:
    """Stands for `curate.nas.search`: finds what it is told to, and again what it has found before.

    And for training and measuring, which take a second a network.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[Manifest, NasConfig, Path]] = []
        self.trained: list[tuple[Dlsr, Manifest, TrainConfig, Path]] = []
        self.alpha: Callable[[int], np.ndarray[Any, Any]] | None = lambda number: np.random.default_rng(number).normal(
            size=(3, 9)
        )

    def __call__(self, manifest: Manifest, config: NasConfig, out: Path, **_: Any) -> SearchReport:
        if not (out / "genotype.json").exists():
            number = len(self.asked)
            self.asked.append((manifest, config, out))
            out.mkdir(parents=True)
            if self.alpha:
                (out / "architecture.safetensors").write_bytes(save({"alpha": self.alpha(number).astype(np.float32)}))
            Genotype.parse(FOUND[number]).save(out / "genotype.json")
        genotype = Genotype.load(out / "genotype.json")
        arch = Dlsr(config.scale, str(genotype), config.features)
        counts = parameters(arch), multiply_adds(arch, 720, 1280)
        return SearchReport(genotype, out / "genotype.json", *counts, config.steps, 8.25)

    def train(self, arch: Dlsr, manifest: Manifest, config: TrainConfig, out: Path, **_: Any) -> Checkpoint:
        self.trained.append((arch, manifest, config, out))
        return Checkpoint(arch, {}, {})

    def measured(self, made: Checkpoint, record: Path, test: Path, device: str) -> dict[str, float]:
        return {"psnr": 30.0 + len(self.trained), "ssim": 0.9}


@pytest.fixture
def finding(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A search that is none; what it finds is trained."""
    made = Fake()
    monkeypatch.setattr(proxy, "search", made)
    return made


@pytest.fixture
def fake(finding: Fake, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A search, a training and a measurement that are none."""
    monkeypatch.setattr(proxy, "train", finding.train)
    monkeypatch.setattr(proxy, "measured", finding.measured)
    return finding


@pytest.fixture
def run(tmp_path: Path, photo_folder: Path, write_photos: Callable[..., Path]) -> Callable[..., Any]:
    """A function (text of a study, folder) -> the rows of its searches."""
    bench = write_photos(tmp_path / "Bench", [(60, 72)], 9)

    def run(text: str = STUDY, out: str = "out") -> Any:
        (tmp_path / "study.toml").write_text(text)
        pipeline.run(tmp_path / "study.toml", tmp_path / out, [photo_folder], [bench])
        return pq.read_table(tmp_path / out / "nas.parquet").to_pylist()

    return run


def test_each_manifest_is_searched_with_each_seed_and_what_is_found_is_trained(
    run: Callable[..., Any], fake: Fake, tmp_path: Path
) -> None:
    rows, out = run(), tmp_path / "out"
    assert [(row["manifest"], row["seed"]) for row in rows] == [("all", 0), ("all", 5), ("few", 0), ("few", 5)]
    labels = ["all", "all", "few-seed0", "few-seed5"]
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        manifest, config, folder = fake.asked[number]
        assert manifest.digest() == Manifest.load(out / f"{label}.parquet").digest() and row["patches"] == len(manifest)
        assert config == Pipeline.load(tmp_path / "study.toml").nas[0].config(row["seed"])
        assert folder == out / "nas" / f"search_{row['manifest']}_{row['seed']}"
        arch, everything, trained, where = fake.trained[number]
        assert arch == Dlsr(2, FOUND[number], 4) and where == folder / "retrained"
        assert everything.digest() == Manifest.load(out / "all.parquet").digest()
        assert trained == TrainConfig(steps=2, batch_size=2, crop=36, seed=row["seed"])
        assert (row["psnr_Bench"], row["ssim_Bench"]) == (31.0 + number, 0.9)
        assert row["genotype"] == FOUND[number] and row["name"] == "search"
        assert row["parameters"] == parameters(arch) and row["seconds"] == 8.25 and row["steps"] == 4
        assert row["multiply_adds"] == multiply_adds(arch, 720, 1280)
    panel = ElementTree.parse(out / "nas.svg").getroot()
    assert len(panel.findall("{*}circle")) == len(rows)
    assert (out / "nas" / "search.svg").read_text().startswith("<svg")


def test_searches_are_compared_with_the_references(run: Callable[..., Any], fake: Fake, tmp_path: Path) -> None:
    rows = run()
    assert [row["operations_agreement"] for row in rows] == [None, None, 2 / 3, 1.0]  # of the same seed
    assert [row["operations_agreement_other_seeds"] for row in rows] == [2 / 3, 2 / 3, 1 / 3, 2 / 3]
    assert [row["inputs_agreement"] for row in rows] == [None, None, 0.75, 1.0]
    alphas = [fake.alpha(number) for number in range(4)] if fake.alpha else []
    shares = [(np.exp(alpha) / np.exp(alpha).sum(1, keepdims=True)).ravel() for alpha in alphas]
    for row, mine, same in zip(rows[2:], shares[2:], shares, strict=False):
        assert row["alpha_correlation"] == pytest.approx(np.corrcoef(mine, same)[0, 1], abs=1e-6)
    assert rows[0]["alpha_correlation_other_seeds"] == pytest.approx(np.corrcoef(*shares[:2])[0, 1], abs=1e-6)
    lines = (tmp_path / "out" / "nas.md").read_text().splitlines()
    cells = {line.split(" | ")[0]: line.strip(" |").split(" | ")[1:] for line in lines if line.startswith("| ")}
    head = cells["| searched on"]
    assert head[:4] == ["patches", "seconds", "parameters", "multiply-adds, G"] and head[-1] == "PSNR Bench"
    operations = head.index("operations agreement")
    assert {name.removeprefix("| "): found[operations] for name, found in cells.items()} == {
        "searched on": "operations agreement",
        "all": "-",
        "few": "0.83 ± 0.24",
        "all, other seeds": "0.67 ± 0.00",
        "few, other seeds": "0.50 ± 0.24",
        "by chance": "0.11",
    }
    assert cells["| by chance"][operations + 1] == "0.56" and cells["| by chance"][-1] == "-"
    assert f"| all | {rows[0]['patches']} | 8 ± 0 | " in "\n".join(lines) and "trained on all for 2 steps" in lines[-1]


def test_what_was_found_is_trained_and_measured_once(
    run: Callable[..., Any], finding: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = STUDY.replace('["all", "few"]', '["few"]').replace("[0, 5]", "[5]")
    real = proxy.train
    monkeypatch.setattr(proxy, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(text)
    assert not (tmp_path / "out" / "nas.parquet").exists()
    monkeypatch.setattr(proxy, "train", real)
    (row,) = rows = run(text)
    assert len(finding.asked) == 1
    made = Checkpoint.load(tmp_path / "out" / "nas" / "search_few_5" / "retrained")
    assert full_spec(made.arch) == full_spec(Dlsr(2, FOUND[0], 4)) and made.recipe["config"]["seed"] == 5
    assert made.recipe["manifest"]["digest"] == Manifest.load(tmp_path / "out" / "all.parquet").digest()
    assert {"psnr": row["psnr_Bench"], "ssim": row["ssim_Bench"]} == averages(evaluate(made, tmp_path / "Bench"))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    monkeypatch.setattr("curate.measurement.evaluate", stopped)
    monkeypatch.setattr("curate.training._fit", stopped)
    assert run(text) == rows and len(finding.asked) == 1
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def stopped(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_what_a_method_does_not_have_is_null(run: Callable[..., Any], fake: Fake, tmp_path: Path) -> None:
    fake.alpha = None
    text = STUDY[: STUDY.index("[nas.retrain]")]
    rows = run(text.replace("steps = 4", 'method = "random", connections = false, steps = 4'))
    for row in rows:
        assert not any(name.startswith(("psnr", "ssim")) for name in row)
        assert {row[name] for name in row if name.startswith(("inputs", "alpha"))} == {None}
    assert [row["operations_agreement"] for row in rows] == [None, None, 2 / 3, 1.0]
    page = (tmp_path / "out" / "nas.md").read_text()
    assert "random, x2, 4 maps" in page and "PSNR" not in page
    assert "| by chance | - | - | - | - | 0.11 | - | - |" in page.splitlines()
    assert not (tmp_path / "out" / "nas" / "search_all_0" / "retrained").exists()


def test_one_seed_has_no_others(run: Callable[..., Any], fake: Fake, tmp_path: Path) -> None:
    rows = run(STUDY.replace("seeds = [0, 5]", ""))
    assert [row["operations_agreement_other_seeds"] for row in rows] == [None, None]
    page = (tmp_path / "out" / "nas.md").read_text()
    assert "other seeds |" not in page and "±" not in page


def test_a_study_has_the_results_that_it_names(run: Callable[..., Any], fake: Fake, tmp_path: Path) -> None:
    def there() -> set[str]:
        return {path.name for path in (tmp_path / "out").glob("*.*") if path.stem in ("nas", "result")}

    train = '[[train]]\narchs = ["fsrcnn:scale=2,d=4,s=2,m=1"]\noptions = { steps = 1, batch_size = 2, crop = 24 }\n'
    nas, both = ({f"{name}{end}" for end in (".parquet", ".md", ".svg")} for name in ("nas", "result"))
    run(STUDY.replace("seeds = [0, 5]", ""))
    assert there() == nas and list(pipeline.results(tmp_path / "out")) == ["nas"]
    run(STUDY.replace("seeds = [0, 5]", "") + train)
    assert there() == nas | both and list(pipeline.results(tmp_path / "out")) == ["result", "nas"]
    with pytest.raises(FileNotFoundError):  # there is no nas.parquet any more
        run(STUDY[: STUDY.index("[[nas]]")] + train)
    assert there() == both


def test_the_command_prints_both_results(run: Callable[..., Any], fake: Fake, tmp_path: Path) -> None:
    text = STUDY.replace("seeds = [0, 5]", "").replace("[[nas]]", '[[train]]\narchs = ["fsrcnn:scale=2,d=4,s=2,m=1"]\n'
        "options = { steps = 1, batch_size = 2, crop = 24 }\n[[nas]]")  # fmt: skip
    run(text)
    command = ["run", *(str(tmp_path / name) for name in ("study.toml", "out", "photos")), "--test"]
    done = CliRunner().invoke(app, [*command, str(tmp_path / "Bench")])
    assert done.exit_code == 0, done.output
    assert "| trained on |" in done.stdout and "| searched on |" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("result.parquet, result.md, result.svg, nas.parquet, nas.md, nas.svg")
    rows = json.loads(CliRunner().invoke(app, [*command, str(tmp_path / "Bench"), "--json"]).stdout)
    assert [("arch" in row, row.get("genotype")) for row in rows] == [
        *((True, None),) * 2, (False, FOUND[0]), (False, FOUND[1])
    ]  # fmt: skip


def test_a_damaged_architecture_is_said(tmp_path: Path) -> None:
    file = tmp_path / "architecture.safetensors"
    assert proxy._shares(tmp_path) is None
    file.write_bytes(save({"alpha": np.zeros((3, 9), np.float32)}))
    assert proxy._shares(tmp_path) == pytest.approx(np.full(27, 1 / 9))
    for content in (b"", b"\xff" * 40, save({"beta3": np.zeros(2)}), save({"alpha": np.zeros((9, 3))})):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"architecture\.safetensors' is not a search's architecture") as error:
            proxy._shares(tmp_path)
        assert str(error.value).isprintable()


def test_agreement_by_hand() -> None:
    rng = np.random.default_rng(0)

    def some() -> Found:
        inputs = tuple(tuple(rng.choice(range(1, cell), 2, replace=False).tolist()) for cell in (3, 4, 5, 6))
        shares = rng.dirichlet(np.ones(9), 3).ravel()
        return Found(tuple(rng.choice(OPERATIONS, 3).tolist()), inputs, shares)

    found = [some() for _ in range(200)]
    names = ["operations_agreement", "inputs_agreement", "alpha_correlation"]
    for one in found[:5]:
        assert agreement(one, one) == pytest.approx(dict.fromkeys(names, 1.0))
        assert agreement(one, found[7]) == pytest.approx(agreement(found[7], one))
        assert one.inputs is not None
        turned = one._replace(inputs=tuple(chosen[::-1] for chosen in one.inputs))  # their order is not compared
        assert agreement(one, turned)["inputs_agreement"] == 1.0
    one = found[0]
    assert agreement(one, one._replace(inputs=None, shares_A=None)) == dict.fromkeys(names) | {names[0]: 1.0}
    assert agreement(one, one._replace(shares_A=np.full(27, 1 / 9)))[names[2]] is None
    pairs = [agreement(found[i], found[j]) for i in range(60) for j in range(60, 200)]
    by_chance = proxy._chance(NasConfig())
    for name in names[:2]:  # over 8,400 pairs
        assert np.mean([pair[name] for pair in pairs]) == pytest.approx(by_chance[name], abs=0.03)
    assert by_chance["inputs_agreement"] == pytest.approx((1 + 5 / 9 + 7 / 18 + 3 / 10) / 4)
    assert "inputs_agreement" not in proxy._chance(NasConfig(connections=False))


@pytest.mark.slow
def test_a_study_with_real_searches(run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of everything and of a quarter: what is in the table is what the searches' files and their networks say."""
    text = STUDY.replace("seeds = [0, 5]", "seeds = [5]").replace("steps = 4, warmup = 1", "steps = 3, warmup = 1")
    rows, out = run(text), tmp_path / "out"
    for row, label in zip(rows, ("all", "few-seed5"), strict=True):
        folder = out / "nas" / f"search_{row['manifest']}_5"
        found = Genotype.load(folder / "genotype.json")
        assert row["genotype"] == str(found) and row["steps"] == 3 and row["seconds"] > 0
        assert row["patches"] == len(Manifest.load(out / f"{label}.parquet"))
        made = Checkpoint.load(folder / "retrained")
        assert isinstance(made.arch, Dlsr) and Genotype.parse(made.arch.genotype) == found
        assert row["parameters"] == parameters(made.arch)
        assert {"psnr": row["psnr_Bench"], "ssim": row["ssim_Bench"]} == averages(evaluate(made, tmp_path / "Bench"))
    both = [
        load_file(out / "nas" / f"search_{name}_5" / "architecture.safetensors")["alpha"] for name in ("all", "few")
    ]
    shares = [(np.exp(alpha) / np.exp(alpha).sum(1, keepdims=True)).ravel() for alpha in both]
    assert rows[1]["alpha_correlation"] == pytest.approx(np.corrcoef(*shares)[0, 1], abs=1e-4)
    assert ElementTree.parse(out / "nas" / "search.svg").getroot().tag.endswith("svg")
    monkeypatch.setattr("curate.nas._fit", stopped)
    monkeypatch.setattr("curate.training._fit", stopped)
    assert run(text) == rows
