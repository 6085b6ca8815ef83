"""Dual regression (Guo et al. 2020): small networks that learn the way back, from a network's answers to its input.

A network is trained so that its answer, shrunk by a dual network, is the LR image again. The dual networks learn with
it, and so learn how LR was made, whatever that was. A network with answers at several scales (DRN) has one for each
step from a scale to the one below, every other network a single one from its scale to 1.

A dual network is `archs.drn.DownBlock`: convs 3x3 whose strides multiply to the step (x4: 2 and 2; x3: 3), each to
`Arch.dual_features` maps with a leaky ReLU, and a conv 3x3 back to the image; no biases. 864 parameters for a step of 2
and 3,168 for one of 4, with 16 maps and RGB.

    run/dual.safetensors     beside the model.safetensors that they were trained with: their weights by name; the
                             header's metadata has one key, `curate`: schema.DualRecord, as JSON

Axes in names: B batch, C channels, H height, W width.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from safetensors.torch import save as saved
from torch import Tensor, nn

from curate import plugins, schema, storage
from curate.archs import Arch
from curate.archs.drn import DownBlock
from curate.checkpoint import (
    BEST,
    MODEL_FILE,
    Checkpoint,
    Contents,
    contents,
    full_spec,
    read_recipe,
    weights_hash,
)
from curate.errors import DataError, UsageError, listed, one_line
from curate.schema import DualRecord
from curate.storage import Place

__all__ = ["DUAL_FILE", "Answer", "Regression", "check", "dual_networks", "fits", "load", "save"]

DUAL_FILE = "dual.safetensors"

_STRIDES = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}  # of a step between two scales


class Answer(NamedTuple):
    """What a network and its dual networks make of a batch; values up to the arch's `peak`."""

    srs: tuple[Tensor, ...]  # sr_BCHW at each of the arch's outputs
    lrs: tuple[Tensor, ...]  # what the dual networks make of the last of these; empty without
    maps_BHW: Tensor | None = None  # the mean over channels of what enters `Arch.tail`, float32; of a watched network

    def float(self) -> "Answer":
        """In float32."""
        srs, lrs = (tuple(image_BCHW.float() for image_BCHW in images) for images in (self.srs, self.lrs))
        return Answer(srs, lrs, self.maps_BHW)


def dual_networks(arch: Arch) -> nn.ModuleList:
    """Fresh dual networks of an arch, the one that leads to the input's size first.

    Weights are drawn from torch's current random generator. UsageError for a scale that has none.
    """
    outputs = arch.outputs if len(arch.outputs) > 1 else (1, arch.scale)
    steps = [above // below for below, above in pairwise(outputs)]
    if not set(steps) <= _STRIDES.keys():
        found = f"{plugins.spec_of(arch)} has {listed(f'x{step}' for step in steps)}"
        raise UsageError(f"dual networks are for steps of {listed(f'x{step}' for step in _STRIDES)}: {found}")
    channels = 1 if arch.colour == "y" else 3
    return nn.ModuleList(DownBlock(channels, arch.dual_features, channels, _STRIDES[step]) for step in steps)


class Regression(nn.Module):
    """A network with its dual networks, or without, as one module for a training's loop."""

    def __init__(
        self, arch: Arch, net: nn.Module, duals: nn.ModuleList | None = None, *, watched: bool = False
    ) -> None:
        """`watched` tells of the maps that enter the arch's `tail` too, by a hook that stays with `net`."""
        super().__init__()
        self.several = len(arch.outputs) > 1
        self.net = net
        self.duals = nn.ModuleList() if duals is None else duals
        self.watched = watched
        self._seen: list[Tensor] = []
        if watched:
            assert arch.tail is not None
            net.get_submodule(arch.tail).register_forward_pre_hook(lambda _, inputs: self._seen.append(inputs[0]))

    def forward(self, lr_BCHW: Tensor) -> Answer:
        srs = self.net.scales(lr_BCHW) if self.several else (self.net(lr_BCHW),)  # type: ignore[operator]
        led_back = srs[len(srs) - len(self.duals) :]
        lrs = tuple(dual(sr_BCHW) for dual, sr_BCHW in zip(self.duals, led_back, strict=True))
        return Answer(srs, lrs, self._seen.pop().float().mean(1) if self.watched else None)


def save(folder: str | Place, duals: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    """Write the weights of dual networks for the folder of this checkpoint, which is to be saved after them."""
    place = storage.place(folder, "a run")
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in duals.items()}
    record = DualRecord(
        arch=full_spec(checkpoint.arch), network=weights_hash(checkpoint.state), weights=weights_hash(state)
    )
    storage.publish_bytes(place / DUAL_FILE, saved(state, {schema.METADATA_KEY: schema.dump(record).decode()}))


def load(folder: str | Place, checkpoint: Checkpoint) -> dict[str, Tensor] | None:
    """The weights of the dual networks beside a checkpoint, in its folder or beside its file; None where are none.

    On the CPU. Raises DataError for a file that is damaged, is not curate's, or belongs to other weights.
    """
    file = _beside(folder)
    if not file.is_file():
        return None
    record, (_, state, _) = _read(file)
    if record.network != weights_hash(checkpoint.state):
        raise DataError(f"'{one_line(file)}' belongs to other weights than the checkpoint beside it")
    if not fits(state, checkpoint.arch) or not all(tensor.isfinite().all() for tensor in state.values()):
        raise DataError(f"'{one_line(file)}' does not hold dual networks of {plugins.spec_of(checkpoint.arch)}")
    return state


def fits(state: Mapping[str, Tensor], arch: Arch) -> bool:
    """Whether these are weights of an arch's dual networks, by names, shapes and types."""
    with torch.device("meta"):
        expected = dual_networks(arch).state_dict()
    kinds = [{name: (tensor.shape, tensor.dtype) for name, tensor in one.items()} for one in (state, expected)]
    return kinds[0] == kinds[1]


def check(path: str | Place) -> tuple[list[Place], list[tuple[Place, str]]]:
    """The files of dual networks in a run's folder, or such a file, and what is wrong with which.

    As `checkpoint.check`, which looks at the checkpoints beside them. A run whose recipe has a weight for them should
    have some.
    """
    where = storage.place(path, "a checkpoint")
    if where.is_dir():
        files = [folder / DUAL_FILE for folder in (where, where / BEST) if (folder / MODEL_FILE).is_file()]
    else:
        files = [where] if where.name == DUAL_FILE else []
    problems = [(file, problem) for file in files for problem in _problems(file)]
    return [file for file in files if file.is_file()], problems


def _problems(file: Place) -> list[str]:
    try:
        beside = read_recipe(file.parent) if (file.parent / MODEL_FILE).is_file() else None
    except DataError:
        beside = None  # which `checkpoint.check` tells of
    if not file.is_file():
        config = beside["training"].get("config") if beside else None
        trained = isinstance(config, Mapping) and config.get("dual")
        return [f"{MODEL_FILE} was trained with dual networks, and they are missing"] if trained else []
    try:
        record, found = _read(file)
    except DataError as error:
        return [str(error)]
    if not found.compact:
        return ["its header is not as it is written"]
    foreign = beside is not None and beside["weights"] != record.network
    return [f"it belongs to other weights than those of {MODEL_FILE}"] if foreign else []


def _beside(path: str | Place) -> Place:
    where = storage.place(path, "a checkpoint")
    return (where if where.is_dir() else where.parent) / DUAL_FILE


def _read(file: Place) -> tuple[DualRecord, Contents]:
    """DataError for a file that is not curate's, or is damaged."""
    found = contents(file)
    if found.text is None:
        raise DataError(f"'{one_line(file)}' does not say whose it is: these are no dual networks of curate's")
    record = schema.parse(DualRecord, found.text, f"'{one_line(file)}'")
    if weights_hash(found.tensors) != record.weights:
        raise DataError(f"'{one_line(file)}' is damaged: its weights are not those that were saved")
    return record, found
