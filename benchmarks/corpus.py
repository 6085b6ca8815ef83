"""What the benchmarks run on: mosaics of photographs, and the tables of a store of DIV2K's size."""

import shutil
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

import curate
from curate import files, images, layout, schema, windows
from curate.sources import find
from curate.store import INGEST, ScoreSet, Store

__all__ = ["FULL", "QUICK", "SAMPLES", "Size", "div2k_tables", "forget_scores", "mosaics", "renamed", "tree_bytes"]

SAMPLES = Path(curate.__file__).parent / "samples" / "photos"
_ROW = 256  # px, height of the pieces of a mosaic


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    images: int = 16  # mosaics
    height: int = 1356  # px; with the width, the most common size in DIV2K
    width: int = 2040
    patch: int = 480  # px
    step: int = 240
    streamed: int = 96  # files of them, with comments of their own, where curate is compared to decoding
    scored: int = 4  # mosaics of those that networks score
    repeats: int = 3
    epochs: int = 4  # of the loaders in a repeat: one alone would be the start of a training more than its course
    memory: tuple[int, int] = (24, 240)  # images in the two corpora whose peaks of memory are compared
    listed: int = 800  # images in the store that SQL is asked about, as many as DIV2K has
    patches: tuple[int, int] = (5_000_000, 50)  # patches and shards of the store to select from
    searched: tuple[int, int, int] = (48, 8, 64)  # maps of the super-net, crops of a batch, px of a crop

    @property
    def windows(self) -> int:
        """Windows of one mosaic."""
        return len(windows.grid(self.height, self.width, self.patch, self.step))


FULL = Size()
QUICK = Size(
    images=4,
    height=252,
    width=300,
    patch=96,
    step=48,
    streamed=8,
    scored=2,
    repeats=1,
    memory=(4, 8),
    listed=8,
    patches=(400, 2),
    searched=(4, 1, 30),
)


def mosaics(photos: str | Path, folder: Path, size: Size = FULL) -> Path:
    """A folder of mosaics: photographs side by side, each image with another order and offset."""
    tiles = [images.decode(source.read()) for source in find([photos]).sources]
    tiles = [tile for tile in tiles if min(tile.shape[:2]) >= _ROW]
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(size.images):
        canvas = np.zeros((size.height, size.width, 3), np.uint8)
        for y in range(0, size.height, _ROW):
            row, x = min(size.height - y, _ROW), 0
            while x < size.width:
                tile = tiles[rng.integers(len(tiles))]
                top, left = rng.integers(0, tile.shape[0] - row + 1), rng.integers(0, 40)
                piece = tile[top : top + row, left : left + size.width - x]
                canvas[y : y + row, x : x + piece.shape[1]] = piece
                x += piece.shape[1]
        (folder / f"{i:04}.png").write_bytes(images.encode_png(canvas))
    return folder


def renamed(corpus: Path, folder: Path, number: int, side: int | None = None) -> Path:
    """`number` files of the pixels of a corpus, or of squares of `side` px of them, each with a comment of its own, so
    that no two are the same file."""
    folder.mkdir()
    originals = [path.read_bytes() for path in sorted(corpus.iterdir())]
    if side is not None:
        originals = [images.encode_png(np.ascontiguousarray(images.decode(d)[:side, :side])) for d in originals]
    for i in range(number):
        (folder / f"{i:04}.png").write_bytes(_with_comment(originals[i % len(originals)], f"{i}"))
    return folder


def _with_comment(png: bytes, text: str) -> bytes:
    content = b"tEXtComment\0" + text.encode("latin-1")
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    after_header = 8 + 25
    return png[:after_header] + chunk + png[after_header:]


def forget_scores(store: Path) -> None:
    """Leave the store as it was before it was scored."""
    for folder in ("tables/scores", "commits/scores"):
        shutil.rmtree(store / folder, ignore_errors=True)


def tree_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def div2k_tables(folder: Path, num_images: int = FULL.listed) -> int:
    """A store of as many images and windows as DIV2K has, two scores each, without pixels; returns its windows.

    As DIV2K, 800 images have 32,592 windows of 480 px every 240 px.
    """
    store = Store.create(folder, patch=480, step=240)
    rng = np.random.default_rng(0)
    sets = [_score_set(store, name) for name in ("srcnn", "sobel")]
    total = 0
    for unit, numbers in enumerate(np.array_split(np.arange(num_images), -(-num_images // 64))):
        ids = [f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}" for number in numbers.tolist()]
        heights = [1608 if number % 800 < 74 else 1356 for number in numbers.tolist()]  # 48 and 40 windows
        corners = [windows.grid(height, 2040, 480, 240) for height in heights]
        image_rows = [
            [image_id, f"{image_id}.png", image_id * 4, height, 2040, schema.STATUS_OK, "photos", "train"]
            for image_id, height in zip(ids, heights, strict=True)
        ]
        cell_rows = [
            [image_id, 0, 0, height, 2040, "hr", 512, 1, 1] for image_id, height in zip(ids, heights, strict=True)
        ]
        patch_rows = [
            [windows.patch_id(image_id, y, x, 480), image_id, y, x, 480]
            for image_id, corners_N2 in zip(ids, corners, strict=True)
            for y, x in corners_N2.tolist()
        ]
        path = store.shard_path(unit)
        parts = [store.part(path, files.publish_bytes(path, b"no pixels"))]
        tables = {"images": layout.IMAGES, "cells": layout.CELLS, "patches": layout.PATCHES}
        for (name, fields), rows in zip(tables.items(), (image_rows, cell_rows, patch_rows), strict=True):
            columns = [
                pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), fields.types, strict=True)
            ]
            parts.append(store.write_table(name, unit, pa.Table.from_arrays(columns, schema=fields)))
        store.commit(INGEST, unit, "0" * 16, parts)
        for name, found in zip(("srcnn", "sobel"), sets, strict=True):
            scores = pa.array(rng.random(len(patch_rows)), pa.float32())
            table = pa.table([[row[0] for row in patch_rows], scores], schema=layout.scores_schema((name,)))
            store.commit(found.kind, unit, "0" * 16, [store.write_table(found.kind, unit, table)])
        total += len(patch_rows)
    return total


def _score_set(store: Store, name: str) -> ScoreSet:
    record = schema.ScorerRecord(scorer=name, label=name, columns=[name], identity={}, fingerprint=name.ljust(16, "0"))
    return store.add_score_set(record)
