"""Near-duplicates: one picture encoded, resized or toned otherwise; another picture is none."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import scene
from PIL import Image, ImageEnhance
from typer.testing import CliRunner

from curate.alignment import grey
from curate.cli import app
from curate.duplication import distances, duplicates, perceptual_hash
from curate.ingestion import ingest
from curate.scoring import score
from curate.selection import select
from curate.store import Store

Photo = npt.NDArray[np.uint8]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def half(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)


DISGUISES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "encoded": lambda image: jpeg(image, 30),
    "half": half,
    "half, encoded": lambda image: jpeg(half(image), 50),
    "double": lambda image: image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


@pytest.fixture
def folder(tmp_path: Path, make_photo: Callable[..., Photo]) -> Path:
    """Three photographs, the first also as a small JPEG and as a large PNG."""
    made = tmp_path / "photos"
    made.mkdir()
    for seed in range(3):
        Image.fromarray(make_photo(200, 260, seed)).save(made / f"{seed}.png")
    original = Image.fromarray(make_photo(200, 260, 0))
    half(original).save(made / "0-small.jpg", quality=60)
    original.resize((520, 400), Image.Resampling.BICUBIC).save(made / "9-large.png")
    return made


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> Store:
    ingest([folder], tmp_path / "store", patch=48, step=24)
    score(tmp_path / "store", ["sobel"])
    return Store.open(tmp_path / "store")


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_hash_changes_little_with_the_file_and_much_with_the_picture(
    make_photo: Callable[..., Photo], disguise: str
) -> None:
    originals = [Image.fromarray(make_photo(200, 260, seed)) for seed in range(8)]
    hashes = np.array([perceptual_hash(grey(np.asarray(image))) for image in originals], np.uint64)
    for number, image in enumerate(originals):
        other = perceptual_hash(grey(np.asarray(DISGUISES[disguise](image))))
        assert other is not None
        assert distances(other, hashes)[number] <= 6
        assert distances(other, np.delete(hashes, number)).min() > 10


def test_distances_count_bits() -> None:
    others = [0, 2**64 - 1, 0b1011, 2**63]
    assert distances(0b1000, np.array(others, np.uint64)).tolist() == [(0b1000 ^ other).bit_count() for other in others]


@pytest.mark.parametrize("value", [0, 200])
def test_a_flat_picture_has_no_hash(value: int) -> None:
    assert perceptual_hash(np.full((40, 60), value, np.uint8)) is None


def test_the_one_with_the_most_pixels_is_kept_and_the_pairs_are_reported(store: Store) -> None:
    report = duplicates(store)
    assert (report.images, report.flagged) == (5, 2)
    (large,) = store.query("select image_id from images where name = '9-large.png'")["image_id"].to_pylist()
    assert set(report.pairs["kept"].to_pylist()) == {large}
    pairs = {frozenset((row["name"], row["twin_name"])) for row in report.pairs.to_pylist()}
    names = ("0.png", "0-small.jpg", "9-large.png")
    assert pairs == {frozenset((a, b)) for a in names for b in names if a != b}
    assert all(row["distance"] <= 10 and row["correlation"] >= 0.9 for row in report.pairs.to_pylist())
    statuses = dict(zip(*store.query("select name, status from images").to_pydict().values(), strict=True))
    reason = f"near-duplicate of 9-large.png ({large})"
    assert statuses == {"0.png": reason, "0-small.jpg": reason} | dict.fromkeys(("1.png", "2.png", "9-large.png"), "ok")
    manifest = select(store, "asc", by="sobel", keep=1.0)
    chosen = {store.shape(image_id) for image_id in manifest.table["image_id"].to_pylist()}
    assert chosen == {(200, 260), (400, 520)} and manifest.recipe.counts["flagged"] > 0


def test_in_several_runs_it_finds_what_it_finds_in_one(folder: Path, tmp_path: Path) -> None:
    ingest([folder], tmp_path / "whole", patch=48, step=24, shard_size=1)
    whole = duplicates(tmp_path / "whole")
    parts = [folder / name for name in ("0-small.jpg", "0.png", "1.png", "2.png", "9-large.png")]
    seen = 0
    for part in parts:
        ingest([part], tmp_path / "grown", patch=48, step=24)
        seen += duplicates(tmp_path / "grown").images
    assert seen == 5
    grown = duplicates(tmp_path / "grown")
    assert grown.images == 0 and grown.pairs.equals(whole.pairs) and grown.flagged == whole.flagged == 2


def test_alike_in_the_hash_is_not_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(4):
        Image.fromarray(scene(120, 150, seed)).convert("RGB").save(folder / f"{seed}.png")
    Image.fromarray(scene(120, 400, 0)).convert("RGB").save(folder / "wide.png")
    ingest([folder], tmp_path / "store", patch=48, step=24)
    monkeypatch.setattr("curate.duplication.perceptual_hash", lambda grey_HW: 7)
    report = duplicates(tmp_path / "store")
    assert report.pairs.num_rows == report.flagged == 0


def test_flat_pictures_are_no_duplicates_of_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for value in (10, 20, 30):
        Image.fromarray(np.full((60, 60, 3), value, np.uint8)).save(folder / f"{value}.png")
    ingest([folder], tmp_path / "store", patch=48, step=24)
    assert duplicates(tmp_path / "store").pairs.num_rows == 0


def test_the_command_shows_the_pairs(store: Store) -> None:
    result = CliRunner().invoke(app, ["duplicates", str(store.path)])
    assert result.exit_code == 0 and "0-small.jpg" in result.stdout
    assert "2 near-duplicates of others flagged, 5 images newly looked at" in result.stdout
    result = CliRunner().invoke(app, ["duplicates", str(store.path), "--json"])
    assert len(json.loads(result.stdout)) == 3
