"""Fixtures for every test, and the limits that tests run under.

    make_photo    function (height, width, seed) -> uint8 HWC: a small synthetic photograph
    write_photos  function (folder, sizes, seed) -> folder: such photographs in it, for fixtures of any scope
    photos        function (sizes, folder name) -> Path: a folder of such photographs, PNG and JPEG by turns
    photo_folder  the folder `photos` with four of them, of four sizes
    write_store   function (folder, units, scores) -> Store: tables alone, with the scores that the test chooses
    untrained     folder of random weights that stand in for curate's bundled ones, so that no test depends on those
    tiny_ldm      folder of a latent diffusion model of random weights, 4 px a latent, in place of the bundled one
    memory        URL of an empty folder in memory; `put(url, data)` writes a file there
    s3            URL of an empty bucket on a server of this machine; `s3_server` is its address
    warm          a process that has imported curate and runs commands at once, and into faults: see warm.py
    div2k         a folder with DIV2K_train_HR and its X2 LR files in DIV2K/, and a test image in Set5/HR
    shared        folder of real photographs and public checkpoints beside the repository; skips where it is absent

Everything is made in the test, but for what released versions wrote (`fixtures`); no network.
"""

import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

if TYPE_CHECKING:
    from warm import Warm

    from curate.store import ScoreSet, Store

# Read by torch and OpenMP when they are first imported, hence set here. Tests run two at a time with one thread each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
else:
    os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["HF_HUB_OFFLINE"] = "1"

SIZES = ((200, 260), (150, 180), (97, 130), (240, 240))  # height, width: even, odd, square; none a multiple of a patch


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where there is no CUDA device."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def make_photo() -> Callable[[int, int, int], npt.NDArray[np.uint8]]:
    """A function (height, width, seed) -> uint8 HWC, the same pixels for the same arguments. See `synthetic_photo`."""
    return synthetic_photo


@pytest.fixture(scope="session")
def write_photos() -> Callable[..., Path]:
    """A function that writes synthetic photographs into a folder, which it makes, and returns it.

    `write_photos(folder, sizes=((200, 260), ...), seed=0)`: sizes are (height, width); file i is `i.png` for even i
    and `i.jpg` for odd i, with three digits, and shows `make_photo(height, width, seed + i)`.
    """

    def write(folder: Path, sizes: Iterable[tuple[int, int]] = SIZES, seed: int = 0) -> Path:
        folder.mkdir(parents=True)
        for i, (height, width) in enumerate(sizes):
            image = Image.fromarray(synthetic_photo(height, width, seed + i))
            if i % 2:
                image.save(folder / f"{i:03}.jpg", quality=95, subsampling=0)
            else:
                image.save(folder / f"{i:03}.png")
        return folder

    return write


@pytest.fixture
def photos(tmp_path: Path, write_photos: Callable[..., Path]) -> Callable[..., Path]:
    """`write_photos` under tmp_path: `photos(sizes=((200, 260), ...), name="photos", seed=0)`."""

    def write(sizes: Iterable[tuple[int, int]] = SIZES, name: str = "photos", seed: int = 0) -> Path:
        return write_photos(tmp_path / name, sizes, seed)

    return write


@pytest.fixture
def photo_folder(photos: Callable[..., Path]) -> Path:
    """A folder of four synthetic photographs: 000.png 200x260, 001.jpg 150x180, 002.png 97x130, 003.jpg 240x240."""
    return photos()


@pytest.fixture(scope="session")
def write_store() -> Callable[..., "Store"]:
    """A function that makes a store of tables alone, without photographs, through the Store's own API.

    `write_store(folder, units=(5, 4, 3), scores={"sobel": [0.5, ...]}, first=0)`: unit i, counted from `first`, has one
    image `i.png` (split train for even i, val for odd i) with units[i] windows of 24 px in a row, step 12. Scores go to
    the patches in the order of `Store.patches()`; None is null. Units for which no score is left are not scored. Called
    again for the same folder, with `first` set, it adds units to the store.
    """
    import pyarrow as pa

    from curate import files, layout, schema, windows
    from curate.store import INGEST, Store

    def add_unit(store: Store, unit: int, count: int) -> None:
        image_id = f"{unit * 0x9E3779B97F4A7C15 % 2**64:016x}"  # in no order
        width = 24 + 12 * (count - 1)
        split = "val" if unit % 2 else "train"
        image = [image_id, f"{unit}.png", image_id * 4, 24, width, schema.STATUS_OK, "photos", split]
        tables = {
            "images": (layout.IMAGES, [image]),
            "cells": (layout.CELLS, [[image_id, 0, 0, 24, width, "hr", 0, 1, 1]]),
            "patches": (
                layout.PATCHES,
                [[windows.patch_id(image_id, 0, x, 24), image_id, 0, x, 24] for x in range(0, 12 * count, 12)],
            ),
        }
        parts = [store.part(store.shard_path(unit), files.publish_bytes(store.shard_path(unit), b"pixels"))]
        for name, (fields, rows) in tables.items():
            table = pa.Table.from_pylist([dict(zip(fields.names, row, strict=True)) for row in rows], fields)
            parts.append(store.write_table(name, unit, table))
        store.commit(INGEST, unit, "0" * 16, parts)

    def add_values(store: Store, label: str, values: list[float | None]) -> None:
        name = label.partition(":")[0]
        fingerprint = hashlib.sha256(label.encode()).hexdigest()[:16]
        record = schema.ScorerRecord(scorer=name, label=label, columns=[name], identity={}, fingerprint=fingerprint)
        found = store.add_score_set(record)
        for unit in store.commits():
            ids = store.unit_table("patches", unit)["patch_id"]
            mine, values = values[: len(ids)], values[len(ids) :]
            if not mine:
                return
            table = pa.table([ids, pa.array(mine, pa.float32())], schema=layout.scores_schema((name,)))
            store.commit(found.kind, unit, "0" * 16, [store.write_table(found.kind, unit, table)])

    def write(
        folder: Path,
        units: Sequence[int] = (5, 4, 3),
        scores: Mapping[str, list[float | None]] | None = None,
        first: int = 0,
    ) -> Store:
        store = Store.open(folder) if Store.is_store(folder) else Store.create(folder, patch=24, step=12)
        for unit, count in enumerate(units, first):
            add_unit(store, unit, count)
        for label, values in (scores or {}).items():
            add_values(store, label, list(values))
        return store

    return write


@pytest.fixture(scope="session")
def _untrained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from curate.archs.srcnn import Srcnn
    from curate.checkpoint import Checkpoint

    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(955)
        for scale in (2, 3, 4):
            network = Srcnn(scale=scale).build()
            state = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in network.state_dict().items()}
            Checkpoint(Srcnn(scale=scale), state, {}).save(folder / "run")
            (folder / "run" / "model.safetensors").rename(folder / f"srcnn_955_x{scale}.safetensors")
    return folder


@pytest.fixture
def untrained(_untrained_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights of SRCNN 9-5-5 in place of curate/weights: `srcnn` and `srcnn:scale=3` take them."""
    monkeypatch.setattr("curate.scorers.srcnn._BUNDLED", _untrained_folder)
    return _untrained_folder


@pytest.fixture(scope="session")
def _tiny_ldm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from latents import write_ldm

    return write_ldm(tmp_path_factory.mktemp("ldm") / "tiny")


@pytest.fixture
def tiny_ldm(_tiny_ldm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A KL autoencoder and a U-Net of random weights in place of the bundled model: `ldm` and `latent` take them."""
    monkeypatch.setattr("curate.ldm._BUNDLED", _tiny_ldm_folder)
    return _tiny_ldm_folder


@pytest.fixture
def memory() -> Iterator[str]:
    """URL of an empty folder in fsspec's memory file system."""
    url = f"memory://{uuid4().hex}"
    yield url
    fs, path = fsspec.url_to_fs(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def put(url: str, data: bytes) -> str:
    """Write a file at an fsspec URL; returns the URL."""
    with fsspec.open(url, "wb") as file:
        file.write(data)
    return url


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3-compatible server (moto) on loopback."""
    pytest.importorskip("s3fs", reason="needs the extra s3")
    server_module = pytest.importorskip("moto.server", reason="needs moto[server,s3]")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """URL of an empty bucket; credentials and address are in the environment, where users have them."""
    import s3fs

    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST",
        "AWS_SECRET_ACCESS_KEY": "hunter2hunter2",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server,
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = "curate-" + str(abs(hash(request.node.name)))
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def warm() -> Iterator["Warm"]:
    """The process of warm.py, for all tests of this one."""
    from warm import Warm

    started = Warm()
    yield started
    started.close()


@pytest.fixture
def div2k(tmp_path: Path) -> Path:
    """A folder with two photographs laid out as DIV2K is, and one as Set5."""
    from curate import resize
    from curate.tensors import to_pixels, to_tensor

    for i in (1, 2):
        hr = synthetic_photo(492, 504, i)
        lr = resize.downscale(to_tensor(hr)[None], 2)[0]
        for name, pixels in (("DIV2K_train_HR/{}.png", hr), ("DIV2K_train_LR_bicubic/X2/{}x2.png", to_pixels(lr))):
            file = tmp_path / "DIV2K" / name.format(f"{i:04}")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    (tmp_path / "Set5/HR").mkdir(parents=True)
    Image.fromarray(synthetic_photo(60, 72, 3)).save(tmp_path / "Set5/HR/baby.png")
    return tmp_path


@pytest.fixture(scope="session")
def shared() -> Path:
    """`../shared/data`: real photographs and public checkpoints, which are not part of the repository."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data (real photographs), absent here")
    return folder


def synthetic_photo(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    """uint8 HWC with what photographs have: smooth shading, fine texture and hard edges, each in places of its own.

    Shading everywhere; stripes that get finer to the right in a band; noise blurred to a few px in a patch; discs and
    half-planes with sharp borders. So a super-resolution loss is low on the sky, high on the rest, and never flat.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    photo = rng.uniform(60, 200, 3) + 50 * (x[..., None] * rng.uniform(-1, 1, 3) + y[..., None] * rng.uniform(-1, 1, 3))

    for _ in range(3):  # objects: a disc each, with its own colour
        centre_y, centre_x, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.08, 0.2)
        disc = (y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2
        photo[disc] = photo[disc] * 0.3 + rng.uniform(0, 180, 3)
    ground = y > rng.uniform(0.6, 0.8) + 0.2 * x  # a slanting horizon
    photo[ground] *= 0.6

    top = rng.uniform(0.1, 0.5)
    stripes = (y > top) & (y < top + 0.2)
    photo[stripes] += 40 * np.sin(2 * np.pi * (4 * x + width / 6 * x**2))[stripes][:, None]  # up to 3 px a period

    grain = rng.normal(0, 1, (height + 2, width + 2))
    grain = sum(grain[i : i + height, j : j + width] for i in range(3) for j in range(3))
    left = rng.uniform(0, 0.6)
    textured = (x > left) & (x < left + 0.35) & (y > 0.45)
    photo[textured] += 12 * grain[textured][:, None]
    return photo.clip(0, 255).round().astype(np.uint8)


def encoded_png(seed: int, height: int = 36, width: int = 48) -> bytes:
    """The PNG file of a `synthetic_photo`."""
    file = io.BytesIO()
    Image.fromarray(synthetic_photo(height, width, seed)).save(file, "PNG")
    return file.getvalue()


def scene(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    """uint8 HW: grey rectangles over each other, as full of corners as a street, each seed another street."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width), 128.0)
    for _ in range(250):
        y, x = rng.integers(0, height), rng.integers(0, width)
        picture[y : y + rng.integers(3, 30), x : x + rng.integers(3, 30)] += rng.uniform(-90, 90)
    return picture.clip(0, 255).astype(np.uint8)


def add_scores(
    store: "Store",
    scorer: str,
    fingerprint: str,
    units: list[int],
    columns: tuple[str, ...] = ("score",),
    first: int = 0,
) -> "ScoreSet":
    """Score the patches of some units with their own number, counted from `first`."""
    import pyarrow as pa

    from curate.layout import scores_schema
    from curate.schema import ScorerRecord

    record = ScorerRecord(scorer=scorer, label=scorer, columns=list(columns), identity={}, fingerprint=fingerprint)
    found = store.add_score_set(record)
    for unit in units:
        ids = store.unit_table("patches", unit)["patch_id"]
        numbers = np.arange(first, first + len(ids), dtype=np.float32)
        table = pa.table([ids, *[numbers] * len(columns)], schema=scores_schema(columns))
        store.commit(found.kind, unit, fingerprint, [store.write_table(found.kind, unit, table)])
    return found
