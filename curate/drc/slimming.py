"""A smaller network by its config alone: no data, no search; of each unit its largest maps are left."""

import platform
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from curate import storage, units
from curate.archs import Arch
from curate.archs._narrow import narrow
from curate.checkpoint import MODEL_FILE, RECIPE_FILE, Checkpoint, full_spec, read_recipe, weights_hash
from curate.drc.criteria import largest
from curate.drc.foreign import prepared
from curate.dual import dual_networks
from curate.errors import DataError, UsageError, one_line
from curate.macs import multiply_adds, parameters
from curate.storage import Place

__all__ = ["SlimReport", "publish", "slim", "slimmed", "versions"]

_HD = (720, 1280)  # height and width of the answer that multiply-adds are counted for


class SlimReport(NamedTuple):
    """What a checkpoint of a config has."""

    path: Place
    arch: Arch
    parameters: int
    dual_parameters: int  # of its dual networks, which authors count too
    multiply_adds: int  # for an answer of 1280x720


def slim(checkpoint: Checkpoint | str | Path, config: str | Path, arch: str | None = None) -> Checkpoint:
    """The checkpoint with the widths that a config says, a text or a .txt file, and of each unit its largest maps.

    Largest by the L1 norm of the weights that read them. Raises UsageError for a network without units and a config
    that does not fit it, DataError for a file that is damaged.
    """
    before = prepared(Checkpoint.load(checkpoint, arch) if isinstance(checkpoint, str | Path) else checkpoint)
    own = units.left(before.arch)
    widths = units.fitted(storage.place(config, "a config") if isinstance(config, Path) else config, own)
    net = before.module()
    named = dict(net.named_parameters())
    kept = [largest(named, unit, width) for unit, width in zip(own, widths, strict=True)]
    smaller: Arch = replace(before.arch, config=units.text(widths, own))  # type: ignore[type-var]
    made_of = {"arch": full_spec(before.arch), "weights": weights_hash(before.state), "criterion": "l1"}
    recipe = {"compressed": made_of, "versions": versions()}
    return Checkpoint(smaller, narrow(net, own, kept).state_dict(), recipe)


def slimmed(
    checkpoint: Checkpoint | str | Path, config: str | Path, out: str | Path, arch: str | None = None
) -> SlimReport:
    """`slim`, written to the folder `out`, and counted. UsageError too where that holds another model."""
    folder = storage.place(out, "a checkpoint")
    made = slim(checkpoint, config, arch)
    if folder.is_file():
        raise UsageError(f"'{one_line(folder)}' is a file; name a folder with -o")
    publish(made, folder)
    with torch.random.fork_rng(devices=[]):
        duals = dual_networks(made.arch)
    numbers = sum(parameter.numel() for parameter in duals.parameters())
    return SlimReport(folder, made.arch, parameters(made.arch), numbers, multiply_adds(made.arch, *_HD))


def publish(made: Checkpoint, folder: Place) -> None:
    """Write a checkpoint that no training made. UsageError where there is another one."""
    if (folder / MODEL_FILE).is_file():
        try:
            found = read_recipe(folder)["weights"]
        except DataError as error:
            raise UsageError(f"{error}; name another folder with -o") from None
        if found != weights_hash(made.state):
            raise UsageError(f"'{one_line(folder)}' holds another model; name another folder with -o")
        if (folder / RECIPE_FILE).is_file():
            return
    made.save(folder)
    storage.remove_leftovers(folder)


def versions() -> dict[str, str]:
    """What made it."""
    return {"curate": version("curate"), "torch": torch.__version__, "python": platform.python_version()}
