"""Train: a manifest and an Arch -> a Checkpoint. One readable loop, on one device or several.

What a run leaves in its folder:

    dual.safetensors      with `dual`, the weights of the dual networks (`curate.dual`)
    model.safetensors     the weights (their running mean, where one was asked for), with the recipe in its header
    recipe.json           the same recipe, to read
    best/                 the checkpoint of the best validation, in the same files
    events.out.*          the curves, for TensorBoard
    state.safetensors     while it runs: what `curate.resume` needs

The same command goes on with a run that was killed, and gives what it would have given: a step depends on (manifest,
options, seed, number of the step) and the state before it, on nothing else. Of several processes each computes its part
of every batch.
"""

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from itertools import islice
from math import ceil, isfinite
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from curate import degrade, dual, files, losses, optim, plugins, resume, stopping, storage
from curate.archs import Arch, check_side
from curate.checkpoint import BEST, MODEL_FILE, RECIPE_FILE, Checkpoint, full_spec, read_recipe, weights_hash
from curate.config import TrainConfig
from curate.curves import Curves, draw
from curate.dual import DUAL_FILE, Answer, Regression, dual_networks
from curate.errors import CurateError, DataError, UsageError, one_line
from curate.evaluation import averages, evaluate, fingerprint
from curate.loader import Batch, batches
from curate.manifest import Manifest
from curate.objective import Objective
from curate.processes import Team
from curate.progress import Meter, Progress, silent
from curate.reuse import differences
from curate.storage import Place
from curate.store import Store
from curate.teacher import Teacher, check_teacher
from curate.tensors import step_seed

__all__ = ["check_crop", "train"]

_VERSION = 1  # raise it when the same options begin to give other steps
_HARMLESS = ("log_every", "save_every")  # options that change nothing about what is trained


def train(
    arch: Arch | str,
    manifest: Manifest | str | Path,
    config: TrainConfig,
    out: str | Path | None = None,
    *,
    init: Checkpoint | str | Path | None = None,
    store: Store | str | Path | None = None,
    validate: str | Path | None = None,
    wandb: str | None = None,
    teacher: Checkpoint | str | Path | None = None,
    dual_init: dict[str, Tensor] | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> Checkpoint:
    """Train `arch` on the manifest's patches; with `out`, write the run there, or go on with the one that is there.

    `out` may be a URL, as those of the store and the manifest may; TensorBoard's curves are not written to one.

    `init` gives the weights to start from: of the same layers, or of the same arch at another scale, whose upsampler
    then starts fresh. `validate` is a folder of HR images to measure on now and then; the best checkpoint is kept.
    `wandb` names a Weights & Biases project for the curves. Under torchrun the processes share every batch.

    `teacher` is a trained network whose maps or answers this one's should resemble (`curate.teacher`). `dual_init` are
    the weights that the dual networks start from where the config gives these a weight; without it they are those
    beside `init`, if that is a path with some that fit, or else fresh.

    The same inputs, seed and threads give the same weights on a CPU. A finished run is returned as it is. Raises
    UsageError for options that do not fit and an `out` that holds another run, DataError if the loss or the weights
    are not finite any more.
    """
    network: Arch = plugins.parse("archs", arch) if isinstance(arch, str) else arch
    check_crop(network, config)
    chosen = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
    before = Checkpoint.load(init) if isinstance(init, str | Path) else init
    duals = _dual_start(network, config, init, before, dual_init)
    taught_by = Checkpoint.load(teacher) if isinstance(teacher, str | Path) else teacher
    check_teacher(network, config, taught_by)
    folder = None if out is None else storage.place(out, "a run")
    source = store if isinstance(store, Store) else chosen.store(store)
    measured_on = None if validate is None else fingerprint(validate, network.scale)
    run = _Run(network, chosen, config, before, source, measured_on, taught_by, duals)
    there = _models(folder) if folder else {}
    if folder and (finished := _finished(folder, run)):
        return finished
    team = Team(device)
    snapshot = resume.Snapshot.load(folder, run.identity, run.defaults) if folder else None
    live = _Live.start(run, team, snapshot)
    feed = batches(
        chosen,
        scale=network.scale,
        crop=config.crop,
        batch_size=config.batch_size,
        seed=config.seed,
        start=live.step,
        share=(team.rank, team.size),
        between=run.objective.between,
        store=source,
    )
    kept = folder if team.leads else None
    with ExitStack() as stack:
        if kept:
            if isinstance(kept, Path):
                files.make_folder(kept)
            stack.enter_context(storage.lock(kept))
            if _models(kept) != there:
                raise CurateError(f"another curate has trained in '{one_line(kept)}' meanwhile; run again to go on")
            storage.remove_leftovers(kept)
        if team.leads:
            drawn = kept if isinstance(kept, Path) else None  # event files grow, which objects do not
            drawing = draw(drawn, start=live.step, project=wandb, name=run.number, settings=run.identity)
            curves = stack.enter_context(drawing)
            keeper = _Keeper(run, team.device, kept, validate, curves, progress)
        else:
            keeper = _Keeper(run, team.device, None, None, lambda step, values: None, silent)
        stack.enter_context(torch.random.fork_rng([team.device] if team.device.type == "cuda" else []))
        with stopping.deferred():  # a state that can be saved is one of between two steps
            _fit(run, live, feed, team, keeper)
            return keeper.finish(live, team)


def check_crop(arch: Arch, config: TrainConfig) -> None:
    """UsageError for crops that are too small for the network or the loss."""
    check_side(arch, config.crop, "a crop")
    shrunk = arch.scale // arch.outputs[0]  # of the smallest image that is compared
    if (arch.hfen if config.hfen is None else config.hfen) and config.crop // shrunk < losses.HFEN_LEAST:
        least = -(-losses.HFEN_LEAST * shrunk // arch.scale) * arch.scale
        raise UsageError(f"a crop should be {least} px or more for HFEN, found {config.crop}; or train with --hfen 0")


@dataclass(frozen=True)
class _Run:
    """What is trained, and how: all that does not change while it is."""

    arch: Arch
    manifest: Manifest
    config: TrainConfig
    init: Checkpoint | None
    store: Store
    validation: str | None  # fingerprint of the images that it is validated on
    teacher: Checkpoint | None
    dual_init: dict[str, Tensor] | None
    objective: Objective = field(init=False)
    steps: int = field(init=False)

    def __post_init__(self) -> None:
        hfen = self.arch.hfen if self.config.hfen is None else self.config.hfen
        object.__setattr__(self, "config", replace(self.config, hfen=float(hfen)))
        degradation = degrade.parse(self.config.degrade, self.arch.scale)
        objective = Objective(self.arch, self.config.loss, float(hfen), self.config.dual, degradation)
        object.__setattr__(self, "objective", objective)
        object.__setattr__(self, "steps", _steps(self.config, self.manifest))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What two runs must have in common to be the same run, JSON-able and flat."""
        return _identity(full_spec(self.arch), self.recipe)

    @property
    def defaults(self) -> dict[str, Any]:
        """What a run of an older curate was, where it does not say so: without HFEN.

        Of its store's LR images nothing is known.
        """
        options = _identity("", {"config": TrainConfig(steps=1, hfen=0.0).recipe()})
        old = {name: value for name, value in options.items() if name not in ("arch", "manifest", "steps")}
        return {**old, "code": 1, "lr": self.recipe["lr"]}

    @cached_property
    def lr(self) -> str | None:
        """Digest of the store (or of the one it was packed from) if its own LR images are trained on."""
        role = f"lr{self.arch.scale}"
        ids = self.manifest.table["image_id"].unique().to_pylist()
        if not isinstance(self.objective.degradation, degrade.Bicubic) or not any(
            self.store.cells(i, role) for i in ids
        ):
            return None
        recipe = self.manifest.recipe
        return (recipe.packed_from or recipe.store).digest

    @property
    def number(self) -> str:
        """A short name of the identity."""
        return sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """What a checkpoint says about its making, before there is any result."""
        patches = {"patches": len(self.manifest), "digest": self.manifest.digest()}
        return {
            "manifest": {**patches, "recipe": self.manifest.recipe.model_dump(mode="json")},
            "config": self.config.recipe(),
            "steps": self.steps,
            "init": _told(self.init),
            "teacher": _told(self.teacher),
            "dual_init": self.dual_init and weights_hash(self.dual_init),
            "lr": self.lr,
            "validation": self.validation,
            "code": _VERSION,
        }


def _told(checkpoint: Checkpoint | None) -> dict[str, str] | None:
    if checkpoint is None:
        return None
    return {"arch": plugins.spec_of(checkpoint.arch), "weights": weights_hash(checkpoint.state)}


def _identity(arch: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of the run that a checkpoint's recipe tells of."""
    init, teacher, options = recipe.get("init"), recipe.get("teacher"), recipe.get("config", {})
    return {
        "arch": arch,
        "manifest": recipe.get("manifest", {}).get("digest"),
        "init": init and init["weights"],
        "teacher": teacher and teacher["weights"],
        "dual_init": recipe.get("dual_init"),
        **{name: recipe[name] for name in ("lr", "validation", "code") if name in recipe},
        **{name: value for name, value in options.items() if name not in _HARMLESS},
    }


def _steps(config: TrainConfig, manifest: Manifest) -> int:
    """Optimiser steps: as many as asked for, or as `epochs` over every patch of the store that was chosen from.

    Core-sets of any size are compared at equal steps, never at equal epochs of their own (Moser et al. 2024, Table 1).
    """
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return ceil(config.epochs * manifest.recipe.counts["patches"] / config.batch_size)


def _models(folder: Place) -> dict[str, storage.Entry]:
    """The models and states in a run's folder."""
    return {name: entry for name, entry in storage.entries(folder).items() if name.endswith(".safetensors")}


def _finished(folder: Place, run: _Run) -> Checkpoint | None:
    """The checkpoint of this very run, if it has ended. UsageError where the folder holds another one, or is a file."""
    there = _models(folder)
    ours = {MODEL_FILE, resume.STATE_FILE}
    if run.config.dual or there.keys() & ours:
        ours.add(DUAL_FILE)
    if folder.is_file() or there.keys() - ours:
        raise UsageError(f"'{one_line(folder)}' is a file or holds another model; name another folder with -o")
    if MODEL_FILE not in there:
        return None
    try:
        record = read_recipe(folder)
    except DataError as error:
        raise UsageError(f"{error}; name another folder with -o") from None
    recorded = _identity(record["arch"], record["training"])
    if found := differences({**run.defaults, **recorded}, run.identity):
        raise UsageError(f"'{one_line(folder)}' holds a model trained with {found}; name another folder with -o")
    made = Checkpoint.load(folder)
    if resume.STATE_FILE in there or not (folder / RECIPE_FILE).is_file():  # killed when it was about to end
        _end(folder, made)
    return made


def _end(folder: Place, made: Checkpoint) -> None:
    """Write the checkpoint of a run, take its state away, and what killed runs have left half written."""
    made.save(folder)
    (folder / resume.STATE_FILE).unlink(missing_ok=True)
    storage.remove_leftovers(folder)


@dataclass
class _Live:
    """What changes from step to step: all of it is in a snapshot."""

    net: nn.Module
    duals: nn.ModuleList  # empty without
    shared: nn.Module  # a Regression of both, compiled and shared among the processes
    optimiser: torch.optim.Optimizer
    means: list[AveragedModel]  # of net, and of duals where there are any; or none
    meter: "_Meter"
    teacher: Teacher | None = None
    step: int = 0
    best: dict[str, Any] | None = None

    @classmethod
    def start(cls, run: _Run, team: Team, snapshot: resume.Snapshot | None) -> "_Live":
        """Before the first step, or where the snapshot was taken."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.config.seed)
            net = run.arch.build()
            duals = dual_networks(run.arch) if run.config.dual else nn.ModuleList()
        if run.init is not None:
            _load(net, run.init, run.arch)
        if run.dual_init is not None:
            duals.load_state_dict(run.dual_init)
        for part in (net, duals):
            part.to(team.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        means = [_mean_of(part, run.config.ema) for part in _modules(net, duals)] if run.config.ema else []
        teacher = None
        if run.teacher is not None:
            teacher = Teacher(run.teacher, run.arch, run.config.teacher_by, team.device)
        whole = Regression(run.arch, net, duals, watched=teacher is not None and teacher.watched)
        if teacher is not None:
            teacher.check(whole, run.config.crop // run.arch.scale)
        live = cls(net, duals, whole, optim.optimiser(whole.parameters(), run.config), means, _Meter(team), teacher)
        if snapshot is not None:
            live._restore(snapshot)
        if run.config.compile:
            whole.compile()  # in place: the weights keep their names
        live.shared = team.share(whole)
        return live

    def snapshot(self) -> resume.Snapshot:
        tensors = resume.with_prefix("net.", self.net.state_dict())
        tensors |= resume.with_prefix("optimizer.", resume.optimizer_tensors(self.optimiser))
        tensors |= resume.with_prefix("meter.", self.meter.tensors())
        tensors |= resume.with_prefix("dual.", self.duals.state_dict())
        for prefix, mean in zip(_MEANS, self.means, strict=False):
            tensors |= resume.with_prefix(prefix, mean.state_dict())
        return resume.Snapshot(self.step, self.best, tensors)

    def _restore(self, snapshot: resume.Snapshot) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return resume.without_prefix(prefix, snapshot.tensors)

        self.net.load_state_dict(part("net."))
        resume.restore_optimizer(self.optimiser, part("optimizer."))
        self.meter.restore(part("meter."))
        self.duals.load_state_dict(part("dual."))
        for prefix, mean in zip(_MEANS, self.means, strict=False):
            mean.load_state_dict(part(prefix))
        self.step, self.best = snapshot.step, snapshot.best

    def weights(self) -> dict[str, Tensor]:
        """The result so far, on the CPU: the running mean of the weights where there is one."""
        return _copied(self.means[0].module if self.means else self.net)

    def dual_weights(self) -> dict[str, Tensor]:
        """The same of the dual networks; empty without."""
        return _copied(self.means[1].module if len(self.means) > 1 else self.duals)


_MEANS = ("ema.", "dual_ema.")  # names in a snapshot


def _modules(net: nn.Module, duals: nn.ModuleList) -> list[nn.Module]:
    """What is trained, each with a gradient's norm of its own."""
    return [net, duals] if len(duals) else [net]


def _mean_of(module: nn.Module, decay: float) -> AveragedModel:
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}


def _fit(run: _Run, live: _Live, feed: Iterator[Batch], team: Team, keeper: "_Keeper") -> None:
    """The loop."""
    if live.step:
        keeper.progress(live.step, run.steps, "going on")
    for batch in keeper.meter.waiting("decoding", islice(feed, run.steps - live.step)):
        _step(batch, run, live, team)
        keeper.after_step(live)
        if stopping.caught() and live.step < run.steps:
            keeper.save(live)
            if keeper.folder:
                stopping.keep(f"step {live.step} of {run.steps} is saved")
            raise stopping.Stopped


def _step(batch: Batch, run: _Run, live: _Live, team: Team) -> None:
    config = run.config
    torch.manual_seed(step_seed(config.seed, live.step, team.rank))  # of stochastic depth
    for group in live.optimiser.param_groups:
        group["lr"] = config.rate * _factor(config, live.step, run.steps)
    parts = batch.parts(config.accumulate)
    for number, part in enumerate(parts, start=1):
        with nullcontext() if number == len(parts) else team.alone(live.shared):
            loss, figures = _loss(live, part.to(team.device), run)
            (loss / len(parts)).backward()  # type: ignore[no-untyped-call]
        live.meter.add(figures, len(part.weight_B))
    if config.clip:
        for module in _modules(live.net, live.duals):
            nn.utils.clip_grad_norm_(module.parameters(), config.clip)
    live.optimiser.step()
    live.optimiser.zero_grad(set_to_none=True)
    for mean, module in zip(live.means, _modules(live.net, live.duals), strict=bool(live.means)):
        mean.update_parameters(module)
    live.step += 1


def _loss(live: _Live, batch: Batch, run: _Run) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and figures of it: the loss, its parts, and the mean squared error of values in [0, 1]."""
    objective = run.objective
    images = objective.images(batch)
    with torch.autocast(images.lr_BCHW.device.type, torch.bfloat16, enabled=run.config.precision == "bf16"):
        answer: Answer = live.shared(images.lr_BCHW)
        taught = None if live.teacher is None else live.teacher(images.lr_BCHW)
    answer = answer.float()
    parts = objective.parts(answer, images)
    loss_B, figures = objective.total(parts), {}
    if run.config.dual:
        figures["duals"] = (parts.dual_B * images.weight_B).mean().detach()
    if live.teacher is not None and taught is not None:
        distance_B = live.teacher.distance(answer, taught)
        loss_B = loss_B + run.config.teacher_weight * distance_B
        figures["teachers"] = (distance_B * images.weight_B).mean().detach()
    loss = (loss_B * images.weight_B).mean()
    return loss, {"losses": loss.detach(), "errors": objective.error(answer, images), **figures}


def _factor(config: TrainConfig, step: int, steps: int) -> float:
    """What the rate is multiplied by at a step, counted from 0."""
    rising = min(1.0, (step + 1) / (config.warmup + 1))
    if config.schedule == "cosine":
        return rising * optim.cosine(step, steps)
    if config.schedule == "multistep":
        return rising * config.gamma ** sum(step >= milestone for milestone in config.milestones)
    return rising


@dataclass
class _Keeper:
    """What happens between steps, in the process that leads: curves, validation, snapshots, progress."""

    run: _Run
    device: torch.device
    folder: Place | None
    validation: str | Path | None
    curves: Curves
    progress: Progress
    last: dict[str, float] = field(default_factory=dict)
    meter: Meter = field(default_factory=lambda: Meter(rest="device"))

    def after_step(self, live: _Live) -> None:
        config, step, end = self.run.config, live.step, live.step == self.run.steps
        if step % config.log_every == 0 or end:
            self.last = live.meter.take(step)
            rate = live.optimiser.param_groups[0]["lr"]
            self.curves(step, {**{f"train/{name}": value for name, value in self.last.items()}, "train/rate": rate})
        self.progress(step, self.run.steps, self._note(live))
        if self.validation is not None and (step % config.validate_every == 0 or end):
            self._validate(live)
        if step % config.save_every == 0:
            self.save(live)

    def save(self, live: _Live) -> None:
        """Keep the state between two steps; after the last one it is not needed."""
        if self.folder and live.step < self.run.steps:
            live.snapshot().save(self.folder, self.run.identity)

    def finish(self, live: _Live, team: Team) -> Checkpoint:
        """The checkpoint of the last step; written, where there is a folder, and the run's state taken away."""
        last = {name: value for name, value in self.last.items() if name != "images_per_second"}
        made = self._checkpoint(live, {"last": last, "best": live.best})
        made = replace(made, recipe={**made.recipe, "processes": team.size})
        duals = live.dual_weights()
        if not all(tensor.isfinite().all() for tensor in (*made.state.values(), *duals.values())):
            raise DataError(f"the weights are not finite after step {live.step}: train with a smaller --rate")
        if self.folder:
            self._save_duals(self.folder, duals, made)
            _end(self.folder, made)
        return made

    def _save_duals(self, folder: Place, duals: dict[str, Tensor], made: Checkpoint) -> None:
        if duals:
            dual.save(folder, duals, made)

    def _validate(self, live: _Live) -> None:
        assert self.validation is not None
        made = self._checkpoint(live, {})
        found = averages(evaluate(made, self.validation, device=str(self.device)))
        self.curves(live.step, {f"val/{name}": value for name, value in found.items()})
        if live.best is None or found["psnr"] > live.best["psnr"]:
            live.best = {"step": live.step, **found}
            if self.folder:
                self._save_duals(self.folder / BEST, live.dual_weights(), made)
                replace(made, recipe={**made.recipe, "best": live.best}).save(self.folder / BEST)

    def _checkpoint(self, live: _Live, result: Mapping[str, Any]) -> Checkpoint:
        versions = {"curate": version("curate"), "torch": torch.__version__, "python": platform.python_version()}
        recipe = {**self.run.recipe, **result, "device": self.device.type, "versions": versions}
        return Checkpoint(self.run.arch, live.weights(), recipe)

    def _note(self, live: _Live) -> str:
        if not self.last:
            return ""
        now = "loss {loss:.5f}, {psnr:.2f} dB".format(**self.last)
        return self.meter.note(now, f"best {live.best['psnr']:.2f} dB" if live.best else "")


class _Meter:
    """Means since the last `take`, and speed. Values stay on the device until they are asked for."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.values: dict[str, list[Tensor]] = {}
        self.samples = 0
        self.since = monotonic()

    def add(self, figures: Mapping[str, Tensor], samples: int) -> None:
        for name, value in figures.items():
            self.values.setdefault(name, []).append(value)
        self.samples += samples

    def take(self, step: int) -> dict[str, float]:
        """loss, psnr (dB, in the network's colours, no border, 100 at most) and images_per_second; starts anew.

        dual and teacher too, where these are parts of the loss, before their weights.
        """
        loss = self._mean("losses")
        if not isfinite(loss):
            raise DataError(f"the loss is {loss} at step {step}: train with a smaller --rate")
        error = self._mean("errors", torch.float64)
        parts = {name: self._mean(f"{name}s") for name in ("dual", "teacher") if f"{name}s" in self.values}
        speed = self.samples * self.team.size / max(monotonic() - self.since, 1e-9)
        self.values, self.samples, self.since = {}, 0, monotonic()
        return {"loss": loss, "psnr": -10 * float(np.log10(max(error, 1e-10))), **parts, "images_per_second": speed}

    def _mean(self, name: str, dtype: torch.dtype = torch.float32) -> float:
        return float(self.team.mean(torch.stack(self.values[name]).to(dtype).mean()))

    def tensors(self) -> dict[str, Tensor]:
        """What has been added since the last `take`."""
        return {name: torch.stack(values) for name, values in self.values.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The way back from `tensors`; the speed is measured from now."""
        self.values = {name: list(tensor.to(self.team.device)) for name, tensor in tensors.items()}


def _load(net: nn.Module, init: Checkpoint, arch: Arch) -> None:
    """Start from the weights of `init`: all of them, or, of the same arch at another scale, those that fit."""
    fresh = net.state_dict()
    fitting = {name: tensor for name, tensor in init.state.items() if _shape(fresh.get(name)) == tensor.shape}
    same = {k: v.shape for k, v in init.state.items()} == {k: v.shape for k, v in fresh.items()}
    rescaled = type(init.arch) is type(arch) and asdict(init.arch) | {"scale": arch.scale} == asdict(arch)  # type: ignore[call-overload]
    if not same and not (rescaled and fitting):
        raise UsageError(f"the weights of {plugins.shown(init.arch)} do not fit {plugins.shown(arch)}")
    net.load_state_dict({**fresh, **fitting})


def _dual_start(
    arch: Arch,
    config: TrainConfig,
    init: Checkpoint | str | Path | None,
    before: Checkpoint | None,
    given: dict[str, Tensor] | None,
) -> dict[str, Tensor] | None:
    """The weights that dual networks start from: those given, or those beside `init`; None for fresh ones."""
    if given is not None and not config.dual:
        raise UsageError("weights of dual networks go with a dual loss; train with --dual 0.1, say")
    if given is not None and not dual.fits(given, arch):
        raise UsageError(f"the weights of the dual networks do not fit {plugins.spec_of(arch)}")
    if given is not None or not config.dual or before is None or not isinstance(init, str | Path):
        return given
    beside = dual.load(init, before)
    return beside if beside is not None and dual.fits(beside, arch) else None


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape
