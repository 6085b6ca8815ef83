"""The verb: what it reports, what it does when it is run again or after a kill, and what it refuses."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import CHUNK, FOLDERS, HAS_LMDB, changed, each_target, half, refusal

from curate import files, images, targets
from curate.errors import CurateError, DataError, UsageError
from curate.exporting import ExportReport, export
from curate.ingestion import ingest
from curate.manifest import Manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Manifest:
    return half(tmp_path_factory.mktemp("exporting"), write_photos)


@pytest.fixture(autouse=True)
def several_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "CHUNK_BYTES", CHUNK)


def test_equal_weights_are_not_said_to_be_unread(tmp_path: Path, manifest: Manifest) -> None:
    equal = changed(manifest, "weight", np.ones(len(manifest)))
    assert not export(equal, tmp_path / "out", to="folder").weights_unread


def test_the_report_of_a_manifest_given_by_path_and_a_store_that_moved(tmp_path: Path, manifest: Manifest) -> None:
    assert manifest.path is not None
    report = export(manifest.path, tmp_path / "out", to="folder", store=manifest.store().path)
    assert isinstance(report, ExportReport) and report.folder == tmp_path / "out"
    assert report.windows == len(manifest)


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
from curate import exporting, targets
from curate.manifest import Manifest

def kill(done, total, note=""):
    if 2 * done > total:
        os.kill(os.getpid(), signal.SIGKILL)

targets.CHUNK_BYTES = int(sys.argv[1])
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
    arguments = [str(CHUNK), str(saved.path), str(folder), *FOLDERS, "hf", "webdataset", *["lmdb"] * HAS_LMDB]
    run = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


@each_target
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


@each_target
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
    monkeypatch.setattr(images, "size", pytest.fail)
    export(manifest, tmp_path / "out", to="folder")


# Refusals


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


def test_another_store(tmp_path: Path, manifest: Manifest, write_photos: Callable[..., Path]) -> None:
    ingest([write_photos(tmp_path / "photos", [(48, 48)], seed=9)], tmp_path / "store", patch=24)
    assert manifest.path is not None
    assert "is not the store" in refusal(DataError, manifest.path, tmp_path / "out", store=tmp_path / "store")
