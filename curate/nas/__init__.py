"""Search for a light network by DLSR (Huang et al. 2021): a manifest -> a genotype, which `curate train` trains.

What a search leaves in its folder:

    genotype.json                what was found, and how (schema GenotypeRecord); written last
    snapshots/00010000.json      the same after some of the steps
    architecture.safetensors     alpha (layers x operations) and beta3 ... beta6, before softmax
    history.parquet              the same every `log_every` steps: step, of, choice, value, share
    architecture.svg             a picture of that
    genotype.svg                 the network as a graph
    seconds.json                 how long it took, all its parts together: the one file that another run has otherwise
    events.out.*                 curves, for TensorBoard
    state.safetensors            while it runs: what `curate.resume` needs
    candidates/0007/             of random and evolutionary search, in place of all but the first, the graph and the
                                 seconds: a training run for each network that was tried

The manifest is split by photographs: `parts`. The super-net (`supernet`) learns from one part, its architecture from
the other: `levels`; what large operations are charged with: `costs`.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from curate import files, resume, schema, stopping, storage
from curate.archs import check_side
from curate.archs.dlsr import Dlsr
from curate.config import NasConfig
from curate.curves import Curves, Picture, draw
from curate.errors import DataError, UsageError, one_line
from curate.genotype import GENOTYPE_FILE, Genotype
from curate.loader import Batch, batches
from curate.macs import multiply_adds, parameters
from curate.manifest import Manifest
from curate.nas import pictures, sampled
from curate.nas.costs import HD, Costs, budget, one_hot
from curate.nas.graphs import Graphs
from curate.nas.history import History
from curate.nas.levels import Levels, Losses
from curate.nas.supernet import Architecture, SuperNet
from curate.parts import Parts, parts
from curate.progress import Meter, Progress, silent
from curate.reuse import differences
from curate.schema import GenotypeRecord
from curate.storage import Place
from curate.store import Store
from curate.tensors import pick_device

__all__ = ["GENOTYPE_FILE", "SearchReport", "search"]

ARCHITECTURE_FILE = "architecture.safetensors"
SECONDS_FILE = "seconds.json"
_VERSION = 1  # raise it when the same options begin to give other steps
_HARMLESS = ("log_every", "save_every", "snapshots", "graphs")
_SAMPLED = ("random", "evolution")


class SearchReport(NamedTuple):
    """What a search found."""

    genotype: Genotype
    path: Place  # of its file
    parameters: int
    multiply_adds: int  # for an answer of 1280x720
    steps: int  # of the super-net, or of each candidate
    seconds: float  # of all parts of a search that was stopped and went on


def search(
    manifest: Manifest | str | Path,
    config: NasConfig,
    out: str | Path,
    *,
    store: Store | str | Path | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> SearchReport:
    """Search on a manifest's patches, in the folder `out`, or go on with the search that is there.

    `store` is where the manifest's store is, if it has moved. The same inputs, seed and threads give the same
    architecture, bit for bit, on a CPU, whether or not the search was stopped on its way; not where a latency is
    measured. A finished search is reported as it is.

    Raises UsageError for options that do not fit the manifest, a manifest of fewer than two photographs, crops whose LR
    is below 15 px, and an `out` that holds anything else; DataError if the loss is not finite any more: the last saved
    state is kept.
    """
    chosen = manifest if isinstance(manifest, Manifest) else Manifest.load(manifest)
    _check(config)
    source = store if isinstance(store, Store) else chosen.store(store)
    run = _Run(chosen, config, source, parts(chosen, config.share, config.seed))
    folder = storage.place(out, "a search")
    if finished := _finished(folder, run):
        return finished
    on = pick_device(device)
    with ExitStack() as stack:
        if isinstance(folder, Path):
            files.make_folder(folder)
        stack.enter_context(storage.lock(folder))
        storage.remove_leftovers(folder)
        started = monotonic()
        if config.method in _SAMPLED:
            return _sampled(run, folder, on, progress)
        snapshot = resume.Snapshot.load(folder, run.identity)
        live = _Live.start(run, on, snapshot, started)
        drawn = folder if isinstance(folder, Path) else None
        curves = stack.enter_context(draw(drawn, start=live.step, settings=run.identity))
        with stopping.deferred():
            _fit(run, live, folder, curves, progress)
            return _end(run, live, folder)


def _check(config: NasConfig) -> None:
    """UsageError for a crop that the network cannot take."""
    check_side(Dlsr(config.scale), config.crop, "a crop")
    if config.crop % config.scale:
        raise UsageError(f"a crop should be a multiple of the scale {config.scale}, found {config.crop}")


@dataclass(frozen=True)
class _Run:
    """What is searched, and how: all that does not change while it is."""

    manifest: Manifest
    config: NasConfig
    store: Store
    parts: Parts

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What two searches must have in common to be the same one, JSON-able and flat."""
        options = {name: value for name, value in self.config.recipe().items() if name not in _HARMLESS}
        return {"manifest": self.manifest.digest(), "code": _VERSION, **options, "warmup": self.config.warming}

    def feed(self, part: Manifest, seed: int, start: int) -> Iterator[Batch]:
        """Batches of a part from the `start`-th on."""
        config = self.config
        return batches(
            part,
            scale=config.scale,
            crop=config.crop,
            batch_size=config.batch_size,
            seed=seed,
            start=start,
            store=self.store,
        )

    def record(self, genotype: Genotype, step: int, **more: Any) -> dict[str, Any]:
        """What a genotype's file says of the search."""
        arch = self.arch(genotype)
        return {
            "identity": self.identity,
            "store": (self.manifest.recipe.packed_from or self.manifest.recipe.store).digest,
            "patches": {"training": len(self.parts.training), "architecture": len(self.parts.architecture)},
            "step": step,
            "parameters": parameters(arch),
            "multiply_adds": multiply_adds(arch, *HD),
            "versions": {"curate": version("curate"), "torch": torch.__version__},
            **more,
        }

    def arch(self, genotype: Genotype) -> Dlsr:
        return Dlsr(self.config.scale, str(genotype), self.config.features)


def _finished(folder: Place, run: _Run) -> SearchReport | None:
    """The report of this very search, if it has ended. UsageError where the folder holds something else."""
    if folder.is_file():
        raise UsageError(f"'{one_line(folder)}' is a file; name a folder with -o")
    file = folder / GENOTYPE_FILE
    if not file.is_file():
        return None
    elsewhere = "name another folder with -o"
    try:
        record = schema.parse(GenotypeRecord, file.read_bytes(), f"'{one_line(file)}'")
    except DataError as error:
        raise UsageError(f"{error}; {elsewhere}") from None
    found = (record.search or {}).get("identity")
    if not isinstance(found, dict):
        raise UsageError(f"'{one_line(folder)}' holds a genotype of another making; {elsewhere}")
    if problem := differences(found, run.identity):
        raise UsageError(f"'{one_line(folder)}' holds a search with {problem}; {elsewhere}")
    (folder / resume.STATE_FILE).unlink(missing_ok=True)  # of a search that was killed when it was about to end
    return _report(run, folder, Genotype.load(file), int((record.search or {})["step"]))


def _report(run: _Run, folder: Place, genotype: Genotype, steps: int) -> SearchReport:
    arch = run.arch(genotype)
    path = folder / GENOTYPE_FILE
    return SearchReport(genotype, path, parameters(arch), multiply_adds(arch, *HD), steps, _seconds(folder))


@dataclass
class _Live:
    """What changes from step to step: all of it is in a snapshot."""

    levels: Levels
    steps: Levels | Graphs  # who does them
    device: torch.device
    started: float  # by the clock of this process
    step: int = 0
    before: float = 0.0  # seconds of the processes before this one
    history: History = field(default_factory=History)
    losses: dict[str, list[Tensor]] = field(default_factory=dict)  # since the last point of the curves
    last: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(cls, run: _Run, device: torch.device, snapshot: resume.Snapshot | None, started: float) -> "_Live":
        config = run.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            net = SuperNet(config.scale, config.features, connections=config.connections, form=config.form)
        net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        architecture = Architecture.fresh(connections=config.connections, seed=config.seed, device=device)
        kept = None if snapshot is None else resume.without_prefix("costs.", snapshot.tensors)
        costs = Costs.of(config, device) if kept is None else Costs.restored(config, kept)
        levels = Levels(net, architecture, config, costs.to(device))
        steps = Graphs(levels) if config.graphs and device.type == "cuda" else levels
        live = cls(levels, steps, device, started)
        if snapshot is None:
            live.history.add(0, architecture)
        else:
            live._restore(snapshot)
        return live

    @property
    def seconds(self) -> float:
        return self.before + monotonic() - self.started

    def snapshot(self) -> resume.Snapshot:
        levels = self.levels
        tensors = resume.with_prefix("net.", levels.net.state_dict())
        tensors |= resume.with_prefix("architecture.", levels.architecture.tensors())
        tensors |= resume.with_prefix("weights.", resume.optimizer_tensors(levels.of_weights))
        tensors |= resume.with_prefix("steps.", resume.optimizer_tensors(levels.of_architecture))
        tensors |= resume.with_prefix("history.", self.history.tensors())
        tensors |= resume.with_prefix("costs.", levels.costs.tensors())
        tensors |= resume.with_prefix(
            "losses.", {name: torch.stack(kept) for name, kept in self.losses.items() if kept}
        )
        tensors["seconds"] = torch.tensor(self.seconds, dtype=torch.float64)
        return resume.Snapshot(self.step, None, tensors)

    def _restore(self, snapshot: resume.Snapshot) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return resume.without_prefix(prefix, snapshot.tensors)

        levels = self.levels
        levels.net.load_state_dict(part("net."))
        levels.architecture.restore(part("architecture."))
        resume.restore_optimizer(levels.of_weights, part("weights."))
        resume.restore_optimizer(levels.of_architecture, part("steps."))
        self.history = History.of(part("history."))
        self.losses = {name: list(kept.to(self.device)) for name, kept in part("losses.").items()}
        self.step, self.before = snapshot.step, float(snapshot.tensors["seconds"])

    def add(self, found: Losses) -> None:
        for name, value in found._asdict().items():
            if value is not None:
                self.losses.setdefault(name, []).append(value)

    def take(self) -> dict[str, float]:
        """Mean losses since the last time. DataError where one is not finite."""
        means = {name: float(torch.stack(kept).mean()) for name, kept in self.losses.items() if kept}
        self.losses = {}
        for name, mean in means.items():
            if not isfinite(mean):
                raise DataError(f"the {name} loss is {mean} at step {self.step}: search with a smaller --rate")
        return means


def _fit(run: _Run, live: _Live, folder: Place, curves: Curves, progress: Progress) -> None:
    config, meter = run.config, Meter(rest="device")
    training = meter.waiting("decoding", run.feed(run.parts.training, config.seed, live.step))
    late = max(0, live.step - config.warming)
    validation = meter.waiting("decoding", run.feed(run.parts.architecture, config.seed + 1, late))
    if live.step:
        progress(live.step, config.steps, "going on")
    while live.step < config.steps:
        held = next(validation).to(live.device) if live.step >= config.warming else None
        live.add(live.steps.step(next(training).to(live.device), held))
        live.step += 1
        _after_step(run, live, folder, curves)
        words = ", ".join(f"{name} {value:.4g}" for name, value in live.last.items())
        progress(live.step, config.steps, meter.note(words))
        if stopping.caught() and live.step < config.steps:
            live.snapshot().save(folder, run.identity)
            stopping.keep(f"step {live.step} of {config.steps} is saved")
            raise stopping.Stopped


def _after_step(run: _Run, live: _Live, folder: Place, curves: Curves) -> None:
    config, last = run.config, live.step == run.config.steps
    architecture = live.levels.architecture
    if live.step % config.log_every == 0 or last:
        live.last = live.take()
        live.history.add(live.step, architecture)
        values: dict[str, float | Picture] = {f"search/{name}": value for name, value in live.last.items()}
        curves(live.step, {**values, **live.history.shares()})
    if live.step in config.kept:
        found = architecture.genotype()
        found.save(_made(folder / "snapshots") / f"{live.step:08d}.json", run.record(found, live.step))
    if live.step % config.save_every == 0 and not last:
        live.snapshot().save(folder, run.identity)


def _end(run: _Run, live: _Live, folder: Place) -> SearchReport:
    """Write what was found, the genotype last; take the state away."""
    architecture = live.levels.architecture
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in architecture.tensors().items()}
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise DataError(f"the architecture is not finite after step {live.step}: search with a smaller --arch-rate")
    found, initial = architecture.genotype(), live.history.genotype(0)
    costs = live.levels.costs
    storage.publish_bytes(folder / ARCHITECTURE_FILE, save(tensors))
    storage.publish_bytes(folder / "history.parquet", live.history.parquet())
    storage.publish_bytes(folder / "architecture.svg", live.history.picture(run.config.warming).encode())
    more = {"initial": str(initial), "cost": {"of": costs.kind, "total": costs.total(found)}}
    return _finish(run, folder, found, live.step, live.seconds, more)


def _sampled(run: _Run, folder: Place, device: torch.device, progress: Progress) -> SearchReport:
    """Random or evolutionary search, in the budget of a mixed-level one of as many steps."""
    config, started = run.config, monotonic()
    costs, steps = _kept_costs(run, folder, device), budget(config)

    def charge(genotype: Genotype) -> float:
        return config.cost_weight * float(costs.term(one_hot(genotype)))

    sampling = sampled.Sampling(config, *run.parts, run.store, steps, charge)
    before = _seconds(folder)
    try:
        found, tried = sampled.search(sampling, folder, device=str(device), progress=progress)
    finally:
        seconds = before + monotonic() - started
        storage.publish_bytes(folder / SECONDS_FILE, _as_json({"seconds": round(seconds, 3)}))
    more = {
        "cost": {"of": costs.kind, "total": costs.total(found)},
        "tried": [{"genotype": str(one.genotype), "loss": one.loss, "charge": one.charge} for one in tried],
    }
    return _finish(run, folder, found, steps, seconds, more)


def _kept_costs(run: _Run, folder: Place, device: torch.device) -> Costs:
    """Those that the search began with. UsageError where what was begun in the folder is another one."""
    snapshot = resume.Snapshot.load(folder, run.identity)
    if snapshot is not None:
        return Costs.restored(run.config, snapshot.tensors)
    costs = Costs.of(run.config, device)
    resume.Snapshot(1, None, costs.tensors()).save(folder, run.identity)
    return costs


def _seconds(folder: Place) -> float:
    """That processes before this one took; those of one that was killed are not known."""
    file = folder / SECONDS_FILE
    return float(json.loads(file.read_bytes())["seconds"]) if file.is_file() else 0.0


def _as_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content) + "\n").encode()


def _finish(
    run: _Run, folder: Place, found: Genotype, steps: int, seconds: float, more: dict[str, Any]
) -> SearchReport:
    storage.publish_bytes(folder / "genotype.svg", pictures.genotype(found, str(found)).encode())
    storage.publish_bytes(folder / SECONDS_FILE, _as_json({"seconds": round(seconds, 3)}))
    found.save(folder / GENOTYPE_FILE, run.record(found, steps, **more))
    (folder / resume.STATE_FILE).unlink(missing_ok=True)
    storage.remove_leftovers(folder)
    return _report(run, folder, found, steps)


def _made(folder: Place) -> Place:
    if isinstance(folder, Path):
        files.make_folder(folder)
    return folder
