"""Exports as the tools read them that they are for: each reader's rules are written out again here, in a few lines."""

import gc
import io
import json
import os
import re
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from test_fsck import flipped

from curate import exporting, files, images
from curate.errors import CurateError, DataError, UsageError
from curate.exporting import ExportReport, check, export
from curate.ingestion import ingest
from curate.manifest import Manifest
from curate.resize import downscale
from curate.selection import select
from curate.store import Store
from curate.tensors import crop_to_multiple, to_pixels, to_tensor

PATCH, STEP = 25, 7  # windows off every LR grid
SIZES = ((48, 60), (37, 50), (61, 39))  # height, width
FOLDERS = ("folder", "basicsr", "neosr", "trainner")
TARGETS = (*FOLDERS, "hf", "lmdb", "webdataset")
CHUNK = 10 * PATCH * PATCH * 3  # bytes: several tar and Parquet files
_Pixels = npt.NDArray[np.uint8]


class Pair(NamedTuple):
    """What a reader hands to its network, and what it calls it."""

    name: str
    hr: _Pixels
    lr: _Pixels | None


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Store:
    folder = tmp_path_factory.mktemp("exporting")
    ingest([write_photos(folder / "photos", SIZES)], folder / "store", patch=PATCH, step=STEP)
    return Store.open(folder / "store")


@pytest.fixture(scope="module")
def manifest(store: Store) -> Manifest:
    """Half of the windows, of all photographs, each with a weight of its own."""
    chosen = select(store, "random", keep=0.4).save(store.path.parent / "half.parquet")
    return changed(chosen, "weight", np.linspace(0.5, 1.5, len(chosen)).astype(np.float32))


@pytest.fixture(autouse=True)
def several_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_CHUNK_BYTES", CHUNK)


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    if request.param == "lmdb":
        pytest.importorskip("lmdb")
    return str(request.param)


def changed(manifest: Manifest, column: str, values: Any) -> Manifest:
    index = manifest.table.schema.get_field_index(column)
    field = manifest.table.schema.field(column)
    return replace(manifest, table=manifest.table.set_column(index, field, pa.array(values, field.type)))


def expected(manifest: Manifest, store: Store, scale: int | None) -> list[Pair]:
    """Every window cut inward to whole LR pixels, and the same place of the whole photograph's LR."""
    ids = set(manifest.table["image_id"].to_pylist())
    hrs = {image_id: images.decode(store.read_bytes(image_id)) for image_id in ids}
    shrink = scale or 1
    lrs = {image_id: to_pixels(downscale(crop_to_multiple(to_tensor(hr)), shrink)) for image_id, hr in hrs.items()}
    pairs = []
    for row in manifest.table.to_pylist():
        edges = [[e for e in range(row[axis], row[axis] + PATCH + 1) if e % shrink == 0] for axis in "yx"]
        (top, *_, bottom), (left, *_, right) = edges
        hr, lr = hrs[row["image_id"]], lrs[row["image_id"]]
        lr = lr[top // shrink : bottom // shrink, left // shrink : right // shrink]
        name = f"{row['rank']:06}_{row['patch_id']}"
        pairs.append(Pair(name, hr[top:bottom, left:right], lr if scale else None))
    return pairs


def assert_same(found: list[Pair], wanted: list[Pair]) -> None:
    assert [pair.name for pair in found] == [pair.name for pair in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert np.array_equal(a.hr, b.hr), a.name
        assert (a.lr is None) == (b.lr is None) and (a.lr is None or b.lr is None or np.array_equal(a.lr, b.lr)), a.name


def decoded(data: bytes | Path) -> _Pixels:
    with Image.open(io.BytesIO(data if isinstance(data, bytes) else data.read_bytes())) as image:
        assert image.mode == "RGB" and image.format == "PNG"
        return np.array(image)


# The readers


def scandir(folder: str) -> list[str]:
    """What BasicSR and those that come from it find in a folder: whatever is a file and not hidden."""
    return [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".") and entry.is_file()]


def yaml_of(out: Path, name: str) -> dict[str, Any]:
    options: dict[str, Any] = yaml.safe_load((out / name).read_text("utf-8"))
    return options


def check_crop(pairs: list[Pair], hr_crop: int, scale: int) -> None:
    """The assertions of a paired random crop, and of its option in either unit."""
    for pair in pairs:
        assert pair.lr is not None
        assert pair.hr.shape[:2] == (pair.lr.shape[0] * scale, pair.lr.shape[1] * scale)
        assert hr_crop % scale == 0 and min(pair.lr.shape[:2]) >= hr_crop // scale > 0


def basicsr(out: Path, scale: int) -> list[Pair]:
    """PairedImageDataset with meta_info_file: names up to the first space, the LR's from the base name."""
    options = yaml_of(out, "basicsr.yml")
    train = options["datasets"]["train"]
    assert options["scale"] == scale and isinstance(options["manual_seed"], int)
    assert train["type"] == "PairedImageDataset" and train["io_backend"] == {"type": "disk"}
    pairs = []
    with Path(train["meta_info_file"]).open() as lines:
        for name, shape in (line.split(" ") for line in lines):
            base, ext = os.path.splitext(os.path.basename(name))  # noqa: PTH119, PTH122
            hr = decoded(Path(train["dataroot_gt"]) / name)
            assert shape == f"({hr.shape[0]},{hr.shape[1]},3)\n"
            lr = decoded(Path(train["dataroot_lq"]) / f"{train.get('filename_tmpl', '{}').format(base)}{ext}")
            pairs.append(Pair(base, hr, lr))
    assert {pair.name + ".png" for pair in pairs} == set(scandir(train["dataroot_gt"]))
    assert set(scandir(train["dataroot_lq"])) == set(scandir(train["dataroot_gt"]))  # its folder mode asserts this
    assert train["use_hflip"] is train["use_rot"] is True
    assert train["num_worker_per_gpu"] > 0 and train["batch_size_per_gpu"] > 0
    assert len(pairs) * train["dataset_enlarge_ratio"] >= 1000 * train["batch_size_per_gpu"]
    check_crop(pairs, train["gt_size"], scale)
    return pairs


def neosr(out: Path, scale: int) -> list[Pair]:
    """`paired` without meta_info: full paths, the LR's by replacing one folder in them by the other."""
    options = tomllib.loads((out / "neosr.toml").read_text("utf-8"))
    train = options["datasets"]["train"]
    assert options["scale"] == scale and train["type"] == "paired" and "meta_info" not in train
    hr_folder, lr_folder = train["dataroot_gt"], train["dataroot_lq"]
    hr_paths, lr_paths = ([f"{folder}/{name}" for name in scandir(folder)] for folder in (hr_folder, lr_folder))
    assert len(hr_paths) == len(lr_paths)
    pairs = []
    for path in sorted(hr_paths):
        assert path.lower().endswith((".jpg", ".jpeg", ".png", ".webp"))
        lr_path = path.replace(hr_folder, lr_folder)
        assert lr_path in lr_paths
        pairs.append(Pair(Path(path).stem, decoded(Path(path)), decoded(Path(lr_path))))
    check_crop(pairs, train["patch_size"] * scale, scale)
    assert train["batch_size"] > 0 and train["dataset_enlarge_ratio"] > 0
    return pairs


TRAINNER_KEYS = {  # of the dataset's strict structure, those that have to do with pairs of images
    *("name", "type", "io_backend", "num_worker_per_gpu", "batch_size_per_gpu", "accum_iter", "use_hflip", "use_rot"),
    *("mean", "std", "gt_size", "lq_size", "color", "dataset_enlarge_ratio", "prefetch_mode", "pin_memory"),
    *("persistent_workers", "num_prefetch_queue", "dataroot_gt", "dataroot_lq", "meta_info", "filename_tmpl"),
}


def trainner(out: Path, scale: int) -> list[Pair]:
    """Lists of folders whose file names are equal as sets; keys that it does not know are an error."""
    options = yaml_of(out, "trainner.yml")
    train = options["datasets"]["train"]
    assert set(options) <= {"name", "scale", "manual_seed", "datasets"} and options["scale"] == scale
    assert set(train) <= TRAINNER_KEYS and train["type"].lower() == "pairedimagedataset"
    assert isinstance(train["name"], str) and isinstance(train["io_backend"], dict)
    (hr_folder,), (lr_folder,) = train["dataroot_gt"], train["dataroot_lq"]
    assert set(scandir(hr_folder)) == set(scandir(lr_folder))
    pairs = [
        Pair(Path(name).stem, decoded(Path(hr_folder, name)), decoded(Path(lr_folder, name)))
        for name in sorted(scandir(hr_folder))
    ]
    check_crop(pairs, train["lq_size"] * scale, scale)
    return pairs


def kair(out: Path, scale: int) -> list[Pair]:
    """JSON with comments cut at two slashes; HR and LR are paired by their place in the sorted lists."""
    lines = (line.split("//")[0] for line in (out / "kair.json").read_text("utf-8").splitlines())
    options = json.loads("\n".join(lines))
    train = options["datasets"]["train"]
    assert options["scale"] == scale and train["dataset_type"] == "sr"
    hrs, lrs = (
        sorted(path for path in Path(train[key]).rglob("*") if path.suffix == ".png")
        for key in ("dataroot_H", "dataroot_L")
    )
    assert len(hrs) == len(lrs)
    pairs = [Pair(hr.stem, decoded(hr), decoded(lr)) for hr, lr in zip(hrs, lrs, strict=True)]
    check_crop(pairs, train["H_size"], scale)
    return pairs


def edsr(out: Path, scale: int) -> list[Pair]:
    """DIV2K's layout as EDSR-PyTorch and its kin spell it."""
    hrs = sorted((out / "HR").glob("*.png"))
    return [Pair(hr.stem, decoded(hr), decoded(out / f"LR_bicubic/X{scale}/{hr.stem}x{scale}.png")) for hr in hrs]


def lmdb_keys(folder: str) -> list[str]:
    assert folder.endswith(".lmdb")
    with Path(folder, "meta_info.txt").open() as lines:
        return [line.split(".")[0] for line in lines]


def lmdb_values(folder: str) -> dict[str, bytes]:
    """All that is in it, by the keys of its list, opened as BasicSR does."""
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(folder, readonly=True, lock=False, readahead=False) as environment, environment.begin() as reading:
        assert reading.stat()["entries"] == len(lmdb_keys(folder))
        return {key: bytes(reading.get(key.encode("ascii"))) for key in lmdb_keys(folder)}


def basicsr_lmdb(out: Path, scale: int) -> list[Pair]:
    """Two environments with the same keys; a key is a name up to its first dot."""
    train = yaml_of(out, "basicsr.yml")["datasets"]["train"]
    assert train["io_backend"] == {"type": "lmdb"} and "meta_info_file" not in train
    neo = tomllib.loads((out / "neosr.toml").read_text("utf-8"))["datasets"]["train"]
    assert neo["io_backend"] == {"type": "lmdb"}
    assert [neo[key] for key in ("dataroot_gt", "dataroot_lq")] == [train["dataroot_gt"], train["dataroot_lq"]]
    hr_keys, lr_keys = lmdb_keys(train["dataroot_gt"]), lmdb_keys(train["dataroot_lq"])
    assert set(hr_keys) == set(lr_keys)
    hr, lr = lmdb_values(train["dataroot_gt"]), lmdb_values(train["dataroot_lq"])
    pairs = [Pair(key, decoded(hr[key]), decoded(lr[key])) for key in sorted(lr_keys)]
    check_crop(pairs, train["gt_size"], scale)
    check_crop(pairs, neo["patch_size"] * scale, scale)
    return pairs


def samples(out: Path) -> list[tuple[Any, ...]]:
    """What the webdataset library gives by the program that comes with the shards, which shuffles, by rank again."""
    program: dict[str, Any] = {"__file__": str(out / "read.py")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the tar files for Python to close
        exec(compile((out / "read.py").read_text("utf-8"), "read.py", "exec"), program)
        found = sorted(program["samples"], key=lambda sample: sample[-1]["rank"])
        program.clear()
        gc.collect()
    return found


def webdataset(out: Path, scale: int) -> list[Pair]:
    """The library itself."""
    pairs = [Pair(f"{facts['rank']:06}_{facts['patch_id']}", hr, lr) for hr, lr, facts in samples(out)]
    check_crop(pairs, scale, scale)
    return pairs


def huggingface(out: Path, scale: int) -> list[Pair]:
    """Parquet with a struct of bytes and path, and the features in the schema's metadata, as the library writes it."""
    card = (out / "README.md").read_text("utf-8").split("---\n")[1]
    (part,) = yaml.safe_load(card)["configs"][0]["data_files"]
    assert part["split"] == "train"
    paths = sorted(out.glob(part["path"]))
    assert [path.name for path in paths] == [f"train-{i:05}-of-{len(paths):05}.parquet" for i in range(len(paths))]
    schema = pq.read_schema(paths[0])
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert [name for name, kind in features.items() if kind == {"_type": "Image"}] == ["hr", "lr"]
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    assert all(row["hr"]["path"] == row["lr"]["path"] == f"{row['rank']:06}_{row['patch_id']}.png" for row in rows)
    pairs = [
        Pair(row["hr"]["path"].removesuffix(".png"), decoded(row["hr"]["bytes"]), decoded(row["lr"]["bytes"]))
        for row in rows
    ]
    check_crop(pairs, scale, scale)
    return pairs


READERS = [
    *(("folder", edsr), ("folder", kair), ("basicsr", basicsr), ("neosr", neosr), ("trainner", trainner)),
    *(("lmdb", basicsr_lmdb), ("webdataset", webdataset), ("hf", huggingface)),
]


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(("to", "read"), READERS, ids=[f"{to}-{read.__name__}" for to, read in READERS])
def test_a_reader_gets_every_pair_best_first_with_the_stores_pixels_and_the_exact_lr(
    to: str, read: Callable[[Path, int], list[Pair]], scale: int, tmp_path: Path, store: Store, manifest: Manifest
) -> None:
    if to == "lmdb":
        pytest.importorskip("lmdb")
    report = export(manifest, tmp_path / "out", to=to, scale=scale)
    wanted = expected(manifest, store, scale)
    assert_same(read(tmp_path / "out", scale), wanted)
    assert report.windows == len(wanted) and report.kept == 0
    assert report.bytes == sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert all(path.is_file() for path in report.stubs) and report.stubs
    assert report.weights_unread == (to not in ("webdataset", "hf"))


@pytest.mark.parametrize(("to", "read"), READERS[1:5], ids=[to for to, _ in READERS[1:5]])
def test_stubs_quote_the_folders_name(
    to: str, read: Callable[[Path, int], list[Pair]], tmp_path: Path, manifest: Manifest
) -> None:
    out = tmp_path / """it's "ours": #1 {x} \\ ü HR"""
    export(manifest, out, to=to)
    assert len(read(out, 2)) == len(manifest)


def test_hr_alone(target: str, tmp_path: Path, store: Store, manifest: Manifest) -> None:
    """Whole windows, no LR, and the stub of a dataset that makes its own."""
    out = tmp_path / "out"
    export(manifest, out, to=target, scale=None)
    wanted = expected(manifest, store, None)
    assert not list(out.glob("LR*"))
    if target in FOLDERS:
        found = [Pair(path.stem, decoded(path), None) for path in sorted((out / "HR").iterdir())]
    elif target == "lmdb":
        found = [Pair(key, decoded(data), None) for key, data in lmdb_values(str(out / "HR.lmdb")).items()]
    elif target == "webdataset":
        found = [Pair(f"{facts['rank']:06}_{facts['patch_id']}", hr, None) for hr, facts in samples(out)]
    else:
        rows = [row for path in sorted(out.glob("data/*")) for row in pq.read_table(path).to_pylist()]
        assert "lr" not in rows[0]
        found = [Pair(row["hr"]["path"].removesuffix(".png"), decoded(row["hr"]["bytes"]), None) for row in rows]
    assert_same(found, wanted)
    for stub in out.glob("*.yml"):
        options = yaml_of(out, stub.name)
        train = options["datasets"]["train"]
        assert "scale" not in options and "dataroot_lq" not in train and train["type"].lower() == "realesrgandataset"
    if target == "basicsr":  # its reader of HR images calls the list otherwise, and needs it; its model crops
        assert options["gt_size"] <= PATCH and "gt_size" not in train
        names = [line.strip().split(" ")[0] for line in Path(train["meta_info"]).read_text().splitlines()]
        assert names == [f"{pair.name}.png" for pair in wanted]
    if target == "neosr":
        options = tomllib.loads((out / "neosr.toml").read_text("utf-8"))
        assert "dataroot_lq" not in options["datasets"]["train"] and options["datasets"]["train"]["type"] == "otf"


def test_hugging_faces_library_reads_it(tmp_path: Path, store: Store, manifest: Manifest) -> None:
    datasets = pytest.importorskip("datasets")
    export(manifest, tmp_path / "out", to="hf", scale=2)
    found = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    names = [f"{row['rank']:06}_{row['patch_id']}" for row in found]
    pairs = [Pair(name, np.array(row["hr"]), np.array(row["lr"])) for name, row in zip(names, found, strict=True)]
    assert_same(pairs, expected(manifest, store, 2))
    assert found["weight"] == manifest.table["weight"].to_pylist()


# Names, ranks, weights


def test_names_survive_every_reader_and_sort_by_rank(tmp_path: Path, manifest: Manifest) -> None:
    many = changed(manifest, "rank", np.arange(len(manifest)) * 10**6)
    export(many, tmp_path / "out", to="basicsr")
    names = [line.split(" ")[0] for line in (tmp_path / "out" / "meta_info.txt").read_text().splitlines()]
    assert names == sorted(names)
    assert all(re.fullmatch(r"[0-9a-f_]+\.png", name) for name in names)
    assert [int(name.split("_")[0]) for name in names] == many.table["rank"].to_pylist()


def test_ranks_scores_and_weights_come_along(target: str, tmp_path: Path, store: Store, manifest: Manifest) -> None:
    """In every sidecar, which is a manifest that finds its store; in two targets also beside each pair."""
    scored = changed(manifest, "score", np.arange(len(manifest)) / 7)
    out = tmp_path / "deep" / "out"
    export(scored, out, to=target, scale=2)
    sidecar = Manifest.load(out / "manifest.parquet")
    assert sidecar.table.equals(scored.table) and sidecar.store().path.samefile(store.path)
    rows = scored.table.select(["rank", "patch_id", "score", "weight"]).to_pylist()
    if target == "webdataset":
        assert [facts for *_, facts in samples(out)] == rows
    if target == "hf":
        tables = [pq.read_table(path) for path in sorted(out.glob("data/*"))]
        assert pa.concat_tables(tables).select(["rank", "patch_id", "score", "weight"]).to_pylist() == rows


def test_equal_weights_are_not_said_to_be_unread(tmp_path: Path, manifest: Manifest) -> None:
    equal = changed(manifest, "weight", np.ones(len(manifest)))
    assert not export(equal, tmp_path / "out", to="folder").weights_unread


def test_the_stores_own_lr_is_cut_where_it_has_one(tmp_path: Path, make_photo: Callable[..., _Pixels]) -> None:
    hr, lr = make_photo(48, 48, 1), make_photo(24, 24, 2)
    for name, pixels in (("hr", hr), ("lr", lr)):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "a.png")
    ingest([tmp_path / "hr"], tmp_path / "store", patch=24, step=12, lr={2: str(tmp_path / "lr")})
    export(select(tmp_path / "store", "random", keep=1), tmp_path / "out", to="neosr", scale=2)
    for path in (tmp_path / "out" / "LR_bicubic" / "X2").iterdir():
        y, x = (int(part) // 2 for part in path.stem.split("_")[2:4])
        assert np.array_equal(decoded(path), lr[y : y + 12, x : x + 12])


# Again, and after a kill


def tree(out: Path) -> dict[str, bytes]:
    """All files; where the folder's own path is in one, it is not told."""
    here = str(out.resolve()).encode()
    return {
        str(path.relative_to(out)): path.read_bytes().replace(here, b"OUT").replace(out.name.encode(), b"OUT")
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


KILLED = """
import os, signal, sys
from pathlib import Path
from curate import exporting
from curate.manifest import Manifest

def kill(done, total, note=""):
    if 2 * done > total:
        os.kill(os.getpid(), signal.SIGKILL)

exporting._CHUNK_BYTES = int(sys.argv[1])
manifest = Manifest.load(sys.argv[2])
for to in sys.argv[4:]:
    child = os.fork()
    if not child:
        exporting.export(manifest, Path(sys.argv[3]) / f"{to}-killed", to=to, progress=kill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, to
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> Path:
    """A folder with an export to every target that was killed when more than half was done."""
    folder = tmp_path_factory.mktemp("killed")
    saved = replace(manifest, path=manifest.path).save(folder / "manifest.parquet")
    targets = [to for to in TARGETS if to != "lmdb" or can_import("lmdb")]
    arguments = [str(CHUNK), str(saved.path), str(folder), *targets]
    run = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


def can_import(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def test_a_killed_export_run_again_ends_with_the_bytes_of_one_that_was_not(
    target: str, killed: Path, manifest: Manifest
) -> None:
    out = killed / f"{target}-killed"
    assert not (out / "manifest.parquet").exists()
    assert (target == "lmdb") == bool(list(out.glob(".*.partial")))
    hidden = out / ".x.png.1.tmp"
    hidden.write_bytes(b"left over")
    again = export(manifest, out, to=target)
    if target != "lmdb":  # an environment is written whole or not at all
        assert again.kept > 0
    export(manifest, killed / f"{target}-whole", to=target)
    assert tree(out) == tree(killed / f"{target}-whole")
    assert not list(out.rglob(".*"))


def times(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_a_finished_export_is_left_as_it_is_and_an_edited_stub_too(
    target: str, tmp_path: Path, manifest: Manifest
) -> None:
    out = tmp_path / "out"
    first = export(manifest, out, to=target, scale=3)
    first.stubs[0].write_text("mine")
    before = times(out)
    seen: list[tuple[int, int, str]] = []
    again = export(
        manifest, out, to=target, scale=3, progress=lambda done, total, note="": seen.append((done, total, note))
    )
    assert again.kept == again.windows == len(manifest)
    assert times(out) == before and first.stubs[0].read_text() == "mine"
    assert seen[-1] == (len(manifest), len(manifest), f"{len(manifest)} there already")
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)


def test_what_is_missing_is_made_again(tmp_path: Path, manifest: Manifest) -> None:
    out = tmp_path / "out"
    export(manifest, out, to="basicsr")
    before = tree(out)
    sorted((out / "HR").iterdir())[3].unlink()
    (out / "meta_info.txt").unlink()
    assert export(manifest, out, to="basicsr").kept == len(manifest) - 1
    assert tree(out) == before


def test_nothing_is_decoded_again_for_what_is_there(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(manifest, tmp_path / "out", to="folder")
    monkeypatch.setattr(images, "decode", pytest.fail)
    export(manifest, tmp_path / "out", to="folder")


def test_a_photograph_is_decoded_once(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, calls = images.decode, []
    monkeypatch.setattr(images, "decode", lambda data: calls.append(1) or decode(data))
    export(manifest, tmp_path / "out", to="folder")
    assert len(calls) == len(set(manifest.table["image_id"].to_pylist())) == len(SIZES)


# Refusals


def refusal(kind: type[CurateError], manifest: Manifest | Path, out: Path | str, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        export(manifest, out, **{"to": "folder"} | options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_targets_and_scales(tmp_path: Path, manifest: Manifest) -> None:
    out = tmp_path / "out"
    assert "there are: basicsr, folder, hf, lmdb" in refusal(UsageError, manifest, out, to="basicSR\n")
    assert "there are: 2, 3, 4, and none" in refusal(UsageError, manifest, out, scale=8)
    assert not out.exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, manifest: Manifest) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    assert "holds other things" in refusal(UsageError, manifest, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert "cannot export into" in refusal(UsageError, manifest, out / "mine.txt")
    assert "local path" in refusal(UsageError, manifest, "s3://bucket/out")


@pytest.mark.parametrize("options", [{"to": "neosr"}, {"scale": 3}, {"scale": None}], ids=str)
def test_another_export_does_not_go_into_the_folder(
    options: dict[str, Any], tmp_path: Path, manifest: Manifest
) -> None:
    export(manifest, tmp_path / "out", to="folder")
    before = tree(tmp_path / "out")
    assert "holds another export: " in refusal(UsageError, manifest, tmp_path / "out", **options)
    fewer = replace(manifest, table=manifest.table.slice(0, 5))
    reweighted = changed(manifest, "weight", np.ones(len(manifest)))
    rescored = changed(manifest, "score", np.ones(len(manifest)))
    for other in (fewer, reweighted, rescored):
        assert "holds another export" in refusal(UsageError, other, tmp_path / "out")
    assert tree(tmp_path / "out") == before


def test_the_record_of_another_export_is_told_in_one_line(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "out").mkdir()
    record = {"target": "a\nb\x1b[2J", "scale": 2, "windows": 3, "digest": "c\nd"}
    (tmp_path / "out" / "export.json").write_text(json.dumps(record))
    assert refusal(UsageError, manifest, tmp_path / "out").isprintable()


def test_a_record_that_is_no_record(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "export.json").write_text('{"format": 2}')
    assert "update curate" in refusal(DataError, manifest, tmp_path / "out")


def test_two_at_once(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "out").mkdir()
    with files.lock(tmp_path / "out"):
        assert "another curate is writing" in refusal(CurateError, manifest, tmp_path / "out")


def test_a_missing_package_is_named(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    assert "pip install 'curate[lmdb]'" in refusal(UsageError, manifest, tmp_path / "out", to="lmdb")
    assert not (tmp_path / "out").exists()


def test_windows_smaller_than_an_lr_pixel(tmp_path: Path, write_photos: Callable[..., Path]) -> None:
    ingest([write_photos(tmp_path / "photos", [(24, 24)])], tmp_path / "store", patch=3, step=1)
    tiny = select(tmp_path / "store", "random", keep=1)
    assert "no pixel of its own at x4" in refusal(UsageError, tiny, tmp_path / "out", scale=4)
    empty = replace(tiny, table=tiny.table.slice(0, 0))
    assert "no windows" in refusal(UsageError, empty, tmp_path / "out")


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("patch_id", "../../../evil_0_0_25", "is not one of a store"),
        ("patch_id", "0123456789abcdef 0_0_25", "is not one of a store"),
        ("rank", -1, "is not one of a store"),
        ("y", 10_000, "is not inside its image"),
        ("x", -10, "is not inside its image"),
        ("y", -30, "is not inside its image"),
        ("image_id", "0123456789abcdef", "is not in the store"),
    ],
)
def test_a_manifest_that_cannot_be(column: str, value: Any, said: str, tmp_path: Path, manifest: Manifest) -> None:
    values = manifest.table[column].to_pylist()
    assert said in refusal(DataError, changed(manifest, column, [value, *values[1:]]), tmp_path / "out")


def test_ranks_that_are_twice_there(tmp_path: Path, manifest: Manifest) -> None:
    twice = changed(manifest, "rank", [0, 0, *range(2, len(manifest))])
    assert "two patches of rank 0" in refusal(DataError, twice, tmp_path / "out")


def test_another_store(tmp_path: Path, manifest: Manifest, write_photos: Callable[..., Path]) -> None:
    ingest([write_photos(tmp_path / "photos", [(48, 48)], seed=9)], tmp_path / "store", patch=24)
    assert manifest.path is not None
    assert "is not the store" in refusal(DataError, manifest.path, tmp_path / "out", store=tmp_path / "store")


def test_the_report_of_a_manifest_given_by_path_and_a_store_that_moved(tmp_path: Path, manifest: Manifest) -> None:
    assert manifest.path is not None
    report = export(manifest.path, tmp_path / "out", to="folder", store=manifest.store().path)
    assert isinstance(report, ExportReport) and report.folder == tmp_path / "out"
    assert report.windows == len(manifest)


# Whether all is there


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_flipped_bit_of_an_export_is_found_and_damaged_files_are_made_again(
    store: Store, manifest: Manifest, target: str, tmp_path: Path
) -> None:
    """But for the configurations, which are the user's, and what no reader of an LMDB looks at."""
    some = replace(manifest, table=manifest.table.slice(0, 12))
    some.save(tmp_path / "some.parquet")
    export(some, tmp_path / "out", to=target, store=store)
    assert check(tmp_path / "out", True)[1] == [] == check(tmp_path / "out", False)[1]
    whole = contents(tmp_path / "out")
    own = [path for path in whole if path.suffix not in (".json", ".md", ".mdb", ".py", ".toml", ".yml")]
    rng = np.random.default_rng(0)
    for path in [*own[:: max(1, len(own) // 8)], tmp_path / "out" / "export.json"]:
        for bit in rng.integers(0, 8 * len(whole[path]), 4).tolist():
            path.write_bytes(flipped(whole[path], bit))
            assert check(tmp_path / "out", True)[1] or target == "lmdb", (path, bit)
            path.write_bytes(whole[path])
    victim = own[len(own) // 2]
    victim.write_bytes(whole[victim][:-20])
    assert exporting.remove_damaged(tmp_path / "out") and not victim.exists()
    assert [problem for _, problem in check(tmp_path / "out", False)[1]] == ["missing"]
    export(some, tmp_path / "out", to=target, store=store)
    assert check(tmp_path / "out", True)[1] == []
    if target != "lmdb":
        assert contents(tmp_path / "out") == whole
