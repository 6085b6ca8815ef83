"""Networks as diffusers keeps them: a config and weights in a folder, or a name on the hub; built, and checked.

Only classes that the caller names are built, from JSON and safetensors: no pickle is read, no code of a folder's own is
run. diffusers fills in weights that are missing, at random, and says so in a log: here weights and network match one to
one, or the folder is refused.
"""

import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from curate.errors import DataError, UsageError, listed, one_line

__all__ = [
    "CONFIG",
    "ERRORS",
    "WEIGHTS",
    "folder_of",
    "is_network",
    "network",
    "quiet",
    "quoted",
    "read_json",
    "reason",
]

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = WEIGHTS + ".index.json"  # of weights in several files

_FILES = (CONFIG, WEIGHTS, INDEX, "diffusion_pytorch_model-*-of-*.safetensors")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_SHARD = re.compile(r"[\w.-]+\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_MAX_NAMED = 3  # weights named in a message
_MAX_TIMES, _MAX_MORE = 4, 1000  # how many more weights a config may ask for than there are

# What diffusers and torch raise on configs and weights that they do not expect.
ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def folder_of(model: str | Path, parts: Sequence[str], files: Sequence[str] = ()) -> Path:
    """The folder of a model: `model` itself, or the hub's cache of a name (`org/name`), fetched as the user's settings
    say (HF_HUB_OFFLINE, HF_HOME, ...): of each of `parts` ("" is the folder itself) config and weights, and `files`.

    UsageError where there is no such folder and no such name.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UsageError(f"{quoted(folder)} should be a folder as diffusers writes it, found a file")
    name = str(model)
    if not _HUB_NAME.fullmatch(name):
        raise UsageError(f"no folder {quoted(name)}; it should be one as diffusers writes it, or a name on the hub")
    from huggingface_hub import snapshot_download

    wanted = [f"{part}/{file}".lstrip("/") for part in parts for file in _FILES]
    try:
        return Path(snapshot_download(name, allow_patterns=[*wanted, *files]))
    except (OSError, RuntimeError, ValueError) as error:  # what the hub's client raises: all are kinds of these
        why = one_line(str(error).strip().partition("\n")[0])
        raise UsageError(f"no folder {quoted(name)}, and it cannot be fetched from the hub: {why}") from None


def is_network(folder: Path) -> bool:
    """Whether there is at least a half of one."""
    return any((folder / name).is_file() for name in (CONFIG, WEIGHTS, INDEX))


def network(folder: Path, known: Sequence[str]) -> tuple[nn.Module, dict[str, Any]]:
    """The network in a folder, of one of the `known` classes of diffusers, in float32 on the CPU; and its config.

    Torch's random generators stay as they were. DataError for half of one, an unknown class, and for what is damaged,
    does not fit, or is not finite.
    """
    import diffusers

    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    weights = [name for name in (WEIGHTS, INDEX) if (folder / name).is_file()]
    if config is None:
        there = f"weights ({weights[0]}) without" if weights else "no"
        raise DataError(f"{quoted(folder)} is half a model: it has {there} {CONFIG}")
    name = str(config.get("_class_name"))
    if name not in known:
        raise DataError(f"{quoted(folder)} holds a '{one_line(name)}'; known here are: {listed(known)}")
    if not weights:
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        found = f"{one_line(pickles[0])} alone, a pickle, which may run code" if pickles else "none"
        raise DataError(f"{quoted(folder)} should have weights in {WEIGHTS}, found {found}")
    if config.get("quantization_config"):
        raise DataError(f"{quoted(folder)} has quantised weights; they should be floating point")
    most = _MAX_TIMES * _number(folder) + _MAX_MORE
    try:
        with torch.random.fork_rng(devices=[]), _at_most(most):
            module, info = getattr(diffusers, name).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                torch_dtype=torch.float32,
            )
    except ERRORS as error:
        raise DataError(f"{quoted(folder)} is no {name}, or is damaged: {reason(error)}") from None
    _check_weights(folder, module, info)
    return module, config


def _number(folder: Path) -> int:
    """How many weights there are; DataError where the file that says so is damaged."""
    from safetensors import SafetensorError, safe_open

    if (folder / INDEX).is_file():
        files = read_json(folder / INDEX).get("weight_map")
        if not isinstance(files, dict) or not all(
            isinstance(name, str) and _SHARD.fullmatch(name) for name in files.values()
        ):
            raise DataError(f"{quoted(folder / INDEX)} should say in which safetensors file beside it each weight is")
        return len(files)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return len(file.keys())
    except (OSError, SafetensorError):
        raise DataError(f"{quoted(folder / WEIGHTS)} is not a safetensors file, or is damaged") from None


@contextmanager
def _at_most(number: int) -> Iterator[None]:
    """ValueError once so many weights are made: a config may ask for a network without end."""
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1
        if made > number:
            raise ValueError(f"its {CONFIG} asks for more weights than there are")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _check_weights(folder: Path, module: nn.Module, info: Mapping[str, Any]) -> None:
    """DataError where weights and network do not match one to one: diffusers fills in what is missing, at random."""
    found = [
        f"{what}: {_some(sorted(key if isinstance(key, str) else key[0] for key in info[name]))}"
        for what, name in (
            ("missing", "missing_keys"),
            ("unexpected", "unexpected_keys"),
            ("of another shape", "mismatched_keys"),
        )
        if info[name]
    ]
    if found:
        raise DataError(f"{quoted(folder)} has weights that do not fit its {CONFIG}; {'; '.join(found)}")
    bad = [key for key, tensor in module.state_dict().items() if not bool(tensor.isfinite().all())]
    if bad:
        raise DataError(f"{quoted(folder)} has weights that are not finite: {_some(bad)}")


@contextmanager
def quiet() -> Iterator[None]:
    """In it diffusers and the hub's client print nothing: what matters is raised."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "huggingface_hub", "accelerate")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers  # noqa: F401 - it sets its loggers up
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
        )

        levels = [logger.level for logger in loggers]
        bars = not are_progress_bars_disabled()
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        disable_progress_bars()
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if bars:
                enable_progress_bars()


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. DataError for anything else."""
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{quoted(file)} should be a JSON object, or is damaged")
    return found


def reason(error: Exception) -> str:
    """The first sentence of what went wrong, one line; diffusers goes on with advice about its own options."""
    text = " ".join(str(error).split()).partition(". ")[0]
    return one_line(text.removesuffix(".")) or type(error).__name__


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - _MAX_NAMED} more" if len(keys) > _MAX_NAMED else ""
    return ", ".join(map(one_line, keys[:_MAX_NAMED])) + more


def quoted(path: str | Path) -> str:
    """A path for a message."""
    return f"'{one_line(path)}'"
