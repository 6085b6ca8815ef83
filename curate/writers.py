"""The writers of an export, one function a layout: the files that `curate.targets` tells of, each whole or not there.

What is there already is kept, and counted.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate import files, pool
from curate.cuts import Cut, Job, by_photograph
from curate.errors import CurateError, one_line
from curate.shards import write_tar
from curate.targets import (
    COLUMNS,
    PNG_LEVEL,
    Window,
    facts,
    image_paths,
    meta_info,
    parquet_name,
    require,
    tar_name,
    write_parquet,
)

__all__ = ["WRITERS", "keep_or_write"]


def keep_or_write(path: Path, text: str) -> None:
    """Write a file that is not there."""
    if not path.exists():
        files.publish_bytes(path, text.encode("utf-8", "surrogateescape"))


def _write_folders(job: Job, lr_suffix: str = "") -> None:
    """A PNG a window; `lr_suffix`, with the scale put in, ends the LR's names."""
    plan = job.plan

    def write(windows: list[Window]) -> tuple[int, int]:
        missing = [w for w in windows if not all(path.exists() for path in image_paths(plan, w, lr_suffix))]
        for cut in job.cut(missing):
            for path, data in zip(image_paths(plan, cut.window, lr_suffix), cut[1:], strict=False):
                if data is not None and not path.exists():
                    files.publish_bytes(path, data)
        return len(windows), len(windows) - len(missing)

    for number, kept in pool.ahead(write, by_photograph(plan.windows)):
        job.advance(number, kept)


def _write_meta_info(job: Job) -> None:
    _write_folders(job)
    keep_or_write(job.plan.out / "meta_info.txt", meta_info(job.plan.windows, 1))


def _write_chunks(job: Job, name: Callable[[int, int], str], write: Callable[[Path, list[Cut]], None]) -> None:
    """One file a chunk: `name` gives its path from its number and how many there are."""
    chunks = job.plan.chunks()
    for number, windows in enumerate(chunks):
        path = job.plan.out / name(number, len(chunks))
        if path.exists():
            job.advance(len(windows), len(windows))
        else:
            write(path, job.cut_chunk(windows))


def _write_webdataset(job: Job) -> None:
    def write(path: Path, cuts: list[Cut]) -> None:
        members = {}
        for window, hr, lr in cuts:
            members[f"{window.name}.hr.png"] = hr
            if lr is not None:
                members[f"{window.name}.lr{job.plan.scale}.png"] = lr
            members[f"{window.name}.json"] = json.dumps(facts(window)).encode()
        write_tar(path, sorted(members.items()))

    _write_chunks(job, tar_name, write)


def _write_huggingface(job: Job) -> None:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = ["hr", "lr"] if job.plan.scale else ["hr"]
    # How the `datasets` library is told that a struct of bytes and path is an image.
    features: dict[str, dict[str, str]] = {name: {"_type": "Image"} for name in columns}
    features |= {name: {"dtype": _dtype(kind), "_type": "Value"} for name, kind in COLUMNS.items()}
    layout = pa.schema(
        [*((name, image) for name in columns), *COLUMNS.items()],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )

    def write(path: Path, cuts: list[Cut]) -> None:
        rows = [
            {"hr": {"bytes": hr, "path": f"{window.name}.png"}, "lr": {"bytes": lr, "path": f"{window.name}.png"}}
            | {name: getattr(window, name) for name in COLUMNS}
            for window, hr, lr in cuts
        ]
        table = pa.Table.from_pylist(rows, layout)
        files.publish(path, partial(write_parquet, table))

    _write_chunks(job, parquet_name, write)


def _dtype(kind: pa.DataType) -> str:
    return {pa.float64(): "float64", pa.float32(): "float32"}.get(kind, str(kind))


def _write_lmdb(job: Job) -> None:
    """One environment for HR and one for LR, as BasicSR makes them, but for lock.mdb: readers open without a lock."""
    plan = job.plan
    shrinks = plan.lmdbs()
    missing = [name for name in shrinks if not (plan.out / name).exists()]
    partial_folders = {name: plan.out / f".{name}.partial" for name in shrinks}
    _remove(partial_folders.values())  # what a killed run left
    if not missing:
        job.advance(len(plan.windows), len(plan.windows))
        return
    try:
        with contextlib.ExitStack() as stack:
            opened = {name: stack.enter_context(_lmdb(partial_folders[name], plan.windows)) for name in missing}
            for windows in plan.chunks():
                cuts = job.cut_chunk(windows)
                for name, environment in opened.items():
                    with environment.begin(write=True) as transaction:
                        for window, hr, lr in cuts:
                            data = hr if shrinks[name] == 1 else lr
                            transaction.put(window.name.encode("ascii"), data, append=True)  # names ascend
        for name in missing:
            text = meta_info(plan.windows, shrinks[name], f" {PNG_LEVEL}")
            files.publish_bytes(partial_folders[name] / "meta_info.txt", text.encode())
            partial_folders[name].rename(plan.out / name)
            files.sync_folder(plan.out)
    except require("lmdb", "lmdb").Error as error:
        problem = one_line(error).rpartition(": ")[2]  # LMDB says "Input/output error" of a full disk, too
        hint = "is the disk full? The same command goes on"
        raise CurateError(f"cannot write into '{one_line(plan.out)}': {problem}; {hint}") from None
    finally:
        _remove(partial_folders.values())


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _lmdb(folder: Path, windows: list[Window]) -> Any:
    """A new environment. Its map is address space, not disk: twice the pixels, and two pages of 64 KiB an image."""
    size = sum(2 * window.height * window.width * 3 + (1 << 17) for window in windows)
    return require("lmdb", "lmdb").open(str(folder), map_size=size + (1 << 24), lock=False)


WRITERS: dict[str, Callable[[Job], None]] = {  # by target
    "basicsr": _write_meta_info,
    "folder": partial(_write_folders, lr_suffix="x{}"),
    "hf": _write_huggingface,
    "lmdb": _write_lmdb,
    "neosr": _write_folders,
    "trainner": _write_folders,
    "webdataset": _write_webdataset,
}
