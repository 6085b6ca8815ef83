"""Run: a whole study from one TOML file, and one result table.

Ingest, clean, score, select, distill, train, search and compress, in this order, of what the file names (`plan`):

    OUT/store
    OUT/NAME.parquet                          a select; NAME-seed0.parquet where it depends on a training's seed
    OUT/distilled/NAME                        a distillation, a store with a manifest; NAME-seed0
    OUT/bytes.json                            what the patches of manifests take, where there is a distillation
    OUT/runs/NAME_ARCH_SEED                   a training, with what was measured of it: BENCHMARK.json
    OUT/nas/NAME_MANIFEST_SEED                a search, with the training of what it found (`proxy`)
    OUT/drc/NAME                              a trained network, and its compressions (`channels`)
    OUT/result.parquet, result.md, result.svg
    OUT/nas.parquet, nas.md, nas.svg          where there is a search
    OUT/drc.parquet, drc.md, drc.svg          where there is a compression

Every name and option, and every folder, is checked before the first step starts. Every step skips what is done, so that
the same command goes on with a study that was killed.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import features

from curate import channels, files, markdown, plot, proxy
from curate.blocks import Distill, Select
from curate.distillation import distill
from curate.distillation.writing import packed_bytes
from curate.duplication import duplicates
from curate.errors import UsageError, listed, one_line
from curate.ingestion import ingest
from curate.leakage import leaks
from curate.manifest import Manifest
from curate.measurement import kept, measured
from curate.plan import Made, Pipeline
from curate.progress import Progress, part, silent
from curate.schema import STATUS_OK
from curate.scoring import score
from curate.selection import select
from curate.sources import Source, benchmark_name, find, hr_folder
from curate.store import Store
from curate.strategies import share
from curate.tensors import pick_device
from curate.training import train

__all__ = ["Pipeline", "results", "run"]

_ENDINGS = (".parquet", ".md", ".svg")  # of a result


def run(
    pipeline: Pipeline | str | Path,
    out: str | Path,
    photos: Sequence[str | Path],
    tests: Sequence[str | Path] = (),
    *,
    modules: Sequence[str] = (),
    device: str = "auto",
    progress: Progress = silent,
) -> pa.Table:
    """Do what is not done of a study in the folder `out`, and return its table: a row a training and a test folder.

    Columns: arch, manifest, patches, seed, steps, test, psnr (dB), ssim; with a distillation also origin (selected or
    distilled) and bytes (of the patches, lossless, one encoder for all). What searches found is in nas.parquet, what
    compressions left in drc.parquet: `results` has all tables. `tests` are folders of HR images, or benchmarks'.
    `modules` are those outside curate that the file may name, and so import. Raises UsageError before the first step
    for whatever can be known then, BusyError if another process is at this study.
    """
    plan = pipeline if isinstance(pipeline, Pipeline) else Pipeline.load(pipeline, modules)
    pick_device(device)
    folder = files.local_path(out, "a study")
    sources = find([str(photo) for photo in photos]).sources
    for test in tests:
        find([str(hr_folder(test))])
    places = [benchmark_name(test) for test in tests]
    if len(set(places)) < len(places):
        raise UsageError(f"the test folders should have names of their own, found {listed(places)}")
    try:
        files.make_folder(folder)
    except OSError as error:
        raise UsageError(f"cannot make a study at '{one_line(folder)}': {error.strerror}") from None
    with files.lock(folder):
        files.remove_leftovers(folder)
        return _done(plan, folder, photos, sources, dict(zip(places, tests, strict=True)), device, progress)


def _done(
    plan: Pipeline,
    folder: Path,
    photos: Sequence[str | Path],
    sources: Sequence[Source],
    tests: Mapping[str, str | Path],
    device: str,
    progress: Progress,
) -> pa.Table:
    """The steps, one after the other; `tests` are folders by their benchmarks' names."""
    ingest([str(photo) for photo in photos], folder / "store", patch=plan.ingest.patch, step=plan.ingest.step)
    _refuse_others(Store.open(folder / "store"), sources)
    if plan.clean.duplicates:
        duplicates(folder / "store", progress=part(progress, 0, 1, "duplicates"))
    for test in tests.values() if plan.clean.leaks else ():
        leaks(folder / "store", test, progress=part(progress, 0, 1, "leaks"))
    score(folder / "store", plan.score.scorers, device=device, progress=part(progress, 0, 1, "score"))
    manifests = {
        which: _selected(chosen, which, folder) for chosen in plan.select for which in plan.manifests(chosen.name)
    }
    distillations = [(block, which) for block in plan.distill for which in plan.manifests(block.name)]
    for number, (block, which) in enumerate(distillations):
        own = part(progress, number, len(distillations), f"distill {which.label}")
        needed = [manifests[plan.manifest(name, which.seed)] for name in block.needs]
        manifests[which] = _distilled(block, which, needed, folder, device, own)
    trainings = plan.trainings()
    used = dict.fromkeys(plan.manifest(training.manifest, training.seed) for training in trainings)
    sizes = {
        which: _bytes(manifests[which], folder, part(progress, number, len(used), f"bytes of {which.label}"))
        for number, which in enumerate(used if plan.distill else ())
    }
    rows = []
    for number, training in enumerate(trainings):
        which = plan.manifest(training.manifest, training.seed)
        manifest = manifests[which]
        where = folder / "runs" / training.folder
        own = part(progress, number, len(trainings), training.folder)
        made = train(training.arch, manifest, training.config, where, device=device, progress=own)
        for place, test in tests.items():
            rows.append(
                {
                    "arch": training.arch,
                    "manifest": training.manifest,
                    "origin": manifest.recipe.origin,
                    "patches": len(manifest),
                    "bytes": sizes.get(which),
                    "seed": training.seed,
                    "steps": made.recipe["steps"],
                    "test": place,
                    **measured(made, where / f"{place}.json", test, device),
                }
            )
    columns = [field for field in _RESULT if plan.distill or field.name not in _OF_DISTILLATIONS]
    table = pa.Table.from_pylist(rows, pa.schema(columns))
    if trainings or not (plan.nas or plan.drc):
        _publish(folder, "result", table, _markdown(table), plot.dots(_groups(table), "PSNR, dB"))
    else:
        _withdraw(folder, "result")
    if plan.nas:
        searches = proxy.searched(plan, manifests, tests, folder / "nas", device, progress)
        _publish(folder, "nas", searches, proxy.page(searches, plan), proxy.picture(searches))
    else:
        _withdraw(folder, "nas")
    if plan.drc:
        compressions = channels.compressed(plan, manifests, tests, folder / "drc", device, progress)
        _publish(folder, "drc", compressions, channels.page(compressions, plan), channels.picture(compressions))
    else:
        _withdraw(folder, "drc")
    return table


def results(out: Path) -> dict[str, pa.Table]:
    """The tables of a study that was done in the folder `out`, by name; each has a page beside it, NAME.md."""
    return {
        name: pq.read_table(out / f"{name}.parquet")
        for name in ("result", "nas", "drc")
        if (out / f"{name}.parquet").is_file()
    }


def _publish(folder: Path, name: str, table: pa.Table, page: str, picture: str) -> None:
    files.publish(folder / f"{name}.parquet", lambda stream: pq.write_table(table, stream, compression="zstd"))
    files.publish_bytes(folder / f"{name}.md", page.encode())
    files.publish_bytes(folder / f"{name}.svg", picture.encode())


def _withdraw(folder: Path, name: str) -> None:
    """The study has no such result any more."""
    for ending in _ENDINGS:
        (folder / f"{name}{ending}").unlink(missing_ok=True)


_RESULT = pa.schema(
    [
        ("arch", pa.string()),
        ("manifest", pa.string()),
        ("origin", pa.string()),
        ("patches", pa.int64()),
        ("bytes", pa.int64()),
        ("seed", pa.int64()),
        ("steps", pa.int64()),
        ("test", pa.string()),
        ("psnr", pa.float64()),
        ("ssim", pa.float64()),
    ]
)
_OF_DISTILLATIONS = ("origin", "bytes")  # columns that a study without them has not


def _refuse_others(store: Store, sources: Sequence[Source]) -> None:
    """UsageError if the study's store has photographs that are not among the named ones: replaced, or of before."""
    images = store.images().filter(pc.field("status") == STATUS_OK)
    taken = Counter(zip(images["source"].to_pylist(), images["name"].to_pylist(), strict=True))
    others = taken - Counter((source.source, source.name) for source in sources)
    if others:
        names = listed(one_line(name) for _, name in others)
        raise UsageError(
            f"the study at '{one_line(store.path.parent)}' was begun with other photographs: {names} went or were "
            "replaced; name another folder for this one"
        )


def _selected(chosen: Select, which: Made, folder: Path) -> Manifest:
    """The manifest of one `[[select]]`, written; the same bytes if it was there already."""
    strategy = chosen.strategy_for(which.seed)
    picked = select(folder / "store", strategy, by=chosen.by, keep=chosen.keep, unit=chosen.unit, where=chosen.where)
    return picked.save(folder / f"{which.label}.parquet")


def _distilled(
    block: Distill, which: Made, needed: Sequence[Manifest], folder: Path, device: str, progress: Progress
) -> Manifest:
    """The manifest of one `[[distill]]`. `needed` are its source and, where its budget is like one's, that manifest."""
    source, budget = needed[0], {}
    if block.like is not None:
        budget["bytes"] = _bytes(needed[1], folder, progress)
    if block.share is not None:
        counts = source.recipe.counts
        budget["patches"] = share(block.share, counts["candidates"] - counts["without_finite_score"])
    out = folder / "distilled" / which.label
    report = distill(source, block.config(which.seed, **budget), out, device=device, progress=progress)
    return Manifest.load(report.manifest)


def _bytes(manifest: Manifest, folder: Path, progress: Progress) -> int:
    """Bytes of a manifest's patches; kept under its digest and the encoder's version, on which alone they depend."""
    record, encoder, digest = folder / "bytes.json", features.version("webp"), manifest.digest()
    sizes = _kept_bytes(record, encoder)
    if digest not in sizes:
        sizes[digest] = packed_bytes(manifest, manifest.store(), progress)
        files.publish_bytes(record, json.dumps({"webp": encoder, "bytes": sizes}, indent=2).encode())
    return sizes[digest]


def _kept_bytes(record: Path, encoder: str | None) -> dict[str, int]:
    """Digest -> bytes by this encoder; none of another one, or of a damaged record: they are counted again."""
    found = kept(record)
    sizes = found.get("bytes") if found.get("webp") == encoder else None
    return {key: size for key, size in sizes.items() if type(size) is int} if isinstance(sizes, dict) else {}


def _groups(table: pa.Table) -> dict[str, dict[str, list[float]]]:
    """ "arch, test" -> manifest -> PSNR of each seed, in the table's order."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in table.to_pylist():
        groups.setdefault(f"{row['arch']}, {row['test']}", {}).setdefault(row["manifest"], []).append(row["psnr"])
    return groups


def _sizes(table: pa.Table) -> dict[str, dict[str, list[int]]]:
    """Manifest -> patches, and where they are known bytes, of each row, in the table's order."""
    names = [name for name in ("patches", "bytes") if name in table.column_names]
    sizes: dict[str, dict[str, list[int]]] = {}
    for row in table.to_pylist():
        mine = sizes.setdefault(row["manifest"], {name: [] for name in names})
        for name in names:
            mine[name].append(row[name])
    return sizes


def _markdown(table: pa.Table) -> str:
    """Means and standard deviations over the seeds: a row a manifest, a column an arch and test."""
    groups, sizes = _groups(table), _sizes(table)
    names = list(next(iter(sizes.values()), ()))
    rows = [
        [
            manifest,
            *(f"{round(mean(counts[name])):,}" for name in names),
            *(markdown.figure(group.get(manifest, [])) for group in groups.values()),
        ]
        for manifest, counts in sizes.items()
    ]
    seeds, steps = (sorted(set(table[name].to_pylist())) for name in ("seed", "steps"))
    note = f"PSNR on Y, dB: mean and standard deviation over {len(seeds)} seeds; {listed(map(str, steps))} steps."
    return "\n".join([*markdown.table(["trained on", *names, *groups], rows), "", note, ""])
