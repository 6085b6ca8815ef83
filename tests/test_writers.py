"""Exports as the tools read them that they are for: each reader's rules are written out again here, in a few lines."""

import gc
import io
import json
import os
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from exported import CHUNK, FOLDERS, PATCH, Pixels, changed, each_target, half
from PIL import Image

from curate import images, targets
from curate.exporting import export
from curate.manifest import Manifest
from curate.resize import downscale
from curate.store import Store
from curate.tensors import crop_to_multiple, to_pixels, to_tensor


class Pair(NamedTuple):
    """What a reader hands to its network, and what it calls it."""

    name: str
    hr: Pixels
    lr: Pixels | None


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Manifest:
    return half(tmp_path_factory.mktemp("writers"), write_photos)


@pytest.fixture(autouse=True)
def several_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "CHUNK_BYTES", CHUNK)


@pytest.fixture(scope="module")
def store(manifest: Manifest) -> Store:
    return manifest.store()


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


def decoded(data: bytes | Path) -> Pixels:
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


@each_target
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


@each_target
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
