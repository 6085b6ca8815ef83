"""How fast the main job is, each row beside what it is compared to: make bench [PHOTOS=folder]

The corpus is mosaics of DIV2K's size (2040 x 1356) made of the sample photographs, or of those in a folder. Figures are
medians of several runs, ours and yardstick by turns; on a shared machine read the ratios, not the seconds.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

import curate
from curate import images, pool
from curate.resize import downscale
from curate.sources import find
from curate.tensors import to_tensor

SAMPLES = Path(curate.__file__).parent / "samples" / "photos"
HEIGHT, WIDTH = 1356, 2040  # px, most common size in DIV2K
NUM_IMAGES = 12
REPEATS = 5
CURATE = Path(sys.executable).parent / "curate"


def main(photos: str | Path = SAMPLES) -> None:
    """Measure every row and print the table as Markdown."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = mosaics(photos, folder / "corpus")
        rows = [
            ("`curate --help`", ms(lambda: command("--help")), "python -c pass", ms(python_alone)),
            *pixels(corpus, folder),
            lr_of_one(corpus),
        ]
    print(f"{platform.processor() or platform.machine()}, {pool.workers()} cores, torch {torch.__version__}; ", end="")
    print(f"{NUM_IMAGES} PNGs of {WIDTH}x{HEIGHT}; medians of {REPEATS}\n")
    print("| what | ours, ms | compared to | its ms | ratio |\n|---|---|---|---|---|")
    for what, ours, yardstick, theirs in rows:
        print(f"| {what} | {ours:.0f} | {yardstick} | {theirs:.0f} | {ours / theirs:.2f} |")


def pixels(corpus: Path, folder: Path) -> list[tuple[str, float, str, float]]:
    """The rows that decode images."""
    stores = iter(range(1000))
    store = folder / "store"
    curate.ingest([corpus], store)
    decoding = ms(lambda: decode_all(corpus))
    ingesting = ms(lambda: curate.ingest([corpus], folder / f"store{next(stores)}"))
    again = ms(lambda: curate.ingest([corpus], store))
    scoring = ms(lambda: score_anew(corpus, folder / f"store{next(stores)}"))
    query = "select image_id, avg(sobel) from scores group by image_id"
    curate.score(store, ["sobel"])
    answer = ms(lambda: command("sql", str(store), query))
    decode = "decoding alone, same threads"
    return [
        ("ingest", ingesting, decode, decoding),
        ("ingest again", again, decode, decoding),
        ("score sobel", scoring - ingesting, decode, decoding),
        ("`curate sql`, first answer", answer, "python -c 'import duckdb'", ms(duckdb_alone)),
    ]


def lr_of_one(corpus: Path) -> tuple[str, float, str, float]:
    """The row of MATLAB's bicubic: one image of 2K, x2, beside torch's antialiased bicubic, which is another."""
    image_BCHW = to_tensor(images.decode(min(corpus.iterdir()).read_bytes()))[None]
    half = {"scale_factor": 0.5, "mode": "bicubic", "antialias": True}
    theirs = ms(lambda: torch.nn.functional.interpolate(image_BCHW, **half))
    return "LR of one image, x2", ms(lambda: downscale(image_BCHW, 2)), "torch's interpolate, inexact", theirs


def mosaics(photos: str | Path, folder: Path) -> Path:
    """A folder of mosaics: photographs side by side, each image with another order and offset."""
    tiles = [images.decode(source.read()) for source in find([photos]).sources]
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(NUM_IMAGES):
        canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        y = 0
        while y < HEIGHT:
            row = min(HEIGHT - y, 256)
            x = 0
            while x < WIDTH:
                tile = tiles[rng.integers(len(tiles))]
                top, left = rng.integers(0, tile.shape[0] - row + 1), rng.integers(0, 40)
                piece = tile[top : top + row, left : left + WIDTH - x]
                canvas[y : y + row, x : x + piece.shape[1]] = piece
                x += piece.shape[1]
            y += row
        (folder / f"{i:04}.png").write_bytes(images.encode_png(canvas))
    return folder


def decode_all(corpus: Path) -> None:
    with ThreadPoolExecutor(pool.workers()) as threads:
        list(threads.map(lambda path: images.decode(path.read_bytes()).shape, sorted(corpus.iterdir())))


def score_anew(corpus: Path, store: Path) -> None:
    curate.ingest([corpus], store)
    curate.score(store, ["sobel"])


def command(*arguments: str) -> None:
    subprocess.run([CURATE, *arguments], check=True, stdout=subprocess.DEVNULL)


def python_alone() -> None:
    subprocess.run([sys.executable, "-c", "pass"], check=True)


def duckdb_alone() -> None:
    subprocess.run([sys.executable, "-c", "import duckdb"], check=True)


def ms(work: Callable[[], object]) -> float:
    """Median milliseconds of a few runs, after one that is not counted."""
    work()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


if __name__ == "__main__":
    main(*filter(None, [os.environ.get("PHOTOS")]))
