"""Exports of every target, damaged bit by bit: what `check` finds, and what is made again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from exported import CHUNK, HAS_LMDB, each_target, half
from test_fsck import flipped

from curate import targets
from curate.exporting import export
from curate.exports import check, remove_damaged
from curate.manifest import Manifest
from curate.store import Store


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Manifest:
    return half(tmp_path_factory.mktemp("exports"), write_photos)


@pytest.fixture(autouse=True)
def several_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "CHUNK_BYTES", CHUNK)


@pytest.fixture(scope="module")
def store(manifest: Manifest) -> Store:
    return manifest.store()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@each_target
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
    assert remove_damaged(tmp_path / "out") and not victim.exists()
    assert [problem for _, problem in check(tmp_path / "out", False)[1]] == ["missing"]
    export(some, tmp_path / "out", to=target, store=store)
    assert check(tmp_path / "out", True)[1] == []
    if target != "lmdb":
        assert contents(tmp_path / "out") == whole


@pytest.mark.skipif(not HAS_LMDB, reason="needs the extra lmdb")
@pytest.mark.parametrize("name", ["data.mdb", "meta_info.txt"])
def test_an_lmdb_that_lost_a_file_is_damaged_and_made_again(name: str, manifest: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(manifest, out, to="lmdb")
    (out / "HR.lmdb" / name).unlink()
    ((found, problem),) = check(out, True)[1]
    assert found == out / "HR.lmdb" and problem
    assert remove_damaged(out) == [out / "HR.lmdb"]
    export(manifest, out, to="lmdb")
    assert check(out, True)[1] == []
