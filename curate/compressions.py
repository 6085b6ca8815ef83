"""A compression on disk: what `curate drc` leaves in a run's folder, read without torch.

    channels/channels.txt      how many maps of each unit stay, a number a line
    channels/channels.json     the same with how they were found (schema ChannelsRecord); written last
    pruned/model.safetensors   the smaller network, not finetuned yet, and its recipe.json: a checkpoint
    pruned/kept.json           which maps stayed (schema KeptRecord); written last
    seconds.json               how long each stage took, all its parts together: the one file that another run has
                               otherwise
    model.safetensors, ...     the finetuned network: a training run's files

What else is in the two folders are curves, and the state of a stage that has not ended.
"""

import json
from typing import Any, NamedTuple, TypeVar

from curate import schema, storage
from curate.checkpoint import MODEL_FILE
from curate.errors import DataError, one_line
from curate.schema import ChannelsRecord, KeptRecord, PrunedUnit, Sealed
from curate.storage import Place

__all__ = [
    "CHANNELS",
    "CHANNELS_FILE",
    "KEPT_FILE",
    "LIST_FILE",
    "PRUNED",
    "SECONDS_FILE",
    "STAGES",
    "Compression",
    "check",
    "checkpoints",
    "done",
    "dumped",
    "facts",
    "is_compression",
    "listed",
    "mend",
    "read",
    "seconds",
]

CHANNELS, PRUNED = "channels", "pruned"
CHANNELS_FILE, LIST_FILE, KEPT_FILE = "channels.json", "channels.txt", "kept.json"
SECONDS_FILE = "seconds.json"
STAGES = ("channels", "prune", "finetune")

_STATE_FILE = "state.safetensors"  # `curate.resume`, which imports torch

_SealedT = TypeVar("_SealedT", bound=Sealed)


class Compression(NamedTuple):
    """How far a run is: the records of the stages that have ended."""

    channels: ChannelsRecord | None
    kept: KeptRecord | None


def is_compression(folder: Place) -> bool:
    """Whether `curate drc` has begun to write there."""
    return folder.is_dir() and ((folder / CHANNELS).is_dir() or (folder / PRUNED / KEPT_FILE).is_file())


def read(folder: Place) -> Compression:
    """The records of a run's folder. DataError for one that is damaged."""
    return Compression(
        _record(ChannelsRecord, folder / CHANNELS / CHANNELS_FILE), _record(KeptRecord, folder / PRUNED / KEPT_FILE)
    )


def _record(kind: type[_SealedT], file: Place) -> _SealedT | None:
    return schema.parse(kind, file.read_bytes(), f"'{one_line(file)}'") if file.is_file() else None


def listed(units: list[PrunedUnit]) -> bytes:
    """What channels.txt says: what is left of each unit, a number a line, as the authors of DRC publish it."""
    return "".join(f"{unit.left}\n" for unit in units).encode()


def seconds(folder: Place) -> dict[str, float]:
    """How long each stage took, as far as that is known: not of a process that was killed."""
    file = folder / SECONDS_FILE
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(type(time) in (int, float) for time in found.values()):
        raise DataError(f"'{one_line(file)}' is damaged; delete it")
    return found


def dumped(found: dict[str, float]) -> bytes:
    """The content of seconds.json."""
    return (json.dumps(found, sort_keys=True) + "\n").encode()


def done(folder: Place) -> tuple[str, ...]:
    """The stages that have ended."""
    records = read(folder)
    ended = (records.channels is not None, records.kept is not None, (folder / MODEL_FILE).is_file())
    return tuple(name for name, is_done in zip(STAGES, ended, strict=True) if is_done)


def checkpoints(path: Place) -> list[Place]:
    """Where checkpoints and states of a run lie that may be looked into: the path itself where it is no compression."""
    if not is_compression(path):
        return [path]
    found = [folder for folder in (path, path / PRUNED) if (folder / MODEL_FILE).is_file()]
    states = [folder for folder in (path, path / CHANNELS, path / PRUNED) if (folder / _STATE_FILE).is_file()]
    return list(dict.fromkeys([*found, *states]))


def check(folder: Place) -> tuple[list[Place], list[tuple[Place, str]]]:
    """The records of a compression that were looked at, and what is wrong with which; nothing of other paths."""
    found, wrong = list[Place](), list[tuple[Place, str]]()
    for file, kind in _records(folder) if is_compression(folder) else ():
        found.append(file)
        try:
            record = schema.parse(kind, file.read_bytes(), f"'{one_line(file)}'")
        except DataError as error:
            wrong.append((file, str(error)))
            continue
        if not schema.is_as_written(record, file.read_bytes(), indent=2):
            wrong.append((file, "it is not as curate writes it"))
        if isinstance(record, ChannelsRecord):
            beside = folder / CHANNELS / LIST_FILE
            if not beside.is_file() or beside.read_bytes() != listed(record.units):
                wrong.append((beside, f"it should repeat the numbers in {CHANNELS_FILE}"))
            else:
                found.append(beside)
    return found, wrong


def _records(folder: Place) -> list[tuple[Place, type[Sealed]]]:
    kinds: list[tuple[Place, type[Sealed]]] = [
        (folder / CHANNELS / CHANNELS_FILE, ChannelsRecord),
        (folder / PRUNED / KEPT_FILE, KeptRecord),
    ]
    return [(file, kind) for file, kind in kinds if file.is_file()]


def mend(folder: Place) -> list[Place]:
    """Write channels.txt again where it is damaged and the record is whole; returns the files written."""
    file = folder / CHANNELS / LIST_FILE
    if file not in [name for name, _ in check(folder)[1]]:
        return []
    record = read(folder).channels
    assert record is not None  # or nothing would say what the list should be
    storage.publish_bytes(file, listed(record.units))
    return [file]


def facts(folder: Place) -> dict[str, Any]:
    """What is worth knowing of a compression, JSON-able; {} of a folder that is none."""
    if not is_compression(folder):
        return {}
    channels, kept = read(folder)
    record = kept or channels
    if record is None:
        return {"compression": {"done": []}}
    maps, left = (sum(getattr(unit, name) for unit in record.units) for name in ("maps", "left"))
    return {
        "compression": {
            "done": list(done(folder)),
            "units": len(record.units),
            "maps": maps,
            "left": left,
            "of": {name: record.identity.get(name) for name in ("arch", "weights", "manifest")},
            "seconds": seconds(folder),
        }
    }
