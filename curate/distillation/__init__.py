"""Distillation: a manifest's patches -> few synthetic ones that are to train as well, as a store with a manifest.

    STORE2/                   a store like any other (`writing`), with manifest.parquet, once the run has ended
    STORE2/distill/           state.safetensors (`resume`) while it lasts; TensorBoard's events

Pool (`pool`): real crops in memory. Space (`spaces`): what is changed, and how patches come of it. Matching
(`matching`): what the objective asks of some of the patches at a step. A step draws these without a graph, asks for the
objective's gradient in their pixels, and draws them again in chunks to take it to what is changed (GLaD, Cazenavette
et al. 2023): the memory of a step does not depend on how many patches there are.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from curate import files, ldm, plugins, resume, stopping, storage
from curate.archs import Arch, check_side
from curate.checkpoint import Checkpoint, full_spec, weights_hash
from curate.config import DistillConfig
from curate.curves import Curves, Picture, draw
from curate.distillation import pool as pools
from curate.distillation import writing
from curate.distillation.matching import Matching, build
from curate.distillation.pool import Pool
from curate.distillation.rows import RowOptimiser
from curate.distillation.spaces import Latents, Ldm, Learnables, Pixels, Space, backward, drawn
from curate.errors import DataError, UsageError
from curate.manifest import Manifest
from curate.metrics import rgb_to_y
from curate.packing import MANIFEST_FILE
from curate.progress import Meter, Progress, silent
from curate.resize import downscale
from curate.schema import Distilling
from curate.storage import Place
from curate.store import Store
from curate.tensors import pick_device, to_float

__all__ = ["RUN_FOLDER", "DistillReport", "check", "distill"]

RUN_FOLDER = "distill"  # in the store
_VERSION = 1  # raise it when the same options begin to give other patches
_HARMLESS = ("log_every", "save_every", "model", "teacher")  # of the last two the weights count
_SHOWN = 8  # patches in a picture
_WRITTEN = 64  # patches that are handed to the writer at a time


class DistillReport(NamedTuple):
    """What came of it."""

    manifest: Place
    patches: int
    bytes: int  # of the patches in the store
    steps: int
    value: float | None  # of the objective, the mean since the last point of the curves; None of no steps
    moved: float | None  # PSNR between the patches at the start and at the end, dB; None if nothing moved


def distill(
    manifest: Manifest | str | Path,
    config: DistillConfig,
    out: str | Path,
    *,
    store: Store | str | Path | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> DistillReport:
    """Make a few patches of a manifest's many, in the new store `out`, or go on with the run that is there.

    `store` is where the manifest's store is, if it has moved. The same inputs, seed and threads give the same patches
    on a CPU, whether or not the run was stopped on its way. A finished run is reported as it is.

    Raises UsageError for a budget above the manifest, patches that do not fit the windows, the network or the model,
    and an `out` that holds anything else; DataError if the objective is not finite any more: the last saved state is
    kept.
    """
    chosen = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
    source = store if isinstance(store, Store) else chosen.store(store)
    chosen.verify(source)
    on = pick_device(device)
    parts = _Parts.load(config, on)
    made_from = _made_from(config, chosen, parts)
    if not Store.is_store(storage.place(out, "a distilled store")):
        pools.check(chosen, config)  # before there is anything at `out`
    target = writing.begin(out, patch=config.size, made_from=made_from)
    if writing.is_finished(target):
        _forget_state(target.path / RUN_FOLDER)  # of a run that was killed when it was about to end
        return _report(target, config, None, None)
    with ExitStack() as stack:
        stack.enter_context(target.writing())
        folder = target.path / RUN_FOLDER
        if isinstance(folder, Path):
            files.make_folder(folder)
        storage.remove_leftovers(folder)
        stack.enter_context(torch.random.fork_rng([on] if on.type == "cuda" else []))
        run = _Run.start(config, chosen, source, parts, on, progress)
        live = _Live.start(run, resume.Snapshot.load(folder, made_from.flat()))
        curves = stack.enter_context(
            draw(folder if isinstance(folder, Path) else None, start=live.step, settings=made_from.flat())
        )
        with stopping.deferred():
            _fit(run, live, folder, made_from, curves, progress)
        moved = _distance(run, live)
        made = _written(run, live, target, chosen, source, progress)
        _forget_state(folder)
        return _report(made, config, live.last.get("objective"), moved)


def check(config: DistillConfig) -> None:
    """See that what the options name is there, and that it fits; a budget that is too large shows only in `distill`.

    UsageError or DataError as `distill` would raise them.
    """
    _Parts.load(config, torch.device("cpu"))


def _forget_state(folder: Place) -> None:
    (folder / resume.STATE_FILE).unlink(missing_ok=True)


def _made_from(config: DistillConfig, manifest: Manifest, parts: "_Parts") -> Distilling:
    options = {name: value for name, value in config.recipe().items() if name not in _HARMLESS}
    options["arch"] = full_spec(parts.arch)
    options["teacher"] = parts.teacher and weights_hash(parts.teacher.state)
    return Distilling(
        source=(manifest.recipe.packed_from or manifest.recipe.store).digest,
        manifest=manifest.digest(),
        ldm=None if parts.model is None else parts.model.digest,
        options=options,
        code=_VERSION,
    )


def _report(store: Store, config: DistillConfig, value: float | None, moved: float | None) -> DistillReport:
    path = store.path / MANIFEST_FILE
    sizes = [part.bytes for record in store.commits().values() for part in record.parts if part.path.endswith(".tar")]
    return DistillReport(path, len(Manifest.load(path)), sum(sizes), config.steps, value, moved)


# --- what does not change while it runs ---


@dataclass(frozen=True)
class _Parts:
    """What the options name."""

    arch: Arch
    model: ldm.LatentModel | None
    teacher: Checkpoint | None

    @classmethod
    def load(cls, config: DistillConfig, device: torch.device) -> "_Parts":
        """UsageError where they do not fit each other and the patches."""
        arch: Arch = plugins.parse("archs", config.arch)
        if config.size % arch.scale:
            raise UsageError(f"patches of {config.size} px have no x{arch.scale} LR, which {config.arch} takes")
        check_side(arch, config.size, "patches")
        model = None if config.space == "pixel" else ldm.load(config.model, device=device)
        if model is not None:
            model.check_size(config.size, config.size)
            if config.space == "ldm" and not model.has_denoiser:
                raise UsageError("the space ldm takes a model with a denoiser, found an autoencoder alone: use vae")
        teacher = None if config.teacher is None else Checkpoint.load(config.teacher)
        if teacher is not None and teacher.arch.scale != arch.scale:
            found = f"x{teacher.arch.scale} and x{arch.scale}"
            raise UsageError(f"the teacher and the matching network should be of one scale, found {found}")
        if teacher is not None:
            check_side(teacher.arch, config.size, "patches")
        return cls(arch, model, teacher)

    def space(self, config: DistillConfig) -> Space:
        if self.model is None:
            return Pixels()
        if config.space == "vae":
            return Latents(self.model)
        return Ldm(self.model, config.sampling, config.injection, config.guidance, config.seed)


class _Teacher:
    """A network whose answers stand for HR."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.arch = checkpoint.arch
        self.net = checkpoint.module().to(device)

    @torch.no_grad()
    def answer(self, lr_M3HW: Tensor) -> Tensor:
        """HR of LR, both in [0, 1]: sRGB, or luma where the network has no other colour."""
        seen = rgb_to_y(lr_M3HW) if self.arch.colour == "y" else lr_M3HW
        answer: Tensor = self.net(seen * self.arch.peak) / self.arch.peak
        return answer

    def label(self, patches_M3HW: Tensor) -> Tensor:
        """What networks should give for patches."""
        return self.answer(downscale(patches_M3HW, self.arch.scale))

    def pair(self, patches_M3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (0 to 255, whole) as they are stored: the answer to their LR, and that LR; uint8."""
        lr_M3HW = downscale(patches_M3HW.to(torch.uint8), self.arch.scale)
        answer = self.answer(to_float(lr_M3HW))
        if answer.shape[1] == 1:  # the same colours, another luma, of which white has 219 steps
            image_M3HW = patches_M3HW / 255
            answer = image_M3HW + (answer - rgb_to_y(image_M3HW)) * (255 / 219)
        return _rounded(answer.clamp(0, 1)).to(torch.uint8), lr_M3HW


@dataclass(frozen=True, eq=False)
class _Run:
    """What the steps need and do not change."""

    config: DistillConfig
    pool: Pool
    space: Space
    matching: Matching
    teacher: _Teacher | None
    first_N: Tensor  # which of the pool the patches start as
    residual_N3HW: Tensor | None
    device: torch.device

    @classmethod
    def start(
        cls,
        config: DistillConfig,
        manifest: Manifest,
        store: Store,
        parts: _Parts,
        device: torch.device,
        progress: Progress,
    ) -> "_Run":
        pool = pools.read(manifest, store, config, progress)
        first_N = pool.starts(_number(config, pool), config)
        space, teacher = parts.space(config), None if parts.teacher is None else _Teacher(parts.teacher, device)
        label = None if teacher is None else teacher.label
        residual_N3HW = _residual(space, pool, first_N, config, device) if config.space != "pixel" else None
        objective = build(config, pool, pool.group_P[first_N], device, label, progress)
        return cls(config, pool, space, objective, teacher, first_N, residual_N3HW, device)

    @property
    def all(self) -> Tensor:
        """The numbers of all patches."""
        return torch.arange(len(self.first_N))

    def drawn(self, learnables: Learnables, rows_M: Tensor) -> Tensor:
        """patches_M3HW as they are now."""
        return drawn(self.space, learnables, rows_M, self.residual_N3HW, self.config.chunk)

    def begun(self) -> Learnables:
        """The learnables before the first step."""
        return _started(self.space, self.pool, self.first_N, self.config.chunk, self.device)


def _number(config: DistillConfig, pool: Pool) -> int:
    """How many patches: as many as asked for, or as the bytes allow, if they stay about as large as they start."""
    if config.patches is not None:
        return config.patches
    assert config.bytes is not None
    first = pool.starts(pool.windows, config)
    number = writing.fitting((pool.pixels(row)[None] for row in first.tolist()), config.bytes)
    if not number:
        raise UsageError(f"{config.bytes} bytes hold no patch of {config.size} px; give a larger budget")
    return number


def _started(space: Space, pool: Pool, first_N: Tensor, chunk: int, device: torch.device) -> Learnables:
    with torch.no_grad():
        parts = [space.start(pool.floating(rows_B, device)) for rows_B in first_N.split(chunk)]  # type: ignore[no-untyped-call]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _residual(space: Space, pool: Pool, first_N: Tensor, config: DistillConfig, device: torch.device) -> Tensor | None:
    """What real patches have that is lost where they are made again from their learnables."""
    if not config.residual:
        return None
    learnables = _started(space, pool, first_N, config.chunk, device)
    parts = []
    with torch.no_grad():
        for rows_B in torch.arange(len(first_N)).split(config.chunk):  # type: ignore[no-untyped-call]
            mine = {name: tensor[rows_B] for name, tensor in learnables.items()}
            parts.append(pool.floating(first_N[rows_B], device) - space.patches(mine, rows_B))
    return torch.cat(parts)


# --- what does ---


@dataclass
class _Live:
    """All of it is in a snapshot."""

    learnables: Learnables
    optimiser: RowOptimiser
    matching: Matching
    step: int = 0
    values: list[float] = field(default_factory=list)  # of the objective, since the last point of the curves
    last: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(cls, run: _Run, snapshot: resume.Snapshot | None) -> "_Live":
        config, learnables = run.config, run.begun()
        optimiser = RowOptimiser(learnables, config.optimizer, config.rate, config.momentum)
        live = cls(learnables, optimiser, run.matching)
        if snapshot is not None:
            live._restore(snapshot)
        return live

    def snapshot(self) -> resume.Snapshot:
        tensors = resume.with_prefix("learnables.", self.learnables)
        tensors |= resume.with_prefix("optimizer.", self.optimiser.state)
        tensors |= resume.with_prefix("matching.", self.matching.tensors())
        tensors["values"] = torch.tensor(self.values, dtype=torch.float64)
        tensors |= {f"last.{name}": torch.tensor(value, dtype=torch.float64) for name, value in self.last.items()}
        return resume.Snapshot(self.step, None, tensors)

    def _restore(self, snapshot: resume.Snapshot) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return resume.without_prefix(prefix, snapshot.tensors)

        self.step = snapshot.step
        for name, tensor in part("learnables.").items():
            self.learnables[name].copy_(tensor)
        self.optimiser.restore(part("optimizer."))
        self.matching.restore(part("matching."))
        self.values = snapshot.tensors["values"].tolist()
        self.last = {name: float(value) for name, value in part("last.").items()}


def _fit(run: _Run, live: _Live, folder: Place, made_from: Distilling, curves: Curves, progress: Progress) -> None:
    config, meter = run.config, Meter(rest="device")
    if not live.step:
        curves(0, {"patches/now": _picture(run, live)})
    while live.step < config.steps:
        _step(run, live)
        _after_step(run, live, folder, made_from, curves)
        note = ", ".join(f"{name} {value:.5g}" for name, value in live.last.items())
        progress(live.step, config.steps, meter.note(note))
        if stopping.caught() and live.step < config.steps:
            live.snapshot().save(folder, made_from.flat())
            stopping.keep(f"step {live.step} of {config.steps} is saved")
            raise stopping.Stopped


def _step(run: _Run, live: _Live) -> None:
    rows_M = run.matching.rows(live.step)
    asked = run.matching.ask(live.step, rows_M, run.drawn(live.learnables, rows_M))
    gradients = backward(run.space, live.learnables, rows_M, asked.slope_M3HW, run.config.chunk)
    live.optimiser.step(rows_M, gradients)
    finite = all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    if not np.isfinite(asked.value) or not finite:
        saved = live.step - live.step % run.config.save_every
        kept = f"the state of step {saved} is kept" if saved else "nothing was saved yet"
        raise DataError(f"the objective is not finite at step {live.step}: distil with a smaller --rate; {kept}")
    live.values.append(asked.value)
    live.step += 1


def _after_step(run: _Run, live: _Live, folder: Place, made_from: Distilling, curves: Curves) -> None:
    config, end = run.config, live.step == run.config.steps
    values: dict[str, float | Picture] = {}
    if live.step % config.log_every == 0 or end:
        live.last["objective"] = sum(live.values) / len(live.values)
        live.values = []
        values |= {f"distill/{name}": value for name, value in live.last.items()}
        values |= {f"distill/{name}": float(v) for name, v in run.matching.tensors().items() if v.ndim == 0}
    if live.step % config.save_every == 0 or end:
        values["patches/now"] = _picture(run, live)
    if values:
        curves(live.step, values)
    if live.step % config.save_every == 0 and not end:
        live.snapshot().save(folder, made_from.flat())


def _picture(run: _Run, live: _Live) -> Picture:
    """The first few patches as they started, and below as they are."""
    rows_M = run.all[:_SHOWN]
    start_M3HW = run.pool.floating(run.first_N[rows_M], run.device)
    return Picture.sheet(torch.cat([start_M3HW, run.drawn(live.learnables, rows_M)]), columns=len(rows_M))


def _distance(run: _Run, live: _Live) -> float | None:
    """PSNR, dB, RGB, of all patches together against what they started as."""
    total = 0.0
    for rows_M in run.all.split(_WRITTEN):  # type: ignore[no-untyped-call]
        start_M3HW = run.pool.floating(run.first_N[rows_M], run.device)
        total += float((_rounded(run.drawn(live.learnables, rows_M)) / 255 - start_M3HW).square().mean((1, 2, 3)).sum())
    return float(-10 * np.log10(total / len(run.first_N))) if total else None


# --- the end ---


def _rounded(patches_M3HW: Tensor) -> Tensor:
    """As they are stored, 0 to 255."""
    return (patches_M3HW * 255).round()


def _written(run: _Run, live: _Live, target: Store, manifest: Manifest, source: Store, progress: Progress) -> Store:
    number = len(run.first_N)
    if run.config.bytes is not None:  # what moved may take more bytes than what it started as
        number = max(1, writing.fitting((hr for hr, _ in _results(run, live, number)), run.config.bytes))
    groups = [f"group{group:03d}" for group in run.pool.group_P[run.first_N[:number]].tolist()]
    lr = None if run.teacher is None else {run.teacher.arch.scale: (lr for _, lr in _results(run, live, number))}
    writing.write(
        target,
        (hr for hr, _ in _results(run, live, number)),
        groups=groups if run.config.groups != "none" else [None] * number,
        manifest=manifest,
        source=source,
        lr=lr,
        progress=progress,
    )
    return target


_Pixels = npt.NDArray[np.uint8]


def _results(run: _Run, live: _Live, number: int) -> Iterator[tuple[_Pixels, _Pixels]]:
    """HR of the patches in batches, uint8 NHWC, and LR where a teacher has made HR of that."""
    for rows_M in run.all[:number].split(_WRITTEN):  # type: ignore[no-untyped-call]
        patches_M3HW = _rounded(run.drawn(live.learnables, rows_M))
        if run.teacher is None:
            yield _pixels(patches_M3HW.to(torch.uint8)), np.empty(0, np.uint8)
        else:
            hr_M3HW, lr_M3HW = run.teacher.pair(patches_M3HW)
            yield _pixels(hr_M3HW), _pixels(lr_M3HW)


def _pixels(patches_M3HW: Tensor) -> _Pixels:
    pixels: _Pixels = patches_M3HW.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels
