"""The state of a training run between two steps: all that the next step depends on, in one file without pickle.

    run/state.safetensors     tensors: net.*, ema.*, optimizer.{parameter}.{name}, meter.*
                              metadata under `curate`: schema.TrainingState

It is there while a run is under way, whole or not at all, and goes when the run has ended.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer

from curate import schema, storage
from curate.errors import DataError, UsageError, one_line
from curate.schema import TrainingState
from curate.storage import Place
from curate.tensors import content_hash

__all__ = [
    "STATE_FILE",
    "Snapshot",
    "differences",
    "optimizer_tensors",
    "restore_optimizer",
    "with_prefix",
    "without_prefix",
]

STATE_FILE = "state.safetensors"


@dataclass(frozen=True)
class Snapshot:
    """A run after `step` steps."""

    step: int
    best: dict[str, Any] | None  # the best validation so far
    tensors: dict[str, Tensor]

    def save(self, folder: Place, identity: Mapping[str, Any]) -> None:
        """Write it into the run's folder, in place of the one before. `identity` says which run it is of."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        record = TrainingState(identity=dict(identity), step=self.step, best=self.best, digest="")
        record = record.model_copy(update={"digest": _digest(record, tensors)})
        storage.publish_bytes(folder / STATE_FILE, save(tensors, {schema.METADATA_KEY: schema.dump(record).decode()}))

    @classmethod
    def load(cls, folder: Place, identity: Mapping[str, Any]) -> "Snapshot | None":
        """The state in a run's folder, None where there is none.

        Raises UsageError if it is of another run than `identity` says, DataError if it cannot be read.
        """
        file = folder / STATE_FILE
        if not file.is_file():
            return None
        try:
            with storage.local_copy(file) as copy, safe_open(copy, framework="pt") as content:
                text = (content.metadata() or {}).get(schema.METADATA_KEY, "")
                # Clones are aligned in memory as fresh tensors are: sums of vectorised products depend on it.
                tensors = {name: content.get_tensor(name).clone() for name in content.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise DataError(f"'{one_line(file)}' is damaged ({one_line(error)}); delete it to begin again") from None
        try:
            record = schema.parse(TrainingState, text, file)
        except DataError as error:
            raise DataError(f"{error}; delete it to begin again") from None
        if _digest(record, tensors) != record.digest:
            raise DataError(f"'{one_line(file)}' is damaged: it is not what was saved; delete it to begin again")
        if found := differences(record.identity, identity):
            raise UsageError(
                f"'{one_line(folder)}' holds a run that began with {found}; name another folder with -o, or delete "
                f"its {STATE_FILE} to begin again"
            )
        return cls(record.step, record.best, tensors)


def _digest(record: TrainingState, tensors: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of all that a state holds but this."""
    rest = schema.dump(record.model_copy(update={"digest": ""}))
    return hashlib.sha256(content_hash(tensors).encode() + rest).hexdigest()


def differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """ "rate 0.001, not 0.002; ..." for the entries in which two runs differ; empty if they are the same run."""
    keys = [key for key in {**asked, **found} if found.get(key) != asked.get(key)]
    return one_line("; ".join(f"{key} {found.get(key)}, not {asked.get(key)}" for key in keys))


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under names that begin with `prefix`."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those tensors whose names begin with `prefix`, without it: the way back from `with_prefix`."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as `{parameter number}.{name}`; all of it must be tensors."""
    states = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, state in states.items() for name, value in state.items()}


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The way back from `optimizer_tensors`, into an optimiser of the same parameters."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        states.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
