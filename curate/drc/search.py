"""How many maps each unit keeps: DRC's search by gradients (Guo et al.), the first stage of a compression.

What it leaves in its folder:

    alpha.safetensors     of each unit, by its name, the numbers of its candidates before softmax; written last
    history.parquet       the same every `log_every` steps: step, unit, candidate, alpha, share
    events.out.*          curves, for TensorBoard
    state.safetensors     while it runs: what `curate.resume` needs

The manifest is split by photographs into halves (`parts`). A step first moves alpha by the loss of one half, then the
weights, those of the dual networks too, by that of the other: first order, as the second-order term in the authors'
code is multiplied by half of epsilon where it should be divided by twice as much, and so has no effect. The loss is
that of training, dual regression and all, of the network between its candidates (`relaxation`).

It starts from the checkpoint's weights, and what it makes of them is thrown away, as the authors do: the selection that
follows starts from the checkpoint again.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.func import functional_call

from curate import files, optim, resume, stopping, storage
from curate.archs import check_side
from curate.curves import Curves, draw
from curate.drc.relaxation import OwnWeights, Relaxation, candidates
from curate.drc.work import Work
from curate.dual import Regression
from curate.errors import DataError, UsageError, one_line
from curate.loader import Batch
from curate.parts import parts
from curate.progress import Meter, Progress, silent
from curate.storage import Place
from curate.tensors import step_seed

__all__ = ["ALPHA_FILE", "HISTORY_FILE", "Numbers", "candidates", "search"]

ALPHA_FILE = "alpha.safetensors"
HISTORY_FILE = "history.parquet"
_VERSION = 1  # raise it when the same options begin to give other steps
_OPTIONS = (
    *("ratio", "numbers", "importance", "dual", "degrade", "batch_size", "crop", "search_steps"),
    *("rate", "arch_rate", "arch_decay", "clip", "precision"),
)
_HALF = 0.5
_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("unit", pa.string()),
        ("candidate", pa.int64()),  # maps, or features of a head
        ("alpha", pa.float32()),
        ("share", pa.float32()),  # after softmax over the unit's candidates
    ]
)


class Numbers(NamedTuple):
    """What a search found."""

    widths: list[int]  # of each unit of `Work.units`, in their order: maps, or features of a head


def search(work: Work, folder: Place, progress: Progress = silent) -> Numbers:
    """Search in a folder, or go on with the search that is there; of one that has ended, what it found.

    `numbers` of the config is `search`, or `darts` for weights of each candidate's own. The same work and threads find
    the same, bit for bit, on a CPU, whether or not the search was stopped on its way.

    Raises UsageError for a manifest of fewer than two photographs, crops that do not fit the network or the windows,
    and a folder that holds another search; DataError if the loss is not finite any more: the last saved state is kept.
    """
    assert work.units and work.config.numbers in ("search", "darts")
    check_side(work.arch, work.config.crop, "a crop")
    if folder.is_file():
        raise UsageError(f"'{one_line(folder)}' is a file; a search needs a folder")
    identity = _identity(work)
    if ended := resume.Snapshot.load(folder, identity, name=ALPHA_FILE):
        (folder / resume.STATE_FILE).unlink(missing_ok=True)  # of a search that was killed when it was about to end
        return _numbers(work, ended.tensors)
    halves = parts(work.manifest, _HALF, work.config.seed)
    with ExitStack() as stack:
        if isinstance(folder, Path):
            files.make_folder(folder)
        stack.enter_context(storage.lock(folder))
        storage.remove_leftovers(folder)
        live = _Live.start(work, resume.Snapshot.load(folder, identity))
        feeds = [work.batches(half, work.config.seed + n, live.step) for n, half in enumerate(halves)]
        drawn = folder if isinstance(folder, Path) else None
        curves = stack.enter_context(draw(drawn, start=live.step, settings=identity))
        stack.enter_context(torch.random.fork_rng([work.device] if work.device.type == "cuda" else []))
        with stopping.deferred():
            _fit(live, feeds, _Keeper(live, folder, identity, curves), progress)
            return _end(live, folder, identity)


def _identity(work: Work) -> dict[str, Any]:
    """What two searches must have in common to be the same one, JSON-able and flat."""
    options = work.config.recipe()
    return {**work.identity, "code": _VERSION, **{name: options[name] for name in _OPTIONS}}


def _numbers(work: Work, alphas: Mapping[str, Tensor]) -> Numbers:
    """Of each unit the candidate whose number is the largest, the smallest of those alike."""
    ratio = work.config.ratio
    choices = [(candidates(unit.width, ratio, unit.count), alphas[unit.name]) for unit in work.units]
    return Numbers([widths[int(alpha_V.argmax())] for widths, alpha_V in choices])


@dataclass
class _Live:
    """What changes from step to step: all of it is in a snapshot."""

    work: Work
    regression: Regression
    relaxation: Relaxation
    alpha_UV: Tensor
    of_weights: torch.optim.Optimizer
    of_alpha: torch.optim.Optimizer
    step: int = 0
    history: "_History" = field(default_factory=lambda: _History())
    losses: dict[str, list[Tensor]] = field(default_factory=dict)  # since the last point of the curves

    @classmethod
    def start(cls, work: Work, snapshot: resume.Snapshot | None) -> "_Live":
        """Before the first step, or where the snapshot was taken."""
        config, regression = work.config, work.regression().train()
        known = dict(regression.net.named_parameters())
        if config.numbers == "darts":
            relaxation: Relaxation = OwnWeights(work.units, config.ratio, known)
        else:
            relaxation = Relaxation(work.units, config.ratio, known, ranked=config.importance)
        alpha_UV = relaxation.fresh(config.seed)
        weights = [*regression.parameters(), *relaxation.own().values()]
        of_alpha = torch.optim.Adam([alpha_UV], lr=config.arch_rate, weight_decay=config.arch_decay)
        live = cls(work, regression, relaxation, alpha_UV, torch.optim.Adam(weights, lr=config.rate), of_alpha)
        if snapshot is None:
            live.history.add(0, alpha_UV)
        else:
            live._restore(snapshot)
        return live

    def snapshot(self) -> resume.Snapshot:
        tensors = resume.with_prefix("regression.", self.regression.state_dict())
        tensors |= resume.with_prefix("own.", self.relaxation.own())
        tensors |= resume.with_prefix("weights.", resume.optimizer_tensors(self.of_weights))
        tensors |= resume.with_prefix("numbers.", resume.optimizer_tensors(self.of_alpha))
        tensors |= resume.with_prefix("history.", self.history.tensors())
        tensors |= resume.with_prefix(
            "losses.", {name: torch.stack(kept) for name, kept in self.losses.items() if kept}
        )
        return resume.Snapshot(self.step, None, {**tensors, "alpha": self.alpha_UV})

    def _restore(self, snapshot: resume.Snapshot) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return resume.without_prefix(prefix, snapshot.tensors)

        self.regression.load_state_dict(part("regression."))
        with torch.no_grad():
            self.alpha_UV.copy_(snapshot.tensors["alpha"])
            kept = part("own.")
            for name, copies in self.relaxation.own().items():
                copies.copy_(kept[name])
        resume.restore_optimizer(self.of_weights, part("weights."))
        resume.restore_optimizer(self.of_alpha, part("numbers."))
        self.history = _History.of(part("history."))
        self.losses = {name: list(kept.to(self.work.device)) for name, kept in part("losses.").items()}
        self.step = snapshot.step

    def move(self, training: Batch, validation: Batch) -> None:
        """A step: alpha by one batch, then weights by the other one."""
        config = self.work.config
        torch.manual_seed(step_seed(config.seed, self.step))  # of stochastic depth
        loss = self.loss(validation, self.alpha_UV)
        (self.alpha_UV.grad,) = torch.autograd.grad(loss, [self.alpha_UV])
        self.of_alpha.step()
        self._add("validation", loss)
        loss = self.loss(training, self.alpha_UV.detach())
        loss.backward()  # type: ignore[no-untyped-call]
        if config.clip:
            nn.utils.clip_grad_norm_([*self.regression.net.parameters(), *self.relaxation.own().values()], config.clip)
        for group in self.of_weights.param_groups:
            group["lr"] = config.rate * optim.cosine(self.step, config.search_steps)
        self.of_weights.step()
        self.of_weights.zero_grad(set_to_none=True)
        self._add("training", loss)
        self.step += 1

    def loss(self, batch: Batch, alpha_UV: Tensor) -> Tensor:
        """That of the network between its candidates; gradients reach alpha and all weights."""
        work = self.work
        images = work.objective.images(batch.to(work.device))
        made = self.relaxation.weights(dict(self.regression.net.named_parameters()), alpha_UV)
        with torch.autocast(work.device.type, torch.bfloat16, enabled=work.config.precision == "bf16"):
            answer = functional_call(
                self.regression, resume.with_prefix("net.", made), (images.lr_BCHW,), tie_weights=False
            )
        return work.objective(answer.float(), images)

    def _add(self, name: str, loss: Tensor) -> None:
        self.losses.setdefault(name, []).append(loss.detach())

    def take(self) -> dict[str, float]:
        """Mean losses since the last time. DataError where one is not finite."""
        means = {name: float(torch.stack(kept).mean()) for name, kept in self.losses.items()}
        self.losses = {}
        for name, mean in means.items():
            if not isfinite(mean):
                raise DataError(f"the {name} loss is {mean} at step {self.step}: search with a smaller --rate")
        return means


@dataclass
class _History:
    """alpha after some of the steps."""

    steps: list[int] = field(default_factory=list)
    alphas: list[Tensor] = field(default_factory=list)  # alpha_UV of each

    def add(self, step: int, alpha_UV: Tensor) -> None:
        self.steps.append(step)
        self.alphas.append(alpha_UV.detach().cpu().clone())

    def tensors(self) -> dict[str, Tensor]:
        """For a snapshot."""
        return {"steps": torch.tensor(self.steps), "alphas": torch.stack(self.alphas)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "_History":
        """The way back from `tensors`."""
        return cls(tensors["steps"].tolist(), list(tensors["alphas"]))

    def parquet(self, relaxation: Relaxation) -> bytes:
        """A row a step and candidate, as a Parquet file."""
        rows = [
            (step, unit, *row)
            for step, alpha_UV in zip(self.steps, self.alphas, strict=True)
            for (unit, alpha_V), widths in zip(relaxation.of_units(alpha_UV).items(), relaxation.widths, strict=True)
            for row in zip(widths, alpha_V.tolist(), alpha_V.softmax(0).tolist(), strict=True)
        ]
        columns = dict(zip(_SCHEMA.names, zip(*rows, strict=True), strict=True))
        stream = io.BytesIO()
        pq.write_table(pa.table(columns, _SCHEMA), stream, compression="zstd", store_schema=False)
        return stream.getvalue()


@dataclass
class _Keeper:
    """What happens between steps: curves, history, snapshots."""

    live: _Live
    folder: Place
    identity: Mapping[str, Any]
    curves: Curves
    last: dict[str, float] = field(default_factory=dict)

    def after_step(self) -> None:
        live, config = self.live, self.live.work.config
        end = live.step == config.search_steps
        if live.step % config.log_every == 0 or end:
            self.last = live.take()
            live.history.add(live.step, live.alpha_UV)
            values = {f"search/{name}": value for name, value in self.last.items()}
            self.curves(live.step, {**values, **self._expected()})
        if live.step % config.save_every == 0 and not end:
            self.save()

    def save(self) -> None:
        self.live.snapshot().save(self.folder, self.identity)

    def _expected(self) -> dict[str, float]:
        """Maps of each unit, the mean of its candidates by their shares."""
        relaxation = self.live.relaxation
        shares = relaxation.of_units(relaxation.shares(self.live.alpha_UV.detach()).cpu())
        return {
            f"maps/{unit}": float((share_V * torch.tensor(widths)).sum())
            for (unit, share_V), widths in zip(shares.items(), relaxation.widths, strict=True)
        }


def _fit(live: _Live, feeds: Iterable[Iterator[Batch]], keeper: _Keeper, progress: Progress) -> None:
    steps, meter = live.work.config.search_steps, Meter(rest="device")
    training, validation = (meter.waiting("decoding", feed) for feed in feeds)
    if live.step:
        progress(live.step, steps, "going on")
    while live.step < steps:
        live.move(next(training), next(validation))
        keeper.after_step()
        progress(live.step, steps, meter.note(*(f"{name} {value:.4g}" for name, value in keeper.last.items())))
        if stopping.caught() and live.step < steps:
            keeper.save()
            stopping.keep(f"step {live.step} of {steps} is saved")
            raise stopping.Stopped


def _end(live: _Live, folder: Place, identity: Mapping[str, Any]) -> Numbers:
    """Write what was found, alpha last; take the state away."""
    alphas = {name: alpha_V.cpu() for name, alpha_V in live.relaxation.of_units(live.alpha_UV.detach()).items()}
    if not all(alpha_V.isfinite().all() for alpha_V in alphas.values()):
        raise DataError(f"alpha is not finite after step {live.step}: search with a smaller --arch-rate")
    storage.publish_bytes(folder / HISTORY_FILE, live.history.parquet(live.relaxation))
    resume.Snapshot(live.step, None, alphas).save(folder, identity, ALPHA_FILE)
    (folder / resume.STATE_FILE).unlink(missing_ok=True)
    return _numbers(live.work, alphas)
