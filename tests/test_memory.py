"""The most memory that a verb takes for sizes that were chosen to hurt, as the kernel counts it."""

import importlib
import io
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from curate.store import Store

PEAK = Path(__file__).parents[1] / "benchmarks" / "peak.py"  # prints the most that a job took, in MB
Peak = Callable[..., float]


def png(width: int, height: int, pixel: bytes) -> bytes:
    """A PNG file of one colour, without ever holding its pixels."""
    packer = zlib.compressobj(1)
    row = b"\0" + pixel * width
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b""))
    written = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Store]:
    """`benchmarks/scale.py`'s: a store of so many patches in so many shards, tables alone, two scores each."""
    monkeypatch.syspath_prepend(str(PEAK.parent))
    return importlib.import_module("scale").make


def peak(*arguments: object) -> float:
    command = [sys.executable, str(PEAK), *map(str, arguments)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout)


def tar_of(path: Path, count: int) -> Path:
    """So many images of 16 px in a tar file, no two alike."""
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            member, data = tarfile.TarInfo(f"{number}.png"), png(16, 16, struct.pack(">I", number)[1:])
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.slow
def test_one_picture_of_400_million_pixels(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "large.png").write_bytes(png(20_000, 20_000, b"\x40\x80\xc0"))
    assert peak("ingest", tmp_path / "photos", tmp_path / "store", 480, 240) < 1600
    assert peak("score", tmp_path / "store", "sobel") < 3200


@pytest.mark.slow
def test_what_an_image_more_costs(tmp_path: Path) -> None:
    few, many = (
        peak("ingest", tar_of(tmp_path / f"{count}.tar", count), tmp_path / f"{count}", 12, 12)
        for count in (2_000, 12_000)
    )
    assert few < 300 and (many - few) / 10_000 < 0.006  # MB: a million tiny images take less than 6 GB


@pytest.mark.slow
def test_to_choose_from_millions_and_to_ask_about_them(make: Callable[..., Store], tmp_path: Path) -> None:
    """Two million patches of fifty thousand images, and thrice as many."""
    peaks: dict[str, list[float]] = {"select": [], "sql": []}
    for millions in (2, 6):
        store = make(tmp_path / f"{millions}", millions * 10**6, 10 * millions).path
        peaks["select"].append(peak("select", store, "refined", tmp_path / f"{millions}.parquet"))
        ranked = "select * from scores order by srcnn desc"
        peaks["sql"].append(peak("sql", store, f"select count(*), max(sobel) from ({ranked} limit 1000000)"))
    sys.stderr.write(f"{peaks}\n")
    assert max(peaks["select"]) < 700 and max(peaks["sql"]) < 2400  # select may take 1 GB, with Python and all
