"""What scale costs: select, sql, info and diff on generated stores of a thousand to a billion patches.

    python benchmarks/scale.py make FOLDER PATCHES SHARDS       a store of tables alone, with two scores
    python benchmarks/scale.py measure FOLDER PATCHES:SHARDS... makes each store, measures, deletes it; JSON lines
    python benchmarks/scale.py photos FOLDER PATCH:STEP PHOTOS... the same of real photographs, ingested and scored
    python benchmarks/scale.py picture FILE.jsonl...            cost_curve.svg and the table in Markdown

`--only select,sql` behind the sizes or photographs asks these questions alone, and what they need (`QUESTIONS`).

Every figure is that of a whole process, start of Python included: seconds of all cores together, peak memory, and the
most that lay in its temporary folder. The yardstick of select is DuckDB sorting the same table, as one Parquet file,
with the same memory limit: all columns, ORDER BY score, patch_id, the first half, written to Parquet by the writer that
curate has. That table is made when the store is gone: a billion patches are 14 GB of either.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate import layout, pool, schema, shards
from curate.store import INGEST, ScoreSet, Store

PATCH, STEP = 480, 240  # px
ROWS, COLUMNS = 5, 8  # windows of an image of 1440x2160 px: 40, as many as an image of DIV2K has
SCORES = ("sobel", "srcnn")
MEMORY = "1GB"
BATCH_ROWS = 65_536
MANY = 10_000  # shards
QUESTIONS = {  # and the questions whose manifests each needs
    "select": (),
    "select 1 %": (),
    "des": (),
    "sql": (),
    "sql top": (),
    "info": (),
    "info manifest": ("select",),
    "diff": ("select", "des"),
    "bare sort": (),
}
COLOURS = {"select": "#c8553d", "bare sort": "#888888", "sql": "#1b6ca8", "info": "#4c956c", "diff": "#7a5195"}


# ---- a store of tables alone


def make(folder: Path, patches: int, units: int) -> Store:
    """A store of at least `patches` patches in `units` shards, whose tars are empty; the same each time."""
    store = Store.create(folder, patch=PATCH, step=STEP)
    for name in SCORES:
        store.add_score_set(_scorer(name))
    each = _images(patches, units)
    # Processes that are not forked: Arrow has threads.
    with ProcessPoolExecutor(min(pool.workers(), units), get_context("spawn")) as workers:
        for _ in workers.map(partial(_write, folder, each), range(units), chunksize=-(-units // 64)):
            pass
    with store.writing():
        pass  # the end of a run, which folds its records
    return store


def _images(patches: int, units: int) -> int:
    """How many a shard has."""
    return -(-patches // units // (ROWS * COLUMNS)) or 1


def _write(folder: Path, each: int, unit: int) -> None:
    """One shard and its scores."""
    store = Store(folder, schema.StoreHeader(patch=PATCH, step=STEP, created_by="benchmarks/scale.py"))
    tables = _tables(unit, each)
    digest, _ = shards.write_tar(store.shard_path(unit), {})
    parts = [store.part(store.shard_path(unit), digest)]
    parts += [store.write_table(name, unit, table) for name, table in tables.items()]
    store.commit(INGEST, unit, "0" * 16, parts)
    for name, values in _scores(unit, each).items():
        kind = ScoreSet(_scorer(name)).kind
        table = pa.table([tables["patches"]["patch_id"], values], schema=layout.scores_schema((name,)))
        store.commit(kind, unit, "0" * 16, [store.write_table(kind, unit, table)])


def _scores(unit: int, each: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(unit)
    return {name: rng.gamma(2.0, 0.05, each * ROWS * COLUMNS).astype(np.float32) for name in SCORES}


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
        "images": _filled(layout.IMAGES, ids, same),
        "cells": _filled(layout.CELLS, ids, same),
        "patches": pa.table([patch_id, image, y, x, size], schema=layout.PATCHES),
    }


def _filled(fields: pa.Schema, ids: pa.Array, values: dict[str, Any]) -> pa.Table:
    columns = []
    for field in fields:
        value = ids if field.name == "image_id" else values[field.name]
        columns.append(value if isinstance(value, pa.Array) else pa.repeat(pa.scalar(value, field.type), len(ids)))
    return pa.table(columns, schema=fields)


# ---- measuring


def measure(folder: Path, sizes: list[str], only: list[str]) -> None:
    """Each `PATCHES:SHARDS` in turn: JSON lines of seconds and peak megabytes."""
    for size in sizes:
        patches, units = map(int, size.split(":"))
        store = folder / f"store-{patches}-{units}"
        shutil.rmtree(store, ignore_errors=True)
        started = time.perf_counter()
        made = make(store, patches, units)
        rows = sum(made.rows(record, "patches") for record in made.commits().values())
        tables = sum(file.stat().st_size for file in (store / "tables").rglob("*.parquet"))
        say({"patches": rows, "shards": units, "made": round(time.perf_counter() - started, 1), "bytes": tables})
        ask(store, only, patches=rows, shards=units)
        shutil.rmtree(store)
        if "bare sort" in only:
            each = _images(patches, units)
            say({"patches": rows, "shards": units, "what": "bare sort", **bare(folder, _joined(units, each))})


def photos(folder: Path, grid: str, sources: list[str], only: list[str]) -> None:
    """The same of a store that is ingested and scored here."""
    patch, step = grid.split(":")
    store = folder / f"photos-{patch}-{step}"
    shutil.rmtree(store, ignore_errors=True)
    took = {"ingest": cost(["ingest", *sources, str(store), "--patch", patch, "--step", step, "--shard-size", "8MB"])}
    took["score sobel"] = cost(["score", str(store), "sobel"])
    units = Store.open(store).commits()
    of = {"patches": sum(Store.rows(record, "patches") for record in units.values()), "shards": len(units)}
    for what, found in took.items():
        say({**of, "photos": True, "what": what, **found})
    ask(store, only, **of, photos=True)
    if "bare sort" in only:
        all_rows = Store.open(store).stream("SELECT * REPLACE (CAST(sobel AS DOUBLE) AS sobel) FROM scores")
        say({**of, "photos": True, "what": "bare sort", **bare(folder, iter(all_rows))})
    shutil.rmtree(store)


def ask(store: Path, only: list[str], **of: Any) -> None:
    """Every question, each in a process of its own."""
    by = ["--by", "sobel"]
    one, other, few = (str(store.with_suffix(f".{name}.parquet")) for name in ("refined", "des", "few"))
    by_image = "select image_id, avg(sobel) as s from scores group by image_id order by s desc limit 10"
    top = "select patch_id, sobel from scores order by sobel desc, patch_id limit 10"
    questions = {
        "select": ["select", str(store), "refined", *by, "-o", one, "--memory", MEMORY],
        "select 1 %": ["select", str(store), "refined", *by, "--keep", "0.01", "-o", few, "--memory", MEMORY],
        "des": ["select", str(store), "des", *by, "-o", other, "--memory", MEMORY],
        "sql": ["sql", str(store), by_image],
        "sql top": ["sql", str(store), top],
        "info": ["info", str(store)],
        "info manifest": ["info", one],
        "diff": ["diff", one, other],
    }
    for what, arguments in questions.items():
        if what in only:
            say({**of, "what": what, **cost(arguments)})
    for file in (one, other, few):
        Path(file).unlink(missing_ok=True)


def cost(arguments: list[str]) -> dict[str, float]:
    """What `process` says of one `curate` with these arguments."""
    return process([sys.executable, "-c", "from curate.cli import entry; entry()", *arguments])


def bare(folder: Path, rows: Iterator[pa.RecordBatch]) -> dict[str, float]:
    """What `process` says of the yardstick; that its table is made is not counted."""
    import duckdb

    with tempfile.TemporaryDirectory(dir=folder) as name:
        table, first = f"{name}/table.parquet", next(rows)
        with duckdb.connect() as connection:
            connection.execute(f"SET memory_limit='{MEMORY}'; SET temp_directory='{name}'")
            connection.register("rows", pa.RecordBatchReader.from_batches(first.schema, chain([first], rows)))
            connection.execute(f"COPY (FROM rows) TO '{table}' (FORMAT parquet, COMPRESSION zstd)")
        return process([sys.executable, __file__, "sort", table, name])


def _joined(units: int, each: int) -> Iterator[pa.RecordBatch]:
    """The rows of the view `scores` of a store, which need not be there."""
    for unit in range(units):
        rows, scores = _tables(unit, each)["patches"], _scores(unit, each)
        rows = rows.append_column("shard", pa.array(np.full(len(rows), unit, np.int32)))
        rows = rows.append_column("sobel", pa.array(scores["sobel"].astype(np.float64)))
        rows = rows.append_column("srcnn", pa.array(scores["srcnn"]))
        yield from rows.to_batches(BATCH_ROWS)


def sort(table: str, folder: str) -> None:
    """The yardstick: DuckDB's sort of a table, the first half of it written."""
    import duckdb
    import pyarrow.parquet as pq

    with duckdb.connect() as connection:
        connection.execute(f"SET memory_limit='{MEMORY}'; SET temp_directory='{tempfile.gettempdir()}'")
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


# In a small process: what the kernel says of a child's memory begins with its parent's.
WAIT = """
import json, os, subprocess, sys, tempfile, threading, time
folder, most, over = tempfile.gettempdir(), 0, threading.Event()
def watch():
    global most
    while not over.wait(0.2):
        try:
            sizes = [os.stat(os.path.join(at, name)).st_size for at, _, names in os.walk(folder) for name in names]
        except FileNotFoundError:  # one was just removed
            continue
        most = max(most, sum(sizes))
threading.Thread(target=watch, daemon=True).start()
started = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(child.pid, 0)
seconds, cpu = time.perf_counter() - started, used.ru_utime + used.ru_stime
over.set()
found = {"s": round(seconds, 3), "cpu": round(cpu, 3), "MB": used.ru_maxrss // 1024}
print(json.dumps({**found, "spilled MB": most // 10**6, "status": status}))
"""


def process(command: list[str]) -> dict[str, float]:
    """Seconds, seconds of all cores together, peak memory and the most in its temporary folder (MB) of a process."""
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        told = {"env": os.environ | {"TMPDIR": name}, "capture_output": True, "text": True}
        ended = subprocess.run([sys.executable, "-c", WAIT, *command], check=True, **told)
    found: dict[str, float] = json.loads(ended.stdout)
    if found.pop("status"):
        sys.stderr.write(f"{' '.join(command[-6:])}: {ended.stderr[-300:]}\n")
        return found | {"s": math.nan}
    return found


def say(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)


# ---- showing


def picture(files: list[str]) -> None:
    """Print the table as Markdown and write the curve beside this file: processor seconds over patches."""
    lines = [json.loads(line) for file in files for line in Path(file).read_text().splitlines()]
    rows = [line for line in lines if "what" in line]
    names = [name for name in dict.fromkeys(row["what"] for row in rows) if name != "des"]
    print("| patches | shards | " + " | ".join(names) + " |\n|---|---|" + "---|" * len(names))
    for key in dict.fromkeys((row["patches"], row["shards"], "photos" in row) for row in rows):
        of = {row["what"]: row for row in rows if (row["patches"], row["shards"], "photos" in row) == key}
        cells = [cell(of[name]) if name in of else "-" for name in names]
        print(f"| {key[0]:,}{' (photographs)' if key[2] else ''} | {key[1]:,} | {' | '.join(cells)} |")
    curves: dict[str, list[tuple[int, float]]] = {}
    # Stores of many tiny shards are in the table alone: what they cost is not a matter of their patches.
    rows = [row for row in rows if not math.isnan(row["s"]) and row["shards"] < MANY]
    for name in COLOURS:
        fewest = {n: min(r["shards"] for r in rows if r["patches"] == n) for n in {r["patches"] for r in rows}}
        points = [(r["patches"], r["cpu"]) for r in rows if r["what"] == name and r["shards"] == fewest[r["patches"]]]
        curves[name] = sorted(points)
    Path(__file__).with_name("cost_curve.svg").write_text(svg(curves))


def cell(row: dict[str, Any]) -> str:
    """Of a table; what was stopped took more."""
    more = "more than " if math.isnan(row["s"]) else ""
    return f"{more}{row['cpu']:.2f} s, {row['MB']} MB"


def svg(curves: dict[str, list[tuple[int, float]]]) -> str:
    """Lines on logarithmic axes: 10^3 to 10^8 patches, a tenth of a second to a thousand; further where they go."""
    left, top, width, height = 60, 20, 560, 320  # px
    largest = [max(values) for values in zip(*(point for points in curves.values() for point in points), strict=True)]
    ends = [max(power, math.ceil(math.log10(value))) for power, value in zip((8, 3), largest, strict=True)]
    decades = {"x": (3, ends[0]), "y": (-1, ends[1])}

    def at(patches: float, seconds: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = decades.values()
        x = left + (math.log10(patches) - x0) / (x1 - x0) * width
        return x, top + height - (math.log10(seconds) - y0) / (y1 - y0) * height

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="760" height="390" font-family="sans-serif" font-size="12">',
        '<rect width="760" height="390" fill="white"/>',
    ]
    for power in range(decades["x"][0], decades["x"][1] + 1):
        x, y = at(10**power, 0.1)
        parts.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{top}" y2="{y:.0f}" stroke="#ddd"/>')
        label = f"{10 ** (power % 3)} {('', 'K', 'M', 'G')[power // 3]}"
        parts.append(f'<text x="{x:.0f}" y="{y + 18:.0f}" text-anchor="middle">{label}</text>')
    for power in range(decades["y"][0], decades["y"][1] + 1):
        x, y = at(1000, 10.0**power)
        parts.append(f'<line x1="{x:.0f}" x2="{left + width}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 6:.0f}" y="{y + 4:.0f}" text-anchor="end">{10.0**power:g} s</text>')
    title = "patches; processor seconds of a command"
    parts.append(f'<text x="{left + width / 2:.0f}" y="{top + height + 40}" text-anchor="middle">{title}</text>')
    for number, (name, points) in enumerate(curves.items()):
        places = [at(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[name]}"/>' for x, y in places]
        y = top + 20 + 22 * number
        parts.append(f'<rect x="{left + width + 20}" y="{y - 9}" width="10" height="10" fill="{COLOURS[name]}"/>')
        parts.append(f'<text x="{left + width + 36}" y="{y}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def asked(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments before `--only`, and the questions behind it with those that they need; all without it."""
    if "--only" not in arguments:
        return arguments, [*QUESTIONS]
    place = arguments.index("--only")
    names = arguments[place + 1].split(",")
    if unknown := set(names) - QUESTIONS.keys():
        sys.exit(f"--only should name questions, found {', '.join(unknown)}; there are: {', '.join(QUESTIONS)}")
    return arguments[:place] + arguments[place + 2 :], [*names, *(need for name in names for need in QUESTIONS[name])]


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    arguments, only = asked(rest)
    if verb == "make":
        make(Path(arguments[0]), int(arguments[1]), int(arguments[2]))
    elif verb == "measure":
        measure(Path(arguments[0]), arguments[1:], only)
    elif verb == "photos":
        photos(Path(arguments[0]), arguments[1], arguments[2:], only)
    elif verb == "sort":
        sort(*arguments)
    elif verb == "picture":
        picture(arguments)
    else:
        sys.exit(__doc__)
