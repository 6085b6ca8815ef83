"""Baselines of the search: networks drawn at random, or evolved, each trained alone, and the best of them.

    candidates/0007/                    a training (`curate.training`) of steps that are the same for every candidate
    candidates/0007/comparison.json     its loss on crops that are the same for every candidate

Evolution is regularised (Real et al. 2019, Algorithm 1): of the youngest networks alone, whatever they are worth, some
are drawn, and the best of these is changed in one place. What is drawn for a candidate depends on the seed, its number
and the candidates before it, so that the same command goes on with a search that was killed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from math import isfinite, prod
from typing import NamedTuple

import numpy as np
import torch

from curate import losses, plugins, storage
from curate.archs.dlsr import Dlsr
from curate.checkpoint import Checkpoint, weights_hash
from curate.config import NasConfig, TrainConfig
from curate.errors import DataError, UsageError
from curate.genotype import CHOOSING, LAYERS, OPERATIONS, Genotype
from curate.loader import batches
from curate.manifest import Manifest
from curate.progress import Progress, silent
from curate.storage import Place
from curate.store import Store
from curate.tensors import pick_device
from curate.training import train

__all__ = ["Sampling", "Space", "Tried", "proposed", "search"]

_COMPARED = 16  # batches that a candidate's loss is the mean of


@dataclass(frozen=True)
class Sampling:
    """What is searched, on what, and what a candidate costs."""

    config: NasConfig
    training: Manifest  # what candidates are trained on
    architecture: Manifest  # what they are compared on
    store: Store
    steps: int  # of each candidate
    charge: Callable[[Genotype], float]  # what its size adds to the loss, weighted already


class Tried(NamedTuple):
    """A candidate and what it is worth: the less, the better."""

    genotype: Genotype
    loss: float
    charge: float

    @property
    def value(self) -> float:
        """What candidates are ordered by."""
        return self.loss + self.charge


def search(
    run: Sampling, folder: Place, *, device: str = "auto", progress: Progress = silent
) -> tuple[Genotype, list[Tried]]:
    """Train the candidates that are not yet trained in `folder`, and compare them: the best one, and all in order.

    Progress is counted in steps of all candidates together. UsageError for more candidates than there are genotypes,
    DataError if a candidate's loss is not finite.
    """
    config, possible = run.config, len(Space(run.config.connections))
    if config.candidates > possible:
        kind = "with" if config.connections else "without"
        found = f"the {possible} genotypes {kind} connections, found {config.candidates}"
        raise UsageError(f"candidates should be at most {found}")
    tried: list[Tried] = []
    for number in range(config.candidates):
        genotype = proposed(config, tried)
        loss = _trained(run, genotype, folder / "candidates" / f"{number:04}", device, _part(progress, run, number))
        tried.append(Tried(genotype, loss, run.charge(genotype)))
    return _best(tried), tried


@dataclass(frozen=True)
class Space:
    """The genotypes among which is searched; its length is their number.

    With connections each of cells 3 to 6 takes two earlier ones, in rising order; without them the one before.
    """

    connections: bool

    @property
    def inputs(self) -> list[list[tuple[int, ...]]]:
        """What each of cells 3 to 6 can take."""
        if not self.connections:
            return [[(cell - 1,)] for cell in CHOOSING]
        return [list(combinations(range(1, cell), 2)) for cell in CHOOSING]

    def __len__(self) -> int:
        return prod([len(OPERATIONS)] * LAYERS + [len(choices) for choices in self.inputs])

    def draw(self, rng: np.random.Generator) -> Genotype:
        """One of them, each as likely as any other."""
        operations = [OPERATIONS[number] for number in rng.integers(len(OPERATIONS), size=LAYERS)]
        return Genotype.of(operations, [choices[rng.integers(len(choices))] for choices in self.inputs])

    def neighbours(self, genotype: Genotype) -> list[Genotype]:
        """Those that differ from one of them in a single operation, or a single input of a single cell."""
        operations, inputs = genotype.operations, genotype.inputs
        found = [
            Genotype((*operations[:layer], name, *operations[layer + 1 :]), inputs)
            for layer in range(LAYERS)
            for name in OPERATIONS
            if name != operations[layer]
        ]
        found += [
            Genotype(operations, (*inputs[:place], chosen, *inputs[place + 1 :]))
            for place, choices in enumerate(self.inputs)
            for chosen in choices
            if len({*chosen} - {*inputs[place]}) == 1
        ]
        return found


def proposed(config: NasConfig, tried: Sequence[Tried]) -> Genotype:
    """The next candidate, none of those before it; there must be one left."""
    space, known = Space(config.connections), {one.genotype for one in tried}
    rng = np.random.default_rng([config.seed, len(tried)])
    if config.method == "random" or len(tried) < config.population:
        while (drawn := space.draw(rng)) in known:
            pass
        return drawn
    youngest = tried[-config.population :]
    sample = rng.integers(len(youngest), size=max(1, config.population // 2))  # one may be drawn twice, as in the paper
    child = _best([youngest[number] for number in sorted(sample)])
    while child in known:
        others = space.neighbours(child)
        child = others[rng.integers(len(others))]
    return child


def _best(tried: Sequence[Tried]) -> Genotype:
    """Of equal ones the first."""
    return min(tried, key=lambda one: one.value).genotype


def _part(progress: Progress, run: Sampling, number: int) -> Progress:
    """The progress of one candidate, as that of all."""

    def within(done: int, total: int, note: str = "") -> None:
        several = run.config.candidates
        progress(number * total + done, several * total, f"candidate {number + 1} of {several}: {note}")

    return within


def _trained(run: Sampling, genotype: Genotype, folder: Place, device: str, progress: Progress) -> float:
    """A candidate's loss; what is in its folder is not made again."""
    config = run.config
    made = train(
        Dlsr(config.scale, str(genotype), config.features),
        run.training,
        TrainConfig(
            steps=run.steps,
            batch_size=config.batch_size,
            crop=config.crop,
            rate=config.rate,
            weight_decay=config.weight_decay,
            schedule="constant",
            hfen=config.hfen,
            precision=config.precision,
            seed=config.seed,
            log_every=config.log_every,
            save_every=config.save_every,
        ),
        str(folder),
        store=run.store,
        device=device,
        progress=progress,
    )
    record = folder / "comparison.json"
    of = {"weights": weights_hash(made.state), "manifest": run.architecture.digest()}  # all options are the training's
    loss = _kept(record.read_bytes(), of) if record.is_file() else None
    if loss is None:
        loss = _compared(run, made, device)
        storage.publish_bytes(record, json.dumps({**of, "loss": loss}, indent=2).encode())
    return loss


def _kept(record: bytes, of: Mapping[str, str]) -> float | None:
    """The loss of these weights on this manifest; None of others, or of a damaged record: it is measured again."""
    try:
        found = json.loads(record)
    except (ValueError, RecursionError):
        return None
    loss = found.pop("loss", None) if isinstance(found, dict) else None
    return loss if isinstance(loss, float) and isfinite(loss) and found == of else None


@torch.inference_mode()
def _compared(run: Sampling, made: Checkpoint, device: str) -> float:
    """The mean over the first crops of the architecture's part of the loss that a training minimises."""
    config, on, peak = run.config, pick_device(device), made.arch.peak
    net = made.module().to(on, memory_format=torch.channels_last)  # type: ignore[call-overload]
    feed = batches(
        run.architecture,
        scale=config.scale,
        crop=config.crop,
        batch_size=config.batch_size,
        seed=config.seed,
        augment=False,
        store=run.store,
    )
    means = []
    for batch in islice(feed, _COMPARED):
        lr_BCHW, hr_BCHW, weight_B = batch.to(on)[:3]
        with torch.autocast(on.type, torch.bfloat16, enabled=config.precision == "bf16"):
            sr_BCHW = net(lr_BCHW * peak)
        loss_B = losses.distance(sr_BCHW.float(), hr_BCHW * peak, "l1", peak=peak, high=config.hfen)
        means.append((loss_B * weight_B).double().mean())
    loss = float(torch.stack(means).mean())
    if not isfinite(loss):
        raise DataError(f"the loss of {plugins.spec_of(made.arch)} is {loss}: search with a smaller --rate")
    return loss
