"""Score: draw every scorer's map once over each image, and write the mean over each window to the store's tables.

An image is decoded once for all scorers. The unit is the shard: a unit whose commit record carries the same fingerprint
(scorer, options, weights, code version, and the shard's own record) is skipped; with any other, nothing is reused.

On a CPU an image is one task for one thread, from its bytes to its scores, and there are as many threads as processors:
no scorer's answer depends on how many. Scorers that draw with a large network come after, one image on all processors.
On a GPU threads decode into pinned memory, and copies, scorers and the next decoding overlap.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from curate import layout, plugins, pool, reuse
from curate.engine import LOCAL, WHOLE, Engine, Part, has_gpus, joined, run
from curate.errors import UsageError, counted, listed, one_line
from curate.means import WindowMeans
from curate.progress import Meter, Progress, silent
from curate.schema import CommitRecord, ScorerRecord
from curate.scorers import MapScorer, PatchScorer, Scorer
from curate.storage import Place, is_url
from curate.store import ScoreSet, Store
from curate.tensors import crop_to_multiple, halving, pick_device, to_float, to_tensor

__all__ = ["ScoreReport", "label", "score", "score_names"]

_PATCH_BATCH = 64  # windows that a PatchScorer gets at a time
_STRIP_PIXELS = 1 << 17  # that a MapScorer of known reach gets at a time on a CPU: 0.5 MB a plane, which caches hold
_MEANS_VERSION = 2  # raise it when the same maps begin to give other means
_IN_FLIGHT = 3  # images on a GPU: one is copied, one scored, one read back
_DEVICE = "device"  # what the time of scoring itself is called, also where that is the CPU


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """What one run did."""

    columns: list[str]  # the scores' names in SQL
    images: int  # decoded by this run
    patches: int  # windows scored by this run
    skipped: int  # units of work (a shard for one scorer) that were there already
    not_finite: int  # scores of this run that are NaN or infinite; a selection leaves them out
    why: list[str] = field(default_factory=list)  # why scores that are there were not taken, a line a scorer

    def in_words(self) -> str:
        """All of it in a line, without what is zero."""
        names = ", ".join(self.columns)
        if not self.patches and self.skipped:
            return f"all patches are scored by {names} already"
        words = [f"{counted(self.patches, 'patch')} of {counted(self.images, 'image')} scored by {names}"]
        words += [f"{counted(self.skipped, 'finished unit')} skipped"] if self.skipped else []
        words += [f"{counted(self.not_finite, 'score')} not finite"] if self.not_finite else []
        return ", ".join(words)


@dataclass(slots=True)
class _Tally:
    """The counts of a ScoreReport while they grow."""

    images: int = 0
    patches: int = 0
    skipped: int = 0
    not_finite: int = 0


@dataclass(frozen=True, slots=True)
class _Job:
    """One scorer on its way through a store."""

    scorer: Scorer
    found: ScoreSet
    done: Mapping[int, CommitRecord]

    def fingerprint(self, unit: CommitRecord) -> str:
        """Of this scorer's work on one shard."""
        return _digest([self.found.record.fingerprint, *(part.xxh3 for part in unit.parts)])

    def is_done(self, unit: CommitRecord) -> bool:
        record = self.done.get(unit.unit)
        return record is not None and record.fingerprint == self.fingerprint(unit)

    def is_all_done(self, store: Store, units: Iterable[CommitRecord]) -> bool:
        """Whether by now every part of a run has done its own: none of them has a record to write any more."""
        now = replace(self, done=store.commits(self.found.kind))
        return all(map(now.is_done, units))

    def stale(self, units: Sequence[CommitRecord]) -> str:
        """That scores are of other shards than these; '' if none are."""
        number = sum(unit.unit in self.done and not self.is_done(unit) for unit in units)
        changed = "1 shard is not the one" if number == 1 else f"{number} shards are not those"
        return f"{self.found.folder}: scored again, {changed} that was scored before" if number else ""


def score(
    store: Store | str | Path,
    scorers: Sequence[Scorer | str],
    *,
    device: str = "auto",
    engine: Engine = LOCAL,
    part: Part = WHOLE,
    progress: Progress = silent,
) -> ScoreReport:
    """Score every window of a store by each scorer; units that are done already are skipped.

    As one `part` of several runs this one scores its shards. On the `engine` ray `auto` is cuda where its cluster has
    GPUs, of which each worker gets one.

    Scorers are instances or specs (`srcnn:scale=2`). The same device gives the same bytes; between devices float32
    scores differ in their last digits. Raises UsageError for an unknown scorer or device before any work is done.
    """
    store = store if isinstance(store, Store) else Store.open(store)
    chosen = [_scorer(given) for given in scorers]
    if not chosen:
        raise UsageError(f"which scorers? There are: {listed(plugins.names('scorers'))}")
    store.require_whole("scored")
    with joined(engine), store.writing(shared=not part.is_whole):
        target, settled = _settled(chosen, device, engine)
        records = [_record(scorer, label(given)) for scorer, given in zip(settled, chosen, strict=True)]
        units = store.commits()
        why = [line for record in records if (line := _new_set(store, record))]
        sets = [store.add_score_set(record) for record in records]
        jobs = {
            found.folder: _Job(scorer, found, store.commits(found.kind))
            for scorer, found in zip(settled, sets, strict=True)
        }
        mine = [unit for unit in units.values() if part.has(unit.unit)]
        why += [line for job in jobs.values() if (line := job.stale(mine))]
        tally = _run(store, mine, jobs, target, engine, progress)
        if not part.is_whole and is_url(store.path):
            store.fold(job.found.kind for job in jobs.values() if job.is_all_done(store, units.values()))
    names = [name for name, (found, _) in store.score_columns().items() if found in sets]
    return ScoreReport(names, tally.images, tally.patches, tally.skipped, tally.not_finite, why)


def _scorer(given: Scorer | str) -> Scorer:
    scorer = plugins.parse("scorers", given) if isinstance(given, str) else given
    if not isinstance(scorer, Scorer):
        raise UsageError(f"'{one_line(given)}' is not a scorer: it is no subclass of MapScorer or PatchScorer")
    return scorer


def label(scorer: Scorer) -> str:
    """The name of a scorer's column: its spec without default options, and files by their name alone."""
    spec = plugins.spec_of(scorer)
    for name in plugins.options_of(scorer):
        if isinstance(value := getattr(scorer, name), Path):
            spec = spec.replace(str(value), value.name)
    return spec


def score_names(scorer: Scorer) -> list[str]:
    """The names of a scorer's columns in SQL: its label, and the column's own name where it has several."""
    columns = scorer.columns
    return [label(scorer) if len(columns) == 1 else f"{label(scorer)}.{column}" for column in columns]


def _record(scorer: Scorer, label: str) -> ScorerRecord:
    name = plugins.spec_of(scorer).partition(":")[0]
    identity = {**scorer.identity(), "version": scorer.version}
    if isinstance(scorer, MapScorer):
        identity["means"] = _MEANS_VERSION
    columns = list(scorer.columns)
    fingerprint = _digest([name, columns, identity])
    return ScorerRecord(
        scorer=name,
        label=label,
        columns=columns,
        vector=scorer.vector,
        identity=identity,
        fingerprint=fingerprint,
    )


def _new_set(store: Store, record: ScorerRecord) -> str:
    """Why none of the store's sets of this scorer is taken; '' if this one is there, or none."""
    others = [found for found in store.score_sets() if found.record.scorer == record.scorer]
    return reuse.anew(record.label, {found.folder: _entries(found.record) for found in others}, _entries(record))


def _entries(record: ScorerRecord) -> dict[str, object]:
    renamed = {"version": "code version", "means": "code version of means"}
    return {"columns": record.columns} | {renamed.get(name, name): value for name, value in record.identity.items()}


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


_Corners = npt.NDArray[np.int32]  # N x 2
# (image_CHW uint8, sides multiples of 12; corners_N2) -> scores_NK float32
_ScoreFunction = Callable[[Tensor, _Corners], Tensor]


class _Task(NamedTuple):
    """One image of a unit of work."""

    image_id: str
    corners_N2: _Corners
    folders: tuple[str, ...]  # of the scorers that it lacks
    last: bool  # of its unit


class _Shard(NamedTuple):
    """A unit of work."""

    unit: CommitRecord
    folders: tuple[str, ...]  # of the scorers that it lacks


_Scores = list[npt.NDArray[np.float32]]  # scores_NK of each of these, rows as in the shard's table of patches
_Tell = Callable[[int, int], None]  # that so many images and patches more are done


def _settled(chosen: Sequence[Scorer], device: str, engine: Engine) -> tuple[str, list[Scorer]]:
    """The device's name, and the scorers as they run on it; where only workers have it, one of them says."""
    if engine == LOCAL:
        return device, [scorer.on(pick_device(device)) for scorer in chosen]
    if device.startswith("cuda") or (device == "auto" and has_gpus(engine)):
        return "cuda", [scorer for _, scorer in run(_Settling(), chosen, engine, gpu=True)]
    if device not in ("auto", "cpu"):
        raise UsageError(f"Ray's workers score on cpu or cuda, found the device '{one_line(device)}'")
    return "cpu", [scorer.on(pick_device("cpu")) for scorer in chosen]


@dataclass(frozen=True, slots=True)
class _Settling:
    """The job of settling what a scorer leaves open, on a worker's GPU."""

    def open(self) -> Callable[[Scorer], Scorer]:
        return lambda scorer: scorer.on(pick_device("cuda"))

    def name(self, scorer: Scorer) -> str:
        return label(scorer)


def _run(
    store: Store, units: Sequence[CommitRecord], jobs: Mapping[str, _Job], device: str, engine: Engine, done: Progress
) -> _Tally:
    """Do what is not done, shard by shard."""
    work = [_Shard(unit, tuple(name for name, job in jobs.items() if not job.is_done(unit))) for unit in units]
    tally = _Tally(skipped=sum(len(jobs) - len(shard.folders) for shard in work))
    work = [shard for shard in work if shard.folders]
    total = sum(store.rows(shard.unit, "patches") for shard in work)

    meter = Meter()

    def tell(images: int, patches: int) -> None:
        tally.images, tally.patches = tally.images + images, tally.patches + patches
        done(tally.patches, total, f"{meter.note()}, {tally.images} images".removeprefix(", "))

    needed = {folder for shard in work for folder in shard.folders}
    scorers = {folder: job.scorer for folder, job in jobs.items() if folder in needed}
    if engine == LOCAL:
        scored = _scored_here(store, work, scorers, pick_device(device), tell, meter)
    else:
        scored = _scored_there(_Scoring(store.path.resolve(), device, scorers), work, engine, tell)
    for shard, scores in scored:
        for folder, scores_NK in zip(shard.folders, scores, strict=True):
            tally.not_finite += _write(store, shard.unit, jobs[folder], scores_NK)
    return tally


def _scored_here(
    store: Store,
    work: Sequence[_Shard],
    scorers: Mapping[str, Scorer],
    device: torch.device,
    tell: _Tell,
    meter: Meter,
) -> Iterator[tuple[_Shard, _Scores]]:
    scored = _scored(store, _tasks(store, work), scorers, _functions(store, scorers, device), device, meter)
    yield from zip(work, _gathered(store, work, scorers, scored, tell), strict=True)


def _scored_there(
    job: "_Scoring", work: Sequence[_Shard], engine: Engine, tell: _Tell
) -> Iterator[tuple[_Shard, _Scores]]:
    for shard, (number, scores) in run(job, work, engine, gpu=job.device == "cuda"):
        tell(number, len(scores[0]))
        yield shard, scores


@dataclass(frozen=True, slots=True)
class _Scoring:
    """The job of scoring a shard on a worker."""

    store: Place
    device: str
    scorers: Mapping[str, Scorer]  # by folder

    def open(self) -> Callable[[_Shard], tuple[int, _Scores]]:
        store, device = Store.open(self.store), pick_device(self.device)
        functions = _functions(store, self.scorers, device)

        def do(shard: _Shard) -> tuple[int, _Scores]:
            counts: list[int] = []
            scored = _scored(store, _tasks(store, [shard]), self.scorers, functions, device, Meter())
            (scores,) = _gathered(store, [shard], self.scorers, scored, lambda images, _: counts.append(images))
            return len(counts), scores

        return do

    def name(self, shard: _Shard) -> str:
        return f"shard {shard.unit.unit:06d}"


def _functions(store: Store, scorers: Mapping[str, Scorer], device: torch.device) -> "dict[str, _ScoreFunction]":
    return {folder: _score_function(scorer, device, store.header.patch) for folder, scorer in scorers.items()}


def _gathered(
    store: Store,
    work: Sequence[_Shard],
    scorers: Mapping[str, Scorer],
    scored: "Iterator[tuple[_Task, list[Tensor]]]",
    tell: _Tell,
) -> Iterator[_Scores]:
    """What was found out about images, put together shard by shard."""
    for shard in work:
        rows, last = [], not store.rows(shard.unit, "patches")
        while not last:
            task, scores = next(scored)
            rows.append(scores)
            tell(1, len(task.corners_N2))
            last = task.last
        # none: of a shard whose images were all refused
        none = [np.empty((0, len(scorers[folder].columns)), np.float32) for folder in shard.folders]
        yield [torch.cat(column).cpu().numpy() for column in zip(*rows, strict=True)] or none


def _tasks(store: Store, work: Sequence[_Shard]) -> Iterator[_Task]:
    for shard in work:
        corners = _corners(store.unit_table("patches", shard.unit.unit))
        for number, (image_id, corners_N2) in enumerate(corners.items(), 1):
            yield _Task(image_id, corners_N2, shard.folders, number == len(corners))


def _corners(patches: pa.Table) -> dict[str, _Corners]:
    """The windows of each image, in the order of the table; an image's rows follow one another."""
    ids = patches["image_id"].combine_chunks().dictionary_encode()
    corners_N2 = np.stack([patches["y"].to_numpy(), patches["x"].to_numpy()], axis=1)
    starts = np.flatnonzero(np.diff(ids.indices.to_numpy(), prepend=-1))
    names = ids.dictionary.to_pylist()
    return dict(zip(names, np.split(corners_N2, starts[1:]), strict=True)) if names else {}


def _scored(
    store: Store,
    tasks: Iterator[_Task],
    scorers: Mapping[str, Scorer],
    functions: Mapping[str, _ScoreFunction],
    device: torch.device,
    meter: Meter,
) -> Iterator[tuple[_Task, list[Tensor]]]:
    """Each task with the scores of its scorers, scores_NK. `meter` gets the seconds of decoding and of the device."""
    store.cell("")  # builds the index here, before several threads ask for it
    if device.type == "cuda":
        yield from _on_gpu(store, tasks, functions, device, meter)
        return
    own = {folder for folder, scorer in scorers.items() if not scorer.large}  # threads do these, image by image

    def work(task: _Task) -> tuple[_Task, Tensor | None, dict[str, Tensor]]:
        with meter.timed("decoding"):
            pixels_HWC = store.pixels(task.image_id)
        meter.add(pixels=pixels_HWC.shape[0] * pixels_HWC.shape[1])
        # A view: planes are made of a strip at a time, in caches.
        image_CHW = crop_to_multiple(torch.from_numpy(pixels_HWC).permute(2, 0, 1))
        with meter.timed(_DEVICE):
            scores = {folder: functions[folder](image_CHW, task.corners_N2) for folder in task.folders if folder in own}
        return task, image_CHW if len(scores) < len(task.folders) else None, scores

    threads = torch.get_num_threads()
    try:
        for task, image_CHW, scores in pool.ahead(work, tasks, initializer=partial(torch.set_num_threads, 1)):
            if image_CHW is not None:
                later = (folder for folder in task.folders if folder not in scores)
                with meter.timed(_DEVICE, weight=threads):
                    scores |= {folder: functions[folder](image_CHW, task.corners_N2) for folder in later}
            yield task, [scores[folder] for folder in task.folders]
    finally:
        torch.set_num_threads(threads)  # threads that this process starts later took the last number that was set


def _on_gpu(
    store: Store,
    tasks: Iterator[_Task],
    functions: Mapping[str, _ScoreFunction],
    device: torch.device,
    meter: Meter,
) -> Iterator[tuple[_Task, list[Tensor]]]:
    """uint8 goes to the device on a stream of its own; nothing waits for an answer until `_IN_FLIGHT` are asked for."""
    copies, now = torch.cuda.Stream(device), torch.cuda.current_stream(device)  # type: ignore[no-untyped-call]

    def pinned(task: _Task) -> tuple[_Task, Tensor]:
        pixels_HWC = store.pixels(task.image_id)  # in this layout; planes are made on the device
        return task, torch.from_numpy(pixels_HWC).pin_memory()

    flying: deque[tuple[_Task, list[Tensor], torch.cuda.Event]] = deque()
    for task, host_HWC in meter.waiting("decoding", pool.ahead(pinned, tasks)):
        meter.add(pixels=host_HWC.shape[0] * host_HWC.shape[1])
        with torch.cuda.stream(copies):
            image_HWC = host_HWC.to(device, non_blocking=True)
        now.wait_stream(copies)
        image_HWC.record_stream(now)
        image_CHW = crop_to_multiple(image_HWC.permute(2, 0, 1)).contiguous()
        scores = [functions[folder](image_CHW, task.corners_N2) for folder in task.folders]
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(now)
        flying.append((task, scores, event))
        if len(flying) == _IN_FLIGHT:
            with meter.timed(_DEVICE):
                landed = _landed(*flying.popleft())
            yield landed
    while flying:
        yield _landed(*flying.popleft())


def _landed(task: _Task, scores: list[Tensor], event: torch.cuda.Event) -> tuple[_Task, list[Tensor]]:
    event.synchronize()
    return task, scores


def _score_function(scorer: Scorer, device: torch.device, size: int) -> _ScoreFunction:
    function = scorer.build(device)

    @torch.inference_mode()
    def by_map(image_CHW: Tensor, corners_N2: _Corners) -> Tensor:
        assert isinstance(scorer, MapScorer)
        means = WindowMeans(corners_N2, size)
        for top, maps_KHW in _maps(function, image_CHW, scorer.reach):
            means.add(maps_KHW, top, cell=image_CHW.shape[2] // maps_KHW.shape[2])
        return scorer.finish(means.means()).float()

    @torch.inference_mode()
    def by_patch(image_CHW: Tensor, corners_N2: _Corners) -> Tensor:
        image_BCHW = to_float(_planes(image_CHW))[None]

        def by_batches(number: int) -> Tensor:
            return torch.cat([function(batch).float() for batch in _cut(image_BCHW, corners_N2, size, number)])

        return halving(by_batches, _PATCH_BATCH)

    return by_patch if isinstance(scorer, PatchScorer) else by_map


def _maps(function: Callable[[Tensor], Tensor], image_CHW: Tensor, reach: int | None) -> Iterator[tuple[int, Tensor]]:
    """The maps of an image as maps_KHW, from top to bottom with their first rows: all at once, or in strips."""
    height, width = image_CHW.shape[1:]
    rows = height if reach is None or image_CHW.is_cuda else max(_STRIP_PIXELS // width, 4 * reach)
    above = 0 if reach is None else reach
    # Each strip is written over the last one: new memory costs more than what is done in it.
    floats_CHW = torch.empty((len(image_CHW), min(rows + 2 * above, height), width), device=image_CHW.device)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        # The last strip may have a row or two: what mirrors at the image's edge needs more.
        first, last = max(min(top, height - rows) - above, 0), min(bottom + above, height)
        strip_CHW = floats_CHW[:, : last - first].copy_(_planes(image_CHW[:, first:last])).div_(255)
        maps_KHW = function(strip_CHW[None])[0]
        yield (top, maps_KHW) if reach is None else (top, maps_KHW[:, top - first : bottom - first])


def _planes(image_CHW: Tensor) -> Tensor:
    """The same where a pixel's channels lie apart; on a CPU copied if they do not."""
    return to_tensor(image_CHW.permute(1, 2, 0).numpy()) if image_CHW.stride(0) == 1 else image_CHW


def _cut(image_BCHW: Tensor, corners_N2: _Corners, size: int, number: int) -> Iterator[Tensor]:
    """Batches of windows, patches_BCHW."""
    for start in range(0, len(corners_N2), number):
        batch = corners_N2[start : start + number].tolist()
        yield torch.cat([image_BCHW[..., y : y + size, x : x + size] for y, x in batch])


def _write(store: Store, unit: CommitRecord, job: _Job, scores_NK: npt.NDArray[np.float32]) -> int:
    """Publish and commit one scorer's table of one shard; returns how many scores are not finite."""
    names, length = tuple(job.scorer.columns), scores_NK.shape[1]
    if job.scorer.vector:
        columns = [pa.FixedSizeListArray.from_arrays(pa.array(scores_NK.reshape(-1)), length)]
    else:
        columns = [pa.array(scores_NK[:, k]) for k in range(len(names))]
    ids = store.unit_table("patches", unit.unit)["patch_id"]
    table = pa.table([ids, *columns], schema=layout.scores_schema(names, length if job.scorer.vector else None))
    part = store.write_table(job.found.kind, unit.unit, table)
    store.commit(job.found.kind, unit.unit, job.fingerprint(unit), [part])
    not_finite_NK = ~np.isfinite(scores_NK)
    return int((not_finite_NK.any(1) if job.scorer.vector else not_finite_NK).sum())
