"""Score: draw every scorer's map once over each image, and write the mean over each window to the store's tables.

An image is decoded once for all scorers. The unit is the shard: a unit whose commit record carries the same fingerprint
(scorer, options, weights, code version, and the shard's own record) is skipped; with any other, nothing is reused.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from curate import images, plugins, pool, schema
from curate.errors import UsageError, listed, one_line
from curate.progress import Progress, silent
from curate.schema import CommitRecord, ScorerRecord
from curate.scorers import MapScorer, PatchScorer, Scorer
from curate.store import ScoreSet, Store
from curate.tensors import crop_to_multiple, pick_device, to_float, to_tensor

__all__ = ["ScoreReport", "label", "score", "score_names", "window_means"]

_PATCH_BATCH = 64  # windows that a PatchScorer gets at a time


@dataclass(frozen=True, slots=True)
class ScoreReport:
    """What one run did."""

    columns: list[str]  # the scores' names in SQL
    images: int  # decoded by this run
    patches: int  # windows scored by this run
    skipped: int  # units of work (a shard for one scorer) that were there already
    not_finite: int  # scores of this run that are NaN or infinite; a selection leaves them out


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


def score(
    store: Store | str | Path,
    scorers: Sequence[Scorer | str],
    *,
    device: str = "auto",
    progress: Progress = silent,
) -> ScoreReport:
    """Score every window of a store by each scorer; units that are done already are skipped.

    Scorers are instances or specs (`srcnn:scale=2`). The same device gives the same bytes; between devices float32
    scores differ in their last digits. Raises UsageError for an unknown scorer or device before any work is done.
    """
    store = store if isinstance(store, Store) else Store.open(store)
    chosen = [_scorer(given) for given in scorers]
    if not chosen:
        raise UsageError(f"which scorers? There are: {listed(plugins.names('scorers'))}")
    target = pick_device(device)
    records = [_record(scorer) for scorer in chosen]
    store.require_whole("scored")
    with store.writing():
        units = store.commits()
        sets = [store.add_score_set(record) for record in records]
        jobs = {
            found.folder: _Job(scorer, found, store.commits(found.kind))
            for scorer, found in zip(chosen, sets, strict=True)
        }
        tally = _run(store, list(units.values()), list(jobs.values()), target, progress)
    names = [name for name, (found, _) in store.score_columns().items() if found in sets]
    return ScoreReport(names, tally.images, tally.patches, tally.skipped, tally.not_finite)


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


def window_means(maps_BKHW: Tensor, corners_N2: npt.NDArray[np.int32], size: int, cell: int = 1) -> Tensor:
    """Means of K maps (of one image, B = 1) over N square windows of `size` px, as means_NK float64 on the CPU.

    Through a summed-area table in float64, one map at a time: each window costs four look-ups, however they overlap.
    Where a pixel of the maps stands for `cell` px of the image each way, one that a window cuts counts by its share.
    A pixel that is not finite makes the means of its own windows NaN, and leaves the others alone.
    """
    return torch.stack([_map_means(map_HW.double(), corners_N2, size, cell) for map_HW in maps_BKHW[0]], dim=1).cpu()


def _map_means(map_HW: Tensor, corners_N2: npt.NDArray[np.int32], size: int, cell: int) -> Tensor:
    finite_HW = map_HW.isfinite()
    sums_N = _window_sums(map_HW.where(finite_HW, 0), corners_N2, size, cell)
    if not finite_HW.all():
        sums_N[_window_sums((~finite_HW).double(), corners_N2, size, cell) > 0.5 / cell**2] = float("nan")
    return sums_N / (size / cell) ** 2


def _window_sums(map_HW: Tensor, corners_N2: npt.NDArray[np.int32], size: int, cell: int) -> Tensor:
    """Sums over the windows, sums_N."""
    table_HW = torch.nn.functional.pad(map_HW, (1, 1, 1, 1)).cumsum(0).cumsum(1)

    def sum_before(y_N: Tensor, x_N: Tensor) -> Tensor:
        """Of all above and to the left of these places: linear in both between the table's entries."""
        row, column = y_N // cell, x_N // cell
        down, across = (y_N % cell).double() / cell, (x_N % cell).double() / cell
        upper = torch.lerp(table_HW[row, column], table_HW[row, column + 1], across)
        lower = torch.lerp(table_HW[row + 1, column], table_HW[row + 1, column + 1], across)
        return torch.lerp(upper, lower, down)

    y, x = torch.from_numpy(corners_N2.astype(np.int64)).to(map_HW.device).unbind(1)
    bottom, right = y + size, x + size
    return sum_before(bottom, right) - sum_before(y, right) - sum_before(bottom, x) + sum_before(y, x)


def _record(scorer: Scorer) -> ScorerRecord:
    name = plugins.spec_of(scorer).partition(":")[0]
    identity = {**scorer.identity(), "version": scorer.version}
    columns = list(scorer.columns)
    fingerprint = _digest([name, columns, identity])
    return ScorerRecord(
        scorer=name,
        label=label(scorer),
        columns=columns,
        vector=scorer.vector,
        identity=identity,
        fingerprint=fingerprint,
    )


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


_Windows = dict[str, npt.NDArray[np.int32]]  # image_id -> corners_N2
_ScoreFunction = Callable[[Tensor, npt.NDArray[np.int32]], Tensor]  # (image_BCHW, corners_N2) -> scores_NK


def _run(
    store: Store, units: Sequence[CommitRecord], jobs: Sequence[_Job], device: torch.device, progress: Progress
) -> _Tally:
    """Do what is not done, shard by shard."""
    work = [(unit, [job for job in jobs if not job.is_done(unit)]) for unit in units]
    tally = _Tally(skipped=sum(len(jobs) - len(missing) for _, missing in work))
    total = sum(store.rows(unit, "patches") for unit, missing in work if missing)
    size = store.header.patch
    functions = {job.found.folder: _score_function(job.scorer, device, size) for _, missing in work for job in missing}
    for unit, missing in work:
        if not missing:
            continue
        patches = store.unit_table("patches", unit.unit)
        scores: dict[str, list[Tensor]] = {job.found.folder: [] for job in missing}
        for image_BCHW, corners_N2 in _images(store, _corners(patches), device):
            for folder, scores_NK in scores.items():
                scores_NK.append(functions[folder](image_BCHW, corners_N2))
            tally.images, tally.patches = tally.images + 1, tally.patches + len(corners_N2)
            progress(tally.patches, total, f"{tally.images} images")
        for job in missing:
            tally.not_finite += _write(store, unit, job, patches["patch_id"], scores[job.found.folder])
    return tally


def _corners(patches: pa.Table) -> _Windows:
    """The windows of each image, in the order of the table; an image's rows follow one another."""
    corners: dict[str, list[tuple[int, int]]] = {}
    columns = (patches[name].to_pylist() for name in ("image_id", "y", "x"))
    for image_id, y, x in zip(*columns, strict=True):
        corners.setdefault(image_id, []).append((y, x))
    return {image_id: np.array(places, np.int32) for image_id, places in corners.items()}


def _images(store: Store, corners: _Windows, device: torch.device) -> Iterator[tuple[Tensor, npt.NDArray[np.int32]]]:
    """Each image as image_BCHW float32 sRGB in [0, 1] on the device, cropped to multiples of 12; decoded ahead."""
    store.cell("")  # builds the index here, before several threads ask for it
    decoded = pool.ahead(lambda image_id: images.decode(store.read_bytes(image_id)), corners)
    for pixels, corners_N2 in zip(decoded, corners.values(), strict=True):
        image_CHW = crop_to_multiple(to_tensor(pixels))
        yield to_float(image_CHW.to(device))[None], corners_N2


def _score_function(scorer: Scorer, device: torch.device, size: int) -> _ScoreFunction:
    function = scorer.build(device)

    @torch.inference_mode()
    def by_map(image_BCHW: Tensor, corners_N2: npt.NDArray[np.int32]) -> Tensor:
        assert isinstance(scorer, MapScorer)
        maps_BKHW = function(image_BCHW)
        cell = image_BCHW.shape[-1] // maps_BKHW.shape[-1]
        return scorer.finish(window_means(maps_BKHW, corners_N2, size, cell)).float()

    @torch.inference_mode()
    def by_patch(image_BCHW: Tensor, corners_N2: npt.NDArray[np.int32]) -> Tensor:
        return torch.cat([function(batch_BCHW).float().cpu() for batch_BCHW in _cut(image_BCHW, corners_N2, size)])

    return by_patch if isinstance(scorer, PatchScorer) else by_map


def _cut(image_BCHW: Tensor, corners_N2: npt.NDArray[np.int32], size: int) -> Iterator[Tensor]:
    """Batches of windows, patches_BCHW."""
    for start in range(0, len(corners_N2), _PATCH_BATCH):
        batch = corners_N2[start : start + _PATCH_BATCH].tolist()
        yield torch.cat([image_BCHW[..., y : y + size, x : x + size] for y, x in batch])


def _write(store: Store, unit: CommitRecord, job: _Job, ids: pa.ChunkedArray, rows: Sequence[Tensor]) -> int:
    """Publish and commit one scorer's table of one shard; returns how many scores are not finite."""
    names = tuple(job.scorer.columns)
    scores_NK = torch.cat(list(rows)).numpy() if rows else np.empty((0, len(names)), np.float32)
    if job.scorer.vector:
        length = scores_NK.shape[1]
        columns = [pa.FixedSizeListArray.from_arrays(pa.array(scores_NK.reshape(-1)), length)]
    else:
        columns = [pa.array(scores_NK[:, k]) for k in range(len(names))]
    table = pa.table([ids, *columns], schema=schema.scores_schema(names, length if job.scorer.vector else None))
    part = store.write_table(job.found.kind, unit.unit, table)
    store.commit(job.found.kind, unit.unit, job.fingerprint(unit), [part])
    not_finite_NK = ~np.isfinite(scores_NK)
    return int((not_finite_NK.any(1) if job.scorer.vector else not_finite_NK).sum())
