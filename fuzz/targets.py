"""What is fuzzed: every kind of input that curate parses, and what the product does with it.

A target writes one input where the product finds it and calls the product: whatever comes out but a result or a
CurateError is a finding. `TARGETS` has them all by name; each is made in a folder of its own, with valid inputs to
start from and the mutation that suits their format.
"""

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import mutations
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from workshop import TINY, Workshop, pictures, tars

from curate import cli, config, degrade, images, plugins, schema, storage
from curate.checkpoint import Checkpoint, read_recipe
from curate.comparison import diff
from curate.config import DrcConfig, TrainConfig
from curate.drc import compress
from curate.engine import Part
from curate.errors import CurateError, UsageError
from curate.exporting import export
from curate.genotype import Genotype
from curate.inspection import info, parse_size
from curate.loader import batches
from curate.manifest import Manifest
from curate.packing import pack
from curate.pipeline import Pipeline
from curate.reporting import report
from curate.resume import STATE_FILE
from curate.schema import CommitRecord
from curate.selection import select
from curate.sources import find
from curate.store import Store
from curate.training import train
from curate.verification import verify

__all__ = ["TARGETS", "Target"]

Mutation = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Target:
    """One kind of input."""

    seeds: list[bytes]  # valid inputs
    act: Callable[[bytes], int]  # how many CurateErrors there were; raises for a finding, and nothing else
    mutate: Mutation = mutations.edit


def answered(*acts: Callable[[], object]) -> int:
    """Do all of it; each may end with a CurateError, whose message is one printable line. Returns how many did."""
    refused = 0
    for act in acts:
        try:
            act()
        except CurateError as error:
            assert str(error).isprintable(), f"not one printable line: {str(error)[:500]!r}"
            refused += 1
    return refused


# Stores


def _used(folder: Path) -> int:
    """What people do with a store."""
    if answered(partial(Store.open, folder)):
        return 1
    store = Store.open(folder)
    ids: list[str] = []

    def images_of() -> None:
        ids.extend([key for key in store.images()["image_id"].to_pylist() if key is not None][:4])

    refused = answered(images_of)
    return refused + answered(
        store.digest,
        store.patches,
        lambda: info(folder),
        lambda: store.query("select i.*, s.* from images i left join scores s using (image_id) order by all"),
        lambda: store.query("select * from duplicates, leaks"),
        lambda: select(store, "refined", by="sobel", keep=0.5).store(folder),
        *(partial(store.read, key, 0, 0, 24, 24) for key in ids),
        *(partial(store.pixels, key) for key in ids),
    )


def _document(path: str, use: Callable[[Path], int] = _used) -> Callable[[Workshop], Target]:
    """A JSON document of a store; `*` stands for the folder of a scorer or check."""

    def make(shop: Workshop) -> Target:
        store = shop.copy() / "store"
        (file,) = list(store.glob(path))[:1]

        def act(data: bytes) -> int:
            file.write_bytes(data)
            return use(store)

        return Target([file.read_bytes()], act, mutations.rejson)

    return make


def _folded(shop: Workshop) -> Target:
    """The records of a hundred units in one file."""
    folder = shop.copy() / "store"
    records = folder / "commits" / "ingest"
    first = schema.parse(CommitRecord, (records / "000000.json").read_bytes(), "it")
    (records / "000000.json").unlink()
    lines = [schema.dump(first.model_copy(update={"unit": unit})) for unit in range(100)]

    def act(data: bytes) -> int:
        (records / "000000-000099.jsonl").write_bytes(data)
        store = Store.open(folder)
        return answered(store.commits, store.digest)

    def mutate(data: bytes, rng: Random) -> bytes:
        parts = data.split(b"\n")
        at = rng.randrange(len(parts))
        parts[at] = mutations.rejson(parts[at], rng)
        return b"\n".join(parts) if rng.randrange(2) else mutations.edit(data, rng)

    return Target([b"\n".join(lines) + b"\n"], act, mutate)


def _part(table: str) -> Callable[[Workshop], Target]:
    """A Parquet file of a store, with a commit record that vouches for it: the store is somebody else's."""

    def make(shop: Workshop) -> Target:
        store = shop.copy() / "store"
        (file,) = list((store / "tables").glob(f"{table}/000000.parquet"))
        kind = file.parent.relative_to(store / "tables").as_posix()
        folder = "ingest" if kind in ("images", "cells", "patches") else kind
        record_file = store / "commits" / folder / "000000.json"
        record = schema.parse(CommitRecord, record_file.read_bytes(), "it")

        def act(data: bytes) -> int:
            file.write_bytes(data)
            name = file.relative_to(store).as_posix()
            change = {"bytes": len(data), "xxh3": xxhash.xxh3_128_hexdigest(data)}
            parts = [part.model_copy(update=change if part.path == name else {}) for part in record.parts]
            record_file.write_bytes(schema.dump(record.model_copy(update={"parts": parts})))
            return _used(store)

        return Target([file.read_bytes()], act, _parquet(file.read_bytes()))

    return make


def _parquet(whole: bytes) -> Mutation:
    """Half of the time another table, half of the time other bytes."""
    table = pq.read_table(io.BytesIO(whole))

    def mutate(data: bytes, rng: Random) -> bytes:
        if rng.randrange(4):
            data = mutations.retable(table, rng)
        return data if rng.randrange(2) else mutations.edit(data, rng)

    return mutate


def _shard(shop: Workshop) -> Target:
    """The pixels: no record vouches for their bytes but their hashes."""
    store = shop.copy() / "store"
    file = store / "shards" / "000000.tar"

    def act(data: bytes) -> int:
        file.write_bytes(data)
        return _used(store)

    return Target([file.read_bytes()], act)


# Manifests


def _manifest(shop: Workshop) -> Target:
    made = shop.copy()
    file, whole = made / "all.parquet", made / "whole.parquet"
    shutil.copy(file, whole)

    def act(data: bytes) -> int:
        file.write_bytes(data)
        return answered(
            partial(info, file),
            lambda: Manifest.load(file).describe(),
            lambda: Manifest.load(file).digest(),
            lambda: Manifest.load(file).verify(Manifest.load(file).store()),
            lambda: shop.store.query('select * from "all" order by all', Manifest.named([file])),
            lambda: shop.store.query('select * from "all" join patches using (patch_id)', Manifest.named([file])),
            lambda: diff(file, whole),
            lambda: _first_batches(file),
        )

    table = pq.read_table(whole)
    return Target([whole.read_bytes()], act, _manifest_mutation(table, whole.read_bytes()))


def _manifest_mutation(table: pa.Table, whole: bytes) -> Mutation:
    other = _parquet(whole)

    def mutate(data: bytes, rng: Random) -> bytes:
        if rng.randrange(4):
            return other(data, rng)
        metadata = dict(table.schema.metadata or {})
        key = schema.METADATA_KEY.encode()
        metadata[key] = mutations.rejson(metadata[key], rng).replace(b"\0", b"")
        return mutations.parquet(table.replace_schema_metadata(metadata))

    return mutate


def _first_batches(file: Path) -> None:
    feed = batches(file, scale=2, crop=24, batch_size=4)
    with contextlib.closing(feed):  # type: ignore[type-var]
        for _ in islice(feed, 2):
            pass


def _manifest_used(shop: Workshop) -> Target:
    """The verbs that cut pixels under a manifest, or draw it."""
    made = shop.copy()
    file, out = made / "all.parquet", made / "out"

    def act(data: bytes) -> int:
        file.write_bytes(data)
        shutil.rmtree(out, ignore_errors=True)
        return answered(
            lambda: pack(file, out / "packed"),
            lambda: export(file, out / "folder", to="folder"),
            lambda: report([file], out / "report.html"),
        )

    return Target([file.read_bytes()], act, _manifest_mutation(pq.read_table(file), file.read_bytes()))


# Tar files and images


def _tar(ending: str) -> Callable[[Workshop], Target]:
    def make(shop: Workshop) -> Target:
        file = shop.folder / f"photographs{ending}"

        def act(data: bytes) -> int:
            file.write_bytes(data)
            return answered(lambda: [_read(source) for source in find([file]).sources])

        return Target(tars()[ending], act)

    return make


def _read(source: Any) -> None:
    with contextlib.suppress(OSError):  # which ingest expects
        source.read()


def _image(ending: str) -> Callable[[Workshop], Target]:
    return lambda shop: Target(pictures()[ending], lambda data: answered(lambda: _decoded(data)))


def _decoded(data: bytes) -> None:
    """A size that is told is that of the pixels, which are the same however they are made."""
    size = images.size(data)
    pixels = images.decode(data)
    assert pixels.shape[:2] == size
    assert (pixels == images.decode(data, whole=True)).all()


# Networks


def _checkpoint(ending: str, arch: str | None, own: bool = False) -> Callable[[Workshop], Target]:
    def make(shop: Workshop) -> Target:
        file = shop.folder / f"weights{ending}"

        def act(data: bytes) -> int:
            file.write_bytes(data)
            return answered(
                lambda: Checkpoint.load(file, arch).module(),
                lambda: Checkpoint.load(file),
                lambda: read_recipe(file),
                lambda: info(file, arch=arch),
            )

        seeds = [shop.own_checkpoint()] if own else shop.public_checkpoints()[ending]
        return Target(seeds, act, _safetensors if ending == ".safetensors" else mutations.edit)

    return make


def _safetensors(data: bytes, rng: Random) -> bytes:
    """Mostly the JSON of the header, with its length put right."""
    length = int.from_bytes(data[:8], "little")
    if rng.randrange(3) == 0 or length > len(data):
        return mutations.edit(data, rng)
    header = mutations.rejson(data[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _training_state(shop: Workshop) -> Target:
    """What a killed run left."""
    made = shop.copy()
    options: dict[str, Any] = {"steps": 11, "crop": 24, "batch_size": 2, "save_every": 1, "ema": 0.5}
    run = made / "run"

    def stop(done: int, total: int, note: str = "") -> None:
        if done == 10:  # the state of step 9 is there
            raise InterruptedError

    with contextlib.suppress(InterruptedError):
        train(TINY, made / "all.parquet", TrainConfig(**options), run, progress=stop)
    whole = (run / STATE_FILE).read_bytes()

    def act(data: bytes) -> int:
        shutil.rmtree(run)
        run.mkdir()
        (run / STATE_FILE).write_bytes(data)
        return answered(lambda: train(TINY, made / "all.parquet", TrainConfig(**options), run))

    return Target([whole], act, _safetensors)


def _export_record(shop: Workshop) -> Target:
    made = shop.copy()
    export(made / "all.parquet", made / "out", to="folder")
    file = made / "out" / "export.json"

    def act(data: bytes) -> int:
        file.write_bytes(data)
        return answered(lambda: export(made / "all.parquet", made / "out", to="folder"))

    return Target([file.read_bytes()], act, mutations.rejson)


def _genotype(shop: Workshop) -> Target:
    """Also as the option of a network."""
    file = shop.folder / "genotype.json"
    Genotype.parse("dlsr").save(file, {"manifest": "m-1", "steps": 200_000, "seed": 0})

    def act(data: bytes) -> int:
        file.write_bytes(data)
        return answered(lambda: Genotype.load(file), partial(_parsed, "archs", f"dlsr:genotype={file}"))

    return Target([file.read_bytes()], act, mutations.rejson)


def _config(shop: Workshop) -> Target:
    """What is left of a network's units, as the option of one."""
    file = shop.folder / "channels.txt"

    def act(data: bytes) -> int:
        file.write_bytes(data)
        return answered(partial(_parsed, "archs", f"edsr:features=8,blocks=2,config={file}"))

    return Target([b"4\n8\n6\n", b"8 8 8"], act)


def _compression(name: str) -> Callable[[Workshop], Target]:
    """A record of a compression, on which its next stage goes on."""

    def make(shop: Workshop) -> Target:
        made, options = shop.copy(), DrcConfig(numbers="uniform", criterion="l1", finetune_steps=0)
        arch = plugins.parse("archs", TINY)
        before, run = Checkpoint(arch, arch.build().state_dict(), {}), made / "small"
        compress(before, made / "all.parquet", options, run, device="cpu")
        file = run / name

        def act(data: bytes) -> int:
            file.write_bytes(data)
            again = partial(compress, before, made / "all.parquet", options, run, device="cpu")
            return answered(lambda: info(run), lambda: verify(run), again)

        mutation = mutations.edit if name == "seconds.json" else mutations.rejson
        return Target([file.read_bytes()], act, mutation)

    return make


# Text


_STUDY = b"""
[ingest]
patch = 96
step = 48
[clean]
duplicates = true
[score]
scorers = ["srcnn", "sobel", "entropy:bins=64"]
[[select]]
name = "des-50"
strategy = "des"
by = "srcnn"
keep = 0.5
where = "sobel > 0.1 and name like '%.png'"
[[train]]
archs = ["fsrcnn:scale=2"]
manifests = ["des-50"]
seeds = [0, 1]
options = { steps = 6000, crop = 48, rate = 1e-3, milestones = [10, 20], schedule = "multistep" }
[[nas]]
name = "search"
manifests = ["des-50"]
seeds = [0, 1]
options = { steps = 3000, features = 8, crop = 48, snapshots = [10, 20], target = 1e5 }
[nas.retrain]
manifest = "des-50"
options = { steps = 2000, crop = 48 }
"""
_RECIPE = b"""
arch = "swinir:scale=2,variant=light"
steps = 500000
batch_size = 32
crop = 128
rate = 2e-4
schedule = "multistep"
milestones = [250000, 400000]
degrade = "blur:sigma=0.2:4+noise+jpeg"
"""


def _toml(text: bytes, load: Callable[[Path], object]) -> Callable[[Workshop], Target]:
    def make(shop: Workshop) -> Target:
        file = shop.folder / "file.toml"

        def act(data: bytes) -> int:
            file.write_bytes(data)
            return answered(partial(load, file))

        return Target([text], act, mutations.retext)

    return make


_SPECS = b"""srcnn:scale=2,weights=a.mat,kernel=9-1-5
sobel
entropy:bins=64
blockiness
loss:checkpoint="run",arch="fsrcnn:scale=2"
refined:drop_top=0.05
window:lo=0.1,hi=0.9
stratified:per=score,bins=10,seed=1
threshold:conditions="sobel>0.1"
ensemble:by="srcnn:scale=3,kernel=9-1-5"+sobel,weights=1:2
fsrcnn:scale=2,d=56,s=12,m=4
swinir:scale=2,variant=light
rdn:scale=4,blocks=16
dlsr:scale=2,genotype=conv_1x1+sep_7x7+sep_5x5@12.23.24.45,features=18
edsr:scale=2,features=64,blocks=2,res_scale=0.1,config=64.32.16
blur:sigma=0.2:4+noise+jpeg
second_order:first.sigma=0.1:2""".split(b"\n")


def _spec(shop: Workshop) -> Target:
    def act(data: bytes) -> int:
        text = data.decode("utf-8", "surrogateescape")
        if "." in text.partition(":")[0]:
            return 0  # a module of the user's own
        kinds: tuple[plugins.Kind, ...] = ("scorers", "strategies", "archs")
        return answered(*(partial(_parsed, kind, text) for kind in kinds), partial(degrade.parse, text, 2))

    return Target(_SPECS, act, mutations.retext)


def _parsed(kind: plugins.Kind, text: str) -> None:
    plugin = plugins.parse(kind, text)
    assert plugins.parse(kind, plugins.spec_of(plugin)) == plugin, text


_OPTIONS = b"256MB;1.5G;1/4;1280x720;2=photos/lr;250000,400000;s3://bucket/store;photos/a;refined:drop_top=0.1".split(
    b";"
)


def _options(shop: Workshop) -> Target:
    """What the command line makes of the text of an option."""

    def act(data: bytes) -> int:
        text = data.decode("utf-8", "surrogateescape")
        readers: list[Callable[[str], object]] = [cli._bytes, cli._numbers, cli._lr_folder, cli._part]
        readers += [parse_size, Part.parse, partial(storage.place, what="a store"), _planned]
        return answered(*(partial(reader, text) for reader in readers))

    return Target(_OPTIONS, act, mutations.retext)


def _planned(text: str) -> None:
    config.plan(None, text, {"steps": 10, "degrade": text, "optimizer": text})


_QUERIES = b"""select name, count(*) as patches, avg(sobel) from scores join images using (image_id) group by name
select * from duplicates where correlation > 0.5 order by distance limit 3
with a as (select 1 x union all select 2) select *, [x], {'a': x}, date '2020-01-01', interval 3 days from a
select unnest(range(3)) as n, cast(n as varchar), 1e308 * 10, 'nan'::double
describe patches
summarize images""".split(b"\n")


def _query(shop: Workshop) -> Target:
    """SQL, as a query and as the condition of a selection, and its answer in every format."""
    store = shop.store

    def ask(text: str, form: Any) -> None:
        from curate import sql

        batches = store.stream(text)
        limited = pa.RecordBatchReader.from_batches(batches.schema, _few(batches))
        sql.write(limited, io.BytesIO(), form)

    def choose(text: str) -> None:
        with contextlib.suppress(UsageError):  # a query is hardly ever a condition
            select(store, "random", where=text)

    def act(data: bytes) -> int:
        text = data.decode("utf-8", "surrogateescape")
        if "range" in text.lower() or "generate" in text.lower() or "repeat" in text.lower():
            return 0  # as long as the user says
        return answered(*(partial(ask, text, form) for form in ("csv", "json", "parquet")), partial(choose, text))

    return Target(_QUERIES, act, mutations.retext)


def _few(batches: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    yield from islice(batches, 4)


TARGETS: dict[str, Callable[[Workshop], Target]] = {
    "store": _document("store.json"),
    "commit": _document("commits/ingest/000000.json"),
    "commit_of_scores": _document("commits/scores/sobel@*/000000.json"),
    "commits_folded": _folded,
    "scorer": _document("tables/scores/sobel@*/scorer.json"),
    "check": _document("tables/checks/leaks@*/check.json"),
    **{f"table_{name}": _part(name) for name in ("images", "cells", "patches")},
    "table_scores": _part("scores/sobel@*"),
    "table_duplicates": _part("checks/duplicates@*"),
    "table_leaks": _part("checks/leaks@*"),
    "shard": _shard,
    "manifest": _manifest,
    "manifest_used": _manifest_used,
    "tar": _tar(".tar"),
    "tar_gz": _tar(".tar.gz"),
    **{f"image_{ending[1:]}": _image(ending) for ending in pictures()},
    "checkpoint": _checkpoint(".safetensors", None, own=True),
    "checkpoint_safetensors": _checkpoint(".safetensors", TINY),
    "checkpoint_pth": _checkpoint(".pth", TINY),
    "checkpoint_mat": _checkpoint(".mat", "srcnn:scale=2"),
    "training_state": _training_state,
    "export": _export_record,
    "genotype": _genotype,
    "config": _config,
    "channels": _compression("channels/channels.json"),
    "kept": _compression("pruned/kept.json"),
    "seconds": _compression("seconds.json"),
    "study": _toml(_STUDY, Pipeline.load),
    "recipe": _toml(_RECIPE, lambda file: config.plan(file, None, {})),
    "spec": _spec,
    "options": _options,
    "query": _query,
}
