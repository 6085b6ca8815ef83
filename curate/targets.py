"""The targets of an export: which windows lie in which files, and what is in these beside the pixels.

    folder           HR/NAME.png, LR_bicubic/X2/NAMEx2.png               kair.json      as DIV2K: EDSR and its kin, KAIR
    basicsr          HR/NAME.png, LR_bicubic/X2/NAME.png, meta_info.txt  basicsr.yml
    neosr, trainner  HR/NAME.png, LR_bicubic/X2/NAME.png                 neosr.toml, trainner.yml
    lmdb             HR.lmdb/, LR_bicubic_X2.lmdb/: a PNG by its NAME    basicsr.yml, neosr.toml
    webdataset       shards/000000.tar: NAME.{hr.png,json,lr2.png}       read.py        rank, score, weight in the json
    hf               data/train-00000-of-00003.parquet                   README.md      the same as columns

NAME is the rank and the patch_id, `000012_0123456789abcdef_240_0_480`: sorted by name is ranked, so that the first n
names are the core-set of n. It has no space, dot or letter beyond ASCII, which one reader or another cuts at.

A window whose edges are not on the LR grid is cut inward to it, so that every HR image is `scale` times its LR image
and nothing is shifted; edges that are multiples of 12 lose nothing.
"""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from curate import stubs
from curate.errors import DataError, UsageError, one_line
from curate.manifest import Manifest

__all__ = [
    "CHUNK_BYTES",
    "COLUMNS",
    "PNG_LEVEL",
    "TARGETS",
    "Plan",
    "Target",
    "Window",
    "facts",
    "image_paths",
    "meta_info",
    "parquet_name",
    "require",
    "tar_name",
    "windows_of",
    "write_parquet",
]

PNG_LEVEL = 1  # of zlib: 3.6 times as fast as 6 on photographs, 2.5 % more bytes
CHUNK_BYTES = 1 << 28  # of pixels, decoded, in a tar or Parquet file; as PNG about half
_ROW_GROUP = 100  # rows: 60 MB of 480-px windows; the `datasets` library makes them 100 MB at most
_PATCH_ID = re.compile(r"[0-9a-f]{16}_\d+_\d+_\d+")


# Windows


class Window(NamedTuple):
    """One row of the manifest, cut inward to the LR grid."""

    name: str
    patch_id: str
    image_id: str
    rank: int
    score: float | None
    weight: float
    y: int  # HR px, as the three below
    x: int
    height: int
    width: int


def windows_of(manifest: Manifest, scale: int | None) -> list[Window]:
    """The windows of a manifest, best first.

    Raises UsageError if it has none or they are smaller than an LR pixel, DataError for rows that no store can have.
    """
    rows = manifest.table.to_pylist()
    if not rows:
        raise UsageError("the manifest has no windows to export")
    digits = max(6, len(str(rows[-1]["rank"])))  # rows are sorted by rank
    windows = [_window(row, digits, scale or 1) for row in rows]
    for a, b in pairwise(windows):
        if a.rank == b.rank:
            raise DataError(f"the manifest has two patches of rank {a.rank}: '{a.patch_id}' and '{b.patch_id}'")
    return windows


def _window(row: dict[str, Any], digits: int, scale: int) -> Window:
    patch_id = row["patch_id"]
    if not _PATCH_ID.fullmatch(patch_id) or row["rank"] < 0:  # it becomes a file's name
        raise DataError(f"the manifest's patch '{one_line(patch_id)}' of rank {row['rank']} is not one of a store")
    top, left = (-(-row[axis] // scale) * scale for axis in "yx")
    bottom, right = ((row[axis] + row["size"]) // scale * scale for axis in "yx")
    if min(bottom - top, right - left) < scale:
        raise UsageError(f"a window of {row['size']} px has no pixel of its own at x{scale}; take larger windows")
    return Window(
        name=f"{row['rank']:0{digits}}_{patch_id}",
        patch_id=patch_id,
        image_id=row["image_id"],
        rank=row["rank"],
        score=row["score"],
        weight=row["weight"],
        y=top,
        x=left,
        height=bottom - top,
        width=right - left,
    )


@dataclass(frozen=True)
class Plan:
    """Which windows an export has, at which scale, and where it lies."""

    out: Path
    scale: int | None  # None: HR alone
    windows: list[Window]  # best first

    def lr_name(self, separator: str) -> str:
        """`LR_bicubic/X2`: where the LR lie."""
        return f"LR_bicubic{separator}X{self.scale}"

    def lmdbs(self) -> dict[str, int]:
        """The names of the LMDB, and how many times smaller than HR their images are."""
        return {"HR.lmdb": 1} | ({f"{self.lr_name('_')}.lmdb": self.scale} if self.scale else {})

    def chunks(self) -> list[list[Window]]:
        """The windows, best first, in parts that fit into one file."""
        chunks: list[list[Window]] = []
        room = 0
        for window in self.windows:
            size = window.height * window.width * 3
            if size > room:
                chunks.append([])
                room = CHUNK_BYTES
            chunks[-1].append(window)
            room -= size
        return chunks

    def data(self, *, lmdb: bool = False, meta_info: bool = False) -> stubs.Data:
        """What the config stubs tell."""
        out = self.out.resolve()
        hr, lr = (out / "HR.lmdb", out / f"{self.lr_name('_')}.lmdb") if lmdb else (out / "HR", out / self.lr_name("/"))
        return stubs.Data(
            hr=hr,
            lr=lr if self.scale else None,
            scale=self.scale,
            side=min(min(window.height, window.width) for window in self.windows),
            num_images=len(self.windows),
            meta_info=out / "meta_info.txt" if meta_info else None,
            lmdb=lmdb,
        )


# Files


def image_paths(plan: Plan, window: Window, lr_suffix: str) -> list[Path]:
    """The files of a window; `lr_suffix`, with the scale put in, ends the LR's name."""
    hr = plan.out / "HR" / f"{window.name}.png"
    lr = plan.out / plan.lr_name("/") / f"{window.name}{lr_suffix.format(plan.scale)}.png"
    return [hr, lr] if plan.scale else [hr]


def meta_info(windows: list[Window], shrink: int, end: str = "") -> str:
    """BasicSR's list: file name, a space, the shape without spaces. Readers split at the first space or dot."""
    return "".join(f"{w.name}.png ({w.height // shrink},{w.width // shrink},3){end}\n" for w in windows)


def tar_name(number: int, total: int) -> str:
    """Of the shard `number` of `total`, for WebDataset."""
    return f"shards/{number:06}.tar"


def facts(window: Window) -> dict[str, Any]:
    """What a sample of WebDataset says beside its images."""
    return {name: getattr(window, name) for name in ("rank", "patch_id", "score", "weight")}


# Columns beside the images, for Hugging Face.
COLUMNS = {
    "rank": pa.int64(),
    "patch_id": pa.string(),
    "image_id": pa.string(),
    "score": pa.float64(),
    "weight": pa.float32(),
}


def parquet_name(number: int, total: int) -> str:
    """Of the file `number` of `total`, for Hugging Face."""
    return f"data/train-{number:05}-of-{total:05}.parquet"


def write_parquet(table: pa.Table, file: Any) -> None:
    """PNG is compressed already, and statistics over it are of no use."""
    pq.write_table(
        table,
        file,
        compression="none",
        use_dictionary=False,
        write_statistics=list(COLUMNS),
        row_group_size=_ROW_GROUP,
        write_page_checksum=True,
    )


# Targets


@dataclass(frozen=True)
class Target:
    """What comes with the images of a layout, and what it needs."""

    stubs: dict[str, Callable[[Plan], str]]  # file name -> its text
    weights: bool = False  # whether what reads it gets the windows' weights
    needs: tuple[str, ...] = ()  # packages that are extras of curate


TARGETS = {
    "basicsr": Target({"basicsr.yml": lambda plan: stubs.basicsr(plan.data(meta_info=True))}),
    "folder": Target({"kair.json": lambda plan: stubs.kair(plan.data())}),
    "hf": Target({"README.md": lambda plan: stubs.huggingface(plan.out.resolve().name, plan.scale)}, weights=True),
    "lmdb": Target(
        {
            "basicsr.yml": lambda plan: stubs.basicsr(plan.data(lmdb=True)),
            "neosr.toml": lambda plan: stubs.neosr(plan.data(lmdb=True)),
        },
        needs=("lmdb",),
    ),
    "neosr": Target({"neosr.toml": lambda plan: stubs.neosr(plan.data())}),
    "trainner": Target({"trainner.yml": lambda plan: stubs.trainner(plan.data())}),
    "webdataset": Target({"read.py": lambda plan: stubs.webdataset(plan.scale)}, weights=True),
}


def require(package: str, target: str) -> Any:
    """A package that is an extra of curate. Raises UsageError where it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UsageError(f"target {target} needs the package '{package}': pip install 'curate[{package}]'") from None
