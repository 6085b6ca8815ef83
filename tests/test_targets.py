"""Which windows an export has and how their files are called, and which manifests cannot be exported."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from exported import changed, half, refusal

from curate import exports
from curate.errors import DataError, UsageError
from curate.exporting import export
from curate.ingestion import ingest
from curate.manifest import Manifest
from curate.selection import select
from curate.targets import TARGETS
from curate.writers import WRITERS


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Manifest:
    return half(tmp_path_factory.mktemp("targets"), write_photos)


def test_every_target_is_written_and_looked_at() -> None:
    assert sorted(TARGETS) == list(TARGETS) == list(WRITERS) == list(exports._FILES)


def test_names_survive_every_reader_and_sort_by_rank(tmp_path: Path, manifest: Manifest) -> None:
    many = changed(manifest, "rank", np.arange(len(manifest)) * 10**6)
    export(many, tmp_path / "out", to="basicsr")
    names = [line.split(" ")[0] for line in (tmp_path / "out" / "meta_info.txt").read_text().splitlines()]
    assert names == sorted(names)
    assert all(re.fullmatch(r"[0-9a-f_]+\.png", name) for name in names)
    assert [int(name.split("_")[0]) for name in names] == many.table["rank"].to_pylist()


def test_windows_smaller_than_an_lr_pixel(tmp_path: Path, write_photos: Callable[..., Path]) -> None:
    ingest([write_photos(tmp_path / "photos", [(24, 24)])], tmp_path / "store", patch=3, step=1)
    tiny = select(tmp_path / "store", "random", keep=1)
    assert "no pixel of its own at x4" in refusal(UsageError, tiny, tmp_path / "out", scale=4)
    empty = replace(tiny, table=tiny.table.slice(0, 0))
    assert "no windows" in refusal(UsageError, empty, tmp_path / "out")


def test_ranks_that_are_twice_there(tmp_path: Path, manifest: Manifest) -> None:
    twice = changed(manifest, "rank", [0, 0, *range(2, len(manifest))])
    assert "two patches of rank 0" in refusal(DataError, twice, tmp_path / "out")


def test_a_missing_package_is_named(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    assert "pip install 'curate[lmdb]'" in refusal(UsageError, manifest, tmp_path / "out", to="lmdb")
    assert not (tmp_path / "out").exists()
