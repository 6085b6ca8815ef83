"""Info says what a path is and what there is in it, as JSON can hold it, and refuses what it is not."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import scipy.io
import torch
from conftest import scene
from PIL import Image

from curate import __version__, display, plugins
from curate.archs.fsrcnn import Fsrcnn
from curate.archs.imdn import Imdn
from curate.archs.srcnn import Srcnn
from curate.checkpoint import MODEL_FILE, Checkpoint, read_recipe, weights_hash
from curate.distribution import of_manifest, of_store
from curate.errors import CurateError, DataError, UsageError
from curate.genotype import Genotype
from curate.ingestion import ingest
from curate.inspection import info, parse_size
from curate.leakage import leaks
from curate.macs import convention, multiply_adds, parameters
from curate.manifest import Manifest
from curate.selection import select
from curate.store import Store

SCORES: list[float | None] = [1.5, math.nan, 3.0, 0.5, 2.0, None, 7.0, 1.0, 4.0]  # of the first two units
Write = Callable[..., Store]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, write_store: Write) -> Path:
    """A folder with `store`, `chosen.parquet` and `drawn.parquet` of it, and `run`, a checkpoint of SRCNN x3."""
    folder = tmp_path_factory.mktemp("place")
    store = write_store(folder / "store", (5, 4, 3), {"sobel": SCORES, "srcnn:scale=3": [0.0] * 12})
    select(store, "des", by="sobel", keep=0.5).save(folder / "chosen.parquet")
    select(store, "random").save(folder / "drawn.parquet")
    checkpoint(Srcnn(scale=3)).save(folder / "run")
    return folder


def checkpoint(arch: Any) -> Checkpoint:
    return Checkpoint(arch, arch.build().state_dict(), {"steps": 20, "config": {"seed": 0}})


def refusal(kind: type[CurateError], path: Path, **asked: Any) -> str:
    """The message, of one line, with which this is refused."""
    with pytest.raises(kind) as error:
        info(path, **asked)
    message = str(error.value)
    assert message.isprintable() and len(message) < 400 + len(str(path))
    return message


def test_a_store_has_its_grid_its_counts_and_its_scores(place: Path) -> None:
    store = Store.open(place / "store")
    fingerprints = {found.record.label: found.record.fingerprint for found in store.score_sets()}
    folders = ("shards", "tables/images", "tables/cells", "tables/patches")
    files_of_units = [path for name in folders for path in (place / "store" / name).iterdir()]
    expected = {
        "kind": "store",
        "patch": 24,
        "step": 12,
        "images": 3,
        "refused": 0,
        "patches": 12,
        "shards": 3,
        "bytes": sum(path.stat().st_size for path in files_of_units),
        "digest": store.digest(),
        "created_by": f"curate {__version__}",
        "packed": None,
        "scores": {
            "sobel": {"patches": 9, "fingerprint": fingerprints["sobel"]},
            "srcnn:scale=3": {"patches": 12, "fingerprint": fingerprints["srcnn:scale=3"]},
        },
        "flagged": 0,
        "checks": {},
    }
    for path in (place / "store", str(place / "store")):
        content = info(path)
        assert content == {**expected, "histogram": of_store(store)} and next(iter(content)) == "kind"
    assert content["histogram"].keys() == content["scores"].keys()


def test_an_ingested_store_counts_what_was_refused(tmp_path: Path, photos: Callable[..., Path]) -> None:
    folder = photos(((50, 61), (36, 48), (12, 40)))  # the last is smaller than a patch
    (folder / "broken.png").write_bytes(b"no picture")
    report = ingest([folder], tmp_path / "store", patch=24, step=12, shard_size=4000)
    content = info(tmp_path / "store")
    assert (content["images"], content["refused"]) == (report.added, len(report.refused)) == (2, 2)
    assert (content["patches"], content["shards"]) == (report.patches, report.shards)
    assert content["scores"] == {} and content["bytes"] >= report.bytes > 0


def test_a_store_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for seed in range(3):
        Image.fromarray(scene(120, 150, seed)).convert("RGB").save(tmp_path / "photos" / f"{seed}.png")
    ingest([tmp_path / "photos"], tmp_path / "store", patch=48, step=24)
    leaks(tmp_path / "store", tmp_path / "photos", name="itself")
    content = info(tmp_path / "store")
    assert content["flagged"] == 3
    assert list(content["checks"].values()) == [{"label": "itself", "images": 3}]


def test_an_empty_store_is_one(tmp_path: Path) -> None:
    Store.create(tmp_path / "store", patch=30, step=7)
    content = info(tmp_path / "store")
    assert (content["kind"], content["patch"], content["step"]) == ("store", 30, 7)
    assert {content[name] for name in ("images", "refused", "patches", "shards", "bytes")} == {0}


def test_an_unfinished_scorer_has_scored_nothing(tmp_path: Path, write_store: Write) -> None:
    write_store(tmp_path / "store", (5,), {"sobel": []})
    assert info(tmp_path / "store")["scores"]["sobel"]["patches"] == 0


def test_a_manifest_has_its_counts_and_its_recipe(place: Path) -> None:
    manifest = Manifest.load(place / "chosen.parquet")
    with Manifest.scan(place / "chosen.parquet") as scan:
        histogram = of_manifest(scan)
    assert info(place / "chosen.parquet") == {
        "kind": "manifest",
        "patches": 4,
        "images": 2,
        "score": {"lowest": 2.0, "highest": 7.0},
        "recipe": manifest.recipe.model_dump(mode="json"),
        "histogram": histogram,
    }
    assert manifest.recipe.counts["without_finite_score"] == 5
    assert histogram["window"] == {"first": 0, "last": 3, "gaps": 0, "low": 2.0, "high": 7.0}


def test_a_manifest_without_scores_has_none(place: Path) -> None:
    content = info(str(place / "drawn.parquet"))
    assert content["patches"] == 6 and content["score"] == {"lowest": None, "highest": None}


def test_a_manifest_need_not_be_called_parquet_nor_have_its_store(place: Path, tmp_path: Path) -> None:
    (tmp_path / "chosen").write_bytes((place / "chosen.parquet").read_bytes())
    there, moved = info(place / "chosen.parquet"), info(tmp_path / "chosen")
    drawn, alone = there.pop("histogram"), moved.pop("histogram")
    assert there == moved and drawn["note"] is None and drawn["counts"] is not None
    assert alone["note"] == f"its store is not at '{tmp_path / 'store'}' any more" and alone["counts"] is None


def test_images_are_counted_over_all_pieces(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [info(place / name) for name in ("chosen.parquet", "drawn.parquet")]
    monkeypatch.setattr("curate.tables._BATCH_ROWS", 1)
    assert [info(place / name) for name in ("chosen.parquet", "drawn.parquet")] == whole


@pytest.mark.parametrize("name", ["store", "chosen.parquet", "drawn.parquet", "run"])
def test_it_fits_into_json_and_on_lines_for_people(place: Path, name: str) -> None:
    content = info(place / name)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    lines = display.description(content)
    assert lines[0] == f"kind: {content['kind']}" and all(line.isprintable() for line in lines)


def test_looking_changes_nothing(place: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in place.rglob("*") if path.is_file()}
    for name in ("store", "chosen.parquet", "run"):
        info(place / name)
    info(place / "run", size=(1280, 720))
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in place.rglob("*") if path.is_file()} == before


# Checkpoints of curate's own


def test_a_checkpoint_has_its_record_and_its_parameters(place: Path) -> None:
    for path in (place / "run", str(place / "run"), place / "run" / MODEL_FILE):
        content = info(path)
        assert content == {"kind": "checkpoint", **read_recipe(path), "parameters": 57_281}
        assert next(iter(content)) == "kind"
        assert (content["arch"], content["training"]["steps"]) == ("srcnn:scale=3,kernel=9-5-5", 20)


@pytest.mark.parametrize("asked", [{}, {"arch": "srcnn"}, {"arch": "srcnn:scale=3,kernel=9-5-5"}])
def test_a_size_adds_multiply_adds_and_what_they_are(place: Path, asked: dict[str, str]) -> None:
    without, content = info(place / "run"), info(place / "run", size=(1280, 720), **asked)
    line = convention(Srcnn(scale=3), 720, 1280)
    assert content == {**without, "multiply_adds": multiply_adds(Srcnn(scale=3), 720, 1280), "convention": line}
    assert content["multiply_adds"] == 57_184 * 1281 * 720 and "1280x720 px from 427x240 px" in line
    assert info(place / "run", **asked) == without
    assert json.loads(json.dumps(content, allow_nan=False)) == content


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_parameters_are_numbers_not_bytes(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in Fsrcnn().build().state_dict().items()}
    Checkpoint(Fsrcnn(), state, {}).save(tmp_path)
    assert info(tmp_path)["parameters"] == info(tmp_path, size=(64, 64))["parameters"] == 12_809


def test_it_answers_without_torch_unless_a_network_is_built(place: Path) -> None:
    names = ("store", "chosen.parquet", "run", f"run/{MODEL_FILE}")
    code = "import sys, curate.inspection as i; [i.info(p) for p in sys.argv[1:]]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, *(str(place / name) for name in names)], check=True)


def test_another_arch_than_the_files_is_refused(place: Path) -> None:
    for asked in ({}, {"size": (64, 64)}):
        assert refusal(UsageError, place / "run", arch="fsrcnn", **asked).endswith("not for fsrcnn")
        assert "srcnn:scale=2" in refusal(UsageError, place / "run", arch="srcnn:scale=2", **asked)


def test_a_size_that_cannot_be_is_refused(place: Path) -> None:
    assert refusal(UsageError, place / "run", size=(2, 9)) == "a size should be at least 3x3 px, found 2x9"


def test_a_damaged_checkpoint_is_refused(place: Path, tmp_path: Path) -> None:
    whole = (place / "run" / MODEL_FILE).read_bytes()
    for data in (b"", whole[:100], whole[:-1], b"{" + whole[1:]):
        (tmp_path / MODEL_FILE).write_bytes(data)
        assert "is not a safetensors file, or is damaged" in refusal(DataError, tmp_path)
    (tmp_path / MODEL_FILE).write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    assert info(tmp_path) == info(place / "run")  # the header is whole
    assert "not those that were saved" in refusal(DataError, tmp_path, size=(64, 64))


def test_weights_that_are_not_a_run_s_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").write_bytes(b"")
    for asked in ({}, {"size": (64, 64)}):
        assert "has no model.safetensors" in refusal(UsageError, tmp_path, **asked)
    assert "no such file" in refusal(UsageError, tmp_path / "net.safetensors")


def test_an_arch_outside_curate_is_imported_only_if_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(sys.modules[Srcnn.__module__].__file__ or "").read_text()
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "outside.py").write_text(source.replace("class Srcnn(", "class Outside("))
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint(plugins.parse("archs", "my_lab.outside:scale=4")).save(tmp_path / "run")
    for name in ("my_lab.outside", "my_lab"):
        monkeypatch.delitem(sys.modules, name)

    content = info(tmp_path / "run")
    assert (content["arch"], content["parameters"]) == ("my_lab.outside:scale=4,kernel=9-5-5", 57_281)
    for asked in ({}, {"arch": "srcnn:scale=4"}):
        message = refusal(UsageError, tmp_path / "run", size=(1280, 720), **asked)
        assert "is for an arch outside curate" in message
        assert message.endswith("give --arch my_lab.outside:scale=4,kernel=9-5-5")
    assert "my_lab" not in sys.modules

    content |= {"multiply_adds": 57_184 * 1280 * 720, "convention": convention(Srcnn(scale=4), 720, 1280)}
    assert info(tmp_path / "run", size=(1280, 720), arch="my_lab.outside") == content


def test_running_statistics_are_parameters_only_where_the_network_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
from dataclasses import dataclass
from torch import nn
from curate.archs import Arch

@dataclass(frozen=True)
class Normed(Arch):
    scale: int = 2
    colour = "rgb"
    peak = 1.0

    def build(self):
        return nn.Sequential(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.PixelShuffle(2))
"""
    (tmp_path / "my_lab2").mkdir()
    (tmp_path / "my_lab2" / "normed.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint(plugins.parse("archs", "my_lab2.normed")).save(tmp_path / "run")
    assert info(tmp_path / "run", arch="my_lab2.normed")["parameters"] == 3 * 12 + 12 + 2 * 12
    assert info(tmp_path / "run")["parameters"] == 3 * 12 + 12 + 2 * 12 + 2 * 12 + 1  # and the number of batches


# Checkpoints of others


@pytest.mark.parametrize("name", ["net.pth", "net.pt", "net.safetensors", "NET.PTH"])
def test_a_public_file_has_its_arch_its_weights_and_its_parameters(tmp_path: Path, name: str) -> None:
    state = Imdn(scale=3).build().state_dict()
    if name.endswith("safetensors"):
        safetensors.torch.save_file(state, tmp_path / name, {"format": "pt"})
    else:
        torch.save({"params": state}, tmp_path / name)
    content = info(tmp_path / name)
    spec = "imdn:scale=3,features=64,modules=6"
    expected = {"kind": "checkpoint", "arch": spec, "weights": weights_hash(state), "parameters": 703_059}
    assert content == expected and next(iter(content)) == "kind"
    sized = info(tmp_path / name, size=(1280, 720), arch="imdn")
    counted = multiply_adds(Imdn(scale=3), 720, 1280)
    assert sized == {**expected, "multiply_adds": counted, "convention": convention(Imdn(scale=3), 720, 1280)}


def test_weights_that_do_not_tell_the_network_need_an_arch(tmp_path: Path) -> None:
    torch.save(Srcnn().build().state_dict(), tmp_path / "net.pth")
    for asked in ({}, {"size": (1280, 720)}):
        message = refusal(UsageError, tmp_path / "net.pth", **asked)
        assert message.endswith("fits srcnn of some scale: say which with --arch srcnn:scale=2,kernel=9-5-5")
    content = info(tmp_path / "net.pth", arch="srcnn:scale=4")
    assert (content["arch"], content["parameters"]) == ("srcnn:scale=4,kernel=9-5-5", 57_281)
    assert "does not fit imdn" in refusal(DataError, tmp_path / "net.pth", arch="imdn")
    assert "no 'nothing' in curate.archs" in refusal(UsageError, tmp_path / "net.pth", arch="nothing")


def test_matlab_files_are_checkpoints(tmp_path: Path) -> None:
    draw = np.random.default_rng(0).random
    shapes = {"1": (81, 64), "2": (64, 1, 32), "3": (32, 25)}
    weights = {f"weights_conv{layer}": draw(shape) for layer, shape in shapes.items()}
    biases = {f"biases_conv{layer}": draw((size, 1)) for layer, size in (("1", 64), ("2", 32), ("3", 1))}
    scipy.io.savemat(tmp_path / "net.mat", weights | biases)
    content = info(tmp_path / "net.mat", arch="srcnn:scale=3", size=(1280, 720))
    assert content["arch"] == "srcnn:scale=3,kernel=9-1-5"
    assert content["parameters"] == parameters(Srcnn(kernel="9-1-5")) == 8_129
    assert content["multiply_adds"] == 8_032 * 1281 * 720


def test_a_file_of_no_weights_is_refused(tmp_path: Path) -> None:
    for name in ("net.pth", "net.pt", "net.mat", "net.safetensors"):
        (tmp_path / name).write_bytes(b"no weights")
        refusal(DataError, tmp_path / name)
        assert "no such file" in refusal(UsageError, tmp_path / f"no{name}")


# Sizes


@pytest.mark.parametrize(("text", "size"), [("1280x720", (1280, 720)), (" 7X5\n", (7, 5)), ("999999x1", (999_999, 1))])
def test_a_size_is_width_and_height(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "720", "1280x", "x720", "1280*720", "1280,720", "1280x720x3", "1280 x 720", "1280x720px", "-1x720"),
        *("0x720", "1280x0", "1280.0x720", "1e3x720", "1000000x720", "\u0661x\u0662", "1280x720\n\x1b[31m"),
    ],
)
def test_what_is_no_size_is_a_mistake_of_the_users(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_size(text)
    message = str(error.value)
    assert (
        message.startswith("--size should be WIDTHxHEIGHT in px, such as 1280x720, found '") and message.isprintable()
    )


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"size": (1280, 720)}, "--size"),
        ({"arch": "srcnn"}, "--arch"),
        ({"size": (1280, 720), "arch": "srcnn"}, "--size and --arch"),
    ],
)
def test_only_checkpoints_have_a_network(place: Path, asked: dict[str, Any], named: str) -> None:
    for name, kind in (("store", "store"), ("chosen.parquet", "manifest")):
        message = refusal(UsageError, place / name, **asked)
        assert message.startswith(f"{named} should go with a checkpoint (a run's folder, or a file of type .mat, ")
        assert message.endswith(f"found the {kind} '{place / name}'")


# What is none of these


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("nothing", "found nothing"),
        ("folder", "found a folder without a store.json or a model.safetensors"),
        ("", "found a folder without"),
        ("a\n\x1b[31m", r"a\n\x1b[31m' is not a store, a manifest or a checkpoint: found nothing"),
        ("memory://nowhere/store", "is not a store, a manifest or a checkpoint: found nothing"),
    ],
)
def test_what_is_none_of_them_is_a_mistake_of_the_users(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError) as refused:
        info(name if "://" in name else tmp_path / name)
    assert found in str(refused.value) and str(refused.value).isprintable()
    assert refused.value.exit_code == 2


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(DataError, match="is not a manifest"):
        info(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("path", "content", "part"),
    [
        ("store.json", "{}", "is not a valid StoreHeader: patch: Field required"),
        ("store.json", '{"format": 2}', "update curate"),
        ("commits/ingest/000000.json", "{}", "is not a valid CommitRecord"),
        ("tables/images/000000.parquet", "", "should have"),
    ],
)
def test_a_damaged_store_is_refused(tmp_path: Path, write_store: Write, path: str, content: str, part: str) -> None:
    write_store(tmp_path / "store", (5,))
    (tmp_path / "store" / path).write_text(content)
    with pytest.raises(DataError) as refused:
        info(tmp_path / "store")
    assert part in str(refused.value) and str(refused.value).isprintable() and refused.value.exit_code == 1


def test_a_run_that_was_stopped_says_how_far_it_is(photos: Callable[..., Path], tmp_path: Path) -> None:
    from curate.config import TrainConfig
    from curate.training import train

    class Stop(BaseException):
        pass

    def progress(done: int, total: int, note: str = "") -> None:
        if done == 5:
            raise Stop

    ingest([photos(((50, 61),))], tmp_path / "store", patch=24)
    manifest = select(tmp_path / "store", "random", keep=1)
    config = TrainConfig(steps=9, crop=12, batch_size=2, save_every=4)
    with pytest.raises(Stop):
        train("fsrcnn:d=8,s=4,m=1", manifest, config, tmp_path / "run", progress=progress)
    found = info(tmp_path / "run")
    assert (found["kind"], found["step"], found["best"]) == ("unfinished run", 4, None)
    assert found["options"]["steps"] == 9 and found["options"]["arch"].startswith("fsrcnn:")
    with pytest.raises(UsageError, match="found the unfinished run"):
        info(tmp_path / "run", size=(1280, 720))
    state = bytearray((tmp_path / "run" / "state.safetensors").read_bytes())
    state[-3] ^= 1
    (tmp_path / "run" / "state.safetensors").write_bytes(state)
    with pytest.raises(DataError, match="its tensors have changed"):
        info(tmp_path / "run")


def test_a_genotype_says_what_its_network_is_and_takes(tmp_path: Path) -> None:
    """A published one by its name; a search's folder is its find, at the search's scale and width."""
    Genotype.parse("dlsr-div").save(tmp_path / "a.json")
    found = info(tmp_path / "a.json", size=(1280, 720))
    assert (found["kind"], found["genotype"], found["search"]) == ("genotype", "dlsr-div", None)
    assert found["operations"] == ["sep_3x3", "sep_5x5", "sep_5x5"] and found["inputs"][0] == [2, 1]
    assert (found["parameters"], found["multiply_adds"]) == (327_804, 68_500_632_096)
    (tmp_path / "search").mkdir()
    search = {"identity": {"scale": 3, "features": 8}}
    Genotype.parse("sep_3x3+sep_3x3+sep_3x3@1.2.3.4").save(tmp_path / "search" / "genotype.json", search)
    (tmp_path / "search" / "architecture.safetensors").write_bytes(b"")
    small = info(tmp_path / "search", size=(1280, 720))
    assert small["arch"] == "dlsr:scale=3,genotype=sep_3x3+sep_3x3+sep_3x3@1.2.3.4,features=8"
    assert "multiply_adds" not in info(tmp_path / "search")
    with pytest.raises(UsageError, match="--arch should go with a checkpoint"):
        info(tmp_path / "search", arch="dlsr")
    Genotype.parse("dlsr").save(tmp_path / "c.json", {"identity": {"scale": "two", "features": [1]}})
    with pytest.raises(UsageError, match="arch 'dlsr'"):
        info(tmp_path / "c.json", size=(1280, 720))
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(DataError, match="is not a valid GenotypeRecord"):
        info(tmp_path / "b.json")
