"""The rows of the bench table, by subject. Each function measures ours and its yardstick by turns."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import get_args

import corpus
import cutting
import timing
import torch
import yardsticks
from table import Row

import curate
from curate import images
from curate.archs.srcnn import SrcnnNet
from curate.checkpoint import Checkpoint
from curate.manifest import Manifest
from curate.packing import Cells, pack
from curate.resize import downscale
from curate.scorers.srcnn import Srcnn
from curate.tensors import to_tensor

__all__ = ["SUBJECTS", "Bench"]

CROP, SCALE = 96, 2
SCALE_PROGRAM = Path(__file__).parent / "scale.py"
CURATE = str(Path(sys.executable).parent / "curate")
DECODER = "decoding alone, as many threads"
QUESTION = "select image_id, y, x, srcnn from scores order by srcnn desc limit 10"


@dataclass
class Bench:
    """The corpus, and what is made from it once for several subjects."""

    folder: Path  # an empty one
    photos: str | Path = corpus.SAMPLES
    size: corpus.Size = corpus.FULL

    def __post_init__(self) -> None:
        self.numbers = count()

    def new(self) -> Path:
        """A path where nothing is."""
        return self.folder / f"new{next(self.numbers)}"

    def ingest(self, photos: Path, store: Path) -> Path:
        curate.ingest([photos], store, patch=self.size.patch, step=self.size.step)
        return store

    @cached_property
    def photographs(self) -> Path:
        return corpus.mosaics(self.photos, self.folder / "corpus", self.size)

    @cached_property
    def store(self) -> Path:
        return self.ingest(self.photographs, self.folder / "store")

    @cached_property
    def many(self) -> Path:
        """So many photographs that a command's start and end are a small part of it."""
        return corpus.renamed(self.photographs, self.new(), self.size.streamed)

    @cached_property
    def few(self) -> Path:
        """A store of the first few photographs."""
        folder = self.new()
        folder.mkdir()
        for path in sorted(self.photographs.iterdir())[: self.size.scored]:
            shutil.copy(path, folder)
        return self.ingest(folder, self.folder / "few")

    @cached_property
    def sub_images(self) -> Path:
        return cutting.sub_images(self.photographs, self.folder / "sub", self.size.patch, self.size.step, SCALE)

    def by_turns(self, *works: Callable[[], object], before: Callable[[], object] = lambda: None) -> list[float]:
        return timing.alternate(works, self.size.repeats, before)


def ingest(bench: Bench) -> Iterator[Row]:
    """Against cutting sub-images, and against decoding."""
    size, number = bench.size, bench.size.images
    with cutting.cutting(size.patch, size.step) as cut:
        made: dict[str, Path] = {}

        def ours() -> None:
            made["store"] = bench.ingest(bench.photographs, bench.new())

        def theirs() -> None:
            made["cut"] = bench.new()
            cut(bench.photographs, made["cut"])

        seconds, cut_seconds = bench.by_turns(ours, theirs)
    source = corpus.tree_bytes(bench.photographs)
    grown, cut_grown = (corpus.tree_bytes(made[name]) / source for name in ("store", "cut"))
    what, sub = f"ingest, {size.patch}/{size.step} grid", "OpenCV cuts sub-images, PNG level 3, as many processes"
    yield Row(
        what, f"{seconds / number:.3f} s/image", sub, f"{cut_seconds / number:.3f} s/image", cut_seconds / seconds, 10
    )
    yield Row("bytes written / the source's", f"{grown:.4f}", sub, f"{cut_grown:.2f}", grown, 1.02, "below")
    store = bench.ingest(bench.many, bench.new())
    seconds, again, decoding = bench.by_turns(
        lambda: bench.ingest(bench.many, bench.new()),
        lambda: bench.ingest(bench.many, store),
        lambda: yardsticks.decode_all(bench.many),
    )
    rates = [f"{size.streamed / taken:.1f}" for taken in (seconds, decoding, again)]
    yield Row(what, f"{rates[0]} images/s", DECODER, rates[1], decoding / seconds, 0.8)
    yield Row("the same again", f"{rates[2]} images/s", DECODER, rates[1], decoding / again)


def score(bench: Bench) -> Iterator[Row]:
    """Pixel scorers against decoding, networks against a plain loop, two scorers against one."""
    number, store = bench.size.streamed, bench.ingest(bench.many, bench.new())
    sobel, decoding = bench.by_turns(
        lambda: curate.score(store, ["sobel"]),
        lambda: yardsticks.decode_all(bench.many),
        before=lambda: corpus.forget_scores(store),
    )
    yield Row(
        "score `sobel`", f"{number / sobel:.1f} images/s", DECODER, f"{number / decoding:.1f}", decoding / sobel, 0.7
    )

    names = sorted(path.name for path in (bench.sub_images / "HR").iterdir())[: 2 * yardsticks.BATCH]
    files = yardsticks.read(bench.sub_images / "HR", names)
    in_memory = list(files)[:1]
    net = _srcnn()
    one, two, from_files, from_memory = bench.by_turns(
        lambda: curate.score(bench.few, ["srcnn"], device="cpu"),
        lambda: curate.score(bench.few, ["srcnn", "sobel"], device="cpu"),
        lambda: yardsticks.loop(net, files, SCALE),
        lambda: yardsticks.loop(net, in_memory, SCALE),
        before=lambda: corpus.forget_scores(bench.few),
    )
    ours = bench.size.windows * bench.size.scored / one
    loop = f"plain PyTorch loop, fp32, batch {yardsticks.BATCH}, sub-images"
    for kind, windows, seconds in (
        ("PNG files", names, from_files),
        ("in memory", names[: yardsticks.BATCH], from_memory),
    ):
        theirs = len(windows) / seconds
        yield Row(
            "score `srcnn` on the CPU", f"{ours:.1f} windows/s", f"{loop}, {kind}", f"{theirs:.1f}", ours / theirs, 6
        )
    yield Row("score `srcnn` and `sobel`", f"{two:.2f} s", "`srcnn` alone", f"{one:.2f} s", two / one, 1.25, "below")
    if torch.cuda.is_available():
        yield from on_device(bench, decoding, torch.device("cuda"))


def _srcnn() -> SrcnnNet:
    net = Checkpoint.load(Path(curate.__file__).parent / "weights" / f"srcnn_955_x{SCALE}.safetensors").module().eval()
    assert isinstance(net, SrcnnNet)
    return net


def on_device(bench: Bench, decoding: float, device: torch.device) -> Iterator[Row]:
    """How much of the speed of decoding is reached, and what the convolutions are of the GPU's work."""
    number = bench.size.images
    curate.score(bench.store, ["srcnn"], device=device.type)  # warms up
    (seconds,) = bench.by_turns(
        lambda: curate.score(bench.store, ["srcnn"], device=device.type),
        before=lambda: corpus.forget_scores(bench.store),
    )
    ours = f"{number / seconds:.1f} images/s"
    yield Row("score `srcnn` on the GPU", ours, DECODER, f"{number / decoding:.1f}", decoding / seconds)
    dtype = torch.bfloat16 if Srcnn().on(device).precision == "bf16" else torch.float32
    net = _srcnn().to(device, dtype, memory_format=torch.channels_last)
    draw = Srcnn().build(device)
    image_BCHW = torch.rand(1, 3, *(side - side % 12 for side in (bench.size.height, bench.size.width)), device=device)
    y_B1HW = image_BCHW[:, :1].to(dtype, memory_format=torch.channels_last)

    @torch.inference_mode()
    def ten(work: Callable[[torch.Tensor], object], argument: torch.Tensor) -> None:
        for _ in range(10):
            work(argument)
        if device.type == "cuda":
            torch.cuda.synchronize()

    ten(draw, image_BCHW)
    ten(net.refine, y_B1HW)
    whole, convolutions = bench.by_turns(lambda: ten(draw, image_BCHW), lambda: ten(net.refine, y_B1HW))
    yield Row(
        "`srcnn` map of an image on the GPU",
        f"{100 * whole:.2f} ms",
        "its convolutions alone, same dtype",
        f"{100 * convolutions:.2f} ms",
        convolutions / whole,
        0.5,
    )


def load(bench: Bench) -> Iterator[Row]:
    """Training batches against a data set of sub-images, from the store and packed."""
    size = bench.size
    corpus.forget_scores(bench.store)
    curate.score(bench.store, ["sobel"])
    chosen = curate.select(bench.store, "refined", by="sobel").save(bench.new().with_suffix(".parquet"))
    packed, as_png = (Manifest.load(pack(chosen, bench.new(), cells=kind).manifest) for kind in get_args(Cells))
    names = _files_of(chosen, bench.store)
    hr, lr = bench.sub_images / "HR", bench.sub_images / "LR"
    crop = min(CROP, size.patch // 2)
    pairs, alone = (yardsticks.loader(yardsticks.Pairs(names, hr, lr_folder, crop, SCALE)) for lr_folder in (lr, None))
    quarter = size.images * size.height * size.width * 3 // 4
    steps = size.epochs * (len(chosen) // yardsticks.BATCH)

    def ours(manifest: Manifest, cache_bytes: int) -> None:
        batches = curate.batches(manifest, scale=SCALE, crop=crop, batch_size=yardsticks.BATCH, cache_bytes=cache_bytes)
        for _ in islice(batches, steps):
            pass
        batches.close()  # type: ignore[attr-defined]

    def theirs(loader: yardsticks.Loader) -> None:
        for _ in range(size.epochs):
            for _ in loader:
                pass

    cached = curate.batches(chosen, scale=SCALE, crop=crop, batch_size=yardsticks.BATCH)
    for _ in range(steps + 1):  # everything is decoded now
        next(cached)
    theirs(pairs)  # its processes start
    theirs(alone)
    seconds = bench.by_turns(
        lambda: ours(chosen, quarter),
        lambda: ours(packed, quarter),
        lambda: ours(as_png, quarter),
        lambda: [next(cached) for _ in range(steps)],
        lambda: theirs(pairs),
        lambda: theirs(alone),
    )
    cached.close()  # type: ignore[attr-defined]
    from_store, from_packed, from_png, from_cache, of_pairs, of_hr = (
        steps * yardsticks.BATCH / taken for taken in seconds
    )
    sub = f"DataLoader of {size.patch}-px sub-images by OpenCV, as many processes"
    rates = (("store", from_store, 2.5), ("packed store", from_packed, 3), ("packed store of PNG cells", from_png, 3))
    for what, mine, target in rates:
        for kind, rate in (("HR and LR", of_pairs), ("HR alone", of_hr)):
            yield Row(
                f"{crop}-px crops, refined 50 %, {what} larger than the cache",
                f"{mine:.0f} samples/s, HR and LR",
                f"{sub}, {kind}",
                f"{rate:.0f}",
                mine / rate,
                target,
            )
    yield Row("the same, in the cache", f"{from_cache:.0f} samples/s", sub, f"{of_pairs:.0f}", from_cache / of_pairs)


def _files_of(manifest: Manifest, store: Path) -> list[str]:
    """The sub-images of the chosen windows."""
    table = curate.Store.open(store).images()
    stems = {row["image_id"]: Path(row["name"]).stem for row in table.to_pylist()}
    return [f"{stems[row['image_id']]}_{row['y']}_{row['x']}.png" for row in manifest.table.to_pylist()]


def tables(bench: Bench) -> Iterator[Row]:
    """The first answer of `curate sql`, from a new process."""
    store = bench.new()
    rows = corpus.div2k_tables(store, bench.size.listed)
    ours, duckdb, python, helped = bench.by_turns(
        lambda: _run(CURATE, "sql", str(store), QUESTION),
        lambda: _run(sys.executable, "-c", "import duckdb"),
        lambda: _run(sys.executable, "-c", "pass"),
        lambda: _run(CURATE, "--help"),
        before=lambda: timing.drop_from_page_cache(store),
    )
    what = f"`curate sql`, cold first answer, {rows:,} patches"
    yield Row(what, f"{ours:.3f} s", "half a second", "0.5 s", ours / 0.5, 1, "below")
    yield Row(what, f"{ours:.3f} s", "python -c 'import duckdb'", f"{duckdb:.3f} s", ours / duckdb)
    yield Row("`curate --help`", f"{helped:.3f} s", "python -c pass", f"{python:.3f} s", helped / python)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def memory(bench: Bench) -> Iterator[Row]:
    """The peak of many images beside that of a few."""
    few, many = bench.size.memory
    for verbs, side in ((("ingest", "sobel"), None), (("srcnn",), bench.size.patch)):
        stores = []
        peaks: dict[str, list[float]] = {verb: [] for verb in verbs}
        for number in (few, many):
            photographs = corpus.renamed(bench.photographs, bench.new(), number, side)
            stores.append(bench.new())
            peak = timing.peak_memory("ingest", photographs, stores[-1], str(bench.size.patch), str(bench.size.step))
            if "ingest" in verbs:
                peaks["ingest"].append(peak)
            for verb in verbs:
                if verb != "ingest":
                    peaks[verb].append(timing.peak_memory("score", stores[-1], verb))
            shutil.rmtree(photographs)
            shutil.rmtree(stores[-1])
        px = f"of {bench.size.width}x{bench.size.height}" if side is None else f"of {side}x{side}"
        for verb, (least, most) in peaks.items():
            what = verb if verb == "ingest" else f"score `{verb}`"
            yield Row(
                f"memory of {what}, {many} images {px}",
                f"{most:.0f} MB",
                f"{few} images",
                f"{least:.0f} MB",
                most / least,
                1.1,
                "below",
            )


def select(bench: Bench) -> Iterator[Row]:
    """A selection beside DuckDB's sort of the same table, by `scale.py`, which says more."""
    patches, shards = bench.size.patches
    asked = ("--only", "select,bare sort")
    command = (sys.executable, str(SCALE_PROGRAM), "measure", str(bench.folder), f"{patches}:{shards}", *asked)
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found = {line["what"]: line for line in map(json.loads, lines) if "what" in line}
    ours, theirs = found["select"], found["bare sort"]
    what, sort = f"select `refined` of {ours['patches']:,} patches", "DuckDB, the bare sort, 1 GB"
    yield Row(what, f"{ours['s']:.2f} s", sort, f"{theirs['s']:.2f} s", ours["s"] / theirs["s"], 2, "below")
    yield Row(f"memory of {what}", f"{ours['MB']} MB", "1 GB", "1000 MB", ours["MB"] / 1000, 1, "below")


def shrink(bench: Bench) -> Iterator[Row]:
    """MATLAB's bicubic of one image beside torch's antialiased bicubic, which is another."""
    image_BCHW = to_tensor(images.decode(min(bench.photographs.iterdir()).read_bytes()))[None]
    half = {"scale_factor": 0.5, "mode": "bicubic", "antialias": True}
    downscale(image_BCHW, SCALE)
    ours, theirs = bench.by_turns(
        lambda: downscale(image_BCHW, SCALE), lambda: torch.nn.functional.interpolate(image_BCHW, **half)
    )
    yield Row(
        "LR of one image, x2",
        f"{1000 * ours:.1f} ms",
        "torch's interpolate, inexact",
        f"{1000 * theirs:.1f} ms",
        theirs / ours,
    )


def search(bench: Bench) -> Iterator[Row]:
    """A mixed-level step of DLSR's super-net beside that of its plain form, and what bfloat16 does to its gradients."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    features, number, crop = bench.size.searched
    if device.type == "cuda":
        number *= 8  # DLSR's batch
    levels = {
        (form, precision): yardsticks.levels(form, precision, features, number, device)
        for form in ("plain", "fused")
        for precision in ("fp32", "bf16")
    }
    batches = yardsticks.random_batches(number, crop, SCALE, device)
    slopes = {of: yardsticks.slopes(of[0], made, *batches) for of, made in levels.items()}
    base = slopes["plain", "fp32"]
    (of_plain, of_fused) = (float((slopes[form, "bf16"] - base).norm() / base.norm()) for form in ("plain", "fused"))
    steps = [yardsticks.stepper(of[0], made, *batches) for of, made in levels.items()]
    for step in steps:
        for _ in range(5 if device.type == "cuda" else 1):  # recorded on the GPU, after some
            step()
    plain, plain_bf16, fused, fused_bf16 = bench.by_turns(*steps)
    what = f"search, {features} maps, batch {number}, {'GPU' if device.type == 'cuda' else 'CPU'}"
    theirs = "branch by branch, torch's convolutions"
    for name, ours, yardstick, seconds, target in (
        ("bf16", fused_bf16, "fp32", plain, 1.5),
        ("bf16", fused_bf16, "bf16", plain_bf16, 1.5),
        ("fp32", fused, "fp32", plain, None),
    ):
        figure = f"{1 / ours:.2f} steps/s"
        yield Row(f"{what}, {name}", figure, f"{theirs}, {yardstick}", f"{1 / seconds:.2f}", seconds / ours, target)
    yield Row(
        "error of the architecture's gradient, bf16",
        f"{of_fused:.4f}",
        f"{theirs}, bf16",
        f"{of_plain:.4f}",
        of_fused / max(of_plain, 1e-12),
    )


SUBJECTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "ingest": ingest,
    "score": score,
    "load": load,
    "tables": tables,
    "memory": memory,
    "shrink": shrink,
    "select": select,
    "search": search,
}
