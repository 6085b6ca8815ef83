"""Checkpoint: trained weights, the Arch that they belong to, and the recipe that made them.

    run/model.safetensors     weights by name; the header's metadata has one key, `curate`: the record as JSON
    run/recipe.json           the same record, indented, for people

    record = {"format": 1, "arch": "srcnn:scale=2,kernel=9-5-5", "weights": weights_hash, ... the recipe's own keys}

One metadata key, because safetensors keeps no order among several: equal checkpoints are equal bytes.

Public files are read too: .pth and .pt (weights only: no code in a pickle ever runs), .safetensors, MATLAB's .mat.
They do not say which network they are for: the caller names the Arch, and the Arch knows their key names.

torch is imported only where weights are touched, so that `read_recipe` answers at once.
"""

import io
import json
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from curate import matlab, plugins, schema, storage, units
from curate.errors import CurateError, DataError, UsageError, listed, one_line
from curate.plugins import full_spec
from curate.schema import CheckpointRecipe
from curate.storage import Place, RemotePath

if TYPE_CHECKING:
    from torch import Tensor, nn

    from curate.archs import Arch

__all__ = [
    "BEST",
    "MODEL_FILE",
    "RECIPE_FILE",
    "Checkpoint",
    "Contents",
    "check",
    "contents",
    "full_spec",
    "mend",
    "read_recipe",
    "weights_hash",
]

MODEL_FILE = "model.safetensors"
RECIPE_FILE = "recipe.json"
BEST = "best"  # folder in a run's folder: the checkpoint of the best validation

_MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
_WRAPPERS = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net")  # the best first
_MAX_WRAPPERS = 8  # one inside the other; a pickle may hold itself
_PREFIXES = ("module.", "netG.")  # before every name: DataParallel's, and GAN trainers'
_MAX_NAMED = 3  # weights named in a message
_MAX_RATIO = 4  # of what a zip file unpacks to, to its own size; of float weights 1.1 at most
_MAX_TIMES, _MAX_MORE = 4, 1000  # how many more weights a network may have than its file, to be built for a comparison
_MAX_NUMBERS = 3 * 10**8  # in the weights of a network of which the file holds fewer, as one made narrower does
_FILES = (".json", ".txt")  # ends of options that would be read from a file: a genotype, a config


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network as a value: `train` returns it, `evaluate` takes it, compression makes a smaller one of it."""

    arch: "Arch"
    state: "dict[str, Tensor]"  # names, shapes and dtypes of `arch.build().state_dict()`; on the CPU, finite
    recipe: dict[str, Any]  # JSON-able: manifest id, steps, seed, versions, ...

    def save(self, folder: str | Place) -> None:
        """Write recipe.json, then model.safetensors, into `folder` (made as needed); each is whole or absent.

        The model comes last: where it is, the run has ended.
        """
        from safetensors.torch import save

        folder = storage.place(folder, "a checkpoint")
        state = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in self.state.items()}
        record = CheckpointRecipe(arch=full_spec(self.arch), weights=weights_hash(state), training=self.recipe)
        storage.publish_bytes(folder / RECIPE_FILE, schema.dump(record, indent=2))
        storage.publish_bytes(folder / MODEL_FILE, save(state, {schema.METADATA_KEY: schema.dump(record).decode()}))

    def module(self) -> "nn.Module":
        """The network with these weights, on the CPU, in eval mode. Torch's random generator stays as it was."""
        module = _fresh(self.arch)
        module.load_state_dict(self.state)
        return module.eval()

    @classmethod
    def load(cls, path: str | Place, arch: str | None = None) -> "Checkpoint":
        """Read the folder of a run, or a checkpoint file of curate's or anyone's.

        arch: the spec of the network that a public file is for, as `srcnn:scale=2`. Options that the weights' shapes
        tell can be left out; all of it where they tell even the scale. A file of curate's own knows its arch.
        Raises UsageError where there is no such checkpoint or no telling its arch, DataError for what is damaged,
        holds more than weights, or does not fit the arch.
        """
        file = _model_file(path)
        suffix = file.suffix.lower()
        if suffix not in _READERS:
            raise UsageError(f"{_quoted(file)} should be a run's folder or a file of type {listed(_READERS)}")
        record = _record(file) if suffix == ".safetensors" else None
        tensors = _READERS[suffix](file)
        if record is not None:
            return _own(file, record, tensors, arch)
        return _public(file, tensors, arch)


def read_recipe(path: str | Place) -> dict[str, Any]:
    """The record of a run's folder or a file that curate wrote: format, arch, weights, and the recipe's own keys.

    Reads the header only, without torch. Raises UsageError where there is no such file, DataError where it holds no
    record.
    """
    file = _model_file(path)
    record = _record(file)
    if record is None:
        raise DataError(f"{_quoted(file)} has no recipe: it is not a checkpoint that curate wrote")
    return record.model_dump(mode="json")


def check(path: str | Place) -> tuple[list[Place], list[tuple[Place, str]]]:
    """The files of a checkpoint, or of a run, that were looked at, byte by byte, and what is wrong with which.

    No network is built, so that the arch may be anyone's. Raises UsageError for a file that is not curate's: nothing
    says what it should be.
    """
    from curate import resume

    where = storage.place(path, "a checkpoint")
    if not where.is_dir():
        models = [where]
    else:
        models = [file for file in (where / MODEL_FILE, where / BEST / MODEL_FILE) if file.is_file()]
        if not models and not resume.is_begun(where):
            models = [_model_file(where)]
    found: list[Place] = []
    problems: list[tuple[Place, str]] = []
    for file in models:
        beside = file.parent / RECIPE_FILE
        found += [name for name in (file, beside) if name.is_file()]
        problems += _problems(file, beside)
    if where.is_dir() and resume.is_begun(where):
        found.append(where / resume.STATE_FILE)
        problems += [(found[-1], problem) for problem in resume.problems(where)]
    return found, problems


def mend(path: str | Place) -> list[Place]:
    """Write recipe.json again where it is damaged and the weights are whole; returns the files written.

    Not where it differs from an older file's recipe, which has no checksum: one of the two has changed.
    """
    written = []
    for file, _ in check(path)[1]:
        text = _text(file.parent / MODEL_FILE) if file.name == RECIPE_FILE else None
        if text is not None and schema.is_sealed(text.encode()):
            storage.publish_bytes(file, schema.dump(schema.parse(CheckpointRecipe, text, file), indent=2))
            written.append(file)
    return written


def _problems(file: Place, beside: Place) -> list[tuple[Place, str]]:
    try:
        record, tensors = _record(file), _read_safetensors(file)
        if record is None and not beside.is_file():
            raise UsageError(f"{_quoted(file)} is not a checkpoint that curate wrote: nothing says what it should be")
        if record is None:
            return [(file, "it has lost its recipe")]
        if weights_hash(tensors) != record.weights:
            return [(file, "its weights are not those that were saved")]
        if not _is_compact(file):
            return [(file, "its header is not as it is written")]
    except DataError as error:
        return [(file, str(error))]
    if not beside.is_file():
        return [(beside, "it should repeat the recipe, and is missing")]
    if beside.read_bytes() != schema.dump(record, indent=2):
        return [(beside, f"it should repeat the recipe in {MODEL_FILE}, and says something else")]
    return []


class Contents(NamedTuple):
    """What a safetensors file of curate's holds."""

    text: str | None  # its record, as JSON; None in a file of others
    tensors: "dict[str, Tensor]"
    compact: bool  # whether its header is as curate writes it


def contents(file: Place) -> Contents:
    """Raises DataError for a file that is no safetensors file, or is damaged."""
    return Contents(_text(file), _read_safetensors(file), _is_compact(file))


def _is_compact(file: Place) -> bool:
    """Whether a header is JSON without spaces, and spaces after it."""
    text = _read(file, 8, int.from_bytes(_read(file, 0, 8), "little"))
    return text.rstrip(b" ") == json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False).encode()


def weights_hash(state: "Mapping[str, Tensor]") -> str:
    """sha256 (hex) of names, dtypes, shapes and values, whatever their order, device and memory layout."""
    from curate.tensors import content_hash

    return content_hash(state)


# Of curate's own making


def _own(file: Place, record: CheckpointRecipe, tensors: "dict[str, Tensor]", spec: str | None) -> Checkpoint:
    """Checkpoint of a file with a record; `spec` is only needed for an arch outside curate."""
    arch = _recorded_arch(file, record.arch, tensors, spec)
    if weights_hash(tensors) != record.weights:
        raise DataError(f"{_quoted(file)} is damaged: its weights are not those that were saved")
    return Checkpoint(arch, _fitting(file, tensors, arch), record.training)


def _recorded_arch(file: Place, recorded: str, tensors: "dict[str, Tensor]", spec: str | None) -> "Arch":
    unbuildable = f"{_quoted(file)} is for an arch that this curate cannot build"
    try:
        specs, outside = plugins.within(recorded), plugins.outside(recorded)
    except UsageError as error:
        raise DataError(f"{unbuildable}: {error}") from None
    if not set(outside) <= set(plugins.outside(spec or "")):
        # A file must not make curate import a module of its choice.
        inner = next(one for one in specs if "." in one.partition(":")[0])
        raise UsageError(f"{_quoted(file)} is for an arch outside curate; to import it, give --arch {one_line(inner)}")
    try:
        values = (value.strip('"') for one in reversed(specs) for value in plugins.given_in(one).values())
        if named := [value for value in values if value.endswith(_FILES)]:
            # Nor open a file, or a URL, of its choice. What curate writes says what was in it.
            raise UsageError(f"it names another file, '{one_line(named[0])}'")
        given = plugins.given_in(recorded)
        if given.pop("config", None) is not None:
            # Nor take memory for a network of any size, of which a config leaves a little.
            _expected(file, tensors, plugins.parse("archs", recorded.partition(":")[0], **given))
        arch: Arch = plugins.parse("archs", recorded)
    except UsageError as error:
        raise DataError(f"{unbuildable}: {error}") from None
    if spec is not None and not _is_meant(spec, arch):
        raise UsageError(f"{_quoted(file)} is for {plugins.shown(recorded)}, not for {plugins.shown(spec)}")
    return arch


def _is_meant(spec: str, arch: "Arch") -> bool:
    """Whether `spec` says the arch, or the one that it is a part of, with options left open."""
    named = type(plugins.parse("archs", spec.partition(":")[0]))
    found = next((one for one in (arch, getattr(arch, "inner", None)) if type(one) is named), None)
    return found is not None and _with_rest(spec, plugins.options_of(found)) == found


def _with_rest(spec: str, options: Mapping[str, Any]) -> "Arch":
    """The arch that `spec` names, with `options` for those that it leaves open, where the arch has them."""
    known = plugins.options_of(plugins.parse("archs", spec.partition(":")[0]))
    left_open = {key: options[key] for key in known.keys() & options.keys() if key not in plugins.given_in(spec)}
    arch: Arch = plugins.parse("archs", spec, **left_open)
    return arch


def _record(file: Place) -> CheckpointRecipe | None:
    """What curate wrote into the header of a safetensors file; None in a file of others."""
    text = _text(file)
    return None if text is None else schema.parse(CheckpointRecipe, text, _quoted(file))


def _text(file: Place) -> str | None:
    text: str | None = _header(file).get("__metadata__", {}).get(schema.METADATA_KEY)
    return text


def _header(file: Place) -> dict[str, Any]:
    """The JSON header of a safetensors file: 8 bytes of little-endian length, then that many bytes."""
    length = int.from_bytes(_read(file, 0, 8), "little")
    text = _read(file, 8, length) if length <= _MAX_HEADER else b""
    try:
        header = json.loads(text)
        if isinstance(header, dict) and isinstance(header.get("__metadata__", {}), dict):
            return header
    except (ValueError, RecursionError):
        pass
    raise DataError(f"{_quoted(file)} is not a safetensors file, or is damaged")


def _read(file: Place, start: int, size: int) -> bytes:
    if isinstance(file, RemotePath):
        return file.read(start, size)
    with file.open("rb") as stream:
        stream.seek(start)
        return stream.read(size)


# Of others' making


def _public(file: Place, tensors: "dict[str, Tensor]", spec: str | None) -> Checkpoint:
    """Checkpoint of a file that does not know its arch. The recipe says no more than where it comes from."""
    try:
        arch = _inferred_arch(file, tensors) if spec is None else _completed(file, spec, tensors)
        state = arch.adapt(tensors)
    except DataError as error:
        raise DataError(f"{_quoted(file)}: {error}") from None
    return Checkpoint(arch, _fitting(file, state, arch), {"source": file.name})


def _completed(file: Place, spec: str, tensors: "dict[str, Tensor]") -> "Arch":
    """The arch that `spec` names, with the options it leaves open as the weights' shapes have them."""
    draft: Arch = plugins.parse("archs", spec)
    inferred = draft.infer(draft.adapt(tensors))
    name, given = spec.partition(":")[0], plugins.given_in(spec)
    for key in (key for key, value in inferred.items() if value is None and key not in given):
        found = f"{_quoted(file)} fits {name} of some {key}, which weights do not show"
        raise UsageError(f"{found}: say which with --arch {name}:{key}=...")
    arch = _with_rest(spec, inferred)
    return arch if "config" in given else _narrowed(file, arch, tensors)


def _narrowed(file: Place, arch: "Arch", tensors: "dict[str, Tensor]") -> "Arch":
    """The arch with the config that leaves the weights' shapes, where there is one."""
    full, state = arch.prunable(), arch.adapt(tensors)
    if not full:
        return arch
    expected = {name: tensor.shape for name, tensor in _expected(file, state, arch).items()}
    shapes = {name: state[name].shape for name in expected if name in state and state[name].ndim == len(expected[name])}
    widths = units.narrowed(full, expected, shapes)
    return arch if widths is None else replace(arch, config=units.text(widths, full))  # type: ignore[type-var]


def _inferred_arch(file: Place, tensors: "dict[str, Tensor]") -> "Arch":
    """The first of curate's own archs that recognises the weights, if they tell its scale too."""
    for name in plugins.names("archs"):
        draft: Arch = plugins.parse("archs", name)
        options = draft.infer(draft.adapt(tensors))
        if "scale" in options:
            return _completed(file, name, tensors)
        if options:
            example = ",".join(f"{key}={value}" for key, value in {"scale": 2, **options}.items())
            raise UsageError(f"{_quoted(file)} fits {name} of some scale: say which with --arch {name}:{example}")
    known = listed(plugins.names("archs"))
    raise UsageError(f"{_quoted(file)} does not say which network it is for: name it with --arch, one of {known}")


def _read_pickle(file: Place) -> "dict[str, Tensor]":
    import torch

    content = file.read_bytes()
    _check_zip(file, content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle's versions, and whatever else damage looks like
            data = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise _unreadable(file, "torch checkpoint") from None
        what = f"it wants to run {one_line(wanted[1])}; save its state_dict alone"
        raise DataError(f"{_quoted(file)} holds more than weights: {what}") from None
    except _PARSER_ERRORS:
        raise _unreadable(file, "torch checkpoint") from None
    return _named_tensors(file, _unwrapped(data))


def _check_zip(file: Place, content: bytes) -> None:
    """DataError for a zip file whose members are to take far more memory than it: torch compresses nothing."""
    if not content.startswith(b"PK"):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as members:
            size = sum(member.file_size for member in members.infolist())
    except (zipfile.BadZipFile, *_PARSER_ERRORS):
        raise _unreadable(file, "torch checkpoint") from None
    if size > _MAX_RATIO * len(content):
        raise DataError(f"{_quoted(file)} has {len(content)} bytes and would unpack to {size}: it holds no weights")


def _read_safetensors(file: Place) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = file.read_bytes()
    try:
        tensors = load(content)
    except (SafetensorError, *_PARSER_ERRORS):
        raise _unreadable(file, "safetensors file") from None
    return _named_tensors(file, tensors)


def _read_matlab(file: Place) -> "dict[str, Tensor]":
    import torch

    try:
        arrays = matlab.read(file.read_bytes())
    except DataError as error:
        raise DataError(f"{_quoted(file)} {error}") from None
    return _named_tensors(file, {key: torch.from_numpy(value) for key, value in arrays.items()})


# What the parsers of torch and safetensors raise on bytes that they do not expect: seen on 15,000 damaged files.
_PARSER_ERRORS = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

_READERS = {".safetensors": _read_safetensors, ".pth": _read_pickle, ".pt": _read_pickle, ".mat": _read_matlab}


def _unwrapped(data: object) -> object:
    """The innermost dict of a trainer's file: of `{"params_ema": weights, "params": weights}` the first."""
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(data, Mapping):
            break
        inner = [data[key] for key in _WRAPPERS if isinstance(data.get(key), Mapping)]
        if len(data) == 1:
            inner += [value for value in data.values() if isinstance(value, Mapping)]
        if not inner:
            break
        data = inner[0]
    return data


def _named_tensors(file: Place, data: object) -> "dict[str, Tensor]":
    """`data` as names and dense tensors on the CPU, without a prefix that all names share; DataError if it is not."""
    if not isinstance(data, Mapping) or not data:
        raise DataError(f"{_quoted(file)} holds no weights by name")
    bad = [key for key, value in data.items() if not isinstance(key, str) or not _is_dense(value)]
    if bad:
        raise DataError(f"{_quoted(file)} holds more than weights by name: {_some(bad)}")
    state = {key: value.detach() for key, value in data.items()}
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _is_dense(value: object) -> bool:
    """Whether it is a plain tensor, all of whose elements were in the file: a stride of 0 would repeat some."""
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


# Of either


def _model_file(path: str | Place) -> Place:
    """The file that holds the weights: `path` itself, or model.safetensors in the folder `path`."""
    file = storage.place(path, "a checkpoint")
    if file.is_dir():
        if not (file / MODEL_FILE).is_file():
            raise UsageError(f"{_quoted(file)} has no {MODEL_FILE}: it is not the folder of a finished training run")
        return file / MODEL_FILE
    if not file.is_file():
        raise UsageError(f"no checkpoint {_quoted(file)}: there is no such file or folder")
    return file


def _fitting(file: Place, state: "dict[str, Tensor]", arch: "Arch") -> "dict[str, Tensor]":
    """`state` in the order and dtypes of `arch`'s network; DataError where names, shapes or values are wrong."""
    expected = _expected(file, state, arch)
    shared = [key for key in expected if key in state]
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} for {tuple(expected[key].shape)}"
            for key in shared
            if state[key].shape != expected[key].shape
        ],
    }
    found = [f"{what}: {_some(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise DataError(f"{_quoted(file)} does not fit {plugins.shown(arch)}; {'; '.join(found)}")
    state = {key: state[key].to(expected[key].dtype) for key in shared}
    if bad := [key for key, tensor in state.items() if not bool(tensor.isfinite().all())]:
        raise DataError(f"{_quoted(file)} has weights that are not finite: {_some(bad)}")
    return state


def _expected(file: Place, state: "dict[str, Tensor]", arch: "Arch") -> "dict[str, Tensor]":
    """The state of `arch`'s network, without values.

    A file, or what is inferred from one, may name a network of any size: no memory is taken for it, and nothing is
    built that has far more weights than the file.
    """
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook

    most, registered, numbers = _MAX_TIMES * len(state) + _MAX_MORE, 0, 0
    largest = max(_MAX_NUMBERS, sum(tensor.numel() for tensor in state.values()))

    def count(_: object, __: object, parameter: "Tensor | None") -> None:
        nonlocal registered, numbers
        registered += 1
        numbers += 0 if parameter is None else parameter.numel()
        found = ""
        if registered > most:
            found = f"{len(state)} weights, the network has more than {most}"
        elif numbers > largest:
            found = f"{sum(tensor.numel() for tensor in state.values())} numbers, the network more than {largest}"
        if found:
            raise DataError(f"{_quoted(file)} does not fit {plugins.shown(arch)}: it has {found}")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of filling tensors without values
            return _fresh(arch).state_dict()
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes that no tensor has
        raise DataError(f"{_quoted(file)} does not fit {plugins.shown(arch)}: {one_line(error)}") from None
    finally:
        hook.remove()


def _fresh(arch: "Arch") -> "nn.Module":
    """A network with random weights that costs the caller no random numbers."""
    import torch

    with torch.random.fork_rng(devices=[]):
        return arch.build()


def _unreadable(file: Place, what: str) -> CurateError:
    return DataError(f"{_quoted(file)} is not a {what}, or is damaged")


def _quoted(path: Place) -> str:
    return f"'{one_line(path)}'"


def _some(keys: Iterable[object]) -> str:
    """The first few keys, in their own order, and how many more."""
    names = [one_line(key) for key in keys]
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
