"""The state of a training run between two steps: all that the next step depends on, in one file without pickle.

    run/state.safetensors     tensors: net.*, ema.*, optimizer.{parameter}.{name}, meter.*
                              metadata under `curate`: schema.TrainingState

It is there while a run is under way, whole or not at all, and goes when the run has ended.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer

from curate import schema, storage
from curate.errors import DataError, UsageError, one_line
from curate.reuse import differences
from curate.schema import TrainingState
from curate.storage import Place
from curate.tensors import content_hash

__all__ = [
    "STATE_FILE",
    "Snapshot",
    "begun",
    "is_begun",
    "optimizer_tensors",
    "problems",
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

    def save(self, folder: Place, identity: Mapping[str, Any], name: str = STATE_FILE) -> None:
        """Write it into the run's folder, in place of the one before. `identity` says which run it is of.

        Under another `name` it is what a run that has ended leaves.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        record = TrainingState(identity=dict(identity), step=self.step, best=self.best, tensors=content_hash(tensors))
        storage.publish_bytes(folder / name, save(tensors, {schema.METADATA_KEY: schema.dump(record).decode()}))

    @classmethod
    def load(
        cls,
        folder: Place,
        identity: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
        name: str = STATE_FILE,
    ) -> "Snapshot | None":
        """The state in a run's folder, None where there is none.

        Entries of `defaults` stand for those that the state of an older curate lacks.

        Raises UsageError if it is of another run than `identity` says, DataError if it is damaged, OSError if it
        cannot be read.
        """
        if not (folder / name).is_file():
            return None
        record, tensors = _read(folder / name)
        if found := differences({**(defaults or {}), **record.identity}, identity):
            raise UsageError(
                f"'{one_line(folder)}' holds a run that began with {found}; name another folder with -o, or delete "
                f"its {name} to begin again"
            )
        return cls(record.step, record.best, tensors)


def is_begun(folder: Place) -> bool:
    """Whether there is the state of a run that has not ended."""
    return (folder / STATE_FILE).is_file()


def begun(folder: Place) -> TrainingState:
    """What the state in a run's folder says of the run. DataError if it is damaged, OSError if it cannot be read."""
    return _read(folder / STATE_FILE)[0]


def problems(folder: Place) -> list[str]:
    """What is wrong with the state in a run's folder."""
    try:
        _read(folder / STATE_FILE)
    except DataError as error:
        return [str(error)]
    return []


def _read(file: Place) -> tuple[TrainingState, dict[str, Tensor]]:
    """DataError for a state that is damaged, OSError for one that cannot be read."""
    with storage.local_copy(file) as copy:
        copy.open("rb").close()  # of one that may not be read safetensors says that it is not there
        text, tensors = _content(copy, file)
    try:
        record = schema.parse(TrainingState, text, file)
    except DataError as error:
        raise DataError(f"{error}; delete it to begin again") from None
    if record.tensors is not None and record.tensors != content_hash(tensors):
        raise DataError(f"'{one_line(file)}' is damaged (its tensors have changed); delete it to begin again")
    return record, tensors


def _content(copy: Path, file: Place) -> tuple[str, dict[str, Tensor]]:
    try:
        with safe_open(copy, framework="pt") as content:
            text = (content.metadata() or {}).get(schema.METADATA_KEY, "")
            # Clones are aligned in memory as fresh tensors are: sums of vectorised products depend on it.
            return text, {name: content.get_tensor(name).clone() for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"'{one_line(file)}' is damaged ({one_line(error)}); delete it to begin again") from None


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
