"""Windows as they are cut out: which LR, and how often a photograph is decoded."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from exported import SIZES, Pixels, half
from PIL import Image
from test_writers import decoded

from curate import images
from curate.exporting import export
from curate.ingestion import ingest
from curate.manifest import Manifest
from curate.selection import select


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Manifest:
    return half(tmp_path_factory.mktemp("cuts"), write_photos)


def test_the_stores_own_lr_is_cut_where_it_has_one(tmp_path: Path, make_photo: Callable[..., Pixels]) -> None:
    hr, lr = make_photo(48, 48, 1), make_photo(24, 24, 2)
    for name, pixels in (("hr", hr), ("lr", lr)):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "a.png")
    ingest([tmp_path / "hr"], tmp_path / "store", patch=24, step=12, lr={2: str(tmp_path / "lr")})
    export(select(tmp_path / "store", "random", keep=1), tmp_path / "out", to="neosr", scale=2)
    for path in (tmp_path / "out" / "LR_bicubic" / "X2").iterdir():
        y, x = (int(part) // 2 for part in path.stem.split("_")[2:4])
        assert np.array_equal(decoded(path), lr[y : y + 12, x : x + 12])


def test_a_photograph_is_decoded_once(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, calls = images.decode, []
    monkeypatch.setattr(images, "decode", lambda data, **how: calls.append(1) or decode(data, **how))
    export(manifest, tmp_path / "out", to="folder")
    assert len(calls) == len(set(manifest.table["image_id"].to_pylist())) == len(SIZES)
