"""Scores by any network: what `loss` and `embedding` say, by hand; tiles change nothing; vectors in a store."""

import csv
import io
import itertools
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from curate import cli, plugins, windows
from curate.archs import Arch
from curate.checkpoint import Checkpoint
from curate.errors import UsageError
from curate.evaluation import averages, evaluate
from curate.ingestion import ingest
from curate.means import window_means
from curate.metrics import rgb_to_y
from curate.resize import downscale
from curate.scorers import MapScorer, _network
from curate.scorers.embedding import Embedding
from curate.scorers.loss import Loss
from curate.scoring import score
from curate.store import Store
from curate.tensors import to_float, to_tensor

CPU = torch.device("cpu")
MakePhoto = Callable[[int, int, int], npt.NDArray[np.uint8]]

# Arch -> the module whose input its features are, how many times larger than the LR image they are, and how many LR px
# around a pixel the network looks at: None is everything, a range where the probe may find more than the truth.
NETWORKS: dict[str, tuple[str, int, range | None]] = {
    "srcnn": ("conv3", 2, range(6, 25)),
    "srcnn:scale=3,kernel=9-1-5": ("conv3", 3, range(4, 25)),
    "fsrcnn:scale=4,d=8,s=4,m=1": ("last_part", 1, range(4, 6)),
    "drrn:units=2,features=4": ("output", 2, range(5, 25)),
    "edsr:features=8,blocks=2": ("upsample.0", 1, range(8, 9)),
    "edsr:scale=4,features=4,blocks=1": ("upsample.0", 1, range(6, 7)),
    "idn:features=12,d=4,blocks=1,colour=rgb": ("deconv", 1, range(12, 14)),
    "imdn:scale=3,features=16,modules=1": ("upsampler.0", 1, None),
    "rcan:groups=1,blocks=1,features=16": ("upsample.0", 1, None),
    "rdn:scale=3,blocks=2,layers=2,growth=4,features=8": ("upscale.0", 1, range(9, 10)),
    "swinir:variant=light,embed=12,groups=1,blocks=2,heads=2": ("upsample.0", 1, range(8, 24)),
    "unet:scale=3,features=4,levels=2": ("last", 3, range(4, 30)),
}
LOCAL = [spec for spec, (_, _, looks) in NETWORKS.items() if looks is not None]


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """A function (spec, seed, name) -> the folder of a checkpoint of random weights, far from a bicubic upscale."""

    def save(spec: str, seed: int = 0, name: str = "run") -> Path:
        arch: Arch = plugins.parse("archs", spec)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = {key: value + 0.02 * torch.randn_like(value) for key, value in arch.build().state_dict().items()}
        Checkpoint(arch, state, {}).save(tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def image_BCHW(make_photo: MakePhoto) -> Tensor:
    """Two photographs of one size, as scorers see them."""
    return to_float(torch.stack([to_tensor(make_photo(72, 96, seed)) for seed in range(2)]))


def maps_of(scorer: MapScorer, image_BCHW: Tensor) -> Tensor:
    with torch.inference_mode():
        return scorer.build(CPU)(image_BCHW)


def by_hand(folder: Path, image_BCHW: Tensor) -> tuple[Arch, nn.Module, Tensor, Tensor]:
    """The arch, the network, and the LR and the HR image as it sees them."""
    found = Checkpoint.load(folder)
    lr_BCHW = to_float(downscale((image_BCHW * 255).round().to(torch.uint8), found.arch.scale))
    lr_BCHW, hr_BCHW = (
        (rgb_to_y(image) if found.arch.colour == "y" else image) * found.arch.peak for image in (lr_BCHW, image_BCHW)
    )
    return found.arch, found.module(), lr_BCHW, hr_BCHW


# The loss


@pytest.mark.parametrize("spec", NETWORKS)
@pytest.mark.parametrize("metric", ["mse", "l1"])
def test_loss_is_the_networks_error_of_every_pixel(
    metric: str, spec: str, saved: Callable[..., Path], image_BCHW: Tensor
) -> None:
    folder = saved(spec)
    scorer = plugins.parse("scorers", f"loss:checkpoint={folder},metric={metric}")
    arch, net, lr_BCHW, hr_BCHW = by_hand(folder, image_BCHW)
    with torch.inference_mode():
        difference_BCHW = (net(lr_BCHW) - hr_BCHW) / arch.peak
    expected_BCHW = difference_BCHW**2 if metric == "mse" else difference_BCHW.abs()
    torch.testing.assert_close(maps_of(scorer, image_BCHW), expected_BCHW.mean(1, keepdim=True), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_loss_of_an_srcnn_is_the_scorer_srcnn(scale: int, untrained: Path, image_BCHW: Tensor) -> None:
    loss = Loss(checkpoint=untrained / f"srcnn_955_x{scale}.safetensors")
    srcnn = plugins.parse("scorers", f"srcnn:scale={scale},precision=fp32")
    torch.testing.assert_close(maps_of(loss, image_BCHW), maps_of(srcnn, image_BCHW), rtol=1e-4, atol=1e-7)


def test_loss_over_an_image_is_the_psnr_of_evaluate(saved: Callable[..., Path], photos: Callable[..., Path]) -> None:
    """But for the border that evaluation cuts off, and its 8 bits: a quarter of a decibel."""
    folder, photo_folder = saved("fsrcnn:d=8,s=4,m=1"), photos([(240, 240)])
    psnr = averages(evaluate(folder, photo_folder))["psnr"]
    pixels = np.array(Image.open(photo_folder / "000.png"))
    mean = maps_of(Loss(checkpoint=folder), to_float(to_tensor(pixels))[None]).double().mean().item()
    assert -10 * math.log10(mean) == pytest.approx(psnr, abs=0.25)


def test_without_a_checkpoint_the_bundled_srcnn_is_taken(
    untrained: Path, monkeypatch: pytest.MonkeyPatch, image_BCHW: Tensor
) -> None:
    file = untrained / "srcnn_955_x2.safetensors"
    monkeypatch.setattr("curate.scorers._network._BUNDLED", file)
    for name in ("loss", "embedding"):
        bare, named = plugins.parse("scorers", name), plugins.parse("scorers", f"{name}:checkpoint={file}")
        assert torch.equal(maps_of(bare, image_BCHW), maps_of(named, image_BCHW))
        assert bare.identity() == named.identity()


def test_the_bundled_checkpoint_is_there() -> None:
    assert _network.load(None, None).arch == plugins.parse("archs", "srcnn:scale=2")


# Tiles


@pytest.mark.parametrize("spec", NETWORKS)
def test_how_far_a_network_looks(spec: str, saved: Callable[..., Path]) -> None:
    found = Checkpoint.load(saved(spec))
    looks, expected = _network.reach(found.module(), found.arch), NETWORKS[spec][2]
    assert looks is None if expected is None else looks in expected


@pytest.mark.parametrize("spec", NETWORKS)
def test_tiles_give_what_the_whole_image_gives(spec: str, saved: Callable[..., Path]) -> None:
    """A network that sees everything gets all of it, unless a size is given."""
    found = Checkpoint.load(saved(spec))
    net = found.module()
    sizes: list[tuple[int, ...]] = []

    def function(lr_BCHW: Tensor) -> Tensor:
        sizes.append(tuple(lr_BCHW.shape[2:]))
        answer_BCHW: Tensor = net(lr_BCHW)
        return answer_BCHW

    automatic, in_tiles = (_network.in_tiles(function, found.arch, tile) for tile in (0, 48))
    lr_BCHW = torch.rand(2, 1 if found.arch.colour == "y" else 3, 204, 60, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole_BCHW, tiled_BCHW = automatic(lr_BCHW), in_tiles(lr_BCHW)
    assert sizes[2] == (204, 60)
    assert len(sizes) - 3 == 5 * 2 and max(sizes[3:]) == (144, 60)
    assert tiled_BCHW.shape == whole_BCHW.shape
    if spec in LOCAL:
        torch.testing.assert_close(tiled_BCHW, whole_BCHW, rtol=1e-5, atol=2e-6 * float(whole_BCHW.abs().max()))


@pytest.mark.parametrize(
    ("side", "most", "expected"),
    [
        (678, 768, [(0, 0, 678, 678)]),
        (1020, 768, [(0, 0, 528, 624), (432, 528, 1020, 1020)]),
        (100, 48, [(0, 0, 48, 100), (0, 48, 96, 100), (0, 96, 100, 100)]),
        (3000, None, [(0, 0, 3000, 3000)]),
    ],
)
def test_tiles_are_alike_and_on_the_grid(
    side: int, most: int | None, expected: list[tuple[int, int, int, int]]
) -> None:
    spans = _network._spans(side, most, 96)
    assert [(span.first, span.start, span.stop, span.last) for span in spans] == expected


@pytest.mark.parametrize("kind", [Loss, Embedding])
@pytest.mark.parametrize("spec", LOCAL)
def test_scores_hang_on_no_tile(
    spec: str, kind: type[Loss | Embedding], saved: Callable[..., Path], make_photo: MakePhoto
) -> None:
    folder = saved(spec)
    scale = Checkpoint.load(folder).arch.scale
    image_BCHW = to_float(to_tensor(make_photo(108 * scale, 60 * scale, 0)))[None]
    whole_BKHW, tiled_BKHW = (maps_of(kind(checkpoint=folder, tile=tile), image_BCHW) for tile in (0, 48))
    torch.testing.assert_close(tiled_BKHW, whole_BKHW, rtol=1e-4, atol=1e-6 * float(whole_BKHW.abs().max()))


@pytest.mark.parametrize("kind", [Loss, Embedding])
def test_an_image_that_is_too_small_for_the_network_is_continued_by_its_last_px(
    kind: type[Loss | Embedding], saved: Callable[..., Path], make_photo: MakePhoto
) -> None:
    """12 LR px, where the network takes 15: it sees 48, and its answer is cut."""
    folder = saved("dlsr:features=4,genotype=conv_1x1+conv_1x1+conv_1x1@1.2.3.4")
    scorer = kind(checkpoint=folder)
    small_BCHW = to_float(to_tensor(make_photo(24, 36, 0)))[None]
    arch, net, lr_BCHW, hr_BCHW = by_hand(folder, small_BCHW)
    wide_BCHW = nn.functional.pad(lr_BCHW, (0, 48 - 18, 0, 48 - 12), mode="replicate")
    found_BKHW = maps_of(scorer, small_BCHW)
    if kind is Loss:
        with torch.inference_mode():
            sr_BCHW = net(wide_BCHW)[..., :24, :36]
        expected_BKHW = ((sr_BCHW - hr_BCHW) / arch.peak).square().mean(1, keepdim=True)
    else:
        kept: list[Tensor] = []
        net.get_submodule("upsampler.0").register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        with torch.inference_mode():
            net(wide_BCHW)
        maps_BCHW = kept[0][..., :12, :18]
        expected_BKHW = nn.functional.avg_pool2d(torch.cat([maps_BCHW, maps_BCHW.square()], dim=1), 6)
    torch.testing.assert_close(found_BKHW, expected_BKHW, rtol=1e-4, atol=1e-6 * float(expected_BKHW.abs().max()))


# The embedding


def features_by_hand(folder: Path, spec: str, image_BCHW: Tensor) -> Tensor:
    """The maps that are pooled, repeated up to HR resolution."""
    arch, net, lr_BCHW, _ = by_hand(folder, image_BCHW)
    name, times, _ = NETWORKS[spec]
    kept: list[Tensor] = []
    net.get_submodule(name).register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with torch.inference_mode():
        net(lr_BCHW)
    (features_BCHW,) = kept
    height, width = (side * times for side in lr_BCHW.shape[2:])
    repeats = arch.scale // times
    return features_BCHW[..., :height, :width].repeat_interleave(repeats, 2).repeat_interleave(repeats, 3)


@pytest.mark.parametrize("spec", NETWORKS)
def test_an_embedding_is_means_and_deviations_of_the_last_features(
    spec: str, saved: Callable[..., Path], image_BCHW: Tensor
) -> None:
    folder = saved(spec)
    scorer = Embedding(checkpoint=folder)
    maps_BKHW = maps_of(scorer, image_BCHW[:1])
    assert maps_BKHW.shape[2:] == (72 // 12, 96 // 12)
    corners = [(0, 0), (12, 24), (24, 48)]
    found_NK = scorer.finish(window_means(maps_BKHW, np.array(corners, np.int32), 48, 12))
    features_CHW = features_by_hand(folder, spec, image_BCHW[:1])[0].double()
    for (y, x), found_K in zip(corners, found_NK, strict=True):
        window_CN = features_CHW[:, y : y + 48, x : x + 48].flatten(1)
        expected_K = torch.cat([window_CN.mean(1), window_CN.std(1, correction=0)])
        torch.testing.assert_close(found_K, expected_K, rtol=1e-3, atol=1e-3 * float(window_CN.abs().max()))


def test_embeddings_tell_textures_apart(untrained: Path) -> None:
    """Two halves of one texture are closer than two textures."""
    rng = np.random.default_rng(0)
    grain = 130 + rng.normal(0, 25, (96, 192))
    stripes = 130 + 40 * np.sin(np.arange(192) * 1.3)[None].repeat(96, axis=0)
    grey = np.concatenate([grain, stripes]).clip(0, 255).round().astype(np.uint8)
    scorer = Embedding(checkpoint=untrained / "srcnn_955_x2.safetensors")
    maps_BKHW = maps_of(scorer, to_float(to_tensor(grey[..., None].repeat(3, axis=2)))[None])
    corners = np.array(list(itertools.product((0, 96), (0, 96))), np.int32)
    vectors_NK = scorer.finish(window_means(maps_BKHW, corners, 96, 12))
    apart_NN = torch.cdist(vectors_NK, vectors_NK)
    assert max(apart_NN[0, 1], apart_NN[2, 3]) < 0.2 * apart_NN[:2, 2:].min()


# In a store


@pytest.fixture
def store(write_photos: Callable[..., Path], tmp_path: Path) -> Path:
    """Three shards: a photograph, another, and one that is too small for a window."""
    for name, sizes in (("photos", [(60, 77), (49, 48)]), ("small", [(20, 20)])):
        photos = write_photos(tmp_path / name, sizes, seed=len(name))
        ingest([photos], tmp_path / "store", patch=24, step=12, shard_size=1)
    return tmp_path / "store"


NUM_PATCHES = len(windows.grid(60, 77, 24, 12)) + len(windows.grid(49, 48, 24, 12))


def files_of(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


def test_vectors_in_a_store_are_lists_for_sql(
    store: Path, saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = saved("fsrcnn:d=8,s=4,m=1")

    def curate(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["curate", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capfd.readouterr()
        assert not end.value.code, captured.err
        return captured.out

    curate("score", store, f"embedding:checkpoint={folder}")
    file = next(store.glob("tables/scores/*/000000.parquet"))
    field = pq.read_schema(file).field("embedding")
    assert pa.types.is_fixed_size_list(field.type) and field.type.list_size == 16
    vectors_of = 'select patch_id, "embedding:checkpoint=run" as v from scores'
    query = f"""
        select a.patch_id as one, b.patch_id as other, list_cosine_similarity(a.v, b.v) as cosine,
            array_distance(a.v::float[16], b.v::float[16]) as distance
        from ({vectors_of}) a, ({vectors_of}) b
    """
    rows = list(csv.DictReader(io.StringIO(curate("sql", store, query, "--format", "csv"))))
    table = Store.open(store).query(vectors_of)
    vectors = dict(zip(table["patch_id"].to_pylist(), np.array(table["v"].to_pylist()), strict=True))
    assert len(rows) == NUM_PATCHES**2 and len(vectors) == NUM_PATCHES
    for row in rows:
        a, b = vectors[row["one"]], vectors[row["other"]]
        assert float(row["cosine"]) == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
        assert float(row["distance"]) == pytest.approx(np.linalg.norm(a - b), rel=1e-3, abs=1e-5)


def test_a_vector_that_is_not_finite_counts_once(store: Path, saved: Callable[..., Path], tmp_path: Path) -> None:
    """Of a network whose features overflow."""
    found = Checkpoint.load(saved("fsrcnn:d=8,s=4,m=1"))
    state = {key: value * 1e30 if key.endswith("weight") else value for key, value in found.state.items()}
    Checkpoint(found.arch, state, {}).save(tmp_path / "huge")
    report = score(store, [f"embedding:checkpoint={tmp_path / 'huge'}"])
    assert (report.patches, report.not_finite) == (NUM_PATCHES, NUM_PATCHES)


class Cut(BaseException):
    """What an interrupted test raises."""


@pytest.mark.parametrize("after", range(3))
def test_a_run_that_was_cut_off_goes_on(
    after: int, store: Path, saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = f"embedding:checkpoint={saved('fsrcnn:d=8,s=4,m=1')}"
    whole = Path(shutil.copytree(store, tmp_path / "whole"))
    score(whole, [spec])
    commit, commits = Store.commit, itertools.count()

    def cut(*arguments: object) -> None:
        if next(commits) == after:
            raise Cut
        commit(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched, pytest.raises(Cut):
        patched.setattr(Store, "commit", cut)
        score(store, [spec])
    assert score(store, [spec]).skipped == after
    assert files_of(store) == files_of(whole)


# Which scorer it is


@pytest.mark.parametrize("name", ["loss", "embedding"])
def test_a_checkpoint_counts_by_its_arch_and_values(name: str, store: Path, saved: Callable[..., Path]) -> None:
    """Wherever it lies: a run, a copy, the same weights in a file of others. What differs is scored anew."""
    run = saved("fsrcnn:d=8,s=4,m=1")
    folder = run.parent
    torch.save(Checkpoint.load(run).state, folder / "public.pth")
    shutil.copytree(run, folder / "copy")
    assert score(store, [f"{name}:checkpoint={run}"]).skipped == 0
    for same in ("copy", "run/model.safetensors", "public.pth,arch=fsrcnn:scale=2"):
        assert score(store, [f"{name}:checkpoint={folder}/{same}"]).skipped == 3, same
    saved("fsrcnn:d=8,s=4,m=1", seed=1, name="other")
    others = ["other", "public.pth,arch=fsrcnn:scale=3", "run,tile=96", *(["run,metric=l1"] if name == "loss" else [])]
    for other in others:
        assert score(store, [f"{name}:checkpoint={folder}/{other}"]).skipped == 0, other
    sets = Store.open(store).score_sets()
    assert len({found.record.fingerprint for found in sets}) == 1 + len(others)
    assert not any(str(folder) in json.dumps(found.record.identity) for found in sets)


BIG = '''
"""Nearest neighbour."""
from dataclasses import dataclass
from typing import ClassVar
from torch import nn
from curate.archs import Arch
@dataclass(frozen=True)
class Big(Arch):
    scale: int = 8
    colour: ClassVar = "y"
    peak: ClassVar = 1.0
    def build(self):
        return nn.Sequential(nn.Conv2d(1, 1, 1), nn.Upsample(scale_factor=self.scale))
'''


@pytest.mark.parametrize("name", ["loss", "embedding"])
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("checkpoint={}/absent", "no such file or folder"),
        ("checkpoint={}/public.pth", "say which with --arch fsrcnn:scale=2"),
        ("arch=fsrcnn", "arch=fsrcnn is for a file: name it with checkpoint=FILE"),
        ("tile=47", "tile should be 0 or at least 48 LR px, found 47"),
        (
            "checkpoint={}/big,arch={lab}.big",
            "multiples of 12 px, which the scale of {lab}.big:scale=8 does not divide",
        ),
    ],
)
def test_what_cannot_be_scored_by_is_one_line(
    name: str, options: str, reason: str, saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(Checkpoint.load(saved("fsrcnn:d=8,s=4,m=1")).state, tmp_path / "public.pth")
    lab = f"lab_{tmp_path.name.replace('-', '_')}"
    (tmp_path / lab).mkdir()
    (tmp_path / lab / "__init__.py").touch()
    (tmp_path / lab / "big.py").write_text(BIG)
    monkeypatch.syspath_prepend(tmp_path)
    big = plugins.parse("archs", f"{lab}.big")
    Checkpoint(big, big.build().state_dict(), {}).save(tmp_path / "big")
    with pytest.raises(UsageError) as error:
        plugins.parse("scorers", f"{name}:{options.format(tmp_path, lab=lab)}").build(CPU)
    assert reason.format(lab=lab) in str(error.value)
    assert str(error.value).isprintable()
