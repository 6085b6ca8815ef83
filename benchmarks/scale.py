"""What scale costs: select, sql, info and diff on generated stores of a thousand to a hundred million patches.

    python benchmarks/scale.py make FOLDER PATCHES SHARDS       a store of tables alone, with two scores
    python benchmarks/scale.py measure FOLDER PATCHES:SHARDS... makes each store, measures, deletes it; JSON lines
    python benchmarks/scale.py photos FOLDER PATCH:STEP PHOTOS... the same of real photographs, ingested and scored
    python benchmarks/scale.py picture FILE.jsonl...            cost_curve.svg and the table in Markdown

Every figure is that of a whole process: start of Python and peak memory included. The yardstick of select is DuckDB
sorting the same table, as one Parquet file, with the same memory limit: all columns, ORDER BY score, patch_id, the
first half, written to Parquet by the writer that curate has.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate import schema, shards
from curate.store import INGEST, Store

PATCH, STEP = 480, 240  # px
ROWS, COLUMNS = 5, 8  # windows of an image of 1440x2160 px: 40, as many as an image of DIV2K has
SCORES = ("sobel", "srcnn")
MEMORY = "1GB"
BATCH_ROWS = 65_536
TARGETS = ("select", "sql", "info", "diff")
COLOURS = {"select": "#c8553d", "bare sort": "#999999", "sql": "#1b6ca8", "info": "#4c956c", "diff": "#7a5195"}


# ---- a store of tables alone


def make(folder: Path, patches: int, units: int) -> Store:
    """A store of at least `patches` patches in `units` shards, whose tars are empty; the same each time."""
    store = Store.create(folder, patch=PATCH, step=STEP)
    sets = [store.add_score_set(_scorer(name)) for name in SCORES]
    each = -(-patches // units // (ROWS * COLUMNS)) or 1  # images of a shard
    for unit in range(units):
        tables = _tables(unit, each)
        digest, _ = shards.write_tar(store.shard_path(unit), {})
        parts = [store.part(store.shard_path(unit), digest)]
        parts += [store.write_table(name, unit, table) for name, table in tables.items()]
        store.commit(INGEST, unit, "0" * 16, parts)
        rng = np.random.default_rng(unit)
        for found, name in zip(sets, SCORES, strict=True):
            values = rng.gamma(2.0, 0.05, each * ROWS * COLUMNS).astype(np.float32)
            table = pa.table([tables["patches"]["patch_id"], values], schema=schema.scores_schema((name,)))
            store.commit(found.kind, unit, "0" * 16, [store.write_table(found.kind, unit, table)])
    return store


def _scorer(name: str) -> schema.ScorerRecord:
    return schema.ScorerRecord(scorer=name, label=name, columns=[name], identity={}, fingerprint=name.ljust(16, "0"))


def _tables(unit: int, each: int) -> dict[str, pa.Table]:
    """The images, cells and patches of one unit: ids in no order, windows row by row."""
    numbers = (np.arange(each, dtype=np.uint64) + np.uint64(unit * each)) * np.uint64(0x9E3779B97F4A7C15)
    digits = np.frombuffer(numbers.astype(">u8").tobytes().hex().encode(), "S16")
    ids = pa.array(digits.astype("U16"))
    height, width = (ROWS + 1) * STEP, (COLUMNS + 1) * STEP
    same: dict[str, Any] = {
        "sha256": pc.binary_repeat(ids, 4),
        "name": pc.binary_join_element_wise(ids, pa.scalar(".png"), ""),
        "height": height,
        "width": width,
        "status": schema.STATUS_OK,
        "source": "photos",
        "split": "train",
        "y": 0,
        "x": 0,
        "role": "hr",
        "offset": 0,
        "size": 1,
        "xxh3": 1,
    }
    place = np.tile(np.arange(ROWS * COLUMNS), each)
    y, x = (pa.array((number * STEP).astype(np.int32)) for number in (place // COLUMNS, place % COLUMNS))
    corner = np.arange(ROWS * COLUMNS)
    endings = [f"_{row * STEP}_{column * STEP}_{PATCH}" for row, column in zip(*divmod(corner, COLUMNS), strict=True)]
    image = ids.take(pa.array(np.repeat(np.arange(each), ROWS * COLUMNS)))
    patch_id = pc.binary_join_element_wise(image, pa.array(endings).take(pa.array(place)), "")
    size = pa.array(np.full(len(place), PATCH, np.int32))
    return {
        "images": _filled(schema.IMAGES, ids, same),
        "cells": _filled(schema.CELLS, ids, same),
        "patches": pa.table([patch_id, image, y, x, size], schema=schema.PATCHES),
    }


def _filled(fields: pa.Schema, ids: pa.Array, values: dict[str, Any]) -> pa.Table:
    columns = []
    for field in fields:
        value = ids if field.name == "image_id" else values[field.name]
        columns.append(value if isinstance(value, pa.Array) else pa.repeat(pa.scalar(value, field.type), len(ids)))
    return pa.table(columns, schema=fields)


# ---- measuring


def measure(folder: Path, sizes: list[str]) -> None:
    """Each `PATCHES:SHARDS` in turn: JSON lines of seconds and peak megabytes."""
    for size in sizes:
        patches, units = map(int, size.split(":"))
        store = folder / f"store-{patches}-{units}"
        shutil.rmtree(store, ignore_errors=True)
        started = time.perf_counter()
        made = make(store, patches, units)
        rows = sum(made.rows(record, "patches") for record in made.commits().values())
        say({"patches": rows, "shards": units, "made": round(time.perf_counter() - started, 1)})
        ask(store, rows, units)
        shutil.rmtree(store)


def photos(folder: Path, grid: str, sources: list[str]) -> None:
    """The same of a store that is ingested and scored here."""
    patch, step = grid.split(":")
    store = folder / f"photos-{patch}-{step}"
    shutil.rmtree(store, ignore_errors=True)
    took = {"ingest": cost(["ingest", *sources, str(store), "--patch", patch, "--step", step, "--shard-size", "8MB"])}
    took["score sobel"] = cost(["score", str(store), "sobel"])
    units = Store.open(store).commits()
    rows = sum(Store.rows(record, "patches") for record in units.values())
    for what, (seconds, megabytes) in took.items():
        say({"patches": rows, "shards": len(units), "photos": True, "what": what, "s": seconds, "MB": megabytes})
    ask(store, rows, len(units), photos=True)
    shutil.rmtree(store)


def ask(store: Path, rows: int, units: int, **more: Any) -> None:
    """Every question, each in a process of its own."""
    by = ["--by", "sobel"]
    one, other = (str(store.with_suffix(f".{name}.parquet")) for name in ("refined", "des"))
    by_image = "select image_id, avg(sobel) as s from scores group by image_id order by s desc limit 10"
    top = "select patch_id, sobel from scores order by sobel desc, patch_id limit 10"
    questions = {
        "select": ["select", str(store), "refined", *by, "-o", one],
        "des": ["select", str(store), "des", *by, "-o", other],
        "sql": ["sql", str(store), by_image],
        "sql top": ["sql", str(store), top],
        "info": ["info", str(store)],
        "info manifest": ["info", one],
        "diff": ["diff", one, other],
    }
    for what, arguments in questions.items():
        seconds, megabytes = cost(arguments)
        say({"patches": rows, "shards": units, **more, "what": what, "s": seconds, "MB": megabytes})
    seconds, megabytes = bare(store)
    say({"patches": rows, "shards": units, **more, "what": "bare sort", "s": seconds, "MB": megabytes})
    for file in (one, other):
        Path(file).unlink(missing_ok=True)


def cost(arguments: list[str]) -> tuple[float, int]:
    """Seconds and peak memory (MB) of one `curate` with these arguments."""
    return process([sys.executable, "-c", "from curate.cli import main; main()", *arguments])


def bare(store: Path) -> tuple[float, int]:
    """Seconds and memory of the yardstick; that its table is made is not counted."""
    with tempfile.TemporaryDirectory(dir=store.parent) as name:
        table = Path(name) / "table.parquet"
        views = Store.open(store).views()
        import duckdb

        with duckdb.connect() as connection:
            connection.execute(f"SET memory_limit='{MEMORY}'; SET temp_directory='{name}'")
            connection.execute(f"CREATE VIEW patches AS {views['patches']}")
            scores = f"SELECT * REPLACE (CAST(sobel AS DOUBLE) AS sobel) FROM ({views['scores']})"
            connection.execute(f"COPY ({scores}) TO '{table}' (FORMAT parquet, COMPRESSION zstd)")
        return process([sys.executable, __file__, "sort", str(table), name])


def sort(table: str, folder: str) -> None:
    """The yardstick: DuckDB's sort of a table, the first half of it written."""
    import duckdb
    import pyarrow.parquet as pq

    with duckdb.connect() as connection:
        connection.execute(f"SET memory_limit='{MEMORY}'; SET temp_directory='{folder}'")
        half = connection.execute(f"SELECT count(*) // 2 FROM '{table}'").fetchall()[0][0]
        ordered = connection.sql(f"SELECT * FROM '{table}' ORDER BY sobel DESC, patch_id LIMIT {half}")
        batches = ordered.to_arrow_reader(BATCH_ROWS)
        with (
            Path(folder, "half.parquet").open("wb") as file,
            pq.ParquetWriter(file, batches.schema, compression="zstd") as writer,
        ):
            waiting: list[pa.RecordBatch] = []
            for batch in batches:
                waiting.append(batch)
                if sum(map(len, waiting)) >= 2**20:
                    writer.write_table(pa.Table.from_batches(waiting))
                    waiting = []
            if waiting:
                writer.write_table(pa.Table.from_batches(waiting))
            file.flush()
            os.fsync(file.fileno())


def process(command: list[str]) -> tuple[float, int]:
    """Seconds and peak memory (MB) of a process."""
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, used = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        assert child.stderr is not None
        sys.stderr.write(f"{' '.join(command[-6:])}: {child.stderr.read().decode()[-300:]}\n")
        return math.nan, used.ru_maxrss // 1024
    return round(seconds, 3), used.ru_maxrss // 1024


def say(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    if verb == "make":
        make(Path(arguments[0]), int(arguments[1]), int(arguments[2]))
    elif verb == "measure":
        measure(Path(arguments[0]), arguments[1:])
    elif verb == "photos":
        photos(Path(arguments[0]), arguments[1], arguments[2:])
    elif verb == "sort":
        sort(*arguments)
